"""One-example losses of every kind that exact clipping must handle.

Each `Case` is a loss in the sense of `trustml.task`: `loss(params, example, key)` of
one example without a batch axis. The families: what the linear tail may cross, which
products there are, how parameters are shared, which regions nest; written in plain JAX,
Flax linen, Flax nnx and Equinox. Shapes are the smallest that still tell axes apart (no
two axes of one operand have the same size where avoidable).

    case.params(seed) -> numpy params
    case.make_batch(rng, B) -> batch, leaves [B, ...]

`expected_materialised` is the number of leaves that may fall back to one gradient per
example; None where the answer is left to the method.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

FP32 = 1e-5
BF16 = 1e-2


class Case(NamedTuple):
    """A loss, its parameters and data, and what is expected of a clipping method."""

    name: str
    init: Callable[[Any], Any]  # key -> params
    loss: Callable[[Any, Any, Any], jax.Array]  # one example
    make_batch: Callable[[np.random.Generator, int], dict[str, np.ndarray]]
    tol: float = FP32  # relative
    expected_materialised: int | None = None

    def params(self, seed: int = 1):
        """Random parameters of the right shapes, biases and scales too."""
        rng = np.random.default_rng(seed)

        def leaf(like):
            values = rng.normal(size=like.shape)
            if len(like.shape) > 1:
                values = values / np.sqrt(like.shape[-2])
            else:
                values = 0.7 + 0.5 * values
            return values.astype(like.dtype)

        return jax.tree.map(leaf, jax.eval_shape(self.init, jax.random.key(0)))


# ---- data ---------------------------------------------------------------------------


def floats(*shape, **more):
    """Batches {'x': float32[B, *shape], 'y': int32[B] below 3} plus `more` fields."""

    def make(rng, size):
        batch = {
            "x": rng.normal(size=(size, *shape)).astype(np.float32),
            "y": rng.integers(3, size=size).astype(np.int32),
        }
        return batch | {name: field(rng, size) for name, field in more.items()}

    return make


def ints(high, *shape):
    """A field int32[B, *shape] of integers below `high`."""
    return lambda rng, size: rng.integers(high, size=(size, *shape)).astype(np.int32)


def tokens(vocab, length, repeat=False, low=0):
    """Batches {'t': int32[B, length], 'y': int32[B]}; `repeat` draws few distinct."""

    def make(rng, size):
        high = low + 3 if repeat else vocab
        ids = rng.integers(low, high, size=(size, length)).astype(np.int32)
        return {"t": ids, "y": rng.integers(3, size=size).astype(np.int32)}

    return make


def weights(**shapes):
    """init: normal leaves of the given shapes."""

    def init(key):
        keys = jax.random.split(key, len(shapes))
        return {
            name: jax.random.normal(k, s)
            for k, (name, s) in zip(keys, shapes.items(), strict=True)
        }

    return init


def xent(logits, label):
    """Cross-entropy of one example; float32[]."""
    logits = logits.astype(jnp.float32)
    return jax.nn.logsumexp(logits) - logits[label]


def mean0(x):
    """Mean over positions."""
    return jnp.mean(x, axis=0)


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


# ---- Flax linen, Flax nnx, Equinox --------------------------------------------------


class LinenCnn(nn.Module):
    """Convolutions, GroupNorm, a dense head; one image [8, 8, 2]."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), strides=(2, 2))(x)
        x = jnp.tanh(nn.GroupNorm(num_groups=2)(x))
        x = jnp.tanh(nn.Conv(6, (2, 2), padding="VALID")(x))
        return nn.Dense(3)(jnp.mean(x, (0, 1)))


class LinenEncoder(nn.Module):
    """Embedding, multi-head attention, LayerNorm and RMSNorm; tokens [T]."""

    @nn.compact
    def __call__(self, tokens):
        table = nn.Embed(11, 6)
        x = table(tokens)
        x = x + nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(x))
        x = x + jnp.tanh(nn.Dense(6)(nn.RMSNorm()(x)))
        return nn.Dense(3)(mean0(x))


