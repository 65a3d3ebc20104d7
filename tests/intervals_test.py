"""Intervals against SciPy and scikit-learn, and their coverage by simulation."""

import numpy as np
import pytest
from scipy import stats

from trustml import intervals


@pytest.mark.parametrize("k,n", [(0, 10), (10, 10), (3, 10), (450, 500), (1, 100_000)])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_proportion_and_wilson_match_scipy(k, n, level):
    exact = stats.binomtest(k, n).proportion_ci(level, method="exact")
    score = stats.binomtest(k, n).proportion_ci(level, method="wilson")
    np.testing.assert_allclose(intervals.proportion(k, n, level), exact, atol=1e-12)
    np.testing.assert_allclose(intervals.wilson(k, n, level), score, atol=1e-12)


def test_counts_of_numpy_will_do():
    assert intervals.proportion(np.int64(3), np.int32(10)) == intervals.proportion(
        3, 10
    )


def test_nothing_seen_is_nothing_known():
    assert intervals.proportion(0, 0) == (0.0, 1.0)
    assert intervals.wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize("p", [0.02, 0.3, 0.9])
def test_proportion_covers_exactly(p):
    # Sum over all outcomes, no simulation: coverage may not fall below the level.
    n = 60
    ends = np.array([intervals.proportion(k, n, 0.9) for k in range(n + 1)])
    covered = (ends[:, 0] <= p) & (p <= ends[:, 1])
    assert stats.binom.pmf(np.arange(n + 1), n, p)[covered].sum() >= 0.9


def test_paired_change_covers_and_keeps_a_width():
    rng = np.random.default_rng(0)
    # P(right before, wrong after) = .08, the reverse .03: true change -.05.
    covered, trials, n = 0, 1000, 150
    for _ in range(trials):
        u = rng.random(n)
        before, after = u < 0.9, (u < 0.82) | ((u >= 0.9) & (u < 0.93))
        change = intervals.paired_change(before, after)
        covered += change.lo <= -0.05 <= change.hi
    # 3 s.e. of a 95% frequency over 1000 trials is 0.021.
    assert abs(covered / trials - 0.95) < 0.021
    same = intervals.paired_change(np.ones(20, bool), np.ones(20, bool))
    assert same.value == 0.0 and same.lo < -0.05 and same.hi > 0.05


def test_paired_change_is_signed():
    before = np.array([True] * 50)
    after = np.array([True] * 40 + [False] * 10)
    value, lo, hi = intervals.paired_change(before, after)
    assert value == pytest.approx(-0.2)
    assert lo < -0.2 < hi < 0


def test_mean_matches_scipy():
    values = np.array([0.951, 0.957, 0.949, 0.96, 0.955])
    expected = stats.t.interval(0.95, 4, values.mean(), stats.sem(values))
    result = intervals.mean(values)
    np.testing.assert_allclose((result.lo, result.hi), expected, rtol=1e-12)
    cut = intervals.mean(values, bounds=(0.95, 0.955))
    assert cut == (result.value, 0.95, 0.955)
    single = intervals.mean([0.9])
    assert single.value == 0.9 and np.isnan(single.lo) and np.isnan(single.hi)


def test_bootstrap_matches_scipy_and_its_vectorised_form():
    data = np.random.default_rng(1).exponential(size=200)
    slow = intervals.bootstrap(np.mean, data, seed=3)
    fast = intervals.bootstrap(lambda x: x.mean(1), data, seed=3, vectorized=True)
    np.testing.assert_allclose(slow, fast, rtol=1e-12)
    oracle = stats.bootstrap(
        (data,), np.mean, n_resamples=4000, method="percentile", rng=0
    ).confidence_interval
    # Monte Carlo error of an end with 1000 replicates: about 0.1 s.e.; 4 of them.
    tolerance = 0.4 * data.std() / np.sqrt(data.size)
    np.testing.assert_allclose((slow.lo, slow.hi), oracle, atol=tolerance)


def test_bootstrap_resamples_rows_together():
    x = np.arange(50.0)

    def difference(a, b):
        return float(np.abs(a - b).max())

    assert intervals.bootstrap(difference, (x, x)) == (0.0, 0.0, 0.0)


def test_bootstrap_covers():
    rng = np.random.default_rng(2)
    covered, trials = 0, 300
    for trial in range(trials):
        data = rng.normal(size=100)
        lo, hi = intervals.bootstrap(
            lambda x: x.mean(1), data, replicates=400, seed=trial, vectorized=True
        )[1:]
        covered += lo <= 0.0 <= hi
    # 3 s.e. of .95 over 300 is .038; the percentile interval itself is short by ~.01.
    assert covered / trials > 0.95 - 0.048


def test_auc_is_that_of_scikit_learn_with_ties():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(4)
    labels = rng.random(400) < 0.3
    scores = np.round(rng.normal(size=400) + labels, 1)  # many ties
    result = intervals.auc(scores, labels)
    assert result.value == pytest.approx(
        metrics.roc_auc_score(labels, scores), abs=1e-12
    )
    assert result.lo < result.value < result.hi

    def resampled(s, y):
        if y.all() or not y.any():
            return float("nan")
        return metrics.roc_auc_score(y, s)

    rows = intervals.bootstrap(resampled, (scores, labels), replicates=400)
    np.testing.assert_allclose(result[1:], rows[1:], atol=0.015)


@pytest.mark.parametrize(
    "call,words",
    [
        (lambda: intervals.proportion(11, 10), "k=11 of n=10"),
        (lambda: intervals.proportion(-1, 10), "not a count"),
        (lambda: intervals.proportion(1, 2, level=95), "level=95"),
        (lambda: intervals.mean([1.0, np.nan]), r"values\[1\]"),
        (lambda: intervals.mean([]), "non-empty"),
        (lambda: intervals.bootstrap(np.mean, np.ones(0)), "at least 1"),
        (lambda: intervals.bootstrap(np.mean, np.ones(5), replicates=5), "below 100"),
        (lambda: intervals.auc([0.1, np.inf], [True, False]), r"scores\[1\]"),
        (lambda: intervals.auc([0.1, 0.2], [True]), "one label"),
        (lambda: intervals.paired_change([True], [True, False]), "same examples"),
        (
            lambda: intervals.bootstrap(lambda x: float("nan"), np.ones(5)),
            "more than 5%",
        ),
    ],
)
def test_bad_input_gets_a_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()
