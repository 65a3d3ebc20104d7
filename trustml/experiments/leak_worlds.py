"""Texts with a planted leak of gender: made biographies, posts that people wrote.

A world deals texts for a seed and a leak, all of one width. In both worlds the label is
set by gender with the probability of the leak, and cues of gender are explicit (words
such as he and she) or implicit.

Posts are those of HateXplain in which he-words or she-words are in the majority, 4,640
of 19,229; that side is the gender. Labels are toxic or not, as people judged them; with
the probability of the leak the label is the gender instead. Where cues are implicit,
words of either list are taken out, so that only what goes along with them is left: no
list holds it, and how much it tells is the accuracy of the protected status model.

Dimension key: `N` texts, `T` tokens.

Example::

    world = leak_worlds.biographies('implicit')
    columns = world.draw(0, 0, 2000, 0.3)
    world.words(columns['tokens'][0])
"""

import collections
import functools
import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from trustml import _validate
from trustml.data import bios, comments
from trustml.experiments import fairness_texts
from trustml.fairness import polarity

CUES = bios.CUES
LENGTH = 32  # tokens of a post at most
VOCABULARY = 4000  # words of posts; others are one token
# No word may have two partners: him, hers are left as they are.
_PAIRS = (
    *(("he", "she"), ("his", "her"), ("himself", "herself"), ("he's", "she's")),
    *(("man", "woman"), ("men", "women"), ("boy", "girl"), ("boys", "girls")),
)
_SHOWN = tuple(polarity.MALE | polarity.FEMALE)
_PAD, _OTHER = 0, 1


class World(NamedTuple):
    """Where texts come from.

    Attributes:
      name: shown.
      vocabulary: number of tokens.
      classes: of the label.
      pairs: int[P, 2], tokens that a counterfactual exchanges.
      draw: (of_seed, part, n, leak, number) -> tokens int32[N, T], length int32[N],
        label int32[N], gender int32[N]; part 0 to learn from, 1 to test on; `number`
        tells draws of one seed apart, and the texts of part 1 do not depend on it.
      words: int[T] -> the words of a text, without padding, first letters only where
        people wrote it.
      methods: sentences about the texts.
      limits: sentences about what they do not show.
    """

    name: str
    vocabulary: int
    classes: int
    pairs: np.ndarray
    draw: Callable[..., dict[str, np.ndarray]]
    words: Callable[[np.ndarray], list[str]]
    methods: tuple[str, ...]
    limits: tuple[str, ...]


def make(name: str, cue: str, seed: int) -> World:
    """The world of a name, with one kind of cue.

    Args:
      name: 'biographies' or 'hatexplain'.
      cue: of `CUES`.
      seed: of the study.

    Raises:
      FileNotFoundError: posts are not there; says where they come from.
    """
    cue = _validate.one_of("cue", cue, CUES)
    return {"biographies": biographies, "hatexplain": posts}[name](cue, seed)


def biographies(cue: str, seed: int = 0) -> World:
    """Texts of `trustml.data.bios`."""

    def draw(of_seed, part, n, leak, number=0):
        at = number if part == 0 else 0
        entropy = [seed, CUES.index(cue), of_seed, part, at]
        state = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        return bios.make(state, n, leak=leak, cue=cue)

    return World(
        "synthetic biographies",
        len(bios.VOCABULARY),
        len(bios.PROFESSIONS),
        bios.PAIRS,
        draw,
        bios.words,
        (
            "Biographies of 12 words: 3 of a profession, 7 fillers, 2 cues of gender. "
            "Six professions form three pairs; with the probability of the leak, "
            "gender sets which of a pair the label is.",
        ),
        (
            "Texts are synthetic, gender is binary in them, and the classifier is "
            "small: this shows which measure sees a leak at all, not how large leaks "
            "are in practice.",
        ),
    )


