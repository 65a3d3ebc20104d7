"""Which operations make a product, and which a product can be carried through.

`product` recognises the equations whose result is a product of two values that both
depend on the example. `carry` rewrites the terms of a lazy value through one linear
equation, or returns None: then the value is computed and the equation runs as written.
A rule here may only ever save work. It cannot change a result, since whatever has no
rule is computed by the program's own equations.
"""

import dataclasses
import itertools
import math

import jax.numpy as jnp
from jax import lax

from trustml.privacy.factored import terms as terms_lib
from trustml.privacy.factored import values as values_lib
from trustml.privacy.factored.terms import Conv, Dense, Dot, Post, Scatter, Term

IDENTITIES = frozenset(
    {
        "convert_element_type",
        "reduce_precision",
        "copy",
        "copy_p",
        "name",
        "sharding_constraint",
        "pvary",
        "pcast",
        "optimization_barrier",
        "stop_gradient",
    }
)


def product(eqn, ins) -> values_lib.Terms | None:
    """The terms of an equation that multiplies two values of the example, or None."""
    name = eqn.primitive.name
    if name == "dot_general" and all(v.tainted for v in ins):
        (ca, cg), (ba, bg) = eqn.params["dimension_numbers"]
        return (Term(_dot(ins[0].array, ins[1].array, ca, cg, ba, bg)),)
    if name == "conv_general_dilated" and all(v.tainted for v in ins):
        if eqn.params["feature_group_count"] != 1:
            return None
        params = tuple(sorted(eqn.params.items()))
        return (Term(Conv(ins[0].array, ins[1].array, params)),)
    if name in ("scatter-add", "scatter_add"):
        return _embedding(eqn, ins)
    if name == "dynamic_update_slice":
        return _one_row(eqn, ins)
    return None


def _dot(a, g, ca, cg, ba, bg) -> Dot:
    a_labels, g_labels = {}, {}  # axis -> label
    labels = itertools.count()
    out = []
    for i, j in zip(ba, bg, strict=True):
        a_labels[i] = g_labels[j] = next(labels)
        out.append(a_labels[i])
    for i, j in zip(ca, cg, strict=True):
        a_labels[i] = g_labels[j] = next(labels)
    for x, found in ((a, a_labels), (g, g_labels)):
        for axis in range(x.ndim):
            if axis not in found:
                found[axis] = next(labels)
                out.append(found[axis])
    a_dims = tuple(a_labels[i] for i in range(a.ndim))
    g_dims = tuple(g_labels[i] for i in range(g.ndim))
    return Dot(a, g, a_dims, g_dims, tuple(out))


def _embedding(eqn, ins) -> values_lib.Terms | None:
    """Rows added into zeros at example-dependent places: `table[ids]` transposed."""
    operand, ids, updates = ins
    if not operand.zero or not updates.tainted:
        return None
    numbers = eqn.params["dimension_numbers"]
    shape = eqn.outvars[0].aval.shape
    axes = numbers.scatter_dims_to_operand_dims
    if getattr(numbers, "operand_batching_dims", ()):
        return None
    # The extent of one update along every axis of the table.
    u = updates.array
    inserted = numbers.inserted_window_dims
    windowed = [d for d in range(len(shape)) if d not in inserted]
    part = dict.fromkeys(inserted, 1)
    part |= {
        d: u.shape[w] for d, w in zip(windowed, numbers.update_window_dims, strict=True)
    }
    short = [d for d in range(len(shape)) if part[d] != shape[d]]
    if len(short) != 1 or part[short[0]] != 1 or short[0] not in axes:
        return None
    (axis,) = short
    rows, window = shape[axis], [shape[d] for d in range(len(shape)) if d != axis]
    places = [d for d in range(u.ndim) if d not in numbers.update_window_dims]
    u = jnp.transpose(u, (*places, *numbers.update_window_dims)).reshape(-1, *window)
    starts = ids.array.reshape(-1, len(axes))
    row = starts[:, axes.index(axis)]
    if eqn.params["mode"] == lax.GatherScatterMode.CLIP:
        row = jnp.clip(row, 0, rows - 1)
    else:  # an update that does not start at 0 along a full axis lies outside
        others = [i for i, d in enumerate(axes) if d != axis]
        outside = jnp.any(starts[:, others] != 0, axis=1)
        row = jnp.where(outside, rows, row) if others else row
    return (_row_axis_to(axis, Term(Scatter(row, u, rows)), len(shape)),)


def _one_row(eqn, ins) -> values_lib.Terms | None:
    """One slice written into zeros where the example says: `table[i]` transposed."""
    operand, update, *starts = ins
    if not operand.zero or not update.tainted:
        return None
    moving = [d for d, start in enumerate(starts) if start.tainted]
    full, part = eqn.outvars[0].aval.shape, eqn.invars[1].aval.shape
    if len(moving) != 1 or part[moving[0]] != 1:
        return None
    (axis,) = moving
    if any(full[d] != part[d] for d in range(len(full)) if d != axis):
        return None
    u = jnp.moveaxis(update.array, axis, 0)
    ids = jnp.clip(starts[axis].array, 0, full[axis] - 1).reshape(1)
    return (_row_axis_to(axis, Term(Scatter(ids, u, full[axis])), len(full)),)


