"""What a client counts in the sum, and what the sum is divided by.

    total = sum_k s_k message_k,     update = total / W  or  total / sum_k s_k

| weight | s_k | largest |
| --- | --- | --- |
| `uniform` | 1 | 1 |
| `capped` | min(n_k / n_cap, 1) | 1 |
| `by_examples` | n_k | none: not for private training |
| `inverse_probability` | 1 / p_k, or min(n_k / n_cap, 1) / p_k | as given |

W = sum_k p_k s_k over the whole population, p_k the chance that client k is selected:
a constant, known before the round. Divided by it the update is unbiased and its
sensitivity is that of the sum over W. The realised sum of weights moves with every
client, so with noise it is refused.

Dimension key: K clients.

Example::

    weight = weighting.capped(examples=100)
    s_K = weight.weights(num_examples_K, probabilities_K)
    W = weighting.expected_weight(s_K, probabilities_K)

References: https://arxiv.org/abs/1710.06963 (weights capped beforehand, constant
denominator).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trustml import _validate
from trustml.federated import weighting
from trustml.federated.aggregation import link


def uniform() -> link.Link:
    """Every client counts 1."""

    def weights(num_examples, probabilities=None):
        del probabilities
        return np.ones(_examples(num_examples).shape, np.float32)

    return _weight("weighting.uniform()", weights, 1.0)


def capped(*, examples: float) -> link.Link:
    """s_k = min(n_k / examples, 1).

    Args:
      examples: n_cap > 0, chosen without looking at the data of this run.
    """
    cap = _validate.positive("examples", examples, "100 is usual")

    def weights(num_examples, probabilities=None):
        del probabilities
        return np.minimum(_examples(num_examples) / cap, 1.0).astype(np.float32)

    return _weight(f"weighting.capped(examples={cap:g})", weights, 1.0)


def by_examples() -> link.Link:
    """s_k = n_k: the data-weighted mean of FedAvg. No bound, hence no privacy."""

    def weights(num_examples, probabilities=None):
        del probabilities
        return _examples(num_examples).astype(np.float32)

    return _weight("weighting.by_examples()", weights, None)


def inverse_probability(*, largest: float, examples: float | None = None) -> link.Link:
    """s_k = a_k / p_k (Horvitz and Thompson), a_k = 1 or min(n_k / examples, 1).

    Args:
      largest: s_max > 0; `weights` refuses a larger one.
      examples: n_cap; None for a_k = 1.
    """
    most = _validate.positive("largest", largest, "1 / min_k p_k is exact")
    cap = None
    if examples is not None:
        cap = _validate.positive("examples", examples, "100 is usual")

    def weights(num_examples, probabilities=None):
        n = _examples(num_examples)
        if probabilities is None:
            cure = "pass the inclusion probabilities of the selector"
            _validate.fail("probabilities", None, "must be given", cure)
        p = np.asarray(probabilities, np.float64)
        wanted = np.ones(n.shape) if cap is None else np.minimum(n / cap, 1.0)
        if np.any(p[wanted > 0] <= 0) or np.any(p > 1):
            bound = "must lie in (0, 1] wherever a client is wanted"
            _validate.fail("probabilities", float(p.min()), bound, "floor them")
        found = np.where(wanted > 0, wanted / np.where(p > 0, p, 1.0), 0.0)
        worst = float(found.max(initial=0.0))
        if worst > most * (1 + 1e-12):
            cure = "raise largest, or floor the probabilities"
            _validate.fail("largest", most, f"is below a weight of {worst:g}", cure)
        return found.astype(np.float32)

    label = f"weighting.inverse_probability(largest={most:g})"
    return _weight(label, weights, most)


def of(rule: weighting.Weighting) -> link.Link:
    """The weights of a rule of `trustml.federated.weighting`.

    Its W goes into the cohort, and `expected` divides by it; a rule whose W is None
    goes with `realised`.
    """

    def weights(num_examples, probabilities=None):
        del probabilities
        sizes = _examples(num_examples)
        return rule.of(np.arange(len(sizes)), sizes).astype(np.float32)

    return _weight(f"weighting.{rule.name}", weights, rule.s_max)


def expected_weight(weights: Any, probabilities: Any) -> float:
    """W = sum_k p_k s_k over the population.

    Args:
      weights: s, [K].
      probabilities: p, [K], or one number.

    Raises:
      ValueError: if W is not finite and > 0.
    """
    s, p = np.asarray(weights, np.float64), np.asarray(probabilities, np.float64)
    total = float(np.sum(s * p))
    return _validate.positive("expected_weight", total, "select clients that count")


def expected() -> link.Link:
    """Divides the sum by W, which does not depend on who came."""

    def server(state, message, cohort, bounds, key, info):
        del bounds, key
        update = jax.tree.map(lambda x: x / cohort.expected_weight, message.update)
        return message._replace(update=update), state, info

    return link.Link("divide", "weighting.expected()", server=server)


def realised() -> link.Link:
    """Divides the sum by the weights that arrived; gives zero where none did."""

    def server(state, message, cohort, bounds, key, info):
        del bounds, key
        some = cohort.weight_sum > 0
        by = jnp.where(some, cohort.weight_sum, 1.0)
        update = jax.tree.map(lambda x: jnp.where(some, x / by, 0.0), message.update)
        return message._replace(update=update), state, info

    return link.Link("divide", "weighting.realised()", server=server, realised=True)


def _weight(label: str, weights, largest: float | None) -> link.Link:
    def bound(state, before):
        del state
        return None if before is None or largest is None else before * largest

    return link.Link(
        "weight", label, bound=bound, weights=weights, largest_weight=largest
    )


def _examples(num_examples: Any) -> np.ndarray:
    n = np.asarray(num_examples, np.float64)
    if n.size and not (np.all(np.isfinite(n)) and n.min() >= 0):
        bound = "must be finite and >= 0"
        _validate.fail("num_examples", float(n.min()), bound, "count the examples")
    return n
