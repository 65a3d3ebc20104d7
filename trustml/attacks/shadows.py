"""Shadow models: many models of one task at once, on parts of one data set.

`trainer` (and, with differential privacy, `private_trainer`) makes one pure function

    train(columns, own) -> params           init; scan over steps; any optax optimizer

of one model. `columns` are all examples, on the device once; what a model has of its
own is a key and a row of indices, so `vmap` over `own` trains a group in one program:

    train_many = jax.vmap(train, (None, 0))

and gives the numbers of one model after another, up to the order of sums. An index of
-1 is a slot that holds nothing and adds nothing. `own.index` is either

  the training set, int32[H]: every epoch is a new permutation of the slots, made inside
      the program; epochs have floor(H / B) batches, and what remains sits out, or
  the batches, int32[S, B], where an exact order is prescribed.

Private models make the step of `trustml.privacy`: the clipper's sums, the noise of the
plan's own mechanism with a root for each model, Poisson batches drawn beforehand
(`private_index`). Each is then one run of the plan and is worth its epsilon.

Dimension key: `M` models, `G` of them in a group, `n` examples, `H` slots of a training
set, `S` steps, `B` batch.

Example::

    design = designs.paired(64, 5010, seed=0)
    train = shadows.trainer(task.init, task.loss, optax.adam(1e-3), steps=1170,
                            batch_size=64)
    own = shadows.inputs(jax.random.key(0), design.index)
    for group in shadows.groups(64, 8):
        some = shadows.take(own, group.models)
        params = jax.jit(jax.vmap(train, (None, 0)))(columns, some)    # leaves [8, ...]

References: https://arxiv.org/abs/1610.05820 (Shokri et al. 2017).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy import typing as npt

from trustml import _validate, parallel, rng
from trustml.privacy import clipping, quantile
from trustml.privacy import plan as plan_lib
from trustml.privacy import trainable as trainable_lib

Columns = Mapping[str, Any]  # name -> [n, ...]

# Without an index as wide as the training set, a draw can do without its empty slots
# only where no example's coin depends on how many others there are.
_COINS = ("poisson", "cyclic_poisson")


class Inputs(NamedTuple):
    """What one model has of its own; with a leading axis [M], what M models have.

    Attributes:
      key: typed key [], of initialization, order and dropout.
      index: int32[H], the training set, or int32[S, B], the batches; -1 is nothing.
      noise: `rng.Root` of the noise; () without privacy.
      about: arrays that training does not read and its caller may; () where none.
    """

    key: Any
    index: Any
    noise: Any = ()
    about: Any = ()


Train = Callable[[Columns, Inputs], Any]


class Group(NamedTuple):
    """Models that are trained at once.

    Attributes:
      models: int32[G], their numbers; the last ones repeat where a group is filled up.
      count: how many of them are real.
    """

    models: np.ndarray
    count: int


def trainer(
    init: Callable[[Any], Any],
    loss: Callable[[Any, Any, Any], jax.Array],
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    batch_size: int,
    trainable: trainable_lib.Selection = None,
) -> Train:
    """Training of one model without privacy, on means over batches.

    Args:
      init: key -> params; of the task.
      loss: (params, example, key) -> float32[]; one example, without batch axis.
      optimizer: applied to the mean gradient over the examples of a batch.
      steps: S, updates.
      batch_size: B, slots of a batch.
      trainable: which leaves are trained; None: all.

    Returns:
      train(columns, own) -> params; pure, for `jax.vmap` over `own` and `jax.jit`.

    Raises:
      ValueError: when built, for a number out of its bounds; when traced, for an index
        that does not fit.
    """

    def gradient(train, frozen, batch, mask, key, ids, state):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, ids)

        def mean(train):
            whole = trainable_lib.combine(train, frozen)
            losses = jax.vmap(loss, (None, 0, 0))(whole, batch, keys)
            total = jnp.sum(jnp.where(mask, losses.astype(jnp.float32), 0.0))
            return total / jnp.maximum(jnp.sum(mask), 1).astype(jnp.float32)

        return jax.grad(mean)(train), state

    return _trainer(
        init, gradient, lambda own: (), optimizer, steps, batch_size, trainable
    )


def private_trainer(
    init: Callable[[Any], Any],
    clipper: clipping.ClippedGrad,
    plan: plan_lib.Plan,
    optimizer: optax.GradientTransformation,
    *,
    steps: int | None = None,
) -> Train:
    """Training of one model by the private step of a plan.

    Formal guarantee: that of the plan for each model by itself, where the index comes
      from `private_index` and no two models share a root. M models of one data set,
      released together, compose.

    Args:
      init: key -> params; of the task.
      clipper: of the plan.
      plan: noise, number of steps, and the constant that sums are divided by.
      optimizer: applied to noisy sums / expected batch size.
      steps: S; None: those of the plan, and never more.

    Returns:
      train(columns, own) -> params, whose `own.index` is int32[S, B] and whose
        `own.noise` is a `rng.Root`.

    Raises:
      ValueError: when built, if the plan is not one of examples clipped one by one;
        when traced, for an index of another number of steps.
    """
    _check_unit(plan)
    mechanism, selection = plan.mechanism, clipper.trainable
    count = plan.steps if steps is None else steps
    if count > plan.steps:
        bound = f"must be at most {plan.steps}, which the plan covers"
        _validate.fail("steps", count, bound, "make a plan of more steps")

    def gradient(train, frozen, batch, mask, key, ids, state):
        norms = mechanism.clip_norms(state)
        params = trainable_lib.combine(train, frozen)
        sums, info = clipper(params, batch, mask, key, ids, norms)
        within = None if norms is None else quantile.within(info, mask, norms)
        noisy, state = mechanism.update(sums, state, within)
        mean = jax.tree.map(
            lambda s, p: (s / plan.expected_batch_size).astype(p.dtype), noisy, train
        )
        return mean, state

    def start(own):
        return mechanism.init(own.noise)

    return _trainer(init, gradient, start, optimizer, count, None, selection)


def inputs(key: Any, index: npt.ArrayLike, *, noise: rng.Root | None = None) -> Inputs:
    """The inputs of M models: keys of their own, and roots where there is noise.

    Args:
      key: typed key; model m gets fold_in(key, m).
      index: int32[M, H] of a design, or int32[M, S, B].
      noise: root of all noise; model m gets the stream `shadow m` of it.
    """
    rows = jnp.asarray(index, jnp.int32)
    numbers = jnp.arange(rows.shape[0], dtype=jnp.uint32)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
    if noise is None:
        return Inputs(keys, rows)
    found = roots(noise, rows.shape[0])
    stacked = rng.Root(*(jnp.stack(parts) for parts in zip(*found, strict=True)))
    return Inputs(keys, rows, stacked)


def roots(noise: rng.Root, num_models: int) -> list[Any]:
    """The root of every model's noise and batches."""
    return [rng.stream(noise, f"shadow {m}") for m in range(num_models)]


