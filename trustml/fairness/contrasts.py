"""Limits of differences and ratios of rates, and of the largest of them, from counts.

Two groups have k_a of n_a and k_b of n_b. With Wilson's limits l, u of each rate p:

    difference  p_a - p_b  -+ sqrt((p_a - l_a)^2 + (u_b - p_b)^2)       (Newcombe)
    ratio       p_a / p_b, limits by the same recovery of variances     (Donner, Zou)

The gap of several groups is the largest difference of all ordered pairs, and their
ratio the smallest. A bootstrap of a maximum does not hold the truth where groups are
alike; limits of pairs do:

- the far limit is the most extreme of all pairs' limits: only the pair that truly is
  the most extreme has to keep its own;
- the near limit is the most extreme near limit of all pairs, each with its share of
  the error (Bonferroni), so it is above no difference only if some pair truly is.

Nothing here looks at an example; groups must be disjoint.

Sources: Newcombe 1998, Statistics in Medicine 17:873-890, method 10; Donner and Zou
2012, Statistical Methods in Medical Research 21:347-359.
Dimension key: `G` groups.

Example::

    k, n = contrasts.parts('fpr', cells)               # int64[G] each
    gap = contrasts.largest_difference(k, n)
    gap.value, gap.lo, gap.hi, names[gap.high], names[gap.low]
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from trustml import _validate

# Rate -> cells (label, guess) that it counts, and cells that it counts among.
_ALL = ((0, 0), (0, 1), (1, 0), (1, 1))
_PARTS = {
    "selection": (((0, 1), (1, 1)), _ALL),
    "base_rate": (((1, 0), (1, 1)), _ALL),
    "tpr": (((1, 1),), ((1, 0), (1, 1))),
    "fnr": (((1, 0),), ((1, 0), (1, 1))),
    "fpr": (((0, 1),), ((0, 0), (0, 1))),
    "tnr": (((0, 0),), ((0, 0), (0, 1))),
    "ppv": (((1, 1),), ((0, 1), (1, 1))),
    "for_": (((1, 0),), ((0, 0), (1, 0))),
    "accuracy": (((0, 0), (1, 1)), _ALL),
}
RATES = tuple(_PARTS)


class Limits(NamedTuple):
    """A figure of two groups with its interval; nan where it is not defined.

    Attributes:
      value: the figure.
      lo: lower end.
      hi: upper end.
      high: number of the group with the higher rate; -1 where there is none.
      low: number of the other one.
    """

    value: float
    lo: float
    hi: float
    high: int = -1
    low: int = -1


def parts(name: str, cells: Any) -> tuple[np.ndarray, np.ndarray]:
    """A rate as successes and trials, int64[G] each.

    Args:
      name: one of `RATES`.
      cells: [G, 2, 2], counts.

    Raises:
      ValueError: for an unknown rate, another shape, or cells that are no whole numbers
        >= 0: limits of sums of weights, or of noised cells, are others.
    """
    name = _validate.one_of("name", name, RATES)
    cells = np.asarray(cells)
    if cells.ndim != 3 or cells.shape[1:] != (2, 2):
        bound = "are not [G, 2, 2]"
        _validate.fail("cells", f"array of shape {cells.shape}", bound)
    if np.any(~(cells >= 0) | (cells != np.floor(cells))):
        cure = "take intervals.ci for weights, private_counts.ci for noised cells"
        _validate.fail("cells", "array", "must hold whole numbers >= 0", cure)
    counts = cells.astype(np.int64)
    part, whole = (
        np.sum([counts[:, y, k] for y, k in cell], axis=0) for cell in _PARTS[name]
    )
    return part, whole


def difference(
    k_a: int, n_a: int, k_b: int, n_b: int, *, level: float = 0.95
) -> Limits:
    """p_a - p_b of two groups, by Newcombe's method 10; nan without trials of either.

    Args:
      k_a: successes in group a.
      n_a: trials.
      k_b: successes in group b.
      n_b: trials.
      level: of the interval.
    """
    if not n_a or not n_b:
        return _nothing()
    lo, hi = _differences(np.array([k_a, k_b]), np.array([n_a, n_b]), level)
    return Limits(k_a / n_a - k_b / n_b, float(lo[0, 1]), float(hi[0, 1]))


def ratio(k_a: int, n_a: int, k_b: int, n_b: int, *, level: float = 0.95) -> Limits:
    """p_a / p_b of two groups (MOVER-R); nan where p_b is 0 or trials are missing.

    Args:
      k_a: successes in group a.
      n_a: trials.
      k_b: successes in group b.
      n_b: trials.
      level: of the interval, whose upper end may be infinite.
    """
    if not n_a or not n_b or not k_b:
        return _nothing()
    lo, hi = _ratios(np.array([k_a, k_b]), np.array([n_a, n_b]), level)
    return Limits(k_a / n_a / (k_b / n_b), float(lo[0, 1]), float(hi[0, 1]))


def largest_difference(
    k_G: Any, n_G: Any, *, level: float = 0.95, family: int = 1
) -> Limits:
    """Largest minus smallest rate of disjoint groups; those without trials are out.

    Args:
      k_G: int[G], successes.
      n_G: int[G], trials.
      level: of the interval.
      family: gaps of which the largest is to be reported; the near limit then allows
        for having looked at all of them.
    """
    k, n, kept = _kept(k_G, n_G)
    if len(kept) < 2:
        return _nothing()
    rates = k / n
    high, low = int(np.argmax(rates)), int(np.argmin(rates))
    others = ~np.eye(len(k), dtype=bool)
    near = 1.0 - (1.0 - level) / (others.sum() * family)
    lo, hi = _differences(k, n, near)[0], _differences(k, n, level)[1]
    return Limits(
        float(rates[high] - rates[low]),
        float(np.max(lo, where=others, initial=0.0)),
        float(np.max(hi, where=others, initial=0.0)),
        kept[high],
        kept[low],
    )


def smallest_ratio(
    k_G: Any, n_G: Any, *, level: float = 0.95, family: int = 1
) -> Limits:
    """Smallest over largest rate of disjoint groups; nan where nobody has successes.

    Args:
      k_G: int[G], successes.
      n_G: int[G], trials.
      level: of the interval, within [0, 1].
      family: as of `largest_difference`.
    """
    k, n, kept = _kept(k_G, n_G)
    if len(kept) < 2 or not k.any():
        return _nothing()
    rates = k / n
    high, low = int(np.argmax(rates)), int(np.argmin(rates))
    others = ~np.eye(len(k), dtype=bool) & (k > 0)[None]
    near = 1.0 - (1.0 - level) / (others.sum() * family)
    lo, hi = _ratios(k, n, level)[0], _ratios(k, n, near)[1]
    return Limits(
        float(rates[low] / rates[high]),
        float(np.min(lo, where=others, initial=1.0)),
        float(np.min(hi, where=others, initial=1.0)),
        kept[high],
        kept[low],
    )


def worst(found: Sequence[Limits], *, smallest: bool = False) -> Limits:
    """The largest of several gaps, each made with `family=len(found)`.

    Args:
      found: the gaps; nan if one of them is: what is not known may be the largest.
      smallest: take the smallest instead, as of ratios.
    """
    if not found or any(np.isnan(one.value) for one in found):
        return _nothing()
    pick = min if smallest else max
    top = pick(found, key=lambda one: one.value)
    lo, hi = pick(one.lo for one in found), pick(one.hi for one in found)
    return Limits(top.value, lo, hi, top.high, top.low)


def _wilson(k_G, n_G, level):
    """Limits of each rate, float64[G] each; groups have trials."""
    z = float(special.ndtri(1.0 - (1.0 - level) / 2.0))
    p, scale = k_G / n_G, 1.0 + z * z / n_G
    centre = (p + z * z / (2 * n_G)) / scale
    half = z * np.sqrt(p * (1 - p) / n_G + z * z / (4 * n_G**2)) / scale
    lo = np.where(k_G == 0, 0.0, np.maximum(centre - half, 0.0))
    return p, lo, np.where(k_G == n_G, 1.0, np.minimum(centre + half, 1.0))


def _differences(k_G, n_G, level):
    """Limits of p_i - p_j, [G, G] each."""
    p, lo, hi = _wilson(k_G, n_G, _level(level))
    apart = p[:, None] - p[None]
    below = np.hypot((p - lo)[:, None], (hi - p)[None])
    above = np.hypot((hi - p)[:, None], (p - lo)[None])
    return apart - below, apart + above


def _ratios(k_G, n_G, level):
    """Limits of p_i / p_j, [G, G] each; whatever where p_j is 0."""
    p, lo, hi = _wilson(k_G, n_G, _level(level))
    both = p[:, None] * p[None]

    def parts_of(x, y):
        """Of the quadratic a t^2 - 2 b t + c, b = p_i p_j, that the limit solves."""
        a, c = y * (2 * p - y), x * (2 * p - x)
        root = np.sqrt(np.maximum(both**2 - a[None] * c[:, None], 0.0))
        return a[None], c[:, None], both + root

    _, c, sum_ = parts_of(lo, hi)  # the smaller root in the form that needs no a > 0
    below = np.where(sum_ > 0, c / np.where(sum_ > 0, sum_, 1.0), 0.0)
    a, _, sum_ = parts_of(hi, lo)
    above = np.where(a > 0, sum_ / np.where(a > 0, a, 1.0), np.inf)
    return below, above


def _level(level: float) -> float:
    return _validate.in_open_interval("level", level, 0, 1, "0.95 is usual")


def _kept(k_G, n_G):
    k, n = np.asarray(k_G), np.asarray(n_G)
    if k.shape != n.shape or k.ndim != 1:
        bound = f"does not go with n_G of shape {n.shape}"
        _validate.fail("k_G", f"array of shape {k.shape}", bound, "give one per group")
    kept = np.flatnonzero(n > 0)
    return k[kept], n[kept], [int(g) for g in kept]


def _nothing() -> Limits:
    return Limits(float("nan"), float("nan"), float("nan"))
