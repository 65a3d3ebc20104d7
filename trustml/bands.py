"""A band over a whole distribution function: limits that hold at every threshold.

Of n independent scores, the share of their law above the k-th largest is the k-th order
statistic of n uniforms, U_(k) ~ Beta(k, n-k+1), whatever the law. One level gamma,
small enough, makes all n limits hold together:

    P[ U_(k) <= BetaInv(1 - gamma; k, n-k+1) for every k ] >= 1 - beta

So, for every threshold at once and hence for one that was chosen after looking: if c of
the n scores lie above it, the share of the law above it is

    at most  BetaInv(1 - gamma; c+1, n-c)   (1 where c = n)
    at least BetaInv(gamma; c, n-c+1)       (0 where c = 0; by symmetry)

each with probability 1 - beta. Ties need no care, provided thresholds lie between
distinct scores: "score > t" is then also an event of the score with a random
tie-breaker, whose law is continuous.

gamma comes from simulation: an order statistic of the simulated minima, low enough that
it errs on the safe side with probability 99%. At n = 200, beta = 0.025 it is 0.00075
(exactly 0.00085); Bonferroni over the thresholds would take 0.000125.

Dimension key: `n` scores, `R` draws of n uniforms.

Example::

    from trustml import bands

    limits = bands.band(500, 0.025)
    limits.upper[3]                       # 3 of 500 above: at most this share, 97.5%
    limits.lower[480]

References: Berk and Jones 1979, https://doi.org/10.1007/BF00533250 (the statistic);
Aldor-Noiman et al. 2013, "The power to see", The American Statistician 67 (as a band).
"""

import functools
from typing import NamedTuple

import numpy as np
from scipy import special, stats

from trustml import _validate

_DRAWS = 20_000
_ELEMENTS = 1 << 20  # of one chunk of draws
_SAFETY = 0.01


class Band(NamedTuple):
    """One-sided limits of the share of a law above a threshold, by the count above it.

    Attributes:
      lower: float64[n+1]; with c scores above, the share is at least lower[c].
      upper: float64[n+1]; it is at most upper[c].
      gamma: the level of each limit by itself.
    """

    lower: np.ndarray
    upper: np.ndarray
    gamma: float


@functools.lru_cache(maxsize=64)
def band(n: int, beta: float) -> Band:
    """Limits that hold at every threshold with probability 1 - beta (each side).

    Formal guarantee: for n independent scores of one law, P[share above t <= upper[c_t]
      for every t] >= 1 - beta, and so for `lower`; both at once, >= 1 - 2 beta. The
      simulated gamma is too large with probability 1% at most.
    Args:
      n: scores, >= 1.
      beta: in (0, 1); half of alpha where two sides share it.

    Returns:
      Band; kept, so a second call costs nothing. Its arrays are read-only.

    Raises:
      ValueError: if n or beta is out of its bounds.
    """
    return pointwise(n, local_level(n, beta))


def pointwise(n: int, beta: float) -> Band:
    """Clopper-Pearson limits of every count, each of which holds by itself.

    Args:
      n: scores, >= 1.
      beta: in (0, 1), of each limit.

    Raises:
      ValueError: if n or beta is out of its bounds.
    """
    n, beta = _checked(n, beta)
    c = np.arange(n)
    # Of c above and of n - c above: one table, read from both ends.
    upper = np.append(special.betainccinv(c + 1.0, n - c, beta), 1.0)
    lower = np.insert(special.betaincinv(c + 1.0, n - c, beta), 0, 0.0)
    upper.flags.writeable = lower.flags.writeable = False
    return Band(lower, upper, beta)


@functools.lru_cache(maxsize=256)
def local_level(
    n: int, beta: float, *, draws: int | None = None, seed: int = 0
) -> float:
    """gamma: the level of single limits at which all of them hold with 1 - beta.

    Args:
      n: scores, >= 1.
      beta: in (0, 1).
      draws: R; None: 20,000, and more where beta is so small that they would not do.
      seed: of the simulation; with the same seed gamma is the same.

    Returns:
      gamma in (0, beta]; too large with probability 1% over seeds.

    Raises:
      ValueError: if n or beta is out of its bounds, or R draws cannot resolve beta.
    """
    n, beta = _checked(n, beta)
    if draws is None:
        draws = max(_DRAWS, int(200 / beta))
    # The m-th smallest of R minima is below the true level unless fewer than m of them
    # are, and that number is Bin(R, beta).
    rank = int(stats.binom.ppf(_SAFETY, draws, beta))
    if rank < 1:
        _validate.fail(
            "draws",
            draws,
            f"cannot resolve beta={beta:g}",
            f"take {int(np.ceil(10 / beta))} or more",
        )
    # Only limits that fail at the level of the screen are looked at more closely.
    for screen in (beta / 8, beta):
        minima = _minima(n, screen, draws, seed)
        if np.sum(minima < screen) >= rank:
            break
    return min(beta, float(np.partition(minima, rank - 1)[rank - 1]))


def _minima(n: int, screen: float, draws: int, seed: int) -> np.ndarray:
    """min_k P[Beta(k, n-k+1) > U_(k)] of every draw, float64[R]; 1 above `screen`."""
    rng = np.random.default_rng(seed)
    k = np.arange(1.0, n + 1)
    limits = special.betainccinv(k, n - k + 1, screen)
    size, out = max(1, _ELEMENTS // n), []
    for start in range(0, draws, size):
        shape = (min(size, draws - start), n + 1)
        sums = np.cumsum(rng.standard_exponential(shape), axis=1)
        uniforms = sums[:, :-1] / sums[:, -1:]
        rows, at = np.nonzero(uniforms > limits)
        tails = special.betaincc(k[at], n - at, uniforms[rows, at])
        smallest = np.ones(shape[0])
        np.minimum.at(smallest, rows, tails)
        out.append(smallest)
    return np.concatenate(out)


def _checked(n: int, beta: float) -> tuple[int, float]:
    n = _validate.integer_at_least("n", n, 1, "a band needs scores")
    return n, _validate.in_open_interval("beta", beta, 0, 1, "0.025 is usual")
