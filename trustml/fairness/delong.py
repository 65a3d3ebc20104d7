"""Variance of areas under the ROC in closed form, and of their differences.

The AUC is a mean over positives of the share of negatives below, and a mean over
negatives of the share of positives above, ties half. With these shares, V10_i of each
positive and V01_j of each negative,

    cov(AUC_a, AUC_b) = cov_i(V10_a, V10_b) / n+  +  cov_j(V01_a, V01_b) / n-

(DeLong, DeLong and Clarke-Pearson 1988, Biometrics 44:837-845), from one sort a score
(midranks; Sun and Xu 2014). Areas on the same rows are correlated, so two models are
compared by the variance of the difference, never by two intervals.

It describes rows drawn anew, independently: where rows repeat (templates, annotators),
resample clusters instead. Near an area of 1 the normal law fails; the interval of one
area is therefore taken on the logit scale, and there is none at 0 or 1.

Dimension key: `M` scores, `n` rows.

Example::

    found = jax.jit(delong.areas)(scores_Mn, labels)
    delong.interval(found.auc[0], found.covariance[0, 0])
    delong.difference(found, 0, 1)           # value, lo, hi, p
"""

import math
from typing import NamedTuple, SupportsFloat

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Shaped
from scipy import stats

from trustml import _validate, intervals
from trustml.fairness import ranks


class Areas(NamedTuple):
    """Areas of M scores of the same rows.

    Attributes:
      auc: float32[M]; NaN without positives, without negatives, or with a NaN score.
      covariance: float32[M, M]; NaN too with one positive or one negative.
    """

    auc: jax.Array
    covariance: jax.Array


class Difference(NamedTuple):
    """One area minus another.

    Attributes:
      value: AUC_a - AUC_b.
      lo: lower end of its interval.
      hi: upper end.
      p: two-sided, of no difference, under a normal law; nan where the variance is 0.
    """

    value: float
    lo: float
    hi: float
    p: float


def areas(
    scores: Shaped[Array, "M n"],
    labels: Shaped[Array, " n"],
    mask: Bool[Array, " n"] | None = None,
) -> Areas:
    """Areas and their covariance.

    Args:
      scores: a row for each model; larger is more positive.
      labels: flags, or integers 0 and 1.
      mask: rows in use; all where None.

    Raises:
      ValueError: labels are others than 0 and 1.
    """
    truth = ranks.flags("labels", labels)
    used = jnp.ones(truth.shape, bool) if mask is None else mask
    positive, negative = truth & used, ~truth & used

    def one(score):
        ranked = ranks.rank(score, used)
        sides = jnp.stack([negative, positive], axis=1).astype(jnp.float32)
        below = ranks.share_below(ranked, sides[ranked.order])
        # Back in the order of the rows, so that the scores' shares meet row by row.
        back = jnp.zeros_like(below).at[ranked.order].set(below)
        # A row of its own class counts itself half: only the other class is read.
        return back[:, 0], 1.0 - back[:, 1]

    v10_Mn, v01_Mn = jax.vmap(one)(scores)
    auc = cov = jnp.zeros(())
    for values, rows in ((v10_Mn, positive), (v01_Mn, negative)):
        count = jnp.sum(rows).astype(jnp.float32)
        mean = jnp.sum(jnp.where(rows[None], values, 0.0), axis=1) / count
        away = jnp.where(rows[None], values - mean[:, None], 0.0)
        product = jnp.matmul(away, away.T, precision=jax.lax.Precision.HIGHEST)
        spread = product / jnp.where(count > 1, count - 1, jnp.nan)
        auc, cov = mean, cov + spread / count
    return Areas(auc, cov)


def interval(
    auc: SupportsFloat,
    variance: SupportsFloat,
    level: float = 0.95,
) -> intervals.Interval:
    """Of one area, normal on the logit scale; no ends at an area of 0 or 1.

    Raises:
      ValueError: if the level is out of its bounds.
    """
    level = _validate.in_open_interval("level", level, 0.0, 1.0, "0.95 is usual")
    value, var, nan = float(auc), float(variance), float("nan")
    if not (0 < value < 1 and var > 0):
        return intervals.Interval(value, nan, nan)
    half = stats.norm.ppf((1 + level) / 2) * math.sqrt(var) / (value * (1 - value))
    centre = math.log(value / (1 - value))
    lo, hi = (1 / (1 + math.exp(-(centre + side * half))) for side in (-1, 1))
    return intervals.Interval(value, lo, hi)


def difference(found: Areas, a: int, b: int, level: float = 0.95) -> Difference:
    """AUC_a - AUC_b on the same rows.

    Raises:
      ValueError: if the level is out of its bounds.
    """
    level = _validate.in_open_interval("level", level, 0.0, 1.0, "0.95 is usual")
    cov = found.covariance
    value = float(found.auc[a] - found.auc[b])
    var = float(cov[a, a] + cov[b, b] - 2 * cov[a, b])
    nan = float("nan")
    if not var > 0:
        return Difference(value, nan, nan, nan)
    se = math.sqrt(var)
    half = float(stats.norm.ppf((1 + level) / 2)) * se
    lo, hi = max(-1.0, value - half), min(1.0, value + half)
    return Difference(value, lo, hi, float(2 * stats.norm.sf(abs(value) / se)))
