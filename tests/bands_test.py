"""The band against exact probabilities: its limits hold together as often as said."""

import numpy as np
import pytest
from scipy import optimize, special, stats

from trustml import bands


def coverage(n, gamma):
    """P[U_(k) <= b_k for every k], b_k = BetaInv(1 - gamma; k, n-k+1), exactly.

    U_(k) <= b_k says that k or more of n uniforms lie below b_k. Over k, with the
    number below b_k as the state: more points fall in by a binomial, and states with
    fewer than k are lost.
    """
    k = np.arange(1, n + 1)
    limits = special.betainccinv(k, n - k + 1, gamma)
    log_factorial = special.gammaln(np.arange(n + 1) + 1.0)
    old, new = np.tril_indices(n + 1)[::-1]  # old <= new
    log_choose = log_factorial[n - old] - log_factorial[new - old]
    log_choose -= log_factorial[n - new]
    law, before = np.zeros(n + 1), 0.0
    law[0] = 1.0
    for at, limit in zip(k, limits, strict=True):
        rate = (limit - before) / (1 - before)
        moves = log_choose + (new - old) * np.log(rate) + (n - new) * np.log1p(-rate)
        law = np.bincount(new, law[old] * np.exp(moves), n + 1)
        law[:at] = 0.0
        before = limit
    return float(law.sum())


def test_the_recursion_is_right_where_it_can_be_done_by_hand():
    """n = 2: two uniforms below `second` and not both above `first`."""
    gamma = 0.03
    (first, second) = special.betainccinv([1, 2], [2, 1], gamma)
    want = second**2 - (second - first) ** 2
    assert coverage(2, gamma) == pytest.approx(want, rel=1e-12)
    assert coverage(1, gamma) == pytest.approx(1 - gamma, rel=1e-12)


@pytest.mark.parametrize("n,beta,seeds", [(20, 0.05, 40), (100, 0.05, 10)])
def test_gamma_is_below_the_exact_one_and_close_to_it(n, beta, seeds):
    """A simulated gamma is above the exact one for 1% of seeds: 3 of 40 with 0.7%."""
    truth = optimize.brentq(
        lambda g: coverage(n, g) - (1 - beta), beta / 100, beta, rtol=1e-4
    )
    found = [bands.local_level(n, beta, seed=seed) for seed in range(seeds)]
    assert sum(x > truth for x in found) <= 3
    assert min(found) >= 0.75 * truth
    assert bands.band(n, beta).gamma == found[0]


def test_gamma_at_two_hundred():
    """As in the specification: 0.00085, exactly."""
    assert coverage(200, 0.00084) > 0.975 > coverage(200, 0.00086)
    assert 0.75 * 0.00084 <= bands.local_level(200, 0.025) <= 0.00084


def test_gamma_of_one_score_is_beta():
    assert bands.local_level(1, 0.1) == pytest.approx(0.1, rel=0.1)
    assert bands.local_level(1, 0.1) <= 0.1


@pytest.mark.parametrize("n,beta", [(50, 0.1), (300, 0.025)])
def test_all_limits_hold_together(n, beta):
    """2,000 samples of their own seed; ties too, where scores are rounded."""
    limits = bands.band(n, beta)
    rng = np.random.default_rng(5)
    uniforms = -np.sort(-rng.random((2000, n)), axis=1)  # descending
    # Just below the k-th largest score lie k scores; just above it, k - 1.
    share = 1 - uniforms
    lower = np.all(share >= limits.lower[1:], axis=1)
    upper = np.all(share <= limits.upper[:-1], axis=1)
    for held in (lower, upper):
        # 5 standard errors.
        assert held.mean() >= 1 - beta - 5 * np.sqrt(beta * (1 - beta) / 2000)
        assert held.mean() <= 1 - 0.5 * beta
    coarse = np.round(rng.random((2000, n)) * 10)
    broken = 0
    for cut in range(10):
        count = np.sum(coarse > cut, axis=1)
        mass = 1 - (cut + 0.5) / 10
        broken += (mass > limits.upper[count]) | (mass < limits.lower[count])
    assert np.mean(broken > 0) <= 2 * beta


def test_limits_are_those_of_clopper_and_pearson_at_gamma():
    found = bands.pointwise(40, 0.01)
    for count in range(1, 40):
        assert stats.binom.cdf(count, 40, found.upper[count]) == pytest.approx(0.01)
        assert stats.binom.sf(count - 1, 40, found.lower[count]) == pytest.approx(0.01)
    assert found.lower[0] == 0 and found.upper[40] == 1
    assert found.upper[0] == pytest.approx(1 - 0.01 ** (1 / 40))
    np.testing.assert_allclose(found.lower, 1 - found.upper[::-1], atol=1e-15)
    assert np.all(np.diff(found.upper) > 0) and np.all(np.diff(found.lower) > 0)
    of_band = bands.band(40, 0.1)
    again = bands.pointwise(40, of_band.gamma)
    np.testing.assert_array_equal(of_band.upper, again.upper)
    with pytest.raises(ValueError):
        of_band.upper[0] = 0.0


BAD = [
    ("no_scores", lambda: bands.band(0, 0.1), "n=0"),
    ("beta_of_1", lambda: bands.local_level(5, 1.0), "beta=1.0"),
    ("few_draws", lambda: bands.local_level(5, 1e-4, draws=100), "cannot resolve"),
]


@pytest.mark.parametrize("name,call,sentence", BAD, ids=[b[0] for b in BAD])
def test_bad_arguments_get_a_sentence(name, call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
