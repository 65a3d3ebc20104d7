"""Batches against a Python loop; masked slots hold zeros whatever the index."""

import numpy as np
import pytest

from trustml.data import batches

COLUMNS = {
    "tokens": np.arange(1, 22, dtype=np.int32).reshape(7, 3),
    "image": np.full((7, 2, 2, 1), np.nan, np.float32),
    "label": np.arange(7, dtype=np.int32),
}


def test_gather_equals_a_loop():
    indices = np.array([[6, 0, 3], [3, 99, -5]])
    mask = np.array([[True, True, True], [True, False, False]])
    found = batches.gather(COLUMNS, indices, mask)
    assert set(found) == set(COLUMNS)
    for name, column in COLUMNS.items():
        assert found[name].shape == (2, 3, *column.shape[1:])
        assert found[name].dtype == column.dtype
        for place in np.ndindex(2, 3):
            row = column[indices[place]] if mask[place] else np.zeros_like(column[0])
            np.testing.assert_array_equal(found[name][place], row)


def test_gather_of_nothing_is_zeros_and_copies():
    found = batches.gather(COLUMNS, np.zeros((1, 2), np.int32), np.zeros((1, 2), bool))
    assert all(np.all(rows == 0) for rows in found.values())
    whole = batches.gather(COLUMNS, np.arange(7), np.ones(7, bool))
    whole["label"][0] = 42
    assert COLUMNS["label"][0] == 0


@pytest.mark.parametrize("size", [1, 3, 7, 10])
def test_evaluation_gives_every_example_once_in_one_shape(size):
    seen = []
    for batch, mask in batches.evaluation(COLUMNS, size):
        assert mask.shape == (size,) and batch["tokens"].shape == (size, 3)
        assert np.all(batch["tokens"][~mask] == 0)
        seen.extend(batch["label"][mask])
    assert seen == list(range(7))
    assert list(batches.evaluation({"label": np.zeros(0, np.int32)}, size)) == []


@pytest.mark.parametrize(
    "call, sentence",
    [
        (
            lambda: batches.gather(COLUMNS, np.array([7]), np.array([True])),
            r"indices holds 7, which is outside \[0, 7\)",
        ),
        (
            lambda: batches.gather(COLUMNS, np.array([-1]), np.array([True])),
            r"indices holds -1, which is outside",
        ),
        (
            lambda: batches.gather(COLUMNS, np.array([1]), np.array([1.0])),
            r"mask of shape \(1,\) and type float64 does not fit",
        ),
        (
            lambda: batches.gather(COLUMNS, np.array([1]), np.array([True, True])),
            r"mask of shape \(2,\).*one boolean for each index",
        ),
        (lambda: batches.evaluation(COLUMNS, 0), "batch_size=0 must be >= 1"),
        (
            lambda: batches.size({"a": np.zeros(2), "b": np.zeros(3)}),
            "different numbers of examples, {'a': 2, 'b': 3}",
        ),
    ],
)
def test_wrong_arguments_get_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
