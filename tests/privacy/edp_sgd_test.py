"""eDP-SGD: its sums, its true sensitivity, its slots and its events."""

import collections
import math

import dp_accounting
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trustml import rng
from trustml.privacy import accounting, clipping, edp_sgd, plan, rules, sampling
from trustml.privacy import schedules as schedules_lib

ADD = accounting.Relation.ADD_OR_REMOVE_ONE
KEY = jax.random.key(0)


def loss(params, example, key):
    """A gradient that is the example itself."""
    del key
    return sum(jnp.sum(params[name] * example[name]) for name in params)


def made(*, z=1.0, steps=1000, m=100, n=10_000, size=10, norm=2.0, **options):
    clipper = edp_sgd.clipped_grad(
        loss, l2_clip_norm=norm, group_size=size, rule=options.pop("rule", "per_layer")
    )
    sampler = edp_sgd.micro_batches(
        n, m, group_size=size, physical_batch_size=8, seed=0
    )
    fixed = {"steps": steps, "delta": 1e-5, "relation": ADD, "noise_multiplier": z}
    return plan.make(clipper, sampler, **(fixed | options))


def test_nominal_and_real_epsilon():
    p = made()
    assert p.epsilon() == pytest.approx(13.36, abs=5e-3)
    assert edp_sgd.nominal_epsilon(p) == pytest.approx(1.83, abs=5e-3)


