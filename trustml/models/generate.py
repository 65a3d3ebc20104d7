"""Text from a causal language model: prefill once, then one step a token.

    p_t = softmax(z_t / temperature), cut to the top k, then to the top p, renormalised

A model offers a `Decoder`, pure functions of ONE text: `prefill` reads the prompt and
returns the logits z of the next token and a cache; `step` adds one token to the cache.
A step costs one token instead of the whole text. `gpt2` and `language_model` have one.

The sampler maps them over rows. Prompts are padded at the right and every row writes at
its own position, so the cache of a transformer is [L, B, H, Tmax, Dh]. A row that has
drawn the end-of-text token is frozen: it repeats that token, and its length stands.

The noise of a token comes from key, prompt id, sample id and step, folded in: what is
said to a prompt does not depend on which rows share its batch, on their order or on the
number of devices. (Logits may differ in their last bits between batch shapes, as any
float sum may; only a tie within those bits could turn.)

Dimension key: `B` rows, `T` slots of a prompt, `N` new tokens, `V` vocabulary, `L`
layers, `H` heads, `Dh` width of a head.

Example::

    model = gpt2.pretrained(directory)
    sample = generate.sampler(model.decoder, max_new_tokens=100, top_p=0.9)
    rows = generate.repeat(tokens, length, samples=10)
    out = jax.jit(sample)(model.params, rows, jax.random.key(0))
    out.tokens[0, : out.length[0]]

References: https://arxiv.org/abs/1904.09751 (top p), https://arxiv.org/abs/1805.04833
(top k)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trustml import _validate
from trustml import task as task_lib

Cache = Any  # a pytree of arrays, of one text
CACHE_AXIS = 1  # where rows stand in the leaves of a cache: [L, B, ...]
_COLD = float(np.finfo(np.float32).tiny)  # temperatures below it are 0 in float32


class Decoder(NamedTuple):
    """A causal language model as functions of one text, for `sampler`.

    Attributes:
      vocab_size: V.
      max_length: most tokens of a text, prompt and answer together; 0 for no bound.
      prefill: (params, tokens i32[T >= 1], length i32[], slots) -> (logits float32[V]
        of the token after the prompt, cache with room for `slots` tokens). An empty
        prompt is the token that begins a text. Leaves of the cache have rank >= 1.
      step: (params, token i32[], position i32[], cache) -> (logits of the token after
        it, cache). `position` is the number of tokens before `token`, the one that
        begins a text included where the prompt is empty.
    """

    vocab_size: int
    max_length: int
    prefill: Callable[..., tuple[jax.Array, Cache]]
    step: Callable[..., tuple[jax.Array, Cache]]


class Prompts(NamedTuple):
    """Rows to be continued.

    Attributes:
      tokens: int32[B, T], padded at the right with anything.
      length: int32[B], tokens of each prompt.
      prompt_id: uint32[B]; rows with equal ids and equal sample ids say the same.
      sample_id: uint32[B].
    """

    tokens: Any
    length: Any
    prompt_id: Any
    sample_id: Any


class Samples(NamedTuple):
    """What was said.

    Attributes:
      tokens: int32[B, N]; the end-of-text token from where it was drawn.
      length: int32[B], tokens before the end of the text.
      finished: bool[B], whether the end of the text was drawn.
      log_probs: float32[B, N], log p of each token under the model as it is, before
        temperature and cuts; 0 after the end of the text (its own is counted).
    """

    tokens: Any
    length: Any
    finished: Any
    log_probs: Any


def repeat(tokens: Any, length: Any, samples: int = 1, prompt_id: Any = None):
    """`Prompts` with `samples` rows for each prompt, in order of prompts.

    Args:
      tokens: int32[P, T].
      length: int32[P].
      samples: rows of a prompt; their sample ids count from 0.
      prompt_id: integers[P]; 0, 1, ... where None. Give the place in the whole list
        when the prompts are a part of it.

    Raises:
      ValueError: if shapes differ, `samples` < 1, or numbers are no integers or do not
        fit.
    """
    samples = _validate.integer_at_least("samples", samples, 1)
    tokens = _whole("tokens", tokens, np.int32)
    length = _whole("length", length, np.int32)
    if tokens.ndim != 2 or length.shape != tokens.shape[:1]:
        raise ValueError(
            f"tokens has shape {tokens.shape} and length {length.shape}; give one row "
            "of tokens and one length for each prompt."
        )
    if length.size and not (0 <= length.min() and length.max() <= tokens.shape[1]):
        raise ValueError(
            f"length={length[(length < 0) | (length > tokens.shape[1])][0]} must lie "
            f"between 0 and the {tokens.shape[1]} slots of a prompt."
        )
    ids = np.arange(len(tokens)) if prompt_id is None else prompt_id
    ids = _whole("prompt_id", ids, np.uint32)
    if ids.shape != length.shape:
        raise ValueError(
            f"prompt_id has shape {ids.shape}; give one number for each of the "
            f"{len(tokens)} prompts."
        )
    return Prompts(
        np.repeat(tokens, samples, axis=0),
        np.repeat(length, samples),
        np.repeat(ids, samples),
        np.tile(np.arange(samples, dtype=np.uint32), len(tokens)),
    )


def _whole(name: str, values: Any, dtype: Any) -> np.ndarray:
    """`values` in `dtype`, if it holds them."""
    given = np.asarray(values)
    if given.size and given.dtype.kind not in "iub":
        bound = f"is of {given.dtype}"
        _validate.fail(name, "an array", bound, "give integers")
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    wrong = given[(given < low) | (given > high)] if given.size else given
    if wrong.size:
        bound = f"must lie between {low} and {high}"
        _validate.fail(name, int(wrong.flat[0]), bound, "number them anew")
    return given.astype(dtype)


def sampler(
    decoder: Decoder,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    eos_id: int | None = None,
) -> Callable[[task_lib.Params, Prompts, task_lib.Key], Samples]:
    """A function that continues prompts.

    Args:
      decoder: of the model.
      max_new_tokens: N >= 1.
      temperature: >= 0; 0 takes the most probable token, and no key matters.
      top_k: keep the k most probable tokens, and those that tie with the last of them;
        0 keeps all.
      top_p: in (0, 1]; of what top k left, keep the most probable tokens up to and
        including the one with which their sum reaches p, and its ties.
      eos_id: token that ends a text; None has no such token.

    Returns:
      fn(params, prompts, key) -> `Samples`; pure, jit it. It compiles once a shape of
      `prompts.tokens`.

    Raises:
      ValueError: when built, for an option out of range; when traced, if the slots of a
        prompt and the new tokens exceed the positions of the model.
    """
    new = _validate.integer_at_least("max_new_tokens", max_new_tokens, 1)
    temperature = _validate.non_negative("temperature", temperature, "1 is usual")
    draw = _draw(decoder.vocab_size, temperature, top_k, top_p)
    if eos_id is not None:
        _validate.integer_at_least("eos_id", eos_id, 0)
        if eos_id >= decoder.vocab_size:
            bound = f"must be below the {decoder.vocab_size} words of the model"
            _validate.fail("eos_id", eos_id, bound, "give the id of the end of a text")
    end = -1 if eos_id is None else eos_id

    def sample(params, prompts: Prompts, key) -> Samples:
        tokens = jnp.asarray(prompts.tokens, jnp.int32)
        length = jnp.asarray(prompts.length, jnp.int32)
        if not tokens.shape[1]:  # room for the token that begins a text
            tokens = jnp.zeros((tokens.shape[0], 1), jnp.int32)
        begun = jnp.maximum(length, 1)
        slots = tokens.shape[1] + new
        if 0 < decoder.max_length < slots:
            _validate.fail(
                "max_new_tokens",
                new,
                f"and the {tokens.shape[1]} slots of a prompt exceed the "
                f"{decoder.max_length} positions of the model",
                "shorten one of them",
            )

        def row_key(prompt_id, sample_id):
            return jax.random.fold_in(jax.random.fold_in(key, prompt_id), sample_id)

        keys = jax.vmap(row_key)(
            jnp.asarray(prompts.prompt_id, jnp.uint32),
            jnp.asarray(prompts.sample_id, jnp.uint32),
        )
        prefill = jax.vmap(
            lambda p, t, n: decoder.prefill(p, t, n, slots),
            (None, 0, 0),
            (0, CACHE_AXIS),
        )
        one = jax.vmap(
            decoder.step, (None, 0, 0, CACHE_AXIS), (0, CACHE_AXIS), axis_name=None
        )
        rows = jax.vmap(draw, (0, 0, None))
        logits, cache = prefill(params, tokens, length)
        first, log_prob = rows(logits, keys, jnp.uint32(0))

        def step(carry, at):
            token, done, cache = carry
            logits, cache = one(params, token, begun + at, cache)
            drawn, log_prob = rows(logits, keys, at.astype(jnp.uint32) + 1)
            drawn = jnp.where(done, token, drawn)
            log_prob = jnp.where(done, 0.0, log_prob)
            return (drawn, done | (drawn == end), cache), (drawn, log_prob)

        _, (later, later_log_probs) = jax.lax.scan(
            step, (first, first == end, cache), jnp.arange(new - 1, dtype=jnp.int32)
        )
        said = jnp.concatenate([first[None], later]).T
        log_probs = jnp.concatenate([log_prob[None], later_log_probs]).T
        count = jnp.sum(said != end, axis=1, dtype=jnp.int32)
        return Samples(said, count, count < new, log_probs)

    return sample


def keep_top(logits: jax.Array, top_k: int = 0, top_p: float = 1.0) -> jax.Array:
    """`logits` with -inf where a token is cut; see `sampler`.

    Args:
      logits: float32[V]; need not be normalised.
      top_k: tokens kept; 0 keeps all.
      top_p: probability kept, of what top k left.
    """
    if not top_k and top_p >= 1.0:
        return logits
    size = logits.shape[0]
    ranked, _ = jax.lax.top_k(logits, min(top_k, size) or size)
    least = ranked[-1]
    if top_p < 1.0:
        # Tokens that tie with the last of top k count in the sum, as they are kept.
        out = -jnp.inf
        ranked = jnp.sort(jnp.where(logits >= least, logits, out), descending=True)
        probs = jax.nn.softmax(ranked)
        before = jnp.cumsum(probs) - probs
        # A sum in float32 may end below p: what top k cut stays cut all the same.
        inside = (before < top_p) & (ranked > out)
        least = jnp.min(jnp.where(inside, ranked, jnp.inf))
    return jnp.where(logits >= least, logits, -jnp.inf)


def _draw(vocab_size: int, temperature: float, top_k: int, top_p: float):
    """(logits[V], row key, step) -> (token, log p)."""
    _validate.integer_at_least("top_k", top_k, 0, "0 keeps all")
    top_p = _validate.positive("top_p", top_p, "1 keeps all")
    if top_p > 1:
        _validate.fail("top_p", top_p, "must be at most 1", "1 keeps all")

    def draw(logits, key, step):
        logits = logits.astype(jnp.float32)
        if temperature < _COLD:
            token = jnp.argmax(logits)
        else:
            # From the largest down, so that nothing overflows to +inf.
            z = (logits - logits.max()) / temperature
            kept = keep_top(z, top_k, top_p)
            token = jax.random.categorical(jax.random.fold_in(key, step), kept)
        log_prob = logits[token] - jax.nn.logsumexp(logits)
        return token.astype(jnp.int32), log_prob

    return draw
