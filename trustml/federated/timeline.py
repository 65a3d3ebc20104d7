"""What clients hold when: data that arrive over periods, and storage that is limited.

In period t client k has seen its first hi[t, k] examples, in time order, and holds

| retention | of these |
|---|---|
| `keep_all` | all |
| `fifo(M)` | the last M |
| `expiry(H)` | those of the last H periods |
| `reservoir(M)` | a uniform subset of M |
| `class_balanced(M)` | M, slots shared equally over the labels seen |
| `gradient_diversity(M)` | M that lie far from each other |

The first three hold an interval [lo, hi) of local rows; the others a table of M rows.
Nothing is copied: n_k(t) drives selection and weights, rows are an index.

The reservoir keeps the M arrivals with the smallest of fixed random keys, which has the
law of the usual one (arrival i enters with probability M/i and replaces a uniform slot)
for all periods together: what was evicted never returns. The class-balanced one gives
slots in rounds over the labels, smallest key first, so that the label with most slots
loses one first; this too never takes back what it evicted.

`static` holds everything from the start, `at_the_end` what a timeline leaves at its
end: the two references of continual learning (`trustml.federated.continual`).

Dimension key: T periods, K clients, M rows of storage, N examples, D embedding.

Example::

    arrived = timeline.even(sizes, periods=6)
    made = timeline.fifo(arrived, 50)
    state = selector.resize(state, timeline.sizes(made, t))
    rows, offsets = timeline.rows(made, t, store_offsets)    # global rows, CSR

References: https://arxiv.org/abs/2202.03925 (the setting);
https://arxiv.org/abs/2310.15054 (retention on device; `gradient_diversity` is our
reading, by greedy farthest points of embeddings).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from trustml import _validate
from trustml.federated import counters


class Timeline(NamedTuple):
    """Who holds what in which period.

    Attributes:
      retention: its rule, such as 'fifo(50)'.
      lo: int32[T, K] first local row that may be held.
      hi: int32[T, K] one past the last.
      kept: int32[T, K, M] local rows, ascending, padded with -1, all of them within
        [lo, hi); None where the whole interval is held.
    """

    retention: str
    lo: Int[np.ndarray, "T K"]
    hi: Int[np.ndarray, "T K"]
    kept: Int[np.ndarray, "T K M"] | None = None

    @property
    def periods(self) -> int:
        """T."""
        return len(self.hi)


def even(sizes: Int[np.ndarray, " K"], periods: int) -> Int[np.ndarray, "T K"]:
    """Arrivals where every client gets its examples at an even pace: hi[t, k]."""
    periods = _periods(periods)
    ends = np.arange(1, periods + 1, dtype=np.int64)[:, None]
    return (np.asarray(sizes, np.int64) * ends // periods).astype(np.int32)


def by_time(
    times: Float[np.ndarray, " N"] | Int[np.ndarray, " N"],
    offsets: Int[np.ndarray, " ends"],
    edges: Float[np.ndarray, " T"] | Int[np.ndarray, " T"],
) -> Int[np.ndarray, "T K"]:
    """Arrivals by timestamps: hi[t, k] examples of client k lie before edges[t].

    Args:
      times: of the examples, finite, ascending within each client.
      offsets: client k owns examples offsets[k] to offsets[k+1].
      edges: ascending ends of the periods; the last may be infinite.

    Raises:
      ValueError: where times or edges are not in order, a time is not finite, an edge
        is NaN, or times are not those of all examples.
    """
    times, offsets = np.asarray(times), np.asarray(offsets, np.int64)
    edges = np.asarray(edges)
    _check_rows("times", times, offsets)
    lost = np.flatnonzero(~np.isfinite(times))
    if lost.size:
        cure = "leave out examples without a time"
        value = str(times[lost[0]])
        _validate.fail(f"times[{lost[0]}]", value, "must be finite", cure)
    lost = np.flatnonzero(np.isnan(edges))
    if lost.size:
        cure = "inf is an end that never comes"
        _validate.fail(f"edges[{lost[0]}]", str(edges[lost[0]]), "is no time", cure)
    # Differences of unsigned numbers would never be below 0.
    if np.any(edges[1:] < edges[:-1]):
        _validate.fail("edges", edges.tolist(), "must ascend")
    falls = np.flatnonzero(times[1:] < times[:-1]) + 1
    wrong = falls[~np.isin(falls, offsets)]
    if wrong.size:
        cure = "sort examples by (client, time)"
        bound = "is earlier than the one before it of the same client"
        _validate.fail("times", f"row {wrong[0]}", bound, cure)
    counts = np.zeros((len(edges), len(offsets) - 1), np.int32)
    before = np.zeros(len(times) + 1, np.int64)
    for period, edge in enumerate(edges):
        np.cumsum(times < edge, out=before[1:])
        counts[period] = np.diff(before[offsets])
    return counts


def static(sizes: Int[np.ndarray, " K"], periods: int) -> Timeline:
    """All examples from the first period on."""
    hi = np.tile(np.asarray(sizes, np.int32), (_periods(periods), 1))
    return Timeline("static", np.zeros_like(hi), hi)


def at_the_end(timeline: Timeline) -> Timeline:
    """What `timeline` holds in its last period, from the first period on."""

    def last(array: np.ndarray | None) -> np.ndarray | None:
        return None if array is None else np.broadcast_to(array[-1], array.shape)

    lo, hi = np.broadcast_arrays(timeline.lo[-1], timeline.hi)[0], timeline.hi
    return Timeline(
        f"{timeline.retention}, as at the end",
        lo,
        np.broadcast_to(hi[-1], hi.shape),
        last(timeline.kept),
    )


def keep_all(arrived: Int[np.ndarray, "T K"]) -> Timeline:
    """Nothing is ever deleted."""
    hi = _arrived(arrived)
    return Timeline("keep_all", np.zeros_like(hi), hi)


def fifo(arrived: Int[np.ndarray, "T K"], most: int) -> Timeline:
    """The last `most` examples of every client."""
    hi, most = _arrived(arrived), _most(most)
    return Timeline(f"fifo({most})", np.maximum(0, hi - most).astype(np.int32), hi)


def expiry(arrived: Int[np.ndarray, "T K"], horizon: int) -> Timeline:
    """What arrived in the last `horizon` periods, this one included."""
    hi = _arrived(arrived)
    cure = "1 keeps what arrived in the period"
    horizon = _validate.integer_at_least("horizon", horizon, 1, cure)
    lo = np.zeros_like(hi)
    lo[horizon:] = hi[:-horizon]
    return Timeline(f"expiry({horizon})", lo, hi)


def reservoir(arrived: Int[np.ndarray, "T K"], most: int, *, seed: int) -> Timeline:
    """A uniform subset of `most` of all that has arrived; see the module docstring."""
    hi, most = _arrived(arrived), _most(most)
    client, position = _flat(hi[-1])
    key = counters.uniforms(seed, "reservoir", client, position)
    order = np.lexsort((key, client))
    client, position = client[order], position[order]
    kept = np.full((*hi.shape, most), -1, np.int32)
    for period, seen in enumerate(hi):
        here = position < seen[client]
        _fill(kept[period], client[here], position[here])
    return Timeline(f"reservoir({most})", np.zeros_like(hi), hi, kept)


def class_balanced(
    arrived: Int[np.ndarray, "T K"],
    most: int,
    labels: Int[np.ndarray, " N"],
    offsets: Int[np.ndarray, " ends"],
    *,
    seed: int,
) -> Timeline:
    """`most` examples, slots shared equally over the labels a client has seen.

    Args:
      arrived: hi[t, k].
      most: M.
      labels: of all examples of the store, integers >= 0.
      offsets: client k owns examples offsets[k] to offsets[k+1].
      seed: of the keys.

    Raises:
      ValueError: for labels that are not integers >= 0, one for each example, or where
        more of a client has arrived than it owns.
    """
    hi, most = _arrived(arrived), _most(most)
    labels, offsets = _labels(labels), np.asarray(offsets, np.int64)
    _check_rows("labels", labels, offsets)
    _check_held("arrived[-1]", hi[-1], offsets)
    client, position = _flat(hi[-1])
    label = labels[offsets[client] + position]
    key = counters.uniforms(seed, "reservoir", client, position)
    # Which label gets the slot that does not divide: by chance, once for a client.
    turn = counters.uniforms(seed, "reservoir", client, label, 1)
    order = np.lexsort((key, label, client))
    client, position, label, turn = (x[order] for x in (client, position, label, turn))
    kept = np.full((*hi.shape, most), -1, np.int32)
    for period, seen in enumerate(hi):
        here = np.flatnonzero(position < seen[client])
        held, of_label = client[here], label[here]
        first = np.ones(len(here), bool)
        first[1:] = (held[1:] != held[:-1]) | (of_label[1:] != of_label[:-1])
        slot = _rank(first)
        order = np.lexsort((turn[here], slot, held))
        _fill(kept[period], held[order], position[here][order])
    return Timeline(f"class_balanced({most})", np.zeros_like(hi), hi, kept)


def gradient_diversity(
    arrived: Int[np.ndarray, "T K"],
    most: int,
    embeddings: Float[np.ndarray, "N D"],
    offsets: Int[np.ndarray, " ends"],
) -> Timeline:
    """`most` examples that lie far from each other, of those held and those new.

    Greedy farthest points: first the one farthest from the mean of the candidates, then
    always the one farthest from all that were taken; ties by row.

    Args:
      arrived: hi[t, k].
      most: M.
      embeddings: of all examples of the store, finite, such as last-layer gradients.
      offsets: client k owns examples offsets[k] to offsets[k+1].

    Raises:
      ValueError: for embeddings that are not finite numbers, a row for each example, or
        where more of a client has arrived than it owns.
    """
    hi, most = _arrived(arrived), _most(most)
    points, starts = _points(embeddings), np.asarray(offsets, np.int64)
    _check_rows("embeddings", points, starts)
    _check_held("arrived[-1]", hi[-1], starts)
    kept = np.full((*hi.shape, most), -1, np.int32)
    before = np.zeros(hi.shape[1], np.int64)
    for period, seen in enumerate(hi):
        clients, new = _flat(seen - before)
        held, slot = np.nonzero(kept[period - 1] >= 0) if period else (before[:0],) * 2
        client = np.concatenate([held, clients])
        position = np.concatenate(
            [kept[period - 1][held, slot], before[clients] + new]
        ).astype(np.int64)
        order = np.lexsort((position, client))
        client, position = client[order], position[order]
        taken = _farthest(client, points[starts[client] + position], most)
        _fill(kept[period], client[taken], position[taken])
        before = seen.astype(np.int64)
    return Timeline(f"gradient_diversity({most})", np.zeros_like(hi), hi, kept)


def sizes(timeline: Timeline, period: int) -> Int[np.ndarray, " K"]:
    """n_k(t), int32[K]."""
    period = check_period(timeline, period)
    if timeline.kept is None:
        return timeline.hi[period] - timeline.lo[period]
    return np.count_nonzero(timeline.kept[period] >= 0, axis=1).astype(np.int32)


def rows(
    timeline: Timeline, period: int, offsets: Int[np.ndarray, " ends"]
) -> tuple[Int[np.ndarray, " rows"], Int[np.ndarray, " ends"]]:
    """Rows of the store that are held, client after client, and where clients start.

    Args:
      timeline: of clients of the store.
      period: t.
      offsets: of the store, int[K+1].

    Returns:
      (int64[sum of n_k(t)], int64[K+1]).

    Raises:
      ValueError: for another number of clients, or where more of a client has arrived
        than the store holds.
    """
    counts = sizes(timeline, period).astype(np.int64)
    offsets = np.asarray(offsets, np.int64)
    _check_held(f"timeline.hi[{period}]", timeline.hi[period], offsets)
    client, position = _flat(counts)
    starts = offsets[client]
    if timeline.kept is None:
        local = timeline.lo[period][client] + position
    else:
        table = timeline.kept[period]
        local = table[table >= 0].astype(np.int64)
    return starts + local, np.concatenate([[0], np.cumsum(counts)])


def check_period(timeline: Timeline, period: int) -> int:
    """`period`, if the timeline has it."""
    period = _validate.integer_at_least("period", period, 0, "periods count from 0")
    if period >= timeline.periods:
        bound = f"is beyond the {timeline.periods} periods of the timeline"
        _validate.fail("period", period, bound, "make a longer one")
    return period


def _farthest(client: np.ndarray, points: np.ndarray, most: int) -> np.ndarray:
    """Positions of the greedy farthest points of every client; `client` ascends."""
    if not len(client):
        return np.zeros(0, np.int64)
    starts = np.flatnonzero(np.r_[True, client[1:] != client[:-1]])
    lengths = np.diff(np.r_[starts, len(client)])
    group = np.repeat(np.arange(len(starts)), lengths)
    means = np.add.reduceat(points, starts, axis=0) / lengths[:, None]
    distance = np.sum((points - means[group]) ** 2, axis=1)
    taken = np.zeros(len(client), bool)
    for number in range(min(most, int(lengths.max()))):
        distance[taken] = -1.0
        best = np.maximum.reduceat(distance, starts)
        hit = np.flatnonzero(distance == best[group])
        # The first hit of every group that still has a candidate.
        _, first = np.unique(group[hit], return_index=True)
        chosen = hit[first]
        nearer = np.sum((points - points[chosen][group]) ** 2, axis=1)
        distance = nearer if number == 0 else np.minimum(distance, nearer)
        taken[chosen[~taken[chosen]]] = True
    return np.flatnonzero(taken)


def _flat(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(client, position) of every example of clients that have `counts` of them."""
    counts = np.asarray(counts, np.int64)
    client = np.repeat(np.arange(len(counts)), counts)
    return client, np.arange(len(client)) - (np.cumsum(counts) - counts)[client]


