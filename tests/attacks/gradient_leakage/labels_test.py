"""Labels from the gradient of the last layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trustml.attacks.gradient_leakage import labels

C = 5


def _gradient(kernel, bias, inputs, targets):
    def loss(kernel, bias):
        log_probs = jax.nn.log_softmax(inputs @ kernel + bias[None], axis=-1)
        return -jnp.mean(jnp.take_along_axis(log_probs, targets[:, None], axis=1))

    return jax.grad(loss, argnums=(0, 1))(kernel, bias)


def test_one_example_is_exact():
    """Also where the model is sure and right, and after a scaling."""
    rng = np.random.default_rng(0)
    for trial in range(50):
        kernel = jnp.asarray(rng.normal(size=(4, C)), jnp.float32)
        bias = jnp.asarray(rng.normal(size=C), jnp.float32)
        inputs = jnp.asarray(rng.normal(size=(1, 4)), jnp.float32)
        target = np.array([trial % C], np.int32)
        of_kernel, of_bias = _gradient(kernel, bias, inputs, jnp.asarray(target))
        assert labels.of_bias(0.01 * of_bias) == target[0]
        assert labels.of_kernel(0.01 * of_kernel) == target[0]


def test_counts_of_a_batch():
    """Exact with the true mean probability; within one each from an untrained model.

    Untrained: logits of size 0.1 make probabilities 0.2 (1 +- 0.1), so an estimate is
    off by at most about 16 * 0.02 = 0.3 and a rounded one by 1.
    """
    rng = np.random.default_rng(1)
    for _ in range(20):
        targets = rng.integers(0, C, 16).astype(np.int32)
        true = np.bincount(targets, minlength=C)
        inputs = jnp.asarray(rng.normal(size=(16, 4)), jnp.float32)
        kernel = jnp.asarray(rng.normal(size=(4, C)) * 0.05, jnp.float32)
        bias = jnp.zeros(C)
        _, of_bias = _gradient(kernel, bias, inputs, jnp.asarray(targets))
        guess = labels.counts(of_bias, 16)
        assert guess.sum() == 16
        assert np.abs(guess - true).max() <= 1
        probs = jax.nn.softmax(inputs @ (100 * kernel), axis=-1)
        _, of_bias = _gradient(100 * kernel, bias, inputs, jnp.asarray(targets))
        guess = labels.counts(of_bias, 16, mean_probs=probs.mean(axis=0))
        np.testing.assert_array_equal(guess, true)


def test_a_gradient_without_cross_entropy_is_uniform():
    np.testing.assert_array_equal(labels.counts(np.ones(4), 8), [2, 2, 2, 2])


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="gradient='2 negative entries'"):
        labels.of_bias([-0.5, -0.5, 1.0])
    with pytest.raises(ValueError, match="two columns are equally long"):
        labels.of_kernel(np.ones((3, 2)))
    with pytest.raises(ValueError, match="gradient=0.0 says nothing"):
        labels.of_kernel(np.zeros((3, 4)))
    with pytest.raises(ValueError, match="mean_probs=2 must have 3 entries"):
        labels.counts(np.zeros(3), 4, mean_probs=[0.5, 0.5])
    with pytest.raises(ValueError, match="batch_size=0 must be >= 1"):
        labels.counts(np.zeros(3), 0)
