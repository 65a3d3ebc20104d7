"""GPT-2 and DistilGPT-2: causal transformers, from a local directory or from scratch.

    x = E + P;   x += Attention(LN(x));   x += MLP(LN(x));   z = LN(x) E^T

Pre-layer-norm blocks, GELU by its tanh form, learned positions, output tied to the
table of words (Radford et al. 2019). Outputs equal those of PyTorch within 1e-4. A
checkpoint keeps its kernels as [in, out], as we do: nothing is transposed.

Two conventions live side by side. `logits` are those of the network, row t of token
t + 1. A `Task` says of every token what it cost, as `language_model` does: row t of
`predict` is of token t given those before, and the first token is read after the
beginning-of-text token.

Dimension key: `T` tokens, `V` vocabulary, `D` width, `L` layers, `H` heads, `Dh` = D/H,
`S` slots of a cache.

Example::

    model = gpt2.pretrained(directory)
    example = {'tokens': jnp.array([464, 2068]), 'length': jnp.array(2)}
    logits = model.logits(model.params, example)             # [2, 50257]
    sample = generate.sampler(model.decoder, max_new_tokens=20, top_p=0.9)
    small = gpt2.task(gpt2.Gpt2Config(vocab_size=500, width=64, depth=2, heads=2))

References: https://cdn.openai.com/better-language-models/
language_models_are_unsupervised_multitask_learners.pdf
"""

import math
import os
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from trustml import _validate
from trustml import task as task_lib
from trustml.models import checkpoints, generate, hf, language_model, layers

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
# Fields of config.json that change the network, and the value understood here.
_PLAIN = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}
_MASKED = -1e9


class Gpt2Config(NamedTuple):
    """Sizes of a model; the defaults are those of GPT-2 (small)."""

    vocab_size: int = 50257
    width: int = 768  # D
    depth: int = 12  # L
    heads: int = 12  # H
    mlp_width: int = 0  # 0: 4 D
    max_length: int = 1024  # number of positions
    activation: str = "gelu_tanh"  # a name of `layers.ACTIVATIONS`
    norm_epsilon: float = 1e-5
    begin_id: int = 0  # token that begins a text; 50256 in GPT-2
    end_id: int = 0  # token that ends a text; 50256 in GPT-2


class Cache(NamedTuple):
    """Keys and values of the tokens so far, each [L, H, S, Dh]."""

    keys: jax.Array
    values: jax.Array


class LanguageModel(NamedTuple):
    """A pretrained model as functions of one example."""

    config: Gpt2Config
    params: task_lib.Params
    logits: Callable[[task_lib.Params, task_lib.Example], jax.Array]
    # (params, example) -> float32[T, V], row t of token t + 1, not normalised
    decoder: generate.Decoder


class Layer(nn.Module):
    """One block, [T, D] -> [T, D]."""

    config: Gpt2Config
    dropout: float
    dtype: Any
    train: bool

    def setup(self):
        """Projections and normalisations."""
        config, normal = self.config, nn.initializers.normal
        last = normal(0.02 / math.sqrt(2 * config.depth))

        def dense(width, kernel):
            return nn.Dense(width, dtype=self.dtype, kernel_init=kernel)

        self.norm_attention = layers.LayerNorm(config.norm_epsilon)
        self.qkv = dense(3 * config.width, normal(0.02))
        self.out = dense(config.width, last)
        self.norm_mlp = layers.LayerNorm(config.norm_epsilon)
        self.up = dense(config.mlp_width or 4 * config.width, normal(0.02))
        self.down = dense(config.width, last)
        self.drop = nn.Dropout(self.dropout, deterministic=not self.train)

    def project(self, x):
        """Queries, keys and values [H, T, Dh] of states [T, D]."""
        parts = jnp.split(self.qkv(self.norm_attention(x)), 3, axis=1)
        shape = (x.shape[0], self.config.heads, -1)
        return tuple(part.reshape(shape).swapaxes(0, 1) for part in parts)

    def finish(self, x, mixed):
        """New states, from the old and what attention mixed, both [T, D]."""
        x = x + self.drop(self.out(mixed))
        h = layers.ACTIVATIONS[self.config.activation](self.up(self.norm_mlp(x)))
        return x + self.drop(self.down(h))

    def __call__(self, x):
        """New states, and the keys and values [H, T, Dh] of all tokens."""
        query, key, value = self.project(x)
        return self.finish(x, _attend(query, key, value, jnp.int32(0))), (key, value)


