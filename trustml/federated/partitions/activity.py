"""Clients whose labels go with their activity: some labels come from heavy users only.

The labels are split in two by lot, about half of the examples on each side. The heavy
clients share the examples of one side, the light ones those of the other; within each
side sizes are lognormal and labels have Dirichlet mixes. Whoever selects clients by
their activity then hears little of half of the labels: the case in which selection by
activity loses, to be tried before it is believed in.

Dimension key: N examples, C clients.

Example::

    dealt = activity.label_activity(y, 400, 0.5, cv=1.0, seed=0)
"""

from typing import Any

import numpy as np

from trustml import _validate
from trustml.federated.partitions import base, labels, quantity


def label_activity(
    values: Any,
    num_clients: int,
    alpha: float,
    *,
    cv: float = 1.0,
    heavy: float = 0.1,
    seed: int,
) -> base.Partition:
    """A few heavy clients with one half of the labels, many light ones with the other.

    With a tenth of the clients heavy these hold nine times as much on average as the
    others, and with a cv of 1 on each side sizes have one of about 2 in all.

    Args:
      values: [N], labels: whole numbers or text.
      num_clients: C.
      alpha: of the mixes, as a multiple of the number of labels times their share.
      cv: of the lognormal sizes on each side.
      heavy: share of the clients, in (0, 1); they are the first ones.
      seed: at most 128 bits.

    Raises:
      ValueError: if there is one label only, or a side has fewer examples than clients.
    """
    given = base.kinds("labels", values)
    number = base.check_clients(num_clients, len(given), 1)
    share = _validate.in_open_interval("heavy", heavy, 0, 1, "0.1 is usual")
    found, kinds, counts = np.unique(given, return_inverse=True, return_counts=True)
    if len(found) < 2 or number < 2:
        bound = "cannot be split in two"
        _validate.fail("labels", len(found), bound, "two labels and clients are needed")
    order = base.random("label_activity", seed).order(len(found))
    # The split nearest to a half, with a label on each side.
    held = np.cumsum(counts[order])[:-1]
    cut = 1 + int(np.argmin(np.abs(held - len(given) / 2)))
    busy = np.zeros(len(found), bool)
    busy[order[:cut]] = True
    first = min(max(1, round(share * number)), number - 1)
    client_of = np.empty(len(given), np.int64)
    for side, clients, start in ((True, first, 0), (False, number - first, first)):
        rows = np.flatnonzero(busy[kinds] == side)
        name = f"label_activity, {'heavy' if side else 'light'}"
        own = int(base.random(name, seed).bits.random_raw())
        sizes = quantity.lognormal_sizes(len(rows), clients, cv, seed=own)
        dealt = labels.label_dirichlet(
            given[rows], clients, alpha, scale="per_class", sizes=sizes, seed=own
        )
        owner = np.repeat(np.arange(clients), np.diff(dealt.offsets))
        client_of[rows[dealt.permutation]] = start + owner
    parameters = {"alpha": float(alpha), "cv": float(cv), "heavy": share}
    parameters |= {"num_clients": number}
    digest = base.data_digest(given)
    return base.make("label_activity", client_of, number, parameters, seed, digest)
