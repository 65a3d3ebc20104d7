"""How unequally a federated model serves its clients, as a table of the page.

Example::

    found = client_inequality.measure(accuracy, examples, data.kind, level=0.95)
    html = client_inequality.table(found, level=0.95)
"""

import numpy as np

from trustml.fairness import clients
from trustml.report import tables


def measure(
    accuracy: np.ndarray, examples: np.ndarray, kind: str, level: float
) -> clients.Clients | None:
    """Inequality of accuracies that are counts; None where they are none.

    Args:
      accuracy: float64[K], of a model on each client's examples; NaN without any.
      examples: int64[K].
      kind: of the data; only a 'classification' has right and wrong examples.
      level: of the intervals.
    """
    if kind != "classification" or not (examples > 0).any():
        return None
    right = np.rint(np.where(examples > 0, accuracy, 0.0) * examples)
    return clients.measure(right, examples, level=level)


def table(found: clients.Clients | None, level: float) -> str:
    """Spread of accuracies over clients, as seen and without luck.

    Args:
      found: of `measure`.
      level: that it was measured at.
    """
    if found is None:
        return ""
    some = np.isfinite(found.shrunk)
    low, high = np.quantile(found.shrunk[some], (0.1, 0.9))
    entries = (
        ("mean over clients", found.mean),
        ("worst tenth of clients", found.worst_decile),
        ("variance", found.variance),
        ("Gini coefficient (0: even)", found.gini),
        ("Jain's index (1: even)", found.jain),
    )
    rows = [
        (
            name,
            f"{one.value:.3g}",
            tables.NONE if np.isnan(one.lo) else f"{one.lo:.3g} to {one.hi:.3g}",
        )
        for name, one in entries
    ]
    rows += [
        ("variance without luck", f"{found.true_variance:.3g}", ""),
        ("middle 80% of clients, shrunk", f"{low:.3g} to {high:.3g}", ""),
    ]
    note = (
        f"Over all {found.clients:,} clients with an example; intervals from a "
        "bootstrap over clients. An accuracy of few examples is mostly luck: without "
        "it, the variance is that of the beta-binomial law that fits best, and each "
        "client's accuracy is shrunk towards that of all, over all such laws by how "
        "well they fit."
    )
    return tables.table(
        ("accuracy on their own", "value", f"{100 * level:g}% interval"),
        rows,
        "How unequal clients are served",
        note,
    )
