"""Greedy writing against a loop, order in time, copies, the loss against its parts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trustml.models import seq2seq

T, U, V = 5, 6, 12
# Programs here run once: compiling them well costs more than it gives.
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
jit = functools.partial(jax.jit, compiler_options=FAST)
MODEL = seq2seq.task(V, width=6, hidden=5)


@pytest.fixture(scope="module")
def params():
    return jit(MODEL.init)(jax.random.key(0))


def _example(target=(3, 4, 5), length=4):
    padded = [*target, *([0] * (U - len(target)))]
    return {
        "tokens": jnp.array([5, 3, 7, 9, 0], jnp.int32),
        "length": jnp.int32(length),
        "target": jnp.array(padded, jnp.int32),
        "target_length": jnp.int32(len(target)),
    }


def test_predictions_are_distributions_of_what_came_before(params):
    predict = jit(MODEL.predict)
    found = predict(params, _example())
    np.testing.assert_allclose(jnp.exp(found).sum(axis=1), 1, atol=1e-5)
    other = predict(params, _example((3, 4, 9)))
    np.testing.assert_array_equal(found[:3], other[:3])
    assert not np.array_equal(found[3], other[3])
    tokens = _example()["tokens"].at[4].set(11)
    padded = predict(params, {**_example(), "tokens": tokens})
    np.testing.assert_array_equal(found, padded)


def test_loss_counts_the_target_and_its_end(params):
    found = jit(MODEL.predict)(params, _example())
    by_hand = -np.mean([found[n, word] for n, word in enumerate((3, 4, 5, 0))])
    assert seq2seq.loss(found, _example()) == pytest.approx(by_hand, rel=1e-5)
    whole = (1, 2, 3, 4, 5, 6)  # as long as there is room: no end
    by_hand = -np.mean([found[n, word] for n, word in enumerate(whole)])
    assert seq2seq.loss(found, _example(whole)) == pytest.approx(by_hand, rel=1e-5)
    right = [int(found[n].argmax() == word) for n, word in enumerate((3, 4, 5, 0))]
    assert seq2seq.token_accuracy(found, _example()) == np.mean(right)


def test_greedy_writes_as_a_loop_and_never_sees_the_target(params):
    predict = jit(MODEL.predict)
    written = []
    for n in range(U):
        seen = _example(tuple(written))
        word = int(predict(params, seen)[n].argmax())
        if word == seq2seq.END:
            break
        written.append(word)
    write = jit(seq2seq.greedy(MODEL.predict))
    found = write(params, _example())
    assert found.tolist() == written + [0] * (U - len(written))
    np.testing.assert_array_equal(found, write(params, _example((9, 9, 9, 9, 9, 9))))


def test_greedy_stops_at_the_first_end():
    said = jnp.eye(V)[jnp.array([4, 2, 0, 7, 7, 7])]
    found = seq2seq.greedy(lambda params, example: said)(None, _example())
    assert found.tolist() == [4, 2, 0, 0, 0, 0]


def test_a_word_that_was_given_can_be_copied(params):
    shut = jax.tree.map(lambda x: x, params)
    shut["gate"] = {"kernel": jnp.zeros((6, 1)), "bias": jnp.full(1, -30.0)}
    found = jnp.exp(jit(MODEL.predict)(shut, _example()))
    given = jnp.zeros(V).at[jnp.array([5, 3, 7, 9])].set(1.0)
    np.testing.assert_allclose((found * given[None]).sum(axis=1), 1, atol=1e-5)
