"""Stores from files, data sets, data sources and the real populations."""

import json

import numpy as np
import pytest

from trustml.data import builders
from trustml.federated import flat, imports, partitions, populations, store

ROWS = [
    ("b", "3", "red fish", "x"),
    ("a", "2", "blue", "y"),
    ("b", "1", "one fish two fish", "y"),
    ("c", "5", "old", "x"),
    ("a", "2", "new fish", "y"),
]


def _csv(folder, rows=ROWS, header="who,when,text,label"):
    path = folder / "rows.csv"
    lines = [header, *(",".join(row) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def _texts(held, data):
    """client -> its token rows as tuples, to compare with the texts' own."""
    tokens = held.columns["tokens"]
    encode = {tuple(data.tokenizer.encode(text, 8)[0]): text for _, _, text, _ in ROWS}
    return {
        str(key): [encode[tuple(row)] for row in tokens[store.rows(held, n)]]
        for n, key in enumerate(held.client_key)
    }


def test_a_file_with_a_client_column(tmp_path):
    path = _csv(tmp_path)
    held, data = imports.from_file(path, client_column="who", max_length=8)
    assert _texts(held, data) == {
        "a": ["blue", "new fish"],
        "b": ["red fish", "one fish two fish"],
        "c": ["old"],
    }
    assert held.columns["label"].tolist() == [1, 1, 0, 1, 0]
    assert data.label_names == ("x", "y")
    held, data = imports.from_file(
        path, client_column="who", time_column="when", max_length=8
    )
    assert _texts(held, data)["b"] == ["one fish two fish", "red fish"]
    assert held.time.tolist() == [2, 2, 1, 3, 5]


def test_dates_as_times(tmp_path):
    days = ["2024-02-01", "2023-12-31", "2024-01-01T10:30", "2020-01-01", "2025-01-01"]
    rows = [(who, day, *rest) for day, (who, _, *rest) in zip(days, ROWS, strict=True)]
    held, data = imports.from_file(
        _csv(tmp_path, rows), client_column="who", time_column="when", max_length=8
    )
    assert _texts(held, data)["b"] == ["one fish two fish", "red fish"]
    rows[3] = ("c", "soon", "old", "x")
    with pytest.raises(ValueError, match="line 5 has when='soon'"):
        imports.from_file(_csv(tmp_path, rows), client_column="who", time_column="when")


def test_a_file_of_json_lines(tmp_path):
    path = tmp_path / "rows.jsonl"
    names = ("who", "when", "text", "label")
    lines = [json.dumps(dict(zip(names, row, strict=True))) for row in ROWS]
    path.write_text("\n".join(lines))
    held, data = imports.from_file(path, client_column="who", max_length=8)
    assert _texts(held, data)["a"] == ["blue", "new fish"]


def test_clients_kept_apart_are_kept_whole(tmp_path):
    rows = [(f"u{n % 20}", "0", f"text {n}", "xy"[n % 2]) for n in range(200)]
    path = _csv(tmp_path, rows)
    held, data = imports.from_file(path, client_column="who", test_fraction=0.4)
    assert set(store.sizes(held)) == {10}
    assert len(data.test["label"]) == 200 - len(held.columns["label"]) > 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param({"client_column": ""}, "data.client_column=''", id="none"),
        pytest.param({"client_column": "whom"}, "did you mean 'who'", id="client"),
        pytest.param({"time_column": "wen"}, "did you mean 'when'", id="time"),
        pytest.param({"time_column": "when", "limit": 3}, "needs every row", id="both"),
    ],
)
def test_wrong_columns_end_in_one_sentence(tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        imports.from_file(_csv(tmp_path), **({"client_column": "who"} | changes))


def test_a_data_set_without_users_needs_clients(tmp_path):
    _, data = imports.from_file(_csv(tmp_path), client_column="who")
    anonymous = data._replace(user_ids=None)
    with pytest.raises(ValueError, match="data.user_column=''"):
        imports.from_dataset(anonymous)
    held = imports.from_dataset(anonymous, [1, 0, 1, 0, 1])
    assert store.sizes(held).tolist() == [2, 3]


def test_a_sequence_of_dictionaries():
    source = [
        {
            "who": who.encode(),
            "when": int(when),
            "text": text,
            "image": np.eye(2) * n,
            "codes": np.arange(n),
        }
        for n, (who, when, text, _) in enumerate(ROWS)
    ]
    held = imports.from_source(source, "who", time="when")
    assert set(held.columns) == {"text", "image", "codes"}
    assert held.client_key.tolist() == ["a", "b", "c"]
    assert held.columns["image"][:, 0, 0].tolist() == [1, 4, 2, 0, 3]
    codes, texts = held.columns["codes"], held.columns["text"]
    assert np.diff(codes.offsets).tolist() == [1, 4, 2, 0, 3]
    assert bytes(texts.values[: texts.offsets[1]]) == b"blue"
    some = imports.from_source(source, "when", columns=["image"])
    assert set(some.columns) == {"image"}
    with pytest.raises(ValueError, match="did you mean 'text'"):
        imports.from_source(source, "who", columns=["txt"])
    with pytest.raises(ValueError, match="client='text_'"):
        imports.from_source(source, "text_")
    with pytest.raises(ValueError, match="one number or text"):
        imports.from_source(source, "image")
    with pytest.raises(ValueError, match="no example"):
        imports.from_source([], "who")


def test_a_data_source_of_tfds():
    folder = builders.prepare("snips")
    source = builders.tfds.builder_from_directory(folder).as_data_source("valid")
    held = imports.from_source(source, "label")
    wanted = builders.columns(folder, "valid")
    assert store.sizes(held).tolist() == np.bincount(wanted["label"]).tolist()
    texts = (wanted["text"], wanted["label"])
    of_label_2 = [t for t, label in zip(*texts, strict=True) if label == 2]
    text = held.columns["text"]
    mine = [
        bytes(text.values[text.offsets[n] : text.offsets[n + 1]]).decode()
        for n in store.rows(held, 2)
    ]
    assert mine == of_label_2


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "clients", "examples", "column"),
    [
        pytest.param("shakespeare", 1371, 30_876, "text", id="shakespeare"),
        pytest.param("newsgroups20", 5819, 11_314, "text", id="newsgroups20"),
        pytest.param("ud_ewt", 540, 12_544, "tokens", id="ud_ewt"),
        pytest.param("squad", 38, 8583, "context", id="squad"),
        pytest.param("omniglot_small", 20, 5840, "image", id="omniglot_small"),
    ],
)
def test_populations_have_their_clients(data_dir, name, clients, examples, column):
    found = populations.load(name, data_dir=data_dir)
    dealt = partitions.statistics(partitions.natural(found.clients))
    assert (dealt.clients, dealt.examples) == (clients, examples)
    assert all(len(values) == examples for values in found.columns.values())
    texts = found.columns[column]
    if name == "newsgroups20":
        sizes = np.unique(found.clients, return_counts=True)[1]
        assert ((sizes == 1).sum(), sizes.max()) == (3990, 73)
    if name == "squad":
        for start, answer, context in zip(
            found.columns["answer_start"], found.columns["answers"], texts, strict=True
        ):
            assert context[start[0] :].startswith(answer[0])
    if name == "omniglot_small":
        assert texts.shape[1:] == (105, 105, 1)
        assert set(np.unique(texts)) == {0, 1}
        return
    if name == "ud_ewt":
        assert [len(t) for t in texts] == [len(t) for t in found.columns["upos"]]
        texts = [" ".join(words) for words in texts]
    held = store.from_arrays({"text": flat.ragged(texts)}, found.clients)
    assert len(store.sizes(held)) == clients
    who = held.client_key[3]
    mine = [t for t, c in zip(texts, found.clients, strict=True) if c == who]
    kept = flat.take(held.columns["text"], store.rows(held, 3))
    assert bytes(kept.values).decode() == "".join(mine)


@pytest.mark.data
@pytest.mark.parametrize("name", ["ud_ewt", "squad"])
def test_test_clients_are_new(data_dir, name):
    train, test = (
        set(populations.load(name, split, data_dir=data_dir).clients)
        for split in populations.SPLITS
    )
    assert test
    assert not train & test


def test_missing_files_and_names(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="shakespeare/plays.jsonl.gz"):
        populations.load("shakespeare", data_dir=tmp_path)
    with pytest.raises(ValueError, match="did you mean 'squad'"):
        populations.load("sqad")
    with pytest.raises(ValueError, match="split='test'"):
        populations.load("shakespeare", "test")
    (tmp_path / "omniglot_small").mkdir()
    (tmp_path / "omniglot_small" / "omniglot_small.npz").write_bytes(b"no")
    with pytest.raises(ValueError, match="copy the file again"):
        populations.load("omniglot_small", data_dir=tmp_path)
