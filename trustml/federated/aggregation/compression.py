"""Fewer bits for a message: what the server decodes is what goes on along the chain.

| link | what is sent | bits up | raises the norm |
| --- | --- | --- | --- |
| `quantise` | b-bit levels between -M and M, rounded at random | b d + 32 | yes |
| `top_k` | the k largest coordinates | k (32 + ceil(log2 d)) | with memory |
| `sign` | signs, and the mean absolute value | d + 32 | with memory |
| `drive` | signs of the rotated message, and a scale | 2^j + 32 | if unbiased |

d coordinates of all leaves together, M = max|message|, 2^j the power of two above d.
`quantise` is unbiased. `top_k` and `sign` are not; their error is kept by the client
and added to its next message (error feedback), which is state of the client and makes
the message longer than it was clipped to: under noise, clip again.

The random rotation is H D, D random signs and H the Walsh-Hadamard matrix over 2^(j/2)
(the seed is known to both sides, hence free). It spreads a message evenly: rounding
errors fall from d M^2 to about |x|^2 log d.

Example::

    chain.chain(clipping.clip(1.0), compression.quantise(4), clipping.clip(1.0))

References: https://arxiv.org/abs/1611.00429 (stochastic rounding after a rotation),
https://arxiv.org/abs/1901.09847 (error feedback), https://arxiv.org/abs/2105.08339
(DRIVE: scale |x|^2 / |Rx|_1 for an unbiased estimate, |Rx|_1 / d for the least error).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import flatten_util
from jaxtyping import Array, Float

from trustml import _validate
from trustml.federated.aggregation import link

Vector = Float[Array, " d"]


def quantise(bits: int, *, rotate: bool = False) -> link.Link:
    """Every coordinate becomes one of 2^bits levels, at random and without bias.

    With u = (x + M) / (2 M) (2^bits - 1) it is floor(u) or floor(u) + 1, the latter
    with chance u - floor(u); M is 32 bits more.

    Args:
      bits: 1 to 16.
      rotate: rotate at random before, and back after.
    """
    bits = _validate.integer_at_least("bits", bits, 1, "8 is usual")
    if bits > 16:
        _validate.fail("bits", bits, "must be at most 16", "send float32 instead")
    top = float(2**bits - 1)

    def estimate(x: Vector, key) -> Vector:
        most = jnp.max(jnp.abs(x))
        by = jnp.where(most > 0, most, 1.0)
        u = (x / by + 1) * (top / 2)
        low = jnp.floor(u)
        up = jax.random.uniform(key, x.shape, jnp.float32) < u - low
        level = jnp.clip(low + up.astype(jnp.float32), 0.0, top)
        return jnp.where(most > 0, (level * (2 / top) - 1) * most, 0.0)

    def client(state, message, memory, key, record):
        del state
        x, unravel = flatten_util.ravel_pytree(message.update)
        if rotate:
            signs, rounding = jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)
            turned, back = rotation(x, signs)
            y, sent = back(estimate(turned, rounding)), turned.size
        else:
            y, sent = estimate(x, key), x.size
        record = record._replace(bits_up=jnp.float32(bits * sent + 32))
        return message._replace(update=unravel(y)), memory, record

    label = f"compression.quantise({bits})"
    return link.Link("compress", label, client=client, bound=unknown)


def top_k(share: float, *, error_feedback: bool = True) -> link.Link:
    """Keeps the ceil(share d) coordinates of largest absolute value.

    Args:
      share: in (0, 1].
      error_feedback: whether the client adds what it left out to its next message.
    """
    share = _share(share)

    def compress(x: Vector) -> tuple[Vector, float]:
        count = math.ceil(share * x.size)
        _, kept = jax.lax.top_k(jnp.abs(x), count)
        position = math.ceil(math.log2(max(x.size, 2)))
        return jnp.zeros_like(x).at[kept].set(x[kept]), count * (32 + position)

    return _biased(f"compression.top_k({share:g})", compress, error_feedback)


def sign(*, error_feedback: bool = True) -> link.Link:
    """Signs, times the mean absolute value; 0 counts as positive.

    Args:
      error_feedback: whether the client adds its error to its next message.
    """

    def compress(x: Vector) -> tuple[Vector, float]:
        scale = jnp.mean(jnp.abs(x))
        return jnp.where(x >= 0, scale, -scale), x.size + 32

    return _biased("compression.sign()", compress, error_feedback)


def drive(*, unbiased: bool = True) -> link.Link:
    """One bit for a coordinate of the randomly rotated message, and a scale.

    Unbiased holds for uniform rotations; with this one the bias is small but not 0.

    Args:
      unbiased: scale |x|^2 / |Rx|_1, else |Rx|_1 / 2^j, which has less error.
    """

    def client(state, message, memory, key, record):
        del state
        x, unravel = flatten_util.ravel_pytree(message.update)
        turned, back = rotation(x, key)
        most = jnp.max(jnp.abs(turned))
        y = turned / jnp.where(most > 0, most, 1.0)
        total = jnp.sum(jnp.abs(y))
        if unbiased:
            scale = jnp.sum(jnp.square(y)) / jnp.where(total > 0, total, 1.0)
        else:
            scale = total / y.size
        scale = scale * most
        record = record._replace(bits_up=jnp.float32(y.size + 32))
        update = unravel(back(jnp.where(y >= 0, scale, -scale)))
        return message._replace(update=update), memory, record

    bound = unknown if unbiased else link.unchanged
    label = "compression.drive()" if unbiased else "compression.drive(unbiased=False)"
    return link.Link("compress", label, client=client, bound=bound)


def rotation(x: Vector, key) -> tuple[Array, Callable[[Array], Array]]:
    """(H D x, padded with zeros to a power of two, and the way back)."""
    size = 1 << max(x.size - 1, 0).bit_length()
    signs = jax.random.rademacher(key, (size,), jnp.float32)

    def back(y):
        return (hadamard(y) * signs)[: x.size]

    return hadamard(jnp.pad(x, (0, size - x.size)) * signs), back


def hadamard(x: Vector) -> Vector:
    """The orthonormal Walsh-Hadamard transform of 2^j coordinates; its own inverse."""
    half = 1
    while half < x.size:
        pairs = x.reshape(-1, 2, half)
        plus, minus = pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]
        x = jnp.stack([plus, minus], axis=1).reshape(-1)
        half *= 2
    return x * (x.size**-0.5)


def unknown(state, bound) -> None:
    """The `bound` of a link that may raise the norm."""
    del state, bound
    return None


def _biased(label: str, compress, error_feedback: bool) -> link.Link:
    """A link that keeps `message - compress(message)` for the next time."""

    def memory(like):
        if not error_feedback:
            return ()
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), like)

    def client(state, message, memory, key, record):
        del state, key
        update = message.update
        if error_feedback:
            update = jax.tree.map(jnp.add, update, memory)
        x, unravel = flatten_util.ravel_pytree(update)
        y, bits = compress(x)
        if error_feedback:
            memory = unravel(x - y)
        record = record._replace(bits_up=jnp.float32(bits))
        return message._replace(update=unravel(y)), memory, record

    return link.Link(
        "compress",
        label,
        memory=memory,
        client=client,
        bound=unknown if error_feedback else link.unchanged,
    )


def _share(share: float) -> float:
    share = _validate.positive("share", share, "0.01 is usual")
    if share > 1:
        _validate.fail("share", share, "must be at most 1", "0.01 is usual")
    return share
