"""From a loss of one example to factors, norms and clipped sums of a batch.

Book-keeping (Bu et al. 2022, https://arxiv.org/abs/2210.00038) for any JAX program: the
jaxpr of `value_and_grad(loss)` for ONE example is interpreted under `vmap`, and the
gradient of each parameter leaves as factors (see `terms`) instead of as an array.

Example::

    # Once for each set of shapes: Python, no arithmetic.
    bound = factored(loss, params, frozen, batch, keys)
    out = bound.run(params, frozen, batch, keys)        # losses [B], norms, factors
    sums = bound.clipped_sum(out.leaves, clip_factors)  # [B] for each leaf; like params
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from trustml.privacy.factored import interpreter, norms
from trustml.privacy.factored import terms as terms_lib
from trustml.privacy.factored.terms import Post, Term
from trustml.privacy.factored.values import Value


class Output(NamedTuple):
    """What one pass over a batch of B examples gives.

    Attributes:
      losses: float32[B].
      norm2: squared gradient norm of each leaf and example, float32[B] for each leaf.
      norm2_upper: the same, never below the truth through cancellation.
      leaves: `norms.Leaf` of each trainable leaf, arrays with a leading B.
    """

    losses: jax.Array
    norm2: tuple[jax.Array, ...]
    norm2_upper: tuple[jax.Array, ...]
    leaves: tuple[norms.Leaf, ...]


class Factored(NamedTuple):
    """A traced loss; see `factored`."""

    run: Callable[..., Output]
    clipped_sum: Callable[[tuple[norms.Leaf, ...], Sequence[jax.Array]], Any]


def shape_of_one(x) -> jax.ShapeDtypeStruct:
    """The abstract value of one example's slice of an array with a batch axis."""
    return abstract(x, x.shape[1:])


def abstract(x, shape) -> jax.ShapeDtypeStruct:
    """The abstract value of `x` with another shape."""
    axes = jax.typeof(x).manual_axis_type  # inside shard_map: what varies by device
    return jax.ShapeDtypeStruct(shape, x.dtype, manual_axis_type=axes)


def gradient_program(loss, trainable, frozen, example, key):
    """The jaxpr of `value_and_grad(loss)` for one example.

    Args:
      loss: (trainable, frozen, example, key) -> float32[].
      trainable: pytree of arrays; differentiated.
      frozen: pytree of arrays; constants.
      example: pytree of arrays with a leading batch axis.
      key: keys with a leading batch axis.

    Returns:
      A closed jaxpr; its outputs are the loss and the gradient leaves.
    """
    like = jax.tree.map(lambda x: abstract(x, x.shape), (trainable, frozen))
    one = jax.tree.map(shape_of_one, (example, key))
    return jax.make_jaxpr(jax.value_and_grad(loss))(*like, *one)


def factored(loss, trainable, frozen, batch, keys) -> Factored:
    """Traces a loss for the shapes at hand; see the module docstring.

    Args:
      loss: (trainable, frozen, example, key) -> float32[].
      trainable: pytree of float arrays.
      frozen: pytree of arrays; may be empty.
      batch: pytree of arrays [B, ...]; only shapes and types are read.
      keys: typed keys [B].
    """
    closed = gradient_program(loss, trainable, frozen, batch, keys)
    leaves, tree = jax.tree.flatten(trainable)
    shapes = [x.shape for x in leaves]

    def one_example(params, frozen, example, key):
        free = [Value(x, tainted=False) for x in jax.tree.leaves((params, frozen))]
        own = [Value(x, tainted=True) for x in jax.tree.leaves((example, key))]
        value, *grads = interpreter.interpret(closed.jaxpr, closed.consts, free + own)
        found = [
            norms.combine(g.terms(), shape)
            for g, shape in zip(grads, shapes, strict=True)
        ]
        norm2 = tuple(n.value for _, n in found)
        upper = tuple(jnp.maximum(n.value, 0.0) + n.slack for _, n in found)
        stripped, consts = _take_consts(tuple(leaf for leaf, _ in found))
        return (value.array.astype(jnp.float32), norm2, upper, stripped), consts

    args = jax.tree.map(
        lambda x: abstract(x, x.shape), (trainable, frozen, batch, keys)
    )
    in_axes = (None, None, 0, 0)
    first = jax.vmap(one_example, in_axes, (0, None))
    (*_, abstract_leaves), _ = jax.eval_shape(first, *args)
    out_axes = ((0, 0, 0, _example_axes(abstract_leaves)), None)

    def run(params, frozen, batch, keys) -> Output:
        mapped = jax.vmap(one_example, in_axes, out_axes)
        (losses, norm2, upper, leaves), consts = mapped(params, frozen, batch, keys)
        return Output(losses, norm2, upper, _give_consts(leaves, consts))

    def clipped_sum(leaves, factors):
        sums = [
            norms.clipped_sum(leaf, own, shape)
            for leaf, own, shape in zip(leaves, factors, shapes, strict=True)
        ]
        return jax.tree.unflatten(tree, sums)

    return Factored(run, clipped_sum)


def _example_axes(leaves):
    """The position of the example axis in every array: after the axes of scans."""

    def of(term: Term) -> Term:
        axis = terms_lib.depth(term.product)
        return Term(jax.tree.map(lambda _: axis, term.product), term.posts)

    return tuple(
        dataclasses.replace(leaf, terms=tuple(map(of, leaf.terms))) for leaf in leaves
    )


def _is_post(x) -> bool:
    return isinstance(x, Post)


def _take_consts(leaves):
    """Splits off what depends on no example: it must not get a batch axis."""
    consts = []

    def strip(x):
        if _is_post(x):
            consts.append(x.consts)
            return dataclasses.replace(x, consts=())
        return x

    stripped = jax.tree.map(strip, leaves, is_leaf=_is_post)
    return stripped, tuple(consts)


def _give_consts(leaves, consts):
    remaining = iter(consts)
    return jax.tree.map(
        lambda x: dataclasses.replace(x, consts=next(remaining)) if _is_post(x) else x,
        leaves,
        is_leaf=_is_post,
    )


def zeroed(leaves: tuple[norms.Leaf, ...], bad: jax.Array) -> tuple[norms.Leaf, ...]:
    """The same factors with every array of the examples marked `bad` set to zero."""

    def term(t: Term) -> Term:
        axis = terms_lib.depth(t.product)

        def zero(x):
            if not jnp.issubdtype(x.dtype, jnp.floating):
                return x
            where = jnp.expand_dims(bad, [d for d in range(x.ndim) if d != axis])
            return jnp.where(where, jnp.zeros((), x.dtype), x)

        return Term(jax.tree.map(zero, t.product), t.posts)

    return tuple(
        dataclasses.replace(leaf, terms=tuple(map(term, leaf.terms))) for leaf in leaves
    )
