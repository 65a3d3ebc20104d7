"""Experiment `federate`: clients train, the server averages, and a report on it.

    store -> selection -> cohort -> lanes -> aggregation -> server, `train.steps` times

With `privacy.enabled` the unit is the client: messages are clipped, noise is added once
a round, and epsilon is that of the selector that really ran. A killed run goes on where
it was: parameters, the algorithm's and the clients' states, noise and selection are in
the checkpoint, and everything else is a function of (seed, round).

Example::

    federate.run(config.from_config_dict(cfg), pathlib.Path('runs/a'))
"""

import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from trustml import checkpoint, parallel, rng, specs
from trustml import config as config_lib
from trustml import task as task_lib
from trustml import writer as writer_lib
from trustml.data import datasets
from trustml.experiments import (
    absence,
    build,
    describe,
    device_loss,
    federate_page,
    federation,
    finished,
    lane_probe,
    loop,
    scores,
)
from trustml.federated import (
    feed,
    held_out,
    im2col,
    objective,
    partitions,
    rounds,
    selection,
    timeline,
    user_privacy,
    visits,
)
from trustml.federated import store as stores
from trustml.privacy import trainable


class Trained(NamedTuple):
    """What a federation left.

    Attributes:
      params: of the server.
      store: who held what, to train on.
      tests: what each client kept out; None where nothing was.
      personal: of the algorithm, (params, memory) -> a client's own model, or None.
      memory: what clients remember, arrays [K, ...]; () if nothing.
      dealt: the partition; None where the clients are natural.
      sentence: what was really optimised.
      privacy: what was promised to each client; None without noise.
      noise_multiplier: z; None without noise.
      rows: of metrics.jsonl.
      taken: int64[K], rounds that each client took part in, and was heard; without
        those that a robust rule gave up.
      trained_in: int64[K], rounds in which each trained, heard or not.
      rounds: how many there were.
      absent: who could not be heard, and why.
      tally: what became of those that were asked.
      utilization: mean useful share of the executed steps of lanes.
      sent: numbers that a client sends in a round, before compression.
    """

    params: Any
    store: stores.ClientStore
    tests: stores.ClientStore | None
    personal: Any
    memory: Any
    dealt: partitions.Partition | None
    sentence: str
    privacy: user_privacy.UserPrivacy | None
    noise_multiplier: float | None
    rows: list[dict[str, Any]]
    taken: np.ndarray
    trained_in: np.ndarray
    rounds: int
    absent: absence.Absence
    tally: absence.Tally
    utilization: float
    sent: int = 0


def run(config: specs.RunConfig, workdir: pathlib.Path) -> pathlib.Path:
    """Trains, measures and writes the report; resumes what `workdir` holds.

    Returns:
      The path of report.html.
    """
    if page := finished.page(config, workdir):
        return page
    data = build.dataset(config)
    task = build.task(config, data)
    trained = fit(config, data, task, workdir)
    title = f"{config.model.name} on {data.name}, federated"
    frame = describe.frame(title, config, data, task, trained.params)
    path, found = federate_page.write(workdir, frame, config, data, task, trained)
    print(f"test {federate_page.figure(found)}; report: {path}")
    return path


