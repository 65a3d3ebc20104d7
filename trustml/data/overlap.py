"""How much a text has in common with a reference: exact match, token F1, ROUGE-L.

    F1 = 2 P R / (P + R),   P = common / said,   R = common / wanted

`token_f1` counts common words as bags, `rouge_l` the longest common subsequence, which
keeps their order. Of several references the best counts. Answers are compared in lower
case, without punctuation and the articles a, an, the (Rajpurkar et al. 2016); sentences
in lower case, word by word, punctuation included.

Example::

    overlap.exact_match('The Nile.', ['nile', 'river Nile'])                  # 1.0
    overlap.token_f1('the blue Nile', ['nile'])                               # 0.667
    overlap.rouge_l('a b c d', ['a c d e'])                                   # 0.75

References: https://arxiv.org/abs/1606.05250; Lin 2004,
https://aclanthology.org/W04-1013/
"""

import collections
import re
import string
from collections.abc import Callable, Sequence

import numpy as np

from trustml.data import tokenizers

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def answer_words(text: str) -> list[str]:
    """Words of an answer, as they are compared."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def sentence_words(text: str) -> list[str]:
    """Words and marks of a sentence, as they are compared."""
    return [tokenizers.normalize(word) for word in tokenizers.split_words(text)]


def exact_match(text: str, references: Sequence[str]) -> float:
    """1 if the text is one of the references, else 0."""
    return _best(text, references, answer_words, lambda a, b: float(a == b))


def token_f1(text: str, references: Sequence[str]) -> float:
    """F1 of the bags of words; two answers without words are alike."""
    return _best(text, references, answer_words, _bag_f1)


def rouge_l(text: str, references: Sequence[str]) -> float:
    """F1 of the longest common subsequence of words."""
    return _best(text, references, sentence_words, _sequence_f1)


def common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    number = {word: n for n, word in enumerate({*a, *b})}
    right = np.array([number[word] for word in b])
    row = np.zeros(len(b) + 1, np.int64)
    for word in a:
        # The best of leaving the word out, and of taking it where it stands in b.
        taken = row[:-1] + (right == number[word])
        row[1:] = np.maximum.accumulate(np.maximum(row[1:], taken))
    return int(row[-1])


def _best(
    text: str,
    references: Sequence[str],
    words: Callable[[str], list[str]],
    score: Callable[[list[str], list[str]], float],
) -> float:
    said = words(text)
    return max((score(said, words(one)) for one in references), default=0.0)


def _bag_f1(said: list[str], wanted: list[str]) -> float:
    if not said or not wanted:
        return float(said == wanted)
    common = collections.Counter(said) & collections.Counter(wanted)
    return _f1(common.total(), len(said), len(wanted))


def _sequence_f1(said: list[str], wanted: list[str]) -> float:
    return _f1(common_subsequence(said, wanted), len(said), len(wanted))


def _f1(common: int, said: int, wanted: int) -> float:
    return 2 * common / (said + wanted) if said + wanted else 1.0
