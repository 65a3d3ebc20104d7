"""The confound by hand; what a page of a grid says."""

import json

import numpy as np
import pytest

from trustml.report import frontier, grid


def _entry(client, server, values, shared=None, prox=0.0, budget=15, **cell):
    tuned = {
        "client_rate": 0.1,
        "server_rate": 1.0,
        "values": values,
        "value": float(np.mean(values)),
        "lo": 0.0,
        "hi": 1.0,
    }
    other = None if shared is None else {"client_rate": 0.03, "values": shared}
    return {
        "cell": {
            "partition": "iid",
            "prox": prox,
            "client": client,
            "server": server,
            **cell,
        },
        "tuned": tuned,
        "shared": other,
        "budget": budget,
        "baseline": {},
    }


def _entries(**cell):
    return [
        _entry("sgd", "sgd", [0.60, 0.62], shared=[0.20, 0.24], **cell),
        _entry("sgd", "adam", [0.63, 0.63], **cell),
        _entry("adamw", "sgd", [0.65, 0.66], **cell),
        _entry("adamw", "adam", [0.66, 0.69], shared=[0.64, 0.66], **cell),
    ]


def test_the_confound_is_the_rule_less_the_servers_optimizer():
    (found,) = grid.confounds(_entries())
    # By seed: the rule 0.44 and 0.42; the server 0.03, 0.01 (sgd) and 0.01, 0.03.
    assert found["rule"]["value"] == pytest.approx(0.43)
    assert found["server"]["sgd"]["value"] == pytest.approx(0.02)
    assert found["server"]["adamw"]["value"] == pytest.approx(0.02)
    assert found["confound"]["value"] == pytest.approx(0.43 - 0.02)
    # t with one degree of freedom, 12.706, times 0.01, half of the seeds' distance.
    assert found["confound"]["hi"] == pytest.approx(0.41 + 0.12706, abs=1e-4)
    assert found["shared_rate"] == 0.03


def test_cells_with_a_proximal_term_and_missing_ones_make_no_confound():
    assert grid.confounds(_entries()[:3]) == []
    with_prox = [*_entries(), _entry("sgd", "adam", [0.0, 0.0], prox=0.1)]
    assert grid.confounds(with_prox) == grid.confounds(_entries())


def test_the_page_marks_the_rule_and_tells_of_unequal_budgets(tmp_path):
    entries = [*_entries(), _entry("sgd", "yogi", [0.5, 0.5], budget=9)]
    text = grid.write(tmp_path, entries, title="T").read_text()
    assert text.count(f"{grid.MARK} at 0.1, 1") == 2
    assert "sgd x yogi 50.0%" in text and grid.EDGE + " at" not in text
    assert "41.0 points" in text and "different budgets: [9, 15]" in text
    assert len(json.loads((tmp_path / "grid.json").read_text())["cells"]) == 5
    with pytest.raises(ValueError, match="entries is empty"):
        grid.write(tmp_path, [])


def test_a_rate_at_the_edge_of_those_tried_is_told(tmp_path):
    entries = _entries()
    tried = [(0.1, 1.0), (0.03, 0.1), (0.01, 0.1, 1.0), (0.1,)]
    for one, rates in zip(entries, tried, strict=True):
        one["tried"] = [{"client_rate": x, "server_rate": 1.0} for x in rates]
        one["what"] = "F1 of words"
        one["tuned"]["figure"] = "token_f1"
        one["baseline"] = {"token_f1": {"value": 0.1, "lo": 0.0, "hi": 0.2}}
    text = grid.write(tmp_path, entries).read_text()
    assert text.count(grid.EDGE + " at") == 2 and "F1 of words, test split" in text
    assert ">baseline<" in text and "in full, are in grid.json" in text


