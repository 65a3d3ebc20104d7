"""Lower bounds at fixed, searched and split thresholds, against their definitions."""

import math

import numpy as np
import pytest
from scipy import stats

from trustml import bands
from trustml.audit import lower_bounds, rates, result


def test_errors_are_counted_with_exact_limits():
    """10 of 200 out above, 30 of 100 in not above (one of them tied)."""
    outside = np.r_[np.full(190, -1.0), np.full(10, 2.0)]
    inside = np.r_[np.full(29, 0.0), [1.0], np.full(70, 3.0)]
    bound = lower_bounds.gaussian(
        inside,
        outside,
        threshold=1.0,
        delta=1e-5,
        alpha=0.02,
        independent_scores=True,
    )
    # The upper limit is the rate at which so few errors have probability alpha/2.
    assert stats.binom.cdf(10, 200, bound.fpr_hi) == pytest.approx(0.01, rel=1e-6)
    assert stats.binom.cdf(30, 100, bound.fnr_hi) == pytest.approx(0.01, rel=1e-6)
    mu = stats.norm.ppf(1 - bound.fpr_hi) - stats.norm.ppf(bound.fnr_hi)
    assert bound.mu == pytest.approx(mu, rel=1e-9)
    assert bound.confidence == 0.98
    plain = lower_bounds.epsilon_delta(
        inside,
        outside,
        threshold=1.0,
        delta=1e-5,
        alpha=0.02,
        independent_scores=True,
    )
    first = math.log((1 - bound.fnr_hi - 1e-5) / bound.fpr_hi)
    second = math.log((1 - bound.fpr_hi - 1e-5) / bound.fnr_hi)
    assert first > second and plain.epsilon == pytest.approx(first, rel=1e-12)
    turned = lower_bounds.epsilon_delta(
        -outside,
        -inside,
        threshold=-1.5,
        delta=1e-5,
        alpha=0.02,
        independent_scores=True,
    )
    assert turned.epsilon > 0


@pytest.mark.parametrize("mu", [0.4, 1.5])
def test_gaussian_bound_fails_as_rarely_as_it_says(mu):
    generator, count, alpha = np.random.default_rng(0), 2000, 0.1
    truth = rates.gaussian_epsilon(mu, 1e-5)
    above = tight = 0
    for _ in range(1000):
        bound = lower_bounds.gaussian(
            generator.normal(mu, 1, count),
            generator.normal(0, 1, count),
            threshold=mu / 2,
            delta=1e-5,
            alpha=alpha,
            independent_scores=True,
        )
        above += bound.epsilon > truth
        tight += bound.epsilon > 0.6 * truth
    # 1000 trials at 10%: 5 standard errors are 4.7 points.
    assert above <= 1000 * alpha + 47
    assert tight > 900


def test_epsilon_delta_bound_fails_as_rarely_as_it_says():
    """Randomised response with epsilon = 1: the bound is attained by its own law."""
    generator, count, alpha, truth = np.random.default_rng(1), 300, 0.1, 1.0
    honest = 1 / (1 + math.exp(-truth))
    above, found = 0, []
    for _ in range(1000):
        bound = lower_bounds.epsilon_delta(
            generator.random(count) < honest,
            generator.random(count) > honest,
            threshold=0.5,
            delta=1e-9,
            alpha=alpha,
            independent_scores=True,
        )
        above += bound.epsilon > truth
        found.append(bound.epsilon)
    # Two directions, one of which suffices; 5 standard errors are 4.7 points.
    assert above <= 1000 * alpha + 47
    assert np.median(found) > 0.6 * truth


def pair(mu, count=300, seed=0):
    generator = np.random.default_rng(seed)
    return generator.normal(mu, 1, count), generator.normal(0, 1, count)


WITH = {"delta": 1e-3, "alpha": 0.05, "independent_scores": True}
METHODS = {
    "epsilon_delta": lower_bounds.epsilon_delta,
    "gaussian": lower_bounds.gaussian,
}


