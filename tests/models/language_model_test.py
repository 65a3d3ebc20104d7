"""The language model: causal, against a loop, padding, figures over tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trustml.models import language_model

V, T = 11, 7
KINDS = {
    "untied": {"width": 5, "hidden": 6},
    "tied": {"width": 6, "hidden": 6, "tied": True},
    "projected": {"width": 5, "hidden": 6, "tied": True},
}
LENGTHS = np.array([0, 1, 4, T], np.int32)


@pytest.fixture(scope="module", params=list(KINDS))
def made(request):
    task = language_model.task(V, **KINDS[request.param])
    params = jax.jit(task.init)(jax.random.key(0))
    both = jax.vmap(jax.value_and_grad(task.loss), (None, 0, None))
    return request.param, task, params, jax.jit(both)


def _batch(garbage=0, slots=T):
    tokens = np.random.default_rng(0).integers(1, V, (4, slots)).astype(np.int32)
    real = np.arange(slots) < LENGTHS[:, None]
    batch = {"tokens": np.where(real, tokens, garbage), "length": LENGTHS}
    return jax.tree.map(jnp.asarray, batch)


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _loop(params, kind, tokens):
    """log p of every token, one at a time in float64."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    table, cell = p["table"]["embedding"], p["recurrent"]
    h, before, out = np.zeros(6), 0, []
    for token in tokens:
        from_x = table[before] @ cell["input_kernel"][0] + cell["bias"][0]
        from_h = h @ cell["recurrent_kernel"][0]
        r, u = _sigmoid(from_x[:6] + from_h[:6]), _sigmoid((from_x + from_h)[6:12])
        h = u * h + (1 - u) * np.tanh(from_x[12:] + r * from_h[12:])
        if kind == "untied":
            logits = h @ p["output"]["kernel"] + p["output"]["bias"]
        else:
            state = h @ p["projection"]["kernel"] if kind == "projected" else h
            logits = state @ table.T + p["output_bias"]
        out.append(logits[token] - np.log(np.exp(logits).sum()))
        before = token
    return np.array(out)


def test_log_probabilities_are_those_of_a_loop(made):
    kind, task, params, both = made
    # Biases of 0 would hide that they are forgotten.
    params = jax.tree.map(lambda x: x + 0.1, params)
    batch = _batch()
    log_probs = jax.jit(jax.vmap(task.predict, (None, 0)))(params, batch)
    said = language_model.token_log_probs(log_probs, batch["tokens"])
    losses, _ = both(params, batch, jax.random.key(0))
    for i, length in enumerate(LENGTHS):
        want = _loop(params, kind, np.asarray(batch["tokens"])[i, :length])
        np.testing.assert_allclose(said[i, :length], want, atol=1e-5)
        assert losses[i] == pytest.approx(-want.mean() if length else 0.0, abs=1e-5)


def test_what_comes_later_does_not_matter(made):
    _, task, params, _ = made
    first = np.array([3, 1, 4, 1, 5, 9, 2], np.int32)
    other = np.r_[first[:3], 10 - first[3:]].astype(np.int32)
    predict = jax.jit(task.predict)
    one, two = (
        predict(params, {"tokens": jnp.asarray(x), "length": jnp.int32(T)})
        for x in (first, other)
    )
    np.testing.assert_array_equal(one[:4], two[:4])
    assert not np.allclose(one[4:], two[4:])


def test_padding_does_not_matter(made):
    _, task, params, both = made
    clean = both(params, _batch(), jax.random.key(0))
    dirty = both(params, _batch(garbage=10_000), jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)
    for leaf in jax.tree.leaves(clean):
        assert np.isfinite(leaf).all() and not leaf[0].any(), "the empty text"
    predict = jax.jit(jax.vmap(task.predict, (None, 0)))
    metrics = [
        {k: np.asarray(jax.vmap(fn)(predict(params, b), b)) for k, fn in found.items()}
        for b in (_batch(), _batch(garbage=10_000))
        for found in [task.metrics]
    ]
    jax.tree.map(np.testing.assert_array_equal, *metrics)
    assert metrics[0]["tokens"].tolist() == LENGTHS.tolist()
    assert np.all(metrics[0]["accuracy"] <= 1)


def test_predict_is_head_of_embed(made):
    _, task, params, _ = made
    example = {"tokens": jnp.array([3, 2, 0]), "length": jnp.int32(2)}
    rows = task.embed(params, example)
    np.testing.assert_array_equal(rows, params["table"]["embedding"][example["tokens"]])
    again = task.head(params, rows, example)
    np.testing.assert_array_equal(again, task.predict(params, example))
    np.testing.assert_allclose(np.exp(again).sum(-1), 1.0, rtol=1e-5)


def test_figures_count_tokens_and_not_texts():
    log_probs = np.log(np.full((2, 3, 4), 0.25, np.float32))
    log_probs[1] = np.log([0.7, 0.1, 0.1, 0.1])
    batch = {"tokens": jnp.zeros((2, 3), jnp.int32), "length": jnp.array([3, 1])}
    task = language_model.task(4, width=2, hidden=2)
    log_probs = jnp.asarray(log_probs)
    found = {k: jax.vmap(fn)(log_probs, batch).mean() for k, fn in task.metrics.items()}
    got = language_model.over_tokens(found)
    nats = (3 * np.log(4) - np.log(0.7)) / 4
    assert got.perplexity == pytest.approx(np.exp(nats), rel=1e-5)
    assert got.bits == pytest.approx(nats / np.log(2), rel=1e-5)
    assert got.accuracy == pytest.approx(1.0)  # ties go to the first, token 0
    assert found["loss"] == pytest.approx((np.log(4) - np.log(0.7)) / 2, rel=1e-5)
    huge = language_model.over_tokens({"nats": 1e4, "hits": 0.0, "tokens": 1.0})
    assert huge.perplexity == np.inf


def test_dropout_draws_by_the_key_in_training_only():
    task = language_model.task(V, width=5, hidden=6, dropout=0.5)
    params = task.init(jax.random.key(0))
    example = {"tokens": jnp.array([3, 2, 5]), "length": jnp.int32(3)}
    loss = jax.jit(task.loss)
    one, two, same = (loss(params, example, jax.random.key(k)) for k in (0, 1, 0))
    assert one == same and one != two
    plain = task.metrics["loss"](task.predict(params, example), example)
    assert plain not in (one, two)


def test_wrong_settings_and_no_tokens():
    with pytest.raises(ValueError, match="model.vocabulary_size=1 must be >= 2"):
        language_model.task(1)
    with pytest.raises(ValueError, match=r"model.dropout=1.0 must be at least 0"):
        language_model.task(4, dropout=1.0)
    with pytest.raises(ValueError, match="tokens=0.0 must be a finite number > 0"):
        language_model.over_tokens({"nats": 0.0, "hits": 0.0, "tokens": 0.0})
