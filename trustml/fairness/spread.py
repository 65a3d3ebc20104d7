"""How far groups of texts lie apart, where texts come in clusters.

Texts that continue prompts about one person, or one prompt many times, are no
independent evidence: the cluster is what is drawn. Of cluster c of group g only a sum
s_c of scores and a number n_c of texts is kept, and

    mean_g = sum_{c in g} s_c / sum_{c in g} n_c

- Intervals: clusters of every group are drawn with replacement, each with all of its
  texts.
- Spread over groups: standard deviation (over the groups there are, hence not n - 1)
  and largest minus smallest mean. Neither is ever negative, so each stands beside its
  noise floor: whole clusters are dealt out to groups anew, every group keeping its
  number of clusters.
- Two sources of texts for the same clusters (a model and people): the difference of
  means, both from the same drawn clusters.

A score of nan (a text without a word that is known) is left out, and counted.

Dimension key: `N` texts, `M` clusters, `G` groups, `R` replicates.

Example::

    found = spread.tally(scores, groups, entities)
    of_groups = spread.means(found)
    of_groups.value, of_groups.lo, of_groups.hi                        # float[G]
    spread.over_groups(found).largest.high         # 95% quantile where none matters

Source: clusters as in Field and Welsh 2007,
https://doi.org/10.1111/j.1467-9868.2007.00593.x; the measures of BOLD, Dhamala et al.
2021, https://arxiv.org/abs/2101.11718.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy import typing as npt

from trustml import _validate

_ROUNDING = 1e-12  # sums in another order


class Tally(NamedTuple):
    """Scores of texts, added up over clusters.

    Attributes:
      groups: names, in order of appearance.
      clusters: names; a name that two groups share is a cluster of each.
      group: int[M], place of each cluster's group in `groups`.
      sums: float64[M], of the scores.
      counts: int[M], texts with a score.
      missing: int[M], texts without one.
    """

    groups: tuple[str, ...]
    clusters: tuple[str, ...]
    group: np.ndarray
    sums: np.ndarray
    counts: np.ndarray
    missing: np.ndarray


class Means(NamedTuple):
    """Of every group.

    Attributes:
      value: float[G]; nan where no text has a score.
      lo: float[G], lower end of the interval; nan likewise.
      hi: float[G].
      n: int[G], texts with a score.
      clusters: int[G], clusters with such texts.
    """

    value: np.ndarray
    lo: np.ndarray
    hi: np.ndarray
    n: np.ndarray
    clusters: np.ndarray


class Beside(NamedTuple):
    """A spread beside what chance gives.

    Attributes:
      value: as seen; nan with fewer than two groups.
      mean: where clusters are dealt out anew.
      high: 95% quantile (or `level`) of that.
      p_value: share of such deals with a spread as large, the one seen among them.
    """

    value: float
    mean: float
    high: float
    p_value: float


class Spread(NamedTuple):
    """Over groups: `deviation`, the standard one, and `largest` minus smallest mean."""

    deviation: Beside
    largest: Beside


def tally(
    scores: npt.ArrayLike, groups: Sequence[str], clusters: Sequence[str]
) -> Tally:
    """Adds up scores over clusters.

    Args:
      scores: float[N]; nan has none.
      groups: of each text, [N].
      clusters: of each text, [N].

    Raises:
      ValueError: unequal numbers, no texts, or an infinite score.
    """
    scores_N = _validate.numbers_of("scores", scores)
    for field, names in (("groups", groups), ("clusters", clusters)):
        if len(names) != scores_N.size:
            bound = f"must be one a text, {scores_N.size}"
            _validate.fail(field, len(names), bound)
    _validate.integer_at_least("scores", scores_N.size, 1, "give texts")
    if np.isinf(scores_N).any():
        at = int(np.flatnonzero(np.isinf(scores_N))[0])
        bound = "must be finite, or nan for none"
        _validate.fail(f"scores[{at}]", float(scores_N[at]), bound)
    place = {name: n for n, name in enumerate(dict.fromkeys(groups))}
    keys = list(zip(groups, clusters, strict=True))
    at = {key: n for n, key in enumerate(dict.fromkeys(keys))}
    of_N = np.array([at[key] for key in keys])
    there = ~np.isnan(scores_N)
    known = np.where(there, scores_N, 0.0)
    return Tally(
        tuple(place),
        tuple(cluster for _, cluster in at),
        np.array([place[group] for group, _ in at]),
        np.bincount(of_N, known, len(at)),
        np.bincount(of_N[there], minlength=len(at)),
        np.bincount(of_N[~there], minlength=len(at)),
    )


def means(
    found: Tally, *, replicates: int = 2000, level: float = 0.95, seed: int = 0
) -> Means:
    """Mean of every group, with the interval of drawn clusters.

    Quantiles of replicates; with few clusters (below ten or so) such an interval is too
    short, and with one it has no length: look at `Means.clusters`.

    Args:
      found: of `tally`.
      replicates: R.
      level: of each group by itself.
      seed: of the draws.
    """
    tail = _tail(level)
    value = _means(found.sums, found.counts, found.group, len(found.groups))
    drawn = _drawn(found, (found,), replicates, seed)[0]
    lo, hi = _ends(drawn, tail)
    n = np.bincount(found.group, found.counts, len(found.groups))
    filled = np.bincount(found.group, found.counts > 0, len(found.groups))
    return Means(value, lo, hi, n.astype(int), filled.astype(int))


def differences(
    first: Tally,
    second: Tally,
    *,
    replicates: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Means:
    """Means of the first source minus those of the second, from the same clusters.

    Args:
      first: of `tally`.
      second: of the same clusters of the same groups, in any order.
      replicates: R.
      level: of each group by itself.
      seed: of the draws.

    Returns:
      `Means`; `n` and `clusters` are those of the first.

    Raises:
      ValueError: if their clusters differ.
    """
    tail = _tail(level)
    second = _aligned(first, second)
    size = len(first.groups)
    value = _means(first.sums, first.counts, first.group, size) - _means(
        second.sums, second.counts, second.group, size
    )
    one, other = _drawn(first, (first, second), replicates, seed)
    lo, hi = _ends(one - other, tail)
    of_first = means(first, replicates=2, seed=seed)
    return Means(value, lo, hi, of_first.n, of_first.clusters)


def over_groups(
    found: Tally,
    kept: npt.ArrayLike | None = None,
    *,
    replicates: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Spread:
    """How far groups lie apart, beside what chance gives.

    Args:
      found: of `tally`.
      kept: bool[G], groups that count; all where None. The others are as if not there.
      replicates: R.
      level: of the quantile.
      seed: of the deals.
    """
    _tail(level)
    _validate.integer_at_least("replicates", replicates, 2, "2000 is usual")
    size = len(found.groups)
    kept_G = np.ones(size, bool) if kept is None else np.asarray(kept, bool)
    if kept_G.shape != (size,):
        _validate.fail("kept", kept_G.shape, f"must be one flag a group, {size}")
    there = kept_G[found.group] & (found.counts > 0)
    sums, counts, group = found.sums[there], found.counts[there], found.group[there]
    nan = float("nan")
    if np.unique(group).size < 2:
        return Spread(Beside(nan, nan, nan, nan), Beside(nan, nan, nan, nan))
    member = (group[:, None] == np.unique(group)[None]).astype(float)
    rng = np.random.default_rng(seed)
    order = rng.permuted(np.tile(np.arange(len(group)), (replicates, 1)), axis=1)
    dealt = (sums[order] @ member) / (counts[order] @ member)
    seen = (sums @ member) / (counts @ member)

    def beside(measure) -> Beside:
        value, drawn = float(measure(seen)), measure(dealt)
        beyond = int((drawn >= value - _ROUNDING * max(1.0, value)).sum())
        return Beside(
            value,
            float(drawn.mean()),
            float(np.quantile(drawn, level)),
            (1 + beyond) / (1 + replicates),
        )

    return Spread(
        beside(lambda x: np.std(x, axis=-1)), beside(lambda x: np.ptp(x, axis=-1))
    )


def _means(sums, counts, group, size):
    total = np.bincount(group, counts, size)
    known = np.where(total > 0, total, 1.0)
    return np.where(total > 0, np.bincount(group, sums, size) / known, np.nan)


def _drawn(
    of: Tally, sources: Sequence[Tally], replicates: int, seed: int
) -> list[np.ndarray]:
    """Means [R, G] of every source, with the clusters of `of` drawn once for all."""
    _validate.integer_at_least("replicates", replicates, 2, "2000 is usual")
    rng = np.random.default_rng(seed)
    out = [np.full((replicates, len(of.groups)), np.nan) for _ in sources]
    for g in range(len(of.groups)):
        mine = np.flatnonzero(of.group == g)
        even = np.full(len(mine), 1 / len(mine))
        times = rng.multinomial(len(mine), even, size=replicates)
        for rows, source in zip(out, sources, strict=True):
            total = times @ source.counts[mine]
            known = np.where(total > 0, total, 1)
            drawn = times @ source.sums[mine] / known
            rows[:, g] = np.where(total > 0, drawn, np.nan)
    return out


def _ends(drawn, tail):
    """Quantiles of the columns [R, G]; nan where all are undefined."""
    out = np.full((2, drawn.shape[1]), np.nan)
    for g, column in enumerate(drawn.T):
        if not np.isnan(column).all():
            out[:, g] = np.nanquantile(column, [tail, 1 - tail])
    return out


def _aligned(first: Tally, second: Tally) -> Tally:
    """`second` with groups and clusters in the order of `first`."""
    keys = [
        [(one.groups[g], c) for g, c in zip(one.group, one.clusters, strict=True)]
        for one in (first, second)
    ]
    at = {key: n for n, key in enumerate(keys[1])}
    if set(keys[0]) != set(at):
        odd = sorted(set(keys[0]) ^ set(at))[0]
        bound = "is a cluster of one source alone"
        _validate.fail("second", odd, bound, "compare texts for the same clusters")
    order = np.array([at[key] for key in keys[0]])
    return first._replace(
        sums=second.sums[order],
        counts=second.counts[order],
        missing=second.missing[order],
    )


def _tail(level: float) -> float:
    level = _validate.in_open_interval("level", level, 0.0, 1.0, "0.95 is usual")
    return (1 - level) / 2
