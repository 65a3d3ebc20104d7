"""Who refers to whom, and the moments of the references, against plain loops."""

import jax
import numpy as np
import pytest

from tests.attacks import worlds
from trustml.attacks import references


def sides(rotation, target, example):
    """Reference models of both sides, by hand."""
    used = np.flatnonzero(rotation.use[target])
    inside = [r for r in used if rotation.member[r, example]]
    outside = [r for r in used if not rotation.member[r, example]]
    if rotation.limit is not None:
        most = rotation.limit[target, example]
        inside, outside = inside[:most], outside[:most]
    return inside, outside


@pytest.mark.parametrize("budget", [None, 4])
def test_moments_are_those_of_a_loop(budget):
    member, pair = worlds.paired(12, 40, shared=False)
    x = worlds.leaky(member, queries=2) + 50  # an offset that squares would lose
    rotation = references.rotate(member, pair, budget=budget)
    found = jax.tree.map(np.asarray, jax.jit(references.summary)(x, rotation))
    freedom, squares = np.zeros((2, 12)), np.zeros((2, 12, 2))
    for t in range(12):
        for i in range(40):
            for side, rows in enumerate(sides(rotation, t, i)):
                values = x[rows, i].astype(np.float64)
                n = (found.n_in, found.n_out)[side][t, i]
                assert n == len(rows)
                if not rows:
                    continue
                away = values - values.mean(0)
                mean = (found.mean_in, found.mean_out)[side][t, i]
                own = (found.squares_in, found.squares_out)[side][t, i]
                np.testing.assert_allclose(mean, values.mean(0), rtol=1e-6)
                np.testing.assert_allclose(own, (away**2).sum(0), rtol=1e-4, atol=1e-5)
                squares[side, t] += (away**2).sum(0)
                freedom[side, t] += len(rows) - 1
    for side, pooled in enumerate((found.variance_in, found.variance_out)):
        want = squares[side] / freedom[side][:, None]
        np.testing.assert_allclose(pooled, want, rtol=1e-5)


def test_the_pooled_variance_is_centred_per_example():
    # Two examples, equal spread, means a thousand apart.
    member, pair = worlds.paired(10, 2)
    rng = np.random.default_rng(0)
    near = rng.normal(size=(10, 2, 1)).astype(np.float32)
    far = near + np.array([0, 1000], np.float32)[None, :, None]
    rotation = references.rotate(member, pair)
    one = references.summary(near, rotation)
    two = references.summary(far, rotation)
    np.testing.assert_allclose(one.variance_out, two.variance_out, rtol=1e-3)
    np.testing.assert_allclose(one.variance_in, two.variance_in, rtol=1e-3)


def test_neither_the_target_nor_its_partner_is_a_reference():
    member, pair = worlds.paired(8, 30)
    for budget, count in ((None, 6), (4, 4), (2, 2)):
        use = references.rotate(member, pair, budget=budget).use
        assert not use[np.arange(8), np.arange(8)].any()
        assert not use[np.arange(8), pair].any()
        np.testing.assert_array_equal(use, use[:, pair])  # whole pairs
        assert (use.sum(1) == count).all()
        assert (use.sum(0) == count).all()  # every model serves equally often


def test_with_pairs_all_examples_have_equal_counts():
    member, pair = worlds.paired(8, 30)
    found = references.summary(worlds.noise(member), references.rotate(member, pair))
    assert (np.asarray(found.n_in) == 3).all() and (np.asarray(found.n_out) == 3).all()


@pytest.mark.parametrize("design", [worlds.halves, worlds.coins])
def test_without_pairs_both_sides_are_cut_to_the_smaller(design):
    member, pair = design(8, 400)
    rotation = references.rotate(member, pair)
    found = references.summary(worlds.noise(member), rotation)
    np.testing.assert_array_equal(found.n_in, found.n_out)
    if design is worlds.halves:
        assert (np.asarray(found.n_in) == 3).all()


def test_a_design_whose_counts_give_membership_away_is_refused():
    # Every example in 3 of 12 models: 2 IN references for a member, 3 for the others.
    rng = np.random.default_rng(0)
    member = np.argsort(rng.random((12, 500)), axis=0) < 3
    with pytest.raises(ValueError, match="counts alone tell them apart"):
        references.rotate(member, np.full(12, -1))


def test_wrong_pairs_and_budgets_are_refused():
    member, pair = worlds.paired(6, 20)
    with pytest.raises(ValueError, match="mutual"):
        references.rotate(member, np.array([1, 2, 0, 4, 3, 5]))
    with pytest.raises(ValueError, match="both trained on example"):
        references.rotate(member | True, pair)
    with pytest.raises(ValueError, match="one per model"):
        references.rotate(member, pair[:4])
    for budget in (3, 6):
        with pytest.raises(ValueError, match=f"budget={budget} cannot be had"):
            references.rotate(member, pair, budget=budget)
    with pytest.raises(ValueError, match="budget=0 must be >= 1"):
        references.rotate(member, pair, budget=0)


def test_with_one_reference_a_side_the_variance_comes_from_the_gaps():
    # Noise of variance 4: Var(x_in - x_out) = 2 sigma^2; 20,000 examples, s.e. 1%.
    member, pair = worlds.paired(4, 20_000)
    x = 2 * np.random.default_rng(0).normal(size=(4, 20_000, 1)).astype(np.float32)
    found = references.summary(x, references.rotate(member, pair))
    np.testing.assert_allclose(found.variance_in, 4.0, rtol=0.05)
    np.testing.assert_allclose(found.variance_out, 4.0, rtol=0.05)


def test_what_is_not_finite_or_not_valid_is_left_out_of_everything():
    member, pair = worlds.paired(8, 30)
    x = worlds.leaky(member)
    rotation = references.rotate(member, pair)
    broken = x.copy()
    broken[3, 7], broken[0, 8] = np.nan, np.inf
    valid = np.arange(30) != 9
    found = references.summary(broken, rotation, valid)
    np.testing.assert_array_equal(np.flatnonzero(~np.asarray(found.valid)), [7, 8, 9])
    kept = np.asarray(found.valid)
    small = references.summary(
        x[:, kept], references.Rotation(member[:, kept], rotation.use, None)
    )
    np.testing.assert_allclose(found.variance_in, small.variance_in, rtol=1e-5)
    np.testing.assert_allclose(found.mean_out[:, kept], small.mean_out, rtol=1e-6)


def test_a_target_outside_the_design_refers_to_all_models():
    member, _ = worlds.paired(6, 30)
    x = worlds.leaky(member, queries=2)
    rotation = references.outside_target(member)
    assert rotation.use.shape == (1, 6) and rotation.use.all()
    found = jax.tree.map(np.asarray, jax.jit(references.summary)(x, rotation))
    assert found.mean_in.shape == (1, 30, 2)
    for i in range(30):
        inside, outside = x[member[:, i], i], x[~member[:, i], i]
        assert found.n_in[0, i] == found.n_out[0, i] == 3
        np.testing.assert_allclose(found.mean_in[0, i], inside.mean(axis=0), atol=1e-5)
        np.testing.assert_allclose(
            found.squares_out[0, i], 3 * outside.var(axis=0), atol=1e-4
        )


def test_margins_without_queries_are_refused():
    member, _ = worlds.paired(4, 20)
    with pytest.raises(
        ValueError, match=r"signal.shape=\[4, 20\] .*; of one query, give"
    ):
        references.clean(worlds.leaky(member)[:, :, 0], None)
