"""Clients with a mix of labels of their own, drawn from a Dirichlet distribution.

    pi_c ~ Dir(a),    a = alpha * prior        (scale='total', Hsu et al. 2019)
                      a = alpha * L * prior    (scale='per_class')

The second is alpha for every label where labels are balanced. The two differ by the
number of labels: alpha = 1 of the one is alpha = 1/L of the other, so papers that leave
it open cannot be compared. The prior is that of the data.

Examples are drawn label by label from pi_c over the labels that are not yet used up
(dynamic fill), in batches: draw the missing number, keep of each label what is there,
draw the rest again over the labels that are left. That is the same sequence of draws,
read in batches, and so the same distribution. Mixes are kept as logarithms, so that
however little mass the labels that are left had, they share it as pi_c says. Clients
choose in a random order, since those who choose last take what is left.

Dimension key: N examples, C clients, L labels.

Example::

    dealt = labels.label_dirichlet(y, 100, 0.5, scale='per_class', seed=0)

References: https://arxiv.org/abs/1909.06335
"""

from typing import Any

import numpy as np

from trustml import _validate
from trustml.federated.partitions import base, quantity

SCALES = ("total", "per_class")


def label_dirichlet(
    labels: Any,
    num_clients: int,
    alpha: float,
    *,
    scale: str,
    sizes: Any = None,
    seed: int,
) -> base.Partition:
    """Clients whose labels follow a mix from Dir(a); see the module.

    Args:
      labels: [N], whole numbers or text.
      num_clients: C.
      alpha: > 0; small for clients of one label, large for clients like the whole.
      scale: 'total' or 'per_class', what alpha means.
      sizes: [C], how many examples each client gets, N in all; equal where None.
      seed: at most 128 bits.

    Raises:
      ValueError: if sizes do not fit, or an argument is out of its bounds.
    """
    given = base.kinds("labels", labels)
    name = "label_dirichlet"
    return of_kinds(
        name, given, num_clients, alpha, scale, sizes, seed, base.data_digest(given)
    )


def of_kinds(
    name, given, num_clients, alpha, scale, sizes, seed, digest, more=None
) -> base.Partition:
    """`label_dirichlet` for labels, clusters or anything else that has kinds."""
    alpha = _validate.positive("alpha", alpha, "0.5 is usual")
    _validate.one_of("scale", scale, SCALES)
    number = base.check_clients(num_clients, len(given), 1 if sizes is None else 0)
    wanted = _sizes(sizes, number, len(given))
    found, kinds = np.unique(given, return_inverse=True)
    left = np.bincount(kinds, minlength=len(found))
    concentration = alpha * left / max(len(given), 1)
    if scale == "per_class":
        concentration = concentration * len(found)
    random = base.random(name, seed)
    log_mixes = random.log_dirichlet(concentration, number)
    table = np.zeros((number, len(found)), np.int64)
    for client in random.order(number):
        table[client] = _fill(log_mixes[client], left, int(wanted[client]), random)
        left = left - table[client]
    client_of = base.deal(kinds, table, random)
    parameters = {"alpha": alpha, "scale": scale, "sizes": wanted.tolist()}
    parameters |= {"num_clients": number} | (more or {})
    if sizes is None:
        parameters["sizes"] = "equal"
    return base.make(name, client_of, number, parameters, seed, digest)


def _sizes(sizes: Any, number: int, count: int) -> np.ndarray:
    if sizes is None:
        return quantity.equal_sizes(count, number)
    wanted = np.asarray(sizes)
    if wanted.shape != (number,) or wanted.dtype.kind not in "iu":
        raise ValueError(
            f"sizes={wanted.dtype}{list(wanted.shape)} must be {number} whole numbers; "
            "give one for each client."
        )
    if wanted.min() < 0 or wanted.sum() != count:
        raise ValueError(
            f"sizes sum to {wanted.sum()} and the smallest is {wanted.min()}, where "
            f"there are {count} examples; take them from quantity_sizes or "
            "lognormal_sizes."
        )
    return wanted.astype(np.int64)


def _fill(log_mix: np.ndarray, left: np.ndarray, size: int, random: base.Random):
    """How many of each label a client gets: `size` draws of what is `left`."""
    taken = np.zeros(len(log_mix), np.int64)
    while missing := size - int(taken.sum()):
        rest = left - taken
        some = np.flatnonzero(rest)
        edges = np.cumsum(np.exp(log_mix[some] - log_mix[some].max()))
        places = random.uniform(missing) * edges[-1]
        drawn = some[np.searchsorted(edges[:-1], places, side="right")]
        taken += np.minimum(np.bincount(drawn, minlength=len(rest)), rest)
    return taken
