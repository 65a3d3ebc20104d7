"""Paragraphs of Wikipedia as people write them, to learn a language model from.

| name | train | held out |
|---|---|---|
| wikitext2 | paragraphs of the test part | of the validation part |
| squad | paragraphs that questions were asked about | |

WikiText-2 comes word by word (' , ', ' @-@ ') with rare words replaced by a mark. The
spaces are taken back, and sentences with the mark are left out, so that no model learns
to write it; that leaves three sentences of ten. Its training part is not read: the
published test part serves for training and the validation part for scoring, which is no
benchmark of anybody's.

Found under `$TRUSTML_DATA`, never downloaded; CC BY-SA.

Example::

    found = prose.read(('wikitext2', 'squad'))
    found.train[0], len(found.held_out)

References: https://arxiv.org/abs/1609.07843, https://arxiv.org/abs/1606.05250
"""

import gzip
import os
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

from trustml import _validate
from trustml.data import tables

NAMES = ("wikitext2", "squad")
_UNKNOWN = "<unk>"
_SENTENCE = re.compile(r"(?<= [.!?]) ")
_JOINED = re.compile(r" @(.)@ ")
_BEFORE = re.compile(r" ([.,;:!?%)\]]|'s\b|n't\b|'\w{1,2}\b)")
_AFTER = re.compile(r"([(\[$£]) ")
_QUOTED = re.compile(r'" ([^"]*?) "')


class Prose(NamedTuple):
    """Paragraphs.

    Attributes:
      train: to learn from.
      held_out: to score on.
    """

    train: list[str]
    held_out: list[str]


def read(names: Sequence[str] = NAMES, data_dir: str = "") -> Prose:
    """Paragraphs of one corpus or of several.

    Args:
      names: of `NAMES`; 'wikitext2', which alone has something held out, among them.
      data_dir: holds a folder for each; `$TRUSTML_DATA` where empty.

    Raises:
      FileNotFoundError: a file is not there; says where it comes from.
      ValueError: an unknown name, or nothing held out.
    """
    for name in names:
        _validate.one_of("names", name, NAMES)
    if "wikitext2" not in names:
        bound = "has nothing held out to score on"
        _validate.fail("names", tuple(names), bound, "add 'wikitext2'")
    root = pathlib.Path(data_dir or os.environ.get("TRUSTML_DATA", ""))
    train, held_out = (
        _wikitext(root / "wikitext2" / f"{part}.txt.gz") for part in ("test", "valid")
    )
    if "squad" in names:
        field = "squad under data_dir or $TRUSTML_DATA"
        path = root / "squad" / "v11_contexts.jsonl.gz"
        _validate.existing_file(field, path, "it is made of SQuAD 1.1's dev set")
        rows = tables.read_columns(path, field, ("context",)).rows
        train += [" ".join(row["context"].split()) for row in rows]
    return Prose(train, held_out)


def plain(text: str) -> str:
    """A line of WikiText with the spaces that people would write.

    'He paid $ 2 @,@ 000 , " half " .' -> 'He paid $2,000, "half".'
    """
    text = _JOINED.sub(r"\1", text)
    text = _QUOTED.sub(r'"\1"', text)
    text = _BEFORE.sub(r"\1", text)
    return " ".join(_AFTER.sub(r"\1", text).split())


def _wikitext(path: pathlib.Path) -> list[str]:
    field = "wikitext2 under data_dir or $TRUSTML_DATA"
    cure = "it is WikiText-2, valid and test, as in github.com/pytorch/examples"
    content = gzip.decompress(_validate.existing_file(field, path, cure).read_bytes())
    out = []
    for line in content.decode().splitlines():
        line = line.strip()
        if not line or line.startswith("="):
            continue
        kept = [s for s in _SENTENCE.split(line) if _UNKNOWN not in s]
        if kept:
            out.append(plain(" ".join(kept)))
    return out
