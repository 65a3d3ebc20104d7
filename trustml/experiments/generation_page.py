"""The report of experiment `generation`: answers first, then figures and tables.

Everything here words what `trustml.experiments.generation` measured.
"""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from trustml import specs
from trustml.experiments import generation_sections as parts
from trustml.report import fmt, study, words

MODEL, PEOPLE = parts.MODEL, parts.PEOPLE

LIMITS = (
    "The model of this page speaks for no other: a small one trained for minutes "
    "writes poor sentences, and what it says of a group follows the few words of the "
    "prompt. Set model.checkpoint to a published GPT-2 for one that people use.",
    "Scores are made by models and word lists with errors of their own, stated beside "
    "them. The sentiment scorer knows film reviews; the toxicity scorer learnt from "
    "comments, half of them toxic, so its probabilities are no rates of the world, "
    "and it takes the naming of some identities for toxic.",
    "Masked sentiment hides names from the sentiment scorer. It is no measure of "
    "regard towards a group, which needs people's ratings of that.",
    "Groups differ in what there is to say of them: a spread beyond chance says that "
    "texts differ between groups, not that they are unfair. The column of people shows "
    "the same figures for sentences of Wikipedia, which are fair by no definition.",
    "A gap within chance is not shown to be none: one as large as the limit of chance "
    "might be there and not be seen.",
    "Prompts are in English, mostly about public persons and ideas of the United "
    "States; gender is actors and actresses. Whom the prompts leave out is not seen.",
    "Several texts of a prompt and several prompts of an entity are no independent "
    "evidence; intervals and chance are over entities. A group of few entities says "
    "little of others, whatever its interval, hence the flags; intervals are of each "
    "figure by itself.",
    "BOLD is CC BY-SA 4.0 and is read from its path; prompts and sentences quoted here "
    "stay under that licence.",
)


def write(
    workdir: str | os.PathLike,
    frame: Mapping[str, Any],
    config: specs.RunConfig,
    found: Any,
) -> tuple[pathlib.Path, list[str]]:
    """report.json and report.html.

    Args:
      workdir: of the run.
      frame: title, machine, data, task.
      config: of the run.
      found: a `generation.Found`.

    Returns:
      The path of report.html, and the headlines of its cards.
    """
    level = config.report.level
    cards = (_apart(found), _against(found, level), _about(found), _good(found))
    limits = list(LIMITS)
    if not config.generation.ratings:
        limits.append(
            "Norms of words (valence, arousal, dominance) were left out: published "
            "lexicons may not be passed on. Set generation.ratings to a TSV of yours."
        )
    path = study.write(
        *(workdir, frame, cards, parts.sections(config, found)),
        numbers=numbers(config, found),
        methods=methods(config, found),
        limits=tuple(limits),
    )
    return path, [f"{card.question} {card.headline}" for card in cards]


_NOT_JUDGED = "not judged, fewer than two groups are large enough or no text differs"


def _apart(found) -> words.Card:
    judged = {
        source: [
            (domain, name, one)
            for domain, scores in found.domains.items()
            for name, one in scores.items()
            if not np.isnan(one.apart[source].largest.p_value)
        ]
        for source in (MODEL, PEOPLE)
    }
    of = {
        source: [p for p in pairs if parts.beyond(p[2].apart[source].largest)]
        for source, pairs in judged.items()
    }
    headline = (
        f"In {len(of[MODEL])} of {len(judged[MODEL])} pairs of a domain and a score "
        "the largest gap between groups is beyond chance; in sentences of people, in "
        f"{len(of[PEOPLE])} of {len(judged[PEOPLE])}."
    )
    points = []
    for domain in found.domains:
        for source, where in ((MODEL, domain), (PEOPLE, f"{domain}, people")):
            said = [
                f"{name} {parts.number(one.apart[source].largest.value)} (chance up to "
                f"{parts.number(one.apart[source].largest.high)}; highest "
                f"{parts.ends(one, source)[0]}, lowest {parts.ends(one, source)[1]})"
                for of_domain, name, one in of[source]
                if of_domain == domain
            ]
            if said or source == MODEL:
                some = any(of_domain == domain for of_domain, *_ in judged[source])
                nothing = "nothing beyond chance" if some else _NOT_JUDGED
                listed = "; ".join(said) or nothing
                points.append(f"{fmt.capital(parts.named(where))}: {listed}.")
    if not judged[MODEL]:
        headline = "No domain has two groups that are large enough to compare."
    tone = "warn" if of[MODEL] else "plain"
    question = "Does the model speak differently of different groups?"
    return words.Card(question, headline, tuple(points), tone=tone)


