"""A bidirectional LSTM that classifies the intent and tags the slots of an utterance.

    [i, f, g, o] = x_t W_in + h_{t-1} W_rec + b
    c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g),   h_t = sigmoid(o) tanh(c_t)

(Hochreiter, Schmidhuber 1997; forget gate with bias 1). The intent is read from the two
final states, the slots by a linear-chain CRF over all states (Huang, Xu, Yu 2015).

Both directions run in one scan, and their input projections, for all tokens at once, in
one matrix product before it. Padding holds the state still, so the backward direction
starts at the last real token whatever the padding.

Example::

    model = bilstm.task(vocab_size=8192, num_intents=7, num_slots=72)
    params = model.init(jax.random.key(0))
    example = {'tokens': jnp.array([5, 9, 0]), 'length': jnp.array(2)}
    prediction = model.predict(params, example)  # Joint(label=[7], slots=[3, 72])

References: https://arxiv.org/abs/1508.01991
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from trustml import _validate
from trustml import task as task_lib
from trustml.models import crf, layers, tagging

Joint = tagging.Joint


def _cell(gates, cell):
    """New hidden and cell state [H] from gates [4H] in the order i, f, g, o."""
    i, f, g, o = jnp.split(gates, 4)
    cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(cell), cell


def _input_bias(key, shape, dtype=jnp.float32):
    """Zeros, but 1 for the forget gates of both directions."""
    del key
    gate = jnp.zeros(shape[0] // 8, dtype)
    return jnp.concatenate([gate, gate + 1, gate, gate] * 2)


class BiLstm(nn.Module):
    """x[T, D] -> states [T, 2H] and final states [2H] of both directions."""

    width: int  # H

    @nn.compact
    def __call__(self, x, mask):
        """States at padding are those of the nearest real token (0 if there is none).

        Args:
          x: float32[T, D].
          mask: bool[T]; false at padding.
        """
        width = self.width
        kernel_shape = (x.shape[1], 8 * width)
        w_in = self.param("input_kernel", nn.initializers.lecun_normal(), kernel_shape)
        bias = self.param("bias", _input_bias, (8 * width,))
        recurrent = [
            self.param(name, nn.initializers.glorot_uniform(), (width, 4 * width))
            for name in ("forward_kernel", "backward_kernel")
        ]
        gates = x @ w_in + bias[None, :]

        def step(carry, inputs):
            new = []
            for (h, c), w, gate, keep in zip(carry, recurrent, *inputs, strict=True):
                new_h, new_c = _cell(gate + h @ w, c)
                new.append((jnp.where(keep, new_h, h), jnp.where(keep, new_c, c)))
            return tuple(new), tuple(h for h, _ in new)

        zero = jnp.zeros(width, x.dtype)
        final, (ahead, back) = jax.lax.scan(
            step,
            ((zero, zero), (zero, zero)),
            (
                (gates[:, : 4 * width], gates[::-1, 4 * width :]),
                (mask, mask[::-1]),
            ),
        )
        states = jnp.concatenate([ahead, back[::-1]], axis=1)
        return states, jnp.concatenate([h for h, _ in final])


class Network(nn.Module):
    """The module behind `task`; `scores` is the part before the CRF."""

    vocab_size: int
    num_intents: int
    num_slots: int
    width: int
    hidden: int
    depth: int
    dropout: float
    train: bool = False

    def setup(self):
        """Embeddings, the recurrent layers, the two heads and the chain."""
        self.table = nn.Embed(self.vocab_size, self.width)
        self.recurrent = [BiLstm(self.hidden) for _ in range(self.depth)]
        self.intent = nn.Dense(self.num_intents)
        self.slot = nn.Dense(self.num_slots)
        size, zeros = self.num_slots, nn.initializers.zeros_init()
        self.transitions = self.param("transitions", zeros, (size, size))
        self.start = self.param("start", zeros, (size,))
        self.end = self.param("end", zeros, (size,))
        self.drop = nn.Dropout(self.dropout, deterministic=not self.train)

    def embed(self, example):
        """Embedding of every token, float32[T, D]."""
        return self.table(layers.tokens_and_mask(example)[0])

    def scores(self, embeddings, example):
        """Log-probabilities of intents [C], the chain, its emissions [T, S]."""
        _, mask = layers.tokens_and_mask(example)
        x, final = self.drop(embeddings), None
        for layer in self.recurrent:
            x, final = layer(x, mask)
            x = self.drop(x)
        label = jax.nn.log_softmax(self.intent(self.drop(final)))
        chain = crf.Crf(self.transitions, self.start, self.end)
        return label, chain, self.slot(x)

    def head(self, embeddings, example):
        """`Joint` of the log-probabilities of intents and of tags."""
        label, chain, emissions = self.scores(embeddings, example)
        return Joint(label, crf.log_marginals(chain, emissions, example["length"]))

    def loss(self, example, slot_weight):
        """Negative log-likelihood of the intent and, per token, of the tags."""
        label, chain, emissions = self.scores(self.embed(example), example)
        length = example["length"]
        slots = crf.log_likelihood(chain, emissions, example["slots"], length)
        tokens = jnp.maximum(length, 1).astype(jnp.float32)
        return task_lib.cross_entropy(label, example) - slot_weight * slots / tokens

    def viterbi(self, example):
        """The most probable tags, int32[T]."""
        _, chain, emissions = self.scores(self.embed(example), example)
        return crf.viterbi(chain, emissions, example["length"])

    def __call__(self, example):
        """`Joint` of the log-probabilities of intents and of tags."""
        return self.head(self.embed(example), example)


def _network(vocab_size, num_intents, num_slots, width, hidden, depth, dropout):
    return Network(
        _validate.integer_at_least("model.vocabulary_size", vocab_size, 1),
        _validate.integer_at_least("model.num_intents", num_intents, 2),
        _validate.integer_at_least("model.num_slots", num_slots, 2),
        _validate.integer_at_least("model.width", width, 1),
        _validate.integer_at_least("model.hidden", hidden, 1),
        _validate.integer_at_least("model.depth", depth, 1),
        layers.dropout_rate("model.dropout", dropout),
    )


def task(
    vocab_size: int,
    num_intents: int,
    num_slots: int,
    *,
    width: int = 64,
    hidden: int = 64,
    depth: int = 1,
    dropout: float = 0.0,
    slot_weight: float = 1.0,
) -> task_lib.Task:
    """A joint intent classifier and slot tagger as a `Task` with `embed` and `head`.

    Examples hold `tokens` i32[T], `length` i32[], `label` i32[] and `slots` i32[T].
    Loss: -log p(label) - slot_weight * log p(slots) / length. Metrics: `accuracy`,
    `loss` (both of the intent), `slot_accuracy` (share of right tokens, by largest
    marginal) and `frame_accuracy`; span F1 of a data set is `tagging.span_scores`.

    Args:
      vocab_size: number of token ids, padding (0) included.
      num_intents: C.
      num_slots: S, number of tags.
      width: D, width of an embedding.
      hidden: H, width of the state of one direction.
      depth: number of stacked bidirectional layers.
      dropout: rate on embeddings and states, in training only.
      slot_weight: weight of the slots in the loss; 0 trains the intent alone.

    Raises:
      ValueError: if a size, the rate or the weight is out of range.
    """
    module = _network(vocab_size, num_intents, num_slots, width, hidden, depth, dropout)
    weight = _validate.non_negative("model.slot_weight", slot_weight)
    training = module.clone(train=True)
    init, _, predict = layers.functions(module, layers.text_dummy())
    embed, head = layers.embed_and_head(module)

    def loss(params, example, key) -> Any:
        return training.apply(
            {"params": params},
            example,
            weight,
            rngs={"dropout": key} if dropout > 0 else {},
            method="loss",
        )

    return task_lib.Task(init, loss, predict, tagging.JOINT_METRICS, embed, head)


def decoder(
    vocab_size: int,
    num_intents: int,
    num_slots: int,
    *,
    width: int = 64,
    hidden: int = 64,
    depth: int = 1,
) -> Callable[[task_lib.Params, task_lib.Example], jax.Array]:
    """(params, example) -> the most probable sequence of tags (Viterbi), int32[T].

    For parameters of `task` built with the same sizes.
    """
    module = _network(vocab_size, num_intents, num_slots, width, hidden, depth, 0.0)

    def decode(params, example) -> Any:
        return module.apply({"params": params}, example, method="viterbi")

    return decode
