"""The table of n-grams against a dictionary, and what shares an id."""

import numpy as np
import pytest

from trustml.data import spelling, tokenizers

WORDS = ("nine", "Nine", "fine", "a", "fly", "tremendous")


def test_ngrams_of_marked_words():
    assert spelling.ngrams("nine", 3) == ["<ni", "nin", "ine", "ne>"]
    assert spelling.ngrams("a", 3) == ["<a>"]
    assert spelling.ngrams("", 3) == ["<>"]
    assert spelling.ngrams("ab", 1) == ["<", "a", "b", ">"]


def test_rows_hold_the_buckets_of_the_words_and_nothing_else():
    tokenizer = tokenizers.word(sorted({word.lower() for word in WORDS}))
    table = spelling.table(tokenizer, WORDS, buckets=5000, most=6)
    assert table.shape == (tokenizer.vocab_size, 6) and table.dtype == np.int32
    bucket = {}
    for word in {word.lower() for word in WORDS}:
        row = table[tokenizer.encode([word], 1)[0][0]]
        grams = spelling.ngrams(word, 3)[:6]
        assert np.all(row[: len(grams)] > 0) and np.all(row[len(grams) :] == 0)
        for gram, number in zip(grams, row.tolist(), strict=False):
            assert bucket.setdefault(gram, number) == number, "one bucket an n-gram"
    # Twenty n-grams in 5000 buckets meet with probability 0.04; these do not.
    assert len(set(bucket.values())) == len(bucket)
    assert not table[tokenizers.PAD].any() and not table[tokenizers.UNKNOWN].any()
    assert spelling.table(tokenizer, WORDS, buckets=3).max() <= 3


def test_the_first_word_of_an_id_counts_in_any_order():
    tokenizer = tokenizers.hashed(3)  # two ids for all words
    table = spelling.table(tokenizer, WORDS, buckets=99)
    again = spelling.table(tokenizer, WORDS[::-1], buckets=99)
    np.testing.assert_array_equal(table, again)
    first = tokenizer.encode(["a"], 1)[0][0]
    alone = spelling.table(tokenizer, ["a"], buckets=99)
    np.testing.assert_array_equal(table[first], alone[first])


def test_numbers_out_of_bounds_are_refused():
    tokenizer = tokenizers.hashed(8)
    with pytest.raises(ValueError, match="model.characters=0 must be .* try 2048"):
        spelling.table(tokenizer, WORDS, buckets=0)
    with pytest.raises(ValueError, match="most=0"):
        spelling.table(tokenizer, WORDS, buckets=9, most=0)
