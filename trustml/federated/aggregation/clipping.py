"""Clipping of a whole message to an L2 norm, fixed or following a quantile.

    message * min(1, C / ||message||_2)         over all leaves together

A tracked norm (Andrew et al. 2021) is that of `trustml.privacy.quantile`, for clients
instead of examples: each sends the bit b_k = 1[norm <= C] - 1/2 beside its message, and

    share = 1/2 + (sum_k s_k b_k + N(0, s_b^2)) / W,   C <- C exp(-eta (share - target))

One client moves the sum of bits by s_max / 2 at most, so that query has the multiplier
2 s_b / s_max, and for both releases together to cost what one with multiplier z costs,
the messages get z' = (z^-2 - (2 s_b / s_max)^-2)^(-1/2); `dp.central` sees to it.

Norms are formed after division by the sum of magnitudes, so no square overflows.

Example::

    first = clipping.clip(1.0)
    tracked = clipping.adaptive(0.1, target=0.5, bit_stddev=5.0)

References: https://arxiv.org/abs/1710.06963, https://arxiv.org/abs/1905.03871
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from trustml import _validate, rng
from trustml.federated.aggregation import link
from trustml.privacy import noise, quantile

_CURE = "choose a finite clip norm above 0"


class AdaptiveState(NamedTuple):
    """What must persist between rounds.

    Attributes:
      clip_norm: C, float32[]; private to release where the bits have noise.
      noise: `noise.NoiseState` of the bits; () without noise.
    """

    clip_norm: jax.Array
    noise: Any


def norm(update: link.Update) -> tuple[jax.Array, jax.Array]:
    """(scale, L2 norm of update / scale); float32[] each, the norm is their product.

    The second is finite just where all coordinates are, and 0 for zeros.
    """
    leaves = [x.astype(jnp.float32) for x in jax.tree.leaves(update) if x.size]
    # The sum of all |x|, which cannot overflow so; faster to find than the largest.
    least = sum((jnp.sum(jnp.abs(x * 2.0**-40)) for x in leaves), jnp.float32(0))
    # The reciprocal of the scale has to be a normal float32, too.
    scale = jnp.where(least > 0, jnp.minimum(least * 2.0**40, 2.0**126), 2.0**-100)
    squares = [jnp.sum(jnp.square(x / scale)) for x in leaves]
    return scale, jnp.sqrt(sum(squares, jnp.float32(0)))


def clipped(update: link.Update, l2_clip_norm) -> tuple[link.Update, jax.Array]:
    """(update * min(1, C / norm), norm) of one client; zeros, 0 where not finite."""
    scale, unit = norm(update)
    finite = jnp.isfinite(unit)
    allowed = l2_clip_norm / jnp.where(unit > 0, unit, 1.0)
    long = scale > allowed

    def shorten(x):
        short = x / scale.astype(x.dtype) * allowed.astype(x.dtype)
        return jnp.where(finite, jnp.where(long, short, x), 0.0)

    shorter = jax.tree.map(shorten, update)
    return shorter, jnp.where(finite, scale * unit, 0.0)


def clip(l2_clip_norm: float) -> link.Link:
    """Clips to a fixed norm.

    Formal guarantees: whatever the message holds, what leaves has an L2 norm of at most
      `l2_clip_norm`, up to float32 rounding (relative 1e-4); NaN and inf become zeros.

    Args:
      l2_clip_norm: C > 0, in units of the parameters.

    Raises:
      ValueError: when built, if C is not finite and > 0.
    """
    most = _validate.positive("l2_clip_norm", l2_clip_norm, _CURE)

    def client(state, message, memory, key, record):
        del state, key
        update, length = clipped(message.update, jnp.float32(most))
        record = record._replace(clipped=record.clipped | (length > most))
        return message._replace(update=update), memory, record

    return link.Link(
        "clip",
        f"clipping.clip({most:g})",
        client=client,
        bound=lambda state, before: most,
    )


def adaptive(
    l2_clip_norm: float,
    *,
    target: float = 0.5,
    learning_rate: float = 0.2,
    bit_stddev: float,
) -> link.Link:
    """Clips to a norm that follows a quantile of the clients' norms.

    Args:
      l2_clip_norm: C of the first round, > 0.
      target: share of clients whose norm should be below C, in (0, 1).
      learning_rate: eta > 0, of log C.
      bit_stddev: s_b, absolute, on the sum of bits; a twentieth of the expected cohort
        is usual. 0 for exact bits, which a chain with noise refuses.

    Raises:
      ValueError: when built, for a bad argument.
    """
    first = _validate.positive("l2_clip_norm", l2_clip_norm, _CURE)
    target = _validate.in_open_interval("target", target, 0, 1, "0.5 is usual")
    eta = _validate.positive("learning_rate", learning_rate, "0.2 is usual")
    cure = "a twentieth of the expected cohort is usual"
    stddev = _validate.non_negative("bit_stddev", bit_stddev, cure)

    def init(like, root, bounds) -> AdaptiveState:
        del like, bounds
        kept = noise.init(_stream(root)) if stddev else ()
        return AdaptiveState(jnp.float32(first), kept)

    def client(state, message, memory, key, record):
        del key
        update, length = clipped(message.update, state.clip_norm)
        below = length <= state.clip_norm
        record = record._replace(clipped=~below)
        bits = below.astype(jnp.float32) - 0.5
        return link.Message(update, bits), memory, record

    def server(state, message, cohort, bounds, key, info):
        del bounds, key
        released, kept = message.bits, state.noise
        if stddev:
            step = rng.step_key(kept.root, kept.step)
            released = noise.add({"bits": released}, step, stddev)["bits"]
            kept = noise.NoiseState(kept.root, kept.step + 1)
        share = 0.5 + released / cohort.expected_weight
        moved = quantile.followed(state.clip_norm, share, target, eta)
        return message._replace(bits=()), AdaptiveState(moved, kept), info

    def bound(state, before):
        del before
        return first if state is None else state.clip_norm

    return link.Link(
        "clip",
        f"clipping.adaptive({first:g}, bit_stddev={stddev:g})",
        init=init,
        client=client,
        server=server,
        bound=bound,
        bit_stddev=stddev,
    )


def _stream(root):
    return rng.stream(root, "bits") if isinstance(root, rng.Root) else root