def private_index(
    plan: plan_lib.Plan, index: npt.ArrayLike, noise: rng.Root
) -> np.ndarray:
    """The batches of M private models, drawn as the plan's sampler draws them.

    Args:
      plan: its sampler draws from H slots.
      index: int32[M, H] of a design; -1 where a model has fewer examples, which needs
        a sampler of independent coins.
      noise: as for `inputs`; batches are a stream of their own.

    Returns:
      int32[M, S, B] with -1 in empty slots; B is the largest batch that was drawn, and
      depends on the coins alone.

    Raises:
      ValueError: if the sampler and the index do not fit each other.
    """
    _check_unit(plan)
    rows, sampler = np.asarray(index), plan.sampler
    if rows.ndim != 2 or rows.shape[1] != sampler.num_examples:
        bound = f"is not that of an index of shape {rows.shape}"
        cure = "make the sampler for the slots of one training set"
        _validate.fail("sampler.num_examples", sampler.num_examples, bound, cure)
    if (rows < 0).any() and sampler.name not in _COINS:
        bound = "draws from training sets of one size, and these differ"
        _validate.fail("sampler", sampler.name, bound, "use sampling.poisson")
    drawn = []
    for row, root in zip(rows, roots(noise, len(rows)), strict=True):
        seed = rng.seed_128(rng.stream(root, "sampling"))
        own = sampler.reseed(seed, secret=bool(root.secret))
        batches = [row[own.draw(step)] for step in range(plan.steps)]
        drawn.append([batch[batch >= 0] for batch in batches])
    width = max(1, max(len(batch) for batches in drawn for batch in batches))
    out = np.full((len(rows), plan.steps, width), -1, np.int32)
    for m, batches in enumerate(drawn):
        for step, batch in enumerate(batches):
            out[m, step, : len(batch)] = batch
    return out


