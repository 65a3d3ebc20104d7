"""Gradient matching on small models: token recall, labels, what it cannot do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from trustml import task as task_lib
from trustml.attacks.gradient_leakage import labels, matching, overlap, rows
from trustml.models import bag, gru

VOCAB, T, D = 24, 5, 16
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
jit = functools.partial(jax.jit, compiler_options=FAST)
TRUE = np.array([[7, 3, 19, 3, 11]], np.int32)
LABEL = np.array([2], np.int32)


def _bag():
    return bag.task(VOCAB, 4, width=D, hidden=(12,), activation="tanh")


def _gru():
    sizes = {"width": D, "hidden": 12, "bidirectional": False}
    return gru.task(VOCAB, 4, 2, slot_weight=0.0, **sizes)


def _table(params):
    return params["table"]["embedding"]


def _params(task):
    params = jit(task.init)(jax.random.key(3))
    # Embeddings of size 1: those of a trained model, and told apart by their distance.
    spread = jax.random.normal(jax.random.key(4), (VOCAB, D))
    return params | {"table": {"embedding": spread}}


def _batch(tokens=TRUE, targets=LABEL):
    tokens = jnp.asarray(tokens)
    return {
        "tokens": tokens,
        "length": jnp.full(tokens.shape[0], tokens.shape[1], jnp.int32),
        "label": jnp.asarray(targets),
        "slots": jnp.zeros_like(tokens),
    }


def _gradient(task, params, batch):
    def loss(params):
        one = jax.vmap(task.loss, (None, 0, None))
        return jnp.mean(one(params, batch, jax.random.key(0)))

    return jit(jax.grad(loss))(params)


def _template(batch):
    hidden = {"tokens": jnp.zeros_like(batch["tokens"]), "label": 0 * batch["label"]}
    return batch | hidden


CASES = {
    "bag-dlg-tokens": (_bag, "dlg", "tokens", None),
    "gru-dlg-embeddings": (_gru, "dlg", "embeddings", None),
    "gru-tag-embeddings": (_gru, "tag", "embeddings", None),
    "gru-cosine-tokens": (_gru, "cosine", "tokens", None),
    "bag-lbfgs-tokens": (_bag, "dlg", "tokens", optax.lbfgs()),
}


@pytest.mark.parametrize("name", CASES)
def test_one_text_is_recovered(name):
    """Row 17: token recall >= 0.9 at batch 1; the label leaks exactly.

    A recurrence tells order and repetition as well, which the rows do not.
    """
    make, distance, inputs, optimizer = CASES[name]
    task = make()
    params, batch = _params(task), _batch()
    gradient = _gradient(task, params, batch)
    if distance == "cosine":
        gradient = jax.tree.map(lambda g: 1e-3 * g, gradient)  # as clipping does
    attack = matching.matcher(
        task,
        _template(batch),
        table=_table,
        distance=distance,
        inputs=inputs,
        optimizer=optimizer,
        known_labels=LABEL if optimizer else None,
        steps=60 if optimizer else 400,
        restarts=4,
    )
    with jax.numpy_dtype_promotion("standard"):  # of optax
        guess = jit(attack)(params, gradient, jax.random.key(0))
    claim = rows.nonzero(_table(gradient))
    both = overlap.compare(guess.tokens, TRUE, claim)
    assert both.attack.token_recall >= 0.9
    assert both.rows.token_recall == pytest.approx(4 / 5)
    assert both.rows.exact == 0.0
    if make is _gru:
        assert both.attack.exact == 1.0
    assert int(jnp.argmax(guess.labels[0])) == LABEL[0]
    assert guess.distances.shape == (4,)
    assert float(guess.distance) == pytest.approx(float(guess.distances.min()))
    head = "output" if make is _bag else "intent"
    assert labels.of_bias(gradient[head]["bias"]) == LABEL[0]


def test_distances_against_numpy():
    rng = np.random.default_rng(0)
    made, seen = (
        [(i, jnp.asarray(rng.normal(size=s), jnp.float32)) for i, s in enumerate(sizes)]
        for sizes in [((2, 3), (4,))] * 2
    )
    a, b = (np.concatenate([np.ravel(g) for _, g in part]) for part in (made, seen))
    square = np.sum((a - b) ** 2) / np.sum(b**2)
    by_leaf = [np.abs(x - y).sum() for (_, x), (_, y) in zip(made, seen, strict=True)]
    weighted = (0.5 * by_leaf[0] + 0.1 * by_leaf[1]) / np.abs(b).sum()
    cosine = 1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    got = functools.partial(matching._distance, made=made, seen=seen)
    np.testing.assert_allclose(got("dlg", l1_weights=1.0), square, rtol=1e-5)
    tag = got("tag", l1_weights={"a": 0.5, "b": 0.1})
    np.testing.assert_allclose(tag, square + weighted, rtol=1e-5)
    np.testing.assert_allclose(got("cosine", l1_weights=1.0), cosine, rtol=1e-5)


def test_gradient_of_the_truth_is_the_gradient():
    """Two texts of unequal length; what stands at padding has no influence."""
    task = _gru()
    params = _params(task)
    batch = _batch(np.array([[5, 6, 7, 8, 9], [1, 2, 3, 4, 4]], np.int32), [0, 3])
    batch |= {"length": jnp.array([5, 3], jnp.int32)}
    expected = _gradient(task, params, batch)
    made = matching.gradient_fn(task, _template(batch), table=_table, inputs="tokens")
    x = 100.0 * jax.nn.one_hot(batch["tokens"], VOCAB)
    x = x.at[1, 3:].set(jnp.linspace(0.0, 9.0, VOCAB)[None])
    got = jit(made)(params, x, jax.nn.one_hot(batch["label"], 4))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, expected
    )


def test_nearest_is_that_of_a_loop():
    rng = np.random.default_rng(0)
    x, table = rng.normal(size=(2, 3, 4)), rng.normal(size=(9, 4))
    expected = np.linalg.norm(x[:, :, None] - table, axis=-1).argmin(axis=-1)
    got = matching.nearest(jnp.asarray(x, jnp.float32), jnp.asarray(table, jnp.float32))
    np.testing.assert_array_equal(got, expected)


def test_what_does_not_fit_is_refused():
    task, template = _bag(), _template(_batch())
    with pytest.raises(ValueError, match="distance='dgl' is not one of"):
        matching.matcher(task, template, table=_table, distance="dgl")
    with pytest.raises(ValueError, match="has no embeddings to search"):
        bare = task_lib.classification(task.init, task.predict)
        matching.matcher(bare, template, table=_table)
    with pytest.raises(ValueError, match="does not fit embeddings of shape"):
        search = matching.matcher(
            task, template, table=lambda p: p["output"]["kernel"], steps=1, restarts=1
        )
        params = _params(task)
        search(params, params, jax.random.key(0))
