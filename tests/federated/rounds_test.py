"""Rounds: weights that the chain was not made for."""

import jax
import numpy as np
import optax
import pytest

from tests.federated import worlds
from trustml import rng
from trustml.federated import rounds, weighting
from trustml.federated.aggregation import chain, clipping, dp
from trustml.federated.aggregation import weighting as links
from trustml.federated.algorithms import averaging


def test_weights_or_totals_that_the_noise_is_not_made_for_are_refused():
    rule = weighting.horvitz_thompson(np.ones(4), np.full(4, 0.5))  # weights of 1/2
    algorithm = averaging.fedavg(worlds.loss, optax.sgd(0.1), optax.sgd(1.0))
    aggregator = chain.chain(clipping.clip(1.0), links.of(rule), dp.central(1.0))
    settings = rounds.Settings(jit=jax.jit, lanes=1, batch_size=5, capacity=4)
    made = rounds.make(algorithm, aggregator, population=4, settings=settings)
    state = made.init(worlds.make([5] * 4).params, rng.root(0))
    later = rounds.Chosen(np.arange(4), np.full(4, 5), np.full(4, 0.6), 1.0)
    silent = rounds.Chosen(np.arange(4), np.full(4, 5), np.full(4, 0.5))
    for chosen, said in (
        (later, r"weights=0.6 must be at most 0.5, which the noise is made for"),
        (silent, r"total=None says nothing of what divides by horvitz_thompson; give"),
    ):
        with pytest.raises(ValueError, match=said):
            made.run(state, jax.random.key(0), chosen, None)
