"""What the server decodes, what it costs, and what the client keeps."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import linalg

from tests.federated.aggregation import sensitivity
from trustml.federated.aggregation import chain, compression, low_rank

D = 11


def message(seed=0, size=D):
    x = np.random.default_rng(seed).normal(size=size)
    return sensitivity.tree(jnp.asarray(x, jnp.float32))


@functools.cache
def sender(one):
    aggregator = chain.chain(one)
    run = sensitivity.quick_jit(jax.vmap(aggregator.client, (None, None, None, 0)))

    def send(update, memory=None, keys=1, seed=0):
        state = aggregator.init(update)
        memory = aggregator.memory(update) if memory is None else memory
        keys = jax.random.split(jax.random.key(seed), keys)
        sent, memory, record = run(state, update, memory, keys)
        return sent.update, jax.tree.map(lambda x: x[0], memory), record

    return send


def matrix(update):
    rows = [np.asarray(x).reshape(x.shape[0], -1) for x in jax.tree.leaves(update)]
    return np.concatenate(rows, axis=1).astype(np.float64)


@pytest.mark.parametrize("bits,rotate", [(1, False), (3, False), (2, True)])
def test_quantisation_is_unbiased_and_on_its_levels(bits, rotate):
    update, draws = message(), 4000
    sent, _, record = sender(compression.quantise(bits, rotate=rotate))(
        update, keys=draws
    )
    x, rows = sensitivity.flat(update), matrix(sent)
    # 11 coordinates within 4.5 standard errors of their own mean.
    error = np.std(rows, axis=0) / math.sqrt(draws)
    assert np.all(np.abs(rows.mean(0) - x) <= 4.5 * error + 1e-6)
    assert float(record.bits_up[0]) == bits * (16 if rotate else D) + 32
    if not rotate:
        step = 2 * np.abs(x).max() / (2**bits - 1)
        assert np.abs(rows - x).max() <= step * (1 + 1e-5)
        levels = (rows + np.abs(x).max()) / step
        np.testing.assert_allclose(levels, np.round(levels), atol=1e-4)


def test_the_finest_levels_stay_within_the_range():
    x = jnp.linspace(-1, 1, D, dtype=jnp.float32)
    sent, _, _ = sender(compression.quantise(16))(sensitivity.tree(x), keys=500)
    rows = matrix(sent)
    assert np.abs(rows).max() <= 1 and np.all(rows[:, -1] == 1)
    np.testing.assert_allclose(rows, np.broadcast_to(x, rows.shape), atol=4e-5)


def test_zeros_stay_zeros():
    zeros = sensitivity.tree(jnp.zeros(D))
    for one in (compression.quantise(2), compression.drive(), low_rank.power_sgd(1)):
        sent, _, _ = sender(one)(zeros)
        assert not np.any(matrix(sent))


def test_the_transform_is_hadamards_and_the_rotation_goes_back():
    x = np.random.default_rng(0).normal(size=16)
    wanted = linalg.hadamard(16) @ x / 4
    found = sensitivity.quick_jit(compression.hadamard)(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)

    @sensitivity.quick_jit
    def there_and_back(part, key):
        turned, back = compression.rotation(part, key)
        return turned, back(turned)

    for size in (1, 5, 16):
        part = jnp.asarray(x[:size], jnp.float32)
        turned, again = there_and_back(part, jax.random.key(size))
        assert turned.size == 2 ** math.ceil(math.log2(size))
        assert np.linalg.norm(turned) == pytest.approx(
            np.linalg.norm(x[:size]), rel=1e-5
        )
        np.testing.assert_allclose(again, x[:size], rtol=1e-5, atol=1e-6)


def test_top_k_keeps_the_largest():
    update = message(1)
    sent, memory, record = sender(compression.top_k(0.25))(update)
    x = sensitivity.flat(update)
    wanted = np.where(np.argsort(np.argsort(-np.abs(x))) < 3, x, 0)
    np.testing.assert_allclose(matrix(sent)[0], wanted, rtol=1e-6)
    kept = sensitivity.flat(memory[0])
    np.testing.assert_allclose(kept, x - wanted, rtol=1e-6)
    assert float(record.bits_up[0]) == 3 * (32 + 4)


def test_signs_and_their_scale():
    update = message(2)
    sent, _, record = sender(compression.sign())(update)
    x = sensitivity.flat(update)
    np.testing.assert_allclose(
        matrix(sent)[0], np.sign(x) * np.mean(np.abs(x)), rtol=1e-5
    )
    assert float(record.bits_up[0]) == D + 32


@pytest.mark.parametrize("name", ["top_k", "sign", "low_rank"])
def test_nothing_is_lost_with_error_feedback(name):
    one = {
        "top_k": compression.top_k(0.1),
        "sign": compression.sign(),
        "low_rank": low_rank.power_sgd(1),
    }[name]
    send, memory, total, given = sender(one), None, np.zeros(14), np.zeros(14)
    aggregator = chain.chain(one)
    for number in range(12):
        update = lopsided(number)
        memory = aggregator.memory(update) if memory is None else memory
        sent, memory, _ = send(update, memory)
        total += matrix(sent)[0]
        given += sensitivity.flat(update)
    kept = memory[0].error if name == "low_rank" else memory[0]
    np.testing.assert_allclose(total + sensitivity.flat(kept), given, atol=1e-4)
    assert np.linalg.norm(total - given) > 1e-3


def lopsided(seed):
    """A vector, and a matrix [3, 4] so large that factors of rank 1 are smaller."""
    gen = np.random.default_rng(seed)
    return {
        "a": jnp.asarray(gen.normal(size=2), jnp.float32),
        "b": jnp.asarray(gen.normal(size=(3, 2, 2)) + 1, jnp.float32),
    }


@pytest.mark.parametrize("unbiased", [True, False])
def test_drive_scales_signs_of_the_rotated_vector(unbiased):
    update = message(3, size=16 - 1)
    one = compression.drive(unbiased=unbiased)
    draws = 3000 if unbiased else 50
    sent, _, record = sender(one)(update, keys=draws)
    x, rows = sensitivity.flat(update), matrix(sent)
    assert float(record.bits_up[0]) == 16 + 32
    if unbiased:
        # Uniform rotations have no bias; in 16 dimensions that of this one is some
        # percent, while the least-error scale is 2/pi = 0.64 of the vector.
        along = rows.mean(0) @ x / (x @ x)
        assert along == pytest.approx(1, abs=0.08)
    else:
        # Projections, cut to the first 15 coordinates: no longer than the vector.
        assert np.linalg.norm(rows, axis=1).max() <= np.linalg.norm(x) * (1 + 1e-5)
        # Of 16 normals |Rx|_1^2 / (16 |x|^2) is near 2/pi; five percent either way.
        along = np.mean(rows @ x) / (x @ x)
        assert along == pytest.approx(2 / math.pi, abs=0.05)


def test_matrices_of_low_rank_are_sent_whole():
    gen = np.random.default_rng(4)
    left, right = gen.normal(size=(6, 2)), gen.normal(size=(2, 8))
    update = {
        "thin": jnp.asarray(gen.normal(size=(2, 2)), jnp.float32),
        "w": jnp.asarray((left @ right).reshape(6, 4, 2), jnp.float32),
    }
    sent, memory, record = sender(low_rank.power_sgd(2))(update)
    np.testing.assert_allclose(sent["w"][0], update["w"], atol=1e-5)
    np.testing.assert_array_equal(sent["thin"][0], update["thin"])
    assert float(record.bits_up[0]) == 32 * (4 + 2 * (6 + 8))
    assert memory[0].factors[1].shape == (8, 2) and memory[0].factors[0] == ()


def test_power_iterations_find_the_leading_direction():
    gen = np.random.default_rng(5)
    m = gen.normal(size=(8, 6)) + 3 * np.outer(gen.normal(size=8), gen.normal(size=6))
    update = {"w": jnp.asarray(m, jnp.float32)}
    send, aggregator = sender(low_rank.power_sgd(1)), chain.chain(low_rank.power_sgd(1))
    memory = aggregator.memory(update)
    for _ in range(10):  # the same matrix again, errors left out: a plain iteration
        sent, after, _ = send(update, memory)
        error = jax.tree.map(jnp.zeros_like, after[0].error)
        memory = (after[0]._replace(error=error), *after[1:])
    u, s, v = np.linalg.svd(m)
    np.testing.assert_allclose(sent["w"][0], s[0] * np.outer(u[:, 0], v[0]), atol=1e-3)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="bits=17 must be at most 16"):
        compression.quantise(17)
    with pytest.raises(ValueError, match="share=1.5 must be at most 1"):
        compression.top_k(1.5)
    with pytest.raises(ValueError, match="rank=0 must be >= 1"):
        low_rank.power_sgd(0)
