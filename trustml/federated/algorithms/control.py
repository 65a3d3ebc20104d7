"""SCAFFOLD, FedNova and FedDyn: averages that mend the drift of many local steps.

SCAFFOLD (Karimireddy et al. 2020), c_k of the client, c of the server:

    y <- y - eta (g - c_k + c);      c_k+ = c_k - c + (x - y) / (steps * eta)
    x <- x + V(mean(y - x));         c <- c + (m/K) mean(c_k+ - c_k)

FedNova (Wang et al. 2020), a_k = length of the client's path in steps of plain SGD:

    x <- x + mean a_k * sum_k s_k (y_k - x) / (a_k W),  mean a_k = sum s_k a_k / sum s_k
    a = steps;  (steps - rho (1 - rho^steps) / (1 - rho)) / (1 - rho) with momentum rho;
    (1 - (1 - eta mu)^steps) / (eta mu) with the proximal term mu

FedDyn (Acar et al. 2021), h_k of the client, h of the server, alpha > 0:

    y <- y - eta (g - h_k + alpha (y - x));          h_k <- h_k - alpha (y - x)
    h <- h - alpha (m/K) mean(y - x);                x <- mean y - h / alpha

Where W is a constant the weights that were heard do not sum to it; the mean of a_k is
theirs all the same, so that equal steps make FedAvg under every rule of weights.

FedDyn does not tend to FedAvg where alpha -> 0: with everybody and h = 0 its first step
is x + 2 mean(y - x). SCAFFOLD and FedDyn move c and h by the share m/K of the clients
that took part, and their means are uniform. That share is not private, nor are the
weights of FedNova: chains with noise are refused. A client that was not heard keeps its
c_k or h_k, or c and h would no longer be sums of what the clients have.

Example::

    algorithm = control.scaffold(task.loss, learning_rate=0.1, server=optax.sgd(1.0))

References: https://arxiv.org/abs/1910.06378, https://arxiv.org/abs/2007.07481,
https://arxiv.org/abs/2111.04263.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from trustml import _validate
from trustml.federated import lanes
from trustml.federated.algorithms import averaging, base

PyTree = Any

_LENGTHS = 64.0  # in units of which FedNova sends the length of a path
_COUNTED = "number in each round, m of m/K"


class ControlState(NamedTuple):
    """Of the server.

    Attributes:
      params: x.
      control: c of SCAFFOLD, h of FedDyn; like x.
      optimizer: of V; () for FedDyn.
      round: int32[].
    """

    params: PyTree
    control: PyTree
    optimizer: PyTree
    round: jax.Array


class ControlModel(NamedTuple):
    """What clients get."""

    params: PyTree
    control: PyTree
    rate: jax.Array


class ControlLocal(NamedTuple):
    """A client at work.

    Attributes:
      params: y.
      control: c_k, or h_k.
      path: float32[], sum of the learning rates of the steps so far.
      met: the loss so far.
    """

    params: PyTree
    control: PyTree
    path: jax.Array
    met: base.Met


class ControlMessage(NamedTuple):
    """What SCAFFOLD hands in; clipped together."""

    change: PyTree
    control: PyTree


def scaffold(
    loss: base.Loss,
    *,
    learning_rate: float,
    server: optax.GradientTransformation,
    schedule: averaging.Schedule = averaging.constant,
) -> base.FederatedAlgorithm:
    """SCAFFOLD with its second rule for c_k; local steps are plain SGD.

    Args:
      loss: of one example.
      learning_rate: eta, of the clients.
      server: V.
      schedule: round -> factor of eta.
    """
    _validate.positive("federated.client_learning_rate", learning_rate)
    gradient = base.objective(loss)

    def start(model, client, memory):
        del client
        return ControlLocal(model.params, memory, jnp.float32(0), base.nothing_met())

    def step(model, local, batch, mask, key, number):
        del number
        grads, met = gradient(local.params, batch, mask, key)
        grads = base.add(base.subtract(grads, local.control), model.control)
        eta = learning_rate * model.rate
        return ControlLocal(
            base.add_scaled(local.params, -eta, grads),
            local.control,
            local.path + eta,
            base.add(local.met, met),
        )

    def finish(model, client, local, memory, key):
        del client, memory, key
        change = base.subtract(local.params, model.params)
        # Without a step (a rate of 0) there is no gradient to learn: c_k stays.
        moved = local.path > 0
        path = jnp.where(moved, local.path, 1)
        fresh = base.subtract(local.control, model.control)
        fresh = base.add_scaled(fresh, -1 / path, change)
        fresh = base.where(moved, fresh, local.control)
        message = ControlMessage(change, base.subtract(fresh, local.control))
        return lanes.Outcome(message, fresh, base.record(local.met))

    def server_step(state, gathered):
        change, control = gathered.message
        params, optimizer = averaging.server_step(
            server, state.params, state.optimizer, change
        )
        share = gathered.clients / gathered.population
        moved = base.add_scaled(state.control, share, control)
        return ControlState(params, moved, optimizer, state.round + 1)

    def init(params):
        return ControlState(
            params, base.zeros(params), server.init(params), jnp.int32(0)
        )

    return base.FederatedAlgorithm(
        init,
        _model(schedule),
        lanes.Program(start, step, finish),
        server_step,
        memory=base.zeros,
        fair=True,
        reveals=_COUNTED,
    )


class NovaMessage(NamedTuple):
    """What FedNova hands in.

    Attributes:
      direction: (y - x) / a, like the parameters.
      length: a/64, float32[]. Whole lengths are then multiples of 2^-20 still, and
        sums in integers hold them up to 131,072 in a cohort.
      weight: 1, float32[]; its mean is the share of W that the weights sum to.
    """

    direction: PyTree
    length: jax.Array
    weight: jax.Array


def fednova(
    loss: base.Loss,
    *,
    learning_rate: float,
    server: optax.GradientTransformation,
    momentum: float = 0.0,
    prox: float = 0.0,
    schedule: averaging.Schedule = averaging.constant,
) -> base.FederatedAlgorithm:
    """FedNova for clients of SGD, with momentum or with a proximal term.

    Args:
      loss: of one example.
      learning_rate: eta, of the clients.
      server: V; sgd(1) for the published algorithm.
      momentum: rho, in [0, 1).
      prox: mu >= 0; not together with momentum.
      schedule: round -> factor of eta.
    """
    _validate.positive("federated.client_learning_rate", learning_rate)
    _validate.in_half_open_interval("federated.momentum", momentum, 0.0, 1.0)
    _validate.non_negative("federated.prox", prox)
    if momentum and prox:
        cure = "set one of the two to 0"
        _validate.fail("federated.prox", prox, "cannot go with momentum here", cure)
    trained = averaging.training(
        loss, optax.sgd(learning_rate, momentum=momentum or None), prox=prox
    )

    def finish(model, client, local, memory, key):
        outcome = trained.finish(model, client, local, memory, key)
        steps = client.steps.astype(jnp.float32)
        if momentum:
            decayed = momentum * (1 - momentum**steps) / (1 - momentum)
            length = (steps - decayed) / (1 - momentum)
        elif prox:
            pull = learning_rate * model.rate * prox
            by = jnp.where(pull > 0, pull, 1)  # towards 0 the length is that of steps
            length = jnp.where(pull > 0, (1 - (1 - pull) ** steps) / by, steps)
        else:
            length = steps
        direction = base.scaled(1 / length, outcome.message)
        message = NovaMessage(direction, length / _LENGTHS, jnp.float32(1))
        return outcome._replace(message=message)

    def server_step(state, gathered):
        direction, length, weight = gathered.message
        # 0 where nobody came.
        mean_length = _LENGTHS * length / jnp.where(weight > 0, weight, 1)
        change = base.scaled(mean_length, direction)
        params, optimizer = averaging.server_step(
            server, state.params, state.optimizer, change
        )
        return averaging.State(params, optimizer, state.round + 1)

    def init(params):
        return averaging.State(params, server.init(params), jnp.int32(0))

    def model(state):
        return averaging.Model(state.params, schedule(state.round))

    program = lanes.Program(trained.start, trained.step, finish)
    return base.FederatedAlgorithm(
        init,
        model,
        program,
        server_step,
        beside="the length of a path",
        reveals="weights, which its mean length is divided by",
    )


def feddyn(
    loss: base.Loss,
    client: optax.GradientTransformation,
    *,
    alpha: float,
    schedule: averaging.Schedule = averaging.constant,
) -> base.FederatedAlgorithm:
    """FedDyn; see the module docstring.

    Args:
      loss: of one example.
      client: U, given g - h_k + alpha (y - x).
      alpha: > 0.
      schedule: round -> factor of the client's updates.
    """
    _validate.positive("federated.alpha", alpha)
    gradient = base.objective(loss)

    class Local(NamedTuple):
        params: PyTree
        control: PyTree
        optimizer: PyTree
        met: base.Met

    def start(model, client_, memory):
        del client_
        state = client.init(model.params)
        return Local(model.params, memory, state, base.nothing_met())

    def step(model, local, batch, mask, key, number):
        del number
        grads, met = gradient(local.params, batch, mask, key)
        away = base.subtract(local.params, model.params)
        grads = base.add_scaled(base.subtract(grads, local.control), alpha, away)
        updates, optimizer = client.update(grads, local.optimizer, local.params)
        params = base.add_scaled(local.params, model.rate, updates)
        return Local(params, local.control, optimizer, base.add(local.met, met))

    def finish(model, client_, local, memory, key):
        del client_, memory, key
        change = base.subtract(local.params, model.params)
        control = base.add_scaled(local.control, -alpha, change)
        return lanes.Outcome(change, control, base.record(local.met))

    def server_step(state, gathered):
        share = gathered.clients / gathered.population
        control = base.add_scaled(state.control, -alpha * share, gathered.message)
        params = base.add(state.params, gathered.message)
        params = base.add_scaled(params, -1 / alpha, control)
        # Where nobody is heard there is no mean y to correct.
        params = base.where(gathered.clients > 0, params, state.params)
        return ControlState(params, control, (), state.round + 1)

    def init(params):
        return ControlState(params, base.zeros(params), (), jnp.int32(0))

    return base.FederatedAlgorithm(
        init,
        _model(schedule),
        lanes.Program(start, step, finish),
        server_step,
        memory=base.zeros,
        fair=True,
        reveals=_COUNTED,
    )


def _model(schedule):
    def model(state):
        return ControlModel(state.params, state.control, schedule(state.round))

    return model
