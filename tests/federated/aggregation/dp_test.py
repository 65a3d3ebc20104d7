"""How much noise, when, and that it is what the release says."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from trustml import rng
from trustml.federated import weighting as rules
from trustml.federated.aggregation import chain, clipping, dp, link, weighting
from trustml.privacy import correlated_noise

SIZE = 20_000
KEY = jax.random.key(0)
ONE = weighting.of(rules.mean(1.0))


def released(links, mask, *, seed=0, weights=None, expected_weight=1.0):
    """What the server makes of zeros: noise alone, and its info."""
    aggregator = chain.chain(*links)
    like = {"w": jnp.zeros(SIZE)}
    state = aggregator.init(like, rng.root(seed))
    weights = np.ones(len(mask)) if weights is None else weights
    cohort = link.cohort(weights, np.asarray(mask), expected_weight=expected_weight)
    update, state, info = aggregator.server(state, link.Message(like), cohort, KEY)
    return np.asarray(update["w"], np.float64), state, info


def check_variance(x, stddev):
    """Two-sided chi-squared test of the variance, at 1e-3."""
    total = np.sum(x**2) / stddev**2
    p = stats.chi2.cdf(total, len(x))
    assert 5e-4 < p < 1 - 5e-4, (np.std(x), stddev)


def test_central_noise_does_not_ask_who_came():
    weight = weighting.of(rules.horvitz_thompson(np.ones(4), np.full(4, 1 / 12)))
    links = clipping.clip(0.5), weight, dp.central(2.0)
    for seed, mask in enumerate([[False] * 4, [True] * 4, [True, False] * 2]):
        x, _, info = released(links, mask, seed=seed, expected_weight=10.0)
        check_variance(10 * x, 2.0 * 0.5 * 3.0)
        assert float(info.noise_stddev) == pytest.approx(3.0)
    with pytest.raises(AssertionError):  # the test sees 3 % of the variance
        check_variance(10 * x, 2.0 * 0.5 * 3.0 * 1.03)


def test_rounds_and_roots_have_noise_of_their_own():
    links = clipping.clip(1.0), ONE, dp.central(1.0)
    aggregator = chain.chain(*links)
    like = {"w": jnp.zeros(SIZE)}
    cohort = link.cohort(np.ones(1), expected_weight=1.0)
    rows = []
    for seed in (0, 1):
        state = aggregator.init(like, rng.root(seed))
        for _ in range(3):
            # The key of the round is the same: noise does not come from it.
            update, state, _ = aggregator.server(state, link.Message(like), cohort, KEY)
            rows.append(np.asarray(update["w"]))
    off = np.corrcoef(np.stack(rows))[np.triu_indices(6, 1)]
    assert np.abs(off).max() < 5 / np.sqrt(SIZE)


def test_local_noise_is_that_of_those_who_came():
    capped = weighting.of(rules.capped_data(10.0, np.full(4, 10), np.ones(4)))
    links = clipping.clip(0.5), capped, dp.local(3.0)
    weights = np.array([1.0, 0.5, 0.25, 1.0])
    mask = [True, True, False, True]
    x, _, _ = released(links, mask, weights=weights, expected_weight=2.0)
    check_variance(2 * x, 3.0 * 0.5 * np.sqrt(1 + 0.25 + 1))
    x, _, _ = released(links, [False] * 4, weights=weights)
    assert not np.any(x)
    # Of one report: stddev z C against 2 C.
    assert chain.chain(*links).release == link.Release("local", 1.5, 1.0)


@pytest.mark.parametrize("bands", [1, 3])
def test_banded_noise_covers_every_pattern_of_participation(bands):
    rounds, z, clip_norm = 9, 1.5, 0.5
    strategy = correlated_noise.optimize(rounds, bands)
    links = (
        clipping.clip(clip_norm),
        ONE,
        dp.banded(strategy, noise_multiplier=z, rounds=rounds),
    )
    # The first round's noise is fresh noise: its stddev is z times what T G moves by.
    x, _, info = released(links, [True])
    check_variance(x, float(info.noise_stddev))
    matrix = sum(c * np.eye(rounds, k=-k) for k, c in enumerate(strategy.coefficients))
    worst = 0.0
    for pattern in itertools.product([0, 1], repeat=rounds):
        at = np.flatnonzero(pattern)
        if len(at) and (len(at) == 1 or np.diff(at).min() >= bands):
            # Directions at will: all the same is the worst of aligned ones, and
            # columns b apart do not overlap.
            worst = max(worst, clip_norm * np.linalg.norm(matrix[:, at].sum(1)))
            worst = max(worst, clip_norm * np.linalg.norm(matrix[:, at]))
    assert float(info.noise_stddev) == pytest.approx(z * worst, rel=1e-5)
    made = chain.chain(*links).release
    assert made == link.Release("banded", z, 1.0, rounds, bands)


def test_correlated_noise_is_taken_back():
    strategy = correlated_noise.strategy([1.0, 0.5])
    links = (
        clipping.clip(1.0),
        ONE,
        dp.banded(strategy, noise_multiplier=1.0, rounds=4),
    )
    aggregator = chain.chain(*links)
    like = {"w": jnp.zeros(SIZE)}
    state = aggregator.init(like, rng.root(1))
    cohort = link.cohort(np.ones(1), np.zeros(1, bool), expected_weight=1.0)
    rows = []
    for _ in range(3):
        update, state, info = aggregator.server(state, link.Message(like), cohort, KEY)
        rows.append(np.asarray(update["w"], np.float64))
    fresh = [rows[0], rows[1] + 0.5 * rows[0], rows[2] + 0.5 * rows[1]]
    for x in fresh:
        check_variance(x, float(info.noise_stddev))
    off = np.corrcoef(np.stack(fresh))[np.triu_indices(3, 1)]
    assert np.abs(off).max() < 5 / np.sqrt(SIZE)


def test_discrete_noise_is_no_less_than_asked_for_and_on_a_grid():
    links = clipping.clip(2.0), ONE, dp.discrete(1.0, size=SIZE, bits=4)
    aggregator = chain.chain(*links)
    assert 1.0 <= aggregator.release.noise_multiplier < 1.01
    x, _, info = released(links, [False])
    check_variance(x, float(info.noise_stddev))
    # Sensitivity with rounding, 2 + spacing sqrt(d), is at most 1/16 more than 2.
    assert 2.0 < float(info.noise_stddev) < 2.0 * 1.0625 * 1.01
    spacing = 2.0 ** np.floor(np.log2(2.0 / np.sqrt(SIZE)) - 4)
    np.testing.assert_array_equal(x / spacing, np.round(x / spacing))


def test_what_does_not_fit_is_refused():
    for make in (dp.central, dp.local, lambda z: dp.discrete(z, size=3)):
        with pytest.raises(ValueError, match="noise_multiplier=0.0 must be a finite"):
            make(0.0)
    aggregator = chain.chain(clipping.clip(1.0), ONE, dp.discrete(1.0, size=3))
    with pytest.raises(ValueError, match="size=3 is not the 4 coordinates"):
        aggregator.init({"w": jnp.zeros(4)}, rng.root(0))
    with pytest.raises(ValueError, match="grid_bits='scale .*' makes the noise more"):
        chain.chain(clipping.clip(1.0), ONE, dp.discrete(1e6, size=100, bits=20))
