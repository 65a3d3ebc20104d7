"""What a federated server sees of the updates of its clients.

    seen_k = u_k min(1, C / ||u_k||) + N(0, (z C)^2)               each client
    seen   = sum_k u_k min(1, C / ||u_k||) + N(0, (z C)^2)         secure aggregation

Clipping a client's whole update and adding noise z C to the sum is user-level
differential privacy (McMahan et al. 2018); without secure aggregation the same noise
has to be added by every client. A threat model in one function, so that every attack is
measured against the same views.

Dimension key: K clients.

Example::

    seen = sight.server(updates, l2_clip_norm=1.0, noise_multiplier=1.0,
                        secure_aggregation=True, key=jax.random.key(0))

References: https://arxiv.org/abs/1710.06963
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from trustml import _validate
from trustml.privacy import noise


def server(
    updates: Any,
    *,
    l2_clip_norm: float | None = None,
    noise_multiplier: float = 0.0,
    secure_aggregation: bool = False,
    key: Any = None,
) -> Any:
    """The updates as the server sees them.

    Args:
      updates: pytree of float32[K, ...], one row a client.
      l2_clip_norm: C > 0, of a client's whole update; None leaves it as it is.
      noise_multiplier: z >= 0; noise of standard deviation z C.
      secure_aggregation: whether only the sum over the clients is seen.
      key: of the noise; needed where z > 0.

    Returns:
      The same pytree, [K, ...], or [...] with secure aggregation.

    Raises:
      ValueError: for numbers out of bounds, noise without a clip norm or a key.
    """
    z = _validate.non_negative("noise_multiplier", noise_multiplier)
    if l2_clip_norm is not None:
        clip_norm = _validate.positive("l2_clip_norm", l2_clip_norm, "try 1.0")
        norms_K = jax.vmap(optax.tree.norm)(updates)
        scale_K = jnp.minimum(1.0, clip_norm / jnp.maximum(norms_K, 1e-30))
        updates = jax.vmap(optax.tree.scale)(scale_K, updates)
    if secure_aggregation:
        updates = jax.tree.map(lambda u: jnp.sum(u, axis=0), updates)
    if not z:
        return updates
    if l2_clip_norm is None:
        _validate.fail(
            "l2_clip_norm", None, "leaves the noise without a scale", "set a clip norm"
        )
    if key is None:
        _validate.fail("key", None, "leaves the noise without a source", "pass a key")
    return noise.add(updates, key, z * float(l2_clip_norm))