def _rank(first: np.ndarray) -> np.ndarray:
    """Position within the group, of rows in groups that begin where `first` holds."""
    numbers = np.arange(len(first))
    return numbers - np.maximum.accumulate(np.where(first, numbers, 0))


def _fill(table: np.ndarray, client: np.ndarray, position: np.ndarray) -> None:
    """Writes the first M positions of every client, ascending, into table[K, M]."""
    first = np.ones(len(client), bool)
    first[1:] = client[1:] != client[:-1]
    slot = _rank(first)
    held = slot < table.shape[1]
    past = np.iinfo(table.dtype).max
    table[:] = past
    table[client[held], slot[held]] = position[held]
    table.sort(axis=1)
    table[table == past] = -1


def _arrived(arrived: np.ndarray) -> np.ndarray:
    hi = np.asarray(arrived)
    if hi.ndim != 2 or hi.dtype.kind not in "iu" or not len(hi):
        cure = "take it from even or by_time"
        bound = "must be integers [T, K]"
        _validate.fail("arrived", f"{hi.dtype}{list(hi.shape)}", bound, cure)
    if hi.size and hi[0].min() < 0 or np.any(np.diff(hi.astype(np.int64), axis=0) < 0):
        cure = "count all that has arrived so far"
        _validate.fail("arrived", "a count", "falls over periods or is negative", cure)
    return hi.astype(np.int32)


