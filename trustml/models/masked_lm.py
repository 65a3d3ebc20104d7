"""Masked language models: BERT, RoBERTa and DistilBERT with their heads.

    log p(x_t | x with t masked) = log softmax(E LN(act(W h_t + b)) + c)_{x_t}

The encoder is that of `trustml.models.bert`; the output reads its table of words E. A
BERT with a next-sentence head (`cls.seq_relationship`) also says whether the second
segment follows the first. Outputs equal those of PyTorch within 1e-4.

`log_probs` is asked at given places only: a pseudo-log-likelihood needs one row of the
vocabulary for each masked variant of a sentence, not one for each token.

`task` trains one from scratch, on batches whose masks come from the key of the step.

Dimension key: `T` tokens, `P` places asked about, `V` vocabulary, `D` width.

Example::

    model = masked_lm.load(directory)
    example = {'tokens': jnp.array([101, 7592, 103, 102]), 'length': jnp.array(4)}
    log_probs = model.log_probs(model.params, example, jnp.array([2]))       # [1, V]
    small = masked_lm.task(masked_lm.config(500, width=64), mask_id=4, special_ids=(0,))

References: https://arxiv.org/abs/1810.04805, https://arxiv.org/abs/1907.11692
"""

import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from trustml import _validate
from trustml import task as task_lib
from trustml.models import bert, checkpoints, hf, language_model, layers

MASKS = ("[MASK]", "<mask>")


class MaskedModel(NamedTuple):
    """A masked language model as functions of one example.

    Examples hold `tokens` i32[T] and `length` i32[]; a BERT also reads `segments`
    i32[T] of 0 and 1 where it is there.

    Attributes:
      config: sizes of the encoder.
      params: parameters.
      log_probs: (params, example, places i32[P]) -> float32[P, V], of what stands at
        those places of the text as given (mask them first).
      follows: (params, example) -> float32[], log-odds that the second segment follows
        the first; None where the checkpoint has no such head.
    """

    config: bert.BertConfig
    params: task_lib.Params
    log_probs: Callable[..., jax.Array]
    follows: Callable[..., jax.Array] | None


class Network(bert.Network):
    """An encoder with the head of a masked language model."""

    next_sentence: bool = False

    def setup(self):
        """Encoder and heads."""
        super().setup()
        config, normal = self.config, nn.initializers.normal(0.02)
        self.transform = nn.Dense(config.width, kernel_init=normal)
        self.transform_norm = layers.LayerNorm(config.norm_epsilon)
        zeros = nn.initializers.zeros_init()
        self.output_bias = self.param("output_bias", zeros, (config.vocab_size,))
        if self.next_sentence:
            self.pooler = nn.Dense(config.width, kernel_init=normal)
            self.relation = nn.Dense(2, kernel_init=normal)

    def last(self, embeddings, example, places=None):
        """Last states float32[T, D], or [P, D]; reads `segments` of the example."""
        if self.config.num_segments > 1 and "segments" in example:
            # The encoder adds the row of segment 0 to all.
            rows = self.segment - self.segment[:1]
            embeddings = embeddings + rows[example["segments"]]
        return self.hidden(embeddings, example, places)[-1].astype(jnp.float32)

    def output(self, states):
        """Log-probabilities float32[P, V] of states [P, D]."""
        name = "gelu" if self.config.family == "roberta" else self.config.activation
        h = self.transform_norm(layers.ACTIVATIONS[name](self.transform(states)))
        logits = self.word.attend(h) + self.output_bias[None]
        return jax.nn.log_softmax(logits, axis=-1)

    def at(self, example, places):
        """Log-probabilities float32[P, V] of what stands at places i32[P]."""
        return self.output(self.last(self.embed(example), example, places))

    def follows(self, example):
        """Log-odds that the second segment follows the first, float32[]."""
        first = jnp.zeros(1, jnp.int32)
        state = self.last(self.embed(example), example, first)
        is_next, is_random = self.relation(jnp.tanh(self.pooler(state)))[0]
        return is_next - is_random

    def head(self, embeddings, example):
        """Log-probabilities of every token, float32[T, V]."""
        return self.output(self.last(embeddings, example))

    def __call__(self, example):
        """Log-probabilities of every token; makes the parameters of all heads."""
        if self.next_sentence:
            self.follows(example)
        return self.head(self.embed(example), example)


