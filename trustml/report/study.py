"""A page for a study that is not a row of trained models: cards, figures, tables.

An attack on many shadow models, an audit, a table of canaries: each says its own
answers first (`words.Card`), then shows them. The style, the figures' hand and the
section on how things were measured are those of `trustml.report`.

Example::

    from trustml.report import study, tables, words

    shown = study.Section(
        'Attacks', tables=(tables.table(('attack', 'AUC'), rows, 'All attacks'),)
    )
    card = words.Card('What leaks?', 'LiRA finds 21% of members.', ())
    study.write(workdir, {'title': 'Location-30'}, (card,), (shown,), numbers={...})
"""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from trustml import report as report_lib
from trustml.report import html, schema, words


class Section(NamedTuple):
    """One part of the page.

    Attributes:
      title: its heading.
      text: sentences under it.
      figures: (title, SVG of `trustml.report.drawing`, caption) each.
      tables: HTML of `tables.table`.
    """

    title: str
    text: tuple[str, ...] = ()
    figures: tuple[tuple[str, str, str], ...] = ()
    tables: tuple[str, ...] = ()


def render(
    frame: Mapping[str, Any],
    cards: Sequence[words.Card],
    sections: Sequence[Section],
    *,
    methods: Sequence[str] = (),
    limits: Sequence[str] = (),
) -> str:
    """The page as HTML5, self-contained.

    Args:
      frame: title, command, created, versions, machine, data and task as in `schema`;
        all may be missing.
      cards: the answers, in the order of reading.
      sections: what stands behind them.
      methods: how it was measured, a sentence each.
      limits: what it does not show, a sentence each.
    """
    frame, body = schema.clean(frame), ""
    for part in sections:
        drawn = tuple(html.figure(*one) for one in part.figures)
        body += html.section(part.title, drawn, part.tables, part.text)
    body += html.measured(frame, tuple(methods)) + html.limits(tuple(limits))
    return html.page(frame, tuple(cards), body)


def write(
    workdir: str | os.PathLike,
    frame: Mapping[str, Any],
    cards: Sequence[words.Card],
    sections: Sequence[Section],
    *,
    numbers: Mapping[str, Any],
    methods: Sequence[str] = (),
    limits: Sequence[str] = (),
) -> pathlib.Path:
    """Writes report.json (`frame` and `numbers`) and report.html into a directory.

    Returns:
      Path of the HTML file.

    Raises:
      ValueError: if a name of `numbers` is also one of `frame`.
      OSError: it cannot be written; names the file.
    """
    if both := set(frame) & set(numbers):
        raise ValueError(f"numbers has {sorted(both)}, as has frame; rename them.")
    page = render(frame, cards, sections, methods=methods, limits=limits)
    directory = pathlib.Path(workdir)
    directory.mkdir(parents=True, exist_ok=True)
    text = report_lib.to_json({**frame, **numbers, "limits": list(limits)})
    report_lib.put(directory / "report.json", text)
    return report_lib.put(directory / "report.html", page)