@pytest.mark.parametrize("field, values", [("algorithm", "ab"), ("seed", (0, 1))])
def test_cells_of_another_algorithm_or_seed_are_another_grid(tmp_path, field, values):
    first, second = values
    entries = _entries(**{field: first})
    base = grid.confounds(entries)
    lone = _entry("sgd", "sgd", [0.1, 0.1], shared=[0.7, 0.7], **{field: second})
    found = grid.confounds([*entries, lone])
    assert [one["confound"] for one in found] == [base[0]["confound"]]
    text = grid.write(tmp_path, [*entries, lone]).read_text()
    for name, shown in ((first, "61.0%"), (second, "10.0%")):
        part = text[text.index(f"<h2>iid, {field} {name}</h2>") :]
        assert shown in part[: part.index("</table>")]
    assert f"How large is the confound (iid, {field} {first})?" in text
    twice = grid.confounds([*entries, *_entries(**{field: second})])
    assert len(twice) == 2 and twice[1]["group"] == f"iid, {field} {second}"


def test_one_algorithm_is_told_unless_it_is_averaging(tmp_path):
    one = {"algorithm": "fedavg", "seed": 0}
    lone = _entry("sgd", "", [0.9, 0.9], partition="centralised", **one)
    lone["cell"]["algorithm"] = "centralised"
    text = grid.write(tmp_path, [*_entries(**one), lone]).read_text()
    assert "<h2>iid</h2>" in text and "<h2>centralised</h2>" in text
    text = grid.write(tmp_path, _entries(algorithm="scaffold", seed=0)).read_text()
    assert "<h2>iid, algorithm scaffold</h2>" in text


def test_rates_do_not_set_cells_apart():
    entries = _entries(algorithm="fedavg", seed=0)
    for n, one in enumerate(entries):
        one["cell"] |= {"client_rate": 0.1 * n, "server_rate": 1.0 + n}
    assert grid.confounds(entries)[0]["confound"]["value"] == pytest.approx(0.41)


def test_a_cell_that_comes_twice_is_refused_by_name(tmp_path):
    entries = [*_entries(seed=0), _entry("sgd", "adam", [0.1, 0.1], seed=0)]
    entries[-1]["cell"]["client_rate"] = 0.5
    words = r"entries\[4\]\['cell'\]='sgd x adam, iid, seed 0' is that of entries\[1\]"
    for call in (grid.confounds, lambda x: grid.write(tmp_path / "new", x)):
        with pytest.raises(ValueError, match=words):
            call(entries)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("values", [[0.6], [0.6, 0.62, 0.64]])
@pytest.mark.parametrize("place", [0, 1])
def test_cells_of_unequal_seeds_are_shown_without_a_difference(tmp_path, place, values):
    entries = _entries()
    other = ("sgd x sgd", "sgd x adam")[place]
    entries[place]["tuned"] |= {"values": values, "value": 0.123}
    if place == 0:
        entries[0]["shared"]["values"] = values
    text = grid.write(tmp_path, entries).read_text()
    assert "12.3%" in text and "65.5%" in text and "67.5%" in text
    assert "Not measured: differences are paired by seed" in text
    assert f"{other} {len(values)}" in text and "adamw x adam 2" in text
    assert "tune.seeds" in text and " points" not in text
    assert grid.confounds(entries) == []
    whole = [*entries, *_entries(algorithm="scaffold")]
    (found,) = grid.confounds(whole)
    assert found["group"] == "iid, algorithm scaffold"
    text = grid.write(tmp_path, whole).read_text()
    assert "41.0 points" in text and "paired by seed" in text


def test_pages_with_a_headline_are_points_of_a_frontier():
    headline = {"figure": "rouge_l", "value": 0.5, "lo": 0.4, "hi": 0.6, "n": 9}
    page = {"title": "T", "headline": headline, "privacy": {"epsilon_as_run": 2.0}}
    (found,) = frontier.point(page)
    assert found["accuracy"] == headline and found["epsilon"] == 2
    assert grid.entry(page) is None
