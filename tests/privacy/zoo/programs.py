"""Regions, control flow, shared parameters, and the shape of the loss."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.privacy.zoo.cases import (
    mean0,
    xent,
)
from tests.privacy.zoo.products import (
    dense,
)

# ---- regions and control flow -------------------------------------------------------


def checkpointed(policy=None):
    """An MLP over positions whose hidden part is rematerialised."""

    def loss(p, e, key):
        del key

        def hidden(p, x):
            return jnp.tanh(jnp.tanh(x @ p["w1"] + p["b1"][None]) @ p["w2"])

        h = jax.checkpoint(hidden, policy=policy)(p, e["x"])
        return xent(mean0(h) @ p["out"], e["y"])

    return loss


def jitted_parts(p, e, key):
    del key
    inner = jax.jit(lambda w, x: jnp.tanh(x @ w))
    h = jax.jit(lambda p, x: inner(p["w2"], inner(p["w1"], x)))(p, e["x"])
    return xent(mean0(h) @ p["out"], e["y"])


@jax.custom_vjp
def clamp_cotangent(x):
    """Identity whose cotangent is clamped to [-0.1, 0.1]."""
    return x


clamp_cotangent.defvjp(lambda x: (x, None), lambda _, g: (jnp.clip(g, -0.1, 0.1),))


@jax.custom_vjp
def matmul_custom(x, w):
    """A product with a backward rule of its own (not the true derivative of w)."""
    return x @ w


matmul_custom.defvjp(
    lambda x, w: (x @ w, (x, w)),
    lambda xw, g: (g @ xw[1].T, 0.5 * (xw[0].T @ g)),
)


def custom_vjp(p, e, key):
    del key
    h = jnp.tanh(matmul_custom(e["x"], p["w1"]))
    return xent(mean0(clamp_cotangent(h @ p["w2"])), e["y"])


@jax.custom_jvp
def soft(x):
    """log(1 + e^x) with its derivative given by hand."""
    return jnp.logaddexp(x, 0.0)


soft.defjvps(lambda t, out, x: t * jax.nn.sigmoid(x))


def custom_jvp(p, e, key):
    del key
    return xent(mean0(soft(soft(e["x"] @ p["w1"]) @ p["w2"])), e["y"])


def cond_in_loss(p, e, key):
    del key
    positive = e["x"][0] > 0
    h = lax.cond(
        positive, lambda x: jnp.tanh(x @ p["w1"]), lambda x: x @ p["w2"], e["x"]
    )
    return xent(h @ p["out"], e["y"])


# ---- shared, transformed and partial parameters -------------------------------------


def reused(times):
    """One matrix used `times` times at different depths."""

    def loss(p, e, key):
        del key
        h = e["x"]
        for _ in range(times):
            h = jnp.tanh(h @ p["w"])
        return xent(mean0(h) @ p["out"], e["y"])

    return loss


def autoencoder(p, e, key):
    """W, then its transpose."""
    del key
    h = jnp.tanh(e["x"] @ p["w"])
    return jnp.mean(jnp.square(h @ p["w"].T - e["x"]))


def used_both_ways(p, e, key):
    """Once as stored and twice transposed."""
    del key
    h = jnp.tanh(jnp.tanh(e["x"] @ p["w"]) @ p["w"].T)
    return xent(mean0(jnp.einsum("ti,oi->to", h, p["w"].T)) @ p["out"], e["y"])


def fused_qkv(p, e, key):
    del key
    q, k, v = jnp.split(e["x"] @ p["qkv"], 3, axis=-1)
    h = jax.nn.softmax(q @ k.T) @ v
    return xent(mean0(h) @ p["out"], e["y"])


def split_parameter(p, e, key):
    del key
    wq, wk, wv = jnp.split(p["qkv"], 3, axis=1)
    h = jax.nn.softmax((e["x"] @ wq) @ (e["x"] @ wk).T) @ (e["x"] @ wv)
    return xent(mean0(h) @ p["out"], e["y"])


def sliced_parameter(p, e, key):
    del key
    h = jnp.tanh(e["x"] @ p["w"][:, :3]) * jnp.cos(e["x"] @ p["w"][:, 3:6])
    return xent(mean0(h) @ p["out"][1:4], e["y"])


def concatenated_parameters(p, e, key):
    del key
    w = jnp.concatenate([p["a"], p["b"]], axis=1)
    return xent(mean0(jnp.tanh(e["x"] @ w)) @ jnp.vstack([p["c"], p["d"]]), e["y"])


def padded_parameter(p, e, key):
    del key
    w = jnp.pad(p["w"], ((0, 0), (1, 2)))
    return xent(mean0(jnp.tanh(e["x"] @ w)) @ p["out"], e["y"])


def reshaped_parameter(p, e, key):
    del key
    w = p["flat"].reshape(3, 4, 2).transpose(1, 2, 0).reshape(4, 6)
    return xent(mean0(jnp.tanh(e["x"] @ w)) @ p["out"][::-1], e["y"])


def negated_parameter(p, e, key):
    del key
    h = jnp.tanh(e["x"] @ -p["w"]) - e["x"] @ (p["w"] / 3.0)
    return xent(mean0(h) @ p["out"], e["y"])


def weight_normalised(p, e, key):
    del key
    w = p["v"] * (p["g"] / jnp.sqrt(jnp.sum(jnp.square(p["v"]), axis=0)))[None]
    return xent(mean0(jnp.tanh(e["x"] @ w)) @ p["out"], e["y"])


def masked_weights(p, e, key):
    del key
    mask = (np.arange(4 * 6).reshape(4, 6) % 3 > 0).astype(np.float32)
    return xent(mean0(jnp.tanh(e["x"] @ (p["w"] * mask))) @ p["out"], e["y"])


def lora_two_products(p, e, key):
    del key
    frozen = np.linspace(-1, 1, 24, dtype=np.float32).reshape(4, 6)
    h = jnp.tanh(e["x"] @ frozen + (e["x"] @ p["a"]) @ p["b"] * 0.5)
    return xent(mean0(h) @ p["out"], e["y"])


def lora_merged(p, e, key):
    del key
    frozen = np.linspace(-1, 1, 24, dtype=np.float32).reshape(4, 6)
    h = jnp.tanh(e["x"] @ (frozen + 0.5 * (p["a"] @ p["b"])))
    return xent(mean0(h) @ p["out"], e["y"])


def bias_only(p, e, key):
    del key
    w1 = np.linspace(-1, 1, 24, dtype=np.float32).reshape(4, 6)
    h = jnp.tanh(e["x"] @ w1 + p["b1"][None])
    return xent(mean0(h)[:3] + p["b2"], e["y"])


def scalar_parameters(p, e, key):
    del key
    h = jnp.tanh(e["x"] * p["scale"] + p["shift"])
    return xent(mean0(h @ p["w"]) * jnp.exp(p["temperature"]), e["y"])


def unused_parameter(p, e, key):
    return dense({"w": p["w"], "b": p["b"]}, e, key)


def zero_gradient(p, e, key):
    """Dead for examples with label 0: their gradient is exactly 0."""
    del key
    alive = (e["y"] > 0).astype(jnp.float32)
    return alive * xent(e["x"] @ p["w"], e["y"])


# ---- the shape of the loss ----------------------------------------------------------


def weight_decay_inside(p, e, key):
    decay = sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(p))
    return dense(p, e, key) + 0.05 * decay


def scaled_by_length(p, e, key):
    del key
    length = jnp.maximum(e["n"], 1).astype(jnp.float32)
    inside = (jnp.arange(5) < e["n"]).astype(jnp.float32)
    losses = jax.vmap(lambda x: xent(jnp.tanh(x @ p["w"]) @ p["out"], e["y"]))(e["x"])
    return jnp.sum(losses * inside) / length


def scaled_constant(p, e, key):
    return 128.0 * dense(p, e, key) / 3.0


def vmap_over_heads(p, e, key):
    del key
    h = jax.vmap(lambda w: jnp.tanh(e["x"] @ w))(p["heads"])
    return xent(jnp.mean(h, (0, 1)) @ p["out"], e["y"])


def vmap_over_time(p, e, key):
    del key
    h = jax.vmap(lambda x: jnp.tanh(jnp.tanh(x @ p["w1"]) @ p["w2"]))(e["x"])
    return xent(mean0(h), e["y"])


def augmentation_views(p, e, key):
    """The mean loss over random shifts of one example (De et al. 2022)."""
    shifts = 0.1 * jax.random.normal(key, (3, *e["x"].shape))
    views = e["x"][None] + shifts
    return jnp.mean(jax.vmap(lambda x: dense(p, e | {"x": x}, None))(views))


def dropout(p, e, key):
    h = jnp.tanh(e["x"] @ p["w1"])
    keep = jax.random.bernoulli(key, 0.7, h.shape)
    return xent(mean0(jnp.where(keep, h / 0.7, 0.0)) @ p["out"], e["y"])


def segment_pooling(p, e, key):
    del key
    h = jnp.tanh(e["x"] @ p["w"])
    pooled = jax.ops.segment_sum(h, e["segment"], num_segments=3)
    return xent(jnp.tanh(pooled.reshape(-1)) @ p["out"], e["y"])


def gather_positions(p, e, key):
    """Only the positions named by the example are used, some of them twice."""
    del key
    h = jnp.tanh(e["x"] @ p["w"])[e["at"]]
    return xent(mean0(h) @ p["out"], e["y"])


def take_along_axis(p, e, key):
    del key
    logits = jax.nn.log_softmax(e["x"] @ p["w"] + p["b"][None])
    return -jnp.mean(jnp.take_along_axis(logits, e["at"][:, None], axis=1))


def dynamic_window(p, e, key):
    del key
    window = lax.dynamic_slice_in_dim(e["x"], e["y"], 2)
    rows = lax.dynamic_slice_in_dim(p["w"], e["y"], 4)
    return xent(mean0(jnp.tanh(window @ rows)), e["y"])


def cumulative(p, e, key):
    del key
    h = jnp.cumsum(jnp.tanh(e["x"] @ p["w"]), axis=0)
    return xent(mean0(jnp.tanh(h)) @ p["out"], e["y"])


def fourier(p, e, key):
    del key
    h = jnp.abs(jnp.fft.rfft((e["x"] @ p["w"]).T)) + 1.0
    return xent(jnp.log(h).mean(1) @ p["out"], e["y"])


def sorted_pool(p, e, key):
    del key
    h = jnp.sort(e["x"] @ p["w"], axis=0)
    return xent((jnp.max(h, 0) + 0.5 * h[0]) @ p["out"], e["y"])


def expert_gather(p, e, key):
    """Weights of the example's expert are gathered, then multiplied."""
    del key
    h = jnp.tanh(e["x"] @ p["experts"][e["y"]])
    return xent(mean0(h) @ p["out"], e["y"])


def top1_routing(p, e, key):
    del key
    gates = jax.nn.softmax(e["x"] @ p["router"])
    choice = jax.nn.one_hot(jnp.argmax(gates, -1), 3)
    sent = jnp.einsum("te,td->etd", choice, e["x"])
    h = jnp.tanh(jnp.einsum("etd,edo->eto", sent, p["experts"]))
    h = jnp.einsum("eto,te,te->to", h, choice, gates)
    return xent(mean0(h) @ p["out"], e["y"])


def cast(loss, dtype=jnp.bfloat16):
    """`loss` with parameters and floats of the example in `dtype`."""

    def down(leaf):
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    def low(p, e, key):
        return loss(jax.tree.map(down, p), jax.tree.map(down, e), key)

    return low
