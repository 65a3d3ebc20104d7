"""One compiled step, private or not.

    sums  = sum over the logical batch of (clipped) gradients    microbatches on devices
    noisy = sums + N(0, stddev^2)                                once per logical batch
    params <- optimizer(noisy / expected_batch_size)             any optax optimizer

The realised batch size never shapes the program: a draw fills fixed buffers [M, P] and
a loop runs over as many microbatches as it needs. A draw beyond the buffers calls the
same program again; only the last call of a step adds noise and updates.

Where micro-batches are clipped as one (`trustml.privacy.edp_sgd`), plain sums are kept
open until a microbatch that closes one.

Dimension key: D devices, M microbatches, P slots of one microbatch.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from trustml import parallel, rng, specs
from trustml import task as task_lib
from trustml.data import batches, datasets
from trustml.experiments import average, build, units
from trustml.privacy import clipping, edp_sgd, noise, quantile, sampling
from trustml.privacy import plan as plan_lib
from trustml.privacy import trainable as trainable_lib

Clipper = clipping.ClippedGrad | edp_sgd.MicroBatchGrad


class TrainState(NamedTuple):
    """What persists from one call of the step to the next; all of it is saved.

    Attributes:
      step: int32[], updates made.
      params: the model's parameters.
      opt_state: of the optimizer, over the trainable leaves.
      noise: keys and counter of the noise; () without privacy.
      partial: sums of the current logical batch, float32: like the trainable leaves,
        and bits of the tracked clip norms (or ()).
      counts: `Counts` of the current logical batch.
      nonfinite: int32[], gradients so far that were not finite, and contributed 0.
      average: of the trainable leaves, see `trustml.experiments.average`; () where
        none is taken.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    noise: Any
    partial: Any
    counts: "Counts"
    nonfinite: jax.Array
    average: Any


class Counts(NamedTuple):
    """Sums over a logical batch, for the metrics. NOT private."""

    examples: jax.Array
    loss: jax.Array
    norm: jax.Array
    clipped: jax.Array
    nonfinite: jax.Array


class Prepared(NamedTuple):
    """A run that is ready for its first step.

    Attributes:
      step: see `make_step`; not yet compiled.
      state: before the first step, on the devices.
      sampler: of the batches.
      plan: None without privacy.
      clipper: None without privacy.
      devices: the run's.
      selection: which leaves are trained; None: all.
      columns: what the sampler's ids are rows of, see `trustml.experiments.units`.
    """

    step: Callable
    state: TrainState
    sampler: sampling.Sampler
    plan: plan_lib.Plan | None
    clipper: Clipper | None
    devices: list
    selection: trainable_lib.Selection
    columns: batches.Columns


def prepare(
    config: specs.RunConfig, data: datasets.Dataset, task: task_lib.Task
) -> Prepared:
    """The step of the config's run and the state it starts from.

    Raises:
      ValueError: for whatever is out of bounds.
    """
    devices = parallel.devices(config.train.num_devices)
    selection = build.trainable(config)
    keys = jax.random.key(config.seed)
    params = task.init(rng.stream(keys, "init"))
    root = build.root(config)
    columns = units.columns(config, data)
    sampler = build.sampler(config, batches.size(columns), len(devices), root)
    clipper, plan, mechanism, variance = None, None, None, None
    loss = build.loss(config, data, task)
    sums_fn: Callable = ordinary_sums(units.loss(config, loss), selection)
    if config.privacy.enabled:
        clipper = build.clipper(config, loss)
        plan = build.plan(config, clipper, sampler, params)
        sums_fn, mechanism = clipper, plan.mechanism
        variance = build.noise_variance(config, plan)
    optimizer = build.optimizer(config, variance)
    noise_state = mechanism.init(root) if mechanism else ()
    tracked = mechanism.clip_norms(noise_state) if mechanism else None
    decay = config.train.ema_decay
    state = initial_state(
        params, optimizer, noise_state, selection, tracked, averaged=decay > 0
    )
    step = make_step(
        sums_fn,
        mechanism,
        optimizer,
        expected_batch_size=(plan or sampler).expected_batch_size,
        l2_clip_norm=config.privacy.l2_clip_norm,
        selection=selection,
        dropout_key=rng.stream(keys, "dropout"),
        devices=devices,
        backend=config.train.backend,
        ema_decay=decay,
    )
    state = parallel.replicate(state, devices)
    return Prepared(step, state, sampler, plan, clipper, devices, selection, columns)


