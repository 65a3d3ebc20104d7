"""Who pays for privacy: the part of a trust report that follows groups through runs.

From the report's entry `fairness` (see `schema`) come one card in plain words and one
section an attribute: accuracy of groups against epsilon, excessive risk, gaps, attacks,
and, not private, what clipping does to their gradients.

Example::

    card = private_groups.card(report)             # None where no group is known
    page += private_groups.sections(report)
"""

from collections.abc import Mapping, Sequence
from typing import Any

from trustml.report import fmt, gaps, group_tables, schema, words

Attribute = Mapping[str, Any]
_QUESTION = "Who pays for privacy?"


def card(report: Mapping[str, Any]) -> words.Card | None:
    """What privacy costs whom under the strictest budget; None without groups."""
    attributes = schema.get(report, "fairness", "attributes", default=[])
    last = schema.strictest(report["runs"])
    if not attributes:
        return None
    if not schema.is_private(last):
        said = "Nobody: no model here was trained with privacy."
        return words.Card(_QUESTION, said, ())
    said = []
    for one in attributes:
        for key, sentence in (("fall", _fall), ("risk", _risk)):
            gap = schema.get(one, "runs", last["name"], key, "gap")
            if text := sentence(report, one, last):
                said.append((_beyond(gap), text))
    if not said:
        return words.Card(_QUESTION, "No two groups are large enough to compare.", ())
    said.sort(key=lambda entry: not entry[0])  # what is sure comes first
    sure, headline = said[0]
    points = (*(text for _, text in said[1:]), *_found(report, attributes, last))
    return words.Card(_QUESTION, headline, points, tone="warn" if sure else "plain")


