"""The rows of a visit: which examples a client goes through in a round, in what order.

    rows = offsets[client] + keyed order of [0, n) of (seed, round, client, epoch)

An epoch is a fresh order; where a client may use `limit` examples at most, these are
drawn for the round, the same ones in all its epochs.

Dimension key: M clients of a cohort, R rows that they hand in.

Example::

    made = visits.rows(words, round, clients, sizes, handed, starts=offsets[clients])
    data, index = feed.place(made)

References: see `trustml.federated.order`.
"""

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


def _arange(counts: np.ndarray) -> np.ndarray:
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
