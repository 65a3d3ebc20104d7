"""Experiment `train`: one model, with or without privacy, and a report on it.

Example::

    train.run(config.from_config_dict(cfg), pathlib.Path('runs/a'))
"""

import pathlib

from trustml import report, specs
from trustml.experiments import build, describe, finished, loop


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
    page |= {"runs": [section], "limits": limits(config)}
    path = report.write(workdir, page)
    accuracy = section["test"]["accuracy"]
    print(
        f"test accuracy {accuracy['value']:.1%} "
        f"[{accuracy['lo']:.1%}, {accuracy['hi']:.1%}]; report: {path}"
    )
    return path


def limits(config: specs.RunConfig) -> list[str]:
    """What a report says was not tested or is not covered."""
    spec = config.privacy
    covered = "floating-point sampling of the noise is"
    if spec.enabled and spec.grid_bits:
        covered = "rounding within the sums, before the noise, is"
    count = config.report.shadow_models
    by = "with the loss threshold only"
    if config.experiment == "trust_report" and count:
        by = (
            f"with the loss threshold and {count} shadow models, each trained on half "
            "of the training and validation examples"
        )
    said = [
        f"Membership was attacked {by}; stronger attacks exist. Non-members are the "
        "validation split, taken to be drawn like the training split.",
        "The guarantee covers the parameters and every intermediate update, in real "
        f"arithmetic; {covered} not covered.",
        "Hyper-parameters were not chosen privately: their choice is not covered.",
    ]
    if spec.unit == "user":
        said.append(
            f"The model learnt from at most {spec.max_examples_per_user} examples of "
            "each user, and membership was attacked for single examples, those left "
            "out among them; an attack on whole users may find more."
        )
    return said


def run_name(config: specs.RunConfig) -> str:
    """'non-private', 'eps=8', or 'noise=1.1' where the noise was given."""
    spec = config.privacy
    if not spec.enabled:
        return "non-private"
    if spec.epsilon is None:
        return f"noise={spec.noise_multiplier:g}"
    return f"eps={spec.epsilon:g}"
