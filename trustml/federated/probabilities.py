"""Inclusion probabilities from client sizes: who is drawn how often.

    p_k = min(p_max, c f(n_k)),   c such that sum_k p_k = m;   p_k = 0 where n_k = 0

| score | f(n) | |
|---|---|---|
| `uniform` | 1 | |
| `power(beta)` | n^beta | 0 is uniform, 1 "by activity" |
| `log` | log(1 + n) | |
| `softmax(tau)` | exp((n - max n) / (tau median n)) | near top-k for small tau |
| `threshold(kappa)` | 1 where n >= kappa, else 0 | |

`capped_power` is the default of what is not uniform: beta = 1/2 and p_max = 4 m/K. The
cap is what makes user-level privacy affordable (`trustml.federated.user_privacy`): the
client with the largest p pays most, and heavy clients are few.

Everything happens over the D distinct sizes, not over the K clients. g(c) = sum of the
probabilities is piecewise linear, so c is exact: sort by score, take the number of
capped sizes for which c stays below the next cap.

Dimension key: K clients, D distinct sizes.

Example::

    found = probabilities.solve(probabilities.power(0.5), sizes, 100, p_max=0.04)
    p_K = found.of(sizes)
    found.largest, found.scale

References: https://arxiv.org/abs/2202.03925 (selection by activity).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy import typing as npt

from trustml import _validate

_CHUNK = 1 << 20
DENSE = 1 << 24  # sizes below this are counted in a table, larger ones are sorted
_FAINTEST = 1e-200  # a score of softmax that would underflow


class Score(NamedTuple):
    """How the probability grows with the size.

    Attributes:
      name: as a report prints it, such as 'n^0.5'.
      of: (sizes int64[D] > 0, counts int64[D]) -> f, float64[D], >= 0.
      exponent: beta where f = n^beta, else None.
    """

    name: str
    of: Callable[[np.ndarray, np.ndarray], np.ndarray]
    exponent: float | None = None


class Histogram(NamedTuple):
    """How many clients have which size.

    Attributes:
      sizes: int64[D], ascending, distinct; 0 is among them where a client is empty.
      counts: int64[D].
    """

    sizes: np.ndarray
    counts: np.ndarray

    @property
    def clients(self) -> int:
        """K, the empty ones included."""
        return int(self.counts.sum())


class Probabilities(NamedTuple):
    """The solution over distinct sizes.

    Attributes:
      histogram: of the sizes it was solved for.
      per_size: p of each of them, float64[D].
      scale: c.
      cohort: m, the sum of all p_k.
      p_max: the cap; 1 where there is none.
    """

    histogram: Histogram
    per_size: np.ndarray
    scale: float
    cohort: float
    p_max: float

    @property
    def largest(self) -> float:
        """The largest p_k there is."""
        return float(self.per_size.max(initial=0.0))

    @property
    def clients(self) -> int:
        """How many have a chance at all."""
        return int(self.histogram.counts[self.per_size > 0].sum())

    def of(self, sizes: npt.ArrayLike) -> np.ndarray:
        """The p of clients of these sizes, all of which the histogram must hold."""
        return self.per_size[np.searchsorted(self.histogram.sizes, sizes)]


def uniform() -> Score:
    """Every client that holds data, whatever its size."""
    return Score("1", lambda sizes, counts: np.ones(len(sizes)), 0.0)


def power(beta: float) -> Score:
    """The score n^beta; a negative beta is refused."""
    beta = _validate.non_negative("selection.beta", beta, "0.5 is usual")
    return Score(
        f"n^{beta:g}", lambda sizes, counts: sizes.astype(np.float64) ** beta, beta
    )


def log() -> Score:
    """The score log of 1 + n."""
    return Score("log(1 + n)", lambda sizes, counts: np.log1p(sizes))


def softmax(tau: float) -> Score:
    """The score exp((n - max n) / (tau median n)), over clients with data."""
    tau = _validate.positive("selection.tau", tau, "1.0 is usual")

    def of(sizes: np.ndarray, counts: np.ndarray) -> np.ndarray:
        middle = np.searchsorted(np.cumsum(counts), counts.sum() / 2)
        scaled = (sizes - sizes[-1]) / (tau * sizes[middle])
        return np.maximum(np.exp(scaled), _FAINTEST)

    return Score(f"softmax of n, tau = {tau:g}", of)


def threshold(kappa: int) -> Score:
    """The score 1 where n >= kappa, 0 elsewhere."""
    cure = "1 takes every client that holds data"
    kappa = _validate.integer_at_least("selection.kappa", kappa, 1, cure)
    return Score(f"n >= {kappa}", lambda sizes, counts: (sizes >= kappa) * 1.0)


def check_sizes(sizes: npt.ArrayLike) -> np.ndarray:
    """`sizes` as an array of integers, if they are counts and one of them is not 0.

    Raises:
      ValueError: naming the first that is not, or the population where it is empty.
    """
    found = np.asarray(sizes)
    if found.ndim != 1 or found.dtype.kind not in "iu":
        _validate.fail(
            "sizes",
            f"{found.dtype}{list(found.shape)}",
            "must be a vector of integers, one for each client",
            "count the examples of every client",
        )
    if not found.size or not found.max():
        cure = "load some data"
        _validate.fail("sizes", found.size, "clients hold no example at all", cure)
    if found.min() < 0:
        first = int(np.argmax(found < 0))
        _validate.fail(f"sizes[{first}]", int(found[first]), "must be >= 0")
    if found.size >= 2**31:
        _validate.fail("clients", found.size, "must be below 2**31", "use fewer")
    return found


def histogram(sizes: npt.ArrayLike) -> Histogram:
    """How many clients have which size; no copy of `sizes` is made."""
    sizes = check_sizes(sizes)
    largest = int(sizes.max())
    if largest >= DENSE:
        distinct, often = np.unique(sizes, return_counts=True)
        return Histogram(distinct.astype(np.int64), often.astype(np.int64))
    counts = np.zeros(largest + 1, np.int64)
    chunk = max(_CHUNK, largest)
    for start in range(0, sizes.size, chunk):
        counts += np.bincount(sizes[start : start + chunk], minlength=largest + 1)
    present = np.flatnonzero(counts)
    return Histogram(present.astype(np.int64), counts[present])


def solve(
    score: Score,
    sizes: npt.ArrayLike | Histogram,
    cohort: float,
    *,
    p_max: float | None = None,
) -> Probabilities:
    """The p_k of a score that sum to the cohort, none above p_max.

    Args:
      score: how p grows with n.
      sizes: n_k, int[K], or their histogram.
      cohort: m > 0, expected clients of a round.
      p_max: in (0, 1]; None: 1.

    Raises:
      ValueError: where m exceeds p_max times the clients of positive score; the
        sentence gives the largest feasible m and the p_max that would do.
    """
    found = sizes if isinstance(sizes, Histogram) else histogram(sizes)
    cohort = _validate.positive("selection.cohort", cohort, "20 is a start")
    p_max = check_cap(p_max)
    scores = _scores(score, found)
    able = int(found.counts[scores > 0].sum())
    if cohort > p_max * able * (1 + 1e-12):
        _infeasible(score, cohort, p_max, able)
    scale = _scale(scores, found.counts, cohort, p_max)
    per_size = np.minimum(p_max, scale * scores)
    return Probabilities(found, per_size, scale, cohort, p_max)


def fixed_scale(
    score: Score, sizes: npt.ArrayLike | Histogram, scale: float, *, p_max: float
) -> Probabilities:
    """p_k = min(p_max, c f(n_k)) for a c that was fixed beforehand.

    Then no client's probability depends on another client, which adding or removing one
    as neighbours needs. m is what the probabilities happen to sum to, hence private.
    Scores that look at all sizes (softmax) do not qualify.
    """
    scale = _validate.positive("selection.scale", scale, "it is the c of c f(n)")
    if score.name.startswith("softmax"):
        bound = "looks at the sizes of all clients"
        _validate.fail("selection.score", score.name, bound, "use a power or log")
    found = sizes if isinstance(sizes, Histogram) else histogram(sizes)
    p_max = check_cap(p_max)
    per_size = np.minimum(p_max, scale * _scores(score, found))
    total = float(per_size @ found.counts)
    return Probabilities(found, per_size, scale, total, p_max)


def default_cap(cohort: float, clients: int, times: float = 4.0) -> float:
    """p_max = 4 m/K, at most 1."""
    return min(1.0, times * cohort / clients)


def capped_power(
    sizes: npt.ArrayLike | Histogram,
    cohort: float,
    *,
    beta: float = 0.5,
    p_max: float | None = None,
) -> Probabilities:
    """`solve` of `power(beta)`, where p_max None is 4 m/K."""
    found = sizes if isinstance(sizes, Histogram) else histogram(sizes)
    if p_max is None:
        p_max = default_cap(cohort, found.clients)
    return solve(power(beta), found, cohort, p_max=p_max)


def check_cap(p_max: float | None) -> float:
    """p_max in (0, 1]; None is 1."""
    if p_max is None:
        return 1.0
    value = _validate.positive("selection.p_max", p_max, "4 cohort / clients is usual")
    if value > 1:
        _validate.fail("selection.p_max", p_max, "must be at most 1", "use 1")
    return value


def _scores(score: Score, found: Histogram) -> np.ndarray:
    """The f of every distinct size; 0 for size 0."""
    scores, filled = np.zeros(len(found.sizes)), found.sizes > 0
    scores[filled] = score.of(found.sizes[filled], found.counts[filled])
    worst = scores[~(np.isfinite(scores) & (scores >= 0))]
    if worst.size:
        bound = "is not a finite number >= 0"
        cure = "weigh clients by numbers that are"
        _validate.fail(f"score {score.name}", float(worst[0]), bound, cure)
    if not scores.any():
        bound = "gives no client a chance"
        cure = f"the largest client has {found.sizes[-1]} examples"
        _validate.fail("selection.score", score.name, bound, cure)
    return scores


def _scale(
    scores: np.ndarray, counts: np.ndarray, cohort: float, p_max: float
) -> float:
    """The c of sum counts min(p_max, c scores) = cohort, by water-filling."""
    order = np.argsort(-scores)
    ranked, weights = scores[order], counts[order].astype(np.float64)
    # With the first j sizes at the cap, c = (m - p_max * capped) / rest.
    capped = np.concatenate([[0.0], np.cumsum(weights)[:-1]])
    rest = np.cumsum((weights * ranked)[::-1])[::-1]
    positive = ranked > 0
    scales = (cohort - p_max * capped[positive]) / rest[positive]
    fits = scales * ranked[positive] <= p_max
    # None fits where all are at the cap, up to rounding.
    if not fits.any():
        return float(p_max / ranked[positive][-1])
    return float(scales[np.argmax(fits)])


def _infeasible(score: Score, cohort: float, p_max: float, able: int) -> None:
    most, whom = p_max * able, "clients with data"
    if score.name.startswith("n >="):
        whom = f"clients of {score.name}"
    if cohort > able:
        cure = f"lower cohort to at most {able}"
    else:
        cure = f"raise p_max to {cohort / able:.4g} or lower cohort"
    bound = f"exceeds p_max*({whom}) = {most:.6g}"
    whole = int(cohort) if cohort.is_integer() else cohort
    _validate.fail("selection.cohort", whole, bound, cure)
