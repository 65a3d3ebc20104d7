"""Vectors of words from a text file in the format of GloVe.

A line is a word and its numbers, separated by blanks; `.gz` is fine. Nothing comes with
this package.

Example::

    table = vectors.read('glove50_small.txt.gz', 'vectors')
    table['she'].shape                                                   # (50,)

References: https://doi.org/10.3115/v1/D14-1162
"""

import gzip
import os

import numpy as np

from trustml import _validate


def read(path: str | os.PathLike[str], field: str) -> dict[str, np.ndarray]:
    """Word -> float32[D].

    Args:
      path: of the file.
      field: name of the setting that holds the path, for errors.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: a line that is no word with as many numbers as the first has, or a
        number that is not finite; names the line.
    """
    full = _validate.existing_file(field, path, "give a file in the format of GloVe")
    content = full.read_bytes()
    if full.suffix == ".gz":
        content = gzip.decompress(content)
    table: dict[str, np.ndarray] = {}
    size = 0
    for number, line in enumerate(content.decode("utf-8").splitlines(), 1):
        word, *rest = line.split(" ")
        try:
            vector = np.array(rest, np.float32)
        except ValueError:
            vector = np.zeros(0, np.float32)
        size = size or vector.size
        if not vector.size or vector.size != size or not np.isfinite(vector).all():
            raise ValueError(
                f"{field}={str(path)!r} line {number} is not a word with "
                f"{size or 'its'} finite numbers; separate them by single blanks."
            )
        table[word] = vector
    if not table:
        _validate.fail(field, str(path), "has no vectors", "check the file")
    return table
