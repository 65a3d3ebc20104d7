"""FedBuff: an asynchronous server that steps whenever M updates have come in.

    client:  starts from the model of the moment, returns y - x of that version
    server:  x <- x + V(sum_i s(tau_i) Delta_i / M) at every M arrivals
    s(tau) = 1 / sqrt(1 + tau),  tau = versions that passed since the client started

Who arrives when depends on clocks alone, so the whole schedule is computed first
(`schedule`), and each step of the server is one sweep of the lanes whose clients start
from different versions. The last versions are kept in a ring; updates older than the
ring are dropped. With delay 0 and M clients at a time it is FedAvg.

Dimension key: M updates of a step, V versions in the ring.

Example::

    flushes = buffered.schedule(
        duration, draw, concurrency=50, buffer=10, steps=200, versions=20
    )
    algorithm = buffered.fedbuff(loss, optax.sgd(0.1), optax.sgd(1.0), versions=20)
    for flush in flushes:
        ...                        # rounds.Chosen(flush.clients, given=flush.staleness)

References: Nguyen et al. 2022, https://arxiv.org/abs/2106.06639.
"""

import heapq
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from trustml import _validate
from trustml.federated import lanes
from trustml.federated.algorithms import averaging, base

PyTree = Any


class Flush(NamedTuple):
    """One step of the server.

    Attributes:
      clients: int64[M], in the order of their arrival.
      staleness: int32[M], versions that passed while each worked.
      seconds: when the last of them arrived, on the virtual clock.
      dropped: updates that were too old and are not among the M.
    """

    clients: np.ndarray
    staleness: np.ndarray
    seconds: float
    dropped: int


class State(NamedTuple):
    """Of the server.

    Attributes:
      params: x.
      ring: the last V versions, leaves [V, ...]; version v lies at v mod V.
      optimizer: of V.
      round: int32[], the version of x.
    """

    params: PyTree
    ring: PyTree
    optimizer: PyTree
    round: jax.Array


class Model(NamedTuple):
    """What clients get: all versions, the newest one's number, their rate."""

    ring: PyTree
    version: jax.Array
    rate: jax.Array


def schedule(
    duration: Callable[[int, int], float],
    draw: Callable[[int], int],
    *,
    concurrency: int,
    buffer: int,
    steps: int,
    versions: int,
) -> Iterator[Flush]:
    """Arrivals on a virtual clock, flush by flush.

    Args:
      duration: (client, visit) -> seconds that this visit takes, > 0.
      draw: number of the visit, from 0 -> the client that begins it.
      concurrency: clients at work at any time.
      buffer: M.
      steps: of the server.
      versions: V; updates of tau >= V are dropped.
    """
    _validate.integer_at_least("federated.concurrency", concurrency, 1)
    _validate.integer_at_least("federated.buffer", buffer, 1)
    _validate.integer_at_least("federated.versions", versions, 1)
    working: list[tuple[float, int, int, int]] = []
    begun = version = dropped = 0
    clients: list[int] = []
    staleness: list[int] = []

    def begin(now: float) -> None:
        nonlocal begun
        client = draw(begun)
        done = now + _validate.positive("duration", duration(client, begun))
        heapq.heappush(working, (done, begun, client, version))
        begun += 1

    for _ in range(concurrency):
        begin(0.0)
    while version < steps:
        now, arrived = working[0][0], 0
        # Who arrives at one instant is heard before anybody begins anew.
        while working and working[0][0] == now and version < steps:
            _, _, client, started = heapq.heappop(working)
            arrived += 1
            if version - started >= versions:
                dropped += 1
                continue
            clients.append(client)
            staleness.append(version - started)
            if len(clients) == buffer:
                yield Flush(
                    np.array(clients), np.array(staleness, np.int32), now, dropped
                )
                version, dropped = version + 1, 0
                clients.clear()
                staleness.clear()
        for _ in range(arrived):
            begin(now)


def fedbuff(
    loss: base.Loss,
    client: optax.GradientTransformation,
    server: optax.GradientTransformation,
    *,
    versions: int,
    discount: Callable[[jax.Array], jax.Array] | None = None,
    schedule: averaging.Schedule = averaging.constant,
) -> base.FederatedAlgorithm:
    """FedBuff; a client's `given` is its staleness, int32[], from 0 to V - 1.

    A message of another staleness is none: it is counted as not finite, and dropped.

    Args:
      loss: of one example.
      client: U.
      server: V.
      versions: V, length of the ring.
      discount: s(tau); 1 / sqrt(1 + tau) where None.
      schedule: round -> factor of the client's updates.
    """
    _validate.integer_at_least("federated.versions", versions, 1)
    trained = averaging.training(loss, client)
    weigh = discount or (lambda tau: jax.lax.rsqrt(1 + tau))

    def of_client(model, given):
        at = (model.version - given) % versions
        params = jax.tree.map(lambda x: x[at], model.ring)
        return averaging.Model(params, model.rate)

    class Local(NamedTuple):
        trained: averaging.Local
        staleness: jax.Array

    def start(model, client_, memory):
        own = of_client(model, client_.given)
        return Local(trained.start(own, client_, memory), client_.given)

    def step(model, local, batch, mask, key, number):
        # The model itself is read for its rate only: there is no proximal term.
        own = averaging.Model((), model.rate)
        moved = trained.step(own, local.trained, batch, mask, key, number)
        return Local(moved, local.staleness)

    def finish(model, client_, local, memory, key):
        own = of_client(model, client_.given)
        outcome = trained.finish(own, client_, local.trained, memory, key)
        # A version that is not in the ring: no number, which rounds count and drop.
        known = (client_.given >= 0) & (client_.given < versions)
        weight = weigh(client_.given.astype(jnp.float32))
        weight = jnp.where(known, weight, jnp.nan)
        return outcome._replace(message=base.scaled(weight, outcome.message))

    def server_step(state, gathered):
        params, optimizer = averaging.server_step(
            server, state.params, state.optimizer, gathered.message
        )
        at = (state.round + 1) % versions
        ring = jax.tree.map(lambda r, x: r.at[at].set(x), state.ring, params)
        return State(params, ring, optimizer, state.round + 1)

    def init(params):
        ring = jax.tree.map(lambda x: jnp.stack([x] * versions), params)
        return State(params, ring, server.init(params), jnp.int32(0))

    def model(state):
        return Model(state.ring, state.round, schedule(state.round))

    program = lanes.Program(start, step, finish)
    return base.FederatedAlgorithm(init, model, program, server_step, given=np.int32(0))
