"""The frontier of a sweep: accuracy against epsilon, as a table and a figure.

A point is one training run. Points of one name are seeds of one setting: they become
their mean with a Student t interval over seeds. A point of experiment 'tune' brings the
values of its own seeds. A setting is on the frontier if no other has at least its
accuracy at a smaller (or equal) epsilon.

Where a report is compared by another figure than accuracy, such as F1 of words, that
figure is named; settings of different figures are not compared.

Choosing the best point of a private sweep by its accuracy looks at the data once more;
the epsilon of a point does not count that choice, and the page says so.

Example::

    from trustml.report import frontier

    points = [frontier.point(json.loads(path.read_text())) for path in reports]
    frontier.write('runs/sweep', sum(points, []), title='dp_sst2')
"""

import html
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trustml import intervals
from trustml import report as report_lib
from trustml.report import figures, fmt, schema, style, tables

Points = Sequence[Mapping[str, Any]]
HEAD = ("setting", "ε", "δ", "test accuracy", "seeds", "time per step", "frontier")
NOTE = (
    "In brackets: intervals, over test examples for one seed (95% unless report.level "
    "says otherwise), over seeds for several (95%). Choosing a setting by its accuracy "
    "uses the data once more; ε does not count that."
)
OVER_SEEDS = (
    "In brackets: 95% Student intervals over seeds; of one seed none is known. "
    "Choosing a setting by its test figure uses the data once more; ε does not count "
    "that."
)


def point(report: Mapping[str, Any], name: str | None = None) -> list[dict[str, Any]]:
    """The runs of one report as points.

    Args:
      report: as read from `report.json`.
      name: name of the setting, such as the overrides of a sweep; default each run's
      own.

    Returns:
      One dictionary per run that has a test accuracy: name, epsilon (None without
      privacy), delta, accuracy {value, lo, hi, n}, seconds_per_step. `accuracy` of a
      page with a headline has the name of its `figure`, and the point has it in words,
      `what`. That of experiment 'tune' has by_seed as well, seed -> value.
    """
    if "headline" in report:
        return [_headline(report, name)]
    out = []
    for run in report["runs"]:
        if schema.number(run, "test", "accuracy", "value") is None:
            continue
        private = schema.is_private(run)
        out.append(
            {
                "name": name or run["name"],
                "epsilon": schema.epsilon(run) if private else None,
                "delta": schema.number(run, "delta") if private else None,
                "accuracy": run["test"]["accuracy"],
                "seconds_per_step": schema.number(run, "cost", "seconds_per_step"),
            }
        )
    return out


def _headline(report: Mapping[str, Any], name: str | None) -> dict[str, Any]:
    """The point of a page of `study` that says by which figure it is compared."""
    headline = report["headline"]
    figure = headline.get("figure", "accuracy").replace("_", " ")
    found: dict[str, Any] = {
        "name": name or report["title"],
        "epsilon": schema.number(report, "privacy", "epsilon_as_run"),
        "delta": schema.number(report, "privacy", "delta"),
        "accuracy": headline,
        "what": report.get("what", figure),
        "seconds_per_step": None,
    }
    if "tuned" in report:  # the headline's n counts seeds, and no examples
        first, values = report["cell"]["seed"], report["tuned"]["values"]
        found["by_seed"] = {str(first + n): value for n, value in enumerate(values)}
    return found


def collapse(points: Points) -> list[dict[str, Any]]:
    """One entry per (name, private or not, figure), seeds averaged, by epsilon.

    What several points have of one seed counts once, by its mean.

    Args:
      points: as `point` makes them.

    Returns:
      Dictionaries with name, epsilon, delta, value, lo, hi, seeds, seconds_per_step,
      figure (in words), interval (over what it is: 'examples' or 'seeds'), best (on the
      frontier); without privacy last.

    Raises:
      ValueError: if there is no point with an accuracy.
    """
    settings: dict[tuple, list[Mapping[str, Any]]] = {}
    for entry in schema.clean(list(points)):
        if schema.number(entry, "accuracy", "value") is not None:
            private = schema.number(entry, "epsilon") is not None
            key = entry["name"], private, entry.get("what", "accuracy")
            settings.setdefault(key, []).append(entry)
    if not settings:
        raise ValueError(
            "points holds no accuracy; give at least one point whose "
            "accuracy['value'] is a number."
        )
    out = []
    for (name, private, figure), seeds in settings.items():
        values = _over_seeds(seeds)
        over_seeds = values.size > 1 or "by_seed" in seeds[0]
        lo, hi = (schema.number(seeds[0], "accuracy", end) for end in ("lo", "hi"))
        if over_seeds:
            lo = hi = None
        if values.size > 1:
            _, lo, hi = intervals.mean(values, bounds=(0.0, 1.0))
        seconds = [schema.number(entry, "seconds_per_step") for entry in seeds]
        seconds = [value for value in seconds if value is not None]
        out.append(
            {
                "name": name,
                # The seeds of one setting share a budget; the largest spent is said.
                "epsilon": max(e["epsilon"] for e in seeds) if private else None,
                "delta": schema.number(seeds[0], "delta"),
                "value": float(values.mean()),
                "lo": lo,
                "hi": hi,
                "seeds": values.size,
                "seconds_per_step": float(np.median(seconds)) if seconds else None,
                "figure": figure,
                "interval": "seeds" if over_seeds else "examples",
            }
        )
    out.sort(key=lambda p: (p["epsilon"] is None, p["epsilon"] or 0.0, p["name"]))
    for entry in out:
        same = [other for other in out if other["figure"] == entry["figure"]]
        entry["best"] = not any(_beats(other, entry) for other in same)
    return out


