"""What a reader with fresh eyes once broke in `clipped_grad`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trustml.privacy import clipping

MASK = jnp.ones(4, bool)


def batch():
    return jax.random.normal(jax.random.key(1), (4, 3))


@pytest.mark.parametrize("small", [0.01, 0.003, 0.0015])
@pytest.mark.parametrize("method", ["book_keeping", "vmap"])
def test_cancelling_factors_in_bfloat16_stay_within_the_clip_norm(method, small):
    """Three tokens whose products cancel exactly hide a fourth, short one.

    Factors that were scaled and then rounded to bfloat16 would not cancel any more, and
    their sum was up to 2.6 times the clip norm.
    """

    def round_(x):
        return jnp.asarray(x, jnp.bfloat16).astype(jnp.float32)

    a = round_(jnp.full(64, 1.2))
    whole = round_(a + round_(jnp.full(64, 0.17)))
    tokens = jnp.stack([a, whole - a, whole, round_(jnp.full(64, small))])
    cotangents = (
        jnp.zeros((4, 64))
        .at[(0, 1, 2, 3), (0, 0, 0, 1)]
        .set(jnp.array([1.0, 1.0, -1.0, 1.0]))
    )

    def loss(params, example, key):
        hidden = example["x"].astype(jnp.bfloat16) @ params["w"].astype(jnp.bfloat16)
        return jnp.sum(hidden.astype(jnp.float32) * example["g"])

    params = {"w": jnp.zeros((64, 64))}
    row = {"x": tokens[None], "g": cotangents[None]}
    for fraction in np.linspace(0.3, 0.95, 8):
        norm = float(fraction * jnp.linalg.norm(tokens[3]))
        clipper = clipping.clipped_grad(loss, l2_clip_norm=norm, method=method)
        key = jax.random.key(0)
        sums, _ = jax.jit(clipper)(params, row, jnp.ones(1, bool), key)
        assert jnp.linalg.norm(sums["w"]) <= norm * (1 + 1e-4)


def test_parameters_may_be_plain_numbers():
    clipper = clipping.clipped_grad(lambda p, e, k: p["a"] * e["x"], l2_clip_norm=1.0)
    row, mask = {"x": jnp.array([0.5, 4.0])}, jnp.ones(2, bool)
    sums, _ = clipper({"a": 1.5}, row, mask, jax.random.key(0))
    np.testing.assert_allclose(sums["a"], 1.5, rtol=1e-6)


def test_explain_takes_python_floats_and_shapes():
    clipper = clipping.clipped_grad(lambda p, e, k: p["a"] * e[0], l2_clip_norm=1.0)
    shapes = {"a": jax.ShapeDtypeStruct((), jnp.float32)}
    for params in ({"a": 0.3}, shapes):
        assert clipper.explain(params, jnp.ones(2)).materialized == 0


def test_a_closure_that_changes_is_read_again():
    box = {"s": 1.0}

    def loss(p, e, k):
        return box["s"] * jnp.sum(e * p)

    clipper = clipping.clipped_grad(loss, l2_clip_norm=100.0)
    norms = []
    for box["s"] in (1.0, 2.0):
        _, info = clipper(jnp.ones(3), batch(), MASK, jax.random.key(2))
        norms.append(info.norms_per_example)
    np.testing.assert_allclose(norms[1], 2 * norms[0], rtol=1e-6)


@pytest.mark.parametrize(
    "loss",
    [
        lambda p, e, k: jnp.linalg.slogdet(p.T @ p)[1] * e[1],
        lambda p, e, k: jnp.sum(jnp.linalg.inv(p) @ e),
    ],
    ids=["slogdet", "inverse"],
)
def test_decompositions_are_materialized_not_refused(loss):
    params = jnp.eye(3) + 0.1 * jax.random.normal(jax.random.key(0), (3, 3))
    sums = [
        clipping.clipped_grad(loss, l2_clip_norm=0.5, method=method)(
            params, batch(), MASK, jax.random.key(2)
        )[0]
        for method in ("book_keeping", "vmap")
    ]
    np.testing.assert_allclose(sums[0], sums[1], rtol=1e-5, atol=1e-6)
