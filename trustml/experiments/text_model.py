"""The language model of experiment `generation`: trained here or published, sampled.

A model from scratch is a small GPT-2 on windows of running text, in which a mark stands
between paragraphs; a published one is read from `model.checkpoint`. Either begins every
text with the mark. A sampled text ends with its first sentence, as the sentences of
people do that it is set beside.

Example::

    model = text_model.make(config, workdir)
    texts = text_model.continuations(config, model, prompts, ids, workdir)
    texts[0]                                     # the samples of the first prompt
"""

import math
import pathlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from trustml import _validate, rng, specs
from trustml import writer as writer_lib
from trustml.data import batches, prose, subwords
from trustml.experiments import build
from trustml.models import generate, gpt2, language_model

_SLOTS = 8  # slots of prompts are a multiple of it
_USUAL = 0.02  # deviation of initial weights, which suits widths of hundreds
_TITLES = (
    "Mr Mrs Ms Dr Jr Sr Fr St Mt Prof Rev Hon Gov Sen Rep Gen Col Maj Capt Lt Sgt vs"
).split()
# The end of a sentence: not an initial ('J.', 'U.S.') or a title, and what follows is
# no small letter ('at 5 p.m. and').
_END = re.compile(
    r"(?<!\b[A-Z])"
    + "".join(rf"(?<!\b{title})" for title in _TITLES)
    + r"[.!?][\"')\]]*(?=\s+[^\sa-z]|\s*$)"
)


class TextModel(NamedTuple):
    """A language model and its pieces of words.

    Attributes:
      name: in words.
      params: of the model.
      decoder: of the model.
      codec: of its pieces.
      size: number of parameters.
      perplexity: of a token of the text held out, each window read from its beginning.
      bits: of a character of it, which does not depend on the pieces.
      trained_on: number of tokens it was trained on here; 0 for a published one.
    """

    name: str
    params: Any
    decoder: generate.Decoder
    codec: subwords.Codec
    size: int
    perplexity: float
    bits: float
    trained_on: int


def make(config: specs.RunConfig, workdir: pathlib.Path) -> TextModel:
    """Trains a model, or reads a published one, and scores it on text held out.

    Args:
      config: `model`, `train`, `optimizer` and `generation` count.
      workdir: metrics of the training go into its directory `language_model`.

    Raises:
      FileNotFoundError: text or checkpoint is not there.
      ValueError: a setting that the model refuses, or a tokenizer with more pieces than
        the model has words.
    """
    spec, seen = config.generation, 0
    text = prose.read(spec.corpora)
    if config.model.checkpoint:
        codec = subwords.pretrained(config.model.checkpoint)
        loaded = gpt2.pretrained(
            config.model.checkpoint, compute_dtype=config.model.compute_dtype
        )
        task = gpt2.task(
            directory=config.model.checkpoint, compute_dtype=config.model.compute_dtype
        )
        name = f"GPT-2 of {pathlib.Path(config.model.checkpoint).name}"
        _check(config, codec, loaded.decoder)  # a piece without a word gives nan
    else:
        codec = subwords.train(text.train, spec.vocabulary_size)
        sizes = gpt2.Gpt2Config(
            vocab_size=codec.vocab_size,
            width=config.model.width,
            depth=config.model.depth,
            heads=config.model.heads,
            max_length=spec.window,
            begin_id=codec.end_id,
            end_id=codec.end_id,
        )
        task = gpt2.task(
            sizes,
            dropout=config.model.dropout,
            compute_dtype=config.model.compute_dtype,
        )
        stream = _stream(codec, text.train)
        params = _fit(config, task, stream, workdir)
        loaded = gpt2.bind(sizes, params, compute_dtype=config.model.compute_dtype)
        name, seen = "a small GPT-2 from scratch", len(stream)
    size = sum(leaf.size for leaf in jax.tree.leaves(loaded.params))
    nats, count = _nats(config, task, loaded.params, codec, text.held_out)
    characters = sum(len(one) + 1 for one in text.held_out)  # and the mark
    return TextModel(
        name,
        loaded.params,
        loaded.decoder,
        codec,
        int(size),
        math.exp(min(nats / count, 700)),
        nats / characters / math.log(2),
        seen,
    )


