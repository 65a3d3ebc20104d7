"""A coin for each of ten million clients, at the price of the cohort.

Exact Poisson sampling, unequal p_k: clients are put in buckets by floor(-log2 p), once;
a round throws coins of the bucket's largest p, the ceiling, which is one binomial and a
uniform subset (`trustml.privacy.draws.coins`), and keeps whom it found with probability
p_k / ceiling >= 1/2. So a round looks at fewer than two clients for each that it takes,
and at nobody else. No rejection of cohorts, no cut: an empty cohort is a cohort.

Exact size m with exact inclusion p_k (`systematic`): clients in fresh random order, one
uniform start u; taken is where the running sum of p crosses u + j. This looks at every
client, and inclusions are dependent: no accountant for coins applies.

An index holds 4 bytes for each client and no copy of the sizes.

Example::

    found = probabilities.capped_power(sizes, 200)
    index = coins.index(found, sizes)                      # until the sizes change
    clients, inclusion = coins.throw(numbers, index, sizes)

References: Sarndal, Swensson and Wretman 1992, "Model assisted survey sampling",
chapter 3 (Poisson and systematic sampling).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from trustml.federated import probabilities as probabilities_lib
from trustml.privacy import draws

_CHUNK = 1 << 20
_LAST = 63  # the bucket of all p below 2**-63


class Index(NamedTuple):
    """Clients by bucket.

    Attributes:
      probabilities: p of every distinct size.
      order: int32[K'] the clients with p > 0, bucket after bucket, ascending in each.
      starts: int64[b+1] where buckets start in `order`.
      ceilings: float64[b] largest p of each.
    """

    probabilities: probabilities_lib.Probabilities
    order: Int[np.ndarray, " clients"]
    starts: Int[np.ndarray, " ends"]
    ceilings: Float[np.ndarray, " buckets"]


def index(
    probabilities: probabilities_lib.Probabilities, sizes: Int[np.ndarray, " K"]
) -> Index:
    """The index of these sizes, in time O(K) and 4 bytes for each client."""
    per_size, counts = probabilities.per_size, probabilities.histogram.counts
    possible = per_size > 0
    with np.errstate(divide="ignore"):
        level = np.minimum(np.floor(-np.log2(per_size)), _LAST)
    levels, bucket = np.unique(level[possible], return_inverse=True)
    bucket_of_size = np.full(len(per_size), len(levels), np.uint8)
    bucket_of_size[possible] = bucket
    ceilings = np.zeros(len(levels))
    np.maximum.at(ceilings, bucket, per_size[possible])
    members = np.bincount(bucket, counts[possible], len(levels)).astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(members)])
    order, ends = np.empty(starts[-1], np.int32), starts[:-1].copy()
    bucket_of = _lookup(probabilities.histogram.sizes, bucket_of_size)
    for first in range(0, len(sizes), _CHUNK):
        buckets = bucket_of(sizes[first : first + _CHUNK])
        # Stable, and of bytes: a counting sort.
        by_bucket = np.argsort(buckets, kind="stable")
        cuts = np.cumsum(np.bincount(buckets, minlength=len(levels) + 1))
        begin = 0
        for number, end in enumerate(cuts[:-1].tolist()):
            found = by_bucket[begin:end] + first
            order[ends[number] : ends[number] + len(found)] = found
            ends[number] += len(found)
            begin = end
    return Index(probabilities, order, starts, ceilings)


def throw(
    generator: np.random.Generator, index: Index, sizes: Int[np.ndarray, " K"]
) -> tuple[Int[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Every client with its own probability, independently.

    Args:
      generator: the random numbers of the round.
      index: of these sizes.
      sizes: n_k; looked up for the candidates alone.

    Returns:
      (clients, ascending; p_k of each). About 2 m clients are looked at, at most, and
      a share of 1/50 of a bucket whose ceiling exceeds that.
    """
    clients, inclusion = [], []
    for number, ceiling in enumerate(index.ceilings.tolist()):
        start, end = index.starts[number], index.starts[number + 1]
        places = draws.coins(generator, int(end - start), ceiling)
        found = index.order[start + places]
        p = index.probabilities.of(sizes[found])
        kept = generator.random(len(found)) * ceiling < p
        clients.append(found[kept])
        inclusion.append(p[kept])
    together = np.concatenate(clients).astype(np.int64)
    order = np.argsort(together)
    return together[order], np.concatenate(inclusion)[order]


def systematic(
    generator: np.random.Generator,
    probabilities: Float[np.ndarray, " K"],
) -> Int[np.ndarray, " m"]:
    """Exactly m clients, each with its own probability; m is the sum of all of them.

    Args:
      generator: the random numbers of the round.
      probabilities: p_k in [0, 1] whose sum is a whole number, up to rounding.

    Returns:
      Clients, ascending.
    """
    sure = probabilities >= 1 - 1e-12
    open_ = np.flatnonzero((probabilities > 0) & ~sure)
    wanted = round(float(probabilities[open_].sum()))
    if not wanted:
        return np.flatnonzero(sure)
    order = open_[generator.permutation(len(open_))]
    running = np.cumsum(probabilities[order])
    # The sum is m but for rounding; made m exactly, no crossing can be lost.
    running *= wanted / running[-1]
    running[-1] = wanted
    crossed = np.searchsorted(
        running, generator.random() + np.arange(wanted), side="right"
    )
    return np.sort(np.concatenate([np.flatnonzero(sure), order[crossed]]))


def successive(
    generator: np.random.Generator,
    weights: Float[np.ndarray, " K"],
    count: int,
) -> Int[np.ndarray, " m"]:
    """`count` positions, one after another, each draw in proportion to what is left.

    Exponential clocks of these rates; the first to ring are drawn (Efraimidis and
    Spirakis 2006). Inclusion is NOT count * weight, so nothing may be divided by it.
    Positions of weight 0 come last, and only where there are too few others.
    """
    clocks = generator.standard_exponential(len(weights))
    with np.errstate(divide="ignore"):
        clocks = clocks / weights
    late = np.flatnonzero(weights <= 0)
    if count >= len(weights):
        return np.arange(len(weights))
    if count > len(weights) - len(late):
        open_ = np.flatnonzero(weights > 0)
        more = late[draws.subset(generator, len(late), count - len(open_))]
        return np.sort(np.concatenate([open_, more]))
    return np.sort(np.argpartition(clocks, count - 1)[:count] if count else late[:0])


def _lookup(
    sizes: np.ndarray, values: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    """Size -> value, by a table where that is small."""
    if sizes[-1] >= probabilities_lib.DENSE:
        return lambda asked: values[np.searchsorted(sizes, asked)]
    table = np.zeros(sizes[-1] + 1, values.dtype)
    table[sizes] = values
    return lambda asked: table[asked]
