"""Agreement of measures: SciPy, exact permutations, coverage, Holm, Williams."""

import itertools

import numpy as np
import pytest
from scipy import stats

from trustml.fairness import agreement


def data(n, rho=0.7, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    return x, rho * x + np.sqrt(1 - rho**2) * rng.normal(size=n)


@pytest.mark.parametrize("kind", agreement.KINDS)
def test_equal_to_scipy(kind):
    x, y = data(15)
    x[:4], y[2:6] = 1.0, 0.5  # ties
    peer = {"pearson": "pearsonr", "spearman": "spearmanr", "kendall": "kendalltau"}
    wanted = getattr(stats, peer[kind])(x, y).statistic
    np.testing.assert_allclose(agreement.correlation(x, y, kind), wanted, rtol=1e-10)
    assert np.isnan(agreement.correlation(x, np.ones(15), kind))


@pytest.mark.parametrize("kind", agreement.KINDS)
@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e9])
def test_a_constant_has_no_correlation_however_it_is_rounded(kind, scale):
    other = scale * np.array([1, 2, 3.5, 1, 7, 9])
    rounded = np.array([0.1 + 0.2, 0.3, 0.3, 0.1 + 0.2, 0.3, 0.3])
    for flat in (scale * np.full(6, 0.1), scale * rounded):
        for x, y in ((flat, other), (other, flat)):
            assert np.isnan(agreement.correlation(x, y, kind))
            assert np.isnan(agreement.permutation_p(x, y, kind)[0])
            assert np.isnan(agreement.interval(x, y, kind)).all()
    near = scale * (0.3 + 1e-12 * np.arange(6.0))  # small, but no rounding
    assert agreement.correlation(near, other, kind) > 0.5
    # Resamples of one number alone are left out too, in which 0.1 has a mean beside it.
    drawn = agreement._of_rows(np.full((1, 6), 0.1), other[None], kind)
    assert np.isnan(drawn).all()


@pytest.mark.parametrize("kind", agreement.KINDS)
def test_exact_p_is_that_of_all_orders(kind):
    x, y = data(6)
    y[1] = y[3]
    seen = abs(agreement.correlation(x, y, kind))
    found = [
        abs(agreement.correlation(x, y[list(order)], kind)) >= seen - 1e-12
        for order in itertools.permutations(range(6))
    ]
    assert agreement.permutation_p(x, y, kind) == (np.mean(found), True)


def test_sampled_p_is_near_that_of_the_normal_theory():
    x, y = data(19, rho=0.4)
    p, exact = agreement.permutation_p(x, y, "pearson")
    wanted = stats.pearsonr(x, y).pvalue
    # 20,000 draws: a standard error of sqrt(p / 20000), thrice, and the theory's own.
    assert not exact and abs(p - wanted) < 3 * np.sqrt(wanted / 20_000) + 0.01
    assert np.isnan(agreement.permutation_p(x, np.ones(19))[0])


def test_intervals_cover():
    inside = 0
    for seed in range(150):
        lo, hi = agreement.interval(
            *data(30, rho=0.6, seed=seed), "pearson", replicates=600, seed=seed
        )
        inside += lo <= 0.6 <= hi
    # A bootstrap of 30 covers a little less than 95%; 150 draws have 1.8 points.
    assert inside / 150 > 0.87


def test_bca_agrees_with_scipy():
    x, y = data(25)
    peer = stats.bootstrap(
        (x, y),
        lambda x, y: stats.pearsonr(x, y).statistic,
        paired=True,
        vectorized=False,
        n_resamples=4000,
        rng=np.random.default_rng(0),
    ).confidence_interval
    lo, hi = agreement.interval(x, y, "pearson")
    np.testing.assert_allclose([lo, hi], [peer.low, peer.high], atol=0.03)


def test_holm_by_hand():
    found = agreement.holm([0.01, 0.04, float("nan"), 0.03])
    np.testing.assert_allclose(found, [0.03, 0.06, np.nan, 0.06])
    assert agreement.holm([0.9, 0.8]) == [1.0, 1.0]


