"""Tables of a trust report's part on groups: costs, gaps, attacks, clipping.

Each takes a checked report and one attribute of its entry `fairness` (`schema`), and
gives HTML, '' where nothing was measured.

Example::

    html = group_tables.costs(report, attribute, 'fall')
"""

import html as html_lib
from collections.abc import Mapping, Sequence
from typing import Any

from trustml.report import fmt, schema, tables

Attribute = Mapping[str, Any]


def aside(caption: str, made: str) -> str:
    """A table behind a line to click on; '' without one."""
    if not made:
        return ""
    return f"<details><summary>{html_lib.escape(caption)}</summary>{made}</details>"


def level(report: Mapping[str, Any]) -> str:
    """The level of intervals of the part on groups, such as '95%'."""
    return f"{100 * (schema.number(report, 'fairness', 'level') or 0.95):g}%"


def _columns(report, one: Attribute, key: str) -> list[tuple[str, Mapping[str, Any]]]:
    """(label of a run, its entry of the attribute) where the entry has `key`."""
    labels = schema.labels(report["runs"])
    return [
        (labels[run["name"]], one["runs"][run["name"]])
        for run in report["runs"]
        if schema.get(one, "runs", run["name"], key)
    ]


def _note(rows: Sequence[Mapping[str, Any]], said: str) -> str:
    few = any(row.get("small") for row in rows)
    return said + (" * Too few to judge." if few else "")


def accuracy(report, one: Attribute) -> str:
    """Accuracy of every group under every model, and the gap."""
    columns = _columns(report, one, "groups")
    first = columns[0][1]["groups"]
    body = [
        (
            starred(row),
            f"{row['n']:,}",
            *(fmt.estimate(entry["groups"][g]) for _, entry in columns),
        )
        for g, row in enumerate(first)
    ]
    found = [entry["accuracy_gap"] for _, entry in columns]
    shown = (points(gap) + _chance(gap["floor_95"], 100.0, 1) for gap in found)
    body.append(("gap", "", *shown))
    note = _note(
        first,
        f"In brackets: exact {level(report)} intervals. Gap: best minus worst group.",
    )
    head = ("group", "n", *(label for label, _ in columns))
    return tables.table(head, body, f"Accuracy by {one['name']}", note)


def costs(report, one: Attribute, key: str) -> str:
    """What each group lost, of accuracy (`fall`) or in loss (`risk`)."""
    columns = _columns(report, one, key)
    if not columns:
        return ""
    shown, scale, digits = (points, 100.0, 1) if key == "fall" else (nats, 1.0, 3)
    first = columns[0][1][key]["risks"]
    body = [
        (starred(row), *(shown(entry[key]["risks"][g]) for _, entry in columns))
        for g, row in enumerate(first)
    ]
    found = [entry[key]["gap"] for _, entry in columns]
    body.append(
        (
            "gap",
            *(shown(gap) + _chance(gap["floor_95"], scale, digits) for gap in found),
        )
    )
    what = "Points of accuracy lost" if key == "fall" else "Excessive risk, nats"
    note = _note(
        first,
        f"Against no privacy on the same examples. In brackets: {level(report)} "
        "intervals, each by itself. Chance: shuffled groups stay below it in 95% of "
        "cases.",
    )
    head = ("group", *(label for label, _ in columns))
    return tables.table(head, body, f"{what}, by {one['name']}", note)


def points(row: Mapping[str, Any]) -> str:
    """A difference of rates and its interval, in points: '1.2 (\u22120.3 to 2.0)'."""
    return _limits(row, 100.0, 1)


def gaps(report, one: Attribute) -> str:
    """Gaps of rates under every model, beside chance."""
    columns = _columns(report, one, "gaps")
    if not columns:
        return ""
    body = [
        (
            name,
            *(
                points(gap) + _chance(gap.get("floor"), 100.0, 1)
                for gap in (entry["gaps"].get(name) or {} for _, entry in columns)
            ),
        )
        for name in dict.fromkeys(
            name for _, entry in columns for name in entry["gaps"]
        )
    ]
    note = (
        "In points, groups that are too small left out. Chance: shuffled groups stay "
        "below it in 95% of cases."
    )
    head = ("gap", *(label for label, _ in columns))
    return tables.table(head, body, f"Gaps of rates by {one['name']}", note)


