"""Sign flips by many of fifty clients, on MNIST: who withstands them, and the mean."""

import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trustml.federated.aggregation import chain, link, robust

CLIENTS, OWN, STEPS, BATCH, ROUNDS = 50, 600, 10, 60, 12


def mlp(key):
    a, b = jax.random.split(key)
    return {
        "w1": jax.random.normal(a, (784, 32)) * 784**-0.5,
        "b1": jnp.zeros(32),
        "w2": jax.random.normal(b, (32, 10)) * 32**-0.5,
        "b2": jnp.zeros(10),
    }


def logits(params, x):
    hidden = jax.nn.relu(x @ params["w1"] + params["b1"][None])
    return hidden @ params["w2"] + params["b2"][None]


def loss(params, x, y):
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits(params, x)), y[:, None], 1)
    return -jnp.mean(picked)


def delta(params, x, y):
    """What one client's epoch of SGD changes."""

    def step(now, batch):
        grads = jax.grad(loss)(now, *batch)
        return jax.tree.map(lambda p, g: p - 0.1 * g, now, grads), None

    batches = x.reshape(STEPS, BATCH, 784), y.reshape(STEPS, BATCH)
    after, _ = jax.lax.scan(step, params, batches)
    return jax.tree.map(jnp.subtract, after, params)


@pytest.fixture(scope="module")
def federation():
    with np.load(pathlib.Path(os.environ["TRUSTML_DATA"]) / "mnist/mnist.npz") as file:
        x, y, x_test, y_test = (
            file[name] for name in ("x_train", "y_train", "x_test", "y_test")
        )
    drawn = np.random.default_rng(0).permutation(len(x))[: CLIENTS * OWN]
    images = (x[drawn].reshape(CLIENTS, OWN, 784) / 255).astype(np.float32)
    test = (x_test.reshape(-1, 784) / 255).astype(np.float32)
    return (
        images,
        y[drawn].reshape(CLIENTS, OWN).astype(np.int32),
        test,
        y_test.astype(np.int32),
    )


def accuracy(federation, rules, attackers):
    images, labels, x_test, y_test = federation
    aggregator = chain.chain(*rules)
    cohort = link.cohort(jnp.ones(CLIENTS), expected_weight=float(CLIENTS))
    signs = jnp.where(jnp.arange(CLIENTS) < attackers, -10.0, 1.0)
    params = mlp(jax.random.key(0))
    state, key = aggregator.init(params), jax.random.key(1)

    @jax.jit
    def one_round(params, state):
        deltas = jax.vmap(delta, (None, 0, 0))(params, images, labels)
        deltas = jax.tree.map(lambda x: link.rows(signs, x) * x, deltas)
        sent, _, _ = jax.vmap(aggregator.client, (None, 0, None, None))(
            state, deltas, (), key
        )
        if aggregator.collect == "sum":
            sent = link.weighted_sum(sent, cohort)
        update, state, _ = aggregator.server(state, sent, cohort, key)
        return jax.tree.map(jnp.add, params, update), state

    for _ in range(ROUNDS):
        params, state = one_round(params, state)
    return float(np.mean(np.argmax(logits(params, x_test), axis=1) == y_test))


@pytest.mark.slow
@pytest.mark.data
def test_robust_rules_withstand_what_the_mean_does_not(federation):
    honest = accuracy(federation, (), 0)
    found = {
        "mean": accuracy(federation, (), 11),
        "median": accuracy(federation, (robust.median(),), 15),
        "trimmed": accuracy(federation, (robust.trimmed_mean(0.3),), 15),
        "multi_krum": accuracy(federation, (robust.multi_krum(15),), 15),
        "bulyan": accuracy(federation, (robust.bulyan(11),), 11),
    }
    print(f"attack-free {honest:.4f}", found)
    assert honest > 0.8
    assert not found.pop("mean") > 0.5  # it may not even be a number
    for name, value in found.items():
        assert value >= honest - 0.05, name
