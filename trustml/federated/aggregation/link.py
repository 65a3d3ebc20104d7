"""What a link of the aggregation chain is, and what passes along the chain.

A link has a half that runs at a client, before the sum, and one that runs at the
server, after it; either may be missing. Both are pure. A link also says what it makes
of the L2 norm of one client's message (`bound`), so that the chain knows the
sensitivity of the sum without being told.

Dimension key: m rows of a stack (its capacity).

Example::

    cohort = link.cohort(weights, mask, expected_weight=50.0)
    doubled = link.Link(
        'compress', 'doubled()', client=lambda state, message, memory, key, record:
        (message._replace(update=2 * message.update), memory, record)
    )
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from trustml import _validate

Update = Any  # pytree of float32 arrays; None leaves pass through


class Message(NamedTuple):
    """What leaves a client, and the sum or stack of it.

    Attributes:
      update: pytree of float32.
      bits: 1[norm <= C] - 1/2, float32[], where a clip norm is tracked; () elsewhere.
    """

    update: Update
    bits: Any = ()


class Record(NamedTuple):
    """Diagnostics of one client; NOT private.

    Attributes:
      norm: float32[], L2 norm of what the client trained; 0 where not finite.
      clipped: bool[], whether clipping made it shorter.
      finite: bool[]; a message with NaN or inf, as trained or after a link, is replaced
        by zero and keeps its place.
      bits_up: float32[], what the client sends, in bits.
      bits_down: float32[], what it was sent: the parameters in float32.
    """

    norm: jax.Array
    clipped: jax.Array
    finite: jax.Array
    bits_up: jax.Array
    bits_down: jax.Array


class Cohort(NamedTuple):
    """Who took part in a round; made by `cohort`.

    Attributes:
      count: int32[], clients whose message arrived.
      weight_sum: float32[], of those clients.
      squared_weight_sum: float32[], likewise.
      expected_weight: float32[], W = sum_k p_k s_k over the population; public.
      weights: float32[m], by row of the stack; 0 where no message arrived.
      mask: bool[m], rows whose message arrived.
      selected: bool[m], rows of clients that were asked and have something to send; the
        others are capacity.
      numbers: int32[m], the client of each row; of any value in rows of capacity.
    """

    count: jax.Array
    weight_sum: jax.Array
    squared_weight_sum: jax.Array
    expected_weight: jax.Array
    weights: jax.Array
    mask: jax.Array
    selected: jax.Array
    numbers: jax.Array


class Info(NamedTuple):
    """Diagnostics of the server's half; public unless said otherwise.

    Attributes:
      sensitivity: float32[], L2 per user, of the sum; NaN where none is declared.
      noise_stddev: float32[], absolute, on the sum; 0 without noise.
      clip_norm: float32[], of the round; NaN without clipping.
      aborted: bool[], the round had too few clients for its rule, and gives zero.
      kept: bool[m], rows that a robust rule averaged (NOT private); () elsewhere.
    """

    sensitivity: jax.Array
    noise_stddev: jax.Array
    clip_norm: jax.Array
    aborted: jax.Array
    kept: Any = ()


class Bounds(NamedTuple):
    """What the links before the noise promise; None where they promise nothing.

    Attributes:
      client: L2 norm of one client's message before weighting; a number, or float32[]
        where it is tracked.
      total: L2 sensitivity of the sum to one user who contributes zero instead.
      largest_weight: s_max.
      bit_stddev: noise on the sum of bits of a tracked clip norm, absolute; None where
        none is tracked.
    """

    client: Any
    total: Any
    largest_weight: Any
    bit_stddev: float | None


class Release(NamedTuple):
    """What noise a chain adds, for the accountant.

    Attributes:
      kind: 'gaussian', 'local', 'banded' or 'discrete'.
      noise_multiplier: stddev over L2 sensitivity of what is released, for a user of
        the largest weight; of all rounds together where `rounds` is given.
      largest_weight: s_max; a user of weight s has multiplier z s_max / s.
      rounds: T, where one release covers T rounds; None where each is its own.
      min_separation: b, rounds between two participations of a user at least.
    """

    kind: str
    noise_multiplier: float
    largest_weight: float
    rounds: int | None = None
    min_separation: int | None = None


def nothing(*args) -> tuple[()]:
    """The state, or memory, of a link that has none."""
    del args
    return ()


def unchanged(state, bound):
    """The `bound` of a link that raises no norm."""
    del state
    return bound


class Link(NamedTuple):
    """One link of a chain.

    Attributes:
      stage: 'clip', 'compress', 'weight', 'collect', 'noise' or 'divide'.
      label: the call that made it, for sentences.
      init: (like, root, Bounds) -> state at the server; root may be None.
      memory: like -> what one client keeps between rounds.
      client: (state, Message, memory, key, Record) -> (Message, memory, Record); one
        client, no batch axis.
      server: (state, Message, Cohort, Bounds, key, Info) -> (Message, state, Info).
      bound: (state, bound) -> L2 norm of one client's message after this link, None
        where unknown; state None stands for the first round.
      check: Bounds -> None, or raises; called when the chain is built.
      collect: 'sum' or 'stack'; for the stage 'collect'.
      robust: the rule is an average by itself, without a sensitivity.
      fixed_norm: whether the clip norm has to be the same in all rounds.
      ordered: whether the last bits of the result follow the order of rows.
      rule: `weighting.Weighting`; for the stage 'weight'.
      largest_weight: s_max of the rule, None where there is none.
      bit_stddev: see `Bounds`.
      release: Bounds -> Release; for the stage 'noise'.
    """

    stage: str
    label: str
    init: Callable[..., Any] = nothing
    memory: Callable[..., Any] = nothing
    client: Callable[..., Any] | None = None
    server: Callable[..., Any] | None = None
    bound: Callable[..., Any] = unchanged
    check: Callable[..., Any] = nothing
    collect: str = "sum"
    robust: bool = False
    fixed_norm: bool = False
    ordered: bool = False
    rule: Any = None
    largest_weight: float | None = None
    bit_stddev: float | None = None
    release: Callable[..., Release] | None = None


def cohort(
    weights,
    mask=None,
    *,
    expected_weight,
    selected=None,
    weight_sum=None,
    numbers=None,
) -> Cohort:
    """The cohort of a round, from one row per client and any number of empty rows.

    Args:
      weights: float32[m], what each client counts.
      mask: bool[m], whose message arrived; None for all.
      expected_weight: W, a public constant, > 0; `Weighting.total`.
      selected: bool[m], who was asked; None for those whose message arrived.
      weight_sum: of those whose message arrived, where it is known whatever their
        order; None adds the rows up.
      numbers: int32[m], the client of each row; None where a row's place is its number.
    """
    weights = jnp.asarray(weights, jnp.float32)
    mask = jnp.ones(weights.shape, bool) if mask is None else jnp.asarray(mask)
    if mask.shape != weights.shape or weights.ndim != 1:
        _validate.fail(
            "cohort.mask",
            tuple(mask.shape),
            f"and weights of shape {tuple(weights.shape)} must both be [m]",
            "give one row for each client",
        )
    selected = mask if selected is None else jnp.asarray(selected) | mask
    weights = jnp.where(mask, weights, 0.0)
    weight_sum = jnp.sum(weights) if weight_sum is None else weight_sum
    numbers = jnp.arange(weights.size) if numbers is None else jnp.asarray(numbers)
    return Cohort(
        count=jnp.sum(mask.astype(jnp.int32)),
        weight_sum=jnp.asarray(weight_sum, jnp.float32),
        squared_weight_sum=jnp.sum(jnp.square(weights)),
        expected_weight=jnp.asarray(expected_weight, jnp.float32),
        weights=weights,
        mask=mask,
        selected=selected,
        numbers=numbers.astype(jnp.int32),
    )


def size(tree: Update) -> int:
    """Coordinates of all leaves together."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def rows(mask: jax.Array, leaf: jax.Array) -> jax.Array:
    """A vector over rows, shaped to go with a stack [m, ...]."""
    return mask.reshape(mask.shape + (1,) * (leaf.ndim - 1))


def weighted_sum(message: Message, cohort: Cohort) -> Message:
    """sum_k w_k message_k of a stack; rows that did not arrive add exactly 0."""

    def total(leaf):
        clean = jnp.where(rows(cohort.mask, leaf), leaf, 0.0)
        precise = jax.lax.Precision.HIGHEST
        return jnp.tensordot(cohort.weights, clean, axes=1, precision=precise)

    return jax.tree.map(total, message)
