"""Consistency among neighbours, and intervals of counts that were noised."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import neighbors

from trustml.fairness import consistency, gaps, intervals, private_counts


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
