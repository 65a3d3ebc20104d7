"""Experiment `trust_report`: what is promised, what leaks, what it costs, who pays.

Trains the same model on the same data without privacy and at every budget of
`report.epsilons`, attacks each, measures accuracy overall, per class and per length of
the text, and writes one report.

Each budget has a directory of its own under the run's, with its own checkpoints, so a
killed run continues in the middle of the budget it had reached.
"""

import dataclasses
import pathlib

from trustml import config as config_lib
from trustml import report
from trustml.experiments import build, describe, loop
from trustml.experiments.train import LIMITS, run_name


def run(config: config_lib.RunConfig, workdir: pathlib.Path) -> pathlib.Path:
    """Trains and attacks at every budget and writes the report.

    Returns:
      The path of report.html.
    """
    if (workdir / "report.html").exists():
        print(f"finished already; report: {workdir / 'report.html'}")
        return workdir / "report.html"
    data = build.dataset(config)
    task = build.task(config, data)
    sections, baseline, params = [], None, None
    for variant in variants(config):  # the last budget may be out of reach
        build.check(variant, data, task)
    for variant in variants(config):
        name = run_name(variant)
        trained = loop.fit(variant, data, task, workdir / name, name=f"{name:>11}")
        section, tested = describe.run_section(
            name, variant, data, task, trained, baseline=baseline
        )
        sections.append(section)
        if not variant.privacy.enabled:
            baseline = tested
        params = trained.params
    title = f"Trust report: {config.model.name} on {data.name}"
    page = describe.frame(title, config, data, task, params)
    page |= {"runs": sections, "limits": list(LIMITS)}
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


def variants(config: config_lib.RunConfig) -> list[config_lib.RunConfig]:
    """The run without privacy, then one for each budget, largest first."""
    changes: list[dict] = [
        {"enabled": False, "epsilon": None, "noise_multiplier": None}
    ]
    for epsilon in sorted(config.report.epsilons, reverse=True):
        changes.append({"enabled": True, "epsilon": epsilon, "noise_multiplier": None})
    return [
        dataclasses.replace(
            config,
            experiment="train",
            privacy=dataclasses.replace(config.privacy, **change),
        )
        for change in changes
    ]
