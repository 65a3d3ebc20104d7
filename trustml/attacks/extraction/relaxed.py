"""Relaxed extraction: the choice of tokens made smooth, and descended by gradients.

    q_l = softmax((z_l + g_l) / tau),  g_l Gumbel,   x_l = sum_a q_la E_la,
    minimise L(x) over z in R^{L x A} by Adam, tau from 1 down to 0.05

(Parikh, Dupuy, Gupta 2022, with the Gumbel-softmax of Jang et al. 2017.) Fresh noise at
every step; tau falls geometrically; the code is argmax z. Restarts run by vmap and are
ranked by the true loss of their codes, not by the relaxed one.

Dimension key: L unknown positions, A tokens of an alphabet, S restarts, D width.

Example::

    attack = jax.jit(relaxed.gumbel(task, pattern))
    found = attack(params, target, jax.random.key(0))
    found.codes[0], found.losses[0]                            # the best restart

References: https://arxiv.org/abs/2203.13920, https://arxiv.org/abs/1611.01144
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from trustml import _validate
from trustml import task as task_lib
from trustml.attacks.extraction import canary, scoring, search


def gumbel(
    task: task_lib.Task,
    pattern: canary.Pattern,
    *,
    loss: scoring.Loss | None = None,
    optimizer: optax.GradientTransformation | None = None,
    steps: int = 300,
    restarts: int = 16,
    first_temperature: float = 1.0,
    last_temperature: float = 0.05,
) -> Callable[[Any, Any, Any], search.Found]:
    """The attack of Parikh, Dupuy and Gupta.

    Args:
      task: as for `scoring.scorer`.
      pattern: the known part of the canary.
      loss: as for `scoring.scorer`.
      optimizer: of z; Adam with rate 0.1 where None.
      steps: of the optimizer.
      restarts: S >= 1.
      first_temperature: tau at the first step.
      last_temperature: tau at the last, 0 < last <= first.

    Returns:
      fn(params, target, key) -> search.Found with S codes, the best first; pure.

    Raises:
      ValueError: for options out of bounds, and as `scoring.parts`.
    """
    steps = _validate.integer_at_least("steps", steps, 1, "300 is usual")
    restarts = _validate.integer_at_least("restarts", restarts, 1, "16 is usual")
    first = _validate.positive("first_temperature", first_temperature)
    last = _validate.positive("last_temperature", last_temperature)
    if last > first:
        _validate.fail("last_temperature", last, f"must be <= {first}, the first")
    if optimizer is None:
        optimizer = optax.adam(0.1)
    loss = scoring.joint_loss() if loss is None else loss
    embeddings = scoring.parts(task, pattern)
    head: Any = task.head
    taus = jnp.geomspace(first, last, steps, dtype=jnp.float32)

    def attack(params, target, key) -> search.Found:
        template, alphabets = embeddings(params, target)

        def of_rows(rows):
            x = scoring.place(template, pattern.positions, rows)
            return loss(head(params, x, target), target)

        def relaxed(z, noise, tau):
            q = jax.nn.softmax((z + noise) / tau, axis=-1)
            return of_rows(jnp.einsum("la,lad->ld", q, alphabets))

        def run(key):
            z = jnp.zeros(pattern.alphabet.shape, jnp.float32)

            def step(carry, inputs):
                z, state = carry
                tau, number = inputs
                own = jax.random.fold_in(key, number)
                noise = jax.random.gumbel(own, z.shape)
                grads = jax.grad(relaxed)(z, noise, tau)
                updates, state = optimizer.update(grads, state, z)
                return (optax.apply_updates(z, updates), state), None

            numbers = jnp.arange(steps, dtype=jnp.uint32)
            (z, _), _ = jax.lax.scan(step, (z, optimizer.init(z)), (taus, numbers))
            code = jnp.argmax(z, axis=-1).astype(jnp.int32)
            return code, of_rows(scoring.pick(alphabets, code))

        return search.ranked(*jax.vmap(run)(jax.random.split(key, restarts)))

    return attack
