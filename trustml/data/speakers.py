"""The plays of Shakespeare by speaker, in windows of characters, for language models.

A client is a (play, speaker). Its speeches, in the order of the play and with a line
end between two, are cut into windows of T characters; of each client's windows the last
fifth are for testing and the tenth before them for validation, as in LEAF. `label` is
the number of the speaker, so that figures can be told by client.

    $TRUSTML_DATA/shakespeare/plays.jsonl.gz     play, speaker, text: a speech a row

Example::

    data = speakers.load(max_length=80)
    data.train['tokens'].shape, data.user_ids[0]

References: https://arxiv.org/abs/1812.01097 (LEAF).
"""

import hashlib
import os
import pathlib
import string

import numpy as np

from trustml import _validate
from trustml.data import dataset, tables, tokenizers

NAME, FILE = "shakespeare", "plays.jsonl.gz"
TEST, VALID = 0.2, 0.1  # shares of each client's windows


def load(
    *, max_length: int = 80, limit: int = 0, seed: int = 0, data_dir: str = ""
) -> dataset.Dataset:
    """The plays as a data set.

    Args:
      max_length: T, characters of a window.
      limit: windows kept of every split, chosen at random with `seed`; 0 keeps all.
      seed: of that choice.
      data_dir: holds the folder `shakespeare`; `$TRUSTML_DATA` where empty.

    Raises:
      FileNotFoundError: if the file is not there.
      ValueError: if it is not as described, or an argument is out of its bounds.
    """
    length = _validate.integer_at_least("data.max_length", max_length, 1, "80 is usual")
    limit = _validate.integer_at_least("data.limit", limit, 0, "0 keeps all")
    root = pathlib.Path(data_dir or os.environ.get("TRUSTML_DATA", ""))
    cure = "it is made of the plays of github.com/TheMITTech/shakespeare"
    path = _validate.existing_file("data.name='shakespeare'", root / NAME / FILE, cure)
    found = tables.read(path, "data.name='shakespeare'")
    for column in ("play", "speaker", "text"):
        tables.require(found, "column", column)
    digest = hashlib.sha256(found.content).hexdigest()
    speeches: dict[str, list[str]] = {}
    for row in found.rows:
        client = f"{row['play']}: {row['speaker']}"
        speeches.setdefault(client, []).append(str(row["text"]))
    names = tuple(sorted(speeches))
    texts: dict[str, list[str]] = {part: [] for part in dataset.SPLITS}
    labels: dict[str, list[int]] = {part: [] for part in dataset.SPLITS}
    for number, client in enumerate(names):
        said = "\n".join(speeches[client])
        windows = [said[at : at + length] for at in range(0, len(said), length)]
        tested = int(TEST * len(windows))
        valid = int(VALID * len(windows))
        cuts = (0, len(windows) - tested - valid, len(windows) - tested, len(windows))
        for part, begin, end in zip(dataset.SPLITS, cuts[:-1], cuts[1:], strict=True):
            texts[part] += windows[begin:end]
            labels[part] += [number] * (end - begin)
    splits = {}
    for part in dataset.SPLITS:
        of_part = np.array(labels[part], np.int32)
        whole = dataset.Split(
            labels=of_part, texts=texts[part], users=[names[n] for n in of_part]
        )
        splits[part] = dataset.subset(whole, limit, seed)
    return dataset.assemble(
        splits,
        label_names=names,
        max_length=length,
        tokenizer=tokenizers.characters(string.printable),
        length_edges=(16,),
        digest_of=(NAME, str(limit), str(seed if limit else 0), digest),
        name=NAME,
        source="github.com/TheMITTech/shakespeare (Moby edition)",
        licence="public domain",
    )
