"""Real people as clients: five public data sets that say whose each example is.

| name | a client is | clients | examples |
| --- | --- | --- | --- |
| shakespeare | a speaker of a play | 1,371 | 30,876 speeches |
| newsgroups20 | an author | 5,819 | 11,314 posts, 20 groups |
| ud_ewt | a document | 540 | 12,544 sentences, their words tagged |
| squad | an article | 38 | 8,583 questions |
| omniglot_small | a drawer | 20 | 5,840 characters, 292 kinds |

These are the training parts; `test` of newsgroups20, ud_ewt and squad is other posts,
documents and articles, the last two with no client in common: a test of new clients.
Files are looked for under `$TRUSTML_DATA/<name>/`; nothing is downloaded. Rows come as
they are; make tokens of the texts, or take `flat.ragged(texts)` for their bytes.

Dimension key: N examples.

Example::

    found = populations.load('shakespeare')
    texts = flat.ragged(found.columns['text'])
    held = store.from_arrays({'text': texts}, found.clients)
"""

import pathlib
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from trustml import _validate
from trustml.data import builders, sources, tables

SPLITS = ("train", "test")


class Population(NamedTuple):
    """Examples with their clients.

    Attributes:
      name: of the data set.
      clients: text or number of each example's client, [N].
      columns: name -> N texts, lists of words, or an array [N, ...].
      source: where the public gets the data.
      licence: in words.
    """

    name: str
    clients: np.ndarray
    columns: dict[str, Any]
    source: str
    licence: str


class _Kind(NamedTuple):
    """How one data set is read: split -> file, and (folder, file) -> rows."""

    files: dict[str, str]
    read: Callable[[pathlib.Path, str], tuple[np.ndarray, dict[str, Any]]]
    origin: str
    licence: str
    beside: tuple[str, ...] = ()


def load(name: str, split: str = "train", *, data_dir: Any = "") -> Population:
    """The examples of a data set and whose they are, in the order of its file.

    Args:
      name: one of `NAMES`.
      split: 'train', or 'test' where there is one.
      data_dir: holds a folder for each set; `$TRUSTML_DATA` where empty.

    Raises:
      ValueError: for an unknown name or split, or a file that is not of its form.
      FileNotFoundError: if a file is not there; says which, where, and its origin.
    """
    kind = _KINDS[_validate.one_of("name", name, NAMES)]
    file = kind.files[_validate.one_of("split", split, kind.files)]
    wanted = sources.Source(
        name, name, (file, *kind.beside), lambda _: {}, kind.origin, kind.licence, ""
    )
    folder = builders.locate(wanted, data_dir)
    clients, columns = kind.read(folder, file)
    return Population(name, clients, columns, kind.origin, kind.licence)


def _rows(folder: pathlib.Path, file: str, names: tuple[str, ...]) -> dict[str, list]:
    table = tables.read(folder / file, file)
    out: dict[str, list] = {name: [] for name in names}
    for n, row in enumerate(table.rows):
        for name in names:
            if name not in row:
                raise table.error(
                    n, f"lacks the column {name!r}; use the published file."
                )
            out[name].append(row[name])
    return out


def _plays(folder: pathlib.Path, file: str):
    found = _rows(folder, file, ("play", "speaker", "text"))
    pairs = zip(found["play"], found["speaker"], strict=True)
    return np.array([f"{play} / {who}" for play, who in pairs]), {"text": found["text"]}


def _posts(folder: pathlib.Path, file: str):
    found = _rows(folder, file, ("id", "author", "subject", "text", "label"))
    # A post without an author is one of an author of its own.
    pairs = zip(found["author"], found["id"], strict=True)
    authors = np.array([who or f"unknown: {number}" for who, number in pairs])
    return authors, {name: found[name] for name in ("subject", "text", "label")}


def _documents(folder: pathlib.Path, file: str):
    found = _rows(folder, file, ("doc", "genre", "tokens", "upos"))
    return np.array(found.pop("doc")), found


def _questions(folder: pathlib.Path, file: str):
    contexts = _rows(
        folder, "v11_contexts.jsonl.gz", ("context_id", "title", "context")
    )
    of = {number: n for n, number in enumerate(contexts["context_id"])}
    names = ("context_id", "question", "answers", "answer_start", "unique")
    found = _rows(folder, file, names)
    places = [of[number] for number in found.pop("context_id")]
    found["context"] = [contexts["context"][n] for n in places]
    return np.array([contexts["title"][n] for n in places]), found


def _characters(folder: pathlib.Path, file: str):
    try:
        with np.load(folder / file, allow_pickle=False) as arrays:
            bits = np.unpackbits(arrays["images"], axis=1)[:, : 105 * 105]
            label, drawer = arrays["label"], arrays["drawer"]
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{file}={str(folder / file)!r} does not hold images, label and drawer as "
            f"NumPy arrays ({error}); copy the file again."
        ) from error
    return drawer, {"image": bits.reshape(-1, 105, 105, 1), "label": label}


_BOTH = {split: f"{split}.jsonl.gz" for split in SPLITS}
_KINDS = {
    "shakespeare": _Kind(
        {"train": "plays.jsonl.gz"},
        _plays,
        "github.com/TheMITTech/shakespeare",
        "public domain",
    ),
    "newsgroups20": _Kind(
        _BOTH,
        _posts,
        "qwone.com/~jason/20Newsgroups (20news-bydate)",
        "none stated; research use",
    ),
    "ud_ewt": _Kind(
        _BOTH,
        _documents,
        "github.com/UniversalDependencies/UD_English-EWT",
        "CC BY-SA 4.0",
    ),
    "squad": _Kind(
        {split: f"v11_{split}.jsonl.gz" for split in SPLITS},
        _questions,
        "github.com/rajpurkar/SQuAD-explorer (dev set of v1.1)",
        "CC BY-SA 4.0",
        ("v11_contexts.jsonl.gz",),
    ),
    "omniglot_small": _Kind(
        {"train": "omniglot_small.npz"},
        _characters,
        "github.com/brendenlake/omniglot (images_background_small1 and 2)",
        "MIT",
    ),
}
NAMES = tuple(_KINDS)
