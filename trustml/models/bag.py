"""A bag of embeddings for text: mean of token embeddings, hidden layer, softmax.

    E_t = table[x_t] (+ table[V + hash(x_t, x_{t+1}) mod buckets]),
    log softmax(head(mean_t E_t))

Small, quick and hard to beat on short utterances (Joulin et al. 2017), it is the
workhorse of the quickstart. Bigrams are hashed into a table of fixed size, so no
vocabulary of them, which would be a release of private data, is ever built.

Example::

    model = bag.task(vocab_size=8192, num_classes=7, width=64, hidden=(64,))
    params = model.init(jax.random.key(0))
    example = {'tokens': jnp.array([5, 9, 0]), 'length': jnp.array(2)}
    log_probs = model.predict(params, example)

References: https://arxiv.org/abs/1607.01759
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from trustml import _validate
from trustml import task as task_lib
from trustml.models import layers


def hash_pairs(tokens: jax.Array, buckets: int) -> jax.Array:
    """Bucket in [0, buckets) of every token with its successor, i32[T] -> i32[T].

    The last token is paired with 0. Multiplicative hashing with an xor-shift, the same
    on every machine; collisions are harmless.
    """
    first = tokens.astype(jnp.uint32)
    second = jnp.concatenate([first[1:], jnp.zeros(1, jnp.uint32)])
    mixed = first * jnp.uint32(0x9E3779B1) + second * jnp.uint32(0x85EBCA77)
    mixed = (mixed ^ (mixed >> jnp.uint32(15))) * jnp.uint32(0xC2B2AE3D)
    mixed = mixed ^ (mixed >> jnp.uint32(13))
    return (mixed % jnp.uint32(buckets)).astype(jnp.int32)


POOLINGS = ("mean", "sqrtn")
# Small: a text's features hold what was learnt, and no random projection of its words.
_INITIAL_STDDEV = 0.01


class Network(nn.Module):
    """The module behind `task`."""

    vocab_size: int
    num_classes: int
    width: int
    hidden: tuple[int, ...]
    bigrams: int
    pooling: str
    activation: str
    dropout: float
    train: bool = False

    def setup(self):
        """One table for tokens and bigrams, the hidden layers, the head."""
        self.table = nn.Embed(
            self.vocab_size + self.bigrams,
            self.width,
            embedding_init=nn.initializers.normal(_INITIAL_STDDEV),
        )
        self.dense = [nn.Dense(width) for width in self.hidden]
        self.output = nn.Dense(self.num_classes)
        self.drop = nn.Dropout(self.dropout, deterministic=not self.train)

    def embed(self, example):
        """Embedding of every token (with its bigram), float32[T, D]."""
        tokens, _ = layers.tokens_and_mask(example)
        embeddings = self.table(tokens)
        if self.bigrams:
            pairs = hash_pairs(tokens, self.bigrams)
            embeddings = embeddings + self.table(pairs + self.vocab_size)
        return embeddings

    def head(self, embeddings, example):
        """Log-probabilities float32[C]."""
        _, mask = layers.tokens_and_mask(example)
        x = layers.masked_mean(embeddings, mask)
        if self.pooling == "sqrtn":
            x = x * jnp.sqrt(jnp.sum(mask).astype(jnp.float32))
        x = self.drop(x)
        for dense in self.dense:
            x = self.drop(layers.ACTIVATIONS[self.activation](dense(x)))
        return jax.nn.log_softmax(self.output(x))

    def __call__(self, example):
        """Log-probabilities float32[C]."""
        return self.head(self.embed(example), example)


def task(
    vocab_size: int,
    num_classes: int,
    *,
    width: int = 64,
    hidden: Sequence[int] = (64,),
    bigrams: int = 0,
    pooling: str = "mean",
    activation: str = "relu",
    dropout: float = 0.0,
) -> task_lib.Task:
    """A bag of embeddings as a `Task` with `embed` and `head`.

    Args:
      vocab_size: number of token ids, padding (0) included.
      num_classes: number of classes.
      width: D, width of an embedding.
      hidden: widths of hidden layers; empty for a linear classifier of the mean.
      bigrams: buckets for hashed pairs of neighbouring tokens; 0 leaves them out.
      pooling: 'mean' over the tokens, or 'sqrtn', their sum over the square root of
        their number, which keeps gradients of short and long texts alike in size.
      activation: a name of `layers.ACTIVATIONS`.
      dropout: rate on the mean and after every hidden layer, in training only.

    Raises:
      ValueError: if a size is out of range, the activation is unknown or the rate is
        outside [0, 1).
    """
    module = Network(
        _validate.integer_at_least("model.vocabulary_size", vocab_size, 1),
        _validate.integer_at_least("model.num_classes", num_classes, 2),
        _validate.integer_at_least("model.width", width, 1),
        layers.sizes("model.hidden", hidden),
        _validate.integer_at_least("model.bigrams", bigrams, 0),
        _validate.one_of("model.pooling", pooling, POOLINGS),
        _validate.one_of("model.activation", activation, layers.ACTIVATIONS),
        layers.dropout_rate("model.dropout", dropout),
    )
    init, forward, predict = layers.functions(
        module, layers.text_dummy(), rngs=dropout > 0
    )
    embed, head = layers.embed_and_head(module)
    return task_lib.classification(
        init, predict, forward=forward, embed=embed, head=head
    )
