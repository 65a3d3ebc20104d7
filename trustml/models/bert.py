"""The BERT family as pure JAX functions: BERT, MiniLM, RoBERTa, DistilBERT.

    x = LN(E + P + S);   x = LN(x + Attention(x));   x = LN(x + MLP(x))

Post-layer-norm encoders (Devlin et al. 2019) whose parameters come from a local
directory in the Hugging Face layout; outputs equal those of PyTorch within 1e-4. The
three kinds differ in small things that `BertConfig` records: RoBERTa counts positions
from pad_token_id + 1 and pads with 1, DistilBERT has no segment embedding S. Poolers
and pretraining heads of a checkpoint are left out.

Token ids come from the tokenizer of the same directory. Whatever stands at or after
`length` is replaced by the padding id of the checkpoint, so data may pad with 0.

Example::

    directory = hf.find_minilm()
    model = bert.classifier(directory, num_classes=7, max_length=64, pooling='mean')
    params = model.init(jax.random.key(0))  # pretrained, with a fresh head
    example = {'tokens': jnp.array([101, 7592, 102]), 'length': jnp.array(3)}
    log_probs = model.predict(params, example)

References: https://arxiv.org/abs/1810.04805, https://arxiv.org/abs/1907.11692,
  https://arxiv.org/abs/1910.01108, https://arxiv.org/abs/2002.10957
"""

import os
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from trustml import _validate
from trustml import task as task_lib
from trustml.models import adapters, checkpoints, hf, layers

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}


POOLINGS = ("mean", "cls", "first_last", "every_second", "all_layers")
# The field of an example that holds features computed before; see `Encoder.pooled`.
KEPT = "encoded"
# Of the wide part, beside features of length about 2 to 3; 1 to 2 did alike.
_WIDE_SCALE = 1.5
_ADAPTED = ("lora_query", "lora_value")  # in every layer


class BertConfig(NamedTuple):
    """Sizes and variants of an encoder."""

    family: str  # 'bert', 'roberta' or 'distilbert'
    vocab_size: int
    width: int  # D
    depth: int  # number of layers
    heads: int
    mlp_width: int
    max_length: int  # most tokens an example may have
    position_offset: int  # position id of the first token
    num_segments: int  # 0: no segment embedding
    activation: str  # a name of `layers.ACTIVATIONS`
    norm_epsilon: float
    pad_token_id: int


class Encoder(NamedTuple):
    """An encoder as functions of one example."""

    config: BertConfig
    params: task_lib.Params
    hidden: Callable[[task_lib.Params, task_lib.Example], jax.Array]
    # (params, example) -> last hidden state, float32[T, D]
    pooled: Callable[[task_lib.Params, task_lib.Example], jax.Array]
    # (params, example) -> features of the text, float32[F]; see `num_features`


class Layer(nn.Module):
    """One post-layer-norm block, [T, D] -> [T, D]."""

    config: BertConfig
    dropout: float
    dtype: Any
    train: bool
    lora_rank: int = 0
    lora_alpha: float = 1.0

    @nn.compact
    def __call__(self, x, mask, places=None):
        """New states, of the dtype of activations; only at `places` i32[P] if given."""
        config = self.config

        def dense(width, name):
            return nn.Dense(width, dtype=self.dtype, name=name)

        def norm(name):
            return layers.LayerNorm(config.norm_epsilon, name=name)

        def adapted(y, name, x):
            if not self.lora_rank:
                return y
            sizes = (config.width, self.lora_rank, self.lora_alpha, self.dtype)
            return y + adapters.LowRank(*sizes, name=name)(x)

        drop = nn.Dropout(self.dropout, deterministic=not self.train)
        asked = x if places is None else x[places]
        query, key, value = (
            dense(config.width, name)(y)
            for name, y in (("query", asked), ("key", x), ("value", x))
        )
        query, value = map(adapted, (query, value), _ADAPTED, (asked, x))
        h = layers.attend(query, key, value, mask, config.heads)
        h = drop(dense(config.width, "out")(h))
        x = norm("norm_attention")(asked + h)
        h = layers.ACTIVATIONS[config.activation](dense(config.mlp_width, "up")(x))
        h = drop(dense(config.width, "down")(h))
        return norm("norm_mlp")(x + h)


