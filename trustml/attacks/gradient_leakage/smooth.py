"""Can gradient matching work on a model? Is its gradient differentiable once more?

The search of `matching` needs the derivative of a gradient. An operation that stops
derivatives (a stop-gradient, rounding, a loop of unknown length, a custom rule) leaves
the loss and its gradient as they are, and blinds the search without a word. `check`
compares that derivative with a difference and names the operations that may be at
fault. Kinks as of relu are fine: beside them the derivative is right.

Example::

    smooth.check(task, params, template, table=lambda p: p['table']['embedding'],
                 key=jax.random.key(0))
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trustml import _validate
from trustml import task as task_lib
from trustml.attacks.gradient_leakage import matching

# Operations whose derivative is 0 or missing, wherever they stand.
_BLIND = frozenset(
    "stop_gradient round floor ceil sign argmax argmin while custom_vjp_call "
    "custom_vjp_call_jaxpr pure_callback io_callback".split()
)
_MAXIMA = ("reduce_max", "max", "broadcast_in_dim", "reshape", "squeeze")


def check(
    task: task_lib.Task,
    params: Any,
    template: Mapping[str, Any],
    *,
    table: Callable[[Any], jax.Array],
    soft_loss: Callable[[Any, jax.Array], jax.Array] = matching.soft_cross_entropy,
    key: Any,
) -> None:
    """Checks that the search can work on this model, on concrete parameters.

    `embed` has to be a lookup in `table`. The gradient has to be differentiable once
    more: its derivative along a random direction is compared with a central difference,
    and they must agree within a tenth.

    Args:
      task: as for `matching.matcher`.
      params: concrete parameters.
      template: as for `matching.matcher`.
      table: as for `matching.matcher`.
      soft_loss: as for `matching.matcher`.
      key: of the point and the direction.

    Raises:
      ValueError: if `embed` is no lookup; if the two do not agree, or JAX cannot
        differentiate: then it names the operations that stop derivatives.
    """
    gradient_of = matching.gradient_fn(task, template, table=table, soft_loss=soft_loss)
    rows = table(params)
    size, length = np.shape(template["tokens"])
    keys = jax.random.split(key, 3)
    _check_values(task, template, params, rows)
    shape = (size, length, rows.shape[1])
    spread = jnp.std(rows)
    x = jax.random.normal(keys[0], shape) * spread
    direction = jax.random.normal(keys[1], shape) * spread
    logits = (size, matching.classes(task, params, template))
    labels = jax.nn.softmax(jax.random.normal(keys[2], logits))

    def flat(x):
        leaves = jax.tree.leaves(gradient_of(params, x, labels))
        return jnp.concatenate([leaf.ravel() for leaf in leaves])

    def measure(x):
        # Backwards, as the search differentiates: along the direction it has to agree
        # with the difference.
        made, pull = jax.vjp(flat, x)
        step = 1e-2 * direction
        ahead, behind = jax.lax.map(flat, jnp.stack([x + step, x - step]))
        difference = (ahead - behind) / 2e-2
        slope = jnp.vdot(pull(difference)[0], direction)
        return slope, jnp.vdot(difference, difference), jnp.vdot(made, made)

    head: Any = task.head
    program = jax.make_jaxpr(head)(params, x[0], matching.first(template))
    suspects = sorted(set(_blind(program.jaxpr)))
    why = f"; {', '.join(suspects)} in it stop derivatives" if suspects else ""
    cure = "replace them by smooth operations, or match embedding rows only"
    try:
        # Compiled here: it runs once, on concrete values, and not inside a step.
        slope, expected, scale = (float(value) for value in jax.jit(measure)(x))
    except (ValueError, TypeError, NotImplementedError) as error:
        raise ValueError(
            f"task.head cannot be differentiated twice{why}; {cure}. JAX says: "
            f"{str(error).splitlines()[0]}"
        ) from error
    if not abs(slope - expected) <= 0.1 * expected + 1e-12 * scale:
        raise ValueError(
            "task.head is not what its derivative says: the gradient moves by "
            f"{expected:.3g} along a direction, its derivative says {slope:.3g}{why}; "
            f"{cure}."
        )
    if not expected > 1e-10 * scale:
        raise ValueError(
            f"task.head has a gradient that does not move with its input{why}; {cure}."
        )


def _check_values(task, template, params, rows_VD) -> None:
    tokens = jnp.arange(np.shape(template["tokens"])[1], dtype=jnp.int32)
    tokens = tokens % rows_VD.shape[0]
    example, length = matching.first(template), jnp.asarray(tokens.shape[0], jnp.int32)
    example |= {"tokens": tokens, "length": length}
    made = task.embed(params, example)
    if not np.allclose(made, rows_VD[tokens], rtol=1e-4, atol=1e-6):
        _validate.fail(
            "table",
            list(rows_VD.shape),
            "is not all that task.embed reads",
            "switch bigrams and the like off",
        )


def _blind(jaxpr, maxima=frozenset()):
    """Names of operations of a program, and those within, that stop derivatives.

    The maximum that a softmax subtracts is stopped and does not matter.
    """
    maxima = set(maxima)
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        from_max = any(id(v) in maxima for v in eqn.invars)
        if name == "reduce_max" or (name in _MAXIMA and from_max):
            maxima.update(id(v) for v in eqn.outvars)
        elif name in _BLIND and not (name == "stop_gradient" and from_max):
            yield str(eqn.params.get("name", name))
        for value in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _blind(inner)
