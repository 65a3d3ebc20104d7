"""Where the rows of a batch come from: columns on the device, or a chunk each round.

    data, index = feed.place(rows);    batch = {name: take(data[name], index)}

Resident: every column goes to the device once, `data` is the columns and `index` the
rows themselves, so that a round sends integers only. Streamed: the cohort's rows are
gathered into one flat chunk, and `index` points into that. A round is not waited for
before the next is prepared, so that a chunk is gathered while the one before is
computed on, and two exist at a time.
Both give the same values, hence the same bits; only what `index` counts differs.

A chunk holds each row once, sorted, however often it is asked for (epochs, refilled
batches), so that files are read forwards. Its length is a power of two, or the one of
the chunk before where that is larger: programs are compiled for a few lengths only.
Pages of mapped files are handed back after each chunk, so that memory does not grow
with the rounds.

Ragged columns are cut or padded to one length, and bring `<name>_length`, or `length`
where there is but one such column. What a type is narrow for, `widen` makes wide again
inside the compiled step.

Dimension key: N examples, R rows asked for, L tokens, P rows of a chunk.

Example::

    source = feed.open(held, max_lengths={'tokens': 80})
    data, index = source.place(rows)
    batch = {name: column[index] for name, column in data.items()}
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trustml import _validate, parallel
from trustml.federated import flat
from trustml.federated import store as stores

MEMORY_FRACTION = 0.5
_MOST_ROWS = 2**31 - 1  # an index is an int32
_LEAST_CHUNK = 256

Data = dict[str, jax.Array]


class Feed(NamedTuple):
    """See the module docstring.

    Attributes:
      place: rows int[R] -> (columns on the device [N or P, ...], index int32[R] of
        NumPy).
      resident: True if the columns are on the device.
      bytes: what all columns take on the device.
    """

    place: Callable[[Any], tuple[Data, np.ndarray]]
    resident: bool
    bytes: int


def open(
    store: stores.ClientStore,
    *,
    names: Sequence[str] | None = None,
    max_lengths: Mapping[str, int] | None = None,
    resident: bool | None = None,
    memory_fraction: float = MEMORY_FRACTION,
    free_bytes: int | None = None,
    put: Callable[[Any], Any] = jax.device_put,
) -> Feed:
    """The feed of a store.

    Args:
      store: examples of all clients.
      names: columns wanted; all of them where None.
      max_lengths: ragged column -> L, tokens of a row; the end of longer ones is cut.
      resident: True or False to decide; None where the columns shall be resident if
        they fit.
      memory_fraction: of the device's free memory that the columns may take.
      free_bytes: the free memory; asked of the device where None.
      put: places a dict of arrays, on one device or on all.

    Raises:
      ValueError: for a column that no device can hold, a ragged one without length, or
        more than 2**31 - 1 rows that shall be resident.
    """
    share = _validate.in_half_open_interval(
        "memory_fraction", memory_fraction, 0.0, 1.0, "0.5 is usual"
    )
    columns = {name: _column(store, name) for name in names or store.columns}
    lengths = _lengths(columns, dict(max_lengths or {}))
    count = int(store.offsets[-1])
    size = count * sum(_row_bytes(columns[name], lengths, name) for name in columns)
    if resident is None:
        free = parallel.free_bytes() if free_bytes is None else free_bytes
        resident = count <= _MOST_ROWS and size <= share * free
    if resident and count > _MOST_ROWS:
        raise ValueError(
            f"the store's {count} rows are more than an int32 index can tell apart "
            f"({_MOST_ROWS}); set resident=False to stream them."
        )
    if resident:
        return _resident(columns, lengths, count, size, put)
    return _streamed(columns, lengths, count, size, put)


def widen(batch: Mapping[str, jax.Array], scales: Mapping[str, float] | None = None):
    """Columns as models want them: integers int32, other numbers float32.

    Args:
      batch: columns of examples; truth values stay as they are.
      scales: column -> brightest value, such as {'image': 255}: that column becomes
        float32 in [0, 1].
    """
    out, scales = {}, scales or {}
    for name, column in batch.items():
        if name in scales:
            out[name] = column.astype(jnp.float32) / jnp.float32(scales[name])
        elif jnp.issubdtype(column.dtype, jnp.integer):
            out[name] = column.astype(jnp.int32)
        elif jnp.issubdtype(column.dtype, jnp.floating):
            out[name] = column.astype(jnp.float32)
        else:
            out[name] = column
    return out


def _resident(columns, lengths, count, size, put) -> Feed:
    data = put(_gather(columns, lengths, None))

    def place(rows):
        return data, _checked(rows, count).astype(np.int32)

    return Feed(place, True, size)


def _streamed(columns, lengths, count, size, put) -> Feed:
    longest = [_LEAST_CHUNK]

    def place(rows):
        distinct, index = np.unique(_checked(rows, count), return_inverse=True)
        while longest[0] < len(distinct):
            longest[0] *= 2
        # Never written to again: on a CPU the device may share this memory.
        chunk = _gather(columns, lengths, distinct, longest[0])
        for column in columns.values():
            flat.release(column)
        return put(chunk), index.astype(np.int32)

    return Feed(place, False, size)


def _column(store: stores.ClientStore, name: str) -> flat.Column:
    _validate.one_of("column", name, store.columns)
    column = store.columns[name]
    values = column.values if isinstance(column, flat.Ragged) else column
    kind, width = values.dtype.kind, values.dtype.itemsize
    if kind not in "biuf" or (kind in "iu" and width > 4):
        raise ValueError(
            f"columns[{name!r}] is {values.dtype}, which devices do not hold; leave it "
            "out of names, or number its values."
        )
    return column


def _lengths(columns, max_lengths: dict[str, int]) -> dict[str, tuple[int, str]]:
    """Ragged column -> its length and the name of the column of lengths."""
    uneven = [n for n, c in columns.items() if isinstance(c, flat.Ragged)]
    out = {}
    for name in uneven:
        if name not in max_lengths:
            _validate.fail(
                "max_lengths",
                max_lengths,
                f"lacks {name!r}, whose rows differ in length",
                "say how many values of a row to keep",
            )
        limit = _validate.integer_at_least("max_lengths", max_lengths[name], 1)
        own = "length" if len(uneven) == 1 else f"{name}_length"
        if own in columns:
            _validate.fail("column", own, "is made here", f"rename it beside {name!r}")
        out[name] = (limit, own)
    for name in set(max_lengths) - set(uneven):
        _validate.fail("max_lengths", name, "is no ragged column", "leave it out")
    return out


def _row_bytes(column: flat.Column, lengths, name: str) -> int:
    if not isinstance(column, flat.Ragged):
        values, rest = column, 0
    else:
        values, rest = column.values, 4
    width = min(values.dtype.itemsize, 4)  # no 64 bits on the device
    each = int(np.prod(values.shape[1:], dtype=np.int64)) * width
    return each * lengths[name][0] + rest if name in lengths else each


def _gather(columns, lengths, rows: np.ndarray | None, padded: int = 0):
    """The rows (all where None) of every column, followed by zeros up to `padded`."""
    out = {}
    for name, column in columns.items():
        if isinstance(column, flat.Ragged):
            limit, own = lengths[name]
            every = np.arange(len(column.offsets) - 1) if rows is None else rows
            tokens, counts = flat.dense(column, every, limit)
            out[name], out[own] = _pad(tokens, padded), _pad(counts, padded)
        elif rows is None:
            out[name] = _thin(np.asarray(column))
        else:
            chunk = np.zeros((padded, *column.shape[1:]), _thin(column[:0]).dtype)
            chunk[: len(rows)] = column[rows]
            out[name] = chunk
    return out


def _pad(array: np.ndarray, length: int) -> np.ndarray:
    array = _thin(array)
    if length <= len(array):
        return array
    out = np.zeros((length, *array.shape[1:]), array.dtype)
    out[: len(array)] = array
    return out


def _thin(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype == np.float64 else array


def _checked(rows: Any, count: int) -> np.ndarray:
    rows = np.asarray(rows)
    if rows.ndim != 1 or (rows.dtype.kind not in "iu" and len(rows)):
        raise ValueError(
            f"rows={rows.dtype}{list(rows.shape)} must be a flat array of integers."
        )
    if len(rows) and not 0 <= rows.min() <= rows.max() < count:
        wrong = rows[(rows < 0) | (rows >= count)]
        _validate.fail("row", int(wrong[0]), f"must be from 0 to {count - 1}")
    return rows
