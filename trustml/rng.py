"""Randomness: one root seed, named streams, one key a step, one key a leaf.

A JAX threefry key holds 64 bits, too few for noise that a guarantee rests on. A `Root`
therefore holds two independent threefry keys a, b (128 bits of the OS by default), and

    step_key(root, step) = key( bits(fold_in(a, step)) xor bits(fold_in(b, step)) )

A step key has 64 bits again; whoever finds one learns nothing about other steps. Every
function is pure, works under `jax.jit`, and folds in (never splits and threads), so any
step is reached at once: resuming needs the root and the step number, nothing else.

Streams in use: `init`, `data`, `sampling`, `noise`, `dropout`; any other name gives
another independent stream.

A `Root` is two plain arrays, hence it goes into a checkpoint as it is. It is as secret
as the data: never put it beside a released checkpoint.

Example::

    public = rng.root(seed=0)                # reproducible: init, dropout
    secret = rng.root()                      # 128 bits from the OS: noise, sampling
    init_key = rng.step_key(rng.stream(public, 'init'), 0)
    noise_key = rng.step_key(rng.stream(secret, 'noise'), step)
    leaf_key = rng.leaf_key(noise_key, "['dense']['kernel']")
    sampler_seed = rng.seed_128(rng.stream(secret, 'sampling'))
"""

import hashlib
import secrets
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trustml import _validate

STREAMS = ("init", "data", "sampling", "noise", "dropout")

Key = Any  # a typed PRNG key of shape []

_IMPL = "threefry2x32"
_SEEDED = b"trustml.rng.root:"
_CURE = "give an integer from 0 to 2**128 - 1, or None for 128 bits from the OS"


class Root(NamedTuple):
    """Two independent threefry keys, as plain arrays.

    Attributes:
      words: uint32[2, 2], the data of the two keys.
      secret: bool[]; True where the words came from the OS. A seeded root is
        reproducible, hence not secret; no privacy claim may rest on it.
    """

    words: jax.Array
    secret: jax.Array


def root(seed: int | None = None) -> Root:
    """A new root: 128 bits from the OS, or from `seed` (reproducible, not secret).

    Args:
      seed: None, or an integer from 0 to 2**128 - 1.

    Raises:
      ValueError: if the seed is not such an integer.
    """
    if seed is None:
        return _from_bytes(secrets.token_bytes(16), secret=True)
    number = check_seed("seed", seed)
    digest = hashlib.sha256(_SEEDED + number.to_bytes(16, "big")).digest()
    return _from_bytes(digest[:16], secret=False)


def check_seed(field: str, seed: Any) -> int:
    """`seed` as an int, if it is an integer of at most 128 bits."""
    number = _validate.integer_at_least(field, seed, 0, _CURE)
    if number >= 2**128:
        _validate.fail(field, seed, "must be below 2**128", _CURE)
    return number


def stream(source: Root | Key, name: str) -> Root | Key:
    """The stream called `name`: a root of a root, a key of a key.

    Streams of different names are independent; the same name gives the same stream.

    Raises:
      ValueError: if `name` is not a non-empty string.
    """
    if not isinstance(name, str) or not name:
        _validate.fail("stream", name, "must be a non-empty string", _streams_cure())
    if isinstance(source, Root):
        data = [jax.random.key_data(_fold_name(key, name)) for key in _keys(source)]
        return Root(jnp.stack(data), source.secret)
    return _fold_name(source, name)


def step_key(source: Root | Key, step: int | jax.Array) -> Key:
    """The key of step `step` (0 <= step < 2**32) of a root, or of a plain key."""
    if isinstance(step, (int, np.integer)):
        _validate.integer_at_least("step", step, 0, "steps count from 0")
        if step >= 2**32:
            _validate.fail("step", step, "must be below 2**32", "start a new root")
        step = jnp.uint32(step)
    if not isinstance(source, Root):
        return jax.random.fold_in(source, step)
    a, b = (
        jax.random.bits(jax.random.fold_in(key, step), (2,), jnp.uint32)
        for key in _keys(source)
    )
    return jax.random.wrap_key_data(a ^ b, impl=_IMPL)


def leaf_key(key: Key, path: str) -> Key:
    """The key of the leaf at `path`; 64 bits of a SHA-256 of the path are folded in."""
    return _fold_name(key, path)


def seed_128(source: Root) -> int:
    """A 128-bit integer of the root, for generators on the host; not under `jit`."""
    a, b = (jax.random.bits(key, (4,), jnp.uint32) for key in _keys(source))
    return int.from_bytes(np.asarray(a ^ b).astype(">u4").tobytes(), "big")


def _from_bytes(raw: bytes, *, secret: bool) -> Root:
    words = np.frombuffer(raw, dtype=">u4").astype(np.uint32).reshape(2, 2)
    return Root(jnp.asarray(words), jnp.asarray(secret))


def _keys(source: Root) -> tuple[Key, Key]:
    return (
        jax.random.wrap_key_data(source.words[0], impl=_IMPL),
        jax.random.wrap_key_data(source.words[1], impl=_IMPL),
    )


def _fold_name(key: Key, name: str) -> Key:
    # Python's own hash() differs between processes; 64 bits, so that no two of a
    # model's leaves meet (32 bits would: 1 in 10,000 for a thousand leaves).
    digest = hashlib.sha256(name.encode()).digest()
    for start in (0, 4):
        word = np.uint32(int.from_bytes(digest[start : start + 4], "big"))
        key = jax.random.fold_in(key, word)
    return key


def _streams_cure() -> str:
    return f"the usual streams are {', '.join(STREAMS)}"
