"""Rates of groups from counts: selection, TPR, FPR, calibration; NaN if undefined.

Binary rates take cells [..., 2, 2], [.., label, guess], with tn = [0, 0], fp = [0, 1],
fn = [1, 0], tp = [1, 1], and give [...]. Of more classes, `one_vs_rest` makes such
cells for every class. A rate whose denominator is zero is NaN, never 0; `undefined`
says of whom and why. fairlearn has 0 there: `rate(..., empty='zero')`, where a group
without any examples stays NaN (fairlearn has no such group).

| name | formula | undefined without |
|---|---|---|
| `selection` | (tp + fp) / n | examples |
| `base_rate` | (tp + fn) / n | examples |
| `tpr` (recall), `fnr` | tp / (tp + fn), fn / (tp + fn) | positives |
| `fpr`, `tnr` | fp / (fp + tn), tn / (fp + tn) | negatives |
| `ppv` (precision), `fdr` | tp / (tp + fp), fp / (tp + fp) | selected ones |
| `npv`, `for_` | tn / (tn + fn), fn / (tn + fn) | rejected ones |
| `accuracy`, `error` | (tp + tn) / n, (fp + fn) / n | examples |
| `balanced_accuracy` | (tpr + tnr) / 2 | positives or negatives |
| `f1` | 2 tp / (2 tp + fp + fn) | positives and selected ones |
| `treatment_ratio` | fn / fp | false positives |

Dimension key: `G` groups, `K` classes, `S` score bins.

Example::

    from trustml.fairness import counts, rates

    cells = counts.count(race, recidivism, high_risk, groups=6).cells
    rates.fpr(cells)                            # float32[6]
    rates.undefined(cells, 'tpr', race_names)   # ('Asian has no positives',)
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trustml import _validate
from trustml.fairness import counts


class _Parts(NamedTuple):
    """Numbers of examples, float[...] each."""

    tn: jax.Array
    fp: jax.Array
    fn: jax.Array
    tp: jax.Array


def _parts(cells) -> _Parts:
    cells = counts.floats(cells)
    if cells.shape[-2:] != (2, 2):
        bound = "are not [..., 2, 2]"
        cure = "of more classes take one_vs_rest(cells)"
        _validate.fail("cells", f"array of shape {cells.shape}", bound, cure)
    return _Parts(
        cells[..., 0, 0], cells[..., 0, 1], cells[..., 1, 0], cells[..., 1, 1]
    )


def _over(part, whole):
    """Quotient, NaN where `whole` is 0; gradients stay finite."""
    some = whole > 0
    return jnp.where(some, part / jnp.where(some, whole, 1.0), jnp.nan)


def _fraction(name, of: _Parts):
    """Numerator and denominator of a rate."""
    tn, fp, fn, tp = of
    n = tn + fp + fn + tp
    return {
        "selection": (tp + fp, n),
        "base_rate": (tp + fn, n),
        "tpr": (tp, tp + fn),
        "fnr": (fn, tp + fn),
        "fpr": (fp, fp + tn),
        "tnr": (tn, fp + tn),
        "ppv": (tp, tp + fp),
        "fdr": (fp, tp + fp),
        "npv": (tn, tn + fn),
        "for_": (fn, tn + fn),
        "accuracy": (tp + tn, n),
        "error": (fp + fn, n),
        "f1": (2 * tp, 2 * tp + fp + fn),
        "treatment_ratio": (fn, fp),
    }[name]


_LACKS = {
    "selection": "examples",
    "base_rate": "examples",
    "tpr": "positives",
    "fnr": "positives",
    "fpr": "negatives",
    "tnr": "negatives",
    "ppv": "selected ones",
    "fdr": "selected ones",
    "npv": "rejected ones",
    "for_": "rejected ones",
    "accuracy": "examples",
    "error": "examples",
    "balanced_accuracy": "positives or no negatives",
    "f1": "positives and no selected ones",
    "treatment_ratio": "false positives",
}
NAMES = tuple(_LACKS)


def rate(name: str, cells: Any, *, empty: str = "nan") -> jax.Array:
    """The rate `name` of every group.

    Args:
      name: one of `NAMES`.
      cells: [..., 2, 2].
      empty: what a zero denominator gives: 'nan', or 'zero' as fairlearn has it (but
        NaN still where a group has no examples).

    Returns:
      float[...].

    Raises:
      ValueError: an unknown name, or cells of more classes.
    """
    name = _validate.one_of("name", name, NAMES)
    empty = _validate.one_of("empty", empty, ("nan", "zero"))
    parts = _parts(cells)
    if name == "balanced_accuracy":
        both = [_over(*_fraction(one, parts)) for one in ("tpr", "tnr")]
        if empty == "zero":
            both = [jnp.where(jnp.isnan(one), 0.0, one) for one in both]
        found = (both[0] + both[1]) / 2
    else:
        found = _over(*_fraction(name, parts))
    if empty == "nan":
        return found
    there = parts.tn + parts.fp + parts.fn + parts.tp > 0
    return jnp.where(jnp.isnan(found) & there, 0.0, found)


def undefined(cells: Any, name: str, names: Sequence[str]) -> tuple[str, ...]:
    """Which groups have no such rate, and what they lack, as sentences.

    Args:
      cells: [G, 2, 2], outside of jit.
      name: of the rate.
      names: of the groups, [G].
    """
    found = np.asarray(rate(name, cells))
    if found.shape != (len(names),):
        _validate.fail("names", len(names), f"must name {found.size} groups")
    return tuple(
        f"{group} has no {_LACKS[name]}"
        for group, value in zip(names, found, strict=True)
        if np.isnan(value)
    )


def selection(cells: Any) -> jax.Array:
    """Share that is guessed positive, (tp + fp) / n; NaN without examples."""
    return rate("selection", cells)


def base_rate(cells: Any) -> jax.Array:
    """Share whose label is positive, (tp + fn) / n; NaN without examples."""
    return rate("base_rate", cells)


def tpr(cells: Any) -> jax.Array:
    """True positive rate (recall), tp / (tp + fn); NaN without positives."""
    return rate("tpr", cells)


def fpr(cells: Any) -> jax.Array:
    """False positive rate, fp / (fp + tn); NaN without negatives."""
    return rate("fpr", cells)


def ppv(cells: Any) -> jax.Array:
    """Precision, tp / (tp + fp); NaN if none is selected."""
    return rate("ppv", cells)


def accuracy(cells: Any) -> jax.Array:
    """Share of right guesses, of any number of classes; NaN without examples."""
    cells = counts.floats(cells)
    right = jnp.trace(cells, axis1=-2, axis2=-1)
    return _over(right, cells.sum(axis=(-2, -1)))


def one_vs_rest(cells: Any) -> jax.Array:
    """Binary cells of every class against the others.

    Args:
      cells: [..., K, K].

    Returns:
      float[..., K, 2, 2].
    """
    cells = counts.floats(cells)
    tp = jnp.diagonal(cells, axis1=-2, axis2=-1)
    fn = cells.sum(axis=-1) - tp
    fp = cells.sum(axis=-2) - tp
    tn = cells.sum(axis=(-2, -1))[..., None] - tp - fn - fp
    return jnp.stack([jnp.stack([tn, fp], -1), jnp.stack([fn, tp], -1)], -2)


def histogram(
    group: Any,
    label: Any,
    score: Any,
    *,
    groups: int,
    bins: int = 1024,
    mask: Any = None,
) -> jax.Array:
    """Counts of scores in bins by group and label; sums of two are of both batches.

    Args:
      group: int[B]; a negative one is left out.
      label: int[B], 0 or 1.
      score: float[B], probabilities of 1; others than [0, 1] (NaN too) are left out.
      groups: G.
      bins: S, of equal width.
      mask: bool[B].

    Returns:
      int32[G, 2, S].
    """
    group, label = jnp.asarray(group), jnp.asarray(label).astype(jnp.int32)
    score = jnp.asarray(score)
    used = (score >= 0) & (score <= 1) & (group >= 0) & (group < groups)
    used &= (label >= 0) & (label < 2)
    if mask is not None:
        used &= jnp.asarray(mask, bool)
    place = jnp.clip(jnp.where(used, score, 0) * bins, 0, bins - 1).astype(jnp.int32)
    row = jnp.where(used, group, groups).astype(jnp.int32)
    zeros = jnp.zeros((groups, 2, bins), jnp.int32)
    return zeros.at[row, jnp.where(used, label, 2), place].add(1, mode="drop")


def calibration_error(hist: Any, *, bins: int = 15) -> jax.Array:
    """Expected calibration error of every group, with the middles of fine bins.

    sum_b n_b / n |share of positives in b - mean score in b|

    Args:
      hist: int32[G, 2, S] of `histogram`; S must be a multiple of `bins`, or the last
        fine bins are joined to the last coarse one.
      bins: coarse bins of equal width.

    Returns:
      float[G]; NaN without examples. Scores are known to 1/2S, so is the error.
    """
    hist = jnp.asarray(hist).astype(float)
    fine = hist.shape[-1]
    middle = (jnp.arange(fine, dtype=hist.dtype) + 0.5) / fine
    coarse = jnp.minimum((jnp.arange(fine) * bins) // fine, bins - 1)
    onto = jax.nn.one_hot(coarse, bins, dtype=hist.dtype)
    total = hist.sum(axis=-2)
    positives = hist[..., 1, :] @ onto
    scores = (total * middle[None]) @ onto
    apart = jnp.abs(positives - scores).sum(axis=-1)
    return _over(apart, total.sum(axis=-1))
