"""From a trained model to its section of the report.

Everything here measures; the wording is `trustml.report`'s.
"""

import datetime
import hashlib
import importlib.metadata
import os
import platform
import sys
from typing import Any, NamedTuple

import jax
import numpy as np

from trustml import intervals, specs
from trustml import task as task_lib
from trustml.attacks import membership
from trustml.data import batches, datasets
from trustml.experiments import evaluate, units
from trustml.experiments.loop import Trained
from trustml.fairness import groups
from trustml.privacy import accounting, clipping


class Seen(NamedTuple):
    """What a trained model says of every example.

    Attributes:
      tested: of the test split.
      members: of the training split.
      others: of the validation split.
    """

    tested: evaluate.Predictions
    members: evaluate.Predictions
    others: evaluate.Predictions


def look(task: task_lib.Task, params: Any, data: datasets.Dataset) -> Seen:
    """Runs a model over all splits, in evaluation mode."""
    splits = (data.test, data.train, data.valid)
    return Seen(*(evaluate.predictions(task, params, split) for split in splits))


def run_section(
    name: str,
    config: specs.RunConfig,
    data: datasets.Dataset,
    task: task_lib.Task,
    trained: Trained,
    *,
    baseline: evaluate.Predictions | None = None,
) -> tuple[dict[str, Any], evaluate.Predictions]:
    """One entry of `report['runs']` and the predictions on the test split.

    Args:
      name: of the run, unique in the report.
      config: of the run.
      data: its data.
      task: its task.
      trained: what `loop.fit` returned.
      baseline: predictions on the test split of the run without privacy.
    """
    seen = look(task, trained.params, data)
    section = section_of(name, config, data, trained, seen, baseline=baseline)
    return section, seen.tested


