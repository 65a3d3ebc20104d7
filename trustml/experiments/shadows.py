"""Driver of the shadow engine: compiled once, group by group, kept as it goes.

The engine (`trustml.attacks.shadows`) is pure functions; here one program of a group,
training and scores together, is compiled once and called for every group. What a group
says of the examples is kept at once under the fingerprint of the run, so a killed run
goes on with the models that it lacks; their parameters are not kept.

How many models are trained at once is found out where it is not given: on CPUs groups
of 1, 2, 4, ... train for a few steps by the clock, until another doubling is no gain;
on accelerators by memory, see `fitting`.

Example::

    margin, log_prob = shadows.run(make_train, signals.of(task), columns, own,
                                   workdir=workdir, fingerprint=fingerprint)
    shadows.save(workdir / 'signals.npz', shadows.Kept(found, epsilon, delta))
    kept = shadows.load(workdir / 'signals.npz')
"""

import os
import pathlib
import time
import zipfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from trustml import parallel, rng, specs
from trustml import writer as writer_lib
from trustml.attacks import shadows, signals
from trustml.experiments import build
from trustml.privacy import plan as plan_lib
from trustml.task import Task

_LARGEST = 64  # models in a group of the timed probe
_WORTH = 0.95  # a doubling has to take less than this share of the time per model
_MEMORY = 0.8  # share of an accelerator's memory that a group may take


Score = Callable[[Any, Any], tuple[Any, ...]]


class Kept(NamedTuple):
    """Signals and the guarantee that each of their models was trained under.

    Attributes:
      signals: see `trustml.attacks.signals`.
      epsilon: of every model; None without privacy.
      delta: of the same guarantee; None without privacy.
    """

    signals: signals.Signals
    epsilon: float | None = None
    delta: float | None = None


class Training(NamedTuple):
    """How every model of a set is trained.

    Attributes:
      make_train: number of steps (None: all of them) -> training of one model.
      index: int32[M, H], or the batches int32[M, S, B] of private models.
      plan: of each model; None without privacy.
      root: of all noise; None without privacy.
    """

    make_train: Callable[[int | None], shadows.Train]
    index: np.ndarray
    plan: plan_lib.Plan | None
    root: rng.Root | None


def training(config: specs.RunConfig, task: Task, loss, index: np.ndarray) -> Training:
    """The training that the config names, by the private step where it is private.

    Args:
      config: of the models.
      task: of the models.
      loss: of one example, as `build.loss` makes it.
      index: int32[M, H], the training sets.

    Raises:
      ValueError: for whatever is out of bounds, before anything is trained.
    """
    if not config.privacy.enabled:
        optimizer = build.optimizer(config)

        def plain(steps: int | None) -> shadows.Train:
            return shadows.trainer(
                task.init,
                loss,
                optimizer,
                steps=steps or config.train.steps,
                batch_size=config.train.batch_size,
                trainable=build.trainable(config),
            )

        return Training(plain, index, None, None)
    root = rng.root(config.privacy.noise_seed)
    clipper: Any = build.clipper(config, loss)
    sampler = build.sampler(config, index.shape[1], 1, root)
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    plan = build.plan(config, clipper, sampler, shapes)
    optimizer = build.optimizer(config, build.noise_variance(config, plan))

    def private(steps: int | None) -> shadows.Train:
        return shadows.private_trainer(task.init, clipper, plan, optimizer, steps=steps)

    return Training(private, shadows.private_index(plan, index, root), plan, root)


