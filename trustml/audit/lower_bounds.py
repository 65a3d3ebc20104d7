"""Lower bounds on epsilon, from scores of canaries that were in the data and out of it.

| function | needs | gives |
|---|---|---|
| `epsilon_delta` | independent scores | any mechanism; loose at small delta |
| `gaussian` | the same; the mechanism is Gaussian DP | tight at q = 1 |

Each holds with probability 1 - alpha over the audit's own randomness: if the mechanism
is (epsilon, delta)-DP, the bound exceeds epsilon with probability at most alpha. Where
the threshold comes from is the `strategy`:

| strategy | threshold | limits of the two error rates |
|---|---|---|
| `band` | the best one on the scores at hand | hold everywhere (`trustml.bands`) |
| `fixed` | given; chosen before scores were seen | Clopper-Pearson, alpha/2 each |
| `split` | the best one on a random half | the same, on the other half |

The best of many thresholds with limits that hold at one of them is no bound: on scores
that say nothing it exceeds 0 in 6% of audits at alpha = 0.05, and in 43% at 0.2
(`tests/audit/coverage_test.py`). There is no such option.

Independent scores: given which are in, the scores of different canaries are independent
draws, those of canaries in with one law and those of canaries out with another. True of
separate runs; true in one run of gradient canaries of `trustml.audit.canaries` with
independent noise on every coordinate, which is itself among the things to be tested
(`tests/privacy/checks`). Of other canaries of one run it is not known: `one_run`.

Example::

    bound = lower_bounds.epsilon_delta(
        scores[included], scores[~included], delta=1e-5, alpha=0.05,
        independent_scores=True,
    )
    print(bound.epsilon, '<= epsilon, with confidence', bound.confidence)

References: https://arxiv.org/abs/2302.07956 (Gaussian DP audits),
https://arxiv.org/abs/1905.02383 (Gaussian DP), Clopper and Pearson 1934.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy import typing as npt

from trustml import _validate, bands, intervals
from trustml.attacks import metrics
from trustml.audit import rates
from trustml.audit.result import AuditResult, saturation
from trustml.privacy import accounting

STRATEGIES = ("band", "fixed", "split")

_INDEPENDENT = "scores are independent, of one law for canaries in and one for out"
_GAUSSIAN = "the mechanism's trade-off curve is that of mu-Gaussian DP"


class _Method(NamedTuple):
    """How limits (L, U) become a number to maximise, and that number epsilon."""

    name: str
    assumption: str
    value: Callable[[Any, Any], np.ndarray]
    epsilon: Callable[[float], float]


def epsilon_delta(
    member_scores: npt.ArrayLike,
    nonmember_scores: npt.ArrayLike,
    *,
    delta: float,
    alpha: float = 0.01,
    strategy: str | None = None,
    threshold: Any = None,
    independent_scores: bool = False,
    resolution: float = 1e-6,
    seed: int = 0,
) -> AuditResult:
    """Epsilon of any mechanism, from the errors of an attack.

    epsilon >= log((TPR_lo - delta) / FPR_hi), and the same with the two errors
    exchanged; the larger counts, as both follow from the same two limits.

    Assumes: independent scores (see the module docstring).

    Args:
      member_scores: float[n_in], of canaries that were in; larger means in.
      nonmember_scores: float[n_out], of canaries that were out.
      delta: in [0, 1).
      alpha: in (0, 1); the bound fails with at most this probability.
      strategy: 'band', 'fixed' or 'split', see the module docstring. None: 'fixed'
        where a threshold is given, else 'band'.
      threshold: "in" if score > threshold; only with 'fixed'.
      independent_scores: True says that the assumption holds; it is printed in the
        result.
      resolution: scores closer than this share of their range may count as one where a
        threshold is searched. A likelihood ratio may have atoms, whose last bits tell
        how the sample was made; a search would find them.
      seed: of the halves of 'split'.

    Raises:
      ValueError: on empty or nan scores, on numbers out of their bounds, without
        `independent_scores=True`, and for a strategy that is none of the three.
    References: Kairouz, Oh, Viswanath 2015, https://arxiv.org/abs/1311.0776
    """
    delta = _validate.in_half_open_interval("delta", delta, 0, 1, "1e-5 is usual")
    method = _Method(
        "epsilon_delta",
        _INDEPENDENT,
        lambda low, high: rates.epsilon(low, high, delta=delta),
        float,
    )
    found = _Search(strategy, threshold, independent_scores, resolution, seed)
    return _bound(member_scores, nonmember_scores, method, delta, alpha, found)


def gaussian(
    member_scores: npt.ArrayLike,
    nonmember_scores: npt.ArrayLike,
    *,
    delta: float,
    alpha: float = 0.01,
    strategy: str | None = None,
    threshold: Any = None,
    independent_scores: bool = False,
    resolution: float = 1e-6,
    seed: int = 0,
) -> AuditResult:
    """Epsilon of a mechanism that is mu-Gaussian DP, from the errors of an attack.

    mu >= Phi^-1(TPR_lo) - Phi^-1(FPR_hi), and epsilon solves delta(epsilon, mu) = delta
    of Gaussian DP.

    Assumes: independent scores (see the module docstring); and that the mechanism's
      trade-off curve is that of a Gaussian: so for T full Gaussian releases (q = 1),
      and not for sampled ones, whose epsilon at small delta it may overstate.

    Args:
      member_scores: as `epsilon_delta`, and all others too.
      nonmember_scores: see there.
      delta: in (0, 1).
      alpha: see there.
      strategy: see there.
      threshold: see there.
      independent_scores: see there.
      resolution: see there.
      seed: see there.

    Raises:
      ValueError: as `epsilon_delta`.
    """
    delta = accounting.check_delta(delta, "delta")
    method = _Method(
        "gaussian",
        f"{_INDEPENDENT}; {_GAUSSIAN}",
        rates.mu,
        lambda mu: rates.gaussian_epsilon(mu, delta),
    )
    found = _Search(strategy, threshold, independent_scores, resolution, seed)
    return _bound(member_scores, nonmember_scores, method, delta, alpha, found)


class _Search(NamedTuple):
    """Where the threshold comes from, as it was asked for."""

    strategy: str | None
    threshold: Any
    independent_scores: bool
    resolution: float
    seed: int


class _Limits(NamedTuple):
    """A threshold and the limits that hold there; the two best limits there can be."""

    threshold: float
    tpr_lo: float
    fpr_hi: float
    best: tuple[float, float]


def _bound(
    member_scores: npt.ArrayLike,
    nonmember_scores: npt.ArrayLike,
    method: _Method,
    delta: float,
    alpha: float,
    search: _Search,
) -> AuditResult:
    alpha = _validate.in_open_interval("alpha", alpha, 0, 1, "0.01 is usual")
    inside, outside = metrics.check_scores(member_scores, nonmember_scores)
    strategy = _strategy(search)
    _independent(search.independent_scores)
    resolution = _validate.in_half_open_interval(
        "resolution", search.resolution, 0, 1, "1e-6 is usual, 0 rounds nothing"
    )
    if strategy == "fixed":
        limits = _at(inside, outside, search.threshold, alpha)
    elif strategy == "band":
        rounded = _rounding(inside, outside, resolution)
        limits = _best(
            rounded(inside),
            rounded(outside),
            method.value,
            bands.band(inside.size, alpha / 2),
            bands.band(outside.size, alpha / 2),
        )
        limits = _unrounded(limits, inside, outside, rounded)
    else:
        whole = (inside, outside)
        (first_in, inside), (first_out, outside) = _halves(inside, outside, search.seed)
        # The first half knows nothing of the audited one, and makes the grid of scores.
        rounded = _rounding(first_in, first_out, resolution)
        chosen = _best(
            rounded(first_in),
            rounded(first_out),
            method.value,
            bands.pointwise(first_in.size, alpha / 2),
            bands.pointwise(first_out.size, alpha / 2),
        )
        limits = _at(rounded(inside), rounded(outside), chosen.threshold, alpha)
        limits = _unrounded(limits, *whole, rounded)
    value = float(method.value(limits.tpr_lo, limits.fpr_hi))
    epsilon = method.epsilon(value)
    ceiling = method.epsilon(float(method.value(*limits.best)))
    return AuditResult(
        epsilon=epsilon,
        delta=delta,
        confidence=1 - alpha,
        kind="confidence",
        method=method.name,
        strategy=strategy,
        assumption=method.assumption,
        n_in=inside.size,
        n_out=outside.size,
        threshold=limits.threshold,
        epsilon_ceiling=ceiling,
        warnings=saturation(epsilon, ceiling),
        fpr_hi=limits.fpr_hi,
        fnr_hi=1 - limits.tpr_lo,
        mu=value if method.name == "gaussian" else math.nan,
    )


def _at(inside, outside, threshold: Any, alpha: float) -> _Limits:
    """Clopper-Pearson limits at one threshold, which hold together with 1 - alpha."""
    threshold = _validate.finite("threshold", threshold, "T/2 at q = 1")
    # Two-sided intervals at 1 - alpha have alpha/2 on either side.
    level, n_in, n_out = 1 - alpha, inside.size, outside.size
    above_in, above_out = (
        int(np.sum(inside > threshold)),
        int(np.sum(outside > threshold)),
    )
    tpr_lo, _ = intervals.proportion(above_in, n_in, level)
    _, fpr_hi = intervals.proportion(above_out, n_out, level)
    perfect_lo, _ = intervals.proportion(n_in, n_in, level)
    _, perfect_hi = intervals.proportion(0, n_out, level)
    return _Limits(threshold, tpr_lo, fpr_hi, (perfect_lo, perfect_hi))


def _best(inside, outside, value, band_in: bands.Band, band_out: bands.Band) -> _Limits:
    """The threshold between distinct scores at which `value` is largest."""
    distinct = np.unique(np.concatenate([inside, outside]))
    above_in = inside.size - np.searchsorted(np.sort(inside), distinct, side="right")
    above_out = outside.size - np.searchsorted(np.sort(outside), distinct, side="right")
    low, high = band_in.lower[above_in], band_out.upper[above_out]
    at = int(np.argmax(value(low, high)))
    return _Limits(
        float(distinct[at]),
        float(low[at]),
        float(high[at]),
        (float(band_in.lower[-1]), float(band_out.upper[0])),
    )


def _rounding(inside, outside, resolution: float) -> Callable[[Any], np.ndarray]:
    """Rounds scores to a grid of `resolution` times the range of these two."""
    both = np.concatenate([inside, outside])
    finite = both[np.isfinite(both)]
    low, span = (float(finite.min()), float(np.ptp(finite))) if finite.size else (0, 0)
    spacing = resolution * span
    if spacing == 0 or not math.isfinite(spacing):
        return lambda scores: scores
    return lambda scores: low + np.round((scores - low) / spacing) * spacing


def _unrounded(limits: _Limits, inside, outside, rounded) -> _Limits:
    """The same split of these scores, by a threshold for scores as they were given."""
    both = np.concatenate([inside, outside])
    below = both[rounded(both) <= limits.threshold]
    return limits._replace(threshold=float(below.max()))


def _halves(inside, outside, seed: int):
    """A random half of each side, and the other half."""
    if min(inside.size, outside.size) < 2:
        _validate.fail(
            "strategy",
            "split",
            f"cannot halve {inside.size} and {outside.size} scores",
            "give at least 2 of each, or use strategy='band'",
        )
    rng = np.random.default_rng(_validate.integer_at_least("seed", seed, 0))
    shuffled = (rng.permutation(x) for x in (inside, outside))
    return tuple((x[: x.size // 2], x[x.size // 2 :]) for x in shuffled)


def _strategy(search: _Search) -> str:
    """The strategy asked for; refuses a maximum over thresholds."""
    threshold, strategy = search.threshold, search.strategy
    cure = (
        "use strategy='band' (the best threshold, limits that hold at all of them), "
        "'fixed' (one threshold, from other scores) or 'split' (from a random half)"
    )
    if threshold is not None and np.ndim(threshold) > 0:
        _validate.fail(
            "threshold",
            np.shape(threshold),
            "is more than one: the best of several limits that hold singly is no bound",
            cure,
        )
    if strategy is None:
        strategy = "band" if threshold is None else "fixed"
    if strategy not in STRATEGIES:
        _validate.fail("strategy", strategy, "is no way to a threshold", cure)
    if (strategy == "fixed") != (threshold is not None):
        _validate.fail(
            "threshold",
            threshold,
            f"does not go with strategy={strategy!r}",
            "give a threshold with 'fixed', and with no other",
        )
    return strategy


def _independent(value: Any) -> None:
    if not _validate.boolean("independent_scores", value):
        _validate.fail(
            "independent_scores",
            value,
            "is what the limits rest on",
            "pass True where scores come from separate runs, or from canaries that "
            "cannot influence one another; else use trustml.audit.one_run",
        )
