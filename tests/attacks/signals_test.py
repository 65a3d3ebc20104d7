"""Signals: safe margins, evaluation mode, one example at a time, honest refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trustml import task as task_lib
from trustml.attacks import designs, signals
from trustml.models import mlp, tagging

M, N, D, C = 3, 10, 4, 5


def linear(num_classes=C):
    def init(key):
        return {"w": jax.random.normal(key, (D, num_classes))}

    def predict(params, example):
        return jax.nn.log_softmax(example["features"] @ params["w"])

    return task_lib.classification(init, predict)


def models(task, count=M):
    return jax.vmap(task.init)(jax.random.split(jax.random.key(0), count))


@pytest.fixture
def columns():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(N, D)).astype(np.float32)
    return {"features": features, "label": rng.integers(0, C, N).astype(np.int32)}


@pytest.mark.parametrize("chunk", [1, 4, 10, 64])
def test_margins_are_the_logit_of_the_true_class(columns, chunk):
    task = linear()
    params = models(task)
    margin, log_prob = signals.of(task, chunk=chunk)(params, columns)
    assert margin.shape == log_prob.shape == (M, N, 1)
    for m in range(M):
        for i in range(N):
            w = np.asarray(params["w"][m], np.float64)
            logits = columns["features"][i].astype(np.float64) @ w
            p = np.exp(logits) / np.exp(logits).sum()
            p_y = p[columns["label"][i]]
            assert margin[m, i, 0] == pytest.approx(np.log(p_y / (1 - p_y)), abs=1e-5)
            assert log_prob[m, i, 0] == pytest.approx(np.log(p_y), abs=1e-5)


def test_extreme_logits_are_finite_and_strictly_ordered():
    logits = np.linspace(-80, 80, 33, dtype=np.float32)
    stacked = jnp.stack([logits, jnp.zeros(33), -jnp.ones(33)], axis=1)

    def both(scores):
        margin = signals.margin_of(jax.nn.log_softmax(scores), jnp.int32(0))
        return margin, -jax.nn.softplus(-margin)

    margin, log_prob = jax.vmap(both)(stacked)
    others = np.log1p(np.exp(-1.0))
    np.testing.assert_allclose(margin, logits - others, rtol=1e-5, atol=1e-5)
    assert np.all(np.diff(margin) > 0) and np.all(np.diff(log_prob) > 0)
    # The naive form ties at the top, which is what makes this test one.
    p = np.asarray(jax.nn.softmax(stacked))[:, 0]
    assert np.sum(np.diff(p) == 0) > 5


def test_logits_do_as_well_as_log_probabilities():
    logits = jnp.array([3.0, -1.0, 0.5])
    shifted = signals.margin_of(logits, jnp.int32(2))
    normal = signals.margin_of(jax.nn.log_softmax(logits), jnp.int32(2))
    assert float(shifted) == pytest.approx(float(normal), abs=1e-6)


def test_nothing_depends_on_the_rest_of_the_batch(columns):
    task = linear()
    score = jax.jit(signals.of(task, chunk=4))
    params = models(task)
    margin, _ = score(params, columns)
    others = np.delete(np.arange(N), 5)
    spoilt = {name: column.copy() for name, column in columns.items()}
    spoilt["features"][others] = np.nan
    spoilt["label"][others] = 0
    alone, _ = score(params, spoilt)
    np.testing.assert_array_equal(alone[:, 5], margin[:, 5])
    order = np.random.default_rng(1).permutation(N)
    moved, _ = score(params, {name: x[order] for name, x in columns.items()})
    np.testing.assert_allclose(moved, margin[:, order], atol=1e-6)


def test_models_do_not_touch_each_other(columns):
    task = linear()
    params = models(task)
    margin, _ = signals.of(task)(params, columns)
    for m in range(M):
        alone = jax.tree.map(lambda x, m=m: x[m : m + 1], params)
        again, _ = signals.of(task)(alone, columns)
        np.testing.assert_allclose(again[0], margin[m], atol=1e-5)


def test_dropout_is_off(columns):
    noisy, plain = (mlp.task(D, C, hidden=(8,), dropout=p) for p in (0.9, 0.0))
    params = models(plain)
    first, _ = signals.of(noisy)(params, columns)
    np.testing.assert_array_equal(first, signals.of(plain)(params, columns)[0])
    example = {name: x[0] for name, x in columns.items()}
    losses = [
        float(noisy.loss(jax.tree.map(lambda x: x[0], params), example, key))
        for key in jax.random.split(jax.random.key(1))
    ]
    assert losses[0] != losses[1], "training mode would have shown"


def joint(params, example):
    label = jax.nn.log_softmax(params["w"][:3])
    slots = jax.nn.log_softmax(params["w"][3:].reshape(4, 2))
    return tagging.Joint(label, slots + example["shift"])


def test_a_joint_task_has_one_query_for_each_head():
    task = task_lib.Task(lambda key: {}, joint, joint, {})
    rng = np.random.default_rng(0)
    w = rng.normal(size=(2, 11)).astype(np.float32)
    columns = {
        "label": np.array([1, 2, 0], np.int32),
        "slots": np.array([[1, 0, 1, 1], [0, -1, 1, 0], [0, 0, 0, 0]], np.int32),
        "length": np.array([4, 3, 0], np.int32),
        "shift": np.zeros(3, np.float32),
    }
    margin, log_prob = signals.of(task)({"w": jnp.asarray(w)}, columns)
    assert margin.shape == (2, 3, 2)
    for m in range(2):
        tags = w[m, 3:].reshape(4, 2)
        margins = [
            tags[t, columns["slots"][1, t]] - tags[t, 1 - columns["slots"][1, t]]
            for t in (0, 2)  # token 1 has no tag, token 3 is padding
        ]
        assert margin[m, 1, 1] == pytest.approx(np.mean(margins), abs=1e-5)
        wanted = np.mean([-np.log1p(np.exp(-x)) for x in margins])
        assert log_prob[m, 1, 1] == pytest.approx(wanted, abs=1e-5)
        assert margin[m, 2, 1] == 0
        logits = w[m, :3]
        rest = np.log(np.exp(logits[0]) + np.exp(logits[1]))
        assert margin[m, 1, 0] == pytest.approx(logits[2] - rest, abs=1e-5)


def test_one_class_is_refused(columns):
    task = linear(1)
    with pytest.raises(ValueError, match="classes=1 has no margin"):
        signals.of(task)(models(task), columns)


def test_tasks_without_classes_say_so():
    def predict(params, example):
        return example["x"] * params["w"]

    def square(prediction, example):
        return jnp.square(prediction - example["y"])

    task = task_lib.Task(lambda key: {}, predict, predict, {"loss": square})
    params = {"w": jnp.array([1.0, 2.0])}
    columns = {"x": np.ones(4, np.float32), "y": np.arange(4, dtype=np.float32)}
    with pytest.raises(ValueError, match="classes=False"):
        signals.of(task)(params, columns)
    margin, log_prob = signals.of(task, classes=False)(params, columns)
    np.testing.assert_allclose(margin[1, :, 0], [-4, -1, 0, -1])
    assert np.isnan(log_prob).all()
    found = signals.assemble(
        margin, log_prob, designs.paired(2, 4, seed=0), np.zeros(4, int)
    )
    assert found.valid.all()
    with pytest.raises(ValueError, match="task.metrics=.* hold no 'loss'"):
        signals.of(task._replace(metrics={}), classes=False)


def test_what_is_not_finite_is_flagged_and_kept(columns):
    task = linear()
    design = designs.paired(2, N, seed=0)
    columns["features"][3] = np.nan
    columns["label"][6] = C  # no such class
    margin, log_prob = signals.of(task)(models(task, 2), columns)
    found = signals.assemble(
        margin, log_prob, design, columns["label"], fingerprint="x"
    )
    assert np.flatnonzero(~found.valid).tolist() == [3, 6]
    assert np.isnan(found.margin[:, [3, 6]]).all()
    assert found.group.tolist() == [-1] * N and found.fingerprint == "x"
    np.testing.assert_array_equal(found.member, design.member)


def test_a_model_that_diverged_is_named(columns):
    task = linear()
    params = models(task, 2)
    params["w"] = params["w"].at[1].set(jnp.nan)
    margin, log_prob = signals.of(task)(params, columns)
    design = designs.paired(2, N, seed=0)
    with pytest.raises(ValueError, match=r"model 1 \(1 of 2 in all\) has no finite"):
        signals.assemble(margin, log_prob, design, columns["label"])


def test_shapes_that_do_not_fit_are_named(columns):
    x = np.zeros((2, N, 1))
    design = designs.paired(2, N, seed=0)
    with pytest.raises(ValueError, match=r"label.shape=\(4,\) does not fit"):
        signals.assemble(x, x, design, np.zeros(4))
    with pytest.raises(ValueError, match=r"margin.shape=\(1, 10, 1\) does not fit"):
        signals.assemble(x[:1], x, design, np.zeros(N))
