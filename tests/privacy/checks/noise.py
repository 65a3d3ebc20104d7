"""Noise as it is released: its scale, its law, its keys; and that of tracked norms."""

import math

import dp_accounting
import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from tests.privacy.checks import common
from trustml import rng
from trustml.privacy import clipping, noise, plan, quantile, sampling


def _noise_of(num_devices, seed, width):
    """Released noise [steps, leaves, width] in units of the sum, and what it should be.

    Three microbatches a step, a batch that is empty, and a schedule.
    """
    leaves = {name: jnp.zeros(width) for name in ("a", "b")}
    columns = {"x": np.zeros((40, 1), np.float32)}
    relative = np.array([1.0, 0.5, 0.5, 2.0, 1.0, 1.0])
    t = common.trainer(
        common.silent,
        leaves,
        columns,
        seed=seed,
        mean=12,
        slots=4 // num_devices,
        noise_multiplier=0.7,
        num_devices=num_devices,
        schedule=relative,
    )
    state, rows = t.state, []
    for at in range(4):
        for physical in t.sampler.physical(at):
            if at == 2:
                nobody = np.zeros_like(physical.mask)
                physical = physical._replace(mask=nobody, trips=0)
            state, released = t.release(state, physical)
        rows.append([x * t.plan.expected_batch_size for x in released.values()])
    scales = [t.plan.noise_stddev(at) for at in range(4)]
    np.testing.assert_allclose(scales, 0.7 * 0.4 * relative[:4], rtol=1e-6)
    return np.array(rows, np.float64), np.array(scales)


def released_noise(seed):
    """Noise of the plan's scale, Gaussian, independent over leaves and steps."""
    width = 20_000
    noise_SLW, scales_S = _noise_of(1, seed, width)
    for leaves, scale in zip(noise_SLW, scales_S, strict=True):
        for leaf in leaves:
            common.assert_stddev(leaf, scale)
    unit = (noise_SLW / scales_S[:, None, None]).reshape(-1, width)
    off = np.corrcoef(unit)[np.triu_indices(len(unit), 1)]
    assert np.abs(off).max() < 6 / math.sqrt(width), "correlated over leaves or steps"
    ordered = np.sort(unit.ravel())
    ranks = np.arange(1, ordered.size + 1) / ordered.size
    distance = np.max(np.abs(special.ndtr(ordered) - ranks))
    p = special.kolmogorov(math.sqrt(ordered.size) * distance)
    assert p > 1e-7, f"not Gaussian, p = {p:.1g}"
    # float32 draws 2**23 values: of 160,000 about 1% meet. bfloat16 draws 128.
    share = len(np.unique(ordered.astype(np.float32))) / ordered.size
    assert share > 0.9, f"only {share:.1%} of the draws differ"


def released_noise_on_two_devices(seed):
    """One draw for all devices: the scale is that of one device."""
    noise_SLW, scales_S = _noise_of(2, seed, 5_000)
    for leaves, scale in zip(noise_SLW, scales_S, strict=True):
        common.assert_stddev(leaves, scale)


def tracked_norms(seed):
    """Measured noise of gradients and of bits together costs what the event says."""
    clipper = clipping.clipped_grad(common.silent, l2_clip_norm=2.0, rule="quantile")
    sampler = sampling.poisson(1000, 100, physical_batch_size=50, seed=seed)
    z = 8.0  # where the bits take most of the budget, so that it shows
    made = plan.make(
        clipper, sampler, steps=4, delta=common.DELTA, relation=common.ADD,
        noise_multiplier=z, accountant="rdp",
    )  # fmt: skip
    count = 8_000
    words = np.random.default_rng(seed).integers(0, 2**32, (count, 2, 2), np.uint32)
    roots = rng.Root(jnp.asarray(words), jnp.zeros(count, bool))
    states = quantile.QuantileState(
        noise.NoiseState(roots, jnp.zeros(count, jnp.int32)),
        jnp.broadcast_to(made.mechanism.clip_norms(made.mechanism.init(rng.root(0))),
                         (count, 1)),
    )  # fmt: skip
    zeros = {"w": jnp.zeros((count, 4))}
    noisy, after = jax.jit(jax.vmap(made.mechanism.update))(
        zeros, states, jnp.zeros((count, 1))
    )
    common.assert_stddev(noisy["w"], made.noise_stddev())
    moves = np.log(np.asarray(after.clip_norms, np.float64) / 2.0).ravel()
    bit_stddev = np.std(moves / 0.2) * 100
    # 8,000 bits: 0.8% standard error of their stddev; their share of z^-2 is 0.64.
    total = (made.noise_stddev() / 2.0) ** -2 + (2 * bit_stddev) ** -2
    off = total / z**-2 - 1
    assert abs(off) < 6 * 2 * 0.64 * 0.008, f"the pair costs {off:+.0%}"
    charged = made.epsilon()
    sampled = dp_accounting.PoissonSampledDpEvent(0.1, dp_accounting.GaussianDpEvent(z))
    assert math.isclose(charged, common.rdp(common.ADD, sampled, 4), rel_tol=1e-6)


def bits(seed):
    """One example moves the sum of bits by at most 1/2, a masked one by nothing."""
    generator = np.random.default_rng(seed)
    norms = np.exp(generator.normal(size=6)).astype(np.float32)[:, None]
    blank = jnp.zeros(6)
    info = clipping.ClipInfo(blank, blank, jnp.zeros(6, bool), jnp.asarray(norms))
    within = jnp.ones(1)
    nobody = quantile.within(info, jnp.zeros(6, bool), within)
    assert float(nobody[0]) == 0.0, "masked examples count"
    for i in range(6):
        alone = quantile.within(info, jnp.arange(6) == i, within)
        assert abs(float(alone[0])) <= 0.5, "one example moves the sum by more"
    everyone = float(quantile.within(info, jnp.ones(6, bool), within)[0])
    assert everyone == np.sum(norms <= 1) - 3.0
