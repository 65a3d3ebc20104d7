"""How good a model is by the figures of its kind of data, each with an interval.

| kind | figures | of one example, for curves and clients |
| --- | --- | --- |
| classification | `accuracy` | the same |
| tagging, BIO | `span_f1`: exact span and type, micro | share of words tagged right |
| tagging, others | `token_accuracy`, over all words | the same, of a sentence |
| span | `token_f1`, `exact_match`, best of all answers | both ends right |
| seq2seq | `rouge_l`, best of all sentences | next word right, given those before |

The first figure of a kind is the one that runs are compared by. Examples are resampled,
sentences with all of their words; in seq2seq what was written for one meaning is one
example. `baseline` is what no learning gets by the same figure:

* the most frequent label of train;
* every word its most frequent tag in train, the tag of most words where it was not met;
* the first sentence of the paragraph;
* the values of the meaning, one after another.

Example::

    found = scores.measure(task, params, data, 'test')
    name, score = scores.main(found)
    scores.baseline(data, 'test')[name].value
"""

import collections
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trustml import intervals
from trustml import task as task_lib
from trustml.data import batches, corpora, datasets, overlap, pairs, tokenizers
from trustml.models import reader, seq2seq, tagging

PER_EXAMPLE = {
    "classification": "accuracy",
    "tagging": "slot_accuracy",
    "span": "exact",
    "seq2seq": "token_accuracy",
}
WORDS = {
    "accuracy": "accuracy",
    "span_f1": "F1 of entities",
    "token_accuracy": "words tagged right",
    "token_f1": "F1 of words",
    "exact_match": "exact match",
    "rouge_l": "ROUGE-L",
}
PER_EXAMPLE_WORDS = {
    "classification": "accuracy",
    "tagging": "words tagged right",
    "span": "answers with both ends right",
    "seq2seq": "next words right",
}
BASELINES = {
    "classification": "The most frequent label alone",
    "tagging": "Every word with its most frequent tag in training",
    "span": "The first sentence of every paragraph",
    "seq2seq": "A copy of the values of the meaning",
}


class Score(NamedTuple):
    """One figure.

    Attributes:
      value: in [0, 1].
      lo: end of the interval.
      hi: end of the interval.
      n: what was resampled: examples, sentences or meanings.
    """

    value: float
    lo: float
    hi: float
    n: int


Scores = Mapping[str, Score]


def main(found: Scores) -> tuple[str, Score]:
    """The name and the value of the figure that runs are compared by."""
    return next(iter(found.items()))


def measure(
    task: task_lib.Task,
    params: Any,
    data: datasets.Dataset,
    split: str,
    *,
    level: float = 0.95,
) -> Scores:
    """The figures of a model on a split.

    Args:
      task: of the kind of `data`.
      params: of the model.
      data: with its texts, tags and references.
      split: 'valid' or 'test'.
      level: of the intervals.
    """
    columns = getattr(data, split)
    if data.kind == "classification":
        return {"accuracy": _rate(per_example(task, params, columns, data.kind), level)}
    if data.kind == "tagging":
        guesses = _mapped(_tags, task.predict, params, columns)
        return _of_tags(guesses, columns, data.slot_names, level)
    if data.kind == "span":
        first, last = _mapped(_ends, task.predict, params, columns)
        return _of_answers(_answers(data, split, first, last), data, split, level)
    rows = _meanings(data, split)
    some = {name: column[rows] for name, column in columns.items()}
    written = _mapped(_written, task.predict, params, some, batch_size=128)
    said = _sentences(data, split, rows, written)
    return _of_sentences(said, data, split, rows, level)


def per_example(
    task: task_lib.Task, params: Any, columns: Mapping[str, Any], kind: str
) -> np.ndarray:
    """The figure of single examples, float[N]; needs no text."""
    columns = {name: _widened(column) for name, column in columns.items()}
    metric = task.metrics[PER_EXAMPLE[kind]]
    found = _mapped(_metric(metric), task.predict, params, columns)
    return np.asarray(found, float)


def _widened(column: Any) -> np.ndarray:
    """As models expect it: a store keeps integers in the smallest type there is."""
    found = np.asarray(column)
    return found.astype(np.int32) if found.dtype.kind in "iu" else found


def baseline(data: datasets.Dataset, split: str, *, level: float = 0.95) -> Scores:
    """The same figures of what no model is needed for; see the module docstring."""
    columns = getattr(data, split)
    if data.kind == "classification":
        prior = np.bincount(data.train["label"]).argmax()
        return {"accuracy": _rate(columns["label"] == prior, level)}
    if data.kind == "tagging":
        return _of_tags(_looked_up(data, columns), columns, data.slot_names, level)
    texts = data.texts[split]
    if data.kind == "span":
        return _of_answers([_sentence(str(text)) for text in texts], data, split, level)
    rows = _meanings(data, split)
    copies = [" ".join(corpora.attributes(str(texts[n])).values()) for n in rows]
    return _of_sentences(copies, data, split, rows, level)


# What runs over a split; compiled once for each model.


def _tags(predict, params, example):
    log_probs = tagging.slot_log_probs(predict(params, example))
    return jnp.argmax(log_probs, axis=-1).astype(jnp.int32)


def _ends(predict, params, example):
    return reader.best(predict(params, example))


def _written(predict, params, example):
    return seq2seq.greedy(predict)(params, example)


@functools.lru_cache(maxsize=16)
def _metric(metric) -> Callable[..., Any]:
    def one(predict, params, example):
        return metric(predict(params, example), example)

    return one


