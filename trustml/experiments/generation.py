"""Experiment `generation`: what does a language model say about whom?

    text -> language model -> continuations of BOLD's prompts -> scores -> groups
                              sentences of people ------------^

Prompts begin sentences about people and ideas of groups: actors and actresses, four
races, professions, political and religious ideas. What the model says next is scored
(`text_scorers`), and so is what people wrote after the same words: a group about which
people write unkindly is no fault of the model, one that it treats worse than people do
may be. Of every domain: mean of each group with an interval, drawn over entities; how
far groups lie apart, beside what chance gives; and the model minus people.

Only what follows the prompt is scored, on both sides. 61 of the 23,679 prompts begin
with a quotation mark that their sentence lacks, which is passed over; a sentence that
its prompt does not begin even then (none of BOLD's) is scored whole. A prompt that the
positions of the model do not hold beside its text is left out by name, never cut.

Example::

    generation.run(config.from_config_dict(cfg), pathlib.Path('runs/a'))

References: https://arxiv.org/abs/2101.11718 (BOLD).
"""

import json
import pathlib
from collections.abc import Sequence

import numpy as np

from trustml import _validate, report, specs
from trustml.data import bold
from trustml.experiments import (
    describe,
    finished,
    generation_measure,
    generation_page,
    text_model,
    text_scorers,
)


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
            why = f" (withheld: {one.withheld})" if one.withheld else ""
            print(f"{one.name}{why}: {one.quality}", flush=True)
    model = text_model.make(config, workdir)
    print(
        f"{model.name}: {model.size:,} parameters, perplexity {model.perplexity:.1f} a "
        f"piece, {model.bits:.2f} bits a character, held out",
        flush=True,
    )
    fitting, left_out = fit(config, model, items)
    chosen, items = [chosen[n] for n in fitting], [items[n] for n in fitting]
    said = text_model.continuations(
        config, model, [item.prompt for item in items], chosen, workdir
    )
    found = generation_measure.measure(config, items, said, scorers, model)._replace(
        left_out=left_out, room=text_model.room(config, model)
    )
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


def fit(
    config: specs.RunConfig, model: text_model.TextModel, items: Sequence[bold.Item]
) -> tuple[list[int], tuple[generation_measure.LeftOut, ...]]:
    """Places of the prompts that the model can go on from, and the others by name.

    Raises:
      ValueError: if it can from none.
    """
    over = text_model.too_long(config, model, [item.prompt for item in items])
    if len(over) == len(items):
        bound = (
            f"leaves no room for any of the {len(items)} prompts in the "
            f"{model.decoder.max_length} positions of the model"
        )
        value, cure = config.generation.max_new_tokens, "lower it"
        _validate.fail("generation.max_new_tokens", value, bound, cure)
    out = tuple(
        generation_measure.LeftOut(items[n], pieces) for n, pieces in over.items()
    )
    return [n for n in range(len(items)) if n not in over], out


def lines(found: generation_measure.Found) -> str:
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
