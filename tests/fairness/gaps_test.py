"""Rates and gaps: fairlearn, AIF360's definitions, golden figures of real data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.fairness.people import codes, compas, rows_of, table
from trustml.fairness import counts, gaps, rates


def binary(rng, groups, most):
    """A random table; some groups and margins are empty."""
    cells = rng.integers(0, most, (groups, 2, 2))
    cells[rng.random(groups) < 0.2] = 0
    cells[rng.random((groups, 2)) < 0.15] = 0
    return cells


FAIRLEARN = {
    "demographic_parity_difference": gaps.demographic_parity_difference,
    "demographic_parity_ratio": gaps.demographic_parity_ratio,
    "equalized_odds_difference": gaps.equalized_odds_difference,
    "equalized_odds_ratio": gaps.equalized_odds_ratio,
    "equal_opportunity_difference": gaps.equal_opportunity_difference,
    "equal_opportunity_ratio": gaps.equal_opportunity_ratio,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("tables", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_equal_to_fairlearn_on_random_tables(tables):
    metrics = pytest.importorskip("fairlearn.metrics")
    ours = jax.jit(
        lambda cells: (
            {
                (name, method): fn(cells, method=method, empty="zero")
                for name, fn in FAIRLEARN.items()
                for method in ("between_groups", "to_overall")
            }
            | {
                ("mean", method): gaps.equalized_odds_difference(
                    cells, agg="mean", method=method, empty="zero"
                )
                for method in ("between_groups", "to_overall")
            }
        )
    )
    rng = np.random.default_rng(0)
    compared = 0
    for _ in range(tables):
        cells = binary(rng, 4, 30)
        group, label, guess = rows_of(cells)
        if not label.size or len(set(group)) < 2:
            continue
        found = ours(jnp.asarray(cells, jnp.int32))
        for (name, method), value in found.items():
            extra = {"agg": "mean"} if name == "mean" else {}
            peer = getattr(
                metrics, "equalized_odds_difference" if name == "mean" else name
            )
            wanted = peer(
                label, guess, sensitive_features=group, method=method, **extra
            )
            if name == "equalized_odds_ratio" and np.isnan(value):
                parts = [
                    gaps.ratio(jnp.asarray(cells), rate, method=method, empty="zero")
                    for rate in ("tpr", "fpr")
                ]
                assert np.isnan(parts).any()  # 0/0, where fairlearn takes its pick
                continue
            np.testing.assert_allclose(value, wanted, atol=1e-6, err_msg=str(cells))
            compared += 1
    assert compared > 10 * tables


def test_undefined_is_nan_with_its_reason():
    cells = jnp.array([[[0, 0], [1, 3]], [[2, 1], [0, 0]], [[0, 0], [0, 0]]])
    np.testing.assert_array_equal(rates.tpr(cells), [0.75, np.nan, np.nan])
    np.testing.assert_allclose(rates.fpr(cells), [np.nan, 1 / 3, np.nan], rtol=1e-6)
    assert rates.undefined(cells, "tpr", ("a", "b", "c")) == (
        "b has no positives",
        "c has no positives",
    )
    zero = rates.rate("tpr", cells, empty="zero")
    np.testing.assert_array_equal(zero, [0.75, 0.0, np.nan])
    # One group has a TPR, so there is no gap of it; selections there are two.
    assert np.isnan(gaps.equal_opportunity_difference(cells))
    assert np.isnan(gaps.equalized_odds_difference(cells))
    wanted = 3 / 4 - 1 / 3
    found = gaps.demographic_parity_difference(cells)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    for fn in FAIRLEARN.values():
        assert np.isnan(fn(jnp.zeros((3, 2, 2), jnp.int32)))


def test_every_rate_is_its_formula():
    rng = np.random.default_rng(1)
    cells = rng.integers(1, 50, (5, 2, 2))
    tn, fp, fn, tp = np.moveaxis(cells.reshape(5, 4), 1, 0).astype(float)
    wanted = {
        "selection": (tp + fp) / (tp + fp + tn + fn),
        "base_rate": (tp + fn) / (tp + fp + tn + fn),
        "tpr": tp / (tp + fn),
        "fnr": fn / (tp + fn),
        "fpr": fp / (fp + tn),
        "tnr": tn / (fp + tn),
        "ppv": tp / (tp + fp),
        "fdr": fp / (tp + fp),
        "npv": tn / (tn + fn),
        "for_": fn / (tn + fn),
        "accuracy": (tp + tn) / (tp + fp + tn + fn),
        "error": (fp + fn) / (tp + fp + tn + fn),
        "balanced_accuracy": (tp / (tp + fn) + tn / (fp + tn)) / 2,
        "f1": 2 * tp / (2 * tp + fp + fn),
        "treatment_ratio": fn / fp,
    }
    assert set(wanted) == set(rates.NAMES)
    for name, value in wanted.items():
        np.testing.assert_allclose(
            rates.rate(name, jnp.asarray(cells)), value, rtol=1e-6
        )


def test_one_vs_rest_and_the_gap_over_classes():
    rng = np.random.default_rng(2)
    cells = rng.integers(0, 9, (2, 4, 4))
    label, guess = (rows_of(cells)[n] for n in (1, 2))
    group = rows_of(cells)[0]
    split = np.asarray(rates.one_vs_rest(jnp.asarray(cells)))
    for g in range(2):
        for k in range(4):
            y, h = label[group == g] == k, guess[group == g] == k
            wanted = [
                [np.sum(~y & ~h), np.sum(~y & h)],
                [np.sum(y & ~h), np.sum(y & h)],
            ]
            np.testing.assert_array_equal(split[g, k], wanted)
    recall = split[..., 1, 1] / split[..., 1, :].sum(-1)
    wanted = np.sqrt(np.mean((recall[0] - recall[1]) ** 2))
    found = gaps.tpr_gap_rms(jnp.asarray(cells), 0, 1)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.data
def test_golden_figures_of_compas(data_dir):
    names, race, label, guess = compas(data_dir)
    cells = counts.count(race, label, guess, groups=6).cells
    a, c = names.index("African-American"), names.index("Caucasian")
    np.testing.assert_array_equal(cells[a], [[990, 805], [532, 1369]])
    np.testing.assert_array_equal(cells[c], [[1139, 349], [461, 505]])
    two = cells[jnp.array([a, c])]
    close = lambda found, wanted: np.testing.assert_allclose(found, wanted, atol=1e-6)  # noqa: E731
    close(rates.fpr(two), [0.448468, 0.234543])
    close(rates.rate("fnr", two), [0.279853, 0.477226])
    overall = {"method": "to_overall"}
    close(gaps.demographic_parity_difference(cells), 0.457118)
    close(gaps.demographic_parity_difference(cells, **overall), 0.250251)
    close(gaps.demographic_parity_ratio(cells), 0.314324)
    close(gaps.demographic_parity_ratio(cells, **overall), 0.455739)
    close(gaps.equalized_odds_difference(cells), 0.576692)
    close(gaps.equalized_odds_difference(cells, **overall), 0.302653)
    close(gaps.equalized_odds_ratio(cells), 0.193897)
    close(gaps.equalized_odds_ratio(cells, **overall), 0.268806)
    close(gaps.demographic_parity_difference(two), 0.240200)
    close(gaps.demographic_parity_ratio(two), 0.591638)
    close(gaps.equalized_odds_difference(two), 0.213925)
    close(gaps.equalized_odds_difference(two, agg="mean"), 0.205649)
    close(gaps.generalized_entropy(cells), 0.169969)
    close(gaps.generalized_entropy(cells, 1.0), 0.235018)


@pytest.mark.data
def test_golden_figures_of_adult(data_dir):
    rows = [
        row
        for split in ("train", "test")
        for row in table(data_dir / "adult" / f"{split}.csv.gz")
    ]
    assert len(rows) == 48842
    _, sex = codes([row["sex"] for row in rows])
    _, race = codes([row["race"] for row in rows])
    column = next(name for name in rows[0] if name not in adult_inputs(rows[0]))
    label = np.array([">50K" in row[column] for row in rows])
    guess = np.array([int(row["education_num"]) >= 13 for row in rows])
    both = np.stack([sex, race], 1)
    cells = counts.count(both, label, guess, groups=(2, 5)).cells
    by_sex = counts.marginal(cells, 0, 2)
    close = lambda found, wanted: np.testing.assert_allclose(found, wanted, atol=1e-6)  # noqa: E731
    close(gaps.demographic_parity_difference(by_sex), 0.041360)
    close(gaps.demographic_parity_ratio(by_sex), 0.841929)
    close(gaps.equalized_odds_difference(by_sex), 0.038007)
    close(gaps.equalized_odds_ratio(by_sex), 0.883542)
    flat = counts.flatten(cells)
    close(gaps.demographic_parity_difference(flat), 0.370848)
    close(gaps.equalized_odds_difference(flat), 0.407353)
    close(gaps.differential_fairness(flat, of="label"), 1.777652)
    whole = np.array(["?" not in row.values() for row in rows])
    assert whole.sum() == 45222
    stated = counts.count(both, label, guess, groups=(2, 5), mask=whole).cells
    close(gaps.differential_fairness(counts.flatten(stated), of="label"), 1.754761)


def adult_inputs(row):
    return [name for name, value in row.items() if "50K" not in value]


@pytest.mark.data
def test_golden_figures_of_german_credit(data_dir):
    rows = list(table(data_dir / "german_credit" / "german.csv.gz"))
    label = np.array([row["Class"] == "1" for row in rows])
    old = np.array([int(row["Age"]) > 25 for row in rows])
    # Of the labels themselves: they stand where a guess would.
    cells = counts.count(old, label, label, groups=2).cells
    found = gaps.statistical_parity_difference(cells, a=0, b=1)
    np.testing.assert_allclose(found, -0.149448, atol=1e-6)
    found = gaps.disparate_impact(cells, a=0, b=1)
    np.testing.assert_allclose(found, 0.794826, atol=1e-6)


def test_signed_gaps_of_aif360_by_hand():
    rng = np.random.default_rng(3)
    cells = rng.integers(1, 40, (3, 2, 2))
    (_, a, b) = r = [{} for _ in range(3)]
    for one, ((tn, fp), (fn, tp)) in zip(r, cells.tolist(), strict=True):
        one |= {"tpr": tp / (tp + fn), "fpr": fp / (fp + tn)}
        one |= {"ppv": tp / (tp + fp), "for": fn / (fn + tn)}
    dt, df = a["tpr"] - b["tpr"], a["fpr"] - b["fpr"]
    dp, do = a["ppv"] - b["ppv"], a["for"] - b["for"]
    cells = jnp.asarray(cells)
    np.testing.assert_allclose(gaps.average_odds(cells, 1, 2), (dt + df) / 2, rtol=1e-5)
    wanted = (abs(dt) + abs(df)) / 2
    np.testing.assert_allclose(gaps.average_abs_odds(cells, 1, 2), wanted, rtol=1e-5)
    wanted = (dp + do) / 2
    np.testing.assert_allclose(gaps.predictive_value(cells, 1, 2), wanted, rtol=1e-5)
    with pytest.raises(ValueError, match="a=3 is no number of one of 3 groups"):
        gaps.signed(cells, "tpr", 3, 0)


@pytest.mark.parametrize("alpha", [2.0, 1.0, 0.0, 0.5, -1.0, 3.0])
@pytest.mark.parametrize("between", [False, True])
def test_generalized_entropy_is_the_sum_over_examples(alpha, between):
    rng = np.random.default_rng(4)
    cells = rng.integers(1, 20, (3, 2, 2))
    if alpha <= 0 and not between:
        cells[:, 1, 0] = 0  # nobody without benefit
    group, label, guess = rows_of(cells)
    b = (guess - label + 1).astype(float)
    if between:
        b = np.array([b[group == g].mean() for g in range(3)])[group]
    x = b / b.mean()
    if alpha == 1:
        wanted = np.mean([v * np.log(v) if v else 0.0 for v in x])
    elif alpha == 0:
        wanted = -np.mean(np.log(x))
    else:
        wanted = np.mean(x**alpha - 1) / (alpha * (alpha - 1))
    found = gaps.generalized_entropy(jnp.asarray(cells), alpha, between=between)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


def test_a_conditional_gap_is_the_mean_of_the_gaps_inside():
    rng = np.random.default_rng(5)
    cells = rng.integers(1, 30, (3, 2, 2, 2))
    cells[1, 0] = 0  # no gap in level 1
    inside = [float(gaps.demographic_parity_difference(jnp.asarray(c))) for c in cells]
    assert np.isnan(inside[1])
    n = cells.sum((1, 2, 3))
    wanted = (inside[0] * n[0] + inside[2] * n[2]) / (n[0] + n[2])
    found = gaps.conditional(jnp.asarray(cells), gaps.demographic_parity_difference)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_calibration_error_of_bins():
    rng = np.random.default_rng(6)
    score = (rng.integers(0, 1024, 4000) + 0.5) / 1024
    group = rng.integers(0, 2, 4000)
    label = (rng.random(4000) < np.where(group, score, score**2)).astype(int)
    hist = rates.histogram(group, label, score, groups=3)
    assert hist.sum() == 4000
    found = rates.calibration_error(hist)
    for g in range(2):
        mine = group == g
        place = np.minimum((score[mine] * 1024).astype(int) * 15 // 1024, 14)
        wanted = 0.0
        for b in range(15):
            here = place == b
            apart = label[mine][here].mean() - score[mine][here].mean()
            wanted += here.mean() * abs(apart)
        np.testing.assert_allclose(found[g], wanted, rtol=1e-4)
    assert np.isnan(found[2])
    nobody = rates.histogram(group, label, np.full(4000, np.nan), groups=2)
    assert nobody.sum() == 0
