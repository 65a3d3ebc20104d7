"""Figures and tables of the page of experiment `generation`, behind its answers.

Example::

    parts = generation_sections.sections(config, found)
"""

import math
from typing import Any

import numpy as np

from trustml.experiments import fairness_sections, fairness_texts
from trustml.report import fmt, gaps, sources, study, tables

MODEL, PEOPLE = "model", "people"
DRAWN = ("sentiment", "toxicity", "polarity, words")  # the others are in tables
_TOXIC = 0.5
_MOST = 220  # characters of a text that is shown


def sections(config, found) -> list[study.Section]:
    """What stands behind the cards."""
    quality = _qualities(found)
    out = [
        _domain(config.generation, name, scores, quality)
        for name, scores in found.domains.items()
    ]
    out += [_about(found, quality), _scorers(found)]
    if found.left_out:
        out.append(_left_out(found))
    if config.generation.examples:
        out.append(_examples(config, found))
    return out


def beyond(one) -> bool:
    """Whether a `spread.Beside` is more than chance gives."""
    return one.value > one.high and one.p_value <= 0.05


def ends(one, source: str = MODEL) -> tuple[str, str]:
    """Groups with the highest and the lowest mean, of those without a flag."""
    judged = [not flag for flag in one.flags[source]]
    value = np.where(judged, one.means[source].value, np.nan)
    if np.isnan(value).all():
        return "", ""
    high, low = int(np.nanargmax(value)), int(np.nanargmin(value))
    return named(one.groups[high]), named(one.groups[low])


def named(group: str) -> str:
    """'American_actors' -> 'American actors'."""
    return group.replace("_", " ")


def number(value: float) -> str:
    """Three digits with a true minus; 'n/a' where there is none."""
    if math.isnan(value):
        return "n/a"
    return fmt.signed(value, 3).replace("+", "")


def ratio(one) -> str:
    """A mean ratio with its interval and with what even texts would give."""
    said = number(one.found.mean)
    if not math.isnan(one.ends[0]):
        said += f" ({number(one.ends[0])} to {number(one.ends[1])})"
    if math.isnan(one.even.mean):
        return said
    return f"{said}; even texts {number(one.even.mean)}"


def withheld(one) -> str:
    """' (withheld: why)' of a scorer that is; '' of another."""
    return f" (withheld: {one.withheld})" if one.withheld else ""


def entry(means, g: int) -> dict[str, float]:
    """Mean of group g with its interval."""
    found = {name: float(getattr(means, name)[g]) for name in ("value", "lo", "hi")}
    return found


def _domain(spec, domain: str, scores, quality: str) -> study.Section:
    rows = [
        {
            "name": f"{name}: {source}",
            "value": one.apart[source].largest.value,
            "floor": one.apart[source].largest.high,
        }
        for name, one in scores.items()
        for source in (MODEL, PEOPLE)
    ]
    drawn = [
        (
            "How far groups lie apart, beside chance",
            gaps.gaps(rows, f"apart-{domain}"),
            "Largest minus smallest mean over groups. Grey bars: what it stays below "
            "in 95% of cases where groups are equal in truth and differ by their "
            "errors alone. Orange: beyond that.",
        )
    ]
    for name in DRAWN:
        if name in scores:
            drawn.append(_means(domain, name, scores[name]))
    return study.Section(
        f"Domain: {named(domain)}",
        figures=tuple(drawn),
        tables=(
            _apart(domain, scores, quality),
            _groups(spec, domain, scores, quality),
        ),
    )


def _means(domain, name, one) -> tuple[str, str, str]:
    rows: list[dict[str, Any]] = [
        {"name": named(group) + _star(one, g)}
        | {
            source: entry(one.means[source], g) | {"flagged": bool(flags[g])}
            for source, flags in one.flags.items()
        }
        for g, group in enumerate(one.groups)
    ]
    judged = [row[MODEL]["value"] for row in rows if not row[MODEL]["flagged"]]
    judged = [value for value in judged if not math.isnan(value)]
    half, band = one.apart[MODEL].largest.high / 2, None
    if judged and not math.isnan(half):
        middle = (max(judged) + min(judged)) / 2
        band = middle - half, middle + half
    drawn = sources.means(
        *(rows, (MODEL, PEOPLE)),
        label=_UNITS[name],
        name=f"{name.replace(', ', '-')}-{domain}",
        band=band,
    )
    caption = (
        "Each with its own interval, drawn over entities. If all the model's means lie "
        "in the grey band, groups are as far apart as chance puts them. Grey: too "
        "little to judge; *: of the model, of people or of both."
    )
    return f"{fmt.capital(name)} by group", drawn, caption


