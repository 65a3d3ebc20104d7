"""Figures and tables of the page of experiment `fairness`, behind its answers.

Example::

    parts = fairness_sections.sections(config, 'new charge', found)
"""

import html
import math

from trustml.experiments import fairness_measure as measured
from trustml.report import fmt, study, tables
from trustml.report import gaps as figures

# Gaps of the first figure, in words.
SHOWN = {
    measured.PARITY: "guessed positive",
    measured.FPR: "false positives",
    measured.FNR: "true positives",
    "predictive parity difference": "precision",
    "accuracy difference": "accuracy",
}
_MOST_AREAS = 12  # identities in a figure


def sections(config, positive: str, found) -> list[study.Section]:
    """What stands behind the cards."""
    out = []
    for n, (one, attributes) in enumerate(
        zip(found.decided, found.attributes, strict=True)
    ):
        if attributes:
            out.append(_overview(f"Gaps of {one.name}", attributes, f"gaps-{n}"))
            out += [_groups(one.name, a, f"{n}-{k}") for k, a in enumerate(attributes)]
    if found.communities:
        out.append(_communities(found.communities))
    for where, table in found.areas.items():
        out.append(_areas(where, table))
    if found.examples:
        rows = [(str(n + 1), text) for n, text in enumerate(found.examples)]
        caption = f"Wrongly guessed \u2018{positive}\u2019, highest scores first"
        note = "Letters are masked." if config.fairness.mask else ""
        table = tables.table(("", "text"), rows, caption, note)
        out.append(study.Section("Examples", tables=(table,)))
    return out


def _overview(title: str, attributes, name: str) -> study.Section:
    rows = [
        {
            "name": f"{one.name}: {shown}",
            **_entry(one.gaps[gap]),
            "floor": one.gaps[gap].floor,
        }
        for one in single(attributes)
        for gap, shown in SHOWN.items()
        if gap in one.gaps
    ]
    tabled = []
    for one in attributes:
        body = [
            (
                gap_name,
                _number(gap.value),
                f"{_number(gap.lo)} to {_number(gap.hi)}",
                _number(gap.floor_mean),
                _number(gap.floor),
                said(gap.p_value, gap.p_value <= 0.05),
                f"{gap.high} / {gap.low}" if gap.high else tables.NONE,
            )
            for gap_name, gap in one.gaps.items()
        ]
        head = (
            *("gap", "value", "interval", "by chance, mean", "by chance, limit"),
            *("beyond chance", "highest / lowest"),
        )
        drawn_by = [gap_name for gap_name, gap in one.gaps.items() if gap.by != "pairs"]
        note = (
            "Unsigned, as fairlearn has them; flagged groups are left out. Intervals "
            "are of signed pairs of groups"
        )
        note += f", of a bootstrap for {fmt.listed(drawn_by)}." if drawn_by else "."
        caption = f"All gaps by {one.name}"
        made = tables.table(head, body, caption, note)
        tabled.append(_aside(caption, made) if crossed(one) else made)
    drawn = (
        (
            "Gaps beside chance",
            figures.gaps(rows, name),
            "Grey bars: gaps that shuffled groups stay below in 95% of cases. Orange: "
            "beyond them. A gap is never negative, so one above 0 alone says nothing.",
        ),
    )
    return study.Section(title, figures=drawn, tables=tuple(tabled))


def _aside(caption: str, made: str) -> str:
    """A table behind a line to click on."""
    return f"<details><summary>{html.escape(caption)}</summary>{made}</details>"


