"""Parts that several models share: masks, pooling, attention, building a `Task`.

Shape suffixes: `T` tokens, `D` width, `N` heads, `K` width of a head.

Padding never matters: `tokens_and_mask` replaces whatever stands at or after `length`
by one id, keys there get no attention weight, and means leave them out. An example of
length 0 is read as one padding token, so that every model is finite on the all-zeros
dummy example that stands in for masked slots of a batch.

Example::

    tokens, mask = layers.tokens_and_mask(example)
    x = layers.attend(query, key, value, mask)
    features = layers.masked_mean(x, mask)
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from trustml import _validate, task

ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}
DTYPES: Mapping[str, Any] = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
_MASKED = -1e9  # a score whose weight is exactly 0, and finite where all are masked


def sizes(field: str, values: Any, cure: str = "list layer widths, as in (64, 64)"):
    """`values` as a tuple of integers >= 1; `ValueError` otherwise."""
    if isinstance(values, str | int | float) or not hasattr(values, "__iter__"):
        _validate.fail(field, values, "must be a tuple of integers", cure)
    return tuple(
        _validate.integer_at_least(f"{field}[{i}]", value, 1, cure)
        for i, value in enumerate(values)
    )


def dropout_rate(field: str, value: Any) -> float:
    """`value` as a float in [0, 1); `ValueError` otherwise."""
    return _validate.in_half_open_interval(field, value, 0.0, 1.0, "0 turns it off")


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis, with scale and bias (Ba et al. 2016).

    (x - mean) / sqrt(variance + epsilon) * scale + bias, computed in float32 with the
    two-pass variance and returned in the dtype of the input.

    References: https://arxiv.org/abs/1607.06450
    """

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x):
        """[T, D] -> [T, D]."""
        width = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones_init(), (width,))
        bias = self.param("bias", nn.initializers.zeros_init(), (width,))
        y = x.astype(jnp.float32)
        y = y - jnp.mean(y, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(y), axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(variance + self.epsilon)
        return (y * scale[None, :] + bias[None, :]).astype(x.dtype)


def tokens_and_mask(example: task.Example, pad: int = 0) -> tuple[jax.Array, jax.Array]:
    """Token ids and which of them are real.

    Args:
      example: `tokens` i32[T] and `length` i32[]; what stands at or after `length` is
        never looked at.
      pad: id put there.

    Returns:
      tokens i32[T] and mask bool[T]; mask[0] is true even if `length` is 0.
    """
    tokens = example["tokens"]
    positions = jnp.arange(tokens.shape[0], dtype=jnp.int32)
    length = example["length"].astype(jnp.int32)
    return (
        jnp.where(positions < length, tokens, pad),
        positions < jnp.maximum(length, 1),
    )


def masked_mean(x_TD: jax.Array, mask_T: jax.Array) -> jax.Array:
    """Mean over the tokens where `mask_T` is true, float32[D]; at least one must be."""
    x_TD = jnp.where(mask_T[:, None], x_TD.astype(jnp.float32), 0.0)
    return jnp.sum(x_TD, axis=0) / jnp.sum(mask_T).astype(jnp.float32)


def attend(
    query_TD: jax.Array,
    key_TD: jax.Array,
    value_TD: jax.Array,
    mask_T: jax.Array,
    heads: int,
) -> jax.Array:
    """Multi-head scaled dot-product attention without projections.

    softmax(q k^T / sqrt(K)) v per head (Vaswani et al. 2017, eq. 1); scores and softmax
    in float32 whatever the dtype of the inputs.

    Args:
      query_TD: [T, D]; D = heads * K.
      key_TD: [T, D].
      value_TD: [T, D].
      mask_T: bool[T]; false keys are not attended to.
      heads: number of heads.

    Returns:
      [T, D], of the dtype of `value_TD`.

    References: https://arxiv.org/abs/1706.03762
    """
    width = query_TD.shape[1] // heads
    q, k, v = (x.reshape(-1, heads, width) for x in (query_TD, key_TD, value_TD))
    scores = jnp.einsum("tnk,snk->nts", q * width**-0.5, k).astype(jnp.float32)
    scores = jnp.where(mask_T[None, None, :], scores, _MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("nts,snk->tnk", weights, v).reshape(query_TD.shape)


def functions(module: nn.Module, dummy: task.Example, rngs: bool = True):
    """`init`, `forward`, `predict` of a module called as `module(example)`.

    Args:
      module: its call takes an example of the form of `dummy` and returns a prediction;
        its attribute `train` switches dropout on.
      dummy: an example of zeros, to make parameters with.
      rngs: whether training needs randomness (dropout).

    Returns:
      init(key) -> params; forward(params, example, key) -> prediction in training mode;
      predict(params, example) -> prediction in evaluation mode.
    """
    training = module.clone(train=True)

    def init(key) -> Any:
        return module.init({"params": key}, dummy)["params"]

    def forward(params, example, key) -> Any:
        streams = {"dropout": key} if rngs else {}
        return training.apply({"params": params}, example, rngs=streams)

    def predict(params, example) -> Any:
        return module.apply({"params": params}, example)

    return init, forward, predict


def embed_and_head(module: nn.Module):
    """`embed` and `head` of a module of text that has methods of these names."""

    def embed(params, example) -> Any:
        return module.apply({"params": params}, example, method="embed")

    def head(params, embeddings, example) -> Any:
        return module.apply({"params": params}, embeddings, example, method="head")

    return embed, head


def text_dummy(length: int = 2) -> dict[str, jax.Array]:
    """The all-zeros example of text with `length` slots."""
    return {
        "tokens": jnp.zeros(length, jnp.int32),
        "length": jnp.zeros((), jnp.int32),
    }
