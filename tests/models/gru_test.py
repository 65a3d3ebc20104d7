"""The recurrence against a plain loop, the loss against its parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trustml.models import gru

D, H, T = 5, 4, 6


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _loop(x, w_in, w_rec, bias):
    """One direction over the tokens of `x`, in the order given."""
    h = np.zeros(H)
    states = []
    for token in x:
        from_x = token @ w_in + bias
        from_h = h @ w_rec
        r = _sigmoid(from_x[:H] + from_h[:H])
        u = _sigmoid(from_x[H : 2 * H] + from_h[H : 2 * H])
        n = np.tanh(from_x[2 * H :] + r * from_h[2 * H :])
        h = u * h + (1 - u) * n
        states.append(h)
    return np.array(states).reshape(len(x), H), h


@pytest.mark.parametrize("directions", [1, 2], ids=["one", "two"])
def test_states_equal_a_loop_without_padding(directions):
    layer = gru.Gru(H, directions)
    rng = np.random.default_rng(0)
    shapes = {
        "input_kernel": (directions, D, 3 * H),
        "recurrent_kernel": (directions, H, 3 * H),
        "bias": (directions, 3 * H),
    }
    p = {k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}
    x = rng.normal(size=(T, D)).astype(np.float32)
    apply = jax.jit(lambda p, x, mask: layer.apply({"params": p}, x, mask))
    for length in (0, 1, 4, T):
        states, final = apply(p, x, jnp.arange(T) < length)
        all_states, all_finals = [], []
        for n in range(directions):
            flip = slice(None, None, -1 if n else 1)
            parts = (p[name][n] for name in shapes)
            one, last = _loop(x[:length][flip], *parts)
            all_states.append(one[flip])
            all_finals.append(last)
        expected = np.concatenate(all_states, axis=1)
        np.testing.assert_allclose(states[:length], expected, atol=1e-5)
        np.testing.assert_allclose(final, np.concatenate(all_finals), atol=1e-5)


def test_loss_is_that_of_intent_and_weighted_mean_of_tags():
    task = gru.task(20, 3, 4, width=6, hidden=4, slot_weight=0.7)
    params = jax.jit(task.init)(jax.random.key(0))
    example = {
        "tokens": jnp.array([3, 7, 9, 0, 0], jnp.int32),
        "length": jnp.int32(3),
        "label": jnp.int32(2),
        "slots": jnp.array([1, 3, 2, 0, 0], jnp.int32),
    }
    joint = task.predict(params, example)
    tags = np.asarray(joint.slots)[np.arange(3), [1, 3, 2]]
    expected = -joint.label[2] - 0.7 * tags.mean()
    loss = task.loss(params, example, jax.random.key(1))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_spelled_words_are_the_means_of_their_ngrams():
    spelling = np.array([[0, 0, 0], [1, 2, 0], [3, 0, 0], [0, 0, 0]], np.int32)
    task = gru.task(4, 3, 4, width=6, hidden=4, spelling=spelling)
    params = jax.jit(task.init)(jax.random.key(0))
    table = np.asarray(params["table"]["embedding"])
    assert table.shape == (4, 6), "rows are n-grams, and the one for none"
    example = {"tokens": jnp.array([1, 2, 3, 1]), "length": jnp.array(3)}
    found = task.embed(params, example)
    expected = [(table[1] + table[2]) / 2, table[3], np.zeros(6), np.zeros(6)]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    whole = task.predict(params, example)
    parted = task.head(params, found, example)
    np.testing.assert_allclose(whole.slots, parted.slots, atol=1e-6)
    example |= {"label": jnp.array(1), "slots": jnp.array([0, 1, 2, 0])}
    grads = jax.grad(task.loss)(params, example, jax.random.key(1))
    moved = np.abs(grads["table"]["embedding"]).sum(axis=1) > 0
    assert moved.tolist() == [False, True, True, True]


def test_a_spelling_of_another_vocabulary_is_refused():
    with pytest.raises(ValueError, match=r"spelling=\[3, 2\] must be \[4, C\]"):
        gru.task(4, 3, 4, spelling=np.zeros((3, 2), np.int32))


def test_without_intents_it_tags_alone():
    task = gru.task(20, 0, 4, width=6, hidden=4)
    params = jax.jit(task.init)(jax.random.key(0))
    assert "intent" not in params and set(task.metrics) == {
        "slot_accuracy",
        "slot_loss",
    }
    example = {
        "tokens": jnp.array([3, 4, 5, 0], jnp.int32),
        "length": jnp.array(3, jnp.int32),
        "slots": jnp.array([1, 0, 2, 0], jnp.int32),
    }
    found = task.predict(params, example)
    by_hand = -np.mean([found[n, tag] for n, tag in enumerate((1, 0, 2))])
    loss = task.loss(params, example, jax.random.key(1))
    np.testing.assert_allclose(loss, by_hand, rtol=1e-5)
    with pytest.raises(ValueError, match="num_intents"):
        gru.task(20, 1, 4)
