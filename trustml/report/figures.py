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

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import ticker

from trustml.attacks import metrics
from trustml.report import drawing, fmt, schema

Runs = Sequence[Mapping[str, Any]]


def curves(runs: Runs, key: str) -> str:
    """Training curve per run: `key` ('loss' or 'accuracy') over steps.

    Loss is averaged over windows when there are more than 200 points (the caption of
    the page says so); accuracy is drawn at every evaluation.
    """
    lines = [(run, *_series(run, key)) for run in runs]
    lines = [line for line in lines if line[1].size]
    if not lines:
        return ""
    names, looks = schema.labels(runs), drawing.looks(runs)

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
            ax.yaxis.set_major_formatter(drawing.percent_axis)
            ax.set_ylabel("accuracy while training")
        else:
            ax.set_ylabel(f"training {key}")
            positive = np.concatenate([values for _, _, values in lines])
            if positive.min() > 0 and positive.max() / positive.min() > 30:
                ax.set_yscale("log")
        ax.set_xlabel("step")
        drawing.legend(fig, ax)

    last = "; ".join(
        f"{names[run['name']]} ends at "
        + (fmt.percent(float(v[-1])) if key == "accuracy" else f"{v[-1]:.3g}")
        for run, _, v in lines
    )
    return drawing.svg(f"curve-{key}", f"Training {key} over steps. {last}.", draw, 2.9)


def epsilon(runs: Runs) -> str:
    """Epsilon spent over steps, with each run's budget as a dashed line."""
    lines = [(run, *_series(run, "epsilon")) for run in runs if schema.is_private(run)]
    lines = [line for line in lines if line[1].size]
    if not lines:
        return ""
    names, looks = schema.labels(runs), drawing.looks(runs)

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
        ax.plot(
            [], [], color=drawing.INK, linewidth=0.9, linestyle="--", label="budget"
        )
        ax.set_ylim(bottom=0)
        ax.margins(y=0.12)
        ax.set_xlabel("step")
        ax.set_ylabel("ε spent")
        drawing.legend(fig, ax)

    last = "; ".join(
        f"{names[run['name']]} ends at {v[-1]:.3g} of "
        f"{schema.number(run, 'epsilon_target') or v[-1]:.3g}"
        for run, _, v in lines
    )
    return drawing.svg("epsilon", f"Epsilon spent over steps. {last}.", draw, 2.9)


