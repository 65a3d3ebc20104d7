"""Ditto, pFedMe, FedRep and APFL: every client keeps a model of its own.

    Ditto   y as FedAvg;  v <- v - eta (grad F(v) + lam (v - x))           keeps v
    pFedMe  theta ~ argmin f(theta) + lam/2 |theta - w|^2,
            w <- w - eta lam (w - theta)                                   keeps theta
    FedRep  first steps: the head alone; then: the body alone          keeps the head
    APFL    w <- w - eta grad f(w);  m = a v + (1 - a) w,
            v <- v - eta a grad f(m)                                       keeps v, a

The server averages y, w, the body, w. Personal models never leave the client, who keeps
what it trained even where the server did not hear its message.

Example::

    algorithm = personal.ditto(task.loss, optax.sgd(0.1), optax.sgd(1.0), pull=0.1)

References: https://arxiv.org/abs/2012.04221, https://arxiv.org/abs/2006.08848,
https://arxiv.org/abs/2102.07078, https://arxiv.org/abs/2003.13461.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from trustml import _validate
from trustml.federated import lanes
from trustml.federated.algorithms import averaging, base

PyTree = Any


class DittoLocal(NamedTuple):
    """A client at work: FedAvg's state, and v with its optimizer."""

    shared: averaging.Local
    own: PyTree
    optimizer: PyTree


def ditto(
    loss: base.Loss,
    client: optax.GradientTransformation,
    server: optax.GradientTransformation,
    *,
    pull: float,
    schedule: averaging.Schedule = averaging.constant,
) -> base.FederatedAlgorithm:
    """Ditto: FedAvg, and beside it a personal model pulled towards x.

    Args:
      loss: of one example.
      client: U, for both models.
      server: V.
      pull: lam >= 0.
      schedule: round -> factor of the client's updates.
    """
    _validate.non_negative("federated.pull", pull)
    shared = averaging.fedavg(loss, client, server, schedule=schedule)
    gradient = base.objective(loss)

    def start(model, client_, memory):
        begun = shared.program.start(model, client_, ())
        return DittoLocal(begun, memory, client.init(memory))

    def step(model, local, batch, mask, key, number):
        moved = shared.program.step(model, local.shared, batch, mask, key, number)
        grads, _ = gradient(local.own, batch, mask, jax.random.clone(key))
        away = base.subtract(local.own, model.params)
        grads = base.add_scaled(grads, pull, away)
        updates, optimizer = client.update(grads, local.optimizer, local.own)
        own = base.add_scaled(local.own, model.rate, updates)
        return DittoLocal(moved, own, optimizer)

    def finish(model, client_, local, memory, key):
        del memory
        outcome = shared.program.finish(model, client_, local.shared, (), key)
        return outcome._replace(memory=local.own)

    program = lanes.Program(start, step, finish)
    return shared._replace(
        program=program,
        memory=lambda params: params,
        personal_memory=True,
        personal=_kept,
    )


class PfedmeLocal(NamedTuple):
    """A client at work: w, theta, and the loss so far."""

    params: PyTree
    own: PyTree
    met: base.Met


