"""Shared parts against plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

from trustml.models import bag, cnn, layers


def _normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_attention_equals_a_loop_over_heads():
    q, k, v = _normal(3, 5, 8)
    mask = np.array([True, True, True, False, False])
    out = layers.attend(*map(jnp.asarray, (q, k, v)), jnp.asarray(mask), 2)
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        scores = np.exp(q[:, part] @ k[mask][:, part].T / 2.0)
        weights = scores / scores.sum(axis=1, keepdims=True)
        expected = weights @ v[mask][:, part]
        np.testing.assert_allclose(out[:, part], expected, atol=1e-5)


def test_layer_norm_stands_a_large_offset():
    x = _normal(3, 16) + 3000.0
    layer = layers.LayerNorm(1e-6)
    params = {"scale": jnp.full(16, 2.0), "bias": jnp.full(16, 0.5)}
    exact = x.astype(np.float64)
    exact = (exact - exact.mean(1, keepdims=True)) / exact.std(1, keepdims=True)
    out = layer.apply({"params": params}, jnp.asarray(x))
    np.testing.assert_allclose(out, 2 * exact + 0.5, atol=2e-3)
    half = layer.apply({"params": params}, jnp.asarray(x - 3000.0, jnp.bfloat16))
    assert half.dtype == jnp.bfloat16


def test_masked_mean_ignores_what_is_masked():
    x = jnp.array([[1.0, 2.0], [3.0, 4.0], [jnp.nan, jnp.inf]])
    mean = layers.masked_mean(x, jnp.array([True, True, False]))
    np.testing.assert_array_equal(mean, [2.0, 3.0])


def test_an_empty_text_is_read_as_one_padding_token():
    example = {"tokens": jnp.array([7, 8, 9]), "length": jnp.int32(0)}
    tokens, mask = layers.tokens_and_mask(example, pad=1)
    np.testing.assert_array_equal(tokens, [1, 1, 1])
    np.testing.assert_array_equal(mask, [True, False, False])


def test_bag_is_the_mean_of_its_embeddings():
    task = bag.task(10, 3, width=4, hidden=())
    params = task.init(jax.random.key(0))
    example = {"tokens": jnp.array([4, 4, 7, 9]), "length": jnp.int32(3)}
    table = np.asarray(params["table"]["embedding"])
    mean = (2 * table[4] + table[7]) / 3
    logits = mean @ np.asarray(params["output"]["kernel"])
    expected = logits - np.log(np.exp(logits).sum())
    np.testing.assert_allclose(task.predict(params, example), expected, atol=1e-6)


def test_pairs_are_hashed_evenly_and_in_order():
    first = jnp.arange(100, dtype=jnp.int32)
    buckets = jax.vmap(
        lambda a: jax.vmap(lambda b: bag.hash_pairs(jnp.stack([a, b]), 64)[0])(first)
    )(first)
    assert (buckets >= 0).all() and (buckets < 64).all()
    counts = np.bincount(np.asarray(buckets).ravel(), minlength=64)
    # 10,000 pairs: 156 a bucket; five standard deviations are 62.
    assert abs(counts - 156.25).max() < 62
    assert (np.asarray(buckets) != np.asarray(buckets).T).mean() > 0.95


def test_group_norm_stays_inside_one_image():
    """The network's first normalised map against NumPy: groups over H, W and channels.

    With one 1x1-like kernel set by hand the map equals the normalised image itself.
    """
    task = cnn.task((4, 4, 1), 2, channels=(1,))
    params = task.init(jax.random.key(0))
    kernel = jnp.zeros((3, 3, 1, 1)).at[1, 1, 0, 0].set(1.0)
    params["conv_0"]["kernel"] = kernel
    image = _normal(4, 4, 1) * 5 + 3
    normed = np.maximum((image - image.mean()) / np.sqrt(image.var() + 1e-6), 0)
    pooled = normed[..., 0].reshape(2, 2, 2, 2).max(axis=(1, 3)).reshape(-1)
    logits = pooled @ np.asarray(params["head"]["kernel"])
    expected = logits - np.log(np.exp(logits).sum())
    out = task.predict(params, {"image": jnp.asarray(image)})
    np.testing.assert_allclose(out, expected, atol=1e-5)