def attacks(report, one: Attribute) -> str:
    """Whom the attack finds, at one threshold and at groups' own."""
    columns = _columns(report, one, "attack")
    if not columns:
        return ""
    first = columns[0][1]["attack"]["groups"]
    head = ["group", "members", "non-members"]
    for label, _ in columns:
        head += [f"{label}: AUC", "found at 1%", "false alarms", "found, own threshold"]
    body = []
    for g, row in enumerate(first):
        cells = [starred(row), f"{row['n_members']:,}", f"{row['n_nonmembers']:,}"]
        for _, entry in columns:
            found = entry["attack"]["groups"][g]
            cells += [
                area(found),
                fmt.estimate(found["tpr"]),
                fmt.estimate(found["fpr"]),
            ]
            own = found["own_tpr"]
            cells.append("too few" if own is None else fmt.estimate(own))
        body.append(cells)
    note = _note(
        first,
        f"By the {columns[0][1]['attack']['kind']}. Intervals of areas hold for all "
        "groups together, those of shares each by itself.",
    )
    return tables.table(head, body, f"Attacks by {one['name']}", note)


def sensitivity(report, one: Attribute) -> str:
    """How far words that reveal the attribute move predictions."""
    columns = _columns(report, one, "sensitivity")
    if not columns:
        return ""
    first, head = columns[0][1]["sensitivity"], ["group", "n"]
    for label, _ in columns:
        head += [f"{label}: reliance", "displacement"]
    body = []
    for g, row in enumerate(first["groups"]):
        cells = [starred(row), f"{row['n']:,}"]
        for _, entry in columns:
            of_group = entry["sensitivity"]["groups"][g]
            cells += [nats(of_group[form]) for form in ("reliance", "displacement")]
        body.append(cells)
    told = first["status"]
    note = _note(
        first["groups"],
        "Reliance: 1 where words that reveal the attribute matter as much as others "
        "(integrated gradients). Displacement: how far probabilities move, in total "
        "variation, when they are replaced by mean words. What reveals is told by a "
        f"second model, right on {fmt.estimate(told['accuracy'])} of texts; the "
        f"largest group has {fmt.percent(told['majority'])}"
        + (
            "."
            if told["accuracy"]["lo"] > told["majority"]
            else ": it hardly tells, and these figures say little."
        ),
    )
    caption = f"Sensitivity to words that tell {one['name']}"
    return tables.table(head, body, caption, note)


def clipping(report, one: Attribute) -> str:
    """What clipping does to the gradients of every group. NOT private."""
    columns = [
        (label, entry["nonprivate"]["clipping"])
        for label, entry in _columns(report, one, "nonprivate")
    ]
    if not columns:
        return ""
    first, head = columns[0][1]["groups"], ["group", "n"]
    for label, _ in columns:
        head += [f"{label}: clipped", "norm kept", "cosine"]
    body = []
    for g, row in enumerate(first):
        cells = [starred(row), f"{row['n']:,}"]
        for _, found in columns:
            one_group = found["groups"][g]
            cells += [
                fmt.estimate(one_group[k]) for k in ("clipped_share", "kept_norm")
            ]
            cells.append(nats(one_group["cosine"]))
        body.append(cells)
    cells = ["everybody", f"{sum(row['n'] for row in first):,}"]
    for _, found in columns:
        cells += ["", "", nats(found["cosine"])]
    body.append(cells)
    note = _note(
        first,
        "NOT private, and not released with the model: gradients of training examples "
        "at the end of each run, without noise. Cosine: between the sum of clipped "
        "gradients and the sum of gradients; 1 where clipping turns nothing.",
    )
    return tables.table(head, body, f"What clipping does, by {one['name']}", note)


def nats(row: Mapping[str, Any]) -> str:
    """A loss, a change of one or a cosine: '0.021 (0.012 to 0.030)'."""
    return _limits(row, 1.0, 3)


def _limits(row: Mapping[str, Any], scale: float, digits: int) -> str:
    value, ends = schema.number(row, "value"), fmt.ends_of(row)
    if value is None:
        return tables.NONE
    text, *limits = (
        fmt.signed(scale * x, digits).replace("+", "") for x in (value, *(ends or ()))
    )
    return f"{text} ({limits[0]} to {limits[1]})" if limits else text


def _chance(floor: float | None, scale: float, digits: int) -> str:
    return "" if floor is None else f", chance {scale * floor:.{digits}f}"


def area(row: Mapping[str, Any]) -> str:
    """An area under the ROC with its interval."""
    found = row.get("auc") or {}
    if schema.number(found, "value") is None:
        return tables.NONE
    return f"{found['value']:.3f} ({found['lo']:.3f}\u2013{found['hi']:.3f})"


def starred(row: Mapping[str, Any]) -> str:
    """The name of a group, with a star where it is too small to judge."""
    return row["name"] + (" *" if row.get("small") else "")