def _row_axis_to(axis: int, term: Term, ndim: int) -> Term:
    if axis == 0:
        return term
    order = [d if d > axis else d + 1 for d in range(ndim)]
    order[axis] = 0
    permutation = tuple(order)
    return term.then(_post(lax.transpose_p, {"permutation": permutation}))


def _post(primitive, params, consts=(), position=0, isometric=True, box=()) -> Post:
    items = tuple(sorted(params.items()))
    return Post(tuple(consts), primitive, items, position, isometric, 0, box)


def carry(eqn, ins) -> values_lib.Terms | None:
    """The terms of a linear equation of lazy values, or None where there is no rule."""
    rule = _RULES.get(eqn.primitive.name)
    if rule is None:
        return None
    return rule(eqn, ins)


def _single(rule):
    """A rule for one lazy operand whose other operands hold no example."""

    def apply(eqn, ins):
        which = [i for i, v in enumerate(ins) if v.lazy]
        if len(which) != 1 or any(v.tainted for v in ins if not v.lazy):
            return None
        out = []
        for term in ins[which[0]].terms():
            if isinstance(term.product, terms_lib.Carry):
                return None
            new = rule(eqn, ins, which[0], term)
            if new is None:
                return None
            out.append(new)
        return tuple(out)

    return apply


def _plain(isometric: bool = True):
    def rule(eqn, ins, which, term):
        consts = [v.array for v in ins if not v.lazy]
        return term.then(
            _post(eqn.primitive, eqn.params, consts, which, isometric=isometric)
        )

    return _single(rule)


@_single
def _transpose(eqn, ins, which, term):
    permutation = eqn.params["permutation"]
    if isinstance(term.product, Dot) and not term.posts:
        dot = term.product
        out = tuple(dot.out[i] for i in permutation)
        return Term(dataclasses.replace(dot, out=out))
    return term.then(_post(eqn.primitive, eqn.params))


@_single
def _broadcast(eqn, ins, which, term):
    old, new = eqn.invars[0].aval.shape, eqn.params["shape"]
    if math.prod(old) != math.prod(new) or len(ins) != 1:
        return None
    kept = [d for d in eqn.params["broadcast_dimensions"] if new[d] != 1]
    if kept != sorted(kept):
        return None
    params = {"new_sizes": tuple(new), "dimensions": None, "sharding": None}
    return term.then(_post(lax.reshape_p, params))


@_single
def _slice(eqn, ins, which, term):
    if isinstance(term.product, Dot) and not term.posts:
        dot = term.product
        starts, limits = eqn.params["start_indices"], eqn.params["limit_indices"]
        strides = eqn.params["strides"] or (1,) * len(starts)
        cut = {
            label: slice(lo, hi, step)
            for label, lo, hi, step in zip(
                dot.out, starts, limits, strides, strict=True
            )
        }
        a = dot.a[tuple(cut.get(x, slice(None)) for x in dot.a_dims)]
        g = dot.g[tuple(cut.get(x, slice(None)) for x in dot.g_dims)]
        return Term(dataclasses.replace(dot, a=a, g=g))
    return term.then(_post(eqn.primitive, eqn.params, isometric=False))


@_single
def _pad(eqn, ins, which, term):
    if which != 0 or not ins[1].zero:
        return None
    config = eqn.params["padding_config"]
    shape = eqn.invars[0].aval.shape
    isometric = all(lo >= 0 and hi >= 0 for lo, hi, _ in config)
    box = ()
    if isometric and all(interior == 0 for *_, interior in config):
        box = tuple((lo, lo + n) for (lo, _, _), n in zip(config, shape, strict=True))
    return term.then(_post(eqn.primitive, eqn.params, isometric=isometric, box=box))


@_single
def _place(eqn, ins, which, term):
    if which != 1 or not ins[0].zero:
        return None
    consts = [v.array for i, v in enumerate(ins) if i != 1]
    return term.then(_post(eqn.primitive, eqn.params, consts, 1))


@_single
def _select(eqn, ins, which, term):
    if which == 0 or any(not v.zero for i, v in enumerate(ins) if i not in (0, which)):
        return None
    consts = [v.array for i, v in enumerate(ins) if i != which]
    return term.then(_post(eqn.primitive, eqn.params, consts, which, isometric=False))


@_single
def _reduce_sum(eqn, ins, which, term):
    if not isinstance(term.product, Dot) or term.posts:
        return None
    axes = eqn.params["axes"]
    out = tuple(x for i, x in enumerate(term.product.out) if i not in axes)
    loops = term.product.loops
    if any(x not in out for x in loops):
        loops = ()
    return Term(dataclasses.replace(term.product, out=out, loops=loops))


