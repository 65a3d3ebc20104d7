"""A multilayer perceptron for tables: `features` f32[D] -> log-probabilities f32[C].

    x_{l+1} = activation(x_l W_l + b_l),    log softmax(x_L W_L + b_L)

Features should be of order one (standardised), as the data sets here deliver them.

Example::

    model = mlp.task(num_features=14, num_classes=2, hidden=(64, 64))
    params = model.init(jax.random.key(0))
    log_probs = model.predict(params, {'features': jnp.zeros(14), 'label': 0})
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from trustml import _validate
from trustml import task as task_lib
from trustml.models import layers


class Network(nn.Module):
    """The module behind `task`."""

    num_classes: int
    hidden: tuple[int, ...]
    activation: str
    dropout: float
    train: bool = False

    @nn.compact
    def __call__(self, example):
        """Log-probabilities float32[C]."""
        x = example["features"].astype(jnp.float32)
        for i, width in enumerate(self.hidden):
            x = nn.Dense(width, name=f"dense_{i}")(x)
            x = layers.ACTIVATIONS[self.activation](x)
            x = nn.Dropout(self.dropout, deterministic=not self.train)(x)
        return jax.nn.log_softmax(nn.Dense(self.num_classes, name="head")(x))


def task(
    num_features: int,
    num_classes: int,
    *,
    hidden: Sequence[int] = (64, 64),
    activation: str = "relu",
    dropout: float = 0.0,
) -> task_lib.Task:
    """A multilayer perceptron as a `Task`.

    Args:
      num_features: D.
      num_classes: C.
      hidden: widths of the hidden layers; empty for logistic regression.
      activation: a name of `layers.ACTIVATIONS`.
      dropout: rate after every hidden layer, in training only.

    Raises:
      ValueError: if a size is not a positive integer, the activation is unknown or the
        rate is outside [0, 1).
    """
    _validate.integer_at_least("model.num_features", num_features, 1)
    _validate.integer_at_least("model.num_classes", num_classes, 2)
    module = Network(
        num_classes,
        layers.sizes("model.hidden", hidden),
        _validate.one_of("model.activation", activation, layers.ACTIVATIONS),
        layers.dropout_rate("model.dropout", dropout),
    )
    init, forward, predict = layers.functions(
        module, {"features": jnp.zeros(num_features)}, rngs=dropout > 0
    )
    return task_lib.classification(init, predict, forward=forward)
