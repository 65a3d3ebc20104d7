"""The report: self-contained, complete with parts missing, escaped, stable, honest."""

import copy
import errno
import json
import pathlib
import re
from html import parser as html_parser

import numpy as np
import pytest

from trustml import intervals
from trustml import report as report_lib
from trustml.attacks import membership
from trustml.fairness import groups
from trustml.report import (
    drawing,
    figures,
    fmt,
    frontier,
    html,
    schema,
    style,
    tables,
    words,
)

CLASSES = ("GetWeather", "PlayMusic", "RateBook")


def _run(name, epsilon, accuracy, scale, seed):
    rng = np.random.default_rng(seed)
    n = 600
    label, length = rng.integers(0, 3, n), rng.integers(1, 12, n)
    correct = rng.random(n) < accuracy - 0.1 * (label == 2)
    bucket, names = groups.buckets(length, (3, 6), "words")
    by_class = groups.accuracy_by(correct, label, names=CLASSES, baseline=correct)
    by_length = groups.accuracy_by(correct, bucket, names=names)
    k = int(correct.sum())
    lo, hi = intervals.proportion(k, n)
    result = membership.loss_threshold(
        rng.exponential(scale, 1500), rng.exponential(1.0, 1500)
    )
    run = {
        "name": name,
        "private": epsilon is not None,
        "steps": 300,
        "expected_batch_size": 64,
        "curves": {
            "step": np.arange(300),
            "loss": np.linspace(2, 0.1, 300),
            "accuracy": [None, 0.5, float("nan")] + [accuracy] * 297,
            "epsilon": None if epsilon is None else np.linspace(0.1, epsilon, 300),
        },
        "test": {
            "accuracy": {"value": k / n, "lo": lo, "hi": hi, "n": n},
            "per_class": groups.rows(by_class),
            "per_length": groups.rows(by_length),
            "class_gap": by_class.gap._asdict(),
            "length_gap": by_length.gap._asdict(),
            "majority_baseline": 0.36,
        },
        "membership": membership.as_dict(result, epsilon=epsilon, delta=1e-5),
        "cost": {
            "seconds_per_step": 0.02 if epsilon is None else 0.022,
            "peak_temp_bytes": 1.0e7,
        },
        "nonfinite_examples": 0,
    }
    if epsilon is not None:
        run |= {
            "epsilon_target": epsilon,
            "epsilon_spent": 0.998 * epsilon,
            "epsilon_rdp": 1.1 * epsilon,
            "delta": 1e-5,
            "relation": "add_or_remove_one",
            "privacy_unit": "one training utterance",
            "sampler": "poisson",
            "accountant": "pld",
            "noise_multiplier": 1.1,
            "l2_clip_norm": 1.0,
            "noise_secret": True,
        }
    return run


@pytest.fixture(name="report", scope="module")
def _report():
    return {
        "title": "Intents",
        "command": "python -m launch.run --config=configs/quickstart.py",
        "created": "2026-01-05",
        "versions": {"jax": "0.10.2"},
        "machine": "2 cores",
        "data": {
            "name": "SNIPS",
            "source": "https://example.org/snips",
            "licence": "CC0",
            "counts": {"train": 13084, "test": 600},
            "classes": list(CLASSES),
        },
        "task": {"model": "bag", "params": 1000},
        "runs": [
            _run("non-private", None, 0.97, 0.6, 0),
            _run("eps=8", 8.0, 0.95, 1.0, 1),
            _run("eps=1", 1.0, 0.92, 1.0, 2),
        ],
        "limits": ["One seed only."],
    }


@pytest.fixture(name="page", scope="module")
def _page(report):
    return html.render(report)


class _Parser(html_parser.HTMLParser):
    """Collects tags and checks that they nest."""

    VOID = {"meta", "br", "img", "link"}

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text, self.ids = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def _parse(page):
    parser = _Parser()
    parser.feed(page)
    assert parser.open == []
    return parser


def test_page_loads_nothing_and_runs_nothing(page):
    parser = _parse(page)
    tags = {tag for tag, _ in parser.tags}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "base"}
    for _, attributes in parser.tags:
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "data", "action", "srcset"):
                assert value.startswith("#"), (name, value)
            assert not name.startswith("on")
    assert not re.search(r"url\((?!#)|@import", page)