def pfedme(
    loss: base.Loss,
    server: optax.GradientTransformation,
    *,
    learning_rate: float,
    inner_learning_rate: float,
    pull: float,
    inner_steps: int = 5,
    schedule: averaging.Schedule = averaging.constant,
) -> base.FederatedAlgorithm:
    """pFedMe: personal models by a Moreau envelope.

    Args:
      loss: of one example.
      server: V; sgd(beta) for x <- (1 - beta) x + beta mean w.
      learning_rate: eta, of w.
      inner_learning_rate: of theta.
      pull: lam > 0.
      inner_steps: gradient steps of theta on each batch.
      schedule: round -> factor of eta.
    """
    _validate.positive("federated.client_learning_rate", learning_rate)
    _validate.positive("federated.inner_learning_rate", inner_learning_rate)
    _validate.positive("federated.pull", pull)
    _validate.integer_at_least("federated.inner_steps", inner_steps, 1)
    gradient = base.objective(loss)

    def start(model, client, memory):
        del client, memory
        return PfedmeLocal(model.params, model.params, base.nothing_met())

    def step(model, local, batch, mask, key, number):
        del number

        def inner(i, carry):
            own, met = carry
            now = jax.random.fold_in(key, i)
            grads, found = gradient(own, batch, mask, now)
            away = base.subtract(own, local.params)
            grads = base.add_scaled(grads, pull, away)
            own = base.add_scaled(own, -inner_learning_rate, grads)
            first = (i == 0).astype(jnp.float32)
            return own, jax.tree.map(lambda a, b: a + first * b, met, found)

        own, met = jax.lax.fori_loop(0, inner_steps, inner, (local.own, local.met))
        away = base.subtract(local.params, own)
        eta = learning_rate * model.rate
        return PfedmeLocal(base.add_scaled(local.params, -eta * pull, away), own, met)

    def finish(model, client, local, memory, key):
        del client, memory, key
        change = base.subtract(local.params, model.params)
        return lanes.Outcome(change, local.own, base.record(local.met))

    return averaging.fedavg(
        loss, optax.sgd(learning_rate), server, schedule=schedule
    )._replace(
        program=lanes.Program(start, step, finish),
        memory=lambda params: params,
        personal_memory=True,
        personal=_kept,
    )


class RepLocal(NamedTuple):
    """A client at work.

    Attributes:
      shared: as of FedAvg.
      head_steps: int32[], the step at which the body begins.
      both: bool[], whether one step is all there is, for head and body.
    """

    shared: averaging.Local
    head_steps: jax.Array
    both: jax.Array


def fedrep(
    loss: base.Loss,
    client: optax.GradientTransformation,
    server: optax.GradientTransformation,
    *,
    is_head: Callable[[str], bool],
    head_share: float = 0.5,
    schedule: averaging.Schedule = averaging.constant,
) -> base.FederatedAlgorithm:
    """FedRep: a shared body under personal heads.

    Args:
      loss: of one example.
      client: U.
      server: V.
      is_head: path of a leaf, as `jax.tree_util.keystr` writes it -> is it personal?
      head_share: of a client's steps, the first, which train the head; one at least,
        and one is left for the rest. A client with a single step trains both in it.
      schedule: round -> factor of the client's updates.
    """
    _validate.in_open_interval("federated.head_share", head_share, 0.0, 1.0)
    shared = averaging.fedavg(loss, client, server, schedule=schedule)
    gradient = base.objective(loss)

    def heads(tree):
        found = jax.tree_util.tree_leaves_with_path(tree)
        return [is_head(jax.tree_util.keystr(path)) for path, _ in found]

    def memory(params):
        flags = heads(params)
        if not any(flags) or all(flags):
            cure = "name some leaves, not all: " + ", ".join(
                jax.tree_util.keystr(path)
                for path, _ in jax.tree_util.tree_leaves_with_path(params)
            )
            _validate.fail("federated.is_head", is_head, "must part the leaves", cure)
        leaves = jax.tree.leaves(params)
        return [x for x, flag in zip(leaves, flags, strict=True) if flag]

    def with_heads(params, own):
        leaves, tree = jax.tree.flatten(params)
        parts, rest = iter(own), heads(params)
        leaves = [
            next(parts) if flag else x for x, flag in zip(leaves, rest, strict=True)
        ]
        return jax.tree.unflatten(tree, leaves)

    def masked(tree, of_head, both):
        leaves, structure = jax.tree.flatten(tree)
        kept = [
            jnp.where((flag == of_head) | both, x, 0).astype(x.dtype)
            for x, flag in zip(leaves, heads(tree), strict=True)
        ]
        return jax.tree.unflatten(structure, kept)

    def start(model, client_, own):
        params = with_heads(model.params, own)
        local = averaging.Local(params, client.init(params), base.nothing_met())
        steps = client_.steps
        count = jnp.round(head_share * steps.astype(jnp.float32)).astype(jnp.int32)
        count = jnp.clip(count, 1, jnp.maximum(steps - 1, 1))
        return RepLocal(local, count, steps == 1)

    def step(model, local, batch, mask, key, number):
        of_head = number < local.head_steps
        before = local.shared
        grads, met = gradient(before.params, batch, mask, key)
        updates, optimizer = client.update(
            masked(grads, of_head, local.both), before.optimizer, before.params
        )
        updates = masked(updates, of_head, local.both)
        params = base.add_scaled(before.params, model.rate, updates)
        after = averaging.Local(params, optimizer, base.add(before.met, met))
        return RepLocal(after, local.head_steps, local.both)

    def finish(model, client_, local, own, key):
        del client_, own, key
        params = local.shared.params
        change = base.subtract(params, model.params)
        change = masked(change, jnp.bool_(False), jnp.bool_(False))
        return lanes.Outcome(change, memory(params), base.record(local.shared.met))

    program = lanes.Program(start, step, finish)
    return shared._replace(
        program=program, memory=memory, personal_memory=True, personal=with_heads
    )