@_single
def _times_matrix(eqn, ins, which, term):
    """`P @ M` with M free of the example: absorbed into the factor that M meets."""
    (c0, c1), (b0, b1) = eqn.params["dimension_numbers"]
    if b0 or b1 or term.posts:
        return None
    mine, theirs = (c0, c1) if which == 0 else (c1, c0)
    matrix = ins[1 - which].array
    if isinstance(term.product, Scatter):
        return _scatter_times_matrix(term.product, matrix, mine, theirs, which)
    if not isinstance(term.product, Dot):
        return None
    dot = term.product
    labels = [dot.out[i] for i in mine]
    for name, other in (("a", dot.g_dims), ("g", dot.a_dims)):
        dims = getattr(dot, f"{name}_dims")
        if all(x in dims and x not in other for x in labels):
            break
    else:
        return None
    factor = terms_lib.contract(
        getattr(dot, name),
        matrix,
        ([dims.index(x) for x in labels], theirs),
    )
    fresh = 1 + max((*dot.a_dims, *dot.g_dims))
    new = tuple(fresh + i for i in range(matrix.ndim - len(theirs)))
    rest = tuple(x for x in dot.out if x not in labels)
    out = (*rest, *new) if which == 0 else (*new, *rest)
    dims = (*(x for x in dims if x not in labels), *new)
    if name == "a":
        return Term(dataclasses.replace(dot, a=factor, a_dims=dims, out=out))
    return Term(dataclasses.replace(dot, g=factor, g_dims=dims, out=out))


def _scatter_times_matrix(scatter, matrix, mine, theirs, which):
    """An embedding gradient times a matrix over its window: rows stay rows."""
    if which != 0 or scatter.kept or 0 in mine:
        return None
    updates = terms_lib.contract(scatter.updates, matrix, (mine, theirs))
    return Term(dataclasses.replace(scatter, updates=updates))


def _scale(eqn, ins):
    """Product with a scalar (of the model, or of the example itself), or with an array.

    A scalar joins a factor; an array free of the example is applied after the sum.
    """
    lhs, rhs = ins
    if eqn.primitive.name == "div" and not lhs.lazy:
        return None
    main, other = (lhs, rhs) if lhs.lazy else (rhs, lhs)
    if other.lazy:
        return None
    scalar = other.scalar if other.scalar is not None else other
    if scalar.array.ndim != 0:
        if not other.tainted and not (lhs.lazy and rhs.lazy):
            return _plain(isometric=False)(eqn, ins)
        return None
    by = scalar.array
    if eqn.primitive.name == "div":
        by = 1 / by
    return _scaled(main.terms(), by)


def _scaled(terms: values_lib.Terms, by) -> values_lib.Terms | None:
    out = []
    for term in terms:
        match term.product:
            case Dot() as p:
                new = dataclasses.replace(p, g=p.g * by.astype(p.g.dtype))
            case Scatter() as p:
                new = dataclasses.replace(
                    p, updates=p.updates * by.astype(p.updates.dtype)
                )
            case Conv() as p:
                new = dataclasses.replace(p, g=p.g * by.astype(p.g.dtype))
            case Dense() as p:
                new = dataclasses.replace(p, x=p.x * by.astype(p.x.dtype))
            case _:
                return None
        out.append(Term(new, term.posts))
    return tuple(out)


def _negate(eqn, ins):
    return _scaled(ins[0].terms(), jnp.float32(-1))


def _add(eqn, ins):
    """A parameter used several times: the sum of its terms."""
    lhs, rhs = ins
    if lhs.scalar is not None or rhs.scalar is not None:
        if not (lhs.zero or rhs.zero):
            return None
    left, right = (_addend(v) for v in (lhs, rhs))
    if eqn.primitive.name == "sub":
        right = _scaled(right, jnp.float32(-1))
        if right is None:
            return None
    return (*left, *right)


def _addend(value):
    if value.tainted or value.zero:
        return value.terms()
    reason = "an addend that depends on no example: regularise outside the loss"
    return (Term(Dense(value.array, reason)),)


def _concatenate(eqn, ins):
    """Blocks side by side: each placed into zeros of the whole."""
    dimension = eqn.params["dimension"]
    shape = eqn.outvars[0].aval.shape
    out, start = [], 0
    for value, var in zip(ins, eqn.invars, strict=True):
        n = var.aval.shape[dimension]
        config = [(0, 0, 0)] * len(shape)
        config[dimension] = (start, shape[dimension] - start - n, 0)
        box = [(0, extent) for extent in shape]
        box[dimension] = (start, start + n)
        start += n
        for term in value.terms():
            if isinstance(term.product, terms_lib.Carry):
                return None
            params = {"padding_config": tuple(config)}
            out.append(term.then(_post(lax.pad_p, params, box=tuple(box))))
    return tuple(out)


_RULES = {
    "transpose": _transpose,
    "reshape": _plain(),
    "squeeze": _plain(),
    "expand_dims": _plain(),
    "rev": _plain(),
    "broadcast_in_dim": _broadcast,
    "slice": _slice,
    "pad": _pad,
    "dynamic_update_slice": _place,
    "select_n": _select,
    "reduce_sum": _reduce_sum,
    "dot_general": _times_matrix,
    "mul": _scale,
    "div": _scale,
    "neg": _negate,
    "add": _add,
    "add_any": _add,
    "sub": _add,
    "concatenate": _concatenate,
}
