"""A convolutional network for images: `image` f32[H, W, C] -> log-probabilities.

Per block: 3x3 convolution, GroupNorm, ReLU, 2x2 max-pooling (while the image is at
least 2x2); then hidden dense layers and the head. GroupNorm (Wu, He 2018) normalises
inside one example. BatchNorm would mix the examples of a batch, so that no per-example
gradient, and with it no differential privacy, would exist.

Example::

    model = cnn.task((8, 8, 1), num_classes=10, channels=(16, 32))
    params = model.init(jax.random.key(0))
    log_probs = model.predict(params, {'image': jnp.zeros((8, 8, 1)), 'label': 0})

References: https://arxiv.org/abs/1803.08494
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from trustml import _validate
from trustml import task as task_lib
from trustml.models import layers

_ONE_IMAGE = (-3, -2, -1)  # all axes: there is no batch axis


class Network(nn.Module):
    """The module behind `task`."""

    num_classes: int
    channels: tuple[int, ...]
    hidden: tuple[int, ...]
    groups: int
    activation: str
    dropout: float
    train: bool = False

    @nn.compact
    def __call__(self, example):
        """Log-probabilities float32[C]."""
        activation = layers.ACTIVATIONS[self.activation]
        x = example["image"].astype(jnp.float32)
        for i, width in enumerate(self.channels):
            x = nn.Conv(width, (3, 3), use_bias=False, name=f"conv_{i}")(x)
            x = nn.GroupNorm(
                num_groups=math.gcd(self.groups, width),
                reduction_axes=_ONE_IMAGE,
                name=f"norm_{i}",
            )(x)
            x = activation(x)
            if min(x.shape[:2]) >= 2:
                x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(-1)
        for i, width in enumerate(self.hidden):
            x = activation(nn.Dense(width, name=f"dense_{i}")(x))
            x = nn.Dropout(self.dropout, deterministic=not self.train)(x)
        return jax.nn.log_softmax(nn.Dense(self.num_classes, name="head")(x))


def task(
    image_shape: Sequence[int],
    num_classes: int,
    *,
    channels: Sequence[int] = (16, 32),
    hidden: Sequence[int] = (),
    groups: int = 8,
    activation: str = "relu",
    dropout: float = 0.0,
) -> task_lib.Task:
    """A small convolutional network as a `Task`.

    Args:
      image_shape: (height, width, colour channels).
      num_classes: number of classes.
      channels: output channels of each convolution; at least one.
      hidden: widths of dense layers between the last convolution and the head.
      groups: groups of GroupNorm, or their greatest common divisor with the channels.
      activation: a name of `layers.ACTIVATIONS`.
      dropout: rate after every dense hidden layer, in training only.

    Raises:
      ValueError: if a size is not a positive integer, the shape has not three entries,
        the activation is unknown or the rate is outside [0, 1).
    """
    shape = layers.sizes("model.image_shape", image_shape, "give (height, width, 1)")
    if len(shape) != 3:
        _validate.fail(
            "model.image_shape",
            image_shape,
            "must have three entries",
            "give (height, width, 1) for grey images",
        )
    _validate.integer_at_least("model.num_classes", num_classes, 2)
    channels = layers.sizes("model.channels", channels, "try (16, 32)")
    if not channels:
        _validate.fail("model.channels", channels, "must not be empty", "try (16, 32)")
    module = Network(
        num_classes,
        channels,
        layers.sizes("model.hidden", hidden),
        _validate.integer_at_least("model.groups", groups, 1),
        _validate.one_of("model.activation", activation, layers.ACTIVATIONS),
        layers.dropout_rate("model.dropout", dropout),
    )
    init, forward, predict = layers.functions(
        module, {"image": jnp.zeros(shape)}, rngs=dropout > 0
    )
    return task_lib.classification(init, predict, forward=forward)
