"""Augmented views: what they are, and one clipped gradient for all of them."""

import collections

import dp_accounting
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trustml.data import augment
from trustml.models import bag, cnn
from trustml.privacy import clipping

FAST = {"xla_backend_optimization_level": 0}
C = 0.05
B = 3

TEXT = {
    "tokens": jnp.array([[4, 9, 2, 0], [7, 7, 3, 5], [1, 2, 0, 0]], jnp.int32),
    "length": jnp.array([3, 4, 2], jnp.int32),
    "label": jnp.array([0, 2, 1], jnp.int32),
}
IMAGES = {
    "image": jax.random.normal(jax.random.key(3), (B, 6, 6, 1)),
    "label": jnp.array([0, 2, 1], jnp.int32),
}
CASES = {
    "images": (
        cnn.task((6, 6, 1), 3, channels=(3,), hidden=(), groups=1),
        augment.shift(1, flip=True),
        IMAGES,
    ),
    "words": (
        bag.task(12, 3, width=5, hidden=(4,), dropout=0.3),
        augment.word_dropout(0.4),
        TEXT,
    ),
}


def gradient_by_hand(loss, made, copies, params, example, key):
    """The mean of `copies` gradients, each of one view, in a Python loop."""
    total = jax.tree.map(jnp.zeros_like, params)
    for view_key in jax.random.split(key, copies):
        for_augment, for_loss = jax.random.split(view_key)
        view = made(for_augment, example)
        g = jax.grad(loss)(params, view, for_loss)
        total = jax.tree.map(lambda t, x: t + x / copies, total, g)
    return total


def norm(tree):
    return jnp.sqrt(sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(tree)))


@pytest.mark.parametrize("name", CASES)
def test_one_clipped_gradient_is_the_mean_over_the_views(name):
    task, made, batch = CASES[name]
    params, key, copies = task.init(jax.random.key(0)), jax.random.key(5), 8
    ids = jnp.array([8, 3, 11], jnp.uint32)
    mask = jnp.array([True, True, False])
    loss = augment.average(task.loss, made, copies)
    by_hand = jax.jit(
        lambda *args: gradient_by_hand(task.loss, made, copies, *args),
        compiler_options=FAST,
    )
    want, norms = jax.tree.map(jnp.zeros_like, params), []
    for i in range(2):
        example = jax.tree.map(lambda x, i=i: x[i], batch)
        g = by_hand(params, example, jax.random.fold_in(key, ids[i]))
        norms.append(norm(g))
        want = jax.tree.map(lambda t, x, n=norms[-1]: t + x * C / n, want, g)
    assert min(norms) > C, "both are clipped"
    for method in ("book_keeping", "vmap"):
        clipper = clipping.clipped_grad(loss, l2_clip_norm=C, method=method)
        run = jax.jit(clipper.fn, compiler_options=FAST)
        sums, info = run(params, batch, mask, key, ids)
        np.testing.assert_allclose(info.norms_per_example[:2], norms, rtol=1e-5)
        off = norm(jax.tree.map(jnp.subtract, sums, want))
        assert off <= 1e-5 * norm(want)
        # Whatever the number of views, one record moves the sum by C.
        assert norm(sums) <= 2 * C * (1 + 1e-5)
        alone, _ = run(params, batch, mask.at[1].set(False), key, ids)
        moved = norm(jax.tree.map(jnp.subtract, sums, alone))
        np.testing.assert_allclose(moved, C, rtol=1e-4)
        relation = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
        assert clipper.sensitivity(relation) == C


@pytest.mark.parametrize("name", CASES)
def test_views_are_factored_not_materialized(name):
    task, made, batch = CASES[name]
    example = jax.tree.map(lambda x: x[0], batch)
    clipper = clipping.clipped_grad(
        augment.average(task.loss, made, 4), l2_clip_norm=1.0
    )
    found = clipper.explain(task.init(jax.random.key(0)), example)
    assert found.materialized == 0, str(found)


def test_shifts_and_mirrors_are_equally_likely():
    """All 2 x 9 outcomes of a 3 x 3 image, by eye: the edge is repeated."""
    image = np.arange(9, dtype=np.float32).reshape(3, 3, 1)
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), "edge")
    want = {}
    for flip in (False, True):
        for y in range(3):
            for x in range(3):
                view = padded[y : y + 3, x : x + 3]
                view = view[:, ::-1] if flip else view
                want[view.tobytes()] = 0
    assert len(want) == 18
    made = augment.shift(1, flip=True)
    example = {"image": jnp.asarray(image), "label": jnp.int32(2)}
    keys = jax.random.split(jax.random.key(1), 3600)
    views = jax.vmap(made, (0, None))(keys, example)
    assert int(views["label"][0]) == 2
    counts = collections.Counter(v.tobytes() for v in np.asarray(views["image"]))
    assert set(counts) == set(want)
    # Each is expected 200 times; chi-square of 17 degrees exceeds 40.8 once in 1000.
    assert sum((n - 200) ** 2 / 200 for n in counts.values()) < 40.8
    still = augment.shift(0)(jax.random.key(0), example)["image"]
    np.testing.assert_array_equal(still, image)


def test_words_are_lost_at_the_rate_and_padding_is_not():
    example = {"tokens": jnp.full(10, 5, jnp.int32), "length": jnp.int32(8)}
    example["slots"] = jnp.arange(10)
    keys = jax.random.split(jax.random.key(1), 2000)
    made = augment.word_dropout(0.25, token=1)
    views = jax.vmap(made, (0, None))(keys, example)
    tokens = np.asarray(views["tokens"])
    assert tokens.dtype == np.int32 and np.all(tokens[:, 8:] == 5)
    lost = tokens[:, :8] == 1
    assert np.all(lost | (tokens[:, :8] == 5))
    # 16,000 words; five standard errors.
    bound = 5 * np.sqrt(0.25 * 0.75 / lost.size)
    assert abs(lost.mean() - 0.25) < bound
    np.testing.assert_array_equal(views["slots"][7], np.arange(10))


def test_wrong_numbers_are_refused():
    with pytest.raises(ValueError, match="train.augmentations=0 must be >= 1"):
        augment.average(lambda p, e, k: 0.0, augment.shift(1), 0)
    with pytest.raises(ValueError, match="pixels=-1"):
        augment.shift(-1)
    with pytest.raises(ValueError, match="rate=1.0 must be .* below 1"):
        augment.word_dropout(1.0)
