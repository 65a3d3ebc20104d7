"""Intervals for rates, means, areas under the ROC and any statistic.

What a report needs so that no figure stands without its uncertainty:

| function | for | method |
|---|---|---|
| `proportion` | k successes of n | Clopper-Pearson (exact, never below the level) |
| `wilson` | the same | Wilson score (shorter; the level holds on average) |
| `paired_change` | two models on the same examples | Bonett-Price adjusted Wald |
| `mean` | a figure over seeds | Student t |
| `bootstrap` | any statistic of rows | percentile, seeded, vectorised |
| `auc` | area under the ROC | weighted bootstrap, ties exact |

Sources: Clopper and Pearson 1934; Wilson 1927; Bonett and Price 2012 (adjusted Wald for
paired proportions); Efron 1979. Dimension key: `n` rows, `R` replicates.

Example::

    from trustml import intervals

    lo, hi = intervals.proportion(45, 50)              # 0.782, 0.967
    value, lo, hi = intervals.mean([.951, .957, .949])
    result = intervals.bootstrap(np.median, losses, seed=0)
    print(result.value, result.lo, result.hi)
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy import typing as npt
from scipy import special, stats

Count = int | np.integer


class Interval(NamedTuple):
    """An estimate and its interval; unpacks as `value, lo, hi`.

    Attributes:
      value: the estimate on the data as given.
      lo: lower end.
      hi: upper end.
    """

    value: float
    lo: float
    hi: float


def proportion(k: Count, n: Count, level: float = 0.95) -> tuple[float, float]:
    """Exact two-sided interval of a rate, k successes out of n (Clopper-Pearson).

    lo = BetaInv(a/2; k, n-k+1), hi = BetaInv(1-a/2; k+1, n-k), a = 1 - level

    Formal guarantee: for n independent trials the interval covers the true rate with
      probability at least `level`, whatever the rate.
    Args:
      k: successes, 0 <= k <= n.
      n: trials; 0 gives (0, 1): no data, nothing known.
      level: confidence, in (0, 1).

    Returns:
      (lo, hi), both in [0, 1].

    Raises:
      ValueError: on k or n that are not counts, or a level outside (0, 1).
    References: Clopper and Pearson 1934, https://doi.org/10.1093/biomet/26.4.404
    """
    k, n = _counts(k, n)
    tail = (1.0 - _level(level)) / 2.0
    lo = 0.0 if k == 0 else float(special.betaincinv(k, n - k + 1, tail))
    hi = 1.0 if k == n else float(special.betainccinv(k + 1, n - k, tail))
    return lo, hi


def wilson(k: Count, n: Count, level: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a rate: shorter than exact, right on average.

    centre = (p + z^2/2n) / (1 + z^2/n),
    half width = z sqrt(p(1-p)/n + z^2/4n^2) / (1 + z^2/n)

    Args:
      k: successes, 0 <= k <= n.
      n: trials; 0 gives (0, 1).
      level: confidence, in (0, 1).

    Returns:
      (lo, hi), both in [0, 1].

    Raises:
      ValueError: as `proportion`.
    References: Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953
    """
    k, n = _counts(k, n)
    z = float(stats.norm.isf((1.0 - _level(level)) / 2.0))
    if n == 0:
        return 0.0, 1.0
    p = k / n
    scale = 1.0 + z * z / n
    centre = (p + z * z / (2 * n)) / scale
    half = z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / scale
    # At k = 0 and k = n the ends are 0 and 1 exactly; the formula gives 1e-17.
    lo = 0.0 if k == 0 else float(max(0.0, centre - half))
    hi = 1.0 if k == n else float(min(1.0, centre + half))
    return lo, hi