@pytest.mark.parametrize("z, steps, m", [(0.8, 300, 200), (2.0, 2000, 50)])
@pytest.mark.parametrize("scheduled", [False, True])
def test_epsilon_is_that_of_the_stated_event(z, steps, m, scheduled):
    scales = schedules_lib.stairs(steps, steps // 2, rho=0.8, every=1)
    p = made(z=z, steps=steps, m=m, noise_schedule=scales if scheduled else None)
    for factor, got in ((0.5, p.epsilon()), (1.0, edp_sgd.nominal_epsilon(p))):
        direct = dp_accounting.pld.PLDAccountant(ADD)
        for level in (1.0, 0.8) if scheduled else (1.0, 1.0):
            gaussian = dp_accounting.GaussianDpEvent(z * level * factor)
            event = dp_accounting.PoissonSampledDpEvent(m / 10_000, gaussian)
            direct.compose(event, steps // 2)
        assert got == pytest.approx(direct.get_epsilon(1e-5), rel=1e-6)


@pytest.mark.parametrize("rule", ["flat", "per_layer"])
@pytest.mark.parametrize("size", [2, 4, 16])
def test_one_example_moves_its_micro_batch_by_2c_at_most_and_that_is_reached(
    rule, size
):
    clipper = edp_sgd.clipped_grad(loss, l2_clip_norm=0.5, group_size=size, rule=rule)
    params = {"a": jnp.zeros(3), "b": jnp.zeros(2)}
    gen = np.random.default_rng(size)
    trials = 1000

    def rows(scale):
        return {
            name: jnp.asarray(gen.normal(size=(trials, size, n)) * scale, jnp.float32)
            for name, n in (("a", 3), ("b", 2))
        }

    batch = rows(10 ** gen.uniform(-2, 2, (trials, size, 1)))
    # The worst pair: the others point one way, the last one far the other way.
    worst = jax.tree.map(lambda x: jnp.ones_like(x).at[:, -1].set(-1e4), batch)
    batch = jax.tree.map(lambda x, w: x.at[::2].set(w[::2]), batch, worst)

    @jax.jit
    def distance(batch):
        def one(batch):
            def clipped(last):
                mask = jnp.ones(size, bool).at[-1].set(last)
                sums, _ = clipper(params, batch, mask, KEY)
                return clipper.close(sums)[0]

            with_, without = clipped(True), clipped(False)
            moved = jax.tree.map(lambda x, y: jnp.sum((x - y) ** 2), with_, without)
            return jnp.sqrt(sum(jax.tree.leaves(moved)))

        return jax.lax.map(one, batch)

    found = np.asarray(distance(batch))
    assert np.max(found) <= clipper.sensitivity(ADD) * (1 + 1e-5)
    assert np.max(found) >= 0.99 * clipper.sensitivity(ADD)


def test_the_clipped_mean_by_hand():
    rule = rules.per_layer({"a": 3.0, "b": 4.0})
    clipper = edp_sgd.clipped_grad(loss, l2_clip_norm=5.0, group_size=4, rule=rule)
    params = {"a": jnp.zeros(2), "b": jnp.zeros(1)}
    batch = {
        "a": jnp.asarray([[30.0, 0.0], [0.0, 40.0], [jnp.nan, 0.0]]),
        "b": jnp.asarray([[2.0], [2.0], [7.0]]),
    }
    sums, info = clipper(params, batch, jnp.asarray([True, True, False]), KEY)
    mean, closed = clipper.close(sums)
    # Means (7.5, 10) of norm 12.5, cut to 3, and 1, which is below 4.
    np.testing.assert_allclose(mean["a"], [1.8, 2.4], rtol=1e-6)
    np.testing.assert_allclose(mean["b"], [1.0], rtol=1e-6)
    np.testing.assert_allclose(closed.group_norms_per_example, [[12.5, 1.0]], rtol=1e-6)
    assert not np.any(info.nonfinite_per_example)
    sums, info = clipper(params, batch, jnp.asarray([True, True, True]), KEY)
    mean, _ = clipper.close(sums)
    assert not np.any(mean["a"]) and not np.any(mean["b"])  # the whole group is out
    assert info.nonfinite_per_example.tolist() == [False, False, True]


@pytest.mark.parametrize("shards", [None, 2])
def test_layout_holds_every_drawn_example_once_in_its_own_micro_batch(shards):
    sampler = edp_sgd.micro_batches(
        2000, 96, group_size=24, physical_batch_size=8, shards=shards, seed=3
    )
    plain = sampling.poisson(2000, 96, physical_batch_size=8, shards=shards, seed=3)
    sizes = collections.Counter()
    for step in range(200):
        (physical,) = sampler.physical(step)
        used = physical.indices[physical.mask]
        np.testing.assert_array_equal(np.sort(used), plain.draw(step))
        closes = np.atleast_2d(physical.closes)
        mask = physical.mask.reshape(*closes.shape, 8)
        assert closes.sum() == 4 and np.all(closes.sum(1) == 4 // len(closes))
        for row_mask, row_closes in zip(mask, closes, strict=True):
            last = np.flatnonzero(row_closes)[-1]
            assert not np.any(row_mask[last + 1 :])
            assert last < physical.trips <= sampler.capacity
            edges = np.concatenate([[0], np.flatnonzero(row_closes) + 1])
            for start, stop in zip(edges, edges[1:], strict=False):
                sizes[int(row_mask[start:stop].sum())] += 1
    # Slots are a binomial thinning: mean 24, variance 24 (1 - 96/2000/4).
    values = np.repeat(list(sizes), list(sizes.values()))
    assert np.mean(values) == pytest.approx(24, abs=4.5 * math.sqrt(24 / 800))
    assert np.var(values) == pytest.approx(24, rel=0.25)


def test_a_crowded_micro_batch_drops_its_own_members_only():
    # A draw of all 12 examples into 2 slots: at most 2 + ceil(6 sqrt 2) = 11 stay.
    sampler = edp_sgd.micro_batches(12, 12, group_size=2, physical_batch_size=4, seed=0)
    assert sampler.capacity == 6 * 3
    assert sampler.expected_batch_size == 12


def test_plans_take_slots_that_are_drawn_and_no_others():
    grouped = edp_sgd.clipped_grad(loss, l2_clip_norm=1.0, group_size=10)
    exact = clipping.clipped_grad(loss, l2_clip_norm=1.0)
    slots = edp_sgd.micro_batches(
        1000, 100, group_size=10, physical_batch_size=8, seed=0
    )
    poisson = sampling.poisson(1000, 100, physical_batch_size=8, seed=0)
    rest = {"steps": 10, "delta": 1e-5, "relation": ADD, "noise_multiplier": 1.0}
    with pytest.raises(ValueError, match="clipper='edp_sgd' does not fit"):
        plan.make(grouped, poisson, **rest)
    with pytest.raises(ValueError, match="sampler='micro_batches' does not fit"):
        plan.make(exact, slots, **rest)
    other = edp_sgd.micro_batches(
        1000, 100, group_size=20, physical_batch_size=8, seed=0
    )
    with pytest.raises(ValueError, match="group_size=10.* differs from .* 20"):
        plan.make(grouped, other, **rest)
    p = plan.make(grouped, slots, **rest)
    assert p.expected_batch_size == 10  # micro-batches
    assert p.sensitivity == 2.0 and p.noise_stddev() == 1.0


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"group_size": 1}, "group_size=1 must be .*2"),
        ({"group_size": 30}, "expected_batch_size=100 must be a multiple of .*30"),
        ({"shards": 3}, "group_size=10 makes 10 micro-batches, which 3 devices"),
    ],
)
def test_wrong_micro_batches_are_refused(change, sentence):
    good = {"group_size": 10, "physical_batch_size": 8, "seed": 0}
    with pytest.raises(ValueError, match=sentence):
        edp_sgd.micro_batches(1000, 100, **(good | change))


def test_tracked_thresholds_cost_what_the_event_says():
    params = {"a": jnp.zeros(2), "b": jnp.zeros(1)}
    rule = rules.quantile(groups=rules.per_layer(), bit_stddev=2.0)
    p = made(rule=rule, params=params, steps=10)
    state = p.mechanism.init(rng.root(0))
    assert p.mechanism.clip_norms(state).shape == (2,)
    # Bits of 10 micro-batches, each may flip: multiplier s / sqrt(G) for z / 2.
    z_gradient = p.noise_stddev() / 2.0
    halves = (z_gradient / 2) ** -2 + 2 * (2.0 * 10) ** -2
    assert halves == pytest.approx((1.0 / 2) ** -2, rel=1e-12)
