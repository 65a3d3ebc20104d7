"""Fairness from counts that were released privately, with intervals that know it.

One person changes one cell of disjoint groups by 1: cells with Gaussian noise of
deviation s are a Gaussian mechanism with noise multiplier s (adding or removing a
person); the experiment accounts for it, with `counts.SENSITIVITY`. What follows is
post-processing: noised cells are clipped at 0, and an interval must hold both how
people were drawn and the noise:

    cells*_r = clip(Multinomial(n, noised / n) + Normal(0, s^2)),  theta*_r = measure

Noise that is clipped at 0 looks like people: a group of nobody is released with some.
A sum of m cells has noise of deviation s sqrt(m), and one below 4 of them is no
denominator: groups with so few people are taken out of every figure, and a figure that
hangs on so few of a label, or of a guess, is NaN.

Dimension key: `G` groups, `K` classes, `R` replicates.

Example::

    noised = private_counts.noised(jax.random.key(0), cells, stddev=20.0)
    found = private_counts.ci(jax.random.key(1), noised, measure, stddev=20.0)
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from trustml import _validate
from trustml.fairness import counts, intervals

_CLEAR = 4.0  # deviations of the noise that a denominator must have


def noised(key: Any, cells: Any, *, stddev: float) -> jax.Array:
    """Cells with Gaussian noise, clipped at 0; float[..., K, K].

    Formal guarantee: what is released before clipping is the Gaussian mechanism at
      sensitivity 1 (add or remove one person), sqrt(2) (replace one), in real
      arithmetic; float32 sampling is not covered. That is so if a person is one row and
      groups are disjoint. Cells in which a person has up to m memberships
      (`counts.Overlapping.cells`) have sqrt(m) times that, and the noise multiplier is
      stddev / sqrt(m).
    Args:
      key: of the noise; never one that was used before.
      cells: int[..., K, K], counts.
      stddev: of the noise, > 0, in persons.

    Raises:
      ValueError: for a stddev that is not positive, or cells that are no integers: one
        person changes a sum of weights by any weight.
    """
    s = _validate.positive("stddev", stddev, "without noise take the cells themselves")
    if not jnp.issubdtype(jnp.result_type(cells), jnp.integer):
        cure = "a sum of weights has another sensitivity; count without weights"
        _validate.fail("cells", str(jnp.result_type(cells)), "are no counts", cure)
    cells = counts.floats(cells)
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
      released: float[*groups, K, K], of `noised`.
      measure: cells -> pytree of float arrays; NaN without a denominator.
      stddev: of the noise that was added.
      replicates: R.
      level: of each figure by itself.

    Returns:
      The pytree of `measure` with an `intervals.Interval` for every leaf; NaN and
      flagged where noise hides the denominator. A largest gap leaves out groups that
      are too small as a whole, not those with few of one label.
    """
    s = _validate.positive("stddev", stddev, "as it was for the release")
    released = jnp.asarray(released)
    whole = jnp.round(released)  # a number of people
    drawn_key, noise_key = jax.random.split(key)
    tables = intervals.resample(drawn_key, whole, replicates)
    noise = jax.random.normal(noise_key, tables.shape, tables.dtype)
    tables = jnp.maximum(tables + s * noise, 0.0)
    there = _clear(released, s, (-2, -1))
    seen, tables = (jnp.where(there, cells, 0.0) for cells in (released, tables))
    found = intervals.of_tables(seen, tables, measure, level=level)
    # What is undefined without the doubtful sums has one of them as denominator.
    checked = [
        measure(jnp.where(_clear(seen, s, (axis,)), seen, 0.0)) for axis in (-1, -2)
    ]
    return jax.tree.map(
        _blank, found, *checked, is_leaf=lambda x: isinstance(x, intervals.Interval)
    )


def _clear(cells, stddev, axes):
    """Whether sums over `axes` are so large that they are no noise."""
    total = cells.sum(axis=axes, keepdims=True)
    return total >= _CLEAR * stddev * math.prod(cells.shape[a] for a in axes) ** 0.5


def _blank(found, *checked):
    hidden = jnp.isnan(jnp.stack(checked)).any(axis=0)
    ends = (jnp.where(hidden, jnp.nan, x) for x in (found.value, found.lo, found.hi))
    value, lo, hi = ends
    return found._replace(value=value, lo=lo, hi=hi, flagged=found.flagged | hidden)
