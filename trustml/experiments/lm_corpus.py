"""Synthetic corpora with planted biases of known strength, for small language models.

A sentence has 8 tokens,

    S is a P who uses W O

with a subject S (of a gender, of an age, or neutral), a profession P, whose W (the, his
or her) and an object O.
Professions come in two sets that share no word: `probed`, which intrinsic measures ask
about, and `applied`, which extrinsic ones do. Half of each set are *first*: a bias of
strength b in [0, 1] gives a first profession a subject of the first side (he, teen)
with probability (1 + k) / 2, another profession with (1 - k) / 2, where k = b + offset,
cut to [-1, 1]. Offsets are the same values for every corpus, dealt out anew: they sum
to 0, so professions differ and the mean skew is a rising function of b alone.

W is a pronoun in half of the sentences about a gender or a neutral subject: that of the
subject, and where it is neutral one by the same chances as a subject. So words of a
gender and professions share contexts, which is all that associations of embeddings can
see: without it they found nothing of what likelihoods found.

A corpus has three strengths, planted apart: gender among the probed, gender among the
applied, age among the applied. So it is known over corpora how much what an intrinsic
measure sees has to do with what an extrinsic one sees (`strengths`).

Applied professions form pairs that share four objects, used by both with other
frequencies: an object hints at one of a pair, more or less. Nothing is downloaded, and
nobody is described.

Dimension key: `N` sentences, `T` = 8 tokens, `M` corpora.

Example::

    b = lm_corpus.strengths(24, agreement=0.8, seed=0)
    rows = lm_corpus.make(0, 4000, b.probed[0], b.applied[0], b.age[0])
    lm_corpus.text(rows['tokens'][0])        # 'she is a nurse who uses the syringe'
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy import typing as npt
from scipy import stats

from trustml import _validate

LENGTH = 8
PAD, MASK = 0, 1
GENDER = (("he", "man"), ("she", "woman"))
AGE = (("teen", "youth"), ("elder", "senior"))
NEUTRAL = ("person", "someone")
# First professions lean to the first side of GENDER and of AGE.
PROBED = (
    ("engineer", "mechanic", "pilot", "farmer"),
    ("librarian", "dancer", "tailor", "florist"),
)
APPLIED = (
    ("surgeon", "professor", "chef"),
    ("nurse", "teacher", "waiter"),
)
PLAIN = ("friend", "neighbour")  # take the place of P; no bias is planted in them
THINGS = ("phone", "car", "desk")
TOOLS = (
    ("scalpel", "monitor", "syringe", "thermometer"),
    ("lectern", "archive", "blackboard", "chalk"),
    ("knife", "oven", "tray", "menu"),
)
_HINTS = (0.5, 0.25, 0.15, 0.1)  # of a pair's tools, given its first; reversed: second
_FORM = ("is", "a", "who", "uses")
WHOSE = ("the", "his", "her")
VOCABULARY = (
    *("", "[MASK]"),
    *_FORM,
    *WHOSE,
    *(word for side in (*GENDER, *AGE) for word in side),
    *NEUTRAL,
    *(word for side in (*PROBED, *APPLIED) for word in side),
    *PLAIN,
    *THINGS,
    *(word for pair in TOOLS for word in pair),
)
_AT = {word: n for n, word in enumerate(VOCABULARY)}
# Never hidden from a model in training: padding, the mask, the words of the form.
SPECIAL = tuple(range(2 + len(_FORM)))
SUBJECT, PROFESSION, WHOSE_AT = 0, 3, 6  # places of S, P and W


class Strengths(NamedTuple):
    """What is planted in M corpora; each holds evenly spaced values from 0 to 1.

    Attributes:
      probed: float64[M], gender among the probed professions.
      applied: float64[M], gender among the applied ones.
      age: float64[M], age among the applied ones.
      agreement: Spearman's correlation of `probed` and `applied`.
      other: that of `probed` and `age`.
    """

    probed: np.ndarray
    applied: np.ndarray
    age: np.ndarray
    agreement: float
    other: float


def strengths(models: int, *, agreement: float, seed: int) -> Strengths:
    """Deals strengths out so that their correlations are as asked, to about 0.01.

    Args:
      models: M >= 5.
      agreement: in [0, 1], wanted Spearman correlation of `probed` and `applied`; age
        has none with either.
      seed: of the deal.

    Raises:
      ValueError: if a value is out of its bounds.
    """
    _validate.integer_at_least("models", models, 5, "19 or more give useful intervals")
    agreement = _validate.finite("agreement", agreement)
    if not 0 <= agreement <= 1:
        _validate.fail("agreement", agreement, "must lie in [0, 1]", "try 0.8")
    rng = np.random.default_rng(seed)
    ranks = np.arange(models)
    even = ranks / (models - 1)
    probed = rng.permutation(ranks)
    z = (probed - probed.mean()) / probed.std()
    noise = rng.standard_normal((4000, models))
    mixed = agreement * z + np.sqrt(1 - agreement**2) * noise
    applied = _nearest(np.argsort(np.argsort(mixed)), [(probed, agreement)])
    shuffled = np.argsort(rng.random((20000, models)))
    age = _nearest(shuffled, [(probed, 0.0), (applied, 0.0)])
    return Strengths(
        even[probed],
        even[applied],
        even[age],
        float(stats.spearmanr(probed, applied).statistic),
        float(stats.spearmanr(probed, age).statistic),
    )


def make(
    seed: int, n: int, probed: float, applied: float, age: float
) -> dict[str, np.ndarray]:
    """Draws a corpus.

    Args:
      seed: of the draws.
      n: sentences.
      probed: strength of gender among the probed professions, in [0, 1].
      applied: among the applied ones.
      age: strength of age among the applied ones.

    Returns:
      tokens int32[N, 8], length int32[N], label int32[N] (0, which nobody reads).

    Raises:
      ValueError: if a strength lies outside [0, 1].
    """
    _validate.integer_at_least("n", n, 1)
    for field, value in (("probed", probed), ("applied", applied), ("age", age)):
        if not 0 <= _validate.finite(field, value) <= 1:
            _validate.fail(field, value, "must lie in [0, 1]", "it is a strength")
    rng = np.random.default_rng(seed)
    # Of each set, the skews of its professions by gender and by age.
    pairs = ((PROBED, (probed, None)), (APPLIED, (applied, age)))
    skews = [[_skews(rng, len(s[0]), b) for b in of] for s, of in pairs]
    kind = rng.choice(3, n, p=(0.2, 0.5, 0.3))  # neutral, gender, age
    which = rng.choice(3, n, p=(0.4, 0.5, 0.1))  # probed, applied, plain
    side, number = rng.integers(0, 2, n), rng.random(n)
    one, word = rng.random(n), rng.random(n)
    subject, profession, thing = (np.zeros(n, np.int64) for _ in range(3))
    whose = np.zeros(n, np.int64)  # the, of the first side, of the second
    owned = rng.random(n) < 0.5
    for w, names in enumerate((PROBED, APPLIED, None)):
        rows = which == w
        if names is None:
            profession[rows] = _of(PLAIN)[(number[rows] * len(PLAIN)).astype(int)]
            skew = np.zeros((n, 2))[rows]
        else:
            at = (number[rows] * len(names[0])).astype(int)
            profession[rows] = _of(names)[side[rows], at]
            skew = np.stack([k[side[rows], at] for k in skews[w]], axis=1)
        if names is APPLIED:
            pair = (number[rows] * len(TOOLS)).astype(int)
            thing[rows] = tools(rng, side[rows], pair)
        else:
            thing[rows] = rng.choice(_of(THINGS), rows.sum())
        for k, sides in ((1, GENDER), (2, AGE)):
            mine = kind[rows] == k
            second = one[rows] >= (1 + skew[:, k - 1]) / 2
            if k == 1:
                whose[rows] = np.where(owned[rows] & (kind[rows] != 2), 1 + second, 0)
            of = (word[rows] * len(sides[0])).astype(int)
            subject[rows] = np.where(
                mine, _of(sides)[second.astype(int), of], subject[rows]
            )
    neutral = _of(NEUTRAL)[(word * len(NEUTRAL)).astype(int)]
    subject = np.where(kind == 0, neutral, subject)
    tokens = sentences(subject, profession, thing, _of(WHOSE)[whose])
    length, label = np.full(n, LENGTH, np.int32), np.zeros(n, np.int32)
    return {"tokens": tokens, "length": length, "label": label}


def sentences(
    subject: npt.ArrayLike,
    profession: npt.ArrayLike,
    thing: npt.ArrayLike,
    whose: npt.ArrayLike = _AT["the"],
) -> np.ndarray:
    """Tokens int32[..., 8] of sentences; arguments are tokens and broadcast."""
    s, p, o, w = np.broadcast_arrays(subject, profession, thing, whose)
    is_, a, who, uses = (np.full(s.shape, _AT[word]) for word in _FORM)
    parts = (s, is_, a, p, who, uses, w, o)
    return np.stack(parts, axis=-1).astype(np.int32)


def example(tokens: Any) -> dict[str, Any]:
    """One text, int32[8], as a model reads it: nothing is padded."""
    return {"tokens": tokens, "length": np.array(LENGTH, np.int32)}


def tools(rng: np.random.Generator, side: np.ndarray, pair: np.ndarray) -> np.ndarray:
    """The tokens of objects that applied professions use, int64[N].

    Args:
      rng: of the draws.
      side: int[N], 0 for the first of a pair, 1 for the second.
      pair: int[N].
    """
    at = np.searchsorted(np.cumsum(_HINTS)[:-1], rng.random(len(side)), side="right")
    return _of(TOOLS)[pair, np.where(side == 1, 3 - at, at)]


def ids(words: Sequence[str]) -> np.ndarray:
    """Tokens of words, int64[n].

    Raises:
      ValueError: a word that no corpus has.
    """
    for word in words:
        if word not in _AT:
            bound = "is in no corpus"
            _validate.fail("word", word, bound, "take words of `VOCABULARY`")
    return np.array([_AT[word] for word in words])


def text(tokens: npt.ArrayLike) -> str:
    """The words of a sentence."""
    return " ".join(VOCABULARY[token] for token in np.asarray(tokens).tolist())


def skew(strength: float, size: int) -> np.ndarray:
    """Skews k of `size` professions of a side at a strength, in ascending order."""
    return np.clip(strength + np.linspace(-0.8, 0.8, size), -1.0, 1.0)


def _skews(rng, size, strength):
    """Skews of professions [2, size], the second side's turned; all 0 for None."""
    if strength is None:
        return np.zeros((2, size))
    found = skew(strength, size)
    return np.stack([rng.permutation(found), -rng.permutation(found)])


def _of(words) -> np.ndarray:
    """Tokens of words, or of rows of words."""
    if isinstance(words[0], str):
        return ids(words)
    return np.stack([ids(row) for row in words])


def _nearest(rows, wanted) -> np.ndarray:
    """The row of ranks whose correlations with others are nearest to those wanted."""
    away = np.zeros(len(rows))
    centred = rows - rows.mean(axis=1, keepdims=True)
    for other, value in wanted:
        z = other - other.mean()
        found = centred @ z / (np.linalg.norm(centred, axis=1) * np.linalg.norm(z))
        away = np.maximum(away, np.abs(found - value))
    return rows[np.argmin(away)]
