"""The label leak: the gradient of the last layer tells the labels of the batch.

With cross-entropy the gradient of the last bias is mean_i (p_i - y_i), y one-hot. For
one example its only negative entry is the true class, whatever the model (iDLG, Zhao et
al. 2020). Without a bias the columns of the kernel's gradient h (p - y)^T do: the true
class's points against all others, and is the longest.

For a batch of B, n_c = B (mean_i p_ic - g_c) counts label c. The mean probability is
not seen, but the model is: before training it is near 1 / C, later it is what the model
says of any inputs. The estimate is rounded to whole numbers that sum to B.

Both need a gradient, not a sum of several steps; the counts also need it unclipped.
Dimension key: C classes, I inputs of the last layer.

Example::

    label = labels.of_bias(gradient['output']['bias'])                 # one example
    labels.counts(gradient['output']['bias'], batch_size=16)           # int64[C]

References: https://arxiv.org/abs/2001.02610; counts: https://arxiv.org/abs/2105.09369
"""

import numpy as np
from numpy import typing as npt

from trustml import _validate


def of_bias(gradient_C: npt.ArrayLike) -> int:
    """The label of a single example, from the gradient of the last bias; exact.

    Raises:
      ValueError: if not exactly one entry is negative: then it is not the gradient of
        cross-entropy on one example, without noise.
    """
    gradient = _vector("gradient", gradient_C)
    negative = np.flatnonzero(gradient < 0)
    if negative.size != 1:
        _validate.fail(
            "gradient",
            f"{negative.size} negative entries",
            "is not that of cross-entropy on one example",
            "use counts for a batch",
        )
    return int(negative[0])


def of_kernel(gradient_IC: npt.ArrayLike) -> int:
    """The label of a single example, from the gradient of the last kernel.

    Columns are h_i (p_c - y_c): the longest is the true class's, since its factor is
    the sum of all others.

    Raises:
      ValueError: with fewer than 3 classes, where both columns are equally long, or if
        the gradient is 0.
    """
    gradient = np.asarray(gradient_IC, np.float64)
    if gradient.ndim != 2 or gradient.shape[1] < 3:
        _validate.fail(
            "gradient",
            list(gradient.shape),
            "must be [I, C] with C >= 3",
            "two columns are equally long; use the bias",
        )
    norms = np.linalg.norm(gradient, axis=0)
    if not norms.max() > 0:
        _validate.fail("gradient", 0.0, "says nothing", "use the bias")
    return int(np.argmax(norms))


def counts(
    gradient_C: npt.ArrayLike,
    batch_size: int,
    *,
    mean_probs: npt.ArrayLike | None = None,
) -> np.ndarray:
    """Estimated number of examples of each label in a batch.

    Args:
      gradient_C: mean over the batch of the gradient of the last bias.
      batch_size: B >= 1, known to the server.
      mean_probs: float[C], what the public model says on average of inputs like these;
        uniform where None, which fits an untrained model.

    Returns:
      int64[C] that sums to B: the estimates n_c cut at 0, rounded down, and what is
      missing given to the largest remainders.

    Raises:
      ValueError: if shapes do not fit or B < 1.
    """
    size = _validate.integer_at_least("batch_size", batch_size, 1)
    gradient = _vector("gradient", gradient_C)
    if mean_probs is None:
        probs = np.full(gradient.size, 1.0 / gradient.size)
    else:
        probs = _vector("mean_probs", mean_probs)
    if probs.size != gradient.size:
        _validate.fail(
            "mean_probs", probs.size, f"must have {gradient.size} entries, as gradient"
        )
    estimate = np.maximum(size * (probs - gradient), 0.0)
    if not estimate.sum() > 0:  # no gradient of cross-entropy; say what is known
        estimate = probs
    estimate = estimate * (size / estimate.sum())
    whole = np.floor(estimate + 1e-6).astype(np.int64)
    order = np.argsort(whole - estimate, kind="stable")
    whole[order[: size - whole.sum()]] += 1
    return whole


def _vector(field: str, values: npt.ArrayLike) -> np.ndarray:
    vector = np.asarray(values, np.float64)
    if vector.ndim != 1 or vector.size < 2 or not np.isfinite(vector).all():
        _validate.fail(
            field, list(vector.shape), "must be [C], finite, with C >= 2 classes"
        )
    return vector