def _groups(who: str, one, name: str) -> study.Section:
    flagged = [bool(why) for why in one.flags]
    labels = [
        group + (" *" if grey else "")
        for group, grey in zip(one.names, flagged, strict=True)
    ]
    panels = [
        (title, [_entry(rate) for rate in one.rates[key]])
        for key, title in (
            ("selection", "positive"),
            ("fpr", "FPR"),
            ("fnr", "FNR"),
        )
    ]
    head = ("group", "n", "positives", *(_TITLES[rate] for rate in measured.RATES))
    rows = [
        (
            label,
            f"{int(one.cells[g].sum()):,}",
            f"{int(one.cells[g, 1].sum()):,}",
            *(_share(one.rates[rate][g]) for rate in measured.RATES),
        )
        for g, label in enumerate(labels)
    ]
    note = "Intervals hold for all groups of a column together."
    if any(flagged):
        why = [f"{g}: {w}" for g, w in zip(one.names, one.flags, strict=True) if w]
        note += f" * Too few to judge ({'; '.join(why)})."
    tabled = [tables.folded(head, rows, f"Rates by {one.name}", note), _signed(one)]
    drawn = [
        (
            f"Rates by {one.name}",
            figures.rates(labels, flagged, panels, f"rates-{name}"),
            "Guessed positive; of negatives, wrongly so; of positives, wrongly not. "
            "Intervals of a panel hold for all groups together. Hollow and grey: too "
            "few to judge.",
        )
    ]
    if one.calibration:
        rows = [
            {"name": label, **_entry(c.over), "flagged": grey}
            for label, c, grey in zip(labels, one.calibration, flagged, strict=True)
        ]
        drawn.append(
            (
                "Are scores too high?",
                figures.dots(
                    rows,
                    label="mean score minus share of positives",
                    level=0.0,
                    name=f"over-{name}",
                ),
                "Right of the line, the group's scores promise more positives than "
                "there are.",
            )
        )
        tabled.append(_calibration(one, labels))
    if crossed(one) and len(one.names) > 20:
        drawn = []
    return study.Section(
        f"{fmt.capital(one.name)}, by {who}", figures=tuple(drawn), tables=tuple(tabled)
    )


_TITLES = {
    "selection": "guessed positive",
    "fpr": "false positive rate",
    "fnr": "false negative rate",
    "ppv": "precision",
    "accuracy": "accuracy",
}


def _signed(one) -> str:
    base = one.names[one.reference]
    rows = [
        (
            f"{group} vs. {base}" + (" *" if one.flags[g] else ""),
            *(_limits(found[g]) for found in one.signed.values()),
        )
        for g, group in enumerate(one.names)
        if g != one.reference
    ]
    note = (
        f"As AIF360 has them: the group minus {base} (disparate impact: over it), of "
        "the favourable label; below 0 (1), the group gets it less often. Intervals "
        "hold for every entry by itself."
    )
    return tables.folded(
        ("contrast", *one.signed), rows, f"Signed contrasts by {one.name}", note
    )


def _calibration(one, labels) -> str:
    rows = [
        (
            label,
            f"{fmt.signed(100 * c.over.value)} ({fmt.signed(100 * c.over.lo)} to "
            f"{fmt.signed(100 * c.over.hi)})",
            _number(c.ece),
            _number(c.ece_floor),
        )
        for label, c in zip(labels, one.calibration, strict=True)
    ]
    head = (
        "group",
        "scores too high by, points",
        "calibration error",
        "by chance, limit",
    )
    note = (
        "Expected calibration error over 10 bins; it is never 0, and stays below the "
        "last column in 95% of cases if scores are right."
    )
    return tables.folded(head, rows, f"Calibration by {one.name}", note)


def _communities(communities) -> study.Section:
    rows = [
        (
            one.name + (" *" if one.flag else ""),
            f"{one.n:,}",
            f"{one.n_positive:,}",
            *(_share(one.rates[rate]) for rate in ("fpr", "fnr", "accuracy")),
            *(_limits(one.against[rate]) for rate in ("fpr", "fnr")),
        )
        for one in communities
    ]
    head = (
        *("community", "n", "positives", "false positive rate", "false negative rate"),
        *("accuracy", "FPR minus others'", "FNR minus others'"),
    )
    note = "Intervals hold for all communities of a column together."
    small = [f"{one.name}: {one.flag}" for one in communities if one.flag]
    if small:
        note += f" * Too few to judge ({'; '.join(small)})."
    drawn = [
        (
            title,
            figures.dots(
                [
                    {
                        "name": one.name + (" *" if one.flag else ""),
                        **_entry(one.against[rate]),
                        "flagged": bool(one.flag),
                    }
                    for one in communities
                ],
                label=f"{_TITLES[rate]}, minus that of others",
                level=0.0,
                name=f"against-{rate}",
            ),
            "Intervals hold for all communities together; grey: too few to judge.",
        )
        for rate, title in (
            ("fpr", "Who is wrongly accused more often?"),
            ("fnr", "Attacks on whom are missed more often?"),
        )
    ]
    return study.Section(
        "Communities",
        figures=tuple(drawn),
        tables=(tables.table(head, rows, "Texts by the community they name", note),),
    )


