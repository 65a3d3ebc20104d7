"""A transformer encoder from scratch: a classifier and a tagger of text.

    x = E + P;   x += Attention(LN(x));   x += MLP(LN(x));   head(LN(x))

Pre-layer-norm blocks (Xiong et al. 2020), GELU, learned positions. Parameters and
logits are float32; `compute_dtype='bfloat16'` runs activations (and matrix products) in
bfloat16, with softmax and LayerNorm statistics in float32. `scan_layers` stacks the
blocks in one `lax.scan`, which compiles in the time of one block; `remat` recomputes a
block in the backward pass instead of keeping its activations.

Example::

    model = transformer.classifier(8192, 7, max_length=32, width=128, depth=2, heads=4)
    params = model.init(jax.random.key(0))
    example = {'tokens': jnp.array([5, 9, 0]), 'length': jnp.array(2)}
    log_probs = model.predict(params, example)

References: https://arxiv.org/abs/1706.03762, https://arxiv.org/abs/2002.04745
"""

from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from trustml import _validate
from trustml import task as task_lib
from trustml.models import layers, tagging


class Block(nn.Module):
    """One pre-layer-norm block, [T, D] -> [T, D]."""

    heads: int
    mlp_width: int
    dropout: float
    dtype: Any
    train: bool

    @nn.compact
    def __call__(self, x, mask):
        """The pair (x, None), as `lax.scan` wants it."""
        width = x.shape[1]
        drop = nn.Dropout(self.dropout, deterministic=not self.train)
        h = layers.LayerNorm(name="norm_attention")(x)
        qkv = nn.Dense(3 * width, dtype=self.dtype, name="qkv")(h)
        query, key, value = jnp.split(qkv, 3, axis=1)
        h = layers.attend(query, key, value, mask, self.heads)
        x = x + drop(nn.Dense(width, dtype=self.dtype, name="out")(h))
        h = layers.LayerNorm(name="norm_mlp")(x)
        h = nn.Dense(self.mlp_width, dtype=self.dtype, name="up")(h)
        h = layers.ACTIVATIONS["gelu_tanh"](h)
        x = x + drop(nn.Dense(width, dtype=self.dtype, name="down")(h))
        return x, None


class Network(nn.Module):
    """The module behind `classifier` and `tagger`; a head of size 0 is left out."""

    vocab_size: int
    num_classes: int
    num_slots: int
    max_length: int
    width: int
    depth: int
    heads: int
    mlp_width: int
    pooling: str
    dropout: float
    compute_dtype: str
    remat: bool
    scan_layers: bool
    train: bool = False

    def setup(self):
        """Embeddings, blocks and heads."""
        self.dtype = layers.DTYPES[self.compute_dtype]
        self.table = nn.Embed(self.vocab_size, self.width)
        self.positions = self.param(
            "positions",
            nn.initializers.normal(self.width**-0.5),  # as large as the embeddings
            (self.max_length, self.width),
        )
        block = nn.remat(Block, prevent_cse=not self.scan_layers)
        block = block if self.remat else Block
        if self.scan_layers:
            block = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=cast(Any, nn.broadcast),
                length=self.depth,
            )
        copies = 1 if self.scan_layers else self.depth
        self.blocks = [
            block(self.heads, self.mlp_width, self.dropout, self.dtype, self.train)
            for _ in range(copies)
        ]
        self.norm = layers.LayerNorm()
        self.drop = nn.Dropout(self.dropout, deterministic=not self.train)
        if self.num_classes:
            self.label = nn.Dense(self.num_classes)
        if self.num_slots:
            self.slot = nn.Dense(self.num_slots)

    def embed(self, example):
        """Embedding of every token, float32[T, D], before positions."""
        return self.table(layers.tokens_and_mask(example)[0])

    def head(self, embeddings, example):
        """Log-probabilities [C], [T, S] or a `tagging.Joint` of both."""
        _, mask = layers.tokens_and_mask(example)
        length = embeddings.shape[0]
        if length > self.max_length:
            _validate.fail(
                "model.max_length",
                self.max_length,
                f"is shorter than the {length} token slots of an example",
                "raise it to data.max_length",
            )
        x = self.drop(embeddings + self.positions[:length]).astype(self.dtype)
        for block in self.blocks:
            x, _ = block(x, mask)
        x = self.norm(x.astype(jnp.float32))
        label = slots = None
        if self.num_classes:
            pooled = x[0] if self.pooling == "cls" else layers.masked_mean(x, mask)
            label = jax.nn.log_softmax(self.label(pooled))
        if self.num_slots:
            slots = jax.nn.log_softmax(self.slot(x), axis=-1)
            slots = jnp.where(mask[:, None], slots, -jnp.log(1.0 * self.num_slots))
        if label is None:
            return slots
        return label if slots is None else tagging.Joint(label, slots)

    def __call__(self, example):
        """Log-probabilities, as `head` returns them."""
        return self.head(self.embed(example), example)