def test_page_is_whole(page):
    parser = _parse(page)
    assert len(parser.ids) == len(set(parser.ids))
    uses = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', page)
    assert {a or b for a, b in uses} <= set(parser.ids)
    figures_drawn = [a for tag, a in parser.tags if tag == "svg"]
    assert len(figures_drawn) == 8
    assert all(a["role"] == "img" and len(a["aria-label"]) > 30 for a in figures_drawn)
    assert sum(tag == "table" for tag, _ in parser.tags) == 6
    boxes = [a for tag, a in parser.tags if a.get("class") == "scroll"]
    assert len(boxes) == 6
    text = " ".join(parser.text)
    for question in ("promised?", "leaks?", "cost?", "served worse?"):
        assert question in text
    for word in ("One seed only.", "CC0", "0.10.2", "13,084", "launch.run"):
        assert word in text
    assert len(page) < 400_000


def test_the_level_of_intervals_is_the_one_they_have(report, page):
    assert "Exact 95% intervals" in page and "ones. The figures of this" not in page
    other = copy.deepcopy(report)
    for run in other["runs"]:
        run["test"]["level"] = 0.8
    said = html.render(other)
    for sentence in (
        "Exact 80% intervals",
        "with its 80% interval",
        "exact 80% intervals",
        "95% intervals, those of accuracies 80% ones. The figures of this",
    ):
        assert sentence in said
    assert "Exact 95%" not in said and "its 95% interval" not in said


def test_what_arithmetic_is_counted_is_told(page):
    assert "arithmetic for one microbatch and one update" in page


def test_page_is_deterministic(report, page):
    assert html.render(copy.deepcopy(report)) == page


def test_write_round_trips_and_replaces_nothing_by_half(tmp_path, report):
    odd = {"nan": float("nan"), "inf": np.float32(np.inf), "3": (np.int64(1),)}
    report = report | {"runs": report["runs"][:1], "odd": odd}
    path = report_lib.write(tmp_path / "run", report)
    text = (tmp_path / "run" / "report.json").read_text(encoding="utf-8")
    back = json.loads(text)
    assert back["odd"] == {"3": [1], "inf": None, "nan": None}
    assert "NaN" not in text and "Infinity" not in text
    assert report_lib.to_json(back) == text == report_lib.to_json(report)
    assert path.read_text(encoding="utf-8") == html.render(back)
    names = sorted(p.name for p in (tmp_path / "run").iterdir())
    assert names == ["report.html", "report.json"]


PARTS = (
    ("curves", "noise_secret", "cost"),
    ("test", "delta", "membership"),
    ("epsilon_spent", "test", "curves"),
)


@pytest.mark.parametrize("parts", PARTS)
def test_renders_without_parts(report, parts):
    less = copy.deepcopy(report)
    for run, part in zip(less["runs"], parts, strict=True):
        run.pop(part, None)
    _parse(html.render(less))


def test_renders_one_run_and_next_to_nothing(report):
    page = html.render({"title": "x", "runs": report["runs"][2:]})
    _parse(page)
    assert "no other run to compare with" in page
    page = html.render({"runs": [{"name": "train", "private": True}]})
    parser = _parse(page)
    assert not any(tag in ("svg", "table") for tag, _ in parser.tags)
    assert page.count("Not measured") == 3
    assert "is not stated" in page


def test_every_string_is_escaped(report):
    evil = '<script>alert("x")</script>&'
    hostile = report | {"runs": report["runs"][2:]}

    def poison(tree):
        if isinstance(tree, dict):
            return {k: poison(v) for k, v in tree.items()}
        if isinstance(tree, list):
            return [poison(v) for v in tree]
        return evil + tree if isinstance(tree, str) else tree

    hostile = poison(schema.clean(hostile))
    hostile["versions"] = {evil: evil}
    page = html.render(hostile)
    assert "<script" not in page
    parser = _parse(page)
    assert not any(tag == "script" for tag, _ in parser.tags)


def test_words_are_honest(report):
    promised, leaks, costs, served = words.cards(schema.check(report))
    assert "each training utterance" in promised.headline
    # e^.998 * .01 + 1e-5 = .02714; the limit is rounded up.
    assert any("at most 2.72%" in point for point in promised.points)
    assert any("rules out almost nothing" in point for point in promised.points)
    assert promised.tone == "good"
    assert "with no privacy." in leaks.headline and "no proof" in leaks.headline
    assert sum("no leak detected by this attack" in p for p in leaks.points) == 2
    assert any("chance is 0.5" in point for point in leaks.points)
    assert any("36.0%" in point for point in costs.points)
    assert "1.10×" in costs.headline
    assert "RateBook" in served.headline
    reproducible = copy.deepcopy(report)
    reproducible["runs"][1]["noise_secret"] = False
    promised = words.cards(schema.check(reproducible))[0]
    assert promised.tone == "warn"
    assert any("not secret" in point for point in promised.points)


