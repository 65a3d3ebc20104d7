"""Experiment `fairness`: who is served worse by a classifier, and how sure that is.

    data -> training (private or not) -> guesses -> counts by group -> gaps -> report

The model is trained as in experiment `train`. What it guesses of `fairness.splits` is
counted by every group that the data know of: rates, gaps in both usual conventions with
intervals, noise floors and flags, calibration. Somebody else's score that comes with
the data is measured in the same way. Texts that name communities get areas under the
ROC by identity, also on phrases that are made of templates.

Example::

    page = fairness.run(config.from_config_dict(cfg), pathlib.Path('runs/a'))
"""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from trustml import _validate, intervals, specs
from trustml import task as task_lib
from trustml.data import batches, builders, comments, dataset, datasets, sources
from trustml.experiments import (
    build,
    describe,
    fairness_measure,
    fairness_page,
    fairness_texts,
    finished,
    loop,
    train,
)
from trustml.fairness import ranking_table

_PHRASES = 10  # phrases of templates for each example of `data.limit`


class Wanted(NamedTuple):
    """What the config asks of the data.

    Attributes:
      positive: number of the positive label.
      flip: whether positive is the unfavourable one.
      attributes: names of groups that each example has one value of.
      communities: names of groups that a text may name several of.
    """

    positive: int
    flip: bool
    attributes: tuple[str, ...]
    communities: tuple[str, ...]


class Scores(NamedTuple):
    """What the model says of examples.

    Attributes:
      guess: bool[n], whether positive is the most probable label.
      probability: float64[n], of positive.
      margin: float32[n], log-odds of positive: tells apart what rounds to 1.
    """

    guess: np.ndarray
    probability: np.ndarray
    margin: np.ndarray


class Found(NamedTuple):
    """All that one run measured.

    Attributes:
      decided: of the model, then of the score that came with the data.
      attributes: of each of these, `fairness_measure.Attribute`s.
      auc: area under the ROC of the model, all examples.
      communities: texts by whom they name.
      areas: where they were measured -> areas by identity.
      examples: texts wrongly guessed positive, masked or not.
      replicates: of the bootstrap, where they were measured -> how many.
    """

    decided: tuple[fairness_measure.Decisions, ...]
    attributes: tuple[list[fairness_measure.Attribute], ...]
    auc: intervals.Interval
    communities: tuple[fairness_texts.Community, ...]
    areas: dict[str, ranking_table.Table]
    examples: tuple[str, ...]
    replicates: dict[str, int]


def run(config: specs.RunConfig, workdir: pathlib.Path) -> pathlib.Path:
    """Trains, measures and writes the report; resumes what `workdir` holds.

    Returns:
      The path of report.html.
    """
    if page := finished.page(config, workdir):
        return page
    data = build.checked(config, [config])
    asked = wanted(config, data)
    phrases = _phrases(config, data)
    task = build.task(config, data)
    trained = loop.fit(config, data, task, workdir, name=train.run_name(config))
    found = measure(config, data, task, trained.params, asked, phrases)
    title = f"Who is served worse? {config.model.name} on {data.name}"
    frame = describe.frame(title, config, data, task, trained.params)
    epsilon = trained.plan.epsilon() if trained.plan else None
    path = fairness_page.write(workdir, frame, config, data.label_names, found, epsilon)
    for one in found.attributes[0][: len(asked.attributes)]:
        for name in (fairness_measure.PARITY, fairness_measure.ODDS):
            if gap := one.gaps.get(name):
                print(
                    f"{one.name:>12}  {name} {gap.value:.3f} [{gap.lo:.3f}, "
                    f"{gap.hi:.3f}], by chance up to {gap.floor:.3f}"
                )
    print(f"report: {path}")
    return path


