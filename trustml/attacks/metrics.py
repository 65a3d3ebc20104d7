"""Honest metrics of a membership score: ROC, AUC, TPR at a small FPR, the DP bound.

Scores are oriented so that larger means member. A threshold `tau` says "member" if
score > tau. Thresholds lie between distinct scores only, so ties never split, and
nothing is interpolated:

- TPR at FPR f: k = floor(f * n_neg), tau = the (k+1)-th largest non-member score; the
  achieved FPR (#non-members > tau)/n_neg never exceeds f. With f * n_neg < 1 the figure
  does not exist and is refused.
- AUC = P(s_in > s_out) + P(s_in = s_out)/2 by mid-ranks, O(n log n); interval by
  DeLong.
- balanced accuracy at a threshold chosen on one half and measured on the other; the
  maximum over all thresholds is optimistic and is named `max_over_thresholds`.

Sources: Carlini et al. 2022 (https://arxiv.org/abs/2112.03570) for TPR at low FPR;
DeLong et al. 1988; Kairouz et al. 2015 for the bound. Dimension key: `n_in`, `n_out`
scores.

Example::

    from trustml.attacks import metrics

    area = metrics.auc(scores_in, scores_out)              # value, lo, hi
    point = metrics.tpr_at_fpr(scores_in, scores_out, 0.01)
    limit = metrics.tpr_bound(point.achieved_fpr, epsilon=1.0, delta=1e-5)
"""

from typing import NamedTuple

import numpy as np
from numpy import typing as npt
from scipy import special, stats

from trustml import _validate, intervals


class Area(NamedTuple):
    """AUC with its interval; unpacks as `value, lo, hi`.

    Attributes:
      value: in [0, 1]; 0.5 is chance.
      lo: lower end.
      hi: upper end.
    """

    value: float
    lo: float
    hi: float


class Point(NamedTuple):
    """TPR at a fixed FPR; the first four fields are (tpr, lo, hi, achieved_fpr).

    Attributes:
      tpr: share of members found.
      lo: lower end of its exact interval (the threshold depends on non-members only).
      hi: upper end.
      achieved_fpr: false alarms among the non-members, never above the FPR asked for.
      fpr_lo: lower end of the interval of the true FPR at this threshold.
      fpr_hi: upper end.
      threshold: tau; "member" if score > tau.
      low_resolution: fewer than 10 false alarms allowed, so the FPR itself is
        uncertain.
    """

    tpr: float
    lo: float
    hi: float
    achieved_fpr: float
    fpr_lo: float
    fpr_hi: float
    threshold: float
    low_resolution: bool


class Balanced(NamedTuple):
    """Balanced accuracy (TPR + TNR)/2 at a threshold fixed on held-out scores.

    Attributes:
      value: on the half that did not choose the threshold; 0.5 is chance.
      lo: lower end of its interval.
      hi: upper end.
      advantage: 2 value - 1 = TPR - FPR (Yeom et al. 2018).
      threshold: chosen on the other half.
      max_over_thresholds: best figure over all thresholds on all scores: optimistic,
        for comparison with papers that print it.
    """

    value: float
    lo: float
    hi: float
    advantage: float
    threshold: float
    max_over_thresholds: float


class Fixed(NamedTuple):
    """Rates at a threshold that was fixed without these scores.

    Attributes:
      accuracy: share of all examples judged right, as many of each side as there are.
      balanced_accuracy: (TPR + 1 - FPR)/2; 0.5 is chance.
      lo: lower end of its interval.
      hi: upper end.
      tpr: share of members found.
      fpr: share of non-members accused.
      threshold: "member" if score > threshold.
    """

    accuracy: float
    balanced_accuracy: float
    lo: float
    hi: float
    tpr: float
    fpr: float
    threshold: float


class Roc(NamedTuple):
    """ROC as its corner points, from (0, 0) to (1, 1), one per distinct threshold.

    Attributes:
      fpr: float64[P], not decreasing.
      tpr: float64[P], not decreasing.
      threshold: float64[P]; "member" if score > threshold.
    """

    fpr: np.ndarray
    tpr: np.ndarray
    threshold: np.ndarray


