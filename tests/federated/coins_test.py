"""Laws of the draws: marginal and pairwise inclusion, sizes, work per round."""

import collections
import gzip
import json
import time

import numpy as np
import pytest
from scipy import stats

from trustml.federated import coins, probabilities
from trustml.privacy import draws


def membership(sizes, cohort, seed, rounds):
    found = probabilities.capped_power(sizes, cohort)
    index, sizes = coins.index(found, sizes), np.asarray(sizes)
    member = np.zeros((rounds, len(sizes)), bool)
    for round in range(rounds):
        numbers = draws.generator(seed, "cohort", round)
        clients, inclusion = coins.throw(numbers, index, sizes)
        member[round, clients] = True
        if round < 20:
            np.testing.assert_array_equal(inclusion, found.of(sizes[clients]))
            assert np.all(np.diff(clients) > 0)
    return member, found.of(sizes)


def marginal_p(member, p):
    counts, rounds = member.sum(axis=0), len(member)
    statistic = np.sum((counts - rounds * p) ** 2 / (rounds * p * (1 - p)))
    return stats.chi2.sf(statistic, len(p))


def pairwise_p(member, p, pairs):
    """Four cells of each of disjoint pairs, which are independent of each other."""
    left, right = pairs[:, 0], pairs[:, 1]
    statistic = 0.0
    for a in (False, True):
        for b in (False, True):
            counts = np.sum((member[:, left] == a) & (member[:, right] == b), axis=0)
            chance = np.where(a, p[left], 1 - p[left])
            expected = len(member) * chance * np.where(b, p[right], 1 - p[right])
            assert expected.min() > 5
            statistic += np.sum((counts - expected) ** 2 / expected)
    return stats.chi2.sf(statistic, 3 * len(pairs))


def cohort_size_p(member, p):
    """Of the spread of cohort sizes, which dependence of any kind would change."""
    statistic = np.sum((member.sum(axis=1) - p.sum()) ** 2) / np.sum(p * (1 - p))
    degrees = len(member)
    return stats.chi2.sf(statistic, degrees), stats.chi2.cdf(statistic, degrees)


def check_suite(sizes, cohort, seed, rounds):
    member, p = membership(sizes, cohort, seed, rounds)
    assert marginal_p(member, p) > 1e-3
    order = np.argsort(sizes, kind="stable")  # neighbours share a bucket
    by_chance = np.random.default_rng(seed).permutation(len(sizes))
    for arrangement in (order, by_chance):
        assert pairwise_p(member, p, arrangement.reshape(-1, 2)) > 1e-3
    assert min(cohort_size_p(member, p)) > 5e-4


def test_coins_have_marginal_and_pairwise_inclusion_of_independence():
    sizes = 1 + np.random.default_rng(5).lognormal(1.0, 1.3, 1_000).astype(np.int64)
    check_suite(sizes, 200, seed=1, rounds=2_500)


@pytest.mark.data
def test_coins_over_the_authors_of_newsgroups(data_dir):
    path = data_dir / "newsgroups20" / "train.jsonl.gz"
    with gzip.open(path, "rt") as file:
        authors = collections.Counter(json.loads(line)["author"] for line in file)
    sizes = np.array([authors[name] for name in sorted(authors)])
    assert len(sizes) == 5_819 and sizes.max() == 73
    check_suite(sizes[:1_000], 100, seed=2, rounds=10_000)


def test_the_suite_notices_a_fixed_size():
    p = np.full(1_000, 0.1)
    member = np.zeros((2_500, 1_000), bool)
    generator = np.random.default_rng(0)
    for row in member:
        row[draws.subset(generator, 1_000, 100)] = True
    assert marginal_p(member, p) > 1e-3
    assert min(cohort_size_p(member, p)) == 0.0


def test_small_populations_have_the_joint_law_of_coins():
    # All 2^5 subsets; sizes so unequal that there are several buckets.
    sizes = np.array([1, 400, 10, 400, 40])
    found = probabilities.solve(probabilities.power(1.0), sizes, 1.6)
    index, p = coins.index(found, sizes), found.of(sizes)
    assert len(index.ceilings) >= 3
    counts = np.zeros(2**5)
    rounds = 4_000
    for round in range(rounds):
        clients, _ = coins.throw(draws.generator(9, "cohort", round), index, sizes)
        counts[np.sum(1 << clients)] += 1
    members = (np.arange(2**5)[:, None] >> np.arange(5) & 1).astype(bool)
    expected = rounds * np.prod(np.where(members, p, 1 - p), axis=1)
    often = expected > 5
    rest = [counts[~often].sum()], [expected[~often].sum()]
    counts = np.concatenate([counts[often], rest[0]])
    expected = np.concatenate([expected[often], rest[1]])
    statistic = np.sum((counts - expected) ** 2 / np.maximum(expected, 1e-9))
    assert stats.chi2.sf(statistic, len(counts) - 1) > 1e-3


