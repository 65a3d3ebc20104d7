"""A user's own data: one TSV, CSV or JSONL file with named columns, and no code.

    data = files.load('reviews.tsv', text_column='review', label_column='stars')

Texts with a label; words with a slot each (`tokens_column`, `slots_column`); or numbers
with a label (`feature_columns`). Validation and test come from files of their own, or
are carved from the one file by a hash of each row's content, so that a row's split
depends on that row alone (see `trustml.data.dataset`). Where a column says whose each
row is (`user_column`), by a hash of the user: all rows of a user stay together.

The set of labels is taken from the training file, and is then public: give
`label_names` where that set is itself a secret. Numbers are used as they are: scale
them beforehand by constants that you know without looking at the data, because their
mean and spread over private rows would be releases.

Example::

    data = files.load('queries.jsonl.gz', tokens_column='tokens', slots_column='slots',
                      label_column='intent', max_length=32, valid_fraction=0.1)
    data.train['slots'].shape, data.label_names
"""

import hashlib
import math
import pathlib
import unicodedata
from collections.abc import Sequence

import numpy as np

from trustml import _validate
from trustml.data import dataset, tables, tokenizers

_LARGEST = float(np.finfo(np.float32).max)  # features are kept in float32
_LENGTH_EDGES = (5, 10, 20)  # words; constants, see `dataset.assemble`


def load(
    path,
    *,
    valid_path="",
    test_path="",
    text_column: str = "text",
    label_column: str = "label",
    tokens_column: str = "",
    slots_column: str = "",
    feature_columns: Sequence[str] = (),
    user_column: str = "",
    label_names: Sequence[str] = (),
    max_length: int = 32,
    vocabulary: str = "hashed",
    vocabulary_size: int = 8192,
    pretrained_dir="",
    tokenizer: tokenizers.Tokenizer | None = None,
    valid_fraction: float = 0.1,
    test_fraction: float = 0.1,
    seed: int = 0,
    limit: int | None = 0,
) -> dataset.Dataset:
    """Loads a file of labelled examples.

    Args:
      path: of a `.tsv`, `.csv` or `.jsonl` file, or one of these with `.gz`.
      valid_path: file of the valid split; carved from `path` where empty.
      test_path: file of the test split; carved from `path` where empty.
      text_column: holds sentences.
      label_column: holds the label: text, or a whole number.
      tokens_column: holds words, as a JSON list or separated by blanks; takes the
        place of `text_column`.
      slots_column: holds a tag for every word, in the same form. Without
        `tokens_column` the text is split at blanks.
      feature_columns: hold numbers; take the place of text.
      user_column: of the training file, holds whose each row is: text, or a whole
        number; '' where every row stands for itself.
      label_names: every label, in order; those of the training file where empty.
      max_length: T, tokens of a text; the end of longer ones is dropped.
      vocabulary: 'hashed' (public), 'train' (words of the training text; not private)
        or 'pretrained' (of a checkpoint); see `trustml.data.tokenizers`.
      vocabulary_size: ids in all, for 'hashed' and 'train'.
      pretrained_dir: directory of the checkpoint, for 'pretrained'.
      tokenizer: takes the place of the three fields above.
      valid_fraction: share of rows carved for valid, in [0, 1); unused with
        `valid_path`.
      test_fraction: share of rows carved for test, likewise.
      seed: of the carving, and of the choice of `limit` rows.
      limit: examples kept of every split, chosen at random; 0 keeps all.

    Returns:
      The data. A split with neither file nor fraction has no rows.

    Raises:
      FileNotFoundError: if a file is not there.
      ValueError: for a malformed file (with the line), a missing column, a label
        outside the set, a number that is not finite, or a field out of its bounds.
    """
    limit = _validate.integer_at_least("data.limit", limit or 0, 0, "0 keeps all")
    seed = _validate.integer_at_least("seed", seed, 0)
    _validate.integer_at_least("data.max_length", max_length, 1, "try 32")
    _validate.one_of("data.vocabulary", vocabulary, dataset.VOCABULARIES)
    shares = {
        "valid": _fraction("data.valid_fraction", valid_fraction, valid_path),
        "test": _fraction("data.test_fraction", test_fraction, test_path),
    }
    if sum(shares.values()) >= 1:
        raise ValueError(
            f"data.valid_fraction={valid_fraction} and data.test_fraction="
            f"{test_fraction} leave nothing to train on; let their sum be below 1."
        )
    fields = {
        "data.text_column": text_column,
        "data.tokens_column": tokens_column,
        "data.slots_column": slots_column,
        "data.label_column": label_column,
    }
    if tokens_column or feature_columns:
        fields["data.text_column"] = ""
    _validate_columns(fields, feature_columns)
    paths = {"path": path, "valid_path": valid_path, "test_path": test_path}
    found = {
        field: tables.read(where, f"data.{field}")
        for field, where in paths.items()
        if field == "path" or where
    }
    splits = {
        field: _read_split(table, fields, feature_columns)
        for field, table in found.items()
    }
    if user_column:
        users = _users(found["path"], user_column)
        splits["path"] = splits["path"]._replace(users=users)
    names = _label_names(found, splits, label_names, label_column)
    carved = _carve(splits, shares, seed, found["path"])
    kept = {part: dataset.subset(split, limit, seed) for part, split in carved.items()}
    texts = kept["train"].texts
    if texts is not None and tokenizer is None:
        tokenizer = dataset.choose_tokenizer(
            vocabulary, vocabulary_size, pretrained_dir, texts
        )
    options = (fields, tuple(feature_columns), user_column, names, shares, seed, limit)
    contents = [hashlib.sha256(table.content).hexdigest() for table in found.values()]
    return dataset.assemble(
        kept,
        label_names=names,
        max_length=max_length,
        tokenizer=tokenizer if texts is not None else None,
        length_edges=_LENGTH_EDGES,
        digest_of=[repr(options), *found, *contents],
        name=tables.stem(pathlib.Path(path)),
        source=str(path),
        licence="the user's own",
        feature_names=tuple(feature_columns),
    )