def groups(runs: Runs, key: str, most: int = 16) -> str:
    """Accuracy per group with intervals, runs side by side.

    `key` is 'per_class' or 'per_length'.

    Small groups are drawn hollow. With more than `most` groups the lowest of the
    strictest run are shown.
    """
    shown = [run for run in runs if schema.get(run, "test", key)]
    if not shown:
        return ""
    names, looks = schema.labels(runs), drawing.looks(runs)
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
                    markerfacecolor=drawing.CARD if row.get("small") else look["color"],
                    label=names[run["name"]] if first else None,
                )
                first = False
        ax.set_yticks(range(len(order)), [_short(group) for group in order])
        ax.set_ylim(len(order) - 0.5, -0.5)
        ax.grid(False, axis="y")
        ax.tick_params(axis="y", length=0)
        for edge in range(1, len(order)):
            ax.axhline(edge - 0.5, color=drawing.GRID, linewidth=0.6)
        ax.set_xlim(right=min(1.005, ax.get_xlim()[1]))
        ax.xaxis.set_major_formatter(drawing.percent_axis)
        ax.xaxis.set_major_locator(ticker.MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        ax.set_xlabel(f"test accuracy, {schema.level(runs)} interval")
        drawing.legend(fig, ax)

    what = "class" if key == "per_class" else "length"
    alt = f"Test accuracy by {what}, {len(order)} of {total} groups. " + "; ".join(
        f"{names[run['name']]}: lowest {low['name']} {fmt.percent(low['value'])}"
        for run in shown
        if (
            low := min(
                rows[run["name"]].values(), key=lambda r: r["value"], default=None
            )
        )
    )
    height = 0.9 + len(order) * max(0.3, 0.13 * len(shown))
    return drawing.svg(key, alt + ".", draw, height)


def utility(runs: Runs) -> str:
    """Accuracy against epsilon with intervals, and the level without privacy."""
    names, looks = schema.labels(runs), drawing.looks(runs)
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
            drawing.level(ax, base["test"]["accuracy"], names[base["name"]])
        pairs = sorted((e, r["test"]["accuracy"]["value"]) for e, r in private)
        ax.plot(*zip(*pairs, strict=True), color=drawing.MUTED, linewidth=1, zorder=1)
        for epsilon, run in private:
            look = looks[run["name"]]
            drawing.point(ax, epsilon, run["test"]["accuracy"], look)
            ax.annotate(
                names[run["name"]],
                (epsilon, run["test"]["accuracy"]["value"]),
                xytext=(7, -10),
                textcoords="offset points",
            )
        drawing.epsilon_axis(ax, [pair[0] for pair in pairs])
        ax.yaxis.set_major_formatter(drawing.percent_axis)
        ax.set_ylabel(f"test accuracy, {schema.level(runs)} interval")

    alt = "Test accuracy against epsilon: " + "; ".join(
        f"{names[run['name']]} {fmt.estimate(run['test']['accuracy'])}"
        for run in scored
    )
    return drawing.svg("utility", alt + ".", draw, 2.9)


def roc(runs: Runs, name: str = "roc") -> str:
    """ROC of the attack on logarithmic axes, with what each run's promise allows.

    Args:
      runs: those with a `membership` are drawn.
      name: of the figure, unique on its page.
    """
    attacked = [run for run in runs if schema.get(run, "membership", "roc", "fpr")]
    if not attacked:
        return ""
    names, looks = schema.labels(runs), drawing.looks(runs)
    floor = min(
        1.0 / max(1.0, schema.number(run, "membership", "n_nonmembers") or 1000.0)
        for run in attacked
    )

    def draw(fig):
        ax = fig.add_subplot()
        grid = np.geomspace(floor, 1.0, 200)
        ax.fill_between(
            grid, grid, floor / 3, color=drawing.GRID, alpha=0.45, linewidth=0
        )
        ax.plot(
            grid,
            grid,
            color=drawing.MUTED,
            linewidth=1,
            linestyle=":",
            label="guessing",
        )
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
            limit = schema.epsilon(run) if _limited(run) else None
            if limit is not None:
                delta = schema.number(run, "delta") or 0.0
                bound = metrics.tpr_bound(grid, limit, delta)
                ax.plot(grid, bound, color=look["color"], linewidth=1, linestyle="--")
        if any(_limited(run) for run in attacked):
            ax.plot(
                [], [], color=drawing.INK, linewidth=1, linestyle="--", label="limit"
            )
        ax.set(xscale="log", yscale="log", xlim=(floor, 1), ylim=(floor / 2, 1.15))
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter(drawing.percent_axis)
            axis.set_minor_formatter(ticker.NullFormatter())
        ax.set_xlabel("non-members wrongly accused (FPR)")
        ax.set_ylabel("members found (TPR)")
        drawing.legend(fig, ax)

    alt = "ROC of the membership attack on logarithmic axes. AUC: " + "; ".join(
        f"{names[run['name']]} {schema.number(run, 'membership', 'auc') or 0:.3f}"
        for run in attacked
    )
    return drawing.svg(name, alt + "; guessing gives 0.5.", draw, 3.6)


def _limited(run: Mapping[str, Any]) -> bool:
    """The promise limits attacks on single examples; that for users does not."""
    return schema.is_private(run) and not schema.protects_users(run)


def cost(runs: Runs) -> str:
    """Time, memory and arithmetic of each run over those of the run without privacy."""
    base, names, looks = (
        schema.reference(runs),
        schema.labels(runs),
        drawing.looks(runs),
    )
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
        ax.axvline(1, color=drawing.INK, linewidth=1, linestyle=":")
        ax.set_yticks(range(len(keys)), [schema.COST[key] for key in keys])
        ax.set_ylim(len(keys) - 0.5, -0.5)
        ax.tick_params(axis="y", length=0)
        ax.grid(False, axis="y")
        ax.margins(x=0.16)
        ax.set_xlabel("times the run without privacy (dotted: no extra cost)")
        drawing.legend(fig, ax)

    alt = "Cost relative to training without privacy: " + "; ".join(
        f"{names[run['name']]} {value:.2f} times the {schema.COST[key]}"
        for run, key, value in bars
    )
    return drawing.svg(
        "cost", alt + ".", draw, 1.0 + 0.24 * len(keys) * (len(priced) + 0.6)
    )


def frontier(points: Sequence[Mapping[str, Any]]) -> str:
    """Accuracy against epsilon, of the points of `frontier.collapse` of one figure."""
    what = points[0]["figure"] if points else "accuracy"
    private = [p for p in points if schema.number(p, "epsilon")]
    plain = [p for p in points if not schema.number(p, "epsilon")]
    if not private:
        return ""

    def draw(fig):
        ax = fig.add_subplot()
        if plain:
            drawing.level(ax, max(plain, key=lambda p: p["value"]), "no privacy")
        best = sorted((p["epsilon"], p["value"]) for p in private if p["best"])
        ax.plot(
            *zip(*best, strict=True),
            color=drawing.MUTED,
            linewidth=1,
            linestyle=":",
            drawstyle="steps-post",
        )
        for point in private:
            look = {
                "color": drawing.SERIES[0] if point["best"] else drawing.MUTED,
                "marker": "o",
            }
            drawing.point(ax, point["epsilon"], point, look)
        drawing.epsilon_axis(ax, [p["epsilon"] for p in private])
        ax.yaxis.set_major_formatter(drawing.percent_axis)
        ax.set_ylabel(f"test {what} with its interval")

    alt = f"Test {what} against epsilon: " + "; ".join(
        f"{p['name']} {fmt.estimate(p)}" for p in points
    )
    return drawing.svg("frontier", alt + ".", draw, 3.2)


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


def _short(name: str, most: int = 24) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
