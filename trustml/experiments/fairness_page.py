"""The report of experiment `fairness`: answers first, then figures and tables.

Everything here words and draws what `trustml.experiments.fairness` measured. Texts are
masked before they come here.
"""

import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trustml import specs
from trustml.experiments import fairness_measure as measured
from trustml.experiments import fairness_sections
from trustml.fairness import ranking_table
from trustml.report import fmt, study, words

LIMITS = (
    "A gap says that groups are treated differently, not why, and not that the "
    "difference is unjust; equal rates do not make a system fair.",
    "Labels are taken as true. Where they are themselves made by people who treat "
    "groups differently (arrests, opinions of annotators), errors of the labels are in "
    "every figure here.",
    "Groups are as coarse as the columns of the data: two values of sex are not all of "
    "gender, and a group named 'Other' is nobody's.",
    "The definitions contradict each other: with unequal base rates no classifier but "
    "a perfect one has equal error rates and equal predictive values at once.",
    "Of small groups little is known. They are shown in grey and left out of gaps, "
    "which does not mean that they are served well.",
)
_TEXTS = (
    "Communities are those of a fixed list, named by annotators or by a word; whom the "
    "list leaves out is not seen, and a word may be used without naming anybody.",
    "Areas of one run are shown: models of one design that differ in their seed alone "
    "differ by several points for small communities.",
)


def write(
    workdir: str | os.PathLike,
    frame: Mapping[str, Any],
    config: specs.RunConfig,
    labels: Sequence[str],
    found: Any,
    epsilon: float | None,
) -> pathlib.Path:
    """report.json and report.html.

    Args:
      workdir: of the run.
      frame: of `describe.frame`.
      config: of the run.
      labels: names of the labels.
      found: a `fairness.Found`.
      epsilon: spent in training; None without privacy.

    Returns:
      The path of report.html.
    """
    positive = config.fairness.positive or labels[-1]
    texts = bool(found.areas or found.communities)
    return study.write(
        workdir,
        frame,
        cards(config, positive, found, epsilon),
        fairness_sections.sections(config, positive, found),
        numbers=numbers(config, positive, found, epsilon),
        methods=methods(config, positive, found),
        limits=(*LIMITS, *(_TEXTS if texts else ())),
    )


def cards(
    config, positive: str, found, epsilon: float | None
) -> tuple[words.Card, ...]:
    """The answers: who is served worse, how sure, by whom else, how good it is."""
    out, single = [], fairness_sections.single(found.attributes[0])
    favourable = config.fairness.favourable or positive
    harm = measured.FNR if favourable == positive else measured.FPR
    if single:
        out.append(_worse("Who is served worse by the model?", positive, single, harm))
        out.append(_sure(found.attributes[0]))
    for one, attributes in zip(found.decided[1:], found.attributes[1:], strict=True):
        question = f"And by {one.name}, all {len(one.label):,} examples?"
        out.append(
            _worse(question, positive, fairness_sections.single(attributes), harm)
        )
    for where, table in found.areas.items():
        out.append(_identities(where, table, positive))
    out.append(_good(found, positive, epsilon))
    return tuple(out)


def _worse(question: str, positive: str, attributes, harm: str) -> words.Card:
    """The gap of errors that is most surely there, then one point an attribute.

    Of the two kinds of errors the one that does harm, `harm`, comes first.
    """
    said = []
    for one in attributes:
        names = [n for n in (measured.FPR, measured.FNR) if n in one.gaps]
        names.sort(key=lambda n: (not _beyond(one.gaps[n]), n != harm))
        if names:
            gap = one.gaps[names[0]]
            surely = gap.lo if _beyond(gap) else -1.0
            said.append((surely, one, names[0]))
    said.sort(key=lambda entry: (entry[0] <= 0, entry[2] != harm, -entry[0]))
    if not said:
        return words.Card(question, "No two groups are large enough to compare.", ())
    best, one, name = said[0]
    headline = (
        f"{_who(one, name, positive)}."
        if best > 0
        else "No gap of error rates is surely larger than chance."
    )
    points = [
        f"By {one.name}: {_who(one, name, positive)}; {_gap(one.gaps[name])}."
        for _, one, name in said
    ]
    tone = "warn" if best > 0 else "plain"
    return words.Card(question, headline, tuple(points), tone=tone)


