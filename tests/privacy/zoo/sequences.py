"""Attention, transformers and recurrence."""

import jax
import jax.numpy as jnp
from jax import lax

from tests.privacy.zoo.cases import (
    mean0,
    weights,
    xent,
)

# ---- attention and transformers -----------------------------------------------------


def layer_norm(x, scale, bias):
    """Over the last axis of x[T, D], in float32."""
    x = x.astype(jnp.float32)
    x = x - jnp.mean(x, -1, keepdims=True)
    x = x * lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + 1e-5)
    return x * scale[None] + bias[None]


def attention(x, qkv, out):
    """Self-attention of x[T, D] with a fused qkv[D, 3, H, K] and out[H, K, D]."""
    q, k, v = jnp.moveaxis(jnp.einsum("td,dnhk->tnhk", x, qkv), 1, 0)
    scores = jnp.einsum("thk,shk->hts", q, k) / q.shape[-1] ** 0.5
    probs = jax.nn.softmax(scores.astype(jnp.float32)).astype(x.dtype)
    return jnp.einsum("hts,shk,hkd->td", probs, v, out)


def block(p, x, dtype=jnp.float32):
    """A pre-norm transformer block; norms in float32, products in `dtype`."""

    def cast(a):
        return a.astype(dtype)

    h = cast(layer_norm(x, p["s1"], p["c1"]))
    x = x + attention(h, cast(p["qkv"]), cast(p["o"])).astype(x.dtype)
    h = cast(layer_norm(x, p["s2"], p["c2"]))
    h = jax.nn.gelu(h @ cast(p["up"]) + cast(p["bu"])[None]) @ cast(p["down"])
    return x + h.astype(x.dtype)


BLOCK = {
    "s1": (6,), "c1": (6,), "qkv": (6, 3, 2, 3), "o": (2, 3, 6), "s2": (6,),
    "c2": (6,), "up": (6, 10), "bu": (10,), "down": (10, 6),
}  # fmt: skip


def attention_block(p, e, key):
    del key
    return xent(mean0(block(p, e["x"])) @ p["out"], e["y"])


def transformer(dtype=jnp.float32):
    """Two blocks, learned positions, a head tied to the embedding."""

    def loss(p, e, key):
        del key
        x = p["table"][e["t"]] + p["positions"][: e["t"].shape[0]]
        for layer in p["layers"]:
            x = block(layer, x, dtype)
        logits = x.astype(dtype) @ p["table"].T.astype(dtype)
        return xent(mean0(logits), e["y"])

    return loss


def transformer_init(key):
    keys = jax.random.split(key, 3)
    layers = [weights(**BLOCK)(k) for k in keys[:2]]
    return weights(table=(11, 6), positions=(9, 6))(keys[2]) | {"layers": layers}


def scan_layers(wrap=lambda f: f, dtype=jnp.float32):
    """Blocks as a scan over stacked parameters; `wrap` may checkpoint the body."""

    def loss(p, e, key):
        del key
        body = wrap(lambda x, layer: (block(layer, x, dtype), None))
        x, _ = lax.scan(body, e["x"], p["layers"])
        return xent(mean0(x) @ p["out"], e["y"])

    return loss


def scan_layers_init(key):
    first, second = jax.random.split(key)
    stack = {name: (3, *shape) for name, shape in BLOCK.items()}
    return {"layers": weights(**stack)(first)} | weights(out=(6, 3))(second)


def scan_layers_shared(p, e, key):
    """A scan whose body uses a stacked leaf, and a leaf closed over."""
    del key

    def body(x, w):
        return jnp.tanh(x @ w + x @ p["shared"]), None

    x, _ = lax.scan(body, e["x"], p["stack"])
    return xent(mean0(x), e["y"])


def unscanned_stack(p, e, key):
    del key
    x = e["x"]
    for i in range(3):
        x = jnp.tanh(x @ p["stack"][i])
    return xent(mean0(x) @ p["out"], e["y"])


