"""Experiment `fairness`: figures against the oracle, one whole run, the page."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from trustml import config as config_lib
from trustml import specs
from trustml.data import comments, dataset, datasets, tokenizers
from trustml.experiments import (
    fairness,
    fairness_measure,
    fairness_page,
    fairness_sections,
    fairness_texts,
)
from trustml.fairness import contrasts, delong
from trustml.report import gaps, tables

LEVEL = 0.95


def config_of(**changes):
    cfg = config_lib.default()
    cfg.experiment = "fairness"
    cfg.model.name, cfg.model.width, cfg.model.hidden = "bag", 8, ()
    cfg.optimizer.name, cfg.optimizer.learning_rate = "sgd", 1.0
    cfg.privacy.enabled = False
    cfg.train.steps, cfg.train.batch_size, cfg.train.num_devices = 60, 32, 1
    cfg.data.vocabulary_size, cfg.data.max_length = 64, 8
    cfg.fairness.replicates = 100
    for name, value in changes.items():
        cfg.update_from_flattened_dict({name.replace("__", "."): value})
    return config_lib.from_config_dict(cfg)


def world(seed=0, n=400):
    """Texts whose label is a word, where the word 'zorb' of group b adds noise."""
    rng = np.random.default_rng(seed)
    splits = {}
    for part in dataset.SPLITS:
        kind = rng.integers(0, 2, n)
        toxic = rng.random(n) < np.where(kind == 1, 0.6, 0.4)
        mild = rng.random(n) < 0.15
        texts = [
            f"{'awful' if t ^ m else 'lovely'} thing {'zorb' if k else 'blip'}"
            for t, m, k in zip(toxic, mild, kind, strict=True)
        ]
        named = rng.random((n, 2)) < 0.3
        groups = {"kind": kind, "Zorbs": named[:, 0], "Blips": named[:, 1]}
        groups = {name: x.astype(np.int32) for name, x in groups.items()}
        if part == "train":
            groups |= {name: np.full(n, -1, np.int32) for name in ("Zorbs", "Blips")}
        splits[part] = dataset.Split(
            labels=toxic.astype(np.int32), texts=texts, groups=groups
        )
    return dataset.assemble(
        splits,
        label_names=("fine", "toxic"),
        max_length=8,
        tokenizer=tokenizers.hashed(64),
        length_edges=(2, 4),
        digest_of=("world",),
        name="world",
        source="made up",
        licence="none",
        group_names={
            "kind": ("a", "b"),
            "Zorbs": comments.MENTION,
            "Blips": comments.MENTION,
        },
    )


def compas_cells():
    """ProPublica's table of the score, two groups."""
    return np.array([[[990, 805], [532, 1369]], [[1139, 349], [461, 505]]])


def test_figures_are_those_of_the_table():
    spec = specs.FairnessSpec(replicates=400)
    names = ("African-American", "Caucasian")
    one = fairness_measure.attribute(
        "race", compas_cells(), names, spec, level=LEVEL, seed=0, flip=True
    )
    assert one.rates["fpr"][0].value == pytest.approx(0.448468, abs=1e-6)
    assert one.rates["fnr"][1].value == pytest.approx(0.477226, abs=1e-6)
    gap = one.gaps[fairness_measure.PARITY]
    assert gap.value == pytest.approx(0.240200, abs=1e-6)
    assert (gap.high, gap.low, gap.by) == (*names, "pairs")
    # The bootstrap of 200,000 draws has [.2155, .2668] for the signed difference; the
    # lower limit here is 2.24 standard errors away, as it allows for two signed pairs.
    assert gap.lo == pytest.approx(0.2155, abs=0.005)
    assert gap.hi == pytest.approx(0.2668, abs=0.005)
    odds = one.gaps[fairness_measure.ODDS]
    assert odds.value == pytest.approx(0.213925, abs=1e-6)
    assert one.gaps["demographic parity ratio"].value == pytest.approx(
        0.591638, abs=1e-6
    )
    # No group matters in shuffles: the gap is far beyond, and p as small as it can be.
    assert gap.floor < 0.05 and gap.p_value == pytest.approx(1 / 401)
    # Favourable is not to be charged: African-Americans get it less often.
    assert one.reference == 0
    parity = one.signed["statistical parity difference"][1]
    assert parity.value == pytest.approx(0.240200, abs=1e-6) and parity.lo > 0.2
    odds = one.signed["average odds difference"][1]
    assert odds.value == pytest.approx(0.205649, abs=1e-6)
    assert odds.lo < odds.value < odds.hi


