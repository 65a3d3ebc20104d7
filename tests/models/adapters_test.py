"""Adapters: the published model at the start, a merged kernel after, frozen weights."""

import fnmatch
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch import hlo_cost
from trustml.models import adapters, bert
from trustml.privacy import clipping
from trustml.privacy import trainable as trainable_lib

GOLDEN = pathlib.Path(__file__).resolve().parent / "golden" / "bert"
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
jit = functools.partial(jax.jit, compiler_options=FAST)
RANK, ALPHA, CLASSES = 4, 6.0, 3
NAMES = ("lora_query", "lora_value")
B, T = 5, 7
LORA = adapters.TRAINABLE["lora"]


def model(**options):
    return bert.classifier(GOLDEN, CLASSES, **options)


@functools.cache
def lora():
    return model(lora_rank=RANK, lora_alpha=ALPHA)


def batch(rows=B, tokens=T):
    rng = np.random.default_rng(0)
    shape = (rows, tokens)
    return {
        "tokens": jnp.asarray(rng.integers(1, 99, shape), jnp.int32),
        "length": jnp.asarray(rng.integers(2, tokens + 1, rows), jnp.int32),
        "label": jnp.asarray(rng.integers(0, CLASSES, rows), jnp.int32),
    }


def moved(params):
    """`params` with B away from zero, as after some training."""
    keys = iter(jax.random.split(jax.random.key(9), 100))

    def change(path, x):
        name = trainable_lib.path_of(path)
        if name.endswith("/b") and "lora" in name:
            return 0.3 * jax.random.normal(next(keys), x.shape)
        return x

    return jax.tree_util.tree_map_with_path(change, params)


def test_it_starts_as_the_published_model():
    params = lora().init(jax.random.key(0))
    assert params["layer_1"]["lora_value"]["a"].shape == (32, RANK)
    assert params["layer_1"]["lora_value"]["b"].shape == (RANK, 32)
    a = [
        params[f"layer_{i}"][f"lora_{n}"]["a"]
        for i in (0, 1)
        for n in "query value".split()
    ]
    assert len({float(x[0, 0]) for x in a}) == 4, "each has a key of its own"
    # 512 draws of stddev 32**-0.5; five standard errors.
    spread = np.std(np.stack(a)) * 32**0.5
    assert abs(spread - 1) < 5 / np.sqrt(2 * 512)
    assert all(
        np.all(params["layer_0"][n]["b"] == 0) for n in ("lora_query", "lora_value")
    )
    plain = {k: dict(v) if isinstance(v, dict) else v for k, v in params.items()}
    for i in (0, 1):
        for name in NAMES:
            del plain[f"layer_{i}"][name]
    example = jax.tree.map(lambda x: x[0], batch())
    want = jit(model().predict)(plain, example)
    np.testing.assert_allclose(jit(lora().predict)(params, example), want, atol=1e-6)


def test_adapters_equal_a_kernel_they_are_merged_into():
    params = moved(lora().init(jax.random.key(0)))
    merged = {k: dict(v) if isinstance(v, dict) else v for k, v in params.items()}
    for i in (0, 1):
        for name in ("query", "value"):
            pair = merged[f"layer_{i}"].pop(f"lora_{name}")
            dense = dict(merged[f"layer_{i}"][name])
            dense["kernel"] = dense["kernel"] + ALPHA / RANK * pair["a"] @ pair["b"]
            merged[f"layer_{i}"][name] = dense
    rows = batch()
    want = jit(jax.vmap(model().predict, (None, 0)))(merged, rows)
    got = jit(jax.vmap(lora().predict, (None, 0)))(params, rows)
    np.testing.assert_allclose(got, want, atol=1e-5)
    untouched = jit(jax.vmap(lora().predict, (None, 0)))(
        lora().init(jax.random.key(0)), rows
    )
    assert np.max(np.abs(got - untouched)) > 0.01, "the adapters do something"


def selected(kind, params):
    globs = adapters.TRAINABLE[kind]
    names = trainable_lib.paths(params)
    return {n for n in names if any(fnmatch.fnmatch(n, g) for g in globs)}


