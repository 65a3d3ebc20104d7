"""The part of a trust report on groups: sentences that hold, figures, missing parts."""

import json

import numpy as np
import pytest

from trustml import report as report_lib
from trustml.fairness import excessive_risk, groups
from trustml.report import gaps, group_tables, html, private_groups, schema


def risk(value, gap=(0.02, 0.01, 0.03), floor=0.01, p=0.01, names="ab"):
    rows = [
        excessive_risk.Risk(name, 100, v, v - 0.005, v + 0.005, False)
        for name, v in zip(names, value, strict=True)
    ]
    most, least = (names[int(pick(value))] for pick in (np.argmax, np.argmin))
    return excessive_risk.ExcessiveRisk(
        tuple(rows),
        excessive_risk.Gap(*gap, floor / 2, floor, p, most, least, 0),
        1,
        0,
    )


def report_of(fall, loss=None, level=0.95, **more):
    rng = np.random.default_rng(0)
    served = groups.accuracy_by(
        rng.random(300) < 0.8, rng.integers(0, 2, 300), names=("a", "b")
    )
    entry = {"groups": groups.rows(served), "accuracy_gap": served.gap, "gaps": {}}
    private = {**entry, "fall": fall, "risk": fall if loss is None else loss, **more}
    return schema.check(
        {
            "runs": [
                {"name": "plain"},
                {"name": "dp", "private": True, "epsilon_spent": 1.0},
            ],
            "fairness": {
                "level": level,
                "attributes": [
                    {
                        "name": "sex",
                        "groups": ["a", "b"],
                        "runs": {"plain": entry, "dp": private},
                    }
                ],
                "positive": "yes",
                "seeds": 1,
                "left_out": ["Nothing was left out."],
            },
        }
    )


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (
            (0.03, 0.01),
            "the accuracy of \u2018a\u2019 falls by 3.0 points (2.5 to 3.5) and that "
            "of \u2018b\u2019 by 1.0 points (0.5 to 1.5)",
        ),
        (
            (0.03, -0.01),
            "the accuracy of \u2018a\u2019 falls by 3.0 points (2.5 to 3.5) and that "
            "of \u2018b\u2019 rises by 1.0 points (0.5 to 1.5)",
        ),
        (
            (-0.01, -0.03),
            "the accuracy of \u2018a\u2019 rises by 1.0 points (0.5 to 1.5) and that "
            "of \u2018b\u2019 by 3.0 points (2.5 to 3.5)",
        ),
    ],
)
def test_falls_and_rises_in_words(value, sentence):
    card = private_groups.card(report_of(risk(value)))
    assert card.headline.startswith("By sex, under \u03b5 = 1 " + sentence)


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, "is more than chance gives (up to 1.0)"),
        ({"gap": (0.02, 0.0, 0.03)}, "(up to 1.0), but its interval includes 0"),
        ({"floor": 0.03}, "is no more than chance gives (up to 3.0)"),
        ({"p": 0.2}, "is above what chance gives"),
    ],
)
def test_a_gap_is_sure_only_beyond_chance_and_above_zero(change, verdict):
    card = private_groups.card(report_of(risk((0.03, 0.01), **change)))
    assert verdict in card.headline
    assert card.tone == ("plain" if change else "warn")


def test_no_two_groups_and_no_privacy():
    nan = float("nan")
    report = report_of(risk((0.03, 0.01), gap=(nan, nan, nan)))
    assert "No two groups" in private_groups.card(report).headline
    del report["runs"][1]
    assert "Nobody" in private_groups.card(report).headline
    assert private_groups.card({"runs": report["runs"]}) is None
    assert private_groups.sections({"runs": report["runs"]}) == []


def test_a_page_with_the_least_there_may_be():
    report = report_of(risk((0.03, 0.01)))
    page = html.render(report)
    assert "What privacy does, by sex" in page and "Nothing was left out." in page
    assert "Attacks by sex" not in page and "not private" not in page
    assert html.render(json.loads(report_lib.to_json(report))) == page


def test_the_level_of_intervals_is_said():
    for level, said in ((0.95, "95%"), (0.9, "90%")):
        (section,) = private_groups.sections(report_of(risk((0.03, 0.01)), level=level))
        accuracy, fall, *_ = section["tables"]
        assert f"exact {said} intervals" in accuracy
        assert f"In brackets: {said} intervals" in fall
        assert "below it in 95% of cases" in fall, "chance has its own"
        (_, drawn, below), (_, _, of_risk), _ = section["figures"]
        assert f"accuracy, {said} interval" in drawn and f"exact {said} int" in below
        assert f"with {said} intervals" in of_risk


def test_clipping_is_said_to_be_not_private():
    limits = {"value": 0.5, "lo": 0.4, "hi": 0.6}
    one = {"small": False, "n": 7, "clipped_share": limits, "kept_norm": limits}
    one |= {"cosine": {"value": 0.9, "lo": None, "hi": None}}
    rows = [{"name": name, **one} for name in "ab"]
    bias = {"groups": rows, "cosine": {"value": 0.8, "lo": 0.7, "hi": 0.9}}
    report = report_of(risk((0.03, 0.01)), nonprivate={"clipping": bias})
    page = html.render(report)
    assert "Clipping by sex (not private)" in page and "NOT private" in page
    assert "no \u03b5 covers them" in page
    assert "0.900" in page and "0.800 (0.700 to 0.900)" in page


def test_whom_an_attack_finds():
    rows = [
        {
            "name": name,
            "n_members": 100,
            "n_nonmembers": 100,
            "small": False,
            "auc": {"value": auc, "lo": auc - 0.02, "hi": auc + 0.02},
            "tpr": {"value": 0.02, "lo": 0.01, "hi": 0.04},
            "fpr": {"value": None, "lo": 0.0, "hi": 1.0},
            "own_tpr": None,
        }
        for name, auc in (("a", 0.5), ("b", 0.6))
    ]
    attack = {"kind": "loss threshold", "fpr": 0.01, "groups": rows}
    report = report_of(risk((0.03, 0.01)), attack=attack)
    said = private_groups.card(report).points[-1]
    assert "most is found of \u2018b\u2019, AUC 0.600 (0.580\u20130.620)" in said
    assert "too few" in html.render(report)
    rows[1]["auc"] = {"value": 0.51, "lo": 0.49, "hi": 0.53}
    said = private_groups.card(report_of(risk((0.03, 0.01)), attack=attack)).points[-1]
    assert "by sex under \u03b5 = 1 find nobody beyond guessing" in said


def test_figures_draw_or_are_empty():
    row = {"name": "a", "value": 0.8, "lo": 0.7, "hi": 0.9, "small": True}
    nobody = {**row, "name": "b", "value": None, "lo": None, "hi": None}
    drawn = gaps.against_epsilon([("a", [(1.0, row), (None, row)])], "x", level="95%")
    assert drawn.startswith("<svg") and "no privacy" in drawn
    assert gaps.against_epsilon([("a", [(None, row)])], "x", level="95%") == ""
    drawn = gaps.bars([("dp", [row, nobody])], "y")
    assert drawn.startswith("<svg") and ">b<" in drawn
    assert gaps.bars([], "y") == ""
    assert group_tables.points(nobody) == "\u2013"
    assert group_tables.aside("caption", "") == ""
