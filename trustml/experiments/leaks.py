"""What the attacks find in the signals of shadow models: figures for a report.

Every model is a target in turn (`trustml.attacks.references`); the closed-form attacks
run on all of them with every budget of references, the attacks that train networks of
their own on a few. Nothing is chosen on what is measured: the attack of the headline is
Student-t, online, whatever the others find.

Example::

    found = leaks.measure('non-private', kept, columns, posterior, budgets=(4, 16))
    found.attacks[62]['Student-t'].auc.value
"""

import os
from collections.abc import Mapping, Sequence
from concurrent import futures
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy import stats

from trustml import bands
from trustml.attacks import (
    blind,
    closed_form,
    metrics,
    quantile,
    references,
    shokri,
    subgroups,
    targets,
)
from trustml.experiments import shadows as driver

HEADLINE = "Student-t"


class Leak(NamedTuple):
    """What was found in one set of models.

    Attributes:
      name: of the models, 'non-private' or 'eps=8'.
      epsilon: of each model; None without privacy.
      delta: of the same guarantee.
      attacks: number of references -> attack -> `targets.Measured`; attacks without
        references stand with the largest number only.
      balanced: balanced accuracy of the headline's attack, thresholds chosen on held
        out halves, with a t-interval over targets: {value, lo, hi, n}.
      learned: attack -> `targets.Measured` on a few targets.
      shokri_accuracy: balanced accuracy at the threshold fixed on the shadow models,
        {value, lo, hi, n}; None where it was not run.
      blind: of a classifier that sees inputs alone, on the first target; None where the
        inputs are neither tokens nor features.
      curves: of the first target: {name, fpr, tpr, lo, hi, floor} each, with a band
        that holds at all thresholds at once.
      scores: headline's scores of the first target, (members, others).
      classes: of the first target, per class at 1% false alarms; None with fewer than
        100 non-members.
      n_models: M.
      n_invalid: examples without a finite signal, which no attack ranks.
    """

    name: str
    epsilon: float | None
    delta: float | None
    attacks: dict[int, dict[str, targets.Measured]]
    balanced: dict[str, Any]
    learned: dict[str, targets.Measured]
    shokri_accuracy: dict[str, Any] | None
    blind: blind.Blind | None
    curves: list[dict[str, Any]]
    scores: tuple[np.ndarray, np.ndarray]
    classes: subgroups.Subgroups | None
    n_models: int
    n_invalid: int


def measure(
    name: str,
    kept: driver.Kept,
    columns: Mapping[str, np.ndarray],
    posterior: np.ndarray | None = None,
    *,
    budgets: Sequence[int] = (),
    learned_targets: int = 0,
    label_names: Sequence[str] = (),
    level: float = 0.95,
) -> Leak:
    """Runs every attack on the signals of one set of models.

    Args:
      name: of the models.
      kept: their signals, with their guarantee.
      columns: name -> [n, ...], the examples.
      posterior: float32[M, n, C], log-probabilities; None leaves Shokri's attack out.
      budgets: numbers of references, beside all there are; those that the design cannot
        serve are left out.
      learned_targets: targets of the attacks that train networks of their own.
      label_names: of the classes.
      level: of the intervals.
    """
    signals = kept.signals
    run = jax.jit(closed_form.scores)
    most = len(signals.pair) - (2 if np.all(signals.pair >= 0) else 1)
    attacks: dict[int, dict[str, targets.Measured]] = {}
    best: Any = None
    curves: list[dict[str, Any]] = []
    for budget in sorted({*(b for b in budgets if b < most), most}):
        whole = budget == most
        rotation = references.rotate(
            signals.member, signals.pair, budget=None if whole else budget
        )
        found = run(signals.margin, signals.log_prob, rotation, signals.valid)
        found = jax.tree.map(np.asarray, found)
        attacks[budget] = _measured(
            {
                attack: scores
                for attack, scores in found.items()
                if whole or closed_form.THREATS[attack].references != "none"
            },
            signals.member,
            level,
        )
        if whole:
            best = found[HEADLINE]
            curves = _curves(found, signals.member[0], attacks[budget], level)
    value, ok = best.value, best.valid
    first = ok[0]
    inside = signals.member[0]
    learned, accuracy = _learned(kept, columns, posterior, learned_targets, level)
    classes = None
    if np.sum(~inside & first) >= 100:
        classes = subgroups.at_fpr(
            value[0][first],
            inside[first],
            signals.label[first],
            0.01,
            names=list(label_names) or None,
            level=level,
        )
    return Leak(
        name=name,
        epsilon=kept.epsilon,
        delta=kept.delta,
        attacks=attacks,
        balanced=_balanced(value, signals.member, ok, level),
        learned=learned,
        shokri_accuracy=accuracy,
        blind=_blind(columns, inside, first, level),
        curves=curves,
        scores=(value[0][first & inside], value[0][first & ~inside]),
        classes=classes,
        n_models=len(signals.pair),
        n_invalid=int(np.sum(~signals.valid)),
    )


