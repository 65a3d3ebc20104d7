"""In which order a client's examples come: a keyed shuffle that nobody has to store.

Client k's order in round r and epoch e is a bijection of [0, n) chosen by (seed, r, k,
e). It depends on nothing else: not on the rest of the cohort, the lane, the device or
what ran before. Its form is swap-or-not (Hoang, Morris and Rogaway 2012, CRYPTO): for
j = 0 ... J-1, with K_j in [0, n) and bits that the key decides,

    x' = (K_j - x) mod n;   if bit_j(max(x, x')):  x = x'

x and x' ask for the same bit and K_j - x' = x, so every step is a bijection. J = 32 is
plenty for statistics (J = 8 passes a chi-squared test over all orders of 3, 4 and 5);
this is not cryptography.

Keys, K_j and bits are threefry2x32 with 20 rounds, JAX's own generator (Salmon et al.
2011, SC):

    client = F(F(seed; round, epoch); client, 0)
    K_j = F(client; j, 1) mod n        bits of x: those of the word F(client; x, 0)

All J <= 32 bits of an x are one word, so the host makes one word for each example and
looks it up J times, in about ten passes of NumPy over one flat array of the cohort;
the device makes the word anew each time and stores nothing. Both run the same code in
uint32 and give the same numbers.

Dimension key: M clients of a cohort, J swaps, R rows of the cohort.

Example::

    key_words = jax.random.key_data(rng.stream(jax.random.key(0), 'data'))
    local = order.positions(key_words, 7, cohort, sizes, epoch=0)     # int64[R]
    rows = np.repeat(offsets[cohort], sizes) + local
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from trustml import _validate

SWAPS = 32
_LARGEST = 2**31 - 1  # K_j - x + n must fit
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_WORDS, _SWAPS = 0, 1  # second counters of the client's stream


def positions(
    key_words: Any,
    round: int | np.integer,
    clients: Any,
    sizes: Any,
    epoch: int | np.integer,
    *,
    limit: int | None = None,
    swaps: int = SWAPS,
) -> Int[np.ndarray, " rows"]:
    """Local rows of every client in their shuffled order, one client after another.

    Args:
      key_words: uint32[2], the seed.
      round: number of the round, below 2**32.
      clients: [M], their numbers in the store, below 2**32.
      sizes: [M], n of each; may be 0.
      epoch: number of the epoch in this round.
      limit: only the first so many of each client: a fresh choice every round.
      swaps: J, from 1 to 32.

    Returns:
      int64[R]: sum of min(n, limit) numbers, each in [0, n) of its client.

    Raises:
      ValueError: for a size that is negative or beyond 2**31 - 1, or lengths that
        differ.
    """
    words, numbers, counts = _checked(key_words, round, clients, sizes, epoch, swaps)
    taken = counts
    if limit is not None:
        limit = _validate.integer_at_least("limit", limit, 1, "None takes all")
        taken = np.minimum(counts, limit)
    keys = _client_keys(words, _word(round), _word(epoch), numbers)
    # [J, M], so that each round reads one row.
    swap = np.arange(swaps, dtype=np.uint32)[:, None]
    drawn = _threefry(keys[0][None], keys[1][None], swap, np.full_like(swap, _SWAPS))[0]
    pivots = drawn % np.maximum(counts, 1).astype(np.uint32)
    at = _arange(taken).astype(np.uint32)
    total = np.repeat(counts.astype(np.uint32), taken)
    if counts.sum() <= swaps * max(int(taken.sum()), 1):
        # A word for every example, made once.
        table = _words(keys, counts, _arange(counts).astype(np.uint32))
        first = np.repeat(np.cumsum(counts) - counts, taken)
        index = np.empty_like(first)

        def word_of(x, out):
            table.take(np.add(x, first, out=index), out=out, mode="clip")

    else:

        def word_of(x, out):
            out[:] = _words(keys, taken, x)

    # Nothing but whole passes over 32 bits, without branches and new arrays.
    other, scratch = np.empty_like(at), np.empty_like(at)
    signed, top = scratch.view(np.int32), np.int32(31)
    for j, shift in enumerate(np.arange(31, 31 - swaps, -1).astype(np.uint32)):
        np.subtract(pivots[j].repeat(taken), at, out=other)
        # A negative number is a huge one without sign: the smaller is in [0, n).
        np.add(other, total, out=scratch)
        np.minimum(other, scratch, out=other)
        word_of(np.maximum(at, other, out=scratch), scratch)
        # Bit j, spread by its sign: all bits where x' is taken, none where x stays.
        np.left_shift(scratch, shift, out=scratch)
        np.right_shift(signed, top, out=signed)
        np.bitwise_and(np.bitwise_xor(other, at, out=other), scratch, out=other)
        np.bitwise_xor(at, other, out=at)
    return at.astype(np.int64)


def position(
    key_words: jax.Array,
    round: Any,
    client: Any,
    size: Any,
    epoch: Any,
    index: Any,
    *,
    swaps: int = SWAPS,
) -> jax.Array:
    """The same on the device: where number `index` of the order lies, uint32.

    All arguments are uint32, of one shape or scalar; `index` must be below `size`.
    """
    words = jnp.asarray(key_words, jnp.uint32)
    arguments = (round, client, size, epoch, index)
    round, client, size, epoch, at = (jnp.asarray(a, jnp.uint32) for a in arguments)
    keys = _client_keys(words, round, epoch, client)
    zero = jnp.zeros_like(at)

    def swap(j, at):
        j = j.astype(jnp.uint32)
        pivot = _threefry(*keys, zero + j, zero + jnp.uint32(_SWAPS))[0] % size
        other = pivot - at
        other = jnp.minimum(other, other + size)
        word = _threefry(*keys, jnp.maximum(at, other), zero + jnp.uint32(_WORDS))[0]
        return jnp.where((word >> j) & jnp.uint32(1) != 0, other, at)

    shape = jnp.broadcast_shapes(*(jnp.shape(a) for a in arguments))
    return jax.lax.fori_loop(0, swaps, swap, jnp.broadcast_to(at, shape))


def _checked(key_words, round, clients, sizes, epoch, swaps):
    words = np.asarray(key_words)
    if words.dtype != np.uint32 or words.shape != (2,):
        raise ValueError(
            f"key_words={words.dtype}{list(words.shape)} must be uint32[2]; take "
            "jax.random.key_data of a key."
        )
    for field, value in (("round", round), ("epoch", epoch)):
        _validate.integer_at_least(field, value, 0, "count from 0")
    if not 1 <= swaps <= SWAPS:
        _validate.fail("swaps", swaps, f"must be from 1 to {SWAPS}")
    numbers, counts = np.asarray(clients), np.asarray(sizes).astype(np.int64)
    if numbers.ndim != 1 or numbers.shape != counts.shape:
        raise ValueError(
            f"sizes has shape {list(counts.shape)} and clients "
            f"{list(numbers.shape)}; give one size for each client."
        )
    if len(counts) and not 0 <= counts.min() <= counts.max() <= _LARGEST:
        wrong = counts[(counts < 0) | (counts > _LARGEST)][0]
        _validate.fail("size", int(wrong), f"must be from 0 to {_LARGEST}")
    return words, numbers.astype(np.uint32), counts


def _word(number: int | np.integer) -> np.ndarray:
    return np.array([number], np.uint64).astype(np.uint32)  # modulo 2**32


def _arange(counts: np.ndarray) -> np.ndarray:
    """0 ... n-1 for each n of `counts`, one after another, int64."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


def _words(keys, counts: np.ndarray, x: np.ndarray) -> np.ndarray:
    zero = np.full_like(x, _WORDS)
    return _threefry(np.repeat(keys[0], counts), np.repeat(keys[1], counts), x, zero)[0]


def _client_keys(words, round, epoch, client):
    first, second = words[0:1], words[1:2]
    if client.ndim == 0 or isinstance(words, jax.Array):
        first, second = words[0], words[1]
    both = _threefry(first, second, round, epoch)
    return _threefry(*both, client, client ^ client)


def _threefry(key_0, key_1, x_0, x_1):
    """Threefry2x32 with 20 rounds, on uint32 of NumPy or JAX alike."""
    keys = (key_0, key_1, key_0 ^ key_1 ^ np.uint32(0x1BD11BDA))
    x_0, x_1 = x_0 + keys[0], x_1 + keys[1]
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            x_0 = x_0 + x_1
            x_1 = (x_1 << np.uint32(rotation)) | (x_1 >> np.uint32(32 - rotation))
            x_1 = x_1 ^ x_0
        x_0 = x_0 + keys[(group + 1) % 3]
        x_1 = x_1 + keys[(group + 2) % 3] + np.uint32(group + 1)
    return x_0, x_1
