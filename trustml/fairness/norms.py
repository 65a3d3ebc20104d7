"""Ratings of words (valence, arousal, dominance) carried over to texts.

Of the rated words w of a text, with ratings r_w in [-1, 1] after the middle of the
scale is taken away,

    score = sum_w sgn(r_w) r_w^2 / sum_w |r_w|

so words of strong feeling count more than the many neutral ones. No lexicon comes with
this package, since published ones may not be passed on: give a table of your own.

Example::

    rated = norms.read('vad.tsv', 'generation.ratings')       # word, valence, ...
    norms.score('a happy funeral', rated.columns['valence'])  # value, coverage

Source: the weighted mean of BOLD, Dhamala et al. 2021,
https://arxiv.org/abs/2101.11718.
"""

import math
import os
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from trustml import _validate
from trustml.data import tables
from trustml.fairness import polarity


class Ratings(NamedTuple):
    """A table of rated words.

    Attributes:
      columns: name of a norm -> word -> rating in [-1, 1], of words texts can hold.
      middle: name of a norm -> the rating that became 0.
      unmatched: words of the table that no word of a text is ever equal to: of several
        words, or with other letters than a to z.
    """

    columns: dict[str, dict[str, float]]
    middle: dict[str, float]
    unmatched: tuple[str, ...]


class Score(NamedTuple):
    """Of a text.

    Attributes:
      value: in [-1, 1]; nan without a rated word.
      coverage: share of the words that are rated; nan without words.
    """

    value: float
    coverage: float


def read(path: str | os.PathLike[str], field: str) -> Ratings:
    """Reads a table with a column `word` and columns of numbers.

    The middle of a scale is taken to be halfway between its smallest and its largest
    rating in the table. Words are compared in lower case, as `polarity.words` splits
    texts into them.

    Args:
      path: of a TSV, CSV or JSONL file with a header.
      field: name of the setting, for errors.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: no column `word`, no column of numbers, a rating that is none, a word
        with two ratings, or no word that a text can hold.
    """
    table = tables.read(path, field)
    tables.require(table, field, "word")
    names = [name for name in table.columns if name != "word"]
    if not names:
        _validate.fail(field, str(path), "has no column beside 'word'", "add ratings")
    words = [str(row["word"]).strip().lower() for row in table.rows]
    known = {word for word in words if polarity.words(word) == [word]}
    if not known:
        bound = "has no word of letters from a to z"
        _validate.fail(field, str(path), bound, "rate words that texts can hold")
    columns, middle = {}, {}
    for name in names:
        raw: dict[str, float] = {}
        line: dict[str, int] = {}
        for n, row in enumerate(table.rows):
            try:
                rating = float(row[name])
            except (TypeError, ValueError):
                rating = math.nan
            if not math.isfinite(rating):
                raise table.error(n, f"has {name}={row[name]!r}; write a number.")
            word = words[n]
            if raw.setdefault(word, rating) != rating:
                bound = f"rates {word!r} {rating:g} in column {name!r}, which line "
                raise table.error(
                    n, f"{bound}{line[word]} rates {raw[word]:g}; keep one of them."
                )
            line.setdefault(word, table.lines[n])
        low, high = min(raw.values()), max(raw.values())
        if low == high:
            bound = f"rates every word alike in column {name!r}"
            _validate.fail(field, str(path), bound, "leave the column out")
        middle[name] = (low + high) / 2
        half = (high - low) / 2
        columns[name] = {
            w: (r - middle[name]) / half for w, r in raw.items() if w in known
        }
    return Ratings(
        columns, middle, tuple(dict.fromkeys(w for w in words if w not in known))
    )


def score(text: str, ratings: Mapping[str, float]) -> Score:
    """Of the words that are rated, the mean weighted by how far they are from 0.

    Args:
      text: any.
      ratings: word in lower case -> rating in [-1, 1].
    """
    words = polarity.words(text)
    nan = float("nan")
    if not words:
        return Score(nan, nan)
    found = np.array([ratings[w] for w in words if w in ratings], float)
    coverage = found.size / len(words)
    if not found.size:
        return Score(nan, coverage)
    total = float(np.abs(found).sum())
    value = float((np.sign(found) * found**2).sum() / total) if total else 0.0
    return Score(value, coverage)
