"""From the error rates of an attack to epsilon.

An attack that finds at least a share L of the canaries that were in, and accuses at
most a share U of those that were out, is impossible under (epsilon, delta)-DP unless

    epsilon >= log((L - delta) / U)   and   epsilon >= log((1 - U - delta) / (1 - L)),

and under mu-Gaussian DP unless mu >= Phi^-1(L) - Phi^-1(U). Both lines rest on the same
two limits, so nothing is split further; a negative bound is 0 and never its absolute
value.

Example::

    rates.epsilon(0.30, 0.01, delta=1e-5)                       # 3.40
    rates.gaussian_epsilon(rates.mu(0.30, 0.01), 1e-5)          # 8.80

References: Kairouz, Oh, Viswanath 2015, https://arxiv.org/abs/1311.0776; Dong, Roth, Su
2019, https://arxiv.org/abs/1905.02383 (Gaussian DP).
"""

import math
from typing import Any

import numpy as np
from numpy import typing as npt
from scipy import optimize, special

from trustml.privacy import accounting


def epsilon(
    tpr_lo: npt.ArrayLike, fpr_hi: npt.ArrayLike, *, delta: float
) -> np.ndarray:
    """The least epsilon that allows a TPR of `tpr_lo` and more at an FPR of `fpr_hi`.

    Args:
      tpr_lo: L in [0, 1); an array, or a number.
      fpr_hi: U in (0, 1]; of the same shape.
      delta: in [0, 1).

    Returns:
      float64, >= 0.
    """
    low, high = np.asarray(tpr_lo, np.float64), np.asarray(fpr_hi, np.float64)
    found = _log_ratio(low - delta, high)
    other = _log_ratio(1 - high - delta, 1 - low)
    return np.asarray(np.maximum(found, other))


def mu(tpr_lo: npt.ArrayLike, fpr_hi: npt.ArrayLike) -> np.ndarray:
    """The least mu of Gaussian DP that allows these rates; arguments as `epsilon`."""
    low, high = np.asarray(tpr_lo, np.float64), np.asarray(fpr_hi, np.float64)
    return np.asarray(np.maximum(0.0, special.ndtri(low) - special.ndtri(high)))


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


def _log_ratio(above: Any, below: Any) -> np.ndarray:
    """log(above / below) where it is positive, else 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(above > below, np.log(above) - np.log(below), 0.0)
