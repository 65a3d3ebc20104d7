"""Experiment `tune`: one cell of a grid, its learning rates found, then its seeds.

A cell is a federation (or, with `tune.centralised`, training in one place) with all but
the learning rates decided. Every pair of `tune.client_rates` and `tune.server_rates` is
trained once and compared on the validation split; the best pair is then trained for
`tune.seeds` seeds, partition and cohorts included, and measured on the test split. So
cells of one grid have one budget, and none is better for having been tuned longer.

`tune.shared_rate` adds the seeds at a client rate that was not chosen for this cell.

Trials that ended are not done again, unless data or settings are others now: then the
checkpoints of that trial are refused by name.

Example::

    tune.run(config.from_config_dict(cfg), pathlib.Path('runs/a'))
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from trustml import intervals, rng, specs
from trustml import report as report_lib
from trustml import task as task_lib
from trustml.data import datasets
from trustml.experiments import (
    build,
    centralised,
    describe,
    federate,
    federate_page,
    federation,
    finished,
    scores,
)
from trustml.report import fmt, study, tables, words

METHODS = (
    "Rates were chosen by the validation split, from one run each at the first seed. "
    "A seed draws the initial model, the partition and the cohorts. Intervals are "
    "Student's, over seeds.",
)


def run(config: specs.RunConfig, workdir: pathlib.Path) -> pathlib.Path:
    """Tries the rates, trains the seeds and writes the report.

    Returns:
      The path of report.html.
    """
    if page := finished.page(config, workdir):
        return page
    data = build.dataset(config)
    task = build.task(config, data)
    spec = config.tune
    tried = []
    for client, server in pairs(spec):
        found = trial(at(config, client, server, config.seed), data, task, workdir)
        tried.append({"client_rate": client, "server_rate": server} | found)
        print(f"rates {client:g} and {server:g}: validation {found['valid']:.1%}")
    best = max(tried, key=_valid)
    own = seeds(config, best, data, task, workdir)
    shared = None
    if spec.shared_rate:
        same = [one for one in tried if one["client_rate"] == spec.shared_rate]
        there = max(same, key=_valid)
        shared = seeds(config, there, data, task, workdir)
    return _write(config, data, task, workdir, tried, own, shared)


def pairs(spec: specs.TuneSpec) -> list[tuple[float, float]]:
    """What is tried; without a server its rate means nothing."""
    servers = (0.0,) if spec.centralised else spec.server_rates
    return [(client, server) for client in spec.client_rates for server in servers]


def at(
    config: specs.RunConfig, client: float, server: float, seed: int
) -> specs.RunConfig:
    """The cell at two rates and a seed, as an experiment of its own."""
    optimizer = dataclasses.replace(config.optimizer, learning_rate=client)
    federated = config.federated
    if not config.tune.centralised:
        federated = dataclasses.replace(federated, server_learning_rate=server)
    return dataclasses.replace(
        config,
        experiment="centralised" if config.tune.centralised else "federate",
        seed=seed,
        optimizer=optimizer,
        federated=federated,
    )


def trial(
    config: specs.RunConfig,
    data: datasets.Dataset,
    task: task_lib.Task,
    workdir: pathlib.Path,
    *,
    test: bool = False,
) -> dict[str, Any]:
    """One run: its figure on the validation split, and with `test` on the test split.

    A run whose loss is lost (NaN) has what a wrong answer everywhere has: 0.
    """
    rates = config.optimizer.learning_rate, config.federated.server_learning_rate
    place = workdir / "trials" / f"{rates[0]:g}-{rates[1]:g}-{config.seed}"
    kept = place / ("test.json" if test else "valid.json")
    mark = finished.fingerprint(config, data.digest)
    old = finished.kept(kept, mark, "made_of")
    if old is not None and ("figure" in old or not test):
        return old
    fit: Any = federate.fit if config.experiment == "federate" else centralised.fit
    trained = fit(config, data, task, place, quiet=True)
    found: dict[str, Any] = {"valid": trained.rows[-1]["nonprivate/valid_accuracy"]}
    if test:
        measured = scores.measure(task, trained.params, data, "test")
        found["test"] = {name: score.value for name, score in measured.items()}
        found["figure"] = next(iter(measured))  # a file has them in another order
    place.mkdir(parents=True, exist_ok=True)
    report_lib.put(kept, report_lib.to_json(found | {"made_of": mark}))
    return found


def seeds(
    config: specs.RunConfig,
    rates: dict[str, Any],
    data: datasets.Dataset,
    task: task_lib.Task,
    workdir: pathlib.Path,
) -> dict[str, Any]:
    """The test figures at two rates: one of each seed, their mean and its interval."""
    client, server = rates["client_rate"], rates["server_rate"]
    values: dict[str, list[float]] = {}
    figure = ""
    for seed in range(config.seed, config.seed + config.tune.seeds):
        found = trial(at(config, client, server, seed), data, task, workdir, test=True)
        figure = found["figure"]
        for name, value in found["test"].items():
            values.setdefault(name, []).append(value)
    main = values[figure]
    return {
        "client_rate": client,
        "server_rate": server,
        "figure": figure,
        "values": main,
        "others": {name: v for name, v in values.items() if name != figure},
        **_over(main),
    }


def _over(values: list[float]) -> dict[str, float | int]:
    """Mean and interval over seeds; of one seed no interval is known."""
    if len(values) < 2:
        return {"value": values[0], "lo": 0.0, "hi": 1.0, "n": 1}
    mean = intervals.mean(np.array(values), bounds=(0.0, 1.0))
    return {"value": mean.value, "lo": mean.lo, "hi": mean.hi, "n": len(values)}


def _valid(one: dict[str, Any]) -> float:
    return one["valid"] if np.isfinite(one["valid"]) else -1.0


def _write(config, data, task, workdir, tried, own, shared) -> pathlib.Path:
    key = rng.step_key(rng.stream(rng.root(config.seed), "init"), 0)
    params = task.init(key)
    chosen = at(config, own["client_rate"], own["server_rate"], config.seed)
    cell = (centralised if config.tune.centralised else federation).cell(chosen)
    without = scores.baseline(data, "test")
    name = own["figure"]
    card = words.Card(
        "How good is this cell?",
        f"{fmt.capital(scores.WORDS[name])} {fmt.estimate(own)} over {own['n']} seeds.",
        (
            f"Best of {len(tried)} pairs of rates: clients {own['client_rate']:g}, "
            f"server {own['server_rate']:g}.",
            f"{scores.BASELINES[data.kind]} has "
            f"{fmt.estimate(without[name]._asdict())}.",
        ),
    )
    rows = [
        (f"{one['client_rate']:g}", f"{one['server_rate']:g}", f"{one['valid']:.1%}")
        for one in tried
    ]
    head = ("clients' rate", "server's rate", "validation")
    title = f"{cell['client']} and {cell['server'] or 'no server'} on {data.name}"
    path = study.write(
        workdir,
        describe.frame(title, config, data, task, params),
        (card,),
        (study.Section("Rates", tables=(tables.table(head, rows, "All rates"),)),),
        numbers={
            "kind": data.kind,
            "cell": cell,
            "headline": {key: own[key] for key in ("figure", "value", "lo", "hi", "n")},
            "baseline": federate_page.numbers(without),
            "budget": len(tried),
            "what": scores.WORDS[name],
            "tried": tried,
            "tuned": own,
            "shared": shared,
        },
        methods=METHODS,
    )
    print(f"test {scores.WORDS[name]} {fmt.estimate(own)}; report: {path}")
    return path
