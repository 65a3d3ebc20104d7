"""Cells of a grid of optimizers side by side, and the size of a confound.

    rows clients' optimizers, columns the server's; one table for each group

A group is what agrees in all that identifies a cell (partition, mu, algorithm, seed)
but the two optimizers; rates are found, and do not identify it.

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
from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np

from trustml import _validate, intervals
from trustml import report as report_lib
from trustml.report import drawing, fmt, study, tables, words

Entries = Sequence[Mapping[str, Any]]
Cells = Mapping[tuple[str, str], Mapping[str, Any]]  # clients', server's -> entry
CAPTION = (
    "Colour: the server's optimizer. Filled: every cell at its best rates, with 95% "
    "intervals over seeds; hollow: the two cells of the rule at its one rate."
)
FEDOPT, FEDAVG = ("adamw", "adam"), ("sgd", "sgd")  # clients', server's
_WITHIN = ("client", "server", "client_rate", "server_rate")  # differ in a group
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
    """For each group of cells: what the rule shows, what the server's optimizer does.

    Args:
      entries: as `entry` makes them; those with a proximal term are passed over.

    Returns:
      Dictionaries with group (its name), partition, shared_rate; `rule`, the difference
      of the two marked cells at the shared rate; `server`, clients' optimizer ->
      difference of 'adam' and 'sgd' of the server, tuned; `confound`, the rule's less
      the mean of these. Every difference has value, lo and hi, paired by seed. Groups
      where one of the cells is missing, or where these cells have unequal numbers of
      seeds, are left out.

    Raises:
      ValueError: if a cell comes twice.
    """
    found = (_confound(name, part) for name, part in _grouped(entries))
    return [one for one in found if one is not None]


def _confound(name: str, entries: Entries) -> dict[str, Any] | None:
    cells = _needed(entries)
    if not cells or _unequal(cells):
        return None
    rule = _values(cells[FEDOPT]["shared"]) - _values(cells[FEDAVG]["shared"])
    alone = {
        client: _values(cells[client, "adam"]["tuned"])
        - _values(cells[client, "sgd"]["tuned"])
        for client in _paired(cells)
    }
    left = rule - np.mean(list(alone.values()), axis=0)
    return {
        "group": name,
        "partition": cells[FEDOPT]["cell"]["partition"],
        "shared_rate": cells[FEDOPT]["shared"]["client_rate"],
        "rule": _difference(rule),
        "server": {client: _difference(x) for client, x in alone.items()},
        "confound": _difference(left),
    }


def _needed(entries: Entries) -> Cells:
    """The cells of a group that its confound is made of; none if one is missing."""
    cells = {_optimizers(one): one for one in entries if not one["cell"]["prox"]}
    ends, clients = (FEDOPT, FEDAVG), _paired(cells)
    if not clients or any(not cells.get(key, {}).get("shared") for key in ends):
        return {}
    pairs = [(client, server) for client in clients for server in ("adam", "sgd")]
    return {key: one for key, one in cells.items() if key in (*ends, *pairs)}


def _paired(cells: Cells) -> list[str]:
    """Clients' optimizers that were run with both 'adam' and 'sgd' on the server."""
    clients = sorted({client for client, _ in cells})
    return [c for c in clients if (c, "adam") in cells and (c, "sgd") in cells]


def _unequal(cells: Cells) -> str:
    """Cells and their numbers of seeds in words; '' if all have the same number."""
    counts: dict[str, int] = {}
    for key, one in cells.items():
        counts[_crossed(key)] = tuned = len(one["tuned"]["values"])
        shared = one["shared"] if key in (FEDOPT, FEDAVG) else None
        if shared and len(shared["values"]) != tuned:
            counts[f"{_crossed(key)} at the rule's rate"] = len(shared["values"])
    if len(set(counts.values())) < 2:
        return ""
    return ", ".join(f"{name} {n}" for name, n in counts.items())


