"""Adam for private gradients: the noise is taken out of the second moment.

A private mean gradient is g + N(0, Phi I) with Phi = (noise_stddev / m)^2, so Adam's
second moment estimates E[g^2] + Phi, and where the noise outweighs the gradient every
coordinate is divided by the same sqrt(Phi): Adam becomes SGD with momentum. Phi is
public and known exactly, so it is subtracted (DP-AdamBC, Tang et al. 2023):

    m_t = b1 m + (1 - b1) g,      v_t = b2 v + (1 - b2) g^2
    update = -rate m^ / sqrt(max(v^ - Phi, floor Phi)),   m^, v^ as in Adam

All of it is post-processing of the noisy gradient and costs no privacy. Phi must be one
number throughout: noise that changes from step to step, or that later steps take back,
is refused by `noise_variance`.

Example::

    variance = adam.noise_variance(made)                  # of a plan
    optimizer = adam.dp_adam_bc(1e-3, noise_variance=variance)
    state = optimizer.init(params)
    updates, state = optimizer.update(mean_gradient, state)

References: https://arxiv.org/abs/2312.14334
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from trustml import _validate
from trustml.privacy import noise
from trustml.privacy import plan as plan_lib

FLOOR = 0.01  # of the corrected second moment, as a share of the noise variance


class AdamState(NamedTuple):
    """Both moments, without their bias corrections.

    Attributes:
      count: int32[], updates made.
      mean: m_t, float32, like the parameters.
      square: v_t, float32, like the parameters; still holds the noise variance.
    """

    count: jax.Array
    mean: Any
    square: Any


def dp_adam_bc(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    *,
    noise_variance: float,
    floor: float = FLOOR,
) -> optax.GradientTransformation:
    """Adam whose second moment is free of the noise's variance.

    Args:
      learning_rate: > 0, or an optax schedule.
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      noise_variance: Phi > 0, variance of the noise on one coordinate of the *mean*
        gradient; `noise_variance(plan)`.
      floor: least value of the corrected second moment, as a share of Phi, > 0. Small
        gradients get larger steps the smaller it is; it wants tuning.

    Returns:
      An `optax.GradientTransformation`; moments are float32, updates of the dtype of
      the gradient.

    Raises:
      ValueError: when built, if a number is out of its bounds.

    References: https://arxiv.org/abs/2312.14334, Algorithm 1.
    """
    b1 = _validate.in_half_open_interval("b1", b1, 0, 1, "0.9 is usual")
    b2 = _validate.in_half_open_interval("b2", b2, 0, 1, "0.999 is usual")
    cure = "without noise use optax.adam"
    phi = _validate.positive("noise_variance", noise_variance, cure)
    least = phi * _validate.positive("floor", floor, f"{FLOOR:g} is usual")

    def init(params) -> AdamState:
        def zeros():
            return jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params)

        return AdamState(jnp.zeros((), jnp.int32), zeros(), zeros())

    def update(updates, state, params=None):
        del params
        count = state.count + 1
        grads = jax.tree.map(lambda g: g.astype(jnp.float32), updates)
        mean = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mean, grads)
        square = jax.tree.map(
            lambda v, g: b2 * v + (1 - b2) * jnp.square(g), state.square, grads
        )
        scale1, scale2 = _debias(b1, count), _debias(b2, count)

        def direction(m, v, g):
            corrected = jnp.maximum(v / scale2 - phi, least)
            return (m / scale1 * jax.lax.rsqrt(corrected)).astype(g.dtype)

        moved = jax.tree.map(direction, mean, square, updates)
        return moved, AdamState(count, mean, square)

    scaled = optax.GradientTransformation(init, update)
    return optax.chain(scaled, optax.scale_by_learning_rate(learning_rate))


def noise_variance(made: plan_lib.Plan) -> float:
    """Phi = (noise_stddev / expected_batch_size)^2 of a plan.

    Raises:
      ValueError: if the plan's noise is not the same, and independent, at every step.
    """
    cure = "use optax.adam, or one noise throughout"
    if made.sampler.bands > 1:
        bound = "correlates the noise of steps, which has no variance of its own then"
        _validate.fail("strategy.bands", made.sampler.bands, bound, cure)
    if made.mechanism.clip_norms is not noise.untracked:
        bound = "moves the clip norm, and the noise with it"
        _validate.fail("privacy.rule", "quantile", bound, cure)
    first = made.noise_stddev()
    other = {made.noise_stddev(step) for step in range(made.steps)} - {first}
    if other:
        bound = f"changes the noise, with stddev {first:g} first, then {min(other):g}"
        _validate.fail("privacy.noise_schedule", "given", bound, cure)
    return (first / made.expected_batch_size) ** 2


def _debias(decay: float, count: jax.Array) -> jax.Array:
    """1 - decay^count; float32[], exact to rounding also where decay is close to 1."""
    if decay == 0:
        return jnp.float32(1)
    return -jnp.expm1(count.astype(jnp.float32) * jnp.float32(math.log(decay)))
