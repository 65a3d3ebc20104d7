"""Slots on word pieces, hash splits, length groups and label order."""

import numpy as np
import pytest

from trustml.data import dataset, tokenizers

PIECES = tokenizers.Tokenizer(
    # Cuts a word into letters, between two marks with id 9.
    name="letters",
    vocab_size=10,
    digest="letters",
    public=True,
    encode=lambda text, max_length: None,
    encode_many=lambda texts, max_length: _letters(texts, max_length),
)


def _letters(texts, max_length):
    tokens = np.zeros((len(texts), max_length), np.int32)
    index = np.full((len(texts), max_length), -1, np.int32)
    lengths = []
    for n, words in enumerate(texts):
        places = [-1, *(w for w, word in enumerate(words) for _ in word), -1]
        places = places[:max_length]
        tokens[n, : len(places)] = [9 if w < 0 else 1 + w for w in places]
        index[n, : len(places)] = places
        lengths.append(len(places))
    return tokenizers.Encoded(tokens, np.array(lengths, np.int32), index)


def _assemble(splits, tokenizer, max_length, **others):
    empty = dataset.Split([], [] if splits.texts is not None else None)
    if splits.slots is not None:
        empty = empty._replace(slots=[])
    return dataset.assemble(
        {"train": splits, "valid": empty, "test": empty},
        label_names=("a", "b"),
        max_length=max_length,
        tokenizer=tokenizer,
        length_edges=(1, 3),
        digest_of=("x",),
        name="tiny",
        source="here",
        licence="CC0",
        **others,
    )


def test_pieces_of_a_word_continue_its_slot():
    split = dataset.Split(
        labels=["b", "a"],
        texts=[["in", "new", "york"], ["x", "yy"]],
        slots=[["O", "B-city", "I-city"], ["B-only", "B-city"]],
    )
    data = _assemble(split, PIECES, 12)
    names = [[data.slot_names[n] for n in row] for row in data.train["slots"]]
    city = ["B-city", "I-city", "I-city", *["I-city"] * 4]
    assert names[0] == ["O", "O", "O", *city, "O", "O"]
    # No continuation I-only is known, and none is needed for a word of one piece.
    assert names[1][:5] == ["O", "B-only", "B-city", "I-city", "O"]
    assert data.slot_names[0] == "O"
    assert data.train["label"].tolist() == [1, 0]
    assert np.all(data.train["slots"][1, data.train["length"][1] :] == 0)
    assert data.valid["slots"].shape == data.test["tokens"].shape == (0, 12)


def test_slots_of_words_survive_truncation():
    split = dataset.Split(
        labels=["a", "b"],
        texts=[["u", "v", "w"], ["x"]],
        slots=[["B-p", "O", "B-q"], ["B-q"]],
    )
    data = _assemble(split, tokenizers.hashed(50), 2)
    names = [[data.slot_names[n] for n in row] for row in data.train["slots"]]
    assert names == [["B-p", "O"], ["B-q", "O"]]
    assert data.train["length"].tolist() == [2, 1]


def test_length_groups_count_words_before_truncation():
    texts = ["", "one", "one two", "one two three", "one two three four"]
    data = _assemble(dataset.Split(["a"] * 5, texts), tokenizers.hashed(50), 2)
    assert data.groups["train"]["length"].tolist() == [0, 0, 1, 1, 2]
    assert data.group_names["length"] == (
        "up to 1 words",
        "2–3 words",
        "4 words or more",
    )
    assert data.texts["train"] == texts


def test_hash_fraction_is_golden_and_even():
    # Equal for ever: another value moves examples between the splits of every set.
    assert dataset.hash_fraction(b"a") == 0.18460693099188663
    assert dataset.hash_fraction(b"a", 1) == 0.037210213395732064
    values = [dataset.hash_fraction(str(n).encode()) for n in range(4000)]
    counts = np.histogram(values, 10, (0, 1))[0]
    # Binomial(4000, 0.1) has the deviation 19; five of them.
    assert np.all(np.abs(counts - 400) < 95)


def test_subset_keeps_rows_together_and_in_order():
    count = 50
    split = dataset.Split(
        labels=[str(n) for n in range(count)],
        texts=[f"text {n}" for n in range(count)],
        features=np.arange(count, dtype=np.float32)[:, None],
        groups={"sex": np.arange(count, dtype=np.int32)},
    )
    kept = dataset.subset(split, 9, 3)
    rows = [int(label) for label in kept.labels]
    assert len(rows) == 9 and rows == sorted(rows) and rows != list(range(9))
    assert kept.texts == [f"text {n}" for n in rows]
    assert kept.features[:, 0].tolist() == kept.groups["sex"].tolist() == rows
    assert dataset.subset(split, 9, 4).labels != kept.labels
    assert dataset.subset(split, 0, 3) is split is dataset.subset(split, 50, 3)


def test_digest_follows_every_option():
    def make(tokenizer, length):
        return _assemble(dataset.Split(["a"], ["x"]), tokenizer, length).digest

    made = [make(tokenizers.hashed(n), m) for n, m in ((5, 4), (6, 4), (5, 3))]
    assert len(set(made)) == 3
    assert make(tokenizers.hashed(5), 4) == made[0]


def test_labels_that_are_numbers_sort_as_numbers():
    assert dataset.sort_labels(["10", "9", "10"]) == ("9", "10")
    assert dataset.sort_labels(["b", "10", "9"]) == ("10", "9", "b")


def test_pretrained_needs_a_directory():
    with pytest.raises(ValueError, match="vocabulary='pretrained' needs a checkpoint"):
        dataset.choose_tokenizer("pretrained", 10, "", [])
