"""Experiment `canary_extraction`: is a secret in the training text read out of models?

    secrets -> models of all seeds and copies -> losses of codes, searches -> report

One set of models for each defence, and one without. The models of a seed start from the
same parameters and see their rows in the same order; only the copies of the secret
differ, so that exposure is compared seed by seed with that of the model without it.
(Private models draw batches and noise of their own: each is one run of the plan.) What
`train`, `optimizer` and `model` say holds for private models; `baseline` changes it for
the others.

Example::

    page = canary_extraction.run(config.from_config_dict(cfg), pathlib.Path('runs/a'))
"""

import dataclasses
import hashlib
import inspect
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trustml import config as config_lib
from trustml import parallel, rng, specs
from trustml import task as task_lib
from trustml.attacks import shadows, signals
from trustml.attacks.extraction import relaxed, scoring, search
from trustml.data import datasets
from trustml.experiments import (
    baseline,
    build,
    canary_page,
    describe,
    exposures,
    finished,
    planted,
)
from trustml.experiments import shadows as driver
from trustml.models import tagging
from trustml.privacy import plan as plan_lib


class Variant(NamedTuple):
    """One set of models.

    Attributes:
      name: 'undefended', or one of `specs.canary.DEFENCES`.
      config: of its models.
      copies: of the secret, K numbers.
      seeds: S.
    """

    name: str
    config: specs.RunConfig
    copies: tuple[int, ...]
    seeds: int


class Prepared(NamedTuple):
    """All that is decided before the first model of a set is trained.

    Attributes:
      variant: the set.
      planted: its secrets.
      columns: training rows, then the secrets.
      task: the model.
      make_train: number of steps (None: all of them) -> training of one model, which
        returns its parameters and the number of its seed.
      own: inputs of the M = S K models, seed after seed.
      plan: of each model; None without privacy.
      fingerprint: of all that the scores depend on.
    """

    variant: Variant
    planted: planted.Planted
    columns: dict[str, np.ndarray]
    task: task_lib.Task
    make_train: Callable[[int | None], shadows.Train]
    own: shadows.Inputs
    plan: plan_lib.Plan | None
    fingerprint: str


def run(config: specs.RunConfig, workdir: pathlib.Path) -> pathlib.Path:
    """Plants secrets, trains, attacks and writes the report.

    Returns:
      The path of report.html.
    """
    if page := finished.page(config, workdir):
        return page
    data = build.dataset(config)
    ready = [prepare(variant, data) for variant in variants(config)]
    found = []
    for prepared in ready:
        asked = collect(prepared, data, workdir / prepared.variant.name)
        found.append(measure(prepared, data, asked))
        for row in found[-1].rows:
            print(f"{prepared.variant.name:>14}  {canary_page.line(row)}", flush=True)
    first = ready[0]
    shapes = jax.eval_shape(first.task.init, jax.random.key(0))
    title = f"What can be read out? {config.model.name} on {data.name}"
    frame = describe.frame(title, config, data, first.task, shapes)
    path = canary_page.write(workdir, frame, config, first.planted, found)
    print(f"report: {path}")
    return path


def variants(config: specs.RunConfig) -> list[Variant]:
    """The models without a defence, then those of every defence."""
    spec, plain = config.canary, baseline.of(config)
    stopped = max(1, round(plain.train.steps * spec.early_stopping))
    changes = {
        "dropout": {"model": {"dropout": spec.dropout}},
        "early_stopping": {"train": {"steps": stopped}},
        "characters": {"model": {"characters": spec.characters}},
        "combined": {
            "model": {"dropout": spec.dropout, "characters": spec.characters},
            "train": {"steps": stopped},
        },
    }
    made = [Variant("undefended", plain, spec.copies, spec.seeds)]
    for name in spec.defences:
        changed = dataclasses.replace(config, experiment="train")
        if name != "dp_sgd":
            parts: Any = {
                part: dataclasses.replace(getattr(plain, part), **fields)
                for part, fields in changes[name].items()
            }
            changed = dataclasses.replace(plain, **parts)
        made.append(Variant(name, changed, spec.defence_copies, spec.defence_seeds))
    return made


def prepare(variant: Variant, data: datasets.Dataset) -> Prepared:
    """Secrets, task, training and inputs of one set of models.

    Raises:
      ValueError: for whatever is out of bounds, before anything is trained.
    """
    config = variant.config
    found = planted.plan(config, data, seeds=variant.seeds)
    columns, size = planted.columns(found, data), len(data.train["label"])
    index, seed = planted.index(found, size, variant.copies)
    digest = hashlib.blake2b(index.tobytes(), digest_size=16).hexdigest()
    build.check_batch_sizes(config, index.shape[1])
    task = build.task(config, data)
    loss = build.loss(config, data, task)
    key = rng.stream(jax.random.key(config.seed), "canary models")
    keys: Any = rng.stream(key, "seeds")
    made = driver.training(config, task, loss, index)

    def make_train(steps: int | None) -> shadows.Train:
        train = made.make_train(steps)

        def of_seed(columns, own):
            same = jax.random.fold_in(keys, own.about.astype(jnp.uint32))
            return train(columns, own._replace(key=same)), own.about

        return of_seed

    own = shadows.inputs(key, made.index, noise=made.root)
    own = own._replace(about=jnp.asarray(seed))
    mark = fingerprint(config, data, digest, made.plan)
    return Prepared(variant, found, columns, task, make_train, own, made.plan, mark)


