"""Exposure: how far up the list of all secrets the true one stands, in bits.

    rank      1 + #{L(c) < L(s)}, ties counted half (mid) or against the model (worst)
    exposure  log2 |R| - log2 rank, at most log2 |R|
    p         #{L(c) <= L(s)} / |R|

If the secret was drawn uniformly and independently of training, its rank is uniform
over the codes, so p is an exact p-value, Pr[exposure >= b] <= 2^-b, and the median
exposure of a model that never saw the secret is 1 bit, not 0. Where |R| is too large to
score, `extrapolated` fits a skew-normal to the losses of random codes and gives
-log2 F(L(s)), cut at log2 |R| (Carlini et al. 2019): an estimate that rests on the fit.

An exposure is worth what its controls are worth: `summarise` takes, seed by seed, the
same model without the canary (`absent`) and the same model asked for another code
(`decoy`), and refuses to speak without them.

All of it runs on the host in float64. Dimension key: R codes, n seeds.

Example::

    one = exposure.exact(losses, index_of_secret)           # bits, ceiling, p_value
    exposure.summarise(inserted, absent=absent, decoy=decoy).delta_median

References: https://arxiv.org/abs/1802.08232, https://arxiv.org/abs/2203.13920
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy import typing as npt
from scipy import optimize, special, stats

from trustml import _validate

MIN_RANDOM = 1000
_MAX_SHAPE = 20.0


class Exposure(NamedTuple):
    """Where the secret stands among all codes.

    Attributes:
      bits: log2 R - log2 of the mid rank.
      ceiling: log2 R, the most there can be.
      p_value: worst rank / R; exact if the secret was drawn uniformly.
      mid_rank: 1 + #{lower} + #{other ties} / 2.
      worst_rank: #{lower or equal}, the secret included.
      candidates: R.
      is_estimate: whether ranks are read off an extrapolation; then none is a recovery.
    """

    bits: float
    ceiling: float
    p_value: float
    mid_rank: float
    worst_rank: int
    candidates: int
    is_estimate: bool = False


class Recovery(NamedTuple):
    """A guessed code against the secret.

    Attributes:
      full: whether all of it is right.
      per_position: share of positions that are right.
      chance: expected share of a random code, 1 / A.
      hamming: number of positions that are wrong.
    """

    full: bool
    per_position: float
    chance: float
    hamming: int


class Summary(NamedTuple):
    """Exposure over seeds, beside both controls.

    Attributes:
      seeds: n.
      ceiling: log2 R.
      inserted_median: bits, of models with the canary.
      absent_median: of models without it.
      decoy_median: of models with it, for another code.
      delta_absent: float64[n], inserted - absent, seed by seed.
      delta_decoy: float64[n], inserted - decoy.
      delta_median: median of `delta_absent`.
      delta_lo: lower end of its interval, from order statistics.
      delta_hi: upper end; both infinite with too few seeds for the level.
      level: confidence of the interval.
      p_value: of all seeds together, by Fisher's method.
      control_p_value: the same of both controls, smaller of the two; a small one says
        that the codes were not ranked at random without the canary.
      recovered: share of seeds in which the secret had rank 1 alone, of all codes.
    """

    seeds: int
    ceiling: float
    inserted_median: float
    absent_median: float
    decoy_median: float
    delta_absent: np.ndarray
    delta_decoy: np.ndarray
    delta_median: float
    delta_lo: float
    delta_hi: float
    level: float
    p_value: float
    control_p_value: float
    recovered: float


def exact(losses_R: npt.ArrayLike, secret: int) -> Exposure:
    """Exposure of the code at index `secret` from the losses of all codes.

    Raises:
      ValueError: if a loss is NaN, there are fewer than 2, or the index is out of them.
    """
    losses = _losses("losses", losses_R, 2)
    secret = _validate.integer_at_least("secret", secret, 0)
    if secret >= losses.size:
        _validate.fail("secret", secret, f"must be < R = {losses.size}")
    lower = int(np.sum(losses < losses[secret]))
    ties = int(np.sum(losses == losses[secret]))
    mid, ceiling = lower + (1 + ties) / 2, float(np.log2(losses.size))
    worst = lower + ties
    return Exposure(
        ceiling - float(np.log2(mid)),
        ceiling,
        worst / losses.size,
        mid,
        worst,
        losses.size,
    )


def in_top(losses_R: npt.ArrayLike, secret: int, k: int) -> bool:
    """Whether the secret is among the k best codes, ties against it."""
    k = _validate.integer_at_least("k", k, 1)
    return exact(losses_R, secret).worst_rank <= k


def extrapolated(
    secret_loss: float, random_losses: npt.ArrayLike, *, candidates: int
) -> float:
    """min(-log2 F(L(s)), log2 R), F a skew-normal fitted to losses of random codes.

    Fitted by maximum likelihood from the method of moments, its tail computed in logs.
    The shape is held within +-20: losses more skewed than any skew-normal would send it
    to infinity, and F to 0 below their smallest. Of R codes one cannot stand out by
    more than log2 R bits, whatever the fit says.

    Args:
      secret_loss: L(s).
      random_losses: of at least 1,000 codes drawn uniformly.
      candidates: R >= 2, the number of all codes.

    Returns:
      Bits, from 0 to log2 R.

    Raises:
      ValueError: with fewer than 1,000 losses, equal ones only, or a NaN.
    """
    losses = _losses("random_losses", random_losses, MIN_RANDOM)
    secret_loss = _validate.finite("secret_loss", secret_loss)
    candidates = _validate.integer_at_least("candidates", candidates, 2)
    spread = losses.std()
    if not np.isfinite(spread) or spread <= 1e-9 * max(1.0, abs(losses.mean())):
        _validate.fail("random_losses", float(spread), "is a spread too small to fit")
    z, shape = _fit((losses - losses.mean()) / spread, secret_loss, losses, spread)
    bits = -_log_cdf(z, shape) / float(np.log(2))
    return min(max(0.0, bits), math.log2(candidates))


def estimated(
    secret_loss: float, random_losses: npt.ArrayLike, *, candidates: int
) -> Exposure:
    """`extrapolated` bits as an `Exposure`, for codes too many to rank.

    The p-value is that of the secret among the n random codes, (1 + #{<=}) / (n + 1):
    exact, and no smaller than 1 / (n + 1) however far the bits go. Both ranks are read
    off the bits, so that rank 1 here is an estimate and no recovery.

    Args:
      secret_loss: as for `extrapolated`, here and below.
      random_losses: of at least 1,000 codes drawn uniformly.
      candidates: R >= 2.
    """
    bits = extrapolated(secret_loss, random_losses, candidates=candidates)
    losses, ceiling = np.asarray(random_losses), math.log2(candidates)
    rank = 2.0 ** (ceiling - bits)
    p_value = (1 + int(np.sum(losses <= secret_loss))) / (losses.size + 1)
    return Exposure(bits, ceiling, p_value, rank, round(rank), candidates, True)


def recovery(guess: npt.ArrayLike, secret: npt.ArrayLike, alphabet: int) -> Recovery:
    """A guessed code beside the secret; `alphabet` is A, the tokens of a position."""
    alphabet = _validate.integer_at_least("alphabet", alphabet, 2)
    right = np.asarray(guess) == np.asarray(secret)
    return Recovery(
        bool(right.all()), float(right.mean()), 1.0 / alphabet, int((~right).sum())
    )


def fisher(p_values: npt.ArrayLike) -> float:
    """One p-value of independent ones: -2 sum log p is at most chi-squared with 2n."""
    p = _losses("p_values", p_values, 1)
    if not ((p > 0) & (p <= 1)).all():
        _validate.fail("p_values", p.tolist()[:3], "must lie in (0, 1]")
    return float(stats.chi2.sf(-2 * np.log(p).sum(), 2 * p.size))


def summarise(
    inserted: Sequence[Exposure],
    *,
    absent: Sequence[Exposure] | None,
    decoy: Sequence[Exposure] | None,
    level: float = 0.95,
) -> Summary:
    """Exposure over seeds, beside both controls; seed i of all three belong together.

    Args:
      inserted: of models trained with the canary, one a seed.
      absent: same seed and order, an ordinary row in the canary's place.
      decoy: of the first models, for a fresh code.
      level: confidence of the interval of the median difference.

    Raises:
      ValueError: if a control is missing, or numbers of seeds or codes differ.
    """
    level = _validate.in_open_interval("level", level, 0.0, 1.0)
    bits = {}
    for field, group in (("inserted", inserted), ("absent", absent), ("decoy", decoy)):
        if not group:
            _validate.fail(
                field,
                group,
                "is missing, and an exposure without its controls says nothing",
                "score the same codes under a model without the canary, and a fresh "
                "code under the model with it",
            )
        if len(group) != len(inserted):
            _validate.fail(field, len(group), f"must have {len(inserted)} seeds")
        if {one.candidates for one in group} != {inserted[0].candidates}:
            _validate.fail(field, group[0].candidates, "codes differ between seeds")
        bits[field] = np.array([one.bits for one in group])
    delta = bits["inserted"] - bits["absent"]
    lo, hi = _median_interval(delta, level)
    controls = [fisher([one.p_value for one in g]) for g in (absent or (), decoy or ())]
    return Summary(
        seeds=len(inserted),
        ceiling=inserted[0].ceiling,
        inserted_median=float(np.median(bits["inserted"])),
        absent_median=float(np.median(bits["absent"])),
        decoy_median=float(np.median(bits["decoy"])),
        delta_absent=delta,
        delta_decoy=bits["inserted"] - bits["decoy"],
        delta_median=float(np.median(delta)),
        delta_lo=lo,
        delta_hi=hi,
        level=level,
        p_value=fisher([one.p_value for one in inserted]),
        control_p_value=min(controls),
        recovered=float(
            np.mean([one.worst_rank == 1 and not one.is_estimate for one in inserted])
        ),
    )


def _median_interval(values: np.ndarray, level: float) -> tuple[float, float]:
    """Order statistics that hold the median: Pr[Bin(n, 1/2) < k] <= (1 - level)/2."""
    ordered = np.sort(values)
    k = int(stats.binom.ppf((1 - level) / 2, values.size, 0.5))
    while k > 0 and stats.binom.cdf(k - 1, values.size, 0.5) > (1 - level) / 2:
        k -= 1
    if k < 1:
        return -float("inf"), float("inf")
    return float(ordered[k - 1]), float(ordered[values.size - k])


def _losses(field: str, values: npt.ArrayLike, least: int) -> np.ndarray:
    out = _validate.numbers_of(field, values)
    if out.ndim != 1 or out.size < least:
        _validate.fail(field, list(out.shape), f"must be one-dimensional, >= {least}")
    if np.isnan(out).any():
        where = int(np.flatnonzero(np.isnan(out))[0])
        _validate.fail(f"{field}[{where}]", "nan", "has no rank", "check the model")
    return out


def _fit(x: np.ndarray, secret_loss: float, losses: np.ndarray, spread: float):
    """(standardised secret, shape) of the skew-normal of greatest likelihood."""
    # Method of moments; the skewness of a skew-normal stays below 0.9953.
    skew = float(np.clip(stats.skew(x), -0.95, 0.95))
    part = abs(skew) ** (2 / 3)
    delta = np.sqrt(np.pi / 2 * part / (part + ((4 - np.pi) / 2) ** (2 / 3)))
    delta = float(np.sign(skew) * min(delta, 0.99))
    scale = 1 / np.sqrt(1 - 2 * delta**2 / np.pi)
    start = [-scale * delta * np.sqrt(2 / np.pi), np.log(scale)]
    start.append(delta / np.sqrt(1 - delta**2))

    def cost(theta):
        if abs(theta[2]) > _MAX_SHAPE:
            return np.inf
        t = (x - theta[0]) * np.exp(-theta[1])
        return np.mean(t**2 / 2 - special.log_ndtr(theta[2] * t)) + theta[1]

    loc, log_scale, shape = optimize.minimize(cost, start, method="Nelder-Mead").x
    z = (secret_loss - losses.mean()) / spread
    return float((z - loc) * np.exp(-log_scale)), float(shape)


def _log_cdf(z: float, shape: float) -> float:
    """Log of the integral of 2 phi(t) Phi(shape t) up to z, summed in logs."""
    # Steps grow geometrically: fine where a far tail falls fast, long enough for all.
    u = np.concatenate([[0.0], np.geomspace(1e-7, 40.0 + abs(z), 20000)])
    t = z - u
    logs = np.log(2) - (t**2 + np.log(2 * np.pi)) / 2 + special.log_ndtr(shape * t)
    areas = np.logaddexp(logs[:-1], logs[1:]) + np.log(np.diff(u) / 2)
    return float(min(special.logsumexp(areas), 0.0))
