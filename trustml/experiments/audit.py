"""Experiment `audit`: does the private trainer keep the promise of its plan?

At every budget of `audit.epsilons` the run's own trainer (model, data, clipping, noise,
optimizer) is run once with gradient canaries among its examples, and what it released
is turned into lower bounds on epsilon. One above the promise proves a defect. One close
below it shows that the audit would have seen a small one; far below, it shows little.

Each budget has a directory of its own with the coins and the released numbers, so a
killed run continues with the budgets that it lacks.

Example::

    page = audit.run(config.from_config_dict(cfg), pathlib.Path('runs/a'))
"""

import dataclasses
import pathlib

import jax

from trustml import specs
from trustml.data import batches
from trustml.experiments import (
    audit_page,
    build,
    canary_run,
    describe,
    finished,
    train,
)


def run(config: specs.RunConfig, workdir: pathlib.Path) -> pathlib.Path:
    """Audits at every budget and writes the report.

    Returns:
      The path of report.html.
    """
    if page := finished.page(config, workdir):
        return page
    data = build.encoded(config, build.dataset(config))
    build.check_batch_sizes(config, batches.size(data.train))
    task = build.task(config, data)
    spec, found = config.audit, []
    ready = {
        train.run_name(variant): canary_run.prepare(
            variant, data, task, count=spec.canaries, sample_rate=spec.sample_rate
        )
        for variant in variants(config)
    }
    for name, one in ready.items():
        released = canary_run.release(one, workdir / name, name=f"{name:>7}")
        found.append(
            audit_page.Audited(
                name=name,
                promised=one.plan.epsilon(),
                headline=canary_run.headline(one),
                bounds=canary_run.bounds(one, released, alpha=spec.alpha),
                sample_rate=one.sample_rate,
                steps=one.plan.steps,
                noise_multiplier=one.plan.noise_multiplier,
                coins=released.coins,
                test_accuracy=released.test_accuracy,
            )
        )
        print(audit_page.line(found[-1]))
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    title = f"Does it keep its promise? {config.model.name} on {data.name}"
    frame = describe.frame(title, config, data, task, shapes)
    path = audit_page.write(workdir, frame, found)
    print(f"report: {path}")
    return path


def variants(config: specs.RunConfig) -> list[specs.RunConfig]:
    """One private run for each budget, smallest first."""
    return [
        dataclasses.replace(
            config,
            experiment="train",
            privacy=dataclasses.replace(config.privacy, epsilon=epsilon),
        )
        for epsilon in sorted(config.audit.epsilons)
    ]
