"""Comments that are toxic or not, and whom they name: HateXplain and Wikipedia talk.

| reader | train / valid / test | whom |
| --- | --- | --- |
| `hatexplain` | 15,383 / 1,922 / 1,924 posts | ten communities; not known in train |
| `toxicity` | 10,000 / 1,492 / 2,180 comments | any of 50 identity terms, or none |
| `templates` | 76,564 made-up phrases, for evaluation alone | each of the 50 terms |

HateXplain: toxic is hate or offensive, by the majority of three people. A community is
named if two of the three said so; a post may name several, or none. Every community is
a group of its own with the values 'not named' and 'named' (`MENTION`); in train it is
-1, unknown, because the published targets cover a biased part of it.

Toxicity: a seeded permutation of the balanced 12,180 comments; the validation split is
the 1,492 comments that people labelled for Dixon et al. A term counts if it stands as a
whole word, in any case. The 76,564 phrases fill templates with the terms: a toxic and a
non-toxic use of each, so what differs between terms is the model's doing.

The texts are offensive, slurs included; mask them where they are shown.

Sources: Mathew et al. 2021, arXiv:2012.10289; Dixon et al. 2018,
https://doi.org/10.1145/3278721.3278729; Wulczyn et al. 2017, arXiv:1610.08914.

Example::

    made = comments.templates(folder)
    member = comments.mentions(made.texts, made.terms)       # bool[n, 50]
"""

import pathlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from trustml.data import tables

Rows = dict[str, list[dict[str, Any]]]

COMMUNITIES = (
    *("African", "Islam", "Jewish", "Homosexual", "Women"),
    *("Refugee", "Arab", "Caucasian", "Asian", "Hispanic"),
)
MENTION = ("not named", "named")
UNKNOWN = -1
TOXIC = ("not toxic", "toxic")
ANY_TERM = ("no identity term", "an identity term")
HATEXPLAIN_GROUPS = {name: MENTION for name in COMMUNITIES}
TOXICITY_GROUPS = {"identity": ANY_TERM}
TOXICITY_FILES = (
    *("wiki_comments.jsonl.gz", "wiki_nonfuzzed.jsonl.gz"),
    *("adjectives_people.txt", "templates_en.tsv.gz"),
)
_TRAIN, _SEED, _AGREE = 10_000, 0, 2


class Templates(NamedTuple):
    """Phrases made of templates.

    Attributes:
      texts: of every phrase.
      labels: bool[n], toxic.
      terms: the identity terms.
      clusters: int32[n], phrases that differ by their term alone share a number.
    """

    texts: list[str]
    labels: np.ndarray
    terms: tuple[str, ...]
    clusters: np.ndarray


def hatexplain(folder: pathlib.Path) -> Rows:
    """Posts with the communities that they name."""
    out = {}
    for split in ("train", "valid", "test"):
        file = f"{split}.jsonl.gz"
        needs = (
            ("text", "label") if split == "train" else ("text", "label", "annotators")
        )
        table = tables.read_columns(folder / file, file, needs)
        out[split] = []
        for n, row in enumerate(table.rows):
            if row["label"] not in ("normal", "offensive", "hatespeech"):
                raise table.error(
                    n, f"has label={row['label']!r}; use the published file."
                )
            named = dict.fromkeys(COMMUNITIES, UNKNOWN)
            if split != "train":
                said = row["annotators"]["target"]
                named = {
                    name: int(sum(name in one for one in said) >= _AGREE)
                    for name in COMMUNITIES
                }
            label = TOXIC[row["label"] != "normal"]
            text = " ".join(row["text"].split())
            out[split].append({"text": text, "label": label, **named})
    return out


def toxicity(folder: pathlib.Path) -> Rows:
    """Comments of Wikipedia's talk pages."""
    pattern = _any(terms(folder))

    def row_of(text: str, toxic: bool) -> dict[str, Any]:
        named = pattern.search(text.lower()) is not None
        return {"text": text, "label": TOXIC[bool(toxic)], "identity": int(named)}

    def rows(name: str, label: str):
        table = tables.read_columns(folder / name, name, ("text", label))
        return [row_of(row["text"], int(row[label]) == 1) for row in table.rows]

    found = rows("wiki_comments.jsonl.gz", "label")
    order = np.random.default_rng(_SEED).permutation(len(found))
    return {
        "train": [found[n] for n in order[:_TRAIN]],
        "valid": rows("wiki_nonfuzzed.jsonl.gz", "toxic"),
        "test": [found[n] for n in order[_TRAIN:]],
    }


def terms(folder: pathlib.Path) -> tuple[str, ...]:
    """The 50 identity terms, in the order of the file."""
    lines = (folder / "adjectives_people.txt").read_text().splitlines()
    return tuple(line.strip().lower() for line in lines if line.strip())


def templates(folder: pathlib.Path) -> Templates:
    """The phrases, each with the number of its template."""
    name = "templates_en.tsv.gz"
    table = tables.read_columns(folder / name, name, ("toxicity", "phrase"))
    found, texts = terms(folder), [row["phrase"] for row in table.rows]
    pattern, numbers = _any(found), {}
    clusters = [
        numbers.setdefault(pattern.sub("*", text.lower()), len(numbers))
        for text in texts
    ]
    labels = np.array([row["toxicity"] == "toxic" for row in table.rows])
    return Templates(texts, labels, found, np.array(clusters, np.int32))


def mentions(texts: Sequence[str], terms: Sequence[str]) -> np.ndarray:
    """bool[n, I]: which texts hold which term as a whole word, in any case."""
    patterns = [re.compile(rf"\b{re.escape(term)}\b") for term in terms]
    lowered = [text.lower() for text in texts]
    out = np.zeros((len(texts), len(terms)), bool)
    for i, (term, pattern) in enumerate(zip(terms, patterns, strict=True)):
        out[:, i] = [term in text and bool(pattern.search(text)) for text in lowered]
    return out


def _any(terms: Sequence[str]) -> re.Pattern[str]:
    """Any of the terms as a whole word, the longest first."""
    longest = sorted(terms, key=len, reverse=True)
    return re.compile(r"\b(?:" + "|".join(map(re.escape, longest)) + r")\b")
