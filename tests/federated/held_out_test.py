"""What clients keep out: how many, which, and that the rest stays as it was."""

import numpy as np
import pytest

from trustml.federated import held_out
from trustml.federated import store as stores

SIZES = np.array([0, 1, 2, 5, 12, 40])
WORDS = np.array([1, 2], np.uint32)


def made():
    owner = np.repeat(np.arange(len(SIZES)), SIZES)
    row = np.arange(len(owner))
    return stores.from_arrays(
        {"row": row}, owner, time=row, client_keys=np.arange(len(SIZES))
    )


def of(store, k):
    return store.columns["row"][store.offsets[k] : store.offsets[k + 1]].tolist()


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.99])
def test_every_row_is_on_one_side(share):
    store = made()
    train, tests = held_out.split(store, share, WORDS)
    kept = [min(int(share * n + 0.5), max(n - 1, 0)) for n in SIZES]
    np.testing.assert_array_equal(stores.sizes(tests), kept)
    for k in range(len(SIZES)):
        assert sorted(of(train, k) + of(tests, k)) == of(store, k)
        assert of(train, k) == sorted(of(train, k))  # in the order of time
    np.testing.assert_array_equal(train.time, train.columns["row"])


def test_rows_depend_on_seed_and_client_alone():
    store = made()
    first, again = (held_out.split(store, 0.5, WORDS)[1] for _ in range(2))
    other = held_out.split(store, 0.5, WORDS + np.uint32(1))[1]
    assert of(first, 5) == of(again, 5) != of(other, 5)
    # No part of a client is preferred: 20 of 40 rows, halves of 10 +- 4.6 (3 sigma).
    assert 5 <= sum(r < of(store, 5)[20] for r in of(first, 5)) <= 15


def test_a_share_of_everything_is_refused():
    with pytest.raises(ValueError, match=r"federated.held_out=1.0 must be"):
        held_out.split(made(), 1.0, WORDS)
