"""Who pays for privacy: every group of a trust report under every budget.

For data that know whom an example is about (sex, race, age, who is named): accuracy and
loss of each group under each model, excessive risk beside the model without privacy,
gaps between groups, attacks on each group, and what clipping does to its gradients.
Attributes are those of experiment `fairness`. Communities that texts may name several
of become one attribute: none, one of them alone, or several.

Example::

    groupings = group_privacy.groupings(config, data)
    found = group_privacy.measure(config, data, groupings, runs)
    report['fairness'] = found
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from trustml import intervals, specs
from trustml.attacks import metrics, subgroups
from trustml.data import dataset, datasets
from trustml.experiments import describe, evaluate, fairness, fairness_measure
from trustml.experiments.group_clipping import Grouping
from trustml.fairness import clipping_bias, counts, excessive_risk, groups

COMMUNITY = "community"
FPR = 0.01  # false alarms at which attacks on groups are compared
_GAPS = (
    fairness_measure.PARITY,
    fairness_measure.FNR,
    fairness_measure.FPR,
    fairness_measure.ODDS,
    "predictive parity difference",
)


class Run(NamedTuple):
    """One trained model, and what groups are measured on.

    Attributes:
      name: of the run.
      private: whether it was.
      seen: what it says of every example.
      strong: scores of shadow models, see `describe.section_of`; None: losses alone.
      tested: predictions on the test split under further seeds, from 0 on.
      clipping: of `group_clipping.of_run`; None without privacy.
      sensitivity: attribute -> of `group_sensitivity.of_run`; a sentence that says why
        there is none.
    """

    name: str
    private: bool
    seen: describe.Seen
    strong: np.ndarray | None
    tested: tuple[evaluate.Predictions, ...]
    clipping: dict[str, clipping_bias.ClippingBias] | str | None
    sensitivity: dict[str, Any] | str


def groupings(config: specs.RunConfig, data: datasets.Dataset) -> tuple[Grouping, ...]:
    """The attributes to report by; none where the data know nobody's.

    Raises:
      ValueError: if the config names a group or a label that the data do not have.
    """
    spec = config.fairness
    known = set(data.group_names) - {"length", spec.score_column}
    if not known and not spec.attributes:
        return ()
    asked = fairness.wanted(config, data)
    found = [
        Grouping(
            name,
            tuple(data.group_names[name]),
            {split: data.groups[split][name] for split in dataset.SPLITS},
        )
        for name in asked.attributes
    ]
    if asked.communities:
        found.append(_communities(data, asked.communities))
    return tuple(found)


def _communities(data, names: Sequence[str]) -> Grouping:
    """Who is named, as groups that do not overlap."""
    of = {}
    for split in dataset.SPLITS:
        named = np.stack([data.groups[split][name] for name in names], axis=1)
        count = np.sum(named == 1, axis=1)
        alone = 1 + np.argmax(named == 1, axis=1)
        group = np.select([count == 0, count == 1], [0, alone], len(names) + 1)
        of[split] = np.where((named < 0).any(axis=1), -1, group).astype(np.int32)
    return Grouping(COMMUNITY, ("none", *names, "several"), of)


def measure(
    config: specs.RunConfig,
    data: datasets.Dataset,
    groupings: Sequence[Grouping],
    runs: Sequence[Run],
) -> dict[str, Any]:
    """The entry `fairness` of a report, as `report.schema` describes it.

    Args:
      config: of the report.
      data: its data.
      groupings: at least one.
      runs: of the report; the first without privacy is what others are set against.
    """
    asked = fairness.wanted(config, data)
    plain = next((run for run in runs if not run.private), None)
    inside, outside = describe.attacked(config, data)
    label = np.asarray(data.test["label"])
    attributes = []
    for grouping in groupings:
        group = np.asarray(grouping.of["test"])
        found: dict[str, Any] = {}
        for run in runs:
            one = _served(config, run, group, grouping.names)
            one["gaps"] = _gaps(config, run, group, grouping, label, asked)
            if attack := _attacked(config, run, grouping, inside, outside):
                one["attack"] = attack
            if run is not plain and plain is not None:
                one |= _risks(config, plain, run, group, grouping.names)
            if isinstance(run.clipping, dict) and grouping.name in run.clipping:
                one["nonprivate"] = {"clipping": run.clipping[grouping.name]}
            if isinstance(run.sensitivity, dict) and grouping.name in run.sensitivity:
                one["sensitivity"] = run.sensitivity[grouping.name]
            found[run.name] = one
        attributes.append(
            {"name": grouping.name, "groups": grouping.names, "runs": found}
        )
    return {
        "attributes": attributes,
        "positive": data.label_names[asked.positive],
        "level": config.report.level,
        "seeds": 1 if plain is None else len(plain.tested),
        "left_out": _left_out(groupings, runs),
    }


def _served(config, run: Run, group, names) -> dict[str, Any]:
    """Accuracy and loss of every group."""
    level, tested = config.report.level, run.seen.tested
    found = groups.accuracy_by(
        tested.correct,
        group,
        names=names,
        level=level,
        small=config.fairness.least,
        seed=config.seed,
    )
    losses = []
    for g in range(len(names)):
        some = tested.losses[(group == g) & np.isfinite(tested.losses)]
        losses.append(
            intervals.mean(some, level, bounds=(0.0, np.inf)) if some.size else None
        )
    rows = groups.rows(found)
    return {
        "groups": [
            row | {"loss": loss} for row, loss in zip(rows, losses, strict=True)
        ],
        "accuracy_gap": found.gap,
        "unknown": found.unknown,
    }


def _gaps(config, run: Run, group, grouping, label, asked) -> dict[str, Any]:
    """Gaps of rates between groups, of the positive label against all others."""
    cells = counts.count(
        group,
        label == asked.positive,
        run.seen.tested.guesses == asked.positive,
        groups=len(grouping.names),
    ).cells
    made = fairness_measure.attribute(
        grouping.name,
        np.asarray(cells).astype(np.int64),
        grouping.names,
        config.fairness,
        level=config.report.level,
        seed=config.seed,
        flip=asked.flip,
    )
    return {name: made.gaps[name] for name in _GAPS if name in made.gaps}


def _risks(config, plain: Run, run: Run, group, names) -> dict[str, Any]:
    """Excessive risk, of the loss and of errors, over matched seeds."""
    pairs = tuple(zip(plain.tested, run.tested, strict=True))
    finite = np.all([np.isfinite(x.losses) for pair in pairs for x in pair], axis=0)
    how: dict[str, Any] = {
        "names": names,
        "level": config.report.level,
        "small": config.fairness.least,
        "replicates": config.fairness.replicates,
        "seed": config.seed,
    }

    def of(figure, group):
        before, after = zip(*((figure(a), figure(b)) for a, b in pairs), strict=True)
        # What counts nowhere leaves no trace in a sum.
        before, after = (np.where(group >= 0, x, 0.0) for x in (before, after))
        return excessive_risk.measure(before, after, group, **how)

    return {
        "risk": of(lambda x: x.losses, np.where(finite, group, -1)),
        "fall": of(lambda x: ~x.correct, group),
        "nonfinite": int(np.sum(~finite)),
    }


def _attacked(config, run: Run, grouping, inside, outside) -> dict[str, Any] | None:
    """Attack success by group; None where members' groups are not known."""
    group = np.concatenate(
        [grouping.of["train"][inside], grouping.of["valid"][outside]]
    )
    member = np.arange(len(group)) < len(inside)
    if run.strong is None:
        kind = "loss threshold"
        losses = run.seen.members.losses[inside], run.seen.others.losses[outside]
        scores = -np.nan_to_num(np.concatenate(losses), nan=1e30, posinf=1e30)
    else:
        kind = "shadow models"
        others = len(run.seen.members.losses) + outside
        scores = run.strong[np.concatenate([inside, others])]
    ok = np.isfinite(scores)
    scores, group, member = scores[ok], group[ok], member[ok]
    if (group[member] < 0).all() or np.sum(~member) * FPR < 1:
        return None
    level, least = config.report.level, config.fairness.least
    found = subgroups.at_fpr(
        scores, member, group, FPR, names=grouping.names, level=level
    )
    rows, joint = [], 1.0 - (1.0 - level) / len(grouping.names)
    for g, (rate, own) in enumerate(zip(found.rates, found.own, strict=True)):
        both = min(rate.n_members, rate.n_nonmembers)
        area = None
        if both:
            of = group == g
            area = metrics.auc(scores[of & member], scores[of & ~member], joint)
        rows.append(
            {
                "name": rate.name,
                "n_members": rate.n_members,
                "n_nonmembers": rate.n_nonmembers,
                "small": both < least,
                "auc": area,
                "tpr": _entry(rate.tpr, rate.tpr_interval),
                "fpr": _entry(rate.fpr, rate.fpr_interval),
                "own_tpr": own and _entry(own.tpr, (own.lo, own.hi)),
            }
        )
    return {"kind": kind, "fpr": FPR, "groups": rows}


def _entry(value: float, ends: tuple[float, float]) -> dict[str, float]:
    return {"value": value, "lo": ends[0], "hi": ends[1]}


def _left_out(groupings, runs) -> list[str]:
    """What was not measured, a sentence each."""
    said = []
    for run in runs:
        if isinstance(run.clipping, str):
            said.append(f"Clipping by group was not measured: {run.clipping}.")
            break
    unknown = [g.name for g in groupings if (g.of["train"] < 0).all()]
    if unknown:
        said.append(
            f"Attacks by {', '.join(unknown)} were not measured: nobody's is known in "
            "the training split."
        )
    if isinstance(runs[0].sensitivity, str):
        said.append(f"Prediction sensitivity was not measured: {runs[0].sensitivity}.")
    elif unknown:
        said.append(
            f"Prediction sensitivity to {', '.join(unknown)} was not measured: a model "
            "that tells it needs training examples whose group is known."
        )
    return said
