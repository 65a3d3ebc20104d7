"""Counts of (group, label, guess): one tensor from which every group metric follows.

    cells[g, y, k] = examples of group g with label y that were guessed to be k

It is filled by one scatter-add a batch and merged by `+`: over batches, over devices
(`psum`), over clients (`vmap`, then a sum). Groups may be a product of attributes,
[G1, ..., GJ, K, K]: an intersection is an entry, a marginal a sum over axes. Rates are
in `trustml.fairness.rates`, gaps in `trustml.fairness.gaps`, intervals in
`trustml.fairness.intervals`; none of them looks at an example again.

Sensitivity: adding or removing one example changes one cell by 1, so L1 = L2 = 1;
replacing one changes two, 2 and sqrt(2). Cells are thereby cheap to release privately;
see `SENSITIVITY`. It holds for groups that are disjoint and counts without weights.

Dimension key: `B` examples, `G` groups, `K` classes, `J` attributes, `M` clients,
`U` distinct patterns of membership.

Example::

    from trustml.fairness import counts, gaps, rates

    found = counts.count(sex, label, guess, groups=2)
    rates.selection(found.cells)                       # float32[2]
    gaps.demographic_parity_difference(found.cells)
    counts.require(found, names=('women', 'men'))      # or an error that says who
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trustml import _validate

# (neighbours, norm) -> by how much a single person changes `cells`, unweighted, of
# disjoint groups.
SENSITIVITY = {
    ("add_remove", 1): 1.0,
    ("add_remove", 2): 1.0,
    ("replace_one", 1): 2.0,
    ("replace_one", 2): 2.0**0.5,
}
_EXACT = 2**31 - 1  # largest int32


class Counts(NamedTuple):
    """What `count` found; a sum of two is that of both batches.

    Attributes:
      cells: int32[*groups, K, K], [.., label, guess]; float32 if weighted.
      unknown: int32[], examples in no cell: group, label or guess is out of range.
      squares: float32 like `cells`, sums of squared weights; None where unweighted.
    """

    cells: jax.Array
    unknown: jax.Array
    squares: jax.Array | None = None


class Metric(NamedTuple):
    """A figure that is built up batch by batch.

    Attributes:
      init: () -> state.
      update: (state, batch of arrays as keywords) -> state; states merge by `merge`.
      compute: state -> result.
    """

    init: Callable[[], Any]
    update: Callable[..., Any]
    compute: Callable[[Any], Any]


def count(
    group: Any,
    label: Any,
    guess: Any,
    *,
    groups: int | tuple[int, ...],
    classes: int = 2,
    mask: Any = None,
    weights: Any = None,
) -> Counts:
    """Counts the examples of a batch; pure, for use inside jit, scan and vmap.

    Args:
      group: int[B], or int[B, J] for a product of J attributes; a negative one, or
        one beyond the last, is unknown.
      label: int[B] (or bool[B]).
      guess: int[B] (or bool[B]).
      groups: G, or (G1, ..., GJ).
      classes: K.
      mask: bool[B]; False rows add nothing, whatever they hold. All True if None.
      weights: float[B]; cells are then sums of weights.

    Returns:
      Counts of the batch.

    Raises:
      ValueError: shapes that do not fit, groups or classes below 1, or a float among
        group, label and guess.
    """
    shape = tuple(groups) if isinstance(groups, tuple) else (groups,)
    for n, size in enumerate(shape):
        field = f"groups[{n}]" if isinstance(groups, tuple) else "groups"
        _validate.integer_at_least(field, size, 1, "count at least one group")
    _validate.integer_at_least("classes", classes, 2, "a binary label has 2")
    group = _integers("group", group)
    if group.ndim == 1:
        group = group[:, None]
    if group.ndim != 2 or group.shape[1] != len(shape):
        bound = f"does not name {len(shape)} attributes of an example"
        cure = "give int[B], or int[B, J] with groups=(G1, ..., GJ)"
        _validate.fail("group", f"array of shape {group.shape}", bound, cure)
    size = len(group)
    label, guess = _column("label", label, size), _column("guess", guess, size)
    mask = jnp.ones(size, bool) if mask is None else jnp.asarray(mask, bool)
    if mask.shape != (size,):
        _validate.fail("mask", f"array of shape {mask.shape}", f"must be bool[{size}]")
    limits = jnp.array(shape, group.dtype)
    known = jnp.all((group >= 0) & (group < limits[None]), axis=1)
    for value in (label, guess):
        known &= (value >= 0) & (value < classes)
    used = mask & known
    # Rows that do not count go where there is no cell.
    place = [jnp.where(used, group[:, j], shape[j]) for j in range(len(shape))]
    place += [jnp.where(used, label, classes), jnp.where(used, guess, classes)]
    zeros = jnp.zeros((*shape, classes, classes), jnp.int32)
    unknown = jnp.sum(mask & ~known, dtype=jnp.int32)
    if weights is None:
        ones = used.astype(jnp.int32)
        return Counts(zeros.at[tuple(place)].add(ones, mode="drop"), unknown)
    weights = jnp.asarray(weights, jnp.float32)
    if weights.shape != (size,):
        bound = f"must be float[{size}]"
        _validate.fail("weights", f"array of shape {weights.shape}", bound)
    weights = jnp.where(used, weights, 0.0)
    empty = zeros.astype(jnp.float32)
    return Counts(
        empty.at[tuple(place)].add(weights, mode="drop"),
        unknown,
        empty.at[tuple(place)].add(weights**2, mode="drop"),
    )


def merge(first: Any, second: Any) -> Any:
    """Counts (or any state of a `Metric` of this module) of both batches together."""
    return jax.tree.map(jnp.add, first, second)


def counter(
    *, groups: int | tuple[int, ...], classes: int = 2, weighted: bool = False
) -> Metric:
    """`count` as a `Metric`: a state to carry through a scan over batches.

    Args:
      groups: as of `count`.
      classes: K.
      weighted: whether `update` gets weights.
    """
    nothing = jnp.zeros(0, jnp.int32)
    attributes = len(groups) if isinstance(groups, tuple) else 1

    def update(state, *, group, label, guess, mask=None, weights=None):
        found = count(
            group,
            label,
            guess,
            groups=groups,
            classes=classes,
            mask=mask,
            weights=weights,
        )
        return merge(state, found)

    def init():
        return count(
            nothing.reshape(0, attributes),
            nothing,
            nothing,
            groups=groups,
            classes=classes,
            weights=jnp.zeros(0) if weighted else None,
        )

    return Metric(init, update, lambda state: state)


def marginal(cells: Any, keep: int | Sequence[int], attributes: int) -> Any:
    """Cells by some of several attributes, summed over the others.

    Args:
      cells: [G1, ..., GJ, K, K].
      keep: numbers of the attributes that stay, in their order.
      attributes: J.
    """
    keep = (keep,) if isinstance(keep, int) else tuple(keep)
    if sorted(set(keep)) != list(keep) or not set(keep) <= set(range(attributes)):
        bound = f"must name some of the {attributes} attributes, ascending"
        _validate.fail("keep", keep, bound, "such as (0, 2)")
    return cells.sum(axis=tuple(j for j in range(attributes) if j not in keep))


def flatten(cells: Any) -> Any:
    """Cells [G1, ..., GJ, K, K] as [G, K, K], every intersection a group."""
    return cells.reshape(-1, *cells.shape[-2:])


class Overlapping(NamedTuple):
    """Counts where an example may be of several groups, or of none.

    Attributes:
      patterns: int32[U, K, K], cells of each distinct set of groups.
      members: bool[U, G], which groups a pattern is of.
    """

    patterns: jax.Array
    members: jax.Array

    @property
    def cells(self) -> jax.Array:
        """int32[G, K, K]; an example counts in each of its groups.

        One person with m memberships changes m cells by 1, so sensitivity is m in L1
        and sqrt(m) in L2, where `SENSITIVITY` has 1.
        """
        mem = jnp.asarray(self.members, self.patterns.dtype)
        return jnp.einsum("ug,uyk->gyk", mem, self.patterns)


def of_members(
    members: Any, label: Any, guess: Any, *, classes: int = 2
) -> Overlapping:
    """Counts by pattern of membership; not for use inside jit.

    A bootstrap draws patterns, so that an example in two groups is drawn for both.

    Args:
      members: bool[B, G].
      label: int[B].
      guess: int[B].
      classes: K.
    """
    members = np.asarray(members, bool)
    if members.ndim != 2:
        bound = "must be bool[B, G]"
        _validate.fail("members", f"array of shape {members.shape}", bound)
    patterns, which = np.unique(members, axis=0, return_inverse=True)
    found = count(
        jnp.asarray(which.reshape(-1), jnp.int32),
        label,
        guess,
        groups=max(len(patterns), 1),
        classes=classes,
    )
    return Overlapping(found.cells, jnp.asarray(patterns))


def require(found: Counts, names: Sequence[str] | None = None) -> None:
    """Raises if an example is in no cell, or a named group has no example.

    Args:
      found: from `count`, outside of jit.
      names: of the groups, [G]; None does not ask that all occur.

    Raises:
      ValueError: for either.
    """
    if unknown := int(found.unknown):
        bound = "examples have a group, label or guess that is out of range"
        cure = "drop them knowingly, or give them a group of their own"
        _validate.fail("unknown", unknown, bound, cure)
    if names is None:
        return
    cells = np.asarray(flatten(found.cells))
    if len(cells) != len(names):
        _validate.fail("names", len(names), f"must name {len(cells)} groups")
    empty = [
        name for name, n in zip(names, cells.sum(axis=(1, 2)), strict=True) if not n
    ]
    if empty:
        bound = "has no examples, so none of its rates is defined"
        _validate.fail("group", ", ".join(empty), bound, "leave it out, or merge it")


def host(cells: Any) -> np.ndarray:
    """Cells as int64, for counts above 2^31 - 1 that were added up on the host.

    Raises:
      ValueError: if an int32 cell overflowed.
    """
    cells = np.asarray(cells)
    if np.issubdtype(cells.dtype, np.integer) and np.any(cells < 0):
        bound = f"is negative: more than {_EXACT} examples fell into a cell"
        cure = "add the counts of parts up with NumPy's int64"
        _validate.fail("cells", int(cells.min()), bound, cure)
    return cells.astype(np.int64) if cells.dtype.kind in "iu" else cells


def floats(cells: Any) -> jax.Array:
    """Cells as floats: JAX's int32 would wrap NumPy's int64, and sums beyond 2^31.

    Args:
      cells: counts or sums of weights, of JAX or of NumPy; floats of JAX stay.
    """
    if not isinstance(cells, jax.Array):
        cells = np.asarray(cells)
        cells = jnp.asarray(cells.astype(float) if cells.dtype.kind in "iu" else cells)
    floating = jnp.issubdtype(cells.dtype, jnp.floating)
    return cells if floating else cells.astype(float)


def _integers(name, values) -> jax.Array:
    if not isinstance(values, jax.Array):
        values = np.asarray(values)
        if values.dtype.kind in "iu" and values.dtype.itemsize > 4:
            # What JAX's int32 cannot hold is no group, and must not become one.
            least = 0 if values.dtype.kind == "u" else -_EXACT
            values = np.clip(values, least, _EXACT).astype(np.int32)
    values = jnp.asarray(values)
    if values.dtype == bool:
        return values.astype(jnp.int32)
    if not jnp.issubdtype(values.dtype, jnp.integer):
        cure = "for probabilities, threshold them first"
        _validate.fail(name, str(values.dtype), "must be integers or flags", cure)
    if jnp.issubdtype(values.dtype, jnp.unsignedinteger) or values.dtype.itemsize < 4:
        return values.astype(jnp.int32)
    return values


def _column(name, values, size) -> jax.Array:
    values = _integers(name, values)
    if values.shape != (size,):
        bound = f"must be int[{size}], one an example"
        _validate.fail(name, f"array of shape {values.shape}", bound)
    return values
