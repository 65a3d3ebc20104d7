"""Errors of means of clusters: simulation, a loop, groups alike and apart."""

import numpy as np
import pytest

from trustml.fairness import cluster_errors


def test_squares_of_errors_are_right_on_average():
    """Independent texts: E |adjusted|^2 = var of the mean, and df as of its spread."""
    rng = np.random.default_rng(0)
    counts = np.array([1, 1, 2, 3, 8, 20])
    found, plain = [], []
    for _ in range(4000):
        one = cluster_errors.influence(
            rng.normal(size=6) * np.sqrt(counts) + 5 * counts, counts
        )
        found.append(np.sum(one.adjusted**2))
        plain.append(np.sum(one.plain**2))
    # Chi-squared of df: a relative sd of sqrt(2 / df) each; four errors of the mean.
    room = 4 * np.sqrt(2 / one.df / 4000)
    assert np.mean(found) == pytest.approx(1 / counts.sum(), rel=room)
    assert np.mean(plain) < 0.7 / counts.sum(), "what is left is too small"
    assert 2 / one.df == pytest.approx(np.var(found) / np.mean(found) ** 2, rel=0.25)
    even = cluster_errors.influence(rng.normal(size=8), np.full(8, 3))
    assert even.df == pytest.approx(7)
    for lone in ((np.ones(1), np.ones(1, int)), (np.zeros(2), np.zeros(2, int))):
        assert cluster_errors.influence(*lone).df == 0


def world(spreads, clusters, seed=0):
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(len(spreads)), clusters)
    order = rng.permutation(len(group))
    sums = rng.normal(size=len(group)) * np.asarray(spreads)[group]
    return sums[order], np.ones(len(group), int), group[order]


def test_groups_that_vary_alike_help_each_other():
    sums, counts, group = world(np.ones(12), 10)
    found = cluster_errors.moderated(sums, counts, group)
    own = np.array([sums[group == g].var(ddof=1) / 10 for g in range(12)])
    assert np.ptp(found.se**2) < 0.4 * np.ptp(own)
    assert (found.df > 9).all() and found.prior <= 110


def test_groups_that_vary_apart_keep_their_own():
    spreads = np.geomspace(0.1, 10, 8)
    sums, counts, group = world(spreads, 40)
    found = cluster_errors.moderated(sums, counts, group)
    own = np.array([sums[group == g].std(ddof=1) for g in range(8)]) / np.sqrt(40)
    np.testing.assert_allclose(found.se, own, rtol=0.1)
    assert found.prior < 4


def test_a_single_cluster_has_the_error_that_others_foretell():
    sums, counts, group = world(np.ones(3), 200)
    sums, counts = np.append(sums, 7.0), np.append(counts, 4)
    found = cluster_errors.moderated(sums, counts, np.append(group, 3))
    # The mean of four texts, of clusters of one: half of a text's deviation.
    assert found.se[3] == pytest.approx(0.5, rel=0.1)
    assert np.isfinite(found.df).all()


def test_no_more_degrees_of_freedom_than_there_are():
    rng = np.random.default_rng(0)
    for sizes in ([2, 1, 1, 1], [3, 3], [10] * 4):
        group = np.repeat(np.arange(len(sizes)), sizes)
        sums = rng.normal(size=len(group))
        found = cluster_errors.moderated(sums, np.ones(len(group), int), group)
        assert found.df.max() <= sum(sizes) - len(sizes)


def test_nothing_varies():
    found = cluster_errors.moderated(
        np.array([1.0, 2.0, 2.0]), np.array([1, 1, 1]), np.array([0, 1, 1])
    )
    assert np.isnan(found.se).all() and np.isnan(found.prior)
