"""Fairness over clients of a federation: how unequal accuracies are, and truly are.

Client k has c_k of n_k examples right, a_k = c_k / n_k. Over clients:

| figure | formula | even |
|---|---|---|
| variance | mean (a_k - mean a)^2 (Li et al. 2020) | 0 |
| worst decile | mean of the smallest tenth of a_k, of one client at least | mean a |
| Gini | sum_kl |a_k - a_l| / (2 M^2 mean a) | 0 |
| Jain | (sum a)^2 / (M sum a^2) | 1 |

Most of that spread may be luck: a client of 5 examples has an accuracy in steps of a
fifth, however well it is served. A beta-binomial law, a_k ~ Beta(m s, (1 - m) s) and
c_k ~ Binomial(n_k, a_k), tells both apart: m and s are fitted by the largest
likelihood, and `true_variance` is m (1 - m) / (s + 1). Given both, a client's accuracy
is Beta(c_k + m s, n_k - c_k + (1 - m) s): shrunk towards m, the more the fewer examples
it has. But neither is known, least of all with few clients, so `posterior` takes the
mean of that law over all m and s, on a grid, weighted by likelihood and a weak prior: m
uniform, and uniform too the share s / (s + min n) by which the smallest client is
shrunk (Christiansen and Morris 1997; Daniels 1999). It is proper, so even one client of
one example has an interval. Measured by `pytest -m slow
tests/fairness/clients_test.py -s`, the 95% intervals hold

| clients | accuracies | examples | hold |
|---|---|---|---|
| 30 | all .9 | 3 to 19 | .999 |
| 30 | all .99 | 3 to 19 | .970 |
| 60 | Beta(8, 2) | 3 to 39 | .945 |
| 10 | Beta(8, 2) | 3 to 39 | .946 |
| 30 | Beta(.2, .2) | 3 to 39 | .950 |

Group gaps of all clients together and the mean of the clients' own gaps are different
questions (Simpson 1951): `gaps` gives both.

Sources: Li et al. 2020, https://arxiv.org/abs/1905.10497; Jain et al. 1984 (DEC
TR-301); priors: Christiansen and Morris 1997 (JASA 92:618)
and Daniels 1999 (Canadian Journal of Statistics 27:567). Dimension key:
`M` clients, `G` groups, `R` replicates, `J` laws of the grid.

Example::

    found = clients.measure(correct, examples)
    found.variance.value, found.true_variance, found.shrunk        # float64[M]
    both = clients.gaps(cells, gaps.demographic_parity_difference)  # cells [M, G, 2, 2]
    both.pooled.value, both.client_mean.value
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy import typing as npt
from scipy import optimize, special

from trustml import _validate, intervals

_FEWEST = 2  # clients of an interval; one says nothing of others
_LARGEST = 1e6  # of s: beyond, accuracies are alike as far as counts can tell
_POINTS = 15  # of the grid along each axis
_ALONG, _ZOOMS = 5, 10  # how often it is drawn closer, first along logit m alone
_FAR = 12.0  # log weights this much below the largest are left out of the next grid
_LIGHT = 3e-5  # weight of a law that is left out
_HALVINGS = 32  # of [0, 1], for the ends
_AT_ONCE = 2_000_000  # laws of a client held at once


class Clients(NamedTuple):
    """Accuracies of M clients that hold examples, and how unequal they are.

    Attributes:
      clients: M.
      mean: over clients, with a bootstrap interval over clients, as all below.
      variance: of accuracies as seen, luck included.
      worst_decile: mean of the smallest tenth.
      gini: in [0, 1).
      jain: in [1/M, 1].
      m: mean of the fitted beta law.
      s: its strength, as examples; large where clients are alike.
      true_variance: its variance: what is left of `variance` without luck.
      shrunk: float64[K], posterior mean, shrunk towards that of all; nan for clients
        without examples.
      shrunk_lo: float64[K], lower end of a posterior interval.
      shrunk_hi: float64[K], upper end.
    """

    clients: int
    mean: intervals.Interval
    variance: intervals.Interval
    worst_decile: intervals.Interval
    gini: intervals.Interval
    jain: intervals.Interval
    m: float
    s: float
    true_variance: float
    shrunk: np.ndarray
    shrunk_lo: np.ndarray
    shrunk_hi: np.ndarray


class Gaps(NamedTuple):
    """One gap, asked in two ways.

    Attributes:
      pooled: of the counts of all clients together.
      client_mean: mean of the clients' own gaps, where they are defined.
      undefined: clients without a gap of their own, such as those of one group.
    """

    pooled: intervals.Interval
    client_mean: intervals.Interval
    undefined: int


def measure(
    correct: npt.ArrayLike,
    examples: npt.ArrayLike,
    *,
    level: float = 0.95,
    replicates: int = 1000,
    seed: int = 0,
) -> Clients:
    """How unequal accuracies of clients are.

    Args:
      correct: int[K], c_k, right answers.
      examples: int[K], n_k; clients without examples count nowhere.
      level: of the intervals.
      replicates: of the bootstrap over clients.
      seed: of the bootstrap.

    Returns:
      Clients; the ends of intervals are nan with fewer than two clients.

    Raises:
      ValueError: on counts that are none, or if no client has an example.
    """
    c, n = (
        _validate.numbers_of(field, x)
        for field, x in (("correct", correct), ("examples", examples))
    )
    if c.shape != n.shape or c.ndim != 1:
        bound = f"does not go with examples of shape {n.shape}"
        _validate.fail("correct", f"array of shape {c.shape}", bound)
    bad = (c < 0) | (c > n) | (c != np.round(c)) | (n != np.round(n)) | ~np.isfinite(n)
    if np.any(bad):
        k = int(np.argmax(bad))
        bound = f"of examples[{k}]={n[k]:g} is not a count"
        _validate.fail(f"correct[{k}]", float(c[k]), bound, "give whole numbers")
    there = n > 0
    if not there.any():
        _validate.fail("examples", 0, "leaves no client to measure")
    accuracy = c[there] / n[there]

    def over(statistic):
        if accuracy.size < _FEWEST:
            return intervals.Interval(float(statistic(accuracy)), *[float("nan")] * 2)
        return intervals.bootstrap(
            statistic,
            accuracy,
            level=level,
            replicates=replicates,
            seed=seed,
            vectorized=True,
        )

    level = _validate.in_open_interval("level", level, 0, 1, "0.95 is usual")
    m, s = beta_binomial(c[there], n[there])
    # Clients without a single example have the law of all, which is no news of them.
    shrunk, lo, hi = np.full((3, len(c)), np.nan)
    shrunk[there], lo[there], hi[there] = posterior(c[there], n[there], level)
    return Clients(
        clients=int(there.sum()),
        mean=over(lambda x: x.mean(axis=-1)),
        variance=over(lambda x: x.var(axis=-1)),
        worst_decile=over(worst_decile),
        gini=over(gini),
        jain=over(jain),
        m=m,
        s=s,
        true_variance=m * (1.0 - m) / (s + 1.0),
        shrunk=shrunk,
        shrunk_lo=lo,
        shrunk_hi=hi,
    )


def worst_decile(values: np.ndarray) -> np.ndarray:
    """Mean of the smallest tenth over the last axis, of one value at least."""
    values = np.sort(values, axis=-1)
    return np.asarray(values[..., : max(1, values.shape[-1] // 10)].mean(axis=-1))


def gini(values: np.ndarray) -> np.ndarray:
    """Gini coefficient of values >= 0 over the last axis; 0 where all are 0.

    By ranks: sum_i (2 i - M - 1) x_(i) / (M sum x).
    """
    values = np.sort(values, axis=-1)
    m = values.shape[-1]
    total = m * values.sum(axis=-1)
    ranked = values @ (2.0 * np.arange(1, m + 1) - m - 1.0)
    return np.where(total > 0, ranked / np.where(total > 0, total, 1.0), 0.0)


def jain(values: np.ndarray) -> np.ndarray:
    """Jain's index of values >= 0 over the last axis; 1 where all are 0."""
    squares = values.shape[-1] * np.square(values).sum(axis=-1)
    total = np.square(values.sum(axis=-1))
    return np.where(squares > 0, total / np.where(squares > 0, squares, 1.0), 1.0)