def _attend(query, key, value, position):
    """[H, T, Dh], [H, S, Dh], [H, S, Dh] -> [T, D]; query t sees keys to position + t.

    Scores and softmax in float32. With no cache S = T, and a row sees itself and what
    stands before it.
    """
    heads, length, width = query.shape
    scores = jnp.einsum("htd,hsd->hts", query * width**-0.5, key).astype(jnp.float32)
    reach = position + jnp.arange(length, dtype=jnp.int32)
    seen = jnp.arange(key.shape[1], dtype=jnp.int32)[None, :] <= reach[:, None]
    weights = jax.nn.softmax(jnp.where(seen[None], scores, _MASKED), axis=-1)
    mixed = jnp.einsum("hts,hsd->thd", weights.astype(value.dtype), value)
    return mixed.reshape(length, heads * width)


class Network(nn.Module):
    """The module behind `pretrained` and `task`."""

    config: Gpt2Config
    dropout: float = 0.0
    compute_dtype: str = "float32"
    remat: bool = False
    train: bool = False

    def setup(self):
        """Tables, layers and the last normalisation."""
        config, normal = self.config, nn.initializers.normal(0.02)
        self.dtype = layers.DTYPES[self.compute_dtype]
        self.word = nn.Embed(config.vocab_size, config.width, embedding_init=normal)
        shape = (config.max_length, config.width)
        self.position = self.param("position", normal, shape)
        layer = nn.remat(Layer) if self.remat else Layer
        self.layer = [
            layer(config, self.dropout, self.dtype, self.train)
            for _ in range(config.depth)
        ]
        self.norm = layers.LayerNorm(config.norm_epsilon)
        self.drop = nn.Dropout(self.dropout, deterministic=not self.train)

    def embed(self, example):
        """Embedding of every token, float32[T, D], before positions."""
        return self.word(layers.tokens_and_mask(example)[0])

    def states(self, embeddings):
        """Normalised last states [T, D], and keys and values of every layer."""
        length, most = embeddings.shape[0], self.config.max_length
        if length > most:
            _validate.fail(
                "data.max_length",
                length,
                f"exceeds the {most} positions of the model",
                f"lower it to {most}",
            )
        x = self.drop(embeddings + self.position[:length]).astype(self.dtype)
        past = []
        for layer in self.layer:
            x, pair = layer(x)
            past.append(pair)
        return self.norm(x), past

    def output(self, x):
        """Logits, float32[T, V], of states [T, D]."""
        table = self.word.embedding.astype(self.dtype)
        return jnp.einsum("td,vd->tv", x, table, preferred_element_type=jnp.float32)

    def logits(self, example):
        """Logits float32[T, V], row t of token t + 1."""
        return self.output(self.states(self.embed(example))[0])

    def head(self, embeddings, example):
        """Log-probabilities float32[T, V], row t of token t given those before."""
        begin = self.word(jnp.full((1,), self.config.begin_id, jnp.int32))
        states, _ = self.states(jnp.concatenate([begin, embeddings[:-1]]))
        return jax.nn.log_softmax(self.output(states), axis=-1)

    def __call__(self, example):
        """Log-probabilities float32[T, V], row t of token t given those before."""
        return self.head(self.embed(example), example)

    def prefill(self, tokens, length, slots):
        """Logits [V] of the token after the prompt, and its `Cache` of `slots`."""
        real = jnp.arange(tokens.shape[0], dtype=jnp.int32) < length
        tokens = jnp.where(real, tokens, self.config.begin_id)  # an empty prompt too
        states, past = self.states(self.word(tokens))
        last = jax.lax.dynamic_slice_in_dim(states, jnp.maximum(length, 1) - 1, 1)
        wide = [(0, 0), (0, 0), (0, slots - tokens.shape[0]), (0, 0)]
        keys, values = (
            jnp.pad(jnp.stack(found), wide) for found in zip(*past, strict=True)
        )
        return self.output(last)[0], Cache(keys, values)

    def step(self, token, position, cache):
        """Logits [V] of the token after `token`, and the `Cache` with it."""
        row = jax.lax.dynamic_slice_in_dim(self.position, position, 1)
        x = (self.word(token[None]) + row).astype(self.dtype)
        keys, values = cache
        for i, layer in enumerate(self.layer):
            query, key, value = layer.project(x)
            keys = keys.at[i, :, position].set(key[:, 0])
            values = values.at[i, :, position].set(value[:, 0])
            x = layer.finish(x, _attend(query, keys[i], values[i], position))
        return self.output(self.norm(x))[0], Cache(keys, values)