class LinenLstm(nn.Module):
    """nn.RNN, which is a lifted scan."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.RNN(nn.LSTMCell(4))(x)[-1])


class LinenScan(nn.Module):
    """nn.scan over layers with nn.remat inside."""

    @nn.compact
    def __call__(self, x):
        class Layer(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                return x + nn.Dense(4)(jnp.tanh(nn.Dense(7)(nn.LayerNorm()(x)))), None

        stack = nn.scan(
            nn.remat(Layer, prevent_cse=False),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=3,
        )
        x, _ = stack()(x, None)
        return nn.Dense(3)(mean0(x))


class LinenTransposed(nn.Module):
    """nn.ConvTranspose, and a 1-D depthwise convolution."""

    @nn.compact
    def __call__(self, x):
        x = jnp.tanh(nn.ConvTranspose(4, (3,), strides=(2,))(x))
        x = jnp.tanh(nn.Conv(4, (3,), feature_group_count=4)(x))
        return nn.Dense(3)(mean0(x))


def linen(name, module, field, make_batch, expected=None, tol=FP32):
    """A case from a linen module of one example's `field`."""

    def init(key):
        example = jax.tree.map(lambda x: x[0], make_batch(np.random.default_rng(0), 1))
        return module.init(key, example[field])["params"]

    def loss(p, e, key):
        del key
        return xent(module.apply({"params": p}, e[field]), e["y"])

    return Case(name, init, loss, make_batch, tol, expected)


