"""FedAvg, FedProx and FedOpt: clients train, the server steps along their mean change.

    client:  y <- x;   y <- y - U(grad f(y; batch) + mu (y - x))    for every batch
    server:  x <- x + V(mean_k (y_k - x))

U is any optax optimizer, begun anew at every visit; V any optax optimizer, given
-mean as its gradient. V = sgd(1) is FedAvg (McMahan et al. 2017), mu > 0 FedProx (Li et
al. 2020), V of `server_optimizers` FedOpt (Reddi et al. 2021). Client and server
optimizer are separate arguments, always: which of the two makes an algorithm better
cannot be told where they change together.

Learning rates follow the round: the updates of U are multiplied by `schedule(round)`;
schedules inside U begin anew at every visit.

Example::

    algorithm = averaging.fedavg(task.loss, optax.sgd(0.1), optax.sgd(1.0), prox=0.01)

References: https://arxiv.org/abs/1602.05629, https://arxiv.org/abs/1812.06127,
https://arxiv.org/abs/2003.00295.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from trustml import _validate
from trustml.federated import lanes
from trustml.federated.algorithms import base

PyTree = Any
Schedule = Callable[[jax.Array], jax.Array]


class State(NamedTuple):
    """Of the server.

    Attributes:
      params: x.
      optimizer: of V.
      round: int32[].
    """

    params: PyTree
    optimizer: PyTree
    round: jax.Array


class Model(NamedTuple):
    """What clients get: x, and the factor of their learning rate, float32[]."""

    params: PyTree
    rate: jax.Array


class Local(NamedTuple):
    """A client at work: y, the state of U, and the loss so far."""

    params: PyTree
    optimizer: PyTree
    met: base.Met


def constant(round_: jax.Array) -> jax.Array:
    """The schedule that changes nothing."""
    del round_
    return jnp.float32(1)


def fedavg(
    loss: base.Loss,
    client: optax.GradientTransformation,
    server: optax.GradientTransformation,
    *,
    prox: float = 0.0,
    schedule: Schedule = constant,
) -> base.FederatedAlgorithm:
    """FedAvg, FedProx, FedOpt; see the module docstring.

    Args:
      loss: of one example, (params, example, key) -> float32[].
      client: U.
      server: V.
      prox: mu >= 0.
      schedule: round int32[] -> float32[], factor of the client's updates.
    """
    _validate.non_negative("federated.prox", prox)
    program = training(loss, client, prox=prox)

    def init(params):
        return State(params, server.init(params), jnp.int32(0))

    def model(state):
        return Model(state.params, schedule(state.round))

    def step(state, gathered):
        params, optimizer = server_step(
            server, state.params, state.optimizer, gathered.message
        )
        return State(params, optimizer, state.round + 1)

    return base.FederatedAlgorithm(init, model, program, step)


def training(
    loss: base.Loss, client: optax.GradientTransformation, *, prox: float = 0.0
) -> lanes.Program:
    """The program of a client of `Model`; its message is y - x."""
    gradient = base.objective(loss)

    def start(model, client_, memory):
        del client_, memory
        return Local(model.params, client.init(model.params), base.nothing_met())

    def step(model, local, batch, mask, key, number):
        del number
        grads, met = gradient(local.params, batch, mask, key)
        if prox:
            away = base.subtract(local.params, model.params)
            grads = base.add_scaled(grads, prox, away)
        updates, optimizer = client.update(grads, local.optimizer, local.params)
        params = base.add_scaled(local.params, model.rate, updates)
        return Local(params, optimizer, base.add(local.met, met))

    def finish(model, client_, local, memory, key):
        del client_, key
        message = base.subtract(local.params, model.params)
        return lanes.Outcome(message, memory, base.record(local.met))

    return lanes.Program(start, step, finish)


def server_step(server, params, optimizer, change):
    """The step x + V(change), with V an optax optimizer whose gradient is -change."""
    gradient = jax.tree.map(jnp.negative, change)
    updates, optimizer = server.update(gradient, optimizer, params)
    return optax.apply_updates(params, updates), optimizer