def decoder(module: Network) -> generate.Decoder:
    """Prefill and step of a network, for `generate.sampler`."""

    def prefill(params, tokens, length, slots) -> Any:
        arguments = ({"params": params}, tokens, length, slots)
        return module.apply(*arguments, method="prefill")

    def step(params, token, position, cache) -> Any:
        arguments = ({"params": params}, token, position, cache)
        return module.apply(*arguments, method="step")

    sizes = module.config.vocab_size, module.config.max_length
    return generate.Decoder(*sizes, prefill, step)


def read_config(directory: str | os.PathLike[str]) -> Gpt2Config:
    """The `Gpt2Config` of a checkpoint.

    Raises:
      FileNotFoundError: if `config.json` is absent.
      ValueError: if the model is not a GPT-2, or of a variant that is not understood.
    """
    raw = hf.read_config(directory)
    _validate.one_of(f"model_type of {directory}", raw.get("model_type", ""), ("gpt2",))

    def get(name, older=""):
        value = raw.get(name, raw.get(older))
        if value is None:
            _validate.fail(
                f"config.json of {directory}", name, "is missing", "fetch it again"
            )
        return value

    for name, plain in _PLAIN.items():
        if raw.get(name, plain) != plain:
            _validate.fail(
                f"{name} of {directory}",
                raw[name],
                f"is not understood; only {plain} is",
                "use a plain GPT-2",
            )
    activation = _validate.one_of(
        "activation_function", raw.get("activation_function", "gelu_new"), _ACTIVATIONS
    )
    last = get("vocab_size") - 1  # <|endoftext|> is the last word of GPT-2
    begin, end = (raw.get(name) for name in ("bos_token_id", "eos_token_id"))
    return Gpt2Config(
        vocab_size=get("vocab_size"),
        width=get("n_embd"),
        depth=get("n_layer"),
        heads=get("n_head"),
        mlp_width=raw.get("n_inner") or 0,
        max_length=get("n_positions", "n_ctx"),
        activation=_ACTIVATIONS[activation],
        norm_epsilon=raw.get("layer_norm_epsilon", 1e-5),
        begin_id=last if begin is None else begin,
        end_id=last if end is None else end,
    )


_LAYER = {
    "ln_1": "norm_attention",
    "attn.c_attn": "qkv",
    "attn.c_proj": "out",
    "ln_2": "norm_mlp",
    "mlp.c_fc": "up",
    "mlp.c_proj": "down",
}
_HEAD = "lm_head.weight"


def _places(config: Gpt2Config) -> checkpoints.Places:
    places: dict[str, tuple[tuple[str, ...], bool]] = {
        "wte.weight": (("word", "embedding"), False),
        "wpe.weight": (("position",), False),
        "ln_f.weight": (("norm", "scale"), False),
        "ln_f.bias": (("norm", "bias"), False),
    }
    for i in range(config.depth):
        for name, ours in _LAYER.items():
            leaf = "scale" if ours.startswith("norm") else "kernel"
            places[f"h.{i}.{name}.weight"] = ((f"layer_{i}", ours, leaf), False)
            places[f"h.{i}.{name}.bias"] = ((f"layer_{i}", ours, "bias"), False)
    return places


def load(directory: str | os.PathLike[str]) -> tuple[Gpt2Config, task_lib.Params]:
    """Reads a GPT-2.

    Args:
      directory: holds `config.json` and `model.safetensors`; names of arrays may begin
        with `transformer.`, and the buffers `attn.bias` and `attn.masked_bias` of older
        files are passed over.

    Returns:
      its `Gpt2Config` and its parameters, a nested dict of float32 NumPy arrays.

    Raises:
      FileNotFoundError: if a file is absent.
      ValueError: if the model is of another family, arrays are missing or unexpected
        (both sets are listed), or one has another shape than the configuration says.
    """
    config = read_config(directory)
    tensors = {
        re.sub(r"^transformer\.", "", name): value
        for name, value in hf.read_tensors(directory).items()
    }
    places = _places(config)
    buffers = [n for n in tensors if re.fullmatch(r"h\.\d+\.attn\.(masked_)?bias", n)]
    checkpoints.check_names(directory, tensors, places, [*buffers, _HEAD])
    checkpoints.check_tied(directory, tensors, _HEAD, "wte.weight")
    shapes = jax.eval_shape(
        lambda key: Network(config).init(key, layers.text_dummy(1))["params"],
        jax.random.key(0),
    )
    return config, checkpoints.place(directory, tensors, places, shapes)


