"""Experiment `trust_report`: what is promised, what leaks, what it costs, who pays.

Trains the same model on the same data without privacy and at every budget of
`report.epsilons`, attacks each, measures accuracy overall, per class and per length of
the text, and writes one report. With `report.shadow_models` the attack is that of an
attacker who trains models of his own (`experiments.strong`); with
`report.audit_canaries` every private trainer is run once more with canaries, and the
report holds a lower bound on epsilon beside the promise (`experiments.canary_run`).

Each budget has a directory of its own under the run's, with its own checkpoints, so a
killed run continues in the middle of the budget it had reached.

Where the data know whom an example is about (sex, race, who is named), every group is
followed through all runs (`experiments.group_privacy`), and with `report.seeds` above 1
each run is trained again from further seeds, so that what privacy costs a group can be
told from the luck of one training.

The run without privacy may have settings of its own (`config.baseline`). The price of a
step is then taken from a few steps without privacy at the settings of the private runs,
so that like is compared with like.
"""

import dataclasses
import pathlib
import tempfile
from typing import Any

from trustml import report, specs
from trustml.experiments import (
    baseline,
    build,
    canary_run,
    describe,
    evaluate,
    finished,
    group_clipping,
    group_privacy,
    group_sensitivity,
    loop,
    membership,
    strong,
    train,
)

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
    attacks = _attacks(config, data)
    audits = _audits(config, data)
    groupings = group_privacy.groupings(config, data)
    tellers = _status_models(config, data, groupings, workdir)
    sections, runs, first, task, params = [], [], None, None, None
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
        params, place = trained.params, workdir / name
        scores, audited = None, None
        if attack := attacks.get(name):
            scores = strong.scores(variant, attack, task, params, place)
        if ready := audits.get(name):
            released = canary_run.release(ready, place / "audit", name="audit")
            audited = canary_run.strongest(ready, released, alpha=config.audit.alpha)
        seen = describe.look(task, params, data)
        section = describe.section_of(
            name,
            variant,
            data,
            trained,
            seen,
            baseline=first,
            strong=scores,
            audit=audited,
        )
        if not variant.privacy.enabled:  # its price was taken at the private settings
            rate = config.train.batch_size / trained.cost.seconds_per_step
            section["cost"]["examples_per_second"] = rate
        sections.append(section)
        if not variant.privacy.enabled:
            first = seen.tested
        if groupings:
            runs.append(
                group_privacy.Run(
                    name,
                    variant.privacy.enabled,
                    seen,
                    scores,
                    (seen.tested, *_further(variant, data, workdir)),
                    group_clipping.of_run(variant, data, task, trained, groupings)
                    if variant.privacy.enabled
                    else None,
                    tellers
                    if isinstance(tellers, str)
                    else {
                        of: group_sensitivity.of_run(variant, data, task, params, told)
                        for of, told in tellers.items()
                    },
                )
            )
    title = f"Trust report: {config.model.name} on {data.name}"
    page = describe.frame(title, config, data, task, params)
    page |= {"runs": sections, "limits": limits}
    if groupings:
        page["fairness"] = group_privacy.measure(config, data, groupings, runs)
    path = report.write(workdir, page)
    for section in sections:
        accuracy = section["test"]["accuracy"]
        attack = section.get("membership_strong") or section["membership"]
        print(
            f"{section['name']:>11}  accuracy {accuracy['value']:.1%} "
            f"[{accuracy['lo']:.1%}, {accuracy['hi']:.1%}]  "
            f"attack AUC {attack['auc']:.3f} "
            f"[{attack['auc_interval'][0]:.3f}, {attack['auc_interval'][1]:.3f}]"
            + _spent(section)
        )
    print(f"report: {path}")
    return path


def variants(config: specs.RunConfig) -> list[specs.RunConfig]:
    """The run without privacy, then one for each budget, largest first."""
    private = [
        _at_budget(config, epsilon)
        for epsilon in sorted(config.report.epsilons, reverse=True)
    ]
    return [baseline.of(config), *private]


def _status_models(config: specs.RunConfig, data, groupings, workdir: pathlib.Path):
    """Models that tell attributes from words; or why there are none."""
    task = build.task(config, data)
    if not groupings or (why := group_sensitivity.refused(data, task)):
        return why if groupings else ""
    return group_sensitivity.status_models(config, data, groupings, workdir)


def _further(
    variant: specs.RunConfig, data, workdir: pathlib.Path
) -> list[evaluate.Predictions]:
    """Predictions on the test split of the same run from further seeds."""
    out, first = [], variant.privacy.noise_seed
    for n in range(1, variant.report.seeds):
        noise_seed = None if first is None else first + n
        privacy = dataclasses.replace(variant.privacy, noise_seed=noise_seed)
        again = dataclasses.replace(variant, seed=variant.seed + n, privacy=privacy)
        name, task = f"{train.run_name(again)}, {n + 1}", build.task(again, data)
        place = workdir / f"seed-{again.seed}" / train.run_name(again)
        params = loop.fit(again, data, task, place, name=f"{name:>14}").params
        out.append(evaluate.predictions(task, params, data.test))
    return out


def _at_budget(config: specs.RunConfig, epsilon: float) -> specs.RunConfig:
    privacy = dataclasses.replace(config.privacy, epsilon=epsilon)
    return dataclasses.replace(config, experiment="train", privacy=privacy)


def _attacks(config: specs.RunConfig, data) -> dict[str, membership.Attack]:
    """Shadow models of every run, by its name; none of them trained yet."""
    if not config.report.shadow_models:
        return {}
    return {train.run_name(v): strong.prepare(v, data) for v in variants(config)}


def _audits(config: specs.RunConfig, data) -> dict[str, canary_run.Ready]:
    """The audit of every private run, by its name, at its own sampling rate."""
    count = config.report.audit_canaries
    if not count:
        return {}
    return {
        train.run_name(variant): canary_run.prepare(
            variant, data, build.task(variant, data), count=count, sample_rate=0.0
        )
        for variant in variants(config)
        if variant.privacy.enabled
    }


def _spent(section: dict[str, Any]) -> str:
    """Promise and audit of a private run that was audited, for the terminal."""
    if "audit" not in section:
        return ""
    audited = section["audit"]["epsilon"]
    return f"  epsilon {section['epsilon_spent']:.3g}, audited: at least {audited:.3g}"


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
