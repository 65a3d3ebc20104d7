"""Figures of every kind on small data: a model that knows, baselines by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from trustml import task as task_lib
from trustml.data import dataset, tokenizers
from trustml.experiments import scores
from trustml.models import reader, seq2seq, tagging


def _data(kind, train, test, **options):
    few = {"length_edges": (5,), "digest_of": ("x",), "name": "n", "source": "s"}
    return dataset.assemble(
        {"train": train, "valid": test, "test": test},
        label_names=("a", "b", "c"),
        max_length=8,
        second_length=6,
        tokenizer=tokenizers.hashed(4096),
        licence="l",
        kind=kind,
        **few,
        **options,
    )


def _split(labels, texts, **columns):
    return dataset.Split(np.array(labels, np.int32), texts, **columns)


def _task(predict, metrics):
    return task_lib.Task(
        lambda key: {}, lambda p, e, k: jnp.float32(0), predict, metrics
    )


def test_accuracy_and_the_label_prior_of_train():
    data = _data(
        "classification",
        _split([1, 1, 0], ["a", "b", "c"]),
        _split([0, 1, 0, 0], ["d", "e", "f", "g"]),
    )
    task = _task(
        lambda params, example: jnp.where(jnp.arange(3) == 0, 0.0, -9.0),
        {"accuracy": task_lib.accuracy},
    )
    found = scores.measure(task, {}, data, "test")
    assert found["accuracy"].value == 0.75 and found["accuracy"].n == 4
    assert scores.baseline(data, "test")["accuracy"].value == 0.25


def _tagged(kind_of_tags):
    words = [["in", "Rome", "x"], ["Rome", "y"]]
    tags = {
        "bio": [["O", "B-l", "O"], ["B-l", "I-l"]],
        "pos": [["P", "N", "N"], ["N", "V"]],
    }[kind_of_tags]
    train = _split([0, 1], words, slots=tags)
    new = _split([0], [["in", "Rome", "z"]], slots=[tags[0]])
    return _data("tagging", train, new)


def _perfect(params, example):
    return jnp.where(example["slots"][:, None] == jnp.arange(3)[None], 0.0, -9.0)


@pytest.mark.parametrize("kind", ["bio", "pos"])
def test_tags_by_spans_or_by_words(kind):
    data = _tagged(kind)
    found = scores.measure(_task(_perfect, tagging.SLOT_METRICS), {}, data, "test")
    name, score = scores.main(found)
    assert name == {"bio": "span_f1", "pos": "token_accuracy"}[kind]
    assert score.value == 1
    # Words of train keep their tags; z is new and takes the most frequent tag: B-l and
    # O are as frequent, and the first counts; N.
    assert scores.baseline(data, "test")[name].value == 1


def test_answers_are_compared_as_text_with_all_references():
    text = "The Nile is long. It is in Africa now."
    split = _split(
        [0, 0],
        [text, text],
        second=["what?", "where?"],
        spans=np.array([[4, 8], [27, 33]], np.int32),
        references=[("Nile", "The Nile"), ("Africa",)],
    )
    data = _data("span", split, split)

    def first_two(params, example):
        place = jnp.arange(8)
        return reader.Span(
            jnp.where(place == 0, 0.0, -9.0), jnp.where(place == 1, 0.0, -9.0)
        )

    task = _task(first_two, {"exact": reader.exact, "loss": reader.loss})
    found = scores.measure(task, {}, data, "test")
    assert found["exact_match"].value == 0.5 and found["token_f1"].value == 0.5
    # The first sentence, 'nile is long', has one word of three right, and then none.
    assert scores.baseline(data, "test")["token_f1"].value == pytest.approx(0.25)
    right = scores.per_example(task, {}, data.test, "span")
    assert right.tolist() == [0, 0]  # 'The Nile' is not the span that was trained on


def test_sentences_of_one_meaning_count_once_and_new_names_can_be_said():
    train = _split(
        [0],
        ["name[Zizzi]"],
        second=["Zizzi is good"],
        references=[("Zizzi is good",)],
    )
    both = ("Bibi is good", "Bibi good")
    new = _split([0, 0], ["name[Bibi]"] * 2, second=list(both), references=[both, both])
    data = _data("seq2seq", train, new)

    def copying(params, example):
        # tokens: name [ Bibi ]; the target: Bibi is good
        said = jnp.concatenate([example["tokens"][2:3], jnp.asarray(known), end])
        return jnp.where(said[:, None] == jnp.arange(4096)[None], 0.0, -9.0)

    known, _ = tokenizers.hashed(4096).encode(["is", "good"], 2)
    end = jnp.zeros(3, jnp.int32)
    task = _task(copying, {"token_accuracy": seq2seq.token_accuracy})
    found = scores.measure(task, {}, data, "test")
    assert found["rouge_l"].value == 1 and found["rouge_l"].n == 1
    # The values alone: 'Bibi' of 'Bibi good'.
    wanted = 2 * 1 / (1 + 2)
    assert scores.baseline(data, "test")["rouge_l"].value == pytest.approx(wanted)