def _against(found, level: float) -> words.Card:
    """Where the model differs most from people, by group."""
    worse = {"toxicity": 1, "sentiment": -1, "masked_sentiment": -1}
    points, sure, total = [], 0, 0
    for name, sign in worse.items():
        rows = [
            (sign * one.minus.value[g], group, domain, one.minus, g)
            for domain, scores in found.domains.items()
            for one in (scores[name],)
            for g, group in enumerate(one.groups)
            if not any(flags[g] for flags in one.flags.values())
            and not np.isnan(one.minus.lo[g])
        ]
        if not rows:
            continue
        away = [
            row
            for row in rows
            if (row[3].lo[row[4]] > 0 if sign > 0 else row[3].hi[row[4]] < 0)
        ]
        total, sure = total + len(rows), sure + len(away)
        _, group, domain, minus, g = max(rows, key=lambda row: row[0])
        points.append(
            f"{fmt.capital(name.replace('_', ' '))}: surely worse for {len(away)} of "
            f"{len(rows)} groups; most for {parts.named(group)} "
            f"({parts.number(minus.value[g])}, {parts.number(minus.lo[g])} to "
            f"{parts.number(minus.hi[g])})."
        )
    headline = (
        f"In {sure} of {total} comparisons the interval of the model minus people lies "
        f"on the worse side of 0; {100 * (1 - level) / 2:.3g}% would by chance."
    )
    if not total:
        headline = "No group is large enough to judge."
    question = "Does it write worse of groups than people do?"
    return words.Card(question, headline, tuple(points))


def _about(found) -> words.Card:
    points = []
    for domain, of_source in found.equitability.items():
        said = []
        for source, one in of_source.items():
            men, women, _ = np.array(list(one.found.counts.values())).sum(axis=0)
            said.append(f"{source} {men:,} : {women:,}, mean ratio {parts.ratio(one)}")
        points.append(f"{fmt.capital(parts.named(domain))}: {'; '.join(said)}.")
    men, women = (
        sum(
            row[side]
            for of_source in found.equitability.values()
            for row in of_source[MODEL].found.counts.values()
        )
        for side in (0, 1)
    )
    headline = f"{men:,} texts of the model are about men, {women:,} about women."
    question = "Whom are the texts about, men or women?"
    return words.Card(question, headline, tuple(points))


def _good(found) -> words.Card:
    model = found.model
    trained = f"trained on {model.trained_on:,} tokens of Wikipedia here"
    points = [
        f"{fmt.capital(model.name)}, {model.size:,} parameters, "
        f"{trained if model.trained_on else 'published'}: perplexity "
        f"{model.perplexity:.1f} a piece of a word, {model.bits:.2f} bits a character, "
        "on text held out."
    ]
    points += [
        f"{fmt.capital(one.name)}{parts.withheld(one)}: {one.quality}."
        for one in found.scorers
        if one.figures and one.name != "masked_sentiment"
    ]
    lengths = {
        name: np.mean([len(text.split()) for text in source.texts])
        for name, source in found.sources.items()
    }
    points.append(
        f"Mean length after the prompt: {lengths[MODEL]:.1f} words of the model, "
        f"{lengths[PEOPLE]:.1f} of people."
    )
    missed = [
        one.name
        for one, quality in ((one, one.figures) for one in found.scorers)
        if "floor" in quality
        and (quality.get("accuracy") or quality.get("auc")).value < quality["floor"]
    ]
    headline = "Every trained scorer reaches the quality that is asked of it."
    if missed:
        headline = f"Too poor to lean on: {fmt.listed(missed)}."
    question = "How good are the model and the scores?"
    return words.Card(
        question, headline, tuple(points), tone="warn" if missed else "plain"
    )


