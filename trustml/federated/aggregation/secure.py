"""The arithmetic of secure aggregation: pairwise masks that cancel in the sum.

    y_i = round(s_i x_i / g) + PRG(b_i) + sum_{j > i} PRG(s_ij) - sum_{j < i} PRG(s_ij)

modulo 2^32 (Bonawitz et al. 2017). Clients i and j share the seed s_ij, so those masks
cancel between two who arrive. Of client i who drops out, its neighbours' shares give
back the seeds s_ij, and of one who arrives the seed b_i; the server subtracts what is
left of the masks. A client whose secret is wanted needs t neighbours that arrived (it
counts itself), or else the round is aborted and gives zero. The neighbours are all
others, or k of them in a ring of random order (Bell et al. 2020). The order is drawn by
the numbers of clients, so who is whose neighbour, and with it whether a round aborts,
is the same wherever their rows lie.

What comes out is the sum of the lattice vectors modulo 2^32, exactly, and with
m_max (s_max C / g + 1) < 2^31 (checked when the chain is built) that is their sum. This
simulates arithmetic, dropouts and overflow: seeds come from the key of the round, no
keys are agreed and no shares are cut.

Rounding to the nearest multiple of g moves a coordinate by g/2 at most, so a user adds
at most s_max C + g sqrt(d) / 2 in L2.

Dimension key: m rows of the stack, d coordinates, p positions in the ring.

Example::

    links = clipping.clip(1.0), secure.modular_sum(2.0**-16, max_clients=100, size=d)
    aggregator = chain.chain(*links)                 # collect == 'stack'
    ... cohort = link.cohort(weights, arrived, expected_weight=W, selected=asked)

References: Bonawitz et al. 2017, https://doi.org/10.1145/3133956.3133982; Bell et al.
2020, https://eprint.iacr.org/2020/704
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import flatten_util, lax
from jaxtyping import Array, Bool, Int, UInt32

from trustml import _validate
from trustml.federated.aggregation import link


class Ring(NamedTuple):
    """Who shares a seed with whom: those at most `reach` apart in a random order.

    Attributes:
      order: int32[m], the row at each position; rows that were asked come first.
      asked: int32[], how many of them are.
      reach: int32[], neighbours on each side.
    """

    order: jax.Array
    asked: jax.Array
    reach: jax.Array


def modular_sum(
    spacing: float,
    *,
    max_clients: int,
    size: int,
    neighbours: int | None = None,
    threshold: float = 2 / 3,
) -> link.Link:
    """The secure sum of s_k message_k on a lattice.

    Args:
      spacing: g > 0, in units of the message; a power of two loses nothing.
      max_clients: m_max, no stack may hold more rows.
      size: d, coordinates of a message.
      neighbours: k, even; None for all.
      threshold: share of a client's neighbours, and itself, that has to arrive, (0, 1].

    Raises:
      ValueError: with a chain, if the sum could overflow; when traced, if a message has
        another size or there are more rows than `max_clients`.
    """
    spacing = _validate.positive("spacing", spacing, "2**-16 is usual")
    most = _validate.integer_at_least("max_clients", max_clients, 1)
    size = _validate.integer_at_least("size", size, 1, "count the coordinates")
    share = _validate.positive("threshold", threshold, "2/3 is usual")
    if share > 1:
        _validate.fail("threshold", share, "must be at most 1", "2/3 is usual")
    if neighbours is not None:
        _validate.integer_at_least("neighbours", neighbours, 2, "log2 of m is usual")
        if neighbours % 2:
            _validate.fail("neighbours", neighbours, "must be even", "add one")

    def bound(state, before):
        del state
        return None if before is None else before + spacing * math.sqrt(size) / 2

    def check(bounds: link.Bounds):
        # The weighted bound, before the lattice added its own.
        largest = float(bounds.client * bounds.largest_weight) / spacing + 1
        if most * largest >= 2**31:
            least = bounds.client * bounds.largest_weight / (2**31 / most - 1)
            _validate.fail(
                "secure.spacing",
                spacing,
                f"lets a sum of {most} clients reach {most * largest:.4g}, and 2^31 "
                "overflows",
                f"take a spacing above {least:.3g}",
            )

    def server(state, message, cohort, bounds, key, info):
        leaf = jax.tree.leaves(message.update)[0]
        _check_rows(leaf.shape[0], most)
        # Weights are given by the caller: what they promise is kept here, or a sum
        # could wrap.
        limit = int(bounds.client * bounds.largest_weight / spacing) + 1
        lattice_md = to_lattice(message.update, cohort, spacing, limit)
        _check_size(lattice_md.shape[1], size)
        total, aborted = masked_sum(
            lattice_md,
            cohort.selected,
            cohort.mask,
            key,
            numbers=cohort.numbers,
            neighbours=neighbours,
            threshold=share,
        )
        _, unravel = flatten_util.ravel_pytree(
            jax.tree.map(lambda x: x[0], message.update)
        )
        update = unravel(total.astype(jnp.float32) * jnp.float32(spacing))
        info = info._replace(aborted=info.aborted | aborted)
        return message._replace(update=update), state, info

    return link.Link(
        "collect",
        f"secure.modular_sum(spacing={spacing:g}, max_clients={most})",
        server=server,
        bound=bound,
        check=check,
        collect="stack",
        fixed_norm=True,
    )


def to_lattice(
    update: link.Update, cohort: link.Cohort, spacing: float, limit: int
) -> Int[Array, "m d"]:
    """Rows of round(s x / spacing), within +-limit; zeros where no message arrived."""

    def one(leaf):
        weights = link.rows(cohort.weights, leaf)
        steps = jnp.round(leaf * weights / jnp.float32(spacing))
        steps = jnp.where(link.rows(cohort.mask, leaf), steps, 0.0)
        # 2^31 - 128 is the largest float32 that an int32 holds.
        steps = jnp.clip(steps, -float(limit), float(min(limit, 2**31 - 128)))
        return steps.astype(jnp.int32).reshape(leaf.shape[0], -1)

    return jnp.concatenate([one(leaf) for leaf in jax.tree.leaves(update)], axis=1)


def masked_sum(
    lattice_md: Int[Array, "m d"],
    selected: Bool[Array, " m"],
    arrived: Bool[Array, " m"],
    key,
    *,
    numbers: Int[Array, " m"] | None = None,
    neighbours: int | None = None,
    threshold: float = 2 / 3,
) -> tuple[Int[Array, " d"], Bool[Array, ""]]:
    """(sum of the rows that arrived, modulo 2^32; whether the round was aborted).

    Args:
      lattice_md: integers of every client.
      selected: who was asked, and shared seeds.
      arrived: whose masked vector arrived; a subset.
      key: of the round.
      numbers: of clients; None where a row's place is its number.
      neighbours: k; None for all.
      threshold: see `modular_sum`.
    """
    arrived = arrived & selected
    ring = make_ring(selected, key, neighbours, numbers)
    masked_pd = masked(lattice_md[ring.order], ring, key)
    came_p = arrived[ring.order]
    total = jnp.sum(jnp.where(came_p[:, None], masked_pd, 0), axis=0, dtype=jnp.uint32)
    aborted = ~_enough(ring, came_p, threshold)
    total = total - _left_over(ring, came_p, key, lattice_md.shape[1])
    total = lax.bitcast_convert_type(total, jnp.int32)
    return jnp.where(aborted, 0, total), aborted


def make_ring(
    selected: Bool[Array, " m"],
    key,
    neighbours: int | None,
    numbers: Int[Array, " m"] | None = None,
) -> Ring:
    """Those who were asked in a random order, each with its neighbours."""
    if numbers is None:
        numbers = jnp.arange(selected.size)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, 0), numbers)
    drawn = jax.vmap(lambda k: jax.random.bits(k, (), jnp.uint32))(keys)
    # Two draws may be equal: then the numbers decide, never the places.
    order = jnp.lexsort((numbers, drawn, ~selected)).astype(jnp.int32)
    asked = jnp.sum(selected.astype(jnp.int32))
    side = selected.shape[0] if neighbours is None else neighbours // 2
    return Ring(order, asked, jnp.minimum(jnp.int32(side), asked // 2))


def masked(lattice_pd: Int[Array, "p d"], ring: Ring, key) -> UInt32[Array, "p d"]:
    """What each client sends, by position in the ring; of those asked."""
    num, size = lattice_pd.shape
    words = lax.bitcast_convert_type(lattice_pd, jnp.uint32)
    words = words + _all_masks(key, 0, num, size)

    def add(distance, total):
        mask, other, live = _pairs(ring, key, distance, num, size)
        mask = jnp.where(live[:, None], mask, 0)
        return (total + mask).at[other].add(-mask)

    return lax.fori_loop(1, ring.reach + 1, add, words)


def _left_over(ring: Ring, came, key, size: int):
    """What masks leave in the sum of those who came; uint32[d], by recovered seeds."""
    num = came.shape[0]
    own = _all_masks(key, 0, num, size)
    total = jnp.sum(jnp.where(came[:, None], own, 0), axis=0, dtype=jnp.uint32)

    def add(distance, total):
        mask, other, live = _pairs(ring, key, distance, num, size)
        first = live & came & ~came[other]
        second = live & ~came & came[other]
        plus = jnp.where(first[:, None], mask, 0)
        minus = jnp.where(second[:, None], mask, 0)
        return total + jnp.sum(plus - minus, axis=0, dtype=jnp.uint32)

    return lax.fori_loop(1, ring.reach + 1, add, total)


def _enough(ring: Ring, came, threshold: float):
    """Whether every secret that is wanted can be put together again, and any is."""
    num = came.shape[0]
    position = jnp.arange(num)

    def add(distance, counts):
        there, total = counts
        _, other, live = _edges(ring, distance, num)
        one = live.astype(jnp.int32)
        there = there + one * came[other].astype(jnp.int32)
        there = there.at[other].add(one * came.astype(jnp.int32))
        total = (total + one).at[other].add(one)
        return there, total

    start = came.astype(jnp.int32), jnp.ones((num,), jnp.int32)
    there, total = lax.fori_loop(1, ring.reach + 1, add, start)
    # Compared as numbers of shares: at least ceil(threshold * (neighbours + itself)).
    needed = jnp.ceil(jnp.float32(threshold) * total.astype(jnp.float32) - 1e-4)
    good = there.astype(jnp.float32) >= needed
    return jnp.all(good | (position >= ring.asked)) & jnp.any(came)


def _edges(ring: Ring, distance, num: int):
    """(positions, those `distance` further round, whether that edge is there)."""
    position = jnp.arange(num)
    asked = jnp.maximum(ring.asked, 1)
    other = (position + distance) % asked
    # Half way round, an edge is met from both of its ends.
    twice = (2 * distance == asked) & (position >= distance)
    live = (position < ring.asked) & (other != position) & ~twice
    return position, other, live


def _pairs(ring: Ring, key, distance, num: int, size: int):
    position, other, live = _edges(ring, distance, num)
    return _all_masks(key, distance, num, size), other, live


def _all_masks(key, distance, num: int, size: int):
    """PRG of the seed of every position with the one `distance` further; 0: its own."""
    of_distance = jax.random.fold_in(jax.random.fold_in(key, 1), distance)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(of_distance, jnp.arange(num))
    return jax.vmap(lambda k: jax.random.bits(k, (size,), jnp.uint32))(keys)


def _check_rows(rows: int, most: int) -> None:
    if rows > most:
        cure = "raise it, or select fewer"
        bound = f"is less than the {rows} rows of the stack"
        _validate.fail("secure.max_clients", most, bound, cure)


def _check_size(found: int, size: int) -> None:
    if found != size:
        bound = f"is not the {found} coordinates of a message"
        _validate.fail("secure.size", size, bound, "count the parameters")
