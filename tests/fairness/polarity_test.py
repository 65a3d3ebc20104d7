"""Gender polarity: golden counts on BOLD, hand cases, ratios of groups."""

import numpy as np
import pytest

from trustml.data import bold, vectors
from trustml.fairness import polarity


@pytest.mark.data
def test_golden_counts_of_actors_and_actresses(data_dir):
    items = bold.read(str(data_dir), "gender")
    assert len(items) == 3204 and not any(i.prompt.endswith(" ") for i in items)
    kinds = [polarity.unigram(item.wikipedia) for item in items]
    found = polarity.equitability(kinds, [item.group for item in items])
    assert found.counts == {
        "American_actors": (531, 12, 1505),
        "American_actresses": (9, 333, 814),
    }
    assert len(bold.read(str(data_dir))) == 23679


def test_words_decide_by_majority():
    assert polarity.unigram("He said that HE's late; she waits.") == "M"
    assert polarity.unigram("Her sister, she and him.") == "F"
    assert polarity.unigram("he and she") == polarity.unigram("nobody") == "neutral"
    assert polarity.unigram("The shepherd and the mango") == "neutral"


def test_polarity_of_vectors_by_hand():
    vectors = {
        "he": np.array([1.0, 0.0]),
        "she": np.array([-1.0, 0.0]),
        "nurse": np.array([-0.6, 0.8]),
        "rock": np.array([0.0, 2.0]),
    }
    axis = polarity.direction(vectors)
    np.testing.assert_allclose(axis, [-1.0, 0.0])
    found = polarity.embedding("He saw a nurse, a rock.", vectors, axis)
    # b = -1, 0.6, 0; four of six words have no vector but three.
    np.testing.assert_allclose(found.average, (-1 + 0.36) / 1.6)
    assert found.largest == -1.0 and found.coverage == 3 / 6
    assert polarity.kind(found.largest) == "M"
    empty = polarity.embedding("qqq", vectors, axis)
    assert np.isnan(empty.average) and empty.coverage == 0
    assert polarity.kind(empty.average) == "neutral"
    with pytest.raises(ValueError, match="female='her' has no vector"):
        polarity.direction(vectors, female="her")


def test_a_threshold_is_found_again():
    rng = np.random.default_rng(0)
    sides = rng.choice(polarity.KINDS, 500)
    centre = np.select([sides == "M", sides == "F"], [-0.5, 0.5], 0.0)
    values = centre + rng.normal(0, 0.05, 500)
    threshold = polarity.calibrated(values, sides.tolist())
    assert 0.1 < threshold < 0.4
    agree = [polarity.kind(v, threshold) == s for v, s in zip(values, sides)]  # noqa: B905
    assert np.mean(agree) > 0.99


def test_ratios_of_groups():
    kinds = ["M"] * 30 + ["F"] * 10 + ["M"] * 2 + ["F"] * 3 + ["neutral"] * 5
    groups = ["nurse"] * 40 + ["baker"] * 5 + ["poet"] * 5
    found = polarity.equitability(kinds, groups)
    np.testing.assert_allclose(list(found.ratios.values())[:2], [1 / 3, 2 / 3])
    assert np.isnan(found.ratios["poet"]) and found.few == ("baker", "poet")
    np.testing.assert_allclose([found.mean, found.least], [0.5, 1 / 3])
    one_sided = polarity.equitability(["M"] * 5, ["g"] * 5)
    assert one_sided.mean == one_sided.least == 0.0
    clusters = [f"e{i // 2}" for i in range(50)]
    lo, hi = polarity.equitability_interval(kinds, groups, clusters)
    assert lo < found.mean < hi
    # Clusters that agree inside are worth one draw each: a wider interval.
    alone = polarity.equitability_interval(kinds, groups, [str(i) for i in range(50)])
    assert hi - lo > alone[1] - alone[0]


def test_the_direction_is_of_unit_vectors():
    table = {"he": np.array([10.0, 0.0]), "she": np.array([0.0, 1.0])}
    axis = polarity.direction(table)
    # he's vector is long: raw ones would give (-10, 1) / sqrt(101).
    np.testing.assert_allclose(axis, np.array([-1, 1]) / np.sqrt(2))
    with pytest.raises(ValueError, match="male='he' has a vector of length 0"):
        polarity.direction({"he": np.zeros(2), "she": np.ones(2)})
    with pytest.raises(ValueError, match="female='she' has the direction of 'he'"):
        polarity.direction({"he": np.ones(2), "she": 2 * np.ones(2)})


