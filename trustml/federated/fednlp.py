"""Data and partitions in the HDF5 files of the FedNLP benchmark.

A data file holds the text of a JSON object in the data set `attributes`, and one HDF5
data set for each example: `X/<i>` and `Y/<i>` (for tagging arrays of words and tags;
for span extraction `context_X/<i>`, `question_X/<i>` and `Y/<i>` = [start, end]). A
partition file holds `<method>/n_clients` and, for each client, numbers of examples in
`<method>/partition_data/<client>/train` and `.../test`.

One HDF5 data set for each example is slow to read: convert once, and keep the store.
Needs h5py, which `pip install trustml[fednlp]` brings.

Dimension key: N examples, C clients.

Example::

    found = fednlp.read('20news_data.h5', '20news_partition.h5', 'uniform')
    tokens = tokenizer.encode_many(found.columns['X'], 128).tokens
    held = store.from_partition({'tokens': tokens}, *found.train[:2])

References: https://arxiv.org/abs/2104.08815
"""

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from trustml import _validate
from trustml.federated.partitions import base

FIELDS = ("X", "Y", "context_X", "question_X")


class FedNLP(NamedTuple):
    """What the two files hold.

    Attributes:
      columns: 'X', 'Y', ... -> N texts, lists of words, or arrays of numbers, as they
        were written.
      task_type: such as 'text_classification'; '' where the file does not say.
      label_names: in the order of `label_vocab`; empty where there are none.
      attributes: the JSON object of the data file.
      parameters: such as alpha or beta, of the partition.
      train: examples that each client trains on; parts of the N.
      test: examples that each client is tested on, for the same clients.
    """

    columns: dict[str, list]
    task_type: str
    label_names: tuple[str, ...]
    attributes: Mapping[str, Any]
    parameters: Mapping[str, float]
    train: base.Partition
    test: base.Partition


def read(data_path: Any, partition_path: Any, method: str) -> FedNLP:
    """Reads a data file and one partition of it.

    Args:
      data_path: of `<name>_data.h5`.
      partition_path: of `<name>_partition.h5`.
      method: which partition, such as 'niid_label_clients=100_alpha=0.1'.

    Raises:
      ImportError: if h5py is not installed.
      FileNotFoundError: if a file is not there.
      ValueError: if a file is not of this form, or has no such partition; names the
        file and what is missing.
    """
    h5py = _h5py()
    data_file = _validate.existing_file("data_path", data_path)
    split_file = _validate.existing_file("partition_path", partition_path)
    try:
        with h5py.File(data_file, "r") as data:
            attributes, numbers, columns = _read_data(data, data_file)
        with h5py.File(split_file, "r") as data:
            parts, parameters = _read_partition(data, split_file, method)
    except OSError as error:
        raise ValueError(
            f"data_path={str(data_path)!r} or partition_path={str(partition_path)!r} "
            f"is not a whole HDF5 file ({error}); copy it again."
        ) from error
    digest = hashlib.sha256(data_file.read_bytes()).hexdigest()
    place = {number: n for n, number in enumerate(numbers)}
    made = {}
    for split, clients in parts.items():
        rows = [_places(place, part, split_file) for part in clients.values()]
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(part) for part in rows], out=offsets[1:])
        flat = np.concatenate(rows) if rows else np.zeros(0, np.int64)
        _refuse_twice(flat, numbers, split, split_file)
        about = {"method": method, "split": split} | parameters
        keys = np.array(list(clients), np.int64)
        made[split] = base.seal("fednlp", offsets, flat, about, 0, digest, keys)
    names = attributes.get("label_vocab") or {}
    return FedNLP(
        columns=columns,
        task_type=str(attributes.get("task_type") or ""),
        label_names=tuple(sorted(names, key=lambda name: names[name])),
        attributes=attributes,
        parameters=parameters,
        train=made["train"],
        test=made["test"],
    )


def methods(partition_path: Any) -> tuple[str, ...]:
    """Names of the partitions that a partition file holds."""
    path = _validate.existing_file("partition_path", partition_path)
    with _h5py().File(path, "r") as data:
        return tuple(data)


def _h5py():
    try:
        import h5py
    except ImportError as error:
        raise ImportError(
            "FedNLP files need h5py, which is not installed; run: pip install h5py, or "
            "pip install trustml[fednlp]."
        ) from error
    return h5py


def _read_data(data, path: pathlib.Path):
    held = data["attributes"] if "attributes" in data else None
    text = data.attrs.get("attributes") if held is None else held[()]
    try:
        attributes = json.loads(text if text is not None else "")
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"data_path={str(path)!r} has no JSON text under 'attributes'; give a data "
            "file of FedNLP."
        ) from error
    fields = [name for name in FIELDS if name in data]
    if not fields:
        raise ValueError(
            f"data_path={str(path)!r} holds none of {', '.join(FIELDS)}; give a data "
            "file of FedNLP."
        )
    numbers = sorted(int(number) for number in data[fields[0]])
    columns = {}
    for name in fields:
        group = data[name]
        missing = [number for number in numbers if str(number) not in group]
        if missing:
            raise ValueError(
                f"data_path={str(path)!r} has example {missing[0]} in {fields[0]!r} "
                f"and not in {name!r}; convert the file again."
            )
        columns[name] = [_plain(group[str(number)][()]) for number in numbers]
    return attributes, numbers, columns


def _read_partition(data, path: pathlib.Path, method: str):
    where = f"partition_path={str(path)!r}"
    _validate.one_of("method", method, tuple(data))
    group = data[method]
    if "partition_data" not in group or "n_clients" not in group:
        raise ValueError(
            f"{where} has no n_clients and partition_data under {method!r}; give a "
            "partition file of FedNLP."
        )
    clients = sorted(group["partition_data"], key=int)
    if len(clients) != int(group["n_clients"][()]):
        raise ValueError(
            f"{where} names {len(clients)} clients under {method!r} and says "
            f"n_clients={int(group['n_clients'][()])}; copy it again."
        )
    parts = {
        split: {
            int(client): np.asarray(
                group["partition_data"][client][split][()]
                if split in group["partition_data"][client]
                else [],
                np.int64,
            )
            for client in clients
        }
        for split in ("train", "test")
    }
    numbers = {
        name: float(group[name][()]) for name in ("alpha", "beta") if name in group
    }
    return parts, numbers


def _places(place: Mapping[int, int], part: np.ndarray, path) -> np.ndarray:
    try:
        found = [place[int(number)] for number in part]
    except KeyError as error:
        raise ValueError(
            f"partition_path={str(path)!r} gives out example {error.args[0]}, which "
            "the data file lacks; take both files of one data set."
        ) from error
    return np.array(found, np.int64)


def _refuse_twice(flat: np.ndarray, numbers, split: str, path) -> None:
    values, times = np.unique(flat, return_counts=True)
    if len(values) < len(flat):
        raise ValueError(
            f"partition_path={str(path)!r} gives example "
            f"{numbers[values[times.argmax()]]} to {split} twice; a partition gives "
            "each once."
        )


def _plain(value: Any) -> Any:
    """Bytes as text, arrays of them as lists of text; numbers as they are."""
    if isinstance(value, bytes):
        return value.decode()
    array = np.asarray(value)
    if array.dtype.kind not in "OS":
        return value
    return [item.decode() if isinstance(item, bytes) else item for item in array]
