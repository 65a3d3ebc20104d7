"""Averages that a few clients cannot move far, over a stack of messages with a mask.

| rule | what it returns | needs |
| --- | --- | --- |
| `median` | median of each coordinate | 1 |
| `trimmed_mean` | mean of each coordinate without floor(share n) on either side | 1 |
| `krum` | the message of least score | n >= 2 f + 3 |
| `multi_krum` | mean of the n - f messages of least score | n >= 2 f + 3 |
| `bulyan` | mean of the n - 4 f values nearest the median of picks | n >= 4 f + 3 |
| `norm_bound` | mean of messages clipped to the median norm | 1 |

n is the number of rows that are there (not the capacity m, so one program serves every
cohort), f that of attackers at most. A score is the sum of the squared distances to the
n - f - 2 nearest others. With fewer rows than a rule needs the round gives zero and
says so (`Info.aborted`). Ties go to the first row.

Distances come from inner products, which lose their digits where messages are short
against what they have in common; hence a centre is subtracted first. It is the median,
not the mean: attackers who send 10^6 times a message move the mean, and with it the
digits of everyone else.

None has a sensitivity, so none goes with noise. All but the median add floats up, or
choose by sums of floats, row by row: their last bits, and who wins where scores are
equal, follow the order of the rows (`link.Link.ordered`).

Dimension key: m rows.

Example::

    aggregator = chain.chain(robust.multi_krum(attackers=5))     # collect == 'stack'

References: https://arxiv.org/abs/1803.01498 (median, trimmed mean),
https://arxiv.org/abs/1703.02757 (Krum), https://arxiv.org/abs/1802.07927 (Bulyan)
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from trustml import _validate
from trustml.federated.aggregation import link

Stack = Any  # pytree of [m, ...]
Mask = Bool[Array, " m"]


def median() -> link.Link:
    """The median of each coordinate; the mean of the middle two where n is even."""

    def rule(stack, mask):
        return _median(stack, mask), mask

    return _link("robust.median()", rule, lambda f: 1, ordered=False)


def trimmed_mean(share: float) -> link.Link:
    """The mean of each coordinate without its floor(share n) ends on either side.

    Args:
      share: in [0, 0.5).
    """
    share = _validate.in_half_open_interval("share", share, 0, 0.5, "0.1 is usual")

    def rule(stack, mask):
        # The rank of every n, exact: 0.3 * 10 is 2.9999... or not, by luck.
        sizes = np.arange(mask.shape[0] + 1)
        table = jnp.asarray(np.floor(sizes * share + 1e-9), jnp.int32)
        count = _count(mask)
        cut = table[count]

        def one(leaf):
            ranks = link.rows(jnp.arange(mask.shape[0]), leaf)
            inside = (ranks >= cut) & (ranks < count - cut)
            ordered = jnp.where(inside, _sorted(leaf, mask), 0.0)
            return jnp.sum(ordered, axis=0) / _at_least_one(count - 2 * cut)

        return jax.tree.map(one, stack), mask

    return _link(f"robust.trimmed_mean({share:g})", rule, lambda f: 1)


def krum(attackers: int) -> link.Link:
    """The message that is nearest to its n - f - 2 nearest others.

    Args:
      attackers: f >= 0.
    """
    f = _attackers(attackers)

    def rule(stack, mask):
        scores = _scores(distances(stack, mask), mask, f)
        kept = jnp.arange(mask.shape[0]) == jnp.argmin(scores)
        return _mean(stack, kept & mask), kept & mask

    return _link(f"robust.krum(attackers={f})", rule, _of_krum, f)


def multi_krum(attackers: int, *, keep: int | None = None) -> link.Link:
    """The mean of the messages of least score.

    Args:
      attackers: f >= 0.
      keep: how many, at most n - f; None for n - f.
    """
    f = _attackers(attackers)
    if keep is not None:
        keep = _validate.integer_at_least("keep", keep, 1, "1 is Krum")

    def rule(stack, mask):
        scores = _scores(distances(stack, mask), mask, f)
        ranks = jnp.argsort(jnp.argsort(scores, stable=True), stable=True)
        most = _count(mask) - f
        kept = (ranks < (most if keep is None else jnp.minimum(keep, most))) & mask
        return _mean(stack, kept), kept

    return _link(f"robust.multi_krum(attackers={f})", rule, _of_krum, f)


def bulyan(attackers: int) -> link.Link:
    """The mean of the n - 4 f values next to the median of n - 2 f Krum picks.

    Krum picks one message after another, each time among those left over; a score of r
    messages counts the max(r - f - 2, 1) nearest others.

    Args:
      attackers: f >= 0.
    """
    f = _attackers(attackers)

    def rule(stack, mask):
        square = distances(stack, mask)
        picks = _count(mask) - 2 * f

        def pick(_, kept):
            left = mask & ~kept
            scores = _scores(square, left, f)
            best = jnp.arange(mask.shape[0]) == jnp.argmin(scores)
            return kept | (best & left)

        kept = lax.fori_loop(0, picks, pick, jnp.zeros_like(mask))
        middle = _median(stack, kept)
        near = picks - 2 * f

        def one(leaf, centre):
            away = jnp.where(
                link.rows(kept, leaf), jnp.abs(leaf - centre[None]), jnp.inf
            )
            order = jnp.argsort(away, axis=0, stable=True)
            values = jnp.take_along_axis(leaf, order, axis=0)
            inside = link.rows(jnp.arange(mask.shape[0]), leaf) < near
            return jnp.sum(jnp.where(inside, values, 0.0), axis=0) / _at_least_one(near)

        return jax.tree.map(one, stack, middle), kept

    return _link(f"robust.bulyan(attackers={f})", rule, lambda f: 4 * f + 3, f)


def norm_bound(l2_norm: float | None = None) -> link.Link:
    """The mean of messages clipped to a norm.

    Args:
      l2_norm: > 0; None for the median of the norms of this round.
    """
    if l2_norm is not None:
        l2_norm = _validate.positive("l2_norm", l2_norm, "None takes the median")

    def rule(stack, mask):
        norms = _norms(stack, mask)
        most = _median(norms, mask) if l2_norm is None else jnp.float32(l2_norm)
        factors = jnp.minimum(1.0, most / jnp.where(norms > 0, norms, 1.0))
        # A message too long for its norm to fit float32 counts as zero.
        factors = jnp.where(jnp.isfinite(norms), factors, 0.0)
        scaled = jax.tree.map(lambda x: x * link.rows(factors, x), stack)
        return _mean(scaled, mask), mask

    label = f"robust.norm_bound({'' if l2_norm is None else format(l2_norm, 'g')})"
    return _link(label, rule, lambda f: 1)


def distances(stack: Stack, mask: Mask) -> Float[Array, "m m"]:
    """Squared L2 distances between rows; inf to itself and to absent rows."""
    centre = _median(stack, mask)
    gram = jnp.zeros((mask.shape[0],) * 2, jnp.float32)
    for leaf, middle in zip(
        jax.tree.leaves(stack), jax.tree.leaves(centre), strict=True
    ):
        flat = jnp.where(link.rows(mask, leaf), leaf - middle[None], 0.0)
        flat = flat.reshape(mask.shape[0], -1)
        gram += jnp.matmul(flat, flat.T, precision=lax.Precision.HIGHEST)
    lengths = jnp.diagonal(gram)
    square = jnp.maximum(lengths[:, None] + lengths[None, :] - 2 * gram, 0.0)
    real = mask[:, None] & mask[None, :] & ~jnp.eye(mask.shape[0], dtype=bool)
    # inf - inf, of messages whose squares overflow, is as far as can be.
    return jnp.where(real & jnp.isfinite(square), square, jnp.inf)


def _scores(square: Float[Array, "m m"], mask: Mask, attackers: int):
    """Sum of the squared distances to the nearest others; inf where there is no row."""
    real = mask[:, None] & mask[None, :]
    ordered = jnp.sort(jnp.where(real, square, jnp.inf), axis=1)
    near = jnp.maximum(_count(mask) - attackers - 2, 1)
    inside = jnp.arange(mask.shape[0])[None, :] < near
    # The largest float32, not inf: a row that is there comes before one that is not.
    top = jnp.float32(np.finfo(np.float32).max)
    scores = jnp.minimum(jnp.sum(jnp.where(inside, ordered, 0.0), axis=1), top)
    return jnp.where(mask, scores, jnp.inf)


def _median(stack: Stack, mask: Mask) -> Stack:
    count = _count(mask)
    low, high = jnp.maximum(count - 1, 0) // 2, count // 2

    def one(leaf):
        ordered = _sorted(leaf, mask)
        # Halved before they are added: twice the largest float32 is inf.
        middle = 0.5 * ordered[low] + 0.5 * ordered[high]
        return jnp.where(count > 0, middle, 0.0)

    return jax.tree.map(one, stack)


def _sorted(leaf, mask: Mask):
    """Rows in ascending order by coordinate; those that are not there come last."""
    return jnp.sort(jnp.where(link.rows(mask, leaf), leaf, jnp.inf), axis=0)


def _mean(stack: Stack, mask: Mask) -> Stack:
    by = _at_least_one(_count(mask))

    def one(leaf):
        return jnp.sum(jnp.where(link.rows(mask, leaf), leaf / by, 0.0), axis=0)

    return jax.tree.map(one, stack)


def _norms(stack: Stack, mask: Mask) -> Float[Array, " m"]:
    total = jnp.zeros(mask.shape, jnp.float32)
    for leaf in jax.tree.leaves(stack):
        flat = jnp.where(link.rows(mask, leaf), leaf, 0.0).reshape(mask.shape[0], -1)
        total += jnp.sum(jnp.square(flat), axis=1)
    return jnp.sqrt(total)


def _count(mask: Mask):
    return jnp.sum(mask.astype(jnp.int32))


def _at_least_one(count):
    return jnp.maximum(count, 1).astype(jnp.float32)


def _attackers(attackers: int) -> int:
    return _validate.integer_at_least("attackers", attackers, 0, "a tenth is usual")


def _of_krum(attackers: int) -> int:
    return 2 * attackers + 3


def _link(
    label: str,
    rule: Callable[[Stack, Mask], tuple[Stack, Mask]],
    needed: Callable[[int], int],
    attackers: int = 0,
    *,
    ordered: bool = True,
) -> link.Link:
    least = needed(attackers)

    def server(state, message, cohort, bounds, key, info):
        del bounds, key
        mask = cohort.mask
        if mask.shape[0] < least:
            _validate.fail(
                "attackers",
                attackers,
                f"needs {least} rows, and the stack of {label} has {mask.shape[0]}",
                "lower it, or select more clients",
            )
        stack = jax.tree.map(
            lambda x: jnp.where(link.rows(mask, x), x, 0.0), message.update
        )
        update, kept = rule(stack, mask)
        short = _count(mask) < least
        update = jax.tree.map(lambda x: jnp.where(short, 0.0, x), update)
        info = info._replace(aborted=info.aborted | short, kept=kept & ~short)
        return message._replace(update=update), state, info

    return link.Link(
        "collect",
        label,
        server=server,
        collect="stack",
        robust=True,
        ordered=ordered,
    )
