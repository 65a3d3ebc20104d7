"""The shadow engine against training written out by hand, model after model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from trustml import parallel, rng
from trustml import task as task_lib
from trustml.attacks import designs, shadows
from trustml.models import mlp
from trustml.privacy import accounting, clipping, noise, sampling
from trustml.privacy import plan as plan_lib

N, D, C, M, B = 60, 4, 3, 6, 8
TASK = mlp.task(D, C, hidden=(5,))
DESIGN = designs.paired(M, N, seed=0)
MOMENTUM = optax.sgd(0.3, momentum=0.9)  # optax.adam itself breaks strict promotion


def make_columns():
    generator = np.random.default_rng(0)
    features = generator.normal(size=(N, D)).astype(np.float32)
    label = generator.integers(0, C, N).astype(np.int32)
    return {"features": features, "label": label}


COLUMNS = make_columns()


def one_of(tree, m):
    return jax.tree.map(lambda x: x[m], tree)


def assert_close(got, want, atol=1e-5):
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=atol)


def distance(a, b):
    return float(optax.tree.norm(optax.tree.sub(a, b)))


def by_hand(task, optimizer, key, index):
    """One model, one step after another, over the examples of each batch alone."""
    params = task.init(rng.stream(key, "init"))
    state = optimizer.init(params)
    dropout = rng.stream(key, "dropout")

    @jax.jit
    def add(total, params, example, number, step):
        own = jax.random.fold_in(rng.step_key(dropout, step), number)
        one = jax.grad(task.loss)(params, example, own)
        return jax.tree.map(jnp.add, total, one)

    @jax.jit
    def update(total, size, params, state):
        mean = jax.tree.map(lambda x: x / size, total)
        updates, state = optimizer.update(mean, state, params)
        return optax.apply_updates(params, updates), state

    for step, row in enumerate(index):
        total = jax.tree.map(jnp.zeros_like, params)
        rows = row[row >= 0]
        for i in rows:
            example = {name: column[i] for name, column in COLUMNS.items()}
            total = add(total, params, example, np.uint32(i), np.int32(step))
        size = np.float32(max(len(rows), 1))
        params, state = update(total, size, params, state)
    return params


def test_a_group_equals_one_model_after_another():
    task = mlp.task(D, C, hidden=(5,), dropout=0.5)
    train = shadows.trainer(task.init, task.loss, MOMENTUM, steps=8, batch_size=B)
    own = shadows.inputs(jax.random.key(0), DESIGN.index)
    group = jax.jit(jax.vmap(train, (None, 0)))
    alone = jax.jit(train)
    for some in shadows.groups(M, 4):
        many = group(COLUMNS, shadows.take(own, some.models))
        for place, m in enumerate(some.models):
            assert_close(one_of(many, place), alone(COLUMNS, shadows.take(own, m)))
    assert group._cache_size() == 1 and alone._cache_size() == 1
    assert distance(one_of(many, 0), one_of(many, 1)) > 0.1


def test_prescribed_batches_equal_a_loop_by_hand():
    generator = np.random.default_rng(1)
    index = generator.integers(-1, N, (2, 5, B)).astype(np.int32)
    index[0, 2] = -1  # a batch without an example
    task = mlp.task(D, C, hidden=(5,), dropout=0.3)
    optimizer = optax.sgd(0.5, momentum=0.9)
    train = shadows.trainer(task.init, task.loss, optimizer, steps=5, batch_size=B)
    own = shadows.inputs(jax.random.key(3), index)
    many = jax.jit(jax.vmap(train, (None, 0)))(COLUMNS, own)
    for m in range(2):
        key = shadows.take(own, m).key
        want = by_hand(task, optimizer, key, index[m])
        assert_close(one_of(many, m), want)
        assert distance(want, task.init(rng.stream(key, "init"))) > 0.1


def test_an_empty_slot_contributes_nothing_whatever_the_data_hold():
    index = np.array([[[0, 5, -1, -1], [7, -1, -1, -1]]], np.int32)
    own = shadows.inputs(jax.random.key(0), index)
    train = shadows.trainer(TASK.init, TASK.loss, optax.sgd(0.5), steps=2, batch_size=4)
    train_many = jax.jit(jax.vmap(train, (None, 0)))
    clean = train_many(COLUMNS, own)
    others = np.setdiff1d(np.arange(N), [0, 5, 7])
    spoilt = {name: column.copy() for name, column in COLUMNS.items()}
    spoilt["features"][others] = np.nan  # the last one too, where -1 points
    assert_close(train_many(spoilt, own), clean, atol=0)


# A task whose parameters count how often every example was seen, in batches of 1 / B.
COUNTING = task_lib.Task(
    lambda key: {"seen": jnp.zeros(N)},
    lambda params, example, key: -params["seen"][example["id"]],
    lambda params, example: params["seen"],
    {},
)
IDS = {"id": np.arange(N, dtype=np.int32)}


@functools.cache
def counter(steps, batch_size):
    train = shadows.trainer(
        COUNTING.init,
        COUNTING.loss,
        optax.sgd(float(batch_size)),
        steps=steps,
        batch_size=batch_size,
    )
    return jax.jit(jax.vmap(train, (None, 0)))


def seen(steps, batch_size, index=DESIGN.index):
    own = shadows.inputs(jax.random.key(0), index)
    return np.asarray(counter(steps, batch_size)(IDS, own)["seen"])


def test_epochs_show_every_member_once_and_nobody_else():
    counts = seen(steps=18, batch_size=5)  # 3 epochs of 6 batches of 5
    np.testing.assert_allclose(counts, 3.0 * DESIGN.member, atol=1e-5)


def test_every_epoch_and_model_has_an_order_of_its_own():
    first, second = seen(1, 5), seen(7, 5) - 1.0 * DESIGN.member
    for batch in (first, second):
        np.testing.assert_allclose(batch.sum(axis=1), 5, atol=1e-4)
        assert not np.any(batch[~DESIGN.member])
    # Batches of 5 from 30: two agree with probability 7e-6.
    assert np.all(np.abs(first - second).sum(axis=1) > 1)
    apart = seen(1, 5, np.tile(DESIGN.index[:1], (M, 1)))
    assert np.all(np.abs(apart[0] - apart[1:]).sum(axis=1) > 1)


def test_what_remains_of_an_epoch_changes_from_epoch_to_epoch():
    # 30 of 30 members over 40 epochs of 4 batches of 7, which leave 2 out: an example
    # sits out Bin(40, 1/15) times; all 40 has probability 1e-47, 13 or more 1e-6.
    counts = seen(160, 7)
    np.testing.assert_allclose(counts.sum(axis=1), 1120, rtol=1e-5)
    assert counts[DESIGN.member].min() > 40 - 13


def test_only_what_is_trainable_moves():
    train = shadows.trainer(
        TASK.init,
        TASK.loss,
        optax.sgd(1.0),
        steps=3,
        batch_size=B,
        trainable=("head*",),
    )
    own = shadows.inputs(jax.random.key(0), DESIGN.index)
    params = jax.jit(train)(COLUMNS, shadows.take(own, 0))
    key = shadows.take(own, 0).key
    before = TASK.init(rng.stream(key, "init"))
    np.testing.assert_array_equal(
        params["dense_0"]["kernel"], before["dense_0"]["kernel"]
    )
    assert distance(params["head"], before["head"]) > 0.01


@pytest.mark.parametrize(
    "count, backend",
    [(2, "pmap"), pytest.param(4, "shard_map", marks=pytest.mark.slow)],
)
def test_models_over_devices_are_the_same_models(count, backend):
    train = shadows.trainer(TASK.init, TASK.loss, MOMENTUM, steps=4, batch_size=B)
    group = jax.vmap(train, (None, 0))
    design = designs.paired(8, N, seed=0)
    own = shadows.inputs(jax.random.key(0), design.index)
    want = jax.jit(group)(COLUMNS, own)
    devices = parallel.devices(count)
    spread = shadows.over_devices(group, devices=devices, backend=backend)
    columns = parallel.replicate(COLUMNS, devices)
    got = jax.jit(spread)(columns, own)
    assert_close(got, want)


def test_no_collective_inside_a_model():
    train = shadows.trainer(TASK.init, TASK.loss, MOMENTUM, steps=4, batch_size=B)
    spread = shadows.over_devices(jax.vmap(train, (None, 0)))
    own = shadows.inputs(jax.random.key(0), designs.paired(4, N, seed=0).index)
    text = jax.jit(spread).lower(COLUMNS, own).compile().as_text()
    for name in ("all-reduce", "all-gather", "collective-permute", "all-to-all"):
        assert name not in text


# Private models.

SIZE = N // 2


def make_plan(loss=TASK.loss, steps=6, z=0.8, size=SIZE, **options):
    clipper = clipping.clipped_grad(loss, l2_clip_norm=0.3, **options)
    sampler = sampling.poisson(size, B, physical_batch_size=B)
    made = plan_lib.make(
        clipper,
        sampler,
        steps=steps,
        delta=1e-3,
        relation=accounting.relation("add_or_remove_one"),
        noise_multiplier=z,
        accountant="rdp",
    )
    return clipper, made


def test_private_models_make_the_step_of_the_plan():
    """With noise 0: the clipped sums of the drawn batches, without padding."""
    clipper, plan = make_plan()
    silent = noise.Mechanism(lambda root: (), lambda s, state, within=None: (s, state))
    quiet = plan._replace(mechanism=silent)
    root = rng.root(5)
    index = shadows.private_index(plan, DESIGN.index, root)
    own = shadows.inputs(jax.random.key(0), index, noise=root)
    train = shadows.private_trainer(TASK.init, clipper, quiet, optax.sgd(1.0))
    many = jax.jit(jax.vmap(train, (None, 0)))(COLUMNS, own)

    @jax.jit
    def step_of(params, mask):
        sums, _ = clipper(params, COLUMNS, mask, jax.random.key(0))
        return jax.tree.map(lambda p, s: p - s / B, params, sums)

    for m in range(2):
        key = shadows.take(own, m).key
        params = TASK.init(rng.stream(key, "init"))
        start = params
        seed = rng.seed_128(rng.stream(shadows.roots(root, M)[m], "sampling"))
        sampler = plan.sampler.reseed(seed)
        for step in range(plan.steps):
            mask = np.zeros(N, bool)  # every example in a slot of its own
            mask[DESIGN.index[m][sampler.draw(step)]] = True
            params = step_of(params, mask)
        assert_close(one_of(many, m), params)
        assert distance(params, start) > 0.05


FLAT = task_lib.Task(
    lambda key: {"w": jnp.zeros((50, 40))},
    lambda params, example, key: 0.0 * jnp.sum(params["w"]) * example["features"][0],
    lambda params, example: params["w"],
    {},
)


def flat_noise(root, steps=1, models=4):
    clipper, plan = make_plan(FLAT.loss, steps=steps)
    design = designs.paired(models, N, seed=0)
    index = shadows.private_index(plan, design.index, root)
    own = shadows.inputs(jax.random.key(0), index, noise=root)
    train = shadows.private_trainer(FLAT.init, clipper, plan, optax.sgd(1.0))
    params = jax.jit(jax.vmap(train, (None, 0)))(COLUMNS, own)
    return np.asarray(params["w"]).reshape(models, -1) * B, plan


def test_every_private_model_has_noise_of_its_own_at_the_scale_of_the_plan():
    found, plan = flat_noise(rng.root(1), steps=3)
    # 2000 coordinates a model: the mean square has relative stddev sqrt(2/2000) = .032,
    # so the stddev .016; correlations of models have stddev 1/sqrt(2000) = .022.
    scale = plan.noise_stddev() * np.sqrt(3)
    np.testing.assert_allclose(found.std(axis=1), scale, rtol=4.5 * 0.016)
    apart = np.corrcoef(found)[np.triu_indices(4, 1)]
    assert np.all(np.abs(apart) < 4.5 * 0.022)
    again, _ = flat_noise(rng.root(1), steps=3)
    np.testing.assert_array_equal(again, found)


def test_a_tracked_clip_norm_moves_inside_a_model():
    clipper, plan = make_plan(z=0.5, rule="quantile", method="vmap")
    root = rng.root(0)
    index = shadows.private_index(plan, DESIGN.index, root)
    own = shadows.inputs(jax.random.key(0), index, noise=root)
    train = shadows.private_trainer(TASK.init, clipper, plan, optax.sgd(0.1))
    many = jax.jit(jax.vmap(train, (None, 0)))(COLUMNS, own)
    assert_close(one_of(many, 1), jax.jit(train)(COLUMNS, shadows.take(own, 1)))


def test_private_batches_are_the_samplers_over_the_members():
    _, plan = make_plan(steps=40)
    root = rng.root(2)
    index = shadows.private_index(plan, DESIGN.index, root)
    assert (
        index.shape[:2] == (M, 40) and (index >= 0).sum(axis=2).max() == index.shape[2]
    )
    for m in range(M):
        used = index[m][index[m] >= 0]
        assert set(used.tolist()) <= set(np.flatnonzero(DESIGN.member[m]).tolist())
        for row in index[m]:
            kept = row[row >= 0]
            assert len(set(kept.tolist())) == len(kept)
    # 6 * 40 batches of Bin(30, 8/30): mean 8, stddev 2.42 / sqrt(240) = .156.
    assert abs((index >= 0).sum() / 240 - 8) < 4.5 * 0.156
    other = shadows.private_index(plan, DESIGN.index, rng.root(3))
    assert index.shape != other.shape or np.any(index != other)


def test_training_sets_of_different_sizes_need_independent_coins():
    design = designs.independent(3, N, seed=0)
    width = design.index.shape[1]
    _, plan = make_plan(steps=30, size=width)
    index = shadows.private_index(plan, design.index, rng.root(0))
    for m in range(3):
        used = index[m][index[m] >= 0]
        assert set(used.tolist()) <= set(np.flatnonzero(design.member[m]).tolist())
    fixed = sampling.fixed_size(width, B, physical_batch_size=B)
    with pytest.raises(ValueError, match="sampler='fixed_size' draws from training se"):
        shadows.private_index(plan._replace(sampler=fixed), design.index, rng.root(0))


def test_groups_cover_every_model_once():
    found = list(shadows.groups(7, 3))
    assert [g.models.tolist() for g in found] == [[0, 1, 2], [3, 4, 5], [6, 6, 6]]
    assert [g.count for g in found] == [3, 3, 1]
    some = list(shadows.groups(7, 3, models=[1, 5]))
    assert some[0].models.tolist() == [1, 5, 5] and some[0].count == 2
    assert list(shadows.groups(7, 3, models=[])) == []


def test_two_models_with_one_key_or_one_root_are_refused():
    root = rng.root(0)
    own = shadows.inputs(jax.random.key(0), DESIGN.index, noise=root)
    shadows.check(own)
    shadows.check(shadows.inputs(jax.random.key(1), DESIGN.index))
    twice = shadows.take(own, [0, 1, 2, 1])
    with pytest.raises(ValueError, match="key of model=3 is that of model 1"):
        shadows.check(twice)
    fresh = shadows.inputs(jax.random.key(2), DESIGN.index[:4])
    with pytest.raises(ValueError, match="noise of model=3 is that of model 1"):
        shadows.check(fresh._replace(noise=twice.noise))


def build(**changes):
    options = {"steps": 3, "batch_size": B} | changes
    return shadows.trainer(TASK.init, TASK.loss, optax.sgd(0.1), **options)


def given(shape):
    return shadows.Inputs(jax.random.key(0), jnp.zeros(shape, jnp.int32))


WRONG = {
    "no steps": (lambda: build(steps=0), "steps=0 must be >= 1"),
    "no batch": (lambda: build(batch_size=0), "batch_size=0 must be >= 1"),
    "few members": (
        lambda: build()(COLUMNS, given((5,))),
        "batch_size=8 must be at most 5, the examples of one model",
    ),
    "other steps": (
        lambda: build()(COLUMNS, given((4, B))),
        "holds batches for 4 steps and not for 3",
    ),
    "private without batches": (
        lambda: shadows.private_trainer(TASK.init, *make_plan(), optax.sgd(0.1))(
            COLUMNS, given((SIZE,))
        ),
        "must be .S, B., the batches that the sampler drew",
    ),
    "sampler of all": (
        lambda: shadows.private_index(make_plan(size=N)[1], DESIGN.index, rng.root(0)),
        "sampler.num_examples=60 is not that of an index of shape",
    ),
    "beyond the plan": (
        lambda: shadows.private_trainer(
            TASK.init, *make_plan(), optax.sgd(0.1), steps=7
        ),
        "steps=7 must be at most 6, which the plan covers",
    ),
    "no group": (lambda: list(shadows.groups(4, 0)), "group_size=0 must be >= 1"),
}


@pytest.mark.parametrize("call, sentence", WRONG.values(), ids=WRONG)
def test_what_does_not_fit_gets_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
