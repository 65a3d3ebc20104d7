"""The rule of the weights decides: sensitivity, divisor, what goes with noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trustml.federated import weighting as rules
from trustml.federated.aggregation import chain, clipping, link, weighting

SIZES = np.array([1, 2, 3, 5, 8, 20])
P = np.array([0.1, 0.2, 0.2, 0.5, 0.5, 1.0])
RULES = {
    "mean": rules.mean(),
    "cohort": rules.mean(4.0),
    "by_data": rules.by_data(),
    "capped": rules.capped_data(4.0),
    "capped, expected": rules.capped_data(4.0, SIZES, P),
    "horvitz_thompson": rules.horvitz_thompson(rules.data_share(SIZES), P),
    "hajek": rules.hajek(rules.data_share(SIZES), P),
}


@pytest.mark.parametrize("name", RULES)
def test_the_divisor_is_that_of_the_rule(name):
    rule = RULES[name]
    aggregator = chain.chain(clipping.clip(2.0), weighting.of(rule))
    assert aggregator.rule is rule
    declared = None if rule.s_max is None else 2.0 * rule.s_max
    assert aggregator.sensitivity() == declared
    came = np.array([True, False, True, True, False, False])
    s = rule.of(np.arange(6), SIZES)
    cohort = link.cohort(s, came, expected_weight=rule.total or 1.0)
    messages = link.Message({"w": jnp.arange(6.0)[:, None] / 6})
    state = aggregator.init({"w": jnp.zeros(1)})
    total = link.weighted_sum(messages, cohort)
    update, *_ = aggregator.server(state, total, cohort, jax.random.key(0))
    by = (s * came).sum() if rule.total is None else rule.total
    wanted = (s * came) @ np.arange(6) / 6 / by
    np.testing.assert_allclose(update["w"], [wanted], rtol=1e-5)


def test_where_nobody_came_the_realised_divisor_gives_zero():
    aggregator = chain.chain(weighting.of(rules.by_data()))
    cohort = link.cohort(SIZES, np.zeros(6, bool), expected_weight=1.0)
    zero = link.Message({"w": jnp.zeros(2)})
    state = aggregator.init({"w": jnp.zeros(2)})
    update, *_ = aggregator.server(state, zero, cohort, jax.random.key(0))
    np.testing.assert_array_equal(update["w"], np.zeros(2))
