"""The classifier on posteriors of shadow models, on posteriors of a known kind."""

import jax
import numpy as np
import pytest

from tests.attacks import worlds
from trustml.attacks import metrics, references, shokri

C = 4


def _world(effect, models=6, n=600, seed=0):
    """Log-probabilities [M, n, C]; members of class 0 are less sure, others surer."""
    rng = np.random.default_rng(seed)
    member, pair = worlds.paired(models, n, seed)
    label = rng.integers(0, C, size=n)
    logits = rng.normal(size=(models, n, C))
    lift = effect * np.array([-2.0, 1.0, 2.0, 3.0])[label]
    logits[:, np.arange(n), label] += 1.0 + lift * member
    log_probs = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    return log_probs.astype(np.float32), member, pair, label


FIT = jax.jit(shokri.fit)


def _attack(world, least=200, target=0):
    log_probs, member, pair, label = world
    use = references.rotate(member, pair).use[target]
    rows = np.asarray(shokri.features(log_probs, label))
    groups = shokri.by_class(np.tile(label, use.sum()), num_classes=C, least=least)
    shadow = rows[use].reshape(-1, C + 1)
    fitted = FIT(jax.random.key(0), shadow, member[use].ravel(), groups)
    return fitted, shokri.score(fitted, rows[target], label), member[target], label


def test_members_are_found_class_by_class():
    fitted, found, member, label = _attack(_world(1.0))
    value = np.asarray(found.value)
    areas = [
        metrics.auc(value[member & (label == c)], value[~member & (label == c)]).value
        for c in range(C)
    ]
    # 75 + 75 a class: s.e. at most .047. A shared classifier cannot see class 0.
    assert areas[0] > 0.7 and areas[1] > 0.6 and areas[2] > 0.8 and areas[3] > 0.9
    fixed = metrics.at_threshold(value[member], value[~member], float(fitted.threshold))
    assert fixed.balanced_accuracy > 0.65
    best = metrics.balanced_accuracy(value[member], value[~member])
    assert fixed.balanced_accuracy <= best.max_over_thresholds


def test_on_noise_it_is_at_chance():
    _, found, member, _ = _attack(_world(0.0))
    value = np.asarray(found.value)
    # s.e. of 300 + 300 under the null: .0236.
    assert abs(metrics.auc(value[member], value[~member]).value - 0.5) < 3 * 0.0236


def test_small_classes_share_a_classifier():
    label = np.r_[np.zeros(300, int), np.ones(250, int), np.full(50, 2)]
    order = np.random.default_rng(0).permutation(600)
    groups = shokri.by_class(label[order], num_classes=C)
    np.testing.assert_array_equal(groups.head, [1, 2, 0, 0])
    np.testing.assert_array_equal(groups.count, [600, 300, 250])
    for h in (1, 2):
        rows = groups.order[groups.start[h] : groups.start[h] + groups.count[h]]
        assert (label[order][rows] == h - 1).all()
    fitted, found, *_ = _attack(_world(1.0), least=10**6)
    assert jax.tree.leaves(fitted.params)[0].shape[0] == 1
    assert np.asarray(found.valid).all()


def test_features_are_sorted_posteriors_and_the_label():
    log_probs, _, _, label = _world(1.0)
    rows = np.asarray(shokri.features(log_probs, label))
    want = np.sort(np.exp(log_probs), axis=-1)[..., ::-1]
    np.testing.assert_allclose(rows[..., :C], want, rtol=1e-5)
    own = log_probs[:, np.arange(label.size), label]
    np.testing.assert_allclose(rows[..., C], own)


def test_the_threshold_is_the_best_on_the_shadows():
    rng = np.random.default_rng(0)
    logit = rng.normal(size=200).astype(np.float32)
    truth = (logit + rng.normal(size=200) > 0.3).astype(np.float32)
    found = float(shokri._threshold(jax.numpy.asarray(logit), jax.numpy.asarray(truth)))

    def balanced(t):
        hit, wrong = logit[truth == 1] > t, logit[truth == 0] > t
        return hit.mean() - wrong.mean()

    assert balanced(found) == pytest.approx(max(balanced(t) for t in logit), abs=1e-6)


def test_wrong_labels_and_nan():
    with pytest.raises(ValueError, match=r"label must lie in 0\.\.3"):
        shokri.by_class(np.array([0, 4]), num_classes=C)
    world = _world(1.0)
    world[0][0, 3, 1] = np.nan
    _, found, _, _ = _attack(world)
    np.testing.assert_array_equal(np.flatnonzero(~np.asarray(found.valid)), [3])
