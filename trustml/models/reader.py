"""A reader: which words of a paragraph answer a question.

    q_U  = BiGRU(E question),   q = sum_u softmax(w . q_U)_u q_U
    x_t  = [E_t, sum_u softmax(f(E_t) . f(E question))_u E_u, 1[token t is asked for]]
    c_T  = BiGRU(x)
    log p(start = t) = log softmax_t(c_t W_start q),    end likewise

with f one dense layer with ReLU: every token of the paragraph is told which word of the
question is like it before the paragraph is read (the features of Chen et al. 2017,
Document Reader, without those of a tagger). Both texts share the embeddings.

The answer is the span of the largest p(start) p(end) among those of at most `longest`
tokens. Examples whose answer was cut off (`start` -1) have loss 0.

Dimension key: `T` tokens of the paragraph, `U` of the question, `D` width.

Example::

    model = reader.task(vocab_size=8192, width=64, hidden=64)
    params = model.init(jax.random.key(0))
    found = model.predict(params, example)            # Span(start=[160], end=[160])
    start, end = reader.best(found, longest=15)

References: https://arxiv.org/abs/1704.00051
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from trustml import _validate
from trustml import task as task_lib
from trustml.models import gru, layers

LONGEST = 15  # tokens of an answer, of which 98% in SQuAD have no more
_NEVER = -1e9  # a score whose probability is exactly 0


class Span(NamedTuple):
    """Log-probabilities float32[T] of the first and of the last token of the answer."""

    start: jax.Array
    end: jax.Array


def question(example: task_lib.Example) -> dict[str, jax.Array]:
    """The question of an example as a text: tokens and length."""
    return {"tokens": example["question"], "length": example["question_length"]}


class Network(nn.Module):
    """The module behind `task`."""

    vocab_size: int
    width: int
    hidden: int
    dropout: float
    train: bool = False

    def setup(self):
        """One table, the layer of likeness, two recurrent layers, two products."""
        self.table = nn.Embed(self.vocab_size, self.width)
        self.alike = nn.Dense(self.width)
        self.asked = gru.Gru(self.hidden, 2)
        self.read = gru.Gru(self.hidden, 2)
        self.weigh = nn.Dense(1)
        self.first = nn.Dense(2 * self.hidden)
        self.last = nn.Dense(2 * self.hidden)
        self.drop = nn.Dropout(self.dropout, deterministic=not self.train)

    def embed(self, example):
        """Embedding of every token of the paragraph, float32[T, D]."""
        return self.table(layers.tokens_and_mask(example)[0])

    def head(self, embeddings, example):
        """`Span` of log-probabilities."""
        tokens_T, mask_T = layers.tokens_and_mask(example)
        tokens_U, mask_U = layers.tokens_and_mask(question(example))
        asked_UD = self.drop(self.table(tokens_U))
        text_TD = self.drop(embeddings)
        likeness_TU = jax.nn.relu(self.alike(text_TD)) @ (
            jax.nn.relu(self.alike(asked_UD)).T
        )
        likeness_TU = jnp.where(mask_U[None, :], likeness_TU, _NEVER)
        aligned_TD = jax.nn.softmax(likeness_TU, axis=1) @ asked_UD
        here, there = (x.astype(jnp.int32) for x in (tokens_T, tokens_U))
        same_TU = (here[:, None] == there[None, :]) & mask_U[None, :]
        same_T = jnp.any(same_TU, axis=1).astype(text_TD.dtype)
        inputs = jnp.concatenate([text_TD, aligned_TD, same_T[:, None]], axis=1)
        states_T, _ = self.read(inputs, mask_T)
        states_T = self.drop(states_T)
        states_U, _ = self.asked(asked_UD, mask_U)
        states_U = self.drop(states_U)
        weight_U = jnp.where(mask_U, self.weigh(states_U)[:, 0], _NEVER)
        meaning = jax.nn.softmax(weight_U) @ states_U

        def place(dense):
            return jax.nn.log_softmax(
                jnp.where(mask_T, states_T @ dense(meaning), _NEVER)
            )

        return Span(place(self.first), place(self.last))

    def __call__(self, example):
        """`Span` of log-probabilities."""
        return self.head(self.embed(example), example)


def task(
    vocab_size: int,
    *,
    width: int = 64,
    hidden: int = 64,
    dropout: float = 0.0,
) -> task_lib.Task:
    """A reader as a `Task` with `embed` and `head`.

    Examples hold `tokens` i32[T], `length`, `question` i32[U], `question_length`,
    `start` and `end` i32[]. Loss: -log p(start) - log p(end), 0 where they are -1.
    Metrics: `exact` (of the tokens) and `loss`.

    Args:
      vocab_size: number of token ids, padding (0) included.
      width: D, width of an embedding.
      hidden: width of the state of one direction.
      dropout: rate on embeddings and states, in training only.

    Raises:
      ValueError: if a size or the rate is out of range.
    """
    module = Network(
        _validate.integer_at_least("model.vocabulary_size", vocab_size, 1),
        _validate.integer_at_least("model.width", width, 1),
        _validate.integer_at_least("model.hidden", hidden, 1),
        layers.dropout_rate("model.dropout", dropout),
    )
    dummy = layers.text_dummy()
    dummy |= {"question": dummy["tokens"], "question_length": dummy["length"]}
    init, forward, predict = layers.functions(module, dummy, rngs=dropout > 0)
    embed, head = layers.embed_and_head(module)

    def training_loss(params, example, key):
        return loss(forward(params, example, key), example)

    metrics = {"exact": exact, "loss": loss}
    return task_lib.Task(init, training_loss, predict, metrics, embed, head)


def loss(prediction: Span, example: task_lib.Example) -> jax.Array:
    """-log p(start) - log p(end), float32[]; 0 where the answer was cut off."""
    start, end = _answer(example)
    there = start >= 0
    start, end = jnp.where(there, start, 0), jnp.where(there, end, 0)
    said = jnp.take(prediction.start, start) + jnp.take(prediction.end, end)
    return jnp.where(there, -said, 0.0)


def best(prediction: Span, longest: int = LONGEST) -> tuple[jax.Array, jax.Array]:
    """First and last token of the most probable span of at most `longest` tokens."""
    count = prediction.start.shape[0]
    ahead = jnp.arange(count)[None, :] - jnp.arange(count)[:, None]
    both = prediction.start[:, None] + prediction.end[None, :]
    both = jnp.where((ahead >= 0) & (ahead < longest), both, -jnp.inf)
    place = jnp.argmax(both).astype(jnp.int32)
    return place // count, place % count


def exact(prediction: Span, example: task_lib.Example) -> jax.Array:
    """1 where both ends of the most probable span are right, else 0; float32[]."""
    start, end = best(prediction)
    right = (start == _answer(example)[0]) & (end == _answer(example)[1])
    return right.astype(jnp.float32)


def _answer(example):
    return tuple(jnp.asarray(example[name], jnp.int32) for name in ("start", "end"))
