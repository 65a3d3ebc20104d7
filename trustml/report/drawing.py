"""The hand that draws: palette, axes, legend, and an SVG that suits the page.

Colours are CSS variables with a fixed fallback, so a figure follows the page's light or
dark theme and still draws alone. Matplotlib's global state is never touched (`Figure`
objects without pyplot), so nothing has to be closed. No date, fixed hash salt: the same
data give the same bytes.

Example::

    def draw(fig):
        fig.add_subplot().plot([1, 2], color=drawing.SERIES[0])

    svg = drawing.svg('line', 'A line from 1 to 2.', draw, height=2.4)
"""

import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib import figure, ticker

from trustml.report import schema

Runs = Sequence[Mapping[str, Any]]

# Light value -> CSS variable; the page's style sheet gives the dark values.
INK, MUTED, GRID, CARD = "#1b2430", "#596372", "#d5dae1", "#fffffe"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#b8860b", "#3a86c8")
PLAIN = "#4d4d4d"  # the run without privacy
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", CARD: "card", PLAIN: "s0"} | {
    color: f"s{i + 1}" for i, color in enumerate(SERIES)
}
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1, 1.5)), "-", "-")
WIDTH = 4.7  # inches; 338 points, the width of a phone, so that text keeps its size

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "trustml",
    "font.size": 10,
    "axes.labelsize": 10,
    "legend.fontsize": 10,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
}


def looks(runs: Runs) -> dict[str, dict[str, Any]]:
    """Run name -> color, marker, linestyle; the run without privacy is grey."""
    out, i = {}, 0
    for run in runs:
        if schema.is_private(run):
            k = i % len(SERIES)
            look = (SERIES[k], MARKERS[1 + k % 5], DASHES[k])
            i += 1
        else:
            look = (PLAIN, MARKERS[0], "-")
        out[run["name"]] = dict(
            zip(("color", "marker", "linestyle"), look, strict=True)
        )
    return out


def level(ax, entry: Mapping[str, Any], name: str) -> None:
    """A horizontal line with its interval as a band: the level without privacy."""
    value, lo, hi = (schema.number(entry, k) for k in ("value", "lo", "hi"))
    if lo is not None and hi is not None:
        ax.axhspan(lo, hi, color=PLAIN, alpha=0.16, linewidth=0)
    ax.axhline(value, color=PLAIN, linewidth=1.4)
    ax.annotate(
        name,
        (0.015, value),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
    )


def point(ax, x: float, entry: Mapping[str, Any], look: Mapping[str, Any]) -> None:
    """A marker with its interval as a vertical line."""
    value, lo, hi = (schema.number(entry, k) for k in ("value", "lo", "hi"))
    if lo is not None and hi is not None:
        ax.plot([x, x], [lo, hi], color=look["color"], linewidth=1.4)
    ax.plot([x], [value], color=look["color"], marker=look["marker"], markersize=6)


def epsilon_axis(ax, values: Sequence[float]) -> None:
    """Makes x a logarithmic axis of epsilon with a tick at each value."""
    ax.set_xscale("log")
    ax.set_xlim(min(values) / 1.8, max(values) * 2.4)
    ticks = sorted({float(f"{value:.2g}") for value in values})
    if len(ticks) <= 8:
        ax.set_xticks(ticks)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.xaxis.set_minor_formatter(ticker.NullFormatter())
    ax.xaxis.set_minor_locator(ticker.NullLocator())
    ax.set_xlabel("ε spent (logarithmic; smaller is more private)")


def percent_axis(value: float, _) -> str:
    """0.954 -> '95.4%', as a formatter of ticks."""
    return f"{100 * value:.3g}%"


def legend(fig, ax) -> None:
    """A legend above the axes, if there is more than one series."""
    handles, texts = ax.get_legend_handles_labels()
    if len(handles) > 1:
        fig.legend(
            handles,
            texts,
            loc="outside upper left",
            ncols=min(5, len(handles)),
            handlelength=1.6,
            handletextpad=0.4,
            columnspacing=0.9,
            borderaxespad=0.2,
        )


def svg(name: str, alt: str, draw: Callable[[Any], None], height: float) -> str:
    """Draws, then makes the SVG scale, follow the theme, and carry its own text."""
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        fig = figure.Figure(figsize=(WIDTH, height), layout="constrained")
        draw(fig)
        metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
        fig.savefig(buffer, format="svg", metadata=metadata)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    # Several figures share a page: every id, and every use of one, gets a prefix.
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", svg)
    for color, variable in VARIABLES.items():
        svg = svg.replace(color, f"var(--{variable}, {color})")
    # A hundredth of a point is enough: half the bytes. Text keeps its digits.
    svg = re.sub(
        r'\b(d|transform|x|y)="([^"]*)"',
        lambda m: f'{m[1]}="' + re.sub(r"(\.\d\d)\d+", r"\1", m[2]) + '"',
        svg,
    )
    svg = re.sub(r"'DejaVu Sans'[^;\"]*?sans-serif", "system-ui, sans-serif", svg)
    ((width, height),) = re.findall(r'<svg [^>]*viewBox="0 0 (\S+) (\S+)"', svg)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" '
        f'xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{html.escape(alt)}" class="figure">'
        f"<title>{html.escape(alt)}</title>"
    )
    svg = head + svg[svg.index(">") + 1 :]
    return re.sub(r"\s*\n\s*", " ", svg).replace("> <", "><").strip()
