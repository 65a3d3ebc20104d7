"""Examples that each client keeps out of training, to be measured on.

A client of n examples keeps out round(share n) of them, the first of a keyed order that
no round of training uses: which ones depends on the seed and the client alone. Clients
of few examples may keep none; nobody keeps all.

Dimension key: K clients, N examples.

Example::

    train, tests = held_out.split(store, 0.2, key_words)

References: see `trustml.federated.order`.
"""

from typing import Any

import numpy as np

from trustml import _validate
from trustml.federated import flat, order
from trustml.federated import store as stores

_ROUND = 2**32 - 1  # of an order that training never comes to


def split(
    store: stores.ClientStore, share: float, key_words: Any
) -> tuple[stores.ClientStore, stores.ClientStore]:
    """(what is trained on, what is kept out), stores of the same clients.

    Args:
      store: of all examples; each client's stay in their order.
      share: of a client's examples, in [0, 1), rounded to the nearest number.
      key_words: uint32[2], the seed.
    """
    cure = "0.2 is usual"
    _validate.in_half_open_interval("federated.held_out", share, 0.0, 1.0, cure)
    sizes = stores.sizes(store).astype(np.int64)
    kept = np.minimum(np.floor(share * sizes + 0.5), np.maximum(sizes - 1, 0))
    kept = kept.astype(np.int64)
    clients = np.arange(len(sizes))
    local = order.positions(key_words, _ROUND, clients, sizes, 0)
    begin = np.repeat(np.asarray(store.offsets[:-1]), sizes)
    rank = np.arange(len(local)) - begin
    out = np.zeros(len(local), bool)
    out[(begin + local)[rank < np.repeat(kept, sizes)]] = True
    return _part(store, ~out, sizes - kept), _part(store, out, kept)


def _part(store, chosen, sizes) -> stores.ClientStore:
    rows = np.flatnonzero(chosen)
    return stores.seal(
        {name: flat.take(column, rows) for name, column in store.columns.items()},
        np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        time=None if store.time is None else store.time[rows],
        client_key=store.client_key,
        user=store.user,
    )
