"""Prediction sensitivity of a trust report's runs to what reveals an attribute.

A second model of the same kind, trained without privacy on the same texts, tells the
attribute from the words (the protected status model); what it goes by is what
predictions of each run are held against, so that all runs are measured with one ruler.
Only for texts, by models that expose `embed` and `head`.

Example::

    status = group_sensitivity.status_models(config, data, task, groupings, workdir)
    group_sensitivity.of_run(config, data, task, params, status['identity'])
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trustml import intervals, specs
from trustml import task as task_lib
from trustml.data import batches, datasets
from trustml.experiments import baseline, build, evaluate, loop
from trustml.experiments.group_clipping import Grouping
from trustml.fairness import sensitivity

SAMPLE = 1000  # test examples looked at, at most
_ROWS = 64  # at once


class Status(NamedTuple):
    """A protected status model.

    Attributes:
      grouping: the attribute that it tells.
      task: of the model.
      params: trained without privacy; NOT released.
      accuracy: on test examples whose group is known, exact interval.
      majority: share of the largest group there.
    """

    grouping: Grouping
    task: task_lib.Task
    params: Any
    accuracy: intervals.Interval
    majority: float


def refused(data: datasets.Dataset, task: task_lib.Task) -> str:
    """Why predictions have no sensitivity to words, as a half sentence; '' if any."""
    if task.embed is None or task.head is None or "length" not in data.train:
        return "it is a measure of words, and the model does not embed any"
    return ""


def status_models(
    config: specs.RunConfig,
    data: datasets.Dataset,
    groupings: Sequence[Grouping],
    workdir: pathlib.Path,
) -> dict[str, Status]:
    """A protected status model of every attribute that training texts have.

    Args:
      config: of the report; they are trained as its run without privacy.
      data: its data.
      groupings: attributes.
      workdir: of the report; each has a directory in it.
    """
    found, plain = {}, baseline.of(config)
    for grouping in groupings:
        name = grouping.name
        rows = {split: np.flatnonzero(of >= 0) for split, of in grouping.of.items()}
        present = np.unique(grouping.of["train"][rows["train"]])
        if len(present) < 2 or not (len(rows["valid"]) and len(rows["test"])):
            continue
        splits: dict[str, Any] = {
            split: {
                **{k: column[some] for k, column in getattr(data, split).items()},
                "label": grouping.of[split][some].astype(np.int32),
            }
            for split, some in rows.items()
        }
        of = data._replace(
            **splits, label_names=grouping.names, digest=f"{data.digest}+{name}"
        )
        batch = min(plain.train.batch_size, len(rows["train"]))
        train = dataclasses.replace(plain.train, batch_size=batch)
        own = dataclasses.replace(plain, train=train)
        task = build.task(own, of)
        place, line = workdir / f"status-{name}", f"tells {name}"
        params = loop.fit(own, of, task, place, name=f"{line:>14}").params
        correct = evaluate.predictions(task, params, of.test).correct
        ends = intervals.proportion(
            int(correct.sum()), correct.size, config.report.level
        )
        right = intervals.Interval(float(correct.mean()), *ends)
        most = np.bincount(of.test["label"]).max() / correct.size
        found[name] = Status(grouping, task, params, right, float(most))
    return found


def of_run(
    config: specs.RunConfig,
    data: datasets.Dataset,
    task: task_lib.Task,
    params: Any,
    status: Status,
) -> dict[str, Any]:
    """Sensitivity of one run to what reveals an attribute, by group.

    Args:
      config: of the run.
      data: its data.
      task: its task.
      params: its parameters.
      status: the model that tells the attribute.

    Returns:
      `groups`: name, n, `reliance` and `displacement` with Student intervals, each;
      `status`: accuracy of the status model, and `majority`.
    """
    total, level = len(data.test["label"]), config.report.level
    rows = np.random.default_rng(config.seed).permutation(total)[:SAMPLE]
    some = {name: column[rows] for name, column in data.test.items()}
    ends = int(config.data.vocabulary == "pretrained")  # [CLS] and [SEP] are no words
    base, base_status = (
        _mean_embedding(model, p, some, ends)
        for model, p in ((task, params), (status.task, status.params))
    )
    run = _measure(task, status.task, ends)
    parts = []
    for batch, mask in batches.evaluation(some, _ROWS):
        out = jax.device_get(run((params, status.params), batch, (base, base_status)))
        parts.append([np.asarray(x)[mask] for x in out])
    reliance, moved = (np.concatenate(x) for x in zip(*parts, strict=True))
    group, groups = status.grouping.of["test"][rows], []
    for g, name in enumerate(status.grouping.names):
        entry: dict[str, Any] = {"name": name, "n": int(np.sum(group == g))}
        entry["small"] = entry["n"] < config.fairness.least
        for form, values in (("reliance", reliance), ("displacement", moved)):
            kept = values[(group == g) & np.isfinite(values)]
            bounds = (0.0, np.inf if form == "reliance" else 1.0)
            entry[form] = (
                intervals.mean(kept, level, bounds=bounds) if len(kept) else None
            )
        groups.append(entry)
    told = {"accuracy": status.accuracy, "majority": status.majority}
    return {"groups": groups, "status": told}


def _words(example, ends: int):
    """Which tokens are words, bool[T]."""
    at = jnp.arange(example["tokens"].shape[0])
    return (at >= ends) & (at < example["length"] - ends)


def _measure(task, status, ends):
    path = sensitivity.prediction_sensitivity(task, form="integrated")
    moved = sensitivity.prediction_sensitivity(task, form="displacement")
    # By gradient every token of a bag would reveal the same.
    reveals = sensitivity.directions(status, attribution="integrated")

    def one(params, example, baselines):
        words = _words(example, ends)
        v = reveals(params[1], example, words, baselines[1])
        by_path = path(params[0], example, v, words, baselines[0])
        away = moved(params[0], example, v, words, baselines[0])
        # v sums to 1 over words, so even directions have the share 1 / words.
        return by_path.share * words.sum().astype(float), away.value

    return jax.jit(jax.vmap(one, (None, 0, None)))


def _mean_embedding(task, params, columns, ends):
    """Mean embedding of all words, float32[D]: what reveals nothing."""

    @jax.jit
    def run(params, batch, mask):
        def one(example):
            words = _words(example, ends)
            embedded = task.embed(params, example)
            return jnp.where(words[:, None], embedded, 0).sum(axis=0), words.sum()

        sums, counts = jax.vmap(one)(batch)
        sums = jnp.where(mask[:, None], sums, 0).sum(axis=0)
        return sums, jnp.where(mask, counts, 0).sum()

    total, count = np.zeros(()), 0.0
    for batch, mask in batches.evaluation(columns, _ROWS):
        sums, words = jax.device_get(run(params, batch, mask))
        total, count = total + np.asarray(sums, np.float64), count + float(words)
    return jnp.asarray(total / max(count, 1.0), jnp.float32)
