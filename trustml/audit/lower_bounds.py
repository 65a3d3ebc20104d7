"""Lower bounds on epsilon, from scores of canaries that were in the data and out of it.

| function | needs | gives |
|---|---|---|
| `gaussian` | independent canaries; the mechanism is Gaussian DP | tight at q = 1 |
| `epsilon_delta` | independent canaries | any mechanism; loose at small delta |
| `one_run` | fair coins, nothing else | any mechanism, one run; looser still |

Each holds with probability 1 - alpha over the audit's own randomness: if the mechanism
is (epsilon, delta)-DP, the bound exceeds epsilon with probability at most alpha.

What all of them assume: thresholds and numbers of guesses were fixed before the scores
were seen (a threshold chosen on the audited scores needs a simultaneous band over all
of them, which is not here).

Independent canaries: given which are in, the scores of different canaries are
independent draws, those of canaries in with one law and those of canaries out with
another. True of separate runs; true in one run of gradient canaries of
`trustml.audit.canaries` with independent noise on every coordinate, which is itself
among the things to be tested (`tests/privacy/checks`).

Example::

    bound = lower_bounds.gaussian(
        scores[included], scores[~included], threshold=steps / 2, delta=1e-5, alpha=0.01
    )
    print(bound.epsilon, '<= epsilon, with confidence', bound.confidence)

References: https://arxiv.org/abs/2302.07956 (Gaussian DP audits),
https://arxiv.org/abs/1905.02383 (Gaussian DP), https://arxiv.org/abs/2305.08846 (one
run), Clopper and Pearson 1934.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy import typing as npt
from scipy import optimize, special, stats

from trustml import _validate, intervals
from trustml.attacks import metrics
from trustml.privacy import accounting


class Bound(NamedTuple):
    """A lower bound on epsilon at the delta asked for.

    Attributes:
      epsilon: >= 0; 0 says nothing.
      confidence: 1 - alpha.
      fpr_hi: upper limit of the share of canaries out that are called in; nan where
        the bound does not use it.
      fnr_hi: upper limit of the share of canaries in that are called out; likewise.
      mu: lower bound of the Gaussian DP parameter; nan where there is none.
    """

    epsilon: float
    confidence: float
    fpr_hi: float = math.nan
    fnr_hi: float = math.nan
    mu: float = math.nan


def gaussian(
    member_scores: npt.ArrayLike,
    nonmember_scores: npt.ArrayLike,
    *,
    threshold: float,
    delta: float,
    alpha: float = 0.01,
) -> Bound:
    """Epsilon of a mechanism that is mu-Gaussian DP, from its errors at a threshold.

    mu >= Phi^-1(1 - FPR_hi) - Phi^-1(FNR_hi), and epsilon solves delta(epsilon, mu) =
    delta of Gaussian DP. FPR_hi and FNR_hi are Clopper-Pearson limits at alpha/2 each.

    Assumes: independent canaries (see the module docstring); threshold fixed
      beforehand; the mechanism's trade-off curve is that of a Gaussian: so for T full
      Gaussian releases (q = 1), and not for sampled ones, whose epsilon at small delta
      it would overstate.

    Args:
      member_scores: float[n_in], of canaries that were in; larger means in.
      nonmember_scores: float[n_out], of canaries that were out.
      threshold: "in" if score > threshold.
      delta: in (0, 1).
      alpha: in (0, 1); the bound fails with at most this probability.

    Raises:
      ValueError: on empty or nan scores, or numbers out of their bounds.
    """
    delta = accounting.check_delta(delta, "delta")
    fpr_hi, fnr_hi = _errors(member_scores, nonmember_scores, threshold, alpha)
    mu = max(0.0, float(special.ndtri(1 - fpr_hi) - special.ndtri(fnr_hi)))
    return Bound(gaussian_epsilon(mu, delta), 1 - alpha, fpr_hi, fnr_hi, mu)


def epsilon_delta(
    member_scores: npt.ArrayLike,
    nonmember_scores: npt.ArrayLike,
    *,
    threshold: float,
    delta: float,
    alpha: float = 0.01,
) -> Bound:
    """Epsilon of any mechanism, from its errors at a threshold.

    epsilon >= log((1 - FNR_hi - delta) / FPR_hi), and the same with the two errors
    exchanged; the larger counts, as both follow from the same two limits.

    Assumes: independent canaries (see the module docstring); threshold fixed
      beforehand. Arguments and errors as for `gaussian`.
    References: Kairouz, Oh, Viswanath 2015, https://arxiv.org/abs/1311.0776
    """
    delta = accounting.check_delta(delta, "delta")
    fpr_hi, fnr_hi = _errors(member_scores, nonmember_scores, threshold, alpha)
    epsilon = 0.0
    for wrong, other in ((fpr_hi, fnr_hi), (fnr_hi, fpr_hi)):
        if 1 - other - delta > 0:
            epsilon = max(epsilon, math.log((1 - other - delta) / wrong))
    return Bound(epsilon, 1 - alpha, fpr_hi, fnr_hi)


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Epsilon of mu-Gaussian DP at `delta`: the inverse of `gaussian_delta`."""
    if mu == math.inf:
        return math.inf
    if mu <= 0 or accounting.gaussian_delta(0.0, mu) <= delta:
        return 0.0
    # delta(eps) <= Phi(-eps/mu + mu/2), which is delta at this end.
    high = mu * (mu / 2 - float(special.ndtri(delta)))
    return float(
        optimize.brentq(
            lambda e: accounting.gaussian_delta(e, mu) - delta, 0.0, high, xtol=1e-12
        )
    )


