"""What a parameter's gradient is made of: products, kept as their factors.

The gradient of a weight with respect to the loss of ONE example is almost always a
product of an activation and a cotangent, followed by a few linear operations that only
move entries about. This module holds that form as data:

    gradient = sum over terms of  post_n(... post_1(product))

`Dot`      P[k, i, o] = sum_t a[k, t, i] g[k, t, o]      (dense, einsum, attention)
`Scatter`  P[v, :]    = sum over {t: ids_t = v} u_t      (embedding)
`Conv`     the kernel gradient of a convolution
`Dense`    the array itself: already small, or a form without a rule

All are pytrees, so they pass through `vmap` and `scan` like arrays.

Axes of a `Dot` carry integer labels. A label in both factors and in `out` is *kept*
(k); in both and not in `out`, *contracted* (t); in one factor and in `out`, *free*
(i, o).
Source: the algebra is that of ghost clipping and book-keeping (Li et al. 2021,
https://arxiv.org/abs/2110.05679; Bu et al. 2022, https://arxiv.org/abs/2210.00038).

Example::

    # the gradient of W in  x[T, I] @ W[I, O],  given the cotangent y_bar[T, O]
    Term(Dot(x, y_bar, a_dims=(0, 1), g_dims=(0, 2), out=(1, 2)), ())
"""

import dataclasses
import functools
import math
import typing
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

_static = functools.partial(dataclasses.field, metadata={"static": True})


@typing.dataclass_transform(frozen_default=True)
def _pytree(cls):
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


@_pytree
class Dot:
    """A product of two factors, as a labelled einsum; see the module docstring."""

    a: Any
    g: Any
    a_dims: tuple[int, ...] = _static()
    g_dims: tuple[int, ...] = _static()
    out: tuple[int, ...] = _static()
    loops: tuple[int, ...] = _static(default=())  # kept labels made by scans

    @property
    def size_of(self) -> dict[int, int]:
        """Extent of each label."""
        sizes = dict(zip(self.g_dims, self.g.shape, strict=True))
        return sizes | dict(zip(self.a_dims, self.a.shape, strict=True))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the product."""
        return tuple(self.size_of[label] for label in self.out)


@_pytree
class Scatter:
    """Rows `updates[..., n, :]` added at `ids[..., n]` into zeros `[..., rows, :]`.

    Leading `kept` axes (stacked layers) are independent scatters. An id outside
    `[0, rows)` adds nothing.
    """

    ids: Any  # int32[*kept, N]
    updates: Any  # [*kept, N, *window]
    rows: int = _static()
    kept: int = _static(default=0)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the product: kept axes, rows, window."""
        kept = self.kept
        return (*self.ids.shape[:kept], self.rows, *self.updates.shape[kept + 1 :])


