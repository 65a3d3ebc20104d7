"""Losses by the product that makes a gradient: dense, convolution, embedding."""

import jax
import jax.numpy as jnp
from jax import lax

from tests.privacy.zoo.cases import (
    mean0,
    xent,
)

# ---- dense and einsum ---------------------------------------------------------------


def dense(p, e, key):
    del key
    return xent(e["x"] @ p["w"] + p["b"], e["y"])


def deep_mlp(p, e, key):
    del key
    h = e["x"]
    for i in range(4):
        h = jnp.tanh(h @ p[f"w{i}"] + p[f"b{i}"])
    return xent(h @ p["out"], e["y"])


def sequence_mlp(p, e, key):
    del key
    h = jax.nn.gelu(e["x"] @ p["w1"] + p["b1"][None])
    return xent(mean0(jnp.tanh(h @ p["w2"])), e["y"])


def einsum_heads(p, e, key):
    del key
    h = jnp.tanh(jnp.einsum("td,dhk->thk", e["x"], p["w"]))
    return xent(mean0(jnp.tanh(jnp.einsum("thk,hkd->td", h, p["o"]))), e["y"])


def einsum_orders(p, e, key):
    del key
    h = jnp.tanh(jnp.einsum("td,od->ot", e["x"], p["a"]))
    h = jnp.tanh(jnp.einsum("ok,ot->kt", p["b"], h))
    h = jnp.tanh(jnp.einsum("hkm,kt->mth", p["c"], h))
    return xent(jnp.einsum("mth,cmh->c", h, p["d"]), e["y"])


def einsum_kept(p, e, key):
    del key
    h = jnp.tanh(jnp.einsum("ti,tio->to", e["x"], p["position"]))
    h = jnp.tanh(jnp.einsum("tgi,gio->tgo", h.reshape(4, 2, 3), p["group"]))
    return xent(mean0(h.reshape(4, -1)) @ p["out"], e["y"])


def bilinear(p, e, key):
    del key
    h = jnp.einsum("i,ijc,j->c", e["x"], p["w"], jnp.tanh(e["x"] @ p["v"]))
    return xent(h, e["y"])


def quadratic_form(p, e, key):
    del key
    return jnp.square(e["x"] @ p["w"] @ e["x"] - 1.0)


def weight_product(p, e, key):
    del key
    return xent(mean0(jnp.tanh(e["x"] @ (p["u"] @ p["v"]))), e["y"])


# ---- convolutions -------------------------------------------------------------------


def conv(x, w, **options):
    """One image [H, W, C], kernel [h, w, in/groups, out]; or one series [L, C]."""
    dims = ("NHWC", "HWIO", "NHWC") if x.ndim == 3 else ("NWC", "WIO", "NWC")
    strides = options.pop("strides", (1,) * (x.ndim - 1))
    padding = options.pop("padding", "SAME")
    out = lax.conv_general_dilated(
        x[None], w, strides, padding, dimension_numbers=dims, **options
    )
    return out[0]


def conv_net(first, second=None):
    """Two convolutions, pooled; `first` and `second` are options of `conv`."""

    def loss(p, e, key):
        del key
        h = conv(e["x"], p["k1"], **first)
        h = jnp.tanh(h + p["b1"].reshape((1,) * (h.ndim - 1) + (-1,)))
        if second is not None:
            h = jnp.tanh(conv(h, p["k2"], **second))
        h = h.reshape(-1, h.shape[-1])
        return xent(mean0(h) @ p["out"], e["y"])

    return loss


def conv_transpose(p, e, key):
    del key
    h = lax.conv_transpose(e["x"][None], p["k"], (2, 2), "SAME")[0]
    return xent(jnp.mean(jnp.tanh(h), (0, 1)) @ p["out"], e["y"])


def conv_reused(p, e, key):
    del key
    h = jnp.tanh(conv(jnp.tanh(conv(e["x"], p["k"])), p["k"]))
    return xent(jnp.mean(h, (0, 1)), e["y"])


def patches_dense(p, e, key):
    del key
    x = e["x"][None]
    dims = ("NHWC", "HWIO", "NHWC")
    h = lax.conv_general_dilated_patches(x, (2, 2), (2, 2), "VALID", None, None, dims)
    return xent(mean0(jnp.tanh(h.reshape(-1, h.shape[-1]) @ p["w"])), e["y"])


# ---- embeddings ---------------------------------------------------------------------


def embedding(mode=None):
    """Mean of embedded tokens, through a nonlinearity."""

    def loss(p, e, key):
        del key
        h = jnp.take(p["table"], e["t"], axis=0, mode=mode, fill_value=0.0)
        return xent(mean0(jnp.tanh(h)) @ p["out"], e["y"])

    return loss


def embedding_indexed(p, e, key):
    del key
    return xent(mean0(jnp.tanh(p["table"][e["t"]])) @ p["out"], e["y"])


def positions_sliced(p, e, key):
    del key
    length = e["t"].shape[0]
    h = p["table"][e["t"]] + p["positions"][:length]
    return xent(mean0(jnp.tanh(h)) @ p["out"], e["y"])


def one_hot_matmul(p, e, key):
    del key
    h = jnp.tanh(jax.nn.one_hot(e["t"], p["table"].shape[0]) @ p["table"])
    return xent(mean0(h) @ p["out"], e["y"])


def tied_language_model(p, e, key):
    del key
    h = jnp.tanh(p["table"][e["t"][:-1]] @ p["w"])
    logits = h @ p["table"].T
    return jnp.mean(jax.vmap(xent)(logits, e["t"][1:]))


def tied_scaled(p, e, key):
    del key
    h = p["table"][e["t"][:-1]] * 2.0
    logits = jnp.einsum("td,vd->tv", jnp.tanh(h), p["table"]) + p["bias"][None]
    return jnp.mean(jax.vmap(xent)(logits, e["t"][1:]))


def embedding_two_lookups(p, e, key):
    del key
    first, second = p["table"][e["t"][::2]], p["table"][e["t"][1::2]]
    return xent(mean0(jnp.tanh(first) * jnp.cos(second)) @ p["out"], e["y"])