def run(
    make_train: Callable[[int | None], shadows.Train],
    score: Score,
    columns: shadows.Columns,
    own: shadows.Inputs,
    *,
    workdir: pathlib.Path,
    fingerprint: str,
    group_size: int = 0,
    devices: Sequence[jax.Device] | None = None,
    backend: str = "shard_map",
    quiet: bool = False,
) -> tuple[np.ndarray, ...]:
    """Trains M models and asks each about every example; resumes what `workdir` holds.

    Args:
      make_train: number of steps (None: all of them) -> training of one model.
      score: (params of a group, columns) -> arrays [G, n, ...], the margin first;
        `signals.of`, for one.
      columns: name -> [n, ...], all examples.
      own: of M models.
      workdir: groups are kept in its directory `shadows`.
      fingerprint: of all that the signals depend on; groups kept under another one are
        dropped.
      group_size: models at once on one device; 0: that of the groups that are kept, or
        as `choose_group_size` finds.
      devices: D of them; all where None.
      backend: of `parallel.map_sum`.
      quiet: write files only.

    Returns:
      The arrays of `score` for all models, [M, n, ...].

    Raises:
      ValueError: if two models share a key or a root, or whatever the engine refuses.
    """
    shadows.check(own)
    placed = list(devices or parallel.devices())
    count = own.index.shape[0]
    folder = workdir / "shadows"
    kept, dropped, largest = _read(folder, fingerprint)
    with writer_lib.Writer(
        workdir,
        count,
        quiet=quiet,
        resume_step=len(kept) or None,
        name="shadow models",
    ) as out:

        def keep(models, parts):
            _write(folder, fingerprint, models, parts)
            kept.update(zip(models, zip(*parts, strict=True), strict=True))
            margin = parts[0]
            finite = margin[np.isfinite(margin)]
            mean = float(finite.mean()) if finite.size else None
            out.write(len(kept), {"nonprivate/mean_margin": mean})

        def train_rest(size):
            left = [m for m in range(count) if m not in kept]
            program = shadows.over_devices(
                group_of(make_train(None), score), devices=placed, backend=backend
            )
            _train(program, columns, own, left, size * len(placed), keep)

        if dropped:
            out.say(f"{dropped} kept groups are of other data or settings; made anew.")
        if len(kept) < count:
            columns = parallel.replicate(dict(columns), placed)
            size = group_size or -(-largest // len(placed))
            if not size:
                size = choose_group_size(make_train, score, columns, own, placed)
                out.say(f"{size} models are trained at once on each device.")
            try:
                train_rest(size)
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error) or size == 1:
                    raise
                out.say(f"{size} models at once do not fit into memory; halved.")
                train_rest(size // 2)
    ordered = [kept[m] for m in range(count)]
    return tuple(np.stack(parts) for parts in zip(*ordered, strict=True))


def group_of(train: shadows.Train, score: signals.Score):
    """(columns, own [G, ...]) -> arrays [G, n, ...]: a group's training and scores."""

    def group(columns, own):
        return score(jax.vmap(train, (None, 0))(columns, own), columns)

    return group


def choose_group_size(
    make_train: Callable[[int | None], shadows.Train],
    score: Score,
    columns: shadows.Columns,
    own: shadows.Inputs,
    devices: Sequence[jax.Device],
    *,
    steps: int = 20,
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """How many models to train at once on each device.

    On CPUs by time: 1, 2, 4, ... models train for a few steps, the best of three
    times counts, and the first doubling that saves less than a twentieth of the time
    per model ends the search. On accelerators by memory: the compiler's figures for
    groups of 1 and 2, see `fitting`; nothing is run.

    Args:
      make_train: see `run`.
      score: see `run`.
      columns: on the devices.
      own: of M models.
      devices: D of them, all alike.
      steps: of the timed probe.
      clock: seconds.

    Returns:
      A power of two, at most M / D rounded up to one.
    """
    count = own.index.shape[0]
    most = 2 ** int(np.ceil(np.log2(max(1, count / len(devices)))))
    columns = jax.device_put(dict(columns), devices[0])

    def program(fn, size):
        some = shadows.take(own, np.arange(size) % count)
        return jax.jit(fn).lower(columns, some).compile(), some

    stats = devices[0].memory_stats() if devices[0].platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        group = group_of(make_train(None), score)
        used = [_bytes(program(group, size)[0]) for size in (1, 2)]
        return fitting(used[0], used[1], stats["bytes_limit"], most)
    if own.index.ndim == 3:
        steps = min(steps, own.index.shape[1])
        own = own._replace(index=own.index[:, :steps])
    train = jax.vmap(make_train(steps), (None, 0))

    def seconds(size):
        compiled, some = program(train, size)
        times = []
        for _ in range(4):  # the first warms the caches up
            began = clock()
            jax.block_until_ready(compiled(columns, some))
            times.append(clock() - began)
        return min(times[1:]) / size

    size, best = 1, seconds(1)
    while size < min(most, _LARGEST):
        doubled = seconds(2 * size)
        if doubled > _WORTH * best:
            break
        size, best = 2 * size, doubled
    return size


def fitting(bytes_1: float, bytes_2: float, limit: float, most: int) -> int:
    """The largest power of two of models that should fit into memory.

    bytes(G) = bytes_1 + (G - 1) (bytes_2 - bytes_1) <= 0.8 limit

    Args:
      bytes_1: that a group of one takes.
      bytes_2: that a group of two takes.
      limit: bytes there are.
      most: the largest answer, a power of two.
    """
    size, each = most, max(bytes_2 - bytes_1, 0.0)
    while size > 1 and bytes_1 + (size - 1) * each > _MEMORY * limit:
        size //= 2
    return size


def save(path: pathlib.Path, kept: Kept) -> None:
    """Writes signals with their guarantee as `.npz`; the old file or the new one."""
    none = float("nan")
    promise = {
        "epsilon": none if kept.epsilon is None else kept.epsilon,
        "delta": none if kept.delta is None else kept.delta,
    }
    _replace(path, kept.signals._asdict() | promise)


def load(path: pathlib.Path) -> Kept:
    """What `save` wrote.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it holds something else.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            fields = {name: arrays[name] for name in signals.Signals._fields}
            promise = [float(arrays[name]) for name in ("epsilon", "delta")]
    except (KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{str(path)!r} does not hold signals of shadow models ({error}); delete "
            "it and run the experiment again."
        ) from error
    fields["fingerprint"] = str(fields["fingerprint"])
    given = [None if np.isnan(value) else value for value in promise]
    return Kept(signals.Signals(**fields), *given)


def _train(program, columns, own, left, size, keep) -> None:
    """Compiles once, trains the models `left` in groups of `size`, keeps each group."""
    compiled: Any = None
    for group in shadows.groups(own.index.shape[0], size, models=left):
        some = shadows.take(own, group.models)
        if compiled is None:
            compiled = jax.jit(program).lower(columns, some).compile()
        parts = jax.device_get(compiled(columns, some))
        real = [x[: group.count] for x in parts]
        keep(group.models[: group.count].tolist(), real)


def _bytes(compiled) -> float:
    found = compiled.memory_analysis()
    names = ("temp", "argument", "output")
    return float(sum(getattr(found, f"{name}_size_in_bytes") for name in names))


def _write(folder, fingerprint, models, parts) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"models_{models[0]:05d}_{len(models)}.npz"
    arrays = {"models": np.asarray(models)}
    arrays |= {f"part_{i}": part for i, part in enumerate(parts)}
    _replace(path, arrays | {"fingerprint": fingerprint})


def _read(folder: pathlib.Path, fingerprint: str) -> tuple[dict[int, Any], int, int]:
    """Kept models, the number of groups that were dropped, and the largest group."""
    kept, dropped, largest = {}, 0, 0
    for path in sorted(folder.glob("models_*.npz")):
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                fits = str(arrays["fingerprint"]) == fingerprint
                models = arrays["models"].tolist()
                names = sorted(name for name in arrays if name.startswith("part_"))
                rows = zip(*(arrays[name] for name in names), strict=True)
                found = dict(zip(models, rows, strict=True))
        except (KeyError, ValueError, EOFError, zipfile.BadZipFile):
            fits, found = False, {}
        if fits:
            kept |= found
            largest = max(largest, len(found))
        else:
            path.unlink()
            dropped += 1
    return kept, dropped, largest


def _replace(path: pathlib.Path, arrays) -> None:
    """Writes beside `path` and renames: a kill leaves the old file or the new one."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        np.savez_compressed(file, **arrays)
    os.replace(part, path)
