"""What the attacks find in the signals of shadow models: figures for a report.

Every model is a target in turn (`trustml.attacks.references`); the closed-form attacks
run on all of them with every budget of references, the attacks that train networks of
their own on a few. Nothing is chosen on what is measured: the attack of the headline is
Student-t, online, whatever the others find, and balanced accuracies are at thresholds
of `trustml.attacks.thresholds`, which no target had a part in.

Where every example was in every model by a coin of its own (design 'independent'), the
scores of the first target are an audit of one run as well: a lower bound on epsilon.

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
    references,
    subgroups,
    targets,
    thresholds,
)
from trustml.audit import one_run
from trustml.audit.result import AuditResult
from trustml.experiments import learned
from trustml.experiments import shadows as driver

HEADLINE = "Student-t"

# The audit of one run: its attack, and shares of the examples guessed in and out. Fixed
# beforehand; under privacy RMIA finds more than Student-t with few references.
AUDITED = "RMIA"
GUESSED = (0.01, 0.05, 0.2)


class Leak(NamedTuple):
    """What was found in one set of models.

    Attributes:
      name: of the models, 'non-private' or 'eps=8'.
      epsilon: of each model; None without privacy.
      delta: of the same guarantee.
      attacks: number of references -> attack -> `targets.Measured`; attacks without
        references stand with the largest number only. No balanced accuracy where there
        are too few models to fix a threshold without the target.
      learned: attack -> `targets.Measured` on a few targets.
      accuracy: of the models on examples that they were not trained on, {value, lo, hi,
        n} with a t-interval over models; None without posteriors.
      audited: lower bound on epsilon from the first target; None without privacy, or
        where examples were not in by coins of their own.
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
    learned: dict[str, targets.Measured]
    accuracy: dict[str, Any] | None
    audited: AuditResult | None
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
    audited = None
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
            _fixed(found, signals, rotation if not whole else None, run),
            signals.member,
            level,
        )
        if whole:
            best = found[HEADLINE]
            audited = _audited(found, kept)
            curves = _curves(found, signals.member[0], attacks[budget], level)
    value, ok = best.value, best.valid
    first = ok[0]
    inside = signals.member[0]
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
        learned=learned.measure(
            signals, _inputs(columns), posterior, count=learned_targets, level=level
        ),
        accuracy=_accuracy(posterior, signals, level),
        audited=audited,
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
            "balanced_accuracy": measured.balanced_accuracy
            and _estimate(measured.balanced_accuracy),
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
        "learned": {name: plain(one) for name, one in leak.learned.items()},
        "accuracy": leak.accuracy,
        "audited": leak.audited and leak.audited._asdict(),
        "blind": None if leak.blind is None else leak.blind._asdict(),
        "n_models": leak.n_models,
        "n_invalid": leak.n_invalid,
    }


def _fixed(found, signals, rotation, run) -> dict[str, np.ndarray | None]:
    """Thresholds of every attack; `rotation` None: `found` has all references.

    Then nobody is left who does not refer to the target, and thresholds come of scores
    with one pair (or one model) less.
    """
    pair, out = signals.pair, {}
    left = len(pair) - (4 if np.any(pair >= 0) else 2)
    shadow = found
    if rotation is None and left > 0:
        rotation = references.rotate(signals.member, pair, budget=left)
        shadow = run(signals.margin, signals.log_prob, rotation, signals.valid)
        shadow = jax.tree.map(np.asarray, shadow)
    for attack, threat in closed_form.THREATS.items():
        alone = threat.references == "none"
        if alone or rotation is not None:
            apart = thresholds.apart(pair, None if alone else rotation.use)
            score = shadow[attack]
            out[attack] = thresholds.fixed(
                score.value, signals.member, score.valid, apart
            )
    return out


def _audited(found, kept) -> AuditResult | None:
    """Lower bound on epsilon from the first target; guesses chosen on a half."""
    signals = kept.signals
    if kept.epsilon is None or not np.all(signals.pair < 0):
        return None
    value, ok = found[AUDITED].value[0], found[AUDITED].valid[0]
    if not ok.any():
        return None
    # Examples without a score stay in the middle, where nothing is guessed.
    value = np.where(ok, value, np.median(value[ok]))
    sizes = [max(1, int(share * value.size / 2)) for share in GUESSED]
    return one_run.epsilon_delta(
        value,
        signals.member[0],
        guesses=[(size, size) for size in sizes],
        strategy="split",
        delta=kept.delta or 0.0,
        alpha=0.05,
    )


def _accuracy(posterior, signals, level) -> dict[str, Any] | None:
    if posterior is None:
        return None
    ok = np.isfinite(posterior).all(axis=(0, 2)) & signals.valid
    right = np.argmax(posterior, axis=2) == signals.label[None]
    unseen = ok[None] & ~signals.member
    means = [r[u].mean() for r, u in zip(right, unseen, strict=True)]
    return _over_targets(means, level)


def _measured(found, fixed, member, level) -> dict[str, targets.Measured]:
    """Each attack on all targets; NumPy lets go of the interpreter, hence threads."""
    names = [name for name in found if _two_sides(found[name].valid, member)]

    def one(name):
        scores = found[name]
        return targets.measure(
            scores.value,
            member,
            scores.valid,
            threshold=fixed.get(name),
            replicates=100,
            level=level,
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
