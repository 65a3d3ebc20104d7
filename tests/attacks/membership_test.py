"""The loss-threshold attack on planted leaks and on nothing."""

import json

import numpy as np
import pytest

from trustml.attacks import blind, membership, metrics


def test_a_model_that_memorises_is_caught_and_one_that_does_not_is_not():
    rng = np.random.default_rng(0)
    out = rng.exponential(1.0, 2000)
    leak = membership.loss_threshold(rng.exponential(0.5, 2000), out)
    none = membership.loss_threshold(rng.exponential(1.0, 2000), out)
    # P(Exp(mean .5) < Exp(mean 1)) = 2/3.
    assert leak.auc_interval[0] < 2 / 3 < leak.auc_interval[1]
    assert leak.auc > 0.6 > none.auc
    assert abs(none.auc - 0.5) < 3 * np.sqrt(4001 / (12 * 2000 * 2000))
    assert leak.balanced_accuracy.advantage > 0.15
    for fpr, point in leak.tpr_at_fpr.items():
        assert point.achieved_fpr <= fpr


def test_too_few_nonmembers_is_not_available_rather_than_wrong():
    result = membership.loss_threshold(np.arange(50.0), np.arange(150.0))
    assert result.tpr_at_fpr[0.001] is None
    assert result.tpr_at_fpr[0.01].low_resolution
    assert not result.tpr_at_fpr[0.1].low_resolution


def test_label_calibration_finds_what_class_difficulty_hides():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 5, size=(2, 2000))
    difficulty = np.array([0.0, 4.0, 8.0, 12.0, 16.0])
    losses = difficulty[labels] + rng.normal(0, 1, size=(2, 2000))
    losses[0] -= 0.8
    plain = membership.loss_threshold(losses[0], losses[1])
    by_label = membership.loss_threshold(
        losses[0],
        losses[1],
        calibration="label",
        member_labels=labels[0],
        nonmember_labels=labels[1],
    )
    # d' = .8: AUC = Phi(.8/sqrt 2) = .714.
    assert by_label.auc == pytest.approx(0.714, abs=0.025)
    assert plain.auc < 0.56


def test_label_calibration_is_at_chance_on_nothing():
    # Small classes: with the example itself in its own mean, non-members would be
    # pulled towards 0 and the tails would differ.
    areas = []
    for seed in range(50):
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, 60, size=(2, 300))
        losses = rng.exponential(1.0, size=(2, 300))
        areas.append(
            membership.loss_threshold(
                losses[0],
                losses[1],
                calibration="label",
                member_labels=labels[0],
                nonmember_labels=labels[1],
            ).auc
        )
    assert abs(np.mean(areas) - 0.5) < 3 * np.std(areas) / np.sqrt(50) + 0.005


def test_an_impossible_example_ranks_last():
    result = membership.loss_threshold([0.1, np.inf], [0.2, 0.3])
    assert result.auc == 0.5


def test_as_dict_is_json_with_the_bound_and_an_exact_thinned_roc():
    rng = np.random.default_rng(2)
    result = membership.loss_threshold(
        rng.exponential(0.5, 3000), rng.exponential(1.0, 3000)
    )
    plain = membership.as_dict(result)
    private = membership.as_dict(result, epsilon=1.0, delta=1e-5)
    assert json.loads(json.dumps(private, allow_nan=False)) == private
    assert plain["bound"] is None
    fpr, tpr = np.array(private["bound"]["fpr"]), np.array(private["bound"]["tpr"])
    np.testing.assert_array_equal(tpr, metrics.tpr_bound(fpr, 1.0, 1e-5))
    thin = set(zip(plain["roc"]["fpr"], plain["roc"]["tpr"], strict=True))
    full = set(zip(result.roc.fpr.tolist(), result.roc.tpr.tolist(), strict=True))
    assert thin <= full and {(0.0, 0.0), (1.0, 1.0)} <= thin
    assert 100 < len(thin) <= 402
    point = private["tpr_at_fpr"]["0.01"]
    assert point["tpr"] == result.tpr_at_fpr[0.01].tpr


def test_ties_are_counted():
    result = membership.loss_threshold(np.r_[0.0, 0.0, 1.0], np.r_[0.0, 2.0, 3.0])
    assert result.tie_fraction == 0.5


@pytest.mark.parametrize(
    "call,words",
    [
        (
            lambda: membership.loss_threshold([0.1, np.nan], [0.2, 0.3]),
            r"member_losses\[1\] is nan",
        ),
        (
            lambda: membership.loss_threshold([0.1], [0.2], calibration="lira"),
            "calibration='lira'",
        ),
        (
            lambda: membership.loss_threshold([0.1], [0.2], calibration="label"),
            "needs member_labels",
        ),
        (
            lambda: membership.loss_threshold(
                [0.1, 0.2],
                [0.2, 0.3],
                calibration="label",
                member_labels=[0],
                nonmember_labels=[0, 1],
            ),
            "one label per loss",
        ),
    ],
)
def test_bad_input_gets_a_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_the_threat_model_and_its_warnings_are_in_the_result():
    rng = np.random.default_rng(0)
    ins, outs = rng.normal(1, 1, 300), rng.normal(0, 1, 300)
    plain = membership.from_scores(ins, outs, attack="any")
    assert plain.membership == "randomised" and plain.population_same_distribution
    assert plain.warnings == ()
    seen = blind.Blind(0.8, 0.75, 0.85, 0.02, True, "Members differ by themselves.")
    found = membership.from_scores(
        ins,
        outs,
        attack="any",
        membership="observational",
        population_same_distribution=False,
        blind=seen,
    )
    # The blind figure leads.
    assert found.warnings[0] == seen.sentence
    assert "another distribution" in found.warnings[1]
    written = json.loads(json.dumps(membership.as_dict(found)))
    assert written["membership"] == "observational"
    assert written["blind"]["auc"] == 0.8 and written["warnings"][0] == seen.sentence
    bare = membership.from_scores(ins, outs, attack="any", membership="observational")
    assert "no blind baseline was run" in bare.warnings[0]
    with pytest.raises(ValueError, match="threat.membership='random'"):
        membership.from_scores(ins, outs, attack="any", membership="random")


def test_saturated_scores_are_named():
    rng = np.random.default_rng(0)
    ins, outs = rng.normal(1, 1, 300), rng.normal(0, 1, 300)
    found = membership.from_scores(
        np.minimum(ins, 0.5), np.minimum(outs, 0.5), attack="any"
    )
    assert "saturated" in found.warnings[0]


def test_a_promise_without_delta_is_refused():
    rng = np.random.default_rng(0)
    ins, outs = rng.normal(size=(2, 200))
    result = membership.from_scores(ins, outs, attack="loss")
    with pytest.raises(ValueError, match=r"delta=None is missing beside epsilon=1"):
        membership.as_dict(result, epsilon=1.0)
