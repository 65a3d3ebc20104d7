"""Membership inference: was this example in the training data?

An attack is an array of scores, one per example, larger means member; `from_scores`
measures it. `loss_threshold` is the plainest one: a model fits what it was trained on,
so a small loss speaks for membership (Yeom et al. 2018,
https://arxiv.org/abs/1709.01604).

    score_i = -loss_i                                          calibration='none'
    score_i = mean loss of label(i) over non-members - loss_i  calibration='label'

The second needs labels and references held by the attacker; it removes the difficulty
of a class. It leaves each non-member out of its own mean (else its score would be
pulled towards 0 and that difference alone would separate the sides).

Losses come from `task.predict` in evaluation mode, without dropout. Members and
non-members must come from the same distribution (a random split); otherwise the attack
measures the difference of the distributions.

Example::

    from trustml.attacks import membership

    result = membership.loss_threshold(train_losses, test_losses)
    result.auc, result.auc_interval            # 0.5 is chance
    result.tpr_at_fpr[0.01]                    # Point(tpr, lo, hi, achieved_fpr, ...)
    run['membership'] = membership.as_dict(result, epsilon=1.0, delta=1e-5)
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy import typing as npt

from trustml import _validate
from trustml.attacks import blind as blind_lib
from trustml.attacks import metrics, threat

FPRS = (0.1, 0.01, 0.001)


class MembershipResult(NamedTuple):
    """What one membership attack found on one model.

    Attributes:
      attack: name of the attack, for the reader.
      access: what the attacker sees: 'label', 'confidence', 'loss', 'white-box'.
      references: models the attacker trains itself: 'none', 'OUT only', 'IN+OUT'.
      population_same_distribution: the attacker's data come from the distribution of
        the training data.
      membership: 'randomised' (a random split, a coin) or 'observational' (a date, a
        crawl).
      n_members: training examples scored.
      n_nonmembers: other examples scored.
      auc: area under the ROC; 0.5 is chance.
      auc_interval: (lo, hi), DeLong.
      tpr_at_fpr: FPR asked for -> Point(tpr, lo, hi, achieved_fpr, ...), or None where
        there are fewer than 1/FPR non-members ("not available").
      balanced_accuracy: at a threshold chosen on a held-out half.
      roc: corner points of the ROC.
      tie_fraction: share of all scores that equal another one; much of it means that
        scores are saturated and low FPRs cannot be resolved.
      level: confidence of all intervals.
      blind: what a classifier finds that sees no model, or None where it was not run.
      warnings: sentences that belong beside the figures, the gravest first.
    """

    attack: str
    access: str
    references: str
    population_same_distribution: bool
    membership: str
    n_members: int
    n_nonmembers: int
    auc: float
    auc_interval: tuple[float, float]
    tpr_at_fpr: dict[float, metrics.Point | None]
    balanced_accuracy: metrics.Balanced
    roc: metrics.Roc
    tie_fraction: float
    level: float
    blind: blind_lib.Blind | None
    warnings: tuple[str, ...]


def loss_threshold(
    member_losses: npt.ArrayLike,
    nonmember_losses: npt.ArrayLike,
    *,
    calibration: str = "none",
    member_labels: npt.ArrayLike | None = None,
    nonmember_labels: npt.ArrayLike | None = None,
    fprs: Sequence[float] = FPRS,
    level: float = 0.95,
    seed: int = 0,
) -> MembershipResult:
    """The loss-threshold attack: a small loss speaks for membership.

    Args:
      member_losses: float[n_in], evaluation-mode loss per training example.
      nonmember_losses: float[n_out], the same on examples never trained on.
      calibration: 'none' (Yeom et al. 2018), or 'label': the mean loss of the example's
        label over non-members is subtracted.
      member_labels: int[n_in], for calibration='label'.
      nonmember_labels: int[n_out], for calibration='label'.
      fprs: false-alarm shares to report.
      level: confidence of the intervals.
      seed: of the split that chooses the threshold of the balanced accuracy.

    Returns:
      MembershipResult.

    Raises:
      ValueError: on an unknown calibration, missing labels, or a nan loss (its index is
        named). A loss of +inf is an example the model finds impossible: it ranks last.
    References: https://arxiv.org/abs/1709.01604
    """
    members, nonmembers = (
        _validate.numbers_of("member_losses", member_losses),
        _validate.numbers_of("nonmember_losses", nonmember_losses),
    )
    for field, losses in (
        ("member_losses", members),
        ("nonmember_losses", nonmembers),
    ):
        bad = np.flatnonzero(np.isnan(losses))
        if bad.size:
            raise ValueError(
                f"{field}[{bad[0]}] is nan ({bad.size} in all); a nan has no rank: "
                "drop and count such examples, or find out why the loss is nan."
            )
    if calibration == "none":
        scores = -members, -nonmembers
        attack = "loss threshold"
    elif calibration == "label":
        if member_labels is None or nonmember_labels is None:
            raise ValueError(
                "calibration='label' needs member_labels and nonmember_labels; pass "
                "them, or use calibration='none'."
            )
        scores = _label_calibrated(members, nonmembers, member_labels, nonmember_labels)
        attack = "loss threshold, calibrated by label"
    else:
        raise ValueError(
            f"calibration={calibration!r} is not one of 'none', 'label'; use 'none' "
            "for the attack of Yeom et al."
        )
    return from_scores(*scores, attack=attack, fprs=fprs, level=level, seed=seed)


def from_scores(
    member_scores: npt.ArrayLike,
    nonmember_scores: npt.ArrayLike,
    *,
    attack: str,
    access: str = "loss",
    references: str = "none",
    population_same_distribution: bool = True,
    membership: str = "randomised",
    blind: blind_lib.Blind | None = None,
    fprs: Sequence[float] = FPRS,
    level: float = 0.95,
    seed: int = 0,
) -> MembershipResult:
    """Measures any membership score with the honest metrics of this package.

    Args:
      member_scores: float[n_in], larger means member.
      nonmember_scores: float[n_out].
      attack: name for the reader.
      access: what the attacker sees, one of `threat.ACCESS`.
      references: models the attacker trains itself, one of `threat.REFERENCES`.
      population_same_distribution: see `threat.Threat`.
      membership: 'randomised' or 'observational'; see `threat.Threat`.
      blind: of `blind.measure` on the same examples; wanted where membership was only
        observed.
      fprs: false-alarm shares to report.
      level: confidence of the intervals.
      seed: of the split that chooses the threshold of the balanced accuracy.

    Returns:
      MembershipResult.

    Raises:
      ValueError: as `metrics.check_scores` and `metrics.balanced_accuracy`, and on an
        unknown name of the threat model.
    """
    who = threat.model(
        access=access,
        references=references,
        population_same_distribution=population_same_distribution,
        membership=membership,
    )
    ins, outs = metrics.check_scores(member_scores, nonmember_scores)
    area = metrics.auc(ins, outs, level)
    points = {}
    for fpr in fprs:
        enough = np.floor(fpr * outs.size + 1e-9) >= 1
        points[float(fpr)] = (
            metrics.tpr_at_fpr(ins, outs, fpr, level) if enough else None
        )
    _, inverse, count = np.unique(
        np.concatenate([ins, outs]), return_inverse=True, return_counts=True
    )
    return MembershipResult(
        attack=attack,
        **who._asdict(),
        n_members=ins.size,
        n_nonmembers=outs.size,
        auc=area.value,
        auc_interval=(area.lo, area.hi),
        tpr_at_fpr=points,
        balanced_accuracy=metrics.balanced_accuracy(ins, outs, level=level, seed=seed),
        roc=metrics.roc(ins, outs),
        tie_fraction=float(np.mean(count[inverse] > 1)),
        level=level,
        blind=blind,
        warnings=_warnings(who, blind, ins, outs, points),
    )


def as_dict(
    result: MembershipResult,
    *,
    epsilon: float | None = None,
    delta: float | None = None,
    max_points: int = 400,
) -> dict[str, Any]:
    """The result as plain numbers for `report['runs'][i]['membership']`.

    Args:
      result: of an attack.
      epsilon: spent by the run; with delta, adds `bound`, the curve that no attack can
        exceed under (epsilon, delta)-DP. None for a run without privacy.
      delta: of the same guarantee.
      max_points: the ROC is thinned to about this many corner points, evenly in
        log(FPR), so that the low end keeps its detail; every point kept is exact.

    Returns:
      dict of floats, lists and strings; an FPR that is not available is None.
    """
    if epsilon is None:
        delta = 0.0
    elif delta is None:
        cure = "give the delta of the same guarantee; 0.0 for pure privacy"
        _validate.fail("delta", None, f"is missing beside epsilon={epsilon:g}", cure)
    roc, bound = _thin(result.roc, max_points), None
    if epsilon is not None and np.isfinite(epsilon):
        fpr = np.geomspace(min(1e-4, 1.0 / result.n_nonmembers), 1.0, 100)
        tpr = metrics.tpr_bound(fpr, epsilon, delta)
        bound = {"fpr": fpr.tolist(), "tpr": tpr.tolist()}
    return {
        "attack": result.attack,
        "access": result.access,
        "references": result.references,
        "population_same_distribution": result.population_same_distribution,
        "membership": result.membership,
        "blind": None if result.blind is None else result.blind._asdict(),
        "warnings": list(result.warnings),
        "n_members": result.n_members,
        "n_nonmembers": result.n_nonmembers,
        "auc": result.auc,
        "auc_interval": list(result.auc_interval),
        "tpr_at_fpr": {
            f"{fpr:g}": None if point is None else point._asdict()
            for fpr, point in result.tpr_at_fpr.items()
        },
        "balanced_accuracy": result.balanced_accuracy._asdict(),
        "roc": {"fpr": roc.fpr.tolist(), "tpr": roc.tpr.tolist()},
        "bound": bound,
        "tie_fraction": result.tie_fraction,
        "level": result.level,
    }


def _warnings(who, blind, ins, outs, points):
    found = []
    if blind is not None and blind.differs:
        found.append(blind.sentence)
    if who.membership == "observational" and blind is None:
        found.append(
            "Membership was observed, not randomised, and no blind baseline was run: "
            "the attack may measure a difference of the distributions."
        )
    if not who.population_same_distribution:
        found.append(
            "The attacker's data come from another distribution than the training data."
        )
    both = np.concatenate([ins, outs])
    for fpr, point in points.items():
        tied = 0.0 if point is None else float(np.mean(both == point.threshold))
        if tied > 0.01:
            found.append(
                f"{tied:.1%} of the scores are tied at the threshold for FPR {fpr:g}; "
                "the usual cause is saturated probabilities, or scores that count."
            )
            break
    return tuple(found)


def _label_calibrated(members, nonmembers, member_labels, nonmember_labels):
    y_in, y_out = np.asarray(member_labels), np.asarray(nonmember_labels)
    for field, labels, losses in (
        ("member_labels", y_in, members),
        ("nonmember_labels", y_out, nonmembers),
    ):
        if labels.shape != losses.shape:
            raise ValueError(
                f"{field} has shape {labels.shape} for {losses.shape} losses; give one "
                "label per loss."
            )
        bad = np.flatnonzero(~np.isfinite(losses))
        if bad.size:
            raise ValueError(
                f"the loss at index {bad[0]} beside {field} is infinite, so the mean "
                "of its label is too; use calibration='none', which only ranks."
            )
    labels, coded = np.unique(np.concatenate([y_in, y_out]), return_inverse=True)
    coded_in, coded_out = coded[: y_in.size], coded[y_in.size :]
    total = np.bincount(coded_out, weights=nonmembers, minlength=labels.size)
    count = np.bincount(coded_out, minlength=labels.size)
    overall = float(nonmembers.mean())
    # Labels without (another) non-member fall back to the overall mean.
    mean_in = np.where(count > 0, total / np.maximum(count, 1), overall)[coded_in]
    others = count[coded_out] - 1
    mean_out = np.where(
        others > 0, (total[coded_out] - nonmembers) / np.maximum(others, 1), overall
    )
    return mean_in - members, mean_out - nonmembers


def _thin(curve: metrics.Roc, max_points: int) -> metrics.Roc:
    size = curve.fpr.size
    if size <= max_points:
        return curve
    # The last corner at or below each of a grid of FPRs: the highest TPR it allows.
    positive = curve.fpr[curve.fpr > 0]
    grid = np.geomspace(positive.min(), 1.0, max_points // 2)
    grid = np.concatenate([grid, np.linspace(0.0, 1.0, max_points // 2)])
    keep = np.searchsorted(curve.fpr, grid, side="right") - 1
    keep = np.unique(np.concatenate([[0, size - 1], keep]))
    return metrics.Roc(*(part[keep] for part in curve))
