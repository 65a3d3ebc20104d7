"""A function without its convolutions: patches of the image and one matrix product.

    conv(x, k)[n, p, o] = sum over q, c of  x[n, stride p + dilation q, c] k[q, c, o]
                        = patches(x)[n, p, (q, c)] @ k[(q, c), o]

On the lanes every client has kernels of its own, and a convolution with a batch of
kernels becomes a grouped convolution, for which compilers have no fast form; on a CPU
the gradient of any convolution inside a loop is slow as well. A matrix product is fast
in both places. `rewrite` therefore traces a function, replaces each convolution of the
program by strided slices, one for each position of the kernel, put side by side, and a
product, and hands back a function of the same arguments and results. Apply it BEFORE
differentiation: the gradient is then that of the rewritten program, without
convolutions either.

Bodies of `jit`, `remat`, `scan`, `cond` and `while` are entered. Kept as written, and
named by `explain`: kernels of more than `MAX_POSITIONS` positions (patches that many
times the image), and the derivative rule of a function that brings its own.

Dimension key: `n` batch, `p` position in the result, `q` in the kernel, `c` features of
a group, `o` features of the result, `G` groups.

Example::

    loss = im2col.rewrite(task.loss)
    grads = jax.vmap(jax.grad(loss), (0, None, None))(params_of_clients, example, key)
    for line in im2col.explain(task.loss, params, example, key):
        print(line)                             # convolutions that stay
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

MAX_POSITIONS = 128  # of a kernel, each of them a slice

_CONVOLUTION = "conv_general_dilated"
_OWN_RULE = ("custom_jvp_call", "custom_vjp_call")


def rewrite(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` with products in place of convolutions.

    Args:
      fn: traceable; positional arguments and results are pytrees of arrays.

    Returns:
      A function of the same arguments and results, equal up to the order of sums.
      Whatever has no convolution is returned to the compiler as it was.
    """

    def rewritten(*args):
        closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
        outs = _run(closed.jaxpr, closed.consts, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), outs)

    return rewritten


def explain(fn: Callable[..., Any], *args: Any) -> tuple[str, ...]:
    """A sentence for each convolution of `fn` that `rewrite` keeps.

    Args:
      fn: as for `rewrite`.
      *args: arrays, or their shapes.
    """
    return tuple(_kept(jax.make_jaxpr(fn)(*args).jaxpr))


def convolutions(fn: Callable[..., Any], *args: Any) -> int:
    """How many convolutions of `fn` `rewrite` replaces; arguments as for `explain`."""
    return _replaced(jax.make_jaxpr(fn)(*args).jaxpr)


def _run(jaxpr, consts, args) -> list[Any]:
    """Evaluates a jaxpr, in the trace of its arguments."""
    env = dict(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))

    def read(atom):
        return atom.val if isinstance(atom, core.Literal) else env[atom]

    for eqn in jaxpr.eqns:
        ins = [read(atom) for atom in eqn.invars]
        if eqn.primitive.name == _CONVOLUTION and not _reason(eqn):
            x, kernel = ins
            outs = [_product(x, kernel, eqn.outvars[0].aval.shape, eqn.params)]
        else:
            params = {name: _entered(value) for name, value in eqn.params.items()}
            params = eqn.primitive.get_bind_params(params)
            with eqn.ctx.manager:
                outs = eqn.primitive.bind(*ins, **params)
            outs = outs if eqn.primitive.multiple_results else [outs]
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _entered(value):
    """A parameter of an equation; where it is a program, without convolutions."""
    if isinstance(value, tuple) and any(map(_is_program, value)):
        return tuple(map(_entered, value))
    if not _is_program(value) or not _has_convolution(_open(value)):
        return value
    closed = isinstance(value, core.ClosedJaxpr)
    inner, consts = _open(value), value.consts if closed else ()
    shapes = [
        jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype, weak_type=v.aval.weak_type)
        if hasattr(v.aval, "weak_type")
        else v.aval
        for v in inner.invars
    ]
    made = jax.make_jaxpr(lambda *args: _run(inner, consts, args))(*shapes)
    return made if closed else made.jaxpr


