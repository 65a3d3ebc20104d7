"""Who is found: an attack's hits and false alarms, subgroup by subgroup.

At one threshold for everybody groups differ in both rates, which shows who is at risk;
at a threshold per group all have the same false alarms, which shows whom the attack
knows best. Counts are [G, 2, 2], counts[g, member, accused], as a confusion matrix has
them, so that any measure of fairness can be computed from them.

Dimension key: `n` examples, `G` groups.

Example::

    from trustml.attacks import subgroups

    at = subgroups.at_fpr(scores, member, group, 0.01, names=('women', 'men'))
    at.counts[0]                           # [[TN, FP], [FN, TP]] of the women
    at.rates[0].tpr, at.rates[0].tpr_interval
    at.own[0]                              # Point at their own threshold, or None
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy import typing as npt

from trustml import _validate, intervals
from trustml.attacks import metrics


class Rates(NamedTuple):
    """One group at the threshold of all.

    Attributes:
      name: of the group.
      n_members: members in it.
      n_nonmembers: non-members in it.
      tpr: share of its members found; nan without members.
      tpr_interval: (lo, hi), exact: the threshold depends on non-members only.
      fpr: share of its non-members accused; nan without non-members.
      fpr_interval: (lo, hi), exact at a fixed threshold; this one was chosen on the
        non-members of all groups, so it is approximate for a group that is most of
        them.
    """

    name: str
    n_members: int
    n_nonmembers: int
    tpr: float
    tpr_interval: tuple[float, float]
    fpr: float
    fpr_interval: tuple[float, float]


class Subgroups(NamedTuple):
    """All groups of one attribute.

    Attributes:
      fpr: asked for.
      threshold: of all examples together; accused if score > threshold.
      counts: int64[G, 2, 2], [g, member, accused] at `threshold`.
      rates: of every group at `threshold`.
      own: of every group at its own threshold for the same FPR; None where the group
        has fewer than 1/FPR non-members or no members.
      own_counts: int64[G, 2, 2] at the groups' own thresholds; 0 where there is none.
      unknown: examples with group < 0, in no group but in the threshold.
    """

    fpr: float
    threshold: float
    counts: np.ndarray
    rates: tuple[Rates, ...]
    own: tuple[metrics.Point | None, ...]
    own_counts: np.ndarray
    unknown: int


def counts(
    scores: npt.ArrayLike,
    member: npt.ArrayLike,
    group: npt.ArrayLike,
    threshold: npt.ArrayLike,
    *,
    num_groups: int | None = None,
) -> np.ndarray:
    """How many were rightly and wrongly accused in every group.

    Args:
      scores: float[n], larger means member.
      member: bool[n].
      group: int[n] in 0..G-1; negative = unknown, not counted.
      threshold: of all, or float[G]; accused if score > threshold.
      num_groups: G; default: up to the largest group.

    Returns:
      int64[G, 2, 2], [g, member, accused].

    Raises:
      ValueError: on shapes that differ, a nan, or a group that is no integer or too
        large.
    """
    scores, member, group, size = _checked(scores, member, group, num_groups)
    known = group >= 0
    at = np.broadcast_to(_validate.numbers_of("threshold", threshold), (size,))
    accused = scores[known] > at[group[known]]
    cell = 4 * group[known] + 2 * member[known] + accused
    return np.bincount(cell, minlength=4 * size).reshape(size, 2, 2)


def at_fpr(
    scores: npt.ArrayLike,
    member: npt.ArrayLike,
    group: npt.ArrayLike,
    fpr: float,
    *,
    names: Sequence[str] | None = None,
    level: float = 0.95,
) -> Subgroups:
    """Hits and false alarms per group, at a threshold for all and at the groups' own.

    Args:
      scores: float[n], larger means member; leave out what is not valid.
      member: bool[n].
      group: int[n] in 0..G-1; negative = unknown.
      fpr: allowed share of false alarms, in (0, 1).
      names: G names; default '0'..'G-1'.
      level: confidence of the intervals.

    Returns:
      Subgroups.

    Raises:
      ValueError: as `counts` and `metrics.tpr_at_fpr`.
    """
    wanted = None if names is None else len(names)
    scores, member, group, size = _checked(scores, member, group, wanted)
    names = [str(g) for g in range(size)] if names is None else list(names)
    everyone = metrics.tpr_at_fpr(scores[member], scores[~member], fpr, level)
    found = counts(scores, member, group, everyone.threshold, num_groups=size)
    rates, own, thresholds = [], [], np.full(size, np.inf)
    for g, name in enumerate(names):
        (tn, fp), (fn, tp) = found[g].tolist()
        rates.append(
            Rates(
                name=name,
                n_members=fn + tp,
                n_nonmembers=tn + fp,
                tpr=tp / (fn + tp) if fn + tp else float("nan"),
                tpr_interval=intervals.proportion(tp, fn + tp, level),
                fpr=fp / (tn + fp) if tn + fp else float("nan"),
                fpr_interval=intervals.proportion(fp, tn + fp, level),
            )
        )
        ins, outs = scores[(group == g) & member], scores[(group == g) & ~member]
        enough = ins.size and np.floor(fpr * outs.size + 1e-9) >= 1
        own.append(metrics.tpr_at_fpr(ins, outs, fpr, level) if enough else None)
        if own[-1] is not None:
            thresholds[g] = own[-1].threshold
    own_counts = counts(scores, member, group, thresholds, num_groups=size)
    # By `own` and not by its threshold, which is inf where nobody can be accused.
    own_counts[[one is None for one in own]] = 0
    return Subgroups(
        fpr=float(fpr),
        threshold=everyone.threshold,
        counts=found,
        rates=tuple(rates),
        own=tuple(own),
        own_counts=own_counts,
        unknown=int(np.sum(group < 0)),
    )


def _checked(scores, member, group, num_groups):
    scores = _validate.numbers_of("scores", scores)
    member = np.asarray(member, bool)
    group = np.asarray(group)
    if scores.ndim != 1 or not scores.shape == member.shape == group.shape:
        raise ValueError(
            f"scores has shape {scores.shape}, member {member.shape}, group "
            f"{group.shape}; give one of each per example."
        )
    if not np.issubdtype(group.dtype, np.integer):
        raise ValueError(
            f"group has type {group.dtype}; integers 0..G-1 are needed, negative where "
            "the group is not known."
        )
    bad = np.flatnonzero(np.isnan(scores))
    if bad.size:
        raise ValueError(
            f"scores[{bad[0]}] is nan ({bad.size} in all); a nan has no rank: drop and "
            "count such examples."
        )
    size = int(group.max(initial=-1)) + 1
    if num_groups is not None and size > num_groups:
        raise ValueError(
            f"group={size - 1} has no name among {num_groups}; give one name per group."
        )
    return scores, member, group.astype(np.int64), num_groups or size
