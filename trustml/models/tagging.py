"""What slot taggers share: the joint prediction, per-example metrics, span F1.

A joint model predicts one intent per utterance and one slot tag per token, in the BIO
scheme: `B-city` begins a span, `I-city` continues it, `O` is outside. A span counts
only if its boundaries and its type are both right, as in the CoNLL-2000 script
`conlleval`:

    precision = right / predicted,  recall = right / gold,  F1 = 2 P R / (P + R)

pooled over the data set (micro average). Averaging a per-utterance F1 would be another
and meaningless figure, so F1 is a function of the whole data set and not a metric of
`Task`.

Example::

    log_probs = jax.vmap(model.predict, (None, 0))(params, batch).slots
    guesses = tagging.decode(np.argmax(log_probs, -1), batch['length'], slot_names)
    golds = tagging.decode(batch['slots'], batch['length'], slot_names)
    tagging.span_scores(guesses, golds).f1

References: Tjong Kim Sang, Buchholz 2000, https://aclanthology.org/W00-0726/
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from trustml import _validate, task


class Joint(NamedTuple):
    """Prediction of an intent and of slot tags."""

    label: jax.Array  # float32[C]; log-probabilities of the intent
    slots: jax.Array  # float32[T, S]; log-probabilities of the tag of every token


class SpanScores(NamedTuple):
    """Micro-averaged scores over a data set; all in [0, 1]."""

    precision: float  # 0 where nothing was predicted
    recall: float  # 0 where there was nothing to find
    f1: float
    right: int  # spans predicted with the right boundaries and type
    predicted: int  # spans predicted
    gold: int  # spans to be found


def slot_log_probs(prediction: Any) -> jax.Array:
    """Log-probabilities of tags, float32[T, S], of a joint or a plain prediction."""
    return getattr(prediction, "slots", prediction)


def real_tokens(example: task.Example) -> jax.Array:
    """Tokens that count: before `length`, with a tag that is not negative; bool[T]."""
    tags = example["slots"]
    positions = jnp.arange(tags.shape[0], dtype=jnp.int32)
    return (positions < example["length"]) & (tags >= 0)


def slot_cross_entropy(
    prediction: Any, example: task.Example, *, total: bool = False
) -> jax.Array:
    """Mean over tokens of the negative log-probability of their tag; float32[].

    Tokens with a negative tag are left out (pieces of a word after its first). With
    `total` the sum over tokens, the negative log-probability of all tags.
    """
    real = real_tokens(example)
    tags = jnp.where(real, example["slots"], 0)
    log_probs = slot_log_probs(prediction)
    picked = jnp.take_along_axis(log_probs, tags[:, None], axis=1)[:, 0]
    summed = -jnp.sum(jnp.where(real, picked, 0.0))
    if total:
        return summed
    return summed / jnp.maximum(jnp.sum(real), 1).astype(jnp.float32)


def _right(prediction, example):
    guess = jnp.argmax(slot_log_probs(prediction), axis=-1).astype(jnp.int32)
    return guess == example["slots"]


def slot_accuracy(prediction: Any, example: task.Example) -> jax.Array:
    """Share of the tokens of one utterance whose tag is right; float32[].

    0 for an utterance without tagged tokens.
    """
    real = real_tokens(example)
    right = jnp.sum(_right(prediction, example) & real).astype(jnp.float32)
    return right / jnp.maximum(jnp.sum(real), 1).astype(jnp.float32)


def frame_accuracy(prediction: Joint, example: task.Example) -> jax.Array:
    """1 where the intent and every tag of an utterance are right, else 0; float32[]."""
    slots = jnp.all(_right(prediction, example) | ~real_tokens(example))
    return task.accuracy(prediction, example) * slots.astype(jnp.float32)


JOINT_METRICS: Mapping[str, Callable[[Any, task.Example], jax.Array]] = {
    "accuracy": task.accuracy,
    "loss": task.cross_entropy,
    "slot_accuracy": slot_accuracy,
    "frame_accuracy": frame_accuracy,
}

SLOT_METRICS: Mapping[str, Callable[[Any, task.Example], jax.Array]] = {
    "slot_accuracy": slot_accuracy,
    "slot_loss": slot_cross_entropy,
}


def decode(
    tags: Iterable[Any], lengths: Iterable[Any], names: Sequence[str]
) -> list[list[str]]:
    """Names of the tags of every utterance, without padding.

    Args:
      tags: ints [B, T].
      lengths: ints [B].
      names: name of every tag.
    """
    return [
        [names[int(tag)] for tag in row[: int(length)]]
        for row, length in zip(tags, lengths, strict=True)
    ]


def spans(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Spans (type, first, last + 1) of one utterance in BIO tags.

    As in `conlleval`, an `I-x` that does not continue a span of type x begins one.

    Raises:
      ValueError: if a tag is neither `O` nor `B-...` nor `I-...`.
    """
    found = set()
    start, kind = 0, None
    for position, tag in enumerate([*tags, "O"]):
        prefix, _, new = tag.partition("-")
        if prefix not in ("B", "I", "O") or (prefix == "O") != (not new):
            _validate.fail("slots", tag, "is not a BIO tag", "use O, B-type or I-type")
        if kind is not None and (prefix != "I" or new != kind):
            found.add((kind, start, position))
            kind = None
        if kind is None and prefix != "O":
            start, kind = position, new
    return found


def span_scores(
    predicted: Iterable[Sequence[str]], gold: Iterable[Sequence[str]]
) -> SpanScores:
    """Precision, recall and F1 of spans over a data set, as `conlleval` counts them.

    Args:
      predicted: BIO tags of every utterance.
      gold: the right ones, utterance by utterance of the same length.

    Raises:
      ValueError: if the two differ in the number of utterances or the length of one.
    """
    predicted, gold = list(predicted), list(gold)
    if len(predicted) != len(gold):
        _validate.fail(
            "predicted",
            len(predicted),
            f"utterances do not match the {len(gold)} of gold",
            "pass both for the same examples",
        )
    right = guessed = wanted = 0
    for i, (guess, truth) in enumerate(zip(predicted, gold, strict=True)):
        if len(guess) != len(truth):
            _validate.fail(
                f"predicted[{i}]",
                list(guess),
                f"must have {len(truth)} tags, as gold has",
                "cut both at the length of the utterance",
            )
        guess_spans, true_spans = spans(guess), spans(truth)
        right += len(guess_spans & true_spans)
        guessed += len(guess_spans)
        wanted += len(true_spans)
    return SpanScores(
        precision=right / guessed if guessed else 0.0,
        recall=right / wanted if wanted else 0.0,
        f1=2 * right / (guessed + wanted) if guessed + wanted else 0.0,
        right=right,
        predicted=guessed,
        gold=wanted,
    )