class Network(nn.Module):
    """The module behind `encoder` and, with `num_classes`, `classifier`."""

    config: BertConfig
    num_classes: int = 0
    pooling: str = "mean"
    dropout: float = 0.0
    compute_dtype: str = "float32"
    remat: bool = False
    wide: bool = False
    lora_rank: int = 0
    lora_alpha: float = 1.0
    train: bool = False

    def setup(self):
        """Tables, layers and the head."""
        config, normal = self.config, nn.initializers.normal(0.02)
        positions = config.max_length + config.position_offset
        self.dtype = layers.DTYPES[self.compute_dtype]
        self.word = nn.Embed(config.vocab_size, config.width, embedding_init=normal)
        self.position = self.param("position", normal, (positions, config.width))
        if config.num_segments:
            self.segment = self.param(
                "segment", normal, (config.num_segments, config.width)
            )
        self.norm = layers.LayerNorm(config.norm_epsilon)
        layer = nn.remat(Layer) if self.remat else Layer
        self.layer = [
            layer(
                config,
                self.dropout,
                self.dtype,
                self.train,
                self.lora_rank,
                self.lora_alpha,
            )
            for _ in range(config.depth)
        ]
        self.drop = nn.Dropout(self.dropout, deterministic=not self.train)
        if self.num_classes:
            self.classifier = nn.Dense(self.num_classes, kernel_init=normal)
            if self.wide:
                self.votes = nn.Embed(
                    config.vocab_size,
                    self.num_classes,
                    embedding_init=nn.initializers.zeros_init(),
                    name="wide",
                )

    def embed(self, example):
        """Word embedding of every token, float32[T, D], or [T, D + C] with `wide`."""
        words, votes = self.look_up(example)
        return words if votes is None else jnp.concatenate([words, votes], axis=-1)

    def look_up(self, example):
        """Word embeddings float32[T, D] and, with `wide`, votes float32[T, C]."""
        tokens, _ = layers.tokens_and_mask(example, self.config.pad_token_id)
        wide = self.num_classes and self.wide
        return self.word(tokens), self.votes(tokens) if wide else None

    def hidden(self, embeddings, example, places=None):
        """States before any layer and after each, depth + 1 times [T, D].

        With `places` i32[P] those after the last are [P, D]: nothing reads the others,
        and of the last layer only their keys and values are needed.
        """
        config, length = self.config, embeddings.shape[0]
        if length > config.max_length:
            _validate.fail(
                "data.max_length",
                length,
                f"exceeds the {config.max_length} positions of the checkpoint",
                f"lower it to {config.max_length}",
            )
        _, mask = layers.tokens_and_mask(example)
        start = config.position_offset
        x = embeddings + self.position[start : start + length]
        if config.num_segments:
            x = x + self.segment[:1]
        states = [self.norm(x)]
        x = self.drop(states[0].astype(self.dtype))
        for i, layer in enumerate(self.layer):
            x = layer(x, mask, places if i == config.depth - 1 else None)
            states.append(x)
        return states

    def pooled(self, embeddings, example):
        """Features of the text, float32[F]; see `num_features`."""
        states = self.hidden(embeddings, example)
        if self.pooling == "cls":
            return states[-1][0].astype(jnp.float32)
        _, mask = layers.tokens_and_mask(example)
        if self.pooling == "mean":
            return layers.masked_mean(states[-1], mask)
        if self.pooling == "first_last":
            states = [states[0], states[-1]]
        if self.pooling == "every_second":
            states = states[::2]
        return jnp.concatenate([_unit(layers.masked_mean(x, mask)) for x in states])

    def head(self, embeddings, example):
        """Log-probabilities, float32[C]."""
        words, votes = jnp.split(embeddings, [self.config.width], axis=-1)
        return self.log_probs(self.pooled(words, example), votes, example)

    def log_probs(self, features, votes, example):
        """Log-probabilities, float32[C], from features of the text and the votes."""
        logits = self.classifier(self.drop(features))
        if self.wide:
            _, mask = layers.tokens_and_mask(example)
            root = jnp.sqrt(jnp.sum(mask).astype(jnp.float32))
            logits = logits + _WIDE_SCALE * root * layers.masked_mean(votes, mask)
        return jax.nn.log_softmax(logits)

    def encode(self, example):
        """Last hidden state, float32[T, D]."""
        return self.hidden(self.embed(example), example)[-1].astype(jnp.float32)

    def features(self, example):
        """Features of the text, float32[D]."""
        return self.pooled(self.embed(example), example)

    def __call__(self, example):
        """Log-probabilities, float32[C]."""
        # Not head(embed): through the joined array a gradient with respect to the votes
        # alone would run back through the encoder, at twice the cost.
        words, votes = self.look_up(example)
        if KEPT in example:
            return self.log_probs(example[KEPT], votes, example)
        return self.log_probs(self.pooled(words, example), votes, example)


