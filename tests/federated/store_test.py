"""The store against a loop over dictionaries, its errors, and its files."""

import json
import subprocess
import sys

import numpy as np
import pytest

from trustml.experiments import stores
from trustml.federated import flat, store


def _held(**changes):
    made = {
        "columns": {
            "x": np.arange(12).reshape(6, 2),
            "text": flat.ragged(["a", "bcd", "", "ef", "g", "hijk"]),
        },
        "clients": np.array(["b", "a", "b", "c", "a", "b"]),
        "time": np.array([3, 2, 1, 5, 1, 1]),
        "user": np.array([0, 1, 0, 1, 1, 0]),
    }
    made.update(changes)
    return store.from_arrays(made.pop("columns"), made.pop("clients"), **made)


def test_rows_are_those_of_a_loop():
    numbers = np.random.default_rng(0)
    clients = numbers.integers(-3, 40, 500)
    time = numbers.integers(0, 5, 500)  # many ties: the sort has to be stable
    held = store.from_arrays({"x": np.arange(500)}, clients, time=time)
    keys = sorted(set(clients))
    assert list(held.client_key) == keys
    wanted = {k: [] for k in keys}
    for n in sorted(range(500), key=lambda n: time[n]):  # Python's sort is stable
        wanted[clients[n]].append(n)
    assert store.sizes(held).tolist() == [len(wanted[k]) for k in keys]
    for number, key in enumerate(keys):
        mine = store.rows(held, number)
        assert held.columns["x"][mine].tolist() == wanted[key]
        assert (np.diff(held.time[mine]) >= 0).all()
    some = [7, 0, 7]
    together = held.columns["x"][store.rows(held, some)]
    assert together.tolist() == sum((wanted[keys[k]] for k in some), [])


def test_ragged_rows_follow_their_example():
    held = _held()
    texts, offsets = held.columns["text"]
    found = [
        bytes(texts[a:b]).decode() for a, b in zip(offsets, offsets[1:], strict=False)
    ]
    assert found == ["g", "bcd", "", "hijk", "a", "ef"]
    tokens, length = flat.dense(held.columns["text"], np.array([3, 2, 5]), 3)
    assert tokens.tolist() == [[104, 105, 106], [0, 0, 0], [101, 102, 0]]
    assert length.tolist() == [3, 0, 2]
    assert length.dtype == np.int32
    pairs = flat.ragged([[1], [], [2, 3]], np.int16)
    assert flat.take(pairs, np.array([2, 0])).values.tolist() == [2, 3, 1]


def test_clients_without_examples():
    held = store.from_arrays(
        {"x": np.arange(3)}, [4, 1, 4], client_keys=[5, 4, 0, 1], user=[9, 9, 9]
    )
    assert store.sizes(held).tolist() == [0, 2, 0, 1]
    assert held.client_key.tolist() == [5, 4, 0, 1]
    assert held.columns["x"].tolist() == [0, 2, 1]
    # 4 and 1 are one person; 5 and 0 are persons of their own.
    assert held.user[1] == held.user[3]
    assert len(set(held.user.tolist())) == 3
    assert store.rows(held, [0, 2]).tolist() == []
    none = store.from_arrays(
        {"x": np.zeros((0, 2))}, np.zeros(0, int), client_keys=[0, 1]
    )
    assert store.sizes(none).tolist() == [0, 0]
    assert none.client_key is None  # they are 0 and 1


def test_integers_are_kept_small():
    columns = {
        "byte": [0, 255],
        "tag": [-1, 100],
        "shift": [-1, 200],
        "token": [0, 40_000],
        "wide": [0, 2**31],
        "real": np.array([0.5, 1.5]),
        "yes": [True, False],
        "already": np.array([1, 2], np.uint8),
    }
    held = store.from_arrays(columns, [0, 1])
    kinds = {name: column.dtype.name for name, column in held.columns.items()}
    assert kinds == {
        "byte": "uint8",
        "tag": "int8",
        "shift": "int16",
        "token": "uint16",
        "wide": "int64",
        "real": "float64",
        "yes": "bool",
        "already": "uint8",
    }
    for name, values in columns.items():
        assert held.columns[name].tolist() == np.asarray(values).tolist()


