"""Clip norms that follow a quantile of the gradients' norms, at the plan's own price.

With the sums of a step the bits b_i = 1[norm_i <= C_t] are released, centred:

    share = 1/2 + (sum_i mask_i (b_i - 1/2) + N(0, s^2)) / m       s = bit_stddev m
    C_{t+1} = C_t exp(-eta (share - target))                   (Andrew et al. 2019)

Centred, one example moves the sum of bits by 1/2, so this query has noise multiplier
2 s; with G groups of leaves there are G bits. For the pair to cost what one Gaussian
release with multiplier z costs, the gradients get

    z_gradient = (z^-2 - G (2 s)^-2)^(-1/2)

and noise of stddev z_gradient |C_t|_2. C_t comes from released values alone, and z does
not depend on it, so the steps compose as those of a fixed norm do. m is the expected
batch size, a public constant; bits are added up over microbatches like gradients are.

Dimension key: G groups of leaves, each with a norm of its own.

Example::

    clipper = clipping.clipped_grad(loss, l2_clip_norm=1.0, rule='quantile')
    made = plan.make(clipper, sampler, ...)
    state = made.mechanism.init(rng.root())
    norms = made.mechanism.clip_norms(state)                        # float32[G]
    sums, info = clipper(params, batch, mask, key, ids, norms)
    within = quantile.within(info, mask, norms)
    noisy, state = made.mechanism.update(sums, state, within)

References: https://arxiv.org/abs/1905.03871
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trustml import _validate, rng
from trustml.privacy import noise, rules

# Norms stay where their squares fit float32.
_LOWEST, _HIGHEST = 1e-10, 1e10


class QuantileState(NamedTuple):
    """What must persist between steps.

    Attributes:
      noise: keys and counter, see `noise.NoiseState`.
      clip_norms: C_t of every group, float32[G]; private to release.
    """

    noise: noise.NoiseState
    clip_norms: jax.Array


def within(info, mask: jax.Array, clip_norms: jax.Array) -> jax.Array:
    """sum_i mask_i (1[norm_i <= C] - 1/2) of every group, float32[G]. NOT private.

    Args:
      info: `clipping.ClipInfo` of the batch.
      mask: bool[B].
      clip_norms: those the batch was clipped to, float32[G].
    """
    bits = info.group_norms_per_example <= clip_norms[None, :]
    centred = jnp.where(mask[:, None], bits.astype(jnp.float32) - 0.5, 0.0)
    return jnp.sum(centred, axis=0)


def gradient_multiplier(z: float, bit_stddev: float, num_groups: int) -> float:
    """z_gradient, so that gradients and bits together cost one release with z.

    Args:
      z: noise multiplier of the pair.
      bit_stddev: s > 0, absolute, on the sum of bits.
      num_groups: G.

    Raises:
      ValueError: if the bits alone cost more than z allows.
    """
    left = z**-2 - num_groups * (2 * bit_stddev) ** -2
    if left <= 0:
        most = 2 * bit_stddev / math.sqrt(num_groups)
        _validate.fail(
            "privacy.noise_multiplier",
            z,
            f"must be below {most:.4g}, what the bits of the clip norm cost with noise "
            f"{bit_stddev:g}",
            "raise bit_stddev of the quantile rule or the batch size",
        )
    return left**-0.5


def followed(
    clip_norms: jax.Array, share: jax.Array, target: float, learning_rate: float
) -> jax.Array:
    """C exp(-eta (share - target)), kept where squares of norms fit float32."""
    moved = clip_norms * jnp.exp(-learning_rate * (share - target))
    return jnp.clip(moved, _LOWEST, _HIGHEST)


def mechanism(
    adapt: rules.Adapt,
    *,
    multipliers: float | Iterable[float],
    clip_norms: Iterable[float],
    expected_batch_size: float,
) -> noise.Mechanism:
    """Gaussian noise whose scale follows the tracked norms, and the norms' own update.

    Args:
      adapt: target, learning rate and noise of the bits; of the clipper's rule.
      multipliers: z_gradient, of all steps or of each.
      clip_norms: C_0 of every group.
      expected_batch_size: m.

    Returns:
      Mechanism whose update takes `within` (of this module) as third argument.
    """
    scales = noise.stddevs(multipliers)
    first = np.asarray(list(clip_norms), np.float32)
    bit_stddev = adapt.bit_stddev * expected_batch_size

    def init(root) -> QuantileState:
        return QuantileState(noise.init(root), jnp.asarray(first))

    def update(sums, state: QuantileState, within=None):
        if within is None or within.shape != first.shape:
            _validate.fail(
                "within",
                None if within is None else tuple(within.shape),
                f"must be float32[{len(first)}]",
                "pass quantile.within(info, mask, clip_norms), summed over the batch",
            )
        key = rng.step_key(state.noise.root, state.noise.step)
        norms = state.clip_norms
        whole = jnp.sqrt(jnp.sum(jnp.square(norms)))
        scale = noise.at_step(scales, state.noise.step) * whole
        noisy = noise.add(sums, key, scale)
        bits = noise.add({"bits of the clip norms": within}, key, bit_stddev)
        (released,) = bits.values()
        share = 0.5 + released / expected_batch_size
        moved = followed(norms, share, adapt.target, adapt.learning_rate)
        after = noise.NoiseState(state.noise.root, state.noise.step + 1)
        return noisy, QuantileState(after, moved)

    return noise.Mechanism(init, update, lambda state: state.clip_norms)
