"""The most probable span against all spans; what the loss counts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trustml.models import reader

T, U = 7, 3
# Programs here run once: compiling them well costs more than it gives.
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
jit = functools.partial(jax.jit, compiler_options=FAST)


def _example(start=1, end=2, length=5):
    rng = np.random.default_rng(0)
    return {
        "tokens": jnp.asarray(rng.integers(1, 20, T), jnp.int32),
        "length": jnp.int32(length),
        "question": jnp.asarray(rng.integers(1, 20, U), jnp.int32),
        "question_length": jnp.int32(2),
        "start": jnp.int32(start),
        "end": jnp.int32(end),
    }


def test_best_equals_a_search_of_all_spans():
    rng = np.random.default_rng(1)
    best = jit(reader.best, static_argnums=1)
    for _ in range(50):
        start, end = rng.normal(size=(2, T)).astype(np.float32)
        both = {
            (a, b): start[a] + end[b] for a in range(T) for b in range(a, min(T, a + 3))
        }
        found = best(reader.Span(jnp.asarray(start), jnp.asarray(end)), 3)
        assert tuple(map(int, found)) == max(both, key=lambda span: both[span])


def test_loss_is_that_of_both_ends_and_0_where_the_answer_is_cut_off():
    start = jax.nn.log_softmax(jnp.arange(7.0))
    end = jax.nn.log_softmax(-jnp.arange(7.0))
    span = reader.Span(start, end)
    assert reader.loss(span, _example(1, 2)) == pytest.approx(
        -float(start[1]) - float(end[2])
    )
    assert reader.loss(span, _example(-1, -1)) == 0
    assert reader.exact(span, _example(-1, -1)) == 0


def test_padding_is_never_read_and_never_answered():
    model = reader.task(20, width=6, hidden=4)
    params = jit(model.init)(jax.random.key(0))
    predict = jit(model.predict)
    one = _example(length=4)
    found = predict(params, one)
    assert float(jnp.exp(found.start[4:]).sum()) == 0
    tokens = one["tokens"].at[4:].set(19)
    other = {**one, "tokens": tokens, "question": one["question"].at[2].set(7)}
    for a, b in zip(found, predict(params, other), strict=True):
        np.testing.assert_array_equal(a, b)
    empty = jax.tree.map(jnp.zeros_like, one)
    assert all(np.isfinite(x).all() for x in predict(params, empty))


@pytest.mark.slow
def test_it_learns_to_answer_with_the_word_after_the_one_asked_for():
    model = reader.task(30, width=16, hidden=16)
    rng = np.random.default_rng(0)
    tokens = np.array([rng.permutation(29)[:T] + 1 for _ in range(64)])
    place = rng.integers(0, T - 1, 64)
    asked = tokens[np.arange(64), place]
    batch = {
        "tokens": jnp.asarray(tokens, jnp.int32),
        "length": jnp.full(64, T, jnp.int32),
        "question": jnp.asarray(asked[:, None], jnp.int32),
        "question_length": jnp.ones(64, jnp.int32),
        "start": jnp.asarray(place + 1, jnp.int32),
        "end": jnp.asarray(place + 1, jnp.int32),
    }
    params = jit(model.init)(jax.random.key(0))

    def mean(params):
        found = jax.vmap(model.predict, (None, 0))(params, batch)
        return jax.vmap(reader.loss)(found, batch).mean()

    @jit
    def descend(params):
        def step(_, params):
            grads = jax.grad(mean)(params)
            return jax.tree.map(lambda p, g: p - 0.05 * jnp.sign(g), params, grads)

        return jax.lax.fori_loop(0, 60, lambda n, p: step(n, p), params)

    # Without reading the question a place is right with probability 1/6: 2 log 6.
    assert float(mean(descend(params))) < np.log(6)
