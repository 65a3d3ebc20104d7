"""A run of the private trainer with gradient canaries in its data, and what it shows.

The run is the config's own: its model, data, clipping, noise, optimizer and step. Added
are a leaf with a coordinate for every canary, the canaries that a fair coin lets in,
and a record of what each step released there (`trustml.audit.canaries`). The sampling
rate and the divisor are constants that the coins do not touch, and the plan is that of
the run that is audited.

Coins are written before the first step. A run that is killed leaves nothing else and is
made anew, with new coins and new noise; one that ended is not made again.

Example::

    ready = canary_run.prepare(config, data, task, count=10_000, sample_rate=1.0)
    found = canary_run.release(ready, workdir, name='eps=4')
    bounds = canary_run.bounds(ready, found, alpha=0.01)
    bounds[canary_run.headline(ready)].epsilon, ready.plan.epsilon()

References: https://arxiv.org/abs/2302.07956 (gradient canaries),
https://arxiv.org/abs/2305.08846 (one run).
"""

import dataclasses
import hashlib
import math
import pathlib
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trustml import config as config_lib
from trustml import parallel, rng, specs
from trustml import task as task_lib
from trustml import writer as writer_lib
from trustml.audit import canaries, lower_bounds, one_run, scores
from trustml.audit import result as result_lib
from trustml.data import batches, datasets
from trustml.experiments import build, evaluate
from trustml.experiments import step as step_lib
from trustml.privacy import plan as plan_lib
from trustml.privacy import sampling

_SLOTS = 2048  # examples on the devices at once, where the config does not say
_GUESSES = 0.05  # share of the canaries guessed at, a side; fixed before any coin

FIXED, BAND, ONE_RUN = "(ε, δ), fixed threshold", "(ε, δ), band", "one run, (ε, δ)"
GAUSSIAN, GAUSSIAN_BAND = "Gaussian, fixed threshold", "Gaussian, band"
ONE_RUN_GAUSSIAN = "one run, Gaussian"


class Ready(NamedTuple):
    """A trainer that is ready to be audited.

    Attributes:
      plan: what it promises.
      contribution: length of a canary's clipped gradient.
      sample_rate: q, of every example and canary.
      count: n, canaries in and out.
      data: without canaries.
      task: with them.
      root: of coins, noise and batches.
      start: () -> state.
      step: (state, rows, finish) -> (state, counts), compiled at the first call.
      sampler_of: number of examples -> sampler.
      devices: the run's.
      fingerprint: of all that the released numbers depend on, the draws apart.
    """

    plan: plan_lib.Plan
    contribution: float
    sample_rate: float
    count: int
    data: datasets.Dataset
    task: task_lib.Task
    root: rng.Root
    start: Callable[[], step_lib.TrainState]
    step: Callable[..., Any]
    sampler_of: Callable[[int], sampling.Sampler]
    devices: list
    fingerprint: str


class Released(NamedTuple):
    """What the run showed of its canaries.

    Attributes:
      units: float32[T, n], what step t released at canary k over its contribution.
      included: bool[n], the coins.
      coins: hexadecimal hash of the coins, which were on disk before the first step.
      test_accuracy: of the model that was trained beside the canaries.
    """

    units: np.ndarray
    included: np.ndarray
    coins: str
    test_accuracy: float


