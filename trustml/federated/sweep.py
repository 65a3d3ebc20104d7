"""One sweep over a cohort: every client runs a program once, in the lanes.

    sizes -> batches -> schedule -> windows -> lanes -> sum, memories, records

The host cuts and schedules in NumPy while the devices still work on the last round.
Three programs are compiled, once; cohorts of any number and any sizes use the same
ones, as long as `capacity` holds their clients.

Dimension key: `M` clients of a cohort, `C` capacity; others as in `lanes`.

Example::

    sweep_ = sweep.make(program, jit=jax.jit, lanes=16, batch_size=20, capacity=64)
    cohort = sweep.Cohort(numbers, sizes, weights)
    swept = sweep_.run(params, key, cohort, data, index)
    mean = jax.tree.map(lambda x: x / weights.sum(), swept.totals.message)
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from trustml import _validate, parallel
from trustml.federated import lanes as lanes_lib
from trustml.federated import schedule

PyTree = Any
Key = Any

_AHEAD = 4  # windows sent before the first step


class Cohort(NamedTuple):
    """The clients of one sweep.

    Attributes:
      numbers: int[M], which clients.
      sizes: int[M], examples that each uses.
      weights: float[M], of their messages; 0 <= w <= 1 in exact mode.
      given: pytree of arrays [M, ...], what else each is told.
      memory: pytree of arrays [M, ...], what each remembers.
    """

    numbers: np.ndarray
    sizes: np.ndarray
    weights: np.ndarray
    given: PyTree = ()
    memory: PyTree = ()


class Swept(NamedTuple):
    """What a sweep leaves, on the devices until it is read.

    Attributes:
      totals: `lanes.Totals`.
      memory: pytree of arrays [D * C, ...], by place.
      records: likewise; zeros for clients without steps.
      at: int64[M], the place of each client.
      steps: int64[M].
      utilization: useful share of the executed steps of lanes.
    """

    totals: lanes_lib.Totals
    memory: PyTree
    records: PyTree
    at: np.ndarray
    steps: np.ndarray
    utilization: float


class Sweep(NamedTuple):
    """A compiled program and how it is fed.

    Attributes:
      run: (model, key, cohort, data, index) -> `Swept`. data: pytree of arrays [N, ...]
        on the devices; index: int[sum of rows], rows of the cohort's clients one after
        another, an epoch after the other, as `rows` counts them.
      rows: sizes int[M] -> `schedule.Batches`.
    """

    run: Callable[..., Swept]
    rows: Callable[[np.ndarray], schedule.Batches]


def make(
    program: lanes_lib.Program,
    *,
    jit: Callable[..., Any],
    lanes: int,
    batch_size: int,
    capacity: int,
    epochs: int = 1,
    steps: int = 0,
    remainder: str = "mask",
    group: int = 0,
    narrowing: bool = True,
    window: int = 64,
    exact: bool = False,
    gamma: float = lanes_lib.GAMMA,
    devices: list[jax.Device] | None = None,
    backend: str = "shard_map",
) -> Sweep:
    """A sweep of `program`; see `lanes.make` and `schedule.batches` for the arguments.

    Args:
      program: what a client does.
      jit: `jax.jit`, or what else makes programs of pure functions.
      lanes: L of each device; not more than the clients of a cohort can fill.
      batch_size: B.
      capacity: C, the most clients of a sweep.
      epochs: passes over the examples of a client.
      steps: where positive, steps of every client, in place of `epochs`.
      remainder: of `schedule.REMAINDERS`.
      group: g.
      narrowing: of `schedule.ladder`.
      window: S.
      exact: sums in int32.
      gamma: step of exact mode.
      devices: D devices; all where None.
      backend: of `parallel.map_sum`.
    """
    _validate.integer_at_least("federated.capacity", capacity, 1)
    _validate.integer_at_least("federated.window", window, 1, "64 is usual")
    _validate.integer_at_least("federated.epochs", epochs, 1, "1 is usual")
    _validate.integer_at_least("federated.steps", steps, 0, "0 makes whole epochs")
    _validate.integer_at_least("federated.batch_size", batch_size, 1, "10 is usual")
    found = parallel.devices() if devices is None else devices
    pure = lanes_lib.make(
        program,
        lanes=lanes,
        group=group,
        narrowing=narrowing,
        exact=exact,
        gamma=gamma,
        devices=found,
        backend=backend,
    )
    begin, end = jit(pure.begin), jit(pure.end)
    step = jit(pure.run, donate_argnums=0)
    rows = functools.partial(
        schedule.batches,
        batch_size=batch_size,
        epochs=epochs,
        steps=steps,
        remainder=remainder,
    )

    def run(model, key, cohort, data, index) -> Swept:
        count = len(cohort.numbers)
        if count > capacity:
            cure = "raise it, or select fewer clients"
            bound = f"must hold the {count} clients of the cohort"
            _validate.fail("federated.capacity", capacity, bound, cure)
        cut = rows(np.asarray(cohort.sizes))
        made = schedule.make(
            cut.steps,
            lanes=lanes,
            devices=len(found),
            group=max(group, 1),
            narrowing=narrowing,
        )
        placed = functools.partial(_placed, made, capacity)
        clients = lanes_lib.Client(
            number=placed(np.asarray(cohort.numbers, np.int32)),
            weight=placed(np.asarray(cohort.weights, _float())),
            steps=placed(cut.steps.astype(np.int32)),
            given=jax.tree.map(placed, cohort.given),
        )
        parts = list(
            schedule.windows(
                made,
                cut,
                index,
                batch_size=batch_size,
                length=window,
                capacity=capacity,
            )
        )
        # One transfer of all that a round needs, where it is short.
        clients, memory, first, ahead = _put(
            (
                clients,
                jax.tree.map(placed, cohort.memory),
                schedule.first_places(made, capacity),
                [part for part, _ in parts[:_AHEAD]],
            ),
            found,
        )
        shared = lanes_lib.Shared(model, key, lanes_lib.int_limit(count))
        if len(found) > 1:
            shared = parallel.replicate(shared, found)
        carry = _bound(begin(shared, clients, memory, first), found)
        for number, (part, ends) in enumerate(parts):
            part = ahead[number] if number < _AHEAD else _put(part, found)
            carry = step(carry, shared, data, clients, part, ends)
        totals, memory, records = end(carry)

        at = made.device * capacity + made.place
        return Swept(totals, memory, records, at, cut.steps, made.utilization)

    return Sweep(run, rows)


def of_clients(swept: Swept, tree: PyTree) -> PyTree:
    """Rows of `swept.memory` or `swept.records` as arrays [M, ...] of the host."""
    return jax.tree.map(lambda x: np.asarray(x)[swept.at], tree)


def by_place(swept: Swept, values: np.ndarray, places: int, empty: Any) -> np.ndarray:
    """The other way: an array [M] at the clients' places, `empty` elsewhere."""
    out = np.full(places, empty, np.asarray(values).dtype)
    out[swept.at] = values
    return out


def _put(tree, devices):
    """One row for each device; a call with one takes arrays of the host sooner."""
    return parallel.shard(tree, devices) if len(devices) > 1 else tree


def _bound(carry, devices):
    """What steps leave is bound to its device; the same before the first of them.

    Otherwise they would be compiled a second time.
    """
    if all(x.committed for x in jax.tree.leaves(carry)):
        return carry
    return jax.device_put(carry, devices[0])


def _float():
    return jax.dtypes.canonicalize_dtype(np.float64)


def _placed(made, capacity, values):
    """Rows [M, ...] at their places [D, C, ...]; zeros elsewhere."""
    out = np.zeros((made.devices, capacity, *values.shape[1:]), values.dtype)
    out[made.device, made.place] = values
    return out
