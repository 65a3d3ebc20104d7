"""The report: one dictionary in, `report.json` and one `report.html` out.

The HTML is a single file without scripts and without anything loaded from elsewhere. It
opens with four questions in plain words (what is promised, what leaks, what it costs,
who is served worse), reads on a phone, prints, and follows the reader's light or dark
theme.

Five names to know:

- `report.write(workdir, report)`: both files; `schema` says what the dictionary holds.
- `html.render(report)`: the page as a string.
- `words.cards(report)`: the four answers as sentences, composed from the figures.
- `figures`: data in, inline SVG out; no state of matplotlib is touched.
- `frontier.write(workdir, points)`: table and figure of a sweep, accuracy against
  epsilon.

Example::

    from trustml import report

    accuracy = {'value': .95, 'lo': .93, 'hi': .96, 'n': 700}
    run = {'name': 'eps=8', 'private': True, 'epsilon_spent': 7.99, 'delta': 1e-5,
           'test': {'accuracy': accuracy}}
    page = report.write('runs/a', {'title': 'Intents', 'runs': [run]})

Every part of the dictionary is optional except `runs` and the name of each run: what
was not measured is said to be not measured. A figure never stands without its interval,
its baseline and the name of the method that made it.
"""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from trustml.report import html, schema


def write(workdir: str | os.PathLike, report: Mapping[str, Any]) -> pathlib.Path:
    """Writes `report.json` and `report.html` into a directory.

    Both appear whole or not at all: each is written beside its name and moved there.

    Args:
      workdir: directory; made if absent.
      report: as `schema` describes; NumPy and JAX numbers are fine.

    Returns:
      Path of the HTML file.

    Raises:
      ValueError: if the dictionary lacks its runs or their names; nothing is written.
    """
    clean = schema.check(report)
    page = html.render(clean)
    directory = pathlib.Path(workdir)
    directory.mkdir(parents=True, exist_ok=True)
    put(directory / "report.json", to_json(clean))
    return put(directory / "report.html", page)


def to_json(report: Mapping[str, Any]) -> str:
    """The report as JSON: keys sorted, NaN and infinity as null, stable text."""
    return (
        json.dumps(
            schema.clean(report),
            sort_keys=True,
            indent=1,
            ensure_ascii=False,
            allow_nan=False,
        )
        + "\n"
    )


def put(path: pathlib.Path, text: str) -> pathlib.Path:
    """Writes text so that a reader sees the old file or the new one, never a half.

    Raises:
      OSError: it cannot be written, as on a full disk; names the file.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        error.filename = str(path)  # a full disk is reported without
        raise
    return path