# Of each family: arrays of the head, and copies of others that a file may hold.
_HEADS = {
    "bert": {
        "cls.predictions.transform.dense.weight": (("transform", "kernel"), True),
        "cls.predictions.transform.dense.bias": (("transform", "bias"), False),
        "cls.predictions.transform.LayerNorm.weight": (
            ("transform_norm", "scale"),
            False,
        ),
        "cls.predictions.transform.LayerNorm.bias": (("transform_norm", "bias"), False),
        "cls.predictions.bias": (("output_bias",), False),
    },
    "roberta": {
        "lm_head.dense.weight": (("transform", "kernel"), True),
        "lm_head.dense.bias": (("transform", "bias"), False),
        "lm_head.layer_norm.weight": (("transform_norm", "scale"), False),
        "lm_head.layer_norm.bias": (("transform_norm", "bias"), False),
        "lm_head.bias": (("output_bias",), False),
    },
    "distilbert": {
        "vocab_transform.weight": (("transform", "kernel"), True),
        "vocab_transform.bias": (("transform", "bias"), False),
        "vocab_layer_norm.weight": (("transform_norm", "scale"), False),
        "vocab_layer_norm.bias": (("transform_norm", "bias"), False),
        "vocab_projector.bias": (("output_bias",), False),
    },
}
_NEXT = {
    "pooler.dense.weight": (("pooler", "kernel"), True),
    "pooler.dense.bias": (("pooler", "bias"), False),
    "cls.seq_relationship.weight": (("relation", "kernel"), True),
    "cls.seq_relationship.bias": (("relation", "bias"), False),
}
_WORDS = "embeddings.word_embeddings.weight"
_TIED = {
    "bert": {
        "cls.predictions.decoder.weight": _WORDS,
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    "roberta": {
        "lm_head.decoder.weight": _WORDS,
        "lm_head.decoder.bias": "lm_head.bias",
    },
    "distilbert": {"vocab_projector.weight": _WORDS},
}
_ENCODER = ("embeddings.", "encoder.", "transformer.")  # names that `bert.load` judges


def load(
    directory: str | os.PathLike[str], *, compute_dtype: str = "float32"
) -> MaskedModel:
    """Reads a masked language model of the BERT family.

    Args:
      directory: holds `config.json` and `model.safetensors`. Without its head, as
        sentence encoders come, it is refused.
      compute_dtype: 'float32' or 'bfloat16', of activations of the encoder.

    Raises:
      FileNotFoundError: if a file is absent.
      ValueError: as `bert.load`; if arrays of the head are missing or others
        unexpected (both sets are listed), have another shape, or are not tied to the
        table of words.
    """
    _validate.one_of("model.compute_dtype", compute_dtype, layers.DTYPES)
    config, params = bert.load(directory)
    tensors = {bert.plain_name(k): v for k, v in hf.read_tensors(directory).items()}
    places, tied = dict(_HEADS[config.family]), _TIED[config.family]
    next_sentence = any(name.startswith("cls.seq_relationship") for name in tensors)
    if next_sentence:
        places |= _NEXT
    head = [name for name in tensors if not name.startswith(_ENCODER)]
    spare = [name for name in head if name.startswith("pooler.")]
    checkpoints.check_names(directory, head, places, [*tied, *spare])
    for name, other in tied.items():
        checkpoints.check_tied(directory, tensors, name, other)
    module = Network(config, compute_dtype=compute_dtype, next_sentence=next_sentence)
    shapes = jax.eval_shape(
        lambda key: module.init(key, layers.text_dummy(1))["params"], jax.random.key(0)
    )
    params = params | checkpoints.place(directory, tensors, places, shapes)
    return _bind(module, params)


def bind(
    config: bert.BertConfig,
    params: task_lib.Params,
    *,
    compute_dtype: str = "float32",
) -> MaskedModel:
    """The functions of `load` for a model trained here, by `task`."""
    _validate.one_of("model.compute_dtype", compute_dtype, layers.DTYPES)
    return _bind(Network(config, compute_dtype=compute_dtype), params)


def _bind(module: Network, params: task_lib.Params) -> MaskedModel:
    def log_probs(params, example, places) -> Any:
        return module.apply({"params": params}, example, places, method="at")

    def follows(params, example) -> Any:
        return module.apply({"params": params}, example, method="follows")

    asked = follows if module.next_sentence else None
    return MaskedModel(module.config, params, log_probs, asked)


def mask_id(directory: str | os.PathLike[str]) -> int:
    """The id of `[MASK]` or `<mask>` in the `tokenizer.json` of a checkpoint.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it has no such token.
    """
    path = _validate.existing_file(
        "tokenizer.json",
        pathlib.Path(directory) / "tokenizer.json",
        "give a Hugging Face checkpoint",
    )
    raw = json.loads(path.read_text(encoding="utf-8"))
    ids = {entry["content"]: entry["id"] for entry in raw.get("added_tokens", [])}
    found = [ids[name] for name in MASKS if name in ids]
    if not found:
        _validate.fail(
            f"added_tokens of {path}",
            sorted(ids),
            f"has none of {', '.join(MASKS)}",
            "use the tokenizer of a masked language model",
        )
    return int(found[0])


def config(
    vocab_size: int,
    *,
    width: int = 64,
    depth: int = 2,
    heads: int = 4,
    max_length: int = 64,
    mlp_width: int | None = None,
) -> bert.BertConfig:
    """Sizes of a small BERT from scratch, for `task`; token 0 is padding.

    Args:
      vocab_size: V, padding, mask and marks included.
      width: D.
      depth: number of layers.
      heads: must divide `width`.
      max_length: number of positions.
      mlp_width: 4 * width where None.

    Raises:
      ValueError: if a size is out of range, or `heads` does not divide `width`.
    """
    _validate.integer_at_least("model.heads", heads, 1)
    if _validate.integer_at_least("model.width", width, 1) % heads:
        bound = f"must divide model.width={width}"
        _validate.fail("model.heads", heads, bound, "lower it")
    return bert.BertConfig(
        family="bert",
        vocab_size=_validate.integer_at_least("model.vocabulary_size", vocab_size, 2),
        width=width,
        depth=_validate.integer_at_least("model.depth", depth, 1),
        heads=heads,
        mlp_width=_validate.integer_at_least(
            "model.mlp_width", mlp_width or 4 * width, 1
        ),
        max_length=_validate.integer_at_least("model.max_length", max_length, 1),
        position_offset=0,
        num_segments=0,
        activation="gelu",
        norm_epsilon=1e-12,
        pad_token_id=0,
    )


def task(
    config: bert.BertConfig,
    *,
    mask_id: int,
    special_ids: Sequence[int] = (),
    mask_rate: float = 0.15,
    dropout: float = 0.0,
    compute_dtype: str = "float32",
) -> task_lib.Task:
    """A masked language model from scratch, as a `Task`.

    Of the tokens of a text each is chosen with probability `mask_rate`, at least one
    in every text; of the chosen 80% become the mask, 10% another word at random and 10%
    stay (Devlin et al. 2019, section 3.1). Loss: mean of -log p over the chosen, 0 for
    an empty text. The choice comes from the key of the step.

    Args:
      config: sizes, as from `config`.
      mask_id: id of the mask.
      special_ids: ids that are never chosen, such as the marks around a text.
      mask_rate: in (0, 1).
      dropout: rate on embeddings and branches, in training only.
      compute_dtype: 'float32' or 'bfloat16', of activations.

    Returns:
      a `Task` whose `predict` gives log-probabilities float32[T, V] of the text as it
      stands, nothing masked: for evaluation mask it before, or use `bind` with
      `fairness.likelihood`. Its metrics are those of `language_model.task`, of that.

    Raises:
      ValueError: if an option is out of range.
    References: https://arxiv.org/abs/1810.04805
    """
    _validate.integer_at_least("mask_id", mask_id, 0)
    if mask_id >= config.vocab_size:
        bound = f"must be below the {config.vocab_size} words of the model"
        _validate.fail("mask_id", mask_id, bound, "raise model.vocabulary_size")
    rate = _validate.in_open_interval("mask_rate", mask_rate, 0.0, 1.0, "try 0.15")
    module = Network(
        config,
        dropout=layers.dropout_rate("model.dropout", dropout),
        compute_dtype=_validate.one_of(
            "model.compute_dtype", compute_dtype, layers.DTYPES
        ),
    )
    init, forward, predict = layers.functions(
        module, layers.text_dummy(1), rngs=dropout > 0
    )
    embed, head = layers.embed_and_head(module)
    special = np.zeros(config.vocab_size, bool)
    special[list(special_ids)] = True

    def loss(params, example, key):
        tokens, _ = layers.tokens_and_mask(example)
        real = jnp.arange(tokens.shape[0], dtype=jnp.int32) < example["length"]
        chosen, seen = hide(key, tokens, real & ~jnp.asarray(special)[tokens])
        prediction = forward(params, {**example, "tokens": seen}, _fold(key, 3))
        said = language_model.token_log_probs(prediction, tokens)
        count = jnp.maximum(jnp.sum(chosen), 1).astype(jnp.float32)
        return -jnp.sum(jnp.where(chosen, said, 0.0)) / count

    def hide(key, tokens, free):
        """Which tokens are chosen, and the text as the model sees it."""
        draw = jax.random.uniform(_fold(key, 0), tokens.shape)
        draw = jnp.where(free, draw, 2.0)
        chosen = free & ((draw < rate) | (draw == jnp.min(draw)))
        what = jax.random.uniform(_fold(key, 1), tokens.shape)
        other = jax.random.randint(_fold(key, 2), tokens.shape, 1, config.vocab_size)
        new = jnp.where(what < 0.8, mask_id, jnp.where(what < 0.9, other, tokens))
        return chosen, jnp.where(chosen, new, tokens)

    metrics = language_model.metrics()
    return task_lib.Task(init, loss, predict, metrics, embed, head)


def _fold(key, number):
    return jax.random.fold_in(key, number)
