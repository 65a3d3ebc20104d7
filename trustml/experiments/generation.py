"""Experiment `generation`: what does a language model say about whom?

    text -> language model -> continuations of BOLD's prompts -> scores -> groups
                              sentences of people ------------^

Prompts begin sentences about people and ideas of groups: actors and actresses, four
races, professions, political and religious ideas. What the model says next is scored
(`text_scorers`), and so is what people wrote after the same words: a group about which
people write unkindly is no fault of the model, one that it treats worse than people do
may be. Of every domain: mean of each group with an interval, drawn over entities; how
far groups lie apart, beside what chance gives; and the model minus people.

Only what follows the prompt is scored, on both sides. A sentence that its prompt does
not begin (61 of 23,679) is scored whole.

Example::

    generation.run(config.from_config_dict(cfg), pathlib.Path('runs/a'))

References: https://arxiv.org/abs/2101.11718 (BOLD).
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from trustml import report, specs
from trustml.data import bold
from trustml.experiments import (
    describe,
    finished,
    generation_page,
    generation_sections,
    text_model,
    text_scorers,
)
from trustml.fairness import polarity, spread

MODEL, PEOPLE = generation_sections.MODEL, generation_sections.PEOPLE


class Scored(NamedTuple):
    """One score in one domain.

    Attributes:
      groups: names, G of them.
      flags: of each, why there is too little of it, in words; '' if there is not.
      means: source -> `spread.Means`, of `MODEL` and `PEOPLE`.
      apart: source -> `spread.Spread` of the groups without a flag.
      minus: `spread.Means` of the model minus people.
      missing: source -> texts without a score.
    """

    groups: tuple[str, ...]
    flags: tuple[str, ...]
    means: dict[str, spread.Means]
    apart: dict[str, spread.Spread]
    minus: spread.Means
    missing: dict[str, int]


class Texts(NamedTuple):
    """Texts of one source, with the prompt that each goes on from.

    Attributes:
      items: prompts, one a text.
      texts: without the prompt.
      scores: name of a score -> float[N], nan where a text has none.
    """

    items: list[bold.Item]
    texts: list[str]
    scores: dict[str, np.ndarray]


class Found(NamedTuple):
    """All that one run measured.

    Attributes:
      model: the language model.
      scorers: in the order of the page.
      sources: source -> its texts.
      domains: domain -> name of a score -> `Scored`.
      equitability: domain -> source -> ratios of M to F by words, with its interval.
      whole: sentences of people that their prompt does not begin.
    """

    model: text_model.TextModel
    scorers: list[text_scorers.Scorer]
    sources: dict[str, Texts]
    domains: dict[str, dict[str, Scored]]
    equitability: dict[str, dict[str, tuple[polarity.Equitability, tuple]]]
    whole: int


def run(config: specs.RunConfig, workdir: pathlib.Path) -> pathlib.Path:
    """Trains, samples, scores, writes texts.jsonl and the report.

    Scorers are resumed, the language model and its texts are not.

    Returns:
      The path of report.html.
    """
    if page := finished.page(config, workdir):
        return page
    everything = bold.read()
    chosen = choose(config, everything)
    items = [everything[n] for n in chosen]
    taken = set(chosen)
    known = [
        item
        for n, item in enumerate(everything)
        if item.domain == "gender" and n not in taken
    ] or [item for item in everything if item.domain == "gender"]
    scorers = text_scorers.make(config, workdir, known)
    for one in scorers:
        if one.name != "masked_sentiment":  # as sentiment
            print(f"{one.name}: {one.quality}", flush=True)
    model = text_model.make(config, workdir)
    print(
        f"{model.name}: {model.size:,} parameters, perplexity {model.perplexity:.1f} a "
        f"piece, {model.bits:.2f} bits a character, held out",
        flush=True,
    )
    said = text_model.continuations(
        config, model, [item.prompt for item in items], chosen, workdir
    )
    found = measure(config, items, said, scorers, model)
    report.put(workdir / "texts.jsonl", lines(found))
    title = f"What is said about whom? {model.name}"
    frame = describe.machine(title) | {
        "data": {
            "name": "BOLD, prompts and sentences of Wikipedia",
            "source": "github.com/amazon-science/bold; Dhamala et al. 2021",
            "licence": "CC BY-SA 4.0; read from its path, no part of this package",
            "counts": {"test": len(items)},
        },
        "task": {"model": model.name, "parameters": model.size},
    }
    path, headlines = generation_page.write(workdir, frame, config, found)
    print("\n".join(headlines))
    print(f"report: {path}")
    return path


def choose(config: specs.RunConfig, items: Sequence[bold.Item]) -> list[int]:
    """Places of the prompts that are continued, in order of domains and groups."""
    spec, of = config.generation, {}
    for n, item in enumerate(items):
        if item.domain in spec.domains:
            of.setdefault((item.domain, item.group), []).append(n)
    out = []
    for place, key in enumerate(sorted(of, key=lambda k: spec.domains.index(k[0]))):
        rng = np.random.default_rng([config.seed, place])
        mine = np.array(of[key])
        out += np.sort(rng.permutation(mine)[: spec.prompts]).tolist()
    return out


def rest(item: bold.Item) -> tuple[str, bool]:
    """What people wrote after the prompt, and whether the prompt begins it."""
    for prompt in (item.prompt, item.prompt.lstrip('"')):
        if item.wikipedia.startswith(prompt):
            return item.wikipedia[len(prompt) :].strip(), True
    return item.wikipedia.strip(), False


def lines(found: "Found") -> str:
    """All texts with their scores as JSONL; null where a text has no score."""
    out = []
    for source, part in found.sources.items():
        for n, (item, text) in enumerate(zip(part.items, part.texts, strict=True)):
            scores = {name: float(values[n]) for name, values in part.scores.items()}
            row = {"source": source, "domain": item.domain, "group": item.group}
            row |= {"entity": item.entity, "prompt": item.prompt, "text": text}
            known = {name: None if x != x else x for name, x in scores.items()}
            out.append(json.dumps(row | {"scores": known}, ensure_ascii=False))
    return "\n".join(out) + "\n"


def measure(
    config: specs.RunConfig,
    items: Sequence[bold.Item],
    said: Sequence[Sequence[str]],
    scorers: list[text_scorers.Scorer],
    model: text_model.TextModel,
) -> Found:
    """Scores texts of the model and of people, and sets groups side by side.

    Args:
      config: `generation`, `report.level` and `seed` count.
      items: prompts.
      said: of each, the texts of the model.
      scorers: of `text_scorers.make`.
      model: that said it.
    """
    people = [rest(item) for item in items]
    of_model = [
        (item, text) for item, texts in zip(items, said, strict=True) for text in texts
    ]
    of_people = [(item, text) for item, (text, _) in zip(items, people, strict=True)]
    both = [*of_model, *of_people]
    scores = {
        one.name: one.score([text for _, text in both], [item for item, _ in both])
        for one in scorers
    }
    sources, start = {}, 0
    for name, pairs in ((MODEL, of_model), (PEOPLE, of_people)):
        part = slice(start, start + len(pairs))
        start += len(pairs)
        sources[name] = Texts(
            [item for item, _ in pairs],
            [text for _, text in pairs],
            {score: values[part] for score, values in scores.items()},
        )
    domains, ratios = {}, {}
    for domain in dict.fromkeys(item.domain for item in items):
        parts = {name: _of_domain(source, domain) for name, source in sources.items()}
        domains[domain] = {one.name: scored(config, parts, one.name) for one in scorers}
        ratios[domain] = {name: _ratios(config, part) for name, part in parts.items()}
    whole = sum(not begins for _, begins in people)
    return Found(model, scorers, sources, domains, ratios, whole)


def scored(config: specs.RunConfig, parts: dict[str, Texts], name: str) -> Scored:
    """One score of the texts of one domain, by both sources."""
    spec, level = config.generation, config.report.level
    options: dict[str, Any] = {
        "replicates": spec.replicates,
        "level": level,
        "seed": config.seed,
    }
    tallies = {
        source: spread.tally(
            part.scores[name],
            [item.group for item in part.items],
            [item.entity for item in part.items],
        )
        for source, part in parts.items()
    }
    means = {source: spread.means(one, **options) for source, one in tallies.items()}
    flags = tuple(
        _flag(spec, int(n), int(m))
        for n, m in zip(means[MODEL].n, means[MODEL].clusters, strict=True)
    )
    kept = np.array([not flag for flag in flags])
    # The noise floor is a 95% quantile, whatever the level of intervals.
    options.pop("level")
    return Scored(
        tallies[MODEL].groups,
        flags,
        means,
        {s: spread.over_groups(one, kept, **options) for s, one in tallies.items()},
        spread.differences(tallies[MODEL], tallies[PEOPLE], level=level, **options),
        {source: int(one.missing.sum()) for source, one in tallies.items()},
    )


def _flag(spec: specs.GenerationSpec, texts: int, entities: int) -> str:
    """Why a group is too small to judge, in words; '' if it is not."""
    said = [f"{texts} texts"] if texts < spec.least else []
    if entities < spec.least_entities:
        said.append(f"{entities} {'entity' if entities == 1 else 'entities'}")
    return ", ".join(said)


def _of_domain(source: Texts, domain: str) -> Texts:
    rows = [n for n, item in enumerate(source.items) if item.domain == domain]
    return Texts(
        [source.items[n] for n in rows],
        [source.texts[n] for n in rows],
        {name: values[rows] for name, values in source.scores.items()},
    )


def _ratios(config, part: Texts):
    kinds = [polarity.unigram(text) for text in part.texts]
    groups = [item.group for item in part.items]
    found = polarity.equitability(kinds, groups)
    ends = polarity.equitability_interval(
        kinds,
        groups,
        [item.entity for item in part.items],
        replicates=config.generation.replicates,
        level=config.report.level,
        seed=config.seed,
    )
    return found, ends
