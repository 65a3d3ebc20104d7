"""Norms over all leaves, at every magnitude, and a norm that follows its quantile."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.federated.aggregation import sensitivity
from trustml import rng
from trustml.federated import weighting as rules
from trustml.federated.aggregation import chain, clipping, dp, link, weighting

KEY = jax.random.key(0)


def sent(links, message, state=None):
    aggregator = chain.chain(*links)
    state = aggregator.init(message, rng.root(0)) if state is None else state
    return aggregator.client(state, message, (), KEY)


@functools.cache
def clipped_to(l2_clip_norm):
    @sensitivity.quick_jit
    def run(message):
        out, _, record = sent([clipping.clip(l2_clip_norm)], message)
        return out, record

    return run


@pytest.mark.parametrize("scale", [0.0, 1e-38, 1e-28, 1e-20, 0.3, 7.0, 1e20, 3e38])
def test_clipping_is_that_of_the_whole_vector(scale):
    gen = np.random.default_rng(0)
    x = np.clip(gen.normal(size=9), -1, 1) * np.float32(scale)
    message = sensitivity.tree(jnp.asarray(x, jnp.float32))
    run = clipped_to(1.5)
    # Op by op x / s is x * (1 / s), which is 0 for the largest s; fused it is not.
    out, record = run.__wrapped__(message) if scale > 1e38 else run(message)
    x = np.asarray(x, np.float32).astype(np.float64)
    norm = np.linalg.norm(x)
    wanted = x * min(1, 1.5 / max(norm, 1e-300))
    np.testing.assert_allclose(sensitivity.flat(out.update), wanted, rtol=1e-5)
    assert bool(record.clipped) == (norm > 1.5)
    if scale < 1e38:
        np.testing.assert_allclose(record.norm, norm, rtol=1e-5, atol=1e-37)


@pytest.mark.parametrize("scale", [1e-28, 1e-12, 1.0, 1e12, 1e28])
def test_a_norm_of_many_coordinates_far_apart(scale):
    x = np.random.default_rng(0).normal(size=100_000) * scale
    x[0] *= 1e6
    by, unit = clipping.norm({"w": jnp.asarray(x, jnp.float32)})
    np.testing.assert_allclose(float(by * unit), np.linalg.norm(x), rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_clipped_to_zeros(bad):
    message = {"a": jnp.asarray([0.5, bad]), "b": jnp.ones(3)}
    out, length = clipping.clipped(message, jnp.float32(1.0))
    assert not np.any(sensitivity.flat(out)) and float(length) == 0


def test_a_short_message_is_left_alone_to_the_bit():
    message = {"w": jnp.asarray([0.1, -0.7, 0.3], jnp.float32)}
    out, _, record = sent([clipping.clip(1.0)], message)
    np.testing.assert_array_equal(out.update["w"], message["w"])
    assert not bool(record.clipped)


def test_leaves_without_coordinates_and_without_arrays():
    message = {"none": None, "empty": jnp.zeros((0, 3)), "w": jnp.asarray([3.0, 4.0])}
    out, _, _ = sent([clipping.clip(1.0)], message)
    np.testing.assert_allclose(out.update["w"], [0.6, 0.8], rtol=1e-6)
    assert out.update["none"] is None


@pytest.mark.parametrize("target", [0.3, 0.8])
def test_the_norm_follows_a_quantile_of_the_clients(target):
    gen = np.random.default_rng(1)
    m, rounds = 200, 100
    directions = gen.normal(size=(m, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    norms = np.exp(gen.normal(size=(rounds, m)) + 1)
    adaptive = clipping.adaptive(0.1, target=target, bit_stddev=10.0)
    links = adaptive, weighting.of(rules.mean(float(m))), dp.central(1.0)
    aggregator = chain.chain(*links)
    state = aggregator.init({"w": jnp.zeros(3)}, rng.root(2))
    cohort = link.cohort(jnp.ones(m), expected_weight=float(m))

    def step(state, norms):
        messages = {"w": jnp.asarray(directions, jnp.float32) * norms[:, None]}
        out, _, _ = jax.vmap(aggregator.client, (None, 0, None, None))(
            state, messages, (), KEY
        )
        total = link.weighted_sum(out, cohort)
        _, after, info = aggregator.server(state, total, cohort, KEY)
        return after, (state[0].clip_norm, info)

    norms = jnp.asarray(norms, jnp.float32)
    run = sensitivity.quick_jit(lambda state, norms: jax.lax.scan(step, state, norms))
    _, (clip_norms, info) = run(state, norms)
    found = np.asarray(clip_norms)[-50:, None]
    # One round has a share with stddev sqrt(0.25 / 200 + (10 / 200)^2) = 0.06; the norm
    # averages some ten of them, and 50 rounds are looked at: 0.05 is ample.
    assert np.mean(np.asarray(norms)[-50:] <= found) == pytest.approx(target, abs=0.05)
    # Noise follows the norm of the round it is added in, at the multiplier of updates.
    z = (1 - 1 / 400) ** -0.5
    np.testing.assert_allclose(info.noise_stddev, z * clip_norms, rtol=1e-5)
    np.testing.assert_array_equal(info.sensitivity, clip_norms)


def test_bits_are_halves_and_weighted_like_messages():
    adaptive = clipping.adaptive(1.0, bit_stddev=1.0)
    for norm, bit in ((0.5, 0.5), (1.0, 0.5), (2.0, -0.5)):
        out, _, _ = sent([adaptive], {"w": jnp.asarray([norm, 0.0])})
        assert float(out.bits) == bit
    out, _, _ = sent([adaptive], {"w": jnp.asarray([np.nan, 0.0])})
    assert float(out.bits) == 0.5  # counted as a message of zeros


def test_weights_that_are_larger_make_bits_dearer():
    weight = weighting.of(rules.horvitz_thompson(np.ones(4), np.full(4, 1 / 16)))
    links = clipping.adaptive(1.0, bit_stddev=4.0), weight, dp.central(1.0)
    aggregator = chain.chain(*links)
    state = aggregator.init({"w": jnp.zeros(3)}, rng.root(0))
    cohort = link.cohort(jnp.zeros(2), expected_weight=1.0)
    empty = link.Message({"w": jnp.zeros(3)}, jnp.zeros(()))
    _, _, info = aggregator.server(state, empty, cohort, KEY)
    # s_max / 2 = 2 against 4: a multiplier of 2, so (1 - 1/4)^(-1/2), times C s_max.
    assert float(info.noise_stddev) == pytest.approx(4 * 0.75**-0.5, rel=1e-6)


@pytest.mark.parametrize("bad", [0.0, -1.0, np.inf, np.nan])
def test_bad_norms_are_refused(bad):
    with pytest.raises(ValueError, match="l2_clip_norm=.*> 0; choose"):
        clipping.clip(bad)
    with pytest.raises(ValueError, match="l2_clip_norm=.*> 0; choose"):
        clipping.adaptive(bad, bit_stddev=1.0)
