"""Experiment `membership`: shadow models of a data set, and what they say of it.

    design -> shadow models -> signals -> signals.npz (-> scores -> report)

All examples of the data set, whatever its splits, are one pool; the design decides
which model is trained on which of them, and every model is tested, and attacked, on the
examples that it was not trained on. With `privacy.enabled` each model is one run of the
plan made for its training set, whose epsilon is kept beside the signals.

Example::

    path = membership.run(config.from_config_dict(cfg), pathlib.Path('runs/a'))
    kept = shadows.load(path)                  # kept.signals, kept.epsilon, kept.delta
"""

import hashlib
import inspect
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from trustml import config as config_lib
from trustml import parallel, rng, specs
from trustml import task as task_lib
from trustml.attacks import designs, shadows, signals
from trustml.data import batches, datasets
from trustml.experiments import build
from trustml.experiments import shadows as driver
from trustml.privacy import plan as plan_lib


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
    """Trains the shadow models and keeps their signals; resumes what `workdir` holds.

    Returns:
      The path of signals.npz.
    """
    attack = prepare(config, build.encoded(config, build.dataset(config)))
    path = workdir / "signals.npz"
    if path.exists():
        kept = driver.load(path)
        if kept.signals.fingerprint == attack.fingerprint:
            print(f"finished already; signals: {path}")
            return path
    kept = collect(config, attack, workdir)
    driver.save(path, kept)
    # Scores of `kept.signals` and the report on them join here.
    _say(kept, path)
    return path


def prepare(config: specs.RunConfig, data: datasets.Dataset) -> Attack:
    """Design, task, training and inputs of the config's shadow models.

    Raises:
      ValueError: for whatever is out of bounds, before anything is trained.
    """
    columns, group = pool(data)
    count, size = config.attack.num_models, batches.size(columns)
    make: Any = {"paired": designs.paired, "independent": designs.independent}
    design = make[config.attack.design](count, size, seed=config.seed)
    smallest = int(design.member.sum(axis=1).min())
    build.check_batch_sizes(config, smallest)
    task = build.task(config, data)
    loss = build.loss(config, data, task)
    key = rng.stream(jax.random.key(config.seed), "shadows")
    plan, root, index = None, None, design.index
    make_train: Callable[[int | None], shadows.Train]
    if config.privacy.enabled:
        root = rng.root(config.privacy.noise_seed)
        clipper: Any = build.clipper(config, loss)
        sampler = build.sampler(config, index.shape[1], 1, root)
        shapes = jax.eval_shape(task.init, jax.random.key(0))
        plan = made = build.plan(config, clipper, sampler, shapes)
        optimizer = build.optimizer(config, build.noise_variance(config, made))
        index = shadows.private_index(made, index, root)

        def make_train(steps: int | None) -> shadows.Train:
            return shadows.private_trainer(
                task.init, clipper, made, optimizer, steps=steps
            )

    else:
        optimizer = build.optimizer(config)

        def make_train(steps: int | None) -> shadows.Train:
            return shadows.trainer(
                task.init,
                loss,
                optimizer,
                steps=steps or config.train.steps,
                batch_size=config.train.batch_size,
                trainable=build.trainable(config),
            )

    own = shadows.inputs(key, index, noise=root)
    mark = fingerprint(config, data, design, plan)
    return Attack(design, columns, group, task, make_train, own, plan, mark)


def collect(
    config: specs.RunConfig, attack: Attack, workdir: pathlib.Path, quiet: bool = False
) -> driver.Kept:
    """Trains what `workdir` lacks and returns the signals of all models."""
    margin, log_prob = driver.run(
        attack.make_train,
        signals.of(attack.task),
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
        return driver.Kept(found)
    return driver.Kept(found, attack.plan.epsilon(), attack.plan.delta)


def pool(data: datasets.Dataset) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Every example of a data set, split after split, and its first group."""
    splits = (data.train, data.valid, data.test)
    columns = {
        name: np.concatenate([split[name] for split in splits]) for name in data.train
    }
    name = next(iter(data.group_names), None)
    if name is None:
        return columns, None
    parts = [data.groups[split][name] for split in ("train", "valid", "test")]
    return columns, np.concatenate(parts)


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


def _say(kept: driver.Kept, path: pathlib.Path) -> None:
    found = kept.signals
    invalid = int(np.sum(~found.valid))
    member = np.broadcast_to(found.member[:, :, None], found.margin.shape)
    use = np.isfinite(found.margin)
    means = [float(found.margin[use & side].mean()) for side in (member, ~member)]
    print(
        f"{len(found.pair)} models on {len(found.valid)} examples; mean margin of "
        f"members {means[0]:.2f}, of others {means[1]:.2f}; {invalid} examples without "
        "a finite signal"
        + ("" if kept.epsilon is None else f"; each model has epsilon={kept.epsilon:g}")
        + f"; signals: {path}"
    )
