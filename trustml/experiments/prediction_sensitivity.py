"""Experiment `prediction_sensitivity`: does a measure see a leak that was planted?

    biographies with leak 0 ... 1 -> a classifier each -> sensitivities, swapped words

Labels of synthetic biographies are set by gender with a known probability, through
explicit cues (he, she) or implicit ones. A measure is good if it grows with that
probability: Spearman's correlation with the planted truth, for each seed, needs no
annotators. Measured are the forms of `trustml.fairness.sensitivity` and counterfactual
fairness.

Example::

    prediction_sensitivity.run(config.from_config_dict(cfg), pathlib.Path('runs/a'))

References: https://arxiv.org/abs/2203.08670.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from trustml import intervals, specs
from trustml.experiments import describe, leak_models, leak_worlds, sensitivity_page
from trustml.experiments.leak_models import Measured


def run(config: specs.RunConfig, workdir: pathlib.Path) -> pathlib.Path:
    """Trains, measures and writes the report; under a minute, so nothing is resumed.

    Returns:
      The path of report.html.
    """
    page = workdir / "report.html"
    if page.exists():
        print(f"finished already; report: {page}")
        return page
    found, worlds = {}, {}
    for cue in leak_worlds.CUES:
        worlds[cue] = leak_worlds.make(config.leak.texts, cue, config.seed)
        models = len(config.leak.leaks) * config.leak.seeds
        print(f"{cue} cues: training {models} classifiers at once ...", flush=True)
        found[cue] = leak_models.measure(config, cue)
    level = config.report.level
    correlations = {
        cue: {
            form: correlation(config.leak.leaks, one.value[form], level)
            for form in one.value
        }
        for cue, one in found.items()
    }
    title = "Prediction sensitivity and a planted leak"
    frame = describe.machine(title) | {
        "data": {
            "name": worlds[leak_worlds.CUES[0]].name,
            "source": "trustml.experiments.leak_worlds",
            "licence": "MIT" if config.leak.texts == "hatexplain" else "none is needed",
            "counts": {"train": config.leak.examples, "test": config.leak.tested},
        },
        "task": {"model": "bag of embeddings, one tanh layer"},
    }
    path, headlines = sensitivity_page.write(
        workdir, frame, config, found, correlations, tuple(worlds.values())
    )
    print("\n".join(headlines))
    print(f"report: {path}")
    return path


def correlation(
    leaks: Sequence[float], values: np.ndarray, level: float
) -> dict[str, Any]:
    """Spearman's correlation with the leak, its mean over seeds with a t-interval.

    Args:
      leaks: planted, [L].
      values: of a measure, float[S, L].
      level: of the interval.

    Returns:
      {'value', 'lo', 'hi', 'constant'}; a measure that is the same at all leaks has no
      correlation (nan) and is said to be constant.
    """
    if np.any(np.ptp(values, axis=1) == 0):
        nan = float("nan")
        return {"value": nan, "lo": nan, "hi": nan, "constant": True}
    each = [float(stats.spearmanr(leaks, row).statistic) for row in values]
    found = intervals.mean(each, level, bounds=(-1.0, 1.0))
    return found._asdict() | {"constant": False}


def mean_curve(found: Measured, form: str, level: float) -> np.ndarray:
    """Mean over seeds and its interval at every leak, float[L, 3]."""
    columns = found.value[form].T
    return np.array([intervals.mean(column, level) for column in columns])
