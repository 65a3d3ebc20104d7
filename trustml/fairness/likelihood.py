"""How likely a language model finds a text: one scorer for all benchmarks.

    causal   log p(x) = sum_t log p(x_t | x_<t)
    masked   pll(x)   = sum_t log p(x_t | x without t)           pseudo-log-likelihood

A scorer is `score(ids, score_mask, attention_mask) -> log p` of every token asked for.
Underneath is a pure function of a batch, which the caller compiles; above it a driver
on the host that puts texts of like length together, so that few shapes are compiled and
little padding is computed. All masked variants of all sentences are one long list of
rows: a sentence of 20 tokens is 20 of them, each asking for one row of the vocabulary.

Options that differ between papers, and change results by points: the token before the
first (`first`), the sub-words hidden with one (`within_word`), sum or mean (`reduce`).

Texts are encoded by `fairness.texts`.

Dimension key: `B` texts, `T` token slots, `V` vocabulary, `M` masked variants.

Example::

    model = masked_lm.load(directory)
    tokenizer = tokenizers.pretrained(directory)
    mask_id = masked_lm.mask_id(directory)
    batch = jax.jit(likelihood.masked_batch(model.log_probs, mask_id))
    score = likelihood.masked(batch, model.params)
    rows = texts.encode(tokenizer, ['He cooks.', 'She cooks.'], 512)
    pll = likelihood.reduce(score(rows.ids, rows.scored, rows.attention), 'sum')

References: https://arxiv.org/abs/1910.14659 (pseudo-log-likelihood),
https://arxiv.org/abs/2305.10588 (l2r within words)
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trustml import _validate, intervals

Score = Callable[..., np.ndarray]
# Slots that batches are padded to; a shape is compiled for each that occurs.
LENGTHS = (8, 12, 16, 20, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)


class Variants(NamedTuple):
    """Texts with hidden tokens, each with a question about one place.

    Attributes:
      ids: int32[M, T]; the token asked about stands at its place.
      hidden: bool[M, T], tokens that the model sees as masks.
      length: int32[M].
      place: int32[M].
    """

    ids: np.ndarray
    hidden: np.ndarray
    length: np.ndarray
    place: np.ndarray


class Share(NamedTuple):
    """How often the first of two texts was the likelier one.

    Attributes:
      name: of the group of pairs.
      value: 100 * preferred / n, ties counted as not preferred; nan without pairs.
      lo: lower end of the exact interval.
      hi: upper end.
      preferred: pairs whose first text has the higher score.
      ties: pairs with equal scores.
      n: pairs, ties included.
      excluded: pairs without a score.
      without_ties: 100 * preferred / (n - ties); nan if all are tied.
    """

    name: str
    value: float
    lo: float
    hi: float
    preferred: int
    ties: int
    n: int
    excluded: int
    without_ties: float


def causal_batch(
    logits: Callable[..., Any], *, first: str = "bos", bos_id: int | None = None
) -> Callable[..., Any]:
    """The pure function behind `causal`, to be compiled.

    Args:
      logits: (params, example) -> float32[T, V], row t of token t + 1, as those of
        `models.gpt2`.
      first: 'bos', the first token is scored after `bos_id`; 'skip', it is not scored
        and nothing stands before it.
      bos_id: for 'bos'; 50256 (`<|endoftext|>`) in GPT-2.

    Returns:
      fn(params, ids i32[B, T], length i32[B]) -> float32[B, T]; for 'skip' the first
      column is nan.

    Raises:
      ValueError: if `first` is unknown, or `bos_id` missing or not needed.
    """
    _validate.one_of("first", first, ("bos", "skip"))
    if (bos_id is None) == (first == "bos"):
        bound = f"does not go with first={first!r}"
        _validate.fail("bos_id", bos_id, bound, "give it for first='bos' alone")

    def one(params, ids, length):
        seen = ids
        if bos_id is not None:
            seen = jnp.concatenate([jnp.full(1, bos_id, ids.dtype), ids[:-1]])
        rows = logits(params, {"tokens": seen, "length": length})
        target = ids if first == "bos" else jnp.roll(ids, -1)
        chosen = jnp.take_along_axis(rows, target[:, None], axis=1, mode="clip")[:, 0]
        said = chosen - jax.nn.logsumexp(rows, axis=1)
        return said if first == "bos" else jnp.roll(said, 1).at[0].set(jnp.nan)

    return jax.vmap(one, (None, 0, 0))


def masked_batch(log_probs: Callable[..., Any], mask_id: int) -> Callable[..., Any]:
    """The pure function behind `masked`, to be compiled.

    Args:
      log_probs: (params, example, places i32[P]) -> float32[P, V], as those of
        `models.masked_lm`.
      mask_id: id of the mask.

    Returns:
      fn(params, `Variants`) -> float32[M], log p of the token at each place.
    """
    _validate.integer_at_least("mask_id", mask_id, 0)

    def one(params, variant):
        seen = jnp.where(variant.hidden, mask_id, variant.ids)
        example = {"tokens": seen, "length": variant.length}
        row = log_probs(params, example, variant.place[None])[0]
        return row[variant.ids[variant.place]]

    return jax.vmap(one, (None, 0))


def causal(
    batch: Callable[..., Any],
    params: Any,
    *,
    first: str = "bos",
    rows: int = 64,
    lengths: Sequence[int] = LENGTHS,
) -> Score:
    """A scorer of texts by a causal model.

    Args:
      batch: of `causal_batch`, compiled.
      params: of the model.
      first: as given to `causal_batch`.
      rows: texts of a batch.
      lengths: slots that batches are padded to.

    Returns:
      score(ids i32[B, T], score_mask bool[B, T], attention_mask bool[B, T]) ->
      float64[B, T], log p of every token where `score_mask` is true, nan elsewhere (and
      at the first token for first='skip').

    Raises:
      ValueError: when called, for masks of other shapes, attention that is not at the
        left, or a log-probability that is not finite.
    """
    skips_first = _validate.one_of("first", first, ("bos", "skip")) == "skip"
    _validate.integer_at_least("rows", rows, 1)

    def score(ids, score_mask, attention_mask, words=None):
        ids, wanted, length = _check(ids, score_mask, attention_mask)
        out = np.full(ids.shape, np.nan)
        found = _in_batches(
            lambda part: batch(params, *part), (ids, length), length, rows, lengths
        )
        for at, values in found:
            out[at, : values.shape[1]] = values
        skipped = skips_first & (np.arange(ids.shape[1]) == 0)[None, :]
        _finite(out, wanted & ~skipped)
        return np.where(wanted & ~skipped, out, np.nan)

    return score


def masked(
    batch: Callable[..., Any],
    params: Any,
    *,
    within_word: str = "original",
    rows: int = 64,
    lengths: Sequence[int] = LENGTHS,
) -> Score:
    """A scorer of texts by a masked model: log p of each token, with it hidden.

    Args:
      batch: of `masked_batch`, compiled.
      params: of the model.
      within_word: 'original', a token alone is hidden; 'l2r', and the later sub-words
        of its word, which would give it away.
      rows: masked variants of a batch; an accelerator likes more.
      lengths: slots that batches are padded to.

    Returns:
      score(ids, score_mask, attention_mask, words=None) -> float64[B, T], as that of
      `causal`; 'l2r' needs `words`, those of `texts.encode`.

    Raises:
      ValueError: if `within_word` is unknown; when called, as `causal`.
    """
    _validate.one_of("within_word", within_word, ("original", "l2r"))
    _validate.integer_at_least("rows", rows, 1)

    def score(ids, score_mask, attention_mask, words=None):
        ids, wanted, length = _check(ids, score_mask, attention_mask)
        if within_word == "l2r" and words is None:
            _validate.fail("words", words, "is needed for within_word='l2r'", "give it")
        out = np.full(ids.shape, np.nan)
        text, place = np.nonzero(wanted)
        hidden = np.arange(ids.shape[1])[None, :] == place[:, None]
        if within_word == "l2r":
            words = np.asarray(words)
            same = words[text] == words[text, place][:, None]
            later = np.arange(ids.shape[1])[None, :] > place[:, None]
            hidden |= same & later & (words[text] >= 0)
        found = Variants(ids[text], hidden, length[text], place.astype(np.int32))
        out[text, place] = run(batch, params, found, rows=rows, lengths=lengths)
        _finite(out, wanted)
        return out

    return score


def run(
    batch: Callable[..., Any],
    params: Any,
    variants: Variants,
    *,
    rows: int = 64,
    lengths: Sequence[int] = LENGTHS,
) -> np.ndarray:
    """Log p at the place of each variant, float64[M], in batches of like length.

    Args:
      batch: of `masked_batch`, compiled.
      params: of the model.
      variants: M of them.
      rows: variants of a batch; an accelerator likes more.
      lengths: slots that batches are padded to.
    """
    out = np.full(len(variants.place), np.nan)
    found = _in_batches(
        lambda part: batch(params, Variants(*part)),
        tuple(variants),
        variants.length,
        rows,
        lengths,
    )
    for at, values in found:
        out[at] = values
    return out


def reduce(log_probs: np.ndarray, how: str = "sum") -> np.ndarray:
    """Score of each text: the sum or the mean over its scored tokens, natural log.

    Args:
      log_probs: float64[B, T], nan where not scored.
      how: 'sum' or 'mean'.

    Returns:
      float64[B]; nan for a text without a scored token.
    """
    _validate.one_of("how", how, ("sum", "mean"))
    scored = ~np.isnan(log_probs)
    count = scored.sum(axis=1)
    total = np.where(scored, log_probs, 0.0).sum(axis=1)
    if how == "mean":
        total = total / np.maximum(count, 1)
    return np.where(count > 0, total, np.nan)


def preferred(
    first: Sequence[float] | np.ndarray,
    second: Sequence[float] | np.ndarray,
    name: str = "",
    *,
    level: float = 0.95,
) -> Share:
    """`Share` of pairs whose first text scores higher than the second.

    Args:
      first: float[N].
      second: float[N]; a pair with nan on either side is excluded and counted.
      name: of the group.
      level: of the exact interval, which counts ties as not preferred.
    """
    a, b = np.asarray(first, float), np.asarray(second, float)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(
            f"first has shape {a.shape} and second {b.shape}; give one score for each "
            "text of the same pairs."
        )
    known = ~(np.isnan(a) | np.isnan(b))
    a, b = a[known], b[known]
    n, won, ties = a.size, int(np.sum(a > b)), int(np.sum(a == b))
    lo, hi = intervals.proportion(won, n, level)
    value = 100.0 * won / n if n else float("nan")
    rest = 100.0 * won / (n - ties) if n > ties else float("nan")
    excluded = int(np.sum(~known))
    return Share(name, value, 100 * lo, 100 * hi, won, ties, n, excluded, rest)


def _check(ids, score_mask, attention_mask):
    """Arrays of the contract; scored tokens lie inside the text."""
    ids = np.asarray(ids, np.int32)
    score_mask, attention = (
        np.asarray(score_mask, bool),
        np.asarray(attention_mask, bool),
    )
    if ids.ndim != 2 or not ids.shape == score_mask.shape == attention.shape:
        raise ValueError(
            f"ids has shape {ids.shape}, score_mask {score_mask.shape} and "
            f"attention_mask {attention.shape}; give three of shape [B, T]."
        )
    length = attention.sum(axis=1).astype(np.int32)
    places = np.arange(ids.shape[1])[None, :]
    if (attention != (places < length[:, None])).any():
        raise ValueError("attention_mask has a gap; pad texts at the right.")
    if (score_mask & ~attention).any():
        raise ValueError("score_mask asks for padding; leave it out.")
    return ids, score_mask, length


def _in_batches(call, arrays, length, rows, lengths):
    """(rows of the input, results) of batches of one shape, shortest texts first.

    Everything is dispatched before the first result is fetched.
    """
    order = np.argsort(length, kind="stable")
    slots = arrays[0].shape[1]
    pending = []
    for start in range(0, len(order), rows):
        at = order[start : start + rows]
        longest = int(length[at[-1]])
        # Not beyond the slots of the input, which fit the model.
        width = next((n for n in sorted(lengths) if n >= longest), slots)
        width = min(width, slots)
        # A batch that is not full repeats its last row.
        filled = np.concatenate([at, np.full(rows - len(at), at[-1])])
        part = [x[filled] if x.ndim == 1 else x[filled, :width] for x in arrays]
        pending.append((at, call(part)))
    for at, values in pending:
        yield at, np.asarray(values, np.float64)[: len(at)]


def _finite(out, wanted) -> None:
    bad = np.argwhere(wanted & ~np.isfinite(out))
    if bad.size:
        raise ValueError(
            f"log p of token {bad[0][1]} of text {bad[0][0]} is {out[tuple(bad[0])]} "
            f"({len(bad)} such tokens); check the model and its vocabulary."
        )