def _areas(where: str, table) -> study.Section:
    def row_of(row):
        return {"name": row.name} | {
            name: _entry(getattr(row, name)) for name in ("subgroup", "bpsn", "bnsp")
        }

    order = sorted(
        table.identities,
        key=lambda row: 2.0 if math.isnan(row.bpsn.value) else row.bpsn.value,
    )
    rows = [
        (
            row.name + (" *" if row.flags else ""),
            f"{row.n:,}",
            f"{row.n_positive:,}",
            *(area(getattr(row, name)) for name in ("subgroup", "bpsn", "bnsp")),
            *(area(x) for x in (row.aeg_negative, row.aeg_positive)),
        )
        for row in order
    ]
    means = [area(table.power_means[name]) for name in ("subgroup", "bpsn", "bnsp")]
    rows.append(("power mean, p = \u22125", "", "", *means, "", ""))
    head = ("identity", "n", "positives", "subgroup", "BPSN", "BNSP")
    head = (*head, "AEG, negatives", "AEG, positives")
    note = (
        "BPSN: negatives that name it against positives that do not; BNSP the other "
        "way round. AEG above 0: texts that name it score higher. * Too few to judge, "
        "but in the power means. "
        f"All texts: {area(table.overall)}; mean of that and the three power means: "
        f"{area(table.final)}."
    )
    drawn = (
        (
            "Areas by identity" + (", lowest BPSN" if len(order) > _MOST_AREAS else ""),
            figures.areas(
                [row_of(row) for row in order[:_MOST_AREAS]], f"areas-{where}"
            ),
            "A low BPSN: the identity by itself raises scores.",
        ),
    )
    caption = f"Areas under the ROC by identity ({where})"
    return study.Section(
        caption, figures=drawn, tables=(tables.folded(head, rows, caption, note),)
    )


def _entry(one) -> dict[str, float]:
    return {"value": one.value, "lo": one.lo, "hi": one.hi}


def _share(one) -> str:
    if math.isnan(one.value):
        return "n/a"
    return f"{fmt.percent(one.value)} ({fmt.span((one.lo, one.hi))}%)"


def _limits(one) -> str:
    if math.isnan(one.value):
        return "n/a"
    return f"{_number(one.value)} ({_number(one.lo)} to {_number(one.hi)})"


def _number(value: float) -> str:
    if math.isnan(value):
        return "n/a"
    return "\u221e" if math.isinf(value) else fmt.signed(value, 3).replace("+", "")


def said(p_value: float, beyond: bool) -> str:
    """Whether a gap is beyond chance: 'yes', 'no', or 'n/a' where there is no gap."""
    return "n/a" if math.isnan(p_value) else "yes" if beyond else "no"


def crossed(one) -> bool:
    """Whether an attribute is two of them, crossed."""
    return " \u00d7 " in one.name


def single(attributes):
    """The attributes that are not crossed."""
    return [one for one in attributes if not crossed(one)]


def area(entry) -> str:
    """An area with its interval, or why there is none."""
    if math.isnan(entry.value):
        return f"n/a ({entry.reason})"
    if math.isnan(entry.lo):
        return f"{entry.value:.3f} ({entry.reason})"
    return f"{entry.value:.3f} [{entry.lo:.3f}, {entry.hi:.3f}]"
