"""Rounds: a cohort trains, its messages are aggregated, the server takes a step.

    (first sweep at the server's model -> prepare)
    sweep of the program, each message through the client's half of the aggregator
    sum -> the aggregator's half at the server -> server step

An algorithm says what clients do and what the server makes of a mean message; an
aggregator what becomes of messages on the way. Neither knows of lanes or devices.

Dimension key: `K` clients, `M` clients of a cohort, `C` places for them (over all
devices).

Example::

    rounds_ = rounds.make(algorithm, aggregator, population=K, settings=settings)
    state = rounds_.init(params, noise_root)
    for number in range(200):
        key = rounds.round_key(root, number)
        chosen = rounds.Chosen(numbers, sizes, weights)
        state, info = rounds_.run(state, key, chosen, place)
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trustml import parallel, rng
from trustml.federated import lanes as lanes_lib
from trustml.federated import refusals, sweep
from trustml.federated.aggregation import chain, link
from trustml.federated.algorithms import base

PyTree = Any
Key = Any
Place = Callable[[np.ndarray], tuple[PyTree, np.ndarray]]

_FIRST, _TRAIN, _SERVER = 0, 1, 2  # domains of a round's key
_ALGORITHM, _AGGREGATOR = 0, 1  # of a client's


class Settings(NamedTuple):
    """How cohorts run; see `sweep.make` and `lanes.make`.

    Attributes:
      jit: `jax.jit`.
      lanes: L of each device.
      batch_size: B.
      capacity: C of each device, the most clients of a cohort.
      epochs: of a client, in a round.
      steps: where positive, of every client, in place of epochs.
      remainder: of `schedule.REMAINDERS`.
      group: g.
      narrowing: whether lanes fall along the ladder as they end; each of its widths is
        compiled.
      window: S.
      exact: sums in int32; refused where noise is added to such a sum, where a part of
        the message has no bound, and where a rule follows the order of its rows.
      gamma: their step.
      devices: all where None.
      backend: of `parallel.map_sum`.
    """

    jit: Callable[..., Any]
    lanes: int
    batch_size: int
    capacity: int
    epochs: int = 1
    steps: int = 0
    remainder: str = "mask"
    group: int = 0
    narrowing: bool = True
    window: int = 64
    exact: bool = False
    gamma: float = lanes_lib.GAMMA
    devices: list[jax.Device] | None = None
    backend: str = "shard_map"


class Chosen(NamedTuple):
    """The clients of a round.

    Attributes:
      numbers: int[M].
      sizes: int[M], examples that each uses.
      weights: float[M] >= 0, of their messages.
      total: W, what the sum of messages is divided by where that is a constant;
        `Weighting.total`.
      arrived: bool[M], whose message reaches the server; None: all. Others train for
        themselves; see `FederatedAlgorithm.personal_memory`.
      given: pytree of arrays [M, ...], what else each client is told, for algorithms
        without a first sweep, whose records are told otherwise.
    """

    numbers: np.ndarray
    sizes: np.ndarray
    weights: np.ndarray
    total: float | None = None
    arrived: np.ndarray | None = None
    given: PyTree = ()


class State(NamedTuple):
    """Between two rounds; all of it goes into a checkpoint.

    Attributes:
      server: of the algorithm; `server.params` is the model.
      aggregator: of the aggregator.
      memory: pair of pytrees of arrays [K, ...] of the host, what clients remember for
        the algorithm and for the aggregator; () if nothing. Written in place, at the
        very end of a round: what goes with a message only for clients that were heard,
        and for nobody where the round was aborted; what is personal for all that
        trained.
    """

    server: Any
    aggregator: PyTree
    memory: PyTree


class Record(NamedTuple):
    """Of one client: of the algorithm, and of the aggregator (`link.Record`)."""

    algorithm: PyTree
    aggregator: PyTree


class Info(NamedTuple):
    """What a round was like.

    Attributes:
      records: () -> `Record` of arrays [M]; waits for the round. A client is `finite`
        where its messages and figures were, in both sweeps.
      steps: int64[M].
      utilization: useful share of the executed steps of lanes.
      clamped: int32[], coordinates that exact mode had to clamp, over both sweeps; the
        round is wrong where there is one.
      aggregate: `link.Info`.
    """

    records: Callable[[], Record]
    steps: np.ndarray
    utilization: float
    clamped: jax.Array
    aggregate: PyTree


class Rounds(NamedTuple):
    """Functions of the host; made by `make`.

    Attributes:
      init: (params, root=None) -> State; root: `rng.Root` of the aggregator's noise.
      run: (State, key, Chosen, place) -> (State, Info). key: of the round. place:
        rows int[M] -> (data, index), where the rows of the clients lie, handed in as
        often as `rows` says.
      steps: sizes int[M] -> int64[M], of clients that use so many examples.
    """

    init: Callable[..., State]
    run: Callable[..., tuple[State, Info]]
    steps: Callable[[np.ndarray], np.ndarray]


def make(
    algorithm: base.FederatedAlgorithm,
    aggregator: chain.Aggregator,
    *,
    population: int,
    settings: Settings,
) -> Rounds:
    """Joins an algorithm and an aggregator.

    Args:
      algorithm: what clients and server do.
      aggregator: what becomes of messages.
      population: K.
      settings: how cohorts run.

    Raises:
      ValueError: when built, for settings out of bounds, and where the aggregator adds
        noise while the algorithm needs exact figures of clients, or sums are exact, or
        where exact sums are asked of what cannot give them; when run, for weights that
        are negative, not finite, or beyond what the noise is made for.
    """
    refusals.check_parts(
        algorithm,
        aggregator,
        exact=settings.exact,
        gamma=settings.gamma,
        population=population,
    )
    options: Any = settings._asdict()
    stacked = aggregator.collect == "stack"
    train = sweep.make(_through(algorithm, aggregator, stacked), **options)
    first = None
    if algorithm.first is not None:
        once: Any = {**options, "epochs": 1, "steps": 0, "remainder": "mask"}
        first = sweep.make(_sanitised(algorithm.first), **once)

    def finish(server, agg_state, totals, scale, numbers, weights, arrived, rest):
        records, asked, (total, heard), clamped, key = rest
        cohort = link.cohort(
            weights,
            arrived,
            expected_weight=total,
            selected=asked,
            weight_sum=heard,
            numbers=numbers,
        )
        if stacked:
            message = records.message
        else:
            message = jax.tree.map(lambda x: x * scale.astype(x.dtype), totals.message)
        update, agg_state, info = aggregator.server(agg_state, message, cohort, key)
        there = ~info.aborted  # or nobody was heard
        gathered = base.Gathered(
            message=update,
            clients=jnp.where(there, cohort.count, 0).astype(jnp.float32),
            population=jnp.float32(population),
            numbers=numbers,
            arrived=cohort.mask & there,
            records=records.record.algorithm,
        )
        clamped = clamped + totals.clamped
        return algorithm.server(server, gathered), agg_state, info, clamped

    devices = settings.devices or parallel.devices()

    def home(tree):
        # A transfer costs, even of what is there.
        if all(_bound(x, devices) for x in jax.tree.leaves(tree)):
            return tree
        if len(devices) > 1:
            return parallel.replicate(tree, devices)
        return jax.device_put(tree, devices[0])

    finish_jit = settings.jit(finish)
    prepare_jit = settings.jit(
        lambda server, totals, scale, numbers, arrived, records: algorithm.prepare(
            server,
            base.Gathered(
                base.scaled(scale, totals.message),
                arrived.sum(dtype=jnp.float32),
                jnp.float32(population),
                numbers,
                arrived,
                records,
            ),
        )
    )

    def announce(server, key):
        words = jax.random.key_data(key)  # folded in three times, never consumed
        keys = [
            jax.random.fold_in(jax.random.wrap_key_data(words), domain)
            for domain in (_FIRST, _TRAIN, _SERVER)
        ]
        return algorithm.model(server), keys

    announce_jit = settings.jit(announce)

    def init(params, root=None):
        server = algorithm.init(params)
        message = jax.eval_shape(_message_of(algorithm), server)
        like = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), message)
        agg_state = aggregator.init(like, root)
        one = (algorithm.memory(params), aggregator.memory(like))
        memory = jax.tree.map(
            lambda x: np.repeat(np.asarray(x)[None], population, 0), one
        )
        return State(server, agg_state, memory)

    def run(state, key, chosen, place):
        # What a round leaves is bound to its devices; the same before the first one,
        # or every program would be compiled a second time.
        server, agg_state = home((state.server, state.aggregator))
        if len(devices) > 1 or key.committed:
            key = home(key)
        memory = state.memory
        numbers, sizes = np.asarray(chosen.numbers), np.asarray(chosen.sizes)
        weights = np.asarray(chosen.weights, np.float64)
        private = aggregator.release is not None
        refusals.check_cohort(
            chosen,
            population=population,
            private=private,
            remembers=bool(jax.tree.leaves(memory)),
        )
        arrived = np.ones(len(sizes), bool)
        if chosen.arrived is not None:
            arrived = np.asarray(chosen.arrived, bool)
        used = np.where(arrived, weights, 0.0)
        total = refusals.divisor(aggregator, chosen, used)
        scale = float(used.max(initial=0.0)) or 1.0
        model, (first_key, train_key, server_key) = announce_jit(server, key)
        given, clamped, sound = chosen.given, np.int32(0), True
        if first is not None:
            swept = _sweep(first, model, first_key, chosen, used / scale, (), (), place)
            given, sound = sweep.of_clients(swept, swept.records)
            met = (swept.steps > 0) & sound
            heard = math.fsum((used / scale)[met])
            # In the order of their numbers: a layout must not show in what is made.
            rows = functools.partial(_in_order, numbers, settings.capacity)
            server = prepare_jit(
                server,
                swept.totals,
                np.float32(1 / heard if heard else 0.0),
                rows(numbers, population),
                rows(arrived & met, False),
                jax.tree.map(lambda x: rows(_rows_where(met, x), 0), given),
            )
            clamped = swept.totals.clamped
            model, _ = announce_jit(server, key)
        own = jax.tree.map(lambda x: x[numbers], memory)
        swept = _sweep(
            train,
            (model, agg_state),
            train_key,
            chosen,
            used / scale,
            given,
            own,
            place,
        )
        busy = swept.steps > 0  # others have nothing to send, and drop out of nothing
        there = arrived & busy
        server, agg_state, aggregate, clamped = finish_jit(
            server,
            agg_state,
            swept.totals,
            np.float32(scale),
            _at(swept, numbers, population),
            _at(swept, used.astype(np.float32), 0),
            _at(swept, there, False),
            (
                swept.records,
                _at(swept, busy, False),
                np.array([total, math.fsum(used[there])], np.float32),
                clamped,
                server_key,
            ),
        )
        if jax.tree.leaves(memory):
            fresh = sweep.of_clients(swept, swept.memory)
            sent = there & ~np.asarray(aggregate.aborted)
            trained = busy if algorithm.personal_memory else sent
            for kept, rows, new in zip((trained, sent), memory, fresh, strict=True):
                jax.tree.map(_write(numbers, kept), rows, new)
        info = Info(
            lambda: _records(swept, sound, busy),
            swept.steps,
            swept.utilization,
            clamped,
            aggregate,
        )
        return State(server, agg_state, memory), info

    return Rounds(init, run, lambda sizes: train.rows(sizes).steps)


class _Kept(NamedTuple):
    """A record, and the message where the aggregator wants all of them."""

    record: Record
    message: PyTree


class _Seen(NamedTuple):
    """A record of the first sweep, and whether it and the message were finite."""

    record: PyTree
    sound: jax.Array


def _sanitised(program):
    """The program of a first sweep, whose messages are zero where they are no number.

    What a client is told about itself stays as it is: what it makes of that is no
    number either, and is not sent.
    """

    def finish(*args):
        outcome = program.finish(*args)
        sound = _finite((outcome.message, outcome.record))
        message = base.where(
            sound, outcome.message, jax.tree.map(jnp.zeros_like, outcome.message)
        )
        return lanes_lib.Outcome(message, outcome.memory, _Seen(outcome.record, sound))

    return program._replace(finish=finish)


def _finite(tree) -> jax.Array:
    leaves = [jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]
    return jnp.stack([jnp.array(True), *leaves]).all()


def _rows_where(kept, values):
    """Rows [M, ...], zero where not `kept`; NaN included."""
    out = np.zeros_like(values)
    out[kept] = values[kept]
    return out


def _records(swept, sound, busy):
    """`Record` of clients, who are finite where they were in both sweeps, or idle."""
    record = sweep.of_clients(swept, swept.records.record)
    both = (record.aggregator.finite & sound) | ~busy
    return record._replace(aggregator=record.aggregator._replace(finite=both))


def _through(algorithm, aggregator, stacked) -> lanes_lib.Program:
    """The program whose messages have passed the client's half of the aggregator."""
    program = algorithm.program

    def start(model, client, memory):
        return program.start(model[0], client, memory[0])

    def step(model, *rest):
        return program.step(model[0], *rest)

    def finish(model, client, local, memory, key):
        model, agg_state = model
        own = jax.random.fold_in(key, _ALGORITHM)
        outcome = program.finish(model, client, local, memory[0], own)
        message, kept, record = aggregator.client(
            agg_state,
            outcome.message,
            memory[1],
            jax.random.fold_in(key, _AGGREGATOR),
        )
        own = outcome.memory
        if algorithm.personal_memory:  # a model that is no number is not kept
            sound = _finite(own)
            own = base.where(sound, own, memory[0])
            record = record._replace(finite=record.finite & sound)
        else:  # a message that is no number is not sent
            own = base.where(record.finite, own, memory[0])
        record = _Kept(Record(outcome.record, record), message if stacked else ())
        summed = () if stacked else message
        return lanes_lib.Outcome(summed, (own, kept), record)

    return lanes_lib.Program(start, step, finish)


