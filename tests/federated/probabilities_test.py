"""Inclusion probabilities: sums, caps, bisection as an oracle, what is infeasible."""

import numpy as np
import pytest
from scipy import optimize

from trustml.federated import probabilities

SCORES = {
    "uniform": probabilities.uniform(),
    "root": probabilities.power(0.5),
    "activity": probabilities.power(1.0),
    "log": probabilities.log(),
    "softmax": probabilities.softmax(2.0),
    "threshold": probabilities.threshold(5),
}


def lognormal_sizes(count, seed=0):
    return np.random.default_rng(seed).lognormal(2.0, 1.2, count).astype(np.int32)


@pytest.mark.parametrize("p_max", [None, 0.2], ids=["free", "capped"])
@pytest.mark.parametrize("name", SCORES)
def test_probabilities_solve_the_equation_that_bisection_solves(name, p_max):
    sizes, score, cap = lognormal_sizes(3_000), SCORES[name], p_max or 1.0
    found = probabilities.solve(score, sizes, 150, p_max=p_max)
    held = sizes[sizes > 0].astype(np.int64)
    distinct, back, counts = np.unique(held, return_inverse=True, return_counts=True)
    f = score.of(distinct, counts)[back]

    def excess(log_c):
        return np.minimum(cap, np.exp(log_c) * f).sum() - 150

    c = np.exp(optimize.brentq(excess, -40, 60, xtol=1e-14, rtol=1e-14))
    expected = np.zeros(len(sizes))
    expected[sizes > 0] = np.minimum(cap, c * f)
    np.testing.assert_allclose(found.of(sizes), expected, rtol=1e-9, atol=1e-15)
    assert found.of(sizes).sum() == pytest.approx(150, rel=1e-12)
    assert found.largest <= cap and found.cohort == 150


def test_scores_are_their_formulas():
    sizes, counts = np.array([1, 4, 9]), np.array([1, 3, 1])
    np.testing.assert_allclose(SCORES["root"].of(sizes, counts), [1, 2, 3])
    np.testing.assert_allclose(SCORES["log"].of(sizes, counts), np.log([2, 5, 10]))
    # The median client has 4 examples.
    np.testing.assert_allclose(
        SCORES["softmax"].of(sizes, counts), np.exp([-8 / 8, -5 / 8, 0.0])
    )
    np.testing.assert_array_equal(SCORES["threshold"].of(sizes, counts), [0, 0, 1])


def test_the_default_cap_is_four_times_the_rate():
    sizes = np.array([1] * 99 + [10_000])
    found = probabilities.capped_power(sizes, 5)
    assert found.p_max == 4 * 5 / 100 and found.of([10_000])[0] == 0.2
    assert probabilities.capped_power(sizes, 60).p_max == 1.0


def test_an_everywhere_binding_cap_is_solved():
    found = probabilities.solve(probabilities.power(1.0), [1, 2, 3], 0.9, p_max=0.3)
    np.testing.assert_allclose(found.of([1, 2, 3]), 0.3, rtol=1e-12)


def test_a_histogram_of_few_large_sizes_is_that_of_sorting():
    large = np.array([2**30, 0, 2**30, 7], np.int64)
    for sizes in (large, lognormal_sizes(5_000)):
        distinct, counts = np.unique(sizes, return_counts=True)
        found = probabilities.histogram(sizes)
        np.testing.assert_array_equal(found.sizes, distinct)
        np.testing.assert_array_equal(found.counts, counts)
        assert found.clients == len(sizes)


def test_a_fixed_scale_makes_a_probability_depend_on_its_own_size_alone():
    few = probabilities.fixed_scale(probabilities.log(), [3, 8], 0.05, p_max=0.1)
    more = probabilities.fixed_scale(probabilities.log(), [3, 900], 0.05, p_max=0.1)
    assert few.of([3])[0] == more.of([3])[0] == 0.05 * np.log(4)
    assert more.largest == 0.1
    with pytest.raises(ValueError, match="looks at the sizes of all clients"):
        probabilities.fixed_scale(SCORES["softmax"], [3, 8], 0.05, p_max=0.1)


@pytest.mark.parametrize(
    "make,sentence",
    [
        (
            lambda: probabilities.solve(
                probabilities.uniform(), np.ones(10_000, int), 600, p_max=0.04
            ),
            r"selection.cohort=600 exceeds p_max\*\(clients with data\) = 400; raise "
            "p_max to 0.06 or lower cohort.",
        ),
        (
            lambda: probabilities.solve(probabilities.log(), [3, 0, 2], 3),
            "selection.cohort=3 exceeds .* = 2; lower cohort to at most 2",
        ),
        (
            lambda: probabilities.solve(probabilities.threshold(9), [3, 2], 1),
            "gives no client a chance; the largest client has 3 examples",
        ),
        (lambda: probabilities.histogram([0, 0]), "clients hold no example at all"),
        (lambda: probabilities.histogram([]), "vector of integers"),
        (lambda: probabilities.histogram([1, -2]), r"sizes\[1\]=-2 must be >= 0"),
        (lambda: probabilities.histogram([1.5]), "must be a vector of integers"),
        (lambda: probabilities.power(-1.0), "selection.beta=-1.0"),
        (lambda: probabilities.softmax(0.0), "selection.tau=0.0"),
        (lambda: probabilities.threshold(0), "selection.kappa=0"),
        (lambda: probabilities.check_cap(1.5), "p_max=1.5 must be at most 1"),
        (
            lambda: probabilities.solve(
                probabilities.Score("mine", lambda n, c: -1.0 * n), [1], 1
            ),
            "score mine=-1.0 is not a finite number >= 0",
        ),
    ],
    ids=[
        "cap",
        "clients",
        "threshold",
        "nothing",
        "nobody",
        "negative",
        "fractions",
        "beta",
        "tau",
        "kappa",
        "p_max",
        "score",
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
