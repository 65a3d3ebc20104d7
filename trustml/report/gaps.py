"""Figures of fairness: gaps beside chance, rates of groups, areas, costs of privacy.

Pure functions as in `trustml.report.figures`: data in, one inline SVG out, '' where
there is nothing to draw. Everything lies on its side, so that names can be read.

Example::

    row = {'name': 'sex: selection', 'value': .18, 'lo': .17, 'hi': .19, 'floor': .02}
    svg = gaps.gaps([row])
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import ticker

from trustml.report import drawing, fmt, schema

_ROW, _FRAME = 0.27, 0.95  # inches: of a row, and of everything else
_LONG = 18  # letters of a name that stand in one line beside several panels
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

    first = next((at for at, row in enumerate(rows) if _number(row["floor"])), 0)

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
                    label="by chance, up to" if at == first else None,
                )
            beyond = row["value"] > row["floor"]
            _dot(ax, at, row, drawing.SERIES[1] if beyond else drawing.PLAIN)
        _names(ax, [row["name"] for row in rows])
        ax.set_xlim(left=0)
        ax.xaxis.set_major_formatter(drawing.percent_axis)
        ax.set_xlabel("largest minus smallest rate")
        handles, texts = ax.get_legend_handles_labels()
        if handles:
            fig.legend(handles, texts, loc="outside upper left", borderaxespad=0.2)

    alt = "Gaps between groups with intervals, beside what chance gives: " + "; ".join(
        f"{row['name']} {row['value']:.3f}"
        + (f", chance {row['floor']:.3f}" if _number(row["floor"]) else "")
        for row in rows
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
    wrapped = [textwrap.fill(group, _LONG, break_long_words=False) for group in names]
    longest = max(map(len, names))

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
            # Long names leave little room: ends of ticks of two panels would meet.
            ax.locator_params(axis="x", nbins=2 if longest > _LONG else 3)
        _names(axes[0], wrapped)

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
    row = _ROW * max(1.0, 0.6 * max(1 + group.count("\n") for group in wrapped))
    return drawing.svg(name, alt, draw, height=_FRAME + row * len(names))


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


def against_epsilon(
    lines: Sequence[tuple[str, Sequence[tuple[float | None, Mapping[str, Any]]]]],
    name: str,
    *,
    level: str,
) -> str:
    """Accuracy of groups against epsilon, a line a group, with intervals.

    Args:
      lines: (group, points) each; a point is (epsilon, {'value', 'lo', 'hi', 'small'}),
        epsilon None without privacy, which stands at the right.
      name: of the figure, unique on its page.
      level: of the intervals, such as '95%'.
    """
    budgets = sorted({e for _, points in lines for e, _ in points if e is not None})
    if not budgets:
        return ""
    far = budgets[-1] * 4.0
    longest = max(len(group) for group, _ in lines)
    columns = max(1, min(5, len(lines), 60 // (longest + 6)))

    def draw(fig):
        ax = fig.add_subplot()
        ax.axvline(budgets[-1] * 2.0, color=drawing.GRID, linewidth=1)
        for k, (group, points) in enumerate(lines):
            color = drawing.SERIES[k % len(drawing.SERIES)]
            marker = drawing.MARKERS[k % len(drawing.MARKERS)]
            aside = 1.07 ** (k - (len(lines) - 1) / 2)
            shown = sorted(
                ((far if e is None else e) * aside, row["value"], row)
                for e, row in points
                if _number(row["value"])
            )
            private = [entry for entry in shown if entry[0] < budgets[-1] * 2.0]
            ax.plot(
                [x for x, _, _ in private],
                [y for _, y, _ in private],
                color=color,
                linestyle=drawing.DASHES[k % len(drawing.DASHES)],
                linewidth=1.2,
            )
            for x, _, row in shown:
                drawing.point(ax, x, row, {"color": color, "marker": marker})
                if row.get("small"):
                    ax.plot(
                        [x], [row["value"]], marker, color=drawing.CARD, markersize=3
                    )
            ax.plot([], [], color=color, marker=marker, label=group)
        ax.set_xscale("log")
        ticks = [*budgets, far]
        ax.set_xticks(ticks, [*(f"{e:.2g}" for e in budgets), "no privacy"])
        ax.xaxis.set_minor_locator(ticker.NullLocator())
        ax.set_xlim(budgets[0] / 1.8, far * 2.2)
        ax.set_xlabel("\u03b5 spent (logarithmic; smaller is more private)")
        ax.yaxis.set_major_formatter(drawing.percent_axis)
        ax.set_ylabel(f"test accuracy, {level} interval")
        fig.legend(
            *ax.get_legend_handles_labels(),
            loc="outside upper left",
            ncols=columns,
            handlelength=1.6,
            handletextpad=0.4,
            columnspacing=0.9,
            borderaxespad=0.2,
        )

    alt = "Accuracy of groups against epsilon: " + "; ".join(
        f"{group} "
        + ", ".join(
            f"{'no privacy' if e is None else f'{e:.2g}'} {fmt.estimate(row)}"
            for e, row in points
        )
        for group, points in lines
    )
    return drawing.svg(
        name, alt + ".", draw, height=3.1 + 0.2 * -(-len(lines) // columns)
    )


def bars(
    series: Sequence[tuple[str, Sequence[Mapping[str, Any]]]],
    name: str,
    label: str = "loss above that without privacy",
) -> str:
    """A bar a group and run with its interval; pale where a group is small.

    Args:
      series: (run, rows) each; rows have `name`, `value`, `lo`, `hi`, `small`, the same
        groups in every run.
      name: of the figure, unique on its page.
      label: of the axis.
    """
    if not series or not series[0][1]:
        return ""
    height = 0.8 / len(series)

    def draw(fig):
        ax = fig.add_subplot()
        for k, (run, rows) in enumerate(series):
            color = drawing.SERIES[k % len(drawing.SERIES)]
            for at, row in enumerate(rows):
                if not _number(row["value"]):
                    continue
                y = at + (k - (len(series) - 1) / 2) * height
                pale = 0.3 if row.get("small") else 0.75
                ax.barh(y, row["value"], height * 0.86, color=color, alpha=pale)
                if _number(row["lo"]) and _number(row["hi"]):
                    ends = [row["lo"], row["hi"]]
                    ax.plot(ends, [y, y], color=drawing.INK, linewidth=1.1)
            ax.plot([], [], "s", color=color, alpha=0.75, markersize=8, label=run)
        ax.axvline(0.0, color=drawing.INK, linewidth=1)
        _names(ax, [row["name"] for row in series[0][1]])
        ax.set_xlabel(label)
        drawing.legend(fig, ax)

    alt = f"{label}: " + "; ".join(
        f"{run}: "
        + ", ".join(
            f"{row['name']} {row['value']:.3f}" for row in rows if _number(row["value"])
        )
        for run, rows in series
    )
    rows = len(series[0][1]) * (0.5 + 0.18 * len(series))
    return drawing.svg(name, alt + ".", draw, height=_FRAME + 0.2 + rows * 0.62)


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