def rows_of(columns, physical: sampling.Physical, devices):
    """The buffers of one call, row d of the leading axis for device d."""
    batch = batches.gather(columns, physical.indices, physical.mask)
    trips = np.full((len(devices),), physical.trips, np.int32)
    ids = physical.indices.astype(np.uint32)
    closes = physical.closes
    if closes is None:
        closes = np.ones(physical.mask.shape[:2], bool)
    return parallel.shard((batch, physical.mask, ids, trips, closes), devices)


def ordinary_sums(loss, selection=None) -> Callable:
    """Sums of unclipped gradients, called like a `ClippedGrad`; no guarantee."""

    def fn(params, batch, mask, key, example_ids, group_clip_norms=None):
        del group_clip_norms  # nothing is clipped
        train, frozen = trainable_lib.partition(params, selection)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, example_ids)

        def total(train):
            whole = trainable_lib.combine(train, frozen)
            losses = jax.vmap(loss, (None, 0, 0))(whole, batch, keys)
            losses = jnp.where(mask, losses.astype(jnp.float32), 0.0)
            return jnp.sum(losses), losses

        grads, losses = jax.grad(total, has_aux=True)(train)
        grads = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
        nothing = jnp.zeros_like(losses)
        bad = ~jnp.isfinite(losses) & mask
        info = clipping.ClipInfo(nothing, losses, bad, nothing[:, None])
        return grads, info

    return fn


