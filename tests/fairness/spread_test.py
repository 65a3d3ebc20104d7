"""Means and spreads of groups of clusters: loops, enumeration, calibration."""

import itertools

import numpy as np
import pytest

from trustml.fairness import spread


def table(seed=0, groups=3, clusters=12, noise=1.0, effect=0.0):
    """Scores of 1 to 4 texts a cluster, alike inside it."""
    rng = np.random.default_rng(seed)
    scores, of, about = [], [], []
    for g in range(groups):
        for c in range(clusters):
            size = int(rng.integers(1, 5))
            centre = effect * g + noise * rng.normal()
            scores += list(centre + 0.1 * rng.normal(size=size))
            of += [f"g{g}"] * size
            about += [f"e{c}"] * size
    return np.array(scores), of, about


def test_means_by_hand():
    scores = [1.0, 3.0, np.nan, 5.0, np.nan]
    found = spread.tally(scores, list("aabba"), ["x", "y", "x", "x", "z"])
    assert found.groups == ("a", "b") and len(found.sums) == 4
    assert found.missing.sum() == 2
    means = spread.means(found, replicates=100)
    np.testing.assert_allclose(means.value, [2.0, 5.0])
    assert means.n.tolist() == [2, 1] and means.clusters.tolist() == [2, 1]
    # One cluster of b has a score: it varies in no draw.
    assert means.lo[1] == means.hi[1] == 5.0
    nothing = spread.tally([np.nan, 1.0], ["a", "b"], ["x", "y"])
    assert np.isnan(spread.means(nothing).value[0])
    assert np.isnan(spread.over_groups(nothing).largest.value)


def test_intervals_are_those_of_a_loop_over_drawn_clusters():
    scores, groups, clusters = table()
    means = spread.means(spread.tally(scores, groups, clusters), replicates=4000)
    rng = np.random.default_rng(5)
    for g, name in enumerate(("g0", "g1", "g2")):
        own = {}
        for score, group, cluster in zip(scores, groups, clusters, strict=True):
            if group == name:
                own.setdefault(cluster, []).append(score)
        own = list(own.values())
        drawn = []
        for _ in range(4000):
            picked = [own[i] for i in rng.integers(0, len(own), len(own))]
            drawn.append(np.mean(np.concatenate(picked)))
        sd = np.std(drawn)
        np.testing.assert_allclose(means.value[g], np.mean(np.concatenate(own)))
        # A 2.5% quantile of 4000 draws of a normal law has an error of
        # sqrt(.025 .975 / 4000) / .0584 = 0.042 sd; 4 of them, both sides random.
        room = 4 * np.sqrt(2) * 0.042 * sd
        np.testing.assert_allclose(
            [means.lo[g], means.hi[g]], np.quantile(drawn, [0.025, 0.975]), atol=room
        )


def test_texts_of_a_cluster_are_one_piece_of_evidence():
    scores, groups, clusters = table()
    once = spread.tally(scores, groups, clusters)
    often = spread.tally(np.tile(scores, 5), groups * 5, clusters * 5)
    a, b = spread.means(once), spread.means(often)
    np.testing.assert_allclose([a.lo, a.hi], [b.lo, b.hi])
    alone = spread.means(
        spread.tally(
            np.tile(scores, 5), groups * 5, [str(i) for i in range(5 * len(scores))]
        )
    )
    assert ((alone.hi - alone.lo) < 0.7 * (b.hi - b.lo)).all()
    assert spread.over_groups(once).largest.high == pytest.approx(
        spread.over_groups(often).largest.high
    )


