"""Do measures of bias agree? Correlations over models, with honest uncertainty.

Given the scores of many models by several measures, each pair of measures has a
correlation; with 19 models its interval is wide, and with many pairs some are large by
chance. So each comes with

- a permutation p-value, exact (all n! orders) up to 8 models and sampled beyond;
- a bootstrap interval over models, BCa;
- Holm's correction over all pairs that were looked at;
- if reliabilities are given, the correlation corrected for attenuation.

A measure says which sign is "more biased" (`Measure.direction`), so that agreement is a
positive correlation. Two correlations that share a measure are compared by Williams'
test, which knows that they are correlated themselves.

Source: the question is that of Cao et al. 2022, https://arxiv.org/abs/2203.13928;
Holm 1979, Scandinavian Journal of Statistics 6:65-70; Williams 1959, JRSS B 21:396-399;
Spearman 1904 (attenuation). Dimension key: `N` models, `M` measures.

Example::

    found = agreement.pairs(scores, measures, kind='spearman')   # scores float[N, M]
    found[0].first, found[0].second, found[0].value, found[0].p_holm
    agreement.aligned(measures, notion='gender')                 # numbers of those
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy import typing as npt
from scipy import special, stats

from trustml import _validate

KINDS = ("pearson", "spearman", "kendall")
EXACT = 8  # models, up to which all orders are gone through


class Measure(NamedTuple):
    """One way to measure bias, and what it is about.

    Attributes:
      name: shown.
      family: 'intrinsic' or 'extrinsic'.
      direction: 1 where a larger score is more biased, -1 where a smaller one is.
      notion: of bias, such as 'stereotype' or 'performance'.
      group: protected group, such as 'gender'.
      data: what it is computed on.
      config: experiment configuration, such as the pooling or the template.
    """

    name: str
    family: str
    direction: int = 1
    notion: str = ""
    group: str = ""
    data: str = ""
    config: str = ""


class Agreement(NamedTuple):
    """Two measures over the same models.

    Attributes:
      first: name of a measure.
      second: of another.
      n: models in which both are defined.
      value: their correlation, directions taken into account; nan where one of them is
        the same for all models, or there are fewer than 3.
      lo: lower end of the BCa interval.
      hi: upper end.
      p: two-sided permutation p-value.
      p_holm: the same, corrected over all pairs.
      exact: whether all orders were gone through.
      disattenuated: value over the root of both reliabilities, cut to [-1, 1]; nan
        without them.
    """

    first: str
    second: str
    n: int
    value: float
    lo: float
    hi: float
    p: float
    p_holm: float
    exact: bool
    disattenuated: float


def correlation(x: npt.ArrayLike, y: npt.ArrayLike, kind: str = "spearman") -> float:
    """Pearson's r, Spearman's rho or Kendall's tau-b; nan where one is constant.

    A measure that varies by its rounding alone, 1e-15 of its size, is constant.
    """
    kind = _validate.one_of("kind", kind, KINDS)
    x, y = np.asarray(x, float), np.asarray(y, float)
    if _alike(x) or _alike(y):
        return float("nan")
    if kind == "kendall":
        return float(_kendall(x, y[None])[0])
    if kind == "spearman":
        x, y = stats.rankdata(x), stats.rankdata(y)
    return float(_pearson(x, y[None])[0])


def permutation_p(
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    kind: str = "spearman",
    *,
    draws: int = 20_000,
    seed: int = 0,
) -> tuple[float, bool]:
    """Two-sided p-value of no association: share of orders with |r| at least as large.

    Args:
      x: float[N].
      y: float[N].
      kind: of correlation.
      draws: of orders, beyond 8 models; the order seen counts as one more.
      seed: of the draws.

    Returns:
      (p, whether it is exact); (nan, False) where the correlation is undefined.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    seen = correlation(x, y, kind)
    if math.isnan(seen):
        return float("nan"), False
    exact = len(x) <= EXACT
    if exact:
        orders = np.array(list(itertools.permutations(range(len(x)))))
    else:
        rng = np.random.default_rng(seed)
        orders = np.argsort(rng.random((draws, len(x))), axis=1)
    if kind == "kendall":
        found = _kendall(x, y[orders])
    else:
        if kind == "spearman":
            x, y = stats.rankdata(x), stats.rankdata(y)
        found = _pearson(x, y[orders])
    as_large = int(np.sum(np.abs(found) >= abs(seen) - 1e-12))
    if exact:
        return as_large / len(orders), True
    return (1 + as_large) / (1 + len(orders)), False


