"""The one contract: a task is a few pure functions of ONE example.

A model or a data set is written once, as a `Task`, and every pillar works on it: the
private trainer takes per-example gradients of `loss`, the federated simulator averages
`loss` over a client, attacks read `loss` and `predict` under many models, prediction
sensitivity differentiates `head` with respect to the output of `embed`.

No function here has a batch axis. Batching is `jax.vmap` plus an explicit boolean mask,
and a masked example contributes exactly nothing, whatever it contains.

Example::

    def init(key):
        return {'w': jnp.zeros((4, 3))}

    def predict(params, example):
        return jax.nn.log_softmax(example['features'] @ params['w'])

    task = classification(init, predict)
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Params = Any  # pytree of float arrays
Example = Mapping[str, Any]  # arrays of one example, without a batch axis
Key = Any  # a typed PRNG key, as made by `jax.random.key`
Prediction = Any  # log-probabilities [C], or a pytree of them for joint tasks


class Task(NamedTuple):
    """Pure functions of one example; see the module docstring.

    Attributes:
      init: key -> params, a pytree of floats.
      loss: (params, example, key) -> float32[]; training mode (dropout on).
      predict: (params, example) -> log-probabilities, float32[C], or a pytree of them
        whose field `label` holds them; evaluation mode.
      metrics: name -> (prediction, example) -> float32[]; a mean over examples is the
        reported figure.
      embed: (params, example) -> E[T, D]; None for models of continuous input.
      head: (params, E, example) -> prediction; `predict` = `head` of `embed`.
    """

    init: Callable[[Key], Params]
    loss: Callable[[Params, Example, Key], jax.Array]
    predict: Callable[[Params, Example], Prediction]
    metrics: Mapping[str, Callable[[Prediction, Example], jax.Array]]
    embed: Callable[[Params, Example], jax.Array] | None = None
    head: Callable[[Params, jax.Array, Example], Prediction] | None = None


def label_log_probs(prediction: Prediction) -> jax.Array:
    """Log-probabilities of the label, float32[C], of a plain or a joint prediction."""
    return getattr(prediction, "label", prediction)


def cross_entropy(prediction: Prediction, example: Example) -> jax.Array:
    """Negative log-probability of `example['label']`; float32[]."""
    return -jnp.take(label_log_probs(prediction), example["label"])


def accuracy(prediction: Prediction, example: Example) -> jax.Array:
    """1 where the most probable label is `example['label']`, else 0; float32[]."""
    guess = jnp.argmax(label_log_probs(prediction))
    return (guess == example["label"]).astype(jnp.float32)


def classification(
    init: Callable[[Key], Params],
    predict: Callable[[Params, Example], Prediction],
    *,
    forward: Callable[[Params, Example, Key], Prediction] | None = None,
    embed: Callable[[Params, Example], jax.Array] | None = None,
    head: Callable[[Params, jax.Array, Example], Prediction] | None = None,
) -> Task:
    """A classifier as a `Task`: cross-entropy loss, accuracy and loss as metrics.

    Args:
      init: key -> params.
      predict: (params, example) -> log-probabilities float32[C]; evaluation mode.
      forward: (params, example, key) -> log-probabilities in training mode (dropout);
        `predict` where None.
      embed: see `Task`.
      head: see `Task`.
    """

    def loss(params, example, key):
        if forward is None:
            return cross_entropy(predict(params, example), example)
        return cross_entropy(forward(params, example, key), example)

    metrics = {"accuracy": accuracy, "loss": cross_entropy}
    return Task(init, loss, predict, metrics, embed, head)
