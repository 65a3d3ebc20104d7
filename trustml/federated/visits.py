"""The rows of a visit: which examples a client goes through in a round, in what order.

    rows = offsets[client] + keyed order of [0, n) of (seed, round, client, epoch)

An epoch is a fresh order; where a client may use `limit` examples at most, these are
drawn for the round, the same ones in all its epochs.

Dimension key: M clients of a cohort, R rows that they hand in.

Example::

    place = visits.placed(
        source.place, words, round, clients, sizes, starts=offsets[clients]
    )
    state, info = made.run(state, key, chosen, place)       # of `federated.rounds`

References: see `trustml.federated.order`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Int

from trustml.federated import order

_CHOICE = 2**32 - 1  # the epoch whose order says which examples are used


def rows(
    key_words: Any,
    round: int,
    clients: Int[np.ndarray, " M"],
    sizes: Int[np.ndarray, " M"],
    handed: Int[np.ndarray, " M"],
    *,
    starts: Int[np.ndarray, " M"],
    limit: int | None = None,
) -> Int[np.ndarray, " R"]:
    """Rows of the store, one client after another, an epoch after the other.

    Args:
      key_words: uint32[2], the seed.
      round: number of the round.
      clients: their numbers.
      sizes: n_k that they hold.
      handed: rows that they hand in, a multiple of min(n_k, limit); of
        `schedule.Batches.rows`.
      starts: where each client's rows begin.
      limit: examples of a client at most; None takes all.
    """
    sizes, handed = np.asarray(sizes, np.int64), np.asarray(handed, np.int64)
    used = sizes if limit is None else np.minimum(sizes, limit)
    epochs = handed // np.maximum(used, 1)
    begin = np.cumsum(handed) - handed
    found = np.empty(int(handed.sum()), np.int64)
    chosen = None
    if limit is not None and (sizes > limit).any():
        chosen = order.positions(key_words, round, clients, sizes, _CHOICE, limit=limit)
    for epoch in range(int(epochs.max(initial=0))):
        there = epochs > epoch
        count = used[there]
        local = order.positions(key_words, round, clients[there], count, epoch)
        if chosen is not None:  # positions among the chosen ones
            first = (np.cumsum(used) - used)[there]
            local = chosen[np.repeat(first, count) + local]
        where = np.repeat(begin[there] + epoch * count, count) + _arange(count)
        found[where] = np.repeat(np.asarray(starts)[there], count) + local
    return found


def placed(
    place: Callable[[np.ndarray], tuple[Any, np.ndarray]],
    key_words: Any,
    round: int,
    clients: Int[np.ndarray, " M"],
    sizes: Int[np.ndarray, " M"],
    *,
    starts: Int[np.ndarray, " M"],
    limit: int | None = None,
) -> Callable[[np.ndarray], tuple[Any, np.ndarray]]:
    """Rows handed in -> (data, index), what `rounds.Rounds.run` asks for.

    Args:
      place: rows -> (data, index), such as that of a `feed.Feed`.
      key_words: as for `rows`, like all others.
      round: number of the round.
      clients: their numbers.
      sizes: n_k that they hold.
      starts: where each client's rows begin.
      limit: examples of a client at most.
    """

    def of(handed):
        found = rows(
            key_words, round, clients, sizes, handed, starts=starts, limit=limit
        )
        return place(found)

    return of


def _arange(counts: np.ndarray) -> np.ndarray:
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
