"""Clipping bias: whose gradients clipping shortens, and where it turns their sum.

DP-SGD clips the gradient g_i of every example to C. Groups with long gradients (rare,
badly fitted) lose most, and the sum turns away from what they ask for:

| figure | formula |
|---|---|
| clipped share | share of the group with |clip(g_i)| < |g_i| |
| kept norm | sum |clip(g_i)| / sum |g_i| over the group |
| cosine | cos(sum clip(g_i), sum g_i) over the group |
| misalignment | 1 - cos(sum clip(g_i), sum g_i) over everybody |

NOT private: these are figures of single training examples without noise. Keep them
under `nonprivate/` and do not release them with the model.

Sums come in blocks of examples, so that cosines have an interval: a jackknife that
leaves one block out at a time. Sources: Bagdasaryan et al. 2019,
https://arxiv.org/abs/1905.12101; Tran et al. 2021, https://arxiv.org/abs/2106.02640;
Esipova et al. 2022, https://arxiv.org/abs/2206.07737 (misalignment, not length, is what
makes groups pay). Dimension key: `n` examples, `G` groups, `B` blocks, `P` parameters.

Example::

    found = clipping_bias.measure(norms, kept, group, clipped, unclipped, names=names)
    found.groups[1].clipped_share.value, found.groups[1].cosine.value
    found.cosine.value                                   # of everybody
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy import typing as npt
from scipy import stats

from trustml import _validate, intervals

_SHORTER = 1.0 - 1e-5  # float32 sums of squares; below it a gradient was shortened

_ROUNDING = 1e-12  # sums in another order


class Group(NamedTuple):
    """Of the examples of one group. NOT private.

    Attributes:
      name: of the group.
      n: examples looked at.
      clipped_share: of them, with Wilson's interval.
      kept_norm: with a bootstrap interval; nan where all gradients are 0, and its ends
        where all keep the same share (as where none is clipped): others may not.
      mean_norm: of gradients before clipping, with Student's interval.
      cosine: with a jackknife interval; its ends are nan with one block, or where
        blocks are all alike.
      small: too few to judge.
    """

    name: str
    n: int
    clipped_share: intervals.Interval
    kept_norm: intervals.Interval
    mean_norm: intervals.Interval
    cosine: intervals.Interval
    small: bool


class ClippingBias(NamedTuple):
    """Of one attribute. NOT private.

    Attributes:
      groups: in the order of their names.
      cosine: of everybody's sums; misalignment is 1 minus it.
    """

    groups: tuple[Group, ...]
    cosine: intervals.Interval


def measure(
    norms: npt.ArrayLike,
    kept: npt.ArrayLike,
    group: npt.ArrayLike,
    clipped: npt.ArrayLike,
    unclipped: npt.ArrayLike,
    *,
    names: Sequence[str],
    level: float = 0.95,
    small: int = 30,
    seed: int = 0,
) -> ClippingBias:
    """What clipping does to the gradients of every group.

    Args:
      norms: float[n], of gradients before clipping (`norms_per_example`).
      kept: float[n], after it; rules that bring all gradients to one length make some
        longer, and the kept norm may be above 1.
      group: int[n] in 0..G-1; a negative one counts nowhere.
      clipped: float[B, G, P], sums of clipped gradients by block and group.
      unclipped: float[B, G, P], of the gradients themselves.
      names: G names.
      level: of each interval.
      small: groups with fewer examples are flagged.
      seed: of the bootstrap.

    Returns:
      ClippingBias.

    Raises:
      ValueError: on shapes that differ, a norm that is negative or not finite, a sum
        that is not finite, or a group that is no integer or has no name.
    """
    norms, kept = (
        _validate.numbers_of(field, x)
        for field, x in (("norms", norms), ("kept", kept))
    )
    group = np.asarray(group)
    clipped, unclipped = (
        _validate.numbers_of(field, x)
        for field, x in (("clipped", clipped), ("unclipped", unclipped))
    )
    if not norms.shape == kept.shape == group.shape or norms.ndim != 1:
        raise ValueError(
            f"norms has shape {norms.shape}, kept {kept.shape}, group {group.shape}; "
            "give one of each per example."
        )
    if clipped.shape != unclipped.shape or clipped.shape[1:2] != (len(names),):
        raise ValueError(
            f"clipped has shape {clipped.shape} and unclipped {unclipped.shape}; both "
            f"must be [B, {len(names)}, P], a sum for each block and group."
        )
    bad = np.flatnonzero(~(np.isfinite(norms) & np.isfinite(kept)))
    if bad.size:
        value = f"{kept[bad[0]]:g} of {norms[bad[0]]:g}"
        cure = "leave such examples out"
        _validate.fail(f"kept[{bad[0]}]", value, "is not finite", cure)
    for field, x in (("norms", norms), ("kept", kept)):
        if (x < 0).any():
            at = int(np.flatnonzero(x < 0)[0])
            bound = "must be >= 0, as lengths are"
            _validate.fail(f"{field}[{at}]", float(x[at]), bound, "give L2 norms")
    if not np.issubdtype(group.dtype, np.integer):
        bound = "are no integers 0..G-1"
        _validate.fail("group", str(group.dtype), bound, "use groups.buckets")
    if group.size and group.max() >= len(names):
        at = int(np.argmax(group >= len(names)))
        bound = f"has no name among {len(names)}"
        cure = "give one name per group, or -1 to what counts nowhere"
        _validate.fail(f"group[{at}]", int(group[at]), bound, cure)
    for field, x in (("clipped", clipped), ("unclipped", unclipped)):
        if not np.isfinite(x).all():
            at = [int(i) for i in np.argwhere(~np.isfinite(x))[0]]
            bound = "is not finite, and a sum must be"
            cure = "leave examples without a finite gradient out"
            _validate.fail(f"{field}{at}", float(x[tuple(at)]), bound, cure)
    found = []
    for g, name in enumerate(names):
        rows = group == g
        n, k = int(rows.sum()), int(np.sum(kept[rows] < _SHORTER * norms[rows]))
        share = intervals.Interval(
            k / n if n else np.nan, *intervals.wilson(k, n, level)
        )
        found.append(
            Group(
                name=name,
                n=n,
                clipped_share=share,
                kept_norm=_kept(norms[rows], kept[rows], level, seed),
                mean_norm=intervals.mean(norms[rows], level) if n else _nothing(),
                cosine=_cosine(clipped[:, g], unclipped[:, g], level),
                small=n < small,
            )
        )
    return ClippingBias(
        tuple(found), _cosine(clipped.sum(axis=1), unclipped.sum(axis=1), level)
    )


def _kept(norms, kept, level, seed) -> intervals.Interval:
    if not norms.any():
        return _nothing()

    def share(norms, kept):
        total = norms.sum(axis=-1)
        return kept.sum(axis=-1) / np.where(total > 0, total, np.nan)

    shares = kept[norms > 0] / norms[norms > 0]
    if norms.size < 2 or np.ptp(shares) <= 1.0 - _SHORTER:
        return intervals.Interval(float(share(norms, kept)), np.nan, np.nan)
    return intervals.bootstrap(
        share, (norms, kept), level=level, seed=seed, vectorized=True
    )


def _cosine(clipped_BP, unclipped_BP, level) -> intervals.Interval:
    """Cosine of sums over blocks; a jackknife over blocks that hold anything."""

    def cosine(a, b):
        length = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
        inner = np.sum(a * b, axis=-1)
        return np.where(length > 0, inner / np.where(length > 0, length, 1.0), np.nan)

    whole = clipped_BP.sum(axis=0), unclipped_BP.sum(axis=0)
    value, there = float(cosine(*whole)), unclipped_BP.any(axis=1)
    blocks = int(there.sum())
    left = cosine(whole[0] - clipped_BP[there], whole[1] - unclipped_BP[there])
    if blocks < 2 or not np.isfinite(left).all():
        return intervals.Interval(value, np.nan, np.nan)
    se = np.sqrt((blocks - 1) * np.mean((left - left.mean()) ** 2))
    if se <= _ROUNDING:
        return intervals.Interval(value, np.nan, np.nan)
    half = float(stats.t.ppf((1 + level) / 2, blocks - 1) * se)
    return intervals.Interval(value, max(-1.0, value - half), min(1.0, value + half))


def _nothing() -> intervals.Interval:
    return intervals.Interval(np.nan, np.nan, np.nan)
