"""Noise floor of a gap: how large it is where groups do not matter.

A largest minus a smallest rate is never negative, so it is above zero by chance alone,
the more the smaller groups are. The floor is its law under shuffled group labels: sizes
of groups and the table of (label, guess) stay, who is in which group is drawn anew. On
counts this is one multivariate hypergeometric draw a replicate; rows are not touched.
It speaks of parity of everything at once: guesses, labels and errors.

On COMPAS with six groups of race, two of them of 32 and 18 people, the demographic
parity gap under no effect is 0.152 on average and its 95% quantile 0.299
(`tests/fairness/intervals_test.py`).

Example::

    from trustml.fairness import floors, gaps

    floor = floors.floor(0, cells, gaps.demographic_parity_difference)
    floor.mean, floor.high, floor.p_value
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trustml import _validate
from trustml.fairness import counts

_MOST = 10**9  # examples that NumPy's hypergeometric law can deal out


class Floor(NamedTuple):
    """What a gap is like where groups do not matter; arrays of its shape.

    Attributes:
      value: the gap that was seen.
      mean: of shuffled groups.
      high: their 95% quantile (or `level`).
      p_value: share of shuffles with a gap at least as large, counting the one seen.

    Where the gap that was seen is undefined, all four are NaN.
    """

    value: jax.Array
    mean: jax.Array
    high: jax.Array
    p_value: jax.Array


def shuffled(seed: int, cells: Any, replicates: int) -> np.ndarray:
    """Tables with groups shuffled: int64[R, G, K, K], every margin as in `cells`.

    Args:
      seed: of the draws (NumPy; JAX has no hypergeometric law).
      cells: [G, K, K], counts; fewer than 10^9 in all.
      replicates: R.

    Raises:
      ValueError: for cells that are no counts, of another shape, or too many.
    """
    cells = counts.host(cells)
    if cells.dtype.kind not in "iu":
        bound = "are no counts"
        _validate.fail("cells", str(cells.dtype), bound, "weights cannot be shuffled")
    if cells.ndim != 3:
        cure = "counts.flatten makes one group of every intersection"
        _validate.fail("cells", f"array of shape {cells.shape}", "need 3 axes", cure)
    if (total := int(cells.sum())) >= _MOST:
        bound = f"must add up to fewer than {_MOST}, as NumPy draws no more"
        _validate.fail("cells", total, bound, "shuffle a part of the examples")
    rng = np.random.default_rng(seed)
    sizes, kinds = cells.sum(axis=(1, 2)), cells.sum(axis=0).reshape(-1)
    drawn = np.zeros((replicates, len(sizes), kinds.size), np.int64)
    left = np.repeat(kinds[None], replicates, axis=0)
    for g, size in enumerate(sizes[:-1]):
        wanted = np.full(replicates, size)
        for k in range(kinds.size - 1):
            others = left[:, k + 1 :].sum(axis=1)
            drawn[:, g, k] = rng.hypergeometric(left[:, k], others, wanted)
            wanted = wanted - drawn[:, g, k]
        drawn[:, g, -1] = wanted
        left = left - drawn[:, g]
    drawn[:, -1] = left
    return drawn.reshape(replicates, *cells.shape)


def floor(
    seed: int,
    cells: Any,
    gap: Callable[[jax.Array], Any],
    *,
    replicates: int = 2000,
    level: float = 0.95,
) -> Any:
    """The law of a gap under shuffled groups, beside the gap that was seen.

    Args:
      seed: of the draws.
      cells: [G, K, K], counts.
      gap: cells -> pytree of float arrays.
      replicates: R.
      level: of the quantile `high`.

    Returns:
      The pytree of `gap` with a `Floor` for every leaf; shuffles in which the gap is
      undefined are left out.
    """
    level = _validate.in_open_interval("level", level, 0.0, 1.0, "0.95 is usual")
    _validate.integer_at_least("replicates", replicates, 2, "2000 is usual")
    tables = shuffled(seed, cells, replicates)
    value = gap(counts.floats(cells))
    drawn = jax.vmap(gap)(jnp.asarray(tables, jnp.float32))

    def one(value, drawn):
        there = ~jnp.isnan(drawn)
        # Gaps are sums of float32; one that is equal must count as equal.
        beyond = there & (drawn >= value[None] - 1e-6)
        n = there.sum(axis=0)
        found = (
            jnp.nanmean(drawn, axis=0),
            jnp.nanquantile(drawn, level, axis=0),
            (1 + beyond.sum(axis=0)).astype(float) / (1 + n).astype(float),
        )
        # No shuffle is as large as NaN: such a gap would look surer than any.
        nothing = jnp.isnan(value)
        return Floor(value, *(jnp.where(nothing, jnp.nan, x) for x in found))

    return jax.tree.map(one, value, drawn)
