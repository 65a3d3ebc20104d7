"""Lower bounds against closed forms, published figures and exact probabilities."""

import math

import numpy as np
import pytest
from scipy import stats

from trustml.audit import lower_bounds, scores
from trustml.privacy import accounting


@pytest.mark.parametrize("mu", [0.05, 0.3, 1.0, 3.0, 8.0])
@pytest.mark.parametrize("delta", [1e-9, 1e-5, 1e-2])
def test_epsilon_of_gaussian_dp_inverts_its_delta(mu, delta):
    epsilon = lower_bounds.gaussian_epsilon(mu, delta)
    if epsilon == 0:
        assert accounting.gaussian_delta(0.0, mu) <= delta
    else:
        assert accounting.gaussian_delta(epsilon, mu) == pytest.approx(delta, rel=1e-6)


def test_epsilon_of_gaussian_dp_at_its_ends():
    assert lower_bounds.gaussian_epsilon(0.0, 1e-5) == 0
    assert lower_bounds.gaussian_epsilon(math.inf, 1e-5) == math.inf


def test_errors_are_counted_with_exact_limits():
    """10 of 200 out above, 30 of 100 in not above (one of them tied)."""
    outside = np.r_[np.full(190, -1.0), np.full(10, 2.0)]
    inside = np.r_[np.full(29, 0.0), [1.0], np.full(70, 3.0)]
    bound = lower_bounds.gaussian(
        inside, outside, threshold=1.0, delta=1e-5, alpha=0.02
    )
    # The upper limit is the rate at which so few errors have probability alpha/2.
    assert stats.binom.cdf(10, 200, bound.fpr_hi) == pytest.approx(0.01, rel=1e-6)
    assert stats.binom.cdf(30, 100, bound.fnr_hi) == pytest.approx(0.01, rel=1e-6)
    mu = stats.norm.ppf(1 - bound.fpr_hi) - stats.norm.ppf(bound.fnr_hi)
    assert bound.mu == pytest.approx(mu, rel=1e-9)
    assert bound.confidence == 0.98
    plain = lower_bounds.epsilon_delta(
        inside, outside, threshold=1.0, delta=1e-5, alpha=0.02
    )
    first = math.log((1 - bound.fnr_hi - 1e-5) / bound.fpr_hi)
    second = math.log((1 - bound.fpr_hi - 1e-5) / bound.fnr_hi)
    assert first > second and plain.epsilon == pytest.approx(first, rel=1e-12)
    turned = lower_bounds.epsilon_delta(
        -outside, -inside, threshold=-1.5, delta=1e-5, alpha=0.02
    )
    assert turned.epsilon > 0


@pytest.mark.parametrize("mu", [0.4, 1.5])
def test_gaussian_bound_fails_as_rarely_as_it_says(mu):
    generator, count, alpha = np.random.default_rng(0), 2000, 0.1
    truth = lower_bounds.gaussian_epsilon(mu, 1e-5)
    above = tight = 0
    for _ in range(1000):
        bound = lower_bounds.gaussian(
            generator.normal(mu, 1, count),
            generator.normal(0, 1, count),
            threshold=mu / 2,
            delta=1e-5,
            alpha=alpha,
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
        )
        above += bound.epsilon > truth
        found.append(bound.epsilon)
    # Two directions, one of which suffices; 5 standard errors are 4.7 points.
    assert above <= 1000 * alpha + 47
    assert np.median(found) > 0.6 * truth


PUBLISHED = [
    # Steinke et al. 2023, appendix D (p. 46) and section 7 (p. 28, truncated).
    ((75, 100, 1000), {"delta": 1e-4, "alpha": 0.05}, 0.673),
    ((1439, 1510, 100_000), {"delta": 1e-5, "alpha": 0.05}, 2.675),
]


@pytest.mark.parametrize("counts,options,want", PUBLISHED)
def test_one_run_gives_the_published_figures(counts, options, want):
    got = lower_bounds.one_run(*counts, **options).epsilon
    assert got == pytest.approx(want, abs=1e-3)


def p_values(guesses, canaries, epsilon, delta):
    return [
        lower_bounds._one_run_p(v, guesses, canaries, epsilon, delta)
        for v in range(guesses + 1)
    ]


@pytest.mark.parametrize("epsilon", [0.2, 1.0, 3.0])
@pytest.mark.parametrize("delta", [0.0, 1e-3, 1e-2])
def test_no_mechanism_beats_the_one_run_p_value(epsilon, delta):
    """Three (epsilon, delta)-DP mechanisms of n bits, exact probabilities.

    Randomised response on every bit; the same, each bit revealed with probability
    delta; the same, all of them revealed at once with probability delta.
    """
    count, rate = 60, 1 / (1 + math.exp(-epsilon))
    bound = np.array(p_values(count, count, epsilon, delta))
    v = np.arange(count + 1)
    response = stats.binom.sf(v - 1, count, rate)
    each = stats.binom.sf(v - 1, count, delta + (1 - delta) * rate)
    at_once = delta + (1 - delta) * response
    for law in (response, each, at_once):
        assert np.all(law <= bound * (1 + 1e-9) + 1e-12)
    if delta == 0:
        np.testing.assert_allclose(bound, response, rtol=1e-9)
    else:  # without its second term the bound would be broken
        assert np.any(each > response * (1 + 1e-6))


