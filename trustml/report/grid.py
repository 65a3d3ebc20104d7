"""Cells of a grid of optimizers side by side, and the size of a confound.

    rows clients' optimizers, columns the server's; one table for each (partition, mu)

A benchmark that takes AdamW on the clients whenever the server adapts (FedOpt) and SGD
otherwise, at one learning rate for both, changes two things at once (FedNLP, Lin et al.
2022). Its two cells are marked. What it calls the gain of FedOpt, the difference of the
two at that rate, is compared with the gain of the server's optimizer alone: the
difference between Adam and plain averaging with the clients' optimizer held fixed and
every cell tuned. What is left over is the confound.

Example::

    entries = [made for page in pages if (made := grid.entry(page))]
    grid.write('runs/sweep', entries, title='fednlp_classification')

References: https://arxiv.org/abs/2104.08815, https://arxiv.org/abs/2003.00295
"""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trustml import intervals
from trustml import report as report_lib
from trustml.report import drawing, fmt, study, tables, words

Entries = Sequence[Mapping[str, Any]]
CAPTION = (
    "Colour: the server's optimizer. Filled: every cell at its best rates, with 95% "
    "intervals over seeds; hollow: the two cells of the rule at its one rate."
)
FEDOPT, FEDAVG = ("adamw", "adam"), ("sgd", "sgd")  # clients', server's
MARK, EDGE = "†", "‡"
NOTE = (
    "Means over seeds with 95% intervals, each cell at the best of its rates (of "
    f"clients and server) on the validation split. {MARK}: a cell of the rule that "
    f"changes both optimizers. {EDGE}: one of its rates is the largest or smallest "
    "that was tried, so that a better one may lie beyond."
)


