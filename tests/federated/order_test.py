"""The keyed order: a bijection, uniform, of its client alone, alike on the device."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import random as jax_random
from scipy import stats

from trustml.federated import order

WORDS = np.array([17, 2**32 - 5], np.uint32)


def _split(flat, sizes):
    return np.split(flat, np.cumsum(sizes)[:-1])


def test_a_bijection_for_every_size_to_1000():
    sizes = np.arange(1001)
    flat = order.positions(WORDS, 3, sizes, sizes, 1)
    for size, local in zip(sizes, _split(flat, sizes), strict=True):
        assert np.array_equal(np.sort(local), np.arange(size))


@pytest.mark.parametrize("size", [3, 4, 5])
def test_all_orders_are_equally_likely(size):
    orders = list(itertools.permutations(range(size)))
    clients = np.arange(200 * len(orders))
    flat = order.positions(WORDS, 0, clients, np.full(len(clients), size), 0)
    places = size ** np.arange(size)
    number = {int(np.dot(o, places)): n for n, o in enumerate(orders)}
    drawn = [number[code] for code in (flat.reshape(-1, size) @ places).tolist()]
    counts = np.bincount(drawn, minlength=len(orders))
    # 200 draws expected of each order; a right shuffle fails once in a thousand seeds,
    # and the seed is fixed.
    assert stats.chisquare(counts).pvalue > 1e-3


def test_few_swaps_are_seen_to_be_not_uniform():
    # What the test above would say of a shuffle that is not uniform.
    clients = np.arange(200 * math.factorial(4))
    sizes = np.full(len(clients), 4)
    flat = order.positions(WORDS, 0, clients, sizes, 0, swaps=1)
    counts = np.bincount(flat.reshape(-1, 4) @ 4 ** np.arange(4))
    assert (counts > 0).sum() < 24


def test_an_order_depends_on_its_own_client_alone():
    sizes = np.array([50, 0, 7, 1, 300])
    clients = np.array([9, 2, 4, 1, 6])
    together = _split(order.positions(WORDS, 5, clients, sizes, 2), sizes)
    shuffled = np.array([4, 2, 0, 1, 3])
    again = order.positions(WORDS, 5, clients[shuffled], sizes[shuffled], 2)
    for number, local in zip(shuffled, _split(again, sizes[shuffled]), strict=True):
        np.testing.assert_array_equal(local, together[number])
    for client, size, local in zip(clients, sizes, together, strict=True):
        alone = order.positions(WORDS, 5, [client], [size], 2)
        np.testing.assert_array_equal(alone, local)


def test_seed_round_client_and_epoch_all_change_the_order():
    base = (WORDS, 5, [9], [40], 2)
    seen = {tuple(order.positions(*base))}
    for place, other in ((0, WORDS[::-1].copy()), (1, 2), (2, [8]), (4, 5), (4, 3)):
        changed = list(base)
        changed[place] = other
        seen.add(tuple(order.positions(*changed)))
    assert len(seen) == 6


def test_the_order_stays_over_versions_and_platforms():
    found = order.positions(WORDS, 1, [3], [10], 0).tolist()
    assert found == [
        9,
        1,
        3,
        2,
        5,
        4,
        6,
        8,
        0,
        7,
    ]


@pytest.mark.parametrize("limit", [1, 20, 10_000], ids=["one", "some", "more"])
def test_a_limit_takes_the_first_of_the_order(limit):
    # With limit 1 words are made anew, with the others they are looked up.
    sizes, clients = np.array([50, 0, 2, 300]), np.array([9, 2, 4, 6])
    whole = _split(order.positions(WORDS, 5, clients, sizes, 2), sizes)
    cut = order.positions(WORDS, 5, clients, sizes, 2, limit=limit)
    wanted = np.concatenate([local[:limit] for local in whole])
    np.testing.assert_array_equal(cut, wanted)


def test_host_and_device_agree():
    sizes, clients = np.array([1, 2, 5, 64, 1000]), np.array([0, 7, 3, 10**7, 11])
    host = order.positions(WORDS, 6, clients, sizes, 1)
    index = np.concatenate([np.arange(size) for size in sizes])

    def place(index, size, client):
        return order.position(words, 6, client, size, 1, index)

    words = jnp.asarray(WORDS)
    each = [np.repeat(array, sizes).astype(np.uint32) for array in (sizes, clients)]
    device = jax.jit(place)(index.astype(np.uint32), *each)
    assert device.dtype == jnp.uint32
    np.testing.assert_array_equal(device, host)
    # Traced scalars, as in a scan over clients.
    one = jax.jit(lambda r: order.position(words, r, 3, 5, 1, jnp.arange(5)))(6)
    np.testing.assert_array_equal(one, host[3:8])


def test_words_are_those_of_jax():
    count = np.arange(6, dtype=np.uint32).reshape(2, 3)
    theirs = jax_random.threefry_2x32(jnp.asarray(WORDS), jnp.asarray(count.ravel()))
    ours = order._threefry(WORDS[:1], WORDS[1:], *count)
    np.testing.assert_array_equal(np.concatenate(ours), theirs)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param({"key_words": np.arange(2)}, "uint32", id="key-type"),
        pytest.param({"round": -1}, "round=-1", id="round"),
        pytest.param({"epoch": -1}, "epoch=-1", id="epoch"),
        pytest.param({"sizes": [3, -1]}, "size=-1", id="negative"),
        pytest.param({"sizes": [3, 2**31]}, "size=2147483648", id="large"),
        pytest.param({"sizes": [3]}, "one size for each", id="lengths"),
        pytest.param({"limit": 0}, "limit=0", id="limit"),
        pytest.param({"swaps": 33}, "swaps=33", id="swaps"),
    ],
)
def test_wrong_arguments_end_in_one_sentence(changes, words):
    given = {"key_words": WORDS, "round": 0, "clients": [0, 1], "sizes": [2, 3]}
    with pytest.raises(ValueError, match=words):
        order.positions(**(given | {"epoch": 0} | changes))


def test_an_empty_cohort():
    assert order.positions(WORDS, 0, [], [], 0).shape == (0,)
    assert order.positions(WORDS, 0, [4], [0], 0).shape == (0,)
