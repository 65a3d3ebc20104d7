"""Lanes against a loop; exact mode to the bit over layouts; poison; compilations."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.federated import worlds
from trustml.federated import lanes, sweep
from trustml.federated.algorithms import averaging, base

PROGRAM = averaging.training(worlds.loss, optax.sgd(0.3, momentum=0.9))


def model(world):
    return averaging.Model(world.params, jnp.float32(1))


def one_by_one(world, weights, batch_size=5, epochs=2):
    """Sum of weighted changes, and mean losses, one client after another."""
    gradient = jax.jit(worlds.mean_gradient)
    losses = jax.jit(
        lambda p, rows: jax.vmap(lambda row: worlds.loss(p, row, None))(rows).sum()
    )
    optimizer = optax.sgd(0.3, momentum=0.9)
    total, means = base.zeros(world.params), []
    for k in range(len(world.sizes)):
        y, state, met = world.params, optimizer.init(world.params), 0.0
        for rows in worlds.batches(world, k, batch_size, epochs):
            met += float(losses(y, rows))
            updates, state = optimizer.update(gradient(y, rows), state, y)
            y = base.add(y, updates)
        change = base.subtract(y, world.params)
        total = base.add_scaled(total, float(weights[k]), change)
        means.append(met / max(epochs * world.sizes[k], 1))
    return total, np.array(means)


@pytest.mark.parametrize(
    "layout",
    [
        {"lanes": 4},
        {"lanes": 4, "group": 2, "window": 3},
        {"lanes": 2, "devices": 2},
        {"lanes": 2, "devices": 4, "backend": "pmap"},
        {"lanes": 2, "exact": True, "group": 1},
        {"lanes": 8, "narrowing": False},
    ],
    ids=["lanes", "groups", "two devices", "pmap on four", "exact", "no ladder"],
)
def test_lanes_are_a_loop_over_clients(layout):
    world = worlds.make()
    weights = np.linspace(0.1, 1, len(world.sizes))
    layout = {**layout, "devices": jax.devices()[: layout.get("devices", 1)]}
    swept = worlds.run(
        world, PROGRAM, model(world), weights=weights, epochs=2, **layout
    )
    total, means = one_by_one(world, weights)
    # Exact mode rounds every message to 2^-20: half of that for each of 10 clients.
    tolerance = 6e-6 if layout.get("exact") else 2e-6
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance),
        swept.totals.message,
        total,
    )
    found = sweep.of_clients(swept, swept.records)
    np.testing.assert_allclose(found.loss, means, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.examples, 2 * world.sizes)
    assert int(swept.totals.clamped) == 0


@functools.cache
def exact_bits(group, lanes_, devices, window, shuffled=False):
    world = worlds.make(np.random.default_rng(0).integers(0, 40, 12))
    made = sweep.make(
        PROGRAM,
        jit=jax.jit,
        lanes=lanes_,
        batch_size=5,
        capacity=16,
        group=group,
        window=window,
        exact=True,
        devices=jax.devices()[:devices],
    )
    order = np.arange(12)
    if shuffled:
        order = np.random.default_rng(1).permutation(12)
    index = np.concatenate(
        [np.arange(world.offsets[k], world.offsets[k + 1]) for k in order]
    )
    data = jax.tree.map(jnp.asarray, world.data)
    cohort = sweep.Cohort(order, world.sizes[order], np.linspace(0.1, 1, 12)[order])
    swept = made.run(model(world), jax.random.key(0), cohort, data, index)
    leaves = jax.tree.leaves(swept.totals.message)
    records = sweep.of_clients(swept, swept.records).loss[np.argsort(order)]
    return b"".join(np.asarray(x).tobytes() for x in [*leaves, records])


LAYOUTS = {
    "more lanes": (8, 1, 64),
    "two devices": (4, 2, 64),
    "four devices, short windows": (4, 4, 7),
    "windows of one step": (4, 1, 1),
    "another order": (4, 1, 64, True),
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("group", [1, 4])
def test_exact_mode_is_equal_to_the_bit(name, group):
    assert exact_bits(group, *LAYOUTS[name]) == exact_bits(group, 4, 1, 64)


def test_exact_mode_counts_what_it_has_to_clamp():
    world = worlds.make(np.array([5, 5]))

    def start(model, client, memory):
        return model

    def finish(model, client, local, memory, key):
        huge = jnp.asarray([1e9, 1.0, jnp.nan, -1e9], jnp.float32)
        return lanes.Outcome(huge, (), ())

    program = lanes.Program(start, lambda m, local, *rest: local, finish)
    swept = worlds.run(world, program, jnp.zeros(()), exact=True, group=1)
    assert int(swept.totals.clamped) == 6  # of two clients, three each
    bound = (2**31 - 1) // 2 * lanes.GAMMA
    np.testing.assert_allclose(
        swept.totals.message, [2 * bound, 2.0, 0.0, -2 * bound], rtol=1e-6
    )


@pytest.mark.parametrize("sizes", [[4, 5, 6, 1, 0, 9], [0, 0], [300, 1, 2]])
def test_what_a_client_does_not_hold_is_never_read(sizes):
    # Rows of nobody lie between the clients' own; they are NaN the second time.
    world = worlds.make(np.array(sizes), seed=2)
    kept = []
    for poison in (0.0, np.nan):
        data = {
            "x": np.concatenate([world.data["x"], np.full((7, 4), poison, "float32")]),
            "y": np.concatenate([world.data["y"], np.zeros(7, "int32")]),
        }
        data["x"] = np.roll(data["x"], 3, 0)  # the first rows are nobody's
        data["y"] = np.roll(data["y"], 3, 0)
        made = sweep.make(
            PROGRAM,
            jit=jax.jit,
            lanes=4,
            batch_size=5,
            capacity=8,
            devices=jax.devices()[:1],
        )
        cohort = sweep.Cohort(np.arange(len(sizes)), world.sizes, np.ones(len(sizes)))
        swept = made.run(
            model(world),
            jax.random.key(0),
            cohort,
            jax.tree.map(jnp.asarray, data),
            np.arange(world.sizes.sum()) + 3,
        )
        kept.append(swept.totals.message)
    jax.tree.map(np.testing.assert_array_equal, *kept)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(kept[1]))


def test_a_client_draws_the_same_wherever_it_is():
    def noisy(params, example, key):
        return jnp.sum(params["bias"] * jax.random.normal(key, (3,)))

    program = averaging.training(noisy, optax.sgd(1.0))
    world = worlds.make(np.array([7, 12, 3]))
    several = worlds.run(world, program, model(world), weights=np.array([0, 1.0, 0]))
    made = sweep.make(
        program, jit=jax.jit, lanes=1, batch_size=5, capacity=1,
        devices=jax.devices()[:1],
    )  # fmt: skip
    alone = made.run(
        model(world),
        jax.random.key(0),
        sweep.Cohort(np.array([1]), np.array([12]), np.ones(1)),
        jax.tree.map(jnp.asarray, world.data),
        np.arange(7, 19),
    )
    np.testing.assert_allclose(
        several.totals.message["bias"], alone.totals.message["bias"], rtol=1e-6
    )


def test_cohorts_of_1_to_500_use_the_same_programs():
    world = worlds.make(np.random.default_rng(0).integers(0, 9, 500))
    traced = collections.Counter()

    def jit(fn, **options):
        def counted(*args):
            traced[fn.__name__] += 1
            return fn(*args)

        return jax.jit(counted, **options)

    made = sweep.make(
        PROGRAM,
        jit=jit,
        lanes=8,
        batch_size=5,
        capacity=512,
        devices=jax.devices()[:1],
    )
    data = jax.tree.map(jnp.asarray, world.data)
    rng = np.random.default_rng(1)
    for count in (0, *rng.permutation(500) + 1):
        some = np.sort(rng.choice(500, count, replace=False))
        index = np.concatenate(
            [np.arange(world.offsets[k], world.offsets[k + 1]) for k in some]
            or [np.zeros(0, int)]
        )
        cohort = sweep.Cohort(some, world.sizes[some], np.ones(count))
        made.run(model(world), jax.random.key(0), cohort, data, index)
    assert traced == {"begin": 1, "run": 1, "end": 1}


def test_a_cohort_beyond_the_capacity_is_refused():
    world = worlds.make()
    with pytest.raises(ValueError, match=r"federated.capacity=4 .*11 clients"):
        worlds.run(world, PROGRAM, model(world), capacity=4)


def test_one_full_step_is_that_of_all_data_together():
    world = worlds.make(np.array([7, 0, 12, 1]))
    program = averaging.training(worlds.loss, optax.sgd(0.3))
    swept = worlds.run(
        world, program, model(world), weights=world.sizes / 20, batch_size=12
    )
    expected = base.scaled(-0.3, worlds.mean_gradient(world.params, world.data))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        swept.totals.message,
        expected,
    )


def test_one_full_step_in_float64():
    with jax.enable_x64(True):
        world = worlds.make(np.array([7, 0, 12, 1]))
        world = world._replace(
            data={"x": world.data["x"].astype("float64"), "y": world.data["y"]},
            params=jax.tree.map(lambda x: x.astype("float64"), world.params),
        )
        program = averaging.training(worlds.loss, optax.sgd(0.3))
        swept = worlds.run(
            world, program, model(world), weights=world.sizes / 20, batch_size=12
        )
        expected = base.scaled(-0.3, worlds.mean_gradient(world.params, world.data))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12),
            swept.totals.message,
            expected,
        )