def methods(config, found) -> tuple[str, ...]:
    """How it was measured, a sentence each."""
    spec, level = config.generation, f"{100 * config.report.level:g}%"
    prompts = len(found.sources[PEOPLE].items)
    most = f"at most {spec.prompts:,} of each group, chosen by seed {config.seed}"
    cut = f"temperature {spec.temperature:g}"
    cut += f", top k {spec.top_k}" if spec.top_k else ""
    cut += f", top p {spec.top_p:g}" if spec.top_p < 1 else ""
    each = f"{spec.samples} {'text' if spec.samples == 1 else 'texts'} each"
    whole = f"{found.whole:,} that their prompt does not begin are scored whole"
    whole = f"; {whole}" if found.whole else ""
    return (
        f"{prompts:,} prompts ({most}), {each}, {cut}, at most "
        f"{spec.max_new_tokens} tokens and the first sentence of them.",
        "Only what follows the prompt is scored. People: the sentence of Wikipedia "
        f"that the prompt was cut from, less the prompt{whole}.",
        *_too_long(spec, found),
        "Masked sentiment: names of the entity, of the group and of its people are "
        "replaced by XYZ; pronouns and what else gives a group away stay. The accuracy "
        "beside it is of reviews that hold no such names.",
        f"Means are over texts; intervals at {level} are quantiles of "
        f"{spec.replicates:,} draws of entities with all their texts, stretched where "
        "entities are few. The model minus people is from the same draws.",
        "By chance: means of groups that are equal in truth and differ by their errors "
        f"alone, over entities, {spec.replicates:,} times; an entity of two groups is "
        "one of each. Standard deviation is over the groups there are.",
        f"Flagged are groups with fewer than {spec.least} texts or "
        f"{spec.least_entities} entities, or with one that has most texts (fewer than "
        "three effective ones), for the model and for people each; they are left out "
        "of that one's spreads.",
    )


def _too_long(spec, found) -> tuple[str, ...]:
    """What was left out, in a sentence; none where nothing was."""
    if not (out := found.left_out):
        return ()
    what = "prompt that is" if len(out) == 1 else "prompts that are"
    return (
        f"Left out of what was chosen: {len(out):,} {what} longer than the "
        f"{found.room} pieces of words, with the mark, that {spec.max_new_tokens} new "
        "tokens leave to it; all are in a table above.",
    )


def numbers(config, found) -> dict[str, Any]:
    """What report.json holds of it."""
    model = found.model
    return {
        "model": {
            "name": model.name,
            "parameters": model.size,
            "perplexity": model.perplexity,
            "bits_per_character": model.bits,
            "tokens": model.trained_on,
        },
        "scorers": [
            {
                "name": one.name,
                "quality": one.quality,
                "figures": one.figures,
                "withheld": one.withheld,
            }
            for one in found.scorers
        ],
        "prompts": len(found.sources[PEOPLE].items),
        "texts": len(found.sources[MODEL].items),
        "left_out": [
            one.item._asdict() | {"pieces": one.pieces} for one in found.left_out
        ],
        "hidden": found.hidden,
        "domains": found.domains,
        "equitability": {
            domain: {
                source: one.found._asdict()
                | {"lo": one.ends[0], "hi": one.ends[1], "even": one.even}
                for source, one in of_source.items()
            }
            for domain, of_source in found.equitability.items()
        },
    }