def searched(inside, outside, method, delta, alpha):
    """Every threshold in a Python loop, limits by the definition of the band."""
    of_in = bands.local_level(len(inside), alpha / 2)
    of_out = bands.local_level(len(outside), alpha / 2)
    best = 0.0
    for t in np.unique(np.r_[inside, outside]):
        k_in, k_out = int(np.sum(inside > t)), int(np.sum(outside > t))
        low = stats.beta.ppf(of_in, k_in, len(inside) - k_in + 1) if k_in else 0.0
        high = stats.beta.isf(of_out, k_out + 1, len(outside) - k_out)
        high = 1.0 if k_out == len(outside) else high
        if method == "gaussian":
            mu = stats.norm.ppf(low) - stats.norm.ppf(high)
            best = max(best, rates.gaussian_epsilon(max(0.0, mu), delta))
        else:
            best = max(best, float(rates.epsilon(low, high, delta=delta)))
    return best


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mu", [0.0, 0.7, 2.5])
@pytest.mark.parametrize("ties", [False, True])
def test_the_band_is_searched_at_every_threshold(method, mu, ties):
    inside, outside = pair(mu, 120)
    outside = outside[:80]
    if ties:
        inside, outside = np.round(inside), np.round(outside)
    found = METHODS[method](inside, outside, **WITH)
    want = searched(inside, outside, method, 1e-3, 0.05)
    assert found.epsilon == pytest.approx(want, rel=1e-9, abs=1e-12)
    assert (found.strategy, found.n_in, found.n_out) == ("band", 120, 80)
    # The threshold in the result is one at which the limits are those in the result.
    k_out = int(np.sum(outside > found.threshold))
    assert bands.band(80, 0.025).upper[k_out] == found.fpr_hi


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("strategy", ["band", "split"])
def test_scores_that_say_nothing_or_the_reverse_give_zero(method, strategy):
    """A sign turned round is no evidence for a Gaussian mechanism's mu."""
    options = {**WITH, "strategy": strategy}
    for seed in range(20):
        inside, outside = pair(0.0, 60, seed)
        assert METHODS[method](inside, outside, **options).epsilon == 0
    inside, outside = pair(-3.0)
    assert METHODS[method](inside, outside, **options).epsilon == 0
    few_in, few_out = pair(1.0, 5)
    assert METHODS[method](few_in, few_out, **options).epsilon == 0
    same = np.ones(50)
    assert METHODS[method](same, same, **options).epsilon == 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("strategy", lower_bounds.STRATEGIES)
def test_no_bound_exceeds_its_ceiling(method, strategy):
    options = {**WITH, "strategy": strategy}
    if strategy == "fixed":
        options["threshold"] = 5.0
    inside, outside = pair(0.0, 200)
    best = METHODS[method](inside + 10, outside, **options)
    assert best.epsilon == best.epsilon_ceiling > 0
    assert best.warnings == (result.SATURATED,)
    other = METHODS[method](inside + 2, outside, **{**options, "threshold": 1.0}
                            if strategy == "fixed" else options)  # fmt: skip
    assert 0 < other.epsilon < other.epsilon_ceiling and not other.warnings
    assert other.epsilon_ceiling == best.epsilon_ceiling


def test_the_ceiling_of_five_hundred_a_side():
    """About log(n / log(1/gamma)): near 4.1."""
    inside, outside = pair(0.0, 500)
    options = {"delta": 0.0, "alpha": 0.05, "independent_scores": True}
    found = lower_bounds.epsilon_delta(inside, outside, **options).epsilon_ceiling
    gamma = bands.local_level(500, 0.025)
    assert found == pytest.approx(math.log(500 / math.log(1 / gamma)), abs=0.05)
    assert found == pytest.approx(4.1, abs=0.1)