def _network(
    vocab_size,
    num_classes,
    num_slots,
    *,
    max_length,
    width=128,
    depth=2,
    heads=4,
    mlp_width=None,
    pooling="mean",
    dropout=0.0,
    compute_dtype="float32",
    remat=False,
    scan_layers=False,
):
    _validate.integer_at_least("model.width", width, 1)
    _validate.integer_at_least("model.heads", heads, 1)
    if width % heads:
        _validate.fail(
            "model.heads",
            heads,
            f"must divide model.width={width}",
            f"try {max(h for h in range(1, heads) if width % h == 0)}",
        )
    return Network(
        _validate.integer_at_least("model.vocabulary_size", vocab_size, 1),
        num_classes,
        num_slots,
        _validate.integer_at_least("model.max_length", max_length, 1),
        width,
        _validate.integer_at_least("model.depth", depth, 1),
        heads,
        _validate.integer_at_least("model.mlp_width", mlp_width or 4 * width, 1),
        _validate.one_of("model.pooling", pooling, ("mean", "cls")),
        layers.dropout_rate("model.dropout", dropout),
        _validate.one_of("model.compute_dtype", compute_dtype, layers.DTYPES),
        _validate.boolean("model.remat", remat),
        _validate.boolean("model.scan_layers", scan_layers),
    )


def classifier(
    vocab_size: int,
    num_classes: int,
    *,
    max_length: int,
    width: int = 128,
    depth: int = 2,
    heads: int = 4,
    mlp_width: int | None = None,
    pooling: str = "mean",
    dropout: float = 0.0,
    compute_dtype: str = "float32",
    remat: bool = False,
    scan_layers: bool = False,
) -> task_lib.Task:
    """A transformer classifier of text as a `Task` with `embed` and `head`.

    Args:
      vocab_size: number of token ids, padding (0) included.
      num_classes: C.
      max_length: number of positions; an example may have fewer token slots, not more.
      width: D.
      depth: number of blocks.
      heads: attention heads; must divide `width`.
      mlp_width: width of the hidden layer of a block; 4 * width where None.
      pooling: 'mean' over the real tokens, or 'cls', the first token.
      dropout: rate on embeddings and on every branch of a block, in training only.
      compute_dtype: 'float32' or 'bfloat16', of activations; see the module docstring.
      remat: recompute blocks in the backward pass.
      scan_layers: stack the blocks; their parameters get a leading axis [depth].

    Raises:
      ValueError: if a size is out of range, `heads` does not divide `width`, or a name
        is unknown; when traced, if an example has more than `max_length` token slots.
    """
    _validate.integer_at_least("model.num_classes", num_classes, 2)
    module = _network(
        vocab_size,
        num_classes,
        0,
        max_length=max_length,
        width=width,
        depth=depth,
        heads=heads,
        mlp_width=mlp_width,
        pooling=pooling,
        dropout=dropout,
        compute_dtype=compute_dtype,
        remat=remat,
        scan_layers=scan_layers,
    )
    init, forward, predict = layers.functions(
        module, layers.text_dummy(1), rngs=dropout > 0
    )
    embed, head = layers.embed_and_head(module)
    return task_lib.classification(
        init, predict, forward=forward, embed=embed, head=head
    )


def tagger(
    vocab_size: int,
    num_slots: int,
    *,
    num_intents: int = 0,
    slot_weight: float = 1.0,
    **options,
) -> task_lib.Task:
    """A transformer that tags every token, and with `num_intents` classifies the text.

    Examples hold `tokens`, `length`, `slots` i32[T] (negative tags are left out of loss
    and metrics) and, with `num_intents`, `label`. `predict` gives log-probabilities of
    tags float32[T, S], or `tagging.Joint` of them and of the intents [C].

    Loss: mean cross-entropy of the tags; with intents, -log p(label) + slot_weight
    times it. Metrics: `slot_accuracy` and `slot_loss`; with intents those of
    `bilstm.task`.

    Args:
      vocab_size: number of token ids, padding (0) included.
      num_slots: S, number of tags.
      num_intents: C; 0 for tags alone.
      slot_weight: weight of the tags in the loss, where there are intents.
      **options: `max_length` and the others of `classifier`; `pooling` is that of the
        intents.

    Raises:
      ValueError: as `classifier`.
    """
    _validate.integer_at_least("model.num_slots", num_slots, 2)
    _validate.integer_at_least("model.num_intents", num_intents, 0)
    weight = _validate.non_negative("model.slot_weight", slot_weight)
    module = _network(vocab_size, num_intents, num_slots, **options)
    init, forward, predict = layers.functions(
        module, layers.text_dummy(1), rngs=module.dropout > 0
    )
    embed, head = layers.embed_and_head(module)

    def loss(params, example, key):
        prediction = forward(params, example, key)
        slots = tagging.slot_cross_entropy(prediction, example)
        if not num_intents:
            return slots
        return task_lib.cross_entropy(prediction, example) + weight * slots

    metrics = tagging.JOINT_METRICS if num_intents else tagging.SLOT_METRICS
    return task_lib.Task(init, loss, predict, metrics, embed, head)
