"""Likelihood attacks: LiRA, and its shrunken form with Student's t.

Of target t and example i: x the margin under the target, IN and OUT references with
counts n, means m and centred sums of squares SS.

    LiRA online        log N(x; m_in, v_in) - log N(x; m_out, v_out)
    LiRA offline       z = (x - m_out) / sigma_out
    Student-t online   log t(x; IN) - log t(x; OUT)
    Student-t offline  (x - m_out) / sqrt(v (1 + 1/n_out))

with v = SS/n + 1e-6 of the example, or pooled over examples, each centred on its own
mean. The offline scores are one-sided: they rise with x. The tail probability itself,
or its logarithm, orders examples in the same way until it rounds to 1 and ties the very
top; the density at x is two-sided and ranks an example that the target knows
surprisingly badly as a member.

Shrinkage. With few references the variance of one example is hardly known, and the
pooled one ignores what is known. A normal-inverse-gamma prior with nu_0 = 4 degrees of
freedom around the pooled variance s0^2 takes both:

    nu = nu_0 + n,  v = (nu_0 s0^2 + SS) / nu,
    x ~ t with nu degrees of freedom, location m, squared scale v (1 + 1/n)

nu_0 -> 0 is the variance per example, nu_0 -> inf the pooled one (times 1 + 1/n). It is
near to BaVarIA (Brännvall 2026) with defaults of our own: nu_0 fixed beforehand, a flat
prior on the mean. There is nothing to switch or tune, so it is the default attack.

Terms of several queries are added, as if they were independent.
Dimension key: `M` models, `n` examples, `Q` queries.

Example::

    from trustml.attacks import likelihood, references

    rotation = references.rotate(signals.member, signals.pair)
    summary = references.summary(signals.margin, rotation, signals.valid)
    online = likelihood.student_t(signals.margin, summary)
    offline = likelihood.student_t_offline(signals.margin, summary)

References: https://arxiv.org/abs/2112.03570 (LiRA), https://arxiv.org/abs/2603.11799
(shrinkage)
"""

import math

import jax.numpy as jnp
from jax.scipy import special
from jaxtyping import Float

from trustml import _validate
from trustml.attacks import references
from trustml.attacks.references import FLOOR, Array, Scores, Summary

VARIANCES = ("auto", "per_example", "pooled")

# References per side from which the variance of an example is good enough by itself.
ENOUGH = 16


def lira(
    margin: Float[Array, "M n Q"], summary: Summary, *, variance: str = "auto"
) -> Scores:
    """LiRA online: log-likelihood ratio of two normals, summed over queries.

    Args:
      margin: `Signals.margin`.
      summary: of `references.summary` on the same margins.
      variance: 'per_example' (8 references a side or more are wanted, 2 needed),
        'pooled', or 'auto': per example where both sides have 16 references.

    Returns:
      Scores; not valid where a side is missing.

    Raises:
      ValueError: on an unknown variance.
    References: https://arxiv.org/abs/2112.03570
    """
    _variance(variance)
    x, s = _signal(margin, summary), summary
    v_in, v_out = _variances(s, variance, jnp.minimum(s.n_in, s.n_out))
    a = (x - s.mean_in) / jnp.sqrt(v_in)
    b = (x - s.mean_out) / jnp.sqrt(v_out)
    # (b^2 - a^2)/2 as a product: the squares of far examples would cancel.
    terms = 0.5 * (b - a) * (b + a) + 0.5 * (jnp.log(v_out) - jnp.log(v_in))
    least = 2.0 if variance == "per_example" else 1.0
    return _scores(terms, s, (s.n_in >= least) & (s.n_out >= least))


def lira_offline(
    margin: Float[Array, "M n Q"], summary: Summary, *, variance: str = "auto"
) -> Scores:
    """LiRA offline: how many deviations above the OUT references, one-sided.

    Args:
      margin: `Signals.margin`.
      summary: of `references.summary` on the same margins.
      variance: as of `lira`; 'auto' looks at the OUT side alone.

    Returns:
      Scores; not valid without an OUT reference.

    Raises:
      ValueError: on an unknown variance.
    References: https://arxiv.org/abs/2112.03570
    """
    _variance(variance)
    x, s = _signal(margin, summary), summary
    _, v_out = _variances(s, variance, s.n_out)
    least = 2.0 if variance == "per_example" else 1.0
    return _scores((x - s.mean_out) / jnp.sqrt(v_out), s, s.n_out >= least)


