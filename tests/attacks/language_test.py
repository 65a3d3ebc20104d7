"""Attacks on token log-probabilities, against loops over texts and tokens."""

import math
import zlib

import jax
import numpy as np
import pytest

from trustml.attacks import language

N, T, V = 9, 35, 50


def _texts(seed=0):
    """Log-probabilities of the vocabulary, tokens, mask; text 0 has no token."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(N, T, V)) * rng.uniform(0.5, 8, size=(N, T, 1))
    logits[:, :, 7] = -np.inf
    log_probs = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    tokens = rng.integers(8, V, size=(N, T))
    mask = np.arange(T) < np.r_[0, 1, 5, 10, 20, 30, 33, 34, 35][:, None]
    lp = np.take_along_axis(log_probs, tokens[..., None], -1)[..., 0]
    return log_probs.astype(np.float32), lp.astype(np.float32), mask


def _lowest(values, k):
    count = math.ceil(round(k * len(values), 6))
    return np.mean(np.sort(values)[:count])


@pytest.mark.parametrize("k", [0.2, 0.05, 1.0])
def test_scores_are_those_of_a_loop(k):
    log_probs, lp, mask = _texts()
    mu, sigma = jax.jit(language.moments)(log_probs)
    found = {
        "ll": language.log_likelihood(lp, mask),
        "min_k": language.min_k(lp, mask, k=k),
        "min_k_plus": language.min_k_plus(lp, mu, sigma, mask, k=k),
        "zlib": language.against_zlib(lp, mask, np.arange(20, 20 + N, dtype=np.int32)),
    }
    for scores in found.values():
        np.testing.assert_array_equal(scores.valid, np.arange(N) > 0)
        assert np.isnan(np.asarray(scores.value)[0])
    for i in range(1, N):
        own, standard = [], []
        for t in np.flatnonzero(mask[i]):
            p = np.exp(log_probs[i, t].astype(np.float64))
            kept = p > 0
            log_p = log_probs[i, t][kept].astype(np.float64)
            mean = np.sum(p[kept] * log_p)
            deviation = np.sqrt(np.sum(p[kept] * (log_p - mean) ** 2))
            own.append(lp[i, t])
            standard.append((lp[i, t] - mean) / deviation)
        want = {
            "ll": np.mean(own),
            "min_k": _lowest(own, k),
            "min_k_plus": _lowest(standard, k),
            "zlib": np.sum(own) / (8 * (20 + i)),
        }
        for name, value in want.items():
            assert found[name].value[i] == pytest.approx(value, rel=1e-5), name


def test_masked_tokens_do_not_matter_and_a_nan_is_not_valid():
    log_probs, lp, mask = _texts()
    mu, sigma = (np.asarray(part) for part in language.moments(log_probs))
    spoiled = [np.where(mask, part, np.nan) for part in (lp, mu, sigma)]
    for one, two in (
        (language.min_k(lp, mask), language.min_k(spoiled[0], mask)),
        (
            language.min_k_plus(lp, mu, sigma, mask),
            language.min_k_plus(*spoiled, mask),
        ),
    ):
        np.testing.assert_array_equal(one.value, two.value)
    spoiled[0][3, 2] = np.nan
    found = language.log_likelihood(spoiled[0], mask)
    np.testing.assert_array_equal(np.flatnonzero(~np.asarray(found.valid)), [0, 3])


def test_sigma_of_a_nearly_certain_position_does_not_cancel():
    # log p = (-e, -20): variance p (1-p) (difference)^2 = 2.06e-9 * 400.
    log_probs = np.array([[-2.0611536e-9, -20.0]], np.float32)
    _, sigma = language.moments(log_probs)
    assert sigma[0] == pytest.approx(math.sqrt(2.0611536e-9 * 400), rel=1e-4)
    _, sigma = language.moments(np.array([[0.0, -np.inf]], np.float32))
    assert sigma[0] == pytest.approx(1e-6)


def test_differences_to_other_texts_and_models():
    _, lp, mask = _texts()
    _, other, _ = _texts(1)
    _, third, _ = _texts(2)
    own = language.log_likelihood(lp, mask)
    reference = language.log_likelihood(other, mask)
    found = language.against(own, reference)
    np.testing.assert_allclose(
        found.value[1:], own.value[1:] - reference.value[1:], rtol=1e-6
    )
    last = language.log_likelihood(third, mask)
    near = language.neighbourhood(
        own, np.stack([other, third], 1), np.stack([mask, mask], 1)
    )
    want = own.value - (reference.value + last.value) / 2
    np.testing.assert_allclose(near.value[1:], want[1:], rtol=1e-5, atol=1e-6)
    assert not near.valid[0]


def test_zlib_counts_bytes():
    texts = ["", "a" * 1000, "the quick brown fox"]
    want = [len(zlib.compress(text.encode())) for text in texts]
    np.testing.assert_array_equal(language.zlib_bytes(texts), want)
    assert want[1] < 30


def test_a_share_outside_0_1_is_refused():
    _, lp, mask = _texts()
    for k in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="k="):
            language.min_k(lp, mask, k=k)


def test_a_model_that_knows_its_half_is_caught():
    # Tokens of members are 1.5 times as likely in the log, on the same vocabulary.
    rng = np.random.default_rng(0)
    member = np.arange(400) < 200
    lp = -rng.exponential(np.where(member, 1.0, 1.5)[:, None], size=(400, 30))
    lp = lp.astype(np.float32)
    mask = np.ones((400, 30), bool)
    for scores in (language.log_likelihood(lp, mask), language.min_k(lp, mask)):
        value = np.asarray(scores.value)
        assert value[member].mean() > value[~member].mean() + 0.2