def test_one_run_is_the_edge_of_its_p_value():
    bound = lower_bounds.one_run(80, 100, 500, delta=1e-5, alpha=0.01)
    below, above = (
        lower_bounds._one_run_p(80, 100, 500, bound.epsilon + step, 1e-5)
        for step in (-1e-6, 1e-6)
    )
    assert below < 0.01 <= above
    assert lower_bounds.one_run(50, 100, 500, delta=1e-5).epsilon == 0
    assert lower_bounds.one_run(0, 0, 500, delta=1e-5).epsilon == 0
    # All of 100 right: (e/(1+e))^100 = 0.01 at delta = 0.
    whole = lower_bounds.one_run(100, 100, 100, delta=0.0).epsilon
    assert 1 / (1 + math.exp(-whole)) == pytest.approx(0.01**0.01, rel=1e-9)


def test_guesses_are_made_at_both_ends():
    included = np.array([True, False, True, False, True, False])
    assert lower_bounds.guess([6, 1, 5, 2, 3, 4], included, 4) == (4, 4)
    assert lower_bounds.guess([6, 1, 5, 2, 3, 4], included, 6) == (4, 6)
    assert lower_bounds.guess([1, 6, 2, 5, 3, 4], included, 4) == (0, 4)


def test_subsampled_score_is_the_log_likelihood_ratio():
    x, q, z = np.linspace(-2, 3, 11), 0.3, 0.8
    inside = (1 - q) * stats.norm.pdf(x, 0, z) + q * stats.norm.pdf(x, 1, z)
    want = np.log(inside / stats.norm.pdf(x, 0, z))
    law = {"sample_rate": q, "noise_multiplier": z}
    np.testing.assert_allclose(scores.subsampled(x[None], **law), want, rtol=1e-9)
    both = scores.subsampled(np.stack([x, x]), **law)
    np.testing.assert_allclose(both, 2 * want, rtol=1e-9)
    # At q = 1 it ranks as the sum does, and 0 is the threshold T/2.
    whole = scores.subsampled(x[None], sample_rate=1.0, noise_multiplier=z)
    np.testing.assert_allclose(whole, (x - 0.5) / z**2, rtol=1e-9)
    np.testing.assert_allclose(scores.total(np.stack([x, x])), 2 * x)


def test_a_fixed_threshold_is_better_than_the_middle():
    law = {"sample_rate": 0.1, "noise_multiplier": 0.5}
    errors = {"delta": 1e-5, "alpha": 0.01}
    at = scores.fixed_threshold(steps=10, per_side=2000, **law, **errors)
    generator = np.random.default_rng(5)
    shape = (10, 2000)
    present = generator.random(shape) < 0.1
    inside = scores.subsampled(present + 0.5 * generator.normal(size=shape), **law)
    outside = scores.subsampled(0.5 * generator.normal(size=shape), **law)
    chosen, middle = (
        lower_bounds.epsilon_delta(inside, outside, threshold=t, **errors).epsilon
        for t in (at, 0.0)
    )
    assert chosen > 1.2 * middle > 0


BAD = [
    (lambda: lower_bounds.gaussian([], [1.0], threshold=0, delta=1e-5), "member_scor"),
    (lambda: lower_bounds.gaussian([np.nan], [1.0], threshold=0, delta=1e-5), "is nan"),
    (lambda: lower_bounds.gaussian([1.0], [1.0], threshold=0, delta=0.0), "delta=0.0"),
    (lambda: lower_bounds.gaussian([1.0], [1.0], threshold=np.nan, delta=1e-5), "thre"),
    (
        lambda: lower_bounds.epsilon_delta(
            [1.0], [1.0], threshold=0, delta=1e-5, alpha=0.0
        ),
        "alpha=0.0",
    ),
    (lambda: lower_bounds.one_run(5, 4, 10, delta=1e-5), "correct=5"),
    (lambda: lower_bounds.one_run(3, 4, 10, delta=1.0), "delta=1.0"),
    (lambda: lower_bounds.guess([1.0, 2.0], [True, False], 4), "at most the 2"),
    (
        lambda: scores.subsampled(
            np.zeros((1, 1)), sample_rate=1.5, noise_multiplier=1.0
        ),
        "sample_rate=1.5",
    ),
]


@pytest.mark.parametrize("call,sentence", BAD)
def test_bad_arguments_get_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