def continuations(
    config: specs.RunConfig,
    model: TextModel,
    prompts: Sequence[str],
    ids: Sequence[int],
    workdir: pathlib.Path,
) -> list[list[str]]:
    """What the model says to each prompt, `generation.samples` times.

    Args:
      config: `generation` and `seed` count.
      model: of `make`.
      prompts: without a blank at the end.
      ids: a number for each prompt; what is said to a prompt depends on its number and
        not on the others.
      workdir: progress goes into its directory `sampling`.

    Returns:
      For every prompt its texts, each up to the end of its first sentence, without the
      prompt.

    Raises:
      ValueError: if the positions of the model do not hold a prompt and its text; see
        `too_long`.
    """
    spec, codec = config.generation, model.codec
    if over := too_long(config, model, prompts):
        n, pieces = next(iter(over.items()))
        bound = (
            f"leaves {room(config, model)} positions of the model to a prompt, and "
            f"{prompts[n]!r} has {pieces} pieces with the mark"
        )
        cure = "lower it, or train on longer windows"
        _validate.fail("generation.max_new_tokens", spec.max_new_tokens, bound, cure)
    coded = [[codec.end_id, *one] for one in codec.encode(prompts)]
    slots = -(-max(map(len, coded)) // _SLOTS) * _SLOTS
    slots = min(slots, room(config, model) or slots)  # room is no less than the longest
    tokens = np.zeros((len(coded), slots), np.int32)
    for row, one in zip(tokens, coded, strict=True):
        row[: len(one)] = one
    length = np.array([len(one) for one in coded], np.int32)
    rows = generate.repeat(tokens, length, spec.samples, np.asarray(ids))
    sample = jax.jit(
        generate.sampler(
            model.decoder,
            max_new_tokens=spec.max_new_tokens,
            temperature=spec.temperature,
            top_k=spec.top_k,
            top_p=spec.top_p,
            eos_id=codec.end_id,
        )
    )
    key = rng.step_key(rng.stream(rng.root(config.seed), "generation"), 0)
    said: list[str] = []
    total = len(rows.length)
    size = min(spec.batch_size, total)
    with writer_lib.Writer(
        workdir / "sampling", total, examples_per_step=1, name="sampling"
    ) as out:
        for batch, mask in batches.evaluation(rows._asdict(), size):
            found = jax.device_get(sample(model.params, generate.Prompts(**batch), key))
            for row, n in zip(found.tokens[mask], found.length[mask], strict=True):
                said.append(first_sentence(codec.decode(row[:n].tolist())))
            out.write(len(said), {})
    each = spec.samples
    return [said[i : i + each] for i in range(0, total, each)]


def room(config: specs.RunConfig, model: TextModel) -> int | None:
    """Pieces that a prompt and the mark before it may have; None without a bound."""
    positions = model.decoder.max_length
    return positions - config.generation.max_new_tokens if positions else None


def too_long(
    config: specs.RunConfig, model: TextModel, prompts: Sequence[str]
) -> dict[int, int]:
    """Prompts that have more pieces than `room`: place -> pieces, with the mark.

    None is ever cut: what a model says to half a prompt says nothing about the whole.
    """
    most = room(config, model)
    pieces = [len(one) + 1 for one in model.codec.encode(prompts)]
    return {
        n: size for n, size in enumerate(pieces) if most is not None and size > most
    }


def first_sentence(text: str) -> str:
    """The text up to the end of its first sentence or paragraph, without blanks.

    'and sang. He' -> 'and sang.'; a text that does not end is given whole.
    """
    lines = text.strip().splitlines()
    text = lines[0] if lines else ""
    found = _END.search(text)
    return (text[: found.end()] if found else text).strip()


def _check(config: specs.RunConfig, codec, decoder) -> None:
    """Raises where a published model fits neither its tokenizer nor the settings."""
    words, positions = decoder.vocab_size, decoder.max_length
    if codec.vocab_size > words:
        _validate.fail(
            "model.checkpoint",
            config.model.checkpoint,
            f"has {codec.vocab_size} pieces in tokenizer.json and {words} words in the "
            "model",
            "give the tokenizer that the model was trained with",
        )
    if config.generation.window > positions:
        bound = f"exceeds the {positions} positions of the model"
        cure = f"lower it to {positions}"
        _validate.fail("generation.window", config.generation.window, bound, cure)


def _stream(codec, texts) -> np.ndarray:
    """int32[n]: all texts, the mark after each."""
    return np.array(
        [i for one in codec.encode(texts) for i in (*one, codec.end_id)], np.int32
    )


def _fit(config: specs.RunConfig, task, stream: np.ndarray, workdir) -> Any:
    """Parameters after `train.steps` updates on random windows of the stream."""
    window, train = config.generation.window, config.train
    if len(stream) <= window:
        bound = f"must be below the {len(stream)} tokens of the text"
        _validate.fail("generation.window", window, bound, "shorten it")
    optimizer = build.optimizer(config)
    root = rng.root(config.seed)
    held = jnp.asarray(stream)
    length = jnp.full((train.batch_size,), window, jnp.int32)

    def step(state, number):
        params, opt_state = state
        key = rng.step_key(rng.stream(root, "language_model"), number)
        start = jax.random.randint(
            jax.random.fold_in(key, 0), (train.batch_size,), 0, len(stream) - window
        )
        rows = {
            "tokens": jax.vmap(
                lambda at: jax.lax.dynamic_slice_in_dim(held, at, window)
            )(start),
            "length": length,
        }
        keys = jax.random.split(jax.random.fold_in(key, 1), train.batch_size)

        def loss(params):
            return jax.vmap(task.loss, (None, 0, 0))(params, rows, keys).mean()

        value, grads = jax.value_and_grad(loss)(params)
        change, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, change), opt_state), value

    compiled = jax.jit(step, donate_argnums=0)
    params = task.init(rng.step_key(rng.stream(root, "init"), 0))
    # Small models start to learn late from weights as small as those of large ones.
    grow = max(1.0, config.model.width**-0.5 / _USUAL)
    params = jax.tree.map(lambda x: grow * x if x.ndim > 1 else x, params)
    state = params, optimizer.init(params)
    with writer_lib.Writer(
        workdir / "language_model",
        train.steps,
        examples_per_step=train.batch_size,
        name="language model",
    ) as out:
        for number in range(train.steps):
            state, loss = compiled(state, jnp.uint32(number))
            if (number + 1) % train.log_every == 0 or number + 1 == train.steps:
                out.write(number + 1, {"loss": loss})
    return state[0]


def _nats(config, task, params, codec, texts) -> tuple[float, int]:
    """Sum of -log p over the text, and its tokens."""
    stream, window = _stream(codec, texts), config.generation.window
    pad = -len(stream) % window
    tokens = np.pad(stream, (0, pad)).reshape(-1, window)
    length = np.full(len(tokens), window, np.int32)
    length[-1] -= pad

    @jax.jit
    def run(params, batch):
        def one(example):
            return language_model.nats(task.predict(params, example), example)

        return jax.vmap(one)(batch)

    total = 0.0
    for batch, mask in batches.evaluation({"tokens": tokens, "length": length}, 16):
        total += float(np.asarray(run(params, batch))[mask].astype(float).sum())
    return total, len(stream)