def _who(one, name: str, positive: str) -> str:
    """Whose errors are the most and the fewest, as half a sentence."""
    gap, rate = one.gaps[name], "fpr" if name == measured.FPR else "fnr"
    most, least = (gap.high, gap.low) if rate == "fpr" else (gap.low, gap.high)
    values = [one.rates[rate][one.names.index(group)].value for group in (most, least)]
    what = "wrongly called" if rate == "fpr" else "wrongly not called"
    return (
        f"\u2018{most}\u2019 is {what} \u2018{positive}\u2019 in "
        f"{fmt.percent(values[0])} of cases, \u2018{least}\u2019 in "
        f"{fmt.percent(values[1])}"
    )


def _gap(gap) -> str:
    return (
        f"gap {fmt.percent(gap.value)} ({fmt.span((gap.lo, gap.hi))}%), by chance up "
        f"to {fmt.percent(gap.floor)}"
    )


def _beyond(gap) -> bool:
    """Whether the gap is surely there: its interval excludes 0, shuffles fall short."""
    return gap.lo > 0 and gap.value > gap.floor and gap.p_value <= 0.05


def _sure(attributes) -> words.Card:
    named = [
        (one, name, one.gaps[name])
        for one in fairness_sections.single(attributes)
        for name in fairness_sections.SHOWN
        if name in one.gaps and not math.isnan(one.gaps[name].value)
    ]
    sure = [entry for entry in named if _beyond(entry[2])]
    headline = (
        f"{len(sure)} of {len(named)} gaps are larger than chance makes them, and "
        "their intervals exclude 0."
    )
    points = []
    for one in fairness_sections.single(attributes):
        beyond = [fairness_sections.SHOWN[name] for of, name, _ in sure if of is one]
        points.append(
            f"By {one.name}: {fmt.listed(beyond)}."
            if beyond
            else f"By {one.name}: none."
        )
    flagged = [
        f"{group} ({why})"
        for one in fairness_sections.single(attributes)
        for group, why in zip(one.names, one.flags, strict=True)
        if why
    ]
    if flagged:
        points.append(f"Too few to judge, left out: {fmt.listed(flagged)}.")
    crossed = [one for one in attributes if fairness_sections.crossed(one)]
    if crossed:
        left = sum(bool(why) for one in crossed for why in one.flags)
        total = sum(len(one.names) for one in crossed)
        points.append(f"Of {total} crossed groups {left} are too small to judge.")
    return words.Card("How sure is this?", headline, tuple(points))


def _identities(where: str, table, positive: str) -> words.Card:
    def key(name):
        judged = [row for row in table.identities if not row.flags]
        return [
            row
            for row in sorted(judged, key=lambda row: getattr(row, name).value)
            if not math.isnan(getattr(row, name).value)
        ]

    low, points = key("bpsn"), []
    for area, what in (
        ("bpsn", "harmless ones that name it rank above others that are not harmless"),
        ("bnsp", "harmful ones that name it rank below harmless others"),
        ("subgroup", "harmful and harmless ones that name it are confused"),
    ):
        mean, worst = table.power_means[area], key(area)[:3]
        listed = [
            f"{row.name} {fairness_sections.area(getattr(row, area))}" for row in worst
        ]
        small = sum(
            bool(row.flags) and not math.isnan(getattr(row, area).value)
            for row in table.identities
        )
        with_small = f", {small} too few to judge among them" if small else ""
        points.append(
            f"{area.upper() if area != 'subgroup' else 'Subgroup'} (low: {what}): "
            f"power mean {fairness_sections.area(mean)}{with_small}; lowest "
            f"{fmt.listed(listed) or 'n/a'}."
        )
    raised = [row for row in low if row.against.hi < 0]
    names = [row.name for row in raised[:5]]
    headline = "No identity surely does."
    if len(raised) > 5:
        headline = f"Yes, {len(raised)} of {len(table.identities)} do; most of all "
        headline += f"{fmt.listed(names[:4])}."
    elif raised:
        headline = f"Yes: {fmt.listed(names)}."
    points.insert(
        0, f"Area under the ROC of all texts: {fairness_sections.area(table.overall)}."
    )
    return words.Card(
        f"Does naming an identity raise the score for \u2018{positive}\u2019? "
        f"({where})",
        headline,
        tuple(points),
        tone="warn" if raised else "plain",
    )


