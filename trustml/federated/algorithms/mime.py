"""Mime and MimeLite: clients step with the server's optimizer, whose state they keep.

    c   = mean over clients of the full gradient at x            (a sweep before)
    y <- y + U(g, s; y),   s frozen                              (clients)
    x <- x + V(mean(y - x));   s <- state of U after c at x      (server)

with g = grad f(y; batch) for MimeLite, and g = grad f(y; b) - grad f(x; b) + c for Mime
(Karimireddy et al. 2020). U is any optax optimizer; with `optax.ema`-like momentum
U = (1 - beta) g + beta s it is the published one.

Under privacy c is a release of its own.

Example::

    algorithm = mime.mime(task.loss, optax.sgd(0.1, momentum=0.9), optax.sgd(1.0))

References: https://arxiv.org/abs/2008.03606.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from trustml.federated import lanes
from trustml.federated.algorithms import averaging, base

PyTree = Any


class State(NamedTuple):
    """Of the server.

    Attributes:
      params: x.
      statistics: s, state of U.
      gradient: c of this round, like x.
      optimizer: of V.
      round: int32[].
    """

    params: PyTree
    statistics: PyTree
    gradient: PyTree
    optimizer: PyTree
    round: jax.Array


class Model(NamedTuple):
    """What clients get."""

    params: PyTree
    statistics: PyTree
    gradient: PyTree
    rate: jax.Array


class Local(NamedTuple):
    """A client at work; in the first sweep `params` is its summed gradient."""

    params: PyTree
    met: base.Met


def mime(
    loss: base.Loss,
    client: optax.GradientTransformation,
    server: optax.GradientTransformation,
    *,
    lite: bool = False,
    schedule: averaging.Schedule = averaging.constant,
) -> base.FederatedAlgorithm:
    """Mime, or MimeLite; see the module docstring.

    Args:
      loss: of one example.
      client: U.
      server: V; sgd(1) for the published algorithm.
      lite: MimeLite.
      schedule: round -> factor of the client's updates.
    """
    gradient = base.objective(loss)

    def start(model, client_, memory):
        del client_, memory
        return Local(model.params, base.nothing_met())

    def step(model, local, batch, mask, key, number):
        del number
        grads, met = gradient(local.params, batch, mask, key)
        if not lite:
            # The same key: both gradients are of the same loss, dropout included.
            before, _ = gradient(model.params, batch, mask, jax.random.clone(key))
            grads = base.add(base.subtract(grads, before), model.gradient)
        updates, _ = client.update(grads, model.statistics, local.params)
        params = base.add_scaled(local.params, model.rate, updates)
        return Local(params, base.add(local.met, met))

    def finish(model, client_, local, memory, key):
        del client_, key
        message = base.subtract(local.params, model.params)
        return lanes.Outcome(message, memory, base.record(local.met))

    def server_step(state, gathered):
        params, optimizer = averaging.server_step(
            server, state.params, state.optimizer, gathered.message
        )
        _, statistics = client.update(state.gradient, state.statistics, state.params)
        # A gradient of nobody is zero, and would let the momentum decay.
        heard = gathered.clients > 0
        statistics = base.where(heard, statistics, state.statistics)
        return State(params, statistics, state.gradient, optimizer, state.round + 1)

    def init(params):
        statistics = client.init(params)
        empty = base.zeros(params)
        return State(params, statistics, empty, server.init(params), jnp.int32(0))

    def model(state):
        rate = schedule(state.round)
        return Model(state.params, state.statistics, state.gradient, rate)

    return base.FederatedAlgorithm(
        init,
        model,
        lanes.Program(start, step, finish),
        server_step,
        first=full_gradient(loss),
        prepare=lambda state, gathered: state._replace(gradient=gathered.message),
        reveals="whole gradients before they train",
    )


def full_gradient(loss: base.Loss) -> lanes.Program:
    """Mean gradient over a client's examples at the server's model; no training."""
    gradient = base.objective(loss)

    def start(model, client, memory):
        del client, memory
        return Local(base.zeros(model.params), base.nothing_met())

    def step(model, local, batch, mask, key, number):
        del number
        grads, met = gradient(model.params, batch, mask, key)
        summed = base.add_scaled(local.params, met.examples, grads)
        return Local(summed, base.add(local.met, met))

    def finish(model, client, local, memory, key):
        del model, client, key
        mean = base.scaled(1 / jnp.maximum(local.met.examples, 1), local.params)
        return lanes.Outcome(mean, memory, base.record(local.met))

    return lanes.Program(start, step, finish)