def interval(
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    kind: str = "spearman",
    *,
    replicates: int = 4000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """BCa interval of a correlation, drawing models.

    Replicates in which a measure is the same for all drawn models are left out; where
    the acceleration is undefined the ends are plain quantiles.

    Args:
      x: float[N].
      y: float[N].
      kind: of correlation.
      replicates: R.
      level: of the interval.
      seed: of the draws.
    """
    level = _validate.in_open_interval("level", level, 0.0, 1.0, "0.95 is usual")
    x, y = np.asarray(x, float), np.asarray(y, float)
    seen, n = correlation(x, y, kind), len(x)
    if math.isnan(seen):
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, n, (replicates, n))
    drawn = _of_rows(x[rows], y[rows], kind)
    drawn = drawn[~np.isnan(drawn)]
    if drawn.size < replicates / 2:
        return float("nan"), float("nan")
    left = np.array(
        [correlation(np.delete(x, i), np.delete(y, i), kind) for i in range(n)]
    )
    away = np.nanmean(left) - left[~np.isnan(left)]
    squares = float((away**2).sum())
    share = (np.mean(drawn < seen) + np.mean(drawn <= seen)) / 2
    z0 = float(special.ndtri(share))
    a = float((away**3).sum() / (6 * squares**1.5)) if squares > 0 else 0.0
    tail = (1 - level) / 2
    ends = special.ndtri([tail, 1 - tail])
    at = np.array([tail, 1 - tail])
    if math.isfinite(z0):
        at = special.ndtr(z0 + (z0 + ends) / (1 - a * (z0 + ends)))
    lo, hi = np.quantile(drawn, np.clip(at, 0.0, 1.0))
    return float(lo), float(hi)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction; nan stays nan and counts for nothing."""
    p = np.asarray(p_values, float)
    order = [i for i in np.argsort(p) if not math.isnan(p[i])]
    out, least = p.copy(), 0.0
    for place, i in enumerate(order):
        least = max(least, min(1.0, (len(order) - place) * p[i]))
        out[i] = least
    return out.tolist()


def pairs(
    scores: npt.ArrayLike,
    measures: Sequence[Measure],
    *,
    kind: str = "spearman",
    reliabilities: Sequence[float] | None = None,
    across: bool = True,
    level: float = 0.95,
    seed: int = 0,
) -> list[Agreement]:
    """Every pair of measures over the models that have both.

    Args:
      scores: float[N, M]; nan where a measure is undefined for a model.
      measures: what the columns are.
      kind: of correlation.
      reliabilities: of the measures, in (0, 1], as `reliability` finds them; nan
        where one is not known, whose pairs are not corrected.
      across: only pairs of an intrinsic and an extrinsic measure.
      level: of the intervals.
      seed: of draws.

    Raises:
      ValueError: columns that are not as many as measures, a direction that is neither
        1 nor -1, or a reliability outside (0, 1].
    """
    table = np.asarray(scores, float)
    if table.ndim != 2 or table.shape[1] != len(measures):
        bound = f"must be [N, {len(measures)}], a column for each measure"
        _validate.fail("scores", f"array of shape {table.shape}", bound)
    for one in measures:
        if one.direction not in (1, -1):
            field = f"direction of {one.name!r}"
            _validate.fail(field, one.direction, "must be 1 or -1")
    for one in reliabilities or ():
        if not (math.isnan(one) or 0 < one <= 1):
            _validate.fail("reliabilities", one, "must lie in (0, 1], or be nan")
    table = table * np.array([one.direction for one in measures])
    found = []
    for i, j in itertools.combinations(range(len(measures)), 2):
        if across and measures[i].family == measures[j].family:
            continue
        both = ~np.isnan(table[:, i]) & ~np.isnan(table[:, j])
        x, y = table[both, i], table[both, j]
        value = correlation(x, y, kind) if both.sum() >= 3 else float("nan")
        nan = float("nan")
        lo, hi, p, exact, corrected = nan, nan, nan, False, nan
        if not math.isnan(value):
            lo, hi = interval(x, y, kind, level=level, seed=seed)
            p, exact = permutation_p(x, y, kind, seed=seed)
        if reliabilities is not None:
            corrected = value / math.sqrt(reliabilities[i] * reliabilities[j])
            corrected = float(np.clip(corrected, -1, 1))
        names = measures[i].name, measures[j].name
        n = int(both.sum())
        found.append(Agreement(*names, n, value, lo, hi, p, nan, exact, corrected))
    corrected_p = holm([one.p for one in found])
    return [one._replace(p_holm=p) for one, p in zip(found, corrected_p, strict=True)]


def reliability(scores: npt.ArrayLike, kind: str = "spearman") -> float:
    """How far the mean of R measurements would come out alike if they were repeated.

    The mean correlation r of two of them, stepped up to R: R r / (1 + (R - 1) r)
    (Spearman and Brown, 1910).

    Args:
      scores: float[R, N], each model measured R >= 2 times: trained anew, or on another
        part of the data.
      kind: of correlation.

    Returns:
      In (0, 1]; nan where r is not positive, or undefined.

    Raises:
      ValueError: fewer than two measurements.
    """
    table = np.asarray(scores, float)
    if table.ndim != 2 or len(table) < 2:
        bound = "must be [R, N] with R >= 2 measurements of each model"
        _validate.fail("scores", f"array of shape {table.shape}", bound)
    both = itertools.combinations(table, 2)
    r = float(np.mean([correlation(x, y, kind) for x, y in both]))
    return len(table) * r / (1 + (len(table) - 1) * r) if r > 0 else float("nan")


def aligned(measures: Sequence[Measure], **wanted: str) -> list[int]:
    """Numbers of the measures with these properties: the switches of the study.

    Args:
      measures: to choose from.
      **wanted: `notion`, `group`, `data` or `config` and the value it must have.

    Raises:
      ValueError: a property that measures do not have, or no measure with the value.
    """
    for field, value in wanted.items():
        _validate.one_of("aligned", field, ("notion", "group", "data", "config"))
        if not any(getattr(one, field) == value for one in measures):
            there = sorted({getattr(one, field) for one in measures})
            bound = f"is that of no measure; there are {', '.join(map(repr, there))}"
            _validate.fail(field, value, bound)
    return [
        n
        for n, one in enumerate(measures)
        if all(getattr(one, field) == value for field, value in wanted.items())
    ]


def williams(r_12: float, r_13: float, r_23: float, n: int) -> tuple[float, float]:
    """Whether two correlations with one measure differ: Williams' t and two-sided p.

    Args:
      r_12: of the shared measure with one.
      r_13: of the shared measure with another.
      r_23: of the two others.
      n: models, > 3.
    """
    _validate.integer_at_least("n", n, 4, "Williams' test has n - 3 degrees of freedom")
    k = 1 - r_12**2 - r_13**2 - r_23**2 + 2 * r_12 * r_13 * r_23
    mean = (r_12 + r_13) / 2
    below = 2 * k * (n - 1) / (n - 3) + mean**2 * (1 - r_23) ** 3
    if below <= 0:
        return float("nan"), float("nan")
    t = (r_12 - r_13) * math.sqrt((n - 1) * (1 + r_23) / below)
    return t, float(2 * stats.t.sf(abs(t), n - 3))


def _pearson(x, y_R):
    """Pearson's r of x [N] with each row of y [R, N]."""
    alike = _alike(x) | _alike(y_R)
    x = x - x.mean()
    y_R = y_R - y_R.mean(axis=1, keepdims=True)
    scale = np.sqrt((x**2).sum() * (y_R**2).sum(axis=1))
    flat = (scale == 0) | alike
    return np.where(flat, np.nan, (y_R @ x) / np.where(flat, 1.0, scale))