def make_step(
    sums_fn: Callable,
    mechanism: noise.Mechanism | None,
    optimizer: optax.GradientTransformation,
    *,
    expected_batch_size: float,
    l2_clip_norm: float,
    selection: Any,
    dropout_key: Any,
    devices: list,
    backend: str,
    ema_decay: float = 0.0,
) -> Callable:
    """One call over one set of buffers: (state, rows, finish) -> (state, counts).

    Args:
      sums_fn: (params, batch, mask, key, example_ids, group_clip_norms) -> (sums,
        ClipInfo).
      mechanism: adds the noise; None trains without.
      optimizer: applied to noisy sums / expected_batch_size.
      expected_batch_size: m, a public constant.
      l2_clip_norm: counts examples whose gradient is longer.
      selection: which leaves are trained.
      dropout_key: root of the examples' own randomness.
      devices: where the rows are.
      backend: of `parallel.map_sum`.
      ema_decay: of the average in the state; 0 takes none.

    Returns:
      A pure function: rows = (batch [D, M, P, ...], mask, ids, trips [D], closes
      [D, M]); `finish` is True in the last call of a logical batch, which adds noise
      and updates.
    """
    close: Any = getattr(sums_fn, "close", None)  # of micro-batches clipped as one

    def local(replicated, row):
        params, key, norms = replicated
        batch, mask, ids, trips, closes = row
        longest = l2_clip_norm if norms is None else jnp.linalg.norm(norms)

        def microbatch(i, carry):
            sums, opened, counts = carry
            one = jax.tree.map(lambda x: x[i], (batch, mask, ids))
            new, info = sums_fn(params, one[0], one[1], key, one[2], norms)
            counts = jax.tree.map(jnp.add, counts, _count(info, one[1]))
            if close is None:
                sums = jax.tree.map(jnp.add, sums, (new, bits(info, one[1])))
                return sums, opened, counts
            opened = jax.tree.map(jnp.add, opened, new)
            return *jax.lax.cond(closes[i], shut, wait, sums, opened), counts

        def bits(info, units):
            return () if norms is None else quantile.within(info, units, norms)

        def shut(sums, opened):
            mean, info = close(opened, norms)
            new = (mean, bits(info, jnp.ones((1,), bool)))
            empty = jax.tree.map(jnp.zeros_like, opened)
            return jax.tree.map(jnp.add, sums, new), empty

        def wait(sums, opened):
            return sums, opened

        def total(x):
            return jnp.sum(x.astype(jnp.float32))

        def _count(info, mask):
            ok = mask & ~info.nonfinite_per_example
            lengths = jnp.where(ok, info.norms_per_example, 0.0)
            losses = jnp.where(ok, info.losses_per_example, 0.0)
            over = total(ok & (lengths > longest))
            bad = total(info.nonfinite_per_example)
            return Counts(total(mask), total(losses), total(lengths), over, bad)

        train, _ = trainable_lib.partition(params, selection)
        tracked = () if norms is None else norms
        like = (train, tracked)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), like)
        opened = () if close is None else zeros[0]
        start = (zeros, opened, Counts(*[jnp.float32(0)] * 5))
        sums, _, counts = jax.lax.fori_loop(0, trips, microbatch, start)
        return (sums, counts), ()

    over_devices = parallel.map_sum(local, devices=devices, backend=backend)

    def step(state: TrainState, rows, finish):
        key = rng.step_key(dropout_key, state.step)
        norms = None if mechanism is None else mechanism.clip_norms(state.noise)
        (sums, counts), _ = over_devices((state.params, key, norms), rows)
        sums = jax.tree.map(jnp.add, state.partial, sums)
        counts = jax.tree.map(jnp.add, state.counts, counts)
        zeros = jax.tree.map(jnp.zeros_like, (sums, counts))

        def update(state):
            train, frozen = trainable_lib.partition(state.params, selection)
            (noisy, bits), noise_state = sums, state.noise
            if mechanism is not None:
                within = None if norms is None else bits
                noisy, noise_state = mechanism.update(noisy, noise_state, within)
            mean = jax.tree.map(
                lambda s, p: (s / expected_batch_size).astype(p.dtype), noisy, train
            )
            updates, opt_state = optimizer.update(mean, state.opt_state, train)
            train = optax.apply_updates(train, updates)
            params = trainable_lib.combine(train, frozen)
            averaged = state.average
            if ema_decay:
                averaged = average.update(averaged, train, state.step, ema_decay)
            bad = state.nonfinite + counts.nonfinite.astype(jnp.int32)
            partial, none = zeros
            step = state.step + 1
            return TrainState(
                step, params, opt_state, noise_state, partial, none, bad, averaged
            )

        def wait(state):
            return state._replace(partial=sums, counts=counts)

        return jax.lax.cond(finish, update, wait, state), counts

    return step


def trained(state: TrainState, selection: Any) -> Any:
    """The parameters to use: averaged, where an average is taken, or the last ones."""
    if not jax.tree.leaves(state.average):
        return state.params
    _, frozen = trainable_lib.partition(state.params, selection)
    return trainable_lib.combine(state.average, frozen)


def initial_state(
    params, optimizer, noise_state, selection, clip_norms=None, averaged=False
) -> TrainState:
    """The state before the first step.

    Args:
      params: of the model.
      optimizer: over the trainable leaves.
      noise_state: of the mechanism, or ().
      selection: which leaves are trained.
      clip_norms: where they are tracked, float32[G].
      averaged: whether an average of the parameters is taken.
    """
    train, _ = trainable_lib.partition(params, selection)
    bits = () if clip_norms is None else clip_norms
    partial = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), (train, bits))
    counts = Counts(*(jnp.float32(0) for _ in Counts._fields))
    step, bad = jnp.int32(0), jnp.int32(0)  # two buffers: both are donated
    opt_state = optimizer.init(train)
    mean = average.init(train) if averaged else ()
    return TrainState(step, params, opt_state, noise_state, partial, counts, bad, mean)
