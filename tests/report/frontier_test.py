"""What a frontier says of figures other than accuracy, and of intervals over seeds."""

import json

import pytest

from trustml import intervals
from trustml.report import frontier


def _tuned(values, figure="token_f1", what="F1 of words", seed=0, title="T"):
    """The report of a cell as experiment 'tune' writes it."""
    lo, hi = (0.0, 1.0) if len(values) < 2 else intervals.mean(values)[1:]
    shown = {"value": sum(values) / len(values), "lo": lo, "hi": hi, "n": len(values)}
    return {
        "title": title,
        "headline": {"figure": figure, **shown},
        "what": what,
        "cell": {"seed": seed},
        "tuned": {"figure": figure, "values": values, **shown},
    }


def _points(*reports):
    return [point for one in reports for point in frontier.point(one)]


def test_cells_of_a_grid_are_captioned_by_their_figure_and_seeds(tmp_path):
    points = _points(
        _tuned([0.30, 0.33, 0.36], title="a"), _tuned([0.4, 0.5, 0.6], title="b")
    )
    page = frontier.write(tmp_path, points).read_text()
    for text in (page, (tmp_path / "frontier.md").read_text()):
        assert "test F1 of words" in text and "accuracy" not in text
        assert "95% Student" in text and "over test examples" not in text
        assert "33.0% (25.5\u201340.5%)" in text
    low, high = json.loads((tmp_path / "frontier.json").read_text())["points"]
    expected = intervals.mean([0.30, 0.33, 0.36])
    assert (low["value"], low["lo"], low["hi"]) == pytest.approx(expected)
    assert low["seeds"] == 3 and low["interval"] == "seeds"
    assert low["figure"] == "F1 of words" and high["best"] and not low["best"]


def test_a_cell_of_one_seed_has_no_interval():
    (one,) = frontier.collapse(_points(_tuned([0.3])))
    assert one["seeds"] == 1 and one["lo"] is None and one["hi"] is None
    assert "| 30.0% | 1 |" in frontier.markdown(_points(_tuned([0.3])))


def test_cells_that_differ_in_their_first_seed_are_pooled_by_seed():
    """Seeds 0, 1, 2 and 2, 3: what seed 2 gave twice counts once."""
    points = _points(_tuned([0.3, 0.5, 0.4]), _tuned([0.6, 0.7], seed=2))
    (one,) = frontier.collapse(points)
    expected = intervals.mean([0.3, 0.5, 0.5, 0.7], bounds=(0.0, 1.0))
    assert (one["value"], one["lo"], one["hi"]) == pytest.approx(expected)
    assert one["seeds"] == 4


def test_settings_of_two_figures_are_not_compared():
    cells = [
        _tuned([0.3, 0.3], title="qa"),
        _tuned([0.8, 0.9], "rouge_l", "ROUGE-L", title="text"),
    ]
    points = _points(*cells)
    assert all(one["best"] for one in frontier.collapse(points))
    text = frontier.markdown(points)
    assert "| test score |" in text
    assert "30.0% (30.0\u201330.0%) F1 of words" in text and ") ROUGE-L |" in text


def test_pages_of_accuracy_keep_their_words():
    """Runs, headlines of experiment 'federate', and seeds of them."""
    accuracy = {"value": 0.8, "lo": 0.7, "hi": 0.9, "n": 50}
    runs = {"runs": [{"name": "x", "private": False, "test": {"accuracy": accuracy}}]}
    federate = {"title": "f", "headline": {"figure": "accuracy", **accuracy}}
    points = _points(runs, federate, federate)
    text = frontier.markdown(points)
    assert text.startswith("| " + " | ".join(frontier.HEAD) + " |\n")
    assert text.endswith(f"\n\n{frontier.NOTE}\n")
    assert [one["seeds"] for one in frontier.collapse(points)] == [2, 1]
    assert [one["interval"] for one in frontier.collapse(points)] == [
        "seeds",
        "examples",
    ]
    assert "over test examples for one seed" in frontier.NOTE
    assert frontier.HEAD[3] == "test accuracy"


def test_a_headline_of_another_figure_is_named_and_stays_over_examples():
    headline = {"figure": "rouge_l", "value": 0.5, "lo": 0.4, "hi": 0.6, "n": 630}
    points = _points({"title": "T", "headline": headline})
    text = frontier.markdown(points)
    assert "| test rouge l |" in text and "over test examples for one seed" in text
    (one,) = frontier.collapse(points)
    assert (one["seeds"], one["interval"], one["lo"]) == (1, "examples", 0.4)


def test_the_figure_of_private_runs_names_what_they_are_compared_by(tmp_path):
    report = _tuned([0.4]) | {"privacy": {"epsilon_as_run": 2.0, "delta": 1e-3}}
    del report["tuned"]
    frontier.write(tmp_path, _points(report))
    drawn = (tmp_path / "frontier.svg").read_text()
    assert "Test F1 of words against epsilon" in drawn
    assert "accuracy" not in drawn
