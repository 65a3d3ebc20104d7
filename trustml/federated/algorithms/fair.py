"""q-FFL and AFL: clients that the model serves badly count for more.

q-FFL (Li et al. 2020), with F_k the client's loss at x, eta its learning rate, q >= 0:

    delta = (x - y) / eta,   h = q F^(q-1) |delta|^2 + F^q / eta
    x <- x - sum F^q delta / sum h

q = 0 is the uniform mean of FedAvg. AFL (Mohri et al. 2019) weighs clients, or domains
of clients, by lambda on the simplex, which climbs where the loss is large:

    x <- x + sum lambda_k (y_k - x) / sum lambda_k,
    lambda <- nearest point of the simplex to lambda + gamma F

with F of the clients that were heard. Messages are sent relative to the largest lambda
of the cohort: lambda itself is about 1/K, of which sums in integers would keep nothing.

AFL's losses are released to the server; under privacy they need a mechanism of their
own, and chains with noise are refused. A client of q-FFL sends nothing beside its
message. Powers of losses have no bound there: sums in integers are refused.

Example::

    algorithm = fair.qffl(task.loss, learning_rate=0.1, q=1.0)

References: https://arxiv.org/abs/1905.10497, https://arxiv.org/abs/1902.00146.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from trustml import _validate
from trustml.federated import lanes
from trustml.federated.algorithms import averaging, base

PyTree = Any
_FLOOR = 1e-10  # of a loss whose power is taken: 0 ** (q - 1) is infinite


class FairMessage(NamedTuple):
    """What q-FFL hands in: F^q delta, like the parameters, and h, float32[]."""

    pull: PyTree
    bound: jax.Array


def qffl(
    loss: base.Loss,
    *,
    learning_rate: float,
    q: float,
    schedule: averaging.Schedule = averaging.constant,
) -> base.FederatedAlgorithm:
    """q-FFL with clients of plain SGD; see the module docstring.

    Args:
      loss: of one example, not negative.
      learning_rate: eta, of the clients.
      q: >= 0.
      schedule: round -> factor of eta.
    """
    _validate.positive("federated.client_learning_rate", learning_rate)
    _validate.non_negative("federated.q", q)
    trained = averaging.training(loss, optax.sgd(learning_rate))

    def finish(model, client, local, memory, key):
        outcome = trained.finish(model, client, local, memory, key)
        eta = learning_rate * model.rate
        # Without a step (a rate of 0) neither delta nor h says anything: both are 0.
        inverse = jnp.where(eta > 0, 1 / jnp.where(eta > 0, eta, 1), 0)
        delta = base.scaled(-inverse, outcome.message)
        value = jnp.maximum(client.given.loss, _FLOOR)
        power = value**q
        square = optax.tree.norm(delta, squared=True)
        bound = q * value ** (q - 1) * square + power * inverse
        message = FairMessage(base.scaled(power, delta), bound)
        return outcome._replace(message=message)

    def server_step(state, gathered):
        pull, bound = gathered.message
        heard = bound > 0  # or the model stays
        scale = jnp.where(heard, -1 / jnp.where(heard, bound, 1), 0)
        params = base.add_scaled(state.params, scale, pull)
        return averaging.State(params, (), state.round + 1)

    def init(params):
        return averaging.State(params, (), jnp.int32(0))

    def model(state):
        return averaging.Model(state.params, schedule(state.round))

    return base.FederatedAlgorithm(
        init,
        model,
        lanes.Program(trained.start, trained.step, finish),
        server_step,
        first=mean_loss(loss),
        fair=True,
        beside="the scale of its step",
        unbounded="powers of losses",
    )


class AflState(NamedTuple):
    """Of the server.

    Attributes:
      params: x.
      weights: lambda, float32[number of domains].
      heaviest: float32[], the largest lambda of a client heard in this round.
      optimizer: of V.
      round: int32[].
    """

    params: PyTree
    weights: jax.Array
    heaviest: jax.Array
    optimizer: PyTree
    round: jax.Array


class AflModel(NamedTuple):
    """What clients get.

    Attributes:
      params: x.
      rate: factor of their learning rate, float32[].
      weights: lambda of a client of each domain, over the largest of the cohort.
    """

    params: PyTree
    rate: jax.Array
    weights: jax.Array


class AflMessage(NamedTuple):
    """A client's change times its weight of `AflModel`, and that weight."""

    change: PyTree
    weight: jax.Array


