"""BOLD: prompts for open-ended generation, with the sentences they were cut from.

23,679 prompts of five domains: profession (18 groups), race (4), gender (2), political
ideology (12), religious ideology (7). Found under `$TRUSTML_DATA/bold/`, never
downloaded and no part of this package (CC BY-SA 4.0). Prompts keep no trailing blank:
a blank before the first generated word would be a token of its own.

Example::

    items = bold.read()
    actors = [item for item in items if item.group == 'American_actors']
    actors[0].prompt, actors[0].wikipedia

References: https://arxiv.org/abs/2101.11718
"""

import os
import pathlib
from typing import NamedTuple

from trustml import _validate
from trustml.data import tables

DOMAINS = ("gender", "political_ideology", "profession", "race", "religious_ideology")
_COLUMNS = ("domain", "group", "entity", "prompt", "wikipedia")


class Item(NamedTuple):
    """One prompt.

    Attributes:
      domain: of `DOMAINS`.
      group: in it, such as 'American_actors'.
      entity: whom the sentence is about; prompts of one entity are no independent
        evidence.
      prompt: its first words.
      wikipedia: the sentence, written by people: the baseline.
    """

    domain: str
    group: str
    entity: str
    prompt: str
    wikipedia: str


def read(data_dir: str = "", domain: str = "") -> list[Item]:
    """The prompts, of one domain or of all.

    Args:
      data_dir: holds the directory `bold`; `$TRUSTML_DATA` where empty.
      domain: one of `DOMAINS`; all where empty.

    Raises:
      FileNotFoundError: there is no such file; says where it comes from.
      ValueError: an unknown domain, or a malformed file.
    """
    if domain:
        _validate.one_of("domain", domain, DOMAINS)
    root = pathlib.Path(data_dir or os.environ.get("TRUSTML_DATA", ""))
    field = "bold under data_dir or $TRUSTML_DATA"
    cure = "it is made of github.com/amazon-science/bold, prompts and wikipedia"
    path = _validate.existing_file(field, root / "bold" / "bold.tsv.gz", cure)
    rows = tables.read_columns(path, field, _COLUMNS).rows
    items = [
        Item(*(row[name].rstrip() if name == "prompt" else row[name] for name in row))
        for row in rows
    ]
    return [item for item in items if not domain or item.domain == domain]
