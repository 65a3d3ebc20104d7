"""What came out of a partition: sizes, and how far clients' labels are from the whole.

    total variation of client c = 1/2 sum_l | n_cl / n_c - n_l / N |

0 where every client looks like the whole, and near 1 - (share of its label) where each
holds one label only. It is never 0 for small clients, whatever the rule: compare with
`iid` of the same sizes.

Example::

    found = summary.statistics(dealt, labels)
    found.cv, found.gini, found.total_variation
    svg = report.partition.clients(summary.counts(dealt, labels))
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from trustml.federated.partitions import base

LEVELS = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


class Statistics(NamedTuple):
    """Sizes and labels of the clients.

    Attributes:
      clients: C.
      examples: N.
      empty: clients without an example.
      mean: examples of a client.
      cv: standard deviation of the sizes over their mean (of all C, divided by C).
      quantiles: of the sizes, at `LEVELS`.
      gini: 0 for equal sizes, near 1 where one client holds all.
      total_variation: mean over clients that have examples; None without labels.
    """

    clients: int
    examples: int
    empty: int
    mean: float
    cv: float
    quantiles: tuple[float, ...]
    gini: float
    total_variation: float | None = None


def statistics(partition: base.Partition, labels: Any = None) -> Statistics:
    """Statistics of a partition, and of its labels [N] where given."""
    return of_counts(
        np.diff(partition.offsets)[:, None]
        if labels is None
        else counts(partition, labels),
        labelled=labels is not None,
    )


def counts(partition: base.Partition, labels: Any) -> Int[np.ndarray, "clients labels"]:
    """How many examples of each label a client holds; labels in sorted order."""
    found, kinds = np.unique(base.kinds("labels", labels), return_inverse=True)
    return base.table(partition, kinds, len(found))


def of_counts(table: np.ndarray, *, labelled: bool = True) -> Statistics:
    """Statistics of a table of clients x labels."""
    sizes = table.sum(axis=1)
    number, total = len(sizes), int(sizes.sum())
    mean = total / number
    ranks = 2 * np.arange(1, number + 1) - number - 1
    some = sizes > 0
    distance = None
    if labelled and total:
        shares = table[some] / sizes[some, None]
        overall = table.sum(axis=0) / total
        distance = float(np.abs(shares - overall).sum(axis=1).mean() / 2)
    return Statistics(
        clients=number,
        examples=total,
        empty=int((~some).sum()),
        mean=mean,
        cv=float(sizes.std() / mean) if total else 0.0,
        quantiles=tuple(float(q) for q in np.quantile(sizes, LEVELS)),
        gini=float((ranks * np.sort(sizes)).sum() / (number * total)) if total else 0.0,
        total_variation=distance,
    )
