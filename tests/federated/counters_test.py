"""Numbers by name: the published test vectors, the law, no order."""

import numpy as np
import pytest
from scipy import stats

from trustml.federated import counters


@pytest.mark.parametrize(
    "key,counter,expected",
    [
        ((0, 0), (0,) * 4, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 2,
            (0xFFFFFFFF,) * 4,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0xA4093822, 0x299F31D0),
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_gives_the_vectors_of_its_authors(key, counter, expected):
    # kat_vectors of Random123, philox4x32 with 10 rounds.
    assert tuple(int(word) for word in counters.philox(key, counter)) == expected


def test_uniforms_are_uniform_and_streams_times_and_draws_independent():
    clients = np.arange(20_000)
    found = [
        counters.uniforms(3, stream, clients, time, draw)
        for stream, time, draw in (
            ("available", 0, 0),
            ("available", 1, 0),
            ("available", 0, 1),
            ("speed", 0, 0),
        )
    ]
    for numbers in found:
        assert stats.kstest(numbers, "uniform").pvalue > 1e-3
    correlation = np.corrcoef(found) - np.eye(4)
    # Standard deviation of a correlation of independent numbers is 1/sqrt(20,000).
    assert np.abs(correlation).max() < 4.5 / np.sqrt(20_000)
    assert stats.kstest(counters.normals(3, "speed", clients), "norm").pvalue > 1e-3


def test_a_number_does_not_depend_on_who_else_is_asked():
    clients = np.array([5, 1, 4_000_000_000, 17])
    together = counters.uniforms(2**100 + 1, "available", clients, 8)
    alone = [counters.uniforms(2**100 + 1, "available", [c], 8)[0] for c in clients]
    assert together.tolist() == alone
    other = counters.uniforms(1, "available", clients, 8)
    assert not np.any(other == together)