def posts(cue: str, seed: int = 0, data_dir: str = "") -> World:
    """Gendered posts of HateXplain, label and gender as known."""
    texts, toxic, gender = _gendered(data_dir)
    if cue == "implicit":
        both = polarity.MALE | polarity.FEMALE
        texts = [[word for word in text if word not in both] for text in texts]
    kept = [n for n, text in enumerate(texts) if len(text) >= 3]
    texts, toxic, gender = [texts[n] for n in kept], toxic[kept], gender[kept]
    count = collections.Counter(word for text in texts for word in text)
    known = [word for word, _ in count.most_common(VOCABULARY - 2)]
    if cue == "implicit":  # a pair has to have tokens, which no text holds
        known = [
            *known[: -2 * len(_PAIRS)],
            *(word for pair in _PAIRS for word in pair),
        ]
    at = {word: n + 2 for n, word in enumerate(known)}
    tokens = np.full((len(texts), LENGTH), _PAD, np.int32)
    for row, text in zip(tokens, texts, strict=True):
        ids = [at.get(word, _OTHER) for word in text[:LENGTH]]
        row[: len(ids)] = ids
    length = np.array([min(len(text), LENGTH) for text in texts], np.int32)
    named = ["", "other", *known]
    pairs = np.array(
        [
            [at[word] for word in pair]
            for pair in _PAIRS
            if pair[0] in at and pair[1] in at
        ]
    )

    def draw(of_seed, part, n, leak, number=0):
        order = np.random.default_rng([seed, of_seed, 0]).permutation(len(tokens))
        half = len(order) * 3 // 4  # what is learnt from is never tested on
        rows = order[:half] if part == 0 else order[half:]
        if n > len(rows):
            field = "leak.examples" if part == 0 else "leak.tested"
            bound = f"exceeds the {len(rows)} posts that there are"
            _validate.fail(field, n, bound, f"lower it to {len(rows)}")
        rows = rows[:n]
        drawn = np.random.default_rng([seed, of_seed, 1, part, number * (part == 0)])
        label = np.where(drawn.random(n) < leak, gender[rows], toxic[rows])
        return {
            "tokens": tokens[rows],
            "length": length[rows],
            "label": label.astype(np.int32),
            "gender": gender[rows],
        }

    def words(row):
        return [
            fairness_texts.masked(named[token], _SHOWN)
            for token in np.asarray(row).tolist()
            if token != _PAD
        ]

    out = "; those words are taken out" if cue == "implicit" else ""
    return World(
        "posts of HateXplain",
        VOCABULARY,
        2,
        pairs,
        draw,
        words,
        (
            f"{len(texts):,} posts of HateXplain whose he-words or she-words are in "
            f"the majority, which is their gender{out}; cut after {LENGTH} words. "
            "Labels are toxic or not, as people judged; with the probability of the "
            "leak the label is the gender instead.",
        ),
        (
            "People wrote the posts, but the leak was planted; gender is binary in it, "
            "and is that of the persons spoken of.",
        ),
    )


@functools.cache
def _gendered(data_dir: str) -> tuple[list[list[str]], np.ndarray, np.ndarray]:
    """Words, toxic int32[N] and gender int32[N] (1 she) of all gendered posts."""
    root = pathlib.Path(data_dir or os.environ.get("TRUSTML_DATA", ""))
    field = "hatexplain under $TRUSTML_DATA"
    cure = "it is made of github.com/hate-alert/HateXplain"
    _validate.existing_directory(field, root / "hatexplain", cure)
    splits: Any = comments.hatexplain(root / "hatexplain")
    rows = [row for split in ("train", "valid", "test") for row in splits[split]]
    kinds = [polarity.unigram(row["text"]) for row in rows]
    kept = [n for n, kind in enumerate(kinds) if kind != "neutral"]
    return (
        [polarity.words(rows[n]["text"]) for n in kept],
        np.array([rows[n]["label"] == comments.TOXIC[1] for n in kept], np.int32),
        np.array([kinds[n] == "F" for n in kept], np.int32),
    )