@functools.lru_cache(maxsize=32)
def _compiled(one, predict):
    return jax.jit(jax.vmap(functools.partial(one, predict), (None, 0)))


def _mapped(one, predict, params, columns, batch_size: int = 256) -> Any:
    """`one` of every example, stacked."""
    run, parts = _compiled(one, predict), []
    for batch, mask in batches.evaluation(columns, batch_size):
        out = jax.device_get(run(params, batch))
        parts.append(jax.tree.map(lambda x, mask=mask: np.asarray(x)[mask], out))
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)


# Tags.


def _of_tags(guesses, columns, names: Sequence[str], level: float) -> Scores:
    length = columns["length"]
    if not all(name == "O" or name[:2] in ("B-", "I-") for name in names):
        real = np.arange(guesses.shape[1])[None, :] < length[:, None]
        right = ((guesses == columns["slots"]) & real).sum(axis=1)
        counts = np.stack([right, real.sum(axis=1)], axis=1).astype(float)

        def share(rows):
            sums = rows.sum(axis=1)
            return sums[:, 0] / np.maximum(sums[:, 1], 1)

        return {"token_accuracy": _resampled(share, counts, level)}
    said = tagging.decode(guesses, length, names)
    wanted = tagging.decode(columns["slots"], length, names)
    counts = np.array(
        [tagging.span_scores([a], [b])[3:] for a, b in zip(said, wanted, strict=True)],
        float,
    )

    def f1(rows):
        right, predicted, gold = np.moveaxis(rows.sum(axis=1), -1, 0)
        return 2 * right / np.maximum(predicted + gold, 1)

    return {"span_f1": _resampled(f1, counts, level)}


def _looked_up(data: datasets.Dataset, columns) -> np.ndarray:
    """Every word's most frequent tag in train, int32[N, T]."""
    train = data.train
    real = np.arange(train["tokens"].shape[1])[None, :] < train["length"][:, None]
    counts = np.zeros((data.vocab_size, len(data.slot_names)), np.int64)
    np.add.at(counts, (train["tokens"][real], train["slots"][real]), 1)
    best = np.where(counts.any(axis=1), counts.argmax(axis=1), counts.sum(0).argmax())
    return best[columns["tokens"]].astype(np.int32)


# Answers.


def _answers(data: datasets.Dataset, split: str, first, last) -> list[str]:
    texts, tokenizer = [str(text) for text in data.texts[split]], data.tokenizer
    if tokenizer is None:
        raise ValueError(f"data.name={data.name!r} has no tokenizer to read texts by.")
    most = getattr(data, split)["tokens"].shape[1]
    index = pairs.read(texts, tokenizer, most).word_index
    ends = zip(first.tolist(), last.tolist(), strict=True)
    return [
        pairs.answer(text, words, *span)
        for text, words, span in zip(texts, index, ends, strict=True)
    ]


def _of_answers(said: Sequence[str], data, split: str, level: float) -> Scores:
    found = list(zip(said, data.references[split], strict=True))
    return {
        "token_f1": _mean([overlap.token_f1(*one) for one in found], level),
        "exact_match": _rate([overlap.exact_match(*one) for one in found], level),
    }


def _sentence(text: str) -> str:
    """What stands before the first full stop that ends a sentence."""
    return text.partition(". ")[0]


# Sentences.


def _meanings(data: datasets.Dataset, split: str) -> np.ndarray:
    """The first row of every text that is given."""
    first: dict[str, int] = {}
    for row, text in enumerate(data.texts[split]):
        first.setdefault(str(text), row)
    return np.array(list(first.values()))


def _sentences(data: datasets.Dataset, split: str, rows, written) -> list[str]:
    """What tokens say: a word that was given, else the most frequent one of train."""
    if data.tokenizer is None:
        raise ValueError(f"data.name={data.name!r} has no tokenizer to read texts by.")
    counts: collections.Counter = collections.Counter()
    for text in data.second["train"]:
        counts.update(map(tokenizers.normalize, tokenizers.split_words(text)))
    common = _spelled(data.tokenizer, [word for word, _ in counts.most_common()])
    out = []
    for n, row in zip(rows, written, strict=True):
        given = tokenizers.split_words(str(data.texts[split][n]))
        spelled = common | _spelled(data.tokenizer, given)
        said = (spelled.get(int(x), "") for x in row if x != seq2seq.END)
        out.append(" ".join(said))
    return out


def _spelled(tokenizer: tokenizers.Tokenizer, words: Sequence[str]) -> dict[int, str]:
    """Id -> the first word that has it; unknown words have none."""
    ids = tokenizer.encode_many([[word] for word in words], 1).tokens[:, 0]
    return dict(zip(ids.tolist()[::-1], words[::-1], strict=True))


def _of_sentences(said, data, split: str, rows, level: float) -> Scores:
    wanted = [data.references[split][n] for n in rows]
    found = [overlap.rouge_l(a, b) for a, b in zip(said, wanted, strict=True)]
    return {"rouge_l": _mean(found, level)}


# Intervals.


def _rate(right: Any, level: float) -> Score:
    right = np.asarray(right, bool)
    ends = intervals.proportion(int(right.sum()), len(right), level)
    return Score(float(right.mean()), *ends, len(right))


def _mean(values: Sequence[float], level: float) -> Score:
    found = np.array(values, float)
    return _resampled(lambda rows: rows.mean(axis=1), found, level)


def _resampled(statistic, rows: np.ndarray, level: float) -> Score:
    made = intervals.bootstrap(statistic, rows, level=level, vectorized=True)
    return Score(made.value, made.lo, made.hi, len(rows))