def scores(prepared: Prepared, data: datasets.Dataset) -> driver.Score:
    """What is asked of a group: the test split, the losses of codes, the searches.

    Returns:
      fn((params [G, ...], seed int32[G]), columns) -> margins float32[G, n], intents
      int32[G, n], tags int32[G, n, T], losses float32[G, R], codes int32[G, A, L] of
      the A searches in the order of `searches`.
    """
    config, task, found = prepared.variant.config, prepared.task, prepared.planted
    spec, pattern = config.canary, found.pattern
    # The attacker's loss is that of training.
    loss = scoring.joint_loss(slot_total=config.model.slot_total)
    score = scoring.scorer(task, pattern, loss=loss, chunk=500)
    made: Any = {
        "relaxed": lambda: relaxed.gumbel(
            task,
            pattern,
            loss=loss,
            restarts=spec.restarts,
            steps=spec.relaxed_steps,
        ),
        "beam": lambda: search.beam(task, pattern, loss=loss, width=spec.restarts),
        "descent": lambda: search.coordinate_descent(
            task, pattern, loss=loss, restarts=spec.restarts
        ),
    }
    ways = {name: made[name]() for name in searches(config)}
    key = rng.stream(jax.random.key(config.seed), "searches")
    test = {name: jnp.asarray(column) for name, column in data.test.items()}
    targets = jax.tree.map(jnp.asarray, found.targets)
    codes = jnp.asarray(found.codes)

    def asked(params, example):
        prediction = task.predict(params, example)
        log_probs = task_lib.label_log_probs(prediction)
        tags = jnp.argmax(tagging.slot_log_probs(prediction), axis=-1)
        intent = jnp.argmax(log_probs).astype(jnp.int32)
        margin = signals.margin_of(log_probs, example["label"])
        return margin, intent, tags.astype(jnp.int32)

    def one(params, seed):
        target = jax.tree.map(lambda column: column[seed], targets)
        losses = score(params, target, codes if codes.ndim == 2 else codes[seed])
        guesses = []
        for name, way in ways.items():
            of_way: Any = rng.stream(key, name)
            own = jax.random.fold_in(of_way, seed.astype(jnp.uint32))
            args = (params, target) if name == "beam" else (params, target, own)
            guesses.append(way(*args).codes[0])
        width = pattern.positions.size
        none = jnp.zeros((0, width), jnp.int32)
        guessed = jnp.stack(guesses) if guesses else none
        return *jax.vmap(asked, (None, 0))(params, test), losses, guessed

    return lambda trained, columns: jax.vmap(one)(*trained)


def searches(config: specs.RunConfig) -> tuple[str, ...]:
    """The attacks that search, in order; 'exhaustive' reads the losses of all codes."""
    return tuple(name for name in config.canary.attacks if name != "exhaustive")


def collect(
    prepared: Prepared, data: datasets.Dataset, workdir: pathlib.Path, quiet=False
) -> tuple[np.ndarray, ...]:
    """Trains what `workdir` lacks; what all models say, in the order of `scores`."""
    config = prepared.variant.config
    return driver.run(
        prepared.make_train,
        scores(prepared, data),
        prepared.columns,
        prepared.own,
        workdir=workdir,
        fingerprint=prepared.fingerprint,
        group_size=config.attack.group_size,
        devices=parallel.devices(config.train.num_devices),
        backend=config.train.backend,
        quiet=quiet,
    )


def measure(
    prepared: Prepared, data: datasets.Dataset, asked: tuple[np.ndarray, ...]
) -> exposures.Found:
    """The figures of one set of models."""
    config, plan = prepared.variant.config, prepared.plan
    _, intents, tags, losses, guesses = asked
    return exposures.measure(
        prepared.variant.name,
        prepared.planted,
        prepared.variant.copies,
        correct=intents == data.test["label"],
        f1=[exposures.f1(row, data.test, data.slot_names) for row in tags],
        losses=losses,
        guesses=dict(zip(searches(config), np.moveaxis(guesses, 1, 0), strict=True)),
        exhaustive="exhaustive" in config.canary.attacks,
        level=config.report.level,
        epsilon=None if plan is None else plan.epsilon(),
        delta=None if plan is None else plan.delta,
    )


def fingerprint(
    config: specs.RunConfig,
    data: datasets.Dataset,
    index_digest: str,
    plan: plan_lib.Plan | None,
) -> str:
    """Hexadecimal digest of configuration, data, training sets, plan, engine, JAX."""
    parts = [config_lib.digest(config), data.digest, index_digest, jax.__version__]
    parts.append("" if plan is None else plan.digest)
    modules = (shadows, planted, scoring, search, relaxed, task_lib)
    parts += [inspect.getsource(module) for module in modules]
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()
