"""The attack of Shokri et al.: a classifier on the answers of shadow models.

Features of a row (a shadow model and an example) are the posteriors in descending order
and log p_y; the target is whether the example trained the model. A class with 200
shadow rows or more gets a classifier of its own, the others share one. The threshold is
fixed on the shadows, so the accuracy on the target is no maximum over thresholds.

Of the attacks here it needs the most and finds the least per example: it knows what
members look like in general, nothing of the example in question.

Dimension key: `R` shadow rows, `C` classes, `F` = C + 1 features, `H` classifiers.

Example::

    used = rotation.use[target]
    rows = shokri.features(log_probs, label)                      # [M, n, F]
    x, y = rows[used].reshape(-1, F), signals.member[used].ravel()
    groups = shokri.by_class(np.tile(label, used.sum()), num_classes=C)
    fitted = jax.jit(shokri.fit)(key, x, y, groups)
    scores = shokri.score(fitted, rows[target], label)
    metrics.at_threshold(ins, outs, float(fitted.threshold))

References: https://arxiv.org/abs/1610.05820
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from trustml import _validate
from trustml.attacks import heads, references
from trustml.attacks.references import Array, Scores

# Posteriors below it are told apart by nobody.
_FLOOR = -30.0


class ByClass(NamedTuple):
    """Which classifier learns from which rows; the first one from all.

    Attributes:
      order: int32[R], rows by class.
      start: int32[H], where the rows of a classifier start in `order`.
      count: int32[H], how many there are.
      head: int32[C], classifier of a class; 0 is the shared one.
    """

    order: np.ndarray
    start: np.ndarray
    count: np.ndarray
    head: np.ndarray


class Shokri(NamedTuple):
    """Fitted classifiers.

    Attributes:
      params: of H networks, stacked.
      centre: float32[F], of the features.
      scale: float32[F].
      head: int32[C].
      threshold: float32[], of the largest balanced accuracy on the shadow rows.
    """

    params: heads.Params
    centre: Array
    scale: Array
    head: Array
    threshold: Array


def features(log_probs: Float[Array, "*b C"], label: Int[Array, "..."]) -> jax.Array:
    """Posteriors in descending order and log p_y, float32[..., C + 1].

    Args:
      log_probs: [..., n, C].
      label: int[n].
    """
    log_probs = jnp.maximum(jnp.asarray(log_probs, jnp.float32), _FLOOR)
    label = jnp.broadcast_to(jnp.asarray(label), log_probs.shape[:-1])
    own = jnp.take_along_axis(log_probs, label[..., None], axis=-1)
    ordered = jnp.flip(jnp.sort(jnp.exp(log_probs), axis=-1), axis=-1)
    return jnp.concatenate([ordered, own], axis=-1)


def by_class(label: np.ndarray, *, num_classes: int, least: int = 200) -> ByClass:
    """Decides which classes get a classifier of their own; on the host.

    Args:
      label: int[R], of the shadow rows.
      num_classes: C.
      least: rows that a class needs.

    Raises:
      ValueError: on a label outside 0..C-1.
    """
    least = _validate.integer_at_least("shokri.least", least, 1, "200 is the default")
    label = np.asarray(label)
    if label.size == 0 or label.min() < 0 or label.max() >= num_classes:
        raise ValueError(
            f"label must lie in 0..{num_classes - 1}, of at least one shadow row; "
            "leave padding out and check num_classes."
        )
    count = np.bincount(label, minlength=num_classes)
    own = np.flatnonzero(count >= least)
    head = np.zeros(num_classes, np.int32)
    head[own] = 1 + np.arange(own.size)
    start = np.cumsum(count) - count
    return ByClass(
        order=np.argsort(label, kind="stable").astype(np.int32),
        start=np.r_[0, start[own]].astype(np.int32),
        count=np.r_[label.size, count[own]].astype(np.int32),
        head=head,
    )


def fit(
    key: jax.Array,
    rows: Float[Array, "R F"],
    member: Bool[Array, " R"],
    groups: ByClass,
    *,
    hidden: int = 64,
    steps: int = 400,
    batch_size: int = 128,
    learning_rate: float = 1e-2,
) -> Shokri:
    """Trains all classifiers at once, and fixes the threshold on the shadow rows.

    Args:
      key: of the networks and the batches.
      rows: `features` of the shadow models; none of the target or its partner.
      member: whether the example of the row trained the model of the row.
      groups: of `by_class` on the labels of the rows.
      hidden: units of the hidden layer.
      steps: of Adam.
      batch_size: rows a step and classifier, drawn with replacement.
      learning_rate: at the start.

    Returns:
      Shokri.
    References: https://arxiv.org/abs/1610.05820
    """
    hidden = _validate.integer_at_least("shokri.hidden", hidden, 1)
    rows, member = jnp.asarray(rows, jnp.float32), jnp.asarray(member)
    order, start, count, head = (jnp.asarray(part) for part in groups)
    centre, scale = heads.standard(rows)
    truth = member.astype(jnp.float32)

    def one(number):
        own = jax.random.fold_in(key, number)
        start_key, batch_key = (jax.random.fold_in(own, part) for part in (0, 1))

        def loss(params, key):
            at = jax.random.randint(key, (batch_size,), 0, count[number])
            drawn = order[start[number] + at]
            x = (rows[drawn] - centre[None]) / scale[None]
            logit = heads.apply(params, x)[:, 0]
            y = truth[drawn]
            return jnp.mean(jax.nn.softplus(logit) - y * logit)

        first = heads.init(start_key, (rows.shape[1], hidden, 1))
        rate = {"steps": steps, "learning_rate": learning_rate}
        return heads.fit(first, loss, batch_key, **rate).params

    params = jax.vmap(one)(jnp.arange(start.size))
    fitted = Shokri(params, centre, scale, head, jnp.float32(0.0))
    # The class of a row, from the order: the last start at or before it.
    label_of = jnp.zeros(rows.shape[0], jnp.int32)
    inside = jnp.arange(rows.shape[0])[None, :] - start[1:, None]
    mine = (inside >= 0) & (inside < count[1:, None])
    own_head = jnp.sum(
        jnp.where(mine, jnp.arange(1, start.size)[:, None], 0), axis=0, dtype=jnp.int32
    )
    logit = _logits(fitted, rows, label_of.at[order].set(own_head))
    return fitted._replace(threshold=_threshold(logit, truth))


def score(fitted: Shokri, rows: Float[Array, "n F"], label: Int[Array, " n"]) -> Scores:
    """Logit of membership of the target's rows.

    Args:
      fitted: of `fit`.
      rows: `features` of the target's answers.
      label: of the examples.

    Returns:
      Scores [n]; not valid where a posterior is not finite.
    """
    rows = jnp.asarray(rows, jnp.float32)
    ok = jnp.all(jnp.isfinite(rows), axis=1)
    own = jnp.asarray(fitted.head)[jnp.asarray(label)]
    return references.scores(
        _logits(fitted, jnp.where(ok[:, None], rows, 0.0), own), ok
    )


def _logits(fitted, rows, own):
    x = (rows - jnp.asarray(fitted.centre)[None]) / jnp.asarray(fitted.scale)[None]
    # Every classifier on every row, in turn; only the row's own is kept.
    count = jax.tree.leaves(fitted.params)[0].shape[0]

    def one(kept, number):
        params = jax.tree.map(lambda leaf: leaf[number], fitted.params)
        return jnp.where(own == number, heads.apply(params, x)[:, 0], kept), None

    return jax.lax.scan(one, jnp.zeros(rows.shape[0]), jnp.arange(count))[0]


def _threshold(logit, truth):
    order = jnp.argsort(-logit)
    ordered, hit = logit[order], truth[order]
    found = jnp.cumsum(hit) / jnp.maximum(jnp.sum(hit), 1.0)
    wrong = jnp.cumsum(1.0 - hit) / jnp.maximum(jnp.sum(1.0 - hit), 1.0)
    best = jnp.argmax(found - wrong)
    return 0.5 * (ordered[best] + ordered[jnp.minimum(best + 1, logit.size - 1)])
