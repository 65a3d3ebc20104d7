"""DP-Adam against a NumPy loop, and what it estimates under pure noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trustml import rng
from trustml.privacy import adam, clipping, correlated_noise, plan, sampling, schedules


def numpy_adam_bc(grads, rate, b1, b2, phi, floor):
    """Parameters after every gradient, from 0; float64, as in Tang et al. 2023."""
    x = m = v = np.zeros_like(grads[0])
    path = []
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g * g
        corrected = np.maximum(v / (1 - b2**t) - phi, floor * phi)
        x = x - float(rate(t - 1)) * (m / (1 - b1**t)) / np.sqrt(corrected)
        path.append(x)
    return path


@pytest.mark.parametrize(("b1", "b2"), [(0.9, 0.999), (0.0, 0.9)])
def test_equals_a_numpy_loop(b1, b2):
    phi, floor, steps = 0.3, 0.02, 30

    def rate(step):
        return 0.1 / (1.0 + jnp.asarray(step, jnp.float32))

    generator = np.random.default_rng(0)
    scale = np.logspace(-2, 1, 40)  # some coordinates reach the floor, some do not
    grads = [scale * generator.normal(1.0, 1.0, size=40) for _ in range(steps)]
    want = numpy_adam_bc(grads, rate, b1, b2, phi, floor)
    optimizer = adam.dp_adam_bc(rate, b1, b2, noise_variance=phi, floor=floor)
    params = {"a": jnp.zeros(15), "b": jnp.zeros((5, 5)), "frozen": None}
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for g, x in zip(grads, want, strict=True):
        g = jnp.asarray(g, jnp.float32)
        updates, state = update(
            {"a": g[:15], "b": g[15:].reshape(5, 5), "frozen": None}, state
        )
        params = jax.tree.map(jnp.add, params, updates)
        got = np.concatenate([params["a"], np.ravel(params["b"])])
        np.testing.assert_allclose(got, x, rtol=1e-5, atol=1e-6)
    last = numpy_adam_bc(grads, rate, b1, b2, phi, 1e-9)[-1]
    assert np.any(np.abs(last - want[-1]) > 0.01), "the floor mattered somewhere"
    assert update._cache_size() == 1


def test_noise_leaves_the_second_moment():
    """E[v^ - Phi] = g^2 for a constant gradient g under noise of variance Phi.

    One coordinate has variance 2 Phi^2 + 4 Phi g^2 = 6 at every step; the mean over n
    coordinates and 20 nearly equal weights has stddev sqrt(6 / (20 n)) = 0.0012, of
    which five are 0.6%.
    """
    n, b2 = 200_000, 0.999
    optimizer = adam.dp_adam_bc(1.0, b2=b2, noise_variance=1.0)
    state = optimizer.init(jnp.zeros(n))
    update = jax.jit(optimizer.update)
    for step in range(20):
        noise = jax.random.normal(jax.random.key(step), (n,))
        _, state = update(1.0 + noise, state)
    square = np.asarray(state[0].square, np.float64) / (1 - b2**20)
    assert np.mean(square) - 1.0 == pytest.approx(1.0, rel=0.01)


N, M = 200, 20


def make_plan(rule="flat", sampler=None, **changes):
    clipper = clipping.clipped_grad(lambda p, e, k: 0.0, l2_clip_norm=0.5, rule=rule)
    sampler = sampler or sampling.poisson(N, M, physical_batch_size=M, seed=0)
    numbers = {"steps": 4, "delta": 1e-3, "noise_multiplier": 2.0} | changes
    relation = "add_or_remove_one"
    return plan.make(clipper, sampler, relation=relation, accountant="rdp", **numbers)


def test_the_plans_noise_leaves_the_second_moment():
    """E[v^ - Phi] = E[g^2] where the noise, and Phi, are those of a plan.

    As above in units of Phi: the mean square of the gradients is Phi, and (g + n)^2 has
    variance 2 Phi^2 + 4 Phi g^2, 6 Phi^2 in the mean.
    """
    n, b2, made = 200_000, 0.999, make_plan(steps=20)
    phi, mechanism = adam.noise_variance(made), made.mechanism
    g = jnp.sqrt(jnp.float32(phi)) * jax.random.normal(jax.random.key(1), (n,))
    optimizer = adam.dp_adam_bc(1.0, b2=b2, noise_variance=phi)
    state, noise_state = optimizer.init(g), mechanism.init(rng.root(0))

    @jax.jit
    def step(state, noise_state):
        noisy, noise_state = mechanism.update(g * M, noise_state)
        _, state = optimizer.update(noisy / M, state)
        return state, noise_state

    for _ in range(20):
        state, noise_state = step(state, noise_state)
    square = np.asarray(state[0].square, np.float64) / (1 - b2**20)
    want = np.mean(np.square(np.asarray(g, np.float64)))
    assert np.mean(square) - phi == pytest.approx(want, rel=0.01)


def test_variance_is_that_of_the_released_mean():
    made = make_plan()
    variance = adam.noise_variance(made)
    assert variance == pytest.approx((2.0 * 0.5 / M) ** 2)
    n = 100_000
    noisy, _ = made.mechanism.update(jnp.zeros(n), made.mechanism.init(rng.root(0)))
    found = np.var(np.asarray(noisy) / made.expected_batch_size)
    assert found == pytest.approx(variance, rel=5 * np.sqrt(2 / n))


def test_moving_noise_is_refused():
    falling = schedules.exponential(4, 2, rho=0.5)
    with pytest.raises(ValueError, match="changes the noise.* 1 first, then 0.5"):
        adam.noise_variance(make_plan(noise_schedule=falling))
    with pytest.raises(ValueError, match="privacy.rule='quantile' moves the clip norm"):
        adam.noise_variance(make_plan("quantile", noise_multiplier=1.0))
    bands = sampling.cyclic_poisson(N, M, bands=2, physical_batch_size=M, seed=0)
    strategy = correlated_noise.optimize(bands=2, steps=4)
    like = {"params": {"w": jnp.zeros(3)}, "strategy": strategy}
    with pytest.raises(ValueError, match="strategy.bands=2 correlates the noise"):
        adam.noise_variance(make_plan(sampler=bands, **like))


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"noise_variance": 0.0}, "noise_variance=0.0 must be .* optax.adam"),
        ({"noise_variance": 1.0, "floor": 0.0}, "floor=0.0 must be"),
        ({"noise_variance": 1.0, "b2": 1.0}, "b2=1.0 must be .* below 1"),
    ],
)
def test_wrong_numbers_are_refused(numbers, words):
    with pytest.raises(ValueError, match=words):
        adam.dp_adam_bc(0.1, **numbers)
