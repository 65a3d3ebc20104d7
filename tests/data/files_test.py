"""A user's files: forms that agree, splits by content, and every defect's sentence."""

import csv
import gzip
import io
import json

import numpy as np
import pytest

from trustml.data import files, tables

ROWS = [(f"play song {n} now", ("music", "weather", "book")[n % 3]) for n in range(60)]
WHOLE = {"valid_fraction": 0, "test_fraction": 0}


def write(path, content: str | bytes):
    content = content.encode() if isinstance(content, str) else content
    packed = path.name.endswith(".gz")
    path.write_bytes(gzip.compress(content) if packed else content)
    return path


def jsonl(*rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_every_form_gives_the_same_data(tmp_path):
    tsv = "text\tlabel\n" + "".join(f"{t}\t{c}\n" for t, c in ROWS)
    csv = "\ufefflabel,more,text\r\n" + "".join(f'{c},,"{t}"\r\n' for t, c in ROWS)
    lines = "\n" + jsonl(*({"text": t, "label": c, "n": 1} for t, c in ROWS)) + "\n"
    forms = {"a.tsv": tsv, "a.csv": csv, "a.jsonl": lines, "b.tsv.gz": tsv}
    made = [files.load(write(tmp_path / n, c), max_length=5) for n, c in forms.items()]
    first = made[0]
    assert first.name == "a" and made[3].name == "b"
    assert first.label_names == ("book", "music", "weather")
    sizes = [len(getattr(first, part)["label"]) for part in ("train", "valid", "test")]
    assert sum(sizes) == 60 and min(sizes) > 0 and sizes[0] > 35
    for other in made[1:]:
        for part in ("train", "valid", "test"):
            for name, column in getattr(first, part).items():
                np.testing.assert_array_equal(column, getattr(other, part)[name])
    back = dict(ROWS)
    for part in ("train", "valid", "test"):
        labels = [first.label_names[n] for n in getattr(first, part)["label"]]
        assert labels == [back[text] for text in first.texts[part]]


def test_the_split_of_a_row_depends_on_that_row_alone(tmp_path):
    def parts(rows, seed):
        text = "text\tlabel\n" + "".join(f"{t}\t{c}\n" for t, c in rows)
        data = files.load(write(tmp_path / "a.tsv", text), seed=seed)
        return {t: part for part, texts in data.texts.items() for t in texts}

    whole = parts(ROWS, 0)
    without = parts(ROWS[:20] + ROWS[21:], 0)
    assert without == {t: part for t, part in whole.items() if t != ROWS[20][0]}
    assert parts(ROWS, 1) != whole


def test_words_and_slots(tmp_path):
    rows = [
        {
            "tokens": ["fly", "to", "new", "york"],
            "slots": "O O B-c I-c",
            "intent": "go",
        },
        {"tokens": "hi", "slots": ["O"], "intent": "greet"},
    ]
    path = write(tmp_path / "a.jsonl", jsonl(*rows))
    options = {"label_column": "intent", "slots_column": "slots", "max_length": 5}
    data = files.load(path, tokens_column="tokens", **options, **WHOLE)
    assert data.slot_names == ("O", "B-c", "I-c")
    assert data.train["slots"].tolist() == [[0, 0, 1, 2, 0], [0, 0, 0, 0, 0]]
    assert data.train["length"].tolist() == [4, 1]
    text = "text\tslots\tintent\nfly to new york\tO O B-c I-c\tgo\nhi\tO\tgreet\n"
    other = files.load(write(tmp_path / "a.tsv", text), **options, **WHOLE)
    for name, column in data.train.items():
        np.testing.assert_array_equal(column, other.train[name])


def test_numbers_and_files_of_their_own(tmp_path):
    train = write(tmp_path / "a.csv", "x,y,label\n1,2.5,10\n-1e3,0,9\n")
    test = write(tmp_path / "b.csv", "y,label,x\n7,9,5\n")
    options = {"feature_columns": ["x", "y"], "valid_fraction": 0}
    data = files.load(train, test_path=test, **options)
    assert data.label_names == ("9", "10")
    assert data.train["features"].tolist() == [[1, 2.5], [-1000, 0]]
    assert data.train["features"].dtype == np.float32
    assert data.test["features"].tolist() == [[5, 7]]
    assert data.test["label"].tolist() == [0]
    assert data.feature_names == ("x", "y") and data.tokenizer is None
    assert data.valid["features"].shape == (0, 2) and data.valid["label"].shape == (0,)


def test_vocabulary_comes_from_the_training_rows_alone(tmp_path):
    train = write(tmp_path / "a.tsv", "text\tlabel\nred blue\tx\nred\ty\n")
    valid = write(tmp_path / "b.tsv", "text\tlabel\ngreen red\tx\n")
    options = {"vocabulary": "train", "vocabulary_size": 9, "test_fraction": 0}
    data = files.load(train, valid_path=valid, max_length=2, **options)
    assert data.train["tokens"].tolist() == [[2, 3], [2, 0]]
    assert data.valid["tokens"].tolist() == [[1, 2]]
    assert data.vocab_size == 4 and not data.tokenizer.public


def test_digest_and_limit(tmp_path):
    text = "text\tlabel\n" + "".join(f"{t}\t{c}\n" for t, c in ROWS)
    path = write(tmp_path / "a.tsv", text)
    whole = files.load(path)
    few = files.load(path, limit=5)
    assert len(few.train["label"]) == 5 and len(few.test["label"]) <= 5
    assert set(few.texts["train"]) < set(whole.texts["train"])
    digests = {whole.digest, few.digest, files.load(path, seed=1).digest}
    write(path, text.replace("song 7 ", "song 8 "))
    digests.add(files.load(path).digest)
    assert len(digests) == 4


GOOD = "text\tlabel\nhello\ta\nbye\tb\n"
TAGGED = {"tokens_column": "tokens", "slots_column": "slots"}
NUMBERS = {"feature_columns": ["x"]}

# File name, its content, options, the sentence that is raised.
DEFECTS = {
    "suffix": ("a.txt", GOOD, {}, r"'\.txt', which is none of \.tsv, \.csv, \.jsonl"),
    "no suffix": ("a", GOOD, {}, "has the suffix ''.*convert or rename"),
    "empty": ("a.tsv", "", {}, "holds no rows; give a file with examples"),
    "header only": ("a.tsv", "text\tlabel\n\n", {}, "holds no rows"),
    "no lines": ("a.jsonl", "\n", {}, "holds no rows"),
    "short row": (
        "a.tsv",
        "text\tlabel\nhello\ta\n\nbye\n",
        {},
        r"line 4 has 1 fields and the header 2 \(text, label\)",
    ),
    "long row": ("a.csv", "text,label\nhi, you,a\n", {}, "line 2 has 3 fields"),
    "open quote": ("a.csv", 'text,label\nhi,a\n"oh,b\n', {}, "line 3 is not CSV"),
    "after a quoted break": (
        "a.csv",
        'text,label\n"hi\nyou",a\noh\n',
        {},
        "line 4 has 1 fields",
    ),
    "not JSON": ("a.jsonl", '{"text": "x"}\n{"text": \n', {}, "line 2 is not JSON"),
    "surrogate": (
        "a.jsonl",
        jsonl({"text": "caf\u00e9", "label": "a"}, {"text": "\ud83d", "label": "b"}),
        {},
        r"line 2 escapes a character that is not Unicode \('\\ud83d'\)",
    ),
    "JSON list": (
        "a.jsonl",
        '["x", "a"]\n',
        {},
        "line 1 is a JSON list, not an object",
    ),
    "JSON twice": (
        "a.jsonl",
        '{"a": 1, "a": 2}\n',
        {},
        "line 1 names the column 'a' tw",
    ),
    "header twice": (
        "a.tsv",
        "label\tlabel\nx\ty\n",
        {},
        "names the column 'label' tw",
    ),
    "latin-1": (
        "a.tsv",
        b"text\tlabel\nhello\ta\ncaf\xe9\tb\n",
        {},
        r"line 3 is not UTF-8 \(byte 0xe9 at offset 22\).*iconv",
    ),
    "semicolons": (
        "a.csv",
        "text;label\nhi;a\nyou;b\n",
        {},
        "line 1 is one field .* that holds semicolons; separate .csv by commas",
    ),
    "tabs in a csv": ("a.csv", GOOD, {}, "holds tabs; .* or rename the file"),
    "commas in a tsv": (
        "a.tsv",
        "text,label\nhi,a\nyou,b\n",
        {},
        "holds commas; .*.tsv by tabs",
    ),
    "quotes that open and close on lines that are whole": (
        "a.tsv",
        'text\tlabel\nhi\ta\n"I will go\ta\nand stay"\tb\n',
        {},
        "line 3 has a quote that is closed on another line, and every line is whole "
        "without it; .*as .csv with commas, or as .jsonl",
    ),
    "quoted line break among quotes that are text": (
        "a.tsv",
        'text\tlabel\nsay "hi"\ta\n"two\nlines"\tb\n',
        {},
        "line 3 has 1 fields and the header 2",
    ),
    "utf-16": (
        "a.tsv",
        GOOD.encode("utf-16"),
        {},
        "'.*a.tsv' looks like UTF-16, by the byte-order mark at its start; convert it, "
        "such as with: iconv -f utf-16 -t utf-8.",
    ),
    "utf-16 of the other order": (
        "a.csv.gz",
        b"\xfe\xff" + "text,label\nhi,a\n".encode("utf-16-be"),
        {},
        "looks like UTF-16, by the byte-order mark.* iconv -f utf-16 -t utf-8.",
    ),
    "utf-16 without a mark": (
        "a.jsonl",
        jsonl({"text": "hi", "label": "a"}).encode("utf-16-le"),
        {},
        "looks like UTF-16, by its zero bytes; .* iconv -f utf-16le -t utf-8.",
    ),
    "utf-16 of the other order without a mark": (
        "a.tsv",
        GOOD.encode("utf-16-be"),
        {},
        "looks like UTF-16, by its zero bytes; .* iconv -f utf-16be -t utf-8.",
    ),
    "utf-32": (
        "a.tsv",
        GOOD.encode("utf-32"),
        {},
        "looks like UTF-32, by the byte-order mark.* iconv -f utf-32 -t utf-8.",
    ),
    "twin labels": (
        "a.tsv",
        "text\tlabel\nhi\tgood\noh\tbad\nyou\tgood \n",
        {},
        "line 4 has label='good ', which differs from 'good' in blanks or composed",
    ),
    "labels that look alike": (
        "a.tsv",
        "text\tlabel\nhi\tcaf\u00e9\noh\tbad\nyou\tcafe\u0301\n",
        {},
        r"line 4 has label='cafe\\u0301', which differs from 'caf\\xe9'",
    ),
    "semicolons and commas": (
        "a.csv",
        "text;label\nhi, you;a\nyou;b\n",
        {},
        "line 1 is one field .* that holds semicolons",
    ),
    "column": (
        "a.tsv",
        GOOD,
        {"text_column": "txt"},
        "data.text_column='txt' is not a column of .* text, label; did you mean 'text'",
    ),
    "far column": (
        "a.tsv",
        GOOD,
        {"label_column": "zzz"},
        "data.label_column='zzz' is not a column of .*; set data.label_column to one",
    ),
    "tokens column": ("a.tsv", GOOD, {"tokens_column": "w"}, "data.tokens_column='w'"),
    "feature column": ("a.tsv", GOOD, NUMBERS, "data.feature_columns='x' is not a"),
    "no label column": (
        "a.tsv",
        GOOD,
        {"label_column": ""},
        "label_column='' must name",
    ),
    "column missing later": (
        "a.jsonl",
        jsonl({"text": "x", "label": "a"}, {"text": "y"}),
        {},
        "line 2 lacks the column 'label'",
    ),
    "one label": (
        "a.tsv",
        "text\tlabel\nhi\ta\nyou\ta\n",
        {},
        r"has the labels \('a',\); give at least two",
    ),
    "empty label": (
        "a.tsv",
        "text\tlabel\nhi\t\n",
        {},
        "line 2 has label=''; give a l",
    ),
    "null label": ("a.jsonl", jsonl({"text": "x", "label": None}), {}, "label=None"),
    "real label": (
        "a.jsonl",
        jsonl({"text": "x", "label": 1.5}),
        {},
        "label=1.5; give",
    ),
    "text is a number": (
        "a.jsonl",
        jsonl({"text": 3, "label": 1}),
        {},
        "text=3; give t",
    ),
    "label outside": (
        "a.tsv",
        GOOD,
        {"label_names": ("aa", "b")},
        "line 2 has label='a', which is not among those of the given label_names; did",
    ),
    "tags": (
        "a.tsv",
        "tokens\tslots\tlabel\nhi you\tO O\ta\nhi you\tO\tb\n",
        TAGGED,
        "line 3 has 2 words in 'tokens' and 1 tags in 'slots'; give every word one tag",
    ),
    "token list": (
        "a.jsonl",
        jsonl({"tokens": ["a", 1], "slots": "O O", "label": "a"}),
        TAGGED,
        r"line 1 has tokens=\['a', 1\]; give a list of words",
    ),
    "nan": (
        "a.csv",
        "x,label\n1,a\nnan,b\n",
        NUMBERS,
        "line 3 has x='nan'; give a fin",
    ),
    "inf": ("a.jsonl", '{"x": Infinity, "label": 1}\n', NUMBERS, "line 1 has x=inf"),
    "too large": ("a.csv", "x,label\n1e39,a\n", NUMBERS, "line 2 has x='1e39'"),
    "word": ("a.csv", "x,label\none,a\n", NUMBERS, "line 2 has x='one'"),
    "features as text": (
        "a.tsv",
        GOOD,
        {"feature_columns": "text"},
        r"data.feature_columns='text' must be a list.*give \['text'\]",
    ),
    "two kinds": (
        "a.tsv",
        GOOD,
        {**NUMBERS, "slots_column": "s"},
        "are both set; use numbers or words",
    ),
    "fraction": (
        "a.tsv",
        GOOD,
        {"valid_fraction": 1.0},
        "valid_fraction=1.0 must be at",
    ),
    "negative": (
        "a.tsv",
        GOOD,
        {"test_fraction": -0.1},
        "test_fraction=-0.1 must be at",
    ),
    "fractions": (
        "a.tsv",
        GOOD,
        {"valid_fraction": 0.5, "test_fraction": 0.5},
        "leave nothing to train on; let their sum be below 1",
    ),
    "none to train on": (
        "a.tsv",
        GOOD,
        {"valid_fraction": 0.5, "test_fraction": 0.4999999},
        "has 2 rows, and .* leave none to train on",
    ),
    "max_length": ("a.tsv", GOOD, {"max_length": 0}, "data.max_length=0 must be >= 1"),
    "limit": ("a.tsv", GOOD, {"limit": -1}, "data.limit=-1 must be >= 0; 0 keeps all"),
    "seed": ("a.tsv", GOOD, {"seed": -1}, "seed=-1 must be >= 0"),
    "vocabulary": (
        "a.tsv",
        GOOD,
        {"vocabulary": "hash"},
        "data.vocabulary='hash' is not one of hashed, .*; did you mean 'hashed'",
    ),
    "no checkpoint": (
        "a.tsv",
        GOOD,
        {"vocabulary": "pretrained"},
        "needs a checkpoint",
    ),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_every_defect_gets_its_sentence(tmp_path, name):
    file, content, options, sentence = DEFECTS[name]
    path = write(tmp_path / file, content)
    with pytest.raises(ValueError, match=sentence) as error:
        files.load(path, **options)
    assert "\n" not in str(error.value) and str(error.value)[-1] in ".?"


# Texts that a writer of quoted fields has to quote, or that only look like it.
QUOTED = [
    '"hello" he said',
    'he said "hello"',
    '"hello"',
    '"yes" and "no"',
    '"',
    '""',
    'a\ttab and a quote"',
    "two\nlines",
    "two\r\nlines, and\ta\ttab\n",
    "it's plain",
    '"\'"',
]


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["lf", "crlf"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_a_tsv_of_a_csv_writer_is_read_as_it_was_written(tmp_path, quoting, end):
    written = io.StringIO(newline="")
    writer = csv.writer(written, delimiter="\t", quoting=quoting, lineterminator=end)
    writer.writerow(["id", "text", "label"])
    writer.writerows([n, text, "ab"[n % 2]] for n, text in enumerate(QUOTED))
    path = write(tmp_path / "a.tsv", written.getvalue())
    table = tables.read(path)
    assert [row["text"] for row in table.rows] == QUOTED
    assert [row["label"] for row in table.rows] == ["ab"[n % 2] for n in range(11)]
    assert table.lines == [2, 3, 4, 5, 6, 7, 8, 9, 11, 14, 15]
    assert files.load(path, test_path=path, **WHOLE).texts["test"] == QUOTED


def test_a_tsv_with_some_fields_quoted(tmp_path):
    """Letter for letter as QUOTE_MINIMAL writes it, pandas' default."""
    text = 'text\tlabel\n"say ""hi"""\ta\nplain\tb\n"a\tb"\ta\n"""hello"" he said"\tb\n'
    table = tables.read(write(tmp_path / "a.tsv", text))
    want = ['say "hi"', "plain", "a\tb", '"hello" he said']
    assert [row["text"] for row in table.rows] == want


def test_quotes_that_are_text_stay(tmp_path):
    """A file that is not quoted throughout; only fields that are wrapped lose them."""
    fields = {
        '"hello" he said': '"hello" he said',
        '"yes" and "no"': '"yes" and "no"',
        '"the start of a quotation': '"the start of a quotation',
        'its end"': 'its end"',
        '"""': '"""',
        '"': '"',
        '"he said ""hi"""': 'he said "hi"',
        '"wrapped"': "wrapped",
        "it's": "it's",
    }
    text = "text\tlabel\n" + "".join(f"{field}\ta\n" for field in fields)
    table = tables.read(write(tmp_path / "a.tsv", text))
    assert [row["text"] for row in table.rows] == list(fields.values())
    assert table.lines == list(range(2, 11))


def test_files_that_are_not_there(tmp_path):
    write(tmp_path / "train.tsv", GOOD)
    with pytest.raises(
        FileNotFoundError, match="looked for .*did you mean 'train.tsv'"
    ):
        files.load(tmp_path / "trian.tsv")
    with pytest.raises(FileNotFoundError, match="data.test_path=.*looked for"):
        files.load(tmp_path / "train.tsv", test_path=tmp_path / "none.tsv")
    with pytest.raises(ValueError, match="data.path='' must be the path of a file"):
        files.load("")
    with pytest.raises(ValueError, match="data.path=.* is a directory"):
        files.load(tmp_path)


def test_gzip_that_is_none_or_is_cut(tmp_path):
    path = tmp_path / "a.tsv.gz"
    for content in (GOOD.encode(), gzip.compress(GOOD.encode())[:-12]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is not a whole gzip file"):
            files.load(path)


def test_a_label_of_valid_that_train_lacks(tmp_path):
    train = write(tmp_path / "a.tsv", "text\tlabel\nhello\tmusic\nbye\tweather\n")
    valid = write(tmp_path / "b.tsv", "text\tlabel\nhello\tmusic\nbye\tmusik\n")
    sentence = (
        "data.valid_path=.* line 3 has label='musik', which is not among those of the "
        r"training file; did you mean 'music'\?"
    )
    with pytest.raises(ValueError, match=sentence):
        files.load(train, valid_path=valid)
