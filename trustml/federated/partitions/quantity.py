"""How much each client holds: equal parts, Dirichlet shares, lognormal sizes.

    quantity_dirichlet:  sizes = N * Dir(beta 1)
    lognormal_quantity:  sizes ~ exp N(-s^2/2, s^2),  s^2 = log(1 + cv^2), whose
                         standard deviation is cv times their mean

rounded by largest remainders. Clients below `n_min` are raised to it at the cost of the
largest, in one pass that always ends; nothing is "drawn again until" it fits.

Labels are left to chance: combine sizes of `quantity_sizes` or `lognormal_sizes` with
`labels.label_dirichlet(sizes=...)` where they shall differ too.

Dimension key: N examples, C clients.

Example::

    dealt = quantity.lognormal_quantity(60_000, 500, cv=2.0, seed=0)
    sizes = quantity.quantity_sizes(60_000, 500, beta=0.5, seed=0)
"""

import math

import numpy as np
from jaxtyping import Int

from trustml import _validate
from trustml.federated.partitions import base


def iid(num_examples: int, num_clients: int, *, seed: int) -> base.Partition:
    """A seeded shuffle in equal parts; sizes differ by at most 1.

    Args:
      num_examples: N.
      num_clients: C <= N.
      seed: at most 128 bits.

    Raises:
      ValueError: if there are more clients than examples.
    """
    number = base.check_clients(num_clients, num_examples, 1)
    return _shuffled("iid", equal_sizes(num_examples, number), {}, seed)


def quantity_dirichlet(
    num_examples: int, num_clients: int, beta: float, *, n_min: int = 1, seed: int
) -> base.Partition:
    """Sizes from a Dirichlet distribution, labels ignored; see the module.

    Args:
      num_examples: N.
      num_clients: C.
      beta: concentration > 0; small for a few large clients.
      n_min: no client has fewer examples.
      seed: at most 128 bits.

    Raises:
      ValueError: if C * n_min > N, or beta is not positive.
    """
    sizes = quantity_sizes(num_examples, num_clients, beta, n_min=n_min, seed=seed)
    parameters = {"beta": float(beta), "n_min": int(n_min)}
    return _shuffled("quantity_dirichlet", sizes, parameters, seed)


def lognormal_quantity(
    num_examples: int, num_clients: int, cv: float, *, n_min: int = 1, seed: int
) -> base.Partition:
    """Lognormal sizes, labels ignored: few heavy clients and many light ones.

    Args:
      num_examples: N.
      num_clients: C.
      cv: standard deviation of the sizes over their mean, >= 0; of a sample it is
        lower where it is large.
      n_min: no client has fewer examples.
      seed: at most 128 bits.

    Raises:
      ValueError: if C * n_min > N, or cv is negative.
    """
    sizes = lognormal_sizes(num_examples, num_clients, cv, n_min=n_min, seed=seed)
    parameters = {"cv": float(cv), "n_min": int(n_min)}
    return _shuffled("lognormal_quantity", sizes, parameters, seed)


def equal_sizes(num_examples: int, num_clients: int) -> Int[np.ndarray, " clients"]:
    """N / C each, one more for the first few."""
    sizes = np.full(num_clients, num_examples // num_clients, np.int64)
    sizes[: num_examples % num_clients] += 1
    return sizes


def quantity_sizes(
    num_examples: int, num_clients: int, beta: float, *, n_min: int = 1, seed: int
) -> Int[np.ndarray, " clients"]:
    """The sizes of `quantity_dirichlet`, int64[C]."""
    beta = _validate.positive("beta", beta, "0.5 is usual")
    number = _checked(num_examples, num_clients, n_min)
    random = base.random("quantity_sizes", seed)
    shares = np.exp(random.log_dirichlet(np.full(number, beta), 1)[0])
    return raise_to(base.largest_remainder(num_examples, shares), n_min)


def lognormal_sizes(
    num_examples: int, num_clients: int, cv: float, *, n_min: int = 1, seed: int
) -> Int[np.ndarray, " clients"]:
    """The sizes of `lognormal_quantity`, int64[C]."""
    cv = _validate.non_negative("cv", cv, "2.0 is usual")
    number = _checked(num_examples, num_clients, n_min)
    spread = math.sqrt(math.log1p(cv * cv))
    normal = base.random("lognormal_sizes", seed).normal(number)
    shares = np.exp(spread * normal - spread**2 / 2)
    return raise_to(base.largest_remainder(num_examples, shares), n_min)


def raise_to(sizes: np.ndarray, n_min: int) -> Int[np.ndarray, " clients"]:
    """Raises small clients to `n_min`; what that takes comes off the largest.

    All above a level are cut to it, the level that covers the need; of what is then too
    much, one goes back to each of the first of them.
    """
    need = int(np.maximum(n_min - sizes, 0).sum())
    low, high = n_min, int(sizes.max())  # cutting to `low` covers the need
    while high - low > 1:
        middle = (low + high) // 2
        if np.maximum(sizes - middle, 0).sum() >= need:
            low = middle
        else:
            high = middle
    if need == 0:
        return sizes
    cut = np.minimum(np.maximum(sizes, n_min), low)
    back = int(sizes.sum() - cut.sum())
    cut[np.flatnonzero(sizes > low)[:back]] += 1
    return cut


def _checked(num_examples: int, num_clients: int, n_min: int) -> int:
    _validate.integer_at_least("num_examples", num_examples, 1)
    least = _validate.integer_at_least("n_min", n_min, 0, "1 is usual")
    return base.check_clients(num_clients, num_examples, least)


def _shuffled(name: str, sizes: np.ndarray, parameters, seed: int) -> base.Partition:
    count = int(sizes.sum())
    client_of = np.empty(count, np.int64)
    order = base.random(name, seed).order(count)
    client_of[order] = np.repeat(np.arange(len(sizes)), sizes)
    looked_at = base.data_digest(np.array([count, len(sizes)]))
    return base.make(name, client_of, len(sizes), parameters, seed, looked_at)
