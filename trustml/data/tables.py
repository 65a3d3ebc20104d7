"""Tables of text: TSV, CSV and JSON lines, gzipped or not, to rows with line numbers.

Every defect of a file is one sentence with its line: a row with too few fields, bytes
that are not UTF-8, a header that names a column twice, JSON that does not parse.

* `.tsv`: one header line; fields split at tabs. A field wrapped in `"` that doubles
  every `"` inside, as pandas, `csv` and spreadsheets write where a field needs it,
  loses them; any other quote is text. Where no quote of the file is text, wrapped
  fields may hold tabs and line breaks.
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
import re
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
    """

    where: str
    columns: tuple[str, ...]
    rows: list[dict[str, Any]]
    lines: list[int]
    content: bytes

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
        split = _split_csv if kind[0] == ".csv" else _split_tsv
        columns, rows, lines = _read_fields(split(text, where), where)
    if not rows:
        raise ValueError(f"{where} holds no rows; give a file with examples.")
    return Table(where, columns, rows, lines, content)


def read_columns(path, field: str, columns: Sequence[str]) -> Table:
    """As `read`, of a published file whose every row has these columns.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the file is malformed or a row lacks a column; names the line.
    """
    table = read(path, field)
    for n, row in enumerate(table.rows):
        missing = [column for column in columns if column not in row]
        if missing:
            raise table.error(
                n, f"lacks the column {missing[0]!r}; use the published file."
            )
    return table


def require(table: Table, field: str, column: str) -> None:
    """Raises if the table has no such column; the error names the nearest one."""
    if column in table.columns:
        return
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
        zeros = [byte == 0 for byte in content[:4]]
        by = "its zero bytes"
        if zeros == [False, True, False, True]:
            name = "utf-16le"
        elif zeros == [True, False, True, False]:
            name = "utf-16be"
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


# A field wrapped in quotes that doubles those inside. No step back (`*+`): a closing
# quote is never one of a pair.
_WRAPPED = re.compile(r'"([^"]*+(?:""[^"]*+)*+)"')
_FIELD = re.compile(rf"{_WRAPPED.pattern}(?=[\t\n]|\r\n|\r?\Z)|[^\t\n]*")


def _split_tsv(text: str, where: str):
    lines = [
        (number, line.removesuffix("\r").split("\t"))
        for number, line in enumerate(text.split("\n"), 1)
        if line not in ("", "\r")
    ]
    if '"' not in text or not lines:
        return iter(lines)
    rows = _quoted_rows(text)
    if rows is not None and {len(fields) for _, fields in rows} == {len(lines[0][1])}:
        if len(rows) < len(lines):
            _refuse_two_readings(rows, lines, where)
        lines = rows
    return iter([(number, [_unwrap(f) for f in fields]) for number, fields in lines])


def _quoted_rows(text: str) -> list[tuple[int, list[str]]] | None:
    """Rows whose wrapped fields hold tabs and line breaks; None if a quote is text."""
    rows, fields, line, first, at = [], [], 1, 1, 0
    while True:
        found = _FIELD.match(text, at)
        assert found is not None  # an empty field is one
        field, at = found[0], found.end()
        if found[1] is None and '"' in field:
            return None
        line += field.count("\n")
        fields.append(field)
        if text.startswith("\t", at):
            at += 1
            continue
        fields[-1] = fields[-1].removesuffix("\r")
        if fields != [""]:
            rows.append((first, fields))
        at = text.find("\n", at) + 1
        if not at:
            return rows
        fields, line = [], line + 1
        first = line


def _unwrap(field: str) -> str:
    wrapped = _WRAPPED.fullmatch(field)
    return wrapped[1].replace('""', '"') if wrapped else field


def _refuse_two_readings(rows, lines, where: str) -> None:
    """Raises if the file is as whole line by line as with line breaks in its fields."""
    if {len(fields) for _, fields in lines} == {len(lines[0][1])}:
        broken = next(n for n, fields in rows if any("\n" in f for f in fields))
        raise ValueError(
            f"{where} line {broken} has a quote that is closed on another line, and "
            "every line is whole without it; save the file as .csv with commas, or as "
            ".jsonl, so that it can be read in one way only."
        )


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
