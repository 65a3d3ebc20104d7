"""Consistency among neighbours, and intervals of counts that were noised."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import neighbors

from trustml.fairness import consistency, gaps, intervals, private_counts, rates


@pytest.mark.parametrize("own", [True, False])
def test_equal_to_nearest_neighbours_of_scikit_learn(own):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 4)).astype(np.float32) + 50
    y = rng.integers(0, 2, 300)
    found = neighbors.NearestNeighbors(n_neighbors=5).fit(x)
    index = found.kneighbors(x if own else None, return_distance=False)
    wanted = 1 - np.mean(np.abs(y - y[index].mean(axis=1)))
    run = jax.jit(lambda x, y: consistency.consistency(x, y, own=own, chunk=64))
    np.testing.assert_allclose(run(x, y), wanted, atol=1e-6)


@pytest.mark.parametrize("wild", [np.nan, np.inf])
def test_what_has_no_distance_has_no_consistency(wild):
    x, y = np.arange(40.0).reshape(20, 2), np.arange(20) % 3 / 2
    run = jax.jit(lambda x, y: consistency.consistency(x, y, neighbours=3))
    assert np.isfinite(run(x, y))
    bad_x, bad_y = x.copy(), y.copy()
    bad_x[7, 1] = bad_y[7] = wild
    assert np.isnan(run(bad_x, y)) and np.isnan(run(x, bad_y))


def test_alike_is_one_and_neighbours_are_bounded():
    x = np.arange(6.0)[:, None]
    assert consistency.consistency(x, np.ones(6), neighbours=6) == 1.0
    with pytest.raises(ValueError, match="neighbours=6 must be at most 5"):
        consistency.consistency(x, np.ones(6), neighbours=6, own=False)
    with pytest.raises(ValueError, match=r"give \[n, D\] and \[n\]"):
        consistency.consistency(x, np.ones(5))


def test_intervals_of_noised_counts_cover_the_truth():
    # The release is drawn anew with the people: 300 worlds, deviation 1.3 points.
    p = np.array([0.2, 0.1, 0.05, 0.15, 0.1, 0.15, 0.1, 0.15])
    truth = 0.1 / 0.3 - 0.15 / 0.25
    worlds = np.random.default_rng(0).multinomial(1000, p, 300).reshape(-1, 2, 2, 2)

    def measure(cells):
        return gaps.signed(cells, "fpr", 0, 1)

    def one(pair):
        key, cells = pair
        noise, draws = jax.random.split(key)
        released = private_counts.noised(noise, cells, stddev=15.0)
        found = private_counts.ci(draws, released, measure, stddev=15.0, replicates=400)
        plain = intervals.ci(
            jax.random.fold_in(jax.random.clone(draws), 1),
            jnp.round(released),
            measure,
            replicates=400,
        )
        within = [(x.lo <= truth) & (truth <= x.hi) for x in (found, plain)]
        return jnp.stack(within)

    keys = jax.random.split(jax.random.key(0), 300)
    held = jax.jit(lambda *of: jax.lax.map(one, of))(keys, jnp.asarray(worlds))
    covered, without = np.asarray(held).mean(axis=0)
    assert abs(covered - 0.95) < 0.05
    assert without < covered - 0.05  # what an interval misses that forgets the noise


def test_only_counts_are_noised():
    cells = np.ones((2, 2, 2), np.int64)
    for wrong in (cells * 1.0, jnp.ones((2, 2, 2)), cells.astype(bool)):
        with pytest.raises(ValueError, match="are no counts; a sum of weights"):
            private_counts.noised(jax.random.key(0), wrong, stddev=1.0)
    found = private_counts.noised(jax.random.key(0), cells + 3_000_000_000, stddev=1.0)
    np.testing.assert_allclose(found, 3e9, rtol=1e-6)


def test_what_noise_hides_is_not_shown():
    """Nobody in group 1; 30 positives in group 2, where noise of two cells is 28."""

    def measure(cells):
        found = {name: rates.rate(name, cells) for name in ("selection", "tpr", "ppv")}
        return {**found, "gap": gaps.difference(cells, "selection")}

    cells = np.array([[[700, 200], [60, 140]], [[0, 0]] * 2, [[500, 300], [10, 20]]])
    key, draws = jax.random.split(jax.random.key(3))
    released = private_counts.noised(key, cells, stddev=20.0)
    run = jax.jit(
        lambda *of: private_counts.ci(*of, measure, stddev=20.0, replicates=200)
    )
    found = run(draws, released)
    for name, shown in (
        ("selection", [True, False, True]),
        ("tpr", [True, False, False]),
        ("ppv", [True, False, True]),
    ):
        one = found[name]
        for part in (one.value, one.lo, one.hi):
            np.testing.assert_array_equal(~np.isnan(part), shown)
        np.testing.assert_array_equal(one.flagged, ~np.array(shown))
    first, last = found["selection"].value[0], found["selection"].value[2]
    np.testing.assert_allclose(found["gap"].value, abs(first - last), atol=1e-6)