def _good(found, positive: str, epsilon) -> words.Card:
    model = found.decided[0]
    right = float(np.mean(model.guess == model.label))
    base = max(float(model.label.mean()), 1 - float(model.label.mean()))
    privacy = "without privacy" if epsilon is None else f"at \u03b5 = {epsilon:.3g}"
    return words.Card(
        "How good is the model at all?",
        f"It is right on {fmt.percent(right)}; the commoner label has "
        f"{fmt.percent(base)}.",
        (
            f"Area under the ROC {_area_of(found.auc)}; 0.5 is guessing.",
            f"{len(model.label):,} examples, \u2018{positive}\u2019 is the label of "
            f"{fmt.percent(float(model.label.mean()))} and the guess for "
            f"{fmt.percent(float(model.guess.mean()))}.",
            f"Trained {privacy}.",
        ),
    )


def _area_of(interval) -> str:
    return f"{interval.value:.3f} [{interval.lo:.3f}, {interval.hi:.3f}]"


def methods(config, positive: str, found) -> tuple[str, ...]:
    """How it was measured, a sentence each."""
    spec, level = config.fairness, f"{100 * config.report.level:g}%"
    splits = fmt.listed(list(spec.splits))
    said = [
        f"Everything is about the {splits} split; positive is \u2018{positive}\u2019, "
        f"favourable \u2018{spec.favourable or positive}\u2019; a guess is the label "
        "with the highest score.",
        f"Rates have Wilson intervals at {level} for all groups together (Bonferroni). "
        "Gaps have limits of signed pairs of groups (Newcombe for differences, Donner "
        "and Zou for ratios), because a bootstrap of a maximum does not hold the truth "
        "where groups are alike; those marked \u2018bootstrap\u2019 are no figure of "
        f"two groups and have quantiles of {spec.replicates:,} replicates instead.",
        f"By chance: the same gap where groups are shuffled, {spec.replicates:,} "
        "times; sizes of groups, labels and guesses stay. The limit is its 95% "
        "quantile (5% of ratios).",
        f"Flagged are groups with fewer than {spec.least} examples, or fewer than "
        f"{spec.least_of_label} positives or negatives.",
    ]
    for where, count in found.replicates.items():
        made = where == "templates"
        unit = "templates, with all their terms" if made else "texts"
        said.append(
            f"Areas under the ROC ({where}): intervals of {count:,} Bayesian "
            f"bootstraps of {unit}, each by itself; background "
            f"{spec.background if where != 'templates' else 'all'}."
        )
    if found.replicates:
        said.append(
            "An identity is said to raise scores where its BPSN area is below the area "
            f"of all texts; intervals of that difference hold at {level} for all "
            "identities that are large enough together. With fewer than "
            f"{ranking_table.LEAST} texts of a class an area has no interval; with "
            "fewer than 30, or above 0.9, it has DeLong's on the logit scale, unless "
            "texts come from templates. Power means are of all identities, small ones "
            "too."
        )
    return tuple(said)


def numbers(config, positive: str, found, epsilon) -> dict[str, Any]:
    """What report.json holds of it."""
    return _plain(
        {
            "positive": positive,
            "favourable": config.fairness.favourable or positive,
            "splits": config.fairness.splits,
            "epsilon": epsilon,
            "auc": found.auc,
            "decided": [
                {"name": one.name, "n": len(one.label), "attributes": attributes}
                for one, attributes in zip(found.decided, found.attributes, strict=True)
            ],
            "communities": found.communities,
            "areas": found.areas,
        }
    )


def _plain(value: Any) -> Any:
    """Tuples with names as dictionaries, arrays as lists, nan and inf as None."""
    if hasattr(value, "_asdict"):
        return {name: _plain(x) for name, x in value._asdict().items()}
    if isinstance(value, Mapping):
        return {str(name): _plain(x) for name, x in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(x) for x in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
