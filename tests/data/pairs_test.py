"""Spans from characters to tokens and back, against a search by hand."""

import numpy as np
import pytest

from trustml.data import dataset, pairs, tokenizers

TEXT = "It cost US$3, not (nearly) $12."


def _split(spans, text=TEXT):
    return dataset.Split(
        labels=np.zeros(len(spans), np.int32),
        texts=[text] * len(spans),
        second=["how much?"] * len(spans),
        spans=np.array(spans, np.int32),
    )


def test_spans_come_back_as_the_words_they_touch():
    words = tokenizers.split_words(TEXT)
    spans = [(a, b) for a in range(len(TEXT)) for b in range(a + 1, len(TEXT) + 1)]
    tokenizer = tokenizers.hashed(512)
    found = pairs.columns("span", _split(spans), tokenizer, 32, 4)
    index = pairs.read([TEXT], tokenizer, 32).word_index[0]
    places = tokenizers.word_places(TEXT)
    assert [TEXT[a:b] for a, b in places] == words
    for n, (low, high) in enumerate(spans):
        touched = [(a, b) for a, b in places if max(a, low) < min(b, high)]
        start, end = int(found["start"][n]), int(found["end"][n])
        if not touched:
            assert start == end == -1
            continue
        wanted = TEXT[touched[0][0] : touched[-1][1]]
        assert pairs.answer(TEXT, index, start, end) == wanted


def test_an_answer_that_is_cut_off_is_none():
    place = TEXT.index("12")
    split = _split([(0, 2), (place, place + 2), (0, place + 2)])
    found = pairs.columns("span", split, tokenizers.hashed(64), 5, 4)
    assert found["start"].tolist() == [0, -1, -1]
    assert found["end"].tolist() == [0, -1, -1]
    assert found["question"].shape == (3, 4) and found["question_length"][0] == 3


def test_an_answer_outside_or_backwards_is_empty():
    index = pairs.read([TEXT], tokenizers.hashed(64), 32).word_index[0]
    assert pairs.answer(TEXT, index, 3, 1) == ""
    assert pairs.answer(TEXT, index, 0, 31) == ""


def test_targets_are_columns_of_their_own_length():
    split = _split([(0, 1)])
    found = pairs.columns("seq2seq", split, tokenizers.hashed(64), 6, 2)
    assert found["target"].shape == (1, 2) and found["target_length"][0] == 2
    assert set(found) == {"tokens", "length", "target", "target_length"}
    with pytest.raises(ValueError, match="kind"):
        pairs.columns("tagging", split, tokenizers.hashed(64), 6, 2)
