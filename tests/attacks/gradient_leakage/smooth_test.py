"""Models that gradient matching can search, and operations that blind it."""

import functools

import jax
import jax.numpy as jnp
import pytest

from trustml.attacks.gradient_leakage import smooth
from trustml.models import bag, gru

VOCAB, T, D = 24, 5, 16
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
jit = functools.partial(jax.jit, compiler_options=FAST)


def _bag(activation="tanh", bigrams=0):
    sizes = {"width": D, "hidden": (12,), "bigrams": bigrams}
    return bag.task(VOCAB, 4, activation=activation, **sizes)


def _gru():
    return gru.task(VOCAB, 4, 2, width=D, hidden=12, bidirectional=False)


SMOOTH = {"bag": _bag, "relu": lambda: _bag("relu"), "gru": _gru}


def _table(params):
    return params["table"]["embedding"]


def _params(task):
    params = jit(task.init)(jax.random.key(3))
    return params | {"table": {"embedding": 100.0 * _table(params)}}


def _template():
    return {"tokens": jnp.zeros((1, T), jnp.int32), "length": jnp.array([T])}


def _with_head(change):
    """The bag with embeddings that pass through `change` first."""
    task = _bag()

    def head(params, embeddings, example):
        return task.head(params, change(embeddings), example)

    return task._replace(head=head)


def _looped(x):
    return jax.lax.while_loop(lambda x: jnp.sum(x) > 1e9, lambda x: x / 2, x)


BLIND = {
    "stop_gradient": lambda x: x + 2.0 * jax.lax.stop_gradient(jnp.tanh(x)),
    "round": lambda x: jnp.round(8.0 * x),
    "while": _looped,
}


@pytest.mark.parametrize("name", BLIND)
def test_an_operation_that_stops_derivatives_is_named(name):
    task = _with_head(BLIND[name])
    params, template = _params(task), _template()
    with pytest.raises(ValueError, match=rf"task.head .*{name}.* in it stop"):
        smooth.check(task, params, template, table=_table, key=jax.random.key(0))


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_models_pass(name):
    task = SMOOTH[name]()
    params, template = _params(task), _template()
    smooth.check(task, params, template, table=_table, key=jax.random.key(0))


def test_an_embedding_that_reads_more_than_the_table_is_refused():
    task = _bag(bigrams=8)
    with pytest.raises(ValueError, match="is not all that task.embed reads"):
        smooth.check(
            task,
            task.init(jax.random.key(0)),
            _template(),
            table=_table,
            key=jax.random.key(1),
        )
