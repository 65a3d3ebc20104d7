"""Permutation tests against enumeration in Python."""

import itertools
import math

import jax
import numpy as np
import pytest
from scipy import stats

from trustml.fairness import permutation


def _enumerate(s, nx):
    """(k, N) in float64 with the tie rule, partition by partition."""
    eps = np.finfo(s.dtype).eps
    s = s.astype(np.float64)
    least = s[:nx].sum() - 8 * eps * np.abs(s).sum()
    chosen = list(itertools.combinations(range(len(s)), nx))
    return int(np.sum(s[np.array(chosen)].sum(1) >= least)), len(chosen)


@pytest.mark.parametrize(
    ("nx", "ny", "dtype"),
    [(8, 8, np.float32), (3, 5, np.float64), (9, 9, np.float64), (2, 2, np.float32)],
)
def test_counts_equal_enumeration(nx, ny, dtype):
    rng = np.random.default_rng(nx)
    # Tests of different scale: the digits kept are those of each test's largest score.
    s = (rng.normal(size=(2, 3, nx + ny)) * 10.0 ** rng.integers(-6, 3, (2, 3, 1))) + 0
    s = s.astype(dtype)
    table = permutation.partitions(nx, ny)
    assert table.exact and len(table.masks) == math.comb(nx + ny, nx)
    found = permutation.test(s, table)
    want = [[_enumerate(one, nx) for one in layer] for layer in s]
    np.testing.assert_array_equal(found.count, np.array(want)[..., 0])
    assert found.total == want[0][0][1]
    np.testing.assert_allclose(found.p, found.count / found.total, rtol=1e-6)


@pytest.mark.slow
def test_24_tests_of_13_layers_equal_enumeration():
    s = np.random.default_rng(0).normal(size=(24, 13, 16)).astype(np.float32)
    found = permutation.test(s, permutation.partitions(8, 8))
    want = [[_enumerate(one, 8)[0] for one in layer] for layer in s]
    np.testing.assert_array_equal(found.count, want)


def test_ties_count_in_full():
    table = permutation.partitions(4, 4)
    # 0.1 and its like are not exact in binary: equal sums in another order differ by an
    # ulp. Partitions that swap equal scores must all count.
    s = np.array([0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1, -0.7])
    # Any 2 of the 5 scores of 0.1 beside 0.3 and 0.2: C(5, 2) ties, and nothing above.
    for dtype in (np.float64, np.float32):
        assert permutation.test(s.astype(dtype), table).count == 10
    # a + b and 0 against a and b: 2 ties, and 2 partitions with a + b above.
    a, b = np.random.default_rng(8).uniform(0.1, 1, (2, 50))
    s = np.stack([a + b, 0 * a, a, b], 1)
    for dtype in (np.float64, np.float32):
        found = permutation.test(s.astype(dtype), permutation.partitions(2, 2))
        np.testing.assert_array_equal(found.count, np.full(50, 4))
    same = permutation.test(np.full((2, 8), 0.1), table)
    np.testing.assert_array_equal(same.count, [70, 70])
    zero = permutation.test(np.zeros(8, np.float32), table)
    assert zero.count == 70 and zero.p == 1


def test_both_tails_and_the_rank():
    s = np.random.default_rng(1).normal(size=8)
    table = permutation.partitions(4, 4)
    up, down = permutation.test(s, table), permutation.test(-s, table)
    assert up.count + down.count == 70 + 1  # the observed one is in both
    ordered = np.sort(s)[::-1].copy()
    assert permutation.test(ordered, table).count == 1


def test_many_partitions_are_sampled_once():
    table = permutation.partitions(12, 13, samples=20_000, seed=3)
    assert not table.exact and table.masks.shape == (20_001, 25)
    assert table is permutation.partitions(12, 13, samples=20_000, seed=3)
    np.testing.assert_array_equal(table.masks.sum(1), 12)
    np.testing.assert_array_equal(np.flatnonzero(table.masks[0]), np.arange(12))
    # Each word is in the first part in 12/25 of the draws; five standard errors.
    share = table.masks[1:].mean(0)
    assert np.all(abs(share - 0.48) < 5 * np.sqrt(0.48 * 0.52 / 20_000))
    s = np.random.default_rng(4).normal(size=25)
    s[:12] += 0.4
    found = permutation.test(s, table)
    sums = table.masks[1:].astype(float) @ s
    assert found.count == 1 + np.sum(sums >= s[:12].sum())
    assert found.total == 20_001
    wanted = stats.permutation_test(
        (s[:12], s[12:]),
        lambda x, y, axis: x.mean(axis) - y.mean(axis),
        vectorized=True,
        n_resamples=20_000,
        alternative="greater",
        rng=np.random.default_rng(0),
    ).pvalue
    # Two independent binomial estimates of one p: five standard errors of a difference.
    bound = 5 * np.sqrt(2 * wanted * (1 - wanted) / 20_000)
    assert abs(float(found.p) - wanted) < bound
    exact = permutation.partitions(9, 8)
    assert exact.exact and len(exact.masks) == 24_310


def test_parametric_has_the_moments_of_all_partitions():
    rng = np.random.default_rng(5)
    s = rng.normal(size=16)
    masks = permutation.partitions(8, 8).masks
    sums = masks.astype(float) @ s
    z = (s[:8].sum() - sums.mean()) / sums.std()
    np.testing.assert_allclose(permutation.parametric(s, 8), stats.norm.sf(z))


def test_under_jit_without_a_second_compilation_and_nan():
    table, traces = permutation.partitions(4, 4), []

    @jax.jit
    def run(s):
        traces.append(None)
        return permutation.test(s, table)

    rng = np.random.default_rng(6)
    s = rng.normal(size=(5, 8)).astype(np.float32)
    s[2, 3] = np.nan
    found = run(s)
    again = run(s[::-1].copy())
    assert len(traces) == 1
    first, last = np.asarray(found.count), np.asarray(again.count)
    np.testing.assert_array_equal(first[[0, 4]], last[[4, 0]])
    np.testing.assert_array_equal(np.isnan(found.p), [0, 0, 1, 0, 0])
    both = jax.vmap(run)(np.stack([s, s]))
    np.testing.assert_array_equal(both.count[1, 3], found.count[3])


def test_chunks_of_the_table_count_the_same(monkeypatch):
    s = np.random.default_rng(7).normal(size=(3, 12)).astype(np.float32)
    table = permutation.partitions(6, 6)
    want = permutation.test(s, table).count
    monkeypatch.setattr(permutation, "_ELEMENTS", 1)  # 256 rows, 924 = 3 * 256 + 156
    np.testing.assert_array_equal(permutation.test(s, table).count, want)


def test_errors():
    with pytest.raises(ValueError, match="nx=0 must be >= 1"):
        permutation.partitions(0, 3)
    with pytest.raises(ValueError, match="8 scores and table.masks 6"):
        permutation.test(np.zeros(8), permutation.partitions(3, 3))
