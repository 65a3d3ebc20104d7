"""Norms and clipped sums of per-example gradients, from their factors.

For one leaf, `combine` brings its terms into a few whose squared norms add up: terms of
one kind are joined along the contracted axis (a parameter used several times is one
longer product), a tied embedding keeps its scatter and its product with one cross term,
blocks that do not overlap stay apart. What fits no pattern is instantiated.

Two ways to the norm of a product P[K, I, O] over T positions:

    Gram          sum_ts (a_t . a_s)(g_t . g_s)      2 K T^2 (I + O) FLOPs
    instantiate   form P, square, keep P for the sum    0 extra, K I O floats

Gram is cheaper in FLOPs and in memory exactly while T < I O / (I + O).

A Gram norm can cancel below the truth in floating point, which would break the
sensitivity. So each norm comes with an upward slack of 8 u sum_ts |(a_t.a_s)(g_t.g_s)|,
u = 2^-24: clipping uses norm^2 + slack, reports use norm^2.

Dimension key: B examples, K kept, T contracted, I and O free, V rows, D window.
References: https://arxiv.org/abs/2110.05679, https://arxiv.org/abs/2210.00038
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from trustml.privacy.factored import convolution
from trustml.privacy.factored import terms as terms_lib
from trustml.privacy.factored.terms import Conv, Dense, Dot, Scatter, Term

UNIT_ROUNDOFF = 2.0**-24


class Norm2(NamedTuple):
    """A squared norm and how far it may lie below the truth; float32[] each."""

    value: jax.Array
    slack: jax.Array


@dataclasses.dataclass(frozen=True)
class Note:
    """How one term's norm is found; for `explain`.

    Attributes:
      kind: 'dot', 'scatter', 'conv', 'direct' or 'materialized'.
      norm: 'gram', 'instantiate', 'outer' or 'squares'.
      dims: the extents behind the choice, e.g. {'K': 1, 'T': 32, 'I': 8, 'O': 16}.
      flops: extra FLOPs of the norm, per example.
      bytes: memory kept for the clipped sum, per example.
      reason: why it is materialised; ''.
    """

    kind: str
    norm: str
    dims: tuple[tuple[str, int], ...]
    flops: int
    bytes: int
    reason: str = ""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Leaf:
    """One parameter's gradient, ready for the norm and for the clipped sum."""

    terms: tuple[Term, ...]
    notes: tuple[Note, ...] = dataclasses.field(metadata={"static": True})


def prefer_gram(t: int, i: int, o: int) -> bool:
    """Whether the Gram norm is cheaper than the product itself: T (I + O) < I O."""
    return t * (i + o) < i * o


def combine(terms: tuple[Term, ...], shape: tuple[int, ...]) -> tuple[Leaf, Norm2]:
    """Brings the terms of one leaf into parts and finds their squared norm.

    Args:
      terms: their sum is the gradient of the leaf for one example.
      shape: of the leaf.

    Returns:
      (leaf, norm2): `leaf.terms` sum to the same gradient, some instantiated.
    """
    if not terms:
        zero = jnp.zeros((), jnp.float32)
        return Leaf((), (Note("direct", "squares", (), 0, 0),)), Norm2(zero, zero)
    groups = _join(terms)
    if len(groups) > 1 and not _orthogonal_or_tied(groups):
        groups = [_instantiated(groups)]
    done, notes, norms = [], [], []
    for term in groups:
        term, note, norm2 = _norm2(term)
        done.append(term)
        notes.append(note)
        norms.append(norm2)
    value = sum((n.value for n in norms[1:]), norms[0].value)
    slack = sum((n.slack for n in norms[1:]), norms[0].slack)
    pair = _tied(groups)
    if pair is not None:
        cross = _tied_cross(*pair)
        value, slack = value + 2 * cross.value, slack + 2 * cross.slack
    return Leaf(tuple(done), tuple(notes)), Norm2(value, slack)


def _instantiated(groups) -> Term:
    total = terms_lib.instantiate(groups[0])
    for term in groups[1:]:
        total = total + terms_lib.instantiate(term)
    reasons = [t.product.reason for t in groups if isinstance(t.product, Dense)]
    small = all(no_larger_than_factors(t.product) for t in groups)
    reason = next(filter(None, reasons), "its uses have gradients of different forms")
    return Term(Dense(total, "" if small else reason))


def no_larger_than_factors(product) -> bool:
    """Whether a product takes no more memory than its factors do."""
    match product:
        case terms_lib.Carry():
            return True
        case Dense():
            return not product.reason
        case Dot():
            c = terms_lib.canonical(product)
            return not prefer_gram(c.a.shape[1], c.a.shape[2], c.g.shape[2])
    return False


