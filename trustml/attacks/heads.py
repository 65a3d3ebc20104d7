"""Small networks that attacks learn: dense layers, and Adam in one scan.

    x_{l+1} = relu(x_l W_l + b_l),  the last layer without relu

Everything is pure: `jax.jit` and `jax.vmap` of a whole fit are fine, and a fit compiles
to one program.

Dimension key: `F` features, `O` outputs, `S` steps.

Example::

    params = heads.init(key, (446, 64, 1))
    fitted = heads.fit(params, loss, key, steps=500, learning_rate=1e-3)
    heads.apply(fitted.params, features)                 # [..., O]

References: https://arxiv.org/abs/1412.6980 (Adam)
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from trustml import _validate

Params = tuple[tuple[jax.Array, jax.Array], ...]
ROUNDS = 20


class Fitted(NamedTuple):
    """A network after training.

    Attributes:
      params: of the round with the smallest `check`; of the last one without it.
      check: float32[], the smallest value of `check`; nan without it.
      losses: float32[S], of every step.
    """

    params: Any
    check: jax.Array
    losses: jax.Array


def init(key: jax.Array, sizes: Sequence[int]) -> Params:
    """Weights N(0, 2/fan_in) and biases 0 of layers of these sizes; the last one is 0.

    Args:
      key: of the weights.
      sizes: (F, hidden..., O).
    """
    layers = []
    for at, (fan_in, fan_out) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        scale = 0.0 if at == len(sizes) - 2 else (2.0 / fan_in) ** 0.5
        noise = jax.random.normal(jax.random.fold_in(key, at), (fan_in, fan_out))
        layers.append((scale * noise, jnp.zeros(fan_out)))
    return tuple(layers)


def apply(params: Params, features: jax.Array) -> jax.Array:
    """Outputs [..., O] of features [..., F]."""
    x = features
    for at, (weight, bias) in enumerate(params):
        x = jnp.matmul(x, weight, precision="highest")
        x = x + jnp.broadcast_to(bias, x.shape)
        x = jax.nn.relu(x) if at < len(params) - 1 else x
    return x


def fit(
    params: Any,
    loss: Callable[[Any, jax.Array], jax.Array],
    key: jax.Array,
    *,
    steps: int,
    learning_rate: float,
    check: Callable[[Any], jax.Array] | None = None,
) -> Fitted:
    """Adam with a cosine schedule, keeping the best of 20 rounds by `check`.

    Args:
      params: to start from.
      loss: (params, key) -> float32[]; the key draws the batch.
      key: step s uses fold_in(key, s).
      steps: S, rounded up to a multiple of 20.
      learning_rate: at the start.
      check: (params) -> float32[], such as the loss on held-out rows.

    Returns:
      Fitted.

    Raises:
      ValueError: unless steps and learning_rate are positive.
    """
    steps = -(-_validate.integer_at_least("steps", steps, 1) // ROUNDS) * ROUNDS
    learning_rate = _validate.positive("learning_rate", learning_rate, "try 1e-3")
    optimizer = optax.scale_by_adam()

    def step(carry, number):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params, jax.random.fold_in(key, number))
        # optax raises a float to its integer count, which strict promotion refuses.
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(grads, state, params)
        done = number.astype(jnp.float32) / steps
        rate = learning_rate * 0.5 * (1.0 + jnp.cos(jnp.pi * done))
        updates = jax.tree.map(lambda leaf: -rate * leaf, updates)
        return (optax.apply_updates(params, updates), state), value

    def one_round(carry, numbers):
        inner, best, least = carry
        inner, losses = jax.lax.scan(step, inner, numbers)
        if check is None:
            return (inner, inner[0], least), losses
        value = check(inner[0])
        better = value < least
        best = jax.tree.map(
            lambda new, old: jnp.where(better, new, old), inner[0], best
        )
        return (inner, best, jnp.minimum(value, least)), losses

    numbers = jnp.arange(steps).reshape(ROUNDS, steps // ROUNDS)
    start = ((params, optimizer.init(params)), params, jnp.float32(jnp.inf))
    (_, best, least), losses = jax.lax.scan(one_round, start, numbers)
    if check is None:
        least = jnp.float32(jnp.nan)
    return Fitted(best, least, losses.reshape(-1))


def standard(features: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation of every feature, [F]; 1 where it is constant."""
    scale = jnp.std(features, axis=0)
    return jnp.mean(features, axis=0), jnp.where(scale > 1e-6, scale, 1.0)
