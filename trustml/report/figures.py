"""Figures: pure functions, data of the report in, one inline SVG as a string out.

SVG rather than PNG: a few kilobytes, crisp on paper and on a phone, and the text stays
text. Colours are CSS variables with a fixed fallback, so a figure follows the page's
light or dark theme and still draws alone. Every series differs in colour (the palette
of Okabe and Ito, safe for colour-blind readers), in marker and in dash. No date, fixed
hash salt: the same data give the same bytes. Matplotlib's global state is never touched
(`Figure` objects without pyplot), so nothing has to be closed.

Each function returns '' where there is nothing to draw.

Example::

    from trustml.report import figures

    svg = figures.curves(report['runs'], 'loss')
    pathlib.Path('loss.svg').write_text(svg)
"""

import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import figure, ticker

from trustml.attacks import metrics
from trustml.report import schema, words

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


def curves(runs: Runs, key: str) -> str:
    """Training curve per run: `key` ('loss' or 'accuracy') over steps.

    Loss is averaged over windows when there are more than 200 points (the caption of
    the page says so); accuracy is drawn at every evaluation.
    """
    lines = [(run, *_series(run, key)) for run in runs]
    lines = [line for line in lines if line[1].size]
    if not lines:
        return ""
    names, looks = schema.labels(runs), _looks(runs)

    def draw(fig):
        ax = fig.add_subplot()
        for run, steps, values in lines:
            steps, values = _windows(steps, values)
            look = looks[run["name"]]
            ax.plot(
                steps,
                values,
                color=look["color"],
                linestyle=look["linestyle"],
                marker=look["marker"] if values.size <= 12 else None,
                label=names[run["name"]],
            )
        if key == "accuracy":
            ax.yaxis.set_major_formatter(_percent_axis)
            ax.set_ylabel("accuracy while training")
        else:
            ax.set_ylabel(f"training {key}")
            positive = np.concatenate([values for _, _, values in lines])
            if positive.min() > 0 and positive.max() / positive.min() > 30:
                ax.set_yscale("log")
        ax.set_xlabel("step")
        _legend(fig, ax)

    last = "; ".join(
        f"{names[run['name']]} ends at "
        + (words.percent(float(v[-1])) if key == "accuracy" else f"{v[-1]:.3g}")
        for run, _, v in lines
    )
    return _svg(f"curve-{key}", f"Training {key} over steps. {last}.", draw, 2.9)


def epsilon(runs: Runs) -> str:
    """Epsilon spent over steps, with each run's budget as a dashed line."""
    lines = [(run, *_series(run, "epsilon")) for run in runs if schema.is_private(run)]
    lines = [line for line in lines if line[1].size]
    if not lines:
        return ""
    names, looks = schema.labels(runs), _looks(runs)

    def draw(fig):
        ax = fig.add_subplot()
        for run, steps, values in lines:
            look = looks[run["name"]]
            steps, values = _thin(steps, values)
            ax.plot(
                steps,
                values,
                color=look["color"],
                linestyle=look["linestyle"],
                label=names[run["name"]],
            )
            budget = schema.number(run, "epsilon_target")
            if budget is not None:
                ax.axhline(budget, color=look["color"], linewidth=0.9, linestyle="--")
        ax.plot([], [], color=INK, linewidth=0.9, linestyle="--", label="budget")
        ax.set_ylim(bottom=0)
        ax.margins(y=0.12)
        ax.set_xlabel("step")
        ax.set_ylabel("ε spent")
        _legend(fig, ax)

    last = "; ".join(
        f"{names[run['name']]} ends at {v[-1]:.3g} of "
        f"{schema.number(run, 'epsilon_target') or v[-1]:.3g}"
        for run, _, v in lines
    )
    return _svg("epsilon", f"Epsilon spent over steps. {last}.", draw, 2.9)


