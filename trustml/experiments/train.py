"""Experiment `train`: one model, with or without privacy, and a report on it.

Example::

    train.run(config.from_config_dict(cfg), pathlib.Path('runs/a'))
"""

import pathlib

from trustml import report, specs
from trustml.experiments import build, describe, finished, loop

LIMITS = (
    "Membership was attacked with the loss threshold only; stronger attacks exist. "
    "Non-members are the validation split, taken to be drawn like the training split.",
    "The guarantee covers the parameters and every intermediate update, in real "
    "arithmetic; floating-point sampling of the noise is not covered.",
    "Hyper-parameters were not chosen privately: their choice is not covered.",
)


def run(config: specs.RunConfig, workdir: pathlib.Path) -> pathlib.Path:
    """Trains, measures and writes the report; resumes what `workdir` holds.

    Returns:
      The path of report.html.
    """
    if page := finished.page(config, workdir):
        return page
    data = build.checked(config, [config])
    task = build.task(config, data)
    name = run_name(config)
    trained = loop.fit(config, data, task, workdir, name=name)
    section, _ = describe.run_section(name, config, data, task, trained)
    title = f"{config.model.name} on {data.name}"
    page = describe.frame(title, config, data, task, trained.params)
    page |= {"runs": [section], "limits": list(LIMITS)}
    path = report.write(workdir, page)
    accuracy = section["test"]["accuracy"]
    print(
        f"test accuracy {accuracy['value']:.1%} "
        f"[{accuracy['lo']:.1%}, {accuracy['hi']:.1%}]; report: {path}"
    )
    return path


def run_name(config: specs.RunConfig) -> str:
    """'non-private', 'eps=8', or 'noise=1.1' where the noise was given."""
    spec = config.privacy
    if not spec.enabled:
        return "non-private"
    if spec.epsilon is None:
        return f"noise={spec.noise_multiplier:g}"
    return f"eps={spec.epsilon:g}"
