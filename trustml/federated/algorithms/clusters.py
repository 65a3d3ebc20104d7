"""IFCA: several models, of which every client trains the one that fits it best.

    j_k = argmin_j F_k(theta_j);   client k trains theta_j_k
    theta_j <- theta_j + V(mean over clients with j_k = j of (y - theta_j))

A model that nobody chose stays as it is; one whose loss is no number is not chosen.
With one model it is FedAvg. A client fills one block of the stacked message, so the
sensitivity of the sum is that of one model.
Chains with noise are refused: a model that few chose would be divided by mere noise.

Dimension key: `J` models.

Example::

    models = jax.vmap(task.init)(jax.random.split(key, 3))
    algorithm = clusters.ifca(task.loss, optax.sgd(0.1), optax.sgd(1.0), models=3)
    state = algorithm.init(models)

References: https://arxiv.org/abs/2006.04088.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from trustml import _validate
from trustml.federated import lanes
from trustml.federated.algorithms import averaging, base

PyTree = Any


class Message(NamedTuple):
    """A client's change in the block of its model, leaves [J, ...], and where that is.

    Attributes:
      change: zeros but for block j_k.
      chosen: float32[J], 1 at j_k.
    """

    change: PyTree
    chosen: jax.Array


class Losses(NamedTuple):
    """Mean loss of a client under each model, float32[J], and its examples."""

    losses: jax.Array
    examples: jax.Array


def ifca(
    loss: base.Loss,
    client: optax.GradientTransformation,
    server: optax.GradientTransformation,
    *,
    models: int,
    schedule: averaging.Schedule = averaging.constant,
) -> base.FederatedAlgorithm:
    """IFCA; parameters carry a leading axis of J models.

    Args:
      loss: of one example.
      client: U.
      server: V, for each model.
      models: J.
      schedule: round -> factor of the client's updates.
    """
    _validate.integer_at_least("federated.models", models, 1)
    trained = averaging.training(loss, client)

    def chosen(model, given):
        number = jnp.argmin(given.losses)
        params = jax.tree.map(lambda x: x[number], model.params)
        return number, model._replace(params=params)

    def start(model, client_, memory):
        return trained.start(chosen(model, client_.given)[1], client_, memory)

    def step(model, local, batch, mask, key, number):
        return trained.step(model, local, batch, mask, key, number)

    def finish(model, client_, local, memory, key):
        number, own = chosen(model, client_.given)
        outcome = trained.finish(own, client_, local, memory, key)
        where = jax.nn.one_hot(number, models, dtype=jnp.float32)
        change = jax.tree.map(
            lambda x: where.reshape((-1,) + (1,) * x.ndim) * x[None], outcome.message
        )
        return outcome._replace(message=Message(change, where))

    def server_step(state, gathered):
        change, share = gathered.message
        mean = jax.tree.map(
            lambda x: (
                x / jnp.maximum(share, 1e-10).reshape((-1,) + (1,) * (x.ndim - 1))
            ),
            change,
        )
        params, optimizer = jax.vmap(
            lambda p, o, c: averaging.server_step(server, p, o, c)
        )(state.params, state.optimizer, mean)
        present = share > 0
        keep = lambda new, old: jnp.where(  # noqa: E731
            present.reshape((-1,) + (1,) * (new.ndim - 1)), new, old
        )
        params = jax.tree.map(keep, params, state.params)
        optimizer = jax.tree.map(keep, optimizer, state.optimizer)
        return averaging.State(params, optimizer, state.round + 1)

    def init(params):
        for leaf in jax.tree.leaves(params):
            if leaf.shape[:1] != (models,):
                raise ValueError(
                    f"parameters of shape {leaf.shape} lack the leading axis of "
                    f"federated.models={models}; stack one set for each model."
                )
        return averaging.State(params, jax.vmap(server.init)(params), jnp.int32(0))

    def model(state):
        return averaging.Model(state.params, schedule(state.round))

    return base.FederatedAlgorithm(
        init,
        model,
        lanes.Program(start, step, finish),
        server_step,
        first=_losses(loss, models),
        beside="whose model it is of",
        reveals="shares of the models, which its means are divided by",
    )


def _losses(loss, models) -> lanes.Program:
    def start(model, client, memory):
        del model, client, memory
        return Losses(jnp.zeros(models), jnp.float32(0))

    def step(model, local, batch, mask, key, number):
        del number
        keys = jax.vmap(jax.random.fold_in, (None, 0))(
            key, jnp.arange(mask.size, dtype="uint32")
        )
        each = jax.vmap(jax.vmap(loss, (None, 0, 0)), (0, None, None))
        losses = each(model.params, batch, keys)
        sums = jnp.where(mask[None], losses, 0).sum(1)
        return Losses(
            local.losses + sums, local.examples + mask.sum().astype(jnp.float32)
        )

    def finish(model, client, local, memory, key):
        del model, client, key
        mean = local.losses / jnp.maximum(local.examples, 1)
        # A loss that is no number fits worst; `argmin` would choose it.
        mean = jnp.where(jnp.isfinite(mean), mean, jnp.finfo(mean.dtype).max)
        return lanes.Outcome((), memory, Losses(mean, local.examples))

    return lanes.Program(start, step, finish)
