"""Paragraphs to learn from: spaces taken back, sentences with the mark left out."""

import gzip
import json

import pytest

from trustml.data import prose

_TEXT = """
 = Robert =

 He paid $ 2 @,@ 000 , " half " . It 's <unk> . A guest @-@ role ( small ) .
 <unk> sang .

 = = Career = =
"""


@pytest.fixture
def root(tmp_path):
    (tmp_path / "wikitext2").mkdir()
    for part, text in (("test", _TEXT), ("valid", " Held out .\n")):
        with gzip.open(tmp_path / "wikitext2" / f"{part}.txt.gz", "wt") as file:
            file.write(text)
    return tmp_path


def test_text_as_people_write_it(root):
    found = prose.read(("wikitext2",), str(root))
    assert found.train == ['He paid $2,000, "half". A guest-role (small).']
    assert found.held_out == ["Held out."]
    assert prose.plain("they don 't , it 's 3 @.@ 5 %") == "they don't, it's 3.5%"


def test_a_second_corpus_adds_to_training(root):
    (root / "squad").mkdir()
    with gzip.open(root / "squad" / "v11_contexts.jsonl.gz", "wt") as file:
        file.write(
            json.dumps({"context_id": 0, "context": "Two  spaces\nhere."}) + "\n"
        )
    found = prose.read(data_dir=str(root))
    assert found.train[1:] == ["Two spaces here."]
    assert found.held_out == ["Held out."]


def test_what_is_not_there_is_named(tmp_path, root):
    with pytest.raises(FileNotFoundError, match=r"wikitext2 under .*WikiText-2"):
        prose.read(("wikitext2",), str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="squad under"):
        prose.read(data_dir=str(root))
    with pytest.raises(ValueError, match="has nothing held out"):
        prose.read(("squad",), str(root))


@pytest.mark.data
def test_the_published_files(data_dir):
    found = prose.read(data_dir=str(data_dir))
    assert len(found.train) == 3386 and len(found.held_out) == 1261
    assert not any("<unk>" in text or " @" in text for text in found.train[:1319])