# ---- recurrence ---------------------------------------------------------------------


def lstm(p, x, reverse=False):
    """Outputs [T, H] of an LSTM whose input projection is outside the scan."""
    width = p["u"].shape[0]
    projected = x @ p["w"] + p["b"][None]

    def step(carry, z):
        c, h = carry
        i, f, g, o = jnp.split(z + h @ p["u"], 4)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (c, h), h

    zeros = jnp.zeros(width, x.dtype)
    return lax.scan(step, (zeros, zeros), projected, reverse=reverse)[1]


LSTM = {"w": (4, 12), "u": (3, 12), "b": (12,)}


def lstm_loss(p, e, key):
    del key
    return xent(lstm(p, e["x"])[-1], e["y"])


def lstm_bf16(p, e, key):
    del key
    p = jax.tree.map(lambda a: a.astype(jnp.bfloat16), p)
    return xent(mean0(lstm(p, e["x"].astype(jnp.bfloat16)).astype(jnp.float32)), e["y"])


def gru(p, e, key):
    """Input and recurrent weights both inside the scan."""
    del key

    def step(h, x):
        both = jnp.concatenate([x, h])
        r, z = jnp.split(jax.nn.sigmoid(both @ p["gates"] + p["b"]), 2)
        n = jnp.tanh(x @ p["wn"] + (r * h) @ p["un"])
        return (1 - z) * n + z * h, None

    h, _ = lax.scan(step, jnp.zeros(3), e["x"])
    return xent(h, e["y"])


def bilstm_crf(p, e, key):
    """The joint tagger's shape: two directions and a log-partition over transitions."""
    del key
    h = jnp.concatenate([lstm(p["f"], e["x"]), lstm(p["r"], e["x"], True)], -1)
    scores = h @ p["tags"]

    def step(alpha, score):
        alpha = jax.nn.logsumexp(alpha[:, None] + p["transitions"], axis=0) + score
        return alpha, None

    alpha, _ = lax.scan(step, scores[0], scores[1:])
    gold = jnp.sum(jnp.take_along_axis(scores, e["tag"][:, None], 1))
    moves = jnp.sum(p["transitions"][e["tag"][:-1], e["tag"][1:]])
    return (jax.nn.logsumexp(alpha) - gold - moves) / e["x"].shape[0]


def bilstm_crf_init(key):
    a, b, c = jax.random.split(key, 3)
    rest = weights(tags=(6, 5), transitions=(5, 5))(c)
    return {"f": weights(**LSTM)(a), "r": weights(**LSTM)(b)} | rest


def nested_scans(p, e, key):
    """Words within sentences, one recurrent matrix at each level."""
    del key

    def word(h, x):
        return jnp.tanh(x @ p["w"] + h @ p["u"]), None

    def sentence(s, words):
        h, _ = lax.scan(word, jnp.zeros(4), words)
        return jnp.tanh(h @ p["v"] + s @ p["r"]), None

    s, _ = lax.scan(sentence, jnp.zeros(3), e["x"])
    return xent(s, e["y"])


def scan_remat_recurrent(p, e, key):
    del key

    @jax.checkpoint
    def step(h, x):
        return jnp.tanh(x @ p["w"] + h @ p["u"]), None

    h, _ = lax.scan(step, jnp.zeros(3), e["x"])
    return xent(h, e["y"])


def fori_forward(p, e, key):
    del key
    h = lax.fori_loop(0, 3, lambda _, h: jnp.tanh(h @ p["w"] + e["x"]), e["x"])
    return xent(h @ p["out"], e["y"])


def while_forward(p, e, key):
    """A while loop that no gradient crosses chooses the scale."""
    del key
    x = lax.stop_gradient(e["x"])
    scale = lax.while_loop(lambda s: s * jnp.sum(x * x) > 1.0, lambda s: s / 2, 1.0)
    return xent(jnp.tanh(e["x"] * scale) @ p["w"], e["y"])
