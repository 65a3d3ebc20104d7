"""Readers of the text corpora whose examples are more than a text with a label.

    tagging:  text, slots          words and a tag for each
    span:     text, second, span, references       where in the text the answer stands
    seq2seq:  text, second, references             what is to be written

Each row has a `label` too, by which partitions and reports may sort the examples: a
property that is in the example itself, no target of training.

| corpus | label | user |
| --- | --- | --- |
| newsgroups20 | group, the target | author |
| wnut17 | type of the first entity, or none | |
| ud_ewt | genre | document |
| squad | word that asks: what, how, who, ... | article |
| e2e_nlg | range of prices, or none | |

`references` is JSON text, a list: of a question its answers; of a meaning all sentences
that were written for it. Test of e2e_nlg repeats some names of train, never a meaning.

Example::

    rows = corpora.squad(pathlib.Path('data/squad'))['train']
    row = rows[0]
    row['text'][slice(*row['span'])]          # the first of the answers
"""

import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from trustml.data import tables

Rows = dict[str, list[dict[str, Any]]]

NONE = "none"
ENTITIES = (
    *("corporation", "creative-work", "group", "location", "person", "product"),
    NONE,
)
GENRES = ("answers", "email", "newsgroup", "reviews", "weblog")
ASKING = ("how", "what", "when", "where", "which", "who", "why", "other")
PRICES = (
    *("cheap", "moderate", "high"),
    *("less than £20", "£20-25", "more than £30"),
    NONE,
)
_ALSO_WHO = {"whose": "who", "whom": "who"}
_ATTRIBUTE = re.compile(r"\s*([^\[\],]+)\[([^\]]*)\]")


def newsgroups20(folder: pathlib.Path) -> Rows:
    """Posts: subject and body, of 20 groups; who has no name is a user alone."""
    out = {}
    for split in ("train", "test"):
        name = f"{split}.jsonl.gz"
        columns = ("id", "author", "subject", "text", "label")
        out[split] = [
            {
                "text": f"{row['subject']}\n{row['text']}",
                "label": row["label"],
                "user": row["author"] or f"unknown: {row['id']}",
            }
            for row in tables.read_columns(folder / name, name, columns).rows
        ]
    return out


def wnut17(folder: pathlib.Path) -> Rows:
    """Posts of the web with their rare entities, in BIO tags of six types."""
    return _tagged(folder, "ner", _first_entity)


def ud_ewt(folder: pathlib.Path) -> Rows:
    """Sentences with universal parts of speech, by document."""

    def about(row):
        return {"label": row["genre"], "user": row["doc"]}

    return _tagged(folder, "upos", about, ("genre", "doc"))


def squad(folder: pathlib.Path) -> Rows:
    """Questions, each with a paragraph, an answer's place in it and all answers."""
    file = "v11_contexts.jsonl.gz"
    columns = ("context_id", "title", "context")
    found = tables.read_columns(folder / file, file, columns).rows
    contexts = {row["context_id"]: row for row in found}
    out: Rows = {}
    for split in ("train", "test"):
        name = f"v11_{split}.jsonl.gz"
        columns = ("context_id", "question", "answers", "answer_start")
        table = tables.read_columns(folder / name, name, columns)
        out[split] = []
        for n, row in enumerate(table.rows):
            if row["context_id"] not in contexts or not row["answers"]:
                raise table.error(
                    n, "has no paragraph or no answer; use the published files."
                )
            start = int(row["answer_start"][0])
            context = contexts[row["context_id"]]
            out[split].append(
                {
                    "text": context["context"],
                    "second": row["question"],
                    "span": np.array([start, start + len(row["answers"][0])], np.int32),
                    "references": json.dumps(row["answers"]),
                    "label": asking(row["question"]),
                    "user": context["title"],
                }
            )
    return out


def e2e_nlg(folder: pathlib.Path) -> Rows:
    """Meanings of restaurants and sentences that say them; train is the dev file."""
    out = {}
    for split, part in (("train", "dev"), ("test", "test")):
        name = f"{part}.tsv.gz"
        rows = tables.read_columns(folder / name, name, ("mr", "ref")).rows
        said: dict[str, list[str]] = {}
        for row in rows:
            said.setdefault(row["mr"], []).append(row["ref"])
        out[split] = [
            {
                "text": row["mr"],
                "second": row["ref"],
                "references": json.dumps(said[row["mr"]]),
                "label": attributes(row["mr"]).get("priceRange", NONE),
            }
            for row in rows
        ]
    return out


def asking(question: str) -> str:
    """The first word of `ASKING` that a question holds, such as 'what'."""
    for word in re.findall(r"\w+", question.lower()):
        word = _ALSO_WHO.get(word, word)
        if word in ASKING[:-1]:
            return word
    return "other"


def attributes(meaning: str) -> dict[str, str]:
    """'name[Zizzi], area[riverside]' -> {'name': 'Zizzi', 'area': 'riverside'}."""
    return {key.strip(): value for key, value in _ATTRIBUTE.findall(meaning)}


def _tagged(folder, column: str, about, more: tuple[str, ...] = ()) -> Rows:
    out = {}
    for split, part in (("train", "train"), ("valid", "dev"), ("test", "test")):
        name = f"{part}.jsonl.gz"
        table = tables.read_columns(folder / name, name, ("tokens", column, *more))
        out[split] = []
        for n, row in enumerate(table.rows):
            words, tags = row["tokens"], row[column]
            if len(words) != len(tags) or any(" " in word for word in words):
                raise table.error(
                    n, "has not one tag for each word; use the published file."
                )
            text = {"text": " ".join(words), "slots": " ".join(tags)}
            out[split].append(text | about(row))
    return out


def _first_entity(row: Mapping[str, Any]) -> dict[str, str]:
    kinds = (tag.partition("-")[2] for tag in row["ner"] if tag != "O")
    return {"label": next(kinds, NONE)}