def _unit(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x)) + 1e-12)


def num_features(config: BertConfig, pooling: str) -> int:
    """F, the number of features of a text: D times the states pooled."""
    depth = config.depth
    states = {"first_last": 2, "every_second": depth // 2 + 1, "all_layers": depth + 1}
    return config.width * states.get(pooling, 1)


def read_config(directory: str | os.PathLike[str]) -> BertConfig:
    """The `BertConfig` of a checkpoint.

    Raises:
      FileNotFoundError: if `config.json` is absent.
      ValueError: if the model is not of the BERT family or uses an unknown variant.
    """
    raw = hf.read_config(directory)
    kinds = {"xlm-roberta": "roberta", "camembert": "roberta"}
    family = str(raw.get("model_type", ""))
    family = _validate.one_of(
        f"model_type of {directory}",
        kinds.get(family, family),
        ("bert", "roberta", "distilbert"),
    )

    def get(name, distilbert_name=None, default=None):
        name = distilbert_name or name if family == "distilbert" else name
        value = raw.get(name, default)
        if value is None:
            _validate.fail(
                f"config.json of {directory}", name, "is missing", "fetch it again"
            )
        return value

    if raw.get("position_embedding_type", "absolute") != "absolute":
        _validate.fail(
            "position_embedding_type",
            raw["position_embedding_type"],
            "is not supported",
            "use a checkpoint with absolute positions",
        )
    activation = _validate.one_of(
        "hidden_act", get("hidden_act", "activation", "gelu"), _ACTIVATIONS
    )
    pad = raw.get("pad_token_id", 1 if family == "roberta" else 0) or 0
    offset = pad + 1 if family == "roberta" else 0
    segments = {"bert": 2, "roberta": 1, "distilbert": 0}[family]
    return BertConfig(
        family=family,
        vocab_size=get("vocab_size"),
        width=get("hidden_size", "dim"),
        depth=get("num_hidden_layers", "n_layers"),
        heads=get("num_attention_heads", "n_heads"),
        mlp_width=get("intermediate_size", "hidden_dim"),
        max_length=get("max_position_embeddings") - offset,
        position_offset=offset,
        num_segments=raw.get("type_vocab_size", segments) if segments else 0,
        activation=_ACTIVATIONS[activation],
        norm_epsilon=raw.get("layer_norm_eps", 1e-12),
        pad_token_id=pad,
    )


_BERT_LAYER = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "out",
    "attention.output.LayerNorm": "norm_attention",
    "intermediate.dense": "up",
    "output.dense": "down",
    "output.LayerNorm": "norm_mlp",
}
_DISTILBERT_LAYER = {
    "attention.q_lin": "query",
    "attention.k_lin": "key",
    "attention.v_lin": "value",
    "attention.out_lin": "out",
    "sa_layer_norm": "norm_attention",
    "ffn.lin1": "up",
    "ffn.lin2": "down",
    "output_layer_norm": "norm_mlp",
}
_OLD_NORM = {"gamma": "weight", "beta": "bias"}  # names in checkpoints of 2018


