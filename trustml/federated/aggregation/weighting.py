"""What a client counts in the sum, and what the sum is divided by.

    total = sum_k s_k message_k,     update = total / W  or  total / sum_k s_k

Both follow from one rule of `trustml.federated.weighting`: its largest weight s_max
makes the sensitivity of the sum, and its W says which of the two divisors it is. A
constant W keeps the update's sensitivity that of the sum over W; the realised sum of
weights moves with every client, so with noise it is refused.

Weights themselves, and W, come with the cohort: sizes may change from round to round.

Example::

    rule = rules.capped_data(100, sizes_K, inclusion_K)
    aggregator = chain.chain(
        clipping.clip(1.0), weighting.of(rule), dp.central(noise_multiplier=1.0)
    )
    cohort = link.cohort(rule.of(clients, sizes), expected_weight=rule.total)

References: https://arxiv.org/abs/1710.06963 (weights capped beforehand, constant
denominator).
"""

import jax
import jax.numpy as jnp

from trustml.federated import weighting
from trustml.federated.aggregation import link


def of(rule: weighting.Weighting) -> link.Link:
    """The weights of a rule; `chain` divides the sum as the rule says."""

    def bound(state, before):
        del state
        return None if before is None or rule.s_max is None else before * rule.s_max

    return link.Link(
        "weight", label(rule), bound=bound, largest_weight=rule.s_max, rule=rule
    )


def label(rule: weighting.Weighting) -> str:
    """How sentences name the rule."""
    return f"weighting.{rule.name}"


def divide(rule: weighting.Weighting) -> link.Link:
    """Divides the sum as the rule says; `chain` puts it at the end."""
    return _by_realised(rule) if rule.total is None else _by_expected(rule)


def _by_expected(rule: weighting.Weighting) -> link.Link:
    """By W, which does not depend on who came."""

    def server(state, message, cohort, bounds, key, info):
        del bounds, key
        update = jax.tree.map(
            lambda x: x / cohort.expected_weight.astype(x.dtype), message.update
        )
        return message._replace(update=update), state, info

    name = f"divided by the expected weight of {label(rule)}"
    return link.Link("divide", name, server=server)


def _by_realised(rule: weighting.Weighting) -> link.Link:
    """By the weights that arrived; gives zero where none did."""

    def server(state, message, cohort, bounds, key, info):
        del bounds, key
        some = cohort.weight_sum > 0
        by = jnp.where(some, cohort.weight_sum, 1.0)
        update = jax.tree.map(
            lambda x: jnp.where(some, x / by.astype(x.dtype), 0), message.update
        )
        return message._replace(update=update), state, info

    name = f"divided by what arrived of {label(rule)}"
    return link.Link("divide", name, server=server)