def _message_of(algorithm):
    """Server state -> a message; for its shapes."""

    def message(server):
        model = algorithm.model(server)
        client = lanes_lib.Client(
            jnp.int32(0), jnp.float32(1), jnp.int32(1), _given(algorithm, model)
        )
        memory = algorithm.memory(server.params)
        local = algorithm.program.start(model, client, memory)
        key = jax.random.key(0)
        return algorithm.program.finish(model, client, local, memory, key).message

    return message


def _given(algorithm, model):
    if algorithm.first is None:
        return algorithm.given
    client = lanes_lib.Client(jnp.int32(0), jnp.float32(1), jnp.int32(1))
    local = algorithm.first.start(model, client, ())
    return algorithm.first.finish(model, client, local, (), jax.random.key(0)).record


def _sweep(made, model, key, chosen, weights, given, memory, place):
    sizes = np.asarray(chosen.sizes)
    data, index = place(made.rows(sizes).rows)
    cohort = sweep.Cohort(chosen.numbers, sizes, weights, given, memory)
    return made.run(model, key, cohort, data, index)


def _at(swept, values, empty):
    places = jax.tree.leaves(swept.records)[0].shape[0]
    return sweep.by_place(swept, np.asarray(values), places, empty)


def _bound(leaf, devices) -> bool:
    return (
        isinstance(leaf, jax.Array)
        and leaf.committed
        and leaf.is_fully_replicated
        and leaf.sharding.device_set == set(devices)
    )


def _in_order(numbers, capacity, values, empty):
    """Rows [M, ...] by ascending client, then `empty` up to the capacity."""
    values = np.asarray(values)
    out = np.full((capacity, *values.shape[1:]), empty, values.dtype)
    out[: len(values)] = values[np.argsort(numbers, kind="stable")]
    return out


def _write(numbers, kept):
    def write(rows, fresh):
        rows[numbers[kept]] = fresh[kept]

    return write


def capacity(cohort: float, clients: int, *, lanes: int = 1) -> int:
    """Places for the clients of a cohort, of whatever size it turns out.

    A Poisson cohort exceeds m + 6 sqrt(m) + 20 with probability below 1e-9; as a power
    of two, cohorts of about one size share their programs.

    Args:
      cohort: m, clients that are expected.
      clients: K; there are never more.
      lanes: L; there are never fewer places.
    """
    most = max(min(cohort + 6 * np.sqrt(cohort) + 20, clients), 1)
    return max(1 << int(np.ceil(np.log2(most))), lanes)


def round_key(root: rng.Root, number: int | jax.Array) -> Key:
    """The key of round `number`."""
    return rng.step_key(rng.stream(root, "clients"), number)