def wanted(config: specs.RunConfig, data: datasets.Dataset) -> Wanted:
    """What to measure, with every name looked up in the data.

    Raises:
      ValueError: if the data have no such label or group; names what they have.
    """
    spec, names = config.fairness, data.group_names
    labels = list(data.label_names)
    for field, label in (("positive", spec.positive), ("favourable", spec.favourable)):
        if label:
            _validate.one_of(f"fairness.{field}", label, labels)
    positive = spec.positive or labels[-1]
    known = [
        name
        for name in names
        if all((data.groups[split][name] >= 0).any() for split in spec.splits)
    ]
    communities = tuple(n for n in known if tuple(names[n]) == comments.MENTION)
    plain = [n for n in known if n not in communities]
    for name in spec.attributes:
        if name not in plain:
            bound = f"is no group of data.name={data.name!r}, which has"
            cure = ", ".join(plain) or "none"
            _validate.fail("fairness.attributes", name, f"{bound} {cure}")
    if spec.score_column:
        column = spec.score_column
        _validate.one_of("fairness.score_column", column, plain or ["none"])
        _validate.one_of("fairness.score_at_least", spec.score_at_least, names[column])
    chosen = spec.attributes or tuple(
        n for n in plain if n not in ("length", spec.score_column)
    )
    if not chosen and not communities:
        bound = f"finds no group in data.name={data.name!r}"
        cure = f"name one of {', '.join(plain) or 'another data set'}"
        _validate.fail("fairness.attributes", spec.attributes, bound, cure)
    for entry in spec.reference:
        name, group = entry.split("=", 1)
        if name not in chosen or group not in names[name]:
            bound = f"has {entry!r}, which is no group that is measured"
            _validate.fail("fairness.reference", spec.reference, bound)
    if spec.templates and "tokens" not in data.train:
        bound = f"are texts, and data.name={data.name!r} has none"
        _validate.fail("fairness.templates", spec.templates, bound, "set it to ''")
    if spec.templates and config.model.cache_features:
        bound = "are not among the texts whose features model.cache_features=True keeps"
        _validate.fail("fairness.templates", spec.templates, bound, "set it to ''")
    favourable = spec.favourable or positive
    return Wanted(
        labels.index(positive), favourable != positive, tuple(chosen), communities
    )


def measure(
    config: specs.RunConfig,
    data: datasets.Dataset,
    task: task_lib.Task,
    params,
    asked: Wanted,
    phrases: comments.Templates | None = None,
) -> Found:
    """Everything that the report says of a trained model."""
    spec, level, seed = config.fairness, config.report.level, config.seed
    columns = _joined([getattr(data, split) for split in spec.splits])
    label = columns["label"] == asked.positive
    scores = scores_of(task, params, columns, asked.positive)
    model = fairness_measure.Decisions(
        "the model",
        label,
        scores.guess,
        scores.probability,
        _groups(data, spec.splits, asked.attributes),
    )
    decided = [model]
    if spec.score_column:
        decided.append(_of_score(config, data, asked))
    attributes = [
        fairness_measure.attributes(one, data.group_names, config, flip=asked.flip)
        for one in decided
    ]
    found, areas, replicates = (), {}, {}
    if asked.communities:
        named = _groups(data, spec.splits, asked.communities)
        member = np.stack([named[name] == 1 for name in asked.communities], axis=1)
        found = fairness_texts.communities(
            label, scores.guess, member, asked.communities, spec, level=level
        )
        where = " and ".join(spec.splits)
        areas[where] = fairness_texts.areas(
            scores.margin,
            label,
            member,
            asked.communities,
            spec,
            level=level,
            seed=seed,
            background=spec.background,
        )
        replicates[where] = fairness_texts.replicates(spec, *member.shape)
    if phrases is not None:
        made = encode(data, phrases.texts, phrases.labels, config.data.max_length)
        margin = scores_of(task, params, made, asked.positive).margin
        member = comments.mentions(phrases.texts, phrases.terms)
        areas["templates"] = fairness_texts.areas(
            margin,
            phrases.labels,
            member,
            phrases.terms,
            spec,
            level=level,
            seed=seed,
            clusters=phrases.clusters,
        )
        replicates["templates"] = fairness_texts.replicates(spec, *member.shape)
    return Found(
        tuple(decided),
        tuple(attributes),
        intervals.auc(scores.margin, label, level=level, seed=seed),
        found,
        areas,
        _examples(config, data, label, scores),
        replicates,
    )


