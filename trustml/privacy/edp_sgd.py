"""eDP-SGD: clip the mean of a micro-batch instead of every example's gradient.

    h_j = clip((1/m_g) sum_{i in group j} g_i),   noisy = sum_j h_j + N(0, (z_e C)^2)

with k groups of m_g expected examples, thresholds per layer and noise that decays over
the epochs (Dupuy, Arava, Gupta, Rumshisky 2022). One gradient for a group costs what
ordinary training costs, which was its point; book-keeping (`clipping`) now has the
exact guarantee at the same price, and this module is here to compare and to account
for it honestly.

What it really guarantees. The clip bounds the group's mean, not one example's share of
it: one example can turn the clipped mean from +C v to -C v, so the sensitivity is 2C,
whatever m_g is.

| grouping | add/remove | zero-out | replace-one |
| --- | --- | --- | --- |
| one example each (DP-SGD) | C | C | 2C |
| slot drawn for each example on its own | 2C | 2C | 2C |
| a permutation, packed in order | up to 4C | 2C | 2C |
| sampled examples packed in data order | up to 2kC | 2C | 2C |

Only the second row is offered: `micro_batches` draws every example's slot, and a plan
refuses any other sampler. Its event has the multiplier z/2; `nominal_epsilon` is what
the same noise would mean if the sensitivity were C, the figure such methods are often
quoted with. At q = 0.01, 1000 steps, z = 1, delta = 1e-5: nominal 1.83, real 13.36.

Dimension key: D devices, K groups, M microbatches, P slots of one.

Example::

    clipper = edp_sgd.clipped_grad(task.loss, l2_clip_norm=1.0, group_size=64,
                                   rule='per_layer')
    sampler = edp_sgd.micro_batches(13_084, 512, group_size=64, physical_batch_size=32)
    made = plan.make(clipper, sampler, noise_multiplier=1.0, ...)
    made.epsilon(), edp_sgd.nominal_epsilon(made)

References: https://arxiv.org/abs/2107.14586
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import dp_accounting
import jax
import jax.numpy as jnp
import numpy as np

from trustml import _validate
from trustml.privacy import accounting, arguments, clipping, draws, sampling
from trustml.privacy import rules as rules_lib
from trustml.privacy import trainable as trainable_lib

Relation = dp_accounting.NeighboringRelation


class GroupInfo(NamedTuple):
    """Diagnostics of one micro-batch. NOT private.

    Attributes:
      norm: of the mean gradient before clipping, float32[]; inf where not finite.
      group_norms_per_example: of its groups of leaves, float32[1, G]; one row, for the
        unit that is clipped here is the micro-batch.
    """

    norm: jax.Array
    group_norms_per_example: jax.Array


@dataclasses.dataclass(frozen=True)
class MicroBatchGrad:
    """Sums of a micro-batch and their clipped mean, with the guarantee of the pair.

    Attributes:
      sums: (params, batch, mask, key, example_ids, group_clip_norms) -> (sums,
        ClipInfo): plain sums of gradients over rows of ONE micro-batch; calling the
        object does the same. Norms in its info are 0: no example's norm is known.
      close: (sums of a whole micro-batch, group_clip_norms) -> (clipped mean,
        GroupInfo).
      l2_clip_norm: C, of a micro-batch's mean gradient.
      rule: as in `clipping`, applied to the mean.
      group_size: m_g, expected examples of a micro-batch; a public constant.
      trainable: as in `clipping`.
    """

    sums: Callable[..., tuple[Any, clipping.ClipInfo]]
    close: Callable[..., tuple[Any, GroupInfo]]
    l2_clip_norm: float
    rule: rules_lib.Rule
    group_size: float
    trainable: trainable_lib.Selection
    privacy_unit: str = "example"

    def __call__(
        self, params, batch, mask, key, example_ids=None, group_clip_norms=None
    ):
        """See `sums`."""
        return self.sums(params, batch, mask, key, example_ids, group_clip_norms)

    def sensitivity(self, relation: Relation) -> float:
        """2C under every relation, for slots that are drawn independently."""
        del relation  # what one example can do to its group is the same
        return 2.0 * self.l2_clip_norm

    def groups(self, params) -> rules_lib.Groups:
        """Which trainable leaves of `params` are clipped together."""
        train, _ = trainable_lib.partition(params, self.trainable)
        return self.rule.groups_of(trainable_lib.paths(train))

    def check(self, params, batch, key=None) -> None:
        """Nothing to compare: these are ordinary gradients."""


def clipped_grad(
    loss: Callable[[Any, Any, Any], jax.Array],
    *,
    l2_clip_norm: float,
    group_size: float,
    rule: str | rules_lib.Rule = "per_layer",
    trainable: trainable_lib.Selection = None,
) -> MicroBatchGrad:
    """Clipped means of micro-batches; see the module docstring.

    Args:
      loss: (params, example, key) -> float32[]; one example, no batch axis.
      l2_clip_norm: C > 0, of the mean gradient of a micro-batch.
      group_size: m_g > 1, a public constant that the sums are divided by; never the
        realised size.
      rule: as in `clipping.clipped_grad`.
      trainable: as in `clipping.clipped_grad`.

    Raises:
      ValueError: when built, if an argument is out of its bounds.
    """
    arguments.check_loss_takes(loss)
    cure = "choose a finite clip norm above 0"
    norm = _validate.positive("l2_clip_norm", l2_clip_norm, cure)
    size = _group_size(group_size)
    rule = rules_lib.rule(rule)

    def sums(params, batch, mask, key, example_ids=None, group_clip_norms=None):
        del group_clip_norms  # clipped when the micro-batch is closed
        mask = jnp.asarray(mask)
        arguments.check_key(key)
        num_rows = arguments.check_batch(batch, mask)
        if example_ids is None:
            example_ids = jnp.arange(num_rows, dtype=jnp.uint32)
        example_ids = arguments.check_ids(example_ids, num_rows)
        train, frozen = trainable_lib.partition(params, trainable)
        # Padding takes the content of a real row, at weight 0: 0 * NaN is NaN.
        rows = jnp.where(mask, jnp.arange(num_rows), jnp.argmax(mask))
        batch = jax.tree.map(lambda x: jnp.asarray(x)[rows], batch)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, example_ids[rows])

        def total(train):
            whole = trainable_lib.combine(train, frozen)
            losses = jax.vmap(loss, (None, 0, 0))(whole, batch, keys)
            losses = losses.astype(jnp.float32)
            return jnp.sum(losses * mask.astype(jnp.float32)), losses

        grads, losses = jax.grad(total, has_aux=True)(train)
        some = jnp.any(mask)
        grads = jax.tree.map(
            lambda g: jnp.where(some, g.astype(jnp.float32), 0.0), grads
        )
        nothing = jnp.zeros_like(losses)
        info = clipping.ClipInfo(
            norms_per_example=nothing,
            losses_per_example=jnp.where(mask, losses, 0.0),
            nonfinite_per_example=~jnp.isfinite(losses) & mask,
            group_norms_per_example=nothing[:, None],
        )
        return grads, info

    def close(grads, group_clip_norms=None):
        leaves, tree = jax.tree.flatten(grads)
        paths = trainable_lib.paths(grads)
        groups = rule.groups_of(paths)
        norms = clipping.group_norms(norm, groups, group_clip_norms)
        limits = clipping.Limits(rule, groups, norms)
        means = [g / jnp.float32(size) for g in leaves]
        squares = [jnp.sum(jnp.square(g))[None] for g in means]
        one = jnp.ones((1,), bool)
        factors, bad = limits.factors(squares, jnp.zeros((1,)), one)
        clipped = [
            jnp.where(bad[0], 0.0, c[0] * g)
            for c, g in zip(factors, means, strict=True)
        ]
        info = limits.info(squares, jnp.zeros((1,)), one, bad)
        return tree.unflatten(clipped), GroupInfo(
            info.norms_per_example[0], info.group_norms_per_example
        )

    return MicroBatchGrad(sums, close, norm, rule, size, trainable)


def micro_batches(
    num_examples: int,
    expected_batch_size: int,
    *,
    group_size: int,
    physical_batch_size: int,
    shards: int | None = None,
    seed: int | None = None,
) -> sampling.Sampler:
    """Poisson batches whose examples each draw one of k = m / m_g micro-batches.

    Slots are independent of each other and of who else is drawn. A micro-batch holds at
    most m_g + 6 sqrt(m_g) examples; beyond (probability about 1e-9) the highest ids of
    that micro-batch are left out, which changes no other. It is laid out over
    microbatches of P slots that follow each other; `closes` marks the last of each.

    Args:
      num_examples: N.
      expected_batch_size: m, a multiple of group_size.
      group_size: m_g, expected examples of a micro-batch.
      physical_batch_size: P, slots computed at once on one device.
      shards: None, or the number of devices to deal micro-batches over.
      seed: None for 128 bits from the OS; an integer is reproducible.

    Raises:
      ValueError: when built, naming field, value, bound and cure.
    """
    size = int(_group_size(_validate.integer_at_least("group_size", group_size, 2)))
    batch = _validate.integer_at_least("expected_batch_size", expected_batch_size, 1)
    if batch % size:
        _validate.fail(
            "expected_batch_size",
            batch,
            f"must be a multiple of group_size={size}",
            "every micro-batch expects the same number of examples",
        )
    count, devices = batch // size, shards or 1
    if count % devices:
        _validate.fail(
            "group_size",
            size,
            f"makes {count} micro-batches, which {devices} devices cannot share",
            "make their number a multiple of the devices",
        )
    base = sampling.poisson(
        num_examples,
        batch,
        physical_batch_size=physical_batch_size,
        shards=shards,
        seed=seed,
    )
    slots = base.physical_batch_size
    most = math.ceil(size + 6 * math.sqrt(size))
    capacity = (count // devices) * math.ceil(most / slots)

    def grouped(sampler: sampling.Sampler) -> sampling.Sampler:
        def physical(step: int) -> list[sampling.Physical]:
            ids = sampler.draw(step)
            generator = draws.generator(sampler.seed, "slots", step)
            slot = generator.integers(count, size=len(ids))
            members = [ids[slot == j][:most] for j in range(count)]
            return [_lay_out(members, capacity, slots, shards)]

        def reseed(seed: int, secret: bool = False) -> sampling.Sampler:
            return grouped(base.reseed(seed, secret))

        return sampler._replace(
            name="micro_batches",
            capacity=capacity,
            physical=physical,
            reseed=reseed,
            group_size=size,
        )

    return grouped(base)


def nominal_epsilon(made, step: int | None = None) -> float:
    """Epsilon if the clip bounded one example's share: NOT a guarantee.

    The event of the plan with the sensitivity C instead of 2C, as it is often reported.

    Args:
      made: a `plan.Plan` of this module's clipper and sampler.
      step: after this many steps; None for all.
    """
    relation = Relation.ADD_OR_REMOVE_ONE
    event = _doubled(made.event(step))
    return accounting.epsilon(event, made.delta, relation, made.accountant)


def _doubled(event: Any) -> Any:
    """The same event, every Gaussian with twice the noise multiplier."""
    if isinstance(event, dp_accounting.ComposedDpEvent):
        return dp_accounting.ComposedDpEvent([_doubled(e) for e in event.events])
    if isinstance(event, dp_accounting.SelfComposedDpEvent):
        return dp_accounting.SelfComposedDpEvent(_doubled(event.event), event.count)
    if isinstance(event, dp_accounting.PoissonSampledDpEvent):
        inner = _doubled(event.event)
        return dp_accounting.PoissonSampledDpEvent(event.sampling_probability, inner)
    return dp_accounting.GaussianDpEvent(2 * event.noise_multiplier)


def _lay_out(members, capacity, slots, shards) -> sampling.Physical:
    """Micro-batch j on device j mod D, each in consecutive microbatches."""
    devices = shards or 1
    indices = np.zeros((devices, capacity, slots), np.int32)
    mask = np.zeros((devices, capacity, slots), bool)
    closes = np.zeros((devices, capacity), bool)
    used = np.zeros(devices, int)
    for j, ids in enumerate(members):
        device = j % devices
        # An empty micro-batch takes one microbatch of padding: its bits still count.
        length = max(1, math.ceil(len(ids) / slots))
        rows = slice(used[device], used[device] + length)
        indices[device, rows].reshape(-1)[: len(ids)] = ids
        mask[device, rows].reshape(-1)[: len(ids)] = True
        used[device] += length
        closes[device, used[device] - 1] = True
    if shards is None:
        indices, mask, closes = indices[0], mask[0], closes[0]
    return sampling.Physical(indices, mask, int(used.max()), True, closes)


def _group_size(value: float) -> float:
    cure = "use clipping.clipped_grad to clip every example"
    size = _validate.positive("group_size", value, cure)
    if size <= 1:
        _validate.fail("group_size", value, "must be above 1", cure)
    return size