def fit(
    config: specs.RunConfig,
    data: datasets.Dataset,
    task: task_lib.Task,
    workdir: pathlib.Path,
    *,
    quiet: bool = False,
) -> Trained:
    """Rounds of federated training, resuming what `workdir` holds.

    Raises:
      ValueError: for whatever is out of bounds, before any round.
      device_loss.DeviceError: a device failed; the last whole round is saved where it
        can be read, and the newest checkpoint stands.
    """
    spec, total = config.federated, config.train.steps
    private = config.privacy.enabled
    # Who holds what, and when.
    held, dealt = federation.store(config, data)
    tests = None
    if spec.held_out:
        seed_words = rng.step_key(rng.stream(rng.root(config.seed), "held_out"), 0)
        words = jax.random.key_data(seed_words)
        held, tests = held_out.split(held, spec.held_out, words)
    clients = len(held.offsets) - 1
    if private:
        user_privacy.check_users(held.user)
    calendar = federation.periods(config, held)
    # Randomness: noise and, under privacy, selection are secret.
    root, public = rng.root(config.privacy.noise_seed), rng.root(config.seed)
    seed = rng.seed_128(rng.stream(root if private else public, "selection"))
    devices = parallel.devices(config.train.num_devices)
    saver = _saver(config, data, workdir)
    absent = absence.make(config)
    chosen_by = absent.selector(federation.selector(config, clients, seed))
    selected = chosen_by.init(timeline.sizes(calendar, 0))
    rule = federation.weighting(config, chosen_by, selected)
    z, promise = _promise(config, chosen_by, calendar, clients)
    # What clients and server do.
    whole = task.init(rng.step_key(rng.stream(public, "init"), 0))
    params, frozen = trainable.partition(whole, build.trainable(config))
    thawed = _thawed(build.loss(config, data, task), frozen)

    def loss(params, row, key):
        # Columns are kept in the narrowest types that hold them.
        return thawed(params, feed.widen(row), key)

    source = feed.open(held, put=lambda tree: parallel.replicate(tree, devices))

    heaviest = _heaviest(config, chosen_by, calendar, rule)

    def build_rounds(way, population, narrowing=True):
        chosen_loss = im2col.rewrite(loss) if way.kernel == "im2col" else loss
        return rounds.make(
            federation.algorithm(config, chosen_loss, population),
            federation.aggregator(config, heaviest, z),
            population=population,
            settings=_settings(config, way, clients, devices, narrowing),
        )

    asked = config, build_rounds, loss, params, timeline.sizes(calendar, 0), source
    way = lane_probe.settle(workdir, lambda: lane_probe.of_run(*asked))
    if not quiet:
        print(lane_probe.sentence(way))
    made = build_rounds(way, clients)
    state = made.init(params, rng.stream(root, "noise"))
    taken, trained_in = np.zeros((2, clients), np.int64)
    tally = absence.nothing_yet()
    words = jax.random.key_data(rng.step_key(rng.stream(public, "data"), 0))

    def kept():
        return {
            "state": state,
            "taken": taken,
            "trained_in": trained_in,
            "tally": tally,
            "seed": seed,
            "observed": _observed(selected),
        }

    found = saver.restore(kept())
    first = 0
    if found is None:
        saver.save(0, kept())
    else:
        first, old = found.step, found.state
        state, taken, tally = old["state"], old["taken"], old["tally"]
        trained_in = old["trained_in"]
        seed = old["seed"]
        chosen_by = absent.selector(federation.selector(config, clients, seed))
        selected = chosen_by.init(timeline.sizes(calendar, 0))
        selected = selected._replace(observed=old["observed"] or None)

    holding, key_of = _holding(calendar, held), jax.jit(rounds.round_key)
    # A run that was killed after its last round has none left.
    now = holding(min(first, total - 1) * calendar.periods // total)
    used: list[float] = []
    infos: list[rounds.Info] = []
    last: Any = first, kept()  # rounds done and what they left; None in between
    out = writer_lib.Writer(
        workdir,
        total,
        quiet=quiet,
        resume_step=first if found else None,
        epsilon_budget=config.privacy.epsilon if private else None,
        name="federate",
    )
    guarded = device_loss.explained(saver, "round", lambda: last)
    with out, guarded:
        for number in range(first, total):
            if number == first or now.period != number * calendar.periods // total:
                now = holding(number * calendar.periods // total)
                selected = chosen_by.resize(selected, now.sizes)
                rule = federation.weighting(config, chosen_by, selected)
            cohort, selected = chosen_by.select(selected, number)
            members = cohort.clients
            limit = spec.max_examples or None
            count = now.sizes[members].astype(np.int64)
            used_rows = np.minimum(count, limit) if limit else count
            fate = absent.realise(cohort, made.steps(used_rows))
            chosen = rounds.Chosen(
                members,
                np.where(fate.steps > 0, used_rows, 0),
                rule.of(members, count),
                rule.total,
                fate.heard if absent.expected else None,
            )
            place = visits.placed(
                now.through(source.place),
                words,
                number,
                members,
                count,
                starts=now.starts[members],
                limit=limit,
            )
            state, info = made.run(state, key_of(public, number), chosen, place)
            last = None
            infos.append(info)
            used.append(info.utilization)
            if not (spec.robust and info.aggregate.aborted):
                taken[members[fate.heard]] += 1
            trained_in[members[fate.steps > 0]] += 1
            tally = absence.count(tally, fate)
            done = number + 1
            if chosen_by.listens:
                loss_of = np.asarray(info.records().algorithm.loss)
                selected = chosen_by.observe(
                    selected,
                    number,
                    members[fate.heard],
                    loss_of[fate.heard],
                    fate.seconds[fate.heard],
                )
            evaluated = loop.due(config.train.eval_every, done, total)
            if evaluated or loop.due(config.train.log_every, done, total):
                row = _metrics(infos, chosen)
                infos.clear()
                if promise is not None and z is not None:
                    row["epsilon"] = promise(done).epsilon_as_run
                if evaluated:
                    now_params = trainable.combine(state.server.params, frozen)
                    right = scores.per_example(task, now_params, data.valid, data.kind)
                    row["nonprivate/valid_accuracy"] = float(right.mean())
                out.write(done, row)
            last = done, kept()  # with its row written, or that would be lost
            if loop.due(config.train.checkpoint_every, done, total):
                saver.save(*last)
    selected = chosen_by.resize(
        selected, timeline.sizes(calendar, calendar.periods - 1)
    )
    return Trained(
        params=trainable.combine(state.server.params, frozen),
        store=held,
        tests=tests,
        personal=federation.algorithm(config, loss, clients).personal,
        memory=state.memory[0],
        dealt=dealt,
        sentence=_objective(config, chosen_by, selected, rule),
        privacy=None if promise is None else promise(total),
        noise_multiplier=z,
        rows=writer_lib.read(workdir / "metrics.jsonl"),
        taken=taken,
        trained_in=trained_in,
        rounds=total,
        absent=absent,
        tally=tally,
        utilization=float(np.mean(used)) if used else 1.0,
        sent=sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params)),
    )


