"""Columns of examples of two texts: a question to a paragraph, a meaning to a sentence.

    span:     tokens, length (the paragraph), question, question_length, start, end
    seq2seq:  tokens, length (what is given), target, target_length (what is written)

`start` and `end` are the first and the last token of the answer, -1 where the paragraph
was cut before it ended: such an example is no lesson, and counts as wrong in a test. A
target that was not cut is followed by id 0, which is how a model says that it is done.

Dimension key: N examples, T tokens of a text, U of the second one.

Example::

    columns = pairs.columns('span', split, tokenizer, 160, 24)
    columns['start'].shape                        # (N,)
    pairs.answer(text, word_index, start, end)    # the characters between two tokens
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from trustml import _validate
from trustml.data import tokenizers

SECOND = {"span": "question", "seq2seq": "target"}  # kind -> name of the column


def columns(
    kind: str, split: Any, tokenizer: tokenizers.Tokenizer, most: int, most_second: int
) -> dict[str, np.ndarray]:
    """Columns of a `dataset.Split` with `second` texts.

    Args:
      kind: 'span' or 'seq2seq'.
      split: texts, second, and for 'span' spans int32[N, 2] of characters.
      tokenizer: of both texts.
      most: T; longer texts lose their end.
      most_second: U, likewise.

    Returns:
      name -> int32[N], int32[N, T] or int32[N, U].
    """
    name = SECOND[_validate.one_of("kind", kind, SECOND)]
    first = read(split.texts, tokenizer, most)
    second = tokenizer.encode_many(split.second, most_second)
    made = {
        "tokens": first.tokens,
        "length": first.length,
        name: second.tokens,
        f"{name}_length": second.length,
    }
    if kind == "span":
        places = [tokenizers.word_places(text) for text in split.texts]
        words = [_words(*one) for one in zip(places, split.spans, strict=True)]
        made["start"], made["end"] = _tokens(first.word_index, np.array(words))
    return made


def read(
    texts: Sequence[str], tokenizer: tokenizers.Tokenizer, most: int
) -> tokenizers.Encoded:
    """Texts as tokens that know their word of `tokenizers.split_words`."""
    return tokenizer.encode_many([tokenizers.split_words(x) for x in texts], most)


def answer(text: str, word_index: np.ndarray, start: int, end: int) -> str:
    """The characters of `text` from the word of one token to that of another.

    Args:
      text: that was read.
      word_index: int32[T], of `read`.
      start: first token.
      end: last token; '' where either is outside the text, or `end` before `start`.
    """
    first, last = int(word_index[start]), int(word_index[end])
    if not 0 <= first <= last:
        return ""
    places = tokenizers.word_places(text)
    return text[places[first][0] : places[last][1]]


def _words(places: Sequence[tuple[int, int]], span: np.ndarray) -> tuple[int, int]:
    """First and last word that share a character with `span`; (-1, -1) for none."""
    low, high = (int(x) for x in span)
    held = [n for n, (a, b) in enumerate(places) if a < high and b > low]
    return (held[0], held[-1]) if held else (-1, -1)


def _tokens(index: np.ndarray, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First token of the first word and last of the last; -1 where either was cut."""
    first = (index == words[:, :1]) & (index >= 0)
    last = (index == words[:, 1:]) & (index >= 0)
    whole = first.any(axis=1) & last.any(axis=1)
    start = first.argmax(axis=1)
    end = index.shape[1] - 1 - last[:, ::-1].argmax(axis=1)
    start, end = np.where(whole, start, -1), np.where(whole, end, -1)
    return start.astype(np.int32), end.astype(np.int32)