def beta_binomial(correct: np.ndarray, examples: np.ndarray) -> tuple[float, float]:
    """Mean m and strength s of the beta law that counts are likeliest under.

    Args:
      correct: float[M], counts.
      examples: float[M], > 0.

    Returns:
      m in (0, 1) and s in (0, 1e6]; the upper end where clients are no more unequal
      than luck makes them.
    """
    wrong = examples - correct
    # Half an answer each way keeps m off the ends, where the law has no density.
    start = (correct.sum() + 0.5) / (examples.sum() + 1.0)

    def minus(at):
        m, s = special.expit(at[0]), np.exp(at[1])
        a, b = m * s, (1.0 - m) * s
        each = special.betaln(correct + a, wrong + b) - special.betaln(a, b)
        return -float(each.sum())

    limits = [(-20.0, 20.0), (np.log(1e-3), np.log(_LARGEST))]
    best = min(
        (
            optimize.minimize(
                minus,
                [special.logit(start), np.log(s)],
                method="L-BFGS-B",
                bounds=limits,
            )
            for s in (1.0, 30.0, 1e4)
        ),
        key=lambda found: found.fun,
    )
    # Where the likelihood is flat, the law with the least spread is as likely.
    least = np.array([special.logit(start), np.log(_LARGEST)])
    if minus(least) <= best.fun + 1e-6:
        return float(start), _LARGEST
    return float(special.expit(best.x[0])), float(np.exp(best.x[1]))