def test_the_floor_is_that_of_every_deal():
    """Seven clusters, four and three: 35 partitions."""
    scores = np.array([0.9, 0.8, 0.9, 1.0, 0.8, 0.2, 0.7, 0.4, 0.3, 0.6])
    groups = ["a"] * 7 + ["b"] * 3
    clusters = ["1", "1", "1", "1", "2", "3", "4", "1", "2", "3"]
    found = spread.tally(scores, groups, clusters)
    assert len(found.sums) == 7
    gaps = []
    for chosen in itertools.combinations(range(7), 4):
        rest = [i for i in range(7) if i not in chosen]
        one, other = (
            found.sums[list(x)].sum() / found.counts[list(x)].sum()
            for x in (chosen, rest)
        )
        gaps.append(abs(one - other))
    gaps = np.array(gaps)
    seen = gaps[0]  # the first is as it was
    made = spread.over_groups(found, replicates=20_000)
    assert made.largest.value == pytest.approx(seen)
    assert made.deviation.value == pytest.approx(seen / 2)
    # 5 standard errors of a mean and of a share over 20,000 deals.
    room = 5 * gaps.std() / np.sqrt(20_000)
    assert made.largest.mean == pytest.approx(gaps.mean(), abs=room)
    share = np.mean(gaps >= seen - 1e-12)
    assert made.largest.p_value == pytest.approx(share, abs=5 * 0.5 / np.sqrt(20_000))
    # Of 35 deals, two are above the 95% quantile.
    assert made.largest.high == pytest.approx(np.sort(gaps)[-2])


def test_chance_alone_is_seldom_beyond_chance():
    """p <= 0.05 in one of twenty worlds without an effect, in all with a large one."""
    found = [
        spread.over_groups(spread.tally(*table(seed)), replicates=199, seed=seed)
        for seed in range(300)
    ]
    share = np.mean([one.largest.p_value <= 0.05 for one in found])
    # Binomial: 0.05 +- 4 sqrt(.05 .95 / 300).
    assert abs(share - 0.05) < 0.051
    strong = spread.tally(*table(effect=3.0))
    assert spread.over_groups(strong, replicates=199).largest.p_value == 1 / 200
    assert spread.over_groups(strong).largest.value > 5


def test_groups_that_do_not_count_are_as_if_not_there():
    scores, groups, clusters = table(groups=4)
    kept = np.array([True, False, True, True])
    rows = [n for n, g in enumerate(groups) if g != "g1"]
    left = spread.tally(
        scores[rows], [groups[n] for n in rows], [clusters[n] for n in rows]
    )
    whole = spread.over_groups(spread.tally(scores, groups, clusters), kept)
    assert whole == spread.over_groups(left)


def test_a_source_against_another():
    scores, groups, clusters = table(seed=1)
    found = spread.tally(scores, groups, clusters)
    same = spread.differences(found, found)
    assert (same.value == 0).all() and (same.lo == 0).all() and (same.hi == 0).all()
    order = np.random.default_rng(0).permutation(len(scores))
    other = spread.tally(
        scores[order] - 1, [groups[n] for n in order], [clusters[n] for n in order]
    )
    moved = spread.differences(found, other)
    for part in moved[:3]:
        np.testing.assert_allclose(part, 1.0)  # paired: no noise is left
    short = spread.tally(scores[:-9], groups[:-9], clusters[:-9])
    with pytest.raises(ValueError, match="is a cluster of one source alone"):
        spread.differences(found, short)


def test_wrong_calls_are_refused():
    with pytest.raises(ValueError, match=r"groups=1 must be one a text, 2"):
        spread.tally([0.0, 1.0], ["a"], ["x", "y"])
    with pytest.raises(ValueError, match=r"scores\[1\]=inf must be finite"):
        spread.tally([0.0, np.inf], ["a", "a"], ["x", "y"])
    with pytest.raises(ValueError, match="scores=0 must be >= 1"):
        spread.tally([], [], [])
    found = spread.tally([0.0, 1.0], ["a", "b"], ["x", "y"])
    with pytest.raises(ValueError, match="level=1.5"):
        spread.means(found, level=1.5)
    with pytest.raises(ValueError, match="kept="):
        spread.over_groups(found, [True])
