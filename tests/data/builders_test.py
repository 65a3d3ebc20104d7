"""The TFDS cache: never TensorFlow, never stale, never torn; errors name the place."""

import gzip
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from trustml.data import adult, builders, datasets, sources

ROWS = {
    "train": [
        {"tokens": ["fly", "to", "rome"], "slots": ["O", "O", "B-c"], "intent": "go"},
        {"tokens": ["é", "fares"], "slots": ["O", "O"], "intent": "fare"},
    ],
    "valid": [{"tokens": ["hi"], "slots": ["O"], "intent": "go"}],
    "test": [{"tokens": ["rome"], "slots": ["B-d"], "intent": "none"}],
}
PERSON = {
    "age": "39",
    "workclass": "State-gov",
    "education_num": "13",
    "marital_status": "Never-married",
    "occupation": "?",
    "relationship": "Not-in-family",
    "race": "Black",
    "sex": "Female",
    "capital_gain": "2174",
    "capital_loss": "0",
    "hours_per_week": "52",
    "native_country": "United-States",
    "income": "<=50K",
}


def write_atis(root: pathlib.Path, rows=None) -> pathlib.Path:
    (root / "atis").mkdir(parents=True, exist_ok=True)
    for split, found in (rows or ROWS).items():
        lines = "".join(json.dumps(row) + "\n" for row in found)
        path = root / "atis" / f"{split}.jsonl.gz"
        path.write_bytes(gzip.compress(lines.encode(), mtime=0))
    return root


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRUSTML_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TRUSTML_DATA", raising=False)
    return tmp_path / "cache"


def run(code: str, **environment) -> subprocess.Popen:
    """Python in a process of its own, without the test's settings."""
    path = os.pathsep.join(sys.path)
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


NO_TENSORFLOW = """
import sys
from trustml.data import datasets
data = datasets.load('snips', max_length=8)
assert 'tensorflow_datasets' in sys.modules and 'tensorflow' not in sys.modules
"""


def test_snips_needs_neither_tensorflow_nor_data_and_says_nothing(tmp_path):
    # A TensorFlow that can be found, and must not be imported.
    (tmp_path / "tensorflow").mkdir()
    broken = "raise RuntimeError('TensorFlow was imported')"
    (tmp_path / "tensorflow" / "__init__.py").write_text(broken)
    process = run(
        NO_TENSORFLOW,
        TRUSTML_CACHE=str(tmp_path / "cache"),
        TRUSTML_DATA="",
        PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path]),
    )
    output, _ = process.communicate(timeout=120)
    assert (process.returncode, output) == (0, "")


def test_columns_equal_what_tfds_itself_decodes(cache, tmp_path):
    folder = builders.prepare("atis", write_atis(tmp_path / "data"))
    for split, rows in ROWS.items():
        columns = builders.columns(folder, split)
        oracle = tfds.builder_from_directory(folder).as_data_source(split)
        assert len(oracle) == len(columns["label"]) == len(rows)
        names = builders.label_names(folder)
        for n, example in enumerate(oracle):
            assert columns["text"][n] == example["text"].decode()
            assert columns["text"][n].split(" ") == rows[n]["tokens"]
            assert columns["slots"][n] == example["slots"].decode()
            assert columns["label"][n] == example["label"]
            assert names[columns["label"][n]] == rows[n]["intent"]
    assert names == ("fare", "go", "none")


