"""Byte-level pieces of words for text that is generated: there and back.

Byte-pair encoding over bytes (Sennrich et al. 2016; Radford et al. 2019): every text
has a code, no word is unknown, and what was encoded can be read again. One mark ends
(and begins) a text; a text that spells it out, '<|endoftext|>', is encoded as the
letters that it is. Pieces are learnt from the text that is given, so a vocabulary
built from private text is itself a release of it.

Example::

    codec = subwords.train(['the cat sat', 'the dog sat'], 300)
    (ids,) = codec.encode(['the cat'])
    codec.decode(ids)                                    # 'the cat'

References: https://arxiv.org/abs/1508.07909
"""

import os
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import tokenizers as hugging_face
from tokenizers import decoders, models, pre_tokenizers, trainers

from trustml import _validate

END = "<|endoftext|>"


class Codec(NamedTuple):
    """Text to ids and back.

    Attributes:
      vocab_size: ids are in [0, vocab_size).
      end_id: the mark that ends a text; it has no text.
      encode: texts -> ids of each, without marks.
      decode: ids -> text, marks left out.
    """

    vocab_size: int
    end_id: int
    encode: Callable[[Sequence[str]], list[list[int]]]
    decode: Callable[[Sequence[int]], str]


def train(texts: Iterable[str], vocabulary_size: int) -> Codec:
    """Learns pieces of words, the commonest pairs first.

    Args:
      texts: to learn from.
      vocabulary_size: ids at most: 256 bytes, the mark, and pairs.

    Raises:
      ValueError: if it is below 257.
    """
    size = _validate.integer_at_least(
        "vocabulary_size", vocabulary_size, 257, "256 bytes and a mark; try 4096"
    )
    engine = hugging_face.Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    engine.train_from_iterator(texts, trainer)
    return _codec(engine)


def pretrained(directory: str | os.PathLike[str]) -> Codec:
    """The pieces of a published GPT-2.

    Args:
      directory: in the Hugging Face layout; holds `tokenizer.json`.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it cannot be read, or has no mark `<|endoftext|>`.
    """
    folder = _validate.existing_directory("model.checkpoint", directory)
    path = _validate.existing_file(
        "tokenizer.json", folder / "tokenizer.json", "give a Hugging Face checkpoint"
    )
    try:
        engine = hugging_face.Tokenizer.from_buffer(path.read_bytes())
    except Exception as error:
        raise ValueError(
            f"tokenizer.json={str(path)!r} cannot be read ({error}); download it again."
        ) from error
    if engine.token_to_id(END) is None:
        _validate.fail("tokenizer.json", str(path), f"has no mark {END}", "use GPT-2's")
    return _codec(engine)


def _codec(engine) -> Codec:
    engine.encode_special_tokens = True  # as text: what is written is no mark

    def encode(texts: Sequence[str]) -> list[list[int]]:
        many = engine.encode_batch(list(texts), add_special_tokens=False)
        return [one.ids for one in many]

    def decode(ids: Sequence[int]) -> str:
        return engine.decode([int(one) for one in ids], skip_special_tokens=True)

    size = max(engine.get_vocab(with_added_tokens=True).values()) + 1
    return Codec(size, engine.token_to_id(END), encode, decode)