def as_dict(leak: Leak) -> dict[str, Any]:
    """Plain numbers for report.json, without the curves of single attacks."""

    def plain(measured):
        return {
            "auc": _estimate(measured.auc),
            "tpr_at_fpr": {
                f"{fpr:g}": None if mean is None else _estimate(mean)
                for fpr, mean in measured.tpr_at_fpr.items()
            },
            "targets": measured.n_targets,
            "n_members": measured.n_members,
            "n_nonmembers": measured.n_nonmembers,
            "tie_fraction": measured.tie_fraction,
        }

    return {
        "name": leak.name,
        "epsilon": leak.epsilon,
        "delta": leak.delta,
        "attacks": {
            str(budget): {name: plain(one) for name, one in found.items()}
            for budget, found in leak.attacks.items()
        },
        "balanced_accuracy": leak.balanced,
        "learned": {name: plain(one) for name, one in leak.learned.items()},
        "shokri_accuracy": leak.shokri_accuracy,
        "blind": None if leak.blind is None else leak.blind._asdict(),
        "n_models": leak.n_models,
        "n_invalid": leak.n_invalid,
    }


def _measured(found, member, level) -> dict[str, targets.Measured]:
    """Each attack on all targets; NumPy lets go of the interpreter, hence threads."""
    names = [name for name in found if _two_sides(found[name].valid, member)]

    def one(name):
        scores = found[name]
        return targets.measure(
            scores.value, member, scores.valid, replicates=100, level=level
        )

    with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(names, pool.map(one, names), strict=True))


def _estimate(mean: targets.Mean) -> dict[str, Any]:
    kept = {"value": mean.value, "stderr": mean.stderr, "lo": mean.lo, "hi": mean.hi}
    return kept | {"per_target": mean.per_target}


def _two_sides(valid, member) -> bool:
    """Every target has scores on both sides, as attacks with few references may not."""
    return bool(np.all((valid & member).any(1) & (valid & ~member).any(1)))


def _over_targets(values: Sequence[float], level: float) -> dict[str, Any]:
    array = np.asarray(values, float)
    half = 0.0
    if array.size > 1:
        half = float(stats.t.ppf((1 + level) / 2, array.size - 1) * stats.sem(array))
    mean = float(array.mean())
    return {"value": mean, "lo": mean - half, "hi": mean + half, "n": array.size}


def _balanced(value, member, valid, level) -> dict[str, Any]:
    found = []
    for score, inside, ok in zip(value, member, valid, strict=True):
        ins, outs = score[ok & inside], score[ok & ~inside]
        found.append(metrics.balanced_accuracy(ins, outs, level=level).value)
    return _over_targets(found, level)


