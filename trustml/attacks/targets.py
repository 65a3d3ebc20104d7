"""One attack on several targets: mean figures, with an error over targets and examples.

Every target has a threshold of its own; AUC and TPR at a fixed FPR are computed per
target and averaged. Targets share their references and their examples, so they are no
independent repetitions, and the spread of their figures divided by sqrt(M) is too
small. The standard error is that of the two-way bootstrap: targets and examples are
drawn with replacement at once, and an example that is drawn twice counts twice under
every target. It errs on the large side where both sources matter (Owen 2007).

The errors describe this set of models and examples. Another training set or another
seed of the whole experiment is a repetition of its own.

Dimension key: `M` targets, `n` examples, `R` replicates.

Example::

    from trustml.attacks import targets

    found = targets.measure(scores.value, signals.member, scores.valid)
    found.auc.value, found.auc.stderr
    found.tpr_at_fpr[0.001].value                 # None where n does not resolve it

References: https://doi.org/10.1214/07-AOAS122 (two-way bootstrap)
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy import typing as npt
from scipy import stats

from trustml import _validate
from trustml.attacks import metrics

FPRS = (0.1, 0.01, 0.001)


class Mean(NamedTuple):
    """A figure averaged over targets.

    Attributes:
      value: mean over targets.
      stderr: of the two-way bootstrap.
      lo: value - z stderr, at least 0.
      hi: value + z stderr, at most 1.
      per_target: float64[M].
    """

    value: float
    stderr: float
    lo: float
    hi: float
    per_target: np.ndarray


class Measured(NamedTuple):
    """What an attack found on M targets.

    Attributes:
      auc: area under the ROC; 0.5 is chance.
      tpr_at_fpr: FPR asked for -> Mean, or None where a target has fewer than 1/FPR
        non-members.
      achieved_fpr: FPR asked for -> mean share of non-members accused, or None.
      balanced_accuracy: (TPR + 1 - FPR)/2 at thresholds that were fixed elsewhere; 0.5
        is guessing. None where none were given.
      n_targets: M.
      n_members: mean number of members a target.
      n_nonmembers: mean number of non-members.
      n_invalid: scores that were left out, of all targets.
      tie_fraction: mean share of a target's scores that equal another one of it.
      level: confidence of the intervals.
    """

    auc: Mean
    tpr_at_fpr: dict[float, Mean | None]
    achieved_fpr: dict[float, float | None]
    balanced_accuracy: Mean | None
    n_targets: int
    n_members: float
    n_nonmembers: float
    n_invalid: int
    tie_fraction: float
    level: float


def measure(
    value: npt.ArrayLike,
    member: npt.ArrayLike,
    valid: npt.ArrayLike | None = None,
    *,
    threshold: npt.ArrayLike | None = None,
    fprs: Sequence[float] = FPRS,
    replicates: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> Measured:
    """Mean AUC and TPR over targets, with two-way bootstrap errors.

    Args:
      value: float[M, n], scores; larger means member.
      member: bool[M, n].
      valid: bool[M, n]; scores that count. None: all.
      threshold: float[M], of `thresholds.fixed`, for the balanced accuracy; never one
        that was chosen on these scores. None leaves it out.
      fprs: false-alarm shares to report.
      replicates: R >= 100.
      level: confidence of the intervals.
      seed: of the bootstrap.

    Returns:
      Measured.

    Raises:
      ValueError: on shapes that differ, a valid score or a threshold that is nan, or a
        target without valid members or non-members.
    """
    _validate.integer_at_least("replicates", replicates, 100, "200 is the default")
    level = _validate.in_open_interval("level", level, 0.0, 1.0, "0.95 is usual")
    value = _validate.numbers_of("value", value, "give scores [M, n]")
    member = np.asarray(member, bool)
    valid = np.ones(value.shape, bool) if valid is None else np.asarray(valid, bool)
    if value.ndim != 2 or not value.shape == member.shape == valid.shape:
        raise ValueError(
            f"value has shape {value.shape}, member {member.shape}, valid "
            f"{valid.shape}; all three need one entry per target and example, [M, n]."
        )
    models, n = value.shape
    fixed = None if threshold is None else _thresholds(threshold, models)
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(n, np.full(n, 1 / n), size=replicates).astype(np.float32)
    drawn = rng.multinomial(models, np.full(models, 1 / models), size=replicates)
    areas, rates = np.zeros(models), np.full((len(fprs), models), np.nan)
    resampled = np.zeros((1 + len(fprs), replicates, models))
    alarms, ties, sizes = np.full((len(fprs), models), np.nan), [], []
    for target in range(models):
        chosen = np.flatnonzero(valid[target])
        truth = member[target, chosen]
        if truth.all() or not truth.any():
            raise ValueError(
                f"target {target} has {int(truth.sum())} valid members and "
                f"{int((~truth).sum())} valid non-members; both are needed: leave the "
                "target out, or find out why its scores are not valid."
            )
        ins, outs = value[target, chosen[truth]], value[target, chosen[~truth]]
        areas[target] = metrics.auc(ins, outs, level).value
        for at, fpr in enumerate(fprs):
            if np.floor(fpr * outs.size + 1e-9) >= 1:
                point = metrics.tpr_at_fpr(ins, outs, fpr, level)
                rates[at, target], alarms[at, target] = point.tpr, point.achieved_fpr
        own = weights[:, chosen]
        resampled[:, :, target] = _resample(value[target, chosen], truth, own, fprs)
        _, inverse, count = np.unique(
            value[target, chosen], return_inverse=True, return_counts=True
        )
        ties.append(float(np.mean(count[inverse] > 1)))
        sizes.append((ins.size, outs.size))
    found = [
        _mean(per_target, part, drawn, level)
        for per_target, part in zip([areas, *rates], resampled, strict=True)
    ]
    balanced = None
    if fixed is not None:
        judged = _balanced(value > fixed[:, None], member, valid, weights)
        balanced = _mean(judged[0], judged[1:], drawn, level)
    known = [not np.isnan(part).any() for part in rates]
    members, nonmembers = np.mean(sizes, axis=0).tolist()
    return Measured(
        auc=found[0],
        tpr_at_fpr={
            float(fpr): found[1 + at] if known[at] else None
            for at, fpr in enumerate(fprs)
        },
        achieved_fpr={
            float(fpr): float(alarms[at].mean()) if known[at] else None
            for at, fpr in enumerate(fprs)
        },
        balanced_accuracy=balanced,
        n_targets=models,
        n_members=members,
        n_nonmembers=nonmembers,
        n_invalid=int((~valid).sum()),
        tie_fraction=float(np.mean(ties)),
        level=level,
    )


def difference(one: Mean, other: Mean) -> tuple[float, float]:
    """Mean paired difference over targets and its standard error, (value, stderr).

    Two attacks on the same targets and examples differ by much less than each varies.
    The error is that of the M differences: good for a comparison on these models.

    Args:
      one: of `measure`.
      other: the same figure of another attack on the same targets.

    Raises:
      ValueError: if the numbers of targets differ or there are less than 2.
    """
    if one.per_target.shape != other.per_target.shape or one.per_target.size < 2:
        raise ValueError(
            f"per_target has shapes {one.per_target.shape} and "
            f"{other.per_target.shape}; the same 2 targets or more are needed."
        )
    gaps = one.per_target - other.per_target
    return float(gaps.mean()), float(gaps.std(ddof=1) / np.sqrt(gaps.size))


def _thresholds(threshold, models):
    found = _validate.numbers_of("threshold", threshold)
    if found.shape != (models,) or np.isnan(found).any():
        raise ValueError(
            f"threshold has shape {found.shape} and {int(np.isnan(found).sum())} nan "
            f"for {models} targets; give one number a target, fixed on other models."
        )
    return found


def _balanced(accused, member, valid, weights_Rn):
    """Balanced accuracy of every target, [1 + R, M]; the first row is unweighted."""
    weights = np.concatenate([np.ones_like(weights_Rn[:1]), weights_Rn])
    sides = []
    for right, side in ((accused, valid & member), (~accused, valid & ~member)):
        total = weights @ side.T.astype(np.float32)
        hits = weights @ (right & side).T.astype(np.float32)
        some = np.maximum(total, 1).astype(np.float64)
        sides.append(np.where(total > 0, hits / some, np.nan))
    return (sides[0] + sides[1]) / 2.0


def _resample(score, truth, weights_Rn, fprs):
    """AUC and TPRs of one target under every row of weights, [1 + F, R].

    Counts are exact in float32: they are whole numbers below 2^24.
    """
    order = np.argsort(-score, kind="stable")
    score, truth = score[order], truth[order]
    # The last example of every block of ties, descending; columns are blocks.
    last = np.flatnonzero(np.r_[score[1:] != score[:-1], True])
    ordered = weights_Rn[:, order]
    ins = np.where(truth, ordered, np.float32(0))
    wrong = np.cumsum(ordered - ins, axis=1, dtype=np.float32)[:, last]
    if last.size < score.size:
        ins = np.add.reduceat(ins, np.r_[0, last[:-1] + 1], axis=1)
    hits, total = ins.sum(axis=1, dtype=np.float64), wrong[:, -1].astype(np.float64)
    out = np.full((1 + len(fprs), hits.size), np.nan)
    good = (hits > 0) & (total > 0)
    hits, total = np.maximum(hits, 1.0), np.maximum(total, 1.0)
    # Non-members above a member's block count against it, those in it one half.
    above = wrong - 0.5 * np.diff(wrong, axis=1, prepend=np.float32(0))
    against = np.einsum("rb,rb->r", ins, above, dtype=np.float64)
    out[0] = 1.0 - against / (hits * total)
    if len(fprs):
        # Steps that accuse at most floor(f n) non-members lie among the first ones.
        most = np.floor(np.multiply.outer(np.asarray(fprs), total) + 1e-9)
        steps = np.array([np.sum(wrong <= m[:, None], axis=1) for m in most])
        found = np.cumsum(ins[:, : max(1, steps.max())], axis=1, dtype=np.float32)
        found = np.pad(found, ((0, 0), (1, 0)))
        for at, (m, step) in enumerate(zip(most, steps, strict=True)):
            rate = np.take_along_axis(found, step[:, None], axis=1)[:, 0] / hits
            out[1 + at] = np.where(m >= 1, rate, 0.0)
    out[:, ~good] = np.nan
    return out


def _mean(per_target, resampled_RM, drawn_RM, level):
    weights = np.where(np.isnan(resampled_RM), 0, drawn_RM)
    total = np.sum(weights * np.nan_to_num(resampled_RM), axis=1)
    means = total / np.maximum(weights.sum(axis=1), 1)
    stderr = float(means.std(ddof=1))
    value = float(per_target.mean())
    half = float(stats.norm.isf((1.0 - level) / 2.0)) * stderr
    return Mean(
        value, stderr, max(0.0, value - half), min(1.0, value + half), per_target
    )