def _fraction(field: str, value, path) -> float:
    share = _validate.in_half_open_interval(field, value, 0.0, 1.0, "try 0.1")
    return 0.0 if path else share


def _validate_columns(fields, feature_columns) -> None:
    if isinstance(feature_columns, str):
        raise ValueError(
            f"data.feature_columns={feature_columns!r} must be a list of column names; "
            f"give [{feature_columns!r}]."
        )
    if feature_columns and (
        fields["data.tokens_column"] or fields["data.slots_column"]
    ):
        raise ValueError(
            f"data.feature_columns={list(feature_columns)} and data.tokens_column or "
            "data.slots_column are both set; use numbers or words."
        )
    needed = {"data.label_column": fields["data.label_column"]}
    if not feature_columns and not fields["data.tokens_column"]:
        needed["data.text_column"] = fields["data.text_column"]
    for field, name in needed.items():
        if not name:
            raise ValueError(f"{field}={name!r} must name a column of the file.")


def _read_split(table: tables.Table, fields, feature_columns) -> dataset.Split:
    """All rows of a table as a `Split` whose labels are names."""
    for field, name in fields.items():
        if name:
            tables.require(table, field, name)
    for name in feature_columns:
        tables.require(table, "data.feature_columns", name)
    rows = range(len(table.rows))
    labels = [_label(table, n, fields["data.label_column"]) for n in rows]
    if feature_columns:
        values = [[_number(table, n, name) for name in feature_columns] for n in rows]
        return dataset.Split(labels, features=np.array(values, np.float32))
    slots_column = fields["data.slots_column"]
    column = fields["data.tokens_column"] or fields["data.text_column"]
    if not fields["data.tokens_column"] and not slots_column:
        return dataset.Split(labels, [_text(table, n, column) for n in rows])
    texts = [_word_list(table, n, column) for n in rows]
    if not slots_column:
        return dataset.Split(labels, texts)
    slots = [_word_list(table, n, slots_column) for n in rows]
    for n, (words, tags) in enumerate(zip(texts, slots, strict=True)):
        if len(words) != len(tags):
            raise table.error(
                n,
                f"has {len(words)} words in {column!r} and {len(tags)} tags in "
                f"{slots_column!r}; give every word one tag.",
            )
    return dataset.Split(labels, texts, slots)


