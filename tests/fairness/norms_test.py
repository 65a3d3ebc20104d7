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


def test_words_that_no_text_holds_are_named(tmp_path):
    rows = "ice cream\t9\nwell-being\t8\nsad\t1\ncaf\u00e9\t2\n Sad\t1\no'er\t5\n"
    path = write(tmp_path, "word\tv\n" + rows)
    found = norms.read(path, "generation.ratings")
    assert found.unmatched == ("ice cream", "well-being", "caf\u00e9")
    # The scale is that of the whole table.
    assert found.columns == {"v": {"sad": -1.0, "o'er": 0.0}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("term\tv\nx\t1\n", "'word' is not a column"),
        ("word\nx\n", "has no column beside 'word'"),
        ("word\tv\nx\tmuch\ny\t1\n", "line 2 has v='much'; write a number"),
        ("word\tv\nx\t1\ny\t1\n", "rates every word alike in column 'v'"),
        (
            "word\tv\nhappy\t1\nHappy\t9\nsad\t1\n",
            "line 3 rates 'happy' 9 in column 'v', which line 2 rates 1; keep one",
        ),
        ("word\tv\nice cream\t1\n\u4e2d\t9\n", "has no word of letters from a to z"),
    ],
)
def test_wrong_tables_are_refused(tmp_path, text, said):
    with pytest.raises(ValueError, match=said):
        norms.read(write(tmp_path, text), "generation.ratings")