def entry(report: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the grid needs of a report of experiment 'tune'; None of another one."""
    if "tuned" not in report:
        return None
    keys = ("cell", "tuned", "shared", "budget", "baseline")
    more = {key: report[key] for key in ("tried", "what") if key in report}
    return {key: report[key] for key in keys} | more


def confounds(entries: Entries) -> list[dict[str, Any]]:
    """For each partition: what the rule shows, what the server's optimizer does.

    Args:
      entries: as `entry` makes them, of the cells without a proximal term.

    Returns:
      Dictionaries with partition, shared_rate; `rule`, the difference of the two marked
      cells at the shared rate; `server`, clients' optimizer -> difference of 'adam' and
      'sgd' of the server, tuned; `confound`, the rule's less the mean of these. Every
      difference has value, lo and hi, paired by seed. Partitions where one of the cells
      is missing are left out.
    """
    out = []
    for partition in sorted({one["cell"]["partition"] for one in entries}):
        cells = {
            (one["cell"]["client"], one["cell"]["server"]): one
            for one in entries
            if one["cell"]["partition"] == partition and not one["cell"]["prox"]
        }
        ends = [cells.get(FEDOPT), cells.get(FEDAVG)]
        if any(one is None or not one["shared"] for one in ends):
            continue
        fedopt, fedavg = (_values(one["shared"]) for one in ends if one is not None)
        rule = fedopt - fedavg
        alone = {
            client: _values(cells[client, "adam"]["tuned"])
            - _values(cells[client, "sgd"]["tuned"])
            for client in sorted({client for client, _ in cells})
            if (client, "adam") in cells and (client, "sgd") in cells
        }
        if not alone:
            continue
        left = rule - np.mean(list(alone.values()), axis=0)
        out.append(
            {
                "partition": partition,
                "shared_rate": cells[FEDOPT]["shared"]["client_rate"],
                "rule": _difference(rule),
                "server": {name: _difference(x) for name, x in alone.items()},
                "confound": _difference(left),
            }
        )
    return out


def write(
    workdir: str | os.PathLike, entries: Entries, title: str = "Grid"
) -> pathlib.Path:
    """Writes grid.json and grid.html.

    Returns:
      Path of the HTML file.

    Raises:
      ValueError: if there is no entry.
    """
    if not entries:
        raise ValueError("entries is empty; give one cell or more.")
    found = confounds(entries)
    budgets = sorted({one["budget"] for one in entries if one["cell"]["server"]})
    cards = tuple(_card(one) for one in found) or (
        words.Card(
            "How large is the confound?",
            "Not measured: one of the cells that it is made of is missing.",
            (),
            tone="warn",
        ),
    )
    sections = [
        study.Section(
            _name(*key),
            figures=((f"{_what(part)} by cell", _figure(n, part), CAPTION),),
            tables=(_table(part),),
        )
        for n, (key, part) in enumerate(sorted(_grouped(entries).items()))
    ]
    limits = ()
    if len(budgets) > 1:
        limits = (
            f"Cells were tuned with different budgets: {budgets} pairs of rates.",
        )
    text = report_lib.to_json({"cells": list(entries), "confounds": found})
    directory = pathlib.Path(workdir)
    directory.mkdir(parents=True, exist_ok=True)
    report_lib.put(directory / "grid.json", text)
    frame = {"title": title, "file": "grid.json"}
    page = study.render(frame, cards, sections, limits=limits)
    return report_lib.put(directory / "grid.html", page)


def _card(one: Mapping[str, Any]) -> words.Card:
    change = fmt.points_change
    alone = "; ".join(f"{name} {change(x)}" for name, x in one["server"].items())
    return words.Card(
        f"How large is the confound ({one['partition']})?",
        f"{change(one['confound'])}, where the rule shows {change(one['rule'])}.",
        (
            f"The rule: AdamW and Adam against SGD and averaging, clients' rate "
            f"{one['shared_rate']:g}.",
            f"The server's optimizer alone, by that of the clients, tuned: {alone}.",
        ),
    )


def _grouped(entries: Entries) -> dict[tuple[str, float], list[Mapping[str, Any]]]:
    groups: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for one in entries:
        key = one["cell"]["partition"], one["cell"]["prox"]
        groups.setdefault(key, []).append(one)
    return groups


def _name(partition: str, prox: float) -> str:
    return f"{partition}, FedProx with mu = {prox:g}" if prox else partition


def _table(entries: Entries) -> str:
    servers = list(dict.fromkeys(one["cell"]["server"] for one in entries))
    clients = list(dict.fromkeys(one["cell"]["client"] for one in entries))
    cells = {(one["cell"]["client"], one["cell"]["server"]): one for one in entries}
    rows = [
        (client, *(_shown(cells.get((client, server))) for server in servers))
        for client in clients
    ]
    head = ("clients \\ server", *(server or "no server" for server in servers))
    part = entries[0]["cell"]["partition"]
    return tables.table(head, rows, f"{_what(entries)}, test split, {part}", NOTE)


def _figure(number: int, entries: Entries) -> str:
    """Every cell with its interval, and those of the rule at its one rate."""
    servers = list(dict.fromkeys(one["cell"]["server"] for one in entries))
    clients = list(dict.fromkeys(one["cell"]["client"] for one in entries))
    found = {
        server: {"color": drawing.SERIES[n % 5], "marker": drawing.MARKERS[1 + n % 5]}
        for n, server in enumerate(servers)
    }
    name = entries[0]["tuned"].get("figure", "")
    without = entries[0]["baseline"].get(name)

    def draw(fig):
        ax = fig.add_subplot()
        if without:
            drawing.level(ax, without, "baseline")
        for one in entries:
            server = one["cell"]["server"]
            x = clients.index(one["cell"]["client"])
            x += 0.5 * ((servers.index(server) + 0.5) / len(servers) - 0.5)
            drawing.point(ax, x, one["tuned"], found[server])
            if one["shared"] and "value" in one["shared"]:
                y = one["shared"]["value"]
                ax.plot([x + 0.04], [y], markerfacecolor="none", **found[server])
        for server in servers:
            ax.plot([], [], linestyle="", label=server or "no server", **found[server])
        ax.set_xticks(range(len(clients)), clients)
        ax.set_xlim(-0.5, len(clients) - 0.5)
        ax.set_xlabel("clients' optimizer")
        ax.yaxis.set_major_formatter(drawing.percent_axis)
        drawing.legend(fig, ax)

    said = ", ".join(
        f"{one['cell']['client']} x {one['cell']['server'] or 'no server'} "
        f"{fmt.percent(one['tuned']['value'])}"
        for one in entries
    )
    return drawing.svg(f"grid{number}", f"{_what(entries)}: {said}.", draw, 2.6)


def _what(entries: Entries) -> str:
    one = entries[0]
    figure = one["tuned"].get("figure", "score").replace("_", " ")
    return fmt.capital(one.get("what", figure))


def _at_edge(one: Mapping[str, Any]) -> bool:
    for rate in ("client_rate", "server_rate"):
        rates = {tried[rate] for tried in one.get("tried", ())}
        if len(rates) > 1 and one["tuned"][rate] in (min(rates), max(rates)):
            return True
    return False


def _shown(one: Mapping[str, Any] | None) -> str:
    if one is None:
        return tables.NONE
    tuned, cell = one["tuned"], one["cell"]
    rule = (cell["client"], cell["server"]) in (FEDOPT, FEDAVG) and not cell["prox"]
    rates = f"{tuned['client_rate']:g}"
    if cell["server"]:
        rates += f", {tuned['server_rate']:g}"
    marks = (MARK if rule else "") + (EDGE if _at_edge(one) else "")
    return f"{fmt.estimate(tuned)}{marks} at {rates}"


def _values(tuned: Mapping[str, Any]) -> np.ndarray:
    return np.array(tuned["values"], float)


def _difference(values: np.ndarray) -> dict[str, float]:
    """Mean over seeds and its interval; none is known of one seed."""
    if len(values) < 2:
        return {"value": float(values[0]), "lo": -1.0, "hi": 1.0}
    return intervals.mean(values)._asdict()
