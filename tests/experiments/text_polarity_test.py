"""Gender by word vectors: fitted on some people, tested on others, withheld if poor."""

import numpy as np
import pytest

from trustml.data import bold, vectors
from trustml.experiments import text_polarity

_TABLE = {
    "he": np.array([-1.0, 0.2]),
    "she": np.array([1.0, 0.2]),
    "his": np.array([-0.3, 0.95]),
    "chair": np.array([0.1, 1.0]),
    "lady": np.array([0.9, 0.3]),
}


def items_of(*texts, entities=20):
    return [
        bold.Item("gender", "g", f"e{n}", "", text)
        for text in texts
        for n in range(entities)
    ]


def test_thresholds_are_tested_on_other_people():
    known = items_of("he and a chair", "she and a chair", "a chair")
    table = _TABLE | {"chair": np.array([-0.1, 1.0])}
    found = text_polarity.fitted(known, table, seed=0)
    figures = found.figures
    assert found.withheld == "" and figures["agreement"] == 1.0
    assert figures["n"] == figures["fitted_on"] == 30 and figures["commonest"] == 1 / 3
    assert found.kinds(["he", "she", "chair", "", "unknown"]) == [
        *("M", "F", "neutral", "", "")
    ]
    fits = text_polarity.halves([item.entity for item in known], 0)
    assert fits.sum() == 30
    first = {item.entity for item, here in zip(known, fits, strict=True) if here}
    assert len(first) == 10, "an entity is in one half with all its texts"
    assert figures["unseen"] == ["his"] and "does not see his;" in found.quality
    # Half of the texts about men hold no word of men that has a vector.
    mixed = items_of("him, him; she", "she and a chair", "a chair", "he")
    recall = text_polarity.fitted(mixed, table, seed=0).figures["recall"]
    assert recall == {"M": 0.5, "F": 1.0, "neutral": 1.0}


def test_texts_without_a_vector_are_not_judged_and_not_counted():
    """All neutral texts that are judged are called women, whatever the others are."""
    table = {word: _TABLE[word] for word in ("he", "she")}
    table["queen"] = table["she"]
    known = items_of("he", "she", "queen", *["zzz"] * 9, entities=40)
    found = text_polarity.fitted(known, table, seed=0)
    assert found.figures["recall"]["neutral"] == 0.0 and found.withheld
    assert found.figures["left_out"] == 360
    assert "; 360 sentences without a vector are left out" in found.quality


def test_a_side_that_is_not_seen_withholds_the_score():
    """'him' has no vector, so that texts about men look as those about nobody."""
    known = items_of("him and a chair", "she and a chair", "a chair", entities=9)
    found = text_polarity.fitted(known, _TABLE, seed=0)
    assert found.figures["recall"]["M"] == 0.0
    assert found.withheld == (
        "it finds 0.0% of 4 about men, and 75% of each are asked for"
    )
    assert "finds 0.0% of 4 about men, 100.0% of 4 about women" in found.quality
    none = text_polarity.fitted(items_of("she", "he"), _TABLE, seed=0)
    assert "has none about neither" in none.withheld and none.kinds(["he"]) == [""]


@pytest.mark.data
def test_what_small_vectors_see(data_dir):
    """On GloVe-50, held out, of each kind some two of three, and no pronoun."""
    known = bold.read(str(data_dir), "gender")
    table = vectors.read(data_dir / "glove50_small" / "glove50_small.txt.gz", "v")
    found = text_polarity.fitted(known, table, seed=0)
    recall = found.figures["recall"]
    # +-0.08 is twice the standard error of the 165 texts about women.
    assert recall == pytest.approx({"M": 0.71, "F": 0.67, "neutral": 0.60}, abs=0.08)
    assert {"he", "him", "his", "she"} <= set(found.figures["unseen"])
    assert "about neither, and 75% of each are asked for" in found.withheld
