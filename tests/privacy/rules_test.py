"""Clipping rules against a loop in NumPy, and against adversaries."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trustml.privacy import accounting, clipping, rules

ADD = accounting.Relation.ADD_OR_REMOVE_ONE
KEY = jax.random.key(0)
NAMES = {
    "flat": "flat",
    "per_layer": "per_layer",
    "by glob": rules.per_layer({"one/*": 3.0, "*": 1.0}),
    "per_layer automatic": rules.per_layer(rule=rules.automatic()),
    "automatic": "automatic",
    "psac": rules.psac(0.3),
    "quantile": "quantile",
    "custom": rules.custom(lambda n, c: c / jnp.maximum(2 * n, c), "half"),
}
METHODS = ("book_keeping", "ghost", "vmap")


def loss(params, example, key):
    del key
    h = jnp.tanh(example["x"] @ params["one"]["kernel"] + params["one"]["bias"])
    out = h @ params["two"]["kernel"] + params["two"]["bias"]
    return example["scale"] * jnp.sum((out - example["y"]) ** 2)


def make(batch_size=7, seed=0):
    rng = np.random.default_rng(seed)

    def array(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    params = {
        "one": {"kernel": array(5, 4), "bias": array(4)},
        "two": {"kernel": array(4, 3), "bias": array(3)},
    }
    batch = {
        "x": array(batch_size, 5),
        "y": array(batch_size, 3),
        "scale": jnp.asarray(10 ** rng.uniform(-3, 3, batch_size), jnp.float32),
    }
    return params, batch


def factor(name, norm, clip_norm):
    """The rules once more, from their papers' formulas, in float64."""
    if name in ("automatic", "per_layer automatic"):
        return clip_norm / (norm + 0.01)
    if name == "psac":
        return clip_norm / (norm + 0.3 / (norm + 0.3))
    if name == "custom":
        return min(1.0, clip_norm / (2 * norm))
    return min(1.0, clip_norm / norm)


def thresholds(name, clip_norm):
    if name in ("per_layer", "per_layer automatic"):
        return {"one": clip_norm / math.sqrt(2), "two": clip_norm / math.sqrt(2)}
    if name == "by glob":
        return {
            "one": clip_norm * 3 / math.sqrt(10),
            "two": clip_norm / math.sqrt(10),
        }
    return None


def by_loop(name, params, batch, mask, clip_norm):
    total = jax.tree.map(lambda p: np.zeros(p.shape), params)
    for i, real in enumerate(mask):
        if not real:
            continue
        one = jax.tree.map(lambda x, i=i: x[i], batch)
        grad = jax.tree.map(np.float64, jax.grad(loss)(params, one, KEY))

        def norm(tree):
            return math.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(tree)))

        limits = thresholds(name, clip_norm)
        for layer in grad:
            group, limit = grad, clip_norm
            if limits is not None:
                group, limit = grad[layer], limits[layer]
            c = factor(name, norm(group), limit)
            total[layer] = jax.tree.map(
                lambda t, g, c=c: t + c * g, total[layer], grad[layer]
            )
    return total


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("clip_norm", [0.1, 20.0])
def test_equals_a_loop_over_examples(name, method, clip_norm):
    if method == "ghost" and "layer" in name or (method, name) == ("ghost", "by glob"):
        pytest.skip("one factor for an example")
    params, batch = make()
    mask = jnp.arange(7) != 2
    clipper = clipping.clipped_grad(
        loss, l2_clip_norm=clip_norm, rule=NAMES[name], method=method
    )
    sums, _ = jax.jit(clipper)(params, batch, mask, KEY)
    wanted = by_loop(name, params, batch, mask, clip_norm)
    whole = math.sqrt(sum(np.sum(w**2) for w in jax.tree.leaves(wanted)))
    for got, want in zip(jax.tree.leaves(sums), jax.tree.leaves(wanted), strict=True):
        assert np.max(np.abs(got - want)) <= 1e-5 * whole


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NAMES)
def test_no_example_moves_the_sum_further_than_its_sensitivity(name, method):
    if method == "ghost" and "layer" in name or (method, name) == ("ghost", "by glob"):
        pytest.skip("one factor for an example")
    trials, batch_size = 2000, 5  # 10,000 examples come and go
    params, _ = make()
    rng = np.random.default_rng(1)
    shape = (trials, batch_size)
    huge = rng.choice([0.0, 1e-20, 1.0, 1e8, 1e30, np.inf, np.nan], size=shape)
    scale = np.where(rng.random(shape) < 0.5, 10 ** rng.uniform(-6, 6, shape), huge)
    batch = {
        "x": rng.normal(size=(*shape, 5)) * 10 ** rng.uniform(-3, 3, (*shape, 1)),
        "y": rng.normal(size=(*shape, 3)),
        "scale": scale,
    }
    batch = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), batch)
    clipper = clipping.clipped_grad(
        loss, l2_clip_norm=0.5, rule=NAMES[name], method=method
    )

    # Everyone, then everyone but one. One program for all: 1 - tanh^2 cancels, so two
    # programs round a saturated example's gradient differently.
    masks = jnp.concatenate([jnp.ones((1, batch_size)), 1 - jnp.eye(batch_size)]) > 0

    def moved(one):
        sums = jax.lax.map(lambda mask: clipper(params, one, mask, KEY)[0], masks)
        squares = jax.tree.map(
            lambda s: jnp.sum((s[1:] - s[:1]) ** 2, axis=tuple(range(1, s.ndim))), sums
        )
        return jnp.sqrt(sum(jax.tree.leaves(squares)))

    distance = np.asarray(jax.jit(lambda b: jax.lax.map(moved, b))(batch))
    assert np.all(np.isfinite(distance))
    # Sums of 5 parts of norm C in float32 are rounded at 1e-6 C.
    assert np.max(distance) <= clipper.sensitivity(ADD) * (1 + 1e-4)
    attained = {"automatic": 0.9, "per_layer automatic": 0.9, "custom": 0.49}
    assert np.max(distance) >= clipper.sensitivity(ADD) * attained.get(name, 0.99)


