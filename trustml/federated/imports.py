"""Client stores from a user's file, a prepared data set, or a TFDS data source.

    held, data = imports.from_file('reviews.csv', client_column='author',
                                   text_column='review', label_column='stars')
    held = imports.from_source(builder.as_data_source('train'), 'speaker', time='scene')

A file is read by `trustml.data.files`, with its checks of every line. Text becomes
tokens there; in a data source it becomes its UTF-8 bytes, a `flat.Ragged` column,
which a character model takes as it is.

Example::

    held = imports.from_dataset(files.load('reviews.csv', user_column='author'))
    store.sizes(held)
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from trustml import _validate
from trustml.data import dataset, files, tables
from trustml.federated import flat, store

_CHUNK = 4096  # examples read at once


def from_dataset(data: dataset.Dataset, clients: Any = None) -> store.ClientStore:
    """The store of a data set's training split.

    Args:
      data: as `files.load` and `datasets.load` give it.
      clients: [N], whose each row of `data.train` is; `data.user_ids` where None.

    Raises:
      ValueError: if nobody knows whose the rows are.
    """
    owners = data.user_ids if clients is None else clients
    if owners is None:
        raise ValueError(
            f"data.user_column='' leaves open whose the rows of {data.name!r} are; set "
            "it to a column, give clients, or use trustml.federated.partitions."
        )
    return store.from_arrays(data.train, owners)


def from_file(
    path: Any,
    *,
    client_column: str,
    time_column: str = "",
    valid_fraction: float = 0.0,
    test_fraction: float = 0.0,
    limit: int = 0,
    **options: Any,
) -> tuple[store.ClientStore, dataset.Dataset]:
    """The store of a `.csv`, `.tsv` or `.jsonl` file with a column of clients.

    Args:
      path: of the file; see `trustml.data.files.load`.
      client_column: whose each row is: text, or a whole number.
      time_column: numbers, or dates as ISO text, to order a client's rows by; the order
        of the file where ''.
      valid_fraction: share of the clients kept apart, with all of their rows.
      test_fraction: likewise.
      limit: rows kept; 0 keeps all.
      **options: other arguments of `files.load`.

    Returns:
      The store of the training rows, and the data set with its label names, tokenizer
      and other splits.

    Raises:
      ValueError: for a malformed file or column, with the line; or for a time column
        beside an option that drops rows.
    """
    _validate_name("data.client_column", client_column)
    data = files.load(
        path,
        user_column=client_column,
        valid_fraction=valid_fraction,
        test_fraction=test_fraction,
        limit=limit,
        **options,
    )
    if not time_column:
        return from_dataset(data), data
    if valid_fraction or test_fraction or limit:
        raise ValueError(
            f"data.time_column={time_column!r} needs every row of the file; set "
            "valid_fraction, test_fraction and limit to 0 and keep valid and test in "
            "files of their own."
        )
    time = _times(tables.read(path), time_column)
    return store.from_arrays(data.train, data.user_ids, time=time), data


def from_source(
    source: Any,
    client: str,
    *,
    time: str = "",
    columns: Sequence[str] = (),
) -> store.ClientStore:
    """The store of a TFDS data source, or of any sequence of dictionaries.

    Args:
      source: `tfds.builder(...).as_data_source(split)`; anything with a length that
        gives examples, as dictionaries, by number.
      client: name of the feature that says whose an example is.
      time: name of the feature to order a client's examples by; '' for their order.
      columns: features kept; all but `client` and `time` where empty.

    Returns:
      Numbers and arrays of one shape as arrays; text, and arrays of several lengths,
      as `flat.Ragged`.

    Raises:
      ValueError: for an empty source, or a feature that it lacks.
    """
    if not len(source):
        raise ValueError("source holds no example; give a split that does.")
    names = tuple(source[0])
    for field, name in (("client", client), ("time", time), *_named(columns)):
        if name or field == "client":
            _validate.one_of(field, name, names)
    kept = tuple(columns) or tuple(n for n in names if n not in (client, time))
    found: dict[str, list] = {name: [] for name in {*kept, client, time} - {""}}
    for start in range(0, len(source), _CHUNK):
        for example in _read(source, start):
            for name, values in found.items():
                values.append(example[name])
    return store.from_arrays(
        {name: _column(found[name]) for name in kept},
        _flat(client, found[client]),
        time=_flat(time, found[time]) if time else None,
    )


def _named(columns: Sequence[str]):
    return [("columns", name) for name in columns]


def _read(source, start: int):
    wanted = range(start, min(start + _CHUNK, len(source)))
    if hasattr(source, "__getitems__"):
        return source.__getitems__(wanted)
    return [source[n] for n in wanted]


def _column(values: list) -> flat.Column:
    first = values[0]
    if isinstance(first, (str, bytes)):
        return flat.ragged(values)
    if len({np.shape(value) for value in values}) == 1:
        return np.stack([np.asarray(value) for value in values])
    return flat.ragged(values)


def _flat(name: str, values: list) -> np.ndarray:
    if isinstance(values[0], bytes):
        values = [value.decode() for value in values]
    column = np.array(values)
    if column.ndim != 1 or column.dtype == object:
        _validate.fail("feature", name, "must be one number or text for each example")
    return column


def _validate_name(field: str, name: str) -> None:
    if not name:
        _validate.fail(field, name, "must name the column that says whose a row is")


def _times(table: tables.Table, column: str) -> np.ndarray:
    """A column of numbers, or of dates, as one array that can be sorted."""
    tables.require(table, "data.time_column", column)
    values = [row.get(column) for row in table.rows]
    try:
        return np.array([_number(value) for value in values])
    except (TypeError, ValueError, OverflowError):
        pass
    times = []
    for row, value in enumerate(values):
        try:
            times.append(np.datetime64(value, "us"))
        except (TypeError, ValueError) as error:
            raise table.error(
                row,
                f"has {column}={value!r}; give a number, or a date such as "
                "2024-01-31T12:00, in every row.",
            ) from error
        if np.isnat(times[-1]):
            raise table.error(row, f"has {column}={value!r}; give a time, or drop it.")
    return np.array(times)


def _number(value: Any) -> float:
    number = float(value)
    if not np.isfinite(number):
        raise ValueError("not a place in an order")
    return number
