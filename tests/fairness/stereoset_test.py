"""StereoSet: figures of a plain scorer, hand cases, and scorers against loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.fairness import pieces
from trustml.data import bias_sets
from trustml.fairness import likelihood, stereoset

INTRA = [
    ("he", "gender", "He is BLANK.", ("he is cooking.", "he is plays.", "he is a.")),
    ("she", "gender", "she BLANK, a.", ("she cooks, a.", "she play, a.", "she is, a.")),
]
INTER = [
    ("he", "race", "he cooks.", ("she is a.", "he is.", "the the.")),
    ("she", "race", "a is he.", ("he plays.", "she playing is.", "a.")),
]


def _items(kind, rows):
    return [bias_sets.StereoItem(kind, *row[:3], *row[3]) for row in rows]


@pytest.fixture(scope="module")
def log_prob(model):
    """(tokens, place, token) -> log p, of one text."""
    run = pieces.jit(model.log_probs)

    def one(tokens, place, token):
        example = pieces.example(tokens)
        return float(run(model.params, example, jnp.array([place]))[0, token])

    return one


@pytest.mark.data
def test_figures_of_the_scorer_of_short_sentences(data_dir):
    """Computed in plain Python, of the score -len(sentence)."""
    items = bias_sets.stereoset(str(data_dir))
    scores = [[-len(text) for text in item[4:]] for item in items]
    found = {row.name: row for row in stereoset.summarise(items, scores)}
    expected = {
        "intra gender": (45.72333, 26.84213, 24.54623),
        "intra profession": (42.05167, 29.36872, 24.70007),
        "intra race": (41.03228, 28.04685, 23.01652),
        "intra religion": (44.64368, 21.17241, 18.90429),
        "inter": (54.68375, 24.53821, 22.23960),
        "all": (48.44202, 26.38408, 25.56197),
    }
    for name, figures in expected.items():
        row = found[name]
        values = row.ss.value, row.lms.value, row.icat.value
        np.testing.assert_allclose(values, figures, atol=1e-4)
        for interval in (row.ss, row.lms, row.icat):
            assert interval.lo < interval.value < interval.hi or name[-3:] == "all"
    assert len(found) == 11
    counts = [255, 810, 962, 79, 242, 827, 976, 78]
    names = [f"{k} {d}" for k in ("intra", "inter") for d in bias_sets.DOMAINS]
    assert [found[name].n for name in names] == counts
    assert found["all"].terms == 79
    assert found["intra religion"].terms == 3 and found["intra religion"].few_terms


@pytest.mark.data
def test_fills_are_found_in_all_items_but_two(data_dir, tokenizer, batch, model):
    items = bias_sets.stereoset(str(data_dir))
    intra = [item for item in items if item.kind == "intra"]
    other_case, missing = 0, 0
    for item in intra:
        cuts = [bias_sets.fill(item.context, text) for text in item[4:]]
        if cuts[0] is None:
            missing += 1
            continue
        for cut, text in zip(cuts, item[4:], strict=True):
            assert "".join(cut) == text and cut.word.strip()
        left, right = item.context.split("BLANK")
        other_case += any(cut[0] != left or cut[2] != right for cut in cuts)
    assert missing == 2
    assert other_case == 792  # sentences in lower case, context not
    two = [item for item in intra if item.context.count("BLANK") == 2]
    found = stereoset.fills(two, tokenizer, batch, model.params, max_length=20)
    assert found.excluded["two_blanks"] == (0, 1)
    assert np.isnan(found.values).all()


def test_rates_by_hand():
    """Term x: p > a in 1 of 2; y: in 1 of 1; the mean is of terms, not of items."""
    scores = [[3, 2, 1], [1, 1, 0], [5, 4, 9], [np.nan, 0, 0]]
    row = stereoset.rates(scores, ["x", "x", "y", "y"], "name")
    assert row.ss.value == 75.0
    assert row.lms.value == (100.0 + 0.0) / 2
    assert row.icat.value == 50.0 * 25 / 50
    assert (row.n, row.terms, row.excluded, row.ties) == (3, 2, 1, 1)
    # Two terms: resamples are (x, x), (x, y), (y, y), hence ends at the terms' own.
    assert (row.ss.lo, row.ss.hi) == (50.0, 100.0)


def test_a_model_that_scores_all_alike_has_nothing():
    row = stereoset.rates(np.zeros((4, 3)), ["x", "y", "z", "z"])
    assert (row.ss.value, row.lms.value, row.icat.value) == (0.0, 0.0, 0.0)
    assert row.ties == 4
    one = stereoset.rates([[3, 2, 1]], ["x"])
    assert one.ss.value == 100.0 and np.isnan(one.ss.lo)
    none = stereoset.rates(np.full((2, 3), np.nan), ["x", "y"])
    assert np.isnan(none.icat.value) and none.excluded == 2
    with pytest.raises(ValueError, match="three scores"):
        stereoset.rates([[1.0, 2.0]], ["x"])


def test_intervals_resample_terms():
    """Terms of 100 equal items are not 100 pieces of evidence."""
    rng = np.random.default_rng(0)
    by_term = rng.random((20, 3))
    wide = stereoset.rates(by_term, [str(n) for n in range(20)])
    repeated = stereoset.rates(
        np.repeat(by_term, 100, axis=0), np.repeat([str(n) for n in range(20)], 100)
    )
    assert repeated.ss == wide.ss and wide.ss.hi - wide.ss.lo > 20


def test_fills_equal_a_loop(tokenizer, batch, model, log_prob):
    items = _items("intra", INTRA)
    found = stereoset.fills(items, tokenizer, batch, model.params, max_length=20)

    def expected(left, fill, right):
        left, right = pieces.ids_of("[CLS] " + left), pieces.ids_of(right + " [SEP]")
        fill = pieces.ids_of(fill)
        probs = [
            np.exp(
                log_prob([*left, *fill[:j], pieces.MASK, *right], len(left) + j, one)
            )
            for j, one in enumerate(fill)
        ]
        return np.mean(probs)

    rows = [
        [expected("he is", p, ".") for p in ("cook ##ing", "play ##s", "a")],
        [expected("she", p, ", a .") for p in ("cook ##s", "play", "is")],
    ]
    np.testing.assert_allclose(found.values, rows, rtol=1e-3)
    assert all(rows == () for rows in found.excluded.values())


def test_exclusions_have_names(tokenizer, batch, model):
    rows = [
        *INTRA,
        ("he", "gender", "BLANK is BLANK.", ("he is he.", "she is she.", "a is a.")),
        (
            "he",
            "gender",
            "he is BLANK.",
            ("he is a.", "he is the.", "he is a a a a a."),
        ),
        ("he", "gender", "he pBLANKys.", ("he plays.", "he plays.", "he plays.")),
        ("he", "gender", "he BLANK.", ("he zorg.", "he is.", "he a.")),
        ("he", "gender", "zorg BLANK.", ("zorg is.", "zorg a.", "zorg the.")),
    ]
    items = _items("intra", rows)
    found = stereoset.fills(items, tokenizer, batch, model.params, max_length=8)
    assert found.excluded == {
        "two_blanks": (2,),
        "too_long": (3,),
        "unaligned": (4,),
        "unknown_word": (5,),  # of 6 it is not in the blank
    }
    kept = ~np.isnan(found.values).all(axis=1)
    assert np.flatnonzero(kept).tolist() == [0, 1, 6]
    summary = stereoset.summarise(items, found.values)[0]
    assert (summary.n, summary.excluded) == (3, 4)


def test_unknown_words_of_sentences_are_named(tokenizer, batch, model):
    strange = [
        ("he", "race", "he cooks.", ("she is a zorg.", "he is.", "the the.")),
        ("he", "race", "zorg cooks.", ("she is a.", "he is.", "the the.")),
    ]
    items = _items("inter", INTER + strange)
    score = likelihood.masked(batch, model.params, rows=16)
    for scorer in (stereoset.sentences, stereoset.conditional):
        found = scorer(items, tokenizer, score, max_length=20)
        assert found.excluded["unknown_word"] == (2,), scorer  # not of the context
        lost = np.isnan(found.values).any(axis=1)
        assert lost.tolist() == [False, False, True, False]
    follows = pieces.jit(jax.vmap(model.follows, (None, 0)))
    found = stereoset.next_sentence(
        items, tokenizer, follows, model.params, max_length=20, rows=4
    )
    assert found.excluded == {"too_long": (), "unknown_word": (2,)}


def test_sentences_given_their_context_equal_a_loop(tokenizer, batch, model, log_prob):
    items = _items("inter", INTER)
    score = likelihood.masked(batch, model.params, rows=16)
    found = stereoset.conditional(items, tokenizer, score, max_length=20)
    tokens = pieces.ids_of("[CLS] a is he . she play ##ing is . [SEP]")
    said = []
    for place in range(5, 10):
        hidden = [*tokens[:place], pieces.MASK, *tokens[place + 1 :]]
        said.append(log_prob(hidden, place, tokens[place]))
    np.testing.assert_allclose(found.values[1, 1], np.mean(said), atol=1e-4)
    alone = stereoset.sentences(items, tokenizer, score, max_length=20)
    assert np.abs(alone.values - found.values).min() > 1e-4
    with pytest.raises(ValueError, match=r"items\[0\].kind='intra' must be 'inter'"):
        stereoset.conditional(_items("intra", INTRA), tokenizer, score, max_length=20)


def test_next_sentences_equal_one_at_a_time(tokenizer, model):
    items = _items("inter", INTER)
    batch = pieces.jit(jax.vmap(model.follows, (None, 0)))
    found = stereoset.next_sentence(
        items, tokenizer, batch, model.params, max_length=20, rows=4
    )
    first, second = (
        pieces.ids_of("[CLS] he cook ##s . [SEP]"),
        pieces.ids_of("he is . [SEP]"),
    )
    example = {
        "tokens": jnp.array(first + second),
        "length": jnp.int32(10),
        "segments": jnp.array([0] * 6 + [1] * 4),
    }
    expected = pieces.jit(model.follows)(model.params, example)
    np.testing.assert_allclose(found.values[0, 1], expected, atol=1e-4)
    short = stereoset.next_sentence(
        items, tokenizer, batch, model.params, max_length=10, rows=4
    )
    assert short.excluded == {"too_long": (0, 1), "unknown_word": ()}
