"""Masks cancel exactly, whoever drops out, and nothing ever wraps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tests.federated.aggregation import sensitivity
from trustml.federated import weighting as rules
from trustml.federated.aggregation import chain, clipping, link, secure, weighting

M, D = 9, 5


@functools.cache
def summed(neighbours, threshold):
    """One program for all cohorts of a kind of graph."""
    return sensitivity.quick_jit(
        functools.partial(secure.masked_sum, neighbours=neighbours, threshold=threshold)
    )


def lattice(gen, rows=M):
    # Over the whole range, so that sums do wrap.
    return gen.integers(-(2**31), 2**31, (rows, D)).astype(np.int32)


@pytest.mark.parametrize("neighbours", [None, 4])
def test_the_masked_sum_is_the_modular_sum(neighbours):
    gen, run = np.random.default_rng(0), summed(neighbours, 1e-3)
    sizes = set()
    for number in range(40):
        x = lattice(gen)
        selected = gen.random(M) < gen.choice([0.2, 0.5, 1.0])
        arrived = selected & (gen.random(M) < gen.choice([0.3, 0.8, 1.0]))
        total, aborted = run(x, selected, arrived, jax.random.key(number))
        wanted = x[arrived].astype(np.int64).sum(0).astype(np.int32)
        alone = arrived.any() and not all_have_neighbours(selected, arrived, neighbours)
        if not arrived.any():
            assert bool(aborted) and not np.any(total)
        elif not alone or not bool(aborted):
            assert not bool(aborted)
            np.testing.assert_array_equal(total, wanted)
        sizes.add((int(selected.sum()), int(arrived.sum())))
    assert len(sizes) > 15 and run._cache_size() == 1


def all_have_neighbours(selected, arrived, neighbours):
    """Whether surely somebody is left near everyone (the ring's order is random)."""
    gone = selected.sum() - arrived.sum()
    near = selected.sum() if neighbours is None else min(neighbours + 1, selected.sum())
    return gone < near


def test_what_a_client_sends_looks_like_noise_and_differs_from_what_it_has():
    key, x = jax.random.key(1), jnp.zeros((8, 4000), jnp.int32)
    ring = secure.make_ring(jnp.ones(8, bool), key, 4)
    sent = np.asarray(jax.jit(secure.masked)(x, ring, key))
    top = sent >> 28
    for row in top:
        counts = np.bincount(row, minlength=16)
        assert stats.chisquare(counts).pvalue > 1e-4
    # 28 pairs of 4000: standard error 0.016 each.
    off = np.corrcoef(sent.astype(np.float64))[np.triu_indices(8, 1)]
    assert np.abs(off).max() < 5 * 0.016
    # Without the masks of their own, those between clients cancel; with, they do not.
    assert np.any(sent.sum(0, dtype=np.uint32))


@pytest.mark.parametrize("asked,neighbours", [(9, 4), (8, 4), (5, None), (2, 4)])
def test_everyone_has_as_many_neighbours(asked, neighbours):
    selected = jnp.arange(M) < asked
    ring = secure.make_ring(selected, jax.random.key(0), neighbours)
    assert sorted(np.asarray(ring.order[:asked]).tolist()) == list(range(asked))
    met = set()
    for distance in range(1, int(ring.reach) + 1):
        position, other, live = secure._edges(ring, distance, M)
        for p, q in zip(position[live], other[live], strict=True):
            pair = frozenset((int(p), int(q)))
            assert pair not in met and len(pair) == 2 and max(pair) < asked
            met.add(pair)
    degree = np.bincount([p for pair in met for p in pair], minlength=asked)
    wanted = asked - 1 if neighbours is None else min(neighbours, asked - 1)
    assert np.all(degree == wanted)


def test_who_is_a_neighbour_follows_clients_not_their_rows():
    gen, run = np.random.default_rng(4), summed(2, 2 / 3)
    numbers = np.array([3, 11, 4, 8, 0, 17, 9, 2, 40])
    selected = numbers < 40  # a row of capacity
    found = []
    for number in range(20):
        x, arrived = lattice(gen), selected & (gen.random(M) < 0.7)
        results = set()
        for at in (np.arange(M), gen.permutation(M), gen.permutation(M)):
            total, aborted = run(
                x[at],
                selected[at],
                arrived[at],
                jax.random.key(number),
                numbers=numbers[at],
            )
            results.add((bool(aborted), np.asarray(total).tobytes()))
        assert len(results) == 1
        found.append(results.pop()[0])
    assert 0 < sum(found) < 20


def test_too_few_who_arrive_abort_the_round():
    x, run = lattice(np.random.default_rng(2)), summed(None, 2 / 3)
    for arrived, aborted in ((9, False), (7, False), (6, False), (5, True), (0, True)):
        mask = np.arange(M) < arrived
        total, found = run(x, np.ones(M, bool), mask, jax.random.key(0))
        assert bool(found) == aborted
        wanted = x[mask].astype(np.int64).sum(0).astype(np.int32)
        np.testing.assert_array_equal(total, 0 if aborted else wanted)


def made(spacing, *, max_clients=M, clip_norm=1.0, size=D, **options):
    link_ = secure.modular_sum(spacing, max_clients=max_clients, size=size, **options)
    capped = weighting.of(rules.capped_data(10.0, np.full(M, 10), np.ones(M)))
    return chain.chain(clipping.clip(clip_norm), capped, link_)


def one_round(aggregator):
    """(deltas, weights, mask, W) -> (clipped deltas, update, info), compiled."""
    state = aggregator.init({"w": jnp.zeros(D)})
    key = jax.random.key(0)

    @sensitivity.quick_jit
    def run(deltas, weights, mask, expected_weight):
        sent, _, _ = jax.vmap(aggregator.client, (None, 0, None, None))(
            state, {"w": deltas}, (), key
        )
        asked = jnp.ones(M, bool)
        cohort = link.cohort(
            weights, mask, expected_weight=expected_weight, selected=asked
        )
        update, _, info = aggregator.server(state, sent, cohort, key)
        return sent.update["w"], update["w"], info

    return run


def test_the_chain_sums_rounded_weighted_messages():
    spacing, n = 2.0**-10, np.array([1, 5, 10, 20, 3, 10, 10, 2, 7])
    aggregator = made(spacing, neighbours=4, threshold=0.5)
    gen = np.random.default_rng(3)
    x = gen.normal(size=(M, D)) * 0.3
    weights, mask = aggregator.rule.of(np.arange(M), n), np.arange(M) != 4
    weights = weights.astype(np.float32)
    run = one_round(aggregator)
    clipped, update, info = run(x.astype(np.float32), weights, mask, np.float32(2))
    steps = np.round(np.asarray(clipped) * weights[:, None] / np.float32(spacing))
    wanted = (steps * mask[:, None]).sum(0) * spacing / 2
    np.testing.assert_array_equal(update, wanted.astype(np.float32))
    assert not bool(info.aborted)
    # Rounding to the nearest: half a step in every coordinate.
    assert aggregator.sensitivity() == pytest.approx(1 + spacing * np.sqrt(D) / 2)


def test_sums_that_could_overflow_are_refused_beforehand():
    least = 1.0 / (2**31 / M - 1)
    with pytest.raises(ValueError, match=r"secure.spacing=.* 2\^31 overflows; take"):
        made(least * 0.99)
    aggregator = made(least * 1.01)
    # At the bound itself: all clients send the largest value there is.
    deltas = np.zeros((M, D), np.float32)
    deltas[:, 0] = 1e30
    # Weights above what they promise are cut at the lattice, they never wrap.
    run = one_round(aggregator)
    for weight in (1.0, 100.0):
        weights = np.full(M, weight, np.float32)
        _, update, _ = run(deltas, weights, np.ones(M, bool), np.float32(1))
        assert float(update[0]) == pytest.approx(M, rel=1e-5)


def test_more_rows_or_coordinates_than_were_declared_are_refused():
    message = link.Message({"w": jnp.zeros((M, D))})
    cohort = link.cohort(np.ones(M), expected_weight=1.0)
    for wrong, expected in (
        (made(2.0**-10, max_clients=M - 1), "max_clients=8 is less than the 9 rows"),
        (made(2.0**-10, size=D + 1), "size=6 is not the 5 coordinates"),
    ):
        with pytest.raises(ValueError, match=expected):
            wrong.server(((),) * 4, message, cohort, jax.random.key(0))


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="neighbours=3 must be even"):
        made(1.0, neighbours=3)
    with pytest.raises(ValueError, match="threshold=1.5 must be at most 1"):
        made(1.0, threshold=1.5)
