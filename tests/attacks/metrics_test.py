"""Honest metrics against scikit-learn, brute force and simulation."""

import numpy as np
import pytest

from trustml import intervals
from trustml.attacks import metrics


def _scores(seed=0, n_in=300, n_out=400, shift=1.0, digits=None):
    rng = np.random.default_rng(seed)
    ins, outs = rng.normal(shift, 1, n_in), rng.normal(0, 1, n_out)
    return (ins, outs) if digits is None else (ins.round(digits), outs.round(digits))


@pytest.mark.parametrize("digits", [None, 1, 0])
def test_auc_and_roc_are_those_of_scikit_learn(digits):
    sklearn = pytest.importorskip("sklearn.metrics")
    ins, outs = _scores(digits=digits)
    labels = np.r_[np.ones(ins.size), np.zeros(outs.size)]
    both = np.r_[ins, outs]
    area = metrics.auc(ins, outs)
    assert area.value == pytest.approx(sklearn.roc_auc_score(labels, both), abs=1e-12)
    fpr, tpr, _ = sklearn.roc_curve(labels, both, drop_intermediate=False)
    curve = metrics.roc(ins, outs)
    np.testing.assert_allclose(curve.fpr, fpr, atol=1e-12)
    np.testing.assert_allclose(curve.tpr, tpr, atol=1e-12)


def test_auc_by_brute_force_with_infinities():
    ins, outs = np.array([np.inf, 1.0, -np.inf, 2.0]), np.array([1.0, -np.inf, 0.0])
    wins = (ins[:, None] > outs) + 0.5 * (ins[:, None] == outs)
    assert metrics.auc(ins, outs).value == pytest.approx(wins.mean())


def test_auc_interval_covers_and_agrees_with_the_bootstrap():
    from scipy import stats

    true = stats.norm.cdf(1 / np.sqrt(2))
    covered, trials = 0, 400
    for seed in range(trials):
        _, lo, hi = metrics.auc(*_scores(seed, 80, 100))
        covered += lo <= true <= hi
    # 3 s.e. of .95 over 400 trials: .033.
    assert abs(covered / trials - 0.95) < 0.033
    ins, outs = _scores()
    labels = np.r_[np.ones(ins.size, bool), np.zeros(outs.size, bool)]
    resampled = intervals.auc(np.r_[ins, outs], labels)
    np.testing.assert_allclose(metrics.auc(ins, outs), resampled, atol=0.006)


def test_auc_at_the_edges():
    perfect = metrics.auc(np.ones(50), np.zeros(50))
    assert perfect.value == 1.0 and 0.9 < perfect.lo < 1.0 and perfect.hi == 1.0
    worst = metrics.auc(np.zeros(50), np.ones(50))
    assert worst.value == 0.0 and worst.hi == pytest.approx(1 - perfect.lo)
    assert metrics.auc(np.ones(5), np.ones(7)).value == 0.5


def test_permuted_labels_give_chance():
    ins, outs = _scores(shift=2.0)
    both = np.random.default_rng(7).permutation(np.r_[ins, outs])
    area = metrics.auc(both[:300], both[300:])
    # s.e. of the AUC under the null: sqrt((n_in + n_out + 1)/(12 n_in n_out)) = .022.
    assert abs(area.value - 0.5) < 3 * np.sqrt(701 / (12 * 300 * 400))


@pytest.mark.parametrize("digits", [None, 1, 0])
@pytest.mark.parametrize("fpr", [0.1, 0.05, 0.29, 0.01])
def test_tpr_at_fpr_is_the_best_threshold_by_brute_force(digits, fpr):
    ins, outs = _scores(digits=digits, n_out=100)
    point = metrics.tpr_at_fpr(ins, outs, fpr)
    best = max(
        (np.mean(ins > t), np.mean(outs > t))
        for t in outs
        if np.mean(outs > t) <= fpr + 1e-12
    )
    assert (point.tpr, point.achieved_fpr) == best
    assert point.achieved_fpr <= fpr + 1e-12
    assert (point.lo, point.hi) == pytest.approx(
        intervals.proportion(round(point.tpr * ins.size), ins.size), abs=1e-12
    )
    assert point.low_resolution == (fpr < 0.1)


def test_saturated_scores_do_not_inflate_the_tpr():
    # Half of each side is tied at the top: no threshold has FPR <= .1 but the empty
    # one.
    scores = np.r_[np.zeros(50), np.ones(50)]
    point = metrics.tpr_at_fpr(scores, scores, 0.1)
    assert point.tpr == 0.0 and point.achieved_fpr == 0.0


def test_true_fpr_lies_in_its_interval():
    from scipy import stats

    covered, trials = 0, 300
    for seed in range(trials):
        ins, outs = _scores(seed, 10, 200)
        point = metrics.tpr_at_fpr(ins, outs, 0.05)
        covered += point.fpr_lo <= stats.norm.sf(point.threshold) <= point.fpr_hi
    assert abs(covered / trials - 0.95) < 0.038  # 3 s.e.


