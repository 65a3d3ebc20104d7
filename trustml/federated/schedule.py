"""Who trains where and when: ragged clients on the lanes of some devices.

A lane trains its queue of clients one after another, all lanes step together. Clients
go, longest first, to the lane with the least work (longest processing time first), and
lanes are sorted by their work and dealt over the devices. Lanes that are still busy are
then always the first of their device, and the number in use may fall along a ladder
L, L/2, ..., g without moving anything: what is executed is little more than what is
useful, whatever the sizes.

The work of one round is cut into windows of S steps, arrays of one shape for any
cohort. Nothing here depends on what a client holds; a client without steps is in no
lane.

Dimension key: `M` clients of a cohort, `D` devices, `L` lanes of a device, `W` widths
of the ladder, `C` places of a device for clients, `S` steps of a window, `B` rows of a
batch.

Example::

    made = schedule.make(steps, lanes=16)
    batches = schedule.batches(sizes, batch_size=20, epochs=1)
    for window, ends in schedule.windows(made, batches, rows, length=64, capacity=64):
        now = schedule.unpack(window)
"""

import heapq
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from trustml import _validate

REMAINDERS = ("mask", "drop", "fill")


class Schedule(NamedTuple):
    """Where and when each client of a cohort is trained.

    Attributes:
      steps: int64[M], of each client.
      device: int64[M].
      lane: int64[M], of its device.
      place: int64[M], number of the client among those of its device.
      start: int64[M], step at which it begins.
      total: steps until the last lane ends.
      widths: int64[total], lanes of each device that run at that step.
      ladder: int[W], the widths there are, falling from L.
      devices: D.
    """

    steps: np.ndarray
    device: np.ndarray
    lane: np.ndarray
    place: np.ndarray
    start: np.ndarray
    total: int
    widths: np.ndarray
    ladder: tuple[int, ...]
    devices: int

    @property
    def utilization(self) -> float:
        """Useful share of the executed steps of lanes; 1.0 where nothing runs."""
        executed = int(self.widths.sum()) * self.devices
        return float(self.steps.sum() / executed) if executed else 1.0


class Batches(NamedTuple):
    """The batches of each client, as ranges of its rows in the order of the round.

    Attributes:
      steps: int64[M].
      epoch: int64[sum of steps], where its epoch begins among all rows of the cohort.
      size: int64[sum of steps], rows of an epoch.
      offset: int64[sum of steps], where the batch begins in its epoch.
      count: int64[sum of steps], real rows of the batch.
      rows: int64[M], rows that a client hands in (its examples, once an epoch).
    """

    steps: np.ndarray
    epoch: np.ndarray
    size: np.ndarray
    offset: np.ndarray
    count: np.ndarray
    rows: np.ndarray


class Window(NamedTuple):
    """What S steps do, on all devices; or, without those axes, one step of a device.

    Attributes:
      index: int32[D, S, L, B], rows of the data.
      count: int32[D, S, L], of them the first are real.
      place: int32[D, S, L], of the client in the lane; C where the lane is idle.
      step: int32[D, S, L], of that client, from 0.
      last: bool[D, S, L], that client ends here.
      following: int32[D, S, L], place of the client that begins afterwards, or C.
    """

    index: Any
    count: Any
    place: Any
    step: Any
    last: Any
    following: Any


def unpack(packed: Any) -> Window:
    """A `Window` of int32[..., B + 5], of the host or a device."""
    count, place, step, last, following = (packed[..., c] for c in range(-5, 0))
    index = packed[..., :-5]
    return Window(index, count, place, step, last.astype(bool), following)