def paired_change(
    before: npt.ArrayLike, after: npt.ArrayLike, level: float = 0.95
) -> Interval:
    """Change of a rate between two models judged on the SAME examples.

    With b examples lost (right before, wrong after) and c gained, value = (c - b)/n and
    the interval is p_c - p_b -+ z sqrt((p_b + p_c - (p_b - p_c)^2)/(n + 2)) with
    p_b = (b+1)/(n+2), p_c = (c+1)/(n+2): it keeps a width even when b = c = 0, where
    the bootstrap would claim certainty. Two separate intervals that overlap say much
    less.

    Args:
      before: bool[n], correct under the first model.
      after: bool[n], correct under the second model, same order.
      level: confidence, in (0, 1).

    Returns:
      Interval of mean(after) - mean(before); (nan, -1, 1) if n = 0.

    Raises:
      ValueError: if the arrays differ in shape or the level is outside (0, 1).
    References: Bonett and Price 2012, https://doi.org/10.3102/1076998611411915
    """
    before, after = np.asarray(before, bool), np.asarray(after, bool)
    if before.shape != after.shape or before.ndim != 1:
        raise ValueError(
            f"before has shape {before.shape} and after {after.shape}; both must be "
            "one flag per example of the same examples in the same order."
        )
    z = float(stats.norm.isf((1.0 - _level(level)) / 2.0))
    n = before.size
    if n == 0:
        return Interval(float("nan"), -1.0, 1.0)
    lost, gained = int(np.sum(before & ~after)), int(np.sum(~before & after))
    p_lost, p_gained = (lost + 1) / (n + 2), (gained + 1) / (n + 2)
    centre = p_gained - p_lost
    half = z * np.sqrt((p_lost + p_gained - (p_lost - p_gained) ** 2) / (n + 2))
    return Interval(
        (gained - lost) / n, max(-1.0, centre - half), min(1.0, centre + half)
    )