def groups(
    num_models: int, group_size: int, *, models: Sequence[int] | None = None
) -> Iterator[Group]:
    """Models in groups of one size; the last is filled up with repeats of its last.

    Args:
      num_models: M.
      group_size: G >= 1.
      models: those still to be trained; None: all M.

    Raises:
      ValueError: if a size is not a positive integer.
    """
    _validate.integer_at_least("num_models", num_models, 1)
    size = _validate.integer_at_least("group_size", group_size, 1)
    left = np.asarray(range(num_models) if models is None else models, np.int32)
    for start in range(0, len(left), size):
        some = left[start : start + size]
        yield Group(np.pad(some, (0, size - len(some)), mode="edge"), len(some))


def take(own: Inputs, models: npt.ArrayLike) -> Inputs:
    """The inputs of the models with these numbers, leaves [G, ...]; of one, [...]."""
    rows = jnp.asarray(models, jnp.int32)

    def pick(x):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x = jax.random.clone(x)  # a model may be trained twice: a repeat, a test
        return x[rows]

    return jax.tree.map(pick, own)


def over_devices(
    fn: Callable[[Columns, Inputs], Any],
    *,
    devices: Sequence[jax.Device] | None = None,
    backend: str = "shard_map",
) -> Callable[[Columns, Inputs], Any]:
    """`fn` of a group as a function of D groups, one on each device.

    No number crosses from device to device.

    Args:
      fn: (columns, own with leaves [G, ...]) -> pytree of leaves [G, ...].
      devices: D devices; all of the run where None.
      backend: of `parallel.map_sum`.

    Returns:
      fn(columns, own with leaves [D * G, ...]) -> leaves [D * G, ...], in the order of
      `own`. Pure; for `jax.jit`.
    """
    count = len(devices or parallel.devices())

    def local(columns, own):
        return (), fn(columns, own)

    mapped = parallel.map_sum(local, devices=devices, backend=backend)

    def apply(columns, own):
        rows = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), own)
        return mapped(columns, rows)[1]

    return apply


def check(own: Inputs) -> None:
    """Raises if two models share a key or a root: they would be the same experiment.

    Args:
      own: leaves [M, ...], on the host or a device; not under `jit`.

    Raises:
      ValueError: names the two models.
    """
    words = {"key": jax.random.key_data(own.key)}
    if own.noise != ():
        words["noise"] = own.noise.words
    for field, data in words.items():
        rows = np.asarray(data).reshape(len(data), -1)
        _, first, place = np.unique(
            rows, axis=0, return_index=True, return_inverse=True
        )
        twice = np.flatnonzero(first[place.ravel()] != np.arange(len(rows)))
        if twice.size:
            bound = f"is that of model {first[place.ravel()[twice[0]]]}"
            cure = "fold the number of the model into its key, as `inputs` does"
            _validate.fail(f"{field} of model", int(twice[0]), bound, cure)