def _curves(found, inside, measured, level) -> list[dict[str, Any]]:
    """ROC of a few attacks on the first target, each in its simultaneous band."""
    out = []
    for name in (HEADLINE, "RMIA", "LiRA offline", "loss"):
        if name not in measured:
            continue
        score, ok = found[name].value[0], found[name].valid[0]
        ins, outs = score[ok & inside], score[ok & ~inside]
        curve = metrics.roc(ins, outs)
        band = bands.band(ins.size, (1 - level) / 2)
        above = np.rint(curve.tpr * ins.size).astype(int)
        out.append(
            {
                "name": name,
                "fpr": curve.fpr,
                "tpr": curve.tpr,
                "lo": band.lower[above] if name == HEADLINE else None,
                "hi": band.upper[above] if name == HEADLINE else None,
                "floor": 1.0 / outs.size,
            }
        )
    return out


def _inputs(columns) -> np.ndarray | None:
    """What a classifier that sees no model is given: features, or tokens counted."""
    if "features" in columns:
        return np.asarray(columns["features"], np.float32)
    if "tokens" in columns and "length" in columns:
        tokens = np.asarray(columns["tokens"])
        counted = np.arange(tokens.shape[1]) < np.asarray(columns["length"])[:, None]
        return blind.bag_of_tokens(tokens, counted, buckets=1000)
    return None


def _blind(columns, inside, ok, level) -> blind.Blind | None:
    inputs = _inputs(columns)
    if inputs is None or not np.isfinite(inputs[ok]).all():
        return None
    return blind.measure(inputs[ok], inside[ok], level=level)


def _learned(kept, columns, posterior, count, level):
    """Quantile regression and Shokri on the first `count` targets."""
    signals, inputs = kept.signals, _inputs(columns)
    count = min(count, len(signals.pair))
    out: dict[str, targets.Measured] = {}
    if not count:
        return out, None
    if inputs is not None:
        fit = jax.jit(quantile.fit)
        values, sides = [], []
        for target in range(count):
            margin = signals.margin[target].mean(axis=1)
            ok = signals.valid & np.isfinite(inputs).all(axis=1)
            rows = np.flatnonzero(ok)
            parts = quantile.split(signals.member[target, rows], seed=target)
            fitted = fit(
                jax.random.key(target),
                inputs[rows[parts.fit]],
                margin[rows[parts.fit]],
                validation=(
                    inputs[rows[parts.validate]],
                    margin[rows[parts.validate]],
                ),
            )
            scored = rows[parts.evaluate]
            found = quantile.score(fitted, inputs[scored], margin[scored])
            score = np.full(len(margin), np.nan)
            score[scored] = np.where(found.valid, found.value, np.nan)
            values.append(score)
            sides.append(np.isfinite(score))
        member = signals.member[:count]
        measured = targets.measure(
            np.nan_to_num(values), member, np.array(sides), replicates=100, level=level
        )
        out["quantile regression"] = measured
    if posterior is None or len(signals.pair) < 4:
        return out, None
    classes = posterior.shape[-1]
    rows = np.asarray(shokri.features(posterior, signals.label))
    fit = jax.jit(shokri.fit)
    values, accuracy = [], []
    for target in range(count):
        # A fixed number of shadow models, so that nothing is compiled twice.
        others = np.delete(
            np.arange(len(rows)),
            [target] + ([signals.pair[target]] if signals.pair[target] >= 0 else []),
        )[:16]
        some = np.flatnonzero(signals.valid)
        x = rows[others][:, some].reshape(-1, rows.shape[-1])
        label = np.tile(signals.label[some], len(others))
        groups = shokri.by_class(label, num_classes=classes)
        truth = signals.member[others][:, some].ravel()
        fitted = fit(jax.random.key(target), x, truth, groups)
        found = shokri.score(fitted, rows[target], signals.label)
        score = np.where(signals.valid & found.valid, found.value, np.nan)
        values.append(score)
        ins = score[signals.member[target] & np.isfinite(score)]
        outs = score[~signals.member[target] & np.isfinite(score)]
        fixed = metrics.at_threshold(ins, outs, float(fitted.threshold))
        accuracy.append(fixed.balanced_accuracy)
    array = np.array(values)
    out["Shokri"] = targets.measure(
        np.nan_to_num(array),
        signals.member[:count],
        np.isfinite(array),
        replicates=100,
        level=level,
    )
    return out, _over_targets(accuracy, level)
