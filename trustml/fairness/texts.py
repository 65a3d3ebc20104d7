"""Texts as token ids, with what is a mark, what does not fit, and where a part stands.

Texts longer than the model are not cut silently: they are flagged in `too_long`, and
benchmarks leave out their items by name, with counts. So are words outside the
vocabulary, in `unknown`: two of them are one token, and any bias between them 0. A part
of a sentence is found by encoding what stands before it, and is refused where that does
not begin the whole.

Dimension key: `B` texts, `T` token slots.

Example::

    tokenizer = tokenizers.pretrained(directory)
    rows = texts.encode(tokenizer, ['He cooks.', 'She cooks.'], 512)
    found = texts.spans(tokenizer, [('He is a ', 'nurse', '.')], 512)
    found.sentences.ids[0, found.start[0] : found.stop[0]]
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from trustml import _validate
from trustml.data import tokenizers


class Sentences(NamedTuple):
    """Encoded texts, padded at the right with 0.

    Attributes:
      ids: int32[B, T].
      attention: bool[B, T], true at tokens; a row is true up to its length.
      scored: bool[B, T], true at tokens that are no marks such as [CLS].
      words: int32[B, T], number of the word a token belongs to; -1 at marks.
      too_long: bool[B], texts that do not fit the model; their rows are cut.
      unknown: bool[B, T], true at tokens that stand for what is in no vocabulary.
    """

    ids: np.ndarray
    attention: np.ndarray
    scored: np.ndarray
    words: np.ndarray
    too_long: np.ndarray
    unknown: np.ndarray


class Spans(NamedTuple):
    """Sentences with one place marked: tokens start to stop - 1.

    Attributes:
      sentences: encoded.
      start: int32[B].
      stop: int32[B].
      found: bool[B], false where the place is no whole number of tokens.
    """

    sentences: Sentences
    start: np.ndarray
    stop: np.ndarray
    found: np.ndarray


def encode(
    tokenizer: tokenizers.Tokenizer, texts: Sequence[str], max_length: int
) -> Sentences:
    """Token ids of texts, with what is a mark and what does not fit.

    Args:
      tokenizer: of the model. Its marks are the ids that it gives to an empty text.
      texts: B sentences.
      max_length: most tokens that the model takes, marks included.

    Raises:
      ValueError: if there is no text, or `max_length` leaves no room beside the marks.
    """
    if not len(texts):
        _validate.fail("texts", list(texts), "holds no text", "give at least one")
    marks, count = tokenizer.encode("", max_length)
    # One slot more than fits: a text that fills it is too long.
    found = tokenizer.encode_many(list(texts), max_length + 1)
    too_long = found.length > max_length
    length = np.minimum(found.length, max_length)
    slots = max(1, int(length.max()))
    attention = np.arange(slots)[None, :] < length[:, None]
    ids = np.where(attention, found.tokens[:, :slots], 0)
    special = np.isin(ids, marks[: int(count)])
    words = np.where(attention, found.word_index[:, :slots], -1)
    scored = attention & ~special
    unknown = scored & (ids == (-1 if (at := tokenizer.unknown_id) is None else at))
    return Sentences(ids, attention, scored, words, too_long, unknown)


def spans(
    tokenizer: tokenizers.Tokenizer,
    parts: Sequence[tuple[str, str, str]],
    max_length: int,
) -> Spans:
    """Where the tokens of a part of each sentence stand.

    The tokens of `left` and of `left + part` must be the first of those of the whole:
    so it is where a part begins and ends with a word. Blanks before the part belong to
    it, as in byte-level vocabularies.

    Args:
      tokenizer: of the model.
      parts: (left, part, right) of each sentence, which is their sum.
      max_length: as for `encode`.
    """
    lefts = [left.rstrip() for left, _, _ in parts]
    whole = encode(tokenizer, ["".join(part) for part in parts], max_length)
    before = encode(tokenizer, lefts, max_length)
    until = encode(tokenizer, [left + part for left, part, _ in parts], max_length)
    lead = np.argmax(whole.scored, axis=1)
    start = lead + before.scored.sum(axis=1)
    stop = lead + until.scored.sum(axis=1)
    found = start < stop
    for shorter in (before, until):
        for n in np.flatnonzero(found):
            plain = shorter.ids[n][shorter.scored[n]]
            same = whole.ids[n][whole.scored[n]][: len(plain)]
            found[n] = np.array_equal(plain, same)
    return Spans(whole, start.astype(np.int32), stop.astype(np.int32), found)


def continuations(
    tokenizer: tokenizers.Tokenizer,
    contexts: Sequence[str],
    texts: Sequence[str],
    max_length: int,
) -> tuple[Sentences, np.ndarray]:
    """Each context, a blank and its text, to score the tokens of the text alone.

    Returns:
      the joined `Sentences`, `scored` at tokens of the text only; and bool[B], whether
      the tokens of the context begin those of the whole.
    """
    parts = [
        (context.rstrip(), " " + text.lstrip(), "")
        for context, text in zip(contexts, texts, strict=True)
    ]
    found = spans(tokenizer, parts, max_length)
    places = np.arange(found.sentences.ids.shape[1])[None, :]
    scored = found.sentences.scored & (places >= found.start[:, None])
    return found.sentences._replace(scored=scored), found.found
