"""CrowS-Pairs: figures of a plain scorer, alignment, and the scorer against a loop."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers as hugging_face
from tokenizers import models as hf_models
from tokenizers import normalizers, pre_tokenizers, processors, trainers

from tests.fairness import pieces
from trustml.data import bias_sets, tokenizers
from trustml.fairness import crows_pairs, likelihood
from trustml.fairness import texts as texts_lib
from trustml.models import masked_lm

PAIRS = [
    bias_sets.CrowsPair("She is a nurse.", "He is a nurse.", "stereo", "gender"),
    bias_sets.CrowsPair("He was poor and old.", "He was rich.", "antistereo", "age"),
    bias_sets.CrowsPair("The poor are bad", "The rich are bad", "stereo", "age"),
    bias_sets.CrowsPair("Old men are so bad.", "Old men are bad.", "stereo", "age"),
]


def _word_pieces(directory, texts, size):
    engine = hugging_face.Tokenizer(hf_models.WordPiece(unk_token="[UNK]"))
    engine.normalizer = normalizers.BertNormalizer()
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    engine.train_from_iterator(
        texts,
        trainers.WordPieceTrainer(
            vocab_size=size, special_tokens=pieces.MARKS, show_progress=False
        ),
    )
    engine.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    engine.save(str(directory / "tokenizer.json"))
    return tokenizers.pretrained(directory)


def _model(vocab_size, scale=8.0, **sizes):
    """A random masked model that is sure of itself."""
    config = masked_lm.config(vocab_size, **sizes)
    task = masked_lm.task(config, mask_id=pieces.MASK)
    params = jax.tree.map(lambda x: scale * x, task.init(jax.random.key(0)))
    return masked_lm.bind(config, params)


def _loop(model, texts, wanted, run):
    """The score of one token after the other, one row at a time."""
    out = np.full(texts.ids.shape, np.nan)
    length = texts.attention.sum(axis=1)
    for n, t in np.argwhere(wanted):
        row = texts.ids[n : n + 1].copy()
        token, row[0, t] = row[0, t], pieces.MASK
        example = {"tokens": row[0], "length": length[n].astype(np.int32)}
        said = run(model.params, example, np.array([t], np.int32))
        out[n, t] = np.asarray(said)[0, token]
    return out


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    texts = [text for pair in PAIRS for text in pair[:2]]
    return _word_pieces(tmp_path_factory.mktemp("pieces"), texts, 80)


@pytest.fixture(scope="module")
def model(tokenizer):
    return _model(tokenizer.vocab_size, width=16, depth=1, heads=2, max_length=24)


@pytest.fixture(scope="module")
def score(model):
    batch = pieces.jit(likelihood.masked_batch(model.log_probs, pieces.MASK))
    return likelihood.masked(batch, model.params, rows=16)


@pytest.mark.data
def test_figures_of_the_scorer_of_short_sentences(data_dir):
    pairs = bias_sets.crows_pairs(str(data_dir))
    more = [-len(pair.more) for pair in pairs]
    less = [-len(pair.less) for pair in pairs]
    found = {row.name: row for row in crows_pairs.summarise(pairs, more, less)}
    everything = found["all"]
    assert (everything.preferred, everything.ties, everything.n) == (660, 343, 1508)
    assert everything.value == pytest.approx(43.7666, abs=1e-4)
    assert everything.without_ties == pytest.approx(56.6524, abs=1e-4)
    assert found["stereo"].n == 1290 and found["antistereo"].n == 218
    religion = found["religion"]
    assert religion.n == 105 and 7.5 < (religion.hi - religion.lo) / 2 < 10
    assert sum(row.n for row in found.values()) == 3 * 1508


def test_shared_tokens_are_the_same_in_both():
    a, b = [2, 7, 8, 9, 3], [2, 8, 9, 9, 5, 3]
    first, second = crows_pairs.shared_tokens(a, b)
    assert first.tolist() == [True, False, True, True, True]
    assert second.tolist() == [True, True, True, False, False, True]
    rng = np.random.default_rng(0)
    for _ in range(200):
        a, b = (rng.integers(0, 5, rng.integers(0, 12)) for _ in range(2))
        first, second = crows_pairs.shared_tokens(a, b)
        np.testing.assert_array_equal(a[first], b[second])
        same, _ = crows_pairs.shared_tokens(a, a)
        assert same.all()


@pytest.mark.parametrize("tokens", crows_pairs.TOKENS)
def test_scores_equal_a_loop(tokenizer, model, score, tokens):
    found = crows_pairs.scores(PAIRS, tokenizer, score, max_length=24, tokens=tokens)
    run = pieces.jit(model.log_probs)
    for n, pair in enumerate(PAIRS):
        ids = [tokenizer.encode(text, 24) for text in pair[:2]]
        texts = texts_lib.encode(tokenizer, pair[:2], 24)
        shared = crows_pairs.shared_tokens(*(i[:k] for i, k in ids))
        wanted = texts.scored.copy()
        for row, mask in zip(wanted, shared, strict=True):
            keep = {"shared": mask, "changed": ~mask, "all": mask | True}[tokens]
            row[: len(keep)] &= keep
        said = _loop(model, texts, wanted, run)
        how = np.nanmean if tokens == "changed" else np.nansum
        if not wanted.any(axis=1).all():
            assert n == 3 and tokens == "changed"  # "so" has no counterpart
            continue
        expected = [how(row) for row in said]
        found_n = [found.more[n], found.less[n]]
        np.testing.assert_allclose(found_n, expected, rtol=1e-4)
    silent = (3,) if tokens == "changed" else ()
    expected = {"too_long": (), "unknown_word": (), "nothing_scored": silent}
    assert found.excluded == expected


def test_long_sentences_are_left_out_by_name(tokenizer, score):
    found = crows_pairs.scores(PAIRS, tokenizer, score, max_length=7)
    assert found.excluded["too_long"] == (1, 3)
    rows = crows_pairs.summarise(PAIRS, found.more, found.less)
    assert (rows[0].n, rows[0].excluded) == (2, 2)


@pytest.mark.parametrize("tokens", crows_pairs.TOKENS)
def test_unknown_words_are_left_out_by_name(tokenizer, score, tokens):
    # Both sentences of the second pair would be one, with a difference of exactly 0.
    sentences = [f"{word} is a nurse." for word in ("\u263a", "\u2603")]
    pairs = [PAIRS[0], bias_sets.CrowsPair(*sentences, "stereo", "a"), PAIRS[1]]
    found = crows_pairs.scores(pairs, tokenizer, score, max_length=24, tokens=tokens)
    assert found.excluded["unknown_word"] == (1,)
    assert found.excluded["nothing_scored"] == ()
    assert np.isnan(found.more).tolist() == [False, True, False]
    rows = crows_pairs.summarise(pairs, found.more, found.less)
    assert (rows[0].n, rows[0].excluded) == (2, 1)
    short = crows_pairs.scores(pairs, tokenizer, score, max_length=5, tokens=tokens)
    assert short.excluded["too_long"] == (0, 1, 2)
    assert short.excluded["unknown_word"] == ()


def test_rounding_makes_ties(tokenizer, score):
    plain = crows_pairs.scores(PAIRS, tokenizer, score, max_length=24)
    rounded = crows_pairs.scores(PAIRS, tokenizer, score, max_length=24, decimals=3)
    np.testing.assert_array_equal(rounded.more, np.round(plain.more, 3))
    assert (rounded.more != plain.more).any()
    with pytest.raises(ValueError, match="decimals"):
        crows_pairs.scores(PAIRS, tokenizer, score, max_length=24, decimals=-1)
    with pytest.raises(ValueError, match="shared, changed, all"):
        crows_pairs.scores(PAIRS, tokenizer, score, max_length=24, tokens="some")
    with pytest.raises(ValueError, match="for 4 pairs"):
        crows_pairs.summarise(PAIRS, [1.0], [2.0])


def _compare(pairs, directory, **sizes):
    """Scores of real pairs, batched and in loops, and seconds of a masked variant.

    The first loop asks for the hidden place alone, as the batches do; the second, as
    published code does, for the whole text. Both are compiled once, for one row.
    """
    texts_of = [pair.more for pair in pairs] + [pair.less for pair in pairs]
    tokenizer = _word_pieces(directory, texts_of, 4000)
    model = _model(tokenizer.vocab_size, max_length=128, **sizes)
    model = model._replace(params=jax.tree.map(jnp.asarray, model.params))
    batch = jax.jit(likelihood.masked_batch(model.log_probs, pieces.MASK))
    score = likelihood.masked(batch, model.params)
    asked = []

    def spy(ids, mask, attention, words):
        asked.append(mask)
        return score(ids, mask, attention, words)

    crows_pairs.scores(pairs, tokenizer, spy, max_length=128)  # compiles
    texts, wanted = texts_lib.encode(tokenizer, texts_of, 128), asked[0]
    few = wanted & (np.arange(len(wanted)) < 100)[:, None]
    every = jnp.arange(texts.ids.shape[1])

    def everywhere(params, example, places):
        return model.log_probs(params, example, every)[places]

    loops = jax.jit(model.log_probs), jax.jit(everywhere)
    seconds, start = [], time.perf_counter()
    found = crows_pairs.scores(pairs, tokenizer, score, max_length=128)
    seconds.append((time.perf_counter() - start) / wanted.sum())
    for run, mask in zip(loops, (wanted, few), strict=True):
        _loop(model, texts, wanted & (np.arange(len(wanted)) < 1)[:, None], run)
        start = time.perf_counter()
        said = _loop(model, texts, mask, run)
        seconds.append((time.perf_counter() - start) / mask.sum())
        if mask is wanted:
            sums = likelihood.reduce(said).reshape(2, -1)
    return found, sums, seconds, int(wanted.sum())


@pytest.mark.data
def test_real_pairs_get_the_decisions_of_the_loop(data_dir, tmp_path):
    pairs = bias_sets.crows_pairs(str(data_dir))[:12]
    found, sums, _, count = _compare(pairs, tmp_path, width=16, depth=1, heads=2)
    np.testing.assert_allclose(found.more, sums[0], rtol=1e-3)
    np.testing.assert_array_equal(found.more > found.less, sums[0] > sums[1])
    assert count > 150


@pytest.mark.slow
@pytest.mark.data
def test_all_pairs_get_the_decisions_of_the_loop(data_dir, tmp_path, capsys):
    """1,508 pairs and 2 layers; prints the times, which decide nothing."""
    pairs = bias_sets.crows_pairs(str(data_dir))
    sizes = {"width": 128, "depth": 2, "heads": 2}
    found, sums, seconds, count = _compare(pairs, tmp_path, **sizes)
    near = np.abs(sums[0] - sums[1]) < 1e-3  # a tie within float32 of sums of ~100
    same = (found.more > found.less) == (sums[0] > sums[1])
    with capsys.disabled():
        print(
            f"\n{count} variants, ms each: batched {1e3 * seconds[0]:.3f}, loops "
            f"{1e3 * seconds[1]:.3f} and {1e3 * seconds[2]:.3f}; near ties {near.sum()}"
        )
    assert (same | near).all() and near.sum() < 20