def test_the_builder_is_an_ordinary_tfds_builder(cache, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TRUSTML_DATA", str(write_atis(tmp_path / "data")))
    builder = tfds.builder(
        "trustml_data/atis", data_dir=tmp_path / "tfds", file_format="array_record"
    )
    builder.download_and_prepare()
    assert builder.as_data_source("train")[0]["text"] == b"fly to rome"
    assert builder.info.citation == sources.BY_NAME["atis"].citation


def test_data_set_of_the_rows(cache, tmp_path):
    data = datasets.load("atis", max_length=3, data_dir=write_atis(tmp_path / "data"))
    assert data.slot_names == ("O", "B-c", "B-d")
    assert data.train["slots"].tolist() == [[0, 0, 1], [0, 0, 0]]
    assert data.test["slots"].tolist() == [[2, 0, 0]]
    assert data.texts["train"] == [["fly", "to", "rome"], ["é", "fares"]]
    assert data.test["label"].tolist() == [2]


def test_a_changed_file_is_read_anew(cache, tmp_path):
    root = write_atis(tmp_path / "data")
    first = datasets.load("atis", data_dir=root)
    changed = {**ROWS, "valid": [{**ROWS["valid"][0], "intent": "fare"}]}
    stamps = [os.stat(path).st_mtime_ns for path in sorted((root / "atis").iterdir())]
    write_atis(root, changed)
    for path, stamp in zip(sorted((root / "atis").iterdir()), stamps, strict=True):
        os.utime(path, ns=(stamp, stamp))
    second = datasets.load("atis", data_dir=root)
    assert first.valid["label"].tolist() == [1]
    assert second.valid["label"].tolist() == [0]
    assert first.digest != second.digest
    again = datasets.load("atis", data_dir=write_atis(root))
    assert again.digest == first.digest


def test_an_unchanged_file_is_not_prepared_again(cache, tmp_path, monkeypatch):
    root = write_atis(tmp_path / "data")
    folder = builders.prepare("atis", root)

    def refuse(*args):
        raise AssertionError("prepared again")

    monkeypatch.setattr(builders, "_make", refuse)
    assert builders.prepare("atis", root) == folder


@pytest.mark.parametrize("lost", ["dataset_info.json", "*-train.array_record-*"])
def test_a_copy_that_lost_a_file_is_made_again(cache, tmp_path, lost):
    root = write_atis(tmp_path / "data")
    folder = builders.prepare("atis", root)
    next(folder.glob(lost)).unlink()
    assert builders.prepare("atis", root) == folder
    assert builders.columns(folder, "train")["text"] == ["fly to rome", "é fares"]
    assert [p.name for p in folder.parents[3].iterdir()] == [folder.parts[-4]]


def test_processes_may_prepare_the_same_set_at_once(tmp_path):
    root = write_atis(tmp_path / "data")
    code = (
        "from trustml.data import builders; "
        f"print(len(builders.columns(builders.prepare('atis', {str(root)!r}), 'train')"
        "['label']))"
    )
    running = [run(code, TRUSTML_CACHE=str(tmp_path / "cache")) for _ in range(3)]
    for process in running:
        output, _ = process.communicate(timeout=120)
        assert (process.returncode, output) == (0, "2\n")
    assert len(list((tmp_path / "cache/tfds/atis").iterdir())) == 1


def test_a_failure_in_the_middle_leaves_nothing_behind(cache, tmp_path, monkeypatch):
    root = write_atis(tmp_path / "data")

    def fail(self, split):
        yield 0, dict(self._rows[split][0])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(builders.TrustmlData, "_generate_examples", fail)
        with pytest.raises(KeyboardInterrupt):
            builders.prepare("atis", root)
    assert list((cache / "tfds" / "atis").iterdir()) == []
    folder = builders.prepare("atis", root)
    assert len(builders.columns(folder, "train")["label"]) == 2


def test_where_the_cache_cannot_be_written(cache, tmp_path, monkeypatch):
    root = write_atis(tmp_path / "data")
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TRUSTML_CACHE", str(blocked))
    monkeypatch.setattr(builders.tempfile, "tempdir", str(temporary))
    folder = builders.prepare("atis", root)
    assert folder.is_relative_to(temporary)
    assert builders.prepare("atis", root) == folder
    # A directory that others may write into is not trusted.
    shared = next(temporary.iterdir())
    assert shared.stat().st_mode & 0o777 == 0o700
    shared.chmod(0o777)
    other = builders.prepare("atis", root)
    assert other.is_relative_to(temporary) and not other.is_relative_to(shared)
    monkeypatch.setattr(builders.tempfile, "tempdir", str(blocked))
    monkeypatch.setattr(builders.tempfile, "mkdtemp", lambda **_: str(blocked))
    with pytest.raises(
        OSError, match="TRUSTML_CACHE=.*cannot hold.*set TRUSTML_CACHE to"
    ):
        builders.prepare("atis", root)


def test_data_that_is_not_there(cache, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError) as error:
        datasets.load("atis")
    assert str(error.value) == (
        "data.name='atis' needs the file atis/train.jsonl.gz (TRUSTML_DATA is not set);"
        " set TRUSTML_DATA to the directory that holds it, made from "
        "github.com/MiuLab/SlotGated-SLU (data/atis)."
    )
    root = write_atis(tmp_path / "data")
    (root / "atis" / "test.jsonl.gz").unlink()
    monkeypatch.setenv("TRUSTML_DATA", str(root))
    place = f"looked for {root}/atis/test.jsonl.gz, TRUSTML_DATA={root}"
    with pytest.raises(FileNotFoundError, match=place):
        datasets.load("atis")
    with pytest.raises(FileNotFoundError, match=f"data_dir={tmp_path}"):
        datasets.load("mnist", data_dir=tmp_path)


def test_data_that_is_malformed(cache, tmp_path):
    root = write_atis(
        tmp_path / "data", {**ROWS, "valid": [{"tokens": [], "slots": []}]}
    )
    with pytest.raises(ValueError, match="valid.jsonl.gz.* line 1 lacks .*'intent'"):
        datasets.load("atis", data_dir=root)
    (root / "mnist").mkdir()
    np.savez(root / "mnist" / "mnist.npz", x_train=np.zeros((1, 28, 28), np.uint8))
    with pytest.raises(ValueError, match="mnist.npz=.*does not hold x_train, y_train"):
        datasets.load("mnist", data_dir=root)


@pytest.mark.parametrize(
    "options, sentence",
    [
        (
            {"name": "snip"},
            "data.name='snip' is not one of snips.*did you mean 'snips'",
        ),
        ({"max_length": 0}, "data.max_length=0 must be >= 1"),
        ({"limit": -2}, "data.limit=-2 must be >= 0"),
        ({"seed": -2}, "seed=-2 must be >= 0"),
        (
            {"vocabulary": "words"},
            "data.vocabulary='words' is not one of hashed, train",
        ),
        ({"vocabulary_size": 1}, "data.vocabulary_size=1 must be >= 2"),
        ({"vocabulary": "pretrained"}, "needs a checkpoint; set pretrained_dir"),
    ],
)
def test_wrong_options_get_a_sentence(cache, tmp_path, options, sentence):
    root = write_atis(tmp_path / "data")
    with pytest.raises(ValueError, match=sentence):
        datasets.load(**{"name": "atis", "data_dir": root, **options})


def write_adult(root, people):
    (root / "adult").mkdir(parents=True)
    for split in ("train", "test"):
        lines = [",".join(PERSON), *(",".join(person.values()) for person in people)]
        text = "\n".join(lines) + "\n"
        path = root / "adult" / f"{split}.csv.gz"
        path.write_bytes(gzip.compress(text.encode()))
    return root


def test_adult_features_are_public_constants(cache, tmp_path):
    people = [{**PERSON, "age": str(age)} for age in range(20, 70)]
    people[3]["income"] = ">50K"
    data = datasets.load("adult", data_dir=write_adult(tmp_path / "data", people))
    features = dict(zip(data.feature_names, data.test["features"][19], strict=True))
    set_to_one = {
        "workclass=State-gov",
        "marital_status=Never-married",
        "occupation=?",
        "relationship=Not-in-family",
        "race=Black",
        "sex=Female",
        "native_country=United-States",
    }
    assert features.pop("age") == np.float32((39 - 40) / 15)
    assert features.pop("education_num") == np.float32((13 - 10) / 2.5)
    assert features.pop("hours_per_week") == 1
    gain = np.log1p(2174) / np.log1p(100_000)
    np.testing.assert_allclose(features.pop("capital_gain"), gain, rtol=1e-6)
    assert {name for name, value in features.items() if value} == set_to_one
    assert set(features.values()) == {0, 1}
    assert len(data.feature_names) == 91
    assert data.label_names == ("<=50K", ">50K")
    assert data.test["label"].tolist() == [int(n == 3) for n in range(50)]
    ages = np.arange(20, 70)
    buckets = [sum(age > edge for edge in (29, 44, 59)) for age in ages]
    assert data.groups["test"]["age"].tolist() == buckets
    race = [data.group_names["race"][n] for n in data.groups["test"]["race"]]
    assert set(race) == {"Black"}
    # The tenth that is held out keeps its groups, and no row is lost.
    held = len(data.valid["label"])
    assert 0 < held < 15 and held + len(data.train["label"]) == 50
    assert len(data.groups["valid"]["sex"]) == held


def test_adult_refuses_what_is_not_public(tmp_path, cache):
    people = [PERSON, {**PERSON, "race": "Klingon"}]
    root = write_adult(tmp_path / "data", people)
    with pytest.raises(
        ValueError, match="train.csv.gz.* line 3 has race='Klingon', wh"
    ):
        datasets.load("adult", data_dir=root)
    with pytest.raises(ValueError, match="has age='-1', which is no number >= 0"):
        adult.features({**PERSON, "age": "-1"})


def test_images_are_scaled_and_held_out(cache, tmp_path):
    (tmp_path / "mnist").mkdir()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (80, 28, 28), dtype=np.uint8)
    labels = rng.integers(0, 10, 80, dtype=np.uint8)
    arrays = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
    np.savez(tmp_path / "mnist" / "mnist.npz", **arrays)
    data = datasets.load("mnist", data_dir=tmp_path)
    np.testing.assert_allclose(data.test["image"][..., 0], images / 255, rtol=1e-6)
    assert data.test["image"].dtype == np.float32
    np.testing.assert_array_equal(data.test["label"], labels)
    held, kept = data.valid["image"], data.train["image"]
    assert 0 < len(held) < 20 and len(held) + len(kept) == 80
    assert data.tokenizer is None and data.vocab_size == 0 and data.groups["test"] == {}


