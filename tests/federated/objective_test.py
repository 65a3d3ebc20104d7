"""What is really optimised: the oracle of the design, enumeration, simulation."""

import itertools
import re

import numpy as np
import pytest

from trustml.federated import (
    objective,
    probabilities,
    quotas,
    selection,
    utility,
    weighting,
)

SIZES = np.array([1, 2, 3, 5, 8, 20])


def by_enumeration(cohorts, sizes, rule):
    """Loop over (chance, cohort); an empty cohort is no update."""
    total = np.zeros(len(sizes))
    for chance, cohort in cohorts:
        clients = np.array(cohort, int)
        if not len(clients):
            continue
        s = rule.of(clients, sizes[clients])
        total[clients] += chance * s / (s.sum() if rule.total is None else rule.total)
    return total


def all_coins(p):
    for subset in range(2 ** len(p)):
        cohort = [k for k in range(len(p)) if subset >> k & 1]
        yield (
            np.prod([p[k] if k in cohort else 1 - p[k] for k in range(len(p))]),
            cohort,
        )


def test_half_of_six_clients_weighted_by_data():
    selector = selection.uniform(3, seed=0)
    found = objective.effective(selector, selector.init(SIZES), weighting.by_data())
    expected = [0.0539, 0.0881, 0.1171, 0.1650, 0.2208, 0.3552]
    np.testing.assert_allclose(found.weights, expected, atol=5e-5)
    assert found.method == "enumeration" and found.step == pytest.approx(1 - 2**-6)


@pytest.mark.parametrize("rule", ["mean", "by_data", "hajek", "capped", "constant"])
@pytest.mark.parametrize("law", ["coins", "subset"])
def test_enumeration_is_that_of_a_loop(law, rule):
    if law == "coins":
        score = probabilities.power(1.0)
        selector = selection.poisson(score, 2, p_max=0.6, seed=0)
    else:
        selector = selection.fixed_size(2, seed=0)
    state = selector.init(SIZES)
    p = selector.inclusion(state)
    rules = {
        "mean": weighting.mean(),
        "by_data": weighting.by_data(),
        "hajek": weighting.hajek(np.ones(6), p),
        "capped": weighting.capped_data(4.0),
        "constant": weighting.mean(2.0),
    }
    pairs = list(itertools.combinations(range(6), 2))
    cohorts = all_coins(p) if law == "coins" else [(1 / 15, pair) for pair in pairs]
    expected = by_enumeration(cohorts, SIZES, rules[rule])
    found = objective.effective(selector, state, rules[rule])
    np.testing.assert_allclose(found.weights, expected / expected.sum(), rtol=1e-12)
    assert found.step == pytest.approx(expected.sum())
    assert found.method == ("exact" if rule == "constant" else "enumeration")


def test_horvitz_thompson_gives_the_target_exactly():
    selector = selection.capped_power(2, seed=0)
    state, target = selector.init(SIZES), np.array([0.3, 0.1, 0.1, 0.2, 0.2, 0.1])
    rule = weighting.horvitz_thompson(target, selector.inclusion(state))
    found = objective.effective(selector, state, rule)
    np.testing.assert_allclose(found.weights, target, rtol=0, atol=1e-15)
    assert found.method == "exact" and "is the target, exactly" in found.sentence


@pytest.mark.parametrize("beta,exponent", [(0.0, 1.0), (0.5, 1.5), (1.0, 2.0)])
def test_large_populations_have_the_ratio_which_simulation_confirms(beta, exponent):
    sizes = np.repeat([2, 8, 32], 40)
    score = probabilities.power(beta)
    selector = selection.poisson(score, 40, seed=1)
    state, rule = selector.init(sizes), weighting.by_data()
    found = objective.effective(selector, state, rule)
    expected = sizes**exponent / np.sum(sizes**exponent)
    np.testing.assert_allclose(found.weights, expected, rtol=1e-9)
    assert found.method == "ratio"
    simulated = objective.simulate(selector, state, rule, rounds=600)
    groups = simulated.weights.reshape(3, 40).sum(axis=1)
    # Off by the order of 1/m, here 1/40 of itself, and by chance.
    np.testing.assert_allclose(groups, expected.reshape(3, 40).sum(axis=1), atol=0.03)
    assert np.all(simulated.standard_error > 0)


def test_simulation_agrees_with_enumeration():
    selector, rule = selection.uniform(3, seed=7), weighting.by_data()
    state = selector.init(SIZES)
    exact = objective.effective(selector, state, rule).weights
    found = objective.simulate(selector, state, rule, rounds=2_000)
    # Six z-scores at a fixed seed; errors are a third of a percent.
    assert np.all(np.abs(found.weights - exact) < 4 * found.standard_error)
    assert np.all(found.standard_error < 0.01)


@pytest.mark.parametrize(
    "make,rule,words",
    [
        (
            lambda: selection.uniform(9, seed=0),
            weighting.by_data(),
            "proportional to n,",
        ),
        (
            lambda: selection.poisson(probabilities.power(1.0), 9, seed=0),
            weighting.by_data(),
            r"proportional to n\^2, .*selection and weighting both count",
        ),
        (
            lambda: selection.capped_power(9, beta=0.5, p_max=0.3, seed=0),
            weighting.by_data(),
            r"n\^1.5 below the cap p = 0.3",
        ),
        (
            lambda: selection.uniform(9, seed=0),
            weighting.mean(),
            "1 .all clients the same.",
        ),
        (
            lambda: selection.poisson(probabilities.log(), 9, seed=0),
            weighting.by_data(),
            "proportional to p n, p of poisson",
        ),
        (lambda: utility.oort(9, seed=0), weighting.mean(), "not known: oort"),
    ],
    ids=["fedavg", "activity", "capped", "mean", "log", "oort"],
)
def test_sentences_say_what_is_optimised(make, rule, words):
    selector = make()
    sizes = 1 + np.arange(40)
    found = objective.effective(selector, selector.init(sizes), rule)
    assert re.search(words, found.sentence), found.sentence


def test_top_k_optimises_its_clients_alone():
    selector = quotas.top_k(2)
    found = objective.effective(selector, selector.init(SIZES), weighting.by_data())
    np.testing.assert_allclose(found.weights, [0, 0, 0, 0, 8 / 28, 20 / 28])


def test_weights_that_leave_nobody_are_refused():
    selector = quotas.trace([[], []])
    with pytest.raises(ValueError, match="hold no client with a weight"):
        objective.simulate(selector, selector.init(SIZES), weighting.mean(), rounds=2)
