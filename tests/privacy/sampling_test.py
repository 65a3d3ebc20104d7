"""The samplers' laws, layouts, O(1) resuming and events."""

import functools
import itertools
import math
import operator
import time

import dp_accounting
import numpy as np
import pytest
from scipy import stats

from trustml.privacy import balls_in_bins, draws, sampling

ADD = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
ONE = dp_accounting.NeighboringRelation.REPLACE_ONE
SPECIAL = dp_accounting.NeighboringRelation.REPLACE_SPECIAL

ALL = {
    "poisson": sampling.poisson,
    "fixed_size": sampling.fixed_size,
    "shuffled": sampling.shuffled,
    "truncated_poisson": sampling.truncated_poisson,
    "balls_in_bins": sampling.balls_in_bins,
    "cyclic_poisson": functools.partial(sampling.cyclic_poisson, bands=3),
}


def chi_squared_p(counts, expected, degrees):
    counts, expected = np.asarray(counts, float), np.asarray(expected, float)
    return stats.chi2.sf(np.sum((counts - expected) ** 2 / expected), degrees)


def subsets(sampler, steps):
    """How often each subset of a small population was drawn, by bit mask."""
    counts = np.zeros(2**sampler.num_examples, int)
    for step in range(steps):
        counts[np.sum(1 << sampler.draw(step))] += 1
    return counts


def membership(sampler, steps):
    member = np.zeros((steps, sampler.num_examples), bool)
    for step in range(steps):
        member[step, sampler.draw(step)] = True
    return member


# --- laws: 10,000 steps, fixed seeds, p > 1e-3 -------------------------------------


def test_poisson_has_the_joint_law_of_coins():
    # All 2^6 subsets: marginals, pairs and everything else at once.
    n, steps = 6, 10_000
    sampler = sampling.poisson(n, 1.8, physical_batch_size=2, seed=1)
    sizes = np.array([bin(subset).count("1") for subset in range(2**n)])
    expected = steps * 0.3**sizes * 0.7 ** (n - sizes)
    assert expected.min() > 5
    assert chi_squared_p(subsets(sampler, steps), expected, 2**n - 1) > 1e-3


@pytest.mark.parametrize("cap,mean", [(3, 1.8), (2, 1.8), (6, 1.8)])
def test_truncated_poisson_has_the_joint_law_of_coins_cut_at_random(cap, mean):
    n, steps, q = 6, 10_000, mean / 6
    sampler = sampling.truncated_poisson(
        n, mean, cap=cap, physical_batch_size=2, seed=8
    )
    expected = np.zeros(2**n)
    for coins in range(2**n):
        ids = [i for i in range(n) if coins >> i & 1]
        kept = list(itertools.combinations(ids, min(cap, len(ids))))
        for subset in kept:
            p = q ** len(ids) * (1 - q) ** (n - len(ids)) / len(kept)
            expected[sum(1 << i for i in subset)] += steps * p
    counts, possible = subsets(sampler, steps), expected > 0
    assert not counts[~possible].any() and expected[possible].min() > 5
    degrees = possible.sum() - 1
    assert chi_squared_p(counts[possible], expected[possible], degrees) > 1e-3


def test_balls_in_bins_throws_every_example_anew_in_every_epoch():
    n, bins, epochs = 50, 4, 3000
    sampler = sampling.balls_in_bins(n, 12, physical_batch_size=4, seed=5)
    assert sampler.per_epoch == bins and sampler.expected_batch_size == 12.5
    into = np.zeros((epochs, n), int)
    for epoch in range(epochs):
        draws = [sampler.draw(bins * epoch + step) for step in range(bins)]
        assert sorted(np.concatenate(draws)) == list(range(n))
        for step, draw in enumerate(draws):
            into[epoch, draw] = step
    # Uniform for each example, independent over pairs of examples and over epochs.
    counts = np.stack([(into == step).sum(0) for step in range(bins)])
    assert chi_squared_p(counts, epochs / bins, n * (bins - 1)) > 1e-3
    for left, right in ((into[:, 0::2], into[:, 1::2]), (into[0::2], into[1::2])):
        pair = np.bincount((bins * left + right).ravel(), minlength=bins**2)
        assert chi_squared_p(pair, pair.sum() / bins**2, bins**2 - 1) > 1e-3


