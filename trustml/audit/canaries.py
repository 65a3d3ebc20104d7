"""Gradient canaries: examples whose clipped gradient is C e_k, a coordinate of its own.

The task gets one more leaf, `canary`, float32[n], and the examples one more field,
`canary_id`, -1 for real ones:

    loss' = [id < 0] loss(params.model, example) + [id >= 0] K canary[id]

The gradient of canary k is K e_k, clipped to C e_k where K is large, and every canary
moves one coordinate that no other example touches. What a step releases there,
x_k = g~_k m / C, is N(in_k, z^2): the canary's presence, seen through the noise and
nothing else, so the mechanism's own epsilon is attained (Nasr et al. 2023).

Every clipping rule of one group fits; `contribution` says how long the clipped gradient
is (C K / (K + gamma) under `automatic`). Under `per_layer` the leaf `canary` is a group
of its own, clipped to its share s C, under noise made for the whole of C: the audit
stays valid, its scores are those of contribution s C, and the bound is that of
mu = s sqrt(T) / z, lower than the plan's by as much. Under `quantile` the clip norm
moves: divide each step by its own C_t, and keep canaries few, since their norms count
in the quantile.

The noise, the mask, the sum over devices and the division are those of real training,
but canaries say nothing about the gradients of the model's own leaves: that they are
clipped right is checked by `ClippedGrad.check` and the tests of `privacy`.

Dimension key: n canaries, N real examples.

References: https://arxiv.org/abs/2302.07956
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Bool

from trustml import _validate, rng
from trustml.privacy import clipping, trainable
from trustml.task import Task

SCALE = 1e4
"""K: the gradient norm of a canary before it is clipped."""

FIELD = "canary_id"


class Recorded(NamedTuple):
    """State of `recording`.

    Attributes:
      released: what the optimizer was given last, like the trainable params.
      inner: state of the optimizer.
    """

    released: Any
    inner: Any


def wrap_loss(loss: Callable, *, scale: float = SCALE) -> Callable:
    """`loss` of one example, for params {'model': ..., 'canary': float32[n]}.

    Args:
      loss: (params, example, key) -> float32[]; finite on the all-zeros example, which
        is what canaries hold in all other fields.
      scale: K > 0, far above the clip norm.

    Returns:
      (params, example, key) -> float32[]; `example['canary_id']`, int32[], is k for
      canary k and negative for real examples.
    """
    scale = _validate.positive("scale", scale, "1e4 is usual")

    def wrapped(params, example, key):
        ids = example[FIELD][None]
        is_canary = (ids[0] >= 0).astype(jnp.float32)
        inner = {name: x for name, x in example.items() if name != FIELD}
        own = loss(params["model"], inner, key)
        # A lookup, so that its gradient is one scattered number and no array [n].
        found = jnp.take(params["canary"], jnp.maximum(ids, 0), mode="clip")[0]
        return (1.0 - is_canary) * own + is_canary * scale * found

    return wrapped


def wrap(task: Task, count: int, *, scale: float = SCALE) -> Task:
    """`task` with `count` canaries; see the module docstring.

    Predictions, metrics, `embed` and `head` are those of the model inside.
    """
    count = _validate.integer_at_least("count", count, 1, "5000 a side are usual")

    def init(key):
        return {"model": task.init(key), "canary": jnp.zeros(count, jnp.float32)}

    def of_model(fn):
        return lambda params, *args: fn(params["model"], *args)

    return task._replace(
        init=init,
        loss=wrap_loss(task.loss, scale=scale),
        predict=of_model(task.predict),
        embed=None if task.embed is None else of_model(task.embed),
        head=None if task.head is None else of_model(task.head),
    )


def coins(root: rng.Root, count: int) -> Bool[np.ndarray, " n"]:
    """Which canaries are in the data: fair coins, of the stream `canaries` of `root`.

    Auditor and trainer may share a root: streams are independent.
    """
    count = _validate.integer_at_least("count", count, 1, "5000 a side are usual")
    seed = rng.seed_128(rng.stream(root, "canaries"))
    generator = np.random.Generator(np.random.Philox(key=seed))
    return generator.integers(0, 2, count, dtype=np.int8).astype(bool)


def insert(
    columns: Mapping[str, np.ndarray], included: Bool[np.ndarray, " n"]
) -> dict[str, np.ndarray]:
    """The columns with one all-zeros row more for every canary that is in.

    Args:
      columns: name -> [N, ...], the real examples.
      included: bool[n].

    Returns:
      name -> [N + sum(included), ...], and `canary_id`, int32.

    Raises:
      ValueError: if there is such a field already.
    """
    if FIELD in columns:
        _validate.fail("columns", sorted(columns), f"has '{FIELD}' already")
    ids = np.flatnonzero(included).astype(np.int32)
    out = {}
    for name, column in columns.items():
        zeros = np.zeros((len(ids), *column.shape[1:]), column.dtype)
        out[name] = np.concatenate([column, zeros])
    real = len(next(iter(columns.values()))) if columns else 0
    out[FIELD] = np.concatenate([np.full(real, -1, np.int32), ids])
    return out


def contribution(
    clipper: clipping.ClippedGrad, params: Any, *, scale: float = SCALE
) -> float:
    """Length of a canary's clipped gradient, in units of the gradient.

    Args:
      clipper: made with the wrapped loss; a clip norm that stays.
      params: of the wrapped task.
      scale: K, as given to `wrap`.

    Raises:
      ValueError: if the clip norm is tracked, and so has no one value, or if the leaf
        of the canaries is frozen.
    """
    if clipper.rule.adapt is not None:
        _validate.fail(
            "clipper.rule",
            clipper.rule.name,
            "tracks its clip norm, so a canary's contribution changes with the step",
            "divide what each step released by mechanism.clip_norms of its state",
        )
    train, _ = trainable.partition(params, clipper.trainable)
    names = trainable.paths(train)
    if "canary" not in names:
        _validate.fail(
            "clipper.trainable",
            clipper.trainable,
            "leaves out the parameter 'canary'",
            "add 'canary' to it",
        )
    groups = clipper.groups(params)
    share = groups.shares[groups.index[names.index("canary")]]
    norm = jnp.float32(share * clipper.l2_clip_norm)
    factor = clipper.rule.weight(jnp.full((1,), scale, jnp.float32), norm)
    return float(factor[0]) * scale


def recording(
    optimizer: optax.GradientTransformation,
) -> optax.GradientTransformation:
    """`optimizer`, keeping in its state the noisy mean that it was given last.

    What a private step releases is that mean, so `state.opt_state.released` is all that
    an adversary who sees every update can know of the step.
    """

    def init(params):
        return Recorded(jax.tree.map(jnp.zeros_like, params), optimizer.init(params))

    def update(updates, state, params=None):
        moved, inner = optimizer.update(updates, state.inner, params)
        return moved, Recorded(updates, inner)

    return optax.GradientTransformation(init, update)
