"""Permutation tests of a difference of sums, for many tests by one matrix product.

    p = #{partitions (S, T): sum_S s >= sum_X s} / #{partitions},    |S| = |X| = nx

of n = nx + ny scores s, one-sided. The total of s is fixed, so comparing sum_S s is
comparing sum_S s - sum_T s, and means as well. Partitions are the rows of a 0/1 table;
table times scores is every sum of every test.

- Complete up to 100,000 partitions (8 + 8: 12,870; 9 + 9: 48,620): p is exact.
- Beyond, a sample, drawn once for (nx, ny, seed) and shared by all tests:
  p = (1 + k) / (1 + P). The 1 is the partition observed, row 0 of the table.

Sums are exact: scores are cut to 2B binary digits of the largest (B = 19 up to 16
words) and summed as whole numbers in two halves, so that k is the same on every device.
A partition counts from sum_X s - 8 eps sum|s| upwards, eps that of the type of s, or n
units of the last digit if that is more: ties count, and so does the observed partition.

Dimension key: `n` scores, `P` partitions.

Example::

    table = permutation.partitions(8, 8)
    found = jax.jit(lambda s: permutation.test(s, table))(s_LMn)
    print(found.count, found.total, found.p)                 # [L, M], 12870, [L, M]

References: https://arxiv.org/abs/1608.07187; Phipson and Smyth 2010,
  https://doi.org/10.2202/1544-6115.1585 (why 1 + k).
"""

import functools
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy import special

from trustml import _validate

MOST_EXACT = 100_000  # partitions

_ELEMENTS = 1 << 22  # sums at a time


class Partitions(NamedTuple):
    """Ways to cut n scores into nx and ny.

    Attributes:
      masks: bool[P, n]; True where the score is in the first part. Row 0 is the
        partition observed: the first nx.
      exact: whether these are all ways.
    """

    masks: np.ndarray
    exact: bool


class PValue(NamedTuple):
    """A permutation test, of many score vectors at once.

    Attributes:
      count: int32[...]; partitions at least as extreme, with the one observed.
      total: int32[]; p = count / total.
      p: float32[...]; NaN where a score is.
    """

    count: jax.Array
    total: Any
    p: jax.Array


@functools.lru_cache(maxsize=32)
def partitions(
    nx: int, ny: int, *, samples: int = MOST_EXACT - 1, seed: int = 0
) -> Partitions:
    """All partitions of nx + ny scores, or a sample where they exceed 100,000.

    Args:
      nx: scores of the first part, >= 1.
      ny: of the second, >= 1.
      samples: drawn, beside the one observed, where not all are taken.
      seed: of that draw.

    Returns:
      Partitions; kept, so a second call costs nothing. Its table is read-only.

    Raises:
      ValueError: if a number is too small.
    """
    for name, value in (("nx", nx), ("ny", ny), ("samples", samples)):
        _validate.integer_at_least(name, value, 1)
    n = nx + ny
    exact = math.comb(n, nx) <= MOST_EXACT
    if exact:
        chosen = np.array(list(itertools.combinations(range(n), nx)))
        masks = np.zeros((len(chosen), n), bool)
        np.put_along_axis(masks, chosen, True, axis=1)
    else:
        rng = np.random.default_rng(seed)
        masks = np.concatenate(
            [
                (np.arange(n) < nx)[None],
                rng.permuted(np.tile(np.arange(n) < nx, (samples, 1)), axis=1),
            ]
        )
    masks.flags.writeable = False
    return Partitions(masks, exact)


def test(s: Float[Any, "... n"], table: Partitions) -> PValue:
    """One-sided p of every score vector under a table of partitions.

    Args:
      s: float[..., n]; the first nx belong to X. A float64 NumPy array keeps 2B digits,
        anything else is float32.
      table: of `partitions(nx, n - nx)`.

    Returns:
      PValue.

    Raises:
      ValueError: if the table is for another number of scores.
    """
    n = s.shape[-1]
    if table.masks.shape[1] != n:
        raise ValueError(
            f"s has {n} scores and table.masks {table.masks.shape[1]}; make the table "
            "with permutation.partitions(nx, ny) of the same words."
        )
    high, low, tolerance, digits = _halves(s)
    tests = math.prod(s.shape[:-1])
    halves = jnp.concatenate([h.reshape(tests, n) for h in (high, low)]).T
    tolerance = jnp.asarray(tolerance).astype(jnp.int32).reshape(tests)

    def sums(masks):
        both = jnp.matmul(masks, halves, precision=jax.lax.Precision.HIGHEST)
        both = jnp.round(both).astype(jnp.int32)
        return both[:, :tests], both[:, tests:]

    observed_high, observed_low = sums(jnp.asarray(table.masks[:1], jnp.float32))

    def count(total, rows):
        masks, real = rows
        upper, lower = sums(masks.astype(jnp.float32))
        # (upper, lower) >= (observed) - tolerance, in units of the last digit.
        carry = jnp.right_shift(lower - observed_low + tolerance[None], digits)
        reached = (upper - observed_high + carry >= 0) & real[:, None]
        return total + jnp.sum(reached, 0, dtype=jnp.int32), None

    num = len(table.masks)
    size = min(num, max(256, _ELEMENTS // max(1, 2 * tests)))
    pad = -num % size
    masks = np.pad(table.masks, ((0, pad), (0, 0))).reshape(-1, size, n)
    real = (np.arange(num + pad) < num).reshape(-1, size)
    found, _ = jax.lax.scan(count, jnp.zeros(tests, jnp.int32), (masks, real))
    found = found.reshape(s.shape[:-1])
    p = found.astype(jnp.float32) / num
    p = jnp.where(jnp.isnan(jnp.asarray(s, jnp.float32)).any(-1), jnp.nan, p)
    return PValue(found, jnp.asarray(num, jnp.int32), p)


def parametric(s: np.ndarray, nx: int) -> np.ndarray:
    """One-sided p under a normal law with the mean and variance of all partitions.

    p = P[Z >= d sqrt(nx ny / n)], d the effect size: mean and variance of a sum of nx
    scores drawn without replacement are known. An approximation: with few words the
    tail may be off by a factor of ten.

    Args:
      s: float64[..., n].
      nx: number of scores in X.

    Returns:
      float64[...].
    """
    n = s.shape[-1]
    gap = s[..., :nx].mean(-1) - s[..., nx:].mean(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = gap / np.std(s, -1, ddof=1) * np.sqrt(nx * (n - nx) / n)
    return np.asarray(special.ndtr(-z))


def _halves(s):
    """Whole numbers h, l with s = (h + l / 2^B) 2^(e-B), |h| <= 2^B; tolerance; B."""
    n = s.shape[-1]
    # Sums of n numbers of B digits must stay below 2^24, exact in float32.
    digits = min(19, 23 - (n - 1).bit_length())
    xp: Any = np
    if not isinstance(s, np.ndarray) or s.dtype != np.float64:
        xp, s = jnp, jnp.asarray(s, jnp.float32)
    _, exponent = xp.frexp(xp.max(xp.abs(s), -1, keepdims=True))
    scaled = xp.ldexp(s, digits - exponent)
    high = xp.round(scaled)
    low = xp.round((scaled - high) * 2.0**digits)
    eps = 8.0 * float(xp.finfo(s.dtype).eps) * 2.0**digits
    tolerance = xp.ceil(eps * xp.sum(xp.abs(scaled), -1))
    tolerance = xp.maximum(tolerance, float(n))
    return *(jnp.asarray(h, jnp.float32) for h in (high, low)), tolerance, digits