def test_the_index_holds_every_client_once_in_the_bucket_of_its_probability():
    sizes = np.random.default_rng(0).integers(0, 5_000, 30_000)
    found = probabilities.solve(probabilities.power(2.0), sizes, 40)
    index = coins.index(found, sizes)
    held = np.flatnonzero(sizes)
    np.testing.assert_array_equal(np.sort(index.order), held)
    assert index.order.dtype == np.int32
    for number, ceiling in enumerate(index.ceilings):
        members = index.order[index.starts[number] : index.starts[number + 1]]
        p = found.of(sizes[members])
        assert p.max() == ceiling and (number == 63 or p.min() > ceiling / 2)
        assert np.all(np.diff(members) > 0)


def test_a_round_looks_at_the_cohort_and_not_at_the_population():
    # Work is counted, not timed: sizes are looked up for candidates alone.
    class Counted:
        def __init__(self, values):
            self.values, self.looked = values, 0

        def __getitem__(self, places):
            self.looked += len(places)
            return self.values[places]

    sizes = np.random.default_rng(0).lognormal(3, 1.3, 1_000_000).astype(np.int32)
    index = coins.index(probabilities.capped_power(sizes, 200), sizes)
    assert len(index.ceilings) <= 8
    counted, taken = Counted(sizes), 0
    for round in range(20):
        numbers = draws.generator(0, "cohort", round)
        clients, _ = coins.throw.__wrapped__(numbers, index, counted)
        taken += len(clients)
    assert counted.looked < 2 * taken


def test_an_empty_cohort_is_a_cohort():
    sizes = np.array([1, 1])
    index = coins.index(
        probabilities.solve(probabilities.uniform(), sizes, 1e-9), sizes
    )
    clients, inclusion = coins.throw(draws.generator(0, "cohort", 0), index, sizes)
    assert clients.shape == inclusion.shape == (0,) and clients.dtype == np.int64


def test_systematic_sampling_has_exact_size_and_inclusion():
    p, rounds = np.array([0.95, 0.55, 0.1, 1.0, 0.0, 0.4]), 5_000
    counts = np.zeros(len(p))
    for round in range(rounds):
        clients = coins.systematic(draws.generator(0, "systematic", round), p)
        assert len(clients) == 3 and len(set(clients.tolist())) == 3
        counts[clients] += 1
    assert counts[3] == rounds and counts[4] == 0
    open_ = (p > 0) & (p < 1)
    error = np.sqrt(rounds * p * (1 - p))
    # Four z-scores at a fixed seed: 4 standard deviations each.
    assert np.all(np.abs(counts - rounds * p)[open_] < 4 * error[open_])


def test_systematic_sizes_are_exact_in_a_large_population():
    sizes = np.random.default_rng(1).lognormal(2, 2, 20_000).astype(np.int64)
    p = probabilities.solve(probabilities.power(1.0), sizes, 500).of(sizes)
    for round in range(50):
        clients = coins.systematic(draws.generator(1, "systematic", round), p)
        assert len(np.unique(clients)) == len(clients) == 500


def test_successive_sampling_has_the_law_of_draws_one_after_another():
    weights, rounds = np.array([1.0, 2.0, 5.0, 0.0]), 5_000
    pairs = collections.Counter()
    for round in range(rounds):
        numbers = draws.generator(0, "explored", round)
        pairs[tuple(coins.successive(numbers, weights, 2).tolist())] += 1
    w = weights / weights.sum()
    expected = {
        (a, b): w[a] * w[b] / (1 - w[a]) + w[b] * w[a] / (1 - w[b])
        for a, b in ((0, 1), (0, 2), (1, 2))
    }
    assert set(pairs) == set(expected)
    statistic = sum(
        (pairs[k] - rounds * e) ** 2 / (rounds * e) for k, e in expected.items()
    )
    assert stats.chi2.sf(statistic, 2) > 1e-3
    numbers = draws.generator(0, "explored", 0)
    assert coins.successive(numbers, weights, 4).tolist() == [0, 1, 2, 3]
    some = np.array([0.0, 1.0, 0.0])
    assert 1 in coins.successive(numbers, some, 2)


@pytest.mark.slow
@pytest.mark.parametrize("clients", [10**6, 10**7], ids=["million", "ten_million"])
def test_index_and_rounds_are_cheap(clients):
    # Processor time of this thread alone, the least of three; limits of the spec.
    sizes = np.random.default_rng(0).lognormal(3, 1.3, clients).astype(np.int32)
    index_seconds, round_seconds = [], []
    for _ in range(3):
        start = time.thread_time()
        index = coins.index(probabilities.capped_power(sizes, 200), sizes)
        index_seconds.append(time.thread_time() - start)
        start = time.thread_time()
        for round in range(50):
            coins.throw(draws.generator(0, "cohort", round), index, sizes)
        round_seconds.append((time.thread_time() - start) / 50)
    assert min(index_seconds) <= 2.0 and min(round_seconds) <= 0.005
    held = sum(part.nbytes for part in index if isinstance(part, np.ndarray))
    assert held <= 4.1 * clients
