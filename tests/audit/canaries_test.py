"""Canaries: a clipped gradient of C e_k, whatever the rule, and nothing else moved."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from trustml import rng
from trustml.audit import canaries
from trustml.models import mlp
from trustml.privacy import clipping

COUNT, KEY = 9, jax.random.key(0)
TASK = mlp.task(3, 2, hidden=(4,))


def data(included):
    generator = np.random.default_rng(0)
    columns = {
        "features": generator.normal(size=(5, 3)).astype(np.float32),
        "label": np.array([0, 1, 1, 0, 1], np.int32),
    }
    return columns, canaries.insert(columns, np.asarray(included, bool))


RULES = ["flat", "automatic", "psac", "per_layer"]
METHODS = [("book_keeping", r) for r in RULES] + [("ghost", "flat"), ("vmap", "flat")]


@pytest.mark.parametrize("method,rule", METHODS)
def test_each_canary_moves_its_own_coordinate_by_its_contribution(method, rule):
    task = canaries.wrap(TASK, COUNT)
    included = np.arange(COUNT) % 2 == 0
    columns, whole = data(included)
    clip = {"l2_clip_norm": 0.8, "rule": rule, "method": method}
    clipper = clipping.clipped_grad(task.loss, **clip)
    params = task.init(KEY)
    mask = np.ones(10, bool)
    sums, info = jax.jit(clipper)(params, whole, mask, KEY)
    length = canaries.contribution(clipper, params)
    np.testing.assert_allclose(sums["canary"], length * included, rtol=1e-5)
    whole_norm = {"flat": 0.8, "automatic": 0.8, "psac": 0.8}
    want = whole_norm.get(rule, 0.8 / np.sqrt(3))
    assert length == pytest.approx(want, rel=1e-5)
    np.testing.assert_allclose(info.norms_per_example[5:], canaries.SCALE, rtol=1e-5)
    # The model's own sums are those of the real examples without any canary.
    alone = clipping.clipped_grad(TASK.loss, **clip)
    if rule != "per_layer":  # whose shares count groups, and there is one more
        real, _ = jax.jit(alone)(params["model"], columns, mask[:5], KEY)
        for x, y in zip(
            jax.tree.leaves(sums["model"]), jax.tree.leaves(real), strict=True
        ):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
    if (method, rule) == METHODS[0]:
        clipper.check(params, whole)


def test_canaries_are_looked_up_not_materialised():
    task = canaries.wrap(TASK, COUNT)
    clipper = clipping.clipped_grad(task.loss, l2_clip_norm=1.0)
    _, whole = data(np.ones(COUNT))
    text = str(
        clipper.explain(task.init(KEY), {name: x[0] for name, x in whole.items()})
    )
    (line,) = [line for line in text.splitlines() if line.startswith("canary")]
    assert "scatter" in line


def test_the_model_inside_predicts_as_before():
    task = canaries.wrap(TASK, COUNT)
    params = task.init(KEY)
    example = {"features": jnp.ones(3), "label": jnp.int32(1)}
    inner = TASK.init(KEY)
    np.testing.assert_array_equal(
        task.predict(params, example), TASK.predict(inner, example)
    )
    assert params["canary"].shape == (COUNT,) and not np.any(params["canary"])
    real = {**example, canaries.FIELD: jnp.int32(-1)}
    assert task.loss(params, real, KEY) == TASK.loss(inner, example, KEY)


def test_coins_are_fair_reproducible_and_of_their_own_stream():
    one = canaries.coins(rng.root(1), 10_000)
    np.testing.assert_array_equal(one, canaries.coins(rng.root(1), 10_000))
    other = canaries.coins(rng.root(2), 10_000)
    # 5 standard errors of 10,000 coins, and of how often two rows of them agree.
    for share in (one.mean(), other.mean(), (one == other).mean()):
        assert abs(share - 0.5) < 0.025
    stream = canaries.coins(rng.stream(rng.root(1), "sampling"), 10_000)
    assert abs((one == stream).mean() - 0.5) < 0.025


def test_insert_adds_one_row_for_each_canary_that_is_in():
    columns, whole = data([1, 0, 0, 1, 0, 0, 0, 0, 1])
    assert whole[canaries.FIELD].tolist() == [-1] * 5 + [0, 3, 8]
    assert whole[canaries.FIELD].dtype == np.int32
    for name, column in columns.items():
        np.testing.assert_array_equal(whole[name][:5], column)
        assert whole[name].dtype == column.dtype and not np.any(whole[name][5:])


def test_recording_keeps_what_the_optimizer_was_given():
    params = {"w": jnp.ones(3)}
    optimizer = canaries.recording(optax.sgd(0.1, momentum=0.9))
    state = optimizer.init(params)
    assert not np.any(state.released["w"])
    given = {"w": jnp.arange(3.0)}
    moved, state = optimizer.update(given, state, params)
    plain = optax.sgd(0.1, momentum=0.9)
    want, _ = plain.update(given, plain.init(params), params)
    np.testing.assert_array_equal(state.released["w"], given["w"])
    np.testing.assert_array_equal(moved["w"], want["w"])


def test_what_has_no_contribution_is_refused():
    task = canaries.wrap(TASK, COUNT)
    params = task.init(KEY)
    with pytest.raises(ValueError, match="tracks its clip norm"):
        canaries.contribution(
            clipping.clipped_grad(task.loss, l2_clip_norm=1.0, rule="quantile"), params
        )
    with pytest.raises(ValueError, match="leaves out the parameter 'canary'"):
        canaries.contribution(
            clipping.clipped_grad(task.loss, l2_clip_norm=1.0, trainable=("model/*",)),
            params,
        )
    with pytest.raises(ValueError, match="has 'canary_id' already"):
        canaries.insert({canaries.FIELD: np.zeros(2)}, np.ones(2, bool))
    with pytest.raises(ValueError, match="count=0"):
        canaries.wrap(TASK, 0)