@_pytree
class Conv:
    """A kernel gradient: `conv_general_dilated(x, g, **params)`, mapped over kept axes.

    The feature axis of `x` and the input-feature axis of `g` are contracted: it is the
    batch axis of the forward convolution.
    """

    x: Any  # [*kept, ...]
    g: Any  # [*kept, ...]
    params: tuple[tuple[str, Any], ...] = _static()
    kept: int = _static(default=0)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the product, kept axes first."""
        return jax.eval_shape(instantiate_product, self).shape


@_pytree
class Dense:
    """The gradient itself.

    `reason` is '' where it is no larger than what it was made of; otherwise it names
    the operation that has no factored form.
    """

    x: Any
    reason: str = _static(default="")
    kept: int = _static(default=0)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self.x.shape


@_pytree
class Carry:
    """Stands for the running value of an accumulating scan carry during tracing."""

    marker: Any
    index: int = _static()


@_pytree
class Post:
    """A linear operation applied to a product; its other operands hold no example.

    Attributes:
      consts: the other operands.
      primitive: what is bound.
      params: its parameters, sorted (name, value).
      position: where the product stands among the operands.
      isometric: whether the Frobenius norm is unchanged.
      lift: over how many leading axes (stacked layers) it is mapped.
      box: for a placement into zeros, (start, limit) of each axis; else ().
    """

    consts: tuple[Any, ...]
    primitive: Any = _static()
    params: tuple[tuple[str, Any], ...] = _static()
    position: int = _static(default=0)
    isometric: bool = _static(default=True)
    lift: int = _static(default=0)
    box: tuple[tuple[int, int], ...] = _static(default=())

    @property
    def key(self):
        """Two posts with equal keys and no operands are the same map."""
        return (self.primitive, self.params, self.position, self.lift)

    def __call__(self, x):
        """Applies the operation to the product."""

        def one(x):
            consts = [
                c.astype(x.dtype) if jnp.issubdtype(c.dtype, jnp.floating) else c
                for c in self.consts
            ]
            if self.primitive is lax.pad_p:  # the padding is always zero
                consts = [jnp.zeros((), x.dtype)]
            operands = [*consts[: self.position], x, *consts[self.position :]]
            return self.primitive.bind(*operands, **dict(self.params))

        for _ in range(self.lift):
            one = jax.vmap(one)
        return one(x)


@_pytree
class Term:
    """`posts` applied, first to last, to `product`."""

    product: Any
    posts: tuple[Post, ...] = ()

    def then(self, post: Post) -> "Term":
        """This term with one more operation after it."""
        return Term(self.product, (*self.posts, post))


def precision_of(*arrays) -> lax.Precision | None:
    """HIGHEST for float32 factors, so that accelerators do not round them first."""
    if all(x.dtype == jnp.float32 for x in arrays):
        return lax.Precision.HIGHEST
    return None


def contract(a, g, contracting, batch=((), ())) -> jax.Array:
    """`dot_general` of factors with a float32 result."""
    a, g = same_dtype(a, g)
    return lax.dot_general(
        a,
        g,
        (contracting, batch),
        precision=precision_of(a, g),
        preferred_element_type=jnp.float32,
    )


def same_dtype(a, g):
    """Two factors of one type: their own, or float32 where they differ."""
    if a.dtype == g.dtype:
        return a, g
    return a.astype(jnp.float32), g.astype(jnp.float32)


def depth(product) -> int:
    """Number of leading axes that scans have stacked; the example axis follows them."""
    return len(product.loops) if isinstance(product, Dot) else product.kept


def peel(product):
    """The product of one step; arrays keep their leading axis, for `lax.map`."""
    if isinstance(product, Dot):
        label, *rest = product.loops
        return Dot(
            product.a,
            product.g,
            product.a_dims[1:],
            product.g_dims[1:],
            tuple(x for x in product.out if x != label),
            tuple(rest),
        )
    return dataclasses.replace(product, kept=product.kept - 1)


def stack_axis(product) -> int:
    """Where the outermost stacked axis stands in the product."""
    return product.out.index(product.loops[0]) if isinstance(product, Dot) else 0


class Canonical(NamedTuple):
    """A `Dot` as two three-axis factors, and the labels that each axis gathers.

    `a` is the factor that holds the first free label of `out`, so that transposed twins
    look alike. Kept, then `first`, then `second` are the axes of the product.
    """

    a: jax.Array  # [K, T, I]
    g: jax.Array  # [K, T, O]
    kept: tuple[int, ...]
    first: tuple[int, ...]
    second: tuple[int, ...]


def canonical(dot: Dot) -> Canonical:
    """The factors of a product as a[K, T, I] and g[K, T, O]."""
    dot = _summed_out(dot)
    a_set, g_set = set(dot.a_dims), set(dot.g_dims)
    kept = tuple(x for x in dot.out if x in a_set and x in g_set)
    contracted = tuple(x for x in dot.a_dims if x in g_set and x not in dot.out)
    free_a = tuple(x for x in dot.out if x in a_set and x not in g_set)
    free_g = tuple(x for x in dot.out if x in g_set and x not in a_set)
    sizes = dot.size_of

    def flat(x, dims, free):
        order = [dims.index(label) for label in (*kept, *contracted, *free)]
        if order != list(range(len(order))):
            x = jnp.transpose(x, order)
        shape = [math.prod(sizes[y] for y in axes) for axes in (kept, contracted, free)]
        return x.reshape(shape)

    a, g = flat(dot.a, dot.a_dims, free_a), flat(dot.g, dot.g_dims, free_g)
    first = next((x for x in dot.out if x not in kept), None)
    if first in free_g:
        return Canonical(g, a, kept, free_g, free_a)
    return Canonical(a, g, kept, free_a, free_g)


def from_canonical(dot: Dot, c: Canonical) -> Dot:
    """A `Dot` with the result axes of `dot` and the factors of `c`."""
    sizes = dot.size_of
    t = 1 + max((*dot.a_dims, *dot.g_dims, *dot.out), default=0)

    def unflat(x, free):
        extents = [sizes[w] for w in c.kept], x.shape[1:2], [sizes[w] for w in free]
        return x.reshape([n for part in extents for n in part]), (*c.kept, t, *free)

    (a, a_dims), (g, g_dims) = unflat(c.a, c.first), unflat(c.g, c.second)
    return Dot(a, g, a_dims, g_dims, dot.out)


def _summed_out(dot: Dot) -> Dot:
    """Sums over the labels that stand in one factor only and not in the result."""

    def one(x, dims, other):
        lone = [i for i, y in enumerate(dims) if y not in dot.out and y not in other]
        if lone:
            x = jnp.sum(x, axis=tuple(lone), dtype=jnp.float32)
        return x, tuple(y for i, y in enumerate(dims) if i not in lone)

    a, a_dims = one(dot.a, dot.a_dims, dot.g_dims)
    g, g_dims = one(dot.g, dot.g_dims, dot.a_dims)
    return Dot(a, g, a_dims, g_dims, dot.out)


def multiplied(dot: Dot, c: Canonical) -> jax.Array:
    """The product of canonical factors, with the axes of `dot.out`; float32."""
    product = contract(c.a, c.g, ((1,), (1,)), ((0,), (0,)))
    labels = (*c.kept, *c.first, *c.second)
    x = product.reshape([dot.size_of[label] for label in labels])
    order = [labels.index(label) for label in dot.out]
    return x if order == sorted(order) else jnp.transpose(x, order)


def instantiate_product(product) -> jax.Array:
    """The product as an array; float32."""
    match product:
        case Dot():
            return multiplied(product, canonical(product))
        case Scatter():

            def scatter(ids, updates):
                zeros = jnp.zeros((product.rows, *updates.shape[1:]), jnp.float32)
                ids = jnp.where(ids < 0, product.rows, ids)
                return zeros.at[ids].add(updates.astype(jnp.float32), mode="drop")

            for _ in range(product.kept):
                scatter = jax.vmap(scatter)
            return scatter(product.ids, product.updates)
        case Conv():
            params = dict(product.params) | {"preferred_element_type": jnp.float32}

            def conv(x, g):
                x, g = same_dtype(x, g)
                params["precision"] = precision_of(x, g)
                return lax.conv_general_dilated(x, g, **params)

            for _ in range(product.kept):
                conv = jax.vmap(conv)
            return conv(product.x, product.g)
        case Dense():
            return product.x.astype(jnp.float32)
    raise TypeError(f"not a product: {type(product).__name__}")


def instantiate(term: Term) -> jax.Array:
    """The term as an array with the axes of the parameter; float32."""
    x = instantiate_product(term.product)
    for post in term.posts:
        x = post(x)
    return x


def lift(term: Term, *, kept: bool) -> Term:
    """A term whose arrays were stacked by a scan, as one term over all its steps.

    Args:
      term: its arrays carry a leading axis of steps.
      kept: True for stacked outputs (every step is its own block of the parameter),
        False for an accumulating carry (steps are summed).
    """
    posts = term.posts
    if kept:
        posts = tuple(dataclasses.replace(p, lift=p.lift + 1, box=()) for p in posts)
    match term.product:
        case Dot() as dot:
            label = 1 + max((*dot.a_dims, *dot.g_dims, *dot.out), default=0)
            a_dims, g_dims = (label, *dot.a_dims), (label, *dot.g_dims)
            out, loops = dot.out, dot.loops
            if kept:
                out, loops = (label, *out), (label, *loops)
            elif loops:  # a stacked axis inside a summed one is an ordinary kept axis
                loops = ()
            return Term(Dot(dot.a, dot.g, a_dims, g_dims, out, loops), posts)
        case Scatter() as s:
            if kept:
                return Term(dataclasses.replace(s, kept=s.kept + 1), posts)
            return Term(_merge_steps_scatter(s), posts)
        case Conv() as conv:
            if kept:
                return Term(dataclasses.replace(conv, kept=conv.kept + 1), posts)
            x, g = merge_into_contracted(conv)
            return Term(dataclasses.replace(conv, x=x, g=g), posts)
    raise TypeError(f"cannot lift {type(term.product).__name__}")


def _merge_steps_scatter(s: Scatter) -> Scatter:
    """[L, *kept, N, ...] -> [*kept, L * N, ...]."""
    ids = jnp.moveaxis(s.ids, 0, s.kept)
    updates = jnp.moveaxis(s.updates, 0, s.kept)
    k = s.kept
    ids = ids.reshape(*ids.shape[:k], -1)
    updates = updates.reshape(*updates.shape[:k], -1, *updates.shape[k + 2 :])
    return dataclasses.replace(s, ids=ids, updates=updates)


def merge_into_contracted(conv: Conv) -> tuple[jax.Array, jax.Array]:
    """Merges a leading axis of both operands into the axis that the conv contracts."""
    numbers = dict(conv.params)["dimension_numbers"]
    k = conv.kept

    def merge(x, axis):
        x = jnp.moveaxis(x, 0, k + axis)
        shape = list(x.shape)
        shape[k + axis : k + axis + 2] = [shape[k + axis] * shape[k + axis + 1]]
        return x.reshape(shape)

    return merge(conv.x, numbers.lhs_spec[1]), merge(conv.g, numbers.rhs_spec[1])
