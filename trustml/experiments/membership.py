"""Experiment `membership`: shadow models of a data set, and what gives it away.

    design -> shadow models -> signals.npz -> attacks -> report

All examples of the data set, whatever its splits, are one pool; the design decides
which model is trained on which of them, and every model is tested, and attacked, on the
examples that it was not trained on. With `privacy.enabled` each model is one run of the
plan made for its training set, whose epsilon is kept beside the signals. With
`attack.epsilons` one set of models is trained without privacy and one at each budget.

Example::

    page = membership.run(config.from_config_dict(cfg), pathlib.Path('runs/a'))
    kept = shadows.load(pathlib.Path('runs/a/non-private/signals.npz'))
    kept.signals, kept.epsilon, kept.delta
"""

import dataclasses
import hashlib
import inspect
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from trustml import config as config_lib
from trustml import parallel, rng, specs
from trustml import task as task_lib
from trustml.attacks import designs, shadows, signals
from trustml.data import batches, datasets
from trustml.experiments import (
    baseline,
    build,
    describe,
    finished,
    leaks,
    membership_page,
    train,
)
from trustml.experiments import shadows as driver
from trustml.privacy import plan as plan_lib

SPLITS = ("train", "valid", "test")


class Attack(NamedTuple):
    """All that is decided before the first model is trained.

    Attributes:
      design: which model is trained on which examples.
      columns: name -> [n, ...], the pool.
      group: int32[n], the first of the data set's groups; None where it has none.
      task: the model.
      make_train: number of steps (None: all of them) -> training of one model.
      own: inputs of the M models.
      plan: of each model; None without privacy.
      fingerprint: of all that the signals depend on.
    """

    design: designs.Design
    columns: dict[str, np.ndarray]
    group: np.ndarray | None
    task: task_lib.Task
    make_train: Callable[[int | None], shadows.Train]
    own: shadows.Inputs
    plan: plan_lib.Plan | None
    fingerprint: str


def run(config: specs.RunConfig, workdir: pathlib.Path) -> pathlib.Path:
    """Trains shadow models, attacks them and writes the report.

    Returns:
      The path of report.html.
    """
    if page := finished.page(config, workdir):
        return page
    data = build.encoded(config, build.dataset(config))
    ways = variants(config)
    attacks = {name: prepare(variant, data) for name, variant in ways.items()}
    found = []
    for name, attack in attacks.items():
        kept, posterior = signals_of(ways[name], attack, workdir / name)
        found.append(
            leaks.measure(
                name,
                kept,
                attack.columns,
                posterior,
                budgets=config.attack.references,
                learned_targets=config.attack.learned_targets,
                label_names=data.label_names,
                level=config.report.level,
            )
        )
        best = max(found[-1].attacks)
        auc = found[-1].attacks[best][leaks.HEADLINE].auc
        print(f"{name:>11}  {leaks.HEADLINE} with {best} models: AUC {auc.value:.3f}")
    attack = next(iter(attacks.values()))
    shapes = jax.eval_shape(attack.task.init, jax.random.key(0))
    title = f"Who was in the training data? {config.model.name} on {data.name}"
    frame = describe.frame(title, config, data, attack.task, shapes)
    path = membership_page.write(workdir, frame, found)
    print(f"report: {path}")
    return path


def variants(config: specs.RunConfig) -> dict[str, specs.RunConfig]:
    """Name -> config of each set of models, without privacy first."""
    if not config.attack.epsilons:
        return {train.run_name(config): config}
    made = {"non-private": baseline.of(config)}
    for epsilon in sorted(config.attack.epsilons, reverse=True):
        privacy = dataclasses.replace(config.privacy, epsilon=epsilon)
        variant = dataclasses.replace(
            config,
            privacy=privacy,
            attack=dataclasses.replace(config.attack, epsilons=()),
        )
        made[train.run_name(variant)] = variant
    return made


def signals_of(
    config: specs.RunConfig, attack: Attack, workdir: pathlib.Path
) -> tuple[driver.Kept, np.ndarray]:
    """Signals and posteriors of one set of models, trained where `workdir` lacks any.

    They are kept as signals.npz and, group by group, in the directory `shadows`.
    """
    kept, posterior = collect(config, attack, workdir)
    driver.save(workdir / "signals.npz", kept)
    return kept, posterior


def prepare(
    config: specs.RunConfig,
    data: datasets.Dataset,
    splits: Sequence[str] = SPLITS,
) -> Attack:
    """Design, task, training and inputs of the config's shadow models.

    Args:
      config: of the models.
      data: its data.
      splits: whose examples are the pool.

    Raises:
      ValueError: for whatever is out of bounds, before anything is trained.
    """
    columns, group = pool(data, splits)
    count, size = config.attack.num_models, batches.size(columns)
    make: Any = {"paired": designs.paired, "independent": designs.independent}
    design = make[config.attack.design](count, size, seed=config.seed)
    smallest = int(design.member.sum(axis=1).min())
    build.check_batch_sizes(config, smallest)
    task = build.task(config, data)
    loss = build.loss(config, data, task)
    key = rng.stream(jax.random.key(config.seed), "shadows")
    made = driver.training(config, task, loss, design.index)
    own = shadows.inputs(key, made.index, noise=made.root)
    mark = fingerprint(config, data, design, made.plan)
    return Attack(design, columns, group, task, made.make_train, own, made.plan, mark)


def collect(
    config: specs.RunConfig, attack: Attack, workdir: pathlib.Path, quiet: bool = False
) -> tuple[driver.Kept, np.ndarray]:
    """Trains what `workdir` lacks; the signals and posteriors of all models."""
    score, posterior_of = signals.of(attack.task), signals.posteriors(attack.task)
    margin, log_prob, posterior = driver.run(
        attack.make_train,
        lambda params, columns: (
            *score(params, columns),
            posterior_of(params, columns),
        ),
        attack.columns,
        attack.own,
        workdir=workdir,
        fingerprint=attack.fingerprint,
        group_size=config.attack.group_size,
        devices=parallel.devices(config.train.num_devices),
        backend=config.train.backend,
        quiet=quiet,
    )
    found = signals.assemble(
        margin,
        log_prob,
        attack.design,
        attack.columns["label"],
        group=attack.group,
        fingerprint=attack.fingerprint,
    )
    if attack.plan is None:
        return driver.Kept(found), posterior
    return driver.Kept(found, attack.plan.epsilon(), attack.plan.delta), posterior


def pool(
    data: datasets.Dataset, splits: Sequence[str] = SPLITS
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Every example of the splits, one after another, and its first group."""
    parts = [getattr(data, split) for split in splits]
    columns = {
        name: np.concatenate([part[name] for part in parts]) for name in data.train
    }
    name = next(iter(data.group_names), None)
    if name is None:
        return columns, None
    groups = [data.groups[split][name] for split in splits]
    return columns, np.concatenate(groups)


def fingerprint(
    config: specs.RunConfig,
    data: datasets.Dataset,
    design: designs.Design,
    plan: plan_lib.Plan | None,
) -> str:
    """Hexadecimal digest of configuration, data, design, plan, engine and JAX."""
    parts = [config_lib.digest(config), data.digest, design.digest, jax.__version__]
    parts.append("" if plan is None else plan.digest)
    parts += [inspect.getsource(module) for module in (shadows, signals, task_lib)]
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()
