"""Rows of small files written here, by hand; the real files are in datasets_test."""

import gzip
import json

import numpy as np
import pytest

from trustml.data import corpora, sources


def _write(path, rows):
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def test_posts_without_an_author_are_users_of_their_own(tmp_path):
    rows = [
        {"id": "a/1", "author": None, "subject": "S", "text": "T", "label": "a"},
        {"id": "b/2", "author": "x", "subject": "U", "text": "V", "label": "b"},
    ]
    for split in ("train", "test"):
        _write(tmp_path / f"{split}.jsonl.gz", rows)
    found = corpora.newsgroups20(tmp_path)["train"]
    assert [row["user"] for row in found] == ["unknown: a/1", "x"]
    assert [row["text"] for row in found] == ["S\nT", "U\nV"]


def test_tagged_words_and_the_label_of_the_first_entity(tmp_path):
    rows = [
        {"tokens": ["in", "New", "York"], "ner": ["O", "B-location", "I-location"]},
        {"tokens": ["hi"], "ner": ["O"]},
    ]
    for part in ("train", "dev", "test"):
        _write(tmp_path / f"{part}.jsonl.gz", rows)
    found = corpora.wnut17(tmp_path)["valid"]
    assert found[0] == {
        "text": "in New York",
        "slots": "O B-location I-location",
        "label": "location",
    }
    assert found[1]["label"] == corpora.NONE
    _write(tmp_path / "dev.jsonl.gz", [{"tokens": ["a", "b"], "ner": ["O"]}])
    with pytest.raises(ValueError, match="line 1 has not one tag for each word"):
        corpora.wnut17(tmp_path)


def test_questions_have_their_paragraph_and_all_answers(tmp_path):
    context = {"context_id": 4, "title": "Nile", "context": "The Nile is long."}
    question = {
        "context_id": 4,
        "question": "In which land, and what?",
        "answers": ["Nile", "The Nile"],
        "answer_start": [4, 0],
    }
    _write(tmp_path / "v11_contexts.jsonl.gz", [context])
    for split in ("train", "test"):
        _write(tmp_path / f"v11_{split}.jsonl.gz", [question])
    (row,) = corpora.squad(tmp_path)["test"]
    assert row["text"][slice(*row["span"])] == "Nile" and row["user"] == "Nile"
    assert json.loads(row["references"]) == ["Nile", "The Nile"]
    assert row["label"] == "which" and row["span"].dtype == np.int32
    _write(tmp_path / "v11_train.jsonl.gz", [{**question, "context_id": 5}])
    with pytest.raises(ValueError, match="no paragraph or no answer"):
        corpora.squad(tmp_path)


@pytest.mark.parametrize(
    ("question", "label"),
    [("Whose is it?", "who"), ("HOW many?", "how"), ("Name it.", "other")],
    ids=["whose", "how", "none"],
)
def test_the_word_that_asks(question, label):
    assert corpora.asking(question) == label


def test_sentences_of_one_meaning_are_references_of_each_other(tmp_path):
    text = "mr\tref\nname[A B], priceRange[high]\tone\nname[C]\ttwo\n"
    text += "name[A B], priceRange[high]\tthree\n"
    for part in ("dev", "test"):
        (tmp_path / f"{part}.tsv.gz").write_bytes(gzip.compress(text.encode()))
    found = corpora.e2e_nlg(tmp_path)["train"]
    assert [json.loads(row["references"]) for row in found] == [
        ["one", "three"],
        ["two"],
        ["one", "three"],
    ]
    assert [row["label"] for row in found] == ["high", "none", "high"]
    assert corpora.attributes("name[A B], customer rating[5 out of 5]") == {
        "name": "A B",
        "customer rating": "5 out of 5",
    }


@pytest.mark.data
def test_labels_are_those_that_are_named_and_splits_share_no_meaning(data_dir):
    for name in ("wnut17", "ud_ewt", "squad", "e2e_nlg"):
        source = sources.BY_NAME[name]
        rows = sources.rows(source, data_dir / name)
        assert {r["label"] for part in rows.values() for r in part} == set(
            source.label_names
        )
        if name in ("squad", "e2e_nlg"):
            texts = [{r["text"] for r in rows[s]} for s in ("train", "valid", "test")]
            assert not texts[0] & texts[1] and not (texts[0] | texts[1]) & texts[2]
