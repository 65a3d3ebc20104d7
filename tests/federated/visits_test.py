"""Rows of a visit: every example once an epoch, whatever else is in the cohort."""

import numpy as np

from trustml.federated import visits

WORDS = np.array([1, 2], np.uint32)
SIZES = np.array([4, 0, 7, 1])
STARTS = np.array([10, 0, 20, 40])
CLIENTS = np.array([3, 5, 8, 9])


def make(handed, limit=None, keep=slice(None), round=0):
    return visits.rows(
        WORDS,
        round,
        CLIENTS[keep],
        SIZES[keep],
        np.asarray(handed)[keep],
        starts=STARTS[keep],
        limit=limit,
    )


def test_every_example_once_an_epoch():
    found = make([8, 0, 14, 2])
    for begin, start, size in ((0, 10, 4), (4, 10, 4), (8, 20, 7), (15, 20, 7)):
        part = found[begin : begin + size]
        np.testing.assert_array_equal(np.sort(part), start + np.arange(size))
    assert found[22:].tolist() == [40, 40]
    assert found[8:15].tolist() != found[15:22].tolist()
    assert found.tolist() != make([8, 0, 14, 2], round=1).tolist()


def test_a_visit_does_not_depend_on_the_others():
    np.testing.assert_array_equal(
        make([4, 0, 14, 1], keep=[2]), make([4, 0, 14, 1])[4:18]
    )


def test_a_limit_takes_the_same_examples_in_every_epoch():
    found = make([6, 0, 9, 3], limit=3)
    assert len(set(found[:6])) == 3 and set(found[:3]) == set(found[3:6])
    assert len(set(found[6:15])) == 3
    others = {frozenset(make([6, 0, 9, 3], limit=3, round=r)[6:9]) for r in range(20)}
    assert len(others) > 5


def test_rows_are_placed_as_they_are_found():
    place = visits.placed(
        lambda found: ("data", found + 1), WORDS, 0, CLIENTS, SIZES, starts=STARTS
    )
    data, index = place(np.array([4, 0, 14, 1]))
    assert data == "data"
    np.testing.assert_array_equal(index, make([4, 0, 14, 1]) + 1)