_UNITS = {
    "sentiment": "mean probability of positive",
    "toxicity": "mean probability of toxic",
    "polarity, words": "share about women minus share about men",
}


def _apart(domain, scores, quality) -> str:
    head = ("score", "texts of", "standard deviation", "largest gap", "beyond chance")
    rows = []
    for name, one in scores.items():
        for source in (MODEL, PEOPLE):
            found = one.apart[source]
            high, low = ends(one, source)
            rows.append(
                (
                    name,
                    source,
                    _beside(found.deviation),
                    _beside(found.largest),
                    fairness_sections.said(
                        found.largest.p_value, beyond(found.largest)
                    ),
                    f"{high} / {low}" if found.largest.value > 0 else tables.NONE,
                )
            )
    note = (
        "In brackets: by chance, the mean and the 95% quantile, and how often chance "
        "gives as much. Beyond chance: the largest gap is. Flagged groups are left "
        f"out. {quality}"
    )
    head = (*head, "highest / lowest")
    return tables.table(head, rows, f"Spread over groups, {named(domain)}", note)


def _beside(one) -> str:
    if math.isnan(one.value):
        return "n/a"
    if math.isnan(one.p_value):
        return f"{number(one.value)} (texts of a group do not differ: chance unknown)"
    by_chance = f"{number(one.mean)}, up to {number(one.high)}"
    return f"{number(one.value)} ({by_chance}; p {fmt.scientific(one.p_value)})"


def _groups(spec, domain, scores, quality) -> str:
    head = (
        *("score and group", "entities", "texts", "model", "people"),
        "model minus people",
    )
    rows = []
    for name, one in scores.items():
        for g, group in enumerate(one.groups):
            means = one.means[MODEL]
            rows.append(
                (
                    f"{name}: {named(group)}{_star(one, g)}",
                    f"{means.clusters[g]:,}",
                    f"{means.n[g]:,}",
                    _shown(means, g),
                    _shown(one.means[PEOPLE], g),
                    _shown(one.minus, g),
                )
            )
    note = "Intervals are of each group by itself; texts are those of the model."
    if any(_star(one, g) for one in scores.values() for g in range(len(one.groups))):
        note += (
            f" * Too little to judge: fewer than {spec.least} texts or "
            f"{spec.least_entities} entities, of the model, of people or of both."
        )
    return tables.folded(
        head, rows, f"Means of groups, {named(domain)}", f"{note} {quality}"
    )


def _about(found, quality: str) -> study.Section:
    rows = []
    for domain, of_source in found.equitability.items():
        for source, (one, *_) in of_source.items():
            counts = np.array(list(one.counts.values())).sum(axis=0)
            there = {g: r for g, r in one.ratios.items() if not math.isnan(r)}
            least = min(there, key=lambda g: there[g]) if there else ""
            rows.append(
                (
                    f"{named(domain)}: {source}",
                    *(f"{int(n):,}" for n in counts),
                    ratio(of_source[source]),
                    f"{number(one.least)} ({named(least)})" if least else "n/a",
                    f"{len(one.few)} of {len(one.ratios)}",
                )
            )
    head = (
        *("domain", "about men", "about women", "neither", "mean ratio"),
        *("smallest ratio", "groups with few"),
    )
    note = (
        "By he-words and she-words after the prompt. Ratio of a group: the rarer "
        "gender over the commoner, 1 is even; its mean over groups with interval over "
        "entities, which is biased downwards: even texts, as many, give less than 1 "
        "too. Few: less than 20 texts with a gender. The words know two genders."
    )
    made = tables.table(head, rows, "Texts about men and about women", note)
    return study.Section("Whom are the texts about?", tables=(made,))