def _trainer(init, gradient, start, optimizer, steps, batch_size, trainable) -> Train:
    """The scan that both kinds of training share.

    Args:
      init: key -> params.
      gradient: (train, frozen, batch, mask, key, ids, state) -> (mean gradient, state).
      start: own -> the gradient's first state.
      optimizer: of the trainable leaves.
      steps: S.
      batch_size: B; None: batches have to be given.
      trainable: which leaves are trained.
    """
    steps = _validate.integer_at_least("steps", steps, 1, "make an update or more")
    if batch_size is not None:
        batch_size = _validate.integer_at_least("batch_size", batch_size, 1)
    slots = batch_size or 0

    def train(columns: Columns, own: Inputs):
        ordered = own.index.ndim == 2
        _check_index(own.index, steps, batch_size)
        order_key, dropout = (rng.stream(own.key, n) for n in ("data", "dropout"))
        params = init(rng.stream(own.key, "init"))
        leaves, frozen = trainable_lib.partition(params, trainable)

        def batch_at(step, order):
            if ordered:
                return own.index[step], order
            per_epoch = own.index.shape[0] // slots
            epoch, place = step // per_epoch, step % per_epoch

            def shuffle(_):
                return jax.random.permutation(rng.step_key(order_key, epoch), own.index)

            order = jax.lax.cond(place == 0, shuffle, lambda order: order, order)
            at = place * slots
            return jax.lax.dynamic_slice_in_dim(order, at, slots), order

        def one_step(carry, step):
            leaves, opt_state, state, order = carry
            rows, order = batch_at(step, order)
            batch, mask = gather(columns, rows)
            ids = jnp.maximum(rows, 0).astype(jnp.uint32)
            key = rng.step_key(dropout, step)
            grads, state = gradient(leaves, frozen, batch, mask, key, ids, state)
            updates, opt_state = optimizer.update(grads, opt_state, leaves)
            leaves = optax.apply_updates(leaves, updates)
            return (leaves, opt_state, state, order), None

        order = () if ordered else own.index
        carry = (leaves, optimizer.init(leaves), start(own), order)
        numbers = jnp.arange(steps, dtype=jnp.int32)
        (leaves, *_), _ = jax.lax.scan(one_step, carry, numbers)
        return trainable_lib.combine(leaves, frozen)

    return train


def gather(columns: Columns, rows: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
    """Rows of every column and the mask bool[B]; zeros where the index is -1."""

    def pick(column):
        column = jnp.asarray(column)
        # Past the end, where `fill` applies; -1 itself would be the last example.
        at = jnp.where(rows < 0, column.shape[0], rows)
        return column.at[at].get(mode="fill", fill_value=0)

    return {name: pick(column) for name, column in columns.items()}, rows >= 0


def _check_index(index, steps: int, batch_size: int | None) -> None:
    shape = tuple(index.shape)
    if index.ndim == 2:
        if shape[0] != steps:
            bound = f"holds batches for {shape[0]} steps and not for {steps}"
            _validate.fail("index.shape", shape, bound, "give one row for each step")
    elif index.ndim != 1 or batch_size is None:
        bound = "must be [S, B], the batches that the sampler drew"
        _validate.fail("index.shape", shape, bound, "use shadows.private_index")
    elif shape[0] < batch_size:
        bound = f"must be at most {shape[0]}, the examples of one model"
        _validate.fail("batch_size", batch_size, bound, "lower it")


def _check_unit(plan: plan_lib.Plan) -> None:
    sampler = plan.sampler
    if sampler.privacy_unit != "example" or sampler.group_size is not None:
        _validate.fail(
            "sampler",
            sampler.name,
            "draws users or micro-batches, and shadow models clip every example alone",
            "use clipping.clipped_grad with a sampler of examples",
        )