def student_t(
    margin: Float[Array, "M n Q"], summary: Summary, *, prior_dof: float = 4.0
) -> Scores:
    """Student-t online: log ratio of the predictive densities of the two sides.

    log t = lgamma((nu+1)/2) - lgamma(nu/2) - log(pi nu s^2)/2
            - (nu+1)/2 log1p((x - m)^2 / (nu s^2))

    Args:
      margin: `Signals.margin`.
      summary: of `references.summary` on the same margins.
      prior_dof: nu_0 > 0, weight of the pooled variance, in references.

    Returns:
      Scores; not valid where a side is missing.

    Raises:
      ValueError: unless prior_dof is positive.
    References: https://arxiv.org/abs/2603.11799
    """
    prior_dof = _validate.positive("prior_dof", prior_dof, "4.0 is the default")
    x, s = _signal(margin, summary), summary
    inside = _log_t(x, s.n_in, s.mean_in, s.squares_in, s.variance_in, prior_dof)
    outside = _log_t(x, s.n_out, s.mean_out, s.squares_out, s.variance_out, prior_dof)
    return _scores(inside - outside, s, (s.n_in >= 1) & (s.n_out >= 1))


def student_t_offline(
    margin: Float[Array, "M n Q"], summary: Summary, *, prior_dof: float = 4.0
) -> Scores:
    """Student-t offline: the distance to the OUT references in shrunken deviations.

    Args:
      margin: `Signals.margin`.
      summary: of `references.summary` on the same margins.
      prior_dof: nu_0 > 0, weight of the pooled variance, in references.

    Returns:
      Scores; not valid without an OUT reference.

    Raises:
      ValueError: unless prior_dof is positive.
    References: https://arxiv.org/abs/2603.11799
    """
    prior_dof = _validate.positive("prior_dof", prior_dof, "4.0 is the default")
    x, s = _signal(margin, summary), summary
    _, scale = _shrunk(s.n_out, s.squares_out, s.variance_out, prior_dof)
    return _scores((x - s.mean_out) / jnp.sqrt(scale), s, s.n_out >= 1)


def _shrunk(count, squares, pooled, prior_dof):
    """Degrees of freedom [M, n, 1] and squared scale [M, n, Q] of the predictive t."""
    count = jnp.maximum(count, 1.0)[:, :, None]
    dof = prior_dof + count
    spread = (prior_dof * pooled[:, None, :] + squares) / dof
    return dof, spread * (1.0 + 1.0 / count)


def _log_t(x, count, mean, squares, pooled, prior_dof):
    dof, scale = _shrunk(count, squares, pooled, prior_dof)
    away = x - mean
    constant = special.gammaln(0.5 * (dof + 1.0)) - special.gammaln(0.5 * dof)
    constant = constant - 0.5 * jnp.log(math.pi * dof * scale)
    return constant - 0.5 * (dof + 1.0) * jnp.log1p(away * away / (dof * scale))


def _variances(s, variance, count):
    own = [
        squares / jnp.maximum(n, 1.0)[:, :, None] + FLOOR
        for squares, n in ((s.squares_in, s.n_in), (s.squares_out, s.n_out))
    ]
    if variance == "per_example":
        return own
    pooled = [
        jnp.broadcast_to(v[:, None, :], s.mean_in.shape)
        for v in (s.variance_in, s.variance_out)
    ]
    if variance == "pooled":
        return pooled
    enough = (count >= ENOUGH)[:, :, None]
    return [jnp.where(enough, a, b) for a, b in zip(own, pooled, strict=True)]


def _variance(variance):
    _validate.one_of("variance", variance, VARIANCES, "use 'auto'")


def _signal(margin, summary):
    return references.clean(margin, summary.valid)[0]


def _scores(terms, summary, some):
    valid = summary.valid[None, :] & some
    return references.scores(jnp.sum(terms, axis=-1), valid)