def check_scores(
    member_scores: npt.ArrayLike, nonmember_scores: npt.ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    """Checks the two score arrays and returns them as float64.

    Args:
      member_scores: float[n_in], examples of the training data.
      nonmember_scores: float[n_out], examples outside.

    Returns:
      Both as float64. +inf and -inf are kept: they rank.

    Raises:
      ValueError: if an array is empty, not one-dimensional, or holds nan (the index is
        named).
    """
    out = []
    for field, scores in (
        ("member_scores", member_scores),
        ("nonmember_scores", nonmember_scores),
    ):
        scores = _validate.numbers_of(field, scores, "give one score per example")
        if scores.ndim != 1 or scores.size == 0:
            raise ValueError(
                f"{field} has shape {scores.shape}; one score per example is needed, "
                "at least one."
            )
        bad = np.flatnonzero(np.isnan(scores))
        if bad.size:
            raise ValueError(
                f"{field}[{bad[0]}] is nan ({bad.size} in all); a nan has no rank: "
                "drop and count such examples, or find out why the loss is nan."
            )
        out.append(scores)
    return out[0], out[1]


def roc(member_scores: npt.ArrayLike, nonmember_scores: npt.ArrayLike) -> Roc:
    """Corner points of the ROC; tied scores move together, in one diagonal step.

    Args:
      member_scores: float[n_in].
      nonmember_scores: float[n_out].

    Returns:
      Roc with one point per distinct score, plus (0, 0).

    Raises:
      ValueError: as `check_scores`.
    """
    ins, outs = check_scores(member_scores, nonmember_scores)
    values = np.unique(np.concatenate([ins, outs]))[::-1]
    tpr = 1.0 - np.searchsorted(np.sort(ins), values, side="right") / ins.size
    fpr = 1.0 - np.searchsorted(np.sort(outs), values, side="right") / outs.size
    return Roc(np.append(fpr, 1.0), np.append(tpr, 1.0), np.append(values, -np.inf))


def auc(
    member_scores: npt.ArrayLike, nonmember_scores: npt.ArrayLike, level: float = 0.95
) -> Area:
    """Area under the ROC by mid-ranks, with DeLong's interval.

    Var = var(V_in)/n_in + var(V_out)/n_out with V_in[i] the share of non-members below
    member i (ties half) and V_out[j] the share of members above non-member j. The
    interval is built on the logit, which keeps it inside [0, 1]. A perfect ranking has
    no spread to estimate; there the end is that of min(n_in, n_out) disjoint pairs that
    all came out right, (a/2)^(1/min(n_in, n_out)).

    Args:
      member_scores: float[n_in].
      nonmember_scores: float[n_out].
      level: confidence, in (0, 1).

    Returns:
      Area.

    Raises:
      ValueError: as `check_scores`.
    References: DeLong et al. 1988, https://doi.org/10.2307/2531595; Sun and Xu 2014 for
      the mid-rank form.
    """
    ins, outs = check_scores(member_scores, nonmember_scores)
    level = _validate.in_open_interval("level", level, 0, 1, "0.95 is usual")
    n_in, n_out = ins.size, outs.size
    ranks = stats.rankdata(np.concatenate([ins, outs]))
    below = (ranks[:n_in] - stats.rankdata(ins)) / n_out
    above = 1.0 - (ranks[n_in:] - stats.rankdata(outs)) / n_in
    value = float(below.mean())
    tail = (1.0 - level) / 2.0
    variance = sum(
        float(v.var(ddof=1)) / v.size if v.size > 1 else 0.25 for v in (below, above)
    )
    if value in (0.0, 1.0):
        edge = tail ** (1.0 / min(n_in, n_out))
        return Area(value, *((edge, 1.0) if value == 1.0 else (0.0, 1.0 - edge)))
    if variance == 0.0:
        # All scores tied: every pair counts one half, nothing varies.
        return Area(value, value, value)
    half = float(stats.norm.isf(tail)) * np.sqrt(variance) / (value * (1.0 - value))
    lo, hi = special.expit(special.logit(value) + np.array([-half, half]))
    return Area(value, float(lo), float(hi))


def tpr_at_fpr(
    member_scores: npt.ArrayLike,
    nonmember_scores: npt.ArrayLike,
    fpr: float,
    level: float = 0.95,
) -> Point:
    """Share of members found while at most a share `fpr` of non-members is accused.

    Args:
      member_scores: float[n_in].
      nonmember_scores: float[n_out]; n_out >= 1/fpr.
      fpr: allowed share of false alarms, in (0, 1).
      level: confidence of the intervals.

    Returns:
      Point; Clopper-Pearson for TPR, and Beta(k+1, n_out-k) for the true FPR above the
      (k+1)-th largest non-member.

    Raises:
      ValueError: if fpr is outside (0, 1), or n_out < 1/fpr (the smallest FPR that the
        data can show is named); and as `check_scores`.
    References: https://arxiv.org/abs/2112.03570
    """
    ins, outs = check_scores(member_scores, nonmember_scores)
    if not 0.0 < fpr < 1.0:
        raise ValueError(
            f"fpr={fpr} must lie strictly between 0 and 1; use 0.01 for one false "
            "alarm in a hundred."
        )
    # 1e-9 undoes the rounding of, say, 0.29 * 100 = 28.999999999999996.
    k = int(np.floor(fpr * outs.size + 1e-9))
    if k < 1:
        raise ValueError(
            f"fpr={fpr} needs at least {int(np.ceil(1 / fpr - 1e-9))} non-members and "
            f"there are {outs.size}; use more, or ask for fpr >= {1 / outs.size:.2g}."
        )
    threshold = float(np.partition(outs, outs.size - 1 - k)[outs.size - 1 - k])
    found = int(np.sum(ins > threshold))
    alarms = int(np.sum(outs > threshold))
    tail = (1.0 - level) / 2.0
    lo, hi = intervals.proportion(found, ins.size, level)
    fpr_lo, fpr_hi = stats.beta.ppf([tail, 1.0 - tail], k + 1, outs.size - k)
    if alarms < k:
        # Ties: the threshold lies on an atom, all of which passes for no false alarm.
        fpr_lo = intervals.proportion(alarms, outs.size, level)[0]
    return Point(
        found / ins.size,
        lo,
        hi,
        alarms / outs.size,
        float(fpr_lo),
        float(fpr_hi),
        threshold,
        fpr * outs.size < 10.0,
    )


def balanced_accuracy(
    member_scores: npt.ArrayLike,
    nonmember_scores: npt.ArrayLike,
    *,
    level: float = 0.95,
    seed: int = 0,
) -> Balanced:
    """Balanced accuracy at the best threshold of a random half, on the other half.

    Args:
      member_scores: float[n_in], n_in >= 2.
      nonmember_scores: float[n_out], n_out >= 2.
      level: confidence of the interval (Newcombe's, from Wilson limits of TPR and TNR).
      seed: of the split into halves.

    Returns:
      Balanced.

    Raises:
      ValueError: as `check_scores`, and with fewer than 2 scores on a side.
    References: Yeom et al. 2018, https://arxiv.org/abs/1709.01604
    """
    ins, outs = check_scores(member_scores, nonmember_scores)
    if min(ins.size, outs.size) < 2:
        raise ValueError(
            f"{ins.size} members and {outs.size} non-members cannot be halved; give at "
            "least 2 of each."
        )
    rng = np.random.default_rng(seed)
    halves = []
    for scores in (ins, outs):
        shuffled = rng.permutation(scores)
        halves.append((shuffled[: scores.size // 2], shuffled[scores.size // 2 :]))
    (in_choose, in_test), (out_choose, out_test) = halves
    threshold = best_threshold(in_choose, out_choose)
    tp, tn = int(np.sum(in_test > threshold)), int(np.sum(out_test <= threshold))
    value, lo, hi = _mean_of_rates(tp, in_test.size, tn, out_test.size, level)
    return Balanced(
        value,
        lo,
        hi,
        2.0 * value - 1.0,
        threshold,
        _best(roc(ins, outs))[0],
    )


def best_threshold(
    member_scores: npt.ArrayLike, nonmember_scores: npt.ArrayLike
) -> float:
    """The threshold of the largest balanced accuracy, to be used on OTHER scores.

    Args:
      member_scores: float[n_in], of shadow models or a held-out half.
      nonmember_scores: float[n_out].

    Raises:
      ValueError: as `check_scores`.
    """
    return _best(roc(member_scores, nonmember_scores))[1]


def at_threshold(
    member_scores: npt.ArrayLike,
    nonmember_scores: npt.ArrayLike,
    threshold: float,
    level: float = 0.95,
) -> Fixed:
    """Accuracy at a threshold fixed beforehand, such as one from shadow models.

    Args:
      member_scores: float[n_in].
      nonmember_scores: float[n_out].
      threshold: not chosen on these scores.
      level: confidence of the interval (Newcombe's).

    Returns:
      Fixed.

    Raises:
      ValueError: as `check_scores`, and if the threshold is nan.
    References: Shokri et al. 2017, https://arxiv.org/abs/1610.05820
    """
    ins, outs = check_scores(member_scores, nonmember_scores)
    if np.isnan(threshold):
        raise ValueError(
            f"threshold={threshold} must be a number; fix it on shadow models, or use "
            "balanced_accuracy to choose one on a half."
        )
    tp, tn = int(np.sum(ins > threshold)), int(np.sum(outs <= threshold))
    value, lo, hi = _mean_of_rates(tp, ins.size, tn, outs.size, level)
    return Fixed(
        (tp + tn) / (ins.size + outs.size),
        value,
        lo,
        hi,
        tp / ins.size,
        1.0 - tn / outs.size,
        float(threshold),
    )


def tpr_bound(fpr: npt.ArrayLike, epsilon: float, delta: float) -> np.ndarray:
    """Largest TPR that any attack can reach at this FPR under (epsilon, delta)-DP.

    min(e^eps fpr + delta, 1 - e^-eps (1 - delta - fpr), 1)

    It holds for a fixed pair of neighbouring data sets, and on average over examples
    when membership was decided by independent fair draws; a membership test over
    examples of one model is bounded by it only then.

    Args:
      fpr: float array in [0, 1].
      epsilon: >= 0; inf gives 1 everywhere.
      delta: in [0, 1].

    Returns:
      float64, same shape.

    Raises:
      ValueError: on epsilon < 0 or nan, or delta outside [0, 1].
    References: Kairouz, Oh, Viswanath 2015, https://arxiv.org/abs/1311.0776
    """
    if not epsilon >= 0.0:
        raise ValueError(
            f"epsilon={epsilon} must be 0 or more; give the epsilon spent."
        )
    if not 0.0 <= delta <= 1.0:
        raise ValueError(
            f"delta={delta} must lie between 0 and 1; give the plan's delta."
        )
    fpr = _validate.numbers_of("fpr", fpr)
    if epsilon > 700.0:  # e^eps leaves float64; the bound says nothing.
        return np.ones(fpr.shape)
    first = np.exp(epsilon) * fpr + delta
    second = 1.0 - np.exp(-epsilon) * (1.0 - delta - fpr)
    return np.asarray(np.minimum(np.minimum(first, second), 1.0))


def _mean_of_rates(tp, n_in, tn, n_out, level):
    """(TPR + TNR)/2 with Newcombe's interval, from Wilson limits of the two."""
    below, above = [], []
    for k, n in ((tp, n_in), (tn, n_out)):
        lo, hi = intervals.wilson(k, n, level)
        below.append(k / n - lo)
        above.append(hi - k / n)
    value = (tp / n_in + tn / n_out) / 2.0
    lo = max(0.0, value - float(np.hypot(*below)) / 2.0)
    return value, lo, min(1.0, value + float(np.hypot(*above)) / 2.0)


def _best(curve: Roc) -> tuple[float, float]:
    balanced = (curve.tpr + 1.0 - curve.fpr) / 2.0
    best = int(np.argmax(balanced))
    return float(balanced[best]), float(curve.threshold[best])
