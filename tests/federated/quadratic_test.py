"""Quadratic clients of different curvature, in float64: where algorithms come to rest.

    f_k(y) = (y - b_k)' A_k (y - b_k) / 2

With M_k = (I - eta A_k)^tau, tau steps from x end at b_k + M_k (x - b_k), so a round of
FedAvg with everybody is x <- x - mean_k (I - M_k)(x - b_k), which rests where

    sum_k (I - M_k)(x - b_k) = 0,      not where      sum_k A_k (x - b_k) = 0

unless tau = 1. SCAFFOLD and FedDyn rest at the minimiser only, also where some are not
heard: those keep their control variates, or the sums of these no longer agree.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from trustml.federated import rounds
from trustml.federated.aggregation import chain
from trustml.federated.algorithms import averaging, control

K, D, TAU, ETA, ALPHA = 5, 3, 4, 0.125, 1.0


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


def heard(count):
    """Who is heard, bool[count, K]: each with chance 0.7, and one at least."""
    drawn = np.random.default_rng(1).random((count, K))
    return (drawn < 0.7) | (drawn == drawn.min(1, keepdims=True))


def loop(name, arrived):
    """The server's model after each round in which some are not heard; NumPy."""
    a, b = clients()
    x, c, own, found = np.zeros(D), np.zeros(D), np.zeros((K, D)), []
    for there in arrived:
        change, moved = np.zeros((2, K, D))
        for k in np.flatnonzero(there):
            y = x
            for _ in range(TAU):
                grads = a[k] @ (y - b[k]) - own[k]
                y = y - ETA * (grads + (c if name == "scaffold" else ALPHA * (y - x)))
            change[k] = y - x
            moved[k] = -ALPHA * change[k]
            if name == "scaffold":
                moved[k] = -c - change[k] / (TAU * ETA)
        own, mean = own + moved, change.sum(0) / there.sum()
        c, x = c + moved.sum(0) / K, x + mean
        if name == "feddyn":
            x = x - c / ALPHA
        found.append(x)
    return np.stack(found)


def play(algorithm, count, arrived=None):
    """The server's model after each round."""
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
    state, found = made.init(jnp.zeros(D, jnp.float64)), []
    for number in range(count):
        came = None if arrived is None else arrived[number]
        state, _ = made.run(
            state,
            jax.random.key(0),
            chosen._replace(arrived=came),
            lambda handed: (data, np.repeat(range(K), handed)),
        )
        found.append(np.asarray(state.server.params))
    return np.stack(found)


ALGORITHMS = {
    "scaffold": lambda: control.scaffold(
        loss, learning_rate=ETA, server=optax.sgd(1.0)
    ),
    "feddyn": lambda: control.feddyn(loss, optax.sgd(ETA), alpha=ALPHA),
}


def test_fedavg_rests_where_its_recursion_does_which_is_no_minimiser():
    with jax.enable_x64(True):
        a, b = clients()
        moves = np.eye(D) - np.stack(
            [np.linalg.matrix_power(np.eye(D) - ETA * one, TAU) for one in a]
        )
        found = play(averaging.fedavg(loss, optax.sgd(ETA), optax.sgd(1.0)), 60)[-1]
        np.testing.assert_allclose(found, rest(moves, b), rtol=0, atol=1e-8)
        assert np.abs(found - rest(a, b)).max() > 0.05


@pytest.mark.parametrize("name", ALGORITHMS)
def test_control_reaches_the_minimiser(name):
    with jax.enable_x64(True):
        a, b = clients()
        found = play(ALGORITHMS[name](), 200)[-1]
        np.testing.assert_allclose(found, rest(a, b), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_control_reaches_the_minimiser_where_some_are_not_heard(name):
    with jax.enable_x64(True):
        a, b = clients()
        there = heard(150)
        expected, found = loop(name, there), play(ALGORITHMS[name](), 150, there)
    # m/K is a float32. Were c_k of those who are not heard written, SCAFFOLD would rest
    # at a distance of 0.3, FedDyn of 0.09.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(expected[-1], rest(a, b), rtol=0, atol=1e-9)