def test_small_groups_are_flagged_and_left_out():
    cells = np.concatenate(
        [compas_cells(), [[[1, 8], [9, 2]]], np.zeros((1, 2, 2), int)]
    )
    spec = specs.FairnessSpec(replicates=100)
    one = fairness_measure.attribute(
        "race", cells, ("a", "b", "few", "nobody"), spec, level=LEVEL, seed=0
    )
    assert one.names == ("a", "b", "few")
    assert one.flags == ("", "", "20 examples, 9 negatives")
    assert one.gaps[fairness_measure.FPR].high == "a"
    asked = dataclasses.replace(spec, least=1, least_of_label=0)
    both = fairness_measure.attribute(
        "race", cells, ("a", "b", "few", "nobody"), asked, level=LEVEL, seed=0
    )
    assert both.gaps[fairness_measure.FPR].high == "few"
    assert len(one.signed["disparate impact"]) == 3, "contrasts show every group"


def test_calibration_of_right_and_of_raised_scores():
    """Labels drawn from the scores; then those of one group are raised by 0.2."""
    rng = np.random.default_rng(0)
    p = rng.uniform(0.1, 0.7, 4000)
    group = rng.integers(0, 2, 4000)
    label = rng.random(4000) < p
    said = np.where(group == 1, p + 0.2, p)
    decided = fairness_measure.Decisions("m", label, said > 0.5, said, {"g": group})
    (one,) = fairness_measure.attributes(
        decided, {"g": ("right", "raised")}, config_of(), flip=False
    )
    right, raised = one.calibration
    assert right.over.lo < 0 < right.over.hi and right.ece < right.ece_floor
    # se of a mean of about 2,000 differences: at most 0.5 / sqrt(1900) = 0.0115.
    assert raised.over.value == pytest.approx(0.2, abs=3 * 0.0115)
    assert raised.ece > raised.ece_floor


def test_communities_overlap_and_face_everybody_else():
    rng = np.random.default_rng(0)
    label, guess = rng.random((2, 500)) < 0.5
    member = rng.random((500, 3)) < (0.5, 0.2, 0.02)
    for background in ("all", "targeted"):
        spec = specs.FairnessSpec(background=background)
        found = fairness_texts.communities(
            label, guess, member, "abc", spec, level=LEVEL
        )
        for i, one in enumerate(found):
            outside = ~member[:, i]
            if background == "targeted":
                outside &= member.any(axis=1)
            inside = member[:, i]
            k = [(guess & ~label & rows).sum() for rows in (inside, outside)]
            n = [(~label & rows).sum() for rows in (inside, outside)]
            wanted = contrasts.difference(
                int(k[0]), int(n[0]), int(k[1]), int(n[1]), level=1 - 0.05 / 3
            )
            assert one.against["fpr"] == wanted
            assert (one.n, one.n_positive) == (inside.sum(), (label & inside).sum())
        assert found[2].flag and not found[0].flag


def test_areas_of_few_have_delongs_interval_or_none():
    """25 harmful and 10 harmless texts of one identity; of another one harmless."""
    rng, spec = np.random.default_rng(1), specs.FairnessSpec(replicates=100)
    label = np.arange(400) % 2 == 0
    score = (rng.normal(size=400) + 1.5 * label).astype(np.float32)
    member = np.zeros((400, 3), bool)
    positives, negatives = np.flatnonzero(label), np.flatnonzero(~label)
    for i, (k, n) in enumerate(((25, 10), (25, 1), (90, 90))):
        member[positives[:k], i] = member[negatives[:n], i] = True
    for background in ("all", "targeted"):
        table = fairness_texts.areas(
            *(score, label, member, "abc", spec),
            level=LEVEL,
            seed=0,
            background=background,
        )
        few, one, many = table.identities
        known = member.any(axis=1) | (background == "all")

        def closed(i, known=known):
            used = np.where(label, known & ~member[:, i], member[:, i])
            made = delong.areas(*map(jnp.asarray, (score[None], label, used)))
            return delong.interval(made.auc[0], made.covariance[0, 0])

        wanted = closed(0)
        assert few.bpsn[:3] == pytest.approx(
            (wanted.value, wanted.lo, wanted.hi), abs=1e-5
        )
        assert np.isnan(one.bpsn.lo) and np.isfinite(one.bpsn.value)
        assert one.bpsn.reason == "no interval: 1 negative among members"
        said = fairness_sections.area(one.bpsn)
        assert said == f"{one.bpsn.value:.3f} ({one.bpsn.reason})"
        assert many.bpsn.lo != pytest.approx(closed(2).lo, abs=1e-6), "a bootstrap"