def _paths(config: BertConfig) -> dict[str, tuple[tuple[str, ...], bool]]:
    """Name in the checkpoint -> (path in the parameters, whether to transpose)."""
    paths: dict[str, tuple[tuple[str, ...], bool]] = {
        "embeddings.word_embeddings.weight": (("word", "embedding"), False),
        "embeddings.position_embeddings.weight": (("position",), False),
        "embeddings.LayerNorm.weight": (("norm", "scale"), False),
        "embeddings.LayerNorm.bias": (("norm", "bias"), False),
    }
    if config.num_segments:
        paths["embeddings.token_type_embeddings.weight"] = (("segment",), False)
    distil = config.family == "distilbert"
    stem = "transformer.layer" if distil else "encoder.layer"
    for i in range(config.depth):
        names = _DISTILBERT_LAYER if distil else _BERT_LAYER
        for name, ours in names.items():
            is_norm = ours.startswith("norm")
            leaf = "scale" if is_norm else "kernel"
            key = f"{stem}.{i}.{name}"
            paths[f"{key}.weight"] = ((f"layer_{i}", ours, leaf), not is_norm)
            paths[f"{key}.bias"] = ((f"layer_{i}", ours, "bias"), False)
    return paths


def plain_name(key: str) -> str:
    """A tensor's name without the prefix of the model and in today's spelling."""
    key = re.sub(r"^(bert|roberta|distilbert|camembert|model)\.", "", key)
    stem, _, leaf = key.rpartition(".")
    return f"{stem}.{_OLD_NORM.get(leaf, leaf)}" if "LayerNorm" in stem else key


def load(
    directory: str | os.PathLike[str],
) -> tuple[BertConfig, task_lib.Params]:
    """Reads an encoder of the BERT family.

    Args:
      directory: holds `config.json` and `model.safetensors`.

    Returns:
      its `BertConfig` and its parameters, a nested dict of float32 NumPy arrays;
      kernels are [in, out], the transposes of PyTorch's.

    Raises:
      FileNotFoundError: if a file is absent.
      ValueError: if the model is of another family, an array is missing or has another
        shape than the configuration says, or the encoder holds an unknown one.
    """
    config = read_config(directory)
    tensors = {plain_name(k): v for k, v in hf.read_tensors(directory).items()}
    shapes = jax.eval_shape(
        lambda key: Network(config).init(key, layers.text_dummy(1), method="encode")[
            "params"
        ],
        jax.random.key(0),
    )
    paths = _paths(config)
    missing = sorted(set(paths) - set(tensors))
    known = set(paths) | {"embeddings.position_ids"}
    inside = ("embeddings.", "encoder.", "transformer.")
    unknown = sorted(k for k in set(tensors) - known if k.startswith(inside))
    for problem, names in (("is missing", missing), ("is not known", unknown)):
        if names:
            _validate.fail(
                f"model.checkpoint={str(directory)!r}: tensor",
                names[0],
                f"{problem} (one of {len(names)})",
                f"use a checkpoint of {config.family} that matches its config.json",
            )
    return config, checkpoints.place(directory, tensors, paths, shapes)


def encoder(
    directory: str | os.PathLike[str],
    *,
    pooling: str = "mean",
    compute_dtype: str = "float32",
) -> Encoder:
    """A pretrained encoder: hidden states and features of a text.

    Args:
      directory: as for `load`.
      pooling: one of `POOLINGS`; see `classifier`.
      compute_dtype: 'float32' or 'bfloat16', of activations.

    Raises:
      FileNotFoundError: as `load`.
      ValueError: as `load`, and if a name is unknown.
    """
    _validate.one_of("model.pooling", pooling, POOLINGS)
    _validate.one_of("model.compute_dtype", compute_dtype, layers.DTYPES)
    config, params = load(directory)
    module = Network(config, pooling=pooling, compute_dtype=compute_dtype)

    def hidden(params, example) -> Any:
        return module.apply({"params": params}, example, method="encode")

    def pooled(params, example) -> Any:
        return module.apply({"params": params}, example, method="features")

    return Encoder(config, params, hidden, pooled)


