"""Membership attacks that train networks of their own, on the first few targets.

Quantile regression learns what scores non-members of the target have, Shokri's attack
what members look like in the answers of at most 16 shadow models. Both thresholds are
fixed without the target: that of quantile regression on the other targets it was run
on, that of Shokri on its shadow models.

Example::

    found = learned.measure(kept.signals, inputs, posterior, count=4)
    found['Shokri'].balanced_accuracy.value

References: in `trustml.attacks.quantile` and `trustml.attacks.shokri`.
"""

import jax
import numpy as np

from trustml.attacks import quantile, shokri, targets, thresholds
from trustml.attacks.signals import Signals

# Shadow models of Shokri's attack; a fixed number, so that nothing is compiled twice.
SHADOWS = 16


def measure(
    signals: Signals,
    inputs: np.ndarray | None,
    posterior: np.ndarray | None,
    *,
    count: int,
    level: float = 0.95,
) -> dict[str, targets.Measured]:
    """Both attacks on the first `count` models, where they can be run.

    Args:
      signals: of M models.
      inputs: float32[n, F], what quantile regression is given; None leaves it out.
      posterior: float32[M, n, C], log-probabilities; None, or M < 4, leaves Shokri's
        attack out.
      count: of targets; 0 leaves both out.
      level: of the intervals.
    """
    count = min(count, len(signals.pair))
    out: dict[str, targets.Measured] = {}

    def measured(value, threshold):
        ok = np.isfinite(value)
        return targets.measure(
            np.nan_to_num(value),
            signals.member[:count],
            ok,
            threshold=threshold,
            replicates=100,
            level=level,
        )

    if count and inputs is not None:
        value = _quantile(signals, inputs, count)
        pair = np.where(signals.pair < count, signals.pair, -1)[:count]
        threshold = thresholds.fixed(
            np.nan_to_num(value),
            signals.member[:count],
            np.isfinite(value),
            thresholds.apart(pair),
        )
        out["quantile regression"] = measured(value, threshold)
    if count and posterior is not None and len(signals.pair) >= 4:
        out["Shokri"] = measured(*_shokri(signals, posterior, count))
    return out


def _quantile(signals, inputs, count):
    """Scores of the examples that no part of the fit has seen, nan elsewhere."""
    fit, values = jax.jit(quantile.fit), []
    rows = np.flatnonzero(signals.valid & np.isfinite(inputs).all(axis=1))
    for target in range(count):
        margin = signals.margin[target].mean(axis=1)
        parts = quantile.split(signals.member[target, rows], seed=target)
        validation = rows[parts.validate]
        fitted = fit(
            jax.random.key(target),
            inputs[rows[parts.fit]],
            margin[rows[parts.fit]],
            validation=(inputs[validation], margin[validation]),
        )
        scored = rows[parts.evaluate]
        found = quantile.score(fitted, inputs[scored], margin[scored])
        score = np.full(len(margin), np.nan)
        score[scored] = np.where(found.valid, found.value, np.nan)
        values.append(score)
    return np.array(values)


def _shokri(signals, posterior, count):
    """Scores of all examples, and the thresholds that the shadow models gave."""
    classes, fit = posterior.shape[-1], jax.jit(shokri.fit)
    rows = np.asarray(shokri.features(posterior, signals.label))
    some = np.flatnonzero(signals.valid)
    values, fixed = [], []
    for target in range(count):
        mine = {target, int(signals.pair[target])}
        others = [m for m in range(len(rows)) if m not in mine][:SHADOWS]
        x = rows[others][:, some].reshape(-1, rows.shape[-1])
        label = np.tile(signals.label[some], len(others))
        groups = shokri.by_class(label, num_classes=classes)
        truth = signals.member[others][:, some].ravel()
        fitted = fit(jax.random.key(target), x, truth, groups)
        found = shokri.score(fitted, rows[target], signals.label)
        values.append(np.where(signals.valid & found.valid, found.value, np.nan))
        fixed.append(float(fitted.threshold))
    return np.array(values), np.array(fixed)
