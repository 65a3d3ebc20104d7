"""The lane-packed scan: clients of any sizes, one after another in each of L lanes.

A lane holds the state of one client at a time. All lanes step together (`vmap`), in
one loop; where a client ends, its lane adds the message to a sum over the cohort and
takes up the next client of its queue. Memory is that of L clients, whatever the cohort;
one program with a loop for each width of the ladder serves every cohort.

    until the end:  do:      batch = data[index[s]], rows beyond count[s] set to 0
                             local = where(active, step(local, batch), local);  s += 1
                    until any client ends
                    total += sum over those that end of w * message(local)
                    local = where(ends, start(next client), local)

What a client does is a `Program` of three pure functions of ONE client; training,
evaluation and a first sweep at the server's model are all programs.

Randomness: the key of a step is fold_in(fold_in(round key, client), step), so it
depends on neither lane nor cohort. Masked rows are set to zero BEFORE a program sees
them: whatever a deleted or foreign row holds (NaN), neither value nor gradient reads
it. Idle lanes keep their state.

Exact mode. Floats do not associate, so a sum depends on its order. With `exact`,
messages are rounded to multiples of gamma and summed in int32, which wraps around and
associates:

    v = round(w m / gamma),   total = gamma * sum v,   |v| <= (2^31 - 1) / clients

(larger ones are clamped and counted). Messages themselves depend on how many lanes are
computed together, so lanes run in groups of g (`lax.map` over groups, `vmap` inside);
at a fixed g the sum is equal to the bit for any L, window, order, number of devices,
and point of resumption. Rounding may lengthen a message, so sums that get noise are
refused (`rounds.make`).

Dimension key: `D` devices, `L` lanes, `w` lanes that run, `g` lanes of a group, `C`
places of a device, `S` steps of a window, `B` rows of a batch.

Example::

    lanes_ = lanes.make(program, lanes=16, group=4)
    carry = jax.jit(lanes_.begin)(shared, clients, memory, first)
    run = jax.jit(lanes_.run, donate_argnums=0)
    carry = run(carry, shared, data, clients, window, ends)
    totals, memory, records = jax.jit(lanes_.end)(carry)
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trustml import _validate, parallel
from trustml.federated import schedule

PyTree = Any
Key = Any

GAMMA = 2.0**-20
_INT32_MAX = 2**31 - 1
_UNROLLED = 32  # lanes that are summed one after another


class Client(NamedTuple):
    """What is known of a client when it takes part; also, [D, C, ...], of all of them.

    Attributes:
      number: int32[], the client.
      weight: float32[], of its message in the sum; 0 <= w <= 1 in exact mode.
      steps: int32[], it makes in this round.
      given: pytree of arrays, what else it is told; () if nothing.
    """

    number: Any
    weight: Any
    steps: Any
    given: PyTree = ()


class Outcome(NamedTuple):
    """What a client leaves.

    Attributes:
      message: pytree of floats, summed over the cohort with the client's weight.
      memory: pytree, replaces the client's memory; () where it has none.
      record: pytree of small arrays, kept for each client.
    """

    message: PyTree
    memory: PyTree = ()
    record: PyTree = ()


class Program(NamedTuple):
    """What one client does; pure functions, without an axis of lanes.

    Attributes:
      start: (shared, client, memory) -> local, a pytree.
      step: (shared, local, batch, mask, key, number) -> local. batch: leaves [B, ...];
        mask: bool[B]; key: of this step of this client; number: int32[], of the step.
      finish: (shared, client, local, memory, key) -> `Outcome`.
    """

    start: Callable[[PyTree, Client, PyTree], PyTree]
    step: Callable[..., PyTree]
    finish: Callable[[PyTree, Client, PyTree, PyTree, Key], Outcome]


class Shared(NamedTuple):
    """What every client of a round gets.

    Attributes:
      model: pytree of the algorithm's making, whatever a program reads.
      key: of the round.
      limit: int32[], bound of a rounded message (exact mode); see `int_limit`.
    """

    model: PyTree
    key: Key
    limit: Any


class Carry(NamedTuple):
    """Between two windows; leaves have leading axes [D, ...].

    Attributes:
      local: [D, L, ...], state of the client in each lane.
      total: [D, ...], sum of messages so far, in their types; int32 in exact mode.
      clamped: int32[D], coordinates that exact mode had to clamp.
      memory: [D, C, ...].
      records: [D, C, ...].
    """

    local: PyTree
    total: PyTree
    clamped: jax.Array
    memory: PyTree
    records: PyTree


class Totals(NamedTuple):
    """Of a round.

    Attributes:
      message: pytree, sum over the cohort of w * message; float32 in exact mode.
      clamped: int32[], coordinates that were clamped (exact mode).
    """

    message: PyTree
    clamped: jax.Array


class Lanes(NamedTuple):
    """Pure functions that run a `Program`; the caller jits them.

    Attributes:
      begin: (shared, clients, memory, first) -> carry. clients: `Client` of
        [D, C, ...]; memory: leaves [D, C, ...]; first: int32[D, L], of
        `schedule.first_places`.
      run: (carry, shared, data, clients, window, ends) -> carry; window, ends: of
        `schedule.windows`, ends alike on all devices.
      end: (carry) -> (Totals, memory [D * C, ...], records [D * C, ...]), summed over
        devices.
    """

    begin: Callable[..., Carry]
    run: Callable[..., Carry]
    end: Callable[[Carry], tuple[Totals, PyTree, PyTree]]


def int_limit(clients: int) -> np.int32:
    """The largest rounded message of which `clients` can be summed in int32."""
    return np.int32(_INT32_MAX // max(int(clients), 1))


def make(
    program: Program,
    *,
    lanes: int,
    group: int = 0,
    narrowing: bool = True,
    exact: bool = False,
    gamma: float = GAMMA,
    devices: list[jax.Device] | None = None,
    backend: str = "shard_map",
) -> Lanes:
    """The functions that run `program`.

    Args:
      program: what a client does.
      lanes: L of each device.
      group: g, lanes computed together by `vmap`; 0: all that run. In exact mode part
        of the numeric identity of a run, and at least 1.
      narrowing: of `schedule.ladder`.
      exact: sums in int32; see the module docstring.
      gamma: size of a step of exact mode.
      devices: D devices; all of the run where None.
      backend: of `parallel.map_sum`.

    Raises:
      ValueError: when built, for values out of bounds.
    """
    _validate.integer_at_least("federated.lanes", lanes, 1)
    _validate.integer_at_least("federated.group", group, 1 if exact else 0)
    _validate.positive("federated.gamma", gamma)
    widths = schedule.ladder(lanes, group or 1, narrowing=narrowing)
    found = parallel.devices() if devices is None else devices
    spread = functools.partial(parallel.map_sum, devices=found, backend=backend)

    def begin(shared, clients, memory, first):
        def local(shared, row):
            clients, memory, first = row
            states = jax.vmap(functools.partial(_start, program, shared))(
                *_chosen((clients, memory), first)
            )
            outcome = jax.eval_shape(
                program.finish,
                shared.model,
                *_chosen((clients,), first[0]),
                jax.tree.map(lambda x: x[0], states),
                *_chosen((memory,), first[0]),
                shared.key,
            )
            total = jax.tree.map(
                lambda x: jnp.zeros(x.shape, jnp.int32 if exact else x.dtype),
                outcome.message,
            )
            places = clients.number.shape[0]
            records = jax.tree.map(
                lambda x: jnp.zeros((places, *x.shape), x.dtype), outcome.record
            )
            carry = Carry(states, total, jnp.int32(0), memory, records)
            return (), _with_axis(carry)

        return spread(local)(shared, (clients, memory, first))[1]

    def run(carry, shared, data, clients, window, ends):
        def local(replicated, row):
            shared, data, ends = replicated
            carry, clients, window = row
            start = jnp.int32(0)
            for width, stop in zip(widths, ends, strict=True):
                carry = loop(width, start, stop, carry, shared, data, clients, window)
                start = stop
            return (), _with_axis(carry)

        return spread(local)((shared, data, ends), (carry, clients, window))[1]

    def loop(width, start, stop, carry, shared, data, clients, window):
        """Steps `start` to `stop` on the first `width` lanes."""
        static = _Static(width, group, exact, gamma)
        step, boundary = (
            functools.partial(part, program, static, shared)
            for part in (_step, _boundary)
        )
        window = window[:, :width]

        # Steps up to one after which a client ends, then what happens there. A
        # condition around it would copy all that is carried, in every step. Who ends is
        # carried, or every coordinate of a model would look it up again.
        def on(state):
            at, _, local = state
            now = _now(window, at)
            return at + 1, _ends(now), step(data, clients, now, local)

        def until_one_ends(state):
            at, *carried = state
            local, *rest = carried
            nobody = jnp.zeros(width, jnp.int32)
            at, ends, local = jax.lax.while_loop(
                lambda inner: ~jnp.any(inner[1].last) & (inner[0] < stop),
                on,
                (at, _Ends(nobody, nobody.astype(bool), nobody), local),
            )
            return at, *boundary(clients, ends, local, *rest)

        head = jax.tree.map(lambda x: x[:width], carry.local)
        rest = carry.total, carry.clamped, carry.memory, carry.records
        _, head, total, clamped, memory, records = jax.lax.while_loop(
            lambda state: state[0] < stop, until_one_ends, (start, head, *rest)
        )
        states = jax.tree.map(
            lambda x, h: jax.lax.dynamic_update_slice_in_dim(x, h, 0, 0),
            carry.local,
            head,
        )
        return Carry(states, total, clamped, memory, records)

    def end(carry):
        def local(_, row):
            total, clamped = row
            return (total, clamped), ()

        total, clamped = spread(local)((), (carry.total, carry.clamped))[0]
        if exact:
            total = jax.tree.map(lambda x: x.astype(jnp.float32) * gamma, total)
        kept = jax.tree.map(
            lambda x: x.reshape((-1,) + x.shape[2:]), (carry.memory, carry.records)
        )
        return Totals(total, clamped), *kept

    return Lanes(begin, run, end)


class _Ends(NamedTuple):
    """Of a `schedule.Window`, int32 and bool [w]."""

    place: jax.Array
    last: jax.Array
    following: jax.Array


def _ends(now):
    return _Ends(now.place, now.last, now.following)


class _Static(NamedTuple):
    width: int
    group: int
    exact: bool
    gamma: float


def _now(window, step):
    """What a window has for one step."""
    return schedule.unpack(jax.lax.dynamic_index_in_dim(window, step, 0, False))


def _step(program, static, shared, data, clients, now, local):
    """One step of all lanes that run."""
    places = clients.number.shape[0]
    number = clients.number.at[now.place].get(mode="clip")

    def one(local, index, count, number, step_number):
        mask = jnp.arange(index.shape[0], dtype=count.dtype) < count
        batch = jax.tree.map(lambda column: _rows(column, index, mask), data)
        key = jax.random.fold_in(jax.random.fold_in(shared.key, number), step_number)
        return program.step(shared.model, local, batch, mask, key, step_number)

    moved = _over_lanes(one, static)(local, now.index, now.count, number, now.step)
    return _select(now.place < places, moved, local)


def _boundary(program, static, shared, clients, now, *state):
    """Clients that end leave their messages; the next ones begin."""
    local, total, clamped, memory, records = state
    places = clients.number.shape[0]
    own, remembered = _chosen((clients, memory), now.place)

    def finish(client, local, remembered):
        key = jax.random.fold_in(shared.key, client.number)
        # The steps of a client count from 0; its end has the last of all numbers.
        key = jax.random.fold_in(key, jnp.uint32(2**32 - 1))
        return program.finish(shared.model, client, local, remembered, key)

    ended = _over_lanes(finish, static)(own, local, remembered)
    total, more = _add(static, shared, total, ended.message, own.weight, now.last)
    target = jnp.where(now.last, now.place, places)
    memory, records = jax.tree.map(
        lambda store, new: store.at[target].set(new, mode="drop"),
        (memory, records),
        (ended.memory, ended.record),
    )
    fresh = _over_lanes(functools.partial(_start, program, shared), static)(
        *_chosen((clients, memory), now.following)
    )
    local = _select(now.last, fresh, local)
    return local, total, clamped + more, memory, records


def _start(program, shared, client, memory):
    return program.start(shared.model, client, memory)


def _rows(column, index, mask):
    rows = column.at[index].get(mode="promise_in_bounds")
    shaped = mask.reshape(mask.shape + (1,) * (rows.ndim - 1))
    return jnp.where(shaped, rows, jnp.zeros((), rows.dtype))


def _chosen(trees, places):
    """Rows of the clients at `places`; an arbitrary row where the place is empty."""
    return jax.tree.map(lambda x: x.at[places].get(mode="clip"), trees)


def _select(chosen, new, old):
    return jax.tree.map(
        lambda n, o: jnp.where(
            chosen.reshape(chosen.shape + (1,) * (n.ndim - 1)), n, o
        ),
        new,
        old,
    )


def _over_lanes(fn, static):
    """`fn` of one lane, for all that run: vmap, or vmap of g inside a loop."""
    group = static.group or static.width
    if group == static.width and not static.exact:
        return jax.vmap(fn)

    def grouped(*trees):
        split = jax.tree.map(
            lambda x: x.reshape((static.width // group, group) + x.shape[1:]), trees
        )
        out = jax.lax.map(lambda part: jax.vmap(fn)(*part), split)
        return jax.tree.map(lambda x: x.reshape((static.width,) + x.shape[2:]), out)

    return grouped


def _add(static, shared, total, message, weight, last):
    """The weighted messages of lanes whose client ended, added to the sum."""
    if not static.exact:

        def add(total, rows):
            shaped = (-1,) + (1,) * (rows.ndim - 1)
            weights = weight.astype(rows.dtype).reshape(shaped)
            kept = jnp.where(last.reshape(shaped), rows * weights, 0)
            return total + _sum(kept)

        return jax.tree.map(add, total, message), jnp.int32(0)
    # As a float 2^31 - 1 is 2^31, which has no int32: the bound is the float below.
    bound = jnp.nextafter(shared.limit.astype(jnp.float32), jnp.float32(0))

    def integers(rows):
        shaped = (-1,) + (1,) * (rows.ndim - 1)
        scaled = jnp.round(rows * weight.reshape(shaped) / static.gamma)
        fits = jnp.abs(scaled) <= bound  # False for NaN, too
        over = ~fits & last.reshape(shaped)
        kept = jnp.where(fits, scaled, jnp.clip(jnp.nan_to_num(scaled), -bound, bound))
        whole = jnp.where(last.reshape(shaped), kept.astype(jnp.int32), 0)
        return _sum(whole), over.sum(dtype=jnp.int32)

    leaves, tree = jax.tree.flatten(message)
    if not leaves:  # messages that are kept in rows
        return total, jnp.int32(0)
    sums, overs = zip(*(integers(leaf) for leaf in leaves), strict=True)
    total = jax.tree.map(jnp.add, total, jax.tree.unflatten(tree, sums))
    return total, functools.reduce(jnp.add, overs)


def _sum(rows):
    """Over lanes, one after another: a CPU reduces a leading axis 20 times slower."""
    if len(rows) > _UNROLLED:
        return rows.sum(0, dtype=rows.dtype)
    return functools.reduce(jnp.add, list(rows))


def _with_axis(tree):
    return jax.tree.map(lambda x: x[None], tree)
