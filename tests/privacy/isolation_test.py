"""Losses whose examples could see each other are refused; a sabotaged rule is found."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from trustml.privacy import clipping
from trustml.privacy.factored import norms

KEY = jax.random.key(0)
X = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6, 3)), jnp.float32)
W = jnp.asarray(np.random.default_rng(1).normal(size=(3, 5)), jnp.float32)


def clip(loss, params=W, batch=X, **options):
    clipper = clipping.clipped_grad(loss, l2_clip_norm=0.1, **options)
    return clipper(params, batch, jnp.ones(len(X), bool), KEY)


def quadratic(h):
    return jnp.sum(jnp.tanh(h) ** 2)


@pytest.mark.parametrize("method", ["book_keeping", "ghost", "vmap"])
@pytest.mark.parametrize("collective", ["psum", "pmean", "pmax", "all_gather"])
def test_collectives_over_the_batch_are_refused_and_named(collective, method):
    def loss(params, x, key):
        del key
        h = x @ params
        seen = getattr(jax.lax, collective)(jax.lax.stop_gradient(h), "batch")
        return quadratic(h) + quadratic(seen)

    # Where the user's own vmap names the axis, and where nobody does.
    mapped = jax.vmap(
        lambda x: clip(loss, batch=x, method=method)[0],
        axis_name="batch",
        in_axes=0,
    )
    name = "psum" if collective == "pmean" else collective
    with pytest.raises(ValueError, match=f"collective `{name}.*GroupNorm or LayerNorm"):
        mapped(X[None])
    with pytest.raises(ValueError, match="axis name.*batch.*GroupNorm or LayerNorm"):
        clip(loss, method=method)


def test_batch_normalisation_over_the_batch_is_refused():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            norm = nn.BatchNorm(use_running_average=False, axis_name="batch")
            return norm(nn.Dense(5)(x))

    network = Network()
    variables = jax.vmap(network.init, (None, 0), axis_name="batch")(KEY, X)
    first = jax.tree.map(lambda x: x[0], variables)

    def loss(params, x, key):
        del key
        out, _ = network.apply(
            {"params": params, "batch_stats": first["batch_stats"]},
            x,
            mutable=["batch_stats"],
        )
        return quadratic(out)

    with pytest.raises(ValueError, match="axis name.*batch.*GroupNorm or LayerNorm"):
        clip(loss, first["params"])


def test_a_rule_for_vmap_that_sees_the_whole_batch_is_refused():
    @jax.custom_batching.custom_vmap
    def centred(h):
        return h

    @centred.def_vmap
    def _(axis_size, in_batched, h):
        del axis_size, in_batched
        return h - jnp.mean(h, axis=0, keepdims=True), True

    def loss(params, x, key):
        del key
        return quadratic(x @ params) + jnp.sum(jax.lax.stop_gradient(centred(x)))

    with pytest.raises(ValueError, match="`custom_vmap` rule, which sees the whole"):
        clip(loss)


@pytest.mark.parametrize("vmap_method", ["expand_dims", "broadcast_all"])
def test_callbacks_that_get_the_whole_batch_are_refused(vmap_method):
    def made(method):
        def loss(params, x, key):
            del key
            like = jax.ShapeDtypeStruct(x.shape, x.dtype)
            seen = jax.pure_callback(lambda x: x, like, x, vmap_method=method)
            return quadratic(jax.lax.stop_gradient(seen) @ params)

        return loss

    with pytest.raises(ValueError, match=f"vmap_method='{vmap_method}'.*sequential"):
        clip(made(vmap_method))
    clip(made("sequential"))


def test_regions_are_searched():
    def loss(params, x, key):
        del key

        @jax.checkpoint
        def layer(h):
            return jax.lax.psum(jnp.tanh(h), "batch")

        return quadratic(
            jax.lax.scan(lambda h, _: (layer(h), ()), x @ params, None, 2)[0]
        )

    mapped = jax.vmap(lambda x: clip(loss, batch=x)[0], axis_name="batch")
    with pytest.raises(ValueError, match="collective `psum"):
        mapped(X[None])


def plain(params, x, key):
    del key
    return quadratic(x["h"] @ params["w"] + params["table"][x["ids"]])


# Large enough for Gram norms.
PARAMS = {"w": jnp.full((40, 50), 0.01), "table": jnp.full((500, 50), 0.1)}
BATCH = {
    "h": jnp.asarray(np.random.default_rng(2).normal(size=(4, 6, 40)), jnp.float32),
    "ids": jnp.arange(24, dtype=jnp.int32).reshape(4, 6) % 7,
}


@pytest.mark.parametrize("name", ["_scatter_gram", "_summed"])
def test_a_sabotaged_norm_is_found_before_training(name, monkeypatch):
    clipper = clipping.clipped_grad(plain, l2_clip_norm=0.1)
    clipper.check(PARAMS, BATCH, KEY)  # no false alarm
    right = getattr(norms, name)

    def wrong(*args):
        norm2 = right(*args)
        return norm2._replace(value=norm2.value * 0.7)

    monkeypatch.setattr(norms, name, wrong)
    clipper = clipping.clipped_grad(plain, l2_clip_norm=0.1)  # not yet compiled
    with pytest.raises(ValueError, match="off by .* use method='vmap' and report"):
        clipper.check(PARAMS, BATCH, KEY)


def test_a_sabotaged_sum_is_found_and_its_parameter_named(monkeypatch):
    right = norms.clipped_sum

    def wrong(leaf, factors, shape):
        total = right(leaf, factors, shape)
        return total * 1.01 if shape == (40, 50) else total

    monkeypatch.setattr(norms, "clipped_sum", wrong)
    clipper = clipping.clipped_grad(plain, l2_clip_norm=0.1)
    with pytest.raises(ValueError, match="parameter 'w': the clipped sum"):
        clipper.check(PARAMS, BATCH, KEY)


def test_examples_that_leak_into_each_other_are_found():
    clipper = clipping.clipped_grad(plain, l2_clip_norm=0.1)
    right = clipper.fn

    def leaking(params, batch, *rest):
        mixed = batch | {
            "h": batch["h"] + 1e-2 * jnp.mean(batch["h"], 0, keepdims=True)
        }
        return right(params, mixed, *rest)

    object.__setattr__(clipper, "fn", leaking)
    with pytest.raises(ValueError, match="off by|not isolated"):
        clipper.check(PARAMS, BATCH, KEY)


def test_rows_that_cancel_raise_no_alarm():
    """Equal features with opposite labels: the clipped sum is nothing but rounding."""

    def loss(params, example, key):
        del key
        logit = jnp.dot(params["w"], example["x"]) + params["b"]
        return jax.nn.softplus(logit) - example["y"] * logit

    params = {"w": jnp.zeros(3), "b": jnp.zeros(())}
    x = jnp.tile(jnp.asarray([0.3, 1.7, -0.2]), (3, 1))
    batch = {"x": x, "y": jnp.asarray([0.0, 1.0, 1.0])}
    clipping.clipped_grad(loss, l2_clip_norm=0.1).check(params, batch)