def _join(terms) -> list[Term]:
    """Joins terms of one kind and equal posts along their contracted axes."""
    groups: list[Term] = []
    for term in terms:
        for i, other in enumerate(groups):
            joined = _joined(other, term)
            if joined is not None:
                groups[i] = joined
                break
        else:
            groups.append(term)
    return groups


def _same_posts(x: Term, y: Term) -> bool:
    if any(p.consts for p in (*x.posts, *y.posts)):
        return False
    return [p.key for p in x.posts] == [p.key for p in y.posts]


def _joined(x: Term, y: Term) -> Term | None:
    if not _same_posts(x, y) or x.product.shape != y.product.shape:
        return None
    match x.product, y.product:
        case (Dot() as p, Dot() as q):
            one, two = terms_lib.canonical(p), terms_lib.canonical(q)
            if _places(p, one) != _places(q, two):
                return None
            a = jnp.concatenate(_promoted(one.a, two.a), axis=1)
            g = jnp.concatenate(_promoted(one.g, two.g), axis=1)
            joined = terms_lib.from_canonical(p, one._replace(a=a, g=g))
            return Term(joined, x.posts)
        case (Conv() as p, Conv() as q) if (p.params, p.kept) == (q.params, q.kept):
            if (p.x.shape, p.g.shape) != (q.x.shape, q.g.shape):
                return None
            both = Conv(jnp.stack([p.x, q.x]), jnp.stack([p.g, q.g]), p.params, p.kept)
            return terms_lib.lift(Term(both, x.posts), kept=False)
        case (Scatter() as p, Scatter() as q) if (p.kept, p.rows) == (q.kept, q.rows):
            ids = jnp.concatenate([p.ids, q.ids], axis=p.kept)
            updates = jnp.concatenate(_promoted(p.updates, q.updates), axis=p.kept)
            return Term(Scatter(ids, updates, p.rows, p.kept), x.posts)
        case (Dense() as p, Dense() as q):
            x_new = p.x.astype(jnp.float32) + q.x.astype(jnp.float32)
            return Term(Dense(x_new, p.reason or q.reason), x.posts)
    return None


def _promoted(*arrays):
    dtype = arrays[0].dtype if all(x.dtype == arrays[0].dtype for x in arrays) else None
    return [x.astype(dtype or jnp.float32) for x in arrays]


def _places(dot: Dot, c: terms_lib.Canonical):
    """Which axes of the product are kept, which come from which factor."""
    return [[dot.out.index(w) for w in ws] for ws in (c.kept, c.first, c.second)]


def _orthogonal_or_tied(groups: list[Term]) -> bool:
    """Whether every pair is orthogonal, or the one pair is a tied embedding."""
    if _tied(groups) is not None:
        return True
    if any(not p.isometric for t in groups for p in t.posts):
        return False
    return all(_disjoint(x, y) for i, x in enumerate(groups) for y in groups[:i])


def _disjoint(x: Term, y: Term) -> bool:
    """Whether two terms are placed, last of all, into boxes that do not overlap."""
    xs, ys = list(x.posts), list(y.posts)
    while (
        xs and ys and xs[-1].key == ys[-1].key and not (xs[-1].consts or ys[-1].consts)
    ):
        xs.pop()
        ys.pop()
    if not (xs and ys and xs[-1].box and ys[-1].box):
        return False
    # Boxes of arrays of different shape say nothing of each other: equal reshapes name
    # only the shape they end in.
    if _shape_after(x, len(xs)) != _shape_after(y, len(ys)):
        return False
    boxes = zip(xs[-1].box, ys[-1].box, strict=True)
    return any(hi <= start or stop <= lo for (lo, hi), (start, stop) in boxes)


def _shape_after(term: Term, count: int) -> tuple[int, ...]:
    """Shape after the first `count` posts."""
    array = jax.ShapeDtypeStruct(term.product.shape, jnp.float32)
    for post in term.posts[:count]:
        array = jax.eval_shape(post, array)
    return array.shape


def _tied(groups: list[Term]) -> tuple[Scatter, Dot] | None:
    """The scatter and the product of an embedding that is also the output layer."""
    if len(groups) != 2 or not _same_posts(*groups):
        return None
    if groups[0].product.shape != groups[1].product.shape:
        return None
    first, second = (t.product for t in groups)
    if isinstance(first, Dot):
        first, second = second, first
    if not (isinstance(first, Scatter) and isinstance(second, Dot)):
        return None
    c = terms_lib.canonical(second)
    ordered = sum(_places(second, c), []) == list(range(len(second.out)))
    if first.kept or not ordered or c.kept or c.a.shape[2] != first.rows:
        return None
    if not all(p.isometric for t in groups for p in t.posts):
        return None
    return first, second


