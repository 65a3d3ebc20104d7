"""Columns of a store: arrays, or rows that differ in length in one flat array.

    row i of a `Ragged` column = values[offsets[i]:offsets[i+1]]

Text is kept so, as tokens or as bytes, and becomes a rectangle only when a batch is
made (`dense`). Every function takes both kinds, and none loops over rows.

Dimension key: N rows, T values of all rows together, R rows asked for, L length.

Example::

    texts = flat.ragged(['to be', 'or not'])
    tokens, length = flat.dense(texts, np.array([1, 0]), 4)      # [2, 4], [2]
"""

import hashlib
import mmap
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

CHUNK = 1 << 20  # bytes, or elements, worked on at once
_INTEGERS = (np.int8, np.uint8, np.int16, np.uint16, np.int32)


class Ragged(NamedTuple):
    """A column whose rows differ in length: row i is values[offsets[i]:offsets[i+1]].

    Attributes:
      values: [T, ...].
      offsets: int64[N+1], from 0 to T, never falling.
    """

    values: np.ndarray
    offsets: Int[np.ndarray, " rows_and_one"]


Column = np.ndarray | Ragged


def take(column: Column, where: np.ndarray) -> Column:
    """The rows of a column at `where`, int[R]."""
    if not isinstance(column, Ragged):
        return column[where]
    starts = np.asarray(column.offsets[where])
    counts = np.asarray(column.offsets[where + 1]) - starts
    offsets = np.zeros(len(where) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    index = np.repeat(starts - offsets[:-1], counts) + np.arange(offsets[-1])
    return Ragged(column.values[index], offsets)


def dense(column: Ragged, where: np.ndarray, max_length: int):
    """Ragged rows cut or padded with 0, [R, L, ...], and their lengths, int32[R]."""
    starts = np.asarray(column.offsets[where])
    lengths = np.minimum(np.asarray(column.offsets[where + 1]) - starts, max_length)
    shape = (len(where), max_length, *column.values.shape[1:])
    out = np.zeros(shape, column.values.dtype)
    within = np.arange(max_length) < lengths[:, None]
    out[within] = column.values[(starts[:, None] + np.arange(max_length))[within]]
    return out, lengths.astype(np.int32)


def ragged(sequences: Sequence[Any], dtype: Any = None) -> Ragged:
    """A column of sequences; texts become their UTF-8 bytes."""
    parts = [s.encode() if isinstance(s, str) else s for s in sequences]
    lengths = np.fromiter((len(part) for part in parts), np.int64, len(parts))
    offsets = np.zeros(len(parts) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    if all(isinstance(part, bytes) for part in parts):
        return Ragged(np.frombuffer(b"".join(parts), np.uint8), offsets)
    return Ragged(np.concatenate([np.asarray(part, dtype) for part in parts]), offsets)


def narrow(column: Any) -> Column:
    """Integers in the smallest type that holds them, at most 32 bits where possible."""
    if isinstance(column, Ragged):
        return Ragged(_smallest(np.asanyarray(column.values)), column.offsets)
    return _smallest(np.asanyarray(column))


def length(column: Any) -> int:
    """N, how many rows a column has."""
    return len(column.offsets) - 1 if isinstance(column, Ragged) else len(column)


def is_array(column: Any) -> bool:
    """True if NumPy makes numbers or texts of it, and no objects."""
    try:
        return np.asanyarray(column).dtype != object
    except ValueError:  # rows that differ in length
        return False


def digest(array: np.ndarray) -> str:
    """SHA-256 of type, shape and little-endian bytes, read in pieces."""
    kind = array.dtype.newbyteorder("<")
    found = hashlib.sha256(f"{kind.str}{list(array.shape)}".encode())
    for start in range(0, len(array), step := rows_at_once(array)):
        piece = np.ascontiguousarray(array[start : start + step], kind)
        found.update(piece.view(np.uint8).data if piece.size else b"")
        release(array)
    return found.hexdigest()


def release(column: Column) -> None:
    """Hands the pages of a mapped file back to the system; they stay on the disk."""
    parts = column if isinstance(column, Ragged) else (column,)
    for part in parts:
        mapped = part.base
        if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            # Only where nothing is written: changes that are not on the disk would go.
            if not part.flags.writeable:
                mapped.madvise(mmap.MADV_DONTNEED)


def rows_at_once(array: np.ndarray) -> int:
    """How many rows make a piece of about `CHUNK` bytes."""
    each = int(np.prod(array.shape[1:], dtype=np.int64)) * array.dtype.itemsize
    return max(1, CHUNK // max(each, 1))


def _smallest(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "iu" or not array.size:
        return array
    low, high = int(array.min()), int(array.max())
    for kind in _INTEGERS:
        bounds = np.iinfo(kind)
        if bounds.min <= low and high <= bounds.max:
            smaller = np.dtype(kind).itemsize < array.dtype.itemsize
            return array.astype(kind) if smaller else array
    return array