class NnxEncoder(nnx.Module):
    """Embedding, attention, norms, an MLP; tokens [T]."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(11, 6, rngs=rngs)
        self.norm = nnx.LayerNorm(6, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 6, decode=False, rngs=rngs)
        self.up = nnx.Linear(6, 9, rngs=rngs)
        self.out = nnx.Linear(9, 3, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens)
        x = x + self.attention(self.norm(x))
        return self.out(mean0(jnp.tanh(self.up(x))))


class NnxCnn(nnx.Module):
    """Two convolutions and GroupNorm; one image [8, 8, 2]."""

    def __init__(self, rngs):
        self.conv1 = nnx.Conv(2, 4, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.GroupNorm(4, num_groups=2, rngs=rngs)
        self.conv2 = nnx.Conv(4, 5, (3, 3), padding="VALID", rngs=rngs)
        self.out = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x):
        x = jnp.tanh(self.norm(self.conv1(x[None])))
        return self.out(jnp.mean(jnp.tanh(self.conv2(x)[0]), (0, 1)))


def nnx_case(name, module, field, make_batch, expected=None):
    """A case from an nnx module: parameters are its split state."""
    shell = nnx.split(nnx.eval_shape(lambda: module(nnx.Rngs(0))), nnx.Param, ...)
    graph = shell[0]

    def init(key):
        return nnx.split(module(nnx.Rngs(key)), nnx.Param, ...)[1]

    def loss(p, e, key):
        del key
        return xent(nnx.merge(graph, p, shell[2])(e[field]), e["y"])

    return Case(name, init, loss, make_batch, FP32, expected)


class EqxNet(eqx.Module):
    """Convolution, LayerNorm, attention, a scanned GRU cell, an MLP; series [T, 4]."""

    conv: eqx.nn.Conv1d
    norm: eqx.nn.LayerNorm
    attention: eqx.nn.MultiheadAttention
    cell: eqx.nn.GRUCell
    head: eqx.nn.MLP

    def __init__(self, key):
        keys = jax.random.split(key, 4)
        self.conv = eqx.nn.Conv1d(4, 6, 3, padding=1, key=keys[0])
        self.norm = eqx.nn.LayerNorm(6)
        self.attention = eqx.nn.MultiheadAttention(2, 6, key=keys[1])
        self.cell = eqx.nn.GRUCell(6, 5, key=keys[2])
        self.head = eqx.nn.MLP(5, 3, 7, 1, key=keys[3])

    def __call__(self, x):
        x = jax.vmap(self.norm)(self.conv(x.T).T)
        x = x + self.attention(x, x, x)
        h, _ = lax.scan(lambda h, x: (self.cell(x, h), None), jnp.zeros(5), x)
        return self.head(h)


class EqxEmbedder(eqx.Module):
    """Embedding and RMSNorm, pooled; tokens [T]."""

    table: eqx.nn.Embedding
    norm: eqx.nn.RMSNorm
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key)
        self.table = eqx.nn.Embedding(11, 5, key=keys[0])
        self.norm = eqx.nn.RMSNorm(5)
        self.head = eqx.nn.Linear(5, 3, key=keys[1])

    def __call__(self, tokens):
        x = jax.vmap(self.norm)(jax.vmap(self.table)(tokens))
        return self.head(mean0(jnp.tanh(x)))


def equinox(name, module, field, make_batch, expected=None):
    """A case from an Equinox module: parameters are its inexact arrays."""
    _, static = eqx.partition(module(jax.random.key(0)), eqx.is_inexact_array)

    def init(key):
        return eqx.filter(module(key), eqx.is_inexact_array)

    def loss(p, e, key):
        del key
        return xent(eqx.combine(p, static)(e[field]), e["y"])

    return Case(name, init, loss, make_batch, FP32, expected)


# ---- the table ----------------------------------------------------------------------


def _case(name, loss, make_batch, shapes, expected=None, tol=FP32):
    init = shapes if callable(shapes) else weights(**shapes)
    return Case(name, init, loss, make_batch, tol, expected)


def _conv_case(name, kernels, channels, options, expected, shape=(6, 5, 2)):
    shapes = {f"k{i + 1}": kernel for i, kernel in enumerate(kernels)}
    shapes |= {"b1": (channels,), "out": (kernels[-1][-1], 3)}
    return _case(name, conv_net(*options), floats(*shape), shapes, expected)


_SEQ = floats(5, 4)
_DENSE = {"w": (4, 3), "b": (3,)}
_OUT = {"w": (4, 6), "out": (6, 3)}
_TWO = {"w1": (4, 6), "w2": (6, 3)}
_EMBED = {"table": (9, 4), "out": (4, 3)}
_TABLE = {"table": (9, 4)}
_MLP = {f"w{i}": (4, 4) for i in range(4)} | {f"b{i}": (4,) for i in range(4)}
_BLOCK = BLOCK | {"out": (6, 3)}
_NOTHING = jax.checkpoint_policies.nothing_saveable
_DOTS = jax.checkpoint_policies.dots_saveable


def _remat(f):
    return jax.checkpoint(f, prevent_cse=False)


CASES = (
    # dense and einsum
    _case("dense", dense, floats(4), _DENSE, 0),
    _case("deep_mlp", deep_mlp, floats(4), _MLP | {"out": (4, 3)}, 0),
    _case("sequence_mlp", sequence_mlp, _SEQ, _TWO | {"b1": (6,)}, 0),
    _case(
        "sequence_mlp_long",
        sequence_mlp,
        floats(2, 30),
        {"w1": (30, 40), "b1": (40,), "w2": (40, 3)},
        0,
    ),
    _case("einsum_heads", einsum_heads, _SEQ, {"w": (4, 2, 3), "o": (2, 3, 6)}, 0),
    _case(
        "einsum_orders",
        einsum_orders,
        _SEQ,
        {"a": (6, 4), "b": (6, 7), "c": (2, 7, 3), "d": (3, 3, 2)},
        0,
    ),
    _case(
        "einsum_kept",
        einsum_kept,
        floats(4, 5),
        {"position": (4, 5, 6), "group": (2, 3, 4), "out": (8, 3)},
        0,
    ),
    _case("bilinear", bilinear, floats(4), {"w": (4, 5, 3), "v": (4, 5)}),
    _case("quadratic_form", quadratic_form, floats(4), {"w": (4, 4)}, 0),
    _case("weight_product", weight_product, _SEQ, {"u": (4, 5), "v": (5, 3)}),
    # convolutions
    _conv_case("conv2d_same", [(3, 3, 2, 4)], 4, [{}], 0),
    _conv_case(
        "conv2d_strides_valid",
        [(3, 2, 2, 4), (2, 2, 4, 3)],
        4,
        [{"strides": (2, 1), "padding": "VALID"}, {"strides": (1, 2)}],
        0,
    ),
    _conv_case("conv2d_dilated", [(2, 3, 2, 4)], 4, [{"rhs_dilation": (2, 1)}], 0),
    _conv_case("conv1d", [(3, 2, 4), (2, 4, 3)], 4, [{}, {"strides": (2,)}], 0, (7, 2)),
    _conv_case(
        "conv2d_padded_unevenly",
        [(3, 3, 2, 4)],
        4,
        [{"padding": ((2, 0), (0, 1)), "strides": (2, 2)}],
        0,
    ),
    _conv_case(
        "conv2d_depthwise", [(3, 3, 1, 6)], 6, [{"feature_group_count": 2}], None
    ),
    _conv_case(
        "conv1d_grouped",
        [(3, 2, 6)],
        6,
        [{"feature_group_count": 2}],
        None,
        (7, 4),
    ),
    _case(
        "conv_transpose",
        conv_transpose,
        floats(4, 3, 2),
        {"k": (3, 3, 2, 4), "out": (4, 3)},
    ),
    _case("conv_reused", conv_reused, floats(5, 4, 3), {"k": (2, 2, 3, 3)}),
    _case("patches_dense", patches_dense, floats(4, 6, 2), {"w": (8, 3)}, 0),
    # embeddings
    _case("embedding", embedding(), tokens(9, 5), _EMBED, 0),
    _case("embedding_repeated_ids", embedding(), tokens(9, 8, repeat=True), _EMBED, 0),
    _case("embedding_fill", embedding("fill"), tokens(14, 6, low=-3), _EMBED, 0),
    _case("embedding_clip", embedding("clip"), tokens(14, 6, low=-3), _EMBED, 0),
    _case("embedding_indexed", embedding_indexed, tokens(9, 5), _EMBED, 0),
    _case("embedding_two_lookups", embedding_two_lookups, tokens(5, 8), _EMBED),
    _case(
        "positions_sliced",
        positions_sliced,
        tokens(9, 5),
        _EMBED | {"positions": (7, 4)},
        0,
    ),
    _case("one_hot_matmul", one_hot_matmul, tokens(9, 5), _EMBED, 0),
    _case(
        "tied_language_model",
        tied_language_model,
        tokens(9, 6),
        _TABLE | {"w": (4, 4)},
        0,
    ),
    _case(
        "tied_scaled", tied_scaled, tokens(9, 6, repeat=True), _TABLE | {"bias": (9,)}
    ),
    # attention and transformers
    _case("attention_block", attention_block, floats(5, 6), _BLOCK, 0),
    _case("transformer_tied", transformer(), tokens(11, 7), transformer_init, 0),
    _case("scan_layers", scan_layers(), floats(5, 6), scan_layers_init, 0),
    _case("scan_layers_remat", scan_layers(_remat), floats(5, 6), scan_layers_init, 0),
    _case(
        "scan_layers_shared",
        scan_layers_shared,
        floats(5, 3),
        {"stack": (4, 3, 3), "shared": (3, 3)},
    ),
    _case(
        "unscanned_stack", unscanned_stack, _SEQ, {"stack": (3, 4, 4), "out": (4, 3)}
    ),
    # recurrence
    _case("lstm", lstm_loss, _SEQ, LSTM, 0),
    _case(
        "gru",
        gru,
        _SEQ,
        {"gates": (7, 6), "b": (6,), "wn": (4, 3), "un": (3, 3)},
    ),
    _case("bilstm_crf", bilstm_crf, floats(5, 4, tag=ints(5, 5)), bilstm_crf_init),
    _case(
        "nested_scans",
        nested_scans,
        floats(3, 2, 5),
        {"w": (5, 4), "u": (4, 4), "v": (4, 3), "r": (3, 3)},
    ),
    _case(
        "scan_remat_recurrent", scan_remat_recurrent, _SEQ, {"w": (4, 3), "u": (3, 3)}
    ),
    _case("fori_forward", fori_forward, floats(4), {"w": (4, 4), "out": (4, 3)}),
    _case("while_forward", while_forward, floats(4), {"w": (4, 3)}, 0),
    # regions and control flow
    _case(
        "checkpoint",
        checkpointed(),
        _SEQ,
        {"w1": (4, 6), "b1": (6,), "w2": (6, 5), "out": (5, 3)},
        0,
    ),
    _case(
        "checkpoint_nothing",
        checkpointed(_NOTHING),
        _SEQ,
        {"w1": (4, 6), "b1": (6,), "w2": (6, 5), "out": (5, 3)},
        0,
    ),
    _case(
        "checkpoint_dots",
        checkpointed(_DOTS),
        _SEQ,
        {"w1": (4, 6), "b1": (6,), "w2": (6, 5), "out": (5, 3)},
        0,
    ),
    _case("jitted_parts", jitted_parts, _SEQ, _TWO | {"out": (3, 3)}, 0),
    _case("custom_vjp", custom_vjp, _SEQ, _TWO, 0),
    _case("custom_jvp", custom_jvp, _SEQ, _TWO, 0),
    _case(
        "cond_in_loss",
        cond_in_loss,
        floats(4),
        {"w1": (4, 5), "w2": (4, 5), "out": (5, 3)},
    ),
    # shared, transformed and partial parameters
    *(
        _case(f"reused_{n}", reused(n), floats(5, 3), {"w": (3, 3), "out": (3, 3)}, 0)
        for n in (2, 3, 4)
    ),
    _case("autoencoder", autoencoder, _SEQ, {"w": (4, 3)}, 0),
    _case("used_both_ways", used_both_ways, _SEQ, _OUT | {"out": (6, 3)}),
    _case("fused_qkv", fused_qkv, _SEQ, {"qkv": (4, 9), "out": (3, 3)}, 0),
    _case("split_parameter", split_parameter, _SEQ, {"qkv": (4, 9), "out": (3, 3)}),
    _case("sliced_parameter", sliced_parameter, _SEQ, {"w": (4, 7), "out": (5, 3)}),
    _case(
        "concatenated_parameters",
        concatenated_parameters,
        _SEQ,
        {"a": (4, 2), "b": (4, 3), "c": (2, 3), "d": (3, 3)},
    ),
    _case("padded_parameter", padded_parameter, _SEQ, {"w": (4, 3), "out": (6, 3)}),
    _case(
        "reshaped_parameter", reshaped_parameter, _SEQ, {"flat": (24,), "out": (6, 3)}
    ),
    _case("negated_parameter", negated_parameter, _SEQ, _OUT),
    _case(
        "weight_normalised",
        weight_normalised,
        _SEQ,
        {"v": (4, 6), "g": (6,), "out": (6, 3)},
    ),
    _case("masked_weights", masked_weights, _SEQ, _OUT),
    _case(
        "lora_two_products",
        lora_two_products,
        _SEQ,
        {"a": (4, 2), "b": (2, 6), "out": (6, 3)},
        0,
    ),
    _case("lora_merged", lora_merged, _SEQ, {"a": (4, 2), "b": (2, 6), "out": (6, 3)}),
    _case("bias_only", bias_only, _SEQ, {"b1": (6,), "b2": (3,)}, 0),
    _case(
        "scalar_parameters",
        scalar_parameters,
        _SEQ,
        {"scale": (), "shift": (), "w": (4, 3), "temperature": ()},
    ),
    _case("unused_parameter", unused_parameter, floats(4), _DENSE | {"spare": (5, 2)}),
    _case("zero_gradient", zero_gradient, floats(4), {"w": (4, 3)}, 0),
    # the shape of the loss
    _case("weight_decay_inside", weight_decay_inside, floats(4), _DENSE),
    _case("scaled_by_length", scaled_by_length, floats(5, 4, n=ints(6)), _OUT, 0),
    _case("scaled_constant", scaled_constant, floats(4), _DENSE, 0),
    _case(
        "vmap_over_heads", vmap_over_heads, _SEQ, {"heads": (2, 4, 3), "out": (3, 3)}, 0
    ),
    _case("vmap_over_time", vmap_over_time, _SEQ, _TWO, 0),
    _case("augmentation_views", augmentation_views, floats(4), _DENSE),
    _case("dropout", dropout, _SEQ, _TWO | {"out": (6, 3)}, 0),
    _case(
        "segment_pooling",
        segment_pooling,
        floats(5, 4, segment=ints(3, 5)),
        {"w": (4, 2), "out": (6, 3)},
        0,
    ),
    _case("gather_positions", gather_positions, floats(5, 4, at=ints(5, 6)), _OUT, 0),
    _case("take_along_axis", take_along_axis, floats(5, 4, at=ints(3, 5)), _DENSE, 0),
    _case("dynamic_window", dynamic_window, _SEQ, {"w": (7, 3)}),
    _case("cumulative", cumulative, _SEQ, _OUT, 0),
    _case("fourier", fourier, floats(8, 4), _OUT, 0),
    _case("sorted_pool", sorted_pool, _SEQ, _OUT, 0),
    _case("expert_gather", expert_gather, _SEQ, {"experts": (3, 4, 5), "out": (5, 3)}),
    _case(
        "top1_routing",
        top1_routing,
        _SEQ,
        {"router": (4, 3), "experts": (3, 4, 5), "out": (5, 3)},
        0,
    ),
    # bfloat16 activations, float32 parameters
    _case("bf16_mlp", cast(sequence_mlp), _SEQ, _TWO | {"b1": (6,)}, 0, BF16),
    _case(
        "bf16_conv",
        cast(conv_net({}, {})),
        floats(6, 5, 2),
        {"k1": (3, 3, 2, 4), "b1": (4,), "k2": (3, 3, 4, 3), "out": (3, 3)},
        0,
        BF16,
    ),
    _case(
        "bf16_transformer",
        transformer(jnp.bfloat16),
        tokens(11, 7),
        transformer_init,
        0,
        BF16,
    ),
    _case(
        "bf16_scan_layers",
        scan_layers(_remat, jnp.bfloat16),
        floats(5, 6),
        scan_layers_init,
        0,
        BF16,
    ),
    _case("bf16_lstm", lstm_bf16, _SEQ, LSTM, None, BF16),
    # Flax linen, Flax nnx, Equinox
    linen("linen_cnn", LinenCnn(), "x", floats(8, 8, 2), 0),
    linen("linen_encoder", LinenEncoder(), "t", tokens(11, 6), 0),
    linen("linen_lstm", LinenLstm(), "x", _SEQ),
    linen("linen_scan_remat", LinenScan(), "x", _SEQ, 0),
    linen("linen_transposed_depthwise", LinenTransposed(), "x", floats(6, 2)),
    nnx_case("nnx_encoder", NnxEncoder, "t", tokens(11, 6), 0),
    nnx_case("nnx_cnn", NnxCnn, "x", floats(8, 8, 2), 0),
    equinox("equinox_series", EqxNet, "x", _SEQ),
    equinox("equinox_embedder", EqxEmbedder, "t", tokens(11, 6), 0),
)
