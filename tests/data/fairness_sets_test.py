"""COMPAS, HateXplain and toxic comments: tiny files, then the published ones."""

import csv
import gzip
import io
import json

import numpy as np
import pytest

from trustml.data import builders, comments, compas, datasets, sources

PERSON = {
    "id": "1",
    "age": "35",
    "age_cat": "25 - 45",
    "race": "Other",
    "sex": "Male",
    "c_charge_degree": "F",
    "priors_count": "3",
    "juv_fel_count": "0",
    "juv_misd_count": "0",
    "juv_other_count": "1",
    "decile_score": "4",
    "two_year_recid": "1",
}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRUSTML_CACHE", str(tmp_path / "cache"))


def write_compas(folder, people):
    """The published columns, two of them twice; the second ones are wrong."""
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow([*PERSON, "decile_score", "priors_count"])
    for person in people:
        table.writerow([*person.values(), "9", "99"])
    (folder / compas.FILE).write_bytes(gzip.compress(text.getvalue().encode()))
    return folder


def test_compas_rows(tmp_path):
    people = [{**PERSON, "id": str(n)} for n in range(200)]
    found = compas.read(write_compas(tmp_path, people))
    row = found["train"][0]
    assert row["label"] == "new charge"
    log = np.log1p(40.0)
    wanted = [0.0, np.log1p(3) / log, 0, 0, np.log1p(1) / log, 1.0]
    np.testing.assert_allclose(row["features"], wanted, rtol=1e-6)
    assert compas.GROUP_NAMES["decile_score"][row["decile_score"]] == "4"
    assert compas.GROUP_NAMES["race"][row["race"]] == "Other"
    assert len(wanted) == len(compas.FEATURE_NAMES)
    # A person's split is a matter of the number alone; other rows have no say in it.
    some = compas.read(write_compas(tmp_path, people[:100]))
    assert {s: len(rows) for s, rows in found.items()} != {"train": 200}
    assert all(len(some[s]) <= len(found[s]) for s in found)
    assert sum(map(len, some.values())) == 100 and sum(map(len, found.values())) == 200


@pytest.mark.parametrize(
    ("column", "value", "sentence"),
    [
        ("race", "Martian", "line 3 has race='Martian'"),
        ("age", "-1", "line 3 has age='-1', which is no whole number"),
        ("decile_score", "11", "line 3 has decile_score='11'"),
        ("two_year_recid", "", "line 3 has two_year_recid=''"),
        ("c_charge_degree", "O", "line 3 has c_charge_degree='O'"),
        ("age_cat", "old", "line 3 has age_cat='old'"),
    ],
)
def test_compas_refuses_what_was_not_published(tmp_path, column, value, sentence):
    folder = write_compas(tmp_path, [PERSON, {**PERSON, column: value}])
    with pytest.raises(ValueError, match=sentence):
        compas.read(folder)


def test_compas_refuses_another_file(tmp_path):
    (tmp_path / compas.FILE).write_bytes(gzip.compress(b"a,b\n1,2\n"))
    with pytest.raises(ValueError, match="lacks the column 'id'"):
        compas.read(tmp_path)
    (tmp_path / compas.FILE).write_bytes(b"no gzip")
    with pytest.raises(ValueError, match="cannot be unpacked"):
        compas.read(tmp_path)


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(map(json.dumps, rows)) + "\n"
    path.write_bytes(gzip.compress(text.encode()))


def test_a_community_needs_two_of_three(tmp_path, cache):
    folder = tmp_path / "data" / "hatexplain"
    post = {"text": "a  b", "label": "offensive"}
    write_lines(folder / "train.jsonl.gz", [post, {**post, "label": "normal"}])
    said = [["Women", "Arab"], ["Women"], ["None"]]
    named = {**post, "annotators": {"target": said}}
    for split in ("valid", "test"):
        write_lines(folder / f"{split}.jsonl.gz", [named])
    data = datasets.load("hatexplain", data_dir=tmp_path / "data")
    assert data.texts["test"] == [["a", "b"]], "blanks are one blank"
    assert data.train["label"].tolist() == [1, 0]
    assert data.label_names == ("not toxic", "toxic")
    assert data.groups["test"]["Women"].tolist() == [1]
    assert data.groups["test"]["Arab"].tolist() == [0], "one voice of three"
    assert all(data.groups["train"][name].max() == -1 for name in comments.COMMUNITIES)
    write_lines(folder / "test.jsonl.gz", [{**named, "label": "undecided"}])
    with pytest.raises(ValueError, match="line 1 has label='undecided'"):
        comments.hatexplain(folder)


def test_terms_are_whole_words(tmp_path):
    (tmp_path / "adjectives_people.txt").write_text("gay\nmiddle aged\n\nold\n")
    terms = comments.terms(tmp_path)
    assert terms == ("gay", "middle aged", "old")
    texts = ["GAY!", "gold", "middle aged, old", "aged"]
    found = comments.mentions(texts, terms)
    wanted = [[1, 0, 0], [0, 0, 0], [0, 1, 1], [0, 0, 0]]
    np.testing.assert_array_equal(found, np.array(wanted, bool))
    text = "template\ttoxicity\tphrase\nx\ttoxic\thug a gay man\n"
    text += "x\tnontoxic\thug a old man\nx\tnontoxic\tgold\n"
    (tmp_path / "templates_en.tsv.gz").write_bytes(gzip.compress(text.encode()))
    made = comments.templates(tmp_path)
    assert made.labels.tolist() == [True, False, False]
    assert made.clusters.tolist() == [0, 0, 1], "the term alone differs"


@pytest.mark.data
def test_hatexplain_counts(data_dir):
    """The counts that the protocol of Mathew et al. leads to."""
    rows = comments.hatexplain(data_dir / "hatexplain")["test"]
    member = np.array([[row[name] for name in comments.COMMUNITIES] for row in rows])
    assert len(rows) == 1924
    assert sum(row["label"] == "toxic" for row in rows) == 1142
    assert member.any(axis=1).sum() == 1090
    found = member.sum(axis=0).tolist()
    assert found == [315, 194, 188, 182, 147, 85, 67, 52, 36, 35]


@pytest.mark.data
def test_toxicity_counts(data_dir):
    folder = data_dir / "toxicity_bias"
    rows = comments.toxicity(folder)
    assert [len(rows[s]) for s in ("train", "valid", "test")] == [10000, 1492, 2180]
    named = sum(row["identity"] for s in ("train", "test") for row in rows[s])
    assert 1200 < named < 1400  # 1,367 if parts of words count, too
    texts = [{row["text"] for row in rows[s]} for s in ("train", "valid", "test")]
    assert not texts[1] & (texts[0] | texts[2])
    made = comments.templates(folder)
    assert len(made.texts) == 76564 and made.labels.sum() == 38282
    assert len(made.terms) == 50 and made.clusters.max() + 1 == 2378


@pytest.mark.data
def test_compas_is_the_published_table(data_dir, cache):
    """ProPublica's counts of all 7,214 people: tn, fp, fn, tp."""
    source = sources.BY_NAME["compas"]
    rows = sources.rows(source, builders.locate(source))
    assert [len(rows[s]) for s in ("train", "valid", "test")] == [4340, 712, 2162]
    cells = np.zeros((6, 2, 2), int)
    for part in rows.values():
        for row in part:
            high, again = int(row["decile_score"] >= 4), row["label"] == "new charge"
            cells[row["race"], int(again), high] += 1
    assert cells[0].ravel().tolist() == [990, 805, 532, 1369]
    assert cells[1].ravel().tolist() == [1139, 349, 461, 505]
