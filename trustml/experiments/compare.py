"""Experiment `compare`: the price and the promise of four ways to train one model.

    non-private        plain gradients
    edp-sgd            means of micro-batches are clipped (`trustml.privacy.edp_sgd`)
    exact              every example is clipped, by book-keeping
    per-example loop   the same, one example at a time: timed only

The two private runs have the same noise multiplier, schedule, batches and steps; what
differs is what is clipped, hence what the noise is worth. eDP-SGD is reported with the
epsilon it is often quoted with (nominal) beside the real one.

Epochs are timed interleaved, in one process (`epoch_time`), before anything is trained.
"""

import dataclasses
import json
import pathlib

import numpy as np

from trustml import report, specs
from trustml.experiments import (
    baseline,
    build,
    describe,
    epoch_time,
    evaluate,
    finished,
    loop,
    train,
)
from trustml.privacy import edp_sgd
from trustml.report import fmt

PLAIN, EDP, EXACT = "non-private", "edp-sgd", "exact"


def run(config: specs.RunConfig, workdir: pathlib.Path) -> pathlib.Path:
    """Times, trains and attacks each way and writes the report.

    Returns:
      The path of report.html.
    """
    if page := finished.page(config, workdir):
        return page
    ways = variants(config)
    data = build.checked(config, ways.values())
    task = build.task(config, data)
    seconds = _epoch_seconds(config, data, task, workdir / "epoch_time.json")
    sections, baseline, params = [], None, None
    for name, variant in ways.items():
        own = build.task(variant, data)
        trained = loop.fit(variant, data, own, workdir / name, name=f"{name:>11}")
        section, tested = describe.run_section(
            name, variant, data, own, trained, baseline=baseline
        )
        if data.slot_names and evaluate.predicts_slots(own, data.test):
            scores = evaluate.slot_f1(own, trained.params, data.test, data.slot_names)
            section["test"]["slot_f1"] = scores
        if name == EDP:
            section["epsilon_nominal"] = edp_sgd.nominal_epsilon(trained.plan)
        section["cost"] |= _epoch(seconds, name)
        sections.append(section)
        baseline = tested if name == PLAIN else baseline
        params = trained.params
    title = f"Ways to train privately: {config.model.name} on {data.name}"
    page = describe.frame(title, config, data, task, params)
    looped = _epoch(seconds, epoch_time.LOOP)
    limits = [
        *train.limits(config),
        "Epochs were timed interleaved in one process. The exact update done one "
        f"example at a time took {looped['epoch_seconds']:.3g} s an epoch, "
        f"{looped['ratios']['epoch_seconds']:.3g} times the plain one; it was timed "
        "on some examples and not trained to the end.",
        "eDP-SGD clips the mean of a micro-batch, so one example can move it by twice "
        "the clip norm: its nominal epsilon, which leaves that out, is no guarantee.",
    ]
    path = report.write(workdir, page | {"runs": sections, "limits": limits})
    for section in sections:
        print(_line(section))
    print(f"{epoch_time.LOOP:>16}  epoch {_ratio(looped)} of plain")
    print(f"report: {path}")
    return path


def variants(config: specs.RunConfig) -> dict[str, specs.RunConfig]:
    """The three runs that are trained, plain first."""
    privacy = config.privacy
    group_norm = privacy.group_clip_norm or privacy.l2_clip_norm
    edp = dataclasses.replace(privacy, l2_clip_norm=group_norm)
    exact = dataclasses.replace(privacy, group_size=0, group_clip_norm=0.0)
    return {
        PLAIN: baseline.of(config),
        EDP: dataclasses.replace(config, experiment="train", privacy=edp),
        EXACT: dataclasses.replace(config, experiment="train", privacy=exact),
    }


def _epoch_seconds(config, data, task, path: pathlib.Path) -> dict[str, np.ndarray]:
    """Seconds of an epoch at the settings of the private runs, timed once."""
    if path.exists():
        found = json.loads(path.read_text())
        return {name: np.array(times) for name, times in found.items()}
    ways = variants(config)
    plain = config.without_privacy()
    print("timing an epoch of each way, a minute or two ...")
    rounds = config.report.timing_rounds
    timed = epoch_time.measure(
        ways | {PLAIN: plain}, data, task, rounds=rounds, loop_of=EXACT
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps({name: list(times) for name, times in timed.items()}))
    part.replace(path)
    return timed


def _epoch(seconds, name) -> dict:
    ratios = seconds[name] / seconds[PLAIN]
    lo, hi = np.quantile(ratios, (0.25, 0.75))
    return {
        "epoch_seconds": float(np.median(seconds[name])),
        "epoch_ratio_quartiles": [float(lo), float(hi)],
        "ratios": {"epoch_seconds": float(np.median(ratios))},
    }


def _ratio(cost) -> str:
    lo, hi = cost["epoch_ratio_quartiles"]
    return f"{cost['ratios']['epoch_seconds']:.3g} x [{lo:.3g}, {hi:.3g}]"


def _line(section) -> str:
    words = [f"{section['name']:>16}  epoch {_ratio(section['cost'])} of plain"]
    for key, title in (("accuracy", "accuracy"), ("slot_f1", "slot F1")):
        if key in section["test"]:
            words.append(f"{title} {fmt.estimate(section['test'][key])}")
    lo, hi = section["membership"]["auc_interval"]
    words.append(f"attack AUC {section['membership']['auc']:.3f} [{lo:.3f}, {hi:.3f}]")
    if section["private"]:
        words.append(f"epsilon {section['epsilon_spent']:.3g}")
    if "epsilon_nominal" in section:
        words.append(f"(nominal {section['epsilon_nominal']:.3g})")
    return "  ".join(words)