def write_location30(root, **arrays):
    (root / "location30").mkdir(parents=True, exist_ok=True)
    np.savez(root / "location30" / "location30.npz", **arrays)
    return root


def test_location30_keeps_every_person_once(cache, tmp_path):
    rng = np.random.default_rng(0)
    features = rng.integers(0, 2, (90, 12), dtype=np.uint8)
    labels = rng.integers(0, 30, 90, dtype=np.uint8)
    data = datasets.load(
        "location30", data_dir=write_location30(tmp_path, x=features, y=labels)
    )
    parts = [data.train, data.valid, data.test]
    found = np.concatenate([part["features"] for part in parts])
    assert found.dtype == np.float32 and min(len(p["label"]) for p in parts) > 0
    known = np.concatenate([part["label"] for part in parts])
    rows = sorted(np.column_stack([known, found]).tolist())
    assert rows == sorted(np.column_stack([labels, features]).tolist())
    assert data.label_names == tuple(str(n) for n in range(30))


BAD_LOCATION30 = {
    "no labels": {"x": np.zeros((2, 3), np.uint8)},
    "a label short": {"x": np.zeros((2, 3), np.uint8), "y": np.zeros(1, np.uint8)},
}


@pytest.mark.parametrize("arrays", BAD_LOCATION30.values(), ids=BAD_LOCATION30)
def test_location30_that_is_malformed(cache, tmp_path, arrays):
    root = write_location30(tmp_path, **arrays)
    with pytest.raises(ValueError, match="location30.npz=.*does not hold x and y as"):
        datasets.load("location30", data_dir=root)
