"""An encoder and a decoder that may copy: one text in, another one out.

    h_T = BiGRU(E tokens)
    s_u = GRU(s_{u-1}, E y_{u-1}),    s_0 = tanh(W final states of the encoder)
    w_ut = softmax_t(s_u W_a h_t),   m_u = tanh(W_c [s_u, sum_t w_ut h_t])
    p(y_u | y_<u) = g_u softmax(W_o m_u)[y_u] + (1 - g_u) sum_t w_ut 1[x_t = y_u]

with g_u = sigmoid(v . m_u): the next word is one of the vocabulary or one of those that
were given, such as a name that no text of training had (Luong et al. 2015 for the
attention, See et al. 2017 for the copies).

y_0 is the padding id 0, which also ends a text: the model learns to say it after the
last token. In training the right words go before (teacher forcing), and `predict` gives
the log-probabilities of every token of `example['target']` given those before it. The
attention reads no state that it makes, so all of it is a few products after the
recurrence, and both texts share the embeddings.

`greedy` writes a text with `predict` alone, one token after another, whatever model is
behind it: U predictions for U tokens.

Dimension key: `T` tokens given, `U` written, `V` vocabulary.

Example::

    model = seq2seq.task(vocab_size=1200, width=64, hidden=128)
    params = model.init(jax.random.key(0))
    log_probs = model.predict(params, example)                # [U, V]
    written = seq2seq.greedy(model.predict)(params, example)    # int32[U]

References: https://arxiv.org/abs/1508.04025, https://arxiv.org/abs/1704.04368
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from trustml import _validate
from trustml import task as task_lib
from trustml.models import gru, layers

END = 0  # the token that begins a text and ends it
_NEVER = -1e9
_TINY = 1e-20  # keeps the logarithm of no copy finite


class Decoder(nn.Module):
    """x[U, D], state [H] -> states [U, H]: a GRU that starts where it is told."""

    width: int  # H

    @nn.compact
    def __call__(self, x, state):
        """States after each input."""
        cell = nn.GRUCell(self.width, name="cell")
        scan = nn.scan(
            lambda cell, h, x: cell(h, x),
            variable_broadcast="params",
            split_rngs={"params": False},
        )
        return scan(cell, state, x)[1]


class Network(nn.Module):
    """The module behind `task`."""

    vocab_size: int
    width: int
    hidden: int
    dropout: float
    train: bool = False

    def setup(self):
        """One table, the two recurrent layers, the attention, the output."""
        self.table = nn.Embed(self.vocab_size, self.width)
        self.encoder = gru.Gru(self.hidden, 2)
        self.bridge = nn.Dense(self.hidden)
        self.decoder = Decoder(self.hidden)
        self.attention = nn.Dense(2 * self.hidden, use_bias=False)
        self.mix = nn.Dense(self.width)
        self.output = nn.Dense(self.vocab_size)
        self.gate = nn.Dense(1)
        self.drop = nn.Dropout(self.dropout, deterministic=not self.train)

    def embed(self, example):
        """Embedding of every token that is given, float32[T, D]."""
        return self.table(layers.tokens_and_mask(example)[0])

    def head(self, embeddings, example):
        """Log-probabilities of every token written given those before, [U, V]."""
        tokens_T, mask_T = layers.tokens_and_mask(example)
        states_T, final = self.encoder(self.drop(embeddings), mask_T)
        target = jnp.asarray(example["target"], jnp.int32)
        before = jnp.concatenate([jnp.full(1, END, jnp.int32), target[:-1]])
        begin = jnp.tanh(self.bridge(final))
        states_U = self.decoder(self.drop(self.table(before)), begin)
        scores_UT = self.attention(states_U) @ states_T.T
        scores_UT = jnp.where(mask_T[None, :], scores_UT, _NEVER)
        weights_UT = jax.nn.softmax(scores_UT, axis=1)
        heard_U = weights_UT @ states_T
        mixed = jnp.tanh(self.mix(jnp.concatenate([states_U, heard_U], axis=1)))
        mixed = self.drop(mixed)
        words_UV = jax.nn.log_softmax(self.output(mixed))
        copies_UV = jnp.zeros_like(words_UV).at[:, tokens_T].add(weights_UT)
        gate_U = self.gate(mixed)
        return jnp.logaddexp(
            jax.nn.log_sigmoid(gate_U) + words_UV,
            jax.nn.log_sigmoid(-gate_U) + jnp.log(copies_UV + _TINY),
        )

    def __call__(self, example):
        """Log-probabilities of every token written given those before, [U, V]."""
        return self.head(self.embed(example), example)


def task(
    vocab_size: int,
    *,
    width: int = 64,
    hidden: int = 128,
    dropout: float = 0.0,
) -> task_lib.Task:
    """An encoder and decoder as a `Task` with `embed` and `head`.

    Examples hold `tokens` i32[T], `length`, `target` i32[U] and `target_length`. Loss:
    mean of -log p over the tokens of the target and its end. Metrics: `loss` and
    `token_accuracy`, given the right words before.

    Args:
      vocab_size: V, padding (0) included, which no word has.
      width: of an embedding.
      hidden: of the state of the decoder, and of one direction of the encoder.
      dropout: rate on embeddings and before the output, in training only.

    Raises:
      ValueError: if a size or the rate is out of range.
    """
    module = Network(
        _validate.integer_at_least("model.vocabulary_size", vocab_size, 2),
        _validate.integer_at_least("model.width", width, 1),
        _validate.integer_at_least("model.hidden", hidden, 1),
        layers.dropout_rate("model.dropout", dropout),
    )
    dummy = layers.text_dummy()
    dummy |= {"target": dummy["tokens"], "target_length": dummy["length"]}
    init, forward, predict = layers.functions(module, dummy, rngs=dropout > 0)
    embed, head = layers.embed_and_head(module)

    def training_loss(params, example, key):
        return loss(forward(params, example, key), example)

    metrics = {"loss": loss, "token_accuracy": token_accuracy}
    return task_lib.Task(init, training_loss, predict, metrics, embed, head)


def loss(log_probs: jax.Array, example: task_lib.Example) -> jax.Array:
    """Mean of -log p over the tokens of the target and its end, float32[]."""
    said_U, target_U = _said(example)
    picked = jnp.take_along_axis(log_probs, target_U[:, None], axis=1)[:, 0]
    return -jnp.sum(jnp.where(said_U, picked, 0.0)) / _count(said_U)


def token_accuracy(log_probs: jax.Array, example: task_lib.Example) -> jax.Array:
    """Share of the tokens of the target, and its end, that are the most probable."""
    said_U, target_U = _said(example)
    right = (jnp.argmax(log_probs, axis=-1) == target_U) & said_U
    return jnp.sum(right).astype(jnp.float32) / _count(said_U)


def greedy(
    predict: Callable[[Any, task_lib.Example], jax.Array],
) -> Callable[[Any, task_lib.Example], jax.Array]:
    """(params, example) -> the most probable next token, again and again, int32[U].

    Args:
      predict: of a task of this module: (params, example) -> float32[U, V].

    Returns:
      A function that never looks at what `example['target']` holds, only at how long it
      may be (U). What it returns is 0 at and after the end.
    """

    def write(params, example):
        many = example["target"].shape[0]

        def one(place, carry):
            written, done = carry
            seen = {**example, "target": written, "target_length": jnp.int32(many)}
            said = jnp.argmax(predict(params, seen)[place]).astype(jnp.int32)
            done = done | (said == END)
            return written.at[place].set(jnp.where(done, END, said)), done

        empty = jnp.zeros(many, jnp.int32), jnp.asarray(False)
        return jax.lax.fori_loop(0, many, one, empty)[0]

    return write


def _said(example):
    """Which places are to be said, bool[U]: the target and its end; and the target."""
    target = jnp.asarray(example["target"], jnp.int32)
    places = jnp.arange(target.shape[0], dtype=jnp.int32)
    length = jnp.asarray(example["target_length"], jnp.int32)
    real = places < length
    return places <= length, jnp.where(real, target, END)


def _count(said):
    return jnp.maximum(jnp.sum(said), 1).astype(jnp.float32)
