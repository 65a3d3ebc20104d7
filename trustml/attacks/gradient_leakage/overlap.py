"""How much of a text was recovered: token recall, ROUGE, exact recovery.

    token recall   share of the tokens of the text that were found, with repetitions
    ROUGE-n        F1 of n-grams: 2 common / (found + true), counted with repetitions
    ROUGE-L        F1 of the longest common subsequence (Lin 2004)

Token recall and ROUGE-1 ignore order; ROUGE-2, ROUGE-L and exact recovery do not. The
embedding rows give the set of tokens for free, so no figure stands alone: `compare`
asks for what the rows claimed and gives its figures too. A batch comes back in no
order, so texts are paired by the assignment with the largest sum of ROUGE-L.

Example::

    both = overlap.compare(guess.tokens, true_tokens, rows.nonzero(gradient_of_table))
    both.attack.rouge_2, both.rows.rouge_2

References: https://aclanthology.org/W04-1013/
"""

import collections
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize

from trustml import _validate
from trustml.attacks.gradient_leakage import rows as rows_lib


class Overlap(NamedTuple):
    """Means over the texts of a batch; all in [0, 1]."""

    token_recall: float
    rouge_1: float
    rouge_2: float  # a text of one token has no pair: 1 if recovered, else 0
    rouge_l: float
    exact: float  # share of texts recovered exactly


class Comparison(NamedTuple):
    """An attack beside the embedding rows.

    Attributes:
      attack: of the texts it gave.
      rows: of the claimed tokens, the largest row first, cut at each text's length.
    """

    attack: Overlap
    rows: Overlap


def compare(
    found: Iterable[Any],
    true: Iterable[Any],
    claim: rows_lib.Claim,
) -> Comparison:
    """Overlap of a batch of recovered texts, beside that of the embedding rows.

    Args:
      found: ids of every recovered text, without padding, in any order of texts.
      true: ids of every text of the client, without padding; as many.
      claim: what `rows` claimed from the same update.

    Raises:
      ValueError: if there is no text, or their numbers differ, or one is empty.
    """
    found, true = _texts("found", found), _texts("true", true)
    if len(found) != len(true):
        _validate.fail(
            "found", len(found), f"texts do not match the {len(true)} of true"
        )
    baseline = [tuple(int(t) for t in claim.tokens[: len(text)]) for text in true]
    return Comparison(_assigned(found, true), _assigned(baseline, true))


def ngram_f1(found: Sequence[int], true: Sequence[int], n: int) -> float:
    """ROUGE-n as F1; where neither has an n-gram, whether they are equal."""
    have, want = (_ngrams(text, n) for text in (found, true))
    total = have.total() + want.total()
    if not total:
        return float(tuple(found) == tuple(true))
    return 2 * (have & want).total() / total


def subsequence_f1(found: Sequence[int], true: Sequence[int]) -> float:
    """ROUGE-L as F1: 2 LCS / (len(found) + len(true)); 1 for two empty texts."""
    if not len(found) + len(true):
        return 1.0
    best = [0] * (len(true) + 1)
    for token in found:
        diagonal = 0
        for j, other in enumerate(true, start=1):
            above = best[j]
            best[j] = diagonal + 1 if token == other else max(above, best[j - 1])
            diagonal = above
    return 2 * best[-1] / (len(found) + len(true))


def token_recall(found: Sequence[int], true: Sequence[int]) -> float:
    """Share of the tokens of `true` that `found` has, with repetitions."""
    return (_ngrams(found, 1) & _ngrams(true, 1)).total() / max(len(true), 1)


def _assigned(found, true) -> Overlap:
    gain = np.array([[subsequence_f1(f, t) for t in true] for f in found])
    pairs = [
        (found[i], true[j])
        for i, j in zip(*optimize.linear_sum_assignment(-gain), strict=True)
    ]
    figures = [
        (
            token_recall(f, t),
            ngram_f1(f, t, 1),
            ngram_f1(f, t, 2),
            subsequence_f1(f, t),
            float(f == t),
        )
        for f, t in pairs
    ]
    return Overlap(*np.mean(figures, axis=0).tolist())


def _ngrams(text: Sequence[int], n: int) -> collections.Counter:
    return collections.Counter(zip(*(text[i:] for i in range(n)), strict=False))


def _texts(field: str, texts) -> list[tuple[int, ...]]:
    out = [tuple(int(token) for token in np.asarray(text).ravel()) for text in texts]
    if not out or not all(out):
        _validate.fail(
            field,
            [len(text) for text in out],
            "must be lengths >= 1 of at least one text",
            "leave empty texts out",
        )
    return out
