"""Scores: what the releases of a whole run say about each canary, in one number.

With x_tk = g~_t[k] m / contribution, what step t released at canary k,

    q = 1    o_k = sum_t x_tk                             ~ N(T in_k, T z^2)
    q < 1    o_k = sum_t log(1 - q + q exp((2 x_tk - 1) / (2 z^2)))
    any q    o_k = Var_t x_tk

the second being the log likelihood ratio of "in, sampled at rate q" against "out": by
Neyman and Pearson no attack on this canary is stronger, if the noise is what it should
be. The third is for noise that is not: where a key is used at every step, noise cancels
in it, and what is left are the comings and goings of the canary. Larger means in.

Every score that is looked at costs its share of alpha: k of them, alpha/k each, and
`result.strongest` of the bounds.

With strategy 'fixed' a threshold is fixed before the scores are seen: T/2 at q = 1
(where both errors are equal), `fixed_threshold` at q < 1, from draws of the theoretical
law alone.

Dimension key: T steps, n canaries.

References: https://arxiv.org/abs/2302.07956
"""

import math

import numpy as np
from jaxtyping import Float

from trustml import _validate
from trustml.audit import lower_bounds


def total(units: Float[np.ndarray, "T n"]) -> Float[np.ndarray, " n"]:
    """Sum over the steps, for canaries that are in every batch; threshold T/2."""
    return np.sum(_validate.numbers_of("units", units), axis=0)


def subsampled(
    units: Float[np.ndarray, "T n"], *, sample_rate: float, noise_multiplier: float
) -> Float[np.ndarray, " n"]:
    """Log likelihood ratio of in against out, for Poisson batches.

    Args:
      units: x_tk, what was released divided by a canary's contribution to it.
      sample_rate: q in (0, 1].
      noise_multiplier: z, stddev of the noise in the same units.
    """
    q, z = _rate(sample_rate), _validate.positive("noise_multiplier", noise_multiplier)
    exponent = (2 * _validate.numbers_of("units", units) - 1) / (2 * z * z)
    kept = math.log1p(-q) if q < 1 else -math.inf
    return np.sum(np.logaddexp(kept, math.log(q) + exponent), axis=0)


def temporal_variance(units: Float[np.ndarray, "T n"]) -> Float[np.ndarray, " n"]:
    """Variance over the steps: z^2 + q (1-q) for canaries in, z^2 for those out.

    Where one noise is used at every step, q (1-q) and 0. It needs q < 1 and T >= 2.
    """
    units = _validate.numbers_of("units", units)
    if len(units) < 2:
        _validate.fail(
            "units",
            list(units.shape),
            "has no variance over steps",
            "record two or more",
        )
    return np.var(units, axis=0, ddof=1)


def fixed_threshold(
    *,
    steps: int,
    sample_rate: float,
    noise_multiplier: float,
    delta: float,
    alpha: float,
    per_side: int,
    seed: int = 0,
) -> float:
    """A threshold for `subsampled` that is likely to give a large bound.

    It maximises the bound over simulated scores of the theoretical law, and knows
    nothing of the audited ones.

    Args:
      steps: T.
      sample_rate: q.
      noise_multiplier: z.
      delta: of the bound.
      alpha: of the bound.
      per_side: canaries in, and out, that the audit will have.
      seed: of the simulation.
    """
    q, z = _rate(sample_rate), _validate.positive("noise_multiplier", noise_multiplier)
    rng = np.random.default_rng(seed)
    shape = (steps, per_side)
    present = rng.random(shape) < q
    law = {"sample_rate": q, "noise_multiplier": z}
    inside = subsampled(present + z * rng.standard_normal(shape), **law)
    outside = subsampled(z * rng.standard_normal(shape), **law)
    tried = np.quantile(
        np.concatenate([inside, outside]), np.linspace(0.005, 0.995, 199)
    )
    found = [
        lower_bounds.epsilon_delta(
            inside,
            outside,
            threshold=t,
            delta=delta,
            alpha=alpha,
            independent_scores=True,
        ).epsilon
        for t in tried.tolist()
    ]
    return float(tried[int(np.argmax(found))])


def _rate(value: float) -> float:
    rate = _validate.positive("sample_rate", value, "it is a probability")
    if rate > 1:
        _validate.fail("sample_rate", value, "must be at most 1", "it is a probability")
    return rate
