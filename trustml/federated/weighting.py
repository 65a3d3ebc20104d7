"""How much a client counts in the aggregate: weights s_k and what they are divided by.

    aggregate = sum over the cohort of s_k Delta_k / W

| weighting | s_k | W | under user-level privacy |
|---|---|---|---|
| `mean()` | 1 | clients there are | no: W depends on the cohort |
| `mean(cohort)` | 1 | m, a constant | yes, s_max = 1 |
| `by_data` | n_k | their sum | no: neither is bounded |
| `capped_data(w, ...)` | min(n_k / w, 1) | sum p_k s_k, a constant | yes, s_max = 1 |
| `horvitz_thompson` | a_k / p_k | 1 | yes, s_max = max a_k / p_k |
| `hajek` | a_k / p_k | their sum | no: W depends on the cohort |

What selection and weighting together optimise: `trustml.federated.objective`.

Dimension key: K clients, m clients of a cohort.

Example::

    target = weighting.data_share(sizes)
    rule = weighting.horvitz_thompson(target, selector.inclusion(state))
    s = rule.of(cohort.clients, sizes[cohort.clients])     # then / (rule.total or sum)

References: https://arxiv.org/abs/1710.06963 (capped data weights, constant W); Horvitz
and Thompson 1952; Hajek 1971.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import typing as npt

from trustml import _validate


class Weighting(NamedTuple):
    """Weights of a cohort.

    Attributes:
      name: of the function that made it.
      of: (clients int64[m], sizes int[m]) -> s_k float64[m].
      total: W, a constant; None: the sum of the cohort's own s_k.
      s_max: no s_k is larger, whatever the data; None where there is no bound.
      fixed: whether s_k and W depend on nobody else, so that who is there, and with how
        many examples, may be private.
    """

    name: str
    of: Callable[[np.ndarray, np.ndarray], np.ndarray]
    total: float | None
    s_max: float | None
    fixed: bool = False


def mean(cohort: float | None = None) -> Weighting:
    """Every client counts the same; over m where it is given, else over the cohort."""
    if cohort is not None:
        cohort = _validate.positive("weighting.cohort", cohort, "it is m")
    return Weighting(
        "mean",
        lambda clients, sizes: np.ones(len(clients)),
        cohort,
        1.0,
        fixed=cohort is not None,
    )


def by_data() -> Weighting:
    """Clients count by their examples, as in federated averaging."""
    return Weighting("by_data", lambda clients, sizes: _counts(sizes), None, None)


def capped_data(
    w_hat: float,
    sizes: Int[np.ndarray, " K"] | None = None,
    inclusion: Float[np.ndarray, " K"] | None = None,
) -> Weighting:
    """min(n_k / w_hat, 1), over the expectation of their sum.

    Args:
      w_hat: fixed before the data are looked at; examples that count in full.
      sizes: n_k of all clients; with `inclusion` gives W = sum_k p_k s_k.
      inclusion: p_k of all clients. Without the two W is the sum over the cohort, and
        the weighting does not go with user-level privacy.
    """
    w_hat = _validate.positive("weighting.w_hat", w_hat, "100 is usual")

    def of(clients: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        return np.minimum(_counts(sizes) / w_hat, 1.0)

    total = None
    if sizes is not None and inclusion is not None:
        total = float(inclusion @ np.minimum(_counts(sizes) / w_hat, 1.0))
        _validate.positive("weighting.total", total, "select clients that count")
    return Weighting("capped_data", of, total, 1.0)


def horvitz_thompson(target: npt.ArrayLike, inclusion: npt.ArrayLike) -> Weighting:
    """a_k / p_k over 1: unbiased for sum_k a_k Delta_k, whatever the sampling.

    Args:
      target: a_k, float[K] >= 0 and not all 0; scaled to sum to 1.
      inclusion: p_k, float[K].

    Raises:
      ValueError: for negative or all-zero a, and where a client with a_k > 0 has
        p_k = 0 (it would never be heard).
    """
    weights = _inverse(target, inclusion)
    return Weighting(
        "horvitz_thompson",
        lambda clients, sizes: _at(weights, clients),
        1.0,
        float(weights.max()),
    )


def hajek(target: npt.ArrayLike, inclusion: npt.ArrayLike) -> Weighting:
    """a_k / p_k over the sum in the cohort: less variance, a bias of order 1/m.

    Arguments and errors as for `horvitz_thompson`.
    """
    weights = _inverse(target, inclusion)
    largest = float(weights.max())
    return Weighting(
        "hajek", lambda clients, sizes: _at(weights, clients), None, largest
    )


def _at(weights, clients):
    clients = np.asarray(clients)
    if clients.size and clients.max() >= len(weights):
        bound = f"has no weight for client {clients.max()}"
        cure = "give one figure for each client there is"
        _validate.fail("weighting.target", f"{len(weights)} clients", bound, cure)
    return weights[clients]


def data_share(sizes: npt.ArrayLike) -> Float[np.ndarray, " K"]:
    """a_k = n_k / sum n."""
    counts = np.asarray(sizes, np.float64)
    return check_target(counts)


def check_target(target: npt.ArrayLike) -> Float[np.ndarray, " K"]:
    """a_k scaled to sum to 1, if none is negative and one is positive."""
    found = np.asarray(target, np.float64)
    wrong = np.flatnonzero(~(np.isfinite(found) & (found >= 0)))
    if wrong.size:
        name, value = f"weighting.target[{wrong[0]}]", float(found[wrong[0]])
        _validate.fail(name, value, "must be a finite number >= 0")
    if not found.sum() > 0:
        cure = "give one client or more a weight"
        _validate.fail("weighting.target", 0.0, "is zero for all clients", cure)
    return found / found.sum()


def check_private(weighting: Weighting) -> Weighting:
    """`weighting`, if it may be used under user-level privacy.

    Raises:
      ValueError: where a weight has no bound, or the divisor is not a constant.
    """
    cure = "use mean(cohort) or capped_data with sizes and inclusion"
    if weighting.s_max is None:
        bound = "has no largest weight, hence no sensitivity"
        _validate.fail("weighting", weighting.name, bound, cure)
    if weighting.total is None:
        bound = "divides by what the cohort happens to sum to, which is private"
        _validate.fail("weighting", weighting.name, bound, cure)
    return weighting


def _counts(sizes: npt.ArrayLike) -> np.ndarray:
    """Examples as float64, if none is negative or not a number."""
    found = np.asarray(sizes, np.float64)
    wrong = found[~(np.isfinite(found) & (found >= 0))]
    if wrong.size:
        cure = "count the examples"
        _validate.fail("sizes", float(wrong[0]), "must be finite and >= 0", cure)
    return found


def _inverse(target: npt.ArrayLike, inclusion: npt.ArrayLike) -> np.ndarray:
    wanted, p = check_target(target), np.asarray(inclusion, np.float64)
    if wanted.shape != p.shape:
        bound = f"must be one for each of the {len(wanted)} clients of the target"
        _validate.fail("inclusion", list(p.shape), bound)
    never = np.flatnonzero((wanted > 0) & ~(p > 0))
    if never.size:
        name, value = f"inclusion[{never[0]}]", float(p[never[0]])
        bound = f"is no chance, but the target is {wanted[never[0]]:.4g}"
        _validate.fail(name, value, bound, "give every client with a weight a chance")
    beyond = np.flatnonzero(p > 1 + 1e-9)
    if beyond.size:
        name, value = f"inclusion[{beyond[0]}]", float(p[beyond[0]])
        cure = "give chances, not counts of expected visits"
        _validate.fail(name, value, "exceeds 1", cure)
    return np.divide(wanted, p, out=np.zeros(len(p)), where=p > 0)