def _objective(config, chosen_by, selected, rule) -> str:
    sentence = objective.effective(chosen_by, selected, rule).sentence
    if not config.federated.robust:
        return sentence
    return (
        f"What federated.robust={config.federated.robust!r} optimises is not known "
        f"where clients differ; of a mean in its place: {sentence}"
    )


def _thawed(loss, frozen):
    """`loss` of the trained leaves alone; nobody changes or sends the others."""
    if not jax.tree.leaves(frozen):
        return loss

    def of_trained(params, example, key):
        return loss(trainable.combine(params, frozen), example, key)

    return of_trained


class _Now(NamedTuple):
    """What clients hold in a period.

    Attributes:
      period: its number.
      sizes: int[K], n_k.
      rows: int64[sum n_k], rows of the store, client after client.
      starts: int64[K+1], where each client's rows begin among these.
    """

    period: int
    sizes: np.ndarray
    rows: np.ndarray
    starts: np.ndarray

    def through(self, place):
        """`place` of the store, for rows that count among these."""
        return lambda found: place(self.rows[found])


def _holding(calendar, held):
    """Period -> what clients hold."""

    def holding(period):
        rows, starts = timeline.rows(calendar, period, held.offsets)
        return _Now(period, timeline.sizes(calendar, period), rows, starts)

    return holding


def _settings(config, way, clients, devices, narrowing) -> rounds.Settings:
    spec = config.federated
    return rounds.Settings(
        jit=jax.jit,
        lanes=way.lanes,
        narrowing=narrowing,
        batch_size=config.train.batch_size,
        capacity=rounds.capacity(spec.asked, clients, lanes=way.lanes),
        epochs=spec.epochs,
        steps=spec.local_steps,
        group=spec.group,
        exact=spec.exact,
        devices=devices,
        backend=config.train.backend,
    )


def _promise(config, chosen_by, calendar, clients):
    """(z, rounds done -> what was promised); (None, None) without privacy."""
    spec, total = config.privacy, config.train.steps
    if not spec.enabled:
        return None, None
    ends = [
        -(-(period + 1) * total // calendar.periods)
        for period in range(calendar.periods)
    ]
    states = [
        chosen_by.init(timeline.sizes(calendar, period))
        for period in range(calendar.periods)
    ]

    def claim(z, done):
        parts, begin = [], 0
        for state, end in zip(states, ends, strict=True):
            if min(done, end) > begin:
                parts.append(chosen_by.event(state, z, min(done, end) - begin))
            begin = end
        return user_privacy.compose(parts)

    z = spec.noise_multiplier
    if z is None:
        if calendar.periods > 1:
            raise ValueError(
                "privacy.epsilon cannot be solved for noise where sizes change with "
                f"federated.periods={calendar.periods}; set privacy.noise_multiplier."
            )
        z = user_privacy.calibrate(
            chosen_by,
            states[0],
            epsilon=spec.epsilon,
            delta=spec.delta,
            rounds=total,
            accountant=spec.accountant,
        )
    user_privacy.check_claim(chosen_by, states[0], total, z)

    def promised(done):
        return user_privacy.account(
            claim(z, done), delta=spec.delta, accountant=spec.accountant
        )

    return z, promised


def _heaviest(config, chosen_by, calendar, rule):
    """The rule of the period whose weights are largest: noise is made for it."""
    if not config.privacy.enabled:
        return rule
    rules = [
        federation.weighting(
            config, chosen_by, chosen_by.init(timeline.sizes(calendar, period))
        )
        for period in range(calendar.periods)
    ]
    return max(rules, key=lambda one: one.s_max or 0.0)


def _observed(selected: selection.State) -> Any:
    return () if selected.observed is None else selected.observed


def _metrics(infos, chosen) -> dict[str, Any]:
    records = [info.records() for info in infos]
    loss = np.concatenate([record.algorithm.loss for record in records])
    examples = np.concatenate([record.algorithm.examples for record in records])
    norms = np.concatenate([record.aggregator.norm for record in records])
    clipped = np.concatenate([record.aggregator.clipped for record in records])
    many = max(np.count_nonzero(examples), 1)
    return {
        "nonprivate/loss": float((loss * examples).sum() / max(examples.sum(), 1)),
        "nonprivate/clients": len(chosen.numbers),
        "nonprivate/mean_norm": float(norms.sum() / many),
        "nonprivate/clipped_fraction": float(clipped.sum() / many),
        "nonprivate/nonfinite": int(
            sum((~record.aggregator.finite).sum() for record in records)
        ),
        "nonprivate/clamped": sum(int(info.clamped) for info in infos),
        "nonprivate/aborted": sum(int(info.aggregate.aborted) for info in infos),
    }


def _saver(config, data, workdir) -> checkpoint.Checkpointer:
    digests = {
        "another configuration": config_lib.digest(config),
        f"other data (data.name={config.data.name!r})": data.digest,
    }
    return checkpoint.Checkpointer(
        workdir / "checkpoints", digest=":".join(digests.values()), parts=tuple(digests)
    )
