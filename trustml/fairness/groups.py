"""Accuracy per group: who is served worse, and whether chance alone could say so.

For groups g with k_g correct of n_g: rate k_g/n_g with its exact interval, a flag when
the group is too small to judge, and the gap best - worst over the groups that are not
flagged. A maximum of noisy rates is biased upwards, so the gap carries

- an interval from signed pairs: gap = max_ij (p_i - p_j), so the largest pairwise upper
  limit is an upper limit of the gap, and the largest pairwise lower limit, corrected
  for the number of pairs, a lower limit (Newcombe's limits of a difference of rates).
  The bootstrap of the maximum itself is not offered: with equal groups its percentile
  interval never holds the truth (measured, 7 groups of 100: 0 of 300);
- a noise floor: mean and 95% quantile of the gap when group labels are shuffled, one
  multivariate hypergeometric draw per replicate (exact, rows are never touched).

Source: Newcombe 1998, Statistics in Medicine 17:873-890, method 10.
Dimension key: `n` examples, `G` groups, `R` replicates.

Example::

    from trustml.fairness import groups

    by_class = groups.accuracy_by(correct, label, names=('greet', 'play'))
    bucket, names = groups.buckets(length, edges=(4, 8, 12))
    by_length = groups.accuracy_by(correct, bucket, names=names, baseline=before)
    report['per_class'] = groups.rows(by_class)
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy import typing as npt

from trustml import intervals
from trustml.fairness import contrasts


class Rate(NamedTuple):
    """Accuracy of one group.

    Attributes:
      name: of the group.
      n: examples in the group.
      correct: right answers among them.
      value: correct / n; nan if the group is empty.
      lo: lower end of the exact interval.
      hi: upper end.
      small: n below `small`; too few to judge, left out of the gap.
      change: change against the baseline on the same examples, or None. Its interval is
        at level 1 - (1 - level)/G, so that all G hold together (Bonferroni).
    """

    name: str
    n: int
    correct: int
    value: float
    lo: float
    hi: float
    small: bool
    change: intervals.Interval | None


class Gap(NamedTuple):
    """Accuracy of the best group minus that of the worst, flagged groups left out.

    Attributes:
      value: the gap; nan with fewer than two groups that can be judged.
      lo: lower end of the interval.
      hi: upper end.
      floor_mean: mean gap under shuffled group labels (no effect at all).
      floor_95: its 95% quantile; a gap below it is what chance alone gives.
      best: name of the best group.
      worst: name of the worst group.
      left_out: number of groups flagged as small, or empty.
    """

    value: float
    lo: float
    hi: float
    floor_mean: float
    floor_95: float
    best: str
    worst: str
    left_out: int


class Groups(NamedTuple):
    """All groups of one attribute.

    Attributes:
      rates: one per group, in the order of `names`.
      gap: best minus worst.
      unknown: examples with group < 0, in no rate.
    """

    rates: tuple[Rate, ...]
    gap: Gap
    unknown: int


def accuracy_by(
    correct: npt.ArrayLike,
    group: npt.ArrayLike,
    *,
    names: Sequence[str] | None = None,
    baseline: npt.ArrayLike | None = None,
    level: float = 0.95,
    small: int = 30,
    replicates: int = 2000,
    seed: int = 0,
) -> Groups:
    """Accuracy per group with counts, exact intervals, flags and the gap.

    Args:
      correct: bool[n], the model was right.
      group: int[n] in 0..G-1 (class, length bucket, any column); negative = unknown,
        counted in `unknown` and in no rate.
      names: G names; default '0'..'G-1' of the groups seen.
      baseline: bool[n], correct under a reference model on the same examples; fills
        `Rate.change` with paired intervals.
      level: confidence of the intervals.
      small: groups with fewer examples are flagged and left out of the gap.
      replicates: R shuffles behind the gap's noise floor.
      seed: of the shuffles.

    Returns:
      Groups.

    Raises:
      ValueError: on shapes that differ, groups that are not integers, or a group index
        without a name.
    """
    correct, group = np.asarray(correct), np.asarray(group)
    if correct.shape != group.shape or correct.ndim != 1:
        raise ValueError(
            f"correct has shape {correct.shape} and group {group.shape}; give one of "
            "each per example."
        )
    if group.size and not np.issubdtype(group.dtype, np.integer):
        raise ValueError(
            f"group has type {group.dtype}; integers 0..G-1 are needed, use "
            "groups.buckets to cut a number into groups."
        )
    if correct.size and not np.all((correct == 0) | (correct == 1)):
        raise ValueError(
            "correct holds values other than 0 and 1; give one flag per example, "
            "predicted == label."
        )
    correct, known = correct.astype(bool), group >= 0
    count = int(group.max()) + 1 if known.any() else 0
    names = tuple(map(str, range(count))) if names is None else tuple(names)
    if count > len(names):
        raise ValueError(
            f"group holds the index {count - 1} but there are {len(names)} names; give "
            "a name for every group."
        )
    n_G = np.bincount(group[known], minlength=len(names))
    k_G = np.bincount(group[known & correct], minlength=len(names))
    joint = 1.0 - (1.0 - level) / max(1, len(names))
    rates = []
    for g, (name, k, n) in enumerate(zip(names, k_G, n_G, strict=True)):
        k, n, change = int(k), int(n), None
        if baseline is not None:
            rows = group == g
            change = intervals.paired_change(
                np.asarray(baseline, bool)[rows], correct[rows], joint
            )
        lo, hi = intervals.proportion(k, n, level)
        value = k / n if n else float("nan")
        rates.append(Rate(str(name), n, k, value, lo, hi, n < small, change))
    gap = _gap(rates, level, replicates, seed)
    return Groups(tuple(rates), gap, int(np.sum(~known)))


def buckets(
    values: npt.ArrayLike, edges: Sequence[float], unit: str = ""
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Cuts a number (an utterance's length, an age) into groups with readable names.

    Bucket i holds edges[i-1] < value <= edges[i]; whole-number edges are named
    '1-4', '5-8', ..., the last '13+' with edges (4, 8, 12).

    Args:
      values: number[n].
      edges: increasing upper ends of all buckets but the last.
      unit: appended to each name, as 'words'.

    Returns:
      (int64[n] bucket per example, names of all buckets).

    Raises:
      ValueError: if the edges do not increase.
    """
    ends = [float(edge) for edge in edges]
    if not ends or np.any(np.diff(ends) <= 0):
        raise ValueError(f"edges={ends} must increase and hold at least one.")
    values = np.asarray(values)
    whole = all(end.is_integer() for end in ends) and np.issubdtype(
        values.dtype, np.integer
    )
    suffix = f" {unit}" if unit else ""
    names = []
    for low, high in itertools.pairwise([None, *ends, None]):
        if low is None:
            name = f"up to {high:g}"
        elif high is None:
            name = f"{low + 1:g} or more" if whole else f"above {low:g}"
        elif whole:
            name = f"{high:g}" if low + 1 == high else f"{low + 1:g}\u2013{high:g}"
        else:
            name = f"above {low:g}, up to {high:g}"
        names.append(name + suffix)
    return np.searchsorted(ends, values, side="left"), tuple(names)


