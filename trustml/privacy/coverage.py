"""The coverage and isolation checks: a fast method against the oracle, before a run.

Coverage: norms and clipped sum of a few rows agree with `vmap(grad)`, leaf by leaf.
Isolation: what one row holds, NaN included, moves no other row's loss or norm.
Both compile their own small programs; nothing of them remains in the step.
"""

from typing import Any

import jax
import jax.numpy as jnp

from trustml.privacy import trainable as trainable_lib
from trustml.privacy.factored import trace


def check(clipper: Any, oracle: Any, params, batch, key) -> None:
    """Compares `clipper` with `oracle` on at most 3 rows of `batch`.

    Args:
      clipper: a `clipping.ClippedGrad`.
      oracle: the same with method='vmap'.
      params: pytree.
      batch: pytree of arrays [B, ...].
      key: typed key.

    Raises:
      ValueError: names the parameter, the norms or the rows that disagree.
    """
    rows = min(3, jax.tree.leaves(batch)[0].shape[0])
    few = jax.tree.map(lambda x: jnp.asarray(x)[:rows], batch)
    mask = jnp.arange(rows) < max(1, rows - 1)
    run = jax.jit(clipper.fn)
    got, info = run(params, few, mask, key)
    want, truth = jax.jit(oracle.fn)(params, few, mask, key)
    low = any(
        jnp.issubdtype(x.dtype, jnp.floating) and jnp.finfo(x.dtype).bits < 32
        for x in jax.tree.leaves(params)
    )
    low = low or _has_low_precision(clipper.loss, params, few, key)
    tolerance = 2e-2 if low else 1e-4
    # Not the length of the sum: rows that cancel would magnify rounding.
    lengths = jnp.minimum(truth.norms_per_example, clipper.l2_clip_norm)
    whole = float(jnp.sum(jnp.where(mask & jnp.isfinite(lengths), lengths, 0.0))) or 1.0
    named = jax.tree_util.tree_leaves_with_path(want)
    for (path, w), g in zip(named, jax.tree.leaves(got), strict=True):
        error = float(jnp.linalg.norm((w - g).ravel())) / whole
        if not error <= tolerance:
            raise ValueError(
                f"parameter '{trainable_lib.path_of(path)}': the clipped sum of "
                f"method='{clipper.method}' is off by {error:.1e} of the whole, bound "
                f"{tolerance:g}; use method='vmap' and report the loss as a defect."
            )
    n, t = info.norms_per_example, truth.norms_per_example
    wrong = float(
        jnp.max(jnp.abs(n - t) / jnp.maximum(t, 1e-30), initial=0, where=t > 0)
    )
    if jnp.all(jnp.isfinite(t)) and not wrong <= tolerance:
        raise ValueError(
            f"gradient norms of method='{clipper.method}' are off by {wrong:.1e}, "
            f"bound {tolerance:g}; use method='vmap' and report the loss as a defect."
        )
    if rows > 1:
        _check_isolation(run, params, few, key, info, rows)


def _check_isolation(run, params, few, key, info, rows) -> None:
    """Changes the last row, then fills it with NaN: no other row may move."""

    def filled(x):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x.at[-1].set(x[0])
        return x.at[-1].set(jnp.nan)

    everyone = jnp.ones((rows,), bool)
    base = run(params, few, everyone, key)[1]
    for changed in (
        jax.tree.map(lambda x: x.at[-1].set(x[0]), few),
        jax.tree.map(filled, few),
    ):
        other = run(params, changed, everyone, key)[1]
        for name in ("losses_per_example", "norms_per_example"):
            before, after = (getattr(i, name)[:-1] for i in (base, other))
            if not bool(jnp.allclose(before, after, rtol=1e-6, equal_nan=True)):
                raise ValueError(
                    f"loss: changing one example moved the {name} of another, so "
                    "examples are not isolated; remove whatever mixes the batch (batch "
                    "statistics, in-batch negatives)."
                )


def _has_low_precision(loss, params, few, key) -> bool:
    one = jax.tree.map(trace.shape_of_one, few)
    program = jax.make_jaxpr(loss)(params, one, key)
    return any(name in str(program) for name in ("bf16", "f16["))
