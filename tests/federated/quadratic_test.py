"""Quadratic clients of different curvature, in float64: where algorithms come to rest.

    f_k(y) = (y - b_k)' A_k (y - b_k) / 2

With M_k = (I - eta A_k)^tau, tau steps from x end at b_k + M_k (x - b_k), so a round of
FedAvg with everybody is x <- x - mean_k (I - M_k)(x - b_k), which rests where

    sum_k (I - M_k)(x - b_k) = 0,      not where      sum_k A_k (x - b_k) = 0

unless tau = 1. SCAFFOLD and FedDyn rest at the minimiser only.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from trustml.federated import rounds
from trustml.federated.aggregation import chain
from trustml.federated.algorithms import averaging, control

K, D, TAU, ETA = 5, 3, 4, 0.125


def loss(params, example, key):
    del key
    away = params - example["b"]
    return away @ example["a"] @ away / 2


def clients():
    """A_k with eigenvalues from 0.5 to 4, b_k."""
    gen = np.random.default_rng(0)
    turns = np.linalg.qr(gen.normal(size=(K, D, D)))[0]
    values = gen.uniform(0.5, 4, size=(K, D))
    a = np.einsum("kij,kj,klj->kil", turns, values, turns)
    return a, gen.normal(size=(K, D)) * 3


def rest(matrices, b):
    """Where sum_k matrices_k (x - b_k) = 0."""
    return np.linalg.solve(matrices.sum(0), np.einsum("kij,kj->i", matrices, b))


def play(algorithm, count):
    a, b = clients()
    settings = rounds.Settings(
        jit=jax.jit,
        lanes=2,
        batch_size=1,
        capacity=8,
        epochs=TAU,
        devices=jax.devices()[:1],
    )
    made = rounds.make(algorithm, chain.chain(), population=K, settings=settings)
    chosen = rounds.Chosen(np.arange(K), np.ones(K, int), np.ones(K))
    data = {"a": jnp.asarray(a), "b": jnp.asarray(b)}
    state = made.init(jnp.zeros(D, jnp.float64))
    for _ in range(count):
        state, _ = made.run(
            state,
            jax.random.key(0),
            chosen,
            lambda handed: (data, np.repeat(range(K), handed)),
        )
    return np.asarray(state.server.params)


ALGORITHMS = {
    "scaffold": lambda: control.scaffold(
        loss, learning_rate=ETA, server=optax.sgd(1.0)
    ),
    "feddyn": lambda: control.feddyn(loss, optax.sgd(ETA), alpha=1.0),
}


def test_fedavg_rests_where_its_recursion_does_which_is_no_minimiser():
    with jax.enable_x64(True):
        a, b = clients()
        moves = np.eye(D) - np.stack(
            [np.linalg.matrix_power(np.eye(D) - ETA * one, TAU) for one in a]
        )
        found = play(averaging.fedavg(loss, optax.sgd(ETA), optax.sgd(1.0)), 60)
        np.testing.assert_allclose(found, rest(moves, b), rtol=0, atol=1e-8)
        assert np.abs(found - rest(a, b)).max() > 0.05


@pytest.mark.parametrize("name", ALGORITHMS)
def test_control_reaches_the_minimiser(name):
    with jax.enable_x64(True):
        a, b = clients()
        found = play(ALGORITHMS[name](), 200)
        np.testing.assert_allclose(found, rest(a, b), rtol=0, atol=1e-10)