def section_of(
    name: str,
    config: specs.RunConfig,
    data: datasets.Dataset,
    trained: Trained,
    seen: Seen,
    *,
    baseline: evaluate.Predictions | None = None,
    strong: np.ndarray | None = None,
    audit: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """One entry of `report['runs']`, of a model that has been looked at.

    Args:
      name: of the run, unique in the report.
      config: of the run.
      data: its data.
      trained: what `loop.fit` returned.
      seen: of `look`.
      baseline: predictions on the test split of the run without privacy.
      strong: scores of an attack by shadow models (`experiments.strong`) on all
        training examples, then all validation examples.
      audit: the run's entry of that name, see `report.schema`.
    """
    columns = units.columns(config, data)
    inside, outside = attacked(config, data)
    section = {
        "name": name,
        "private": trained.plan is not None,
        "steps": config.train.steps,
        "expected_batch_size": config.train.batch_size,
        "curves": _curves(trained.rows),
        "test": _test(config, data, seen.tested, baseline),
        "membership": _membership(
            trained, seen.members.losses[inside], seen.others.losses[outside]
        ),
        "cost": _cost(config, trained, units.examples_each(columns)),
        "nonfinite_examples": trained.rows[-1].get("nonprivate/nonfinite", 0),
    }
    if strong is not None:
        scores = strong[inside], strong[len(seen.members.losses) + outside]
        section["membership_strong"] = _strong(config, trained, *scores)
    if audit is not None:
        section["audit"] = audit
    if trained.plan is not None:
        section |= _promise(config, columns, trained)
    return section


def attacked(
    config: specs.RunConfig, data: datasets.Dataset
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the training and of the validation split that attacks are tried on."""
    inside, most = _distinct(data.train), config.report.attack_examples
    if most and most < len(inside):
        some = np.random.default_rng(config.seed).permutation(len(inside))[:most]
        inside = inside[np.sort(some)]
    return inside, _distinct(data.valid)


def _curves(rows) -> dict[str, list]:
    def pick(key):
        return [row.get(key) for row in rows]

    return {
        "step": pick("step"),
        "loss": pick("nonprivate/loss"),
        "accuracy": pick("nonprivate/valid_accuracy"),
        "epsilon": pick("epsilon"),
    }


def _test(config, data, tested, baseline) -> dict[str, Any]:
    level = config.report.level
    correct = int(tested.correct.sum())
    n = len(tested.correct)
    lo, hi = intervals.proportion(correct, n, level)
    labels = np.asarray(data.test["label"])
    before = None if baseline is None else baseline.correct
    out: dict[str, Any] = {
        "accuracy": {"value": correct / n, "lo": lo, "hi": hi, "n": n},
        "level": level,
        "majority_baseline": float(np.bincount(labels).max() / n),
    }
    if before is not None:
        change = intervals.paired_change(before, tested.correct, level)
        out["change"] = change._asdict()
    by_class = groups.accuracy_by(
        tested.correct, labels, names=data.label_names, baseline=before, level=level
    )
    out |= {
        "per_class": groups.rows(by_class),
        "class_gap": by_class.gap._asdict(),
    }
    if "length" in data.test:
        lengths = np.asarray(data.test["length"])
        edges = sorted({int(q) for q in np.quantile(lengths, (0.25, 0.5, 0.75))})
        index, names = groups.buckets(lengths, edges, "tokens")
        by_length = groups.accuracy_by(
            tested.correct, index, names=names, baseline=before, level=level
        )
        out |= {
            "per_length": groups.rows(by_length),
            "length_gap": by_length.gap._asdict(),
        }
    return out


def _distinct(columns) -> np.ndarray:
    """Rows that repeat no earlier one: copies are no independent evidence of a leak."""
    first: dict[bytes, int] = {}
    for row in range(batches.size(columns)):
        content = hashlib.blake2b(digest_size=16)
        for column in columns.values():
            content.update(np.ascontiguousarray(column[row]).tobytes())
        first.setdefault(content.digest(), row)
    return np.array(sorted(first.values()))


def _membership(trained, members, others) -> dict[str, Any]:
    """The loss-threshold attack on losses: were you in the training set?"""
    attack = membership.loss_threshold(
        np.nan_to_num(members, nan=np.inf, posinf=1e30),
        np.nan_to_num(others, nan=np.inf, posinf=1e30),
    )
    return _with_limit(attack, trained)


def _strong(config, trained, members, others) -> dict[str, Any]:
    """The attack by shadow models; examples without a finite signal are left out."""
    attack = membership.from_scores(
        members[np.isfinite(members)],
        others[np.isfinite(others)],
        attack="RMIA",
        references="IN+OUT",
    )
    found = _with_limit(attack, trained)
    return found | {"shadow_models": config.report.shadow_models}


def _with_limit(attack: membership.MembershipResult, trained) -> dict[str, Any]:
    """The result with what the promise allows any attack to reach."""
    plan = trained.plan
    # A user's promise does not hold for one example among several: no limit then.
    if plan is None or plan.sampler.privacy_unit == "user":
        return membership.as_dict(attack)
    return membership.as_dict(attack, epsilon=plan.epsilon(), delta=plan.delta)


def _cost(config, trained, examples_each) -> dict[str, Any]:
    cost = trained.cost._asdict()
    examples = config.train.batch_size * examples_each
    rate = examples / trained.cost.seconds_per_step
    return cost | {"examples_per_second": rate}


def _promise(config, columns, trained) -> dict[str, Any]:
    plan, clipper = trained.plan, trained.clipper
    example = {name: column[0] for name, column in columns.items()}
    spec = config.privacy
    fallback = None
    if spec.method != "vmap" and isinstance(clipper, clipping.ClippedGrad):
        fallback = clipper.explain(trained.params, example).materialized
    return {
        "epsilon_target": spec.epsilon,
        "epsilon_spent": plan.epsilon(),
        "epsilon_rdp": _second_opinion(plan),
        "delta": plan.delta,
        "relation": spec.relation,
        "privacy_unit": f"one training {clipper.privacy_unit}",
        "num_units": plan.sampler.num_examples,
        "sampler": spec.sampler,
        "accountant": spec.accountant,
        "noise_multiplier": plan.noise_multiplier,
        "l2_clip_norm": spec.l2_clip_norm,
        "noise_secret": spec.noise_seed is None,
        "fallback_leaves": fallback,
    }


def _second_opinion(plan) -> float | None:
    """Epsilon by RDP; None where it has no bound for the event."""
    if accounting.unsupported(plan.event(), plan.relation, "rdp") is not None:
        return None
    return plan.epsilon(accountant="rdp")


def frame(
    title: str, config: specs.RunConfig, data: datasets.Dataset, task, params
) -> dict[str, Any]:
    """The parts of a report that all runs share."""
    counts = {
        split: len(getattr(data, split)["label"])
        for split in ("train", "valid", "test")
    }
    return machine(title) | {
        "data": {
            "name": data.name,
            "source": data.source,
            "licence": data.licence,
            "digest": data.digest,
            "counts": counts,
            "classes": list(data.label_names),
        },
        "task": {
            "model": config.model.name,
            "params": sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params)),
        },
        "level": config.report.level,
    }


def machine(title: str) -> dict[str, Any]:
    """The parts of a report that say when, how and where it was made."""
    return {
        "title": title,
        "command": " ".join(["python -m launch.run", *sys.argv[1:]]),
        "created": datetime.date.today().isoformat(),
        "versions": _versions(),
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "devices": ", ".join(str(d.device_kind) for d in jax.devices()),
        },
    }


def _versions() -> dict[str, str]:
    names = ("jax", "flax", "optax", "dp-accounting", "numpy")
    found = {name: importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version()} | found
