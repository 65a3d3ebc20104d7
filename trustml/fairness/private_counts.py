"""Fairness from counts that were released privately, with intervals that know it.

One person changes one cell by 1: cells with Gaussian noise of deviation s are a
Gaussian mechanism with noise multiplier s (adding or removing a person); the experiment
accounts for it, with `counts.SENSITIVITY`. What follows is post-processing: noised
cells are clipped at 0, and an interval must hold both how people were drawn and the
noise:

    cells*_r = clip(Multinomial(n, noised / n) + Normal(0, s^2)),  theta*_r = measure

Dimension key: `G` groups, `K` classes, `R` replicates.

Example::

    noised = private_counts.noised(jax.random.key(0), cells, stddev=20.0)
    found = private_counts.ci(jax.random.key(1), noised, measure, stddev=20.0)
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from trustml import _validate
from trustml.fairness import intervals


def noised(key: Any, cells: Any, *, stddev: float) -> jax.Array:
    """Cells with Gaussian noise, clipped at 0; float[..., K, K].

    Formal guarantee: what is released before clipping is the Gaussian mechanism at
      sensitivity 1 (add or remove one person), sqrt(2) (replace one), in real
      arithmetic; float32 sampling is not covered.
    Args:
      key: of the noise; never one that was used before.
      cells: counts.
      stddev: of the noise, > 0, in persons.
    """
    s = _validate.positive("stddev", stddev, "without noise take the cells themselves")
    cells = jnp.asarray(cells).astype(float)
    drawn = jax.random.normal(key, cells.shape, cells.dtype)
    return jnp.maximum(cells + s * drawn, 0.0)


def ci(
    key: Any,
    released: Any,
    measure: Callable[[jax.Array], Any],
    *,
    stddev: float,
    replicates: int = 1000,
    level: float = 0.95,
) -> Any:
    """Intervals of a measure of released cells, by parametric simulation.

    Args:
      key: of the draws.
      released: of `noised`.
      measure: cells -> pytree of float arrays.
      stddev: of the noise that was added.
      replicates: R.
      level: of each figure by itself.

    Returns:
      The pytree of `measure` with an `intervals.Interval` for every leaf.
    """
    s = _validate.positive("stddev", stddev, "as it was for the release")
    released = jnp.asarray(released)
    whole = jnp.round(released)  # a number of people
    drawn_key, noise_key = jax.random.split(key)
    tables = intervals.resample(drawn_key, whole, replicates)
    noise = jax.random.normal(noise_key, tables.shape, tables.dtype)
    tables = jnp.maximum(tables + s * noise, 0.0)
    return intervals.of_tables(released, tables, measure, level=level)
