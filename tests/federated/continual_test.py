"""Figures of continual learning on curves made by hand."""

import math

import numpy as np
import pytest

from trustml.federated import continual

STATIC = [0.2, 0.5, 0.7, 0.8]
CURVE = [0.1, 0.4, 0.7, 0.785]


@pytest.mark.parametrize(
    "tolerance,rounds",
    [(0.01, math.inf), (0.02, 4.0), (0.1, 3.0), (0.7, 1.0)],
    ids=["never", "last", "third", "first"],
)
def test_catch_up_is_the_first_round_near_the_end_of_the_static_curve(
    tolerance, rounds
):
    assert continual.catch_up(CURVE, STATIC, tolerance=tolerance) == rounds


def test_catch_up_is_the_first_time_and_not_the_last():
    assert continual.catch_up([0.9, 0.1, 0.9], STATIC) == 1.0


def test_regret_is_the_mean_gap():
    found = continual.regret(CURVE, STATIC)
    assert found == pytest.approx((0.1 + 0.1 + 0.0 + 0.015) / 4)
    assert continual.regret(STATIC, STATIC) == 0.0
    with pytest.raises(ValueError, match="curve=3 has not the 4 rounds"):
        continual.regret(CURVE[:3], STATIC)


def test_backward_error_is_over_earlier_periods():
    errors = [[0.9, 9, 9], [0.2, 0.8, 9], [0.4, 0.6, 0.7]]
    found = continual.backward_error(errors)
    assert math.isnan(found[0]) and found[1:].tolist() == [0.2, 0.5]
    with pytest.raises(ValueError, match="T, T"):
        continual.backward_error([[0.1, 0.2]])


def test_deciles_split_clients_by_value_ties_by_id():
    values = np.array([5, 1, 1, 9])
    assert continual.deciles(values, 2).tolist() == [1, 0, 0, 1]
    figures = [1.0, np.nan, 3.0, 5.0]
    assert continual.by_decile(figures, values, 2).tolist() == [3.0, 3.0]
    assert np.isnan(continual.by_decile([1.0, np.nan, np.nan, 5.0], values, 2)[0])
    counts = np.bincount(continual.deciles(np.arange(57)))
    assert counts.min() == 5 and counts.max() == 6
    with pytest.raises(ValueError, match="cannot be put into 10 parts"):
        continual.deciles(values)


def test_empty_curves_are_refused():
    with pytest.raises(ValueError, match="must hold a value for each round"):
        continual.catch_up([], STATIC)