def one_run(
    correct: int, guesses: int, canaries: int, *, delta: float, alpha: float = 0.01
) -> Bound:
    """Epsilon of any mechanism, from how many guesses of one run were right.

    If the mechanism is (epsilon, delta)-DP, and W ~ Bin(r, e^epsilon/(1 + e^epsilon)),

        P[correct >= v] <= P[W >= v] + 2 n delta max_i P[v > W >= v - i] / i

    The bound is the largest epsilon at which the right side is below alpha.

    Assumes: every one of the n canaries was in the data by a fair coin of its own, and
      the r guesses were made from what the run released; how canaries influence one
      another does not matter. r was fixed beforehand.

    Args:
      correct: v, right guesses.
      guesses: r, canaries guessed at; the others were abstained from.
      canaries: n, all of them.
      delta: in (0, 1); 0 too.
      alpha: in (0, 1).

    Raises:
      ValueError: unless 0 <= correct <= guesses <= canaries.
    References: Steinke, Nasr, Jagielski 2023, https://arxiv.org/abs/2305.08846,
      Theorem 5.2 and Appendix D.
    """
    if not 0 <= correct <= guesses <= canaries:
        raise ValueError(
            f"correct={correct}, guesses={guesses}, canaries={canaries} are not in "
            "order; 0 <= correct <= guesses <= canaries is needed."
        )
    alpha = _validate.in_open_interval("alpha", alpha, 0, 1, "0.01 is usual")
    delta = _validate.in_half_open_interval("delta", delta, 0, 1, "1e-5 is usual")

    def rejected(epsilon: float) -> bool:
        return _one_run_p(correct, guesses, canaries, epsilon, delta) < alpha

    if not rejected(0.0):
        return Bound(0.0, 1 - alpha)
    # In small steps from below: with 2 n delta > 1 the right side need not be monotone.
    low, high = 0.0, 0.25
    while rejected(high):  # ends: at large epsilon W is r, and alpha < 1
        low, high = high, high + 0.25
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if rejected(middle) else (low, middle)
    return Bound(low, 1 - alpha)


def guess(
    scores: npt.ArrayLike, included: npt.ArrayLike, guesses: int
) -> tuple[int, int]:
    """Calls the highest scores in and the lowest out: (right guesses, guesses).

    Args:
      scores: float[n]; larger means in.
      included: bool[n], what the coins were.
      guesses: r, even, at most n; half of them are made at either end.
    """
    scores, included = np.asarray(scores, np.float64), np.asarray(included, bool)
    half = _validate.integer_at_least("guesses", guesses, 2, "0.1 n are usual") // 2
    if 2 * half > scores.size:
        _validate.fail(
            "guesses", guesses, f"must be at most the {scores.size} canaries"
        )
    order = np.argsort(scores, kind="stable")
    right = np.sum(included[order[-half:]]) + np.sum(~included[order[:half]])
    return int(right), 2 * half


def _one_run_p(v: int, r: int, n: int, epsilon: float, delta: float) -> float:
    """Bound on the probability of v or more right guesses under (epsilon, delta)."""
    rate = float(special.expit(epsilon))
    tail = float(stats.binom.sf(v - 1, r, rate))
    if delta == 0 or v == 0:
        return min(1.0, tail)
    below = np.cumsum(stats.binom.pmf(np.arange(v - 1, -1, -1), r, rate))
    steepest = float(np.max(below / np.arange(1, v + 1)))
    return min(1.0, tail + 2 * n * delta * steepest)


def _errors(member_scores, nonmember_scores, threshold, alpha) -> tuple[float, float]:
    """Upper limits of FPR and FNR, which hold together with probability 1 - alpha."""
    alpha = _validate.in_open_interval("alpha", alpha, 0, 1, "0.01 is usual")
    threshold = _validate.finite("threshold", threshold, "T/2 at q = 1")
    inside, outside = metrics.check_scores(member_scores, nonmember_scores)
    # Two-sided intervals at 1 - alpha have alpha/2 on either side.
    false_positives = int(np.sum(outside > threshold))
    false_negatives = int(np.sum(~(inside > threshold)))
    _, fpr_hi = intervals.proportion(false_positives, outside.size, 1 - alpha)
    _, fnr_hi = intervals.proportion(false_negatives, inside.size, 1 - alpha)
    return fpr_hi, fnr_hi