def test_thresholds_of_sides():
    """Men at -0.2, women at 0.7, and neutral texts a hundred times as many."""
    rng = np.random.default_rng(0)
    kinds = ["M"] * 40 + ["F"] * 40 + ["neutral"] * 8000
    centre = np.repeat([-0.2, 0.7, 0.1], [40, 40, 8000])
    values = np.append(centre + rng.normal(0, 0.1, 8080), np.nan)
    kinds.append("neutral")
    low, high = polarity.calibrated_sides(values, kinds)
    assert -0.15 < low < 0 and 0.25 < high < 0.55
    both = [polarity.kind(v, high, low) for v in values]
    found = polarity.recall(both, kinds)
    assert min(found) > 0.8
    single = polarity.calibrated(values, kinds)
    one = polarity.recall([polarity.kind(v, single) for v in values], kinds)
    assert one.male < 0.2 and one.balanced < found.balanced - 0.2
    # No pair among all of them is better.
    some = rng.permutation(8080)[:60].tolist() + list(range(6)) + list(range(40, 46))
    v, k = values[some], [kinds[i] for i in some]

    def balanced(low, high):
        return polarity.recall([polarity.kind(x, high, low) for x in v], k).balanced

    best = balanced(*polarity.calibrated_sides(v, k))
    at = np.append(v, 0.0)
    every = [
        balanced(a, b) for a in np.append(at[at <= 0] - 1e-9, 0) for b in at[at >= 0]
    ]
    assert best == pytest.approx(max(every))
    with pytest.raises(ValueError, match="kinds='F' is the kind of no text"):
        polarity.calibrated_sides([-1.0, 0.0], ["M", "neutral"])
    with pytest.raises(ValueError, match="said=1 must be one a text, 2"):
        polarity.recall(["M"], ["M", "F"])


@pytest.mark.data
def test_men_are_found_on_bold(data_dir):
    items = bold.read(str(data_dir), "gender")
    path = data_dir / "glove50_small" / "glove50_small.txt.gz"
    table = vectors.read(path, "glove50_small")
    axis = polarity.direction(table)
    texts = [item.wikipedia for item in items]
    kinds = [polarity.unigram(text) for text in texts]
    values = [polarity.embedding(text, table, axis).largest for text in texts]
    single = polarity.calibrated(values, kinds)
    one = polarity.recall([polarity.kind(v, single) for v in values], kinds)
    low, high = polarity.calibrated_sides(values, kinds)
    two = polarity.recall([polarity.kind(v, high, low) for v in values], kinds)
    # With one threshold of 0.31 the recalls are .122, .730 and .948; with -0.261 and
    # 0.299 they are .724, .757 and .594.
    assert one.male < 0.15
    np.testing.assert_allclose((low, high), (-0.261, 0.299), atol=0.001)
    np.testing.assert_allclose(two, (0.724, 0.757, 0.594), atol=0.001)
    assert two.balanced > one.balanced + 0.09


def test_even_texts_do_not_give_one():
    """18 groups of 40: the interval never holds 1, and the floor says why."""
    rng = np.random.default_rng(0)
    groups = np.repeat([f"g{i}" for i in range(18)], 40).tolist()
    means, below = [], 0
    for _ in range(100):
        kinds = np.where(rng.random(720) < 0.5, "M", "F").tolist()
        found = polarity.equitability(kinds, groups)
        means.append(found.mean)
        below += found.mean < polarity.expected_of_even(found, replicates=100).low
    even = polarity.expected_of_even(found)
    # Means of 18 ratios with an sd of .14 each, 100 of them: .0033; four.
    assert even.mean == pytest.approx(np.mean(means), abs=0.0132)
    assert even.mean < 0.8 and even.least < even.low < even.mean
    assert below <= 14, "Binomial(100, .05): 5 and four of 2.2"
    two = polarity.equitability(["M", "F"], ["g", "g"])
    # M of 2 is 0, 1, 2 with 1/4, 1/2, 1/4: the ratio is 1 half of the time.
    assert polarity.expected_of_even(two).mean == pytest.approx(0.5)
    none = polarity.equitability(["neutral"], ["g"])
    assert np.isnan(polarity.expected_of_even(none)).all()


def test_too_few_texts_have_no_interval():
    def ends(kinds, groups, clusters):
        return polarity.equitability_interval(kinds, groups, clusters)

    # Six against none: no draw has another ratio than 0.
    assert np.isnan(ends(["M"] * 6, ["g"] * 6, list("abcdef"))).all()
    # Every person has three texts of each kind.
    kinds, people = ["M", "F"] * 30, [str(i // 6) for i in range(60)]
    assert np.isnan(ends(kinds, ["g"] * 60, people)).all()
    assert np.isnan(ends(["M"] * 40, ["g"] * 40, [str(i) for i in range(40)])).all()
    assert np.isnan(ends([], [], [])).all()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"kinds": ["M", "X"]}, "kinds='X' is not one of M, F, neutral"),
        ({"groups": ["g"]}, "groups=1 must be one a text, 2"),
        ({"clusters": ["a"]}, "clusters=1 must be one a text, 2"),
        ({"clusters": list("abc")}, "clusters=3 must be one a text, 2"),
        ({"replicates": 0}, "replicates=0 must be >= 100; 2000 is usual"),
        ({"level": 0.0}, "level=0.0 must lie strictly between"),
    ],
)
def test_wrong_calls_are_refused(change, sentence):
    known = {"kinds": ["M", "F"], "groups": ["g", "g"], "clusters": ["a", "b"]}
    with pytest.raises(ValueError, match=sentence):
        polarity.equitability_interval(**{**known, **change})
