"""Experiment `trust_report`: what is promised, what leaks, what it costs, who pays.

Trains the same model on the same data without privacy and at every budget of
`report.epsilons`, attacks each, measures accuracy overall, per class and per length of
the text, and writes one report.

Each budget has a directory of its own under the run's, with its own checkpoints, so a
killed run continues in the middle of the budget it had reached.

The run without privacy may have settings of its own (`config.baseline`). The price of a
step is then taken from a few steps without privacy at the settings of the private runs,
so that like is compared with like.
"""

import dataclasses
import pathlib
import tempfile
from typing import Any

from trustml import report, specs
from trustml.experiments import build, describe, finished, loop, train

_PRICE_STEPS = 20  # timed without privacy where the baseline has its own settings


def run(config: specs.RunConfig, workdir: pathlib.Path) -> pathlib.Path:
    """Trains and attacks at every budget and writes the report.

    Returns:
      The path of report.html.
    """
    if page := finished.page(config, workdir):
        return page
    data = build.checked(config, variants(config))
    limits = train.limits(config)
    sections, baseline, task, params = [], None, None, None
    for variant in variants(config):
        name, task = train.run_name(variant), build.task(variant, data)
        trained = loop.fit(variant, data, task, workdir / name, name=f"{name:>11}")
        if not variant.privacy.enabled and _own_settings(config):
            trained = trained._replace(cost=_price(config, data))
            limits.append(
                "The model without privacy was trained with settings that suit it "
                f"({', '.join(_own_settings(config))}); time, memory and arithmetic "
                "are compared at the settings of the private models."
            )
        section, tested = describe.run_section(
            name, variant, data, task, trained, baseline=baseline
        )
        sections.append(section)
        if not variant.privacy.enabled:
            baseline = tested
        params = trained.params
    title = f"Trust report: {config.model.name} on {data.name}"
    page = describe.frame(title, config, data, task, params)
    page |= {"runs": sections, "limits": limits}
    path = report.write(workdir, page)
    for section in sections:
        accuracy, attack = section["test"]["accuracy"], section["membership"]
        print(
            f"{section['name']:>11}  accuracy {accuracy['value']:.1%} "
            f"[{accuracy['lo']:.1%}, {accuracy['hi']:.1%}]  "
            f"attack AUC {attack['auc']:.3f} "
            f"[{attack['auc_interval'][0]:.3f}, {attack['auc_interval'][1]:.3f}]"
        )
    print(f"report: {path}")
    return path


def variants(config: specs.RunConfig) -> list[specs.RunConfig]:
    """The run without privacy, then one for each budget, largest first."""
    private = [
        _at_budget(config, epsilon)
        for epsilon in sorted(config.report.epsilons, reverse=True)
    ]
    return [baseline_of(config), *private]


def _at_budget(config: specs.RunConfig, epsilon: float) -> specs.RunConfig:
    privacy = dataclasses.replace(config.privacy, epsilon=epsilon)
    return dataclasses.replace(config, experiment="train", privacy=privacy)


def baseline_of(config: specs.RunConfig) -> specs.RunConfig:
    """The run without privacy, with the settings of `config.baseline`."""
    own, plain = config.baseline, config.without_privacy()

    def changed(part: Any, *fields: str) -> Any:
        values = {name: getattr(own, name) for name in fields}
        values = {name: value for name, value in values.items() if value is not None}
        return dataclasses.replace(part, **values)

    return dataclasses.replace(
        plain,
        train=changed(plain.train, "steps", "batch_size"),
        optimizer=changed(plain.optimizer, "learning_rate"),
        model=changed(plain.model, "dropout"),
    )


def _own_settings(config: specs.RunConfig) -> list[str]:
    """What `config.baseline` changes, in words: ['steps 600', 'dropout 0.5']."""
    own = dataclasses.asdict(config.baseline).items()
    return [f"{k.replace('_', ' ')} {v:g}" for k, v in own if v is not None]


def _price(config: specs.RunConfig, data) -> loop.Cost:
    """The cost of a step without privacy at the settings of the private runs."""
    plain = config.without_privacy()
    steps = min(_PRICE_STEPS, plain.train.steps)
    few = dataclasses.replace(
        plain.train, steps=steps, log_every=5, eval_every=0, checkpoint_every=0
    )
    optimizer = dataclasses.replace(plain.optimizer, warmup_steps=0)
    plain = dataclasses.replace(plain, train=few, optimizer=optimizer)
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        return loop.fit(plain, data, build.task(plain, data), place, quiet=True).cost
