"""Thresholds that the target had no part in: brute force, and a target redrawn."""

import jax
import numpy as np
import pytest

from tests.attacks import worlds
from trustml.attacks import closed_form, metrics, references, targets, thresholds


def _scores(margin, member, pair, budget, attack="Student-t"):
    rotation = references.rotate(member, pair, budget=budget)
    found = jax.jit(closed_form.scores)(margin, worlds.log_prob(margin), rotation)
    return found[attack], rotation


def test_the_best_threshold_is_that_of_brute_force():
    rng = np.random.default_rng(0)
    ins, outs = rng.normal(0.7, 1, 60).round(1), rng.normal(0, 1, 45).round(1)
    tried = np.append(np.unique(np.r_[ins, outs]), -np.inf)
    best = max((np.mean(ins > t) + np.mean(outs <= t)) / 2 for t in tried)
    at = metrics.best_threshold(ins, outs)
    assert metrics.at_threshold(ins, outs, at).balanced_accuracy == pytest.approx(best)


@pytest.mark.parametrize(
    "models, budget, left",
    [(6, 2, 2), (16, 12, 2), (16, 4, 8), (16, 14, 0), (4, 2, 0)],
    ids=["six", "one-pair-less", "few", "all", "four"],
)
def test_models_apart_know_nothing_of_the_target(models, budget, left):
    member, pair = worlds.paired(models, 20)
    use = references.rotate(member, pair, budget=budget).use
    found = thresholds.apart(pair, use)
    assert np.all(found.sum(axis=1) == left)
    for target, shadow in zip(*np.nonzero(found), strict=True):
        mine = [target, pair[target]]
        assert shadow not in mine and not use[shadow, mine].any()
    alone = thresholds.apart(pair, most=models)
    assert np.all(alone.sum(axis=1) == models - 2)


def test_models_without_pairs():
    member, pair = worlds.coins(5, 400)
    use = references.rotate(member, pair, budget=3).use
    found = thresholds.apart(pair, use)
    assert np.array_equal(found, np.roll(np.eye(5, dtype=bool), 1, axis=1))


def test_a_target_has_no_part_in_its_threshold():
    member, pair = worlds.paired(8, 400)
    other, _ = worlds.paired(8, 400, seed=1)
    changed = member.copy()
    changed[2:4] = other[2:4]

    def threshold(member, seed):
        margin = worlds.leaky(member)
        margin[2:4] = worlds.leaky(member, seed=seed)[2:4]
        shadow, rotation = _scores(margin, member, pair, 4)
        apart = thresholds.apart(pair, rotation.use)
        return thresholds.fixed(shadow.value, member, shadow.valid, apart)

    one, two = threshold(member, 0), threshold(changed, 7)
    np.testing.assert_array_equal(one[2:4], two[2:4])
    assert np.any(one != two)


@pytest.mark.parametrize("attack", ["Student-t", "RMIA", "LiRA offline", "loss"])
def test_noise_has_one_half_and_a_leak_more(attack):
    found = []
    member, pair = worlds.paired(8, 600)
    for seed in range(12):
        for margin in (worlds.noise(member, seed), worlds.leaky(member, seed)):
            shadow, rotation = _scores(margin, member, pair, 4, attack)
            apart = thresholds.apart(pair, rotation.use)
            at = thresholds.fixed(shadow.value, member, shadow.valid, apart)
            full, _ = _scores(margin, member, pair, None, attack)
            measured = targets.measure(
                full.value, member, full.valid, threshold=at, fprs=(), replicates=100
            )
            found.append(measured.balanced_accuracy.value)
    noise, leak = np.reshape(found, (12, 2)).T
    # Repetitions are independent; 3 standard errors of their mean.
    assert abs(noise.mean() - 0.5) < 3 * noise.std(ddof=1) / np.sqrt(12)
    assert leak.mean() > (0.52 if attack == "loss" else 0.6)


def test_the_mean_over_targets_is_that_of_each_alone():
    rng = np.random.default_rng(0)
    member = rng.random((5, 300)) < 0.5
    value = member + rng.normal(size=member.shape)
    valid, at = rng.random(member.shape) < 0.9, rng.normal(0.5, 0.2, 5)
    found = targets.measure(value, member, valid, threshold=at, fprs=())
    each = [
        metrics.at_threshold(v[ok & m], v[ok & ~m], t).balanced_accuracy
        for v, m, ok, t in zip(value, member, valid, at, strict=True)
    ]
    np.testing.assert_allclose(found.balanced_accuracy.per_target, each, rtol=1e-6)
    assert found.balanced_accuracy.value == pytest.approx(np.mean(each))
    assert targets.measure(value, member, valid).balanced_accuracy is None


def test_errors_cover_repetitions():
    # One target: the bootstrap is that of examples alone, and its error is known.
    rng = np.random.default_rng(0)
    member = np.arange(400)[None] % 2 == 0
    value = member + rng.normal(size=member.shape)
    found = targets.measure(value, member, threshold=[0.5], fprs=(), replicates=400)
    tpr, tnr = (value > 0.5)[member].mean(), (value <= 0.5)[~member].mean()
    want = np.sqrt(tpr * (1 - tpr) / 200 + tnr * (1 - tnr) / 200) / 2
    # 400 replicates: the error of a standard deviation is 1/sqrt(800), 3.5%.
    assert found.balanced_accuracy.stderr == pytest.approx(want, rel=0.12)


def test_nobody_left_and_wrong_calls():
    member, pair = worlds.paired(4, 50)
    value = worlds.leaky(member)[:, :, 0]
    nobody = np.zeros((4, 4), bool)
    assert thresholds.fixed(value, member, member | True, nobody) is None
    with pytest.raises(ValueError, match=r"thresholds.use=\[2, 2\] must be \[4, 4\]"):
        thresholds.apart(pair, np.zeros((2, 2), bool))
    with pytest.raises(ValueError, match="value has shape"):
        thresholds.fixed(value, member[:2], member, nobody)
    with pytest.raises(ValueError, match=r"apart=\[3, 3\] must be \[4, 4\]"):
        thresholds.fixed(value, member, member, np.zeros((3, 3), bool))
    with pytest.raises(ValueError, match="one number a target"):
        targets.measure(value, member, threshold=[0.0, np.nan, 0.0, 0.0])