def _cell(table: tables.Table, row: int, column: str):
    if column not in table.rows[row]:
        raise table.error(row, f"lacks the column {column!r}; give every row all.")
    return table.rows[row][column]


def _label(table: tables.Table, row: int, column: str, what: str = "a label") -> str:
    value = _cell(table, row, column)
    if not isinstance(value, (str, int)) or value == "":
        raise table.error(
            row, f"has {column}={value!r}; give {what}, as text or a whole number."
        )
    return str(value)


def _users(table: tables.Table, column: str) -> list[str]:
    """Whose each row is; two spellings of one user would be two units of privacy."""
    tables.require(table, "data.user_column", column)
    users = [_label(table, n, column, "a user") for n in range(len(table.rows))]
    _refuse_twins(table, users, tuple(sorted(set(users))), column)
    return users


def _text(table: tables.Table, row: int, column: str) -> str:
    value = _cell(table, row, column)
    if not isinstance(value, str):
        raise table.error(row, f"has {column}={value!r}; give text.")
    return value


def _word_list(table: tables.Table, row: int, column: str) -> list[str]:
    value = _cell(table, row, column)
    if isinstance(value, str):
        return value.split()
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise table.error(
            row, f"has {column}={value!r}; give a list of words, or words and blanks."
        )
    return value


def _number(table: tables.Table, row: int, column: str) -> float:
    value = _cell(table, row, column)
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or abs(number) > _LARGEST:
        raise table.error(
            row, f"has {column}={value!r}; give a finite number, or drop the row."
        )
    return number


def _label_names(found, splits, label_names, column: str) -> tuple[str, ...]:
    """The set of labels; raises where a row's label is outside it."""
    names = tuple(str(name) for name in label_names)
    if not names:
        names = dataset.sort_labels(splits["path"].labels)
        _refuse_twins(found["path"], splits["path"].labels, names, column)
    if len(set(names)) < 2 or len(set(names)) < len(names):
        table = found["path"]
        raise ValueError(
            f"data.label_column={column!r} of {table.where} has the labels {names}; "
            "give at least two, each once."
        )
    known = set(names)
    for field, split in splits.items():
        for n, label in enumerate(split.labels):
            if label in known:
                continue
            guess = _validate.nearest(label, names)
            where = "the given label_names" if label_names else "the training file"
            hint = f"did you mean {guess!r}?" if guess else "correct or drop the row."
            raise found[field].error(
                n,
                f"has {column}={label!r}, which is not among those of {where}; {hint}",
            )
    return names


def _refuse_twins(table, labels, names: tuple[str, ...], column: str) -> None:
    """Raises where two labels or users would look alike: `good` and `good `."""
    first: dict[str, str] = {}
    for name in names:
        alike = " ".join(unicodedata.normalize("NFC", name).split())
        twin = first.setdefault(alike, name)
        if twin != name:
            one, other = sorted((twin, name), key=labels.index)
            raise table.error(
                labels.index(other),
                f"has {column}={other!a}, which differs from {one!a} in blanks or "
                "composed letters only; write both alike.",
            )


def _carve(splits, shares, seed: int, table: tables.Table):
    """Train, valid and test: files of their own, or by a hash of each row or user."""
    whole = splits["path"]
    places = np.array(
        [
            dataset.hash_fraction(_content(whole, n), seed)
            for n in range(len(table.rows))
        ]
    )
    valid = places < shares["valid"]
    test = ~valid & (places < shares["valid"] + shares["test"])
    masks = {"train": ~valid & ~test, "valid": valid, "test": test}
    if not masks["train"].any():
        raise ValueError(
            f"{table.where} has {len(places)} rows, and data.valid_fraction and "
            "data.test_fraction leave none to train on; lower them, or give more rows."
        )
    out = {}
    for part, mask in masks.items():
        own = splits.get(f"{part}_path")
        out[part] = own or dataset.take(whole, np.flatnonzero(mask))
    return out


def _content(split: dataset.Split, row: int) -> bytes:
    if split.users is not None:
        return split.users[row].encode("utf-8", "surrogatepass")
    if split.texts is None:
        return np.asarray(split.features)[row].tobytes()
    text = split.texts[row]
    joined = text if isinstance(text, str) else "\0".join(text)
    return joined.encode("utf-8", "surrogatepass")
