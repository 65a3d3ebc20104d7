"""Signals: the one array that every membership attack reads.

Dimension key: `M` models, `n` examples, `Q` queries of an example (heads, augmented
views), `C` classes.

    margin = log p_y - log sum_{k != y} p_k                     (Carlini et al. 2022)

is the logit of the probability of the true class. It is computed from
log-probabilities, never as log(p / (1 - p)), which in float32 is infinite from a logit
of 17 on and makes ties of what an attack has to rank. For the same reason

    log p_y = -softplus(-margin)

which still tells probabilities apart that round to 1. Both come from `task.predict`, in
evaluation mode, one example at a time: never from the loss of training, whose dropout
would be noise.

Example::

    score = signals.of(task)                        # one function of (params, columns)
    margin, log_prob = score(params_of_models, columns)              # [M, n, Q] each
    found = signals.assemble(margin, log_prob, design, columns['label'])
    np.sum(~found.valid)                            # examples that cannot be attacked

References: https://arxiv.org/abs/2112.03570
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy import typing as npt

from trustml import _validate
from trustml import task as task_lib
from trustml.attacks import designs
from trustml.models import tagging

Score = Callable[[Any, Mapping[str, Any]], tuple[jax.Array, jax.Array]]


class Signals(NamedTuple):
    """What M models say of n examples; every score is oriented: larger means member.

    Attributes:
      margin: float32[M, n, Q], the logit of the true class's probability.
      log_prob: float32[M, n, Q], log p_y.
      member: bool[M, n], was example i in the training set of model m.
      pair: int32[M], the complementary model of the design; -1 where there is none.
      label: int32[n], class.
      group: int32[n], subgroup; -1 where there is none.
      valid: bool[n], false for padding and for examples with a signal that is not
        finite.
      fingerprint: of data, design, parameters and versions; signals that were kept are
        used again only where it is equal.
    """

    margin: np.ndarray
    log_prob: np.ndarray
    member: np.ndarray
    pair: np.ndarray
    label: np.ndarray
    group: np.ndarray
    valid: np.ndarray
    fingerprint: str


def margin_of(log_probs: jax.Array, label: jax.Array) -> jax.Array:
    """Logit of the probability of `label`; float32[].

    Args:
      log_probs: float32[C], or logits: what all classes have in common cancels.
      label: int32[]; NaN comes of one outside [0, C).

    Raises:
      ValueError: when traced, if there is but one class, whose margin is infinite.
    """
    if log_probs.shape[-1] < 2:
        bound = "has no margin: its probability is 1 for members and others alike"
        _validate.fail("classes", log_probs.shape[-1], bound, "attack another head")
    log_probs = log_probs.astype(jnp.float32)
    classes = jnp.arange(log_probs.shape[-1])
    is_label = classes == label
    rest = jax.nn.logsumexp(log_probs, where=~is_label)
    own = jnp.sum(jnp.where(is_label, log_probs, 0.0))
    return jnp.where(jnp.any(is_label), own - rest, jnp.nan)


def of(task: task_lib.Task, *, classes: bool = True, chunk: int = 512) -> Score:
    """What the models of `task` say of examples: margins and log p_y.

    A prediction with slots (`tagging.Joint`) has two queries, label and slots; that of
    the slots is the mean over the tokens that count, and 0 where there are none.

    Args:
      task: its `predict` is used, or, without classes, its metric `loss`.
      classes: False for tasks that predict no classes (regression, sequences): the
        margin is then -loss in evaluation mode and log p_y is NaN, so that attacks that
        need a probability cannot take it for one.
      chunk: examples at once, to bound memory.

    Returns:
      fn(params, columns) -> (margin float32[M, n, Q], log_prob float32[M, n, Q]).
        params: leaves [M, ...]; columns: name -> [n, ...]. Pure; for `jax.jit`.

    Raises:
      ValueError: when built, if `chunk` is not a positive integer or a task without
        classes has no metric `loss`; when traced, if a prediction does not fit
        `classes`.
    """
    chunk = _validate.integer_at_least("chunk", chunk, 1, "512 is usual")
    if not classes and "loss" not in task.metrics:
        bound = "hold no 'loss', which is what remains of a task without classes"
        _validate.fail("task.metrics", sorted(task.metrics), bound, "add it")

    def loss_of(prediction, example):
        value = -task.metrics["loss"](prediction, example).astype(jnp.float32)
        return value[None], jnp.full((1,), jnp.nan)

    def one(params, example):
        prediction = task.predict(params, example)
        return (_heads if classes else loss_of)(prediction, example)

    return lambda params, columns: _over(one, params, columns, chunk)


def posteriors(task: task_lib.Task, *, chunk: int = 512) -> Callable[[Any, Any], Any]:
    """What `shokri` reads: log-probabilities of all classes of the label.

    Returns:
      fn(params, columns) -> float32[M, n, C]; params and columns as of `of`. Pure.

    Raises:
      ValueError: when built, if `chunk` is not a positive integer.
    """
    chunk = _validate.integer_at_least("chunk", chunk, 1, "512 is usual")

    def one(params, example):
        prediction = task_lib.label_log_probs(task.predict(params, example))
        return (prediction.astype(jnp.float32),)

    return lambda params, columns: _over(one, params, columns, chunk)[0]


def assemble(
    margin: npt.ArrayLike,
    log_prob: npt.ArrayLike,
    design: designs.Design,
    label: npt.ArrayLike,
    *,
    group: npt.ArrayLike | None = None,
    fingerprint: str = "",
) -> Signals:
    """The signals of a design's models.

    Args:
      margin: float32[M, n, Q].
      log_prob: float32[M, n, Q]; all NaN where there are no classes.
      design: of the models.
      label: int[n].
      group: int[n], subgroups; None: there are none.
      fingerprint: of all that the signals depend on.

    Raises:
      ValueError: if the shapes do not fit, or a model has no finite signal at all.
    """
    margins, probs = np.asarray(margin), np.asarray(log_prob)
    labels = np.asarray(label, np.int32)
    groups = np.full(labels.shape, -1) if group is None else np.asarray(group)
    for field, x, shape in (
        ("margin", margins, (*design.member.shape, margins.shape[-1])),
        ("log_prob", probs, margins.shape),
        ("label", labels, design.member.shape[1:]),
        ("group", groups, labels.shape),
    ):
        if x.shape != shape:
            bound = f"does not fit the shape {shape} that follows from the design"
            cure = "give one row for every model and one column for every example"
            _validate.fail(f"{field}.shape", x.shape, bound, cure)
    finite: Any = np.isfinite(margins).all(axis=2)
    if not np.isnan(probs).all():
        finite &= np.isfinite(probs).all(axis=2)
    lost = np.flatnonzero(~finite.any(axis=1))
    if lost.size:
        raise ValueError(
            f"model {lost[0]} ({lost.size} of {len(finite)} in all) has no finite "
            "signal: its training diverged; lower the learning rate."
        )
    return Signals(
        margin=margins.astype(np.float32),
        log_prob=probs.astype(np.float32),
        member=design.member,
        pair=design.pair,
        label=labels,
        group=groups.astype(np.int32),
        valid=finite.all(axis=0),
        fingerprint=fingerprint,
    )


def _over(one, params, columns, chunk: int):
    """`one(params, example)` -> arrays [F], of M models and all examples: [M, n, F]."""

    def of_model(params, rows):
        return jax.lax.map(lambda batch: jax.vmap(one, (None, 0))(params, batch), rows)

    length = len(next(iter(columns.values())))
    size = min(chunk, length)
    rows = {name: _chunks(jnp.asarray(x), size) for name, x in columns.items()}
    parts = jax.vmap(of_model, (0, None))(params, rows)
    return tuple(x.reshape(x.shape[0], -1, x.shape[-1])[:, :length] for x in parts)


def _heads(prediction, example):
    """Margins and log-probabilities of every head, float32[Q] each."""
    log_probs = task_lib.label_log_probs(prediction)
    if jnp.ndim(log_probs) != 1 or "label" not in example:
        found = getattr(log_probs, "shape", type(log_probs).__name__)
        raise ValueError(
            f"task.predict gives {found} for an example with {sorted(example)}, and "
            "attacks need log-probabilities of classes [C] and a 'label'; for tasks "
            "without classes use signals.of(task, classes=False), whose margin is "
            "-loss."
        )
    margins = [margin_of(log_probs, example["label"])]
    log_p = [-jax.nn.softplus(-margins[0])]
    if hasattr(prediction, "slots"):
        real = tagging.real_tokens(example)
        tags = jnp.where(real, example["slots"], 0)
        of_token = jax.vmap(margin_of)(tagging.slot_log_probs(prediction), tags)
        count = jnp.maximum(jnp.sum(real), 1).astype(jnp.float32)
        for into, values in ((margins, of_token), (log_p, -jax.nn.softplus(-of_token))):
            into.append(jnp.sum(jnp.where(real, values, 0.0)) / count)
    return jnp.stack(margins), jnp.stack(log_p)


def _chunks(x: jax.Array, size: int) -> jax.Array:
    """[n, ...] as [k, size, ...]; the last chunk is filled up with zeros."""
    spare = -len(x) % size
    x = jnp.pad(x, [(0, spare)] + [(0, 0)] * (x.ndim - 1))
    return x.reshape(-1, size, *x.shape[1:])
