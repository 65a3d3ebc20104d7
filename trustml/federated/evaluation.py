"""How a model does on each client's examples, and what that says of all of them.

    value_k = mean over the examples of client k of a metric,        in the lanes

Means of means hide whom a model serves badly, so a summary has the mean over examples,
the mean over clients, quantiles and the worst tenth of clients, clients by activity
(how many examples they hold), those that took part in training against those that are
new, and the server's model against the clients' own. Clients with few examples have
coarse values: quantiles are of clients with `n_min` examples or more. Where no client
counts there is no metric, which is not a metric of 0. A client whose value is NaN or
infinite is in no figure, which would else be as lost as its value: such are counted.

Values are NOT private.

Dimension key: K clients.

Example::

    evaluate = evaluation.make(task.predict, task.metrics, jit=jax.jit)
    found = evaluate(state.server.params, feed.place, sizes)
    evaluation.summary(found.values['accuracy'], found.examples, taken=taken)
    own = evaluation.make(task.predict, task.metrics, jit=jax.jit,
                          own=algorithm.personal)
    own(state.server.params, feed.place, sizes, memory=state.memory[0])
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from trustml import _validate
from trustml.federated import feed, lanes, sweep

PyTree = Any
Own = Callable[[PyTree, PyTree], PyTree]

WORST = 0.1  # share of the clients that are called the worst


class Evaluated(NamedTuple):
    """Of each client.

    Attributes:
      values: metric -> its mean over the client's examples, float64[K]; NaN where it
        has none.
      examples: int64[K].
    """

    values: dict[str, np.ndarray]
    examples: np.ndarray


class Decile(NamedTuple):
    """Clients of like activity.

    Attributes:
      clients: how many.
      smallest: examples of the least active of them.
      largest: examples of the most active.
      mean: over these clients.
    """

    clients: int
    smallest: int
    largest: int
    mean: float


class Summary(NamedTuple):
    """One metric over the clients that count: those with `n_min` examples or more.

    Clients whose value is not finite are left out of all means, quantiles and counts
    alike, but for `nonfinite`, which tells of how many the figures are silent.

    Attributes:
      clients: that count.
      n_min: examples that a client needs to count.
      example_mean: over all examples, those of clients with fewer among them.
      client_mean: over clients.
      p10: quantile over clients.
      median: likewise.
      p90: likewise.
      worst_decile: mean of the worst tenth of the clients, of one at least.
      deciles: by activity, the least active clients first.
      seen: mean over clients that took part in training; None without one.
      new: mean over those that did not; None without one.
      nonfinite: clients with an example or more whose value is NaN or infinite.
    """

    clients: int
    n_min: int
    example_mean: float
    client_mean: float
    p10: float
    median: float
    p90: float
    worst_decile: float
    deciles: tuple[Decile, ...]
    seen: float | None
    new: float | None
    nonfinite: int = 0


class _Local(NamedTuple):
    params: PyTree
    sums: PyTree
    count: jax.Array


def program(
    predict: Callable[[PyTree, Any], Any],
    metrics: Mapping[str, Callable[[Any, Any], jax.Array]],
    *,
    own: Own | None = None,
) -> lanes.Program:
    """The program of a client that looks and does not learn.

    Its record is name -> mean over the examples, float32[].

    Args:
      predict: of a task: (params, example) -> prediction, in evaluation mode.
      metrics: of a task: name -> (prediction, example) -> float32[].
      own: (params, memory) -> the model of one client, as
        `FederatedAlgorithm.personal`; None: that of the server.
    """

    def start(params, client, memory):
        del client
        model = params if own is None else own(params, memory)
        zeros = {name: jnp.float32(0) for name in metrics}
        return _Local(model, zeros, jnp.float32(0))

    def step(params, local, batch, mask, key, number):
        del params, key, number

        def one(example):
            example = feed.widen(example)
            prediction = predict(local.params, example)
            return {name: fn(prediction, example) for name, fn in metrics.items()}

        found = jax.vmap(one)(batch)
        sums = {
            name: local.sums[name] + jnp.where(mask, x, 0).sum().astype(jnp.float32)
            for name, x in found.items()
        }
        return local._replace(
            sums=sums, count=local.count + mask.sum().astype(jnp.float32)
        )

    def finish(params, client, local, memory, key):
        del params, client, key
        many = jnp.maximum(local.count, 1)
        means = {name: total / many for name, total in local.sums.items()}
        return lanes.Outcome((), memory, means)

    return lanes.Program(start, step, finish)


def make(
    predict: Callable[[PyTree, Any], Any],
    metrics: Mapping[str, Callable[[Any, Any], jax.Array]],
    *,
    jit: Callable[..., Any],
    own: Own | None = None,
    lanes: int = 8,
    batch_size: int = 64,
    capacity: int = 256,
    devices: list[jax.Device] | None = None,
) -> Callable[..., Evaluated]:
    """federated_evaluate: a model on the examples of each client.

    Args:
      predict: see `program`.
      metrics: see `program`.
      jit: `jax.jit`.
      own: see `program`.
      lanes: clients looked at together.
      batch_size: examples of each.
      capacity: clients of a sweep; as many sweeps are made as it takes.
      devices: all where None.

    Returns:
      fn(params, place, sizes, *, starts=None, memory=()) -> Evaluated. place: rows ->
        (data, index), of a `feed.Feed`; sizes: int[K]; starts: int[K], where each
        client's rows begin, one after another where None; memory: pytree of arrays
        [K, ...], what clients remember; needed with `own`. It raises a ValueError
        for a memory that is not of the K clients.
    """
    made = sweep.make(
        program(predict, metrics, own=own),
        jit=jit,
        lanes=lanes,
        batch_size=batch_size,
        capacity=capacity,
        devices=devices,
    )

    def evaluate(params, place, sizes, *, starts=None, memory=()):
        sizes = np.asarray(sizes).astype(np.int64)
        _check_memory(memory, len(sizes), needed=own is not None)
        if starts is None:
            starts = np.cumsum(sizes) - sizes
        values = {name: np.full(len(sizes), np.nan) for name in metrics}
        busy = np.flatnonzero(sizes)
        for begin in range(0, len(busy), capacity):
            some = busy[begin : begin + capacity]
            kept = jax.tree.map(lambda x, some=some: x[some], memory)
            cohort = sweep.Cohort(some, sizes[some], np.zeros(len(some)), (), kept)
            skipped = np.cumsum(sizes[some]) - sizes[some]
            rows = np.repeat(starts[some] - skipped, sizes[some])
            data, index = place(rows + np.arange(sizes[some].sum()))
            swept = made.run(params, jax.random.key(0), cohort, data, index)
            for name, found in sweep.of_clients(swept, swept.records).items():
                values[name][some] = found
        return Evaluated(values, sizes)

    return evaluate


def summary(
    values: Float[np.ndarray, " K"],
    examples: Int[np.ndarray, " K"],
    *,
    n_min: int = 1,
    taken: Int[np.ndarray, " K"] | None = None,
    activity: Int[np.ndarray, " K"] | None = None,
    higher_is_better: bool = True,
) -> Summary | None:
    """What values of clients say; None where no client counts.

    Args:
      values: of each client, NaN where it has no example. One that is not finite though
        there are examples is in no figure but `Summary.nonfinite`.
      examples: that these are means over.
      n_min: see `Summary`.
      taken: rounds that each client took part in; None: not known.
      activity: examples that a client holds, for deciles; `examples` where None.
      higher_is_better: whether the worst clients are those of the smallest values.
    """
    n_min = _validate.integer_at_least("n_min", n_min, 1, "1 counts everybody")
    finite = np.isfinite(values)
    there = finite & (examples >= n_min)
    if not there.any():
        return None
    some = values[there]
    held = finite & (examples > 0)
    low, middle, high = np.quantile(some, (0.1, 0.5, 0.9))
    ranked = np.sort(some) if higher_is_better else -np.sort(-some)
    active = examples if activity is None else activity
    return Summary(
        clients=len(some),
        n_min=n_min,
        example_mean=float(np.average(values[held], weights=examples[held])),
        client_mean=float(some.mean()),
        p10=float(low),
        median=float(middle),
        p90=float(high),
        worst_decile=float(ranked[: max(1, int(WORST * len(some)))].mean()),
        deciles=tuple(
            Decile(
                len(part),
                int(active[part].min()),
                int(active[part].max()),
                float(values[part].mean()),
            )
            for part in by_activity(active, there)
        ),
        seen=None if taken is None else _mean(values[there & (taken > 0)]),
        new=None if taken is None else _mean(values[there & (taken == 0)]),
        nonfinite=int(np.count_nonzero(~finite & (examples > 0))),
    )


def by_activity(
    activity: Int[np.ndarray, " K"], there: Bool[np.ndarray, " K"], parts: int = 10
) -> list[np.ndarray]:
    """Clients that are there, in order of activity, in so many equal parts or fewer."""
    clients = np.flatnonzero(there)
    order = clients[np.argsort(activity[clients], kind="stable")]
    return np.array_split(order, min(parts, len(order))) if len(order) else []


def _check_memory(memory: PyTree, clients: int, *, needed: bool) -> None:
    cure = "give what clients remember after rounds, state.memory[0]"
    leaves = jax.tree_util.tree_leaves_with_path(memory)
    if needed and not leaves:
        bound = f"must be a pytree of arrays [{clients}, ...] where models are own"
        _validate.fail("memory", memory, bound, cure)
    for path, leaf in leaves:
        shape = np.shape(leaf)
        if shape[:1] != (clients,):
            field = f"memory{jax.tree_util.keystr(path)}"
            bound = f"must be an array [{clients}, ...], a row for each client"
            _validate.fail(field, f"array {list(shape)}", bound, cure)


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None
