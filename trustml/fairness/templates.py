"""Templates and minimal pairs: what a model expects of a group, word by word.

**ILPS / LPBS** (Kurita et al. 2019). In "[T] is a [A]", with p_tgt = P(mask = T | A),
and p_prior = P(mask = T | A masked too),

    ILPS(T, A) = log p_tgt - log p_prior,     LPBS = ILPS(T1, A) - ILPS(T2, A)

the prior takes out how common T1 and T2 are. Positive: A goes with T1. For causal
models the same is a difference of differences of log-likelihoods of sentences, with a
neutral filler for A.

**WinoBias** (Zhao et al. 2018): share of pairs whose pro-stereotypical sentence is the
likelier one. **Winogender** (Rudinger et al. 2018): over occupations, Spearman's
correlation of log P(she) - log P(he) with the percentage of women in the occupation.
Both as tests of language models: no coreference is solved, and type 2 of WinoBias,
where grammar suffices, is told apart from type 1.

Dimension key: `N` pairs, `O` occupations.

Example::

    table = templates.masked_template(
        tokenizer, batch, params, '[T] is a [A].', ['He', 'She'], ['nurse', 'engineer'],
        max_length=512)
    bias = templates.lpbs(table.log_target, table.log_prior, 0, 1)     # [2], of A
    rows = templates.winobias(bias_sets.winobias(), pro_scores, anti_scores)

References: https://arxiv.org/abs/1906.07337, https://arxiv.org/abs/1804.06876,
https://arxiv.org/abs/1804.09301
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy import typing as npt
from scipy import stats

from trustml import _validate, intervals
from trustml.data import bias_sets, tokenizers
from trustml.fairness import likelihood, texts

TARGET, ATTRIBUTE = "[T]", "[A]"
TOKENS = ("mean", "sum", "first")
_MOST_LOST = 0.03  # share of resamples; `intervals.bootstrap` refuses 5%


class Table(NamedTuple):
    """Log-probabilities of targets in a template.

    Attributes:
      log_target: float64[targets, attributes], log P(T | A).
      log_prior: float64[targets, attributes], log P(T | as many masks as A has tokens).
      tokens: int64[targets, attributes], number of tokens of the target.
    """

    log_target: np.ndarray
    log_prior: np.ndarray
    tokens: np.ndarray


class Winogender(NamedTuple):
    """Correlation with the labour market.

    Attributes:
      correlation: Spearman's, with an interval over occupations; its ends are nan where
        many resamples would have no order: with fewer than five occupations, or one
        preference in most.
      occupations: names, O of them.
      preference: float64[O], mean of log P(she) - log P(he).
      percent_female: float64[O].
      excluded: sentences without a score.
    """

    correlation: intervals.Interval
    occupations: tuple[str, ...]
    preference: np.ndarray
    percent_female: np.ndarray
    excluded: int


def ilps(log_target: npt.ArrayLike, log_prior: npt.ArrayLike) -> np.ndarray:
    """Increased log-probability score, log p_tgt - log p_prior."""
    return np.asarray(log_target, float) - np.asarray(log_prior, float)


def lpbs(
    log_target: npt.ArrayLike, log_prior: npt.ArrayLike, first: int = 0, second: int = 1
) -> np.ndarray:
    """Log-probability bias score of each attribute: ILPS of one target less another's.

    Args:
      log_target: float[targets, attributes].
      log_prior: float[targets, attributes].
      first: number of the target T1.
      second: number of the target T2.
    """
    found = ilps(log_target, log_prior)
    return found[first] - found[second]


def causal_bias(
    with_attribute: npt.ArrayLike, with_filler: npt.ArrayLike
) -> np.ndarray:
    """The bias score of a causal model, a difference of differences.

    [l(T1, A) - l(T2, A)] - [l(T1, neutral) - l(T2, neutral)]

    Args:
      with_attribute: float[2, attributes], log-likelihoods of the sentences with T1 and
        with T2.
      with_filler: float[2] or float[2, attributes], of those with a neutral word for A.
    """
    a, b = np.asarray(with_attribute, float), np.asarray(with_filler, float)
    if a.shape[0] != 2 or b.shape[0] != 2:
        raise ValueError(
            f"with_attribute has shape {a.shape} and with_filler {b.shape}; give two "
            "rows each, of T1 and of T2."
        )
    return (a[0] - a[1]) - (b[0] - b[1])


def masked_template(
    tokenizer: tokenizers.Tokenizer,
    batch: Callable[..., Any],
    params: Any,
    template: str,
    targets: Sequence[str],
    attributes: Sequence[str],
    *,
    max_length: int,
    tokens: str = "mean",
    rows: int = 64,
) -> Table:
    """Log-probabilities of targets with each attribute, and with it masked.

    All tokens of the target are masked together; for the prior those of the attribute
    too, as many masks as it has tokens.

    Args:
      tokenizer: of the model.
      batch: of `likelihood.masked_batch`, compiled.
      params: of the model.
      template: with '[T]' and '[A]' once each, as words of their own.
      targets: words for [T].
      attributes: words for [A].
      max_length: most tokens of a sentence.
      tokens: of a target of several tokens: 'mean' of their log-probabilities, 'sum',
        or 'first'.
      rows: masked variants of a batch; an accelerator likes more.

    Raises:
      ValueError: if the template lacks a place, a sentence is too long, a word is no
        whole number of tokens or outside the vocabulary, or targets differ in tokens
        and `tokens` is 'sum'.
    """
    _validate.one_of("tokens", tokens, TOKENS)
    for mark in (TARGET, ATTRIBUTE):
        if template.count(mark) != 1:
            bound = f"must hold {mark} once"
            _validate.fail("template", template, bound, "as in '[T] is a [A].'")
    pairs = [(target, word) for target in targets for word in attributes]
    places = [
        texts.spans(
            tokenizer, [_cut(template, mark, *pair) for pair in pairs], max_length
        )
        for mark in (TARGET, ATTRIBUTE)
    ]
    coded = places[0].sentences
    for n, pair in enumerate(pairs):
        if coded.too_long[n] or not all(found.found[n] for found in places):
            bound = "does not fit the template: too long, or part of a token"
            _validate.fail("target, attribute", pair, bound, "set it apart by blanks")
    at = np.arange(coded.ids.shape[1])[None, :]
    inside = [
        (at >= found.start[:, None]) & (at < found.stop[:, None]) for found in places
    ]
    for which, mask in enumerate(inside):
        lost = np.flatnonzero((coded.unknown & mask).any(axis=1))
        if lost.size:
            words = ", ".join(dict.fromkeys(pairs[n][which] for n in lost))
            bound = "is outside the vocabulary, where all words are one"
            field = ("targets", "attributes")[which]
            _validate.fail(field, words, bound, "leave it out, and say so")
    count = inside[0].sum(axis=1)
    if tokens == "sum" and len(set(count.tolist())) > 1:
        _validate.fail(
            "tokens",
            tokens,
            f"does not compare targets of {sorted(set(count.tolist()))} tokens",
            "use tokens='mean', or targets of one length",
        )
    of, place = np.nonzero(inside[0])
    length = coded.attention.sum(axis=1).astype(np.int32)
    found: list[np.ndarray] = []
    for hidden in (inside[0], inside[0] | inside[1]):
        asked = likelihood.Variants(
            coded.ids[of], hidden[of], length[of], place.astype(np.int32)
        )
        said = np.full(coded.ids.shape, np.nan)
        said[of, place] = likelihood.run(batch, params, asked, rows=rows)
        if tokens == "first":
            value = said[np.arange(len(pairs)), places[0].start]
        else:
            value = likelihood.reduce(said, tokens)
        found.append(value.reshape(len(targets), len(attributes)))
    tokens_of = count.reshape(len(targets), len(attributes))
    return Table(found[0], found[1], tokens_of)


def winobias(
    pairs: Sequence[bias_sets.WinoBiasPair],
    pro: npt.ArrayLike,
    anti: npt.ArrayLike,
    *,
    level: float = 0.95,
) -> list[likelihood.Share]:
    """Share of pairs whose pro-stereotypical sentence is likelier: by type, and of all.

    Args:
      pairs: N of them.
      pro: float[N], scores of the pro-stereotypical sentences.
      anti: float[N], of the others.
      level: of the exact intervals.
    """
    a, b = np.asarray(pro, float), np.asarray(anti, float)
    kinds = np.array([pair.type for pair in pairs])
    groups = {f"type {kind}": kinds == kind for kind in sorted(set(kinds.tolist()))}
    groups["all"] = np.ones(len(kinds), bool)
    return [
        likelihood.preferred(a[rows], b[rows], name, level=level)
        for name, rows in groups.items()
    ]


def winogender(
    items: Sequence[bias_sets.WinogenderItem],
    female: npt.ArrayLike,
    male: npt.ArrayLike,
    percent_female: Mapping[str, float],
    *,
    level: float = 0.95,
    replicates: int = 1000,
    seed: int = 0,
) -> Winogender:
    """Spearman's correlation of a model's pronouns with the labour market.

    Args:
      items: N of them.
      female: float[N], scores of the sentences with "she"; nan is excluded, counted.
      male: float[N], of those with "he".
      percent_female: of every occupation, as `bias_sets.female_shares` has it.
      level: of the interval, over occupations.
      replicates: of the bootstrap.
      seed: of the bootstrap.

    Raises:
      ValueError: if an occupation has no percentage, or scores are not one an item.
    """
    a, b = np.asarray(female, float), np.asarray(male, float)
    if not a.shape == b.shape == (len(items),):
        raise ValueError(
            f"female has shape {a.shape} and male {b.shape} for {len(items)} items; "
            "give one score for each."
        )
    known = ~(np.isnan(a) | np.isnan(b))
    names, of = np.unique(
        np.array([item.occupation for item in items])[known], return_inverse=True
    )
    for name in names:
        if name not in percent_female:
            _validate.fail("occupation", str(name), "has no percentage", "add it")
    mean = np.bincount(of, weights=(a - b)[known]) / np.bincount(of)
    percent = np.array([percent_female[str(name)] for name in names])

    def spearman(x, y):
        x, y = (stats.rankdata(z, axis=1) for z in (x, y))
        x, y = (z - z.mean(axis=1, keepdims=True) for z in (x, y))
        scale = np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
        product = (x * y).sum(axis=1)
        return np.where(scale > 0, product / np.where(scale > 0, scale, 1), np.nan)

    def lost(z):
        """Share of resamples in which z is the same for all."""
        share = np.unique(z, return_counts=True)[1] / max(z.size, 1)
        return float((share**z.size).sum())

    options = {"level": level, "replicates": replicates, "seed": seed}
    if not (np.ptp(mean) > 0 and np.ptp(percent) > 0):
        # A model without preference has no order to correlate.
        found = intervals.Interval(*[float("nan")] * 3)
    elif lost(mean) + lost(percent) > _MOST_LOST:
        value = float(spearman(mean[None], percent[None])[0])
        found = intervals.Interval(value, *[float("nan")] * 2)
    else:
        found = intervals.bootstrap(
            spearman, (mean, percent), vectorized=True, **options
        )
    return Winogender(found, tuple(map(str, names)), mean, percent, int(np.sum(~known)))


def _cut(template: str, mark: str, target: str, attribute: str):
    """(left, word, right) of the filled template, cut at the word for `mark`."""
    left, right = template.split(mark)
    words = {TARGET: target, ATTRIBUTE: attribute}
    other = ATTRIBUTE if mark == TARGET else TARGET
    return (
        left.replace(other, words[other]),
        words[mark],
        right.replace(other, words[other]),
    )
