"""Ratings of words: the weighted mean by hand, tables that are wrong."""

import numpy as np
import pytest

from trustml.fairness import norms


def write(tmp_path, text):
    path = tmp_path / "ratings.tsv"
    path.write_text(text)
    return path


def test_scores_by_hand(tmp_path):
    path = write(
        tmp_path, "word\tvalence\tarousal\njoy\t9\t2\nGrief\t1\t4\nday\t6\t3\n"
    )
    found = norms.read(path, "generation.ratings")
    assert found.middle == {"valence": 5.0, "arousal": 3.0}
    valence = found.columns["valence"]
    assert valence == {"joy": 1.0, "grief": -1.0, "day": 0.25}
    one = norms.score("Joy on a day!", valence)
    np.testing.assert_allclose(one, [(1 + 0.0625) / 1.25, 0.5])
    both = norms.score("grief, joy, day", valence)
    np.testing.assert_allclose(both.value, (1 - 1 + 0.0625) / 2.25)
    none = norms.score("a table", valence)
    assert np.isnan(none.value) and none.coverage == 0
    assert np.isnan(norms.score("", valence).coverage)
    assert norms.score("day", {"day": 0.0}).value == 0.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("term\tv\nx\t1\n", "'word' is not a column"),
        ("word\nx\n", "has no column beside 'word'"),
        ("word\tv\nx\tmuch\ny\t1\n", "line 2 has v='much'; write a number"),
        ("word\tv\nx\t1\ny\t1\n", "rates every word alike in column 'v'"),
    ],
)
def test_wrong_tables_are_refused(tmp_path, text, said):
    with pytest.raises(ValueError, match=said):
        norms.read(write(tmp_path, text), "generation.ratings")