def pretrained(
    directory: str | os.PathLike[str], *, compute_dtype: str = "float32"
) -> LanguageModel:
    """A pretrained GPT-2: logits of a text, and a decoder for `generate.sampler`.

    Args:
      directory: as for `load`.
      compute_dtype: 'float32' or 'bfloat16', of activations and of the cache; logits
        are float32.

    Raises:
      FileNotFoundError: as `load`.
      ValueError: as `load`, and if the name is unknown.
    """
    _validate.one_of("model.compute_dtype", compute_dtype, layers.DTYPES)
    config, params = load(directory)
    return bind(config, params, compute_dtype=compute_dtype)


def bind(
    config: Gpt2Config, params: task_lib.Params, *, compute_dtype: str = "float32"
) -> LanguageModel:
    """The functions of `pretrained` for a model trained here, by `task`."""
    _check(config)
    _validate.one_of("model.compute_dtype", compute_dtype, layers.DTYPES)
    module = Network(config, compute_dtype=compute_dtype)

    def logits(params, example) -> Any:
        return module.apply({"params": params}, example, method="logits")

    return LanguageModel(config, params, logits, decoder(module))


def task(
    config: Gpt2Config | None = None,
    *,
    directory: str | os.PathLike[str] | None = None,
    dropout: float = 0.0,
    compute_dtype: str = "float32",
    remat: bool = False,
) -> task_lib.Task:
    """A GPT-2 as a `Task` with `embed` and `head`, from scratch or pretrained.

    Examples, `predict`, loss and metrics are those of `language_model.task`: row t is
    of token t given those before it, and loss is the mean over the tokens of a text.

    Args:
      config: sizes of a model from scratch.
      directory: of a checkpoint, in place of `config`; `init` reads it, so no copy of
        it is kept, and its key does not matter.
      dropout: rate on embeddings and branches, in training only.
      compute_dtype: 'float32' or 'bfloat16', of activations.
      remat: recompute layers in the backward pass.

    Raises:
      FileNotFoundError: as `load`.
      ValueError: if both or neither of `config` and `directory` are given; as `load`;
        if a size or rate is out of range or a name unknown; when traced, if an example
        has more token slots than the model has positions.
    """
    if (config is None) == (directory is None):
        raise ValueError(
            f"config={config} and directory={directory}; give sizes for a model from "
            "scratch, or the directory of a checkpoint, and not both."
        )
    if directory is not None:
        config = read_config(directory)
    module = Network(
        _check(config or Gpt2Config()),
        layers.dropout_rate("model.dropout", dropout),
        _validate.one_of("model.compute_dtype", compute_dtype, layers.DTYPES),
        _validate.boolean("model.remat", remat),
    )
    init, forward, predict = layers.functions(
        module, layers.text_dummy(1), rngs=dropout > 0
    )
    embed, head = layers.embed_and_head(module)

    def read(key) -> Any:
        return jax.tree.map(jnp.asarray, load(directory or "")[1])

    def loss(params, example, key):
        return language_model.loss(forward(params, example, key), example)

    metrics = language_model.metrics()
    start = init if directory is None else read
    return task_lib.Task(start, loss, predict, metrics, embed, head)


def _check(config: Gpt2Config) -> Gpt2Config:
    for name in ("vocab_size", "width", "depth", "heads", "max_length"):
        _validate.integer_at_least(f"model.{name}", getattr(config, name), 1)
    _validate.integer_at_least("model.mlp_width", config.mlp_width, 0, "0: 4 widths")
    if config.width % config.heads:
        bound = f"must divide model.width={config.width}"
        _validate.fail("model.heads", config.heads, bound, "lower it")
    for name in ("begin_id", "end_id"):
        value = _validate.integer_at_least(f"model.{name}", getattr(config, name), 0)
        if value >= config.vocab_size:
            bound = f"must be below the {config.vocab_size} words of the model"
            _validate.fail(f"model.{name}", value, bound, "give the id of a word")
    _validate.one_of("model.activation", config.activation, layers.ACTIVATIONS)
    _validate.positive("model.norm_epsilon", config.norm_epsilon, "1e-5 is usual")
    return config
