"""Logistic regression on words against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trustml.models import logistic

VOCABULARY, CLASSES = 7, 3


def example(tokens, length, label=1):
    return {
        "tokens": jnp.asarray(tokens, jnp.int32),
        "length": jnp.int32(length),
        "label": jnp.int32(label),
    }


def random_params(model):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), shapes
    )


@pytest.mark.parametrize(
    "tokens, length, words",
    [
        pytest.param([5, 2, 5, 0], 3, {5, 2}, id="a word twice counts once"),
        pytest.param([5, 2, 6, 6], 2, {5, 2}, id="what is beyond the length"),
        pytest.param([4, 1, 3, 6], 4, {4, 1, 3, 6}, id="full"),
        pytest.param([4, 1, 3, 6], 0, set(), id="empty"),
    ],
)
def test_predicts_from_the_set_of_words(tokens, length, words):
    model = logistic.task(VOCABULARY, CLASSES)
    params = random_params(model)
    found = model.predict(params, example(tokens, length))
    z = np.asarray(params["bias"], np.float64)
    for word in words:
        z = z + np.asarray(params["table"]["embedding"])[word]
    np.testing.assert_allclose(found, z - np.log(np.exp(z).sum()), rtol=1e-5)
    one = example(tokens, length)
    headed = model.head(params, model.embed(params, one), one)
    np.testing.assert_array_equal(headed, found)


def test_gradient_is_of_the_words_that_occur():
    model = logistic.task(VOCABULARY, CLASSES)
    params = random_params(model)
    one = example([5, 2, 5, 0], 3)
    grads = jax.grad(model.loss)(params, one, jax.random.key(0))
    p = np.exp(model.predict(params, one)) - np.eye(CLASSES)[1]
    np.testing.assert_allclose(grads["bias"], p, rtol=1e-5)
    wanted = np.zeros((VOCABULARY, CLASSES))
    wanted[[5, 2]] = p
    np.testing.assert_allclose(grads["table"]["embedding"], wanted, rtol=1e-5)


def test_begins_at_zero():
    params = logistic.task(VOCABULARY, CLASSES).init(jax.random.key(0))
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(params))
