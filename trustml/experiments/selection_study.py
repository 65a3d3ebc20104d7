"""Experiment `selection_study`: who should be selected, by activity or all alike?

    clients of a seed -> settings x arms, each one federation -> curves -> report

Arms (`specs.SelectionSpec`) are run in the static setting, where all data are there
from the start, and in the continual one, where they arrive over periods and storage is
limited. For a seed everything but the arm is the same: clients, arrivals, the order of
examples, initial parameters and the numbers behind the coins. So differences between
arms are taken seed by seed.

All runs use one compiled program: cohorts of any size and rule have one shape, and what
the sum of messages is divided by is an argument. A run that has ended is kept in
`runs/`, and the command given again goes on with the next.

Example::

    page = selection_study.run(config.from_config_dict(cfg), pathlib.Path('runs/a'))

References: https://arxiv.org/abs/2202.03925.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trustml import parallel, rng, specs
from trustml import report as report_lib
from trustml import task as task_lib
from trustml import writer as writer_lib
from trustml.data import datasets
from trustml.experiments import (
    build,
    describe,
    federation,
    finished,
    selection_page,
    selection_worlds,
)
from trustml.federated import objective, rounds, timeline, visits
from trustml.federated import weighting as weighting_lib
from trustml.federated.aggregation import chain
from trustml.federated.aggregation import weighting as links

_EVALUATED = 256  # examples at once


class Job(NamedTuple):
    """One federation.

    Attributes:
      seed: of all that it draws.
      world: 'given', or 'correlated' where labels go with activity.
      setting: of `specs.selection.SETTINGS`.
      arm: of `specs.selection.ARMS`.
    """

    seed: int
    world: str
    setting: str
    arm: str

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.world}-{self.setting}-{self.arm}-{self.seed}"


class Outcome(NamedTuple):
    """What a federation left; numbers only, as it is kept.

    Attributes:
      round: at which it was evaluated.
      accuracy: then, on the test split.
      examples: that clients had gone through by then.
      deciles: error in the end, as each tenth of the clients by activity meets it, the
        lightest first.
      taken: rounds that a client of each tenth took part in.
      objective: what was really optimised in the last period, a sentence.
      share: of the weights of that objective, in each tenth.
      held: of the examples of the last period, in each tenth.
    """

    round: list[int]
    accuracy: list[float]
    examples: list[int]
    deciles: list[float]
    taken: list[float]
    objective: str
    share: list[float]
    held: list[float]


class Ready(NamedTuple):
    """What all runs share.

    Attributes:
      config: of the study.
      task: the model.
      made: the compiled rounds.
      columns: training data on the devices.
      score: params -> (mean, float32[n]) of the test split.
      world: (seed, name) -> `selection_worlds.World`; the last ones are remembered.
      fingerprint: of all that an outcome depends on, the job apart.
    """

    config: specs.RunConfig
    task: task_lib.Task
    made: rounds.Rounds
    columns: dict[str, jax.Array]
    score: Callable[[Any], tuple[jax.Array, jax.Array]]
    world: Callable[[int, str], selection_worlds.World]
    fingerprint: str


def run(config: specs.RunConfig, workdir: pathlib.Path) -> pathlib.Path:
    """Runs every arm in every setting from every seed, and writes the report.

    Returns:
      The path of report.html.
    """
    if page := finished.page(config, workdir):
        return page
    data = build.dataset(config)
    ready = prepare(config, data)
    found = collect(ready, workdir)
    shapes = jax.eval_shape(ready.task.init, jax.random.key(0))
    title = f"Who should be selected? {config.model.name} on {data.name}"
    frame = describe.frame(title, config, data, ready.task, shapes)
    path, lines = selection_page.write(workdir, frame, config, found)
    print("\n".join([*lines, f"report: {path}"]))
    return path


def jobs(config: specs.RunConfig) -> Iterator[Job]:
    """All of them; within a world seed by seed, so that part of them is whole seeds."""
    spec = config.selection
    for world, seeds in (("given", spec.seeds), ("correlated", spec.correlated_seeds)):
        for seed in range(config.seed, config.seed + seeds):
            for setting in spec.settings:
                for arm in spec.arms:
                    yield Job(seed, world, setting, arm)


def prepare(config: specs.RunConfig, data: datasets.Dataset) -> Ready:
    """The compiled rounds and all that runs share.

    Raises:
      ValueError: for whatever is out of bounds, before any round.
    """
    task = build.task(config, data)
    devices = parallel.devices(config.train.num_devices)
    world = functools.lru_cache(maxsize=2)(
        functools.partial(selection_worlds.make, config, data)
    )
    clients = len(world(config.seed, "given").offsets) - 1
    algorithm = federation.algorithm(config, build.loss(config, data, task), clients)
    # Every rule is divided by a number that comes with the cohort.
    rule = weighting_lib.by_data()._replace(name="given", total=1.0)
    aggregator = chain.chain(links.of(rule))
    made = rounds.make(
        algorithm,
        aggregator,
        population=clients,
        settings=_settings(config, clients, devices),
    )
    test = jax.tree.map(jnp.asarray, data.test)
    accuracy = task.metrics["accuracy"]

    @jax.jit
    def scored(params, columns):
        def one(example):
            return accuracy(task.predict(params, example), example)

        found = jax.lax.map(one, columns, batch_size=_EVALUATED)
        return jnp.mean(found), found

    return Ready(
        config,
        task,
        made,
        parallel.replicate(data.train, devices),
        lambda params: scored(params, test),
        world,
        finished.fingerprint(config, data.digest),
    )


def collect(
    ready: Ready, workdir: pathlib.Path, *, quiet: bool = False
) -> dict[Job, Outcome]:
    """The outcomes of all jobs; those that `workdir` lacks are trained."""
    folder = workdir / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    wanted, found = list(jobs(ready.config)), {}

    def read(job):
        return _read(folder / f"{job.name}.json", ready.fingerprint)

    for job in wanted:
        if (kept := read(job)) is None:
            break
        found[job] = kept
    with writer_lib.Writer(
        workdir, len(wanted), quiet=quiet, resume_step=len(found) or None, name="run"
    ) as out:
        for number, job in enumerate(wanted[len(found) :], len(found) + 1):
            found[job] = read(job) or train(ready, job)
            kept = {"fingerprint": ready.fingerprint, **found[job]._asdict()}
            report_lib.put(folder / f"{job.name}.json", json.dumps(kept) + "\n")
            out.write(number, {"accuracy": found[job].accuracy[-1]})
    return found


def train(ready: Ready, job: Job) -> Outcome:
    """One federation."""
    config = ready.config
    total, limit = config.train.steps, config.federated.max_examples or None
    world = ready.world(job.seed, job.world)
    calendar = world.calendars[job.setting]
    public = rng.root(job.seed)
    seed = rng.seed_128(rng.stream(public, "selection"))
    words = jax.random.key_data(rng.step_key(rng.stream(public, "data"), 0))
    params = ready.task.init(rng.step_key(rng.stream(public, "init"), 0))
    state = ready.made.init(params)
    keys = np.asarray(_round_keys(public, jnp.arange(total, dtype=jnp.uint32)))
    taken = np.zeros(len(world.offsets) - 1)
    passed, when, examples, accuracy, last = 0, [], [], [], None
    now = None
    for number in range(total):
        period = number * calendar.periods // total
        if now is None or now.period != period:
            now = holding(config, world, calendar, period, job.arm, seed)
        cohort, _ = now.chosen_by.select(now.selected, number)
        members = cohort.clients
        count = now.sizes[members].astype(np.int64)
        weights = now.rule.of(members, count)
        total_weight = weights.sum() if now.rule.total is None else now.rule.total
        chosen = rounds.Chosen(
            members,
            np.minimum(count, limit) if limit else count,
            weights,
            float(total_weight) or 1.0,  # nobody came: nothing is divided
        )
        place = visits.placed(
            lambda found, now=now: (ready.columns, now.rows[found].astype(np.int32)),
            words,
            number,
            members,
            count,
            starts=now.starts[members],
            limit=limit,
        )
        key = jax.random.wrap_key_data(keys[number])
        state, _ = ready.made.run(state, key, chosen, place)
        taken[members] += 1
        passed += int(chosen.sizes.sum()) * config.federated.epochs
        done = number + 1
        every = config.train.eval_every
        if done == total or (every and done % every == 0):
            mean, last = ready.score(state.server.params)
            when.append(done)
            examples.append(passed)
            accuracy.append(mean)  # read at the end: the devices need not wait
    assert now is not None and last is not None
    aim = objective.effective(now.chosen_by, now.selected, now.rule)
    assert aim.weights is not None
    return Outcome(
        round=when,
        accuracy=[float(x) for x in accuracy],
        examples=examples,
        deciles=(world.meets @ (1.0 - np.asarray(last, np.float64))).tolist(),
        taken=selection_worlds.by_tenth(world, taken, np.mean),
        objective=aim.sentence,
        share=selection_worlds.by_tenth(world, aim.weights, np.sum),
        held=selection_worlds.by_tenth(world, now.sizes / now.sizes.sum(), np.sum),
    )


class Holding(NamedTuple):
    """A period: what clients hold, and who is selected.

    Attributes:
      period: its number.
      sizes: int[K], n_k.
      rows: rows of the data, client after client.
      starts: where those of each client begin among these.
      chosen_by: the selector.
      selected: its state.
      rule: how much a client counts.
    """

    period: int
    sizes: np.ndarray
    rows: np.ndarray
    starts: np.ndarray
    chosen_by: Any
    selected: Any
    rule: weighting_lib.Weighting


def holding(
    config: specs.RunConfig,
    world: selection_worlds.World,
    calendar: timeline.Timeline,
    period: int,
    arm: str,
    seed: int,
) -> Holding:
    """What an arm meets in a period."""
    sizes = timeline.sizes(calendar, period)
    rows, starts = timeline.rows(calendar, period, world.offsets)
    fitted = fitting(config, arm, sizes)
    chosen_by = federation.selector(fitted, len(sizes), seed)
    selected = chosen_by.init(sizes)
    rule = federation.weighting(fitted, chosen_by, selected)
    return Holding(period, sizes, world.rows[rows], starts, chosen_by, selected, rule)


def fitting(config: specs.RunConfig, arm: str, sizes: np.ndarray) -> specs.RunConfig:
    """The config of an arm, at sizes that may be too small for what it asks.

    In the first periods few clients hold anything. Then a threshold that nobody reaches
    is that of the largest; a cohort beyond those who may come is all of them; and the
    cap of 'capped' is a multiple of the mean rate of those who hold data.
    """
    spec, holders = config.federated, int(np.count_nonzero(sizes))
    changes: dict[str, Any] = {
        "uniform": {"selection": "uniform"},
        "capped": {"selection": "capped_power", "cap": spec.cap * len(sizes) / holders},
        "log": {"selection": "log"},
        "threshold": {"selection": "threshold"},
        "activity": {"selection": "power", "beta": 1.0},
        "unbiased": {"selection": "power", "beta": 1.0},
        "hajek": {"selection": "power", "beta": 1.0},
    }[arm]
    names = {"unbiased": "horvitz_thompson", "hajek": "hajek"}
    changes["weighting"] = names.get(arm, "data")
    able = holders
    if arm == "threshold":
        changes["threshold"] = min(spec.threshold, int(sizes.max()))
        able = int(np.count_nonzero(sizes >= changes["threshold"]))
    changes["cohort"] = min(spec.cohort, able)
    return dataclasses.replace(config, federated=dataclasses.replace(spec, **changes))


@jax.jit
def _round_keys(public, numbers):
    """The keys of rounds as data, uint32[R, 2]; one by one they take longer."""
    keys = jax.vmap(lambda number: rounds.round_key(public, number))(numbers)
    return jax.random.key_data(keys)


def _settings(config, clients, devices) -> rounds.Settings:
    spec = config.federated
    lanes = spec.lanes or 1
    return rounds.Settings(
        jit=jax.jit,
        lanes=lanes,
        batch_size=config.train.batch_size,
        capacity=rounds.capacity(spec.cohort, clients, lanes=lanes),
        epochs=spec.epochs,
        steps=spec.local_steps,
        group=spec.group,
        exact=spec.exact,
        devices=devices,
        backend=config.train.backend,
    )


def _read(path: pathlib.Path, fingerprint: str) -> Outcome | None:
    """A kept outcome; None where there is none, or one of other data or versions."""
    kept = finished.kept(path, fingerprint, "fingerprint")
    return None if kept is None else Outcome(**kept)