def posterior(
    correct: np.ndarray, examples: np.ndarray, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Accuracy of each client given all clients, whatever m and s are.

    Args:
      correct: float[M], counts.
      examples: float[M], > 0.
      level: of each client's interval, with equal tails.

    Returns:
      Means, lower ends and upper ends, float64[M] each.
    """
    pairs, of = np.unique(np.stack([correct, examples]), axis=1, return_inverse=True)
    times = np.bincount(of.reshape(-1))
    a_J, b_J, weight_J = _grid(pairs[0], pairs[1], times)
    parts, step = [], max(1, _AT_ONCE // len(a_J))
    for start in range(0, len(times), step):
        c, n = pairs[:, start : start + step, None]
        a, b = c + a_J, n - c + b_J
        ends = []
        for q in ((1 - level) / 2, (1 + level) / 2):
            lo, hi = np.zeros(len(a)), np.ones(len(a))
            for _ in range(_HALVINGS):
                mid = (lo + hi) / 2
                below = special.betainc(a, b, mid[:, None]) @ weight_J < q
                lo, hi = np.where(below, mid, lo), np.where(below, hi, mid)
            ends.append((lo + hi) / 2)
        parts.append([(a / (a + b)) @ weight_J, *ends])
    mean, lo, hi = np.concatenate(parts, axis=1)[:, of.reshape(-1)]
    return mean, lo, hi


def _grid(correct, examples, times) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Beta laws of all clients, a float64[J] and b, with posterior weights.

    Axes are logit m and s / (s + min n): cells of a grid, drawn closer around those
    that weigh anything until it fits. Along logit m first: where no cell is near the
    true m, only weak laws explain the data there, and strong ones would be cut off.
    """
    wrong, least = examples - correct, examples.min()
    box = [(-14.0, 14.0), (0.0, 1.0)]
    a = b = log = np.zeros(0)
    for zoom in range(_ZOOMS):
        logit, share = (
            lo + (hi - lo) * (np.arange(_POINTS) + 0.5) / _POINTS for lo, hi in box
        )
        m = special.expit(logit)[:, None]
        s = least * share / (1.0 - share)
        a, b = (m * s).reshape(-1), ((1.0 - m) * s).reshape(-1)
        log = np.zeros(len(a))
        for c, w, k in zip(correct, wrong, times, strict=True):
            log += k * (special.betaln(c + a, w + b) - special.betaln(a, b))
        log = log.reshape(_POINTS, _POINTS) + np.log(m * (1.0 - m))  # dm / dlogit
        log -= log.max()
        if zoom < _ZOOMS - 1:
            axes = (0,) if zoom < _ALONG else (0, 1)
            for axis in axes:
                weighs = (log > -_FAR).any(axis=1 - axis)
                box[axis] = _closer(*box[axis], weighs)
    weight = np.exp(log).reshape(-1)
    weight /= weight.sum()
    kept = weight > _LIGHT
    return a[kept], b[kept], weight[kept] / weight[kept].sum()


def _closer(low: float, high: float, some: np.ndarray) -> tuple[float, float]:
    """The cells that weigh something, and half a cell beyond."""
    at, step = np.flatnonzero(some), (high - low) / len(some)
    return (
        max(low, low + (at[0] - 0.5) * step),
        min(high, low + (at[-1] + 1.5) * step),
    )


def gaps(
    cells: Any,
    gap: Callable[[jax.Array], jax.Array],
    *,
    level: float = 0.95,
    replicates: int = 1000,
    seed: int = 0,
) -> Gaps:
    """A gap of all clients together beside the mean of the clients' own.

    Args:
      cells: int[M, G, K, K], counts of every client.
      gap: cells [G, K, K] -> float[]; NaN where undefined.
      level: of the intervals.
      replicates: R; clients are drawn with replacement, with all of their counts.
      seed: of the draws.

    Returns:
      Gaps; ends nan with fewer than two clients that have a gap. Of a gap that is never
        negative the ends are quantiles of a figure that is biased upwards: the lower
        end being above 0 proves nothing.

    Raises:
      ValueError: on cells of another shape, no clients, or fewer than 100 replicates.
    """
    cells = np.asarray(cells)
    if cells.ndim != 4:
        bound = "are not [M, G, K, K]"
        cure = "vmap counts.count over clients"
        _validate.fail("cells", f"array of shape {cells.shape}", bound, cure)
    level = _validate.in_open_interval("level", level, 0, 1, "0.95 is usual")
    _validate.integer_at_least("replicates", replicates, 100, "1000 is usual")
    m = len(cells)
    _validate.integer_at_least("cells", m, 1, "give the counts of one client at least")
    rng = np.random.default_rng(seed)
    times = rng.multinomial(m, np.full(m, 1.0 / m), size=replicates).astype(float)
    times = np.concatenate([np.ones((1, m)), times])  # as seen, then replicates
    tables = np.tensordot(times, cells.astype(float), axes=1)
    pooled = np.asarray(jax.vmap(gap)(jnp.asarray(tables, jnp.float32)), float)
    own = np.asarray(jax.vmap(gap)(jnp.asarray(cells, jnp.float32)), float)
    defined = np.isfinite(own)
    weight = times @ defined.astype(float)
    mean = times @ np.where(defined, own, 0.0) / np.where(weight > 0, weight, np.nan)
    both = _interval(pooled, level, m), _interval(mean, level, int(defined.sum()))
    return Gaps(*both, int(np.sum(~defined)))


def _interval(values: np.ndarray, level: float, clients: int) -> intervals.Interval:
    """The first value with quantiles of the others that are defined."""
    rest = values[1:][np.isfinite(values[1:])]
    if not np.isfinite(values[0]) or not rest.size:
        return intervals.Interval(*[float("nan")] * 3)
    if clients < _FEWEST:
        return intervals.Interval(float(values[0]), *[float("nan")] * 2)
    lo, hi = np.quantile(rest, [(1 - level) / 2, (1 + level) / 2])
    return intervals.Interval(float(values[0]), float(lo), float(hi))
