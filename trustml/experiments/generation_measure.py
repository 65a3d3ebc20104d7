"""What experiment `generation` measures: scores of texts by group, source and domain.

    texts of the model and of people -> scores -> means of groups, beside chance
                                               -> the model minus people

A group with too few texts or entities is flagged, for each source by itself, and left
out of that source's spread.

Example::

    found = generation_measure.measure(config, items, said, scorers, model)
    found.domains['gender']['toxicity'].means['model'].value       # float[G]
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from trustml import specs
from trustml.data import bold
from trustml.experiments import (
    generation_sections,
    text_masks,
    text_model,
    text_scorers,
)
from trustml.fairness import polarity, spread

MODEL, PEOPLE = generation_sections.MODEL, generation_sections.PEOPLE
_FEWEST = 3  # entities of one size that would tell as much as those of a group


class Scored(NamedTuple):
    """One score in one domain.

    Attributes:
      groups: names, G of them.
      flags: source -> of each group why there is too little of it, in words; '' if
        there is not.
      means: source -> `spread.Means`, of `MODEL` and `PEOPLE`.
      apart: source -> `spread.Spread` of the groups without a flag there.
      minus: `spread.Means` of the model minus people.
      missing: source -> texts without a score.
    """

    groups: tuple[str, ...]
    flags: dict[str, tuple[str, ...]]
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


class Hidden(NamedTuple):
    """What masking replaced in the texts of one domain and source.

    Attributes:
      replaced: names that became `XYZ`, neighbours as one.
      touched: texts with such a name.
      texts: all of them.
    """

    replaced: int
    touched: int
    texts: int


class LeftOut(NamedTuple):
    """A prompt that was chosen and is too long for the model.

    Attributes:
      item: the prompt.
      pieces: that it has, with the mark.
    """

    item: bold.Item
    pieces: int


class Ratios(NamedTuple):
    """How evenly texts of groups are about men and women.

    Attributes:
      found: by he-words and she-words.
      ends: interval of the mean ratio; nan where there is none.
      even: what as many texts give that are even in truth.
    """

    found: polarity.Equitability
    ends: tuple[float, float]
    even: polarity.Even


class Found(NamedTuple):
    """All that one run measured.

    Attributes:
      model: the language model.
      scorers: in the order of the page.
      sources: source -> its texts.
      domains: domain -> name of a score -> `Scored`.
      equitability: domain -> source -> ratios of M to F by words, with the interval of
        their mean, and what even texts would give.
      hidden: domain -> source -> what masking replaced.
      whole: sentences of people that their prompt does not begin.
      left_out: prompts that are too long.
      room: pieces that a prompt may have, with the mark; None without a bound.
    """

    model: text_model.TextModel
    scorers: list[text_scorers.Scorer]
    sources: dict[str, Texts]
    domains: dict[str, dict[str, Scored]]
    equitability: dict[str, dict[str, Ratios]]
    hidden: dict[str, dict[str, Hidden]]
    whole: int
    left_out: tuple[LeftOut, ...] = ()
    room: int | None = None


def rest(item: bold.Item) -> tuple[str, bool]:
    """What people wrote after the prompt, and whether the prompt begins it."""
    for prompt in (item.prompt, item.prompt.lstrip('"')):
        if item.wikipedia.startswith(prompt):
            return item.wikipedia[len(prompt) :].strip(), True
    return item.wikipedia.strip(), False


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
      scorers: of `text_scorers.make`; those withheld score nothing.
      model: that said it.
    """
    people = [rest(item) for item in items]
    of_model = [
        (item, text) for item, texts in zip(items, said, strict=True) for text in texts
    ]
    of_people = [(item, text) for item, (text, _) in zip(items, people, strict=True)]
    both = [*of_model, *of_people]
    used = [one for one in scorers if not one.withheld]
    scores = {
        one.name: one.score([text for _, text in both], [item for item, _ in both])
        for one in used
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
        domains[domain] = {
            one.name: scored(config, parts, one.name, one.bounds) for one in used
        }
        ratios[domain] = {name: _ratios(config, part) for name, part in parts.items()}
    hidden = {
        domain: {name: _hidden(source, domain) for name, source in sources.items()}
        for domain in domains
    }
    whole = sum(not begins for _, begins in people)
    return Found(model, scorers, sources, domains, ratios, hidden, whole)


def scored(
    config: specs.RunConfig,
    parts: dict[str, Texts],
    name: str,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Scored:
    """One score of the texts of one domain, by both sources.

    Args:
      config: as for `measure`.
      parts: source -> its texts of the domain.
      name: of the score.
      bounds: least and largest score there can be.
    """
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
    means = {
        source: spread.means(one, bounds=bounds, **options)
        for source, one in tallies.items()
    }
    far = bounds[1] - bounds[0]
    flags = {
        source: tuple(
            _flag(spec, tallies[source].counts[tallies[source].group == g])
            for g in range(len(one.n))
        )
        for source, one in means.items()
    }
    # The noise floor is a 95% quantile, whatever the level of intervals.
    options.pop("level")
    return Scored(
        tallies[MODEL].groups,
        flags,
        means,
        {
            source: spread.over_groups(one, [not f for f in flags[source]], **options)
            for source, one in tallies.items()
        },
        spread.differences(
            *(tallies[MODEL], tallies[PEOPLE]),
            **options,
            level=level,
            bounds=(-far, far),
        ),
        {source: int(one.missing.sum()) for source, one in tallies.items()},
    )


def _flag(spec: specs.GenerationSpec, counts: np.ndarray) -> str:
    """Why a group is too small to judge, in words; '' if it is not.

    Args:
      spec: with what is asked for.
      counts: int[M], texts with a score of each entity.
    """
    texts, entities, said = int(counts.sum()), int((counts > 0).sum()), []
    if texts < spec.least:
        said.append(f"{texts} {'text' if texts == 1 else 'texts'}")
    if entities < spec.least_entities:
        said.append(f"{entities} {'entity' if entities == 1 else 'entities'}")
    elif texts**2 < _FEWEST * (counts**2).sum():
        said.append("one entity with most texts")
    return ", ".join(said)


def _of_domain(source: Texts, domain: str) -> Texts:
    rows = [n for n, item in enumerate(source.items) if item.domain == domain]
    return Texts(
        [source.items[n] for n in rows],
        [source.texts[n] for n in rows],
        {name: values[rows] for name, values in source.scores.items()},
    )


def _hidden(source: Texts, domain: str) -> Hidden:
    part = _of_domain(source, domain)
    pairs = zip(part.texts, part.items, strict=True)
    times = [text_masks.masked(text, item)[1] for text, item in pairs]
    return Hidden(sum(times), sum(n > 0 for n in times), len(times))


def _ratios(config, part: Texts) -> Ratios:
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
    even = polarity.expected_of_even(
        found, replicates=config.generation.replicates, seed=config.seed
    )
    return Ratios(found, ends, even)
