"""Sentences that hold a word, as contextual association tests need them.

A word is met as a whole word, in lower or upper case, also before 's or in quotes; a
sentence counts once for a word however often it holds it, and its first occurrence is
the one that is looked at. Of all sentences that hold a word, a random sample without
replacement is kept, so that an early part of a corpus is not preferred. A word without
a sentence is there with an empty list: the caller reports it.

Example::

    found = contexts.collect(['nurse', 'engineer'], {'imdb': reviews}, most=50)
    left, word, right = found['nurse'][0].parts
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from trustml import _validate

_SENTENCE = re.compile(r"(?<=[.!?])\s+|<br\s*/?>|[\r\n]+")


class Context(NamedTuple):
    """A sentence and the place of a word in it.

    Attributes:
      parts: what stands before the word, the word as written, and what follows.
      source: name of the corpus.
    """

    parts: tuple[str, str, str]
    source: str


def collect(
    words: Sequence[str],
    texts: Mapping[str, Iterable[str]],
    *,
    most: int = 50,
    shortest: int = 5,
    longest: int = 40,
    seed: int = 0,
) -> dict[str, list[Context]]:
    """At most so many sentences of every word.

    Args:
      words: single words.
      texts: corpus -> its texts, which are cut into sentences.
      most: sentences of a word.
      shortest: blank-separated words of a sentence at least.
      longest: and at most.
      seed: of the sample.

    Raises:
      ValueError: a bound that is none, no word, one that holds a blank, or two that
        differ in case only: a sentence would count for the last of them.
    """
    _validate.integer_at_least("most", most, 1, "50 is usual")
    _validate.integer_at_least("shortest", shortest, 1, "5 is usual")
    _validate.integer_at_least("longest", longest, shortest, "40 is usual")
    if not words:
        _validate.fail("words", list(words), "holds no word", "give at least one")
    for word in words:
        if not re.fullmatch(r"\S+", word):
            bound = "must be a word without blanks"
            _validate.fail("words", word, bound, "leave phrases out, and say so")
    # One pattern finds any of them; longer words first, so that none hides another.
    wanted: dict[str, str] = {}
    for word in words:
        if wanted.setdefault(word.lower(), word) != word:
            bound = f"differs from {wanted[word.lower()]!r} in case only"
            _validate.fail("words", word, bound, "keep one of them")
    by_length = sorted(map(re.escape, wanted), key=len, reverse=True)
    pattern = re.compile(rf"(?<![\w-])({'|'.join(by_length)})(?![\w-])", re.I)
    rng = np.random.default_rng(seed)
    kept: dict[str, list[Context]] = {word: [] for word in words}
    seen = dict.fromkeys(words, 0)
    for source, of_source in texts.items():
        for text in of_source:
            for sentence in _SENTENCE.split(text):
                if not shortest <= sentence.count(" ") + 1 <= longest:
                    continue
                met = set()
                for found in pattern.finditer(sentence):
                    word = wanted[found.group().lower()]
                    if word in met:
                        continue
                    met.add(word)
                    seen[word] += 1
                    rows = kept[word]
                    # A reservoir: every sentence has the same chance to be kept.
                    at = len(rows) if len(rows) < most else rng.integers(seen[word])
                    if at >= most:
                        continue
                    a, b = found.span()
                    parts = sentence[:a], sentence[a:b], sentence[b:]
                    rows[at : at + 1] = [Context(parts, source)]
    return kept
