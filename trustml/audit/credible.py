"""A credible interval of epsilon from the errors of an attack (joint beta).

Jeffreys' prior Beta(1/2, 1/2) on both error rates gives independent posteriors
FNR ~ Beta(1/2 + FN, 1/2 + TP) and FPR ~ Beta(1/2 + FP, 1/2 + TN). An (epsilon, delta)
mechanism allows the pairs (x = FNR, y = FPR) with

    lo(x) <= y <= 1 - lo(1-x),  lo(x) = max(0, 1-delta - e^eps x, e^-eps (1-delta - x)),

so the posterior of the least epsilon that allows the pair has the distribution function

    P(eps) = int f_FNR(x) [F_FPR(hi(x)) - F_FPR(lo(x))]_+ dx,

one integral, taken in u = F_FNR(x) by a Gauss-Legendre rule (lo has kinks: the ends are
right to about 1e-4 with 400 nodes, and to 1e-5 with 2000). The interval holds a share
1 - alpha of the posterior. That is no confidence: it covers epsilon in 1 - alpha of
audits if rates are drawn from the prior, and not for every mechanism. It is here for
comparison with published figures, at a threshold that was fixed beforehand.

Example::

    credible.interval(fn=12, tp=488, fp=9, tn=491, delta=1e-5)    # 3.61, 4.58

References: Zanella-Beguelin et al. 2023, https://arxiv.org/abs/2206.05199
"""

import functools
import math
from collections.abc import Callable

import numpy as np
from numpy import typing as npt
from scipy import optimize, special

from trustml import _validate
from trustml.attacks import metrics
from trustml.audit.result import AuditResult

_MOST = 700.0  # e^eps leaves float64


def joint_beta(
    member_scores: npt.ArrayLike,
    nonmember_scores: npt.ArrayLike,
    *,
    threshold: float,
    delta: float,
    alpha: float = 0.1,
    nodes: int = 2000,
) -> AuditResult:
    """Credible interval of epsilon, at a threshold fixed beforehand.

    Args:
      member_scores: float[n_in], of canaries that were in; larger means in.
      nonmember_scores: float[n_out], of canaries that were out.
      threshold: "in" if score > threshold.
      delta: in [0, 1).
      alpha: in (0, 1); the interval leaves alpha/2 of the posterior on either side.
      nodes: of the quadrature.

    Returns:
      AuditResult of kind 'credible', with both ends of the interval.

    Raises:
      ValueError: on empty or nan scores, or numbers out of their bounds.
    """
    inside, outside = metrics.check_scores(member_scores, nonmember_scores)
    threshold = _validate.finite("threshold", threshold, "fix it on a pilot run")
    tp, fp = int(np.sum(inside > threshold)), int(np.sum(outside > threshold))
    options = {"delta": delta, "alpha": alpha, "nodes": nodes}
    n_in, n_out = inside.size, outside.size
    lo, hi = interval(fn=n_in - tp, tp=tp, fp=fp, tn=n_out - fp, **options)
    ceiling, _ = interval(fn=0, tp=n_in, fp=0, tn=n_out, **options)
    return AuditResult(
        epsilon=lo,
        delta=delta,
        confidence=1 - alpha,
        kind="credible",
        method="joint_beta",
        strategy="fixed",
        assumption="independent scores; Jeffreys' prior on both error rates",
        n_in=n_in,
        n_out=n_out,
        threshold=threshold,
        epsilon_ceiling=ceiling,
        epsilon_hi=hi,
    )


def interval(
    *,
    fn: int,
    tp: int,
    fp: int,
    tn: int,
    delta: float,
    alpha: float = 0.1,
    nodes: int = 2000,
) -> tuple[float, float]:
    """Ends of the interval: P(lo) = alpha/2, P(hi) = 1 - alpha/2.

    Args:
      fn: canaries in that were called out.
      tp: canaries in that were called in.
      fp: canaries out that were called in.
      tn: canaries out that were called out.
      delta: in [0, 1).
      alpha: in (0, 1).
      nodes: of the quadrature.

    Returns:
      (lo, hi); lo is 0 where P(0) >= alpha/2, hi is inf where it is above 700.

    Raises:
      ValueError: for numbers out of their bounds.
    """
    alpha = _validate.in_open_interval("alpha", alpha, 0, 1, "0.1 is usual")
    share = posterior(fn=fn, tp=tp, fp=fp, tn=tn, delta=delta, nodes=nodes)
    return _root(share, alpha / 2), _root(share, 1 - alpha / 2)


def posterior(
    *, fn: int, tp: int, fp: int, tn: int, delta: float, nodes: int = 2000
) -> Callable[[float], float]:
    """The distribution function P of epsilon; arguments as `interval`."""
    for name, count in (("fn", fn), ("tp", tp), ("fp", fp), ("tn", tn)):
        _validate.integer_at_least(name, count, 0, "give counts")
    delta = _validate.in_half_open_interval("delta", delta, 0, 1, "1e-5 is usual")
    u, weights = _rule(_validate.integer_at_least("nodes", nodes, 2, "2000 are usual"))
    x = special.betaincinv(fn + 0.5, tp + 0.5, u)
    not_x = special.betaincinv(tp + 0.5, fn + 0.5, 1 - u)  # 1 - x, without loss

    def share(epsilon: float) -> float:
        def least(x, not_x):
            by_growth = not_x - delta - np.expm1(epsilon) * x
            return np.maximum(
                0, np.maximum(by_growth, (not_x - delta) / math.exp(epsilon))
            )

        low = special.betainc(fp + 0.5, tn + 0.5, least(x, not_x))
        # 1 - F(1 - y) of a beta is F(y) of the mirrored one.
        above = special.betainc(tn + 0.5, fp + 0.5, least(not_x, x))
        return float(np.sum(weights * np.maximum(0, 1 - above - low)))

    return share


@functools.lru_cache(maxsize=8)
def _rule(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes and weights on [0, 1]."""
    x, weights = special.roots_legendre(nodes)
    return (x + 1) / 2, weights / 2


def _root(share: Callable[[float], float], level: float) -> float:
    if share(0.0) >= level:
        return 0.0
    high = 1.0
    while share(high) < level:
        high *= 2
        if high > _MOST:
            return math.inf
    return float(optimize.brentq(lambda e: share(e) - level, 0.0, high, xtol=1e-10))