def test_the_identity_card_blames_by_the_joint_interval():
    rng, spec = np.random.default_rng(2), specs.FairnessSpec(replicates=100)
    label = rng.random(900) < 0.5
    member = rng.random((900, 3)) < (0.2, 0.2, 0.02)
    score = rng.normal(size=900) + 1.2 * label + 1.5 * member[:, 0]
    table = fairness_texts.areas(score, label, member, "abc", spec, level=LEVEL, seed=0)
    card = fairness_page._identities("test", table, "toxic")
    assert card.headline == "Yes: a." and card.tone == "warn"
    assert "1 too few to judge among them" in " ".join(card.points)
    rows = [
        row._replace(against=row.against._replace(hi=0.001)) for row in table.identities
    ]
    card = fairness_page._identities("test", table._replace(identities=rows), "toxic")
    assert card.headline == "No identity surely does." and card.tone == "plain"


def test_a_part_of_the_phrases_is_of_whole_templates():
    made = comments.Templates(
        [str(n) for n in range(60)],
        np.arange(60) % 2 == 0,
        ("a", "b"),
        np.arange(60, dtype=np.int32) % 20,
    )
    part = fairness._part(made, 15)
    numbers, sizes = np.unique(part.clusters, return_counts=True)
    assert numbers.tolist() == [0, 1, 2, 3, 4] and sizes.tolist() == [3] * 5
    rows = np.array(part.texts, int)
    assert len({n % 20 for n in rows.tolist()}) == 5
    np.testing.assert_array_equal(part.labels, made.labels[rows])
    assert fairness._part(made, 60) is made


def test_long_cells_and_titles_wrap():
    made = tables.table(("", "a title"), [("1", "short"), ("2", "x " * 50)], "c")
    assert made.count("white-space: normal") == 3, "two titles and one cell"
    assert "<td>short</td>" in made
    long = [f"a very long name of a group, number {n}" for n in range(8)]
    entry = {"value": 0.2, "lo": 0.1, "hi": 0.3}
    svg = gaps.rates(long, [False] * 8, [(t, [entry] * 8) for t in "abc"])
    low = gaps.rates(list("abcdefgh"), [False] * 8, [(t, [entry] * 8) for t in "abc"])
    tall, small = (float(s.split('viewBox="')[1].split()[3][:-1]) for s in (svg, low))
    assert tall > 1.3 * small, "names of two lines need room"


