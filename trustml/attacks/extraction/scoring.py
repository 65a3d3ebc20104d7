"""The attack loss of codes: what training would pay for each of them.

    L(c) = w_i CE_intent + w_s mean_t CE_slot,t

with the weights of training. Most of the leak is in the slots: an intent-only attack
on the same model finds far less. All codes share the known words, so the embeddings of
the template and of the A tokens of every alphabet are made once, and a code is put
together from them. That needs an `embed` that is local, E_t a function of token t and
its place; it is checked when a scorer is built.

Scores of all codes give the exact rank of the secret (`exposure.exact`), and their
smallest is the optimum that every search looks for.

Dimension key: L unknown positions, A tokens of an alphabet, R codes, T tokens, D width.

Example::

    score = scoring.scorer(task, pattern)
    losses = jax.jit(score)(params, target, codes)             # one model, [R]
    losses = jax.vmap(score, (0, 0, None))(stacked, targets, codes)       # [M, R]

References: https://arxiv.org/abs/2203.13920
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trustml import _validate
from trustml import task as task_lib
from trustml.attacks.extraction import canary
from trustml.models import tagging

Loss = Callable[[Any, Any], jax.Array]


def joint_loss(
    *, intent_weight: float = 1.0, slot_weight: float = 1.0, slot_total: bool = False
) -> Loss:
    """(prediction, example) -> w_i CE_intent + w_s mean over the tokens of CE_slot.

    Args:
      intent_weight: >= 0.
      slot_weight: >= 0; 0 for the intent alone, and for models without slots.
      slot_total: sum over the tokens in place of the mean, as the model was trained.

    Raises:
      ValueError: if a weight is negative, or both are 0.
    """
    intent = _validate.non_negative("intent_weight", intent_weight)
    slots = _validate.non_negative("slot_weight", slot_weight)
    if not intent + slots:
        _validate.fail("slot_weight", slot_weight, "leaves nothing to score")

    def loss(prediction, example):
        total = jnp.zeros((), jnp.float32)
        if intent:
            total += intent * task_lib.cross_entropy(prediction, example)
        if slots:
            total += slots * tagging.slot_cross_entropy(
                prediction, example, total=slot_total
            )
        return total

    return loss


def parts(
    task: task_lib.Task, pattern: canary.Pattern
) -> Callable[[Any, Any], tuple[jax.Array, jax.Array]]:
    """(params, target) -> template E[T, D], and the alphabets [L, A, D] in their place.

    Raises:
      ValueError: if the task has no `embed` and `head`, or `embed` is not local.
    """
    if task.embed is None or task.head is None:
        _validate.fail(
            "task", "embed or head is None", "has no embeddings", "give a task of text"
        )
    embed = task.embed
    positions, letters = pattern.positions, jnp.asarray(pattern.alphabet)

    def embeddings(params, target):
        base = jnp.asarray(target["tokens"])

        def one(column_L):
            tokens = base.at[positions].set(column_L)
            return embed(params, {**target, "tokens": tokens})[positions]

        rows_ALD = jax.vmap(one)(letters.T)
        return embed(params, target), jnp.swapaxes(rows_ALD, 0, 1)

    _check_local(task, pattern, embeddings)
    return embeddings


def place(template_TD: jax.Array, positions: np.ndarray, rows_LD: jax.Array):
    """The template's embeddings with `rows_LD` at the unknown positions, [T, D]."""
    return template_TD.at[positions].set(rows_LD)


def pick(alphabets_LAD: jax.Array, code_L: jax.Array) -> jax.Array:
    """The embeddings of a code, [L, D]."""
    return jnp.take_along_axis(alphabets_LAD, code_L[:, None, None], axis=1)[:, 0]


def scorer(
    task: task_lib.Task,
    pattern: canary.Pattern,
    *,
    loss: Loss | None = None,
    chunk: int = 1000,
) -> Callable[[Any, Any, Any], jax.Array]:
    """The loss of many codes under one model.

    Args:
      task: with `embed` (local) and `head`.
      pattern: the known part of the canary.
      loss: (prediction, example) -> float32[]; `joint_loss()` where None.
      chunk: codes scored at once by vmap; bounds the memory.

    Returns:
      fn(params, target, codes int32[R, L]) -> float32[R]; pure, for `jax.jit` and for
      `jax.vmap` over params and targets.

    Raises:
      ValueError: as `parts`, or for a chunk below 1.
    """
    chunk = _validate.integer_at_least("chunk", chunk, 1, "1000 is usual")
    loss = joint_loss() if loss is None else loss
    embeddings = parts(task, pattern)
    head: Any = task.head

    def score(params, target, codes):
        template, alphabets = embeddings(params, target)

        def one(code):
            x = place(template, pattern.positions, pick(alphabets, code))
            return loss(head(params, x, target), target)

        return jax.lax.map(one, jnp.asarray(codes), batch_size=chunk)

    return score


def marginals(
    losses_R: jax.Array, pattern: canary.Pattern, *, temperature: float = 1.0
) -> jax.Array:
    """Probability of every token at every position, [L, A], from the losses of all.

    sum over the codes with that token of softmax(-L / temperature). Its argmax is
    another way to decode; on joint models it was worse than the best code.
    """
    temperature = _validate.positive("temperature", temperature)
    width, size = pattern.alphabet.shape
    weights = jax.nn.softmax(-losses_R / temperature).reshape((size,) * width)
    axes = [tuple(j for j in range(width) if j != i) for i in range(width)]
    return jnp.stack([jnp.sum(weights, axis=other) for other in axes])


def _check_local(task, pattern: canary.Pattern, embeddings) -> None:
    """Compares the parts, put together, with `embed` of a whole code."""
    params = task.init(jax.random.key(0))
    width, size = pattern.alphabet.shape
    code = jnp.arange(1, width + 1, dtype=jnp.int32) % size
    rows = pattern.alphabet[np.arange(width), np.asarray(code)]
    target = {
        "tokens": jnp.asarray(pattern.tokens),
        "length": jnp.asarray(pattern.length, jnp.int32),
    }
    tokens = target["tokens"].at[pattern.positions].set(rows)
    template, alphabets = embeddings(params, target)
    made = place(template, pattern.positions, pick(alphabets, code))
    whole = task.embed(params, target | {"tokens": tokens})
    if not np.allclose(made, whole, rtol=1e-4, atol=1e-6):
        _validate.fail(
            "task.embed",
            f"{np.abs(np.asarray(made - whole)).max():.3g}",
            "is the difference between a code put together and one embedded whole",
            "its embedding of a token reads other tokens; switch bigrams off",
        )
