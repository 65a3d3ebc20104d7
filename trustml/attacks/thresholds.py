"""Thresholds fixed on shadow models, for the accuracy of an attack on its target.

A score accuses an example if it is above a threshold, and somebody has to choose it.
Chosen on the target it flatters the attack; an attacker chooses it on models whose
members he knows, by attacking them as he attacks the target. Of target t those are the
models s that know nothing of it:

- s is neither t nor its partner, whose training set tells that of t;
- neither of the two was among the references that s was attacked with.

    tau_t = argmax over tau of TPR + 1 - FPR, on the scores of those s together

With all references of a design every other model refers to the target, so that nobody
is left: `references.rotate` with one pair less (`budget=M - 4`; M - 2 without pairs)
leaves the models of one pair, and their threshold is used on the scores that have all
references. What two references more change in the scale of a score is the attacker's
loss; log-likelihood ratios have their best threshold near 0 anyway.

Dimension key: `M` models, `n` examples.

Example::

    rotation = references.rotate(member, pair, budget=len(pair) - 4)
    shadow = closed_form.scores(margin, log_prob, rotation)['Student-t']
    apart = thresholds.apart(pair, rotation.use)
    threshold = thresholds.fixed(shadow.value, member, shadow.valid, apart)
    found = targets.measure(value, member, valid, threshold=threshold)
    found.balanced_accuracy.value                                   # 0.5 is guessing

References: https://arxiv.org/abs/1610.05820 (a threshold learnt on shadow models)
"""

import numpy as np
from numpy import typing as npt

from trustml import _validate
from trustml.attacks import metrics


def apart(
    pair: npt.ArrayLike, use: npt.ArrayLike | None = None, *, most: int = 8
) -> np.ndarray:
    """Which models may fix the threshold of which target.

    Args:
      pair: int[M], the complementary model, -1 where there is none.
      use: bool[M, M] of `references.Rotation`, use[s, r]: r was a reference of s; None
        for attacks without references.
      most: models a target, those that follow it in the order of the models.

    Returns:
      bool[M, M], row t: the models of target t. A row may be empty.

    Raises:
      ValueError: on shapes that do not fit, or most < 1.
    """
    most = _validate.integer_at_least("thresholds.most", most, 1, "8 is the default")
    pair = np.asarray(pair)
    models = pair.size
    seen = np.zeros((models, models), bool) if use is None else np.asarray(use, bool)
    if seen.shape != (models, models):
        bound = f"must be [{models}, {models}], one row and one column a model"
        cure = "pass the rotation's `use`, of the same models as `pair`"
        _validate.fail("thresholds.use", list(seen.shape), bound, cure)
    out = np.zeros((models, models), bool)
    for target in range(models):
        mine = {target, int(pair[target])} - {-1}
        order = [(target + step) % models for step in range(models)]
        fit = [s for s in order if s not in mine and not seen[s, list(mine)].any()]
        out[target, fit[:most]] = True
    return out


def fixed(
    value: npt.ArrayLike,
    member: npt.ArrayLike,
    valid: npt.ArrayLike,
    apart: npt.ArrayLike,
) -> np.ndarray | None:
    """The threshold of every target, from the scores of the models apart from it.

    Args:
      value: float[M, n], larger means member; of each model under attack, with the
        references that `apart` was made for.
      member: bool[M, n].
      valid: bool[M, n].
      apart: bool[M, M] of `apart`.

    Returns:
      float64[M]; None where a target has no models, or those have valid scores on one
      side only.

    Raises:
      ValueError: on shapes that differ, or a valid score that is nan.
    """
    value = _validate.numbers_of("value", value, "give scores [M, n]")
    member = np.asarray(member, bool)
    valid, chosen = np.asarray(valid, bool), np.asarray(apart, bool)
    models = len(value)
    if value.ndim != 2 or not value.shape == member.shape == valid.shape:
        raise ValueError(
            f"value has shape {value.shape}, member {member.shape}, valid "
            f"{valid.shape}; all three need one entry per model and example, [M, n]."
        )
    if chosen.shape != (models, models):
        bound = f"must be [{models}, {models}]"
        _validate.fail("apart", list(chosen.shape), bound, "use thresholds.apart")
    inside, outside = valid & member, valid & ~member
    out: dict[bytes, float] = {}
    for row in chosen:
        if not (inside[row].any() and outside[row].any()):
            return None
        if row.tobytes() not in out:
            ins, outs = value[row][inside[row]], value[row][outside[row]]
            out[row.tobytes()] = metrics.best_threshold(ins, outs)
    return np.array([out[row.tobytes()] for row in chosen])
