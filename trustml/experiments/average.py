"""An exponential moving average of the parameters, which forgets the noise of a step.

    average <- d_t average + (1 - d_t) params,   d_t = min(decay, (1 + t) / (10 + t))

after update t = 0, 1, ...; the warm-up lets go of the initial parameters in a few
steps. It is made of released parameters alone, so it costs no privacy (De et al. 2022).

Example::

    averaged = average.init(train)
    averaged = average.update(averaged, train, step, decay=0.999)

References: https://arxiv.org/abs/2204.13650
"""

from typing import Any

import jax
import jax.numpy as jnp


def init(params: Any) -> Any:
    """The average before the first update: `params` in buffers of its own."""
    return jax.tree.map(jnp.copy, params)


def update(average: Any, params: Any, step: jax.Array, decay: float) -> Any:
    """The average after one more update.

    Args:
      average: like `params`.
      params: after the update; pytree of floats.
      step: int32[], updates made before this one.
      decay: in (0, 1), what `d_t` rises to.
    """
    t = step.astype(jnp.float32)
    kept = jnp.minimum(jnp.float32(decay), (1 + t) / (10 + t))

    def moved(mean, x):
        return mean + ((1 - kept) * (x - mean).astype(jnp.float32)).astype(mean.dtype)

    return jax.tree.map(moved, average, params)
