"""Excessive risk: by how much privacy raises the loss of each group, and of whom most.

    R_g = mean over examples i of group g of (loss_i under b - loss_i under a)

where b was trained with privacy and a without, from the same seed. The gap is the
largest R_g minus the smallest, over groups that are large enough to judge.

Both models are judged on the same examples, so what is drawn anew is the difference of
an example, never two losses apart. Weights of the bootstrap are Exp(1) (Rubin 1981), so
that no group can vanish: of examples, and of seeds where there are several; a replicate
weighs example i under seed s by the product (both are drawn from something larger).
Of a handful of seeds such weights show too little spread: Exp(1) on S values has
(S - 1) / (S + 1) of the variance of a mean, and few seeds do not know their own. So
what a seed adds to the mean of a group is stretched by

    sqrt((S + 1) / (S - 1)) t / z

with t and z the quantiles of Student's law of S - 1 degrees and of a normal one,
which is 11 at S = 2: next to nothing can be shown with fewer than five seeds. With one
seed nothing is known of another: intervals are then of this pair of models.

Ends of R_g are quantiles. Of 0/1 losses (errors) few changes are not 0, and where none
is, no weights can vary; so two examples are drawn besides, one lost and one gained,
half an example each (as in Jeffreys' prior of the two shares). Where changes of other
losses are all equal nothing is known of others: ends are nan, and `alike` says so.

How often such an interval at 95% holds the truth, of n people of whom a share p loses
and nobody gains (`pytest -m slow -s tests/fairness/excessive_risk_test.py`; the second
row with the weights of those seen alone):

| n | p = 0 | .01 | .03 | .1 | .3 | .05 lose, .05 gain |
|---|---|---|---|---|---|---|
| 50 | 1 | .999 | .993 | .955 | .956 | .924 |
| 50, seen alone | 1 | .39 | .75 | .94 | .94 | .82 |
| 200 | 1 | .951 | .946 | .937 | .948 | .928 |

A maximum of noisy figures has none, so the gap takes signed
pairs, D_ab = R_a - R_b:

- far end: the largest upper quantile of a pair. Only the pair that truly is the most
  extreme has to keep its own;
- near end: max_ab (D_ab - c se_ab), with c the quantile of the largest
  |D*_ab - D_ab| / se_ab of a replicate, so it is above 0 only if some pair surely
  differs.

And a gap is never negative: its noise floor is the gap where groups are shuffled over
the examples, sizes kept. Seeds treat groups by luck too, which no shuffle of examples
shows, so a draw of the same stretched seed part, about its mean, is added to each.

Source: R_g and its gap are those of Tran et al. 2021, https://arxiv.org/abs/2106.02640.
Dimension key: `n` examples, `S` seeds, `G` groups, `R` replicates.

Example::

    from trustml.fairness import excessive_risk

    found = excessive_risk.measure(loss_plain, loss_private, race, names=names)
    found.risks[2].value, found.risks[2].lo, found.risks[2].hi
    found.gap.value, found.gap.floor_95, found.gap.most
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy import typing as npt
from scipy import stats

from trustml import _validate

_DRAWN = 4_000_000  # weights held at once
_HALF = 0.5  # an example that was not seen
_ROUNDING = 1e-12  # sums in another order


class Risk(NamedTuple):
    """Excessive risk of one group.

    Attributes:
      name: of the group.
      n: examples in it.
      value: R_g, in units of the loss; nan without examples.
      lo: lower end of its interval; of one example there is none, nan.
      hi: upper end.
      small: too few to judge; left out of the gap.
      alike: every change is the same, so that nothing is known of others; ends are nan.
    """

    name: str
    n: int
    value: float
    lo: float
    hi: float
    small: bool
    alike: bool = False


class Gap(NamedTuple):
    """Largest minus smallest excessive risk.

    Attributes:
      value: the gap; nan with fewer than two groups that can be judged.
      lo: lower end of its interval; nan where a judged group is `alike`.
      hi: upper end; nan likewise.
      floor_mean: its mean where groups are shuffled, luck of seeds added.
      floor_95: its 95% quantile there; chance alone gives gaps up to it.
      p_value: share of shuffles with a gap at least as large, counting the one seen.
      most: name of the group with the largest risk.
      least: name of the group with the smallest.
      left_out: groups flagged as small.
    """

    value: float
    lo: float
    hi: float
    floor_mean: float
    floor_95: float
    p_value: float
    most: str
    least: str
    left_out: int


class ExcessiveRisk(NamedTuple):
    """All groups of one attribute.

    Attributes:
      risks: one a group, in the order of `names`.
      gap: of those that are not small.
      seeds: S, pairs of models.
      unknown: examples with group < 0, which count nowhere.
    """

    risks: tuple[Risk, ...]
    gap: Gap
    seeds: int
    unknown: int


def measure(
    before: npt.ArrayLike,
    after: npt.ArrayLike,
    group: npt.ArrayLike,
    *,
    names: Sequence[str] | None = None,
    level: float = 0.95,
    small: int = 30,
    replicates: int = 2000,
    seed: int = 0,
) -> ExcessiveRisk:
    """Excessive risk of every group, with paired intervals, and its gap.

    Args:
      before: float[n], losses of the model without privacy; or float[S, n], a row for
        each seed.
      after: losses of the private model on the same examples, from the same seeds.
      group: int[n] in 0..G-1; negative = unknown.
      names: G names; default '0'..'G-1' of the groups seen.
      level: of each interval.
      small: groups with fewer examples are flagged and left out of the gap.
      replicates: R, of the bootstrap and of the shuffles.
      seed: of both.

    Returns:
      ExcessiveRisk.

    Raises:
      ValueError: on shapes that differ, no seed, a loss that is not finite, or a group
        without a name.
    """
    before, after = (
        np.atleast_2d(_validate.numbers_of(field, losses))
        for field, losses in (("before", before), ("after", after))
    )
    if not len(before):
        bound = "holds no seed"
        _validate.fail("before", before.shape, bound, "give losses of one at least")
    group = _groups(group, before, after)
    level = _validate.in_open_interval("level", level, 0, 1, "0.95 is usual")
    _validate.integer_at_least("replicates", replicates, 100, "2000 is usual")
    count = int(group.max(initial=-1)) + 1
    names = tuple(map(str, range(count))) if names is None else tuple(names)
    if count > len(names):
        bound = f"has no name among {len(names)}"
        _validate.fail("group", count - 1, bound, "give one name per group")
    known = group >= 0
    change_Sn = after - before
    bad = ~np.isfinite(change_Sn).all(axis=0) & known
    if bad.any():
        bound = f"examples have a loss that is not finite, the first is {bad.argmax()}"
        cure = "give them the group -1 and say how many they are"
        _validate.fail("losses", int(bad.sum()), bound, cure)
    binary = all(np.isin(x[:, known], (0.0, 1.0)).all() for x in (before, after))
    rng, tail, nan = np.random.default_rng(seed), (1.0 - level) / 2.0, float("nan")
    of_seeds = rng.standard_exponential((replicates, len(change_Sn)))
    of_seeds /= of_seeds.sum(axis=1, keepdims=True)
    stretch = _stretch(len(change_Sn), tail)
    drawn = np.full((replicates, len(names)), np.nan)
    luck = np.zeros((replicates, len(names)))
    value, risks = np.full(len(names), np.nan), []
    for g, name in enumerate(names):
        rows = np.flatnonzero(group == g)
        lo = hi = nan
        alike = False
        if rows.size:
            mean_S = change_Sn[:, rows].mean(axis=1)
            value[g] = mean_S.mean()
            luck[:, g] = of_seeds @ (stretch * (mean_S - value[g]))
            within_Sn = change_Sn[:, rows] - mean_S[:, None]
            if binary:  # one gained and one lost, besides those seen
                within_Sn = np.concatenate(
                    [within_Sn, np.stack([-1.0 - mean_S, 1.0 - mean_S], axis=1)], axis=1
                )
            drawn[:, g] = value[g] + luck[:, g]
            drawn[:, g] += _replicates(within_Sn, of_seeds, 2 * binary, rng)
            alike = np.ptp(drawn[:, g]) <= _ROUNDING * max(1.0, abs(value[g]))
        if rows.size > 1 and not alike:
            lo, hi = (float(x) for x in np.quantile(drawn[:, g], [tail, 1.0 - tail]))
        few = rows.size < max(small, 2)
        risks.append(Risk(name, rows.size, float(value[g]), lo, hi, few, bool(alike)))
    judged = np.array([g for g, risk in enumerate(risks) if not risk.small], int)
    gap = Gap(nan, nan, nan, nan, nan, nan, "", "", len(names) - len(judged))
    if len(judged) > 1:
        chance = _shuffled(change_Sn.mean(axis=0), group, judged, luck, rng)
        limits = nan, nan
        if not any(risks[g].alike for g in judged):
            limits = _limits(value[judged], drawn[:, judged], tail)
        most, least = (pick(judged, key=value.__getitem__) for pick in (max, min))
        gap = gap._replace(
            value=float(value[most] - value[least]),
            lo=limits[0],
            hi=limits[1],
            floor_mean=float(chance.mean()),
            floor_95=float(np.quantile(chance, 0.95)),
            p_value=float(
                (1 + np.sum(chance >= value[most] - value[least])) / (1 + replicates)
            ),
            most=names[most],
            least=names[least],
        )
    return ExcessiveRisk(tuple(risks), gap, len(change_Sn), int(np.sum(~known)))


def _groups(group, before, after) -> np.ndarray:
    group = np.asarray(group)
    if before.shape != after.shape or before.shape[1:] != group.shape:
        raise ValueError(
            f"before has shape {before.shape}, after {after.shape}, group "
            f"{group.shape}; give a loss of both models and a group for every example."
        )
    if not np.issubdtype(group.dtype, np.integer):
        bound = "are no integers 0..G-1"
        _validate.fail("group", str(group.dtype), bound, "use groups.buckets")
    return group.astype(np.int64)


def _stretch(seeds: int, tail: float) -> float:
    """By how much a seed's part of a group's mean is stretched; see the module."""
    if seeds == 1:
        return 0.0
    at = stats.t.isf(tail, seeds - 1) / stats.norm.isf(tail)
    return float(at * ((seeds + 1) / (seeds - 1)) ** 0.5)


def _replicates(change_Sn, of_seeds_RS, unseen, rng) -> np.ndarray:
    """Weighted means of the changes of one group, float64[R].

    Weights of seeds sum to 1; of examples the last `unseen` are half ones.
    """
    replicates, n = len(of_seeds_RS), change_Sn.shape[1]
    step, out = max(1, _DRAWN // n), []
    for start in range(0, replicates, step):
        weight_Rn = rng.standard_exponential((min(step, replicates - start), n))
        if unseen:
            half = (len(weight_Rn), unseen)
            weight_Rn[:, -unseen:] = rng.standard_gamma(_HALF, half)
        means_RS = weight_Rn @ change_Sn.T / weight_Rn.sum(axis=1, keepdims=True)
        seeds_RS = of_seeds_RS[start : start + step]
        out.append((means_RS * seeds_RS).sum(axis=1))
    return np.concatenate(out)


def _limits(value_G, drawn_RG, tail) -> tuple[float, float]:
    """Ends of the gap from signed pairs; see the module."""
    pairs = ~np.eye(len(value_G), dtype=bool)
    apart = (value_G[:, None] - value_G[None])[pairs]
    drawn = (drawn_RG[:, :, None] - drawn_RG[:, None])[:, pairs]
    se = drawn.std(axis=0, ddof=1)
    varies = np.where(se > 0, se, 1.0)
    largest = np.max(np.abs(drawn - apart) / varies * (se > 0), axis=1)
    near = apart - np.quantile(largest, 1.0 - tail) * se
    far = np.quantile(drawn, 1.0 - tail, axis=0)
    return max(0.0, float(near.max())), max(0.0, float(far.max()))


def _shuffled(change_n, group, judged, luck_RG, rng) -> np.ndarray:
    """Gaps where the judged groups are dealt anew and seeds have luck, float64[R]."""
    change_n = change_n[np.isin(group, judged)]
    sizes = [int(np.sum(group == g)) for g in judged]
    starts = np.cumsum([0, *sizes[:-1]])
    gaps = np.empty(len(luck_RG))
    for r, luck in enumerate(luck_RG[:, judged]):
        means = np.add.reduceat(rng.permutation(change_n), starts) / sizes + luck
        gaps[r] = means.max() - means.min()
    return gaps