def _scorers(found) -> study.Section:
    rows, said = [], []
    for one in found.scorers:
        said.append(f"{fmt.capital(one.name)}{withheld(one)}: {one.quality}.")
        if one.withheld:
            continue
        lost = [
            int(np.isnan(source.scores[one.name]).sum())
            for source in found.sources.values()
        ]
        rows.append((one.name, *(f"{n:,}" for n in lost)))
    note = "An empty text has none, nor one without a word that the scorer knows."
    caption = "Texts without a score"
    made = tables.table(("score", "of the model", "of people"), rows, caption, note)
    return study.Section(
        "How are texts scored?", tuple(said), tables=(made, _hidden(found))
    )


def _hidden(found) -> str:
    rows = [
        (
            f"{named(domain)}: {source}",
            f"{one.replaced:,}",
            f"{one.touched:,} of {one.texts:,}",
        )
        for domain, of_source in found.hidden.items()
        for source, one in of_source.items()
    ]
    note = (
        "Names of the entity, of the group and of its people; several in a row count "
        "once. The accuracy of sentiment is of film reviews, in which nothing was "
        "masked: how good the scorer is on masked texts is not known."
    )
    head = ("domain", "names replaced", "texts with one")
    return tables.table(head, rows, "What masked sentiment does not see", note)


def _left_out(found) -> study.Section:
    rows = [
        (named(item.entity), named(item.domain), named(item.group), f"{pieces:,}")
        for item, pieces in found.left_out
    ]
    head = ("entity", "domain", "group", "pieces of the prompt")
    note = (
        f"The model has room for {found.room}, the mark that begins a text among them."
    )
    caption = f"Prompts that are too long: {len(rows):,}"
    made = tables.folded(head, rows, caption, note)
    return study.Section("Which prompts were left out?", tables=(made,))


def _examples(config, found) -> study.Section:
    made, source = [], found.sources[MODEL]
    rng = np.random.default_rng([config.seed, 1])
    toxic = source.scores["toxicity"]
    for domain in found.domains:
        mine = [n for n, item in enumerate(source.items) if item.domain == domain]
        order = sorted(mine, key=lambda n: -np.nan_to_num(toxic[n], nan=-1.0))
        some = rng.permutation(np.array(mine)).tolist()
        chosen = dict.fromkeys(order[: config.generation.examples])
        chosen |= dict.fromkeys(some[: config.generation.examples])
        rows = []
        for n in chosen:
            item, text = source.items[n], source.texts[n]
            text = text if len(text) <= _MOST else text[: _MOST - 1] + "\u2026"
            if config.generation.mask and toxic[n] >= _TOXIC:
                text = fairness_texts.masked(text)
            rows.append(
                (
                    f"{item.prompt} \u2026 {text or '(nothing)'}",
                    named(item.group),
                    number(float(toxic[n])),
                    number(float(source.scores["sentiment"][n])),
                )
            )
        head = ("prompt \u2026 the model", "group", "toxicity", "sentiment")
        note = "The highest scores for toxicity, then some at random."
        if config.generation.mask:
            note += f" Texts that score {_TOXIC} or more show first letters only."
        caption = f"Texts, {named(domain)}"
        made.append(tables.table(head, rows, caption, note))
    return study.Section("Examples", tables=tuple(made))


def _qualities(found) -> str:
    used = [one for one in found.scorers if one.figures and not one.withheld]
    said = [f"{one.name}: {one.quality}" for one in used]
    return "Scorers: " + "; ".join(dict.fromkeys(said)) + "."


def _star(one, g: int) -> str:
    """' *' where there is too little of a group, of the model or of people."""
    return " *" if any(flags[g] for flags in one.flags.values()) else ""


def _shown(means, g: int) -> str:
    if math.isnan(means.value[g]) or math.isnan(means.lo[g]):
        return number(means.value[g])  # without an interval, the mean alone
    return f"{number(means.value[g])} ({number(means.lo[g])} to {number(means.hi[g])})"
