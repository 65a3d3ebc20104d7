"""Clipping bias of a private run, by group, at the end of its training.

A sample of training examples goes through the run's own clipper, a group and a block
at a time: the sums that DP-SGD would have added noise to, beside those of the same
gradients left as they are. NOT private.

Example::

    found = group_clipping.of_run(config, data, task, trained, groupings)
    found['sex'].groups[0].clipped_share.value      # or a sentence that says why not
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trustml import rng, specs
from trustml import task as task_lib
from trustml.data import datasets
from trustml.experiments import build, loop, units
from trustml.experiments import step as step_lib
from trustml.fairness import clipping_bias
from trustml.privacy import clipping

SAMPLE = 2000  # training examples looked at, at most
_ROWS = 128  # at once
_BLOCKS, _MOST = 10, 10**9  # of the jackknife; bytes that all their sums may take


class Grouping(NamedTuple):
    """One attribute of the data, each example in one group at most.

    Attributes:
      name: such as 'sex'.
      names: of its groups.
      of: split -> int32[n]; negative is unknown.
    """

    name: str
    names: tuple[str, ...]
    of: Mapping[str, np.ndarray]


def of_run(
    config: specs.RunConfig,
    data: datasets.Dataset,
    task: task_lib.Task,
    trained: loop.Trained,
    groupings: Sequence[Grouping],
) -> dict[str, clipping_bias.ClippingBias] | str:
    """Clipping bias by every attribute that training examples have.

    Args:
      config: of the run.
      data: its data.
      task: its task.
      trained: what `loop.fit` returned.
      groupings: attributes to report by.

    Returns:
      Attribute -> its bias; or why there is none, as a sentence.
    """
    if refused := _refused(config, trained, groupings):
        return refused
    look = _sums(config, data, task, trained)
    total = len(data.train["label"])
    rows = np.random.default_rng(config.seed).permutation(total)[:SAMPLE]
    found = {}
    for grouping in groupings:
        group = grouping.of["train"][rows]
        if (group < 0).all():
            continue
        found[grouping.name] = _of_groups(
            look, data, rows, group, grouping.names, config
        )
    return found


def _refused(config, trained, groupings) -> str:
    clipper = trained.clipper
    if units.are_users(config):
        return "a gradient is that of a user, with all their examples"
    if not isinstance(clipper, clipping.ClippedGrad):
        return "means of micro-batches are clipped, not examples"
    if clipper.rule.adapt is not None:
        return "the clip norm moved while training"
    if all((grouping.of["train"] < 0).all() for grouping in groupings):
        return "groups of training examples are not known"
    return ""


class _Looked(NamedTuple):
    """Of some rows: sums as float32[P], norms before and after clipping, float32[n]."""

    clipped: np.ndarray
    unclipped: np.ndarray
    norms: np.ndarray
    kept: np.ndarray
    bad: np.ndarray


def _sums(config, data, task, trained):
    """A function: row numbers -> `_Looked`; one compilation."""
    clipper = trained.clipper
    loss = build.loss(config, data, task)
    plain = step_lib.ordinary_sums(loss, clipper.trainable)
    key = rng.stream(jax.random.key(config.seed), "clipping_bias")
    params = jax.tree.map(jnp.asarray, jax.device_get(trained.params))
    limits = clipping.group_norms(clipper.l2_clip_norm, clipper.groups(params))

    @jax.jit
    def run(params, batch, mask, ids):
        clipped, info = clipper(params, batch, mask, key, ids)
        good = mask & ~info.nonfinite_per_example
        # What is not finite is no gradient: an example of zeros that does not count.
        batch = jax.tree.map(
            lambda x: jnp.where(
                good.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.zeros((), x.dtype)
            ),
            batch,
        )
        unclipped, _ = plain(params, batch, good, key, ids)
        kept = [
            clipper.rule.weight(info.group_norms_per_example[:, i], limits[i])
            * info.group_norms_per_example[:, i]
            for i in range(len(limits))
        ]
        kept = jnp.linalg.norm(jnp.stack(kept), axis=0)
        return _flat(clipped), _flat(unclipped), info.norms_per_example, kept, ~good

    def look(rows: np.ndarray) -> _Looked:
        parts: list[Any] = []
        for start in range(0, max(len(rows), 1), _ROWS):
            some = rows[start : start + _ROWS]
            filled = np.zeros(_ROWS, np.int64)
            filled[: len(some)] = some
            mask = np.arange(_ROWS) < len(some)
            batch = {name: column[filled] for name, column in data.train.items()}
            out = jax.device_get(run(params, batch, mask, filled.astype(np.uint32)))
            parts.append([*out[:2], *(x[mask] for x in out[2:])])
        clipped, unclipped, *each = zip(*parts, strict=True)
        return _Looked(
            np.sum(clipped, axis=0),
            np.sum(unclipped, axis=0),
            *(np.concatenate(x) for x in each),
        )

    return look


def _flat(tree):
    return jnp.concatenate([x.reshape(-1) for x in jax.tree.leaves(tree)])


def _of_groups(look, data, rows, group, names, config) -> clipping_bias.ClippingBias:
    size = look(rows[:0]).clipped.size
    blocks = _BLOCKS if 8 * _BLOCKS * len(names) * size <= _MOST else 1
    sums = np.zeros((2, blocks, len(names), size), np.float32)
    norms, kept, of = [], [], []
    for block in range(blocks):
        mine = np.arange(len(rows)) % blocks == block
        for g in range(len(names)):
            some = rows[mine & (group == g)]
            if not len(some):
                continue
            seen = look(some)
            sums[0, block, g], sums[1, block, g] = seen.clipped, seen.unclipped
            norms.append(seen.norms[~seen.bad])
            kept.append(seen.kept[~seen.bad])
            of.append(np.full(int(np.sum(~seen.bad)), g))
    return clipping_bias.measure(
        *(np.concatenate(x) for x in (norms, kept, of)),
        *sums,
        names=names,
        level=config.report.level,
        small=config.fairness.least,
        seed=config.seed,
    )
