"""Random numbers by name: a pure function of (seed, stream, client, time, draw).

Whether client 8,123,004 is switched on at time 17 must not depend on who else was
asked, nor in which order, nor on what a generator did before. So the numbers of a
client are looked up and not drawn: Philox4x32-10, a block cipher of four 32-bit words,
encrypts the counter (client, time, draw, stream) under 64 bits of the seed, for whole
arrays of clients at once. Draws of a whole cohort, where order does not matter, come
from NumPy's own Philox instead (`trustml.privacy.draws.generator`).

Example::

    u = counters.uniforms(seed, "available", clients, time)        # float64[m]
    z = counters.normals(seed, "speed", clients)

References: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3",
https://doi.org/10.1145/2063384.2063405
"""

import hashlib

import numpy as np
from numpy import typing as npt
from scipy import special

# Fourth words of the counter; what they name must never change.
_STREAMS = {"available": 1, "markov": 2, "phase": 3, "speed": 4, "bandwidth": 5}
_STREAMS |= {"dropout": 6, "reservoir": 7, "arrival": 8}

_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_FACTORS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)


def philox(
    key: tuple[int, int], counter: tuple[npt.ArrayLike, ...]
) -> tuple[np.ndarray, ...]:
    """Philox4x32-10 of four words, arrays of one shape or scalars.

    Args:
      key: two 32-bit words.
      counter: four words below 2**32, broadcast against each other.

    Returns:
      Four uint64 arrays of 32-bit words.
    """
    c0, c1, c2, c3 = (np.asarray(word, np.uint64) for word in counter)
    k0, k1 = key
    for _ in range(10):
        left, right = _FACTORS[0] * c0, _FACTORS[1] * c2
        c0, c1 = (right >> _HALF) ^ c1 ^ np.uint64(k0), right & _LOW
        c2, c3 = (left >> _HALF) ^ c3 ^ np.uint64(k1), left & _LOW
        k0, k1 = (
            (k + d) & 0xFFFFFFFF for k, d in zip((k0, k1), _KEY_STEPS, strict=True)
        )
    return tuple(np.broadcast_arrays(c0, c1, c2, c3))


def uniforms(
    seed: int,
    stream: str,
    clients: npt.ArrayLike,
    time: npt.ArrayLike = 0,
    draw: npt.ArrayLike = 0,
) -> np.ndarray:
    """Uniform numbers in [0, 1) of 53 bits, one for each entry of the arguments.

    Args:
      seed: below 2**128.
      stream: what the number decides; streams are independent.
      clients: ids below 2**32.
      time: round, period or position, below 2**32; broadcast against `clients`.
      draw: number of the draw where one client and time needs several.
    """
    c0, c1, _, _ = philox(_key(seed), (clients, time, draw, _STREAMS[stream]))
    mantissa = (c0 >> np.uint64(5)) * np.uint64(1 << 26) + (c1 >> np.uint64(6))
    return mantissa.astype(np.float64) * 2.0**-53


def normals(
    seed: int,
    stream: str,
    clients: npt.ArrayLike,
    time: npt.ArrayLike = 0,
    draw: npt.ArrayLike = 0,
) -> np.ndarray:
    """Standard normal numbers; arguments as for `uniforms`."""
    # Half a step up: never 0, whose quantile is minus infinity.
    half_open = uniforms(seed, stream, clients, time, draw)
    return special.ndtri(half_open + 2.0**-54)


def _key(seed: int) -> tuple[int, int]:
    digest = hashlib.sha256(f"trustml.federated:{seed}".encode()).digest()
    return int.from_bytes(digest[:4], "big"), int.from_bytes(digest[4:8], "big")