def ladder(lanes: int, group: int = 1, *, narrowing: bool = True) -> tuple[int, ...]:
    """L, L/2, ... down to the smallest multiple of `group` that halving reaches.

    Args:
      lanes: L.
      group: g.
      narrowing: whether there is any width but L. Each is compiled; without them all
        lanes run until the last one ends.

    Raises:
      ValueError: if `group` does not divide `lanes`.
    """
    _validate.integer_at_least("federated.lanes", lanes, 1)
    _validate.integer_at_least("federated.group", group, 1)
    if lanes % group:
        cure = f"take a multiple of federated.group={group}"
        _validate.fail("federated.lanes", lanes, "must hold whole groups", cure)
    widths = [lanes]
    while narrowing and widths[-1] % (2 * group) == 0:
        widths.append(widths[-1] // 2)
    return tuple(widths)


def make(
    steps: np.ndarray,
    *,
    lanes: int,
    devices: int = 1,
    group: int = 1,
    narrowing: bool = True,
) -> Schedule:
    """Longest first to the lane with the least work.

    Args:
      steps: int[M] >= 0, of each client.
      lanes: L of each device.
      devices: D.
      group: every width of the ladder is a multiple of it.
      narrowing: of `ladder`.
    """
    steps = np.asarray(steps, np.int64)
    rungs = ladder(lanes, group, narrowing=narrowing)
    widths = np.array(rungs)
    busy = np.flatnonzero(steps)
    order = busy[np.argsort(-steps[busy], kind="stable")]
    heap = [(0, lane) for lane in range(lanes * devices)]
    home = np.zeros(len(steps), np.int64)
    start = np.zeros(len(steps), np.int64)
    for client, work in zip(order.tolist(), steps[order].tolist(), strict=True):
        load, lane = heap[0]
        home[client], start[client] = lane, load
        heapq.heapreplace(heap, (load + work, lane))
    loads = np.zeros(lanes * devices, np.int64)
    for load, lane in heap:
        loads[lane] = load
    ranked = np.argsort(-loads, kind="stable")
    rank = np.empty_like(ranked)
    rank[ranked] = np.arange(len(ranked))
    device, lane = rank[home] % devices, rank[home] // devices
    place = np.zeros(len(steps), np.int64)
    for d in range(devices):
        here = np.flatnonzero(device == d)
        place[here] = np.arange(len(here))
    total = int(loads.max(initial=0))
    ended = np.bincount(loads, minlength=total + 1)
    running = lanes * devices - np.cumsum(ended)[:total]  # lanes with work at a step
    active = -(-running // devices)
    width = widths[::-1][np.searchsorted(widths[::-1], active)]
    return Schedule(steps, device, lane, place, start, total, width, rungs, devices)


def batches(
    sizes: np.ndarray,
    *,
    batch_size: int,
    epochs: int = 1,
    steps: int = 0,
    remainder: str = "mask",
) -> Batches:
    """Cuts the rows of each client into batches; a batch never mixes epochs.

    Args:
      sizes: int[M], examples of each client.
      batch_size: B.
      epochs: E; a client makes E * ceil(n / B) steps.
      steps: where positive, every client with a whole batch makes this many steps, and
        begins its rows anew as often as that takes.
      remainder: 'mask': the last batch of an epoch is short; 'drop': it is left out;
        'fill': it is filled from the beginning of the same epoch.
    """
    _validate.one_of("federated.remainder", remainder, REMAINDERS)
    _validate.integer_at_least("federated.batch_size", batch_size, 1)
    sizes = np.asarray(sizes, np.int64)
    each = sizes // batch_size if remainder == "drop" else -(-sizes // batch_size)
    if steps:
        made = np.where(each > 0, steps, 0)
        epochs_of = -(-made // np.maximum(each, 1))
    else:
        made, epochs_of = each * epochs, np.full_like(sizes, epochs)
    rows = sizes * epochs_of
    base = np.cumsum(rows) - rows
    owner = np.repeat(np.arange(len(sizes)), made)
    number = np.arange(made.sum()) - np.repeat(np.cumsum(made) - made, made)
    per_epoch = np.maximum(each, 1)[owner]
    epoch, offset = number // per_epoch, number % per_epoch * batch_size
    size = sizes[owner]
    count = np.minimum(batch_size, size - offset)
    if remainder == "fill":
        count = np.full_like(size, batch_size)
    return Batches(made, base[owner] + epoch * size, size, offset, count, rows)


def windows(
    made: Schedule,
    cut: Batches,
    index: np.ndarray,
    *,
    batch_size: int,
    length: int,
    capacity: int,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The windows of a round, in order: one array each, one transfer to the devices.

    Args:
      made: of `make`.
      cut: of `batches`; its `steps` are those that `made` was made of.
      index: int[sum of rows], row of the data behind each row of the cohort.
      batch_size: B.
      length: S.
      capacity: C, at least the clients of any device.

    Yields:
      int32[D, S, L, B + 5], see `unpack`, of two steps where S is 1; and int32[W],
      where in the window the steps of each width end, which may be 0, and equal.
    """
    lanes, devices = made.ladder[0], made.devices
    owner = np.repeat(np.arange(len(made.steps)), made.steps)
    number = np.arange(len(owner)) - np.repeat(
        np.cumsum(made.steps) - made.steps, made.steps
    )
    when = made.start[owner] + number
    where = (made.device[owner], when, made.lane[owner])
    total = max(made.total, 1)
    padded = -(-total // length) * length
    shape = (devices, padded, lanes)
    # Past the end of an epoch a batch goes on at its beginning: rows that `count`
    # masks, or those that fill it.
    within = (cut.offset[:, None] + np.arange(batch_size)) % cut.size[:, None]
    columns = [cut.count, made.place[owner], number, number + 1 == made.steps[owner]]
    full = np.zeros((*shape, batch_size + 5), np.int32)
    full[where + (slice(batch_size),)] = index[cut.epoch[:, None] + within]
    view = unpack(full)
    view.place[:], view.following[:] = capacity, capacity
    full[where + (slice(batch_size, -1),)] = np.stack(columns, 1)
    nexts = np.flatnonzero((made.start > 0) & (made.steps > 0))
    before = (made.device[nexts], made.start[nexts] - 1, made.lane[nexts])
    view.following[before] = made.place[nexts]
    for begin in range(0, made.total, length):
        widths = made.widths[begin : begin + length]
        ends = (widths >= np.array(made.ladder)[:, None]).sum(1, dtype=np.int32)
        part = full[:, begin : begin + length]
        if length == 1:  # looking up one of one step would be compiled to other bits
            part = np.concatenate([part, part], axis=1)
        yield part, ends


def first_places(made: Schedule, capacity: int) -> np.ndarray:
    """Place of the client that each lane begins with, or C; int32[D, L]."""
    found = np.full((made.devices, made.ladder[0]), capacity, np.int32)
    begins = np.flatnonzero((made.start == 0) & (made.steps > 0))
    found[made.device[begins], made.lane[begins]] = made.place[begins]
    return found
