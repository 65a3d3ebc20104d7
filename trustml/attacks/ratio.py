"""RMIA: how much likelier is an example under the target than in the world?

    online    score = log p_x - log (P_in + P_out)/2
    offline   score = log p_x - log ((1 + a) P_out + 1 - a)/2          a in [0, 1]

P_in and P_out are the mean *probability* of the true class over the references of a
side. Published is a count over examples z of a population, Pr_z[LR(x, z) >= gamma] with
LR(x, z) = (p_x / P(x)) / (p_z / P(z)). All x of one target share their z, so the count
is a step function that rises with log p_x - log P(x): the log-ratio orders examples as
the count does, without its ties. Everything above the largest z is one tie there: with
Z of them, false-alarm rates below 1/Z are lost. `counting` is kept for comparison.

All in logarithms. Where p_x rounds to 1 so does its logarithm to 0, and such examples
are ordered by P(x) alone; attacks on the margin do not have that limit.

Dimension key: `M` models, `n` examples, `Q` queries.

Example::

    from trustml.attacks import ratio, references

    rotation = references.rotate(signals.member, signals.pair)
    means = ratio.log_means(signals.log_prob, rotation, signals.valid)
    scores = ratio.rmia(signals.log_prob, means)
    published = ratio.counting(scores, ~signals.member)

References: https://arxiv.org/abs/2312.03262, https://arxiv.org/abs/2505.24089
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from trustml import _validate
from trustml.attacks import references
from trustml.attacks.references import Array, Rotation, Scores

# Below every log-probability in float32 that a model can give.
_LEAST = -1e30


class LogMeans(NamedTuple):
    """Mean probability of the true class over the references, as logarithms.

    Attributes:
      log_in: float32[M, n, Q], log P_in; -inf without a reference.
      log_out: float32[M, n, Q], log P_out.
      valid: bool[n], false where a signal of any model is not finite.
    """

    log_in: Array
    log_out: Array
    valid: Array


def check(log_prob: np.ndarray) -> None:
    """Refuses what cannot be a log-probability, on the host.

    Raises:
      ValueError: if a value is above 0, as -loss of a task without classes may be.
    """
    largest = float(np.max(np.nan_to_num(log_prob, nan=0.0), initial=-np.inf))
    if largest > 1e-4:
        raise ValueError(
            f"log_prob={largest:.4g} must be at most 0, the logarithm of a "
            "probability; a task without classes has none: use the attacks on margins "
            "instead of RMIA."
        )


def log_means(
    log_prob: Float[Array, "M n Q"],
    rotation: Rotation,
    valid: Bool[Array, " n"] | None = None,
) -> LogMeans:
    """The logarithms of P_in and P_out, of every target and example.

    Args:
      log_prob: `Signals.log_prob`.
      rotation: of `references.rotate`.
      valid: `Signals.valid`.

    Returns:
      LogMeans.
    """
    log_prob, ok = references.clean(log_prob, valid)

    member = jnp.asarray(rotation.member)[:, :, None]

    def one(inside, outside, _):
        sides = inside[:, :, None], outside[:, :, None]
        tops = [jnp.max(jnp.where(side, log_prob, _LEAST), axis=0) for side in sides]
        below = log_prob - jnp.where(member, tops[0][None], tops[1][None])
        # One exponential for both sides. Clipped, as subnormal numbers take 10 times
        # as long; below e^-87 of the largest term nothing counts.
        part = jnp.exp(jnp.clip(below, -87.0, 0.0))
        return tuple(
            _log_mean(part, side, top) for side, top in zip(sides, tops, strict=True)
        )

    log_in, log_out = references.over_targets(one, rotation)
    return LogMeans(log_in, log_out, ok)


def rmia(log_prob: Float[Array, "M n Q"], means: LogMeans) -> Scores:
    """Online: the log-ratio against IN and OUT references; summed over queries.

    Args:
      log_prob: `Signals.log_prob`.
      means: of `log_means` on the same.

    Returns:
      Scores; not valid where a side is missing.
    References: https://arxiv.org/abs/2312.03262, https://arxiv.org/abs/2505.24089
    """
    world = jnp.logaddexp(means.log_in, means.log_out) - math.log(2.0)
    some = jnp.isfinite(means.log_in) & jnp.isfinite(means.log_out)
    return _scores(log_prob, world, means.valid, some)


def rmia_offline(
    log_prob: Float[Array, "M n Q"], means: LogMeans, *, a: float = 0.3
) -> Scores:
    """Offline: P_in is guessed from P_out, as a P_out + 1 - a; summed over queries.

    Args:
      log_prob: `Signals.log_prob`.
      means: of `log_means` on the same.
      a: in [0, 1]; near 1 where members and non-members hardly differ. Choose it on the
        partner model, never on the one that is attacked.

    Returns:
      Scores; not valid without an OUT reference.

    Raises:
      ValueError: if a is outside [0, 1].
    References: https://arxiv.org/abs/2312.03262
    """
    if not 0.0 <= _validate.finite("a", a) <= 1.0:
        _validate.fail("a", a, "must lie in [0, 1]", "0.3 is the default")
    world = math.log1p(a) + means.log_out
    if a < 1.0:
        world = jnp.logaddexp(world, math.log1p(-a))
    some = jnp.isfinite(means.log_out)
    return _scores(log_prob, world - math.log(2.0), means.valid, some)


def counting(
    scores: Scores, population: Bool[Array, "M n"], *, gamma: float = 1.0
) -> Scores:
    """The published score: share of the population z with LR(x, z) >= gamma.

    For comparison: it ties all examples above the largest z.

    Args:
      scores: log-ratios, of `rmia` or `rmia_offline`.
      population: the z of each target, non-members of it (`~Signals.member`); an
        example does not count itself.
      gamma: >= 1.

    Returns:
      Scores in [0, 1].

    Raises:
      ValueError: if gamma is below 1.
    References: https://arxiv.org/abs/2312.03262
    """
    if not _validate.finite("gamma", gamma) >= 1.0:
        _validate.fail("gamma", gamma, "must be at least 1", "1.0 is the default")
    chosen = jnp.asarray(population) & scores.valid
    value = jnp.where(scores.valid, scores.value, 0.0)
    others = jnp.where(chosen, value, jnp.inf)
    margin = math.log(gamma)

    def one(x, others):
        return jnp.searchsorted(jnp.sort(others), x - margin, side="right")

    counted = jax.vmap(one)(value, others).astype(jnp.float32)
    itself = (chosen & (value <= value - margin)).astype(jnp.float32)
    total = jnp.sum(chosen, axis=1, keepdims=True, dtype=jnp.float32)
    left = total - chosen.astype(jnp.float32)
    share = (counted - itself) / jnp.maximum(left, 1.0)
    return references.scores(share, jnp.asarray(scores.valid) & (left > 0))


def _log_mean(part, side, top):
    count = jnp.sum(side, axis=0, dtype=jnp.float32)
    total = jnp.sum(jnp.where(side, part, 0.0), axis=0)
    found = top + jnp.log(jnp.where(count > 0, total / jnp.maximum(count, 1.0), 1.0))
    return jnp.where(count > 0, found, -jnp.inf)


def _scores(log_prob, world, valid, some):
    log_prob, _ = references.clean(log_prob, valid)
    terms = log_prob - jnp.where(some, world, 0.0)
    return references.scores(
        jnp.sum(terms, axis=-1), jnp.all(some, axis=-1) & valid[None, :]
    )
