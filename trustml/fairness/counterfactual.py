"""Counterfactual fairness of predictions: what changes when the protected words do.

For a text x and its counterfactual x' (he for she, a name for a name), the gap is the
total variation |f(x) - f(x')|_1 / 2. It sees explicit cues only: a text without such a
word has no counterfactual, and of implicit ones (a hobby, a school) it says nothing,
which is why coverage stands beside every figure here.

Source: Kusner et al. 2017, https://arxiv.org/abs/1703.06856 (the notion); Garg et al.
2019, https://arxiv.org/abs/1809.10610 (token gap). Dimension key: `B` texts, `K`
classes, `T` tokens.

Example::

    swapped, changed = counterfactual.swap(tokens, pairs)
    found = counterfactual.gap(predict(tokens), predict(swapped), changed)
    found.mean, found.flips, found.coverage
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trustml import _validate


class Gap(NamedTuple):
    """Of a corpus.

    Attributes:
      per_example: float[B], total variation; 0 where nothing was swapped.
      mean: float[], over texts in which something was; NaN where there are none.
      signed: float[K], mean of f(x) - f(x') over those.
      flips: float[], share of those whose prediction changes.
      coverage: float[], share of all texts in which something was swapped.
    """

    per_example: jax.Array
    mean: jax.Array
    signed: jax.Array
    flips: jax.Array
    coverage: jax.Array


def swap(tokens: Any, pairs: Any) -> tuple[jax.Array, jax.Array]:
    """Tokens with the two of each pair exchanged; twice is the identity.

    Args:
      tokens: int[..., T].
      pairs: int[N, 2], known outside of jit; no token may be in two of them.

    Returns:
      (int[..., T], bool[...]: whether a token was exchanged).

    Raises:
      ValueError: a token has two partners.
    """
    tokens, pairs = jnp.asarray(tokens), np.asarray(pairs)
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        _validate.fail("pairs", f"array of shape {pairs.shape}", "must be int[N, 2]")
    if not len(pairs):
        return tokens, jnp.zeros(tokens.shape[:-1], bool)
    known = pairs.reshape(-1).tolist()
    if len(set(known)) < len(known):
        twice = next(x for x in known if known.count(x) > 1)
        cure = "a swap is an involution only on a perfect matching"
        _validate.fail("pairs", twice, "has two partners", cure)
    mine, other = pairs.T.reshape(-1), pairs[:, ::-1].T.reshape(-1)
    order = np.argsort(mine)
    mine, partner = jnp.asarray(mine[order]), jnp.asarray(other[order])
    place = jnp.clip(jnp.searchsorted(mine, tokens), 0, mine.size - 1)
    hit = mine[place] == tokens
    other = partner[place].astype(tokens.dtype)
    return jnp.where(hit, other, tokens), hit.any(axis=-1)


def gap(log_probs: Any, swapped: Any, changed: Any, mask: Any = None) -> Gap:
    """How much predictions on counterfactuals differ.

    Args:
      log_probs: float[B, K] on the texts.
      swapped: float[B, K] on their counterfactuals.
      changed: bool[B], whether a text has one.
      mask: bool[B]; False rows count for nothing.
    """
    first, second = jnp.exp(jnp.asarray(log_probs)), jnp.exp(jnp.asarray(swapped))
    changed = jnp.asarray(changed, bool)
    there = jnp.ones_like(changed) if mask is None else jnp.asarray(mask, bool)
    used = changed & there
    apart = jnp.where(used[:, None], first - second, 0.0)
    flips = used & (jnp.argmax(first, axis=1) != jnp.argmax(second, axis=1))
    each = jnp.abs(apart).sum(axis=1) / 2
    n = used.sum().astype(each.dtype)
    over = jnp.where(n > 0, n, jnp.nan)
    of_all = jnp.maximum(there.sum(), 1).astype(each.dtype)
    return Gap(
        each,
        each.sum() / over,
        apart.sum(axis=0) / over,
        flips.sum().astype(each.dtype) / over,
        n / of_all,
    )
