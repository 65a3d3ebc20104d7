"""Figures of leakage: ROC on logarithmic axes, scores, exposure, leakage over epsilon.

Pure functions as in `trustml.report.figures`: data in, one inline SVG out, '' where
there is nothing to draw. Series differ in colour, marker and dash.

Example::

    from trustml.report import leaks

    curve = {'name': 'LiRA', 'fpr': roc.fpr, 'tpr': roc.tpr, 'floor': 1 / n_out}
    svg = leaks.roc([curve])
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import ticker
from numpy import typing as npt

from trustml.report import drawing, fmt


def look(i: int) -> dict[str, Any]:
    """Color, marker and linestyle of the i-th series."""
    k = i % len(drawing.SERIES)
    return {
        "color": drawing.SERIES[k],
        "marker": drawing.MARKERS[k % len(drawing.MARKERS)],
        "linestyle": drawing.DASHES[k],
    }


def roc(curves: Sequence[Mapping[str, Any]], name: str = "roc-attacks") -> str:
    """ROC of several attacks on logarithmic axes, each a step function.

    Args:
      curves: `name`, `fpr` and `tpr` float[P] (corner points), `floor` (1 over the
        non-members: nothing is drawn below it); optional `lo` and `hi`, float[P], a
        band of the TPR.
      name: of the figure, unique on its page.
    """
    if not curves:
        return ""
    floor = min(curve["floor"] for curve in curves)

    def draw(fig):
        ax = fig.add_subplot()
        grid = np.geomspace(floor, 1.0, 200)
        ax.plot(
            grid, grid, color=drawing.MUTED, linewidth=1, linestyle=":", label="chance"
        )
        for i, curve in enumerate(curves):
            own = look(i)
            fpr, tpr = np.asarray(curve["fpr"]), np.asarray(curve["tpr"])
            keep = fpr >= curve["floor"] * (1 - 1e-9)
            if curve.get("lo") is not None:
                ax.fill_between(
                    fpr[keep],
                    np.maximum(np.asarray(curve["lo"])[keep], floor / 3),
                    np.maximum(np.asarray(curve["hi"])[keep], floor / 3),
                    step="post",
                    color=own["color"],
                    alpha=0.15,
                    linewidth=0,
                )
            ax.plot(
                fpr[keep],
                np.maximum(tpr[keep], floor / 3),
                drawstyle="steps-post",
                color=own["color"],
                linestyle=own["linestyle"],
                label=curve["name"],
            )
        ax.set(xscale="log", yscale="log", xlim=(floor, 1), ylim=(floor / 2, 1.15))
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter(drawing.percent_axis)
            axis.set_minor_formatter(ticker.NullFormatter())
        ax.set_xlabel("non-members wrongly accused (FPR)")
        ax.set_ylabel("members found (TPR)")
        _legend(fig, ax)

    alt = "Members found against false alarms on logarithmic axes: " + ", ".join(
        str(curve["name"]) for curve in curves
    )
    return drawing.svg(name, alt + ".", draw, 3.8)


def histograms(
    members: npt.ArrayLike, others: npt.ArrayLike, what: str, name: str = "scores"
) -> str:
    """Scores of members and non-members, as densities on common bins.

    Args:
      members: float[n_in]; what is not finite is left out.
      others: float[n_out].
      what: label of the axis.
      name: of the figure, unique on its page.
    """
    sides = [np.asarray(x, float).ravel() for x in (members, others)]
    sides = [x[np.isfinite(x)] for x in sides]
    if not all(x.size for x in sides):
        return ""
    lo, hi = np.percentile(np.concatenate(sides), (0.1, 99.9))
    edges = np.linspace(lo, hi if hi > lo else lo + 1, 60)

    def draw(fig):
        ax = fig.add_subplot()
        for i, (x, text) in enumerate(zip(sides, ("members", "others"), strict=True)):
            share = np.histogram(np.clip(x, edges[0], edges[-1]), edges)[0] / x.size
            own = look(i)
            ax.stairs(share, edges, color=own["color"], fill=True, alpha=0.25)
            ax.stairs(
                share,
                edges,
                color=own["color"],
                linestyle=own["linestyle"],
                label=text,
                linewidth=1.4,
            )
        ax.yaxis.set_major_formatter(drawing.percent_axis)
        ax.set_xlabel(what)
        ax.set_ylabel("share of examples")
        _legend(fig, ax)

    alt = f"Distribution of {what}: members, median {np.median(sides[0]):.3g}; others, "
    return drawing.svg(name, alt + f"median {np.median(sides[1]):.3g}.", draw, 2.9)


def strips(
    rows: Sequence[Mapping[str, Any]],
    what: str,
    *,
    ceiling: float | None = None,
    null: float | None = None,
    name: str = "strips",
) -> str:
    """One row of points for each condition, with the median: exposures over seeds.

    Args:
      rows: `name` and `values` float[S].
      what: label of the axis, with its unit.
      ceiling: the largest value there can be, drawn as a line.
      null: median without any leak, drawn as a line.
      name: of the figure, unique on its page.
    """
    rows = [row for row in rows if len(row["values"])]
    if not rows:
        return ""

    def draw(fig):
        ax = fig.add_subplot()
        for y, row in enumerate(rows):
            values = np.sort(np.asarray(row["values"], float))
            # Points of one value stand above one another, not upon each other.
            jitter = np.linspace(-0.22, 0.22, values.size) if values.size > 1 else [0.0]
            color = drawing.SERIES[0]
            ax.plot(values, y + np.asarray(jitter), "o", color=color, markersize=3)
            ax.plot([np.median(values)] * 2, [y - 0.33, y + 0.33], color=drawing.INK)
        for level, text, style in ((ceiling, "ceiling", "--"), (null, "no leak", ":")):
            if level is not None:
                ax.axvline(
                    level, color=drawing.MUTED, linewidth=1, linestyle=style, label=text
                )
        ax.set_yticks(range(len(rows)), [str(row["name"]) for row in rows])
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.grid(False, axis="y")
        ax.set_xlabel(what)
        _legend(fig, ax)

    alt = f"{what}, median of each condition: " + "; ".join(
        f"{row['name']} {np.median(row['values']):.3g}" for row in rows
    )
    return drawing.svg(name, alt + ".", draw, 0.9 + 0.34 * len(rows))


def against_epsilon(
    series: Sequence[Mapping[str, Any]],
    what: str,
    *,
    chance: float | None = None,
    identity: bool = False,
    name: str = "leakage-epsilon",
) -> str:
    """Leakage with its intervals over epsilon.

    Args:
      series: `name` and `points`, each with `epsilon`, `value`, `lo`, `hi`.
      what: label of the axis.
      chance: what guessing gives, drawn as a line.
      identity: draws value = epsilon, above which an audited bound proves a defect.
      name: of the figure, unique on its page.
    """
    series = [one for one in series if one["points"]]
    if not series:
        return ""
    epsilons = [point["epsilon"] for one in series for point in one["points"]]

    def draw(fig):
        ax = fig.add_subplot()
        for i, one in enumerate(series):
            own = look(i)
            points = sorted(one["points"], key=lambda point: point["epsilon"])
            shift = 1.0 + 0.03 * i  # intervals of two series stay apart
            for point in points:
                drawing.point(ax, point["epsilon"] * shift, point, own)
            ax.plot(
                [point["epsilon"] * shift for point in points],
                [point["value"] for point in points],
                color=own["color"],
                linestyle=own["linestyle"],
                linewidth=1,
                label=one["name"],
            )
        if chance is not None:
            ax.axhline(
                chance, color=drawing.MUTED, linewidth=1, linestyle=":", label="chance"
            )
        if identity:
            grid = np.geomspace(min(epsilons), max(epsilons), 50)
            ax.plot(
                grid, grid, color=drawing.INK, linewidth=1, linestyle="--", label="plan"
            )
        drawing.epsilon_axis(ax, epsilons)
        ax.set_ylabel(what)
        _legend(fig, ax)

    alt = f"{what} over epsilon. " + " ".join(
        f"{one['name']}: "
        + "; ".join(
            f"{point['value']:.3g} at {point['epsilon']:.3g}" for point in one["points"]
        )
        + "."
        for one in series
    )
    return drawing.svg(name, alt, draw, 3.1)


def heading(value: float | None, lo: float | None, hi: float | None) -> str:
    """'0.943 [0.941, 0.945]'; an en dash where nothing was measured."""
    if value is None or not np.isfinite(value):
        return "\u2013"
    text = f"{value:.3f}"
    return text if lo is None or hi is None else f"{text} [{lo:.3f}, {hi:.3f}]"


def share(value: float | None, lo: float | None, hi: float | None) -> str:
    """'12.1% [11.0%, 13.3%]'."""
    if value is None or not np.isfinite(value):
        return "\u2013"
    text = fmt.percent(value)
    if lo is None or hi is None:
        return text
    return f"{text} [{fmt.percent(lo)}, {fmt.percent(hi)}]"


def _legend(fig, ax) -> None:
    """Above the axes, as many columns as names of this length leave room for."""
    handles, texts = ax.get_legend_handles_labels()
    if len(handles) > 1:
        columns = max(1, min(len(handles), 56 // (max(map(len, texts)) + 5)))
        fig.legend(
            handles,
            texts,
            loc="outside upper left",
            ncols=columns,
            handlelength=1.6,
            handletextpad=0.4,
            columnspacing=0.9,
            borderaxespad=0.2,
        )
