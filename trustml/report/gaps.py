"""Figures of fairness: gaps beside chance, rates of groups, areas by identity.

Pure functions as in `trustml.report.figures`: data in, one inline SVG out, '' where
there is nothing to draw. Everything lies on its side, so that names can be read.

Example::

    row = {'name': 'sex: selection', 'value': .18, 'lo': .17, 'hi': .19, 'floor': .02}
    svg = gaps.gaps([row])
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from trustml.report import drawing, schema

_ROW, _FRAME = 0.27, 0.95  # inches: of a row, and of everything else
_FLAGGED = drawing.GRID


def gaps(rows: Sequence[Mapping[str, Any]], name: str = "gaps") -> str:
    """Gaps with intervals; a bar from 0 shows how large they are by chance.

    Args:
      rows: `name`, `value`, `lo`, `hi`, `floor` (95% quantile under shuffled groups).
      name: of the figure, unique on its page.
    """
    rows = [row for row in rows if _number(row["value"])]
    if not rows:
        return ""

    def draw(fig):
        ax = fig.add_subplot()
        for at, row in enumerate(rows):
            if _number(row["floor"]):
                ax.barh(
                    at,
                    row["floor"],
                    height=0.62,
                    color=drawing.PLAIN,
                    alpha=0.22,
                    linewidth=0,
                    label="by chance, up to" if at == 0 else None,
                )
            beyond = row["value"] > row["floor"]
            _dot(ax, at, row, drawing.SERIES[1] if beyond else drawing.PLAIN)
        _names(ax, [row["name"] for row in rows])
        ax.set_xlim(left=0)
        ax.xaxis.set_major_formatter(drawing.percent_axis)
        ax.set_xlabel("largest minus smallest rate, points")
        handles, texts = ax.get_legend_handles_labels()
        if handles:
            fig.legend(handles, texts, loc="outside upper left", borderaxespad=0.2)

    alt = "Gaps between groups with intervals, beside what chance gives: " + "; ".join(
        f"{row['name']} {row['value']:.3f}, chance {row['floor']:.3f}" for row in rows
    )
    return drawing.svg(name, alt, draw, height=_FRAME + _ROW * len(rows) + 0.2)


def rates(
    names: Sequence[str],
    flagged: Sequence[bool],
    panels: Sequence[tuple[str, Sequence[Mapping[str, Any]]]],
    name: str = "rates",
) -> str:
    """Rates of groups side by side, each panel one rate; flagged groups are grey.

    Args:
      names: of the groups.
      flagged: whether a group is too small to judge.
      panels: (title, one {'value', 'lo', 'hi'} a group) each.
      name: of the figure, unique on its page.
    """
    if not names or not panels:
        return ""

    def draw(fig):
        axes = fig.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for k, (ax, (title, entries)) in enumerate(zip(axes, panels, strict=True)):
            for at, (entry, grey) in enumerate(zip(entries, flagged, strict=True)):
                if _number(entry["value"]):
                    _dot(ax, at, entry, drawing.MUTED if grey else drawing.SERIES[k])
                    if grey:
                        ax.plot(
                            [entry["value"]],
                            [at],
                            marker="o",
                            markersize=4,
                            color=drawing.CARD,
                        )
            ax.set_title(title, fontsize=10)
            ax.xaxis.set_major_formatter(drawing.percent_axis)
            ax.set_xlim(left=0)
            ax.locator_params(axis="x", nbins=3)
        _names(axes[0], names)

    alt = "Rates of groups with intervals. " + " ".join(
        f"{title}: "
        + ", ".join(
            f"{group} {entry['value']:.3f}"
            for group, entry in zip(names, entries, strict=True)
            if _number(entry["value"])
        )
        + "."
        for title, entries in panels
    )
    return drawing.svg(name, alt, draw, height=_FRAME + _ROW * len(names))


def dots(
    rows: Sequence[Mapping[str, Any]],
    *,
    label: str,
    level: float,
    name: str,
    percent: bool = True,
) -> str:
    """One figure a row with its interval, beside a line for no difference.

    Args:
      rows: `name`, `value`, `lo`, `hi`, `flagged`.
      label: of the axis.
      level: where the line is.
      name: of the figure, unique on its page.
      percent: whether ticks are percentages.
    """
    rows = [row for row in rows if _number(row["value"])]
    if not rows:
        return ""

    def draw(fig):
        ax = fig.add_subplot()
        ax.axvline(level, color=drawing.MUTED, linewidth=1, linestyle=":")
        for at, row in enumerate(rows):
            _dot(ax, at, row, drawing.MUTED if row["flagged"] else drawing.SERIES[0])
        _names(ax, [row["name"] for row in rows])
        if percent:
            ax.xaxis.set_major_formatter(drawing.percent_axis)
        ax.set_xlabel(label)

    alt = f"{label}: " + "; ".join(f"{row['name']} {row['value']:.3f}" for row in rows)
    return drawing.svg(name, alt, draw, height=_FRAME + _ROW * len(rows))


def areas(rows: Sequence[Mapping[str, Any]], name: str = "areas") -> str:
    """Three areas under the ROC for every identity, with intervals.

    Args:
      rows: `name`, and for 'subgroup', 'bpsn', 'bnsp' an entry or None.
      name: of the figure, unique on its page.
    """
    if not rows:
        return ""
    series = (("bpsn", "BPSN", -0.24), ("bnsp", "BNSP", 0.0))
    series = (*series, ("subgroup", "subgroup", 0.24))

    def draw(fig):
        ax = fig.add_subplot()
        for k, (field, label, shift) in enumerate(series):
            first = True
            for at, row in enumerate(rows):
                if _number(row[field]["value"]):
                    marker = drawing.MARKERS[k]
                    text = label if first else None
                    _dot(
                        ax, at + shift, row[field], drawing.SERIES[k], marker, 4.5, text
                    )
                    first = False
        ax.axvline(0.5, color=drawing.MUTED, linewidth=1, linestyle=":")
        _names(ax, [row["name"] for row in rows])
        ax.set_xlabel("area under the ROC; dotted: guessing")
        drawing.legend(fig, ax)

    alt = "Areas under the ROC by identity: " + "; ".join(
        f"{row['name']} "
        + ", ".join(
            f"{label} {row[field]['value']:.3f}"
            for field, label, _ in series
            if _number(row[field]["value"])
        )
        for row in rows
    )
    return drawing.svg(name, alt, draw, height=_FRAME + 0.42 * len(rows))


def _dot(ax, at, entry, color, marker="o", size=6, label=None) -> None:
    lo, hi = schema.number(entry, "lo"), schema.number(entry, "hi")
    if lo is not None and hi is not None:
        ax.plot([lo, hi], [at, at], color=color, linewidth=1.4)
    ax.plot(
        [entry["value"]],
        [at],
        color=color,
        marker=marker,
        markersize=size,
        linestyle="none",
        label=label,
    )


def _names(ax, names) -> None:
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.grid(visible=False, axis="y")


def _number(value: Any) -> bool:
    return isinstance(value, float | int) and math.isfinite(value)
