"""Pieces of words: there and back, repeatable."""

import pytest

from trustml.data import subwords

_TEXTS = ["the cat sat on the mat", "the dog sat, and the cat ran", "naïve 😀"] * 3


def test_every_text_comes_back():
    codec = subwords.train(_TEXTS, 300)
    assert codec.vocab_size <= 300
    for text in (*_TEXTS, "never seen: \u4e2d\u6587\n\ttabs", " leading blank"):
        (ids,) = codec.encode([text])
        assert codec.decode(ids) == text
        assert codec.end_id not in ids and max(ids) < codec.vocab_size
    (short,) = codec.encode(["the cat"])
    assert len(short) < len("the cat"), "common pairs are pieces"
    assert codec.decode([codec.end_id, *short]) == "the cat"
    # The mark, spelt out in a text, is text.
    (spelt,) = codec.encode([f"a {subwords.END} b"])
    assert codec.end_id not in spelt and codec.decode(spelt) == f"a {subwords.END} b"


def test_the_same_texts_make_the_same_pieces():
    one, other = subwords.train(_TEXTS, 290), subwords.train(_TEXTS, 290)
    assert one.encode(_TEXTS) == other.encode(_TEXTS)


def test_a_published_file_is_read(tmp_path):
    import tokenizers

    engine = tokenizers.Tokenizer(tokenizers.models.BPE())
    engine.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = tokenizers.decoders.ByteLevel()
    path = tmp_path / "tokenizer.json"
    engine.save(str(path))
    with pytest.raises(ValueError, match="has no mark <.endoftext.>"):
        subwords.pretrained(tmp_path)
    made = tokenizers.trainers.BpeTrainer(
        vocab_size=280,
        special_tokens=[subwords.END],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    engine.train_from_iterator(_TEXTS, made)
    engine.save(str(path))
    codec = subwords.pretrained(tmp_path)
    assert codec.decode(codec.encode(["the mat"])[0]) == "the mat"
    assert codec.end_id not in codec.encode([subwords.END])[0]
    path.write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        subwords.pretrained(tmp_path)
    with pytest.raises(ValueError, match="vocabulary_size=100 must be >= 257"):
        subwords.train(_TEXTS, 100)
