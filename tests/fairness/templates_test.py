"""Templates and minimal pairs against loops, closed forms and SciPy."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tests.fairness import pieces
from trustml.data import bias_sets
from trustml.fairness import templates

TEMPLATE = "[T] is a [A]."


def _ask(tokenizer, batch, model, targets, attributes, **options):
    arguments = (tokenizer, batch, model.params, TEMPLATE, targets, attributes)
    return templates.masked_template(*arguments, max_length=20, **options)


def _log_probs(model, text, places):
    """log p [P, V] at places of a text of pieces."""
    example = pieces.example(pieces.ids_of(text))
    run = pieces.jit(model.log_probs)
    return np.asarray(run(model.params, example, jnp.array(places)))


def test_targets_and_priors_equal_two_forward_passes(tokenizer, model, batch):
    """Attributes of one and of two tokens, as many masks for the prior."""
    found = _ask(tokenizer, batch, model, ["he", "she"], ["play", "cooks"])
    ids = pieces.ids_of("he she")
    texts = {
        "log_target": (
            "[CLS] [MASK] is a play . [SEP]",
            "[CLS] [MASK] is a cook ##s . [SEP]",
        ),
        "log_prior": (
            "[CLS] [MASK] is a [MASK] . [SEP]",
            "[CLS] [MASK] is a [MASK] [MASK] . [SEP]",
        ),
    }
    for field, pair in texts.items():
        expected = np.stack([_log_probs(model, text, [1])[0, ids] for text in pair], 1)
        np.testing.assert_allclose(getattr(found, field), expected, atol=1e-4)
    bias = templates.lpbs(found.log_target, found.log_prior)
    ilps = found.log_target - found.log_prior
    np.testing.assert_allclose(bias, ilps[0] - ilps[1])
    turned = templates.lpbs(found.log_target, found.log_prior, 1, 0)
    np.testing.assert_array_equal(turned, -bias)


def test_targets_of_several_tokens_are_masked_together(tokenizer, model, batch):
    words = ["he", "cooks"]
    said = _log_probs(model, "[CLS] [MASK] [MASK] is a play . [SEP]", [1, 2])
    cook, s = pieces.ids_of("cook ##s")
    first, second = said[0, cook], said[1, s]
    for tokens, expected in (("mean", (first + second) / 2), ("first", first)):
        found = _ask(tokenizer, batch, model, words, ["play"], tokens=tokens)
        np.testing.assert_allclose(found.log_target[1, 0], expected, atol=1e-4)
        assert found.tokens.tolist() == [[1], [2]]
    with pytest.raises(ValueError, match="targets of \\[1, 2\\] tokens"):
        _ask(tokenizer, batch, model, words, ["play"], tokens="sum")
    found = _ask(tokenizer, batch, model, words[1:], ["play"], tokens="sum")
    np.testing.assert_allclose(found.log_target[0, 0], first + second, atol=1e-4)


def test_wrong_templates_are_refused(tokenizer, model, batch):
    arguments = tokenizer, batch, model.params
    for template, word in (("[T] is", r"\[A\] once"), ("[T] [T] [A]", r"\[T\] once")):
        with pytest.raises(ValueError, match=word):
            templates.masked_template(
                *arguments, template, ["he"], ["a"], max_length=20
            )
    with pytest.raises(ValueError, match="does not fit the template"):
        templates.masked_template(
            *arguments, TEMPLATE, ["he"], ["a a a a a"], max_length=8
        )


def test_words_outside_the_vocabulary_are_refused_by_name(tokenizer, model, batch):
    # Both would be [UNK], and their bias exactly 0.
    with pytest.raises(ValueError, match="targets='zorg, blip' is outside the vocab"):
        _ask(tokenizer, batch, model, ["zorg", "he", "blip"], ["play"])
    with pytest.raises(ValueError, match="attributes='quux' is outside"):
        _ask(tokenizer, batch, model, ["he", "she"], ["play", "quux"])


def test_the_bias_of_a_causal_model_is_a_difference_of_differences():
    """A model that prefers T1 whatever the attribute has none."""
    free = np.array([[-5.0, -7.0], [-6.0, -8.0]])
    np.testing.assert_allclose(templates.causal_bias(free, [-3.0, -4.0]), [0.0, 0.0])
    tied = free + np.array([[2.0, 0.0], [0.0, 0.0]])
    np.testing.assert_allclose(templates.causal_bias(tied, [-3.0, -4.0]), [2.0, 0.0])
    with pytest.raises(ValueError, match="two rows"):
        templates.causal_bias([[1.0]], [1.0, 2.0])


@pytest.mark.data
def test_winobias_by_type(data_dir):
    pairs = bias_sets.winobias(str(data_dir))
    pro = np.array([float(pair.type) for pair in pairs])
    anti = np.ones(len(pairs))
    anti[0] = np.nan
    one, two, everything = templates.winobias(pairs, pro, anti)
    assert (one.name, one.n, one.excluded, one.preferred) == ("type 1", 791, 1, 0)
    assert (two.name, two.n, two.preferred, two.value) == ("type 2", 792, 792, 100.0)
    assert (everything.n, everything.preferred) == (1583, 792)


@pytest.mark.data
def test_winogender_equals_scipy(data_dir):
    items = bias_sets.winogender(str(data_dir))
    shares = bias_sets.female_shares(str(data_dir))
    rng = np.random.default_rng(0)
    female, male = rng.normal(size=(2, len(items)))
    female = female + np.array([shares[item.occupation] / 40 for item in items])
    female[3] = np.nan
    found = templates.winogender(items, female, male, shares)
    assert len(found.occupations) == 60 and found.excluded == 1
    expected = stats.spearmanr(found.preference, found.percent_female).statistic
    assert found.correlation.value == pytest.approx(expected)
    assert 0 < found.correlation.lo < expected < found.correlation.hi < 1
    rows = [n for n, item in enumerate(items) if item.occupation == "engineer"]
    place = found.occupations.index("engineer")
    np.testing.assert_allclose(
        found.preference[place], np.nanmean((female - male)[rows])
    )
    # By its own percentage the correlation is 1; a model without preference has none.
    percent = np.array([shares[item.occupation] for item in items])
    best = templates.winogender(items, percent, 0 * percent, shares)
    assert best.correlation.value == pytest.approx(1.0)
    none = templates.winogender(items, 0 * percent, 0 * percent, shares)
    assert np.isnan(none.correlation.value)


@pytest.mark.parametrize(("occupations", "ends"), [(3, False), (4, False), (5, True)])
def test_few_occupations_have_a_correlation_and_no_ends(occupations, ends):
    names = [f"job {n}" for n in range(occupations)]
    items = [bias_sets.WinogenderItem(n, "guest", 0, "a", "b", "c") for n in names]
    share = {name: 10.0 * n for n, name in enumerate(names)}
    female = np.array([0.0, 2.0, 1.0, 4.0, 3.0])[:occupations]
    found = templates.winogender(items, female, 0 * female, share).correlation
    expected = stats.spearmanr(female, list(share.values())).statistic
    assert found.value == pytest.approx(expected)
    assert np.isfinite([found.lo, found.hi]).tolist() == [ends] * 2
    # One preference in all but one occupation: most resamples have no order.
    names = names + [f"more {n}" for n in range(30)]
    items = [bias_sets.WinogenderItem(n, "guest", 0, "a", "b", "c") for n in names]
    share = {name: 1.0 * n for n, name in enumerate(names)}
    female = np.eye(len(names))[0]
    found = templates.winogender(items, female, 0 * female, share).correlation
    assert found.value < 0 and np.isnan(found.lo) and np.isnan(found.hi)


def test_winogender_needs_a_percentage():
    item = bias_sets.WinogenderItem("smith", "guest", 0, "she", "he", "they")
    with pytest.raises(ValueError, match="'smith' has no percentage"):
        templates.winogender([item], [1.0], [0.0], {})
    with pytest.raises(ValueError, match="1 items"):
        templates.winogender([item], [1.0], [0.0, 1.0], {"smith": 1.0})
