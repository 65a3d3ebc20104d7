"""Span scores against the counting of `conlleval`; metrics against plain loops."""

import random

import jax.numpy as jnp
import numpy as np
import pytest

from trustml.models import tagging


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("", set()),
        ("O O", set()),
        ("B-a", {("a", 0, 1)}),
        ("B-a I-a I-a O", {("a", 0, 3)}),
        ("B-a B-a", {("a", 0, 1), ("a", 1, 2)}),
        ("I-a I-a", {("a", 0, 2)}),  # no B: an I begins a span all the same
        ("O I-a", {("a", 1, 2)}),
        ("B-a I-b", {("a", 0, 1), ("b", 1, 2)}),  # another type begins another span
        ("B-a O I-a", {("a", 0, 1), ("a", 2, 3)}),
        ("B-x-y I-x-y", {("x-y", 0, 2)}),  # a type may hold a hyphen
    ],
)
def test_spans(tags, expected):
    assert tagging.spans(tags.split()) == expected


@pytest.mark.parametrize("tag", ["", "B", "B-", "X-a", "O-a", "city"])
def test_other_schemes_are_refused(tag):
    with pytest.raises(ValueError, match="not a BIO tag"):
        tagging.spans(["O", tag])


def _conlleval(predicted, gold):
    """The running counts of the script: starts and ends of chunks, side by side."""

    def split(tag):
        prefix, _, kind = tag.partition("-")
        return prefix, kind

    def ends(before, tag):
        return before[0] != "O" and (tag[0] in "BO" or before[1] != tag[1])

    def starts(before, tag):
        return tag[0] == "B" or (
            tag[0] == "I" and (before[0] == "O" or before[1] != tag[1])
        )

    right = guessed = wanted = 0
    for guesses, truths in zip(predicted, gold, strict=True):
        open_and_equal = False
        last_g = last_t = ("O", "")
        for guess, truth in zip([*guesses, "O"], [*truths, "O"], strict=True):
            guess, truth = split(guess), split(truth)
            if open_and_equal:
                end_t, end_g = ends(last_t, truth), ends(last_g, guess)
                if end_t and end_g and last_t[1] == last_g[1]:
                    open_and_equal = False
                    right += 1
                elif end_t != end_g or truth[1] != guess[1]:
                    open_and_equal = False
            start_t, start_g = starts(last_t, truth), starts(last_g, guess)
            if start_t and start_g and truth[1] == guess[1]:
                open_and_equal = True
            wanted += start_t
            guessed += start_g
            last_g, last_t = guess, truth
    return right, guessed, wanted


def test_counts_equal_those_of_conlleval():
    rng = random.Random(0)
    names = ["O", "O", "B-a", "I-a", "B-b", "I-b"]
    gold = [[rng.choice(names) for _ in range(rng.randrange(9))] for _ in range(300)]
    guess = [[t if rng.random() < 0.7 else rng.choice(names) for t in g] for g in gold]
    right, guessed, wanted = _conlleval(guess, gold)
    scores = tagging.span_scores(guess, gold)
    assert scores[3:] == (right, guessed, wanted)
    assert scores.precision == right / guessed
    assert scores.recall == right / wanted
    np.testing.assert_allclose(
        scores.f1, 2 / (1 / scores.precision + 1 / scores.recall)
    )


def test_scores_without_spans_are_zero():
    assert tagging.span_scores([["O"]], [["O"]]) == (0.0, 0.0, 0.0, 0, 0, 0)
    assert tagging.span_scores([["O"]], [["B-a"]]).f1 == 0.0
    assert tagging.span_scores([["B-a"]], [["B-a"]]).f1 == 1.0


def test_scores_need_the_same_utterances():
    with pytest.raises(ValueError, match="1 of gold"):
        tagging.span_scores([["O"], ["O"]], [["O"]])
    with pytest.raises(ValueError, match=r"predicted\[0\].*2 tags"):
        tagging.span_scores([["O"]], [["O", "O"]])


def test_decode_cuts_padding():
    tags = np.array([[1, 2, 0], [0, 0, 0]])
    names = ("O", "B-a", "I-a")
    assert tagging.decode(tags, [2, 0], names) == [["B-a", "I-a"], []]


def test_metrics_of_an_utterance():
    """Three real tokens, one of them without a tag (-1): two count, one is right."""
    slots = jnp.log(jnp.array([[0.7, 0.3], [0.2, 0.8], [0.4, 0.6], [0.5, 0.5]]))
    label = jnp.log(jnp.array([0.1, 0.9]))
    example = {
        "label": jnp.int32(1),
        "length": jnp.int32(3),
        "slots": jnp.array([0, -1, 0, 1], jnp.int32),
    }
    joint = tagging.Joint(label, slots)
    assert tagging.slot_accuracy(joint, example) == 0.5
    assert tagging.frame_accuracy(joint, example) == 0.0
    loss = tagging.slot_cross_entropy(joint, example)
    np.testing.assert_allclose(loss, -(np.log(0.7) + np.log(0.4)) / 2, rtol=1e-6)
    right = example | {"slots": jnp.array([0, -1, 1, 0], jnp.int32)}
    assert tagging.frame_accuracy(joint, right) == 1.0
    assert tagging.frame_accuracy(joint, right | {"label": jnp.int32(0)}) == 0.0
