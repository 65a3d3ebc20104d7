"""What a reader with fresh eyes once broke in `clipped_grad`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trustml.privacy import clipping

MASK = jnp.ones(4, bool)


def batch():
    return jax.random.normal(jax.random.key(1), (4, 3))


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