def afl(
    loss: base.Loss,
    client: optax.GradientTransformation,
    server: optax.GradientTransformation,
    *,
    domains: np.ndarray,
    learning_rate: float,
    schedule: averaging.Schedule = averaging.constant,
) -> base.FederatedAlgorithm:
    """AFL over domains of clients.

    Args:
      loss: of one example.
      client: U.
      server: V; sgd(1) for the published algorithm.
      domains: int[K], of each client, from 0; `arange(K)` makes each its own.
      learning_rate: gamma, of lambda.
      schedule: round -> factor of the client's updates.
    """
    _validate.positive("federated.fair_learning_rate", learning_rate)
    domains = np.asarray(domains, np.int32)
    if domains.ndim != 1 or not domains.size or domains.min() < 0:
        bound = f"of shape {domains.shape} must be one number >= 0 for each client"
        _validate.fail("federated.domains", "an array", bound)
    count = int(domains.max()) + 1
    members = np.bincount(domains, minlength=count)
    if (members == 0).any():
        empty = int(np.flatnonzero(members == 0)[0])
        cure = "number domains from 0 without gaps"
        _validate.fail("federated.domains", empty, "has no client", cure)
    trained = averaging.training(loss, client)
    home = jnp.asarray(domains)
    share = jnp.asarray(1 / members, jnp.float32)

    def finish(model, client_, local, memory, key):
        outcome = trained.finish(model, client_, local, memory, key)
        weight = model.weights[home[client_.number]]
        return outcome._replace(
            message=AflMessage(base.scaled(weight, outcome.message), weight)
        )

    def server_step(state, gathered):
        change, weight = gathered.message
        change = base.scaled(1 / jnp.maximum(weight, _FLOOR), change)
        params, optimizer = averaging.server_step(
            server, state.params, state.optimizer, change
        )
        return state._replace(params=params, optimizer=optimizer, round=state.round + 1)

    def prepare(state, gathered):
        there = gathered.arrived  # no other place has a say
        own = home.at[gathered.numbers].get(mode="clip")
        target = jnp.where(there, own, count)
        sums, met = (
            jnp.zeros(count).at[target].add(values, mode="drop")
            for values in (gathered.records.loss, jnp.ones_like(gathered.records.loss))
        )
        losses = sums / jnp.maximum(met, 1)
        weights = project_to_simplex(state.weights + learning_rate * losses)
        heaviest = jnp.where(there, (weights * share)[own], 0).max()
        return state._replace(weights=weights, heaviest=heaviest)

    def init(params):
        weights = jnp.full(count, 1 / count, jnp.float32)
        one, zero = jnp.float32(1), jnp.int32(0)
        return AflState(params, weights, one, server.init(params), zero)

    def model(state):
        # Where nobody with a lambda was heard there is nothing to be relative to.
        by = jnp.where(state.heaviest > 0, state.heaviest, 1)
        return AflModel(state.params, schedule(state.round), state.weights * share / by)

    return base.FederatedAlgorithm(
        init,
        model,
        lanes.Program(trained.start, trained.step, finish),
        server_step,
        first=mean_loss(loss),
        prepare=prepare,
        fair=True,
        beside="a weight",
        clients=len(domains),
        reveals="losses before they train",
    )


def mean_loss(loss: base.Loss) -> lanes.Program:
    """A client's mean loss at the server's model, as its record; no training."""

    def start(model, client, memory):
        del model, client, memory
        return base.nothing_met()

    def step(model, local, batch, mask, key, number):
        del number
        keys = jax.vmap(jax.random.fold_in, (None, 0))(
            key, jnp.arange(mask.size, dtype="uint32")
        )
        losses = jax.vmap(loss, (None, 0, 0))(model.params, batch, keys)
        met = base.Met(jnp.where(mask, losses, 0).sum(), mask.sum().astype(jnp.float32))
        return base.add(local, met)

    def finish(model, client, local, memory, key):
        del model, client, key
        return lanes.Outcome((), memory, base.record(local))

    return lanes.Program(start, step, finish)


def project_to_simplex(point: jax.Array) -> jax.Array:
    """The nearest point with entries >= 0 that sum to 1; float32[J].

    References: Duchi et al. 2008, Figure 1.
    """
    falling = jnp.sort(point)[::-1]
    excess = jnp.cumsum(falling) - 1
    rank = jnp.arange(1, point.size + 1, dtype=point.dtype)
    kept = (falling - excess / rank > 0).sum()
    threshold = excess[kept - 1] / kept.astype(point.dtype)
    return jnp.maximum(point - threshold, 0)
