"""Membership attacks on language models, from the log-probability of every token.

| function | score |
|---|---|
| `log_likelihood` | mean lp_t |
| `against_zlib` | sum lp_t / (8 bytes of zlib(text)) |
| `against` | LL - LL of the lowercased text, or of a reference model |
| `neighbourhood` | LL - mean LL of perturbed texts |
| `min_k` | mean of the lowest ceil(k T) of lp_t |
| `min_k_plus` | the same of (lp_t - mu_t)/sigma_t |

mu_t and sigma_t are mean and standard deviation of log p under the model's own
distribution at position t: a token that is unlikely where everything is unlikely says
nothing. sigma_t^2 = sum_v p (log p - mu)^2, as the difference of the squares cancels.

These attacks have no randomised reference, so they measure membership only where it was
randomised (canaries, a random half); for a date cut or a crawl see `attacks.blind`.

Dimension key: `n` texts, `T` tokens, masked, `V` vocabulary, `P` perturbations.

Example::

    moments = language.moments(log_probs)                # [n, T, V] -> mu, sigma
    scores = language.min_k_plus(token_log_prob, *moments, mask, k=0.2)

References: https://arxiv.org/abs/2310.16789 (Min-K%), https://arxiv.org/abs/2404.02936
(Min-K%++), https://arxiv.org/abs/2012.07805 (zlib, lowercase, reference),
https://arxiv.org/abs/2305.18462 (neighbourhood)
"""

import zlib
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from trustml import _validate
from trustml.attacks import references
from trustml.attacks.references import Array, Scores

# A position where the model is certain; sigma below it is rounding.
_SIGMA = 1e-6


def log_likelihood(
    token_log_prob: Float[Array, "n T"], mask: Bool[Array, "n T"]
) -> Scores:
    """Mean log-probability of the tokens of a text.

    Args:
      token_log_prob: log p of each token given those before it.
      mask: true for real tokens; what the others hold does not matter.

    Returns:
      Scores [n]; not valid for a text without tokens, or with a token that is not
      finite.
    """
    lp, mask, ok = _tokens(token_log_prob, mask)
    return references.scores(jnp.sum(lp, axis=1) / _length(mask), ok)


def zlib_bytes(texts: Sequence[str]) -> np.ndarray:
    """Bytes of every text compressed by zlib, int32[n]; on the host."""
    return np.array([len(zlib.compress(text.encode())) for text in texts], np.int32)


def against_zlib(
    token_log_prob: Float[Array, "n T"], mask: Bool[Array, "n T"], size: Array
) -> Scores:
    """Log-likelihood per bit of the compressed text.

    Args:
      token_log_prob: of each token.
      mask: true for real tokens.
      size: of `zlib_bytes`, [n].

    Returns:
      Scores [n].
    References: https://arxiv.org/abs/2012.07805
    """
    lp, _, ok = _tokens(token_log_prob, mask)
    bits = 8.0 * jnp.asarray(size).astype(jnp.float32)
    return references.scores(jnp.sum(lp, axis=1) / jnp.maximum(bits, 8.0), ok)


def against(scores: Scores, other: Scores) -> Scores:
    """The log-likelihood less another one of the same text.

    Args:
      scores: `log_likelihood` under the target.
      other: `log_likelihood` of the lowercased text, or under a reference model.

    Returns:
      Scores [n]; valid where both are.
    References: https://arxiv.org/abs/2012.07805
    """
    return references.scores(
        jnp.asarray(scores.value) - jnp.asarray(other.value),
        jnp.asarray(scores.valid) & jnp.asarray(other.valid),
    )


def neighbourhood(
    scores: Scores,
    token_log_prob: Float[Array, "n P T"],
    mask: Bool[Array, "n P T"],
) -> Scores:
    """The log-likelihood less the mean one of perturbed texts.

    Args:
      scores: `log_likelihood` of the texts themselves.
      token_log_prob: of the tokens of P perturbations of every text.
      mask: true for real tokens; a perturbation without tokens is left out.

    Returns:
      Scores [n]; not valid without a perturbation.
    References: https://arxiv.org/abs/2305.18462
    """
    texts, size, length = token_log_prob.shape
    each = log_likelihood(
        jnp.reshape(jnp.asarray(token_log_prob), (texts * size, length)),
        jnp.reshape(jnp.asarray(mask), (texts * size, length)),
    )
    value = jnp.reshape(jnp.asarray(each.value), (texts, size))
    valid = jnp.reshape(jnp.asarray(each.valid), (texts, size))
    count = jnp.sum(valid, axis=1, dtype=jnp.float32)
    total = jnp.sum(jnp.where(valid, value, 0.0), axis=1)
    mean = Scores(total / jnp.maximum(count, 1.0), count > 0)
    return against(scores, mean)