def sections(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Keywords of `html.section` for every attribute, figures as (title, SVG, caption).

    Returns:
      {'title', 'text', 'figures', 'tables'} each.
    """
    out = []
    for n, one in enumerate(schema.get(report, "fairness", "attributes", default=[])):
        last = schema.strictest(report["runs"])
        said = (_fall(report, one, last), _risk(report, one, last))
        out.append(
            {
                "title": f"What privacy does, by {one['name']}",
                "text": tuple(filter(None, said)),
                "figures": _figures(report, one, str(n)),
                "tables": (
                    group_tables.accuracy(report, one),
                    group_tables.costs(report, one, "fall"),
                    group_tables.costs(report, one, "risk"),
                    *(group_tables.aside(*folded) for folded in _folded(report, one)),
                ),
            }
        )
    return out


def _folded(report, one: Attribute) -> tuple[tuple[str, str], ...]:
    """Captions and tables that are shown on a click."""
    return (
        (f"Gaps of rates by {one['name']}", group_tables.gaps(report, one)),
        (f"Attacks by {one['name']}", group_tables.attacks(report, one)),
        (
            f"Prediction sensitivity to {one['name']}",
            group_tables.sensitivity(report, one),
        ),
        (
            f"Clipping by {one['name']} (not private)",
            group_tables.clipping(report, one),
        ),
    )


def methods(report: Mapping[str, Any]) -> tuple[str, ...]:
    """How groups were measured, a sentence each."""
    found = schema.get(report, "fairness")
    if not found:
        return ()
    seeds = int(schema.number(found, "seeds") or 1)
    trained = (
        f"Each run was trained from {seeds} seeds for this; the bootstrap draws seeds "
        "as well as examples, with Student's factor for so few, and shuffled groups "
        "have the luck of seeds added."
        if seeds > 1
        else "One pair of models stands behind it: another seed gives others."
    )
    return (
        "Excessive risk of a group is its mean loss under privacy minus that without, "
        "on the same test examples (Tran et al. 2021); the fall of accuracy is the "
        "same of errors. Intervals are of a paired Bayesian bootstrap; gaps have "
        f"limits of signed pairs of groups and stand beside shuffled groups. {trained}",
        f"Gaps of rates are of the label \u2018{found.get('positive')}\u2019 against "
        "all others, in the first model of each run.",
        "Attacks by group are at one threshold for everybody, chosen for 1% of false "
        "alarms, and at a threshold of the group's own where it has 100 non-members.",
    )


def limits(report: Mapping[str, Any]) -> tuple[str, ...]:
    """What the part does not show, or must not be given away."""
    found = schema.get(report, "fairness")
    if not found:
        return ()
    clipped = any(
        schema.get(entry, "nonprivate")
        for one in found["attributes"]
        for entry in one["runs"].values()
    )
    said = (
        "Shares of clipped gradients, norms and cosines by group were computed on "
        "training examples without noise: no \u03b5 covers them, and they are not to "
        "be released with the model.",
    )
    return (said if clipped else ()) + tuple(found.get("left_out") or ())


def _beyond(gap: Mapping[str, Any] | None) -> bool:
    """Whether a gap is surely there: above 0 in its interval, and beyond shuffles."""
    value, lo = schema.number(gap, "value"), schema.number(gap, "lo")
    floor, p = schema.number(gap, "floor_95"), schema.number(gap, "p_value")
    if value is None or lo is None or floor is None or p is None:
        return False
    return lo > 0 and value > floor and p <= 0.05


def _fall(report, one: Attribute, run) -> str:
    """Whose accuracy falls most and least, in a sentence; '' without two groups."""
    found = schema.get(one, "runs", run["name"], "fall", default={})
    gap, label = found.get("gap") or {}, schema.labels(report["runs"])[run["name"]]
    if schema.number(gap, "value") is None:
        return ""
    rows = {row["name"]: row for row in found["risks"]}
    most, least = rows[gap["most"]], rows[gap["least"]]
    verb = "falls" if most["value"] >= 0 else "rises"
    text = f"By {one['name']}, under {label} the accuracy of "
    text += f"\u2018{most['name']}\u2019 {verb} by {_points(most)} and that of "
    text += f"\u2018{least['name']}\u2019 "
    if (least["value"] >= 0) != (most["value"] >= 0):
        text += "rises " if least["value"] < 0 else "falls "
    text += f"by {_points(least)}: the gap of {100 * gap['value']:.1f} points is "
    floor = f"{100 * gap['floor_95']:.1f}"
    return f"{text}{_verdict(gap, floor)}."


def _verdict(gap: Mapping[str, Any], floor: str) -> str:
    """What a gap is beside chance, to go on a sentence."""
    if _beyond(gap):
        return f"more than chance gives (up to {floor})"
    if gap["value"] > gap["floor_95"]:
        return f"above what chance gives (up to {floor}), but its interval includes 0"
    return f"no more than chance gives (up to {floor})"


def _points(row: Mapping[str, Any]) -> str:
    """A fall (or, where it is negative, a rise) in points with its interval."""
    sign = 1.0 if row["value"] >= 0 else -1.0
    ends = sorted(100 * sign * row[end] for end in ("lo", "hi"))
    low, high = (fmt.signed(end).replace("+", "") for end in ends)
    return f"{100 * abs(row['value']):.1f} points ({low} to {high})"


def _risk(report, one: Attribute, run) -> str:
    """The gap of excessive risk in a sentence."""
    found = schema.get(one, "runs", run["name"], "risk", default={})
    gap, label = found.get("gap") or {}, schema.labels(report["runs"])[run["name"]]
    if schema.number(gap, "value") is None:
        return ""
    rows = {row["name"]: row for row in found["risks"]}
    most, least = (group_tables.nats(rows[gap[end]]) for end in ("most", "least"))
    verdict = _verdict(gap, f"{gap['floor_95']:.3f}")
    return (
        f"By {one['name']}, under {label} the loss, which sees doubt as well as "
        f"errors, grows by {most} for \u2018{gap['most']}\u2019 and by {least} for "
        f"\u2018{gap['least']}\u2019: a gap of "
        f"{gap['value']:.3f}, {verdict}."
    )


def _found(report, attributes: Sequence[Attribute], run) -> tuple[str, ...]:
    """Whom the attack finds beyond guessing, and by what attributes it finds nobody."""
    said, nobody = [], []
    label = schema.labels(report["runs"])[run["name"]]
    for one in attributes:
        attack = schema.get(one, "runs", run["name"], "attack", default={})
        judged = [row for row in attack.get("groups", []) if not row["small"]]
        if len(judged) < 2:
            continue
        worst = max(judged, key=lambda row: row["auc"]["value"])
        if worst["auc"]["lo"] > 0.5:
            said.append(
                f"Attacked by {one['name']} under {label}: most is found of "
                f"\u2018{worst['name']}\u2019, AUC {group_tables.area(worst)}."
            )
        else:
            nobody.append(one["name"])
    if nobody:
        said.append(
            f"Attacks on groups by {fmt.listed(nobody)} under {label} find nobody "
            "beyond guessing, which is no proof that nothing leaks."
        )
    return tuple(said)


def _figures(report, one: Attribute, name: str) -> tuple[tuple[str, str, str], ...]:
    runs, labels = report["runs"], schema.labels(report["runs"])
    level = group_tables.level(report)
    entries = [one["runs"][run["name"]] for run in runs]
    budgets = [schema.epsilon(run) if schema.is_private(run) else None for run in runs]
    lines = [
        (group, [(e, of["groups"][g]) for e, of in zip(budgets, entries, strict=True)])
        for g, group in enumerate(one["groups"])
    ]
    shown = [(labels[run["name"]], of) for run, of in zip(runs, entries, strict=True)]
    bars = [(label, of["risk"]["risks"]) for label, of in shown if of.get("risk")]
    found = [(label, of["attack"]["groups"]) for label, of in shown if of.get("attack")]
    found = [found[0], found[-1]] if len(found) > 2 else found  # what fits
    attack = ""
    if found:
        rows = found[0][1]
        attack = gaps.rates(
            [group_tables.starred(row) for row in rows],
            [bool(row["small"]) for row in rows],
            [(label, [_shown(row["tpr"]) for row in rows]) for label, rows in found],
            f"found-{name}",
        )
    return (
        (
            f"Accuracy by {one['name']} against \u03b5",
            gaps.against_epsilon(lines, f"paid-{name}", level=level),
            f"Test accuracy with exact {level} intervals, first model of each run. "
            "Groups are moved apart sideways; hollow: too few to judge. The accuracy "
            "axis does not begin at zero.",
        ),
        (
            "Excessive risk",
            gaps.bars(bars, f"risk-{name}"),
            "By how much the mean loss of a group is larger than without privacy, with "
            f"{level} intervals of a paired bootstrap. Pale: too few to judge.",
        ),
        (
            "Members found, by group",
            attack,
            "At one threshold for everybody, chosen for 1% of false alarms: a group "
            "that is found more often than in 1% of cases may be at risk, or be one "
            "whose losses are low anyhow. * Too few to judge.",
        ),
    )


def _shown(entry: Mapping[str, Any]) -> dict[str, Any]:
    value = schema.number(entry, "value")
    return {**entry, "value": float("nan") if value is None else value}
