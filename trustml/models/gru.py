"""A bidirectional GRU that classifies the intent and tags the slots of an utterance.

    [r, u] = sigmoid(x_t W_in + h_{t-1} W_rec + b),
    n = tanh(x_t W_n + b_n + r (h_{t-1} U_n)),    h_t = u h_{t-1} + (1 - u) n

(Cho et al. 2014, with the reset gate after the product.) The intent is read from the
final states, the tag of every token by a softmax over its state: no chain, hence about
as small as a joint model gets, and quick to train many times over for attacks.

Both directions run in one scan, in one product with a stacked kernel. Padding holds the
state still, so the backward direction starts at the last real token.

With `spelling` the vector of a word is the mean of those of its character n-grams, and
no parameter belongs to one word alone; see `trustml.data.spelling`.

Example::

    model = gru.task(vocab_size=8192, num_intents=7, num_slots=72)
    params = model.init(jax.random.key(0))
    example = {'tokens': jnp.array([5, 9, 0]), 'length': jnp.array(2)}
    prediction = model.predict(params, example)  # Joint(label=[7], slots=[3, 72])

References: https://arxiv.org/abs/1406.1078
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from trustml import _validate
from trustml import task as task_lib
from trustml.models import layers, tagging

Joint = tagging.Joint


class Gru(nn.Module):
    """x[T, D] -> states [T, N H] and final states [N H] of N directions, 1 or 2."""

    width: int  # H
    directions: int  # N

    @nn.compact
    def __call__(self, x, mask, initial=None):
        """States at padding are those of the nearest real token (0 if there is none).

        Args:
          x: float32[T, D].
          mask: bool[T]; false at padding.
          initial: float32[N H], states before the text; zeros where None.
        """
        width, count = self.width, self.directions
        kernels = nn.initializers.glorot_uniform(batch_axis=(0,))
        inputs = (count, x.shape[1], 3 * width)
        w_in = self.param("input_kernel", kernels, inputs)
        w_rec = self.param("recurrent_kernel", kernels, (count, width, 3 * width))
        bias = self.param("bias", nn.initializers.zeros_init(), (count, 3 * width))
        gates = jnp.einsum("td,ndk->tnk", x, w_in) + bias[None]
        masks = jnp.broadcast_to(mask[:, None], (x.shape[0], count))
        if count == 2:
            gates = jnp.stack([gates[:, 0], gates[::-1, 1]], axis=1)
            masks = jnp.stack([mask, mask[::-1]], axis=1)

        def step(h, inputs):
            gate, keep = inputs
            r_x, u_x, n_x = jnp.split(gate, 3, axis=-1)
            r_h, u_h, n_h = jnp.split(jnp.einsum("nh,nhk->nk", h, w_rec), 3, axis=-1)
            u = jax.nn.sigmoid(u_x + u_h)
            new = jnp.tanh(n_x + jax.nn.sigmoid(r_x + r_h) * n_h)
            h = jnp.where(keep[:, None], u * h + (1 - u) * new, h)
            return h, h

        start = jnp.zeros((count, width), x.dtype)
        if initial is not None:
            start = initial.reshape(count, width)
        final, states = jax.lax.scan(step, start, (gates, masks))
        if count == 2:
            states = jnp.stack([states[:, 0], states[::-1, 1]], axis=1)
        return states.reshape(x.shape[0], count * width), final.reshape(-1)


class Network(nn.Module):
    """The module behind `task`."""

    rows: int  # of the table: words, or buckets of n-grams
    num_intents: int
    num_slots: int
    width: int
    hidden: int
    directions: int
    dropout: float
    train: bool = False

    def setup(self):
        """Embeddings, the recurrent layer, the two heads."""
        self.table = nn.Embed(self.rows, self.width)
        self.recurrent = Gru(self.hidden, self.directions)
        if self.num_intents:
            self.intent = nn.Dense(self.num_intents)
        self.slot = nn.Dense(self.num_slots)
        self.drop = nn.Dropout(self.dropout, deterministic=not self.train)

    def embed(self, example):
        """Embedding of every token, float32[T, D]."""
        if "ngrams" not in example:
            return self.table(layers.tokens_and_mask(example)[0])
        real = example["ngrams"] > 0  # [T, C]
        vectors = jnp.where(real[:, :, None], self.table(example["ngrams"]), 0.0)
        count = jnp.maximum(jnp.sum(real, axis=1), 1).astype(vectors.dtype)
        return jnp.sum(vectors, axis=1) / count[:, None]

    def head(self, embeddings, example):
        """`Joint` of the log-probabilities of intents and of tags, or those of tags."""
        _, mask = layers.tokens_and_mask(example)
        states, final = self.recurrent(self.drop(embeddings), mask)
        slots = jax.nn.log_softmax(self.slot(self.drop(states)))
        if not self.num_intents:
            return slots
        return Joint(jax.nn.log_softmax(self.intent(self.drop(final))), slots)

    def __call__(self, example):
        """`Joint` of the log-probabilities of intents and of tags."""
        return self.head(self.embed(example), example)


def task(
    vocab_size: int,
    num_intents: int,
    num_slots: int,
    *,
    width: int = 64,
    hidden: int = 64,
    bidirectional: bool = True,
    dropout: float = 0.0,
    slot_weight: float = 1.0,
    slot_total: bool = False,
    spelling: np.ndarray | None = None,
) -> task_lib.Task:
    """A joint intent classifier and slot tagger as a `Task` with `embed` and `head`.

    Examples hold `tokens` i32[T], `length` i32[], `label` i32[] and `slots` i32[T].
    Loss: -log p(label) - slot_weight * mean over the tokens of log p(slot), or their
    sum (`slot_total`), which makes it the log-probability of all labels. Metrics:
    `accuracy`, `loss` (both of the intent), `slot_accuracy`, `frame_accuracy`. Without
    intents `predict` gives log-probabilities of tags alone, float32[T, S], and the
    metrics are `slot_accuracy` and `slot_loss`.

    Args:
      vocab_size: number of token ids, padding (0) included.
      num_intents: C; 0 for tags alone.
      num_slots: S, number of tags.
      width: D, width of an embedding.
      hidden: H, width of the state of one direction.
      bidirectional: whether a second direction runs backwards.
      dropout: rate on embeddings and states, in training only.
      slot_weight: weight of the slots in the loss; 0 trains the intent alone.
      slot_total: sum over the tokens in place of the mean.
      spelling: int32[V, C], n-grams of every id, 0 for none; None: a vector for each
        word.

    Raises:
      ValueError: if a size, the rate, the weight or the table is out of range.
    """
    rows = _validate.integer_at_least("model.vocabulary_size", vocab_size, 1)
    if spelling is not None:
        rows = _rows(spelling, rows)
    module = Network(
        rows,
        _intents(num_intents),
        _validate.integer_at_least("model.num_slots", num_slots, 2),
        _validate.integer_at_least("model.width", width, 1),
        _validate.integer_at_least("model.hidden", hidden, 1),
        2 if _validate.boolean("model.bidirectional", bidirectional) else 1,
        layers.dropout_rate("model.dropout", dropout),
    )
    weight = _validate.non_negative("model.slot_weight", slot_weight)

    def spelled(example):
        """The example with the n-grams of its tokens, where words are spelled."""
        if spelling is None:
            return example
        tokens, _ = layers.tokens_and_mask(example)
        return {**example, "ngrams": jnp.asarray(spelling, jnp.int32)[tokens]}

    init, forward, whole = layers.functions(
        module, spelled(layers.text_dummy()), rngs=dropout > 0
    )
    rows_of, head = layers.embed_and_head(module)

    def predict(params, example):
        return whole(params, spelled(example))

    def embed(params, example):
        return rows_of(params, spelled(example))

    def loss(params, example, key):
        prediction = forward(params, spelled(example), key)
        slots = tagging.slot_cross_entropy(prediction, example, total=slot_total)
        if not num_intents:
            return weight * slots
        return task_lib.cross_entropy(prediction, example) + weight * slots

    metrics = tagging.JOINT_METRICS if num_intents else tagging.SLOT_METRICS
    return task_lib.Task(init, loss, predict, metrics, embed, head)


def _intents(count: int) -> int:
    if count == 0:
        return 0
    return _validate.integer_at_least("model.num_intents", count, 2, "0 tags alone")


def _rows(spelling: np.ndarray, vocab_size: int) -> int:
    """Rows of the table of n-grams, the one for none included."""
    shape = np.shape(spelling)
    if len(shape) != 2 or shape[0] != vocab_size or np.min(spelling) < 0:
        bound = f"must be [{vocab_size}, C] of numbers >= 0"
        cure = "make it with data.spelling.table"
        _validate.fail("spelling", list(shape), bound, cure)
    return int(np.max(spelling)) + 1