def groups(runs: Runs, key: str, most: int = 16) -> str:
    """Accuracy per group with intervals, runs side by side.

    `key` is 'per_class' or 'per_length'.

    Small groups are drawn hollow. With more than `most` groups the lowest of the
    strictest run are shown.
    """
    shown = [run for run in runs if schema.get(run, "test", key)]
    if not shown:
        return ""
    names, looks = schema.labels(runs), _looks(runs)
    rows = {
        run["name"]: {
            row["name"]: row
            for row in run["test"][key]
            if schema.number(row, "value") is not None
        }
        for run in shown
    }
    sorter = rows[schema.strictest(shown)["name"]]
    order = list(dict.fromkeys(name for run in rows.values() for name in run))
    if key == "per_class":
        order.sort(key=lambda g: sorter[g]["value"] if g in sorter else 2.0)
    if not order:
        return ""
    total, order = len(order), order[:most]
    offsets = np.linspace(-0.26, 0.26, len(shown)) if len(shown) > 1 else [0.0]

    def draw(fig):
        ax = fig.add_subplot()
        for run, offset in zip(shown, offsets, strict=True):
            look, mine = looks[run["name"]], rows[run["name"]]
            first = True
            for position, group in enumerate(order):
                if group not in mine:
                    continue
                row, y = mine[group], position + offset
                value = schema.number(row, "value")
                lo, hi = schema.number(row, "lo"), schema.number(row, "hi")
                if lo is not None and hi is not None:
                    ax.plot([lo, hi], [y, y], color=look["color"], linewidth=1.2)
                ax.plot(
                    [value],
                    [y],
                    linestyle="none",
                    color=look["color"],
                    marker=look["marker"],
                    markersize=4.6,
                    markerfacecolor=CARD if row.get("small") else look["color"],
                    label=names[run["name"]] if first else None,
                )
                first = False
        ax.set_yticks(range(len(order)), [_short(group) for group in order])
        ax.set_ylim(len(order) - 0.5, -0.5)
        ax.grid(False, axis="y")
        ax.tick_params(axis="y", length=0)
        for edge in range(1, len(order)):
            ax.axhline(edge - 0.5, color=GRID, linewidth=0.6)
        ax.set_xlim(right=min(1.005, ax.get_xlim()[1]))
        ax.xaxis.set_major_formatter(_percent_axis)
        ax.xaxis.set_major_locator(ticker.MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        ax.set_xlabel("test accuracy, 95% interval")
        _legend(fig, ax)

    what = "class" if key == "per_class" else "length"
    alt = f"Test accuracy by {what}, {len(order)} of {total} groups. " + "; ".join(
        f"{names[run['name']]}: lowest {low['name']} {words.percent(low['value'])}"
        for run in shown
        if (
            low := min(
                rows[run["name"]].values(), key=lambda r: r["value"], default=None
            )
        )
    )
    height = 0.9 + len(order) * max(0.3, 0.13 * len(shown))
    return _svg(key, alt + ".", draw, height)


def utility(runs: Runs) -> str:
    """Accuracy against epsilon with intervals, and the level without privacy."""
    names, looks = schema.labels(runs), _looks(runs)
    scored = [
        r for r in runs if schema.number(r, "test", "accuracy", "value") is not None
    ]
    private = [
        (value, r)
        for r in scored
        if schema.is_private(r) and (value := schema.epsilon(r))
    ]
    if not private:
        return ""
    base = schema.reference(scored)

    def draw(fig):
        ax = fig.add_subplot()
        if base is not None:
            _level(ax, base["test"]["accuracy"], names[base["name"]])
        pairs = sorted((e, r["test"]["accuracy"]["value"]) for e, r in private)
        ax.plot(*zip(*pairs, strict=True), color=MUTED, linewidth=1, zorder=1)
        for epsilon, run in private:
            look = looks[run["name"]]
            _point(ax, epsilon, run["test"]["accuracy"], look)
            ax.annotate(
                names[run["name"]],
                (epsilon, run["test"]["accuracy"]["value"]),
                xytext=(7, -10),
                textcoords="offset points",
            )
        _epsilon_axis(ax, [pair[0] for pair in pairs])
        ax.yaxis.set_major_formatter(_percent_axis)
        ax.set_ylabel("test accuracy, 95% interval")

    alt = "Test accuracy against epsilon: " + "; ".join(
        f"{names[run['name']]} {words.estimate(run['test']['accuracy'])}"
        for run in scored
    )
    return _svg("utility", alt + ".", draw, 2.9)


def roc(runs: Runs) -> str:
    """ROC of the attack on logarithmic axes, with what each run's promise allows."""
    attacked = [run for run in runs if schema.get(run, "membership", "roc", "fpr")]
    if not attacked:
        return ""
    names, looks = schema.labels(runs), _looks(runs)
    floor = min(
        1.0 / max(1.0, schema.number(run, "membership", "n_nonmembers") or 1000.0)
        for run in attacked
    )

    def draw(fig):
        ax = fig.add_subplot()
        grid = np.geomspace(floor, 1.0, 200)
        ax.fill_between(grid, grid, floor / 3, color=GRID, alpha=0.45, linewidth=0)
        ax.plot(grid, grid, color=MUTED, linewidth=1, linestyle=":", label="guessing")
        for run in attacked:
            look, result = looks[run["name"]], run["membership"]
            fpr, tpr = (np.array(result["roc"][k], float) for k in ("fpr", "tpr"))
            keep = fpr >= floor * (1 - 1e-9)
            ax.plot(
                fpr[keep],
                np.maximum(tpr[keep], floor / 3),
                drawstyle="steps-post",
                color=look["color"],
                linestyle=look["linestyle"],
                label=names[run["name"]],
            )
            limit = schema.epsilon(run) if schema.is_private(run) else None
            if limit is not None:
                delta = schema.number(run, "delta") or 0.0
                bound = metrics.tpr_bound(grid, limit, delta)
                ax.plot(grid, bound, color=look["color"], linewidth=1, linestyle="--")
        if any(schema.is_private(run) for run in attacked):
            ax.plot([], [], color=INK, linewidth=1, linestyle="--", label="limit")
        ax.set(xscale="log", yscale="log", xlim=(floor, 1), ylim=(floor / 2, 1.15))
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter(_percent_axis)
            axis.set_minor_formatter(ticker.NullFormatter())
        ax.set_xlabel("non-members wrongly accused (FPR)")
        ax.set_ylabel("members found (TPR)")
        _legend(fig, ax)

    alt = "ROC of the membership attack on logarithmic axes. AUC: " + "; ".join(
        f"{names[run['name']]} {schema.number(run, 'membership', 'auc') or 0:.3f}"
        for run in attacked
    )
    return _svg("roc", alt + "; guessing gives 0.5.", draw, 3.6)


def cost(runs: Runs) -> str:
    """Time, memory and arithmetic of each run over those of the run without privacy."""
    base, names, looks = schema.reference(runs), schema.labels(runs), _looks(runs)
    bars = [
        (run, key, value)
        for run in runs
        if run is not base
        for key in schema.COST
        if (value := schema.ratio(run, base, key)) is not None
    ]
    if not bars:
        return ""
    keys = [key for key in schema.COST if any(key == bar[1] for bar in bars)]
    priced = list(dict.fromkeys(bar[0]["name"] for bar in bars))
    height = 0.76 / len(priced)

    def draw(fig):
        ax = fig.add_subplot()
        for run, key, value in bars:
            look, rank = looks[run["name"]], priced.index(run["name"])
            y = keys.index(key) + (rank - (len(priced) - 1) / 2) * height
            ax.barh(
                y,
                value,
                height * 0.9,
                color=look["color"],
                label=names[run["name"]] if key == keys[0] else None,
            )
            ax.annotate(
                f"{value:.2f} ×",
                (value, y),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
            )
        ax.axvline(1, color=INK, linewidth=1, linestyle=":")
        ax.set_yticks(range(len(keys)), [schema.COST[key] for key in keys])
        ax.set_ylim(len(keys) - 0.5, -0.5)
        ax.tick_params(axis="y", length=0)
        ax.grid(False, axis="y")
        ax.margins(x=0.16)
        ax.set_xlabel("times the run without privacy (dotted: no extra cost)")
        _legend(fig, ax)

    alt = "Cost relative to training without privacy: " + "; ".join(
        f"{names[run['name']]} {value:.2f} times the {schema.COST[key]}"
        for run, key, value in bars
    )
    return _svg("cost", alt + ".", draw, 1.0 + 0.24 * len(keys) * (len(priced) + 0.6))


def frontier(points: Sequence[Mapping[str, Any]]) -> str:
    """Accuracy against epsilon for the points of `frontier.collapse`."""
    private = [p for p in points if schema.number(p, "epsilon")]
    plain = [p for p in points if not schema.number(p, "epsilon")]
    if not private:
        return ""

    def draw(fig):
        ax = fig.add_subplot()
        if plain:
            _level(ax, max(plain, key=lambda p: p["value"]), "no privacy")
        best = sorted((p["epsilon"], p["value"]) for p in private if p["best"])
        ax.plot(
            *zip(*best, strict=True),
            color=MUTED,
            linewidth=1,
            linestyle=":",
            drawstyle="steps-post",
        )
        for point in private:
            look = {"color": SERIES[0] if point["best"] else MUTED, "marker": "o"}
            _point(ax, point["epsilon"], point, look)
        _epsilon_axis(ax, [p["epsilon"] for p in private])
        ax.yaxis.set_major_formatter(_percent_axis)
        ax.set_ylabel("test accuracy, 95% interval")

    alt = "Test accuracy against epsilon: " + "; ".join(
        f"{p['name']} {words.estimate(p)}" for p in points
    )
    return _svg("frontier", alt + ".", draw, 3.2)


def _looks(runs: Runs) -> dict[str, dict[str, Any]]:
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


def _series(run: Mapping[str, Any], key: str) -> tuple[np.ndarray, np.ndarray]:
    values = schema.get(run, "curves", key, default=[])
    steps = schema.get(run, "curves", "step", default=list(range(1, len(values) + 1)))
    pairs = [
        (float(step), float(value))
        for step, value in zip(steps, values, strict=False)
        if step is not None and value is not None
    ]
    array = np.array(pairs, float).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def _windows(steps: np.ndarray, values: np.ndarray, most: int = 200):
    if values.size <= most:
        return steps, values
    parts = np.array_split(np.arange(values.size), most)
    return (
        np.array([steps[part].mean() for part in parts]),
        np.array([values[part].mean() for part in parts]),
    )


def _thin(steps: np.ndarray, values: np.ndarray, most: int = 200):
    keep = np.unique(np.linspace(0, values.size - 1, most).astype(int))
    return steps[keep], values[keep]


def _level(ax, entry: Mapping[str, Any], name: str) -> None:
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


def _point(ax, x: float, entry: Mapping[str, Any], look: Mapping[str, Any]) -> None:
    value, lo, hi = (schema.number(entry, k) for k in ("value", "lo", "hi"))
    if lo is not None and hi is not None:
        ax.plot([x, x], [lo, hi], color=look["color"], linewidth=1.4)
    ax.plot([x], [value], color=look["color"], marker=look["marker"], markersize=6)


def _epsilon_axis(ax, values: Sequence[float]) -> None:
    ax.set_xscale("log")
    ax.set_xlim(min(values) / 1.8, max(values) * 2.4)
    ticks = sorted({float(f"{value:.2g}") for value in values})
    if len(ticks) <= 8:
        ax.set_xticks(ticks)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.xaxis.set_minor_formatter(ticker.NullFormatter())
    ax.xaxis.set_minor_locator(ticker.NullLocator())
    ax.set_xlabel("ε spent (logarithmic; smaller is more private)")


def _percent_axis(value: float, _) -> str:
    return f"{100 * value:.3g}%"


def _short(name: str, most: int = 24) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _legend(fig, ax) -> None:
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


def _svg(name: str, alt: str, draw: Callable[[Any], None], height: float) -> str:
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
