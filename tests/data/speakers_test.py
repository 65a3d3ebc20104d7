"""Plays by speaker."""

import gzip
import json

import numpy as np
import pytest

from trustml.data import speakers


def write(directory, rows):
    folder = directory / "shakespeare"
    folder.mkdir()
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "plays.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    return str(directory)


def speech(speaker, text, play="p"):
    return {"play": play, "act": 1, "speaker": speaker, "text": text}


def test_speeches_of_a_speaker_become_windows_in_order(tmp_path):
    rows = [speech("A", "abcdefghi"), speech("B", "xy"), speech("A", "jklmnopqr")]
    rows += [speech("A", "other", play="q")]
    data = speakers.load(max_length=2, data_dir=write(tmp_path, rows))
    assert data.label_names == ("p: A", "p: B", "q: A")
    said = "abcdefghi\njklmnopqr"
    windows = [said[at : at + 2] for at in range(0, 19, 2)]

    def of(part, label):
        chosen = np.flatnonzero(getattr(data, part)["label"] == label)
        return [data.texts[part][n] for n in chosen]

    # Of 10 windows the last 2 are for testing, the one before them for validation.
    assert of("train", 0) == windows[:7]
    assert of("valid", 0) == windows[7:8] and of("test", 0) == windows[8:]
    assert of("train", 1) == ["xy"] and of("test", 1) == []
    assert set(data.user_ids) == {"p: A", "p: B", "q: A"}
    tokens = data.train["tokens"][0]
    alone = data.tokenizer.encode("ab", 2)[0]
    np.testing.assert_array_equal(tokens, alone)
    np.testing.assert_array_equal(data.test["length"], [2, 1])


def test_refuses_other_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"plays.jsonl.gz"):
        speakers.load(data_dir=str(tmp_path))
    path = write(tmp_path, [{"play": "p", "who": "A", "text": "t"}])
    with pytest.raises(ValueError, match="'speaker' is not a column"):
        speakers.load(data_dir=path)


@pytest.mark.data
def test_the_plays(data_dir):
    data = speakers.load(max_length=80, data_dir=str(data_dir))
    counts = [len(getattr(data, part)["label"]) for part in ("train", "valid", "test")]
    assert counts == [39158, 4916, 10368] and len(data.label_names) == 1371
    assert not np.any(data.train["tokens"] == 1)  # no character is unknown