def scores_of(task: task_lib.Task, params, columns, positive: int) -> Scores:
    """The model's scores of every row of `columns`, in evaluation mode.

    Args:
      task: of the model.
      params: trained.
      columns: name -> [n, ...].
      positive: number of the positive label.
    """

    @jax.jit
    def run(params, batch):
        def one(example):
            log_probs = task_lib.label_log_probs(task.predict(params, example))
            others = jax.numpy.arange(log_probs.shape[0]) != positive
            rest = jax.nn.logsumexp(log_probs, where=others)
            return log_probs.argmax() == positive, log_probs[positive] - rest

        return jax.vmap(one)(batch)

    parts = []
    for batch, mask in batches.evaluation(columns, 512):
        guess, margin = jax.device_get(run(params, batch))
        parts.append((np.asarray(guess)[mask], np.asarray(margin)[mask]))
    guess, margin = (np.concatenate(x) for x in zip(*parts, strict=True))
    # 1 / (1 + exp(-x)) without overflow.
    probability = 0.5 * (1.0 + np.tanh(0.5 * margin.astype(np.float64)))
    return Scores(guess, probability, margin)


def encode(
    data: datasets.Dataset, texts: Sequence[str], labels: np.ndarray, max_length: int
) -> dict[str, np.ndarray]:
    """Columns of further texts, by the tokenizer of `data`."""
    assert data.tokenizer is not None
    made = data.tokenizer.encode_many(texts, max_length)
    label = np.asarray(labels, np.int32)
    return {"tokens": made.tokens, "length": made.length, "label": label}


def _phrases(config, data) -> comments.Templates | None:
    if not config.fairness.templates:
        return None
    made = comments.templates(builders.locate(sources.BY_NAME["toxicity"]))
    return _part(made, _PHRASES * config.data.limit) if config.data.limit else made


def _part(made: comments.Templates, most: int) -> comments.Templates:
    """Phrases of whole templates that are drawn at random, about `most` of them."""
    numbers = np.unique(made.clusters)
    wanted = max(1, len(numbers) * most // max(1, len(made.texts)))
    if wanted >= len(numbers):
        return made
    kept = np.random.default_rng(0).choice(numbers, wanted, replace=False)
    rows = np.flatnonzero(np.isin(made.clusters, kept))
    clusters = np.unique(made.clusters[rows], return_inverse=True)[1]
    return comments.Templates(
        [made.texts[n] for n in rows],
        made.labels[rows],
        made.terms,
        clusters.reshape(-1).astype(np.int32),
    )


def _joined(parts):
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _groups(data, splits, names) -> dict[str, np.ndarray]:
    return {
        name: np.concatenate([data.groups[split][name] for split in splits])
        for name in names
    }


def _of_score(config, data, asked) -> fairness_measure.Decisions:
    """The score that came with the data, on every split: it learnt from none here."""
    spec, splits = config.fairness, dataset.SPLITS
    step = _groups(data, splits, (spec.score_column,))[spec.score_column]
    least = data.group_names[spec.score_column].index(spec.score_at_least)
    label = np.concatenate([getattr(data, split)["label"] for split in splits])
    return fairness_measure.Decisions(
        f"{spec.score_column} \u2265 {spec.score_at_least}",
        label == asked.positive,
        step >= least,
        None,
        _groups(data, splits, asked.attributes),
    )


def _examples(config, data, label, scores) -> tuple[str, ...]:
    """Texts that are not positive and whose scores are the highest."""
    spec = config.fairness
    if not spec.examples or not data.texts:
        return ()
    texts = [text for split in spec.splits for text in data.texts[split]]
    wrong = np.flatnonzero(scores.guess & ~label)
    worst = wrong[np.argsort(-scores.margin[wrong], kind="stable")][: spec.examples]
    shown = [
        t if isinstance(t, str) else " ".join(t) for t in (texts[n] for n in worst)
    ]
    shown = [text if len(text) <= 200 else text[:199] + "\u2026" for text in shown]
    if spec.mask:
        shown = [fairness_texts.masked(text) for text in shown]
    return tuple(shown)
