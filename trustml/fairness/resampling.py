"""Bootstrap weights of rows: a replicate is a weight for each row.

| scheme | weight of a row | |
|---|---|---|
| poisson | Poisson(1) | number of rows varies; cheapest, streams |
| multinomial | times drawn in n draws with replacement | the classical bootstrap |
| bayesian | Exp(1) | no group can vanish: for small groups |

Each has mean 1 and variance 1 (multinomial 1 - 1/n). A statistic of weighted rows then
needs no row moved: sort once, and weigh anew.

Dimension key: `n` rows.

Example::

    weight = resampling.weights(jax.random.fold_in(key, replicate), 'bayesian', n)
    mean = jnp.sum(weight * values) / jnp.sum(weight)

References: Efron 1979, https://doi.org/10.1214/aos/1176344552; Rubin 1981,
  https://doi.org/10.1214/aos/1176345338.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy import stats

from trustml import _validate

SCHEMES = ("poisson", "multinomial", "bayesian")

# P[Poisson(1) <= k] in units of 2**-32; beyond k = 12 it is 1 to that resolution.
_POISSON = np.round(stats.poisson.cdf(np.arange(13), 1.0) * 2.0**32)
_POISSON = np.minimum(_POISSON, 2.0**32 - 1).astype(np.uint32)


def weights(
    key: Any, scheme: str, n: int, num_rows: Any | None = None
) -> Float[Array, " n"]:
    """One replicate's weights.

    Args:
      key: one PRNG key.
      scheme: 'poisson', 'multinomial' or 'bayesian'.
      n: rows.
      num_rows: int32[]; 'multinomial' makes so many draws, among the first so many
        rows (where masked ones are last); n where None. The others do not look at it.

    Returns:
      float32[n].

    Raises:
      ValueError: if the scheme is not one of these.
    """
    _validate.one_of("scheme", scheme, SCHEMES)
    if scheme == "bayesian":
        return jax.random.exponential(key, (n,), jnp.float32)
    if scheme == "poisson":
        bits = jax.random.bits(key, (n, 1), jnp.uint32)
        return jnp.sum(bits >= _POISSON[None, :], 1).astype(jnp.float32)
    num_rows = jnp.asarray(n if num_rows is None else num_rows, jnp.int32)
    drawn = jax.random.randint(key, (n,), 0, jnp.maximum(num_rows, 1))
    times = (jnp.arange(n) < num_rows).astype(jnp.float32)
    return jnp.zeros(n, jnp.float32).at[drawn].add(times)
