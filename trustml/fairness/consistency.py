"""Consistency: are similar people treated alike? The one metric that needs rows.

    1 - mean_i |y_i - mean of y over the k nearest neighbours of i|

Neighbours are by Euclidean distance of features; as in AIF360 a row is among its own
(set `own=False` to leave it out). Features decide what "similar" means: scale them
first. Distances are taken a chunk of rows at a time, [chunk, n] and never [n, n].

Source: Zemel et al. 2013, "Learning Fair Representations", ICML; with neighbours by
features, as in AIF360. Dimension key: `n` rows, `D` features.

Example::

    consistency.consistency(features, guess, neighbours=5)
"""

from typing import Any

import jax
import jax.numpy as jnp

from trustml import _validate


def consistency(
    features: Any,
    guess: Any,
    *,
    neighbours: int = 5,
    own: bool = True,
    chunk: int = 256,
) -> jax.Array:
    """Consistency of guesses among neighbours, float[]; pure, O(n^2 D) work.

    NaN where a feature or a guess is not finite: it has no distance.

    Args:
      features: float[n, D].
      guess: float[n], guesses or probabilities.
      neighbours: k, at most n (n - 1 without `own`).
      own: whether a row is its own neighbour. Rows at one distance are taken in their
        order.
      chunk: rows at a time.

    Raises:
      ValueError: shapes that do not fit, or more neighbours than there are.
    """
    x = jnp.asarray(features).astype(float)
    y = jnp.asarray(guess).astype(float)
    if x.ndim != 2 or y.shape != x.shape[:1]:
        bound = f"does not fit guesses of shape {y.shape}; give [n, D] and [n]"
        _validate.fail("features", f"array of shape {x.shape}", bound)
    n, most = len(x), len(x) if own else len(x) - 1
    k = _validate.integer_at_least("neighbours", neighbours, 1, "5 is usual")
    if k > most:
        _validate.fail("neighbours", k, f"must be at most {most}", "lower it")
    # Distances of centred features lose fewer digits.
    x = x - x.mean(axis=0, keepdims=True)
    squares = jnp.sum(x**2, axis=1)

    def of_row(i):
        away = squares + squares[i] - 2 * jnp.matmul(x, x[i], precision="highest")
        away = away.at[i].set(-1.0 if own else jnp.inf)
        nearest = jax.lax.top_k(-away, k)[1]
        return jnp.abs(y[i] - y[nearest].mean())

    apart = jax.lax.map(of_row, jnp.arange(n), batch_size=min(chunk, n))
    defined = jnp.isfinite(x).all() & jnp.isfinite(y).all()
    return jnp.where(defined, 1.0 - apart.mean(), jnp.nan)
