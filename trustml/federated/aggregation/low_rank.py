"""Matrices sent as two thin factors (PowerSGD), with memory of error and factor.

    P = orthonormal(M Q),   Q' = M^T P,   the server decodes P Q'^T = P P^T M

M is the message plus the client's last error; Q is the client's last Q', so that one
power iteration a round follows the leading directions. A leaf of two or more axes is a
matrix [first axis, the others]; vectors, and matrices that would not get smaller, are
sent as they are. P P^T is a projection: without the error the norm would not rise.

Example::

    chain.chain(low_rank.power_sgd(rank=2))

References: https://arxiv.org/abs/1905.13727 (where the factors of all workers are
averaged between the two products; here each client compresses for itself).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trustml import _validate
from trustml.federated.aggregation import compression, link


class PowerMemory(NamedTuple):
    """What one client keeps between its rounds.

    Attributes:
      error: what was not sent, like the message.
      factors: Q of every leaf that is a matrix, float32[columns, rank]; () elsewhere.
    """

    error: Any
    factors: list[Any]


def power_sgd(rank: int) -> link.Link:
    """Rank-`rank` approximations of matrices, with error feedback.

    Args:
      rank: >= 1.
    """
    rank = _validate.integer_at_least("rank", rank, 1, "2 is usual")

    def memory(like) -> PowerMemory:
        error = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), like)
        shapes = [_matrix(leaf.shape, rank) for leaf in jax.tree.leaves(like)]
        factors = [() if s is None else _start(s[1], rank) for s in shapes]
        return PowerMemory(error, factors)

    def client(state, message, memory, key, record):
        del state, key
        update = jax.tree.map(jnp.add, message.update, memory.error)
        leaves, treedef = jax.tree.flatten(update)
        sent, factors, numbers = [], [], 0
        for leaf, factor in zip(leaves, memory.factors, strict=True):
            shape = _matrix(leaf.shape, rank)
            if shape is None:
                sent.append(leaf)
                factors.append(())
                numbers += leaf.size
                continue
            low, factor = _iterate(leaf.reshape(shape), factor)
            sent.append(low.reshape(leaf.shape))
            factors.append(factor)
            numbers += rank * sum(shape)
        decoded = treedef.unflatten(sent)
        error = jax.tree.map(jnp.subtract, update, decoded)
        record = record._replace(bits_up=jnp.float32(32 * numbers))
        message = message._replace(update=decoded)
        return message, PowerMemory(error, factors), record

    return link.Link(
        "compress",
        f"low_rank.power_sgd(rank={rank})",
        memory=memory,
        client=client,
        bound=compression.unknown,
    )


def _matrix(shape: tuple[int, ...], rank: int) -> tuple[int, int] | None:
    """The matrix that a leaf is, if its factors are smaller; None otherwise."""
    if len(shape) < 2:
        return None
    rows, columns = shape[0], int(np.prod(shape[1:]))
    return (rows, columns) if rank * (rows + columns) < rows * columns else None


def _start(columns: int, rank: int) -> jax.Array:
    """The first Q: fixed normals, the same for every client."""
    drawn = np.random.default_rng(0).standard_normal((columns, rank))
    return jnp.asarray(drawn, jnp.float32)


def _iterate(matrix: jax.Array, factor: jax.Array) -> tuple[jax.Array, jax.Array]:
    def times(a, b):
        return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)

    # A factor that has died out (a message of zeros) starts again from the first one.
    alive = jnp.any(factor != 0)
    factor = jnp.where(alive, factor, _start(*factor.shape))
    left, _ = jnp.linalg.qr(times(matrix, factor))
    right = times(matrix.T, left)
    return times(left, right.T), right