def test_what_chooses_does_not_see_the_half_that_counts():
    inside, outside = pair(2.0)
    options = {**WITH, "strategy": "split", "seed": 3}
    found = lower_bounds.epsilon_delta(inside, outside, **options)
    assert (found.n_in, found.n_out) == (150, 150)
    (first_in, _), (first_out, _) = lower_bounds._halves(inside, outside, 3)
    spoilt_in = np.where(np.isin(inside, first_in), inside, 100.0)
    spoilt_out = np.where(np.isin(outside, first_out), outside, -100.0)
    again = lower_bounds.epsilon_delta(spoilt_in, spoilt_out, **options)
    assert again.threshold == found.threshold and again.epsilon > found.epsilon


def laplace_ratios(seed, count=2000):
    """Exact log likelihood ratios of a Laplace mechanism with epsilon = 1."""
    generator = np.random.default_rng(seed)
    for shift in (1.0, 0.0):
        x = shift + generator.laplace(0.0, 1.0, count)
        # As an implementation would: in floats, from the sample as it was made.
        yield np.abs(x) - np.abs(x - 1.0)


@pytest.mark.parametrize("strategy", ["band", "split"])
def test_atoms_are_not_split_by_rounding(strategy):
    """A correct mechanism of epsilon = 1 is certified at more by its last bits."""
    options = {"delta": 0.0, "alpha": 0.05, "independent_scores": True}
    options["strategy"] = strategy
    split = []
    for seed in range(20):
        inside, outside = laplace_ratios(seed)
        found = lower_bounds.epsilon_delta(inside, outside, **options)
        assert 0.6 < found.epsilon <= 1.0
        raw = lower_bounds.epsilon_delta(inside, outside, resolution=0.0, **options)
        split.append(raw.epsilon)
    assert max(split) > 1.2, "without rounding this test cannot fail"


def test_infinite_scores_rank_and_are_not_rounded():
    inside, outside = np.r_[np.full(60, np.inf), 0.0], np.r_[np.full(60, -np.inf), 0.0]
    found = lower_bounds.epsilon_delta(inside, outside, **WITH)
    assert found.epsilon > 1 and math.isfinite(found.epsilon)


ONE = ([1.0], [1.0])
FIXED = {"delta": 1e-5, "independent_scores": True}
CURE = "'band'.*'fixed'.*'split'"
BAD = [
    ("empty", lambda f: f([], [1.0], threshold=0, **FIXED), "member_scores"),
    ("other_side_empty", lambda f: f([1.0], [], **FIXED), "nonmember_scores"),
    ("nan", lambda f: f([np.nan], [1.0], threshold=0, **FIXED), "is nan"),
    ("delta_of_1", lambda f: f(*ONE, **{**FIXED, "delta": 1.0}), "delta=1.0"),
    ("negative_delta", lambda f: f(*ONE, **{**FIXED, "delta": -0.1}), "delta=-0.1"),
    ("nan_threshold", lambda f: f(*ONE, threshold=np.nan, **FIXED), "threshold=nan"),
    ("alpha_of_0", lambda f: f(*ONE, alpha=0.0, **FIXED), "alpha=0.0"),
    ("not_said_independent", lambda f: f(*ONE, delta=0.1), "audit.one_run"),
    ("many_thresholds", lambda f: f(*ONE, threshold=[0.0, 1.0], **FIXED), CURE),
    ("maximum", lambda f: f(*ONE, strategy="max", **FIXED), CURE),
    ("fixed_at_none", lambda f: f(*ONE, strategy="fixed", **FIXED), "give a threshold"),
    (
        "band_at_one",
        lambda f: f(*ONE, strategy="band", threshold=0, **FIXED),
        "with no",
    ),
    ("one_to_split", lambda f: f(*ONE, strategy="split", **FIXED), "at least 2"),
    ("resolution_of_1", lambda f: f(*ONE, resolution=1.0, **FIXED), "resolution=1.0"),
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name,call,sentence", BAD, ids=[b[0] for b in BAD])
def test_bad_arguments_get_a_sentence(name, call, sentence, method):
    with pytest.raises(ValueError, match=sentence):
        call(METHODS[method])


def test_a_gaussian_needs_a_delta():
    with pytest.raises(ValueError, match="delta=0.0"):
        lower_bounds.gaussian(*ONE, delta=0.0, independent_scores=True)
