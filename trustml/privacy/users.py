"""A user as the unit of privacy: one clipped contribution for all that is theirs.

    L_u = (1/n_u) sum_{i of user u} loss_i,     g_clip = sum_u grad L_u min(1, C/||.||)

The "example" that is sampled, clipped and counted is a user's bundle: at most k of the
user's examples, padded to k, with a mask. So nothing but the bundle is new: `group`
makes bundles of columns, `loss` the loss of one bundle, `clipped_grad` and `sampler`
say that the unit is a user, and a plan refuses one without the other. Batch sizes,
rates and N then count users, and delta is to be well below 1 / number of users.

Which k examples of a user stand for them depends on that user's examples alone, or else
one user could change what another one contributes. To cap users by dropping examples
at random from the whole data set, or to balance their number over users, does not keep
that.

Dimension key: N examples, U users, k examples of a bundle at most.

Example::

    grouped = users.group(train, author, max_examples=16)
    clipper = users.clipped_grad(task.loss, l2_clip_norm=1.0)
    sampler = users.sampler(sampling.poisson(len(grouped.ids), 128, ...))
    made = plan.make(clipper, sampler, ...)                # ... for each user
    for physical in sampler.physical(step):
        batch = batches.gather(grouped.columns, physical.indices, physical.mask)

References: https://arxiv.org/abs/1710.06963 (user-level DP-SGD).
"""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped

from trustml import _validate
from trustml.data import batches
from trustml.privacy import clipping, sampling

MASK = "user_mask"
REDUCTIONS = ("mean", "sum")


class Grouped(NamedTuple):
    """Bundles of all users.

    Attributes:
      columns: name -> [U, k, ...], zeros where there is no example, and
        `user_mask` -> bool[U, k]. The columns of a data set whose examples are users.
      ids: the users, sorted, [U].
      lengths: how many examples each of them has, before the cut; int64[U]. NOT
        private.
    """

    columns: dict[str, np.ndarray]
    ids: np.ndarray
    lengths: np.ndarray


def group(
    columns: batches.Columns,
    user_ids: Shaped[np.ndarray, " N"],
    *,
    max_examples: int,
    seed: int = 0,
) -> Grouped:
    """Bundles of at most `max_examples` examples, one for each user.

    Of a user with more, a uniform subset is kept, drawn from (seed, that user's id) and
    in the order of the rows. It takes U k rows of memory.

    Args:
      columns: name -> [N, ...].
      user_ids: whose each example is; integers or strings.
      max_examples: k >= 1.
      seed: another one keeps other examples.

    Raises:
      ValueError: naming field, value, bound and cure.
    """
    most = _validate.integer_at_least("max_examples", max_examples, 1, "16 is usual")
    seed = _validate.integer_at_least("seed", seed, 0)
    users, size = np.asarray(user_ids), batches.size(columns)
    if users.shape != (size,) or users.dtype.kind not in "iuUS":
        _validate.fail(
            "user_ids",
            f"{users.dtype}{list(users.shape)}",
            f"must be integers or strings, one for each of the {size} examples",
            "name the user of every example",
        )
    if not size:
        _validate.fail("columns", 0, "holds no example", "load some data")
    if MASK in columns:
        bound = "is the name of the mask within a user's bundle"
        _validate.fail("columns", MASK, bound, "rename the column")
    ids, of_row, lengths = np.unique(users, return_inverse=True, return_counts=True)
    order, ends = np.argsort(of_row, kind="stable"), np.cumsum(lengths)
    rows = np.zeros((len(ids), most), np.int64)
    mask = np.arange(most) < lengths[:, None]
    for user, (end, length) in enumerate(
        zip(ends.tolist(), lengths.tolist(), strict=True)
    ):
        own = order[end - length : end]
        if length > most:
            own = own[_chosen(seed, ids[user], length, most)]
        rows[user, : len(own)] = own
    bundles = batches.gather(columns, rows, mask)
    return Grouped(bundles | {MASK: mask}, ids, lengths)


def loss(
    loss_fn: Callable[[Any, Any, Any], jax.Array], *, reduction: str = "mean"
) -> Callable[[Any, Any, Any], jax.Array]:
    """The loss of one user, from the loss of one example.

    Example number i of a bundle has the key fold_in(key, i). Padding contributes
    exactly 0, whatever it holds.

    Args:
      loss_fn: (params, example, key) -> float32[]; one example, no batch axis.
      reduction: 'mean' over the user's examples, or 'sum'; either is clipped after.

    Returns:
      (params, user, key) -> float32[]; user: name -> [k, ...] with `user_mask`, a row
      of `Grouped.columns`; 0 for a user without an example.

    Raises:
      ValueError: when built, for another reduction; when traced, without a mask.
    """
    _validate.one_of("reduction", reduction, REDUCTIONS)

    def of_user(params, user, key):
        if MASK not in user:
            _validate.fail(
                "columns", sorted(user), f"have no {MASK!r}", "take them from group"
            )
        mask = user[MASK]
        slots = jnp.arange(mask.shape[0])
        # Padding takes the content of a real example, at weight 0: 0 * NaN is NaN.
        rows = jnp.where(mask, slots, jnp.argmax(mask))
        examples = {name: x[rows] for name, x in user.items() if name != MASK}
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, slots)
        losses = jax.vmap(loss_fn, (None, 0, 0))(params, examples, keys)
        total = jnp.sum(jnp.where(mask, losses.astype(jnp.float32), 0.0))
        if reduction == "sum":
            return total
        return total / jnp.maximum(jnp.sum(mask.astype(jnp.float32)), 1.0)

    return of_user


def clipped_grad(
    loss_fn: Callable[[Any, Any, Any], jax.Array],
    *,
    reduction: str = "mean",
    **options: Any,
) -> clipping.ClippedGrad:
    """`clipping.clipped_grad` of `loss`: one clipped gradient for each user.

    Formal guarantees: those of `clipping.clipped_grad`, for adding, removing or
      replacing all examples of one user at once. A user with a NaN or inf anywhere
      contributes exactly 0.

    Args:
      loss_fn: (params, example, key) -> float32[]; of one example, not of a user.
      reduction: see `loss`.
      **options: of `clipping.clipped_grad`; rows, there and in `ClipInfo`, are users.

    Raises:
      ValueError: as `clipping.clipped_grad` does.
    """
    clipper = clipping.clipped_grad(loss(loss_fn, reduction=reduction), **options)
    return dataclasses.replace(clipper, privacy_unit="user")


def sampler(base: sampling.Sampler) -> sampling.Sampler:
    """`base`, drawing users: its ids are rows of `Grouped.columns`."""

    def reseed(seed: int, secret: bool = False) -> sampling.Sampler:
        return sampler(base.reseed(seed, secret))

    return base._replace(privacy_unit="user", reseed=reseed)


def _chosen(seed: int, user: Any, length: int, count: int) -> np.ndarray:
    """`count` of `length` positions, ascending, from the user's own random numbers."""
    digest = hashlib.sha256(f"trustml.users:{seed}:{user}".encode()).digest()
    generator = np.random.Generator(
        np.random.Philox(key=int.from_bytes(digest[:16], "big"))
    )
    return np.sort(generator.choice(length, count, replace=False))
