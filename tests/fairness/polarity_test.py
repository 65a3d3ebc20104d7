"""Gender polarity: golden counts on BOLD, hand cases, ratios of groups."""

import numpy as np
import pytest

from trustml.data import bold
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
