"""Random effects: the mean of estimates that differ by more than their own error.

    W = 1/V;  m = sum W d / sum W;  Q = sum W (d - m)^2;  c = sum W - sum W^2 / sum W
    tau^2 = max(0, (Q - (N - 1)) / c);  v = 1 / (V + tau^2)
    mean = sum v d / sum v;  SE = (sum v)^(-1/2);  Z = mean / SE

d are N estimates with variances V; tau^2 is the variance of what they estimate. SE
holds if the estimates are independent; draws from one finite pool are not.

Dimension key: `N` estimates.

Example::

    found = random_effects.combine(effects, variances)
    print(found.mean, found.tau_squared, found.standard_error)

References: DerSimonian and Laird 1986, https://doi.org/10.1016/0197-2456(86)90046-2.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class Combined(NamedTuple):
    """The mean effect and its parts.

    Attributes:
      mean: float32[]; NaN, as all below, if fewer than two estimates are used.
      tau_squared: float32[]; variance between estimates beyond V, >= 0.
      standard_error: float32[]; of the mean, if the estimates are independent.
      z: float32[]; mean / standard_error.
      n_left_out: int32[]; estimates that are not finite or have no positive variance.
    """

    mean: jax.Array
    tau_squared: jax.Array
    standard_error: jax.Array
    z: jax.Array
    n_left_out: jax.Array


def combine(
    effects: Float[Array | np.ndarray, " N"],
    variances: Float[Array | np.ndarray, " N"],
) -> Combined:
    """Joins estimates by the method of moments of the module docstring.

    Args:
      effects: d; an estimate that is not finite is left out.
      variances: V; an estimate whose V is not finite and positive is left out.

    Returns:
      Combined; pure, float32 (relative errors near 1e-6 at N = 10,000).
    """
    effects, variances = jnp.asarray(effects), jnp.asarray(variances)
    use = jnp.isfinite(effects) & jnp.isfinite(variances) & (variances > 0)
    n = jnp.sum(use).astype(jnp.float32)
    d = jnp.where(use, effects, 0.0)
    variance = jnp.where(use, variances, 1.0)
    inverse = jnp.where(use, 1.0 / variance, 0.0)
    # Weights of mean 1, and Q about its mean: no two large numbers are subtracted.
    unit = jnp.sum(inverse) / n
    w = inverse / unit
    centre = jnp.sum(w * d) / n
    q = jnp.sum(w * jnp.square(d - centre))
    c = n - jnp.sum(w * w) / n
    tau_squared = jnp.maximum(0.0, (q - (n - 1.0) / unit) / c)
    v = jnp.where(use, 1.0 / (variance + tau_squared), 0.0)
    mean = jnp.sum(v * d) / jnp.sum(v)
    error = jax.lax.rsqrt(jnp.sum(v))
    found = (jnp.where(n > 1, x, jnp.nan) for x in (mean, tau_squared, error))
    mean, tau_squared, error = found
    left_out = jnp.sum(~use, dtype=jnp.int32)
    return Combined(mean, tau_squared, error, mean / error, left_out)