class ApflMemory(NamedTuple):
    """What a client keeps: v, and the share a of it, float32[]."""

    params: PyTree
    share: jax.Array


class ApflLocal(NamedTuple):
    """A client at work: w, v, a, and the loss so far."""

    params: PyTree
    own: PyTree
    share: jax.Array
    met: base.Met


def apfl(
    loss: base.Loss,
    server: optax.GradientTransformation,
    *,
    learning_rate: float,
    share: float = 0.5,
    share_learning_rate: float = 0.0,
    schedule: averaging.Schedule = averaging.constant,
) -> base.FederatedAlgorithm:
    """APFL: a mixture of a personal and the shared model.

    Args:
      loss: of one example.
      server: V.
      learning_rate: eta.
      share: a of every client at first, in [0, 1].
      share_learning_rate: of a, which moves by -rate <v - w, grad f(m)>; 0 fixes it.
      schedule: round -> factor of eta.
    """
    _validate.positive("federated.client_learning_rate", learning_rate)
    _validate.non_negative("federated.share_learning_rate", share_learning_rate)
    if not 0 <= share <= 1:
        cure = "0 shares all, 1 nothing"
        _validate.fail("federated.share", share, "must be in [0, 1]", cure)
    gradient = base.objective(loss)

    def mixture(params, kept):
        return jax.tree.map(
            lambda v, w: (kept.share * v + (1 - kept.share) * w).astype(w.dtype),
            kept.params,
            params,
        )

    def mixed(local):
        return mixture(local.params, ApflMemory(local.own, local.share))

    def start(model, client, memory):
        del client
        own, part = memory
        return ApflLocal(model.params, own, part, base.nothing_met())

    def step(model, local, batch, mask, key, number):
        del number
        eta = learning_rate * model.rate
        grads, met = gradient(local.params, batch, mask, key)
        params = base.add_scaled(local.params, -eta, grads)
        local = local._replace(params=params, met=base.add(local.met, met))
        grads, _ = gradient(mixed(local), batch, mask, jax.random.clone(key))
        own = base.add_scaled(local.own, -eta * local.share, grads)
        apart = base.subtract(local.own, local.params)
        slope = jnp.asarray(optax.tree.vdot(apart, grads), jnp.float32)
        part = jnp.clip(local.share - share_learning_rate * slope, 0, 1)
        return local._replace(own=own, share=part)

    def finish(model, client, local, memory, key):
        del client, memory, key
        change = base.subtract(local.params, model.params)
        kept = ApflMemory(local.own, local.share)
        return lanes.Outcome(change, kept, base.record(local.met))

    return averaging.fedavg(
        loss, optax.sgd(learning_rate), server, schedule=schedule
    )._replace(
        program=lanes.Program(start, step, finish),
        memory=lambda params: ApflMemory(params, jnp.float32(share)),
        personal_memory=True,
        personal=mixture,
    )


def _kept(params, memory):
    """The model that a client keeps, whole."""
    del params
    return memory