def _kendall(x, y_R):
    """Kendall's tau-b of x [N] with each row of y [R, N]."""
    i, j = np.triu_indices(len(x), 1)
    a = np.sign(x[i] - x[j])
    found = []
    for chunk in np.array_split(y_R, max(1, y_R.size * len(x) // 4_000_000)):
        b = np.sign(chunk[:, i] - chunk[:, j])
        scale = np.sqrt((a**2).sum() * (b**2).sum(axis=1))
        flat = scale == 0
        found.append(np.where(flat, np.nan, (b @ a) / np.where(flat, 1.0, scale)))
    return np.concatenate(found)


def _alike(x):
    """Rows [..., N] of one number, but for the rounding of it: bool[...]."""
    rounding = 8 * np.finfo(float).eps * np.abs(x).max(axis=-1)
    return np.ptp(x, axis=-1) <= rounding


def _of_rows(x_R, y_R, kind):
    """Correlation of each row of x with that of y, both [R, N]."""
    if kind == "kendall":
        return np.array(
            [_kendall(x, y[None])[0] for x, y in zip(x_R, y_R, strict=True)]
        )
    if kind == "spearman":
        x_R, y_R = stats.rankdata(x_R, axis=1), stats.rankdata(y_R, axis=1)
    alike = _alike(x_R) | _alike(y_R)
    x_R = x_R - x_R.mean(axis=1, keepdims=True)
    y_R = y_R - y_R.mean(axis=1, keepdims=True)
    scale = np.sqrt((x_R**2).sum(axis=1) * (y_R**2).sum(axis=1))
    flat = (scale == 0) | alike
    return np.where(flat, np.nan, (x_R * y_R).sum(axis=1) / np.where(flat, 1, scale))
