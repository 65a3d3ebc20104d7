"""What a model says about every example of a split: correct, loss, prediction.

Example::

    found = evaluate.predictions(task, params, data.test)
    found.correct.mean()
    evaluate.slot_f1(task, params, data.test, data.slot_names)['value']
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trustml import intervals
from trustml import task as task_lib
from trustml.data import batches
from trustml.models import tagging


class Predictions(NamedTuple):
    """One entry for each example, in the order of the split.

    Attributes:
      correct: bool[N].
      losses: cross-entropy of the label, float32[N].
      guesses: int32[N], the most probable label.
    """

    correct: np.ndarray
    losses: np.ndarray
    guesses: np.ndarray


@functools.lru_cache(maxsize=16)
def _compiled(predict):
    def one(params, example):
        log_probs = task_lib.label_log_probs(predict(params, example))
        label = example["label"]
        guess = jnp.argmax(log_probs).astype(jnp.int32)
        # -log p = log(1 + others / p): exact where p rounds to 1, so that losses of
        # confident predictions stay apart, as an attack by losses needs.
        others = jnp.arange(log_probs.shape[0]) != label
        rest = jax.nn.logsumexp(log_probs, where=others)
        return guess == label, jax.nn.softplus(rest - log_probs[label]), guess

    return jax.jit(jax.vmap(one, (None, 0)))


def predictions(
    task: task_lib.Task, params, columns, batch_size: int = 512
) -> Predictions:
    """Runs the model, in evaluation mode, over every example of a split.

    Args:
      task: its `predict` is used; one compilation for each task and batch size.
      params: of the model.
      columns: name -> [N, ...].
      batch_size: examples at once; the last batch is filled up.
    """
    run = _compiled(task.predict)
    parts = []
    for batch, mask in batches.evaluation(columns, batch_size):
        out = jax.device_get(run(params, batch))
        parts.append([np.asarray(x)[mask] for x in out])
    return Predictions(*(np.concatenate(column) for column in zip(*parts, strict=True)))


@functools.lru_cache(maxsize=16)
def _compiled_tags(predict):
    def one(params, example):
        log_probs = tagging.slot_log_probs(predict(params, example))
        return jnp.argmax(log_probs, axis=-1).astype(jnp.int32)

    return jax.jit(jax.vmap(one, (None, 0)))


def predicts_slots(task: task_lib.Task, columns) -> bool:
    """Whether the model tags tokens; another one may be trained on data with tags."""
    one = {name: column[0] for name, column in columns.items()}
    params = jax.eval_shape(task.init, jax.random.key(0))
    return hasattr(jax.eval_shape(task.predict, params, one), "slots")


def slot_f1(
    task: task_lib.Task,
    params,
    columns,
    names: Sequence[str],
    *,
    level: float = 0.95,
    batch_size: int = 512,
) -> dict[str, float]:
    """Micro-averaged span F1 of a tagger, with a bootstrap interval over utterances.

    Args:
      task: predicts slots (`tagging.Joint`).
      params: of the model.
      columns: name -> [N, ...], with 'slots' and 'length'.
      names: of the tags.
      level: of the interval.
      batch_size: examples at once.

    Returns:
      {'value', 'lo', 'hi', 'n'}: F1 in [0, 1] and the number of gold spans.
    """
    run = _compiled_tags(task.predict)
    parts = []
    for batch, mask in batches.evaluation(columns, batch_size):
        parts.append(np.asarray(run(params, batch))[mask])
    guesses = tagging.decode(np.concatenate(parts), columns["length"], names)
    golds = tagging.decode(columns["slots"], columns["length"], names)
    counts = np.array(
        [
            tagging.span_scores([guess], [gold])[3:]
            for guess, gold in zip(guesses, golds, strict=True)
        ]
    )

    def f1(rows):
        right, predicted, gold = np.moveaxis(rows.sum(axis=1), -1, 0)
        return 2 * right / np.maximum(predicted + gold, 1)

    found = intervals.bootstrap(f1, counts, level=level, vectorized=True)
    return {
        "value": found.value,
        "lo": found.lo,
        "hi": found.hi,
        "n": int(counts[:, 2].sum()),
    }