def _over_seeds(points: Points) -> np.ndarray:
    """One value a seed; a point that does not tell its seeds is one of its own."""
    runs: dict[str, list[float]] = {}
    for n, entry in enumerate(points):
        own = entry.get("by_seed") or {f"point {n}": entry["accuracy"]["value"]}
        for seed, value in own.items():
            runs.setdefault(seed, []).append(value)
    return np.array([np.mean(values) for values in runs.values()], float)


def markdown(points: Points) -> str:
    """The table as Markdown, with a pipe in a name escaped."""
    entries = collapse(points)
    head = _head(entries)
    lines = [head, ("---",) * len(head), *_rows(entries)]
    text = "\n".join(
        "| " + " | ".join(str(c).replace("|", "\\|") for c in line) + " |"
        for line in lines
    )
    return f"{text}\n\n{_note(points)}\n"


def render(points: Points, title: str = "Sweep") -> str:
    """One self-contained page: the figure and the table."""
    entries, name = collapse(points), html.escape(title)
    svg = _drawn(entries)
    if svg:
        what = html.escape(entries[0]["figure"])
        good = "accurate" if what == "accuracy" else "good"
        svg = (
            f'<div class="figures"><figure><h3>{fmt.capital(what)} against '
            f"privacy</h3>{svg}"
            "<figcaption>Each point one setting, with its interval; blue, on the "
            f"frontier: no other is as {good} at as small an ε. The {what} axis "
            "does not begin at zero.</figcaption></figure></div>"
        )
    table = tables.table(_head(entries), _rows(entries), "All settings", _note(points))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name}</title><style>{style.CSS}</style></head>\n"
        f"<body><header><h1>{name}</h1></header><main>{svg}{table}</main>"
        "<footer></footer></body></html>\n"
    )


def write(
    workdir: str | os.PathLike, points: Points, title: str = "Sweep"
) -> pathlib.Path:
    """Writes frontier.html, frontier.md, frontier.svg and frontier.json.

    Args:
      workdir: directory; made if absent.
      points: as `point` makes them.
      title: heading of the page.

    Returns:
      Path of the HTML file.

    Raises:
      ValueError: if there is no point with an accuracy; nothing is written.
    """
    entries, page = collapse(points), render(points, title)
    directory = pathlib.Path(workdir)
    directory.mkdir(parents=True, exist_ok=True)
    report_lib.put(directory / "frontier.md", f"# {title}\n\n{markdown(points)}")
    svg = _drawn(entries)
    if svg:
        report_lib.put(directory / "frontier.svg", svg)
    report_lib.put(directory / "frontier.json", report_lib.to_json({"points": entries}))
    return report_lib.put(directory / "frontier.html", page)


def _beats(other: Mapping[str, Any], entry: Mapping[str, Any]) -> bool:
    spends = [
        float("inf") if p["epsilon"] is None else p["epsilon"] for p in (other, entry)
    ]
    return (
        spends[0] <= spends[1]
        and other["value"] >= entry["value"]
        and (spends[0] < spends[1] or other["value"] > entry["value"])
    )


def _figures(entries: Sequence[Mapping[str, Any]]) -> set[str]:
    return {entry["figure"] for entry in entries}


def _drawn(entries: Sequence[Mapping[str, Any]]) -> str:
    """The figure; '' also where settings of several figures have no common axis."""
    return figures.frontier(entries) if len(_figures(entries)) == 1 else ""


def _head(entries: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    found = _figures(entries)
    what = next(iter(found)) if len(found) == 1 else "score"
    return tuple(f"test {what}" if x == "test accuracy" else x for x in HEAD)


def _note(points: Points) -> str:
    return OVER_SEEDS if all("by_seed" in point for point in points) else NOTE


def _rows(entries: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    several = len(_figures(entries)) > 1
    return [
        (
            entry["name"],
            "no privacy" if entry["epsilon"] is None else f"{entry['epsilon']:.3g}",
            tables.NONE if entry["delta"] is None else fmt.scientific(entry["delta"]),
            fmt.estimate(entry) + (f" {entry['figure']}" if several else ""),
            str(entry["seeds"]),
            tables.NONE
            if entry["seconds_per_step"] is None
            else tables.seconds(entry["seconds_per_step"]),
            "yes" if entry["best"] else "",
        )
        for entry in entries
    ]
