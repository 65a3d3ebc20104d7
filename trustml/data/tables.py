"""Tables of text: TSV, CSV and JSON lines, gzipped or not, to rows with line numbers.

Every defect of a file is one sentence with its line: a row with too few fields, bytes
that are not UTF-8, a header that names a column twice, JSON that does not parse.

* `.tsv`: one header line; fields split at tabs, no quoting: a column whose fields are
  all wrapped in quotes is refused, as they would become part of the text.
* `.csv`: one header line; commas, fields quoted with `"` where needed (RFC 4180).
* `.jsonl`: one JSON object a line.

Lines that are wholly empty are skipped. A byte-order mark at the start is dropped.

Example::

    table = tables.read('reviews.tsv.gz', field='data.path')
    for line, row in zip(table.lines, table.rows):
        row['text'], row['label']
"""

import codecs
import csv
import gzip
import io
import json
import pathlib
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from trustml import _validate

SUFFIXES = (".tsv", ".csv", ".jsonl")


class Table(NamedTuple):
    """Rows of a file.

    Attributes:
      where: the file, for error sentences, such as `data.path='x.tsv'`.
      columns: names, in the order of the header (of the first object, for JSON lines).
      rows: column name -> value; strings, except in JSON lines.
      lines: number of the line that each row starts on, from 1.
      content: bytes of the file as it lies on the disk.
      quotes_are_text: True for TSV, which has no quoting.
    """

    where: str
    columns: tuple[str, ...]
    rows: list[dict[str, Any]]
    lines: list[int]
    content: bytes
    quotes_are_text: bool = False

    def error(self, row: int, what: str) -> ValueError:
        """The error about one row: the file, its line, and `what` with the cure."""
        return ValueError(f"{self.where} line {self.lines[row]} {what}")


def read(path, field: str = "data.path") -> Table:
    """Reads a table; its form is told from the suffix.

    Args:
      path: of a `.tsv`, `.csv` or `.jsonl` file, or one of these with `.gz`.
      field: name of the configuration field that holds the path, for errors.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the file is malformed; names the line.
    """
    full = _validate.existing_file(field, path)
    where = f"{field}={str(path)!r}"
    suffixes = [s.lower() for s in full.suffixes]
    packed = suffixes[-1:] == [".gz"]
    kind = (suffixes[:-1] if packed else suffixes)[-1:]
    if not kind or kind[0] not in SUFFIXES:
        raise ValueError(
            f"{where} has the suffix {''.join(full.suffixes[-2:])!r}, which is none of "
            f"{', '.join(SUFFIXES)} (or one of these with .gz); "
            "convert or rename the file."
        )
    content = full.read_bytes()
    text = _decode(_unpack(content, where) if packed else content, where)
    if kind[0] == ".jsonl":
        columns, rows, lines = _read_jsonl(text, where)
    else:
        fields = _split_csv(text, where) if kind[0] == ".csv" else _split_tsv(text)
        columns, rows, lines = _read_fields(fields, where)
    if not rows:
        raise ValueError(f"{where} holds no rows; give a file with examples.")
    return Table(where, columns, rows, lines, content, kind[0] == ".tsv")


def require(table: Table, field: str, column: str) -> None:
    """Raises if the table has no such column; the error names the nearest one."""
    if column in table.columns:
        if table.quotes_are_text:
            _refuse_quotes(table, column)
        return
    if f'"{column}"' in table.columns and table.quotes_are_text:
        raise ValueError(
            f"{table.where} wraps the column {column!r} in quotes, and in a .tsv they "
            "are part of the text; save it without quotes, or as .csv with commas."
        )
    guess = _validate.nearest(column, table.columns)
    hint = f"; did you mean {guess!r}?" if guess else f"; set {field} to one of these."
    raise ValueError(
        f"{field}={column!r} is not a column of {table.where}, which has "
        f"{', '.join(table.columns)}{hint}"
    )


def _refuse_separator(header: Sequence[str], where: str) -> None:
    """Raises where the header is one field that holds another separator."""
    if len(header) != 1:
        return
    for mark, name in ((";", "semicolons"), ("\t", "tabs"), (",", "commas")):
        if mark in header[0]:
            raise ValueError(
                f"{where} is one field ({header[0]!r}) that holds {name}; separate "
                ".csv by commas and .tsv by tabs, or rename the file."
            )


