"""Sentences that hold a word: which, how many, and by what chance."""

import collections

import numpy as np
import pytest

from trustml.data import contexts

TEXTS = {
    "news": ["A nurse came in early. Nobody saw the engineer, or a Nurse at all!"],
    "reviews": [
        "too short, nurse<br />The nurse's coat and the nurse-like one are no."
    ],
}


def test_sentences_are_found_whole_and_once():
    found = contexts.collect(["Nurse", "engineer", "pilot"], TEXTS, shortest=4)
    assert [one.parts for one in found["Nurse"]] == [
        ("A ", "nurse", " came in early."),
        ("Nobody saw the engineer, or a ", "Nurse", " at all!"),
        ("The ", "nurse", "'s coat and the nurse-like one are no."),
    ]
    (engineer,) = found["engineer"]
    assert engineer.source == "news" and "".join(engineer.parts).startswith("Nobody")
    assert found["pilot"] == []
    (owner,) = contexts.collect(["nurse"], {"a": ["it was the nurse's own car"]})[
        "nurse"
    ]
    assert owner.parts == ("it was the ", "nurse", "'s own car")
    twice = contexts.collect(["nurse"], {"a": ["the nurse and the nurse sat down"]})
    assert [one.parts[0] for one in twice["nurse"]] == ["the "]


def test_words_within_words_are_told_apart():
    texts = {"a": ["he said that man is a woman or a man-eater there"]}
    found = contexts.collect(["man", "woman", "he", "eater"], texts)
    starts = {word: [len(one.parts[0]) for one in rows] for word, rows in found.items()}
    assert starts == {"man": [13], "woman": [22], "he": [0], "eater": []}


def test_every_sentence_has_the_same_chance():
    texts = {"a": [f"sentence {n} is about a nurse" for n in range(8)]}
    count = collections.Counter()
    for seed in range(400):
        for one in contexts.collect(["nurse"], texts, most=2, seed=seed)["nurse"]:
            count[one.parts[0]] += 1
    # 400 x 2 / 8 = 100 each, deviation sqrt(400 x 1/4 x 3/4) = 8.7; five of them.
    assert len(count) == 8 and np.abs(np.array(list(count.values())) - 100).max() < 44
    again = [contexts.collect(["nurse"], texts, most=3, seed=5) for _ in range(2)]
    assert again[0] == again[1]


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="words=.* holds no word"):
        contexts.collect([], TEXTS)
    with pytest.raises(ValueError, match="words='two words' must be a word"):
        contexts.collect(["two words"], TEXTS)
    with pytest.raises(ValueError, match="most=0 must be >= 1"):
        contexts.collect(["a"], TEXTS, most=0)
    with pytest.raises(ValueError, match="words='may' differs from 'May' in case only"):
        contexts.collect(["May", "june", "may"], TEXTS)
    assert list(contexts.collect(["June", "June"], TEXTS)) == ["June"]