def test_the_digest_tells_any_change():
    same, base = _held(), _held()
    assert base.digest == same.digest
    others = [
        _held(user=None),
        _held(time=None),
        _held(clients=np.array(["b", "a", "b", "c", "a", "d"])),
        _held(columns={"x": np.arange(12).reshape(6, 2)}),
        _held(columns={"x": np.arange(12).reshape(6, 2) % 11}),
        _held(columns={"y": np.arange(12).reshape(6, 2)}),
        _held(columns={"x": np.arange(12).reshape(6, 2, 1)}),
    ]
    digests = {base.digest, *(other.digest for other in others)}
    assert len(digests) == len(others) + 1
    # Stays over versions and platforms.
    small = store.from_arrays({"x": np.array([3, 1, 2])}, [1, 0, 1])
    assert small.digest == (
        "dc4a7377f77d03d8ebeed40a21c4cb57c02aacda6795ba1f3dc319f951a97138"
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param({"clients": ["a"] * 5}, "rows where 5", id="lengths"),
        pytest.param({"columns": {}}, "holds no column", id="no-column"),
        pytest.param({"columns": {"a.b": np.arange(6)}}, "'a.b'", id="name"),
        pytest.param({"columns": {"x": [[]] + [0] * 5}}, "ragged", id="uneven"),
        pytest.param({"columns": {"x": np.array([None] * 6)}}, "array", id="object"),
        pytest.param(
            {"time": [1.0, np.nan, 0, 0, 0, 0]},
            "has no place in an order",
            id="nan-time",
        ),
        pytest.param({"time": [1, 2]}, "time has 2", id="time-length"),
        pytest.param({"user": [0, 1, 2, 1, 1, 0]}, "two users", id="two-users"),
        pytest.param({"client_keys": ["a", "b"]}, "'c'", id="unknown-client"),
        pytest.param({"client_keys": ["a", "b", "b"]}, "twice", id="twice"),
        pytest.param({"clients": [[0]] * 6}, "must be one number", id="flat"),
    ],
)
def test_wrong_arguments_end_in_one_sentence(changes, words):
    with pytest.raises(ValueError, match=words):
        _held(**changes)


def test_wrong_clients_and_offsets_are_refused():
    held = _held()
    for wrong in (-1, 3, [0, 3]):
        with pytest.raises(ValueError, match="clients 0 to 2"):
            store.rows(held, wrong)
    for offsets in ([0, 2, 1, 3], [1, 2, 3]):
        with pytest.raises(ValueError, match="never fall"):
            store.seal({"x": np.arange(3)}, np.array(offsets))
    with pytest.raises(ValueError, match="3 rows where 4"):
        store.seal({"x": np.arange(3)}, np.array([0, 4]))
    with pytest.raises(ValueError, match="one for each client"):
        store.seal({"x": np.arange(3)}, np.array([0, 3]), user=np.array([0, 1]))


@pytest.mark.parametrize("memmap", [True, False], ids=["mapped", "memory"])
def test_a_saved_store_is_the_same(tmp_path, memmap):
    held = _held(client_keys=["d", "c", "b", "a"])
    where = stores.save(held, tmp_path / "plays")
    found = stores.load(where, memmap=memmap)
    assert found.digest == held.digest
    for name, array in store.arrays(held).items():
        again = store.arrays(found)[name]
        np.testing.assert_array_equal(again, array)
        assert again.dtype == array.dtype
        assert not again.flags.writeable
    assert isinstance(found.offsets, np.memmap) == memmap
    assert [p.name for p in tmp_path.iterdir()] == ["plays"]  # nothing left aside
    with pytest.raises(FileExistsError, match="exists"):
        stores.save(held, where)


def test_empty_columns_are_saved(tmp_path):
    columns = {"x": np.zeros((0, 2)), "t": flat.ragged([])}
    held = store.from_arrays(columns, np.zeros(0, int), client_keys=[0, 1])
    found = stores.load(stores.save(held, tmp_path / "none"))
    assert found.columns["x"].shape == (0, 2)
    assert store.sizes(found).tolist() == [0, 0]


