"""Search for the code of smallest loss, where there are too many to score.

- `beam`: positions from left to right; those not yet set hold the mean embedding of
  their alphabet. Keeps the best `width` beginnings.
- `coordinate_descent`: from random codes, position after position, the best token given
  the others, until nothing changes; restarts by vmap.

Both cost on the order of L A evaluations for each code kept, against A^L of scoring
all. Neither is sure of the optimum: compare with `scoring.scorer` where it can be had.

Dimension key: L unknown positions, A tokens of an alphabet, S codes kept, D width.

Example::

    found = jax.jit(search.beam(task, pattern, width=16))(params, target)
    found.codes[0], found.losses[0]                            # the best

References: https://arxiv.org/abs/1802.08232 (search for secrets by loss).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from trustml import _validate
from trustml import task as task_lib
from trustml.attacks.extraction import canary, scoring


class Found(NamedTuple):
    """Codes of a search, the best first.

    Attributes:
      codes: int32[S, L].
      losses: float32[S], not decreasing; the true loss of each code.
    """

    codes: jax.Array
    losses: jax.Array


def beam(
    task: task_lib.Task,
    pattern: canary.Pattern,
    *,
    width: int = 16,
    loss: scoring.Loss | None = None,
) -> Callable[[Any, Any], Found]:
    """Beam search from left to right.

    Args:
      task: as for `scoring.scorer`.
      pattern: the known part of the canary.
      width: beginnings kept, >= 1.
      loss: as for `scoring.scorer`.

    Returns:
      fn(params, target) -> Found with min(width, A^L) codes.
    """
    width = _validate.integer_at_least("width", width, 1, "16 is usual")
    loss = scoring.joint_loss() if loss is None else loss
    embeddings = scoring.parts(task, pattern)
    head: Any = task.head
    length, size = pattern.alphabet.shape

    def search(params, target) -> Found:
        template, alphabets = embeddings(params, target)
        means = jnp.mean(alphabets, axis=1)

        def score(code, known):
            rows = scoring.pick(alphabets, code)
            rows = jnp.where(jnp.arange(length)[:, None] < known, rows, means)
            x = scoring.place(template, pattern.positions, rows)
            return loss(head(params, x, target), target)

        codes, losses = jnp.zeros((1, length), jnp.int32), jnp.zeros(1)
        for place in range(length):
            longer = jnp.repeat(codes, size, axis=0)
            tokens = jnp.tile(jnp.arange(size, dtype=jnp.int32), len(codes))
            longer = longer.at[:, place].set(tokens)
            scores = jax.vmap(score, (0, None))(longer, place + 1)
            kept = jnp.argsort(scores)[:width]
            codes, losses = longer[kept], scores[kept]
        return Found(codes, losses)

    return search


def coordinate_descent(
    task: task_lib.Task,
    pattern: canary.Pattern,
    *,
    restarts: int = 16,
    max_sweeps: int = 10,
    loss: scoring.Loss | None = None,
) -> Callable[[Any, Any, Any], Found]:
    """The best token of one position after another, from random codes.

    Args:
      task: as for `scoring.scorer`.
      pattern: the known part of the canary.
      restarts: S >= 1 random codes to begin with.
      max_sweeps: over all positions; it ends before where nothing changes.
      loss: as for `scoring.scorer`.

    Returns:
      fn(params, target, key) -> Found with S codes, possibly equal ones.
    """
    restarts = _validate.integer_at_least("restarts", restarts, 1, "16 is usual")
    max_sweeps = _validate.integer_at_least("max_sweeps", max_sweeps, 1)
    loss = scoring.joint_loss() if loss is None else loss
    embeddings = scoring.parts(task, pattern)
    head: Any = task.head
    length, size = pattern.alphabet.shape

    def search(params, target, key) -> Found:
        template, alphabets = embeddings(params, target)

        def score(code):
            rows = scoring.pick(alphabets, code)
            x = scoring.place(template, pattern.positions, rows)
            return loss(head(params, x, target), target)

        def improve(place, carry):
            code, _ = carry
            tokens = jnp.arange(size, dtype=jnp.int32)
            scores = jax.vmap(lambda a: score(code.at[place].set(a)))(tokens)
            best = jnp.argmin(scores)
            # The old token stays where it is as good: a sweep that ties must end.
            best = jnp.where(scores[code[place]] <= scores[best], code[place], best)
            return code.at[place].set(best.astype(jnp.int32)), scores[best]

        def sweep(state):
            code, value, _, count = state
            new, value = jax.lax.fori_loop(0, length, improve, (code, value))
            return new, value, jnp.any(new != code), count + 1

        def run(code):
            start = (code, jnp.float32(jnp.inf), jnp.asarray(True), 0)
            end = jax.lax.while_loop(
                lambda state: state[2] & (state[3] < max_sweeps), sweep, start
            )
            return end[0], end[1]

        starts = jax.random.randint(key, (restarts, length), 0, size, jnp.int32)
        return ranked(*jax.vmap(run)(starts))

    return search


def ranked(codes: jax.Array, losses: jax.Array) -> Found:
    """The codes in order of their losses."""
    order = jnp.argsort(losses)
    return Found(codes[order], losses[order])
