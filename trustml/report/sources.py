"""Means of groups by two sources of texts, side by side.

Pure as in `trustml.report.figures`: data in, one inline SVG out, '' where there is
nothing to draw.

Example::

    entry = {'value': .6, 'lo': .5, 'hi': .7, 'flagged': False}
    row = {'name': 'atheism *', 'model': entry, 'people': entry | {'flagged': True}}
    svg = sources.means([row], ('model', 'people'), label='sentiment', name='s',
                        band=(.55, .63))
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from trustml.report import drawing, schema

_ROW, _FRAME = 0.36, 1.15  # inches: of a row, and of everything else
_APART = 0.17  # of a row, between its middle and a source


def means(
    rows: Sequence[Mapping[str, Any]],
    series: Sequence[str],
    *,
    label: str,
    name: str,
    band: tuple[float, float] | None = None,
) -> str:
    """Means with intervals, one row a group, one marker a source.

    Args:
      rows: `name`, and for each of `series` an entry with `value`, `lo`, `hi` and
        `flagged`, whether there is too little to judge.
      series: names of two sources.
      label: of the axis.
      name: of the figure, unique on its page.
      band: within which means of groups that do not matter would lie.
    """
    rows = [
        row
        for row in rows
        if any(schema.number(row[one], "value") is not None for one in series)
    ]
    if not rows:
        return ""

    def draw(fig):
        ax = fig.add_subplot()
        if band is not None and all(map(math.isfinite, band)):
            ax.axvspan(
                *band,
                color=drawing.PLAIN,
                alpha=0.18,
                linewidth=0,
                label="width by chance",
            )
        for k, (one, shift) in enumerate(zip(series, (-_APART, _APART), strict=True)):
            # An empty line, so that the legend has the colour of judged groups.
            look = {"marker": drawing.MARKERS[k], "linestyle": "none", "markersize": 5}
            ax.plot([], [], color=drawing.SERIES[k], label=one, **look)
            for at, row in enumerate(rows):
                value, lo, hi = (
                    schema.number(row[one], field) for field in ("value", "lo", "hi")
                )
                if value is None:
                    continue
                color = drawing.MUTED if row[one]["flagged"] else drawing.SERIES[k]
                if lo is not None and hi is not None:
                    ax.plot([lo, hi], [at + shift] * 2, color=color, linewidth=1.4)
                ax.plot([value], [at + shift], color=color, **look)
        ax.set_yticks(range(len(rows)), [row["name"] for row in rows])
        ax.set_ylim(len(rows) - 0.4, -0.6)
        ax.grid(visible=False, axis="y")
        # Under the whole figure: long names leave too little room under the axes.
        fig.supxlabel(label, fontsize=10)
        drawing.legend(fig, ax)

    alt = f"{label} by group: " + "; ".join(
        f"{row['name']} "
        + ", ".join(
            f"{one} {value:.3f}"
            for one in series
            if (value := schema.number(row[one], "value")) is not None
        )
        for row in rows
    )
    return drawing.svg(name, alt, draw, height=_FRAME + _ROW * len(rows))
