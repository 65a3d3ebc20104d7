"""Scenes of `launch.bench_fairness` for language models: scores of texts, and sampling.

The models have random weights, which cost what trained ones cost.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trustml.fairness import likelihood
from trustml.models import generate, gpt2, masked_lm

PAIRS, MASK, VOCABULARY = 1508, 3, 8000
NEW, PROMPT = 100, 16


def likelihood_rows(interleave: Callable[..., Any]) -> Iterator[Any]:
    """Pseudo-log-likelihood of as many pairs as CrowS-Pairs has, two layers.

    Lengths are drawn around 16 tokens. The peer runs one masked text at a time, already
    compiled for each length of a batch, and reads out the hidden token alone or, as the
    public scorers do, every token of the text.
    """
    rng = np.random.default_rng(0)
    length = np.clip(rng.normal(16, 5, 2 * PAIRS).round().astype(int), 6, 40)
    slots = int(length.max())
    ids = rng.integers(4, VOCABULARY, (2 * PAIRS, slots)).astype(np.int32)
    there = np.arange(slots) < length[:, None]
    ids[~there] = 0
    inner = there & (np.arange(slots) > 0)
    some = 60  # texts of the peer
    share = inner[:some].sum() / inner.sum()
    bounds = np.array([n for n in likelihood.LENGTHS if n < slots] + [slots])
    for width in (64, 128):
        config = masked_lm.config(VOCABULARY, width=width, depth=2, max_length=64)
        task = masked_lm.task(config, mask_id=MASK)
        model = masked_lm.bind(config, task.init(jax.random.key(0)))
        batch = jax.jit(likelihood.masked_batch(model.log_probs, MASK))
        score = likelihood.masked(batch, model.params)

        def ours(score=score):
            return np.nansum(score(ids, inner, there), axis=1)

        for whole in (False, True):

            def loop(params, row, n, place, whole=whole, model=model):
                seen = {"tokens": row.at[place].set(MASK), "length": n}
                at = jnp.arange(len(row)) if whole else place[None]
                found = model.log_probs(params, seen, at)
                return found[place if whole else 0, row[place]]

            one = jax.jit(loop)

            def theirs(one=one, params=model.params):
                out = np.zeros(some)
                for n in range(some):
                    row = ids[n, : bounds[np.searchsorted(bounds, length[n])]]
                    for place in np.nonzero(inner[n])[0]:
                        found = one(params, row, length[n], place)
                        out[n] += float(found)
                return out

            theirs()
            work = f"{PAIRS:,} pairs, width {width}, V = {VOCABULARY:,}, peer reads "
            work += f"{'every token' if whole else 'one token'} (made {some} texts)"
            yield interleave("one text at a time", work, theirs, ours, (), share)


def sampler_rows(interleave: Callable[..., Any]) -> Iterator[Any]:
    """100 new tokens after 16, GPT-2 of 4 layers; most probable token, so texts agree.

    The peer runs the whole padded text for every token, in one compiled loop.
    """
    for width, rows in ((128, 8), (256, 1), (256, 8), (256, 32)):
        config = gpt2.Gpt2Config(
            vocab_size=VOCABULARY, width=width, depth=4, heads=4, max_length=128
        )
        params = gpt2.task(config).init(jax.random.key(0))
        model = gpt2.bind(config, params)
        tokens = np.random.default_rng(0).integers(1, VOCABULARY, (rows, PROMPT))
        sample = generate.sampler(model.decoder, max_new_tokens=NEW, temperature=0.0)

        def ours(prompts, key, sample=sample, params=params):
            return sample(params, prompts, key).tokens

        def whole(tokens, model=model, params=params):
            texts = jnp.zeros((tokens.shape[0], PROMPT + NEW), jnp.int32)
            texts = texts.at[:, :PROMPT].set(tokens)
            length = jnp.full(tokens.shape[0], PROMPT + NEW)

            def step(t, texts):
                seen = {"tokens": texts, "length": length}
                logits = jax.vmap(model.logits, (None, 0))(params, seen)
                drawn = jnp.argmax(logits[:, t - 1], axis=1).astype(jnp.int32)
                return texts.at[:, t].set(drawn)

            end = PROMPT + NEW
            return jax.lax.fori_loop(PROMPT, end, step, texts)[:, PROMPT:]

        naive = jax.jit(whole)
        prompts = generate.repeat(tokens, np.full(rows, PROMPT))
        args = (jax.tree.map(jnp.asarray, prompts), jax.random.key(0))
        program = jax.jit(ours)
        work = f"{rows} x {NEW} tokens after {PROMPT}, 4 layers, width {width}"

        def theirs(naive=naive, tokens=tokens):
            return naive(tokens)

        jax.block_until_ready((theirs(), program(*args)))
        yield interleave("no cache", work, theirs, program, args)