def classifier(
    directory: str | os.PathLike[str],
    num_classes: int,
    *,
    max_length: int | None = None,
    pooling: str = "mean",
    dropout: float = 0.0,
    compute_dtype: str = "float32",
    remat: bool = False,
    wide: bool = False,
    lora_rank: int = 0,
    lora_alpha: float = 16.0,
) -> task_lib.Task:
    """A pretrained encoder with a fresh linear head, as a `Task`.

        log softmax(W f + b + 1.5 sum_t table[x_t] / sqrt(T))    the last term if `wide`

    `init` reads the checkpoint, so no copy of it is kept; only W and adapters depend
    on its key.
    `embed` gives word embeddings, before positions and normalisation, and with `wide`
    the C entries of the table beside them: float32[T, D + C]. `loss` and `predict` take
    features that were computed before from the example's field `KEPT`, if it is there.

    Args:
      directory: as for `load`.
      num_classes: C.
      max_length: token slots of the examples, to be checked now; None checks nothing.
      pooling: 'mean' over the real tokens; 'cls', the first token; 'first_last': the
        means of the states before and after all layers, each scaled to length 1, side
        by side; 'all_layers': the same of the states before and after every layer;
        'every_second': of every second one of these, from the first. The last
        three suit a head on a frozen encoder: features of length 1 bound gradients,
        and the noise of private training in the logits does not grow with their number.
      dropout: rate on embeddings, branches and features, in training only.
      compute_dtype: 'float32' or 'bfloat16', of activations; parameters and logits stay
        float32.
      remat: recompute layers in the backward pass.
      wide: add a linear classifier of the word pieces, a table [vocab_size, C] that
        starts at 0 ("wide and deep"): what single words tell of the class need not pass
        through the encoder. Its parameters are `wide/*`, those of W and b
        `classifier/*`.
      lora_rank: r >= 1 puts low-rank adapters (`trustml.models.adapters`) beside the
        query and value projections of every layer; 0 has none.
      lora_alpha: > 0; what the adapters add is scaled by lora_alpha / lora_rank.

    Raises:
      FileNotFoundError: as `load`.
      ValueError: as `load`; if a size or rate is out of range, a name unknown, or
        `max_length` exceeds the positions of the checkpoint.

    References: https://arxiv.org/abs/1606.07792
    """
    config = read_config(directory)
    _validate.integer_at_least("model.num_classes", num_classes, 2)
    if max_length is not None:
        _validate.integer_at_least("data.max_length", max_length, 1)
        if max_length > config.max_length:
            _validate.fail(
                "data.max_length",
                max_length,
                f"exceeds the {config.max_length} positions of the checkpoint",
                f"lower it to {config.max_length}",
            )
    module = Network(
        config,
        num_classes,
        _validate.one_of("model.pooling", pooling, POOLINGS),
        layers.dropout_rate("model.dropout", dropout),
        _validate.one_of("model.compute_dtype", compute_dtype, layers.DTYPES),
        _validate.boolean("model.remat", remat),
        _validate.boolean("model.wide", wide),
        _validate.integer_at_least("model.lora_rank", lora_rank, 0, "0 adds none"),
        _validate.positive("model.lora_alpha", lora_alpha, "16 is usual"),
    )
    _, forward, predict = layers.functions(
        module, layers.text_dummy(1), rngs=dropout > 0
    )
    embed, head = layers.embed_and_head(module)
    normal = nn.initializers.normal(0.02)
    width = num_features(config, pooling)

    def init(key):
        _, params = load(directory)
        for_head, for_adapters = jax.random.split(key) if lora_rank else (key, None)
        fresh = {
            "kernel": normal(for_head, (width, num_classes), jnp.float32),
            "bias": jnp.zeros(num_classes, jnp.float32),
        }
        params = jax.tree.map(jnp.asarray, params) | {"classifier": fresh}
        if wide:
            table = jnp.zeros((config.vocab_size, num_classes), jnp.float32)
            params["wide"] = {"embedding": table}
        if for_adapters is not None:
            keys = jax.random.split(for_adapters, (config.depth, len(_ADAPTED)))
            for i in range(config.depth):
                for name, own in zip(_ADAPTED, keys[i], strict=True):
                    sizes = (config.width, lora_rank, config.width)
                    params[f"layer_{i}"][name] = adapters.init(own, *sizes)
        return params

    return task_lib.classification(
        init, predict, forward=forward, embed=embed, head=head
    )
