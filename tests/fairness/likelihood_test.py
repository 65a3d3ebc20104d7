"""Scorers against loops over single texts and single tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers as hugging_face
from tokenizers import decoders, pre_tokenizers, trainers
from tokenizers import models as hf_models

from tests.fairness import pieces
from trustml.data import tokenizers
from trustml.fairness import likelihood
from trustml.fairness import texts as texts_lib
from trustml.models import gpt2

TEXTS = (
    "he cooks .",
    "she is cooking in the garden .",
    "the nurse is not a cookersing .",
    "it plays",
    "she is a player , he is not .",
)


@pytest.fixture(scope="module")
def causal_model():
    return gpt2.pretrained(pieces.GOLDEN / "gpt2")


def _loop(model, texts, words=None):
    """Log p of every scored token, one forward pass of one row each."""
    run = pieces.jit(model.log_probs)
    out = np.full(texts.ids.shape, np.nan)
    for n, t in np.argwhere(texts.scored):
        row = texts.ids[n].copy()
        row[t] = pieces.MASK
        if words is not None:
            later = np.arange(len(row)) > t
            row[later & (words[n] == words[n, t])] = pieces.MASK
        example = {
            "tokens": jnp.asarray(row),
            "length": jnp.int32(texts.attention[n].sum()),
        }
        out[n, t] = run(model.params, example, jnp.array([t]))[0, texts.ids[n, t]]
    return out


def test_texts_are_encoded_with_their_marks(tokenizer):
    texts = texts_lib.encode(tokenizer, TEXTS, 12)
    assert texts.ids.shape == (5, 12)
    np.testing.assert_array_equal(texts.attention.sum(axis=1), [6, 10, 12, 5, 12])
    np.testing.assert_array_equal(texts.attention.sum(1) - texts.scored.sum(1), 2)
    assert not texts.scored[:, 0].any() and texts.words[0].tolist()[:6] == [
        *(-1, 0, 1, 1, 2, -1)
    ]
    assert not texts.too_long.any()
    tight = texts_lib.encode(tokenizer, TEXTS, 11)
    assert tight.too_long.tolist() == [False, False, True, False, True]
    assert tight.ids.shape[1] == 11
    plain = texts_lib.encode(tokenizers.characters("abc "), ["ab c", "a"], 9)
    assert plain.scored.sum(axis=1).tolist() == [4, 1]  # blanks are tokens, no marks
    with pytest.raises(ValueError, match="no text"):
        texts_lib.encode(tokenizer, [], 9)


@pytest.mark.parametrize("within_word", ["original", "l2r"])
def test_pseudo_log_likelihood_equals_a_loop(tokenizer, model, batch, within_word):
    texts = texts_lib.encode(tokenizer, TEXTS, 20)
    score = likelihood.masked(batch, model.params, within_word=within_word, rows=8)
    arrays = texts.ids, texts.scored, texts.attention, texts.words
    found = score(*arrays)
    words = texts.words if within_word == "l2r" else None
    np.testing.assert_allclose(found, _loop(model, texts, words), atol=1e-4)
    # Other company, other order, other slots: the same.
    order = np.array([4, 2, 0, 3, 1])
    again = score(*(x[order] for x in arrays))
    np.testing.assert_allclose(again, found[order], atol=1e-5)
    wide = [np.pad(x, ((0, 0), (0, 5))) for x in arrays[:3]]
    wide.append(np.pad(texts.words, ((0, 0), (0, 5)), constant_values=-1))
    np.testing.assert_allclose(score(*wide)[:, :-5], found, atol=1e-5)


def test_the_two_readings_of_a_word_differ_where_it_has_pieces(tokenizer, model, batch):
    texts = texts_lib.encode(tokenizer, TEXTS, 20)
    arrays = texts.ids, texts.scored, texts.attention, texts.words
    plain, l2r = (
        likelihood.masked(batch, model.params, within_word=how, rows=8)(*arrays)
        for how in ("original", "l2r")
    )
    same = texts.words[:, 1:] == texts.words[:, :-1]
    followed = np.pad(same, ((0, 0), (0, 1))) & texts.scored
    differs = np.abs(plain - l2r) > 1e-4
    np.testing.assert_array_equal(differs & texts.scored, followed)
    with pytest.raises(ValueError, match="words"):
        score = likelihood.masked(batch, model.params, within_word="l2r")
        score(*arrays[:3])


@pytest.mark.parametrize("first", ["bos", "skip"])
def test_causal_scores_equal_a_loop(tokenizer, causal_model, first):
    model, bos = causal_model, 3
    texts = texts_lib.encode(tokenizer, TEXTS, 20)
    fn = likelihood.causal_batch(
        model.logits, first=first, bos_id=bos if first == "bos" else None
    )
    score = likelihood.causal(pieces.jit(fn), model.params, first=first, rows=2)
    found = score(texts.ids, texts.attention, texts.attention)
    logits = pieces.jit(model.logits)
    for n, length in enumerate(texts.attention.sum(axis=1)):
        for t in range(length):
            seen = texts.ids[n, :t].tolist()
            seen = [bos, *seen] if first == "bos" else seen
            if not seen:
                assert np.isnan(found[n, t])
                continue
            padded = np.zeros(12, np.int32)
            padded[: len(seen)] = seen
            example = {"tokens": jnp.asarray(padded), "length": jnp.int32(len(seen))}
            row = jax.nn.log_softmax(logits(model.params, example)[len(seen) - 1])
            np.testing.assert_allclose(found[n, t], row[texts.ids[n, t]], atol=1e-4)
        assert np.isnan(found[n, length:]).all()


def test_few_shapes_are_compiled_and_few_batches_run(tokenizer, model):
    """48 variants of texts of 6 to 11 tokens: at 16 rows, 3 batches and 2 shapes."""
    shapes = []
    pure = likelihood.masked_batch(model.log_probs, pieces.MASK)

    def counted(params, variants):
        shapes.append(variants.ids.shape)
        return compiled(params, variants)

    compiled = pieces.jit(pure)
    texts = texts_lib.encode(tokenizer, TEXTS, 20)
    score = likelihood.masked(counted, model.params, rows=16)
    arrays = texts.ids, texts.scored, texts.attention
    score(*arrays)
    total = int(texts.scored.sum())
    assert len(shapes) == -(-total // 16) and len(set(shapes)) <= 2
    before = compiled._cache_size()
    assert before == len(set(shapes))
    score(*arrays)
    assert compiled._cache_size() == before


def test_reductions():
    nan = np.nan
    said = np.array([[-1.0, nan, -3.0], [nan, nan, nan], [-2.0, -2.0, -2.0]])
    np.testing.assert_array_equal(likelihood.reduce(said), [-4.0, nan, -6.0])
    np.testing.assert_array_equal(likelihood.reduce(said, "mean"), [-2.0, nan, -2.0])
    with pytest.raises(ValueError, match="did you mean 'mean'"):
        likelihood.reduce(said, "means")


def test_shares_count_ties_and_what_is_left_out():
    share = likelihood.preferred([1, 2, 3, 4, np.nan], [0, 2, 9, 1, 0], "x")
    assert share[4:8] == (2, 1, 4, 1)
    assert share.value == 50.0 and share.without_ties == pytest.approx(200 / 3)
    assert share.lo == pytest.approx(6.7586, abs=1e-3)  # Clopper-Pearson, 2 of 4
    empty = likelihood.preferred([np.nan], [1.0])
    assert np.isnan(empty.value) and (empty.lo, empty.hi) == (0.0, 100.0)
    with pytest.raises(ValueError, match="same pairs"):
        likelihood.preferred([1.0], [1.0, 2.0])


def test_spans_are_whole_tokens(tokenizer):
    parts = [
        ("she is ", "cooking", " in the garden ."),
        ("", "she", " is a nurse"),
        ("the nurse is ", "a cookers", "."),
        ("she is co", "oking", " ."),  # "co" is no piece of "cooking"
    ]
    found = texts_lib.spans(tokenizer, parts, 20)
    assert found.found.tolist() == [True, True, True, False]
    words = [
        [pieces.WORDS[i] for i in row[a:b]]
        for row, a, b in zip(found.sentences.ids, found.start, found.stop, strict=True)
    ]
    assert words[:3] == [["cook", "##ing"], ["she"], ["a", "cook", "##er", "##s"]]


def test_continuations_score_the_text_alone(tokenizer):
    contexts, texts = ["he cooks .", "it is"], ["she plays .", "a nurse"]
    joined, found = texts_lib.continuations(tokenizer, contexts, texts, 20)
    assert found.all()
    words = [
        [pieces.WORDS[i] for i in row[scored]]
        for row, scored in zip(joined.ids, joined.scored, strict=True)
    ]
    assert words == [["she", "play", "##s", "."], ["a", "nurse"]]


def test_byte_level_blanks_belong_to_the_word_after_them(tmp_path):
    engine = hugging_face.Tokenizer(hf_models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    engine.train_from_iterator([" ".join(TEXTS)] * 9, trainer)
    engine.decoder = decoders.ByteLevel()
    engine.save(str(tmp_path / "tokenizer.json"))
    found = texts_lib.spans(
        tokenizers.pretrained(tmp_path),
        [("she is ", "cooking", "."), ("", "She", " is"), ("", "she is", " a\u00e9 .")],
        40,
    )
    assert found.found.all()
    ids = [
        row[a:b].tolist()
        for row, a, b in zip(found.sentences.ids, found.start, found.stop, strict=True)
    ]
    texts = [engine.decode(row) for row in ids]
    assert texts == [" cooking", "She", "she is"]
    assert found.sentences.scored[0, 0]  # no marks


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda i, s, a: (i, s[:, :-1], a), "three of shape"),
        (lambda i, s, a: (i, s, a[:, ::-1]), "gap"),
        (lambda i, s, a: (i, np.ones_like(s), a), "padding"),
    ],
)
def test_wrong_masks_are_refused(tokenizer, model, batch, change, word):
    texts = texts_lib.encode(tokenizer, TEXTS, 20)
    score = likelihood.masked(batch, model.params, rows=8)
    with pytest.raises(ValueError, match=word):
        score(*change(texts.ids, texts.scored, texts.attention))


def test_a_broken_model_is_no_missing_score(tokenizer):
    texts = texts_lib.encode(tokenizer, TEXTS, 20)
    arrays = texts.ids, texts.scored, texts.attention
    for broken in (np.nan, -np.inf):
        score = likelihood.masked(lambda p, v: p * np.ones(8), broken, rows=8)
        with pytest.raises(ValueError, match="token 1 of text 0"):
            score(*arrays)
        score = likelihood.causal(
            lambda p, i, n: p * np.ones(i.shape), broken, first="skip", rows=8
        )
        with pytest.raises(ValueError, match="token 1 of text 0"):
            score(*arrays)


def test_wrong_options_are_refused(model):
    fn = model.log_probs
    for call, word in (
        (lambda: likelihood.causal_batch(fn, first="bos"), "bos_id=None does not go"),
        (lambda: likelihood.causal_batch(fn, first="skip", bos_id=1), "bos_id=1 does"),
        (lambda: likelihood.causal_batch(fn, first="all"), "skip"),
        (lambda: likelihood.masked(fn, None, within_word="r2l"), "within_word"),
        (lambda: likelihood.masked(fn, None, rows=0), "rows"),
        (lambda: likelihood.masked_batch(fn, -1), "mask_id"),
    ):
        with pytest.raises(ValueError, match=word):
            call()
