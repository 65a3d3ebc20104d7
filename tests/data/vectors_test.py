"""Vectors of words from a file."""

import gzip

import numpy as np
import pytest

from trustml.data import vectors


def test_lines_are_words_and_numbers(tmp_path):
    path = tmp_path / "v.txt.gz"
    with gzip.open(path, "wt") as file:
        file.write("he 1 0.5\nshe -1 0.5\n")
    found = vectors.read(path, "vectors")
    assert list(found) == ["he", "she"] and found["he"].dtype == np.float32
    np.testing.assert_allclose(found["she"], [-1, 0.5])


@pytest.mark.parametrize("line", ["she 1", "she 1 x", "she", "she 1 nan"])
def test_wrong_lines_are_named(tmp_path, line):
    path = tmp_path / "v.txt"
    path.write_text(f"he 1 0.5\n{line}\n")
    with pytest.raises(ValueError, match="line 2 is not a word with 2 finite numbers"):
        vectors.read(path, "vectors")


@pytest.mark.data
def test_the_published_file(data_dir):
    found = vectors.read(data_dir / "glove50_small" / "glove50_small.txt.gz", "vectors")
    assert len(found) == 2446 and found["she"].shape == (50,)
    assert "nurse" not in found