def write(
    workdir: str | os.PathLike, entries: Entries, title: str = "Grid"
) -> pathlib.Path:
    """Writes grid.json and grid.html.

    Cells of unequal numbers of seeds are shown, and a sentence says why the confound is
    not.

    Returns:
      Path of the HTML file.

    Raises:
      ValueError: if there is no entry, or if a cell comes twice; nothing is written.
    """
    if not entries:
        raise ValueError("entries is empty; give one cell or more.")
    groups, found = _grouped(entries), confounds(entries)
    budgets = sorted({one["budget"] for one in entries if one["cell"]["server"]})
    cards = (*map(_card, found), *_not_paired(groups)) or (
        words.Card(
            "How large is the confound?",
            "Not measured: one of the cells that it is made of is missing.",
            (),
            tone="warn",
        ),
    )
    sections = [
        study.Section(
            name,
            figures=((f"{_what(part)} by cell", _figure(n, part), CAPTION),),
            tables=(_table(name, part),),
        )
        for n, (name, part) in enumerate(groups)
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
        f"How large is the confound ({one['group']})?",
        f"{change(one['confound'])}, where the rule shows {change(one['rule'])}.",
        (
            f"The rule: AdamW and Adam against SGD and averaging, clients' rate "
            f"{one['shared_rate']:g}.",
            f"The server's optimizer alone, by that of the clients, tuned: {alone}.",
        ),
    )


def _not_paired(groups: Sequence[tuple[str, Entries]]) -> list[words.Card]:
    counts = {name: _unequal(_needed(part)) for name, part in groups}
    return [
        words.Card(
            f"How large is the confound ({name})?",
            "Not measured: differences are paired by seed, and its cells have unequal "
            f"numbers of seeds ({told}).",
            ("Run those cells again with the same tune.seeds.",),
            tone="warn",
        )
        for name, told in counts.items()
        if told
    ]


def _grouped(entries: Entries) -> list[tuple[str, Entries]]:
    """Names of groups and their cells, by partition and mu.

    Raises:
      ValueError: if a cell comes twice.
    """
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    first: dict[tuple, int] = {}
    for n, one in enumerate(entries):
        key = tuple(sorted(_identity(one).items()))
        before = first.setdefault((*key, *_optimizers(one)), n)
        if before < n:
            _validate.fail(
                f"entries[{n}]['cell']",
                f"{_crossed(_optimizers(one))}, {_name(one, _identity(one))}",
                f"is that of entries[{before}], too",
                "give every cell once, or add to both cells what sets them apart",
            )
        groups.setdefault(key, []).append(one)
    every = {field for one in entries for field in _identity(one)}
    differ = [field for field in every if len(_taken(entries, field)) > 1]
    parts = sorted(groups.values(), key=lambda part: _place(part[0]))
    return [(_name(part[0], differ), part) for part in parts]


def _identity(one: Mapping[str, Any]) -> dict[str, Any]:
    return {field: x for field, x in one["cell"].items() if field not in _WITHIN}


def _taken(entries: Entries, field: str) -> set:
    """Values of a field; training in one place has 'centralised' for an algorithm."""
    cells = [one["cell"] for one in entries]
    return {cell.get(field) for cell in cells if cell.get(field) != cell["partition"]}


def _place(one: Mapping[str, Any]) -> tuple[str, float]:
    return one["cell"]["partition"], one["cell"]["prox"]


def _name(one: Mapping[str, Any], differ: Container[str]) -> str:
    """Partition, mu, an algorithm that is not plain averaging, and what differs."""
    identity = _identity(one)
    partition, prox = identity.pop("partition"), identity.pop("prox")
    averaging = identity.get("algorithm", "fedavg") == "fedavg"
    parts = [partition]
    if prox:
        parts.append(f"{'FedProx with ' if averaging else ''}mu = {prox:g}")
    parts += [
        f"{field} {value}"
        for field, value in sorted(identity.items())
        if value != partition
        and (field in differ or (field == "algorithm" and not averaging))
    ]
    return ", ".join(parts)


def _optimizers(one: Mapping[str, Any]) -> tuple[str, str]:
    return one["cell"]["client"], one["cell"]["server"]


def _crossed(optimizers: tuple[str, str]) -> str:
    client, server = optimizers
    return f"{client} x {server or 'no server'}"


def _table(name: str, entries: Entries) -> str:
    servers = list(dict.fromkeys(one["cell"]["server"] for one in entries))
    clients = list(dict.fromkeys(one["cell"]["client"] for one in entries))
    cells = {_optimizers(one): one for one in entries}
    rows = [
        (client, *(_shown(cells.get((client, server))) for server in servers))
        for client in clients
    ]
    head = ("clients \\ server", *(server or "no server" for server in servers))
    return tables.table(head, rows, f"{_what(entries)}, test split, {name}", NOTE)


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
        f"{_crossed(_optimizers(one))} {fmt.percent(one['tuned']['value'])}"
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
    rule = _optimizers(one) in (FEDOPT, FEDAVG) and not cell["prox"]
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
