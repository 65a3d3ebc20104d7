"""Options that change how a transformer is computed, and not what."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trustml.models import transformer

FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
jit = functools.partial(jax.jit, compiler_options=FAST)
EXAMPLE = {
    "tokens": jnp.array([3, 9, 4, 0, 0], jnp.int32),
    "length": jnp.int32(3),
    "label": jnp.int32(1),
}


def _task(**options):
    return transformer.classifier(
        12, 3, max_length=5, width=8, depth=2, heads=2, **options
    )


@pytest.fixture(scope="module")
def plain():
    task = _task()
    params = jit(task.init)(jax.random.key(0))
    gradient = jit(jax.value_and_grad(task.loss))
    return params, gradient(params, EXAMPLE, jax.random.key(0))


def _stack(params):
    """Parameters of separate blocks as those of stacked ones."""
    blocks = [params[f"blocks_{i}"] for i in range(2)]
    rest = {k: v for k, v in params.items() if not k.startswith("blocks_")}
    return rest | {"blocks_0": jax.tree.map(lambda *x: jnp.stack(x), *blocks)}


def test_stacked_and_recomputed_blocks_give_the_same(plain):
    params, (loss, grads) = plain
    task = _task(scan_layers=True, remat=True)
    gradient = jit(jax.value_and_grad(task.loss))
    stacked = _stack(params)
    expected = jax.tree.map(jnp.shape, stacked)
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, shapes) == expected
    new_loss, new_grads = gradient(stacked, EXAMPLE, jax.random.key(0))
    np.testing.assert_allclose(new_loss, loss, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        new_grads,
        _stack(grads),
    )


def test_bfloat16_is_close_and_keeps_float32_parameters(plain):
    params, (loss, grads) = plain
    task = _task(compute_dtype="bfloat16")
    gradient = jit(jax.value_and_grad(task.loss))
    new_loss, new_grads = gradient(params, EXAMPLE, jax.random.key(0))
    np.testing.assert_allclose(new_loss, loss, rtol=0.02)
    assert new_loss != loss
    norm = np.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(grads)))
    far = jax.tree.map(lambda a, b: np.abs(a - b).max(), new_grads, grads)
    assert max(jax.tree.leaves(far)) < 0.02 * norm
    assert {g.dtype for g in jax.tree.leaves(new_grads)} == {jnp.dtype("float32")}
    program = str(jax.make_jaxpr(task.predict)(params, EXAMPLE))
    assert "bf16" in program


def test_stacked_blocks_draw_their_own_parameters_and_dropout():
    """With blocks of zeros the biases of both get one gradient, but for their masks.

    Recomputation repeats the draw of the forward pass, which the checker of key reuse
    takes for a second use; it is off here for that reason.
    """
    task = _task(scan_layers=True, remat=True, dropout=0.5)
    params = jit(task.init)(jax.random.key(0))
    first, second = np.asarray(params["blocks_0"]["qkv"]["kernel"])
    assert first.shape == (8, 24)
    assert abs(first - second).max() > 0.01
    params["blocks_0"] = jax.tree.map(jnp.zeros_like, params["blocks_0"])
    with jax.debug_key_reuse(False):
        grads = jit(jax.grad(task.loss))(params, EXAMPLE, jax.random.key(3))
    first, second = np.asarray(grads["blocks_0"]["down"]["bias"])
    assert abs(first).max() > 0
    assert abs(first - second).max() > 1e-3


def test_cls_pooling_reads_the_first_token(plain):
    """With one token both poolings agree, with three they do not."""
    params, _ = plain
    predict = {
        pooling: jit(_task(pooling=pooling).predict) for pooling in ("mean", "cls")
    }
    one = EXAMPLE | {"length": jnp.int32(1)}
    both = [f(params, one) for f in predict.values()]
    np.testing.assert_allclose(*both, atol=1e-6)
    both = [f(params, EXAMPLE) for f in predict.values()]
    assert abs(both[0] - both[1]).max() > 1e-3