def prepare(
    config: specs.RunConfig,
    data: datasets.Dataset,
    task: task_lib.Task,
    *,
    count: int,
    sample_rate: float,
) -> Ready:
    """Everything but the draws.

    Args:
      config: of a private run, with a budget or a noise multiplier, whose batches are
        Poisson.
      data: its data.
      task: its task, without canaries.
      count: n canaries.
      sample_rate: q in (0, 1]; 0: `train.batch_size` over the training examples.

    Raises:
      ValueError: for whatever is out of bounds, before any step.
    """
    wrapped = canaries.wrap(task, count)
    config = _with_canaries(config)
    size = batches.size(data.train)
    rate = sample_rate or config.train.batch_size / size
    # A constant: the number of canaries that are in is not known to the trainer.
    mean = rate * (size + count / 2)
    devices = parallel.devices(config.train.num_devices)
    slots = min(config.train.physical_batch_size or _SLOTS, math.ceil(mean))
    # With a seed, every budget still has coins and noise of its own.
    own = f"audit {config.privacy.epsilon} {config.privacy.noise_multiplier}"
    root: Any = rng.stream(rng.root(config.privacy.noise_seed), own)

    def sampler_of(num_examples: int) -> sampling.Sampler:
        made = sampling.poisson(
            num_examples,
            mean,
            sample_rate=rate,
            physical_batch_size=max(1, slots // len(devices)),
            shards=len(devices),
            seed=None,
        )
        seed = rng.seed_128(rng.stream(root, "sampling"))
        return made.reseed(seed, secret=bool(root.secret))

    keys = jax.random.key(config.seed)
    loss = canaries.wrap_loss(build.loss(config, data, task))
    clipper: Any = build.clipper(config, loss)
    init_key: Any = rng.stream(keys, "init")
    params = jax.eval_shape(wrapped.init, init_key)
    plan = build.plan(config, clipper, sampler_of(size + count // 2), params)
    contribution = canaries.contribution(clipper, params)
    variance = build.noise_variance(config, plan)
    optimizer = canaries.recording(build.optimizer(config, variance))
    selection = build.trainable(config)
    step = step_lib.make_step(
        clipper,
        plan.mechanism,
        optimizer,
        expected_batch_size=plan.expected_batch_size,
        l2_clip_norm=config.privacy.l2_clip_norm,
        selection=selection,
        dropout_key=rng.stream(keys, "dropout"),
        devices=devices,
        backend=config.train.backend,
    )

    def start() -> step_lib.TrainState:
        noise, params = plan.mechanism.init(root), wrapped.init(init_key)
        state = step_lib.initial_state(params, optimizer, noise, selection)
        # A copy, as the step is given the buffers of its state.
        return parallel.replicate(jax.tree.map(jnp.copy, state), devices)

    parts = (config_lib.digest(config), data.digest, plan.digest, f"{count} {rate}")
    mark = hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()
    return Ready(
        plan=plan,
        contribution=contribution,
        sample_rate=rate,
        count=count,
        data=data,
        task=wrapped,
        root=root,
        start=start,
        step=jax.jit(step, donate_argnums=0),
        sampler_of=sampler_of,
        devices=devices,
        fingerprint=mark,
    )


def release(
    ready: Ready, workdir: pathlib.Path, *, name: str = "", quiet: bool = False
) -> Released:
    """Trains once, or reads what such a run left in `workdir`.

    Args:
      ready: of `prepare`.
      workdir: coins.npz and releases.npz are written there.
      name: for the line of progress.
      quiet: write files only.
    """
    path = workdir / "releases.npz"
    if found := _kept(path, ready.fingerprint):
        return found
    included = canaries.coins(ready.root, ready.count)
    workdir.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(workdir / "coins.npz", included=included)
    columns = canaries.insert(ready.data.train, included)
    sampler, state = ready.sampler_of(batches.size(columns)), ready.start()
    scale = ready.plan.expected_batch_size / ready.contribution
    units_T = []
    with writer_lib.Writer(
        workdir,
        ready.plan.steps,
        quiet=quiet,
        examples_per_step=sampler.expected_batch_size,
        name=name,
    ) as out:
        for at in range(ready.plan.steps):
            counts: Any = None
            for physical in sampler.physical(at):
                rows = step_lib.rows_of(columns, physical, ready.devices)
                state, counts = ready.step(state, rows, np.bool_(physical.last))
            # A copy: the next call is given the buffers of this state.
            units_T.append(scale * np.array(state.opt_state.released["canary"]))
            out.write(at + 1, {"nonprivate/batch_size": int(counts.examples)})
    tested = evaluate.predictions(ready.task, state.params, ready.data.test)
    found = Released(
        np.stack(units_T).astype(np.float32),
        included,
        hashlib.blake2b(np.packbits(included).tobytes(), digest_size=16).hexdigest(),
        float(tested.correct.mean()),
    )
    part = path.with_name("releases.part.npz")
    np.savez_compressed(part, **found._asdict(), fingerprint=ready.fingerprint)
    part.replace(path)
    return found


def headline(ready: Ready) -> str:
    """The method that counts, chosen before anything was measured."""
    return GAUSSIAN if ready.sample_rate == 1 else FIXED


def bounds(
    ready: Ready, found: Released, *, alpha: float
) -> dict[str, result_lib.AuditResult]:
    """Lower bounds on epsilon by every method that is valid here, held to the plan.

    With q < 1 the trade-off curve of the trainer is not that of a Gaussian, and methods
    that assume it are left out.

    Args:
      ready: of `prepare`.
      found: of `release`.
      alpha: of each bound by itself.

    Returns:
      Name of the method -> bound, the headline first.

    Raises:
      ValueError: if the coins are too uneven to be fair, which happens once in a
        thousand runs.
    """
    try:
        one_run.check_coins(found.units.sum(axis=0), found.included)
    except ValueError as error:
        raise ValueError(
            f"{error} It is one draw in a thousand: delete the directory of this "
            "budget in the workdir, and run the same command again."
        ) from error
    steps, full = ready.plan.steps, ready.sample_rate == 1
    errors: dict[str, Any] = {"delta": ready.plan.delta, "alpha": alpha}
    law: dict[str, Any] = {
        "sample_rate": ready.sample_rate,
        "noise_multiplier": ready.plan.noise_stddev() / ready.contribution,
    }
    score, threshold = scores.total(found.units), steps / 2
    if not full:
        score = scores.subsampled(found.units, **law)
        threshold = scores.fixed_threshold(
            steps=steps, per_side=ready.count // 2, **law, **errors
        )
    sides = score[found.included], score[~found.included]
    # As many on all sides and budgets, so that one calibration of the band does.
    most = math.floor(ready.count / 2 - 2 * math.sqrt(ready.count))
    first = [side[:most] for side in sides]
    own = errors | {"independent_scores": True}
    guesses = max(1, round(_GUESSES * ready.count))
    coins = errors | {"guesses": (guesses, guesses)}
    made = {}
    if full:
        made[GAUSSIAN] = lower_bounds.gaussian(*sides, threshold=threshold, **own)
        made[GAUSSIAN_BAND] = lower_bounds.gaussian(*first, **own)
    made[FIXED] = lower_bounds.epsilon_delta(*sides, threshold=threshold, **own)
    made[BAND] = lower_bounds.epsilon_delta(*first, **own)
    made[ONE_RUN] = one_run.epsilon_delta(score, found.included, **coins)
    if full:
        made[ONE_RUN_GAUSSIAN] = one_run.gaussian(score, found.included, **coins)
    return {name: result_lib.against(one, ready.plan) for name, one in made.items()}


def strongest(ready: Ready, found: Released, *, alpha: float) -> dict[str, Any]:
    """The largest of all bounds, at the confidence that they hold with together.

    Args:
      ready: of `prepare`.
      found: of `release`.
      alpha: of all bounds together.

    Returns:
      The entry `audit` of a run in `report.schema`.
    """
    count = 6 if ready.sample_rate == 1 else 3
    made = bounds(ready, found, alpha=alpha / count)
    best = result_lib.strongest(made.values())
    (name,) = [name for name, one in made.items() if one.epsilon == best.epsilon][:1]
    return {
        "epsilon": best.epsilon,
        "confidence": best.confidence,
        "method": name,
        "n_in": best.n_in,
        "n_out": best.n_out,
        "sample_rate": ready.sample_rate,
        "violated": bool(best.claim and best.claim.violated),
        "coins": found.coins,
        "bounds": {name: result_lib.as_dict(one) for name, one in made.items()},
    }


def _with_canaries(config: specs.RunConfig) -> specs.RunConfig:
    """The config whose selection of leaves names those of the wrapped task."""
    chosen = build.trainable(config)
    if chosen is None:
        return config
    names = ("canary", *(f"model/{name}" for name in chosen))
    privacy = dataclasses.replace(config.privacy, trainable=names)
    # Kept features are in the data already, and no part of the step.
    model = dataclasses.replace(config.model, cache_features=False)
    return dataclasses.replace(config, privacy=privacy, model=model)


def _kept(path: pathlib.Path, fingerprint: str) -> Released | None:
    """What a run under this fingerprint left; None where there is no such file."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if str(arrays["fingerprint"]) != fingerprint:
                return None
            return Released(
                arrays["units"],
                arrays["included"],
                str(arrays["coins"]),
                float(arrays["test_accuracy"]),
            )
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
        return None