def test_one_leak_at_a_low_fpr_is_a_leak():
    point = {"tpr": 0.05, "lo": 0.03, "hi": 0.07, "achieved_fpr": 0.01, "fpr_hi": 0.016}
    result = {"auc": 0.5, "auc_interval": [0.48, 0.52], "tpr_at_fpr": {"0.01": point}}
    assert words.leak_detected(result)
    result["tpr_at_fpr"]["0.01"] = point | {"lo": 0.012}
    assert not words.leak_detected(result)
    assert not words.leak_detected({"auc": 0.5, "tpr_at_fpr": {"0.001": None}})
    # The AUC alone is enough, when its whole interval is above one half.
    assert words.leak_detected({"auc": 0.55, "auc_interval": [0.51, 0.59]})
    assert not words.leak_detected({"auc": 0.55, "auc_interval": [0.49, 0.61]})
    assert not words.leak_detected({"auc": 0.45, "auc_interval": [0.41, 0.49]})


@pytest.mark.parametrize(
    "value,text",
    [
        (0.0271, "2.71%"),
        (0.010203, "1.03%"),
        (0.027, "2.7%"),
        (0.99967, "99.97%"),
        (1.0, "100%"),
        (0.5, "50.0%"),
    ],
)
def test_limits_are_rounded_up_and_never_to_certainty(value, text):
    assert fmt.percent_up(value) == text


def test_numbers_read_well():
    assert fmt.signed(-3.94) == "\u22123.9"
    assert fmt.signed(-0.01) == "0.0"
    assert fmt.scientific(1e-5) == "1e-5"
    assert fmt.estimate({"value": 0.954, "lo": 0.93, "hi": 0.97}) == (
        "95.4% (93.0–97.0%)"
    )
    assert tables.seconds(0.021) == "21 ms"


def test_too_few_nonmembers_show_as_not_available(report):
    few = copy.deepcopy(report)
    few["runs"][0]["membership"]["tpr_at_fpr"]["0.001"] = None
    assert "<td>n/a</td>" in tables.membership(few["runs"])


def test_many_classes_stay_small(report):
    many = copy.deepcopy(report)
    rows = [
        {"name": f"class {i}", "n": 40, "value": i / 150, "lo": 0.0, "hi": 1.0}
        for i in range(150)
    ]
    for run in many["runs"]:
        run["test"]["per_class"] = rows
    assert "<details>" in html.render(
        {"runs": [{"name": "a", "test": {"per_class": rows}}]}
    )
    svg = figures.groups(many["runs"], "per_class")
    assert "16 of 150" in svg and ">class 0<" in svg and ">class 149<" not in svg


def test_colours_follow_the_theme_and_text_can_be_read():
    used = set(re.findall(r"var\((--\w+)", style.CSS))
    used |= {f"--{name}" for name in drawing.VARIABLES.values()}
    for theme in (style.LIGHT, style.DARK):
        colors = dict(re.findall(r"(--\w+): (#\w{6})", theme))
        assert used <= set(colors)
        for ground in ("--card", "--page"):
            for ink in ("--ink", "--muted"):
                assert _contrast(colors[ink], colors[ground]) >= 4.5
        for name, color in colors.items():
            if re.match(r"--s\d", name):
                assert _contrast(color, colors["--card"]) >= 3.0


def _contrast(a, b):
    def light(color):
        c = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        c = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
        return c @ np.array([0.2126, 0.7152, 0.0722])

    low, high = sorted((light(a), light(b)))
    return (high + 0.05) / (low + 0.05)


def test_figures_keep_their_text_and_the_state_of_matplotlib(report):
    import matplotlib

    before = dict(matplotlib.rcParams)
    svg = figures.cost(report["runs"])
    assert ">1.10 ×<" in svg and "var(--s1, #0072b2)" in svg
    assert dict(matplotlib.rcParams) == before
    assert figures.cost(report["runs"][:1]) == ""


def test_roc_draws_the_limit_and_nothing_below_one_alarm(report):
    svg = figures.roc(report["runs"])
    assert ">limit<" in svg and ">guessing<" in svg
    assert ">limit<" not in figures.roc(report["runs"][:1])


def test_frontier_collapses_seeds_and_marks_the_best(tmp_path, report):
    points = frontier.point(report)
    assert [p["epsilon"] for p in points] == [None, 8 * 0.998, 0.998]
    seeds = [
        {"name": "eps=3|a", "epsilon": 3.0, "delta": 1e-5, "accuracy": {"value": v}}
        for v in (0.70, 0.72, 0.74)
    ]
    entries = frontier.collapse(points + seeds)
    assert [entry["name"] for entry in entries] == [
        "eps=1",
        "eps=3|a",
        "eps=8",
        "non-private",
    ]
    three = entries[1]
    expected = intervals.mean([0.70, 0.72, 0.74])
    assert (three["value"], three["lo"], three["hi"]) == pytest.approx(expected)
    assert three["seeds"] == 3 and not three["best"] and entries[0]["best"]
    path = frontier.write(tmp_path, points + seeds, title="a <b>")
    _parse(path.read_text(encoding="utf-8"))
    text = (tmp_path / "frontier.md").read_text(encoding="utf-8")
    assert "eps=3\\|a" in text and "72.0% (67.0–77.0%)" in text
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"frontier.{end}" for end in ("html", "json", "md", "svg")
    ]