def _check_held(field: str, hi: np.ndarray, offsets: np.ndarray) -> None:
    """Refuses arrivals beyond the rows that a client owns: they are of the next one."""
    if offsets.shape != (len(hi) + 1,):
        bound = f"must be the {len(hi) + 1} ends of {len(hi)} clients"
        what = f"{offsets.dtype}{list(offsets.shape)}"
        _validate.fail("offsets", what, bound, "give those of the timeline's store")
    owned = np.diff(offsets)
    over = np.flatnonzero(hi > owned)
    if over.size:
        k = over[0]
        bound = f"must be <= the {owned[k]} examples that the store holds of it"
        cure = "make the timeline from the sizes of this store"
        _validate.fail(f"{field} of client {k}", int(hi[k]), bound, cure)


def _check_rows(field: str, values: np.ndarray, offsets: np.ndarray) -> None:
    if len(values) != offsets[-1]:
        bound = f"rows must be the {offsets[-1]} examples of the store"
        _validate.fail(field, len(values), bound, "give one for each example")


def _labels(labels: np.ndarray) -> np.ndarray:
    found = np.asarray(labels)
    if found.ndim != 1 or found.dtype.kind not in "iu":
        what = f"{found.dtype.type.__name__}{list(found.shape)}"
        cure = "number the labels from 0"
        _validate.fail("labels", what, "must be integers on one axis", cure)
    below = np.flatnonzero(found < 0)
    if below.size:
        cure = "give examples without one a number of their own"
        value = int(found[below[0]])
        _validate.fail(f"labels[{below[0]}]", value, "must be >= 0", cure)
    return found


def _points(embeddings: np.ndarray) -> np.ndarray:
    found = _validate.numbers_of("embeddings", embeddings)
    if found.ndim != 2:
        cure = "give a row for each example"
        _validate.fail("embeddings", list(found.shape), "must be an array [N, D]", cure)
    lost = np.argwhere(~np.isfinite(found))
    if len(lost):
        row, column = lost[0]
        cure = "leave out the example, or embed it by a model that has not diverged"
        value = float(found[row, column])
        _validate.fail(f"embeddings[{row}, {column}]", value, "must be finite", cure)
    return found


def _most(most: int) -> int:
    return _validate.integer_at_least("most", most, 1, "50 is a small storage")


def _periods(periods: int) -> int:
    return _validate.integer_at_least("periods", periods, 1, "1 is the static setting")
