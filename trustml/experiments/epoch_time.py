"""What an epoch costs, method beside method, interleaved in one process.

Each method's step is compiled before the clock starts; then every method makes a few
real steps a round, in an order that rotates, so that what else the machine does falls
on all alike. An epoch is 1 / sample rate steps.

`per_example_loop` is the way that made private training slow: one example at a time
through one compiled gradient, clipped and added up. It is timed on some examples and
scaled to the batch.

Example::

    seconds = epoch_time.measure({'non-private': plain, 'exact': private}, data, task)
    np.median(seconds['exact'] / seconds['non-private'])
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trustml import rng, specs
from trustml import task as task_lib
from trustml.data import datasets
from trustml.experiments import build
from trustml.experiments import step as step_lib

LOOP = "per-example loop"


def measure(
    configs: Mapping[str, specs.RunConfig],
    data: datasets.Dataset,
    task: task_lib.Task,
    *,
    rounds: int = 7,
    seconds_per_round: float = 1.0,
    loop_of: str = "",
    loop_examples: int = 64,
) -> dict[str, np.ndarray]:
    """Seconds of an epoch for every method, one figure a round.

    Args:
      configs: name -> config; all with one model, data set and batch size.
      data: the data set.
      task: the model.
      rounds: each method is timed once a round.
      seconds_per_round: about how long each method runs in a round.
      loop_of: name of the config whose private step is also done example by example;
        '' leaves the loop out.
      loop_examples: examples of that loop in a round.

    Returns:
      name -> float64[rounds]; with `LOOP` where it was asked for. Compilation and the
      first step are left out.
    """
    runners = {name: _steps(config, data, task) for name, config in configs.items()}
    if loop_of:
        runners[LOOP] = _loop(configs[loop_of], data, task, loop_examples)
    counts = {}
    for name, (run, _) in runners.items():
        run(1)  # compiled, and caches warm
        began = time.perf_counter()
        run(1)
        once = time.perf_counter() - began
        counts[name] = 1 if name == LOOP else max(1, round(seconds_per_round / once))
    found: dict[str, list[float]] = {name: [] for name in runners}
    names = list(runners)
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            run, steps_per_epoch = runners[name]
            began = time.perf_counter()
            run(counts[name])
            taken = (time.perf_counter() - began) / counts[name]
            found[name].append(taken * steps_per_epoch)
    return {name: np.array(times) for name, times in found.items()}


def _steps(config, data, task) -> tuple[Callable[[int], None], float]:
    """A function that makes n steps and waits for them, and the steps of an epoch."""
    ready = step_lib.prepare(config, data, task)
    at = 0

    def rows(step):
        return [
            (step_lib.rows_of(ready.columns, physical, ready.devices), physical.last)
            for physical in ready.sampler.physical(step)
        ]

    first, _ = rows(0)[0]
    jitted = jax.jit(ready.step, donate_argnums=0)
    compiled = jitted.lower(ready.state, first, True).compile()
    state = ready.state

    def run(count):
        nonlocal state, at
        for _ in range(count):
            for buffers, last in rows(at):
                state, _ = compiled(state, buffers, np.bool_(last))
            at += 1
        jax.block_until_ready(state)

    return run, 1 / ready.sampler.sample_rate


def _loop(config, data, task, examples) -> tuple[Callable[[int], None], float]:
    """One example at a time; an epoch has as many loops as batches of `examples`."""
    clip_norm = config.privacy.l2_clip_norm
    optimizer = build.optimizer(config, (clip_norm / examples) ** 2)
    params = task.init(rng.stream(jax.random.key(config.seed), "init"))
    size = len(data.train["label"])
    loss = build.loss(config, data, task)

    @jax.jit
    def add(sums, params, example, key):
        grads = jax.grad(loss)(params, example, key)
        norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)))
        factor = clip_norm / jnp.maximum(norm, clip_norm)
        return jax.tree.map(lambda s, g: s + factor * g, sums, grads)

    @jax.jit
    def update(state: Any, sums, key):
        params, opt_state = state
        leaves, tree = jax.tree.flatten(sums)
        keys = jax.random.split(key, len(leaves))
        noisy = [
            (x + clip_norm * jax.random.normal(k, x.shape)) / examples
            for k, x in zip(keys, leaves, strict=True)
        ]
        updates, opt_state = optimizer.update(tree.unflatten(noisy), opt_state, params)
        return jax.tree.map(jnp.add, params, updates), opt_state

    state = (params, optimizer.init(params))

    def run(count):
        nonlocal state
        for number in range(count):
            sums = jax.tree.map(jnp.zeros_like, params)
            key = jax.random.key(number)
            for row in range(examples):
                at = (number * examples + row) % size
                example = {name: column[at] for name, column in data.train.items()}
                sums = add(sums, state[0], example, jax.random.fold_in(key, row))
            state = update(state, sums, key)
        jax.block_until_ready(state)

    return run, size / examples