def test_no_truncated_batch_passes_its_cap():
    sampler = sampling.truncated_poisson(
        1000, 200, cap=200, physical_batch_size=16, seed=0
    )
    sizes = [len(sampler.draw(step)) for step in range(200)]
    assert max(sizes) == 200 and 60 < sizes.count(200) < 140
    assert sampler.capacity == 13
    default = sampling.truncated_poisson(1000, 100, physical_batch_size=16, seed=0)
    assert default.event(1.0, 1.0, 1, ONE).event.truncated_batch_size == 160


def test_fixed_size_has_the_joint_law_of_uniform_subsets():
    n, m, steps = 7, 3, 10_000
    sampler = sampling.fixed_size(n, m, physical_batch_size=2, seed=2)
    counts = subsets(sampler, steps)
    valid = [sum(1 << i for i in c) for c in itertools.combinations(range(n), m)]
    assert counts[valid].sum() == steps
    expected = np.full(len(valid), steps / len(valid))
    assert chi_squared_p(counts[valid], expected, len(valid) - 1) > 1e-3


def test_poisson_inclusion_pairs_and_sizes_in_a_larger_population():
    n, mean, steps = 1000, 200, 10_000
    q = mean / n
    sampler = sampling.poisson(n, mean, physical_batch_size=64, seed=3)
    member = membership(sampler, steps)
    cells = [steps * q, steps * (1 - q)]
    counts = member.sum(0)
    p = chi_squared_p(
        np.stack([counts, steps - counts], 1), np.array([cells]), degrees=n
    )
    assert p > 1e-3
    # Disjoint pairs are independent 2x2 tables with known cells: 3 degrees each.
    left, right = member[:, 0::2], member[:, 1::2]
    tables = np.stack(
        [(left == a).__and__(right == b).sum(0) for a in (1, 0) for b in (1, 0)], 1
    )
    table = [steps * q * q, *[steps * q * (1 - q)] * 2, steps * (1 - q) ** 2]
    assert chi_squared_p(tables, np.array([table]), degrees=3 * n / 2) > 1e-3
    # The same example in the next step, over disjoint pairs of steps.
    left, right = member[0::2], member[1::2]
    tables = np.stack(
        [(left == a).__and__(right == b).sum(0) for a in (1, 0) for b in (1, 0)], 1
    )
    assert chi_squared_p(tables, np.array([table]) / 2, degrees=3 * n) > 1e-3
    sizes = member.sum(1)
    edges = stats.binom.ppf(np.linspace(0, 1, 11)[1:-1], n, q)
    cumulative = np.concatenate([[0], stats.binom.cdf(edges, n, q), [1]])
    found = np.bincount(np.searchsorted(edges, sizes), minlength=10)
    assert chi_squared_p(found, steps * np.diff(cumulative), 9) > 1e-3


