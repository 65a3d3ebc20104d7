"""A small causal language model: embeddings, one GRU, a softmax over the vocabulary.

    h_t = GRU(h_{t-1}, E x_{t-1}),    log p(x_t | x_<t) = log softmax(W h_t + b)

with x_0 the padding id 0, which begins every text. Tokens are numbers: words, pieces of
words or characters, whatever tokenizer made them (`tokenizers.characters` for the
latter). Tied, W h is E P h, with P from the state to the width of an embedding where
they differ: half the parameters, and every row of the table has a gradient.

Input projections are one product outside the recurrence; only h_{t-1} W is inside.

Loss is the mean over the tokens of a text. Figures of a data set count tokens and not
texts, so there are the sums `nats`, `hits` and `tokens` among the metrics, whose means
over texts `over_tokens` turns into perplexity and next-token accuracy.

Dimension key: `T` tokens of a text, `V` vocabulary, `D` width.

Example::

    model = language_model.task(vocab_size=90, width=8, hidden=128)    # characters
    params = model.init(jax.random.key(0))
    example = {'tokens': jnp.array([5, 9, 0]), 'length': jnp.array(2)}
    log_probs = model.predict(params, example)         # [3, 90]; row t is of token t
    said = language_model.token_log_probs(log_probs, example['tokens'])      # [3]

References: https://arxiv.org/abs/1406.1078 (GRU), https://arxiv.org/abs/1608.05859
(tied embeddings)
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from trustml import _validate
from trustml import task as task_lib
from trustml.models import generate, gru, layers


class Network(nn.Module):
    """The module behind `task`."""

    vocab_size: int
    width: int
    hidden: int
    tied: bool
    dropout: float
    train: bool = False

    def setup(self):
        """The table, the recurrent layer, the output."""
        self.table = nn.Embed(self.vocab_size, self.width)
        self.recurrent = gru.Gru(self.hidden, 1)
        if not self.tied:
            self.output = nn.Dense(self.vocab_size)
        else:
            zeros = nn.initializers.zeros_init()
            self.bias = self.param("output_bias", zeros, (self.vocab_size,))
            if self.hidden != self.width:
                self.projection = nn.Dense(self.width, use_bias=False)
        self.drop = nn.Dropout(self.dropout, deterministic=not self.train)

    def embed(self, example):
        """Embedding of every token, float32[T, D]."""
        return self.table(layers.tokens_and_mask(example)[0])

    def head(self, embeddings, example):
        """Log-probabilities of every token given those before it, float32[T, V]."""
        _, mask = layers.tokens_and_mask(example)
        begin = self.table(jnp.zeros(1, jnp.int32))
        before = jnp.concatenate([begin, embeddings[:-1]])
        states, _ = self.recurrent(self.drop(before), mask)
        return jax.nn.log_softmax(self.logits(self.drop(states)))

    def logits(self, states):
        """Logits float32[T, V] of states [T, H]."""
        if not self.tied:
            return self.output(states)
        if self.hidden != self.width:
            states = self.projection(states)
        return self.table.attend(states) + self.bias[None]

    def __call__(self, example):
        """Log-probabilities of every token given those before it, float32[T, V]."""
        return self.head(self.embed(example), example)

    def prefill(self, tokens, length):
        """Logits [V] of the token after the prompt, and the state [1, H] there."""
        place = jnp.arange(tokens.shape[0] + 1, dtype=jnp.int32)
        before = jnp.concatenate([jnp.zeros(1, jnp.int32), tokens])
        before = jnp.where(place <= length, before, 0)
        _, state = self.recurrent(self.table(before), place <= length)
        return self.logits(state[None])[0], state[None]

    def step(self, token, state):
        """Logits [V] of the token after `token`, and the state [1, H] there."""
        here = jnp.ones(1, bool)
        _, state = self.recurrent(self.table(token[None]), here, state[0])
        return self.logits(state[None])[0], state[None]


class OverTokens(NamedTuple):
    """Figures of a data set, over all of its tokens."""

    perplexity: float  # exp of the mean nats of a token; inf where it overflows
    accuracy: float  # share of tokens that were the most probable ones
    bits: float  # a token


def task(
    vocab_size: int,
    *,
    width: int = 64,
    hidden: int = 128,
    tied: bool = False,
    dropout: float = 0.0,
) -> task_lib.Task:
    """A causal language model as a `Task` with `embed` and `head`.

    Examples hold `tokens` i32[T] and `length` i32[]. `predict` gives log-probabilities
    float32[T, V], row t of token t given those before it; rows at and after `length`
    mean nothing. Loss: mean of -log p over the tokens of the text, 0 for an empty one.
    Metrics: `loss`, `accuracy` (of the text), and for `over_tokens` the sums `nats`,
    `hits` and `tokens`.

    Args:
      vocab_size: V, padding (0) included.
      width: D, width of an embedding.
      hidden: width of the state.
      tied: whether the output reads the table of embeddings.
      dropout: rate on embeddings and states, in training only.

    Raises:
      ValueError: if a size or the rate is out of range.
    References: https://arxiv.org/abs/1406.1078
    """
    module = _network(vocab_size, width, hidden, tied, dropout)
    init, forward, predict = layers.functions(
        module, layers.text_dummy(), rngs=dropout > 0
    )
    embed, head = layers.embed_and_head(module)

    def training_loss(params, example, key):
        return loss(forward(params, example, key), example)

    return task_lib.Task(init, training_loss, predict, metrics(), embed, head)


def decoder(
    vocab_size: int, *, width: int = 64, hidden: int = 128, tied: bool = False
) -> generate.Decoder:
    """Prefill and step of the model of `task`, for `generate.sampler`.

    Arguments are those of `task`; parameters are the same, and a text has no bound.

    Raises:
      ValueError: if a size is out of range.
    """
    module = _network(vocab_size, width, hidden, tied)

    def prefill(params, tokens, length, slots) -> Any:
        return module.apply({"params": params}, tokens, length, method="prefill")

    def step(params, token, position, state) -> Any:
        return module.apply({"params": params}, token, state, method="step")

    return generate.Decoder(module.vocab_size, 0, prefill, step)


def metrics() -> dict[str, Any]:
    """The metrics of a language model, by name; see `task`."""
    return {
        "loss": loss,
        "accuracy": accuracy,
        "nats": nats,
        "hits": hits,
        "tokens": tokens,
    }


def _network(vocab_size, width, hidden, tied, dropout=0.0):
    return Network(
        _validate.integer_at_least("model.vocabulary_size", vocab_size, 2),
        _validate.integer_at_least("model.width", width, 1),
        _validate.integer_at_least("model.hidden", hidden, 1),
        _validate.boolean("model.tied", tied),
        layers.dropout_rate("model.dropout", dropout),
    )


def token_log_probs(log_probs: jax.Array, tokens: jax.Array) -> jax.Array:
    """Log p of every token, float32[..., T]; for `attacks.language`.

    Args:
      log_probs: float32[..., T, V], of `predict`.
      tokens: int32[..., T]; ids outside the vocabulary, as padding may hold, give NaN.
    """
    at = jnp.asarray(tokens, jnp.int32)[..., None]
    found = jnp.take_along_axis(log_probs, at, axis=-1, mode="fill")
    return found[..., 0]


def nats(prediction: jax.Array, example: task_lib.Example) -> jax.Array:
    """-log p of the text, float32[]; 0 for an empty one."""
    said = token_log_probs(prediction, example["tokens"])
    return -jnp.sum(jnp.where(_real(example), said, 0.0))


def hits(prediction: jax.Array, example: task_lib.Example) -> jax.Array:
    """Number of tokens that were the most probable ones, float32[]."""
    right = jnp.argmax(prediction, axis=-1) == example["tokens"]
    return jnp.sum(right & _real(example), dtype=jnp.float32)


def tokens(prediction: jax.Array, example: task_lib.Example) -> jax.Array:
    """Number of tokens of the text, float32[]."""
    return jnp.sum(_real(example), dtype=jnp.float32)


def loss(prediction: jax.Array, example: task_lib.Example) -> jax.Array:
    """Mean of -log p over the tokens of the text, float32[]."""
    count = jnp.maximum(tokens(prediction, example), 1.0)
    return nats(prediction, example) / count


def accuracy(prediction: jax.Array, example: task_lib.Example) -> jax.Array:
    """Share of the text's tokens that were the most probable ones, float32[]."""
    count = jnp.maximum(tokens(prediction, example), 1.0)
    return hits(prediction, example) / count


def over_tokens(found: Mapping[str, Any]) -> OverTokens:
    """Perplexity and next-token accuracy of a data set.

    Args:
      found: means (or sums) over its texts of the metrics `nats`, `hits`, `tokens`.

    Raises:
      ValueError: if there is no token.
    """
    count = _validate.positive("tokens", float(found["tokens"]), "give texts")
    mean = float(found["nats"]) / count
    perplexity = math.exp(mean) if mean < 700 else math.inf
    return OverTokens(perplexity, float(found["hits"]) / count, mean / math.log(2))


def _real(example):
    positions = jnp.arange(example["tokens"].shape[0], dtype=jnp.int32)
    return positions < jnp.asarray(example["length"], jnp.int32)