def _tied_cross(scatter: Scatter, dot: Dot) -> Norm2:
    """<scatter, sum_s p_s h_s^T> = sum_ts p_s[id_t] (u_t . h_s)."""
    p, h = terms_lib.canonical(dot)[:2]  # [1, S, V], [1, S, D]
    ids, inside = _in_range(scatter)
    picked = jnp.take(p[0], ids, axis=1, mode="clip").astype(jnp.float32)  # [S, T]
    u = scatter.updates.reshape(scatter.updates.shape[0], -1)
    dots = terms_lib.contract(h[0], u, ((1,), (1,)))  # [S, T]
    each = jnp.where(inside[None, :], picked * dots, 0.0)
    return _summed(each)


def _in_range(scatter: Scatter):
    inside = (scatter.ids >= 0) & (scatter.ids < scatter.rows)
    return jnp.where(inside, scatter.ids, 0), inside


def _summed(each) -> Norm2:
    slack = 8 * UNIT_ROUNDOFF * jnp.sum(jnp.abs(each))
    return Norm2(jnp.sum(each), slack)


def _squares(x) -> Norm2:
    value = jnp.sum(jnp.square(x.astype(jnp.float32)))
    return Norm2(value, 8 * UNIT_ROUNDOFF * value)


def _norm2(term: Term) -> tuple[Term, Note, Norm2]:
    """The squared norm of one term, and the form kept for the clipped sum."""
    through = all(p.isometric for p in term.posts)
    if terms_lib.depth(term.product) and not isinstance(term.product, Dense):
        if through:
            return _norm2_by_step(term)
    match term.product:
        case Dot() as dot:
            c = terms_lib.canonical(dot)
            a, g = c.a, c.g
            (k, t, i), o = a.shape, g.shape[2]
            dims = (("K", k), ("T", t), ("I", i), ("O", o))
            if through and t == 1:
                rows = [
                    jnp.sum(jnp.square(x.astype(jnp.float32)), (1, 2)) for x in (a, g)
                ]
                value = jnp.sum(rows[0] * rows[1])
                note = Note("dot", "outer", dims, 2 * k * (i + o), 4 * k * (i + o))
                return term, note, Norm2(value, 8 * UNIT_ROUNDOFF * value)
            if through and prefer_gram(t, i, o):
                batch = ((0,), (0,))
                aa = terms_lib.contract(a, a, ((2,), (2,)), batch)
                gg = terms_lib.contract(g, g, ((2,), (2,)), batch)
                flops = 2 * k * t * t * (i + o)
                note = Note("dot", "gram", dims, flops, 4 * k * t * (i + o))
                return term, note, _summed(aa * gg)
            note = Note("dot", "instantiate", dims, 0, 4 * k * i * o)
            return _kept(term, terms_lib.multiplied(dot, c), note, through)
        case Scatter() as s:
            n, d = s.ids.shape[-1], math.prod(s.updates.shape[s.kept + 1 :])
            dims = (("T", n), ("V", s.rows), ("D", d))
            if through:
                note = Note("scatter", "gram", dims, 2 * n * n * d, 4 * n * d)
                return term, note, _scatter_gram(s)
            note = Note("scatter", "instantiate", dims, 0, 4 * s.rows * d)
            return _kept(term, terms_lib.instantiate_product(s), note, through)
        case Conv() as conv:
            return _conv_norm2(term, conv, through)
        case Dense() as dense:
            kind = "materialized" if dense.reason else "direct"
            size = math.prod(dense.x.shape)
            note = Note(kind, "squares", (), 2 * size, 4 * size, dense.reason)
            return _kept(term, dense.x, note, through)
    raise TypeError(f"not a product: {type(term.product).__name__}")


def _norm2_by_step(term: Term) -> tuple[Term, Note, Norm2]:
    """The norm of a product stacked by a scan, one step after the other.

    A loop rather than one batched product: the buffers are those of one step.
    """
    seen: dict[str, Any] = {}

    def step(product):
        inner, seen["note"], norm2 = _norm2(Term(product))
        seen["whole"] = inner.product is not product
        return norm2, inner.product.x if seen["whole"] else ()

    norm2, whole = lax.map(step, terms_lib.peel(term.product))
    total = Norm2(jnp.sum(norm2.value), jnp.sum(norm2.slack))
    note, steps = seen["note"], norm2.value.shape[0]
    note = dataclasses.replace(
        note,
        dims=(("L", steps), *note.dims),
        flops=steps * note.flops,
        bytes=steps * note.bytes,
    )
    if not seen["whole"]:
        return term, note, total
    axis, kept = terms_lib.stack_axis(term.product), terms_lib.depth(term.product)
    if axis:
        return Term(Dense(jnp.moveaxis(whole, 0, axis)), term.posts), note, total
    return Term(Dense(whole, kept=min(kept, 1)), term.posts), note, total


