"""Logistic regression on the set of words of a text: one row of weights for a word.

    log softmax(b + sum over the distinct words w of the text of W_w)

The plainest classifier of text there is, convex, and with a gradient that touches only
the rows of words that occur. Words count once, however often they occur. As a `Task` it
embeds: E_t is the row of token t, and the head adds up the first of each word.

Example::

    model = logistic.task(vocab_size=2198, num_classes=64)
    params = model.init(jax.random.key(0))
    example = {'tokens': jnp.array([5, 9, 5, 0]), 'length': jnp.array(3)}
    log_probs = model.predict(params, example)             # words 5 and 9
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from trustml import _validate
from trustml import task as task_lib
from trustml.models import layers


class Network(nn.Module):
    """The module behind `task`."""

    vocab_size: int
    num_classes: int
    train: bool = False

    def setup(self):
        """A row of weights for each word, and the bias."""
        zeros = nn.initializers.zeros_init()
        self.table = nn.Embed(self.vocab_size, self.num_classes, embedding_init=zeros)
        self.bias = self.param("bias", zeros, (self.num_classes,))

    def embed(self, example):
        """Weights of every token, float32[T, C]."""
        return self.table(layers.tokens_and_mask(example)[0])

    def head(self, embeddings, example):
        """Log-probabilities float32[C]."""
        tokens, _ = layers.tokens_and_mask(example)
        length = jnp.asarray(example["length"], jnp.int32)
        place = jnp.arange(tokens.shape[0], dtype=jnp.int32)
        same = tokens[:, None] == tokens[None, :]
        again = jnp.any(same & (place[None, :] < place[:, None]), axis=1)
        counts = (place < length) & ~again
        total = jnp.sum(jnp.where(counts[:, None], embeddings, 0.0), axis=0)
        return jax.nn.log_softmax(total + self.bias)

    def __call__(self, example):
        """Log-probabilities float32[C]."""
        return self.head(self.embed(example), example)


def task(vocab_size: int, num_classes: int) -> task_lib.Task:
    """Logistic regression on words as a `Task` with `embed` and `head`.

    Args:
      vocab_size: number of token ids, padding (0) included.
      num_classes: number of classes.

    Raises:
      ValueError: if a size is out of range.
    """
    module = Network(
        _validate.integer_at_least("model.vocabulary_size", vocab_size, 1),
        _validate.integer_at_least("model.num_classes", num_classes, 2),
    )
    init, forward, predict = layers.functions(module, layers.text_dummy(), rngs=False)
    embed, head = layers.embed_and_head(module)
    return task_lib.classification(
        init, predict, forward=forward, embed=embed, head=head
    )
