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

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trustml import _validate, parallel, rng
from trustml.federated import lanes as lanes_lib
from trustml.federated import sweep
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
      exact: sums in int32; refused where noise is added to such a sum.
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
        nothing.
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
      memory: pytree of arrays [K, ...] of the host, what clients remember; () if
        nothing. Written in place, at the very end of a round.
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
      records: () -> `Record` of arrays [M]; waits for the round.
      steps: int64[M].
      utilization: useful share of the executed steps of lanes.
      clamped: int32[], coordinates that exact mode had to clamp.
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
        noise while the algorithm needs exact figures of clients, or sums are exact;
        when run, for weights that are negative, not finite, or beyond what the noise
        is made for.
    """
    _check_reveals(algorithm, aggregator)
    _check_exact(aggregator, settings)
    options: Any = settings._asdict()
    stacked = aggregator.collect == "stack"
    train = sweep.make(_through(algorithm, aggregator, stacked), **options)
    first = None
    if algorithm.first is not None:
        once: Any = {**options, "epochs": 1, "steps": 0, "remainder": "mask"}
        first = sweep.make(algorithm.first, **once)

    def finish(server, agg_state, totals, scale, numbers, weights, arrived, rest):
        records, asked, total, key = rest
        cohort = link.cohort(weights, arrived, expected_weight=total, selected=asked)
        if stacked:
            message = records.message
        else:
            message = jax.tree.map(lambda x: x * scale.astype(x.dtype), totals.message)
        update, agg_state, info = aggregator.server(agg_state, message, cohort, key)
        gathered = base.Gathered(
            message=update,
            clients=cohort.count.astype(jnp.float32),
            population=jnp.float32(population),
            numbers=numbers,
            records=records.record.algorithm,
        )
        return algorithm.server(server, gathered), agg_state, info

    devices = settings.devices or parallel.devices()

    def home(tree):
        leaves = jax.tree.leaves(tree)
        if all(_bound(x, devices) for x in leaves):  # a transfer costs, even to itself
            return tree
        if len(devices) > 1:
            return parallel.replicate(tree, devices)
        return jax.device_put(tree, devices[0])

    finish_jit = settings.jit(finish)
    prepare_jit = settings.jit(
        lambda server, totals, scale, count, numbers, records: algorithm.prepare(
            server,
            base.Gathered(
                base.scaled(scale, totals.message),
                count,
                jnp.float32(population),
                numbers,
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
        server, agg_state, key = home((state.server, state.aggregator, key))
        memory = state.memory
        sizes = np.asarray(chosen.sizes)
        weights = np.asarray(chosen.weights, np.float64)
        _check_cohort(chosen, population, aggregator.release is not None)
        arrived = chosen.arrived
        arrived = np.ones(len(sizes), bool) if arrived is None else arrived
        used = np.where(arrived, weights, 0.0)
        total = _divisor(aggregator, chosen, used)
        scale = float(used.max(initial=0.0)) or 1.0
        model, (first_key, train_key, server_key) = announce_jit(server, key)
        given = chosen.given
        if first is not None:
            swept = _sweep(first, model, first_key, chosen, used / scale, (), (), place)
            met = swept.steps > 0
            heard = (used / scale)[met].sum()
            server = prepare_jit(
                server,
                swept.totals,
                np.float32(1 / heard if heard else 0.0),
                np.float32(np.count_nonzero(arrived & met)),
                _at(swept, chosen.numbers, population),
                swept.records,
            )
            given = sweep.of_clients(swept, swept.records)
            model, _ = announce_jit(server, key)
        own = jax.tree.map(lambda x: x[chosen.numbers], memory)
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
        server, agg_state, aggregate = finish_jit(
            server,
            agg_state,
            swept.totals,
            np.float32(scale),
            _at(swept, chosen.numbers, population),
            _at(swept, used.astype(np.float32), 0),
            _at(swept, there, False),
            (
                swept.records,
                _at(swept, busy, False),
                np.float32(total),
                server_key,
            ),
        )
        if jax.tree.leaves(memory):
            fresh = sweep.of_clients(swept, swept.memory)
            jax.tree.map(_write(chosen.numbers), memory, fresh)
        info = Info(
            lambda: sweep.of_clients(swept, swept.records.record),
            swept.steps,
            swept.utilization,
            swept.totals.clamped,
            aggregate,
        )
        return State(server, agg_state, memory), info

    return Rounds(init, run, lambda sizes: train.rows(sizes).steps)


def _check_cohort(chosen, population, private) -> None:
    """Raises if the cohort is not one of M clients, each once where there is noise."""
    numbers, m = np.asarray(chosen.numbers), len(chosen.numbers)
    for name in ("sizes", "weights", "arrived"):
        value = getattr(chosen, name)
        if value is not None and np.shape(value) != (m,):
            bound = f"must be one for each of the {m} clients"
            _validate.fail(name, f"array of shape {np.shape(value)}", bound)
    wrong = numbers[(numbers < 0) | (numbers >= population)]
    if wrong.size:
        bound = f"is none of the {population} clients"
        _validate.fail("numbers", int(wrong[0]), bound)
    if private and len(np.unique(numbers)) < m:
        bound = "holds a client twice, and the noise is for one message of each"
        _validate.fail("numbers", f"a cohort of {m}", bound, "take everybody once")


def _check_reveals(algorithm, aggregator) -> None:
    if aggregator.release is not None and algorithm.reveals:
        raise ValueError(
            f"algorithm needs clients' exact {algorithm.reveals}, which a chain with "
            "noise does not give; use averaging.fedavg, or a chain without noise."
        )


def _check_exact(aggregator, settings) -> None:
    """Raises where integers would be summed after clipping, and made noisy.

    A message of P coordinates gains gamma sqrt(P) / 2 of L2 norm by rounding. Its step,
    and where it is clamped, also follow the largest weight and the size of the cohort,
    so one client moves how all others are rounded. Stacks are not summed in lanes.
    """
    if settings.exact and aggregator.release is not None:
        if aggregator.collect == "sum":
            bound = (
                f"rounds messages to multiples of gamma={settings.gamma:g} after they "
                "are clipped, which the declared sensitivity does not cover"
            )
            cure = "set it to False, or sum with secure.modular_sum"
            _validate.fail("federated.exact", True, bound, cure)


def _divisor(aggregator, chosen, used) -> float:
    """W of a round, if the chain was made for it and for these weights.

    Sizes, and with them weights, may change after a chain was made; the noise is for
    the largest weight that its rule knew.
    """
    weights = np.asarray(chosen.weights, np.float64)
    rule, total = aggregator.rule, chosen.total
    wrong = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if wrong.size:
        bound = f"of rule {rule.name!r} must be finite and >= 0"
        cure = "0 leaves a client out"
        _validate.fail(f"weights[{wrong[0]}]", float(weights[wrong[0]]), bound, cure)
    most = None if aggregator.release is None else rule.s_max
    largest = float(weights.max(initial=0.0))
    if most is not None and largest > most * (1 + 1e-9):
        bound = f"must be at most {most:g}, which the noise is made for"
        cure = "make the chain with the rule whose weights are largest"
        _validate.fail("weights", largest, bound, cure)
    if rule.total is None:
        if not largest and np.any(np.asarray(chosen.sizes) > 0):
            bound = f"of rule {rule.name!r} are zero for all {len(weights)} clients"
            _validate.fail("weights", 0.0, bound, "give one of them a weight")
        return float(used.sum()) or 1.0
    if total is None:
        cure = "give the total of the rule of this round"
        bound = f"says nothing of what divides by {rule.name}"
        _validate.fail("total", total, bound, cure)
    return _validate.positive("total", total, "select clients that count")


class _Kept(NamedTuple):
    """A record, and the message where the aggregator wants all of them."""

    record: Record
    message: PyTree


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
        record = _Kept(Record(outcome.record, record), message if stacked else ())
        summed = () if stacked else message
        return lanes_lib.Outcome(summed, (outcome.memory, kept), record)

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


def _write(numbers):
    def write(rows, fresh):
        rows[numbers] = fresh

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
