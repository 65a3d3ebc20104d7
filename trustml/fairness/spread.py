"""How far groups of texts lie apart, where texts come in clusters.

Texts that continue prompts about one person, or one prompt many times, are no
independent evidence: the cluster is what is drawn. Of cluster c of group g only a sum
s_c of scores and a number n_c of texts is kept, and

    mean_g = sum_{c in g} s_c / sum_{c in g} n_c

- Intervals: clusters of every group are drawn with replacement, each with all of its
  texts. Of few clusters such an interval is too short, so it is stretched about the
  mean by se / sd t_d / z: to the standard error of `cluster_errors.influence`, and from
  a normal quantile to Student's of its degrees of freedom.
- Spread over groups: standard deviation (over the groups there are, hence not n - 1)
  and largest minus smallest mean. Neither is ever negative, so each stands beside its
  noise floor: what it is where all true means are equal, and those seen differ by the
  errors of `cluster_errors.moderated` alone. (Dealing clusters out to groups anew is
  no such floor where clusters hold more texts in one group than in another.)
- Two sources of texts for the same clusters (a model and people): the difference of
  means, both from the same drawn clusters.

How often p <= 0.05 where groups do not matter (500 worlds), and how often an interval
at 95% holds its mean (400 or 1,800 of them); clusters of 3 texts, in brackets of 6 to
30 by a geometric law; deviation 0.3 of clusters and 1 of texts, which are normal or
(second half) exponential:

| groups of clusters | p <= 0.05 | holds | p <= 0.05 | holds |
|---|---|---|---|---|
| 4 of 10 | .026 (.022) | .948 (.960) | .038 (.030) | .948 (.945) |
| 4 of 20 | .038 (.040) | .945 (.962) | .056 (.024) | .932 (.940) |
| 4 of 60 | .038 (.040) | .962 (.932) | .050 (.034) | .948 (.948) |
| 18 of 10 | .062 (.050) | .942 (.957) | .038 (.048) | .934 (.941) |
| 18 of 20 | .054 (.060) | .949 (.944) | .048 (.036) | .931 (.938) |
| 18 of 60 | .052 (.050) | .949 (.948) | .050 (.052) | .940 (.950) |
| 12 clusters of 1, twice 60 of 10 | .053 | | .074 | |
| 18 of 10, one varies thrice as much | .118 | | .110 | |

(`pytest -m slow -s tests/fairness/spread_test.py`; deals of whole clusters found an
effect in half of the worlds of the last row but one.) The last row is what moderation
costs: a floor is not to be trusted where one small group varies much more than others,
nor where one cluster holds most texts of a group, whose error is then that cluster's.

A score of nan (a text without a word that is known) is left out, and counted.

Dimension key: `N` texts, `M` clusters, `G` groups, `R` replicates.

Example::

    found = spread.tally(scores, groups, entities)
    of_groups = spread.means(found)
    of_groups.value, of_groups.lo, of_groups.hi                        # float[G]
    spread.over_groups(found).largest.high         # 95% quantile where none matters

Source: drawn clusters as in Field and Welsh 2007,
https://doi.org/10.1111/j.1467-9868.2007.00593.x; errors: `cluster_errors`; the
measures of BOLD, Dhamala et al. 2021, https://arxiv.org/abs/2101.11718.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy import typing as npt
from scipy import stats

from trustml import _validate
from trustml.fairness import cluster_errors

_ROUNDING = 1e-12  # sums in another order
_NO_BOUNDS = (-float("inf"), float("inf"))


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
      lo: float[G], lower end of the interval; nan likewise, and where nothing is known
        of an error: with one cluster, or clusters that are all alike.
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
      mean: where all true means are equal; nan, as the next two, where no cluster
        differs from others of its group, so that no noise is seen.
      high: 95% quantile (or `level`) of that.
      p_value: share of draws of it with a spread as large, the one seen among them.
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
    found: Tally,
    *,
    replicates: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    bounds: tuple[float, float] = _NO_BOUNDS,
) -> Means:
    """Mean of every group, with the interval of drawn clusters, stretched.

    Args:
      found: of `tally`.
      replicates: R.
      level: of each group by itself.
      seed: of the draws.
      bounds: what a mean can be at all, (0, 1) of a probability; intervals are cut.
    """
    return _between((found,), replicates, level, seed, bounds)


def differences(
    first: Tally,
    second: Tally,
    *,
    replicates: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    bounds: tuple[float, float] = _NO_BOUNDS,
) -> Means:
    """Means of the first source minus those of the second, from the same clusters.

    Args:
      first: of `tally`.
      second: of the same clusters of the same groups, in any order.
      replicates: R.
      level: of each group by itself.
      seed: of the draws.
      bounds: of a difference, (-1, 1) of two probabilities.

    Returns:
      `Means`; `n` and `clusters` are those of the first.

    Raises:
      ValueError: if their clusters differ.
    """
    both = first, _aligned(first, second)
    return _between(both, replicates, level, seed, bounds)


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
      seed: of the draws.
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
    group = np.unique(group, return_inverse=True)[1]
    errors = cluster_errors.moderated(sums, counts, group)
    known = not np.isnan(errors.se).any()
    rng = np.random.default_rng(seed)
    df = errors.df if known else np.ones_like(errors.df)
    chance = errors.se * rng.standard_t(df, (replicates, len(df)))
    seen = _means(sums, counts, group, len(df))

    def beside(measure) -> Beside:
        value, drawn = float(measure(seen)), measure(chance)
        if not known:
            return Beside(value, nan, nan, nan)
        beyond = int((drawn >= value * (1 - _ROUNDING)).sum())
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


def _between(sources, replicates, level, seed, bounds) -> Means:
    """Means of one source, or the first's minus the second's, drawn together."""
    tail = _tail(level)
    _validate.integer_at_least("replicates", replicates, 2, "2000 is usual")
    first, size = sources[0], len(sources[0].groups)
    rng = np.random.default_rng(seed)
    value, lo, hi = np.full((3, size), np.nan)
    there = np.any([one.counts > 0 for one in sources], axis=0)
    for g in range(size):
        mine = np.flatnonzero((first.group == g) & there)
        if not mine.size:
            continue
        even = np.full(len(mine), 1 / len(mine))
        times = rng.multinomial(len(mine), even, size=replicates)
        times = np.concatenate([np.ones((1, len(mine)), int), times])  # as seen first
        drawn, errors = np.zeros(len(times)), []
        for sign, one in zip((1.0, -1.0), sources, strict=False):
            sums, counts = one.sums[mine], one.counts[mine]
            total = times @ counts
            known = np.where(total > 0, total, 1)
            drawn += sign * np.where(total > 0, times @ sums / known, np.nan)
            errors.append(cluster_errors.influence(sums, counts))
        value[g] = drawn[0]
        stretch = _stretch(errors, tail)
        if not np.isnan(value[g]) and stretch:
            ends = np.nanquantile(drawn[1:], [tail, 1 - tail])
            ends = value[g] + stretch * (ends - value[g])
            lo[g], hi[g] = np.clip(ends, *bounds)
    n = np.bincount(first.group, first.counts, size)
    filled = np.bincount(first.group, first.counts > 0, size)
    return Means(value, lo, hi, n.astype(int), filled.astype(int))


def _stretch(errors: Sequence[cluster_errors.Influence], tail: float) -> float:
    """From quantiles of drawn clusters to an interval; 0 where nothing varies."""
    df = min(one.df for one in errors)
    plain, adjusted = (
        np.linalg.norm(parts[0] - (parts[1] if len(parts) > 1 else 0.0))
        for parts in zip(*((one.plain, one.adjusted) for one in errors), strict=True)
    )
    size = sum(np.linalg.norm(one.plain) for one in errors)
    if df <= 0 or plain <= _ROUNDING * size:
        return 0.0
    return float(adjusted / plain * stats.t.isf(tail, df) / stats.norm.isf(tail))


def _aligned(first: Tally, second: Tally) -> Tally:
    """`second` with groups and clusters in the order of `first`."""
    keys = [
        [(one.groups[g], c) for g, c in zip(one.group, one.clusters, strict=True)]
        for one in (first, second)
    ]
    at = {key: n for n, key in enumerate(keys[1])}
    if set(keys[0]) != set(at):
        odd = sorted(set(keys[0]) ^ set(at))[0]
        name = "second" if odd in at else "first"
        bound = "is a cluster of one source alone"
        _validate.fail(name, odd, bound, "compare texts for the same clusters")
    order = np.array([at[key] for key in keys[0]])
    return first._replace(
        sums=second.sums[order],
        counts=second.counts[order],
        missing=second.missing[order],
    )


def _tail(level: float) -> float:
    level = _validate.in_open_interval("level", level, 0.0, 1.0, "0.95 is usual")
    return (1 - level) / 2
