"""The trainer under audit; micro-batches clipped as one; noise over bands of steps."""

import math

import dp_accounting
import jax
import jax.numpy as jnp
import numpy as np

from tests.audit import gate
from tests.privacy.checks import common
from trustml import rng
from trustml.privacy import clipping, correlated_noise, edp_sgd, plan, sampling


def audit(seed):
    """The audit gate, small: 3,000 canaries a side at epsilon = 4."""
    made = gate.make(epsilon=4.0, per_side=3_000)
    found = gate.audit(made, seed)
    promised = min(4.0, made.plan.epsilon())
    # A bound at 99.99% in place of 99%: no false alarm over many seeds.
    inside, outside = (found.units[:, of].sum(0) for of in
                       (found.included, ~found.included))  # fmt: skip
    bound = gate.lower_bounds.gaussian(
        inside,
        outside,
        threshold=1.5,
        delta=gate.DELTA,
        alpha=1e-4,
        independent_scores=True,
    )
    assert bound.epsilon <= promised, f"{bound.epsilon:.3g} above {promised:.3g}"
    assert bound.epsilon >= 0.5 * promised, f"only {bound.epsilon:.3g} of it leaks"
    assert found.variance_p > 1e-7, f"variance of canaries out: {found.variance_p:.1g}"


def micro_batches(seed):
    """eDP-SGD: what one example does to its micro-batch, and the event it pays with."""
    size, norm = 4, 0.5
    clipper = edp_sgd.clipped_grad(
        lambda params, example, key: jnp.dot(params["w"], example["x"]),
        l2_clip_norm=norm,
        group_size=size,
        rule="flat",
    )
    rows = np.random.default_rng(seed).normal(size=(400, size, 3)) * 10.0
    rows[::2, :-1], rows[::2, -1] = 1.0, -1e4  # the worst: one against all others
    params, key = {"w": jnp.zeros(3)}, jax.random.key(seed)

    @jax.jit
    @jax.vmap
    def moved(x):
        def closed(mask):
            sums, _ = clipper({"w": params["w"]}, {"x": x}, mask, key)
            return clipper.close(sums)[0]["w"]

        every = jnp.ones(size, bool)
        return jnp.linalg.norm(closed(every) - closed(every.at[-1].set(False)))

    with jax.debug_key_reuse(False):
        far = float(jnp.max(moved(jnp.asarray(rows, jnp.float32))))
    promised = clipper.sensitivity(common.ADD)
    assert far <= promised * (1 + 1e-4), f"moved by {far:.4g}, promised {promised:.4g}"
    assert far >= 0.99 * promised, f"moved by {far:.4g} only of {promised:.4g}"
    sampler = edp_sgd.micro_batches(
        2000, 20, group_size=size, physical_batch_size=4, seed=seed
    )
    made = plan.make(
        clipper,
        sampler,
        steps=100,
        delta=common.DELTA,
        relation=common.ADD,
        noise_multiplier=1.5,
        accountant="rdp",
    )
    direct = dp_accounting.rdp.RdpAccountant()
    gaussian = dp_accounting.GaussianDpEvent(1.5 / 2)
    direct.compose(dp_accounting.PoissonSampledDpEvent(0.01, gaussian), 100)
    same = math.isclose(made.epsilon(), direct.get_epsilon(common.DELTA), rel_tol=1e-6)
    assert same, "epsilon of eDP-SGD is not that of its event"
    (physical,) = sampler.physical(seed)
    drawn = np.sort(physical.indices[physical.mask])
    assert np.array_equal(drawn, sampler.draw(seed)), "slots lose or repeat examples"


def correlated(seed):
    """BandMF: T Y is white noise of the promised scale; batches keep b steps apart."""
    bands, width, z, clip = 3, 20_000, 1.5, 0.4
    clipper = clipping.clipped_grad(common.silent, l2_clip_norm=clip)
    params, strategy = {"w": jnp.zeros(width)}, correlated_noise.optimize(9, bands)
    sampler = sampling.cyclic_poisson(
        60, 6, bands=bands, physical_batch_size=8, seed=seed
    )
    made = plan.make(
        clipper,
        sampler,
        steps=9,
        delta=common.DELTA,
        relation=common.ADD,
        noise_multiplier=z,
        accountant="rdp",
        params=params,
        strategy=strategy,
    )
    state, released = made.mechanism.init(rng.root(seed)), []
    for _ in range(9):
        noisy, state = made.mechanism.update(params, state)
        released.append(np.asarray(noisy["w"], np.float64))
    c = strategy.coefficients
    white = [
        sum(c[k] * released[t - k] for k in range(min(bands, t + 1))) for t in range(9)
    ]
    for z_t in white:
        common.assert_stddev(z_t, z * clip * math.sqrt(sum(x * x for x in c)))
    between = np.corrcoef(np.stack(white))[np.triu_indices(9, 1)]
    assert np.abs(between).max() < 6 / math.sqrt(width), "T Y is correlated"
    for start in range(6):
        near = np.concatenate([sampler.draw(start + k) for k in range(bands)])
        assert len(set(near.tolist())) == len(near), "an example within b steps again"
    direct = dp_accounting.rdp.RdpAccountant()
    gaussian = dp_accounting.GaussianDpEvent(z)
    direct.compose(dp_accounting.PoissonSampledDpEvent(0.3, gaussian), 3)
    same = math.isclose(made.epsilon(), direct.get_epsilon(common.DELTA), rel_tol=1e-6)
    assert same, "epsilon of BandMF is not that of its event"