def _cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def _alter(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        pytest.param(_cut, "bytes and the manifest says", id="cut"),
        pytest.param(_alter, "SHA-256", id="altered"),
        pytest.param(lambda path: path.unlink(), "not there", id="removed"),
    ],
)
@pytest.mark.parametrize("name", ["columns.x", "columns.text.values", "offsets"])
def test_a_harmed_file_is_refused_by_name(tmp_path, harm, words, name):
    where = stores.save(_held(), tmp_path / "plays")
    harm(where / f"{name}.npy")
    with pytest.raises(ValueError, match=words) as caught:
        stores.load(where)
    assert f"{name}.npy" in str(caught.value)


def test_half_a_store_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.*is not a directory"):
        stores.load(tmp_path / "nowhere")
    where = stores.save(_held(), tmp_path / "plays")
    manifest = where / "manifest.json"
    table = json.loads(manifest.read_text())
    for content in ("{", "{}", "[]", json.dumps(table | {"format": 99})):
        manifest.write_text(content)
        with pytest.raises(ValueError, match="save"):
            stores.load(where)
    manifest.unlink()
    with pytest.raises(FileNotFoundError, match="no store"):
        stores.load(where)


_PEAK = """
import json, pathlib, resource, sys
import numpy as np
from trustml.experiments import stores
from trustml.federated import feed, order, store

folder, clients = pathlib.Path(sys.argv[1]), int(sys.argv[2])
if sys.argv[3] == 'make':
    rows = 2 * clients
    folder.mkdir()
    offsets = stores.create(folder, 'offsets', (clients + 1,), np.dtype(np.int64))
    x = stores.create(folder, 'columns.x', (rows, 4), np.dtype(np.uint8))
    for start in range(0, clients + 1, 1 << 18):
        part = offsets[start : start + (1 << 18)]
        number = np.arange(start, start + len(part))
        part[:] = np.minimum(number // 2 * 4 + number % 2, rows)  # sizes 1 and 3
    offsets[-1] = rows
    for start in range(0, rows, 1 << 18):
        x[start : start + (1 << 18)] = start % 251
    stores.write_manifest(folder, 'of-a-test')
else:
    held = stores.load(folder)
    sizes = store.sizes(held)
    source = feed.open(held, resident=False)
    words = np.array([1, 2], np.uint32)
    for number in range(20):
        cohort = np.random.default_rng(number).choice(clients, 200, shuffle=False)
        order.positions(words, number, cohort, sizes[cohort], 0)
        data, index = source.place(store.rows(held, cohort))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps(peak))
"""


def _peak(folder, clients, what):
    command = [sys.executable, "-c", _PEAK, str(folder), str(clients), what]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


@pytest.mark.slow
@pytest.mark.parametrize("clients", [1_000_000])
def test_memory_hardly_grows_with_clients(tmp_path, clients):
    few = clients // 100
    peaks = {}
    for number in (few, clients):
        _peak(tmp_path / str(number), number, "make")
        peaks[number] = _peak(tmp_path / str(number), number, "use")
    # 4 bytes for each size, 8 for each offset of the mapped file.
    assert (peaks[clients] - peaks[few]) / (clients - few) <= 16


@pytest.mark.parametrize(
    ("clients", "words"),
    [
        (np.array([0.0, np.nan, 1.0]), r"clients\[1\]=nan"),
        (np.array(["a", "b", " "]), r"clients\[2\]=' '"),
        (np.ma.array([3, 4, 5], mask=[True, False, False]), r"clients\[0\]='masked'"),
        (np.array(["2026-01-01", "NaT", "2026-01-02"], "M8[D]"), r"clients\[1\]=None"),
    ],
    ids=["nan", "blank", "masked", "no time"],
)
def test_a_row_of_nobody_is_refused(clients, words):
    with pytest.raises(ValueError, match=words + " says not whose"):
        store.from_arrays({"x": np.zeros(3)}, clients)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("time", np.array(["2026-01-01", "NaT", "2026-01-02"], "M8[D]")),
        ("time", np.ma.array([1, 2, 3], mask=[False, True, False])),
        ("time", np.array([1.0, np.nan, 2.0])),
        ("user", np.array(["a", " ", "a"])),
    ],
)
def test_times_without_a_place_and_nameless_persons_are_refused(field, values):
    with pytest.raises(ValueError, match=rf"{field}\[1\]="):
        store.from_arrays(
            {"x": np.arange(3)}, clients=np.array([0, 0, 1]), **{field: values}
        )
