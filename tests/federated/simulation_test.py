"""The iterator: it learns, and private rounds go with the promise of the selector."""

import jax
import numpy as np
import optax
import pytest

from tests.federated import worlds
from trustml import rng
from trustml.federated import selection, simulation, store, weighting
from trustml.federated.aggregation import chain, clipping, dp
from trustml.federated.aggregation import weighting as links
from trustml.federated.algorithms import averaging


def held(world):
    owners = np.repeat(np.arange(len(world.sizes)), world.sizes)
    keys = np.arange(len(world.sizes))
    return store.from_arrays(world.data, owners, client_keys=keys)


def rounds_of(world, selector, count=5, **settings):
    algorithm = averaging.fedavg(worlds.loss, optax.sgd(0.3), optax.sgd(1.0))
    return list(
        simulation.run(
            world.params,
            held(world),
            algorithm,
            selector,
            rounds=count,
            batch_size=5,
            jit=jax.jit,
            lanes=1,
            devices=jax.devices()[:1],
            **settings,
        )
    )


def test_it_learns_and_repeats_itself():
    world = worlds.make()
    runs = [rounds_of(world, selection.uniform(5, seed=1)) for _ in range(2)]
    losses = [info.records().algorithm.loss.mean() for _, _, info in runs[0]]
    assert losses[-1] < losses[0]
    final = [run[-1][1].server.params for run in runs]
    jax.tree.map(np.testing.assert_array_equal, *final)


def test_an_empty_cohort_gets_its_noise():
    world = worlds.make()
    nobody = selection.poisson(selection.probabilities.uniform(), 1e-9, seed=0)
    rule = weighting.mean(1.0)
    aggregator = chain.chain(clipping.clip(1.0), links.of(rule), dp.central(1.0))
    ((_, state, info),) = rounds_of(
        world, nobody, 1, aggregator=aggregator, noise=rng.root(0)
    )
    assert info.steps.size == 0
    moved = [
        np.asarray(a - b).ravel()
        for a, b in zip(
            jax.tree.leaves(state.server.params),
            jax.tree.leaves(world.params),
            strict=True,
        )
    ]
    noise = np.concatenate(moved)
    # 38 coordinates of variance 1: their mean square is within 4.5 deviations of 1.
    assert abs(np.square(noise).sum() / noise.size - 1) < 4.5 * np.sqrt(2 / noise.size)


def test_rounds_are_counted():
    with pytest.raises(ValueError, match="rounds=0"):
        rounds_of(worlds.make(), selection.uniform(5, seed=1), 0)