def test_globs_select_the_head_and_the_adapters_or_every_bias():
    params = lora().init(jax.random.key(0))
    chosen = selected("lora", params)
    assert len(chosen) == 2 + 2 * 2 * 2
    assert {"classifier/kernel", "classifier/bias", "layer_0/lora_query/a"} < chosen
    params = model().init(jax.random.key(0))
    chosen = selected("bias", params)
    # Six dense layers and two norms a layer, the norm of the embeddings, the head.
    assert len(chosen) == 2 * 8 + 1 + 2
    assert all(n.endswith("bias") or n == "classifier/kernel" for n in chosen)


@pytest.mark.parametrize("kind", ["lora", "bias"])
def test_clipped_sum_equals_the_oracle_and_nothing_is_materialized(kind):
    task = lora() if kind == "lora" else model()
    params, rows = moved(task.init(jax.random.key(0))), batch()
    mask, key = jnp.array([True, True, False, True, True]), jax.random.key(3)
    options = {"l2_clip_norm": 0.5, "trainable": adapters.TRAINABLE[kind]}
    ours = clipping.clipped_grad(task.loss, method="book_keeping", **options)
    sums, info = jit(ours.fn)(params, rows, mask, key)
    # The oracle: every parameter's gradient, of which the selected leaves are taken.
    everything = jit(jax.vmap(jax.grad(task.loss), (None, 0, None)))(params, rows, key)
    everything = jax.tree.map(np.asarray, everything)
    chosen = [
        g
        for n, g in zip(
            trainable_lib.paths(params), jax.tree.leaves(everything), strict=True
        )
        if n in selected(kind, params)
    ]
    norms = np.sqrt(sum(np.sum(np.reshape(g, (B, -1)) ** 2, axis=1) for g in chosen))
    factors = np.minimum(1, 0.5 / norms) * np.asarray(mask)
    assert np.min(factors[np.asarray(mask)]) < 1
    np.testing.assert_allclose(
        info.norms_per_example, norms * np.asarray(mask), rtol=1e-4
    )
    leaves = jax.tree.leaves(sums)
    assert len(leaves) == len(chosen)
    wants = [np.tensordot(factors, g, 1) for g in chosen]
    off = sum(np.sum((got - x) ** 2) for got, x in zip(leaves, wants, strict=True))
    assert np.sqrt(off) <= 1e-5 * np.sqrt(sum(np.sum(x**2) for x in wants))
    example = jax.tree.map(lambda x: x[0], rows)
    assert ours.explain(params, example).materialized == 0


def step_cost(task, trainable, private, rows):
    """The compiler's figures for one step over the trainable leaves."""
    clipper = clipping.clipped_grad(task.loss, l2_clip_norm=1.0, trainable=trainable)
    mask, size = jnp.ones(rows["label"].shape[0], bool), rows["label"].shape[0]

    def plain(params, rows, key):
        train, frozen = trainable_lib.partition(params, trainable)
        keys = jax.random.split(key, size)

        def total(train):
            whole = trainable_lib.combine(train, frozen)
            return jnp.sum(jax.vmap(task.loss, (None, 0, 0))(whole, rows, keys))

        return jax.grad(total)(train)

    def clipped(params, rows, key):
        return clipper(params, rows, mask, key)[0]

    shapes = jax.eval_shape(task.init, jax.random.key(0))
    step = jit(clipped if private else plain)
    return hlo_cost.of(step.lower(shapes, rows, jax.random.key(0)).compile())


def test_a_private_lora_step_costs_what_a_plain_one_does():
    """And less than training everything: no gradient of a frozen kernel is formed."""
    task, rows = lora(), batch(16, 16)
    plain = step_cost(task, LORA, False, rows)
    private = step_cost(task, LORA, True, rows)
    whole = step_cost(task, None, False, rows)
    assert private["flops"] <= 1.1 * plain["flops"]
    assert private["temp_bytes"] <= 1.1 * plain["temp_bytes"]
    assert private["product_flops"] < 0.75 * whole["product_flops"]


def test_wrong_ranks_are_refused():
    with pytest.raises(ValueError, match="model.lora_rank=-1 must be >= 0"):
        model(lora_rank=-1)
    with pytest.raises(ValueError, match="model.lora_alpha=0.0 must be"):
        model(lora_rank=2, lora_alpha=0.0)
