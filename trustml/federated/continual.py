"""Continual learning in figures: catch-up, regret, what is forgotten, who is served.

    catch-up = min { r : M_continual(r) >= M_static(R) - tolerance },  inf if never
    regret   = (1/R) sum_r ( M_static(r) - M_continual(r) )

for a metric M of which more is better, round by round. Static is the run that held all
data from the start, and M_static(R) its last value. Figures are for one seed; give
those of several seeds to `trustml.intervals`.

Dimension key: R rounds, T periods, K clients.

Example::

    continual.catch_up(accuracy, static_accuracy, tolerance=0.01)      # 37.0
    continual.regret(accuracy, static_accuracy)
    continual.by_decile(errors, sizes)                                 # light to heavy

References: https://arxiv.org/abs/2202.03925.
"""

import math

import numpy as np
from jaxtyping import Float
from numpy import typing as npt

from trustml import _validate


def catch_up(
    curve: npt.ArrayLike, static_curve: npt.ArrayLike, *, tolerance: float = 0.01
) -> float:
    """Rounds, from 1, until a curve has come up to the end of the static one.

    Args:
      curve: float[R], M after each round.
      static_curve: float[R'], of the run that held all data from the start.
      tolerance: how far below its end counts as come up.

    Returns:
      Number of rounds; inf if it never does.
    """
    tolerance = _validate.non_negative("tolerance", tolerance, "0.01 is usual")
    curve, static_curve = _curve("curve", curve), _curve("static_curve", static_curve)
    # 0.8 - 0.1 is above 0.7 by rounding.
    there = curve >= static_curve[-1] - tolerance - 1e-12
    return float(np.argmax(there) + 1) if there.any() else math.inf


def regret(curve: npt.ArrayLike, static_curve: npt.ArrayLike) -> float:
    """What was missed against the static run, on average over rounds.

    Raises:
      ValueError: where the curves have different lengths.
    """
    curve, static_curve = _curve("curve", curve), _curve("static_curve", static_curve)
    if len(curve) != len(static_curve):
        bound = f"has not the {len(static_curve)} rounds of the static one"
        _validate.fail("curve", len(curve), bound, "evaluate both in the same rounds")
    return float(np.mean(static_curve - curve))


def backward_error(errors: npt.ArrayLike) -> Float[np.ndarray, " T"]:
    """Mean error on the test rows of earlier periods; NaN for the first period.

    Args:
      errors: float[T, T]; [t, s] is the error after period t on test rows of period s.
    """
    errors = np.asarray(errors, np.float64)
    if errors.ndim != 2 or errors.shape[0] != errors.shape[1]:
        _validate.fail("errors", list(errors.shape), "must be [T, T]")
    out = np.full(len(errors), np.nan)
    for period in range(1, len(errors)):
        out[period] = errors[period, :period].mean()
    return out


def deciles(values: npt.ArrayLike, parts: int = 10) -> np.ndarray:
    """Which tenth of the clients each is in, 0 the lowest values; ties by id."""
    values = np.asarray(values)
    parts = _validate.integer_at_least("parts", parts, 1, "10 are deciles")
    if len(values) < parts:
        bound = f"clients cannot be put into {parts} parts"
        _validate.fail("values", len(values), bound, "ask for fewer parts")
    tenth = np.empty(len(values), np.int64)
    tenth[np.argsort(values, kind="stable")] = (
        np.arange(len(values)) * parts // len(values)
    )
    return tenth


def by_decile(
    figures: npt.ArrayLike, values: npt.ArrayLike, parts: int = 10
) -> Float[np.ndarray, " parts"]:
    """Mean of clients' figures in each tenth of them by `values`; NaN is left out.

    Args:
      figures: float[K], such as errors or how often each was selected.
      values: what to sort clients by: sizes for activity, seconds for speed.
      parts: 10 for deciles.
    """
    figures, part = np.asarray(figures, np.float64), deciles(values, parts)
    known = ~np.isnan(figures)
    counts = np.bincount(part[known], minlength=parts)
    sums = np.bincount(part[known], figures[known], parts)
    return np.divide(sums, counts, out=np.full(parts, np.nan), where=counts > 0)


def _curve(name: str, values: npt.ArrayLike) -> np.ndarray:
    found = np.asarray(values, np.float64)
    if found.ndim != 1 or not found.size:
        bound = "must hold a value for each round"
        _validate.fail(name, list(found.shape), bound, "evaluate once or more")
    return found
