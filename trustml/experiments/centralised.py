"""Experiment `centralised`: the same model on the same examples, held in one place.

What a federation is compared with: `train.steps` steps of `optimizer` over batches of
all clients' examples, epoch after epoch in an order of its own, whose state is kept
from step to step. No weighting, no server, no privacy; `privacy.trainable` freezes
leaves here, too. A killed run begins anew: these runs are short.

Example::

    centralised.run(config.from_config_dict(cfg), pathlib.Path('runs/a'))
"""

import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from trustml import rng, specs
from trustml import task as task_lib
from trustml import writer as writer_lib
from trustml.data import datasets
from trustml.experiments import build, describe, federate_page, finished, scores
from trustml.federated.algorithms import base
from trustml.privacy import trainable
from trustml.report import study

METHODS = ("The test split was seen by nobody in training.",)


class Trained(NamedTuple):
    """Parameters, and the rows of metrics.jsonl."""

    params: Any
    rows: list[dict[str, Any]]


def run(config: specs.RunConfig, workdir: pathlib.Path) -> pathlib.Path:
    """Trains, measures and writes the report.

    Returns:
      The path of report.html.
    """
    if page := finished.page(config, workdir):
        return page
    data = build.dataset(config)
    task = build.task(config, data)
    trained = fit(config, data, task, workdir)
    level = config.report.level
    tested = scores.measure(task, trained.params, data, "test", level=level)
    tuned = scores.measure(task, trained.params, data, "valid", level=level)
    without = scores.baseline(data, "test", level=level)
    title = f"{config.model.name} on {data.name}, centralised"
    seen = config.train.steps * config.train.batch_size
    points = (
        f"{config.train.steps:,} steps of {config.optimizer.name} over "
        f"{seen / len(data.train['label']):.3g} passes of all examples.",
    )
    path = study.write(
        workdir,
        describe.frame(title, config, data, task, trained.params),
        (federate_page.learnt(tested, without, data.kind, points),),
        (
            study.Section(
                "Training",
                figures=(
                    (
                        "Steps",
                        federate_page.curve(trained.rows, data.kind, "step"),
                        "Validation split.",
                    ),
                ),
                tables=(federate_page.score_table(tested, without, data.kind),),
            ),
        ),
        numbers={
            "kind": data.kind,
            "scores": federate_page.numbers(tested),
            "valid": federate_page.numbers(tuned),
            "baseline": federate_page.numbers(without),
            "headline": federate_page.headline(tested),
            "what": scores.WORDS[federate_page.headline(tested)["figure"]],
            "cell": cell(config),
        },
        methods=METHODS,
    )
    print(f"test {federate_page.figure(tested)}; report: {path}")
    return path


def cell(config: specs.RunConfig) -> dict[str, Any]:
    """What a table of runs sorts this one by; no server and no partition."""
    return {
        "partition": "centralised",
        "algorithm": "centralised",
        "prox": 0.0,
        "client": config.optimizer.name,
        "server": "",
        "client_rate": config.optimizer.learning_rate,
        "server_rate": 0.0,
        "seed": config.seed,
    }


def fit(
    config: specs.RunConfig,
    data: datasets.Dataset,
    task: task_lib.Task,
    workdir: pathlib.Path,
    *,
    quiet: bool = False,
) -> Trained:
    """Steps over the training split; see the module docstring."""
    public, total = rng.root(config.seed), config.train.steps
    whole = task.init(rng.step_key(rng.stream(public, "init"), 0))
    params, frozen = trainable.partition(whole, build.trainable(config))
    loss, optimizer = build.loss(config, data, task), build.optimizer(config)
    gradient = base.objective(
        lambda params, example, key: loss(
            trainable.combine(params, frozen), example, key
        )
    )
    dropout = rng.stream(public, "dropout")

    @jax.jit
    def advance(state, columns, rows_SB, step_S):
        """The steps numbered `step_S`, each over its row of `rows_SB`."""

        def one(state, inputs):
            rows_B, step = inputs
            batch = jax.tree.map(lambda column: column[rows_B], columns)
            every = jax.numpy.ones(rows_B.shape, bool)
            key = rng.step_key(dropout, step)
            grads, met = gradient(state[0], batch, every, key)
            updates, inner = optimizer.update(grads, state[1], state[0])
            return (optax.apply_updates(state[0], updates), inner), met

        return jax.lax.scan(one, state, (rows_SB, step_S))

    columns = jax.device_put(data.train)
    order = _order(config, len(data.train["label"]))
    state = params, optimizer.init(params)
    with writer_lib.Writer(workdir, total, quiet=quiet, name="centralised") as out:
        for start in range(0, total, config.train.log_every):
            end = min(start + config.train.log_every, total)
            steps = np.arange(start, end, dtype=np.uint32)
            state, met = advance(state, columns, order[start:end], steps)
            seen = np.asarray(met.examples).sum()
            row = {"nonprivate/loss": float(np.asarray(met.loss).sum() / seen)}
            every = config.train.eval_every
            if end == total or (every and start // every < end // every):
                now = trainable.combine(state[0], frozen)
                right = scores.per_example(task, now, data.valid, data.kind)
                row["nonprivate/valid_accuracy"] = float(right.mean())
            out.write(end, row)
    rows = writer_lib.read(workdir / "metrics.jsonl")
    return Trained(trainable.combine(state[0], frozen), rows)


def _order(config: specs.RunConfig, examples: int) -> np.ndarray:
    """Rows of every step, int32[S, B]: one permutation after another."""
    wanted = config.train.steps * config.train.batch_size
    generator = np.random.default_rng([config.seed, 20])
    passes = -(-wanted // examples)
    flat = np.concatenate([generator.permutation(examples) for _ in range(passes)])
    shape = (config.train.steps, config.train.batch_size)
    return flat[:wanted].reshape(shape).astype(np.int32)