def min_k(
    token_log_prob: Float[Array, "n T"], mask: Bool[Array, "n T"], *, k: float = 0.2
) -> Scores:
    """Min-K%: mean of the ceil(k T) least likely tokens.

    Args:
      token_log_prob: of each token.
      mask: true for real tokens.
      k: share of the tokens, in (0, 1].

    Returns:
      Scores [n].

    Raises:
      ValueError: if k is outside (0, 1].
    References: https://arxiv.org/abs/2310.16789
    """
    lp, mask, ok = _tokens(token_log_prob, mask)
    return references.scores(_lowest(lp, mask, k), ok)


def min_k_plus(
    token_log_prob: Float[Array, "n T"],
    mu: Float[Array, "n T"],
    sigma: Float[Array, "n T"],
    mask: Bool[Array, "n T"],
    *,
    k: float = 0.2,
) -> Scores:
    """Min-K%++: Min-K% of the standardised log-probabilities.

    Args:
      token_log_prob: of each token.
      mu: of `moments`.
      sigma: of `moments`.
      mask: true for real tokens.
      k: share of the tokens, in (0, 1].

    Returns:
      Scores [n].

    Raises:
      ValueError: if k is outside (0, 1].
    References: https://arxiv.org/abs/2404.02936
    """
    lp, mask, ok = _tokens(token_log_prob, mask)
    scale = jnp.maximum(jnp.where(mask, jnp.asarray(sigma), 1.0), _SIGMA)
    away = (lp - jnp.where(mask, jnp.asarray(mu), 0.0)) / scale
    return references.scores(_lowest(away, mask, k), ok)


def moments(log_probs: Float[Array, "*b V"]) -> tuple[Array, Array]:
    """Mean and standard deviation of log p under p, of every position.

    Args:
      log_probs: log-probabilities of the whole vocabulary; -inf is a token that cannot
        come, and counts nothing.

    Returns:
      (mu, sigma), each shaped as the positions; sigma is at least 1e-6.
    References: https://arxiv.org/abs/2404.02936
    """
    log_probs = jnp.asarray(log_probs, jnp.float32)
    p = jnp.exp(log_probs)
    safe = jnp.where(p > 0, log_probs, 0.0)
    mu = jnp.sum(p * safe, axis=-1, keepdims=True)
    away = jnp.where(p > 0, safe - mu, 0.0)
    variance = jnp.sum(p * away * away, axis=-1)
    return mu[..., 0], jnp.maximum(jnp.sqrt(variance), _SIGMA)


def _tokens(token_log_prob, mask):
    lp, mask = jnp.asarray(token_log_prob, jnp.float32), jnp.asarray(mask)
    ok = jnp.any(mask, axis=1) & jnp.all(jnp.isfinite(lp) | ~mask, axis=1)
    return jnp.where(mask & ok[:, None], lp, 0.0), mask, ok


def _length(mask):
    return jnp.maximum(jnp.sum(mask, axis=1, dtype=jnp.float32), 1.0)


def _lowest(value, mask, k):
    if not 0.0 < _validate.finite("k", k) <= 1.0:
        _validate.fail("k", k, "must lie in (0, 1]", "0.2 is usual")
    ordered = jnp.sort(jnp.where(mask, value, jnp.inf), axis=1)
    # 1e-4 takes back the rounding of, say, 0.2 * 35 = 7.0000002.
    count = jnp.ceil(jnp.float32(k) * _length(mask) - 1e-4)
    count = jnp.maximum(count, 1.0)
    place = jnp.arange(mask.shape[1], dtype=jnp.float32)
    kept = (place[None, :] < count[:, None]) & jnp.isfinite(ordered)
    return jnp.sum(jnp.where(kept, ordered, 0.0), axis=1) / count
