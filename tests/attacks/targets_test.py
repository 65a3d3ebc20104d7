"""Figures over several targets: means, weights and errors, against plain recounting."""

import numpy as np
import pytest

from trustml.attacks import metrics, targets


def _scores(models=6, n=400, seed=0, digits=None, effect=1.0):
    rng = np.random.default_rng(seed)
    member = rng.random((models, n)) < 0.5
    value = effect * member + rng.normal(size=(models, n))
    return (value if digits is None else value.round(digits)), member


@pytest.mark.parametrize("digits", [None, 1], ids=["distinct", "ties"])
def test_means_are_those_of_each_target_alone(digits):
    value, member = _scores(digits=digits)
    found = targets.measure(value, member, fprs=(0.1, 0.01), replicates=100)
    areas = [metrics.auc(v[m], v[~m]).value for v, m in zip(value, member, strict=True)]
    rates = [
        metrics.tpr_at_fpr(v[m], v[~m], 0.1).tpr
        for v, m in zip(value, member, strict=True)
    ]
    np.testing.assert_allclose(found.auc.per_target, areas)
    np.testing.assert_allclose(found.tpr_at_fpr[0.1].per_target, rates)
    assert found.auc.value == pytest.approx(np.mean(areas))
    assert found.achieved_fpr[0.1] <= 0.1
    assert found.tie_fraction == (0.0 if digits is None else pytest.approx(1, abs=0.1))


@pytest.mark.parametrize("digits", [None, 1], ids=["distinct", "ties"])
def test_weights_count_as_copies(digits):
    value, member = _scores(models=1, digits=digits)
    weights = np.random.default_rng(1).integers(0, 4, size=(5, 400)).astype(np.float32)
    found = targets._resample(value[0], member[0], weights, (0.1, 0.02))
    for r in range(5):
        rows = np.repeat(np.arange(400), weights[r].astype(int))
        v, m = value[0, rows], member[0, rows]
        assert found[0, r] == pytest.approx(metrics.auc(v[m], v[~m]).value)
        for at, fpr in enumerate((0.1, 0.02)):
            want = metrics.tpr_at_fpr(v[m], v[~m], fpr).tpr
            assert found[1 + at, r] == pytest.approx(want)


def test_the_error_covers_examples_that_all_targets_share():
    # Scores of all targets are nearly the same: 8 targets are hardly better than one.
    rng = np.random.default_rng(0)
    found, errors = [], []
    for _ in range(60):
        member = np.tile(rng.random(200) < 0.5, (8, 1))
        value = member + rng.normal(size=200) + 0.05 * rng.normal(size=(8, 200))
        got = targets.measure(value, member, fprs=(), replicates=100)
        found.append(got.auc.value)
        errors.append(got.auc.stderr)
    # s.e. of a standard deviation of 60 values: 9%, of the mean error far less.
    assert np.mean(errors) == pytest.approx(np.std(found, ddof=1), rel=0.3)
    # sqrt(M) would give a third of it.
    assert np.mean(errors) > 0.02


def test_scores_that_are_not_valid_are_left_out_and_counted():
    value, member = _scores()
    valid = np.random.default_rng(2).random(value.shape) < 0.9
    found = targets.measure(
        np.where(valid, value, np.nan), member, valid, replicates=100
    )
    assert found.n_invalid == (~valid).sum()
    v, m = value[3][valid[3]], member[3][valid[3]]
    assert found.auc.per_target[3] == pytest.approx(metrics.auc(v[m], v[~m]).value)
    with pytest.raises(ValueError, match="is nan"):
        targets.measure(np.where(valid, value, np.nan), member, replicates=100)


def test_an_fpr_that_the_data_do_not_resolve_is_none():
    found = targets.measure(*_scores(), fprs=(0.01, 0.001), replicates=100)
    assert found.tpr_at_fpr[0.001] is None and found.achieved_fpr[0.001] is None
    assert found.tpr_at_fpr[0.01] is not None


def test_wrong_shapes_and_a_missing_side_are_refused():
    value, member = _scores()
    with pytest.raises(ValueError, match="one entry per target"):
        targets.measure(value, member[0])
    with pytest.raises(ValueError, match="target 0 has 0 valid members"):
        targets.measure(value, member & False)
    with pytest.raises(ValueError, match="replicates=10"):
        targets.measure(value, member, replicates=10)


def test_the_difference_of_two_attacks_is_paired():
    value, member = _scores(models=20)
    rng = np.random.default_rng(5)
    one = targets.measure(value, member, replicates=100).auc
    other = targets.measure(
        value + 0.3 * rng.normal(size=value.shape), member, replicates=100
    ).auc
    gap, error = targets.difference(one, other)
    gaps = one.per_target - other.per_target
    assert gap == pytest.approx(gaps.mean())
    assert error == pytest.approx(gaps.std(ddof=1) / np.sqrt(20))
    assert error < one.stderr
