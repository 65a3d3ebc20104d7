"""Weights of cohorts: formulas, unbiasedness, what privacy refuses."""

import numpy as np
import pytest

from trustml.federated import probabilities, quotas, selection, weighting

SIZES = np.array([1, 2, 3, 5, 8, 20])


def test_weights_are_their_formulas():
    clients = np.array([1, 3, 5])
    p = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    target = weighting.data_share(SIZES)
    rules = {
        "mean": (weighting.mean(), [1, 1, 1], None),
        "constant": (weighting.mean(2.0), [1, 1, 1], 2.0),
        "by_data": (weighting.by_data(), [2, 5, 20], None),
        "capped": (
            weighting.capped_data(4, SIZES, p),
            [0.5, 1, 1],
            0.1 / 4 + 0.2 / 2 + 0.3 * 3 / 4 + 0.4 + 0.5 + 0.6,
        ),
        "ht": (
            weighting.horvitz_thompson(target, p),
            [2 / 39 / 0.2, 5 / 39 / 0.4, 20 / 39 / 0.6],
            1.0,
        ),
    }
    for rule, expected, total in rules.values():
        np.testing.assert_allclose(rule.of(clients, SIZES[clients]), expected)
        assert rule.total == (None if total is None else pytest.approx(total))
        if rule.s_max is not None:
            assert np.all(rule.of(np.arange(6), SIZES) <= rule.s_max)
    hajek = weighting.hajek(target, p)
    assert hajek.total is None
    np.testing.assert_allclose(
        hajek.of(clients, SIZES[clients]),
        rules["ht"][0].of(clients, SIZES[clients]),
    )


def test_horvitz_thompson_is_unbiased_for_any_target_and_sampling():
    # Over all 2^6 cohorts of coins: the expectation is the target, to rounding.
    target = weighting.check_target([3.0, 0.0, 1.0, 1.0, 2.0, 0.5])
    found = probabilities.solve(probabilities.power(1.0), SIZES, 2.5, p_max=0.7)
    p = found.of(SIZES)
    rule, total = weighting.horvitz_thompson(target, p), np.zeros(6)
    for subset in range(2**6):
        clients = np.flatnonzero(subset >> np.arange(6) & 1)
        inside = np.isin(np.arange(6), clients)
        chance = np.prod(np.where(inside, p, 1 - p))
        total[clients] += chance * rule.of(clients, SIZES[clients]) / rule.total
    np.testing.assert_allclose(total, target, rtol=0, atol=1e-15)


@pytest.mark.parametrize("name", ["coins", "systematic"])
def test_horvitz_thompson_is_unbiased_in_simulation(name):
    make = {"coins": selection.capped_power, "systematic": quotas.systematic}[name]
    selector = make(20, seed=3)
    sizes = 1 + np.random.default_rng(0).lognormal(2, 1, 200).astype(np.int64)
    values = np.random.default_rng(1).normal(size=200)
    state = selector.init(sizes)
    p, target = selector.inclusion(state), weighting.data_share(sizes)
    rule = weighting.horvitz_thompson(target, p)
    estimates = []
    for round in range(800):
        cohort, _ = selector.select(state, round)
        s = rule.of(cohort.clients, sizes[cohort.clients])
        estimates.append(s @ values[cohort.clients])
    error = np.std(estimates) / np.sqrt(len(estimates))
    # A z-score at a fixed seed.
    assert abs(np.mean(estimates) - target @ values) < 4 * error


@pytest.mark.parametrize(
    "make,sentence",
    [
        (lambda: weighting.check_target([1.0, -1.0]), r"weighting.target\[1\]=-1.0"),
        (lambda: weighting.check_target([0.0, 0.0]), "zero for all clients"),
        (
            lambda: weighting.horvitz_thompson([1.0, 1.0], [0.5, 0.0]),
            r"inclusion\[1\]=0.0 is no chance, but the target is 0.5",
        ),
        (lambda: weighting.hajek([1.0, 1.0], [0.5]), "one for each of the 2 clients"),
        (lambda: weighting.mean(0.0), "weighting.cohort=0.0"),
        (lambda: weighting.capped_data(0.0), "weighting.w_hat=0.0"),
        (lambda: weighting.check_private(weighting.by_data()), "no largest weight"),
        (lambda: weighting.check_private(weighting.mean()), "which is private"),
        (
            lambda: weighting.check_private(weighting.hajek([1.0], [0.5])),
            "which is private",
        ),
        (
            lambda: weighting.check_private(weighting.capped_data(3.0)),
            "which is private",
        ),
    ],
    ids=[
        "negative",
        "zero",
        "never",
        "shape",
        "cohort",
        "w_hat",
        "by_data",
        "mean",
        "hajek",
        "capped",
    ],
)
def test_bad_input_is_refused_in_a_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def test_a_chance_above_one_is_refused():
    with pytest.raises(ValueError, match=r"inclusion\[0\]=2.0 exceeds 1; give chances"):
        weighting.horvitz_thompson(np.ones(4), np.full(4, 2.0))


def test_constant_divisors_and_bounded_weights_go_with_privacy():
    p = np.full(6, 0.5)
    for rule in (
        weighting.mean(3.0),
        weighting.capped_data(4.0, SIZES, p),
        weighting.horvitz_thompson(weighting.data_share(SIZES), p),
    ):
        assert weighting.check_private(rule) is rule


def test_sizes_that_count_nothing_are_refused():
    with pytest.raises(ValueError, match="sizes=-1.0 must be finite and >= 0; count"):
        weighting.by_data().of(np.arange(2), np.array([2, -1]))
    with pytest.raises(ValueError, match="weighting.total=0.0 must be a finite number"):
        weighting.capped_data(3.0, np.array([1, 2]), np.zeros(2))