def test_pairs_recover_what_was_planted_and_not_what_was_not():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=19)
    noise = rng.normal(size=(19, 4)) * 0.4
    scores = np.stack([truth, -truth, truth, rng.normal(size=19)], 1) + noise
    measures = [
        agreement.Measure("weat", "intrinsic", group="gender"),
        agreement.Measure("stereo", "intrinsic", direction=-1, group="gender"),
        agreement.Measure("gap", "extrinsic", group="gender"),
        agreement.Measure("off", "extrinsic", group="race"),
    ]
    found = {(a.first, a.second): a for a in agreement.pairs(scores, measures)}
    assert set(found) == {(i, e) for i in ("weat", "stereo") for e in ("gap", "off")}
    for name in ("weat", "stereo"):
        good, bad = found[name, "gap"], found[name, "off"]
        assert good.value > 0.5 and good.lo > 0 and good.p_holm < 0.01
        assert bad.lo < 0 < bad.hi and bad.p_holm > 0.05
        assert good.p_holm >= good.p and np.isnan(good.disattenuated)
    better = agreement.pairs(scores, measures, reliabilities=[0.8] * 4)
    np.testing.assert_allclose(
        better[0].disattenuated, min(better[0].value / 0.8, 1.0), rtol=1e-9
    )
    assert agreement.aligned(measures, group="gender") == [0, 1, 2]
    with pytest.raises(ValueError, match="group='age' is that of no measure"):
        agreement.aligned(measures, group="age")
    scores[:17, 3] = np.nan
    few = {(a.first, a.second): a for a in agreement.pairs(scores, measures)}
    assert few["weat", "off"].n == 2 and np.isnan(few["weat", "off"].value)


def test_williams_by_simulation():
    # Under equal correlations p is uniform.
    rng = np.random.default_rng(0)
    law = np.array([[1, 0.5, 0.5], [0.5, 1, 0.3], [0.5, 0.3, 1]])
    root = np.linalg.cholesky(law)
    found = []
    for _ in range(800):
        r = np.corrcoef(rng.normal(size=(25, 3)) @ root.T, rowvar=False)
        found.append(agreement.williams(r[0, 1], r[0, 2], r[1, 2], 25)[1])
    # Deviation of a share of 5%: 0.8 points; thrice.
    assert abs(np.mean(np.array(found) < 0.05) - 0.05) < 0.024
    t, p = agreement.williams(0.8, 0.1, 0.2, 40)
    assert t > 3 and p < 0.01


def test_wrong_input_is_refused():
    one = agreement.Measure("a", "intrinsic")
    with pytest.raises(ValueError, match=r"must be \[N, 1\]"):
        agreement.pairs(np.zeros((3, 2)), [one])
    with pytest.raises(ValueError, match="direction of 'a'=0 must be 1 or -1"):
        agreement.pairs(np.zeros((3, 1)), [one._replace(direction=0)])


def test_reliability_is_that_of_the_mean():
    """Of scores t + e with equal variances: 3/4 for a mean of three (closed form)."""
    rng = np.random.default_rng(0)
    true = rng.normal(size=4000)
    scores = true + rng.normal(size=(3, 4000))
    found = agreement.reliability(scores, "pearson")
    # One correlation of 0.5 over 4000 has deviation 0.012.
    assert found == pytest.approx(0.75, abs=0.03)
    seen = agreement.correlation(scores.mean(axis=0), true, "pearson")
    assert found == pytest.approx(seen**2, abs=0.03)
    assert np.isnan(agreement.reliability([[1, 2, 3], [3, 2, 1]]))
    with pytest.raises(ValueError, match="R >= 2 measurements"):
        agreement.reliability([[1.0, 2.0, 3.0]])


def test_unknown_reliabilities_correct_nothing():
    rng = np.random.default_rng(1)
    table = rng.normal(size=(9, 2))
    kinds = [agreement.Measure("a", "intrinsic"), agreement.Measure("b", "extrinsic")]
    (one,) = agreement.pairs(table, kinds, reliabilities=[0.5, float("nan")])
    assert np.isnan(one.disattenuated) and not np.isnan(one.value)
