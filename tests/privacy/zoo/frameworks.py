"""Losses written in Flax linen, Flax nnx and Equinox."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from tests.privacy.zoo.cases import (
    FP32,
    Case,
    mean0,
    xent,
)

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
