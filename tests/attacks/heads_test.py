"""Small networks: what they can fit, and which round is kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trustml.attacks import heads

KEY = jax.random.key(0)


def _regression():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 3)).astype(np.float32)
    y = (x @ np.array([1.0, -2.0, 0.5]) + 0.1 * rng.normal(size=500)).astype(np.float32)
    return x, y


def test_a_linear_head_finds_least_squares():
    x, y = (jnp.asarray(part) for part in _regression())

    def loss(params, _):
        return jnp.mean((heads.apply(params, x)[:, 0] - y) ** 2)

    first = heads.init(KEY, (3, 1))
    fitted = heads.fit(first, loss, KEY, steps=400, learning_rate=0.1)
    want = np.linalg.lstsq(np.c_[x, np.ones(500)], y, rcond=None)[0]
    np.testing.assert_allclose(fitted.params[0][0][:, 0], want[:3], atol=2e-3)
    assert fitted.losses.shape == (400,) and np.isnan(fitted.check)


def test_a_hidden_layer_bends():
    x = jnp.linspace(-2, 2, 200)[:, None]
    y = jnp.abs(x[:, 0])

    def loss(params, _):
        return jnp.mean((heads.apply(params, x)[:, 0] - y) ** 2)

    first = heads.init(KEY, (1, 32, 1))
    fitted = heads.fit(first, loss, KEY, steps=400, learning_rate=0.02)
    assert fitted.losses[-1] < 1e-2  # a line leaves .33


def test_the_best_round_is_kept():
    # The loss pulls to 1, the check wants 0.5: one of the rounds on the way is kept.
    fitted = heads.fit(
        jnp.float32(0.0),
        lambda p, _: (p - 1.0) ** 2,
        KEY,
        steps=200,
        learning_rate=0.05,
        check=lambda p: jnp.abs(p - 0.5),
    )
    assert abs(float(fitted.params) - 0.5) == pytest.approx(float(fitted.check))
    assert float(fitted.check) < 0.3


def test_steps_and_rates_are_checked():
    for steps, rate in ((0, 0.1), (10, 0.0)):
        with pytest.raises(ValueError, match=r"steps=0 must|learning_rate=0.0 must"):
            heads.fit(
                jnp.float32(0.0),
                lambda p, _: p**2,
                KEY,
                steps=steps,
                learning_rate=rate,
            )


def test_constant_features_are_not_divided_by_zero():
    centre, scale = heads.standard(jnp.array([[1.0, 2.0], [1.0, 4.0]]))
    np.testing.assert_allclose(centre, [1, 3])
    np.testing.assert_allclose(scale, [1, 1])
