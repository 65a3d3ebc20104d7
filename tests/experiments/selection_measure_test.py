"""Figures of the selection study on curves that were made up."""

import math

import numpy as np
import pytest

from trustml import config as config_lib
from trustml.experiments import selection_measure, selection_page
from trustml.experiments.selection_study import Job, Outcome


def make_config(**changes):
    cfg = config_lib.default()
    cfg.experiment = "selection_study"
    cfg.privacy.enabled = False
    cfg.selection.seeds, cfg.selection.target = 3, 0.5
    cfg.selection.arms = ("uniform", "activity")
    cfg.selection.settings = ("static_all", "continual")
    cfg.train.steps = 8
    for name, value in changes.items():
        cfg.update_from_flattened_dict({name.replace("__", "."): value})
    return config_lib.from_config_dict(cfg)


def outcome(curve):
    tenths = [0.1] * 10
    return Outcome(
        round=[2, 4, 6, 8],
        accuracy=list(curve),
        examples=[20, 40, 60, 80],
        deciles=[math.nan] + [1 - curve[-1]] * 9,
        taken=tenths,
        objective="what is optimised",
        share=tenths,
        held=tenths,
    )


CURVES = {
    ("static_all", "uniform"): [[0.2, 0.5, 0.7, 0.8], [0.1, 0.4, 0.6, 0.8]] * 2,
    ("static_all", "activity"): [[0.5, 0.6, 0.7, 0.7], [0.3, 0.5, 0.6, 0.7]] * 2,
    ("continual", "uniform"): [[0.1, 0.2, 0.4, 0.5], [0.1, 0.2, 0.3, 0.6]] * 2,
    ("continual", "activity"): [[0.5, 0.6, 0.7, 0.8], [0.3, 0.5, 0.6, 0.79]] * 2,
}


def made(curves=CURVES, world="given"):
    return {
        Job(seed, world, setting, arm): outcome(rows[seed])
        for (setting, arm), rows in curves.items()
        for seed in range(3)
    }


def test_figures_by_hand():
    found = selection_measure.measure(make_config(), made())
    assert list(found)[0] == ("given", "static_all", "uniform")
    still = found["given", "static_all", "activity"]
    assert still.rounds == [2, 4, 2] and still.fewer == 3 and still.reached == 3
    assert still.saved.value == pytest.approx(2) and still.saved.lo == 2.0
    assert still.to_target.value == pytest.approx(8 / 3)
    assert still.examples.value == pytest.approx(80 / 3)
    assert still.change.value == pytest.approx(-0.1)
    assert still.regret.value == pytest.approx(
        np.mean([0.55 - 0.625, 0.475 - 0.525, 0.55 - 0.625])
    )
    now = found["given", "continual", "activity"]
    assert now.catch_up == [8, 8, 8] and still.catch_up == [math.inf] * 3
    assert now.deciles[0] is None and now.deciles[9].value == pytest.approx(
        np.mean([0.2, 0.21, 0.2])
    )
    assert found["given", "continual", "uniform"].rounds == [8, 8, 8]
    change, saved = selection_measure.growth(found, "given", "activity", 0.95)
    assert change.value == pytest.approx(np.mean([0.3, 0.19, 0.3]) + 0.1)
    assert saved.value == pytest.approx(np.mean([6, 4, 6]) - 2)


def test_a_seed_that_never_comes_there_has_no_mean():
    curves = CURVES | {("continual", "uniform"): [[0.1, 0.2, 0.3, 0.4]] * 4}
    found = selection_measure.measure(make_config(), made(curves))
    one = found["given", "continual", "uniform"]
    assert one.rounds == [math.inf] * 3 and one.to_target is None and not one.reached
    other = found["given", "continual", "activity"]
    assert other.saved is None and other.fewer == 3
    assert selection_measure.growth(found, "given", "activity", 0.95)[1] is None


def test_two_arms_seed_by_seed():
    found = selection_measure.measure(make_config(), made())
    now, still = (found["given", s, "activity"] for s in ("continual", "static_all"))
    ends = np.array([0.1, 0.09, 0.1])
    found = selection_measure.between(now, still, 0.95)
    assert found.value == pytest.approx(ends.mean())
    half = 4.302653 * ends.std(ddof=1) / np.sqrt(3)  # t of 2 degrees of freedom
    assert found.hi - found.value == pytest.approx(half)


def test_bands_are_intervals_of_each_round():
    found = selection_measure.measure(make_config(), made())
    one = found["given", "static_all", "uniform"]
    value, lo, hi = selection_measure.band(one, 0.95)
    np.testing.assert_allclose(value, np.mean(one.curve, axis=0))
    assert np.all(lo <= value) and np.all(value <= hi) and lo[0] < value[0]


def test_cards_say_what_was_shown_and_no_more():
    config = make_config()
    found = selection_measure.measure(config, made())
    faster, growing, ending = selection_page.cards(found, config)
    assert faster.headline == (
        "Fewer rounds to 50% than uniform selection: by activity (all data from the "
        "start) and by activity (data that arrive)."
    )
    assert "fewer in 3 of 3 seeds" in faster.points[0]
    assert faster.points[2] == (
        "Counted in examples that clients go through, fewest: by activity with 27 (all "
        "data from the start) and by activity with 27 (data that arrive)."
    )
    assert growing.headline.startswith("Yes, in rounds saved with by activity")
    assert "Below uniform: by activity (all data from the start)" in ending.headline
    assert ending.tone == "warn"
    same = {key: CURVES["static_all", "uniform"] for key in CURVES}
    found = selection_measure.measure(config, made(same))
    faster, growing, ending = selection_page.cards(found, config)
    assert faster.headline.startswith("No rule was shown to come to 50% in fewer")
    assert growing.headline == "It was not shown to be, with any of the rules."
    assert ending.headline == "No rule was shown to end apart from uniform."
    both = made() | made(same, "correlated")
    found = selection_measure.measure(config, both)
    reversing = selection_page.cards(found, config)[-1]
    assert "no rule was shown to end below uniform" in reversing.headline
    late = {key: CURVES["continual", key[1]] for key in CURVES}
    late["static_all", "uniform"] = CURVES["static_all", "activity"]
    late["static_all", "activity"] = [[0.1, 0.2, 0.3, 0.5], [0.1, 0.3, 0.4, 0.6]] * 2
    late["continual", "uniform"] = [[0.1, 0.1, 0.2, 0.4]] * 4
    found = selection_measure.measure(config, made() | made(late, "correlated"))
    reversing = selection_page.cards(found, config)[-1]
    assert "More rounds to the target: by activity (all data from" in reversing.headline
    assert reversing.points[-1] == (
        "Data that arrive, uniform: 0 of 3 seeds come to the target."
    )