def test_poisson_in_a_large_population():
    # 50,000 ids and subsets above a twentieth of them: the partial shuffle.
    n, steps = 50_000, 200
    sampler = sampling.poisson(n, n // 5, physical_batch_size=512, seed=4)
    counts = np.zeros(n, int)
    for step in range(steps):
        counts[sampler.draw(step)] += 1
    cells = np.array([[steps * 0.2, steps * 0.8]])
    assert chi_squared_p(np.stack([counts, steps - counts], 1), cells, n) > 1e-3


def test_the_law_tests_notice_a_repeated_and_a_biased_draw():
    n, steps = 6, 3000
    sizes = np.array([bin(subset).count("1") for subset in range(2**n)])
    expected = steps * 0.3**sizes * 0.7 ** (n - sizes)
    biased = sampling.poisson(n, 1.95, physical_batch_size=2, seed=1)
    assert chi_squared_p(subsets(biased, steps), expected, 2**n - 1) < 1e-3
    fixed = sampling.fixed_size(n, 2, physical_batch_size=2, seed=1)
    assert chi_squared_p(subsets(fixed, steps), expected, 2**n - 1) < 1e-3


def test_shuffled_visits_every_example_once_in_an_epoch():
    sampler = sampling.shuffled(12, 4, physical_batch_size=4, seed=5)
    epochs = [
        np.concatenate([sampler.draw(step) for step in range(start, start + 3)])
        for start in (0, 3, 6)
    ]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len({epoch.tobytes() for epoch in epochs}) == 3


def test_shuffled_drops_a_random_remainder():
    sampler = sampling.shuffled(11, 4, physical_batch_size=4, seed=6)
    counts = np.zeros(11, int)
    for step in range(2 * 5000):
        batch = sampler.draw(step)
        assert len(np.unique(batch)) == 4
        counts[batch] += 1
    # Per epoch 8 of 11, without replacement: variance shrinks by (n - 1) / n.
    p = 8 / 11
    statistic = np.sum((counts - 5000 * p) ** 2) / (5000 * p * (1 - p)) * 10 / 11
    assert stats.chi2.sf(statistic, 10) > 1e-3


# --- draws as functions of (seed, step) --------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_a_draw_is_a_pure_function_of_seed_and_step(name):
    first, again = (ALL[name](500, 40, physical_batch_size=16, seed=9) for _ in "ab")
    forward = [first.draw(step) for step in range(30)]
    backward = [again.draw(step) for step in reversed(range(30))][::-1]
    for one, other in zip(forward, backward, strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == np.int64 and np.all(np.diff(one) > 0)
        assert one.min(initial=0) >= 0 and one.max(initial=0) < 500
    assert len({draw.tobytes() for draw in forward}) == 30


@pytest.mark.parametrize("name", ALL)
def test_all_128_bits_of_the_seed_count(name):
    seeds = [0, 1, 2**32, 2**63, 2**64, 2**127]
    draws = [ALL[name](500, 40, physical_batch_size=16, seed=s).draw(3) for s in seeds]
    assert len({draw.tobytes() for draw in draws}) == len(seeds)


@pytest.mark.parametrize("name", ALL)
def test_a_seed_from_the_os_is_secret_and_restores_the_run(name):
    sampler = ALL[name](500, 40, physical_batch_size=16)
    assert (
        sampler.secret and sampler.seed != ALL[name](9, 3, physical_batch_size=1).seed
    )
    restored = ALL[name](500, 40, physical_batch_size=16).reseed(sampler.seed, True)
    assert restored.secret and restored.seed == sampler.seed
    np.testing.assert_array_equal(restored.draw(17), sampler.draw(17))
    assert not ALL[name](500, 40, physical_batch_size=16, seed=1).secret


def test_seeds_from_the_os_have_128_bits():
    seeds = [sampling.poisson(9, 3, physical_batch_size=1).seed for _ in range(64)]
    # Every bit is set in one of 64, but for a chance of 128 * 2**-64.
    assert functools.reduce(operator.or_, seeds) == 2**128 - 1


def test_samplers_of_one_seed_draw_independently():
    fixed = sampling.fixed_size(1000, 100, physical_batch_size=10, seed=0)
    epoch = sampling.shuffled(1000, 100, physical_batch_size=10, seed=0)
    both = [len(np.intersect1d(fixed.draw(s), epoch.draw(s))) for s in range(10)]
    # Hypergeometric with mean 10 each: the sum is 100 with a stddev of 9.
    assert 55 < sum(both) < 145


@pytest.mark.parametrize("name", ["poisson", "fixed_size", "cyclic_poisson"])
def test_step_a_million_is_reached_at_once(name):
    # Not a matter of speed: replaying a million draws would take minutes. The best of
    # ten, since the machine may be busy.
    sampler = ALL[name](60_000, 256, physical_batch_size=64, seed=1)
    seconds = []
    for step in range(10**6, 10**6 + 10):
        start = time.perf_counter()
        sampler.physical(step)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) <= 0.010


@pytest.mark.parametrize("name", ALL)
def test_a_late_step_draws_for_its_own_step_or_epoch_alone(name, monkeypatch):
    asked, generator = [], draws.generator

    def counted(seed, stream, number):
        asked.append((stream, number))
        return generator(seed, stream, number)

    monkeypatch.setattr(draws, "generator", counted)
    sampler = ALL[name](1000, 250, physical_batch_size=50, seed=1)
    sampler.physical(10**6)
    if name == "cyclic_poisson":  # the partition is one throw for the whole run
        assert asked.pop(0) == ("parts", 0)
    epochs = {"shuffled", "balls_in_bins"}
    assert asked == [
        (name.removeprefix("cyclic_"), 10**6 // (4 if name in epochs else 1))
    ]


def test_without_a_public_number_of_bins_the_mean_batch_is_taken_from_the_data():
    found = sampling.balls_in_bins(1000, 240, physical_batch_size=50)
    assert found.rate_from_data and found.per_epoch == 4
    assert found.expected_batch_size == 250
    # One example more or less changes nothing that is divided by.
    for size in (1000, 1001):
        given = sampling.balls_in_bins(size, 240, bins=4, physical_batch_size=50)
        assert not given.rate_from_data and given.per_epoch == 4
        assert given.expected_batch_size == 240


# --- physical batches --------------------------------------------------------------


def ids_of(physicals):
    return np.sort(np.concatenate([p.indices[p.mask] for p in physicals]))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("shards", [None, 1, 2, 4])
@pytest.mark.parametrize("slots", [1, 7, 64, 5000])
def test_physical_batches_hold_the_draw_and_less_than_one_batch_of_padding(
    name, shards, slots
):
    sampler = ALL[name](1000, 90, physical_batch_size=slots, shards=shards, seed=2)
    plain = ALL[name](1000, 90, physical_batch_size=8, seed=2)
    row = slots * (shards or 1)
    assert sampler.capacity <= math.ceil(1000 / row)
    lead = () if shards is None else (shards,)
    for step in range(20):
        draw = sampler.draw(step)
        # The layout never decides who is in the batch.
        np.testing.assert_array_equal(draw, plain.draw(step))
        (physical,) = sampler.physical(step)
        assert physical.last
        assert physical.indices.dtype == np.int32 and physical.mask.dtype == bool
        assert physical.indices.shape == (*lead, sampler.capacity, slots)
        assert physical.mask.shape == physical.indices.shape
        np.testing.assert_array_equal(ids_of([physical]), draw)
        assert 0 <= physical.trips * row - len(draw) < row
        # What lies beyond the trips is never looked at, so it must be empty.
        assert not physical.mask[..., physical.trips :, :].any()
        assert not physical.indices[~physical.mask].any()


@pytest.mark.parametrize("shards", [2, 4])
def test_examples_are_dealt_round_robin(shards):
    sampler = sampling.poisson(900, 100, physical_batch_size=8, shards=shards, seed=3)
    for step in range(20):
        (physical,) = sampler.physical(step)
        draw = sampler.draw(step)
        per_device = physical.mask.sum((1, 2))
        assert per_device.max() - per_device.min() <= 1
        for device in range(shards):
            dealt = physical.indices[device][physical.mask[device]]
            np.testing.assert_array_equal(dealt, draw[device::shards])


def forced(size, population=2000, shards=None, slots=8):
    """Physical batches of a draw of exactly `size`, by sampling at rate about 0 or 1.

    The rate is public and need not fit the batch size that sets the capacity, which is
    how a draw far beyond the capacity is made without touching the sampler.
    """
    sampler = sampling.poisson(
        population,
        64,
        sample_rate=max(size, 1e-9) / population,
        physical_batch_size=slots,
        shards=shards,
        seed=size,
    )
    return sampler, sampler.physical(0)


@pytest.mark.parametrize("shards,draws", [(None, 300), (2, 40)])
def test_sizes_from_nothing_to_everything_have_one_shape(shards, draws):
    shapes, sizes = set(), set()
    row = 8 * (shards or 1)
    for size in np.linspace(0, 2000, draws).astype(int):
        sampler, physicals = forced(int(size), shards=shards)
        draw = sampler.draw(0)
        sizes.add(len(draw))
        shapes |= {p.indices.shape for p in physicals}
        np.testing.assert_array_equal(ids_of(physicals), draw)
        assert [p.last for p in physicals] == [False] * (len(physicals) - 1) + [True]
        assert all(p.trips == sampler.capacity for p in physicals[:-1])
        assert 0 <= sum(p.trips for p in physicals) * row - len(draw) < row
        many = math.ceil(max(len(draw), 1) / (sampler.capacity * row))
        assert len(physicals) == many
    assert len(shapes) == 1 and len(sizes) > 0.8 * draws
    assert {0, 2000} <= sizes


def test_an_empty_batch_is_one_physical_batch_without_trips():
    _, physicals = forced(0)
    assert len(physicals) == 1 and physicals[0].trips == 0 and physicals[0].last
    assert not physicals[0].mask.any()


def test_a_draw_of_exactly_the_capacity_needs_no_second_call():
    sampler = sampling.fixed_size(100, 48, physical_batch_size=48, seed=0)
    assert sampler.capacity == 3
    for size, calls in ((143, 1), (144, 1), (145, 2), (288, 2), (289, 3)):
        laid_out = draws.lay_out(np.arange(size), 3, 48, None)
        assert len(laid_out) == calls


# --- events ------------------------------------------------------------------------


def test_events():
    gaussian = dp_accounting.GaussianDpEvent
    composed = dp_accounting.SelfComposedDpEvent
    poisson = sampling.poisson(1000, 50, physical_batch_size=10, seed=0)
    for relation in (ADD, ONE, SPECIAL):
        assert poisson.event(3.0, 1.5, 7, relation) == composed(
            dp_accounting.PoissonSampledDpEvent(0.05, gaussian(2.0)), 7
        )
    fixed = sampling.fixed_size(1000, 50, physical_batch_size=10, seed=0)
    assert fixed.event(3.0, 3.0, 7, ONE) == composed(
        dp_accounting.SampledWithoutReplacementDpEvent(1000, 50, gaussian(1.0)), 7
    )
    truncated = sampling.truncated_poisson(1000, 50, cap=70, physical_batch_size=10)
    for relation in (ONE, SPECIAL):
        assert truncated.event(3.0, 1.5, 7, relation) == composed(
            dp_accounting.TruncatedSubsampledGaussianDpEvent(1000, 0.05, 70, 2.0), 7
        )
    bins = sampling.balls_in_bins(1000, 250, physical_batch_size=10, seed=0)
    epoch = balls_in_bins.BallsInBinsDpEvent(4, gaussian(2.0))
    for relation in (ADD, SPECIAL):
        for steps, epochs in ((1, 1), (4, 1), (5, 2)):
            found = bins.event(3.0, 1.5, steps, relation)
            assert found == composed(epoch, epochs)
    one = sampling.balls_in_bins(1000, 900, physical_batch_size=10)
    assert one.event(3.0, 1.5, 2, ADD) == composed(gaussian(2.0), 2)
    shuffled = sampling.shuffled(1000, 300, physical_batch_size=10, seed=0)
    for steps, epochs in ((1, 1), (3, 1), (4, 2), (6, 2), (7, 3)):
        expected = composed(gaussian(2.0), epochs)
        assert shuffled.event(3.0, 1.5, steps, SPECIAL) == expected


def test_a_public_rate_is_taken_as_it_is():
    sampler = sampling.poisson(
        1000, 50, sample_rate=0.04, physical_batch_size=10, seed=0
    )
    assert (sampler.sample_rate, sampler.expected_batch_size) == (0.04, 50)
    assert not sampler.rate_from_data
    assert sampling.poisson(1000, 50, physical_batch_size=10).rate_from_data


@pytest.mark.parametrize(
    "name,relation,cure",
    [
        ("fixed_size", ADD, "under REPLACE_ONE .*; change the relation, or use"),
        ("fixed_size", SPECIAL, "under REPLACE_ONE .*; change the relation, or use"),
        ("truncated_poisson", ADD, "REPLACE_ONE or REPLACE_SPECIAL .*; change the rel"),
        ("balls_in_bins", ONE, "ADD_OR_REMOVE_ONE or REPLACE_SPECIAL; change the rel"),
        ("shuffled", ADD, "under REPLACE_SPECIAL .*; change the relation, or use"),
        ("shuffled", ONE, "under REPLACE_SPECIAL .*; change the relation, or use"),
    ],
)
def test_a_relation_that_does_not_fit_is_refused_with_the_cure(name, relation, cure):
    sampler = ALL[name](100, 10, physical_batch_size=5, seed=0)
    with pytest.raises(ValueError, match=f"{relation.name}.*sampler {name}.*{cure}"):
        sampler.event(1.0, 1.0, 10, relation)


def test_amplification_by_shuffling_is_refused():
    with pytest.raises(
        ValueError, match="amplified=True has no proof.*sampling.poisson"
    ):
        sampling.shuffled(100, 10, physical_batch_size=5, amplified=True)


@pytest.mark.parametrize(
    "name,arguments,sentence",
    [
        ("poisson", {"num_examples": 0}, "num_examples=0 must be >= 1"),
        ("poisson", {"num_examples": 2**31}, r"num_examples=2147483648 must be below"),
        ("poisson", {"expected_batch_size": 0.0}, "expected_batch_size=0.0 must be"),
        ("poisson", {"expected_batch_size": math.nan}, "expected_batch_size=nan must"),
        ("poisson", {"expected_batch_size": 101}, "at most the 100 examples there are"),
        ("poisson", {"sample_rate": 1.5}, "sample_rate=1.5 must be at most 1"),
        ("poisson", {"sample_rate": 0.0}, "sample_rate=0.0 must be a finite"),
        ("poisson", {"physical_batch_size": 0}, "physical_batch_size=0 must be >= 1"),
        ("poisson", {"shards": 0}, "shards=0 must be >= 1; it is the number of dev"),
        ("poisson", {"seed": -1}, "sampling.seed=-1 must be >= 0"),
        ("poisson", {"seed": 2**128}, r"sampling.seed=\d+ must be below 2\*\*128"),
        ("fixed_size", {"expected_batch_size": 101}, "at most the 100 examples there"),
        ("truncated_poisson", {"cap": 0}, "cap=0 must be >= 1; leave it out"),
        (
            "truncated_poisson",
            {"cap": 9},
            "cap=9 must be at least expected_batch_size=10",
        ),
        ("balls_in_bins", {"bins": 0}, "bins=0 must be >= 1; leave it out for N/m"),
        ("balls_in_bins", {"bins": 101}, "bins=101 must be at most the 100 examples"),
        ("shuffled", {"expected_batch_size": 0}, "expected_batch_size=0 must be >= 1"),
    ],
)
def test_bad_arguments_raise_when_built(name, arguments, sentence):
    given = {"num_examples": 100, "expected_batch_size": 10, "physical_batch_size": 5}
    with pytest.raises(ValueError, match=sentence):
        ALL[name](**(given | arguments))


def test_bad_event_arguments_and_steps_raise():
    sampler = sampling.poisson(100, 10, physical_batch_size=5, seed=0)
    for arguments, sentence in (
        ((0.0, 1.0, 5, ADD), "noise_stddev=0.0 must be .*privacy.enabled=False"),
        ((1.0, 0.0, 5, ADD), "sensitivity=0.0 must be .*clipper"),
        ((1.0, 1.0, 0, ADD), "steps=0 must be >= 1"),
        ((1.0, 1.0, 5, "add_or_remove_one"), "relation='add_or_remove_one' must be"),
    ):
        with pytest.raises(ValueError, match=sentence):
            sampler.event(*arguments)
    with pytest.raises(ValueError, match="step=-1 must be >= 0"):
        sampler.draw(-1)
