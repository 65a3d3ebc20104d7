"""A linear-chain conditional random field over tags, for one sequence.

    score(y) = start[y_0] + sum_t emissions[t, y_t] + sum_t transitions[y_{t-1}, y_t]
               + end[y_{n-1}],        p(y) = exp(score(y) - log Z)

(Lafferty, McCallum, Pereira 2001). `T` slots of which the first `length` are real, `S`
tags. Nothing at or after `length` matters; an empty sequence has log Z = 0.

Every recursion is carried in log space. One step, log sum_i exp(a_i + transitions[i,
j]), is computed as log((exp(a - max a)) @ exp(transitions - max)), a matrix product in
place of S^2 exponentials for every token. It is exact until two transition scores lie
more than 87 (the range of float32) apart, where it is floored and stays finite.

Example::

    crf = Crf(transitions=jnp.zeros((S, S)), start=jnp.zeros(S), end=jnp.zeros(S))
    nll = -log_likelihood(crf, emissions, tags, length)
    tags = viterbi(crf, emissions, length)

References: Lafferty, McCallum, Pereira, ICML 2001; Rabiner 1989 (scaling, Viterbi).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

_TINY = 1e-37  # about the smallest normal float32


class Crf(NamedTuple):
    """Parameters of the chain."""

    transitions: jax.Array  # float32[S, S]; [i, j] scores tag j after tag i
    start: jax.Array  # float32[S]
    end: jax.Array  # float32[S]


def _mask(emissions, length):
    return jnp.arange(emissions.shape[0], dtype=jnp.int32) < length


def _step(transitions):
    """v[S] -> log sum_i exp(v_i + transitions[i, j]), as a matrix product."""
    shift = jax.lax.stop_gradient(jnp.max(transitions))
    kernel = jnp.exp(transitions - shift)

    def step(values):
        top = jax.lax.stop_gradient(jnp.max(values))
        sums = jnp.exp(values - top) @ kernel
        return jnp.log(jnp.maximum(sums, _TINY)) + (top + shift)

    return step


def _forward(crf, emissions, mask, step):
    """alpha[T, S]: log-sum of the scores of all prefixes; held after the end."""

    def body(alpha, inputs):
        emission, keep = inputs
        alpha = jnp.where(keep, step(alpha) + emission, alpha)
        return alpha, alpha

    first = crf.start + emissions[0]
    last, rest = jax.lax.scan(body, first, (emissions[1:], mask[1:]))
    return last, jnp.concatenate([first[None, :], rest])


def log_partition(crf: Crf, emissions: jax.Array, length: jax.Array) -> jax.Array:
    """Log Z, float32[]; 0 for an empty sequence.

    Args:
      crf: the parameters.
      emissions: float32[T, S], T >= 1.
      length: int32[], between 0 and T.
    """
    mask = _mask(emissions, length)
    alpha, _ = _forward(crf, emissions, mask, _step(crf.transitions))
    return jnp.where(length > 0, jax.nn.logsumexp(alpha + crf.end), 0.0)


def score(
    crf: Crf, emissions: jax.Array, tags: jax.Array, length: jax.Array
) -> jax.Array:
    """Unnormalised log-score of `tags` int32[T], float32[]; see `log_partition`."""
    mask = _mask(emissions, length)
    tags = jnp.where(mask, tags, 0)

    def pick(rows, columns):
        return jnp.take_along_axis(rows, columns[:, None], axis=1)[:, 0]

    last = jnp.take(tags, jnp.maximum(length - 1, 0))
    ends = jnp.take(crf.start, tags[0]) + jnp.take(crf.end, last)
    moves = pick(jnp.take(crf.transitions, tags[:-1], axis=0), tags[1:])
    total = ends + jnp.sum(jnp.where(mask, pick(emissions, tags), 0.0))
    total = total + jnp.sum(jnp.where(mask[1:], moves, 0.0))
    return jnp.where(length > 0, total, 0.0)


def log_likelihood(
    crf: Crf, emissions: jax.Array, tags: jax.Array, length: jax.Array
) -> jax.Array:
    """Log p(tags), float32[] <= 0; see `log_partition`."""
    return score(crf, emissions, tags, length) - log_partition(crf, emissions, length)


def log_marginals(crf: Crf, emissions: jax.Array, length: jax.Array) -> jax.Array:
    """Log p(y_t = s) of every token, float32[T, S]; uniform at and after `length`.

    The forward-backward algorithm, normalised per token.
    """
    mask = _mask(emissions, length)
    _, alphas = _forward(crf, emissions, mask, _step(crf.transitions))
    step = _step(crf.transitions.T)

    def body(beta, inputs):
        emission, keep = inputs
        return jnp.where(keep, step(beta + emission), beta), beta

    # Where `keep` is false the chain has ended: beta is still the score of the end.
    first, rest = jax.lax.scan(body, crf.end, (emissions[1:], mask[1:]), reverse=True)
    betas = jnp.concatenate([first[None, :], rest])
    scores = jnp.where(mask[:, None], alphas + betas, 0.0)
    return jax.nn.log_softmax(scores, axis=-1)


def viterbi(crf: Crf, emissions: jax.Array, length: jax.Array) -> jax.Array:
    """The most probable tags, int32[T]; 0 at and after `length`."""
    mask = _mask(emissions, length)
    stay = jnp.arange(emissions.shape[1], dtype=jnp.int32)

    def forward(best, inputs):
        emission, keep = inputs
        scores = best[:, None] + crf.transitions
        moved = jnp.max(scores, axis=0) + emission
        came_from = jnp.argmax(scores, axis=0).astype(jnp.int32)
        return (
            jnp.where(keep, moved, best),
            jnp.where(keep, came_from, stay),
        )

    first = crf.start + emissions[0]
    best, pointers = jax.lax.scan(forward, first, (emissions[1:], mask[1:]))
    last = jnp.argmax(best + crf.end).astype(jnp.int32)

    def backward(tag, pointer):
        return jnp.take(pointer, tag), tag

    first_tag, rest = jax.lax.scan(backward, last, pointers, reverse=True)
    return jnp.where(mask, jnp.concatenate([first_tag[None], rest]), 0)
