"""Products inside `scan`: stacked layers and recurrent weights.

Two outputs of a scan can be gradients. A *stacked output* holds one block of the
parameter for each step (scan over layers): its factors become stacked outputs instead,
and the new axis is kept. An *accumulating carry* starts at zero and its only use is
`carry + term` (weights shared by all steps): it leaves the carry, its factors become
stacked outputs, and the new axis is contracted. Everything else runs as written.

The scan is rebuilt through `jax.lax.scan` around the interpreter of its body, since the
parameters of the equation differ between versions of JAX. Which operand is which
follows from ranks alone: a stacked one has one axis more outside than inside.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import lax

from trustml.privacy.factored import terms as terms_lib
from trustml.privacy.factored import values as values_lib
from trustml.privacy.factored.terms import Carry, Dense, Term
from trustml.privacy.factored.values import Value


class _Plan(NamedTuple):
    """What becomes of the outputs of a scan."""

    accumulating: frozenset[int]  # carries that leave the loop
    stacked: frozenset[int]  # stacked outputs that are emitted as factors


class _Layout(NamedTuple):
    """Operands and results of a scan, told apart by their ranks."""

    num_consts: int
    num_carry: int
    carry_outs: tuple[int, ...]  # which results are carries
    stacked_outs: tuple[int, ...]


def scan(eqn, ins: list[Value], interpret: Callable) -> list[Value] | None:
    """The results of a scan with its products left as factors.

    Args:
      eqn: the equation.
      ins: its operands.
      interpret: `interpreter.interpret`, for the body.

    Returns:
      Values of the outputs; None where none is a product: then the equation runs as
      written.
    """
    body = eqn.params["jaxpr"]
    layout = _layout(eqn, body)
    run = functools.partial(_body, interpret, body, ins, layout)
    plan = _analyse(run, body, ins, layout)
    if not plan.accumulating and not plan.stacked:
        return None
    return _rebuild(run, eqn, ins, layout, plan)


def _layout(eqn, body) -> _Layout:
    inside, outside = body.jaxpr, eqn
    num_stacked = sum(
        len(o.aval.shape) == len(i.aval.shape) + 1
        for o, i in zip(outside.invars, inside.invars, strict=True)
    )
    pairs = list(zip(outside.outvars, inside.outvars, strict=True))
    stacked = tuple(
        i
        for i, (o, b) in enumerate(pairs)
        if len(o.aval.shape) == len(b.aval.shape) + 1
    )
    carries = tuple(i for i in range(len(pairs)) if i not in stacked)
    num_consts = len(outside.invars) - num_stacked - len(carries)
    return _Layout(num_consts, len(carries), carries, stacked)


def _carry_taints(body, layout, ins) -> list[bool]:
    """Which carries depend on the example, at the fixed point.

    A product's own taint rule is used: a result depends on the example where any
    operand of its equation does. The approximation may only ever err towards "depends".
    """
    n, m = layout.num_consts, layout.num_carry
    taints = [v.tainted for v in ins]
    while True:
        inside = dict(zip(body.jaxpr.invars, taints, strict=True))

        def tainted(atom, inside=inside) -> bool:
            return not isinstance(atom, jax.extend.core.Literal) and inside.get(
                atom, False
            )

        for eqn in body.jaxpr.eqns:
            hit = any(tainted(atom) for atom in eqn.invars)
            inside.update((var, hit) for var in eqn.outvars)
        out = [tainted(body.jaxpr.outvars[i]) for i in layout.carry_outs]
        new = [a or b for a, b in zip(taints[n : n + m], out, strict=True)]
        if new == taints[n : n + m]:
            return new
        taints[n : n + m] = new


def _analyse(run, body, ins, layout) -> _Plan:
    """Traces the body abstractly until the set of accumulating carries is stable."""
    n, m = layout.num_consts, layout.num_carry
    candidates = frozenset(i for i in range(m) if ins[n + i].zero)
    avals = [
        jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in body.jaxpr.invars
    ]
    while True:
        seen: dict[str, Any] = {}

        def trace(*arrays, candidates=candidates, seen=seen):
            used: set[int] = set()
            outs = run(candidates, arrays, used)
            good = set()
            for i in candidates:
                if i not in used and _accumulates(outs[layout.carry_outs[i]], i):
                    good.add(i)
            others = [o for j, o in enumerate(outs) if j not in layout.carry_outs]
            others += [
                outs[layout.carry_outs[i]] for i in range(m) if i not in candidates
            ]
            for value in others:
                good -= _carries_in(value)
            for i in candidates:
                good -= _carries_in(outs[layout.carry_outs[i]]) - {i}
            seen["good"] = frozenset(good)
            seen["stacked"] = frozenset(
                j for j in layout.stacked_outs if _liftable(outs[j])
            )
            return ()

        jax.eval_shape(trace, *avals)
        if seen["good"] == candidates:
            return _Plan(candidates, seen["stacked"])
        candidates = seen["good"]


def _body(interpret, body, ins, layout, accumulating, arrays, used) -> list[Value]:
    """Interprets the body once; accumulating carries are lazy and must stay so."""
    n, m = layout.num_consts, layout.num_carry
    carry_taints = _carry_taints(body, layout, ins)
    values = []
    for position, array in enumerate(arrays):
        i = position - n
        if 0 <= i < m and i in accumulating:

            def force(array=array, i=i):
                used.add(i)
                return array

            term = Term(Carry(array, i))
            values.append(values_lib.lazy(lambda term=term: (term,), force))
        elif 0 <= i < m:
            values.append(Value(array, tainted=carry_taints[i]))
        else:
            outer = ins[position]
            values.append(Value(array, tainted=outer.tainted, zero=outer.zero))
    return interpret(body.jaxpr, body.consts, values)


def _carries_in(value: Value) -> set[int]:
    if not value.lazy:
        return set()
    return {t.product.index for t in value.terms() if isinstance(t.product, Carry)}


def _accumulates(value: Value, index: int) -> bool:
    """Whether the value is `carry + products`, each of which can leave the loop."""
    if not value.lazy:
        return False
    own = [t for t in value.terms() if isinstance(t.product, Carry)]
    rest = [t for t in value.terms() if not isinstance(t.product, Carry)]
    return (
        len(own) == 1
        and own[0].product.index == index
        and not own[0].posts
        and bool(rest)
        and all(_free(t) for t in rest)
    )


def _liftable(value: Value) -> bool:
    return value.lazy and all(_free(t) for t in value.terms())


def _free(term: Term) -> bool:
    """Whether a term can leave the loop: a product, and posts without operands."""
    return not isinstance(term.product, Dense | Carry) and not any(
        post.consts for post in term.posts
    )


def _rebuild(run, eqn, ins, layout, plan) -> list[Value]:
    n, m = layout.num_consts, layout.num_carry
    consts = [v.array for v in ins[:n]]
    xs = [v.array for v in ins[n + m :]]
    staying = [i for i in range(m) if i not in plan.accumulating]
    init = [ins[n + i].array for i in staying]
    emitted: dict[str, Any] = {}

    def step(carry, x):
        arrays: list[Any] = [*consts, *[None] * m, *x]
        for i, c in zip(staying, carry, strict=True):
            arrays[n + i] = c
        outs = run(plan.accumulating, arrays, set())
        emitted["reasons"] = [
            "a product inside `scan` is used otherwise" if v.lazy else v.reason
            for v in outs
        ]
        new_carry = [outs[layout.carry_outs[i]].array for i in staying]
        factors = {}
        for i in plan.accumulating:
            terms = outs[layout.carry_outs[i]].terms()
            factors["carry", i] = tuple(
                t for t in terms if not isinstance(t.product, Carry)
            )
        for j in plan.stacked:
            factors["stacked", j] = outs[j].terms()
        leaves, tree = jax.tree.flatten(factors)
        aliases = [_alias(leaf, x) for leaf in leaves]
        emitted["tree"], emitted["aliases"] = tree, aliases
        plain = [outs[j].array for j in layout.stacked_outs if j not in plan.stacked]
        kept = [
            leaf for leaf, alias in zip(leaves, aliases, strict=True) if alias is None
        ]
        return new_carry, (plain, kept)

    last, (plain, kept) = lax.scan(
        step,
        init,
        xs,
        length=eqn.params["length"],
        reverse=eqn.params["reverse"],
        unroll=eqn.params["unroll"],
    )
    kept_iter = iter(kept)
    leaves = [next(kept_iter) if a is None else xs[a] for a in emitted["aliases"]]
    factors = jax.tree.unflatten(emitted["tree"], leaves)
    plain_iter = iter(plain)
    last_of = dict(zip(staying, last, strict=True))
    results: list[Value] = []
    for position in range(len(eqn.outvars)):
        if position in layout.stacked_outs:
            if position in plan.stacked:
                results.append(_lifted(factors["stacked", position], kept=True))
            else:
                reason = emitted["reasons"][position]
                results.append(Value(next(plain_iter), tainted=True, reason=reason))
            continue
        i = layout.carry_outs.index(position)
        if i in plan.accumulating:
            results.append(_lifted(factors["carry", i], kept=False))
        else:
            reason = emitted["reasons"][position]
            results.append(Value(last_of[i], tainted=True, reason=reason))
    return results


def _alias(leaf, xs) -> int | None:
    """The stacked input that a factor is a slice of: then no copy is emitted."""
    return next((i for i, x in enumerate(xs) if x is leaf), None)


def _lifted(terms, *, kept: bool) -> Value:
    found = tuple(terms_lib.lift(term, kept=kept) for term in terms)
    return values_lib.lazy(lambda: found)
