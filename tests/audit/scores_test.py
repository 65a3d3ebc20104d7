"""Scores against densities; a threshold from the theoretical law."""

import numpy as np
import pytest
from scipy import stats

from trustml.audit import lower_bounds, scores


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
        lower_bounds.epsilon_delta(
            inside, outside, threshold=t, independent_scores=True, **errors
        ).epsilon
        for t in (at, 0.0)
    )
    assert chosen > 1.2 * middle > 0


def test_temporal_variance_sees_a_noise_that_is_used_twice():
    generator = np.random.default_rng(2)
    present = generator.random((20, 400)) < 0.25
    present[:, 200:] = False
    one_noise = 1.5 * generator.normal(size=400)
    found = scores.temporal_variance(present + one_noise)
    assert found[:200].min() > found[200:].max()
    np.testing.assert_allclose(found[200:], 0.0, atol=1e-24)
    np.testing.assert_allclose(found[:200], present[:, :200].var(axis=0, ddof=1))
    # The log likelihood ratio, which is best against honest noise, sees less of it.
    law = {"sample_rate": 0.25, "noise_multiplier": 1.5}
    ratio = scores.subsampled(present + one_noise, **law)
    assert np.mean(ratio[:200] > ratio[200:]) < 0.95


BAD = [
    (
        "rate_above_1",
        lambda: scores.subsampled(
            np.zeros((1, 1)), sample_rate=1.5, noise_multiplier=1.0
        ),
        "sample_rate=1.5",
    ),
    ("one_step", lambda: scores.temporal_variance(np.zeros((1, 3))), "two or more"),
]


@pytest.mark.parametrize("name,call,sentence", BAD, ids=[b[0] for b in BAD])
def test_bad_arguments_get_a_sentence(name, call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
