"""Checks of what a clipped gradient is called with, one sentence for each mistake."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np

from trustml.privacy import isolation
from trustml.privacy import trainable as trainable_lib
from trustml.privacy.factored import trace


def check_batch(batch, mask) -> int:
    """The number of rows of a batch; raises if a leaf or the mask has another."""
    if mask.ndim != 1 or mask.dtype != jnp.bool_:
        raise ValueError(
            f"mask has shape {mask.shape} and dtype {mask.dtype}; give bool[B], True "
            "for every real example."
        )
    for path, x in jax.tree_util.tree_leaves_with_path(batch):
        dtype = getattr(x, "dtype", None)
        if dtype is not None and not (
            jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_)
        ):
            raise ValueError(
                f"batch['{trainable_lib.path_of(path)}'] has dtype {dtype}, and only "
                "numbers can be traced; leave the column out or encode it."
            )
        shape = jnp.shape(x)
        if not shape or shape[0] != mask.shape[0]:
            name = f"batch['{trainable_lib.path_of(path)}']" if path else "batch"
            raise ValueError(
                f"{name} has shape {shape}, but the "
                f"mask has {mask.shape[0]} rows; every leaf needs the leading axis "
                f"[{mask.shape[0]}, ...]."
            )
    return mask.shape[0]


def check_key(key) -> None:
    """Raises if `key` is not one typed JAX key."""
    dtype = getattr(key, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jax.dtypes.prng_key) or key.shape:
        raise ValueError(
            f"key of type {type(key).__name__} and shape {getattr(key, 'shape', None)} "
            "is not one typed JAX key; give jax.random.key(seed), also to "
            "a loss without randomness."
        )


def check_ids(example_ids, num_rows) -> jax.Array:
    """The ids as an array; raises if they are not one integer for each row."""
    if isinstance(example_ids, np.ndarray) and (example_ids >= 2**32).any():
        raise ValueError(
            f"example_ids={example_ids.max()} does not fit 32 bits; number the "
            "examples from 0."
        )
    ids = jnp.asarray(example_ids)
    if ids.shape != (num_rows,) or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(
            f"example_ids has shape {ids.shape} and dtype {ids.dtype}; give one "
            f"integer for each of the {num_rows} rows."
        )
    return ids


def check_params(params) -> None:
    """Raises if a leaf of the parameters is not an array of numbers."""
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        dtype = getattr(x, "dtype", None)
        known = dtype is not None and jnp.issubdtype(dtype, jnp.number)
        if not (known or isinstance(x, (int, float)) or dtype == jnp.bool_):
            raise ValueError(
                f"parameter '{trainable_lib.path_of(path)}' is of type "
                f"{type(x).__name__}, and must be an array; keep what is not trained "
                "in a closure (of an Equinox module: eqx.partition(model, "
                "eqx.is_inexact_array))."
            )


def check_loss_takes(loss) -> None:
    """Raises if `loss` cannot be called as loss(params, example, key)."""
    if not callable(loss):
        raise ValueError(f"loss={loss!r} is not callable; pass (params, example, key).")
    try:
        inspect.signature(loss).bind(None, None, None)
    except TypeError:
        raise ValueError(
            f"loss{inspect.signature(loss)} cannot be called with (params, example, "
            "key); take three arguments, the key also where there is no randomness."
        ) from None
    except ValueError:
        pass  # no signature is known, so nothing can be said


def check_scalar(loss, train, frozen, batch, keys) -> None:
    """Raises if the loss of one example is not one float."""
    one = jax.tree.map(trace.shape_of_one, (batch, keys))
    like = jax.tree.map(lambda x: trace.abstract(x, x.shape), (train, frozen))
    try:
        out = jax.eval_shape(loss, *like, *one)
    except NameError as error:
        if "axis name" not in str(error):
            raise
        raise ValueError(
            f"loss: {error}; a reduction over a named axis mixes the examples of a "
            f"batch and has no per-example sensitivity; {isolation.CURE}"
        ) from None
    shape = getattr(out, "shape", None)
    if isinstance(out, (tuple, list, dict)):
        raise ValueError(
            f"loss returns a {type(out).__name__} of {len(out)}, and must return one "
            "scalar for ONE example; return the loss alone, without auxiliary values."
        )
    if shape != ():
        raise ValueError(
            f"loss returns {type(out) if shape is None else f'shape {shape}'}, and "
            "must return one scalar for ONE example; drop the batch axis and sum or "
            "average inside the loss."
        )
    if not jnp.issubdtype(out.dtype, jnp.floating):
        raise ValueError(f"loss returns dtype {out.dtype}; return a float scalar.")
