"""Tracked clip norms: the quantile they reach, and what they cost."""

import dp_accounting
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trustml import rng
from trustml.privacy import accounting, clipping, plan, quantile, rules, sampling

KEY = jax.random.key(0)
ADD = accounting.Relation.ADD_OR_REMOVE_ONE


def loss(params, example, key):
    """A gradient that is the example itself, so its norm is known."""
    del key
    return sum(jnp.sum(params[name] * example[name]) for name in params)


def made(rule, *, m=500, z=1.0, steps=100, norm=0.01, params=None, n=10_000):
    clipper = clipping.clipped_grad(loss, l2_clip_norm=norm, rule=rule)
    sampler = sampling.poisson(n, m, physical_batch_size=100, seed=0)
    return clipper, plan.make(
        clipper,
        sampler,
        steps=steps,
        delta=1e-5,
        relation=ADD,
        noise_multiplier=z,
        params=params,
    )


def data(seed=0, n=10_000):
    """Norms of two leaves are lognormal about 3 and about 40."""
    gen = np.random.default_rng(seed)
    batch = {}
    for name, median in (("a", 3.0), ("b", 40.0)):
        x = gen.normal(size=(n, 4))
        x *= (median * gen.lognormal(size=n) / np.linalg.norm(x, axis=1))[:, None]
        batch[name] = x.astype(np.float32)
    return batch


@pytest.mark.parametrize("target", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("grouped", [False, True])
def test_norms_follow_their_quantile_over_virtual_batches(target, grouped):
    groups = rules.per_layer({"a": 1.0, "b": 1.0}) if grouped else None
    rule = rules.quantile(target, learning_rate=0.4, groups=groups)
    params = {"a": jnp.zeros(4), "b": jnp.zeros(4)}
    clipper, p = made(rule, params=params)
    columns = data()
    state = p.mechanism.init(rng.root(0))

    @jax.jit
    def microbatch(norms, batch, mask):
        sums, info = clipper(params, batch, mask, KEY, None, norms)
        return sums, quantile.within(info, mask, norms)

    update = jax.jit(p.mechanism.update)
    for step in range(p.steps):
        norms = p.mechanism.clip_norms(state)
        total = None
        for physical in p.sampler.physical(step):
            for i in range(physical.trips):
                ids, mask = physical.indices[i], physical.mask[i]
                batch = {k: v[ids] for k, v in columns.items()}
                part = microbatch(norms, batch, mask)
                total = part if total is None else jax.tree.map(jnp.add, total, part)
        _, state = update(total[0], state, total[1])
    found = np.asarray(p.mechanism.clip_norms(state))
    lengths = np.stack([np.linalg.norm(x, axis=1) for x in columns.values()], axis=1)
    if not grouped:
        lengths = np.linalg.norm(lengths, axis=1, keepdims=True)
    share = np.mean(lengths <= found, axis=0)
    assert share.shape == ((2,) if grouped else (1,))
    np.testing.assert_allclose(share, target, atol=0.05)


def test_the_pair_costs_one_gaussian_event():
    _, p = made("quantile", steps=50)
    gaussian = dp_accounting.GaussianDpEvent(1.0)
    sampled = dp_accounting.PoissonSampledDpEvent(0.05, gaussian)
    direct = dp_accounting.pld.PLDAccountant(ADD).compose(sampled, 50)
    assert p.epsilon() == pytest.approx(direct.get_epsilon(1e-5), rel=1e-6)
    # Gradients with z_g and bits with 2 s: squared inverse multipliers add up.
    bits = 2 * 0.05 * 500
    z_gradient = p.noise_stddev() / 0.01
    assert z_gradient**-2 + bits**-2 == pytest.approx(1.0, rel=1e-12)


def test_released_noise_has_the_stated_scales():
    params = {"a": jnp.zeros(4), "b": jnp.zeros(4)}
    rule = rules.quantile(groups=rules.per_layer({"a": 3.0, "b": 4.0}))
    _, p = made(rule, norm=5.0, params=params)
    state = p.mechanism.init(rng.root(1))
    np.testing.assert_allclose(p.mechanism.clip_norms(state), [3, 4], rtol=1e-6)
    # 5 = |(3, 4)|; 1e5 draws: standard error of a stddev 0.22%, so 1% is 4.5 s.e.
    sums = {"a": jnp.zeros(100_000), "b": jnp.zeros(100_000)}
    noisy, after = p.mechanism.update(sums, state, jnp.zeros(2))
    z_gradient = quantile.gradient_multiplier(1.0, 25.0, 2)
    for x in noisy.values():
        assert np.std(x) == pytest.approx(5 * z_gradient, rel=0.01)
    assert p.noise_stddev() == pytest.approx(5 * z_gradient, rel=1e-9)

    # With sums of zero the share is 1/2 + noise / m, so C moves by noise alone.
    def moved(seed):
        state = p.mechanism.init(rng.root(seed))
        _, after = p.mechanism.update({}, state, jnp.zeros(2))
        return jnp.log(p.mechanism.clip_norms(after) / jnp.asarray([3.0, 4.0]))

    moves = np.stack([moved(seed) for seed in range(300)])
    # 600 draws: standard error 2.9%, so 13% is 4.5 s.e.
    assert np.std(moves) == pytest.approx(0.2 * 25 / 500, rel=0.13)
    assert abs(np.corrcoef(moves.T)[0, 1]) < 0.26  # 4.5 s.e.


def test_bits_are_centred_and_bounded_by_a_half():
    clipper, _ = made("quantile", norm=1.0)
    params = {"a": jnp.zeros(1)}
    x = jnp.asarray([[0.5], [2.0], [jnp.nan], [1e30], [0.1]])
    mask = jnp.asarray([True, True, True, True, False])
    norms = jnp.ones(1)
    _, info = clipper(params, {"a": x}, mask, KEY, None, norms)
    assert quantile.within(info, mask, norms).tolist() == [0.5 - 3 * 0.5]
    for i in range(4):
        alone = jnp.arange(5) == i
        _, info = clipper(params, {"a": x}, alone, KEY, None, norms)
        assert abs(float(quantile.within(info, alone, norms)[0])) == 0.5


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="noise_multiplier=60.0 must be below 50"):
        made("quantile", z=60.0)
    rule = rules.quantile(groups=rules.per_layer())
    with pytest.raises(ValueError, match="params=None must be given"):
        made(rule)
    clipper, p = made("quantile")
    state = p.mechanism.init(rng.root(0))
    with pytest.raises(ValueError, match=r"within=None must be float32\[1\]"):
        p.mechanism.update({}, state)
    _, flat = made("flat")
    with pytest.raises(ValueError, match="tracks no clip norm"):
        flat.mechanism.update({}, flat.mechanism.init(rng.root(0)), jnp.zeros(1))
    with pytest.raises(ValueError, match=r"group_clip_norms='float32\[2\]'"):
        batch, mask = {"a": jnp.ones((1, 1))}, jnp.ones(1, bool)
        clipper({"a": jnp.ones(1)}, batch, mask, KEY, None, jnp.ones(2))
