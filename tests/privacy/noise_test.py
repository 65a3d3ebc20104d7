"""The law of the noise, its keys, its dtype, its resuming and its layouts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from scipy import special

from trustml import rng
from trustml.privacy import noise


def kolmogorov_p(sample):
    """Two-sided Kolmogorov-Smirnov p-value of `sample` against N(0, 1)."""
    sample = np.sort(sample.astype(np.float64))
    n = len(sample)
    cdf = special.ndtr(sample)
    ranks = np.arange(n + 1) / n
    distance = max(np.max(ranks[1:] - cdf), np.max(cdf - ranks[:-1]))
    return special.kolmogorov(np.sqrt(n) * distance)


def zeros(*shape):
    return jnp.zeros(shape, jnp.float32)


def test_ten_million_draws_follow_the_gaussian_law():
    stddev = 3.7
    mechanism = noise.gaussian(stddev)
    noisy, _ = jax.jit(mechanism.update)(zeros(10_000_000), mechanism.init(rng.root(1)))
    sample = np.asarray(noisy) / np.float32(stddev)
    # The variance of 1e7 draws has a standard error of sqrt(2e-7) = 0.045 %.
    assert abs(sample.astype(np.float64).var() - 1) < 0.003
    assert abs(sample.astype(np.float64).mean()) < 5e-7**0.5 * 5
    assert kolmogorov_p(sample) > 1e-3
    # bfloat16 or float16 noise would have at most 2**16 values.
    assert len(np.unique(sample)) > 2**21


def test_the_law_test_notices_a_scale_off_by_three_permille():
    sample = np.random.default_rng(0).standard_normal(10_000_000)
    assert kolmogorov_p(sample) > 1e-3 > kolmogorov_p(1.003 * sample)


def test_no_correlation_over_leaves_and_steps():
    names = ["a", "b", "c", "w1", "w2"]
    sums = {name: zeros(100_000) for name in names} | {"nested": [zeros(100_000)]}
    mechanism = noise.gaussian(1.0)
    state, rows = mechanism.init(rng.root(2)), []
    update = jax.jit(mechanism.update)
    for _ in range(4):
        noisy, state = update(sums, state)
        rows += [np.asarray(leaf) for leaf in jax.tree.leaves(noisy)]
    correlations = np.corrcoef(np.stack(rows).astype(np.float64))
    off = correlations[np.triu_indices(len(rows), 1)]
    # 276 pairs, standard error 1/sqrt(100,000) each.
    assert np.abs(off).max() < 5 / np.sqrt(100_000)


def test_lagged_correlation_within_a_leaf():
    mechanism = noise.gaussian(1.0)
    noisy, _ = mechanism.update(zeros(400_000), mechanism.init(rng.root(3)))
    x = np.asarray(noisy, np.float64)
    for lag in (1, 2, 3, 64, 4096, 200_000):
        n = len(x) - lag
        assert abs(np.mean(x[lag:] * x[:-lag])) < 5 / np.sqrt(n)


def test_noise_is_added_to_the_sums_and_none_leaves_pass_through():
    mechanism = noise.gaussian(0.5)
    state = mechanism.init(rng.root(4))
    sums = {"frozen": None, "w": jnp.arange(6, dtype=jnp.float32).reshape(2, 3)}
    noisy, after = mechanism.update(sums, state)
    alone, _ = mechanism.update({"w": zeros(2, 3)}, state)
    assert noisy["frozen"] is None and noisy["w"].dtype == jnp.float32
    np.testing.assert_allclose(noisy["w"], sums["w"] + alone["w"], rtol=1e-6, atol=1e-6)
    assert int(after.step) == 1 and int(state.step) == 0


def test_stddev_scales_the_noise_and_may_differ_by_step():
    base, state = noise.gaussian(1.0), noise.gaussian(1.0).init(rng.root(5))
    one, after = base.update(zeros(1000), state)
    fixed, _ = noise.gaussian(2.0).update(zeros(1000), state)
    np.testing.assert_allclose(fixed, 2 * np.asarray(one), rtol=1e-6)
    two, third = base.update(zeros(1000), after)
    falling = noise.gaussian([2.0, 0.5])
    first, _ = jax.jit(falling.update)(zeros(1000), state)
    np.testing.assert_allclose(first, fixed, rtol=1e-6)
    second, _ = jax.jit(falling.update)(zeros(1000), after)
    np.testing.assert_allclose(second, 0.5 * np.asarray(two), rtol=1e-6)
    beyond, _ = falling.update(zeros(1000), third)  # the last one stays
    assert np.std(beyond) == pytest.approx(0.5, rel=0.1)


def test_resuming_repeats_no_noise_and_equals_the_uninterrupted_run(tmp_path):
    mechanism = noise.gaussian(1.0)
    update = jax.jit(mechanism.update)
    state, whole = mechanism.init(rng.root()), []
    saved = tmp_path / "state.npz"
    for step in range(6):
        noisy, state = update({"w": zeros(50)}, state)
        whole.append(np.asarray(noisy["w"]))
        if step == 2:
            leaves, treedef = jax.tree.flatten(state)
            np.savez(saved, *[np.asarray(leaf) for leaf in leaves])
    with np.load(saved) as file:
        state = treedef.unflatten([jnp.asarray(file[name]) for name in file.files])
    assert bool(state.root.secret)
    for step in range(3, 6):
        noisy, state = update({"w": zeros(50)}, state)
        np.testing.assert_array_equal(noisy["w"], whole[step])
    assert len({row.tobytes() for row in whole}) == 6


def test_a_leaf_keeps_its_noise_when_others_come_and_go():
    mechanism = noise.gaussian(1.0)
    state = mechanism.init(rng.root(6))
    both, _ = mechanism.update({"a": zeros(9), "b": zeros(9)}, state)
    one, _ = mechanism.update({"b": zeros(9)}, state)
    np.testing.assert_array_equal(both["b"], one["b"])
    assert not np.array_equal(both["a"], both["b"])


def test_roots_and_streams_give_different_noise():
    mechanism = noise.gaussian(1.0)

    def draw(root):
        return np.asarray(mechanism.update(zeros(8), mechanism.init(root))[0])

    rows = [draw(rng.root(seed)) for seed in range(3)] + [draw(rng.root())]
    assert len({row.tobytes() for row in rows}) == 4
    root = rng.root(0)
    direct = rng.step_key(root, 0)
    key = rng.leaf_key(direct, "")
    assert not np.array_equal(draw(root), jax.random.normal(key, (8,), jnp.float32))


# Compiling threefry for several devices takes 10 s, hence not all combinations.
@pytest.mark.parametrize("devices,axis", [(2, 1), (4, 0)])
def test_noise_is_bit_equal_whatever_the_layout(devices, axis):
    mechanism = noise.gaussian(1.3)
    state = mechanism.init(rng.root(7))
    sums = {"w": jnp.linspace(-3, 3, 64 * 12, dtype=jnp.float32).reshape(64, 12)}
    alone, _ = jax.jit(mechanism.update)(sums, state)
    mesh = jax.make_mesh((devices,), ("d",), devices=jax.devices()[:devices])
    spec = PartitionSpec("d", None) if axis == 0 else PartitionSpec(None, "d")
    sharding = NamedSharding(mesh, spec)
    spread = jax.device_put(sums, sharding)
    noisy, _ = jax.jit(mechanism.update)(spread, state)
    assert noisy["w"].sharding.is_equivalent_to(sharding, 2)
    np.testing.assert_array_equal(noisy["w"], alone["w"])


def test_no_second_compilation_and_no_blown_up_memory():
    mechanism = noise.gaussian(1.0)
    state = mechanism.init(rng.root(8))
    update = jax.jit(mechanism.update)
    sums = {str(number): zeros(1000, 100) for number in range(8)}
    for _ in range(3):
        _, state = update(sums, state)
    assert update._cache_size() == 1
    # Measured: 1.25 times all leaves on a CPU (threefry works in four arrays of the
    # leaf at hand, and finished noise waits for its sum).
    memory = update.lower(sums, state).compile().memory_analysis()
    total = sum(leaf.nbytes for leaf in sums.values())
    assert memory.temp_size_in_bytes <= 2 * total


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int32"])
def test_sums_of_another_dtype_are_refused(dtype):
    mechanism = noise.gaussian(1.0)
    state = mechanism.init(rng.root(9))
    expected = rf"sums\['w'\].dtype='{dtype}' must be float32"
    with pytest.raises(ValueError, match=expected):
        mechanism.update({"w": jnp.zeros(3, dtype)}, state)


@pytest.mark.parametrize("stddev", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_stddev_is_refused(stddev):
    with pytest.raises(
        ValueError, match="noise_stddev=.*> 0; set privacy.enabled=False"
    ):
        noise.gaussian(stddev)
    with pytest.raises(ValueError, match="noise_stddev=.*> 0"):
        noise.gaussian([1.0, stddev])


def test_a_key_of_64_bits_is_no_root():
    with pytest.raises(ValueError, match=r"must be a trustml.rng.Root.*rng.root\(\)"):
        noise.gaussian(1.0).init(jax.random.key(0))


@jax.tree_util.register_pytree_with_keys_class
class _Twins:
    """Two leaves that answer to one name."""

    def __init__(self, leaves):
        self.leaves = leaves

    def tree_flatten_with_keys(self):
        key = jax.tree_util.GetAttrKey("w")
        return [(key, leaf) for leaf in self.leaves], None

    @classmethod
    def tree_unflatten(cls, _, leaves):
        return cls(leaves)


def test_two_leaves_of_one_name_would_share_their_noise():
    mechanism = noise.gaussian(1.0)
    with pytest.raises(ValueError, match="two leaves.*same noise"):
        mechanism.update(_Twins([jnp.zeros(3)] * 2), mechanism.init(rng.root(0)))