def rows(result: Groups) -> list[dict[str, Any]]:
    """The rates as plain dictionaries, for `report['runs'][i]['test']['per_class']`."""
    out = []
    for rate in result.rates:
        row = rate._asdict()
        row["change"] = None if rate.change is None else rate.change._asdict()
        out.append(row)
    return out


def _gap(rates: Sequence[Rate], level: float, replicates: int, seed: int) -> Gap:
    judged = [rate for rate in rates if not rate.small and rate.n]
    left_out = len(rates) - len(judged)
    nan = float("nan")
    if len(judged) < 2:
        return Gap(nan, nan, nan, nan, nan, "", "", left_out)
    n_G = np.array([rate.n for rate in judged])
    k_G = np.array([rate.correct for rate in judged])
    best = max(judged, key=lambda rate: rate.value)
    worst = min(judged, key=lambda rate: rate.value)
    limits = contrasts.largest_difference(k_G, n_G, level=level)
    rng = np.random.default_rng(seed)
    shuffled_RG = rng.multivariate_hypergeometric(
        n_G, int(k_G.sum()), size=replicates, method="marginals"
    )
    rates_RG = shuffled_RG / n_G
    floor_R = rates_RG.max(axis=1) - rates_RG.min(axis=1)
    return Gap(
        best.value - worst.value,
        limits.lo,
        min(limits.hi, 1.0),
        float(floor_R.mean()),
        float(np.quantile(floor_R, 0.95)),
        best.name,
        worst.name,
        left_out,
    )