def stem(path: pathlib.Path) -> str:
    """Name of a data file without `.gz` and its suffix: `a/b.tsv.gz` -> `b`."""
    name = path.name
    for suffix in (".gz", *SUFFIXES):
        name = name.removesuffix(suffix)
    return name


def _refuse_quotes(table: Table, column: str) -> None:
    """Raises if every field of a column is wrapped in quotes."""
    fields = [str(row[column]) for row in table.rows]
    if len(fields) > 2 and all(len(f) > 1 and f[0] == f[-1] == '"' for f in fields):
        raise ValueError(
            f"{table.where} wraps every field of the column {column!r} in quotes, and "
            "in a .tsv these are part of the text; save it without quotes, or as .csv "
            "with commas."
        )


def _unpack(content: bytes, where: str) -> bytes:
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(
            f"{where} is not a whole gzip file ({error}); copy it again, or drop the "
            "suffix .gz if it is not compressed."
        ) from error


def _refuse_wide(content: bytes, where: str) -> None:
    """Raises if the characters are of two or four bytes, as some programs save them."""
    by, name = "the byte-order mark at its start", ""
    if content.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        name = "utf-32"
    elif content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        name = "utf-16"
    elif len(content) >= 4:
        zeros = tuple(byte == 0 for byte in content[:4])
        orders = {(False, True) * 2: "utf-16le", (True, False) * 2: "utf-16be"}
        by, name = "its zero bytes", orders.get(zeros, "")
    if name:
        raise ValueError(
            f"{where} looks like {name[:6].upper()}, by {by}; convert it, such as "
            f"with: iconv -f {name} -t utf-8."
        )


def _decode(content: bytes, where: str) -> str:
    _refuse_wide(content, where)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{where} line {line} is not UTF-8 (byte 0x{content[error.start]:02x} at "
            f"offset {error.start}); convert it, such as with: "
            "iconv -f latin1 -t utf-8."
        ) from error


def _split_tsv(text: str):
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        if line:
            yield number, line.split("\t")


def _split_csv(text: str, where: str):
    csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 1
    try:
        for fields in reader:
            if fields:
                yield line, fields
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"{where} line {line} is not CSV ({error}); quote fields that hold commas, "
            "quotes or line breaks."
        ) from error


def _read_fields(numbered, where: str):
    first, header = next(iter(numbered), (1, []))
    _refuse_separator(header, f"{where} line {first}")
    _refuse_duplicates(header, f"{where} line {first}")
    rows, lines = [], []
    for line, fields in numbered:
        if len(fields) != len(header):
            raise ValueError(
                f"{where} line {line} has {len(fields)} fields and the header "
                f"{len(header)} ({', '.join(header)}); give each row every field."
            )
        rows.append(dict(zip(header, fields, strict=True)))
        lines.append(line)
    return tuple(header), rows, lines


def _read_jsonl(text: str, where: str):
    rows, lines, row = [], [], None
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_members)
            if "\\u" in line:  # half of a pair of surrogates is no text
                json.dumps(row, ensure_ascii=False).encode()
        except _TwiceError as error:
            _refuse_duplicates(error.args[0], f"{where} line {number}")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{where} line {number} escapes a character that is not Unicode "
                f"({error.object[error.start]!a}); correct or drop the row."
            ) from error
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(
                f"{where} line {number} is not JSON ({error}); "
                "give one JSON object a line."
            ) from error
        if not isinstance(row, dict):
            raise ValueError(
                f"{where} line {number} is a JSON {type(row).__name__}, not an object; "
                'give objects such as {"text": "hello", "label": "greeting"}.'
            )
        rows.append(row)
        lines.append(number)
    columns = tuple(rows[0]) if rows else ()
    return columns, rows, lines


class _TwiceError(Exception):
    """A JSON object names a member twice; holds the names."""


def _members(pairs):
    row = dict(pairs)
    if len(row) < len(pairs):
        raise _TwiceError([name for name, _ in pairs])
    return row


def _refuse_duplicates(header: Sequence[str], where: str) -> None:
    if len(set(header)) == len(header):
        return
    twice = next(name for n, name in enumerate(header) if name in header[:n])
    raise ValueError(
        f"{where} names the column {twice!r} twice; give every column its own name."
    )