@pytest.mark.parametrize("method", METHODS)
def test_rows_that_are_not_finite_add_nothing(method):
    # Masked rows become zeros, whose loss here is 0/0.
    def mean_loss(params, example, key):
        del key
        return jnp.sum((example["x"] * params) ** 2) / example["length"]

    params = jnp.ones(3)
    batch = {
        "x": jnp.asarray([[1.0, 2, 3], [jnp.nan, 0, 0], [0, 0, 0], [1, 1, 1]]),
        "length": jnp.asarray([2.0, 1.0, 0.0, 1.0]),
    }
    clipper = clipping.clipped_grad(mean_loss, l2_clip_norm=1.0, method=method)
    sums, info = clipper(params, batch, jnp.asarray([True] * 3 + [False]), KEY)
    alone, _ = clipper(params, batch, jnp.asarray([True] + [False] * 3), KEY)
    np.testing.assert_allclose(sums, alone, rtol=1e-6)
    assert np.linalg.norm(alone) == pytest.approx(1.0, rel=1e-5)
    assert info.nonfinite_per_example.tolist() == [False, True, True, False]
    nothing, _ = clipper(params, batch, jnp.zeros(4, bool), KEY)
    assert not np.any(nothing)


def test_ghost_draws_the_same_randomness_twice():
    def noisy_loss(params, example, key):
        keep = 2.0 * jax.random.bernoulli(key, 0.5, (5,)).astype(jnp.float32)
        return jnp.sum(jnp.tanh(params * example * keep))

    args = (
        jnp.ones(5),
        jnp.asarray(np.random.default_rng(0).normal(size=(6, 5)), jnp.float32),
        jnp.ones(6, bool),
        KEY,
        jnp.arange(6) + 40,
    )
    both = [
        clipping.clipped_grad(noisy_loss, l2_clip_norm=0.3, method=method)(*args)[0]
        for method in ("ghost", "vmap")
    ]
    np.testing.assert_allclose(both[0], both[1], rtol=1e-5)


def test_ghost_refuses_what_it_cannot_do():
    params, batch = make()
    clipper = clipping.clipped_grad(
        loss, l2_clip_norm=1.0, rule="per_layer", method="ghost"
    )
    with pytest.raises(ValueError, match="method='ghost' has one factor .* has 2"):
        clipper(params, batch, jnp.ones(7, bool), KEY)

    def low(params, example, key):
        cast = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (params, example))
        return loss(*cast, key).astype(jnp.float32)

    clipper = clipping.clipped_grad(low, l2_clip_norm=1.0, method="ghost")
    with pytest.raises(ValueError, match="must be float32 .* use method='book_keep"):
        clipper(params, batch, jnp.ones(7, bool), KEY)


def test_groups_cover_every_leaf_and_share_the_norm():
    params, _ = make()
    clipper = clipping.clipped_grad(
        loss, l2_clip_norm=2.0, rule=rules.per_layer({"*/bias": 1.0, "one/*": 2.0})
    )
    with pytest.raises(ValueError, match="no glob to the parameter 'two/kernel'"):
        clipper.groups(params)
    groups = clipping.clipped_grad(loss, l2_clip_norm=2.0, rule="per_layer").groups(
        params
    )
    assert groups.names == ("one", "two")
    assert groups.index == (0, 0, 1, 1)
    assert sum(s**2 for s in groups.shares) == pytest.approx(1)


@pytest.mark.parametrize(
    "build, sentence",
    [
        (lambda: rules.rule("automatc"), "rule='automatc'.*did you mean 'automatic'"),
        (lambda: rules.automatic(0.0), "gamma=0.0 must be .*0.01 is usual"),
        (lambda: rules.per_layer({}), "thresholds={} is empty"),
        (lambda: rules.per_layer({"*": -1.0}), r"thresholds\['\*'\]=-1.0"),
        (lambda: rules.quantile(1.0), "target=1.0 .*0.5 is the median"),
        (lambda: rules.per_layer(rule=rules.quantile()), "quantile.*groups of its own"),
        (
            lambda: rules.custom(lambda n, c: jnp.ones_like(n), "none"),
            r"weight='none' breaks factor \* norm <= C at norm=",
        ),
        (
            lambda: rules.custom(lambda n, c: c / (n + c - 0.9), "shifted"),
            "weight='shifted'",
        ),
    ],
)
def test_wrong_rules_are_refused(build, sentence):
    with pytest.raises(ValueError, match=sentence):
        build()


def test_a_loss_of_two_arguments_gets_a_sentence():
    with pytest.raises(ValueError, match="take three arguments, the key also where"):
        clipping.clipped_grad(lambda params, example: 0.0, l2_clip_norm=1.0)
