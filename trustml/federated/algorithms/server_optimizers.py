"""The server optimizers of FedOpt as published, for optax.

    m <- b1 m + (1 - b1) d                                     d = mean change
    Adagrad  v <- v + d^2
    Adam     v <- b2 v + (1 - b2) d^2
    Yogi     v <- v - (1 - b2) d^2 sign(v - d^2)
    x <- x + rate * m / (sqrt(v) + eps),    v_0 = eps^2

Without correction of bias and with a large eps: other optimizers than `optax.adam` and
`optax.yogi`, which correct and have eps = 1e-8. Both may serve; they are not the same.

Example::

    algorithm = averaging.fedavg(loss, optax.sgd(0.1), server_optimizers.fedadam(0.01))

References: Reddi et al. 2021, Algorithm 2, https://arxiv.org/abs/2003.00295.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from trustml import _validate

PyTree = Any


class Moments(NamedTuple):
    """m and v, like the parameters."""

    first: PyTree
    second: PyTree


def fedadagrad(
    learning_rate: float, *, b1: float = 0.0, eps: float = 1e-3
) -> optax.GradientTransformation:
    """FedAdagrad."""
    return _adaptive(learning_rate, b1, eps, lambda v, g: v + jnp.square(g))


def fedadam(
    learning_rate: float, *, b1: float = 0.9, b2: float = 0.99, eps: float = 1e-3
) -> optax.GradientTransformation:
    """FedAdam."""
    _validate.in_half_open_interval("b2", b2, 0.0, 1.0)
    return _adaptive(
        learning_rate, b1, eps, lambda v, g: b2 * v + (1 - b2) * jnp.square(g)
    )


def fedyogi(
    learning_rate: float, *, b1: float = 0.9, b2: float = 0.99, eps: float = 1e-3
) -> optax.GradientTransformation:
    """FedYogi."""
    _validate.in_half_open_interval("b2", b2, 0.0, 1.0)

    def second(v, g):
        square = jnp.square(g)
        return v - (1 - b2) * square * jnp.sign(v - square)

    return _adaptive(learning_rate, b1, eps, second)


def _adaptive(learning_rate, b1, eps, second) -> optax.GradientTransformation:
    _validate.in_half_open_interval("b1", b1, 0.0, 1.0)
    _validate.positive("eps", eps)

    def init(params):
        return Moments(
            jax.tree.map(jnp.zeros_like, params),
            jax.tree.map(lambda x: jnp.full_like(x, eps**2), params),
        )

    def update(updates, state, params=None):
        grads = updates
        del params
        first = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.first, grads)
        squares = jax.tree.map(second, state.second, grads)
        updates = jax.tree.map(
            lambda m, v: -learning_rate * m / (jnp.sqrt(v) + eps), first, squares
        )
        return updates, Moments(first, squares)

    return optax.GradientTransformation(init, update)
