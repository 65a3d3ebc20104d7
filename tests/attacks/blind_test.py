"""The baseline that sees no model: at chance on a random split, loud on a shift."""

import numpy as np
import pytest

from trustml.attacks import blind


def _texts(n, shift, seed=0):
    """Bags of 40 of 100 tokens; with a shift members use the first ones more often."""
    rng = np.random.default_rng(seed)
    member = rng.random(n) < 0.5
    tokens = rng.integers(0, 100, size=(n, 40))
    swap = (rng.random((n, 40)) < shift) & member[:, None]
    tokens = np.where(swap, tokens % 10, tokens)
    mask = np.arange(40) < rng.integers(10, 41, size=n)[:, None]
    return blind.bag_of_tokens(tokens, mask, buckets=100), member


def test_a_shift_is_found_and_nothing_is_concluded():
    found = blind.measure(*_texts(400, 0.3))
    assert found.differs and found.auc > 0.8 and found.lo < found.auc < found.hi
    assert "Nothing is concluded about leakage" in found.sentence


def test_a_random_split_is_at_chance():
    areas, errors = [], []
    for seed in range(3):
        found = blind.measure(*_texts(300, 0.0, seed), steps=60)
        areas.append(found.auc)
        errors.append(found.stderr)
        assert not found.differs and "of chance" in found.sentence
    # Three independent draws.
    assert abs(np.mean(areas) - 0.5) < 3 * np.mean(errors) / np.sqrt(3)


def test_the_examples_own_classifier_never_saw_it():
    # One feature per example: learnt by heart it would separate everything.
    member = np.random.default_rng(0).random(200) < 0.5
    found = blind.measure(np.eye(200, dtype=np.float32), member, l2=0.0, steps=100)
    assert not found.differs


def test_bags_count_masked_tokens_and_share_buckets():
    tokens = np.array([[1, 1, 7, 3], [2, 9, 9, 9]])
    mask = np.array([[1, 1, 1, 0], [1, 1, 0, 0]], bool)
    bag = blind.bag_of_tokens(tokens, mask, buckets=5)
    want = [[0, 2, 1, 0, 0], [0, 0, 1, 0, 1]]
    np.testing.assert_allclose(np.expm1(bag), want, atol=1e-6)
    with pytest.raises(ValueError, match="tokens=-1"):
        blind.bag_of_tokens(np.array([[-1]]), np.array([[True]]))


def test_wrong_input_is_refused():
    features, member = _texts(50, 0.0)
    with pytest.raises(ValueError, match="do not fill 5 folds"):
        blind.measure(features, np.arange(50) < 3)
    features[4, 2] = np.nan
    with pytest.raises(ValueError, match=r"features\[4\] is not finite"):
        blind.measure(features, member)
