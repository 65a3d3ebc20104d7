"""Clients given by the data: one for each value of a column, or a few sorted shards.

Example::

    by_author = groups.natural(authors)
    by_label = groups.shards(labels, 100, shards_per_client=2, seed=0)

References: https://arxiv.org/abs/1602.05629 (shards)
"""

from typing import Any

import numpy as np

from trustml import _validate
from trustml.federated.partitions import base


def natural(*keys: Any) -> base.Partition:
    """One client for each value, in the order of the sorted values.

    Args:
      *keys: [N] each, numbers or text; several make one client of each combination
        that occurs, such as (play, speaker).

    Raises:
      ValueError: for columns of different lengths, or none.
    """
    if not keys:
        raise ValueError("keys=() names no column; give one or more.")
    columns = [base.kinds("keys", key) for key in keys]
    if len({len(column) for column in columns}) > 1:
        lengths = ", ".join(str(len(column)) for column in columns)
        raise ValueError(f"keys have {lengths} entries; give each one per example.")
    client_of = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        values, code = np.unique(column, return_inverse=True)
        client_of = client_of * len(values) + code
        # Numbered anew each time, so that no product grows beyond 64 bits.
        _, client_of = np.unique(client_of, return_inverse=True)
    _, first = np.unique(client_of, return_index=True)
    named = [column[first] for column in columns]
    client_key = named[0]
    if len(named) > 1:
        client_key = np.array(
            [" / ".join(map(str, values)) for values in zip(*named, strict=True)]
        )
    return base.make(
        "natural",
        client_of,
        len(first),
        {"columns": len(columns)},
        0,
        base.data_digest(*columns),
        client_key=client_key,
    )


def shards(
    labels: Any, num_clients: int, shards_per_client: int = 2, *, seed: int
) -> base.Partition:
    """Sorted by label and cut in s C shards, of which every client gets s at random.

    Args:
      labels: [N], whole numbers or text.
      num_clients: C.
      shards_per_client: s; about how many labels a client sees.
      seed: at most 128 bits.

    Shards have N // (s C) examples, and the last one what is left over.

    Raises:
      ValueError: if there are more shards than examples.
    """
    given = base.kinds("labels", labels)
    each = _validate.integer_at_least("shards_per_client", shards_per_client, 1)
    number = base.check_clients(num_clients, len(given), each)
    random = base.random("shards", seed)
    by_label = np.lexsort((random.bits.random_raw(len(given)), given))
    total = each * number
    shard = np.minimum(np.arange(len(given)) // (len(given) // total), total - 1)
    client_of = np.empty(len(given), np.int64)
    client_of[by_label] = (random.order(total) % number)[shard]
    parameters = {"num_clients": number, "shards_per_client": each}
    digest = base.data_digest(given)
    return base.make("shards", client_of, number, parameters, seed, digest)
