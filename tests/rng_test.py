"""Roots, streams and keys: entropy, purity, independence, known values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trustml import rng

GOLDEN_ROOT = [[473774551, 2657542510], [2282978700, 3650602648]]
GOLDEN_KEY = (1828334308, 3007240270)
GOLDEN_SEED = 120338036334020702765587898998912889773


def bits(key):
    return tuple(np.asarray(jax.random.key_data(key)).tolist())


def test_a_root_from_the_os_holds_128_bits_and_is_secret():
    roots = [rng.root() for _ in range(64)]
    words = np.stack([np.asarray(root.words) for root in roots]).reshape(64, 4)
    assert all(bool(root.secret) for root in roots)
    assert len({row.tobytes() for row in words}) == 64
    # Each of the 128 bits is 0 in some root and 1 in another: 64 coins agree with
    # probability 2**-63, 128 times that is nothing.
    ones = np.unpackbits(words.view(np.uint8), axis=1).sum(0)
    assert ones.min() > 0 and ones.max() < 64


def test_a_seeded_root_is_reproducible_not_secret_and_uses_all_of_the_seed():
    again = rng.root(7)
    np.testing.assert_array_equal(rng.root(7).words, again.words)
    assert not bool(again.secret)
    seeds = [0, 1, 2**31, 2**32, 2**64, 2**127, 2**128 - 1]
    assert len({np.asarray(rng.root(seed).words).tobytes() for seed in seeds}) == 7


def test_values_of_a_seeded_root_do_not_change_between_versions():
    # A change here changes every seeded run, and breaks the resuming of all others.
    root = rng.root(0)
    assert np.asarray(root.words).tolist() == GOLDEN_ROOT
    assert bits(rng.step_key(rng.stream(root, "noise"), 3)) == GOLDEN_KEY
    assert rng.seed_128(rng.stream(root, "sampling")) == GOLDEN_SEED


def test_streams_steps_and_leaves_give_different_keys():
    root, keys = rng.root(1), []
    for name in (*rng.STREAMS, "another"):
        for step in (0, 1, 2, 2**31, 2**32 - 1):
            key = rng.step_key(rng.stream(root, name), step)
            keys += [bits(key), bits(rng.leaf_key(key, "['a']"))]
            keys.append(bits(rng.leaf_key(key, "['b']")))
    assert len(set(keys)) == len(keys)


def test_a_step_key_depends_on_both_halves_of_the_root():
    root = rng.root(1)
    for half in (0, 1):
        other = root._replace(words=root.words.at[half, 1].add(1))
        assert bits(rng.step_key(root, 5)) != bits(rng.step_key(other, 5))
        assert rng.seed_128(root) != rng.seed_128(other)


def test_step_key_is_the_xor_of_two_independent_threefry_streams():
    root = rng.root(3)
    halves = [
        jax.random.wrap_key_data(word, impl="threefry2x32") for word in root.words
    ]
    a, b = (jax.random.bits(jax.random.fold_in(k, 9), (2,), jnp.uint32) for k in halves)
    assert bits(rng.step_key(root, 9)) == tuple(
        (np.asarray(a) ^ np.asarray(b)).tolist()
    )


def test_a_plain_key_works_too():
    key = jax.random.key(0)
    assert bits(rng.stream(key, "init")) != bits(rng.stream(key, "dropout"))
    assert bits(rng.step_key(key, 1)) == bits(jax.random.fold_in(key, 1))


def test_pure_under_jit_and_scan():
    root = rng.root(1)
    eager = [bits(rng.step_key(rng.stream(root, "dropout"), step)) for step in range(4)]

    @jax.jit
    def scanned(root):
        def body(step, _):
            key = rng.step_key(rng.stream(root, "dropout"), step)
            return step + 1, jax.random.key_data(key)

        return jax.lax.scan(body, jnp.int32(0), length=4)[1]

    assert [tuple(row) for row in np.asarray(scanned(root)).tolist()] == eager


def test_a_root_is_plain_arrays():
    leaves = jax.tree.leaves(rng.root(1))
    assert [(leaf.dtype, leaf.shape) for leaf in leaves] == [
        (jnp.uint32, (2, 2)),
        (jnp.bool_, ()),
    ]


def test_keys_have_no_common_bits_on_average():
    # 2,000 keys of neighbouring steps: every bit is a fair coin, and neighbours agree
    # in half of their bits; 5 standard errors of 128,000 fair coins is 0.007.
    root = rng.stream(rng.root(5), "noise")
    steps = jnp.arange(2000, dtype=jnp.uint32)
    data = jax.vmap(lambda s: jax.random.key_data(rng.step_key(root, s)))(steps)
    coins = np.unpackbits(np.asarray(data).view(np.uint8), axis=1).astype(float)
    assert abs(coins.mean() - 0.5) < 0.007
    assert abs((coins[1:] == coins[:-1]).mean() - 0.5) < 0.007


@pytest.mark.parametrize("seed", [-1, 2**128])
def test_a_seed_outside_128_bits_is_refused(seed):
    with pytest.raises(ValueError, match=r"seed=-?\d+ must be .*128 bits from the OS"):
        rng.root(seed)


def test_bad_names_and_steps_are_refused():
    with pytest.raises(ValueError, match="stream='' must be a non-empty string"):
        rng.stream(rng.root(0), "")
    with pytest.raises(ValueError, match="step=-1 must be >= 0"):
        rng.step_key(rng.root(0), -1)
    with pytest.raises(ValueError, match=r"step=4294967296 must be below"):
        rng.step_key(rng.root(0), 2**32)