def test_masking_leaves_first_letters():
    assert fairness_texts.masked("You vile gay x!", ["gay"]) == "Y·· v··· gay x!"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"positive": "nice"}, "fairness.positive='nice' is not one of fine, toxic"),
        ({"attributes": ("race",)}, "fairness.attributes='race' is no group of data"),
        ({"score_column": "s", "score_at_least": "1"}, "fairness.score_column='s' is"),
        ({"reference": ("kind=c",)}, "has 'kind=c', which is no group"),
    ],
)
def test_names_are_looked_up_before_training(changes, sentence):
    config = config_of(**{f"fairness__{k}": v for k, v in changes.items()})
    with pytest.raises(ValueError, match=sentence):
        fairness.wanted(config, world(n=20))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"splits": ("train",)}, "fairness.splits='train' is not one of valid, test"),
        ({"splits": ()}, "fairness.splits=.. must name a split"),
        ({"reference": ("sex",)}, "write attribute=group"),
        ({"replicates": 5}, "fairness.replicates=5 must be >= 100"),
        ({"score_column": "x"}, "set both, or neither"),
        ({"templates": "mine"}, "fairness.templates='mine' is not one of toxicity"),
        ({"attributes": ("a", "a")}, "repeats an attribute"),
    ],
)
def test_the_spec_refuses(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        specs.FairnessSpec(**changes)


def test_a_run_from_end_to_end(tmp_path, capsys, monkeypatch):
    data = world()
    monkeypatch.setattr(fairness.build, "checked", lambda *_: data)
    phrases = comments.Templates(
        ["awful zorb", "lovely zorb", "awful blip", "lovely blip"] * 20,
        np.array([True, False] * 40),
        ("zorb", "blip"),
        np.arange(80, dtype=np.int32) // 4,
    )
    monkeypatch.setattr(fairness, "_phrases", lambda *_: phrases)
    config = config_of(
        fairness__examples=2,
        fairness__favourable="fine",
        fairness__attributes=("kind",),
    )
    path = fairness.run(config, tmp_path / "out")
    page = path.read_text()
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert "Who is served worse by the model?" in page
    assert "Does naming an identity raise" in page and "Communities" in page
    assert "awful thing zorb" not in page and "a\u00b7\u00b7\u00b7\u00b7 t" in page
    (decided,) = found["decided"]
    (kind,) = decided["attributes"]
    assert kind["names"] == ["a", "b"] and np.sum(kind["cells"]) == 400
    assert found["auc"]["value"] > 0.75, "a word tells the label 85 times in 100"
    assert [one["name"] for one in found["communities"]] == ["Zorbs", "Blips"]
    assert set(found["areas"]) == {"test", "templates"}
    assert found["areas"]["templates"]["overall"]["value"] > 0.9
    assert "demographic parity difference" in capsys.readouterr().out
    assert fairness.run(config, tmp_path / "out") == path
    assert "finished already" in capsys.readouterr().out


def test_somebody_elses_score_and_both_splits():
    data = world(n=60)
    steps = tuple("123")
    groups = {
        part: {**data.groups[part], "step": np.arange(60, dtype=np.int32) % 3}
        for part in dataset.SPLITS
    }
    data = data._replace(groups=groups, group_names={**data.group_names, "step": steps})
    config = config_of(
        fairness__score_column="step",
        fairness__score_at_least="2",
        fairness__splits=("valid", "test"),
    )
    asked = fairness.wanted(config, data)
    assert asked.attributes == ("kind",) and asked.communities == ("Zorbs", "Blips")
    assert asked.positive == 1 and not asked.flip
    score = fairness._of_score(config, data, asked)
    assert score.name == "step \u2265 2" and score.guess.mean() == pytest.approx(2 / 3)
    assert len(score.label) == 180, "it learnt from no split"
    train_only = config_of(fairness__attributes=("Zorbs",))
    with pytest.raises(ValueError, match="is no group of"):
        fairness.wanted(train_only, data)


def test_cards_say_when_nothing_is_sure():
    """Two groups served alike: no headline blames anybody."""
    cells = np.array([[[80, 20], [20, 80]], [[81, 19], [20, 80]]])
    spec = specs.FairnessSpec(replicates=100)
    one = fairness_measure.attribute("g", cells, "ab", spec, level=LEVEL, seed=0)
    card = fairness_page._worse("Who?", "yes", [one], fairness_measure.FNR)
    assert "No gap of error rates" in card.headline and card.tone == "plain"
    sure = fairness_measure.attribute(
        "g", compas_cells(), "ab", spec, level=LEVEL, seed=0
    )
    card = fairness_page._worse("Who?", "yes", [sure], fairness_measure.FPR)
    assert card.headline.startswith(
        "\u2018a\u2019 is wrongly called \u2018yes\u2019 in 44.8%"
    )
    assert card.tone == "warn"
    gap = sure.gaps[fairness_measure.FPR]
    assert fairness_page._beyond(gap)
    for less in ({"floor": gap.value + 0.01}, {"p_value": 0.06}, {"lo": 0.0}):
        assert not fairness_page._beyond(gap._replace(**less))
    section = fairness_sections._overview("Gaps", [one, sure], "x")
    assert section.figures[0][1].startswith("<svg")
    # Who is highest where two groups make the gap; how the others are found, below.
    html = section.tables[1]
    assert ">a / b<" in html and ">bootstrap<" not in html
    note = html.split('class="note"')[1]
    assert "of a bootstrap for demographic parity, to overall, equalized odds" in note
    assert fairness_sections.said(float("nan"), False) == "n/a"


@pytest.mark.data
@pytest.mark.slow
def test_compas_from_its_config(data_dir, tmp_path):
    """ProPublica's figures of the score, out of the whole run."""
    import runpy

    cfg = runpy.run_path("configs/fairness_compas.py")["get_config"]("smoke")
    cfg.optimizer.name, cfg.optimizer.schedule = "sgd", "constant"
    fairness.run(config_lib.from_config_dict(cfg), tmp_path / "out")
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    score = found["decided"][1]
    race = next(one for one in score["attributes"] if one["name"] == "race")
    assert score["n"] == 7214 and np.sum(race["cells"]) == 7214
    cells = dict(zip(race["names"], race["cells"], strict=True))
    assert cells["African-American"] == [[990, 805], [532, 1369]]
    assert datasets.load("compas").group_names["race"][0] == "African-American"
