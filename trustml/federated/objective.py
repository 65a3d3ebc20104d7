"""What is really optimised: the objective that selection and weighting make together.

    F = sum_k a_k F_k,      a_k proportional to E[ 1(k in cohort) s_k / W ]

One writes "federated averaging with sampling by activity" and has a proportional to n^2
without having said so: selection counts clients once, the weighted mean once more.

| selection | weighting | a_k |
|---|---|---|
| uniform | by_data | n, up to a bias of order 1/m (ratio estimator) |
| p prop. to n^beta | by_data | n^(1 + beta), the same |
| p prop. to n^beta | mean | n^beta |
| any p_k > 0 | horvitz_thompson | the target, exactly |
| any p_k > 0 | hajek | the target, up to a bias of order 1/m |

Where W is a constant, a_k = p_k s_k / W exactly. Where it is the cohort's own sum, all
cohorts are gone through for up to 12 clients; beyond, a_k is the ratio p_k s_k / sum of
p s, which is off by the order of 1/m, and `simulate` says by how much. An empty cohort
counts as no update.

Dimension key: K clients.

Example::

    found = objective.effective(selector, state, weighting.by_data())
    print(found.sentence)          # a is proportional to n^1.5 ...
    objective.simulate(selector, state, weighting.by_data(), rounds=2000)

References: github.com/litian96/FedProx issue 10 (selection and weighting confounded).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from trustml import _validate
from trustml.federated import selection
from trustml.federated import weighting as weighting_lib

ENUMERATED = 12  # clients of which all cohorts are gone through


class Objective(NamedTuple):
    """The weights of clients' losses.

    Attributes:
      weights: a_k, float64[K], sum 1; None where selection has no probabilities.
      step: E[sum of s_k / W], what the expected update is shortened or lengthened by;
        below 1 where cohorts may be empty. None where it is not known.
      method: 'exact', 'enumeration', 'ratio' or 'unknown'.
      sentence: for a report.
    """

    weights: Float[np.ndarray, " K"] | None
    step: float | None
    method: str
    sentence: str


class Simulated(NamedTuple):
    """Weights over rounds of a selector.

    Attributes:
      weights: a_k, float64[K], sum 1.
      standard_error: of each, float64[K].
    """

    weights: Float[np.ndarray, " K"]
    standard_error: Float[np.ndarray, " K"]


def effective(
    selector: selection.Selector,
    state: selection.State,
    weighting: weighting_lib.Weighting,
) -> Objective:
    """The objective of a selector, at the sizes of its state, and a weighting."""
    sizes, inclusion = state.sizes, selector.inclusion(state)
    if inclusion is None:
        return Objective(
            None,
            None,
            "unknown",
            f"What is optimised is not known: {selector.name} has no inclusion "
            "probabilities; simulate it.",
        )
    weights = weighting.of(np.arange(len(sizes)), sizes)
    if weighting.total is not None:
        found, step, method = inclusion * weights / weighting.total, None, "exact"
    elif selector.law == "certain" or (len(sizes) <= ENUMERATED and selector.law):
        found = _enumerate(selector, inclusion, weights)
        step, method = None, "enumeration"
    else:
        found, step, method = inclusion * weights, 1.0, "ratio"
    total = float(found.sum())
    if not total > 0:
        bound = "leaves every client without weight"
        _validate.fail("weighting", weighting.name, bound, "use mean()")
    step = total if step is None else step
    sentence = _sentence(selector, state, weighting, method)
    return Objective(found / total, step, method, sentence)


def simulate(
    selector: selection.Selector,
    state: selection.State,
    weighting: weighting_lib.Weighting,
    *,
    rounds: int,
    start: int = 0,
) -> Simulated:
    """The objective over `rounds` draws of the selector, its state as it is.

    Rounds `start`, `start` + 1 ... are drawn. K may be large: 16 bytes for each client.
    """
    rounds = _validate.integer_at_least("rounds", rounds, 2, "1000 is a start")
    total, squares = np.zeros(len(state.sizes)), np.zeros(len(state.sizes))
    for round in range(start, start + rounds):
        cohort, _ = selector.select(state, round)
        weights = weighting.of(cohort.clients, state.sizes[cohort.clients])
        whole = weights.sum() if weighting.total is None else weighting.total
        if whole > 0:
            total[cohort.clients] += weights / whole
            squares[cohort.clients] += (weights / whole) ** 2
    mean, scale = total / rounds, total.sum() / rounds
    if not scale > 0:
        bound = "hold no client with a weight"
        _validate.fail("rounds", rounds, bound, "simulate more of them")
    error = np.sqrt(np.maximum(squares / rounds - mean**2, 0.0) / (rounds - 1))
    return Simulated(mean / scale, error / scale)


def _enumerate(
    selector: selection.Selector, inclusion: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """E[1(k in cohort) s_k / sum s] over all cohorts there can be."""
    possible = np.flatnonzero(inclusion > 0)
    p, s = inclusion[possible], weights[possible]
    if selector.law == "certain":
        members, chances = np.ones((1, len(p)), bool), np.ones(1)
    else:
        members = _subsets(len(p))
        if selector.law == "coins":
            chances = np.prod(np.where(members, p, 1.0 - p), axis=1)
        else:
            chances = (members.sum(axis=1) == selector.cohort).astype(np.float64)
            chances /= chances.sum()
    parts = members * s
    whole = parts.sum(axis=1)
    shares = np.divide(
        parts, whole[:, None], out=np.zeros_like(parts), where=whole[:, None] > 0
    )
    out = np.zeros(len(inclusion))
    out[possible] = chances @ shares
    return out


def _subsets(count: int) -> Bool[np.ndarray, "subsets count"]:
    numbers = np.arange(2**count)
    return (numbers[:, None] >> np.arange(count) & 1).astype(bool)


def _sentence(
    selector: selection.Selector,
    state: selection.State,
    weighting: weighting_lib.Weighting,
    method: str,
) -> str:
    name = weighting.name
    if name in ("horvitz_thompson", "hajek"):
        shape = "is the target"
    else:
        factor = {"mean": 0, "by_data": 1}.get(name)
        if selector.exponent is not None and factor is not None:
            shape = f"is proportional to {_power(selector.exponent + factor)}"
            shape += _cap(selector, state)
        else:
            of_client = {"mean": "p", "by_data": "p n"}.get(name, "p min(n/w, 1)")
            shape = f"is proportional to {of_client}, p of {selector.name}"
    how = {
        "exact": "exactly",
        "enumeration": "up to the bias of a ratio, which is in the weights given",
        "ratio": "up to the bias of a ratio, of order 1/m",
    }[method]
    sentence = f"What is optimised: a {shape}, {how}."
    exponent = selector.exponent
    if name == "by_data" and exponent is not None and exponent > 0:
        sentence += (
            " This is not the mean over examples, whose a is proportional to n: "
            "selection and weighting both count the examples."
        )
    return sentence


def _power(exponent: float) -> str:
    return {0.0: "1 (all clients the same)", 1.0: "n"}.get(exponent, f"n^{exponent:g}")


def _cap(selector: selection.Selector, state: selection.State) -> str:
    inclusion = selector.inclusion(state)
    if inclusion is None or not selector.exponent:
        return ""
    held = inclusion > 0
    rates = inclusion[held] / state.sizes[held].astype(np.float64) ** selector.exponent
    if rates.max() <= rates.min() * (1 + 1e-9):
        return ""
    return f" below the cap p = {float(inclusion.max()):.4g}"
