"""Runs the gradient program of one example, leaving products as factors.

Every equation is evaluated as written unless it makes a product of two values that
both depend on the example, or carries such a product through a linear operation
(`tail`). The results are `Value`s; a lazy one is handed to `norms`, which never forms
the product. Regions are entered: `jit` and its like are inlined; a rematerialised
region is inlined behind the optimisation barrier that its own lowering would use, so
the compiler does not merge the recomputation with the forward pass; `scan` has a module
of its own, which is handed `interpret` for the bodies.

The interpreter runs inside `jax.vmap` over the batch, so nothing here tracks the
example axis and no equation can mix two examples.
"""

import math
from collections.abc import Sequence

import jax
from jax import lax
from jax.extend import core

from trustml.privacy.factored import norms, scans, tail
from trustml.privacy.factored import values as values_lib
from trustml.privacy.factored.values import Value

INLINED = frozenset(
    {"jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call"}
)
# These only move or copy entries: zeros stay zeros.
MOVES = frozenset(
    {"broadcast_in_dim", "reshape", "convert_element_type", "squeeze", "copy"}
)
# Results of these are never "no larger than what they were computed from".
OPAQUE = frozenset({"cond", "while", "custom_vmap_call", "pure_callback"})


def interpret(jaxpr, consts: Sequence, args: Sequence[Value]) -> list[Value]:
    """Evaluates an open jaxpr.

    Args:
      jaxpr: `jax.extend.core.Jaxpr`.
      consts: arrays for `jaxpr.constvars`.
      args: values for `jaxpr.invars`.

    Returns:
      Values of `jaxpr.outvars`.
    """
    env: dict = {}

    def read(atom) -> Value:
        if isinstance(atom, core.Literal):
            zero = values_lib.is_zero_literal(atom.val)
            return values_lib.known(_literal(atom), zero=zero)
        return env[atom]

    for var, const in zip(jaxpr.constvars, consts, strict=True):
        array = const if isinstance(const, jax.Array) else jax.numpy.asarray(const)
        env[var] = values_lib.known(array)
    for var, value in zip(jaxpr.invars, args, strict=True):
        env[var] = value
    for eqn in jaxpr.eqns:
        ins = [read(atom) for atom in eqn.invars]
        outs = _equation(eqn, ins)
        for var, value in zip(eqn.outvars, outs, strict=True):
            env[var] = value
    return [read(atom) for atom in jaxpr.outvars]


def _literal(atom):
    value = atom.val
    if not hasattr(value, "dtype"):
        value = jax.numpy.asarray(value, atom.aval.dtype)
    return jax.numpy.asarray(value)


def _equation(eqn, ins: list[Value]) -> list[Value]:
    name = eqn.primitive.name
    if name in INLINED:
        inner = eqn.params["jaxpr" if "jaxpr" in eqn.params else "call_jaxpr"]
        return interpret(inner.jaxpr, inner.consts, ins)
    if name in ("remat", "remat2", "checkpoint"):
        return _remat(eqn, ins)
    if name == "scan" and any(v.tainted for v in ins):
        found = scans.scan(eqn, ins, interpret)
        if found is not None:
            return found
    if not any(v.tainted for v in ins):
        return _bind(eqn, ins)
    if name in tail.IDENTITIES and _float_to_float(eqn):
        if any(v.lazy for v in ins):
            return [_passed_on(eqn, i, v, ins) for i, v in enumerate(ins)]
        return _bind(eqn, ins)
    if len(eqn.outvars) == 1 and not eqn.primitive.multiple_results:
        terms = tail.product(eqn, ins)
        if terms is None and any(v.lazy for v in ins):
            terms = tail.carry(eqn, ins)
        if terms is not None:
            return [values_lib.lazy(lambda: terms, lambda: _bind(eqn, ins)[0].array)]
    return _bind(eqn, ins)


def _float_to_float(eqn) -> bool:
    """Whether values keep a floating type: an integer cast would not be linear."""
    atoms = (*eqn.invars, *eqn.outvars)
    return all(
        jax.dtypes.issubdtype(a.aval.dtype, jax.numpy.floating) for a in atoms
    ) or not any(hasattr(a.aval, "dtype") for a in atoms)


def _passed_on(eqn, i: int, value: Value, ins) -> Value:
    if not value.lazy:
        return value
    return values_lib.lazy(value.terms, lambda: _bind(eqn, ins)[i].array)


def _bind(eqn, ins: list[Value]) -> list[Value]:
    """The equation as written."""
    params = eqn.primitive.get_bind_params(eqn.params)
    with eqn.ctx.manager:
        outs = eqn.primitive.bind(*(v.array for v in ins), **params)
    if not eqn.primitive.multiple_results:
        outs = [outs]
    tainted = any(v.tainted for v in ins)
    return [
        Value(out, tainted=tainted, **_notes(eqn, ins, i)) for i, out in enumerate(outs)
    ]


def _notes(eqn, ins: list[Value], i: int) -> dict:
    name = eqn.primitive.name
    notes: dict = {}
    if name in MOVES:
        notes["zero"] = ins[0].zero
        if name == "broadcast_in_dim" and eqn.invars[0].aval.shape == ():
            notes["scalar"] = ins[0]
        elif name == "broadcast_in_dim" and ins[0].scalar is not None:
            notes["scalar"] = ins[0].scalar
    sizes = [
        math.prod(getattr(atom.aval, "shape", ()))
        for atom, v in zip(eqn.invars, ins, strict=True)
        if v.tainted
    ]
    size = math.prod(getattr(eqn.outvars[i].aval, "shape", ()))
    reasons = [v.reason for v in ins if v.reason]
    if any(_outgrows_factors(v) for v in ins) and size >= max(sizes, default=0):
        notes["reason"] = f"no rule for `{name}` of a product"
    elif name == "concatenate":
        pass  # no larger than its parts together
    elif (len(sizes) > 1 or name in OPAQUE) and size > max(sizes, default=0):
        notes["reason"] = f"no rule for `{name}`"
    elif reasons and size >= max(sizes, default=0):
        notes["reason"] = reasons[0]
    return notes


def _outgrows_factors(value: Value) -> bool:
    """Whether a product, once computed, is larger than what it was made of."""
    return value.lazy and any(
        not norms.no_larger_than_factors(term.product) for term in value.terms()
    )


def _remat(eqn, ins: list[Value]) -> list[Value]:
    """The body behind the barrier that keeps the recomputation a recomputation."""
    barred = eqn.params["prevent_cse"]
    if isinstance(barred, bool):
        barred = (barred,) * len(ins)
    if eqn.params["differentiated"] and any(barred):
        chosen = [v for v, b in zip(ins, barred, strict=True) if b]
        arrays = iter(lax.optimization_barrier(tuple(v.array for v in chosen)))
        ins = [
            Value(next(arrays), tainted=v.tainted, zero=v.zero) if b else v
            for v, b in zip(ins, barred, strict=True)
        ]
    return interpret(eqn.params["jaxpr"], (), ins)
