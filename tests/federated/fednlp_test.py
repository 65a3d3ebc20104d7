"""Files of FedNLP: what a test writes is what is read."""

import builtins
import json

import numpy as np
import pytest

from trustml.federated import fednlp, flat, store

h5py = pytest.importorskip("h5py")


def _write_data(path, fields, attributes, as_attribute=False):
    words = h5py.string_dtype("utf-8")
    with h5py.File(path, "w") as file:
        if as_attribute:
            file.attrs["attributes"] = json.dumps(attributes)
        else:
            file["attributes"] = json.dumps(attributes)
        for name, values in fields.items():
            for number, value in values.items():
                if isinstance(value, list) and isinstance(value[0], str):
                    value = np.array(value, dtype=words)
                file[f"{name}/{number}"] = value


def _write_partition(path, clients, method="niid_label", **more):
    with h5py.File(path, "w") as file:
        file[f"{method}/n_clients"] = more.pop("n_clients", len(clients))
        for name, value in more.items():
            file[f"{method}/{name}"] = value
        for client, (train, test) in clients.items():
            where = f"{method}/partition_data/{client}"
            file[f"{where}/train"] = np.array(train, np.int64)
            file[f"{where}/test"] = np.array(test, np.int64)


CLIENTS = {10: ([7, 2], [4]), 9: ([], [11]), 0: ([0], [])}


def _numbered(values):
    # Numbers as they come: with gaps, and 11 before 2 in the order of text.
    return dict(zip((0, 2, 4, 7, 11), values, strict=True))


TEXTS = ["zéro", "two", "four", "seven", "eleven"]
TASKS = {
    "text_classification": {"X": TEXTS, "Y": ["b", "a", "a", "b", "a"]},
    "seq_tagging": {
        "X": [["a"], ["b", "ç"], ["d"], ["e", "f", "g"], ["h"]],
        "Y": [["O"], ["O", "B"], ["O"], ["O", "O", "B"], ["B"]],
    },
    "span_extraction": {
        "context_X": TEXTS,
        "question_X": ["who", "what", "when", "why", "how"],
        "Y": [[0, 1], [1, 2], [2, 3], [0, 0], [3, 4]],
    },
    "seq2seq": {"X": TEXTS, "Y": TEXTS[::-1]},
}


@pytest.fixture
def paths(tmp_path):
    return tmp_path / "data.h5", tmp_path / "partition.h5"


@pytest.mark.parametrize("as_attribute", [False, True], ids=["dataset", "attribute"])
@pytest.mark.parametrize("task", TASKS)
def test_what_is_written_is_read(paths, task, as_attribute):
    data, split = paths
    fields = {name: _numbered(values) for name, values in TASKS[task].items()}
    attributes = {"task_type": task, "index_list": [0, 2, 4, 7, 11]}
    _write_data(data, fields, attributes, as_attribute)
    _write_partition(split, CLIENTS, alpha=0.5)
    found = fednlp.read(data, split, "niid_label")
    columns = {
        name: [v.tolist() if isinstance(v, np.ndarray) else v for v in values]
        for name, values in found.columns.items()
    }
    assert columns == TASKS[task]
    assert found.task_type == task
    assert found.parameters == {"alpha": 0.5}
    # Clients in the order of their numbers, examples in that of the file.
    assert found.train.client_key.tolist() == [0, 9, 10]
    assert found.train.offsets.tolist() == [0, 1, 1, 3]
    assert found.train.permutation.tolist() == [0, 3, 1]
    assert found.test.offsets.tolist() == [0, 0, 1, 2]
    assert found.test.permutation.tolist() == [4, 2]
    assert found.train.digest != found.test.digest
    assert fednlp.methods(split) == ("niid_label",)


def test_a_store_of_the_files(paths):
    data, split = paths
    fields = {n: _numbered(v) for n, v in TASKS["text_classification"].items()}
    _write_data(data, fields, {"label_vocab": {"b": 0, "a": 1}})
    _write_partition(split, CLIENTS)
    found = fednlp.read(data, split, "niid_label")
    assert found.label_names == ("b", "a")
    labels = [found.label_names.index(name) for name in found.columns["Y"]]
    held = store.from_partition(
        {"text": flat.ragged(found.columns["X"]), "label": np.array(labels)},
        found.train.offsets,
        found.train.permutation,
        client_key=found.train.client_key,
    )
    assert store.sizes(held).tolist() == [1, 0, 2]
    text = flat.take(held.columns["text"], store.rows(held, 2))
    assert bytes(text.values) == b"seventwo"
    assert held.columns["label"][store.rows(held, 2)].tolist() == [0, 1]


def _without(fields, name, number):
    return {
        field: {n: v for n, v in values.items() if (field, n) != (name, number)}
        for field, values in fields.items()
    }


@pytest.mark.parametrize(
    ("fields", "clients", "more", "words"),
    [
        pytest.param(("Y", 4), CLIENTS, {}, "example 4 in 'X'", id="half-example"),
        pytest.param((), {0: ([3], [])}, {}, "gives out example 3", id="unknown"),
        pytest.param((), {0: ([2, 2], [])}, {}, "example 2 to train", id="twice"),
        pytest.param((), CLIENTS, {"n_clients": 4}, "n_clients=4", id="clients"),
        pytest.param((), CLIENTS, {"method": "iid"}, "is not one of iid", id="method"),
    ],
)
def test_files_that_do_not_fit_are_refused(paths, fields, clients, more, words):
    data, split = paths
    whole = {n: _numbered(v) for n, v in TASKS["seq2seq"].items()}
    _write_data(data, _without(whole, *fields) if fields else whole, {})
    _write_partition(split, clients, **more)
    with pytest.raises(ValueError, match=words):
        fednlp.read(data, split, "niid_label")


def test_files_of_another_kind_are_refused(paths):
    data, split = paths
    _write_partition(split, CLIENTS)
    with pytest.raises(FileNotFoundError, match="data_path"):
        fednlp.read(data, split, "niid_label")
    data.write_bytes(b"not HDF5")
    with pytest.raises(ValueError, match="not a whole HDF5 file"):
        fednlp.read(data, split, "niid_label")
    for fields in ({"X": {0: "a"}}, {}):
        with h5py.File(data, "w") as file:
            if not fields:
                file["attributes"] = "{}"
            for name, values in fields.items():
                file[f"{name}/0"] = values[0]
        with pytest.raises(ValueError, match="give a data file of FedNLP"):
            fednlp.read(data, split, "niid_label")
    _write_data(data, {"X": {0: "a"}}, {})
    with h5py.File(split, "w") as file:
        file["niid_label/other"] = 1
    with pytest.raises(ValueError, match="give a partition file of FedNLP"):
        fednlp.read(data, split, "niid_label")


def test_without_h5py_the_cure_is_named(paths, monkeypatch):
    data, split = paths
    imported = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "h5py":
            raise ImportError(name)
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match="pip install h5py"):
        fednlp.read(data, split, "niid_label")