def test_an_interval_over_seeds_stays_among_proportions():
    points = [
        {"name": name, "epsilon": 3.0, "accuracy": {"value": value}}
        for name, values in (("low", (0.09, 0.16)), ("high", (0.88, 0.99)))
        for value in values
    ]
    high, low = frontier.collapse(points)
    assert low["lo"] == 0.0 and 0.5 < low["hi"] < 1
    assert 0 < high["lo"] < 0.5 and high["hi"] == 1.0
    assert "12.5% (0.0–57.0%)" in frontier.markdown(points)


@pytest.mark.parametrize(
    "bad,words_expected",
    [
        ({}, "at least one run"),
        ({"runs": []}, "at least one run"),
        ({"runs": [3]}, "must be a dictionary"),
        ({"runs": [{"private": True}]}, "must be a name"),
        ({"runs": [{"name": "a"}, {"name": "a"}]}, "used twice"),
        ({"runs": [{"name": "a", "test": 3}]}, r"\['test'\]"),
    ],
)
def test_bad_report_gets_a_sentence_and_writes_nothing(tmp_path, bad, words_expected):
    with pytest.raises(ValueError, match=words_expected):
        report_lib.write(tmp_path / "run", bad)
    assert not (tmp_path / "run").exists()


def test_what_could_not_be_written_is_named_and_removed(tmp_path, monkeypatch):
    def write_text(path, text, encoding):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")  # as a real one: no name

    monkeypatch.setattr(pathlib.Path, "write_text", write_text)
    with pytest.raises(OSError) as error:
        report_lib.put(tmp_path / "report.json", "all of it")
    assert error.value.filename == str(tmp_path / "report.json")
    assert list(tmp_path.iterdir()) == []


def test_frontier_without_a_point_gets_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="no accuracy"):
        frontier.write(tmp_path / "run", [{"name": "a", "accuracy": {}}])
    assert not (tmp_path / "run").exists()


def test_a_strong_attack_leads_and_an_audit_stands_beside_the_promise(report):
    runs = [dict(run) for run in report["runs"]]
    for run in runs:
        leaky = run["membership"] | {"attack": "Student-t", "references": "IN+OUT"}
        run["membership_strong"] = leaky | {"auc": 0.8, "shadow_models": 16}
    for run in runs[1:]:
        run["audit"] = {"epsilon": 0.75, "confidence": 0.99, "violated": False}
    page = html.render({**report, "runs": runs})
    assert "Student-t, 16 shadow models" in page and "loss threshold" in page
    assert "Student-t attack" in words.leaks(runs).headline
    assert "16 of them" in " ".join(words.leaks(runs).points)
    assert "<td>0.75 (99% confidence)</td>" in page
    ids = _parse(page).ids
    assert len(ids) == len(set(ids)), "two figures share an id"
    kept = words.promised(runs)
    assert kept.tone == "good" and "at least 0.75" in " ".join(kept.points)
    runs[2]["audit"] = {"epsilon": 1.4, "confidence": 0.99, "violated": True}
    broken = words.promised(runs)
    assert broken.tone == "warn" and "finds it broken with ε = 1." in broken.headline
    assert "ABOVE THE PROMISE" in tables.privacy(runs)
    # Where one run lacks the strong attack, all are compared by the common one.
    del runs[0]["membership_strong"]
    assert "loss-threshold" in words.leaks(runs).headline


def test_the_promise_for_users_is_no_limit_for_their_examples(report):
    """One example of a user may move a sum by 2 C: the limit holds for whole users."""
    users = json.loads(json.dumps(schema.clean(report)))
    for run in users["runs"]:
        if run["private"]:
            run |= {"privacy_unit": "one training user", "num_units": 237}
            run |= {"delta": 0.01, "relation": "add_or_remove_one"}
    drawn = figures.roc(users["runs"])
    assert ">limit<" in figures.roc(report["runs"]) and ">limit<" not in drawn
    page = html.render(users)
    assert "adding or removing one user, with all their examples" in page
    assert "adding or removing one example" not in page
    assert "which users were in the training data" in page
    assert "δ = 0.01 is not below 1/237" in page and "237" in tables.privacy(
        users["runs"]
    )
    assert "is not below 1/" not in html.render(report)
