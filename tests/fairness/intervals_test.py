"""Bootstraps from counts: golden ends, SciPy, coverage, clusters, noise floor."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tests.fairness import people
from trustml.fairness import counts, floors, gaps, intervals, rates


def two_groups(data_dir):
    names, race, label, guess = people.compas(data_dir)
    cells = counts.count(race, label, guess, groups=6).cells
    a, c = names.index("African-American"), names.index("Caucasian")
    return cells[jnp.array([a, c])], cells


def both(cells):
    return {
        "fpr": gaps.difference(cells, "fpr"),
        "selection": gaps.demographic_parity_difference(cells),
    }


@pytest.mark.data
def test_golden_ends_of_compas(data_dir):
    cells, _ = two_groups(data_dir)
    run = jax.jit(
        lambda key: intervals.ci(key, cells, both, replicates=20_000, stratify="group")
    )
    found = run(jax.random.key(0))
    # Ends of 20,000 replicates are good to 0.02 standard errors of 0.016, thrice.
    close = functools.partial(np.testing.assert_allclose, atol=1e-3)
    close(found["fpr"].value, 0.213925, atol=1e-6)
    close([found["fpr"].lo, found["fpr"].hi], [0.1823, 0.2453])
    close(found["fpr"].se, 0.01610, atol=3e-4)
    # By the delta method .2402 -+ 1.96 * .01257.
    close([found["selection"].lo, found["selection"].hi], [0.2155, 0.2648])
    assert not found["fpr"].flagged and found["fpr"].n_undefined == 0
    # The same ends, drawing all margins.
    free = intervals.ci(jax.random.key(1), cells, both, replicates=20_000)
    close([free["fpr"].lo, free["fpr"].hi], [0.1823, 0.2453])


@pytest.mark.data
def test_golden_noise_floor_of_compas(data_dir):
    _, cells = two_groups(data_dir)
    found = floors.floor(
        0, cells, gaps.demographic_parity_difference, replicates=10_000
    )
    # 5 standard errors of a mean with deviation 0.08; of a quantile about thrice that.
    np.testing.assert_allclose(found.mean, 0.152, atol=4e-3)
    np.testing.assert_allclose(found.high, 0.299, atol=1.2e-2)
    assert 1 / 10_001 <= found.p_value < 0.01


def test_shuffles_keep_every_margin_and_have_the_law_of_permuted_rows():
    rng = np.random.default_rng(0)
    cells = rng.integers(1, 9, (3, 2, 2))
    drawn = floors.shuffled(0, cells, 4000)
    np.testing.assert_array_equal(
        drawn.sum((2, 3)), np.tile(cells.sum((1, 2)), (4000, 1))
    )
    np.testing.assert_array_equal(
        drawn.sum(1), np.tile(cells.sum(0)[None], (4000, 1, 1))
    )
    group, label, guess = people.rows_of(cells)
    by_hand = np.zeros((4000, 3, 2, 2))
    for r in range(4000):
        np.add.at(by_hand[r], (rng.permutation(group), label, guess), 1)
    for moment in (1, 2):
        apart = (drawn**moment).mean(0) - (by_hand**moment).mean(0)
        se = np.sqrt((drawn**moment).var(0) + (by_hand**moment).var(0)) / np.sqrt(4000)
        assert np.all(np.abs(apart) < 5 * se + 1e-9)


def test_replicates_have_the_law_of_drawn_rows():
    rng = np.random.default_rng(1)
    cells = rng.integers(0, 9, (2, 2, 2))
    cells[0, 0, 0] = 0
    drawn = np.asarray(intervals.resample(jax.random.key(0), cells, 4000))
    on_host = intervals.resample_on_host(0, cells, 4000)
    n = cells.sum()
    place = np.repeat(np.arange(8), cells.reshape(-1))
    by_hand = np.stack(
        [np.bincount(place[rng.integers(0, n, n)], minlength=8) for _ in range(4000)]
    ).reshape(4000, 2, 2, 2)
    for found in (drawn, on_host):
        assert np.all(found.sum((1, 2, 3)) == n) and np.all(found[:, 0, 0, 0] == 0)
        for moment in (1, 2):
            a, b = found.astype(float) ** moment, by_hand.astype(float) ** moment
            se = np.sqrt((a.var(0) + b.var(0)) / 4000)
            assert np.all(np.abs(a.mean(0) - b.mean(0)) < 5 * se + 1e-9)


@pytest.mark.parametrize("stratify", ["group", "group_label"])
def test_margins_that_are_fixed_stay(stratify):
    cells = jnp.array([[[5, 3], [0, 0]], [[0, 0], [0, 0]], [[1, 2], [3, 4]]])
    for drawn in (
        intervals.resample(jax.random.key(0), cells, 50, stratify=stratify),
        intervals.resample_on_host(0, cells, 50, stratify=stratify),
        intervals.resample(
            jax.random.key(0), cells, 50, stratify=stratify, method="bayesian"
        ),
    ):
        axes = (2, 3) if stratify == "group" else (3,)
        wanted = np.asarray(cells).sum(tuple(a - 1 for a in axes))
        found = np.asarray(drawn, float).sum(axes)
        wanted = np.tile(wanted, (50,) + (1,) * wanted.ndim)
        np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_the_bayesian_bootstrap_is_dirichlet():
    cells = jnp.array([[[30, 10], [5, 55]]])
    drawn = np.asarray(
        intervals.resample(jax.random.key(0), cells, 8000, method="bayesian")
    ).reshape(-1, 4)
    p = np.array([0.3, 0.1, 0.05, 0.55])
    deviation = 100 * np.sqrt(p * (1 - p) / 101)
    np.testing.assert_allclose(drawn.mean(0), 100 * p, atol=5 * 5 / np.sqrt(8000))
    np.testing.assert_allclose(drawn.std(0), deviation, rtol=0.05)


def test_bca_agrees_with_scipy():
    cells = np.array([[[40, 12], [6, 9]], [[50, 4], [20, 30]]])
    place = np.repeat(np.arange(8), cells.reshape(-1))

    def fpr_gap(rows, axis=-1):
        tn0, fp0, tn1, fp1 = ((rows == c).sum(axis) for c in (0, 1, 4, 5))
        return fp0 / (fp0 + tn0) - fp1 / (fp1 + tn1)

    peer = stats.bootstrap(
        (place,),
        fpr_gap,
        n_resamples=20_000,
        method="BCa",
        rng=np.random.default_rng(0),
        vectorized=True,
    )
    measure = lambda table: gaps.signed(table, "fpr", 0, 1)  # noqa: E731
    run = jax.jit(
        lambda key: intervals.ci(
            key, jnp.asarray(cells), measure, method="bca", replicates=20_000
        )
    )
    found = run(jax.random.key(0))
    se = peer.standard_error
    # An end of 20,000 replicates has an error of about sqrt(.025 * .975 / 20000) /
    # phi(1.96) = 0.019 standard errors; two of them, four times.
    tolerance = 4 * 0.019 * np.sqrt(2) * se
    ends = [peer.confidence_interval.low, peer.confidence_interval.high]
    np.testing.assert_allclose([found.lo, found.hi], ends, atol=tolerance)
    plain = intervals.ci(
        jax.random.key(0), jnp.asarray(cells), measure, replicates=20_000
    )
    # It corrects something: the draws are the same.
    assert found.lo - plain.lo > 0.02 * se and found.hi - plain.hi > 0.02 * se


def test_bca_of_what_does_not_vary_falls_back():
    cells = jnp.array([[[10, 0], [0, 5]]])
    found = intervals.ci(
        jax.random.key(0), cells, lambda c: rates.accuracy(c)[0], method="bca"
    )
    assert found.flagged and (found.lo, found.hi) == (1.0, 1.0)


def coverage(tables, method, replicates, simultaneous=False):
    """Share of 95% intervals that hold the truth, over tables drawn from one law."""
    p = np.array([[[0.15, 0.05], [0.1, 0.2]], [[0.2, 0.05], [0.05, 0.2]]])
    measure = lambda c: gaps.signed(c, "fpr", 0, 1)  # noqa: E731
    truth = 0.05 / 0.2 - 0.05 / 0.25
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(2000, p.reshape(-1), tables).reshape(-1, 2, 2, 2)

    def ends(pair):
        key, cells = pair
        if simultaneous:
            found = intervals.simultaneous(key, cells, rates.fpr, replicates=replicates)
            truths = jnp.array([0.25, 0.2])
            return jnp.all((found.lo <= truths) & (truths <= found.hi))
        found = intervals.ci(key, cells, measure, method=method, replicates=replicates)
        return (found.lo <= truth) & (truth <= found.hi)

    keys = jax.random.split(jax.random.key(0), tables)
    # A loop: JAX takes a multinomial's keys under vmap for reused ones.
    held = jax.jit(lambda *of: jax.lax.map(ends, of))(
        keys, jnp.asarray(drawn, jnp.int32)
    )
    return float(np.mean(held))


@pytest.mark.parametrize("method", ["multinomial", "bayesian"])
def test_coverage(method):
    # 300 tables: a standard error of 1.3 points, thrice.
    assert abs(coverage(300, method, 400) - 0.95) < 0.04


@pytest.mark.slow
@pytest.mark.parametrize("method", ["multinomial", "bayesian", "bca"])
def test_coverage_over_2000_tables(method):
    # 2,000 tables: a standard error of half a point; 93 to 97% asked.
    assert 0.93 <= coverage(2000, method, 1000) <= 0.97


def test_simultaneous_intervals_hold_together():
    found = coverage(300, "", 400, simultaneous=True)
    assert abs(found - 0.95) < 0.04


def test_a_group_that_vanishes_is_counted():
    cells = jnp.array([[[3, 1], [1, 1]], [[40, 10], [10, 40]]])
    found = intervals.ci(jax.random.key(0), cells, lambda c: rates.tpr(c))
    assert found.n_undefined[0] > 10 and found.flagged[0]
    assert found.n_undefined[1] == 0 and not found.flagged[1]
    bayes = intervals.ci(jax.random.key(0), cells, rates.tpr, method="bayesian")
    assert bayes.n_undefined.sum() == 0
    none = intervals.ci(jax.random.key(0), cells[:1] * 0, rates.tpr)
    assert np.isnan([none.value[0], none.lo[0], none.hi[0]]).all() and none.flagged[0]


def test_a_difference_of_models_is_drawn_in_pairs():
    rng = np.random.default_rng(2)
    joint = rng.integers(20, 80, (2, 2, 2, 2))
    joint[:, :, 0, 1] = joint[:, :, 1, 0] = 3  # models agree nearly always
    joint = jnp.asarray(joint)

    def measure(cells):
        return gaps.signed(cells, "fpr", 0, 1)

    change = intervals.ci(jax.random.key(0), joint, intervals.paired(measure))
    first, second = measure(joint.sum(-1)), measure(joint.sum(-2))
    np.testing.assert_allclose(change.value, second - first, atol=1e-6)
    alone = intervals.ci(jax.random.key(0), joint.sum(-1), measure)
    assert change.se < alone.se / 2


@pytest.mark.parametrize("large", [1, 2**21])
def test_margins_of_joint_counts_are_those_of_groups_and_labels(large):
    def share(cells):
        return cells[:, :, 1].sum(axis=1) / cells.sum(axis=(1, 2))

    # [label, guess of a, guess of b]: what changes goes by the label alone, so would
    # not vary if labels were fixed too; then by the guess of a alone.
    by_label = large * np.array([[[[0, 50], [0, 0]], [[50, 0], [0, 0]]]])
    by_guess = large * np.array([[[[0, 50], [50, 0]], [[0, 50], [50, 0]]]])
    for joint, stratify, wanted in (
        (by_label, "group", np.sqrt(0.25 / 100)),  # of 100 rows that change or do not
        (by_label, "group_label", 0.0),
        (by_guess, "group_label", np.sqrt(1 / 200)),  # mean of 200 changes -1 or 1
    ):
        options = {"stratify": stratify, "replicates": 2000}
        found = intervals.ci(
            jax.random.key(0), joint, intervals.paired(share), **options
        )
        # A standard deviation of 2,000 draws is good to 1.6%, five times.
        wanted = wanted / np.sqrt(large)
        np.testing.assert_allclose(found.se, wanted, rtol=0.08, atol=1e-6)


def test_clusters_are_drawn_whole():
    rng = np.random.default_rng(3)
    # 40 clusters of 25 rows that agree inside: the rows are worth 40, not 1000.
    clusters = np.zeros((40, 1, 2, 2), int)
    clusters[np.arange(40), 0, 1, rng.integers(0, 2, 40)] = 25
    measure = lambda c: rates.tpr(c)[0]  # noqa: E731
    found = intervals.ci_of_clusters(jax.random.key(0), jnp.asarray(clusters), measure)
    wrong = intervals.ci(jax.random.key(0), jnp.asarray(clusters.sum(0)), measure)
    p = float(found.value)
    np.testing.assert_allclose(found.se, np.sqrt(p * (1 - p) / 40), rtol=0.1)
    np.testing.assert_allclose(found.se / wrong.se, 5, rtol=0.15)


def test_many_rows_are_drawn_exactly():
    cells = np.array([[[2**26, 2**25], [2**24, 2**27]]])
    found = intervals.ci(jax.random.key(0), cells, lambda c: rates.fpr(c)[0])
    n = cells[0, 0].sum()
    wanted = np.sqrt((1 / 3) * (2 / 3) / n)
    np.testing.assert_allclose(found.se, wanted, rtol=0.1)


def test_wilson_and_flags_of_small_groups():
    lo, hi = intervals.wilson_of_groups(jnp.array([0, 3, 9]), jnp.array([0, 8, 9]))
    z = stats.norm.isf(0.025 / 3)
    p, n = 3 / 8, 8
    centre, scale = (p + z**2 / 16), 1 + z**2 / 8
    half = z * np.sqrt(p * (1 - p) / n + z**2 / 256)
    np.testing.assert_allclose(lo, [0, (centre - half) / scale, lo[2]], rtol=1e-5)
    np.testing.assert_allclose(hi, [1, (centre + half) / scale, 1], rtol=1e-5)
    cells = jnp.array([[[9, 10], [10, 10]], [[5, 4], [40, 3]], [[10, 10], [5, 3]]])
    small = intervals.small_groups(cells)
    np.testing.assert_array_equal(small.flagged, [False, True, True])
    np.testing.assert_array_equal(small.few, [False, False, True])
    np.testing.assert_array_equal(small.few_negatives, [False, True, False])
    np.testing.assert_array_equal(small.few_positives, [False, False, True])


def test_wrong_options_are_refused():
    cells = jnp.ones((2, 2, 2), jnp.int32)
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="stratify='group' has no acceleration"):
        intervals.ci(key, cells, rates.tpr, method="bca", stratify="group")
    with pytest.raises(ValueError, match="level=1.0"):
        intervals.ci(key, cells, rates.tpr, level=1.0)
    with pytest.raises(ValueError, match="method='jackknife'"):
        intervals.ci(key, cells, rates.tpr, method="jackknife")
    with pytest.raises(ValueError, match="weights cannot be shuffled"):
        floors.floor(0, jnp.ones((2, 2, 2)) / 2, gaps.demographic_parity_difference)


def test_the_floor_of_an_undefined_gap_is_undefined():
    """Nobody of the first group is positive: no gap of TPRs, and no p-value either."""
    cells = np.array([[[10, 5], [0, 0]], [[8, 4], [3, 9]]])
    measure = lambda c: {"tpr": gaps.difference(c, "tpr")}  # noqa: E731
    assert np.isnan(floors.floor(0, cells, measure, replicates=50)["tpr"]).all()
    cells[0, 1] = 3, 1
    assert not np.isnan(floors.floor(0, cells, measure, replicates=50)["tpr"]).any()
    with pytest.raises(ValueError, match="cells=3000000043 must add up to fewer than"):
        floors.floor(0, cells + [[[3_000_000_000, 0], [0, 0]], [[0] * 2] * 2], measure)


def test_counts_beyond_int32_do_not_wrap():
    part = np.array([[[30, 10], [1, 2]], [[5, 1], [1, 1]]], np.int64)
    big = part * 100_000_000
    small = jnp.asarray(part, jnp.float32)
    for name in rates.NAMES:
        np.testing.assert_allclose(
            rates.rate(name, counts.host(big)), rates.rate(name, small), rtol=1e-6
        )
    for gap in (
        lambda c: gaps.difference(c, "fpr", method="to_overall"),
        lambda c: gaps.conditional(c[None], lambda c: gaps.signed(c, "fpr", 0, 1)),
        lambda c: rates.one_vs_rest(c) / float(np.sum(c)),
        rates.accuracy,
    ):
        np.testing.assert_allclose(gap(big), gap(small), rtol=3e-6)
    np.testing.assert_allclose(
        gaps.differential_fairness(big), gaps.differential_fairness(big * 1.0)
    )
    # Sums of int32 cells that fit one by one.
    near = jnp.asarray([[[2**31 - 1, 2**31 - 1], [1, 1]]], jnp.int32)
    assert gaps.worst_group(near, "tnr") == 0.5
    found = intervals.ci(jax.random.key(0), big, rates.fpr, replicates=50)
    np.testing.assert_allclose(found.value, [0.25, 1 / 6], rtol=1e-6)
    np.testing.assert_allclose(found.se, [6.8e-6, 1.5e-5], rtol=0.5)
    assert not intervals.small_groups(big).flagged.any()
    lo, hi = intervals.wilson_of_groups(big[:, 0, 1], big[:, 0].sum(axis=-1))
    assert np.all((lo < found.value) & (found.value < hi) & (hi - lo < 1e-3))


def test_simultaneous_ends_of_few_are_flagged():
    """14 positives of whom 10 are found, and 36 of whom 34: two of four are few."""
    cells = np.array(
        [
            *([[20, 6], [4, 10]], [[40, 20], [12, 28]]),
            *([[200, 90], [60, 150]], [[30, 4], [2, 34]], [[5, 5], [0, 9]]),
        ]
    )
    found = intervals.simultaneous(jax.random.key(0), cells, rates.tpr)
    # 12 failures stand 2 above the bound: the se of 2,000 draws is good to 2%.
    np.testing.assert_array_equal(found.flagged, [True, False, False, True, True])