def test_balanced_accuracy_does_not_choose_on_what_it_reports():
    values, best = [], []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        result = metrics.balanced_accuracy(
            rng.normal(size=40), rng.normal(size=40), seed=seed
        )
        values.append(result.value)
        best.append(result.max_over_thresholds)
        assert result.advantage == pytest.approx(2 * result.value - 1)
    # On noise the honest figure is .5: s.e. sqrt(.25/40)/sqrt(100) = .008, times 3.
    assert abs(np.mean(values) - 0.5) < 0.024
    assert np.mean(best) > 0.55


def test_bound_is_the_trade_off_of_randomised_response():
    # Randomised response attains (epsilon, 0)-DP at FPR 1/(1+e^eps).
    fpr = 1 / (1 + np.e)
    assert metrics.tpr_bound(fpr, 1.0, 0.0) == pytest.approx(np.e / (1 + np.e))
    grid = np.linspace(0, 1, 101)
    np.testing.assert_allclose(metrics.tpr_bound(grid, 0.0, 0.0), grid, atol=1e-12)
    bound = metrics.tpr_bound(grid, 0.7, 1e-3)
    assert np.all(np.diff(bound) >= 0) and bound[0] == 1e-3 and bound[-1] == 1.0
    # Symmetric: swapping the two hypotheses gives the same region.
    swapped = metrics.tpr_bound(1 - bound, 0.7, 1e-3)
    inside = bound < 1  # where the cap of 1 cuts, delta is lost
    np.testing.assert_allclose((1 - swapped)[inside], grid[inside], atol=1e-9)
    assert np.all(metrics.tpr_bound(grid, np.inf, 0.0) == 1.0)


def test_no_gaussian_attack_beats_the_bound():
    from scipy import stats

    mu, epsilon = 1.0, 2.0
    delta = stats.norm.cdf(-epsilon / mu + mu / 2) - np.exp(epsilon) * stats.norm.cdf(
        -epsilon / mu - mu / 2
    )
    fpr = np.linspace(1e-4, 1, 500)
    tpr = stats.norm.sf(stats.norm.isf(fpr) - mu)
    bound = metrics.tpr_bound(fpr, epsilon, delta)
    assert np.all(tpr <= bound + 1e-12) and np.min(bound - tpr) < 1e-3


@pytest.mark.parametrize(
    "call,words",
    [
        (lambda: metrics.auc([1.0, np.nan], [0.0]), r"member_scores\[1\] is nan"),
        (lambda: metrics.auc([1.0], [0.0, np.nan]), r"nonmember_scores\[1\] is nan"),
        (lambda: metrics.auc([], [0.0]), "at least one"),
        (lambda: metrics.tpr_at_fpr([1.0], np.zeros(50), 0.01), "at least 100 non-mem"),
        (lambda: metrics.tpr_at_fpr([1.0], np.zeros(50), 1.5), "fpr=1.5"),
        (lambda: metrics.balanced_accuracy([1.0], [0.0, 1.0]), "halved"),
        (lambda: metrics.tpr_bound(0.1, -1.0, 0.0), "epsilon=-1.0"),
        (lambda: metrics.tpr_bound(0.1, 1.0, 2.0), "delta=2.0"),
    ],
)
def test_bad_input_gets_a_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_bound_of_a_number_is_a_number():
    assert float(metrics.tpr_bound(0.01, 1, 0.0)) == pytest.approx(0.01 * np.e)
    assert float(metrics.tpr_bound(0.01, 800.0, 0.0)) == 1.0


def test_accuracy_at_a_fixed_threshold():
    ins, outs = np.array([0.1, 0.5, 0.9, 1.0]), np.array([0.2, 0.5])
    found = metrics.at_threshold(ins, outs, 0.5)
    assert (found.tpr, found.fpr) == (0.5, 0.0)
    assert found.accuracy == pytest.approx(4 / 6)
    assert found.balanced_accuracy == pytest.approx(0.75)
    assert 0.0 <= found.lo < 0.75 < found.hi <= 1.0
    with pytest.raises(ValueError, match="threshold=nan"):
        metrics.at_threshold(ins, outs, float("nan"))


@pytest.mark.parametrize(
    "wrong", ["0.1", ["0.1", "0.2"], [[0.1], [0.1, 0.2]]], ids=["text", "texts", "rows"]
)
def test_what_is_no_array_of_numbers_is_named(wrong):
    with pytest.raises(ValueError, match="member_scores is .*; give one score per"):
        metrics.auc(wrong, [0.0])
    with pytest.raises(ValueError, match="nonmember_scores is .* array of numbers"):
        metrics.tpr_at_fpr([0.0], wrong, 0.5)
    with pytest.raises(ValueError, match="fpr is .* array of numbers"):
        metrics.tpr_bound(wrong, 1.0, 1e-5)


def test_false_alarms_at_an_atom_hold_the_true_rate():
    # tau = 3 is the largest score there is: nothing can lie above it.
    rng = np.random.default_rng(0)
    outs, ins = (rng.integers(0, 4, n).astype(float) for n in (1000, 100))
    point = metrics.tpr_at_fpr(ins, outs, 0.1)
    assert point.achieved_fpr == 0.0
    assert point.fpr_lo == 0.0 < point.fpr_hi


@pytest.mark.parametrize("level", [95, 0, -1, 2.0])
def test_a_level_of_auc_is_a_probability(level):
    with pytest.raises(ValueError, match=f"level={level}"):
        metrics.auc([1.0, 2.0], [0.0, 3.0], level)