def mean(
    values: npt.ArrayLike,
    level: float = 0.95,
    *,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Interval:
    """Mean over independent runs (seeds) with a Student t interval.

    mean -+ t_{S-1} sd / sqrt(S), sd with S - 1 in the denominator

    Args:
      values: float[S], one figure per seed.
      level: confidence, in (0, 1).
      bounds: what the mean can be at all, (0, 1) for a proportion; the interval, which
        knows nothing of it, is cut to them (it covers no less often for that).

    Returns:
      Interval; with one value the ends are nan, as spread is then unknown.

    Raises:
      ValueError: on no value, or a value that is not finite.
    """
    values = _finite("values", values)
    value = float(values.mean())
    if values.size < 2:
        _level(level)
        return Interval(value, float("nan"), float("nan"))
    quantile = float(stats.t.isf((1.0 - _level(level)) / 2.0, values.size - 1))
    half = quantile * float(values.std(ddof=1)) / np.sqrt(values.size)
    return Interval(value, max(bounds[0], value - half), min(bounds[1], value + half))


def bootstrap(
    statistic: Callable,
    data: npt.ArrayLike | tuple[npt.ArrayLike, ...],
    *,
    level: float = 0.95,
    replicates: int = 1000,
    seed: int = 0,
    vectorized: bool = False,
) -> Interval:
    """Percentile bootstrap interval of any statistic of rows.

    Rows are drawn with replacement, all arrays of `data` together (paired).

    Args:
      statistic: fn(*arrays) -> float. With `vectorized=True`, fn gets arrays of shape
        [R, n, ...] and returns float[R]: no Python loop over replicates.
      data: one array [n, ...] or a tuple of arrays that share n.
      level: confidence, in (0, 1).
      replicates: R >= 100; 1000 gives the ends to about 0.1 of the standard error.
      seed: of the resampling; the same seed gives the same interval.
      vectorized: see `statistic`.

    Returns:
      Interval; replicates where the statistic is nan are left out.

    Raises:
      ValueError: on empty data, lengths that differ, R < 100, or if more than 5% of the
        replicates are nan (the interval would describe a different statistic).
    References: Efron 1979, https://doi.org/10.1214/aos/1176344552
    """
    arrays = data if isinstance(data, tuple) else (data,)
    arrays = tuple(np.asarray(a) for a in arrays)
    sizes = {a.shape[0] if a.ndim else 0 for a in arrays}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(
            f"data has {sorted(sizes)} rows; all arrays need the same number of rows, "
            "at least 1."
        )
    _replicates(replicates)
    (n,) = sizes
    rng = np.random.default_rng(seed)
    level = _level(level)
    # Chunks bound the memory at about 4 million drawn rows.
    chunk = max(1, 4_000_000 // n)
    results = []
    for start in range(0, replicates, chunk):
        rows = rng.integers(0, n, size=(min(chunk, replicates - start), n))
        if vectorized:
            results.append(np.asarray(statistic(*(a[rows] for a in arrays)), float))
        else:
            one = [float(statistic(*(a[r] for a in arrays))) for r in rows]
            results.append(np.array(one))
    results = np.concatenate([np.ravel(r) for r in results])
    if vectorized:
        value = float(np.ravel(statistic(*(a[None] for a in arrays)))[0])
    else:
        value = float(statistic(*arrays))
    return Interval(value, *_percentile(results, level))


def auc(
    scores: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    level: float = 0.95,
    replicates: int = 1000,
    seed: int = 0,
) -> Interval:
    """Area under the ROC, P(s+ > s-) + P(s+ = s-)/2, with a bootstrap interval.

    Scores are sorted once; a replicate is a vector of multinomial weights, and its area
    comes from cumulative sums over distinct scores, so ties are exact in every
    replicate. Positives and negatives are resampled apart (their numbers are part of
    the design).

    Args:
      scores: float[n], larger means positive.
      labels: bool[n], True for positive.
      level: confidence, in (0, 1).
      replicates: R >= 100.
      seed: of the resampling.

    Returns:
      Interval; nan value and (0, 1) if a class is absent.

    Raises:
      ValueError: on a score that is not finite (its index is named) or on shapes that
        differ.
    """
    scores, labels = _finite("scores", scores), np.asarray(labels, bool)
    if labels.shape != scores.shape:
        raise ValueError(
            f"labels has shape {labels.shape} and scores {scores.shape}; give one "
            "label per score."
        )
    _replicates(replicates)
    level = _level(level)
    order = np.argsort(scores, kind="stable")
    ordered, positive = scores[order], labels[order]
    first = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    # Counts of positives and negatives at each distinct score, ascending.
    pos = np.add.reduceat(positive.astype(np.int64), first)
    neg = np.add.reduceat((~positive).astype(np.int64), first)
    n_pos, n_neg = int(pos.sum()), int(neg.sum())
    if n_pos == 0 or n_neg == 0:
        return Interval(float("nan"), 0.0, 1.0)

    def area(pos_RS, neg_RS):
        below_RS = np.cumsum(neg_RS, axis=-1) - neg_RS
        wins_R = np.sum(pos_RS * (below_RS + 0.5 * neg_RS), axis=-1)
        return wins_R / (float(n_pos) * n_neg)

    rng = np.random.default_rng(seed)
    chunk = max(1, 4_000_000 // pos.size)
    results = []
    for start in range(0, replicates, chunk):
        size = min(chunk, replicates - start)
        results.append(
            area(
                rng.multinomial(n_pos, pos / n_pos, size=size).astype(float),
                rng.multinomial(n_neg, neg / n_neg, size=size).astype(float),
            )
        )
    value = float(area(pos[None].astype(float), neg[None].astype(float))[0])
    return Interval(value, *_percentile(np.concatenate(results), level))


def _percentile(results: np.ndarray, level: float) -> tuple[float, float]:
    kept = results[~np.isnan(results)]
    if kept.size < 0.95 * results.size:
        raise ValueError(
            f"statistic is nan in {results.size - kept.size} of {results.size} "
            "bootstrap replicates, more than 5%; use larger groups or a statistic that "
            "is defined on every resample."
        )
    tail = (1.0 - level) / 2.0
    lo, hi = np.quantile(kept, [tail, 1.0 - tail])
    return float(lo), float(hi)


def _counts(k: Count, n: Count) -> tuple[int, int]:
    if int(k) != k or int(n) != n or not 0 <= k <= n:
        raise ValueError(
            f"k={k} of n={n} is not a count; whole numbers with 0 <= k <= n are needed."
        )
    return int(k), int(n)


def _level(level: float) -> float:
    if not 0.0 < level < 1.0:
        raise ValueError(
            f"level={level} must lie strictly between 0 and 1; use 0.95 for a 95% "
            "interval."
        )
    return float(level)


def _replicates(replicates: int) -> None:
    if replicates < 100:
        raise ValueError(
            f"replicates={replicates} is below 100, too few for interval ends; use "
            "1000."
        )


def _finite(field: str, values: npt.ArrayLike) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(
            f"{field} has shape {values.shape}; a non-empty one-dimensional array is "
            "needed."
        )
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise ValueError(
            f"{field}[{bad[0]}] = {values[bad[0]]} is not finite ({bad.size} in all); "
            "drop and count such examples before asking for an interval."
        )
    return values
