"""Few trainable parameters in a frozen model: low-rank adapters, or biases alone.

    lora    y = x W + b + (alpha / r) (x A) B,   A [I, r] ~ N(0, 1/I),   B [r, O] = 0
    bias    only biases move

A LoRA model starts as the published one, since B = 0, and keeps W as it is: what has a
gradient is the pair of factors, two products with a thin side, so a step needs no
weight gradient of W and, under clipping, no norm of one. Noise of a private step falls
on r (I + O) numbers in place of I O. Both ways train the fresh head as well.

`TRAINABLE` says by globs of leaf paths what an adapter trains; the rest is frozen by
whoever takes the gradient (`privacy.trainable`).

Dimension key: I inputs and O outputs of a dense layer, r rank, T tokens.

Example::

    model = bert.classifier(directory, 7, lora_rank=16)
    clipper = clipping.clipped_grad(
        model.loss, l2_clip_norm=1.0, trainable=adapters.TRAINABLE['lora'])

References: https://arxiv.org/abs/2106.09685 (LoRA), https://arxiv.org/abs/2106.10199
  (BitFit), https://arxiv.org/abs/2210.00036 (biases under differential privacy)
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

TRAINABLE = {
    "lora": ("classifier/*", "*/lora_*"),
    "bias": ("classifier/*", "*/bias"),
}


def init(key: jax.Array, inputs: int, rank: int, outputs: int) -> dict[str, jax.Array]:
    """The factors of one adapter: A of N(0, 1/I), B of zeros; float32."""
    return {
        "a": jax.random.normal(key, (inputs, rank)) * inputs**-0.5,
        "b": jnp.zeros((rank, outputs)),
    }


class LowRank(nn.Module):
    """What LoRA adds to one dense layer, [T, I] -> [T, O]; 0 at the start."""

    width: int
    rank: int
    alpha: float
    dtype: Any

    @nn.compact
    def __call__(self, x):
        """(alpha / rank) (x A) B, of the dtype of activations."""
        sizes = (x.shape[-1], self.rank, self.width)
        a = self.param("a", lambda key: init(key, *sizes)["a"])
        b = self.param("b", lambda key: init(key, *sizes)["b"])
        thin = x.astype(self.dtype) @ a.astype(self.dtype)
        return (self.alpha / self.rank) * (thin @ b.astype(self.dtype))