def _kept(term: Term, whole, note: Note, through: bool) -> tuple[Term, Note, Norm2]:
    """A product that is instantiated, kept as an array for the clipped sum."""
    if through:
        return Term(Dense(whole), term.posts), note, _squares(whole)
    mapped = whole
    for post in term.posts:
        mapped = post(mapped)
    return Term(Dense(whole), term.posts), note, _squares(mapped)


def _scatter_gram(s: Scatter) -> Norm2:
    """sum_ts 1[id_t = id_s] (u_t . u_s), over ids inside the table."""

    def one(ids, updates):
        inside = (ids >= 0) & (ids < s.rows)
        u = updates.reshape(updates.shape[0], -1)
        same = (ids[:, None] == ids[None, :]) & (inside[:, None] & inside[None, :])
        return jnp.where(same, terms_lib.contract(u, u, ((1,), (1,))), 0.0)

    for _ in range(s.kept):
        one = jax.vmap(one)
    return _summed(one(s.ids, s.updates))


def _conv_norm2(term: Term, conv: Conv, through: bool):
    whole_shape = conv.shape[conv.kept :]
    offsets = convolution.Offsets.of(conv)
    if offsets is None:
        whole = terms_lib.instantiate_product(conv)
        size = math.prod(conv.shape)
        note = Note("conv", "instantiate", (("numel", size),), 0, 4 * size)
        return _kept(term, whole, note, through)
    t, i, o = offsets.t, offsets.i, offsets.o
    dims = (("T", t), ("I", i), ("O", o))
    groups = offsets.params["batch_group_count"]
    if through and groups == 1 and prefer_gram(t, i, o):
        fn = offsets.gram
        for _ in range(conv.kept):
            fn = jax.vmap(fn)
        flops = 2 * t * t * (i + o)
        note = Note("conv", "gram", dims, flops, 4 * t * (i + o))
        return term, note, _summed(fn(conv.x, conv.g))
    fn = offsets.instantiate
    for _ in range(conv.kept):
        fn = jax.vmap(fn)
    note = Note("conv", "instantiate", dims, 0, 4 * math.prod(whole_shape))
    return _kept(term, fn(conv.x, conv.g), note, through)


def clipped_sum(leaf: Leaf, factors, shape: tuple[int, ...]) -> jax.Array:
    """`sum_b c_b G_b` of one leaf, from factors with a leading example axis.

    Args:
      leaf: terms whose arrays have a leading axis B (operands of posts do not).
      factors: c, float32[B].
      shape: of the leaf.

    Returns:
      float32[shape].
    """
    total = None
    for term in leaf.terms:
        x = _weighted(term.product, factors)
        for post in term.posts:
            x = post(x)
        total = x if total is None else total + x
    if total is None:
        return jnp.zeros(shape, jnp.float32)
    return total.reshape(shape).astype(jnp.float32)


def _weighted(product, c) -> jax.Array:
    """`sum_b c_b P_b`, step by step over the axes that scans have stacked."""
    if terms_lib.depth(product):
        sums = lax.map(lambda one: _weighted(one, c), terms_lib.peel(product))
        return jnp.moveaxis(sums, 0, terms_lib.stack_axis(product))
    match product:
        case Dot() as dot:
            g = _times(dot.g, c)
            example = 1 + max((*dot.a_dims, *dot.g_dims, *dot.out), default=0)
            a_dims, g_dims = (example, *dot.a_dims), (example, *dot.g_dims)
            return terms_lib.instantiate_product(Dot(dot.a, g, a_dims, g_dims, dot.out))
        case Scatter() as s:
            stacked = dataclasses.replace(s, updates=_times(s.updates, c))
            merged = terms_lib.lift(Term(stacked), kept=False).product
            return terms_lib.instantiate_product(merged)
        case Conv() as conv:
            scaled = dataclasses.replace(conv, g=_times(conv.g, c))
            merged = terms_lib.lift(Term(scaled), kept=False).product
            return terms_lib.instantiate_product(merged)
        case Dense() as dense:
            return terms_lib.contract(c, dense.x, ((0,), (0,)))
    raise TypeError(f"not a product: {type(product).__name__}")


def _times(g, c):
    """c_b g_b in float32.

    Rounded to bfloat16, terms that cancel would no longer do so, and the sum could be
    longer than the clip norm by any factor.
    """
    c = c.reshape(c.shape + (1,) * (g.ndim - 1))
    return g.astype(jnp.float32) * c