def _product(x, kernel, shape, params):
    """The convolution of one equation."""
    numbers = params["dimension_numbers"]
    n_axis, c_axis, *space = numbers.lhs_spec
    batches = params["batch_group_count"]
    groups = params["feature_group_count"] * batches
    window = [kernel.shape[axis] for axis in numbers.rhs_spec[2:]]
    out = [shape[axis] for axis in numbers.out_spec[2:]]
    patches = jnp.concatenate(
        list(_slices(_padded(x, space, params), space, window, out, params)), c_axis
    )  # axis c: (q, G, c)
    kernel = jnp.transpose(kernel, (*numbers.rhs_spec[2:], *numbers.rhs_spec[1::-1]))
    positions, o = math.prod(window), kernel.shape[-1]
    free = [axis for axis in range(x.ndim) if axis != c_axis]
    options = {
        "precision": params["precision"],
        "preferred_element_type": params["preferred_element_type"],
    }
    if groups == 1:
        kernel = kernel.reshape(-1, o)
        found = lax.dot_general(
            patches, kernel, (((c_axis,), (0,)), ((), ())), **options
        )
    else:
        split: dict[int, tuple[int, ...]] = {c_axis: (positions, groups, -1)}
        if batches > 1:
            split = {n_axis: (groups, -1), c_axis: (positions, -1)}
        patches, where = _split(patches, split)
        g, c = where[n_axis][0], where[c_axis]
        if batches == 1:
            g, c = c[1], (c[0], c[2])
        kernel = kernel.reshape(positions, -1, groups, o // groups)
        numbers_ = (((c), (0, 1)), ((g,), (2,)))
        found = lax.dot_general(patches, kernel, numbers_, **options)
        found = jnp.moveaxis(found, 0, -2)  # [free..., G, o / G]
        found = found.reshape(*found.shape[:-2], o)
    # The axes of `found`: those of x but for c, in their order, and o.
    order = [0] * x.ndim
    order[numbers.out_spec[0]] = free.index(n_axis)
    order[numbers.out_spec[1]] = x.ndim - 1
    for axis, at in zip(space, numbers.out_spec[2:], strict=True):
        order[at] = free.index(axis)
    return jnp.transpose(found, order)


def _padded(x, space, params):
    config = [(0, 0, 0)] * x.ndim
    each = zip(space, params["padding"], params["lhs_dilation"], strict=True)
    for axis, (low, high), dilation in each:
        config[axis] = (low, high, dilation - 1)
    return lax.pad(x, jnp.zeros((), x.dtype), config)


def _slices(x, space, window, out, params) -> Iterator[jax.Array]:
    """What lies under each position of the kernel, for all positions of the result."""
    for q in np.ndindex(*window):
        start, limit, stride = [0] * x.ndim, list(x.shape), [1] * x.ndim
        for d, axis in enumerate(space):
            stride[axis] = params["window_strides"][d]
            start[axis] = q[d] * params["rhs_dilation"][d]
            limit[axis] = start[axis] + (out[d] - 1) * stride[axis] + 1
        yield lax.slice(x, start, limit, stride)


def _split(x, parts: dict[int, tuple[int, ...]]):
    """Splits axes; returns where the parts of each lie now."""
    shape, where = [], {}
    for axis, size in enumerate(x.shape):
        pieces = parts.get(axis, (size,))
        where[axis] = tuple(range(len(shape), len(shape) + len(pieces)))
        known = math.prod(p for p in pieces if p > 0)
        shape.extend(p if p >= 0 else size // known for p in pieces)
    return x.reshape(shape), where


def _reason(eqn) -> str:
    """Why a convolution stays; '' where it does not."""
    numbers = eqn.params["dimension_numbers"]
    kernel = eqn.invars[1].aval.shape
    positions = math.prod(kernel[axis] for axis in numbers.rhs_spec[2:])
    if positions > MAX_POSITIONS:
        return f"its {positions} kernel positions are more than {MAX_POSITIONS}"
    if 0 in (*eqn.outvars[0].aval.shape, *eqn.invars[0].aval.shape, *kernel):
        return "it is empty"
    return ""


def _replaced(jaxpr) -> int:
    here = (e for e in jaxpr.eqns if e.primitive.name == _CONVOLUTION)
    inner = (part for eqn in jaxpr.eqns for part in _programs(eqn))
    return sum(not _reason(eqn) for eqn in here) + sum(map(_replaced, inner))


def _kept(jaxpr) -> Iterator[str]:
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == _CONVOLUTION and (why := _reason(eqn)):
            image, kernel = (atom.aval.str_short() for atom in eqn.invars)
            yield f"the convolution of {image} with {kernel} stays: {why}."
        for inner in _programs(eqn):
            if eqn.primitive.name in _OWN_RULE and _has_convolution(inner):
                yield (
                    f"a {eqn.primitive.name} with a convolution keeps its own "
                    "derivative, as it is written."
                )
            yield from _kept(inner)


def _has_convolution(jaxpr) -> bool:
    return any(
        eqn.primitive.name == _CONVOLUTION or any(map(_has_convolution, _programs(eqn)))
        for eqn in jaxpr.eqns
    )


def _programs(eqn) -> Iterator[Any]:
    """The bodies of an equation, open."""
    for value in eqn.params.values():
        for part in value if isinstance(value, tuple) else (value,):
            if _is_program(part):
                yield _open(part)


def _is_program(value) -> bool:
    return isinstance(value, core.Jaxpr | core.ClosedJaxpr)


def _open(program):
    return program.jaxpr if isinstance(program, core.ClosedJaxpr) else program
