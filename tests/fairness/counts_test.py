"""Counts of groups: a loop, masks, merging over batches, devices and clients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trustml import parallel
from trustml.fairness import counts, gaps, rates


def rows(n=200, groups=3, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    return (
        rng.integers(-1, groups, n),
        rng.integers(0, classes, n),
        rng.integers(0, classes, n),
    )


def by_hand(group, label, guess, groups=3, classes=3):
    cells = np.zeros((groups, classes, classes), int)
    for g, y, k in zip(group, label, guess, strict=True):
        if g >= 0:
            cells[g, y, k] += 1
    return cells


def test_equal_to_a_loop_and_unknown_groups_are_counted():
    group, label, guess = rows()
    found = counts.count(group, label, guess, groups=3, classes=3)
    np.testing.assert_array_equal(found.cells, by_hand(group, label, guess))
    assert found.unknown == np.sum(group < 0) > 0
    strange = counts.count(
        np.array([0, 3, 0, 0]),
        np.array([0, 0, 2, 0]),
        np.array([1, 0, 0, -1]),
        groups=3,
    )
    assert strange.unknown == 3 and strange.cells.sum() == 1
    with pytest.raises(ValueError, match="unknown=3 examples have a group"):
        counts.require(strange)


def test_masked_rows_add_nothing_whatever_they_hold():
    group, label, guess = rows()
    mask = np.random.default_rng(1).random(len(group)) < 0.5
    wild = [np.where(mask, x, np.iinfo(np.int32).max) for x in (group, label, guess)]
    weights = np.where(mask, 1.5, np.nan)
    found = counts.count(*wild, groups=3, classes=3, mask=mask, weights=weights)
    wanted = by_hand(group[mask], label[mask], guess[mask])
    np.testing.assert_array_equal(found.cells, 1.5 * wanted)
    np.testing.assert_array_equal(found.squares, 2.25 * wanted)
    assert found.unknown == np.sum(group[mask] < 0)


def test_intersections_and_marginals():
    rng = np.random.default_rng(2)
    both = rng.integers(0, [2, 4], (300, 2))
    label, guess = rng.integers(0, 2, (2, 300))
    cells = counts.count(both, label, guess, groups=(2, 4)).cells
    for a in range(2):
        for b in range(4):
            mine = (both[:, 0] == a) & (both[:, 1] == b)
            wanted = by_hand(np.zeros(mine.sum(), int), label[mine], guess[mine], 1, 2)
            np.testing.assert_array_equal(cells[a, b], wanted[0])
    for keep, groups in ((0, 2), (1, 4)):
        one = counts.count(both[:, keep], label, guess, groups=groups).cells
        np.testing.assert_array_equal(counts.marginal(cells, keep, 2), one)
    assert counts.flatten(cells).shape == (8, 2, 2)
    with pytest.raises(ValueError, match="keep="):
        counts.marginal(cells, (1, 0), 2)


def test_a_metric_in_a_scan_is_one_count():
    group, label, guess = (x.reshape(4, 50) for x in rows())
    metric = counts.counter(groups=3, classes=3)

    @jax.jit
    def run(group, label, guess):
        def step(state, batch):
            g, y, k = batch
            return metric.update(state, group=g, label=y, guess=k), None

        return metric.compute(
            jax.lax.scan(step, metric.init(), (group, label, guess))[0]
        )

    found = run(group, label, guess)
    whole = by_hand(*(x.reshape(-1) for x in (group, label, guess)))
    np.testing.assert_array_equal(found.cells, whole)
    run(group + 0, label, guess)
    assert run._cache_size() == 1


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_devices_and_clients_add_up_to_the_same_integers(devices):
    group, label, guess = rows(n=160)
    whole = by_hand(group, label, guess)

    def local(_, batch):
        return counts.count(*batch, groups=3, classes=3), ()

    mine = jax.devices()[:devices]
    batch = parallel.shard(
        [jnp.asarray(x).reshape(devices, -1) for x in (group, label, guess)], mine
    )
    run = jax.jit(parallel.map_sum(local, devices=mine))
    found, _ = run((), batch)
    np.testing.assert_array_equal(found.cells, whole)
    by_client = jax.vmap(
        lambda *batch: counts.count(*batch, groups=3, classes=3).cells
    )(*(jnp.asarray(x).reshape(8, 20) for x in (group, label, guess)))
    np.testing.assert_array_equal(by_client.sum(0), whole)


def test_the_mean_of_clients_is_not_the_pooled_gap():
    # Simpson: no gap inside either client, a gap of the whole.
    cells = jnp.array(
        [[[[9, 81], [0, 0]], [[1, 9], [0, 0]]], [[[9, 1], [0, 0]], [[81, 9], [0, 0]]]]
    )
    each = jax.vmap(gaps.demographic_parity_difference)(cells)
    np.testing.assert_allclose(each, 0.0, atol=1e-6)
    assert gaps.demographic_parity_difference(cells.sum(0)) > 0.6


def test_one_person_changes_what_is_declared():
    group, label, guess = rows(n=20)
    base = by_hand(group, label, guess)
    worst = {"add_remove": np.zeros(2), "replace_one": np.zeros(2)}
    for i in range(20):
        rest = np.delete(np.arange(20), i)
        fewer = by_hand(group[rest], label[rest], guess[rest])
        other = [x.copy() for x in (group, label, guess)]
        for x in other:
            x[i] = (x[i] + 1) % 3
        for name, changed in (("add_remove", fewer), ("replace_one", by_hand(*other))):
            apart = (changed - base).reshape(-1)
            norms = [np.abs(apart).sum(), np.sqrt((apart**2).sum())]
            worst[name] = np.maximum(worst[name], norms)
    for name, found in worst.items():
        for norm, value in zip((1, 2), found, strict=True):
            np.testing.assert_allclose(value, counts.SENSITIVITY[name, norm])


def test_overlapping_groups_count_in_each():
    rng = np.random.default_rng(3)
    members = rng.random((100, 3)) < 0.4
    label, guess = rng.integers(0, 2, (2, 100))
    found = counts.of_members(members, label, guess)
    for g in range(3):
        mine = members[:, g]
        wanted = by_hand(np.zeros(mine.sum(), int), label[mine], guess[mine], 1, 2)
        np.testing.assert_array_equal(found.cells[g], wanted[0])
    assert found.patterns.sum() == 100


@pytest.mark.parametrize(
    "changed, sentence",
    [
        ({"guess": np.full(4, 0.5)}, "guess='float.*must be integers or flags"),
        ({"mask": np.ones(3, bool)}, r"must be bool\[4\]"),
        ({"label": np.zeros(3, int)}, r"label=.*must be int\[4\]"),
        ({"groups": 0}, "groups=0"),
        ({"classes": 1}, "classes=1"),
        ({"group": np.zeros((4, 2), int)}, "does not name 1 attributes"),
    ],
)
def test_wrong_input_is_refused(changed, sentence):
    zeros = np.zeros(4, int)
    given = {"group": zeros, "label": zeros, "guess": zeros, "groups": 2, "classes": 2}
    given |= changed
    place = [given.pop(name) for name in ("group", "label", "guess")]
    with pytest.raises(ValueError, match=sentence):
        counts.count(*place, **given)


def test_an_empty_group_is_named():
    found = counts.count(np.zeros(5, int), np.zeros(5, int), np.ones(5, int), groups=2)
    with pytest.raises(ValueError, match="group='men' has no examples"):
        counts.require(found, names=("women", "men"))
    counts.require(found)
    assert np.isnan(rates.selection(found.cells)[1])


def test_overflow_is_noticed():
    with pytest.raises(ValueError, match="more than 2147483647 examples"):
        counts.host(np.array([[[-5, 0], [0, 0]]], np.int32))


@pytest.mark.parametrize("wild", [2**32, -(2**32), 2**63 - 1])
def test_a_number_beyond_int32_is_no_group(wild):
    found = counts.count(np.array([wild, 0, 1]), [0, 1, 1], [1, 1, 1], groups=2)
    assert found.unknown == 1 and found.cells.sum() == 2
    found = counts.count(np.array([2**32], np.uint64), [0], [1], groups=2)
    assert found.unknown == 1
