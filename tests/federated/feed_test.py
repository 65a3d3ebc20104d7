"""Resident and streamed rows against the store itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trustml.experiments import stores
from trustml.federated import feed, flat, store


def _held():
    numbers = np.random.default_rng(0)
    count = 700
    columns = {
        "image": numbers.integers(0, 256, (count, 3, 2)).astype(np.uint8),
        "label": numbers.integers(0, 5, count),
        "real": numbers.normal(size=count),
        "tokens": flat.ragged([numbers.integers(1, 9, n % 7) for n in range(count)]),
    }
    return store.from_arrays(columns, numbers.integers(0, 60, count))


def _wanted(held, rows):
    tokens, length = flat.dense(held.columns["tokens"], rows, 4)
    plain = {name: held.columns[name][rows] for name in ("image", "label", "real")}
    return plain | {"tokens": tokens, "length": length}


def _batch(placed):
    data, index = placed
    assert index.dtype == np.int32
    assert all(isinstance(column, jax.Array) for column in data.values())
    return {name: np.asarray(column)[index] for name, column in data.items()}


def _equal(batch, wanted):
    assert set(batch) == set(wanted)
    for name, column in wanted.items():
        if column.dtype == np.float64:
            column = column.astype(np.float32)
        np.testing.assert_array_equal(batch[name], column)
        assert batch[name].dtype == column.dtype


@pytest.mark.parametrize("mapped", [False, True], ids=["memory", "mapped"])
@pytest.mark.parametrize("resident", [True, False], ids=["resident", "streamed"])
def test_rows_are_those_of_the_store(tmp_path, resident, mapped):
    held = _held()
    whole = held
    if mapped:
        held = stores.load(stores.save(held, tmp_path / "store"))
    source = feed.open(held, max_lengths={"tokens": 4}, resident=resident)
    assert source.resident == resident
    numbers = np.random.default_rng(1)
    for size in (20, 0, 1, 20, 300, 900):
        rows = numbers.integers(0, 700, size)  # repeats, in any order
        _equal(_batch(source.place(rows)), _wanted(whole, rows))


def test_chunks_have_few_lengths():
    source = feed.open(_held(), names=["label"], resident=False)
    seen = []
    for size in (10, 300, 20, 700, 100):
        data, index = source.place(np.arange(size))
        seen.append(len(data["label"]))
        assert index.max() == size - 1
    assert seen == [256, 512, 512, 1024, 1024]
    # Rows asked for twice are there once.
    data, index = source.place(np.array([5, 3, 5, 5]))
    assert index.tolist() == [1, 0, 1, 1]


def test_resident_if_it_fits():
    held = _held()
    kept = feed.open(held, max_lengths={"tokens": 4}, free_bytes=10**9)
    assert kept.resident
    # Bytes of a row: image 6, label 1, real 4 on the device, tokens 4, length 4.
    assert kept.bytes == 700 * (6 + 1 + 4 + 4 + 4)
    for fraction, fits in ((0.5, True), (0.49, False)):
        asked = feed.open(
            held,
            max_lengths={"tokens": 4},
            free_bytes=2 * kept.bytes,
            memory_fraction=fraction,
        )
        assert asked.resident == fits


def test_more_rows_than_an_index_can_tell(monkeypatch):
    held = _held()
    monkeypatch.setattr(feed, "_MOST_ROWS", 699)
    streamed = feed.open(held, names=["label"], free_bytes=10**9)
    assert not streamed.resident
    with pytest.raises(ValueError, match="resident=False"):
        feed.open(held, names=["label"], resident=True)


def test_an_error_of_the_disk_reaches_the_caller(monkeypatch):
    source = feed.open(_held(), names=["label"], resident=False)

    def broken(*_):
        raise OSError("disk")

    monkeypatch.setattr(feed, "_gather", broken)
    with pytest.raises(OSError, match="disk"):
        source.place(np.arange(3))


def test_wide_types():
    batch = {
        "label": jnp.uint8([1, 200]),
        "image": jnp.uint8([0, 255]),
        "half": jnp.float16([0.5, 1]),
        "yes": jnp.array([True, False]),
    }
    wide = jax.jit(lambda b: feed.widen(b, {"image": 255}))(batch)
    kinds = {name: column.dtype.name for name, column in wide.items()}
    assert kinds == {
        "label": "int32",
        "image": "float32",
        "half": "float32",
        "yes": "bool",
    }
    assert wide["label"].tolist() == [1, 200]
    assert wide["image"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param({"max_lengths": {}}, "lacks 'tokens'", id="no-length"),
        pytest.param(
            {"max_lengths": {"tokens": 4, "label": 1}}, "no ragged", id="not-ragged"
        ),
        pytest.param({"max_lengths": {"tokens": 0}}, "max_lengths=0", id="zero"),
        pytest.param({"names": ["lable"]}, "did you mean 'label'", id="name"),
        pytest.param({"memory_fraction": 1.5}, "memory_fraction", id="fraction"),
    ],
)
def test_wrong_arguments_end_in_one_sentence(changes, words):
    given = {"max_lengths": {"tokens": 4}} if "names" not in changes else {}
    with pytest.raises(ValueError, match=words):
        feed.open(_held(), **(given | changes))


def test_what_no_device_holds_is_refused():
    columns = {"name": np.array(["a", "b"]), "wide": np.array([0, 2**31])}
    columns["length"], columns["t"] = np.zeros(2), flat.ragged(["a", "b"])
    held = store.from_arrays(columns, [0, 1])
    for name in ("name", "wide"):
        with pytest.raises(ValueError, match="devices do not hold"):
            feed.open(held, names=[name])
    with pytest.raises(ValueError, match="is made here"):
        feed.open(held, names=["t", "length"], max_lengths={"t": 3})


@pytest.mark.parametrize("resident", [True, False], ids=["resident", "streamed"])
@pytest.mark.parametrize("row", [-1, 700])
def test_wrong_rows_are_refused(resident, row):
    source = feed.open(_held(), names=["label"], resident=resident)
    with pytest.raises(ValueError, match="from 0 to 699"):
        source.place(np.array([0, row]))
