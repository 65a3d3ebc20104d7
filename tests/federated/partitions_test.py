"""Partitions: what each rule promises, digests, edge cases, statistics."""

import numpy as np
import pytest
from scipy import stats

from trustml.federated import partitions, store
from trustml.federated.partitions import base, clusters, labels, quantity, summary

_NUMBERS = np.random.default_rng(0)
LABELS = _NUMBERS.choice(5, 3000, p=[0.4, 0.3, 0.15, 0.1, 0.05])
POINTS = _NUMBERS.normal(size=(3000, 2)) + 6 * np.eye(5, 2)[LABELS]

RULES = {
    "iid": lambda seed: partitions.iid(3000, 40, seed=seed),
    "label_dirichlet": lambda seed: partitions.label_dirichlet(
        LABELS, 40, 0.5, scale="per_class", seed=seed
    ),
    "quantity_dirichlet": lambda seed: partitions.quantity_dirichlet(
        3000, 40, 0.3, seed=seed
    ),
    "lognormal_quantity": lambda seed: partitions.lognormal_quantity(
        3000, 40, 2.0, seed=seed
    ),
    "shards": lambda seed: partitions.shards(LABELS, 40, seed=seed),
    "cluster": lambda seed: partitions.cluster(POINTS, 5, seed=seed),
    "cluster_dirichlet": lambda seed: partitions.cluster_dirichlet(
        POINTS, 40, 0.2, scale="total", num_clusters=6, seed=seed
    ),
}

GOLDEN = {
    "iid": "4b4b630a4db0b50a",
    "label_dirichlet": "0d83522f96fc936a",
    "quantity_dirichlet": "216056b881ce8892",
    "lognormal_quantity": "cb7a4c8213627164",
    "shards": "b2df221083f2a232",
}


@pytest.fixture(scope="module")
def made():
    return {name: rule(7) for name, rule in RULES.items()}


@pytest.mark.parametrize("name", RULES)
def test_every_example_has_one_client(made, name):
    found = made[name]
    assert found.offsets[0] == 0
    assert (np.diff(found.offsets) >= 1).all()
    assert sorted(found.permutation) == list(range(3000))
    assert found.offsets[-1] == 3000
    for start, end in zip(found.offsets, found.offsets[1:], strict=False):
        assert (np.diff(found.permutation[start:end]) > 0).all()  # keeps their order
    assert found.offsets.dtype == found.permutation.dtype == np.int64
    assert found.name == name


@pytest.mark.parametrize("name", RULES)
def test_the_digest_is_that_of_the_seed(made, name):
    again, other = RULES[name](7), RULES[name](8)
    assert again.digest == made[name].digest
    assert other.digest != made[name].digest
    if name != "cluster":
        assert not np.array_equal(other.permutation, made[name].permutation)


@pytest.mark.parametrize("name", GOLDEN)
def test_the_digest_stays_over_versions_and_platforms(made, name):
    assert made[name].digest[:16] == GOLDEN[name]


def test_the_digest_tells_data_and_parameters():
    digests = {
        partitions.label_dirichlet(given, 40, alpha, scale=scale, seed=7).digest
        for given in (LABELS, (LABELS + 1) % 5)
        for alpha, scale in ((0.5, "total"), (0.5, "per_class"), (2.5, "total"))
    }
    # 0.5 per class and 2.5 in total are one distribution with five labels, and their
    # partitions the same; the digests name the parameters and so differ.
    assert len(digests) == 6
    wide = partitions.label_dirichlet(
        LABELS.astype(np.int8), 4, 1, scale="total", seed=0
    )
    thin = partitions.label_dirichlet(LABELS, 4, 1.0, scale="total", seed=0)
    assert wide.digest == thin.digest  # not how labels are kept


def test_iid_sizes_and_errors():
    assert set(np.diff(partitions.iid(103, 10, seed=0).offsets)) == {10, 11}
    with pytest.raises(ValueError, match="at most 10 clients"):
        partitions.iid(10, 11, seed=0)


@pytest.mark.parametrize("scale", ["total", "per_class"])
def test_large_alpha_is_near_the_prior(scale):
    found = partitions.label_dirichlet(LABELS, 20, 1e7, scale=scale, seed=1)
    even = partitions.iid(3000, 20, seed=1)
    far = partitions.statistics(found, LABELS).total_variation
    chance = partitions.statistics(even, LABELS).total_variation
    # Both are draws of 150 examples from the prior; the mean of 20 such distances has
    # a standard deviation of about 0.005.
    assert abs(far - chance) < 0.03


def test_small_alpha_is_near_one_label():
    found = partitions.label_dirichlet(LABELS, 20, 1e-6, scale="total", seed=1)
    counts = partitions.counts(found, LABELS)
    assert np.array_equal(counts.sum(axis=0), np.bincount(LABELS))
    # Five labels end within a client at most five times each has to go on to another,
    # so most have one label only.
    assert (counts.max(axis=1) == counts.sum(axis=1)).sum() >= 15
    assert ((counts > 0).sum(axis=1)).max() <= 5


def test_scales_differ_by_the_number_of_labels():
    one = partitions.label_dirichlet(LABELS, 20, 0.5, scale="per_class", seed=3)
    same = partitions.label_dirichlet(LABELS, 20, 2.5, scale="total", seed=3)
    np.testing.assert_array_equal(one.permutation, same.permutation)
    other = partitions.label_dirichlet(LABELS, 20, 0.5, scale="total", seed=3)
    far = [partitions.statistics(p, LABELS).total_variation for p in (one, other)]
    assert far[1] > far[0] + 0.1  # a fifth of the concentration: further apart


def test_filling_in_batches_is_filling_one_by_one():
    # Two labels of which one runs out: how many of the first a client of 4 gets.
    log_mix, left = np.log([0.7, 0.2, 0.1]), np.array([2, 9, 9])
    random, draws = base.random("test", 0), 4_000
    batched = np.stack([labels._fill(log_mix, left, 4, random) for _ in range(draws)])
    numbers = np.random.default_rng(1)
    single = np.zeros_like(batched)
    for row in single:
        for _ in range(4):
            shares = np.where(left > row, np.exp(log_mix), 0)
            row[numbers.choice(3, p=shares / shares.sum())] += 1
    codes = [table @ [25, 5, 1] for table in (batched, single)]
    values = np.unique(np.concatenate(codes))
    counts = np.array([[np.sum(code == v) for v in values] for code in codes])
    # Both seeds are fixed; equal distributions fail once in a thousand.
    assert stats.chi2_contingency(counts).pvalue > 1e-3


def test_given_sizes_are_kept():
    sizes = partitions.lognormal_sizes(3000, 30, 2.0, seed=5)
    found = partitions.label_dirichlet(
        LABELS, 30, 0.5, scale="total", sizes=sizes, seed=5
    )
    np.testing.assert_array_equal(np.diff(found.offsets), sizes)
    none = np.zeros(30, int)
    none[4] = 3000
    found = partitions.label_dirichlet(
        LABELS, 30, 0.5, scale="total", sizes=none, seed=5
    )
    np.testing.assert_array_equal(np.diff(found.offsets), none)
    assert partitions.statistics(found, LABELS).empty == 29


def test_dirichlet_has_its_mean_and_variance():
    concentration = np.array([0.5, 2.0, 0.02])
    mixes = np.exp(base.random("test", 1).log_dirichlet(concentration, 40_000))
    np.testing.assert_allclose(mixes.sum(axis=1), 1)
    total = concentration.sum()
    mean = concentration / total
    variance = mean * (1 - mean) / (total + 1)
    # Five standard errors of a mean; of a variance of numbers in [0, 1], whose fourth
    # moment is at most the variance.
    assert (abs(mixes.mean(axis=0) - mean) < 5 * np.sqrt(variance / 4e4)).all()
    assert (abs(mixes.var(axis=0) - variance) < 5 * np.sqrt(variance / 4e4)).all()


def test_quantity_with_as_many_clients_as_examples():
    for beta in (1e-3, 1.0):
        found = partitions.quantity_dirichlet(200, 200, beta, seed=0)
        assert (np.diff(found.offsets) == 1).all()
    with pytest.raises(ValueError, match="at most 100 clients"):
        partitions.quantity_dirichlet(200, 101, 1.0, n_min=2, seed=0)
    free = partitions.quantity_sizes(200, 100, 0.01, n_min=0, seed=0)
    assert free.sum() == 200
    assert free.min() == 0


@pytest.mark.parametrize("n_min", [0, 1, 3, 9])
def test_raising_the_small_takes_from_the_largest(n_min):
    numbers = np.random.default_rng(n_min)
    for _ in range(50):
        sizes = numbers.geometric(0.1, 30) - 1
        sizes[0] += max(0, 30 * n_min - sizes.sum())
        slow = sizes.copy()
        while slow.min() < n_min:  # one at a time, from the largest
            slow[slow.argmax()] -= 1
            slow[slow.argmin()] += 1
        found = quantity.raise_to(sizes, n_min)
        assert found.sum() == sizes.sum()
        assert sorted(found) == sorted(slow)
        assert (found <= np.maximum(sizes, n_min)).all()  # nobody else gains


def test_lognormal_sizes_have_their_cv():
    sizes = partitions.lognormal_sizes(10**7, 20_000, 1.0, seed=0)
    # cv of a lognormal sample at cv = 1: the standard error is about 2.5 % here.
    assert abs(sizes.std() / sizes.mean() - 1) < 0.1
    assert set(partitions.lognormal_sizes(100, 10, 0.0, seed=0)) == {10}


def test_shards_hold_few_labels():
    found = partitions.shards(np.arange(1000) % 10, 50, 2, seed=0)
    counts = partitions.counts(found, np.arange(1000) % 10)
    assert (counts.sum(axis=1) == 20).all()
    assert ((counts > 0).sum(axis=1) <= 2).all()  # shards of ten within a label
    odd = partitions.shards(np.zeros(107, int), 5, 2, seed=0)
    assert sorted(np.diff(odd.offsets)) == [20, 20, 20, 20, 27]  # the last is longer
    with pytest.raises(ValueError, match="at most 1 clients"):
        partitions.shards([0, 1, 2], 2, 2, seed=0)


def test_natural_clients_are_sorted_keys():
    found = partitions.natural(["b", "a", "b", "C"])
    assert found.client_key.tolist() == ["C", "a", "b"]
    assert found.offsets.tolist() == [0, 1, 2, 4]
    assert found.permutation.tolist() == [3, 1, 0, 2]
    two = partitions.natural(["x", "x", "y", "x"], [2, 1, 1, 2])
    assert two.client_key.tolist() == ["x / 1", "x / 2", "y / 1"]
    assert two.permutation.tolist() == [1, 0, 3, 2]
    with pytest.raises(ValueError, match="3, 2 entries"):
        partitions.natural([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="names no column"):
        partitions.natural()


def test_clusters_are_found_again():
    found = clusters.k_means(POINTS, 2, seed=0)
    # Two of the five centres lie 6 off along an axis, three at 0: far from overlapping
    # clusters only with more centres, so ask for the best of each point instead.
    distance = np.square(POINTS[:, None] - found.centres[None]).sum(axis=-1)
    np.testing.assert_array_equal(found.assignment, distance.argmin(axis=1))
    means = [POINTS[found.assignment == k].mean(axis=0) for k in range(2)]
    np.testing.assert_allclose(found.centres, means)
    apart = np.repeat(np.arange(4), 50)
    points = 100 * np.array([[0, 0], [0, 1], [1, 0], [1, 1]])[apart]
    points = points + np.random.default_rng(0).normal(size=points.shape)
    dealt = partitions.cluster(points, 4, seed=3)
    counts = partitions.counts(dealt, apart)
    assert sorted(counts.max(axis=1)) == [50] * 4


def test_no_cluster_is_empty(monkeypatch):
    # Three of five points are one point: two centres must share it or move away.
    nearest = np.array([0, 0, 0, 0, 1])
    moved = clusters._no_empty(nearest, np.array([0.0, 5, 1, 9, 2]), 4)
    assert moved.tolist() == [0, 3, 0, 2, 1]
    points = np.array([[0.0], [0], [0], [0], [1], [9]])
    assert len(set(clusters.k_means(points, 3, seed=0).assignment)) == 3
    far = np.array([[0.0], [1], [99], [100]])  # the last two attract nothing
    with monkeypatch.context() as patch:
        patch.setattr(clusters, "_first_centres", lambda *_: far)
        found = clusters.k_means(points[[0, 4, 5, 4, 4, 0]] / 10, 4, seed=0)
    assert set(found.assignment) == {0, 1, 2, 3}
    with pytest.raises(ValueError, match="3 embeddings that differ"):
        clusters.k_means(points, 4, seed=0)
    with pytest.raises(ValueError, match="finite numbers"):
        clusters.k_means([[np.nan]], 1, seed=0)


def test_test_examples_follow_the_mix():
    sizes = partitions.lognormal_sizes(3000, 40, 1.0, seed=2)
    dealt = partitions.label_dirichlet(
        LABELS, 40, 0.5, scale="per_class", sizes=sizes, seed=7
    )
    test = np.random.default_rng(3).choice(6, 1500)  # 5 is new
    found = partitions.split_test(dealt, LABELS, test, seed=0)
    train = partitions.counts(dealt, LABELS)
    held = partitions.counts(found, test)
    assert sorted(found.permutation) == list(range(1500))
    exact = train / train.sum(axis=0) * np.bincount(test)[:5]
    assert (abs(held[:, :5] - exact) < 1).all()
    exact = train.sum(axis=1) / 3000 * np.bincount(test)[5]
    assert (abs(held[:, 5] - exact) < 1).all()
    named = partitions.natural(["b", "a"])
    kept = partitions.split_test(named, [0, 1], [1, 0, 1], seed=0)
    assert kept.client_key.tolist() == ["a", "b"]
    assert np.diff(kept.offsets).tolist() == [2, 1]


def test_statistics_of_a_small_table():
    table = np.array([[4, 0], [0, 2], [0, 0], [1, 1]])
    found = summary.of_counts(table)
    sizes = [4, 2, 0, 2]
    assert found[:4] == (4, 8, 1, 2.0)
    assert found.cv == pytest.approx(np.std(sizes) / 2)
    assert found.quantiles[::3] == (0, 2, 4)
    pairs = np.abs(np.subtract.outer(sizes, sizes)).sum()
    assert found.gini == pytest.approx(pairs / (2 * 4**2 * 2.0))
    # The whole is 5/8, 3/8; the clients 1, 0; 0, 1; and a half.
    assert found.total_variation == pytest.approx((3 / 8 + 5 / 8 + 1 / 8) / 3)
    dealt = partitions.natural([0, 0, 1, 0])
    assert partitions.statistics(dealt).total_variation is None
    assert partitions.statistics(dealt, ["a", "b", "a", "b"]).clients == 2


def test_a_store_of_a_partition():
    dealt = RULES["shards"](7)
    held = store.from_partition(
        {"x": POINTS, "y": LABELS}, dealt.offsets, dealt.permutation
    )
    mine = store.rows(held, 3)
    wanted = dealt.permutation[dealt.offsets[3] : dealt.offsets[4]]
    np.testing.assert_array_equal(held.columns["x"][mine], POINTS[wanted])
    np.testing.assert_array_equal(held.columns["y"][mine], LABELS[wanted])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param({"alpha": 0.0}, "alpha=0.0", id="alpha"),
        pytest.param({"scale": "class"}, "did you mean 'per_class'", id="scale"),
        pytest.param({"num_clients": 3001}, "at most 3000", id="clients"),
        pytest.param({"num_clients": 0}, "num_clients=0", id="none"),
        pytest.param({"labels": [0.5]}, "whole number or text", id="labels"),
        pytest.param({"sizes": [3000]}, "must be 4 whole numbers", id="few-sizes"),
        pytest.param({"sizes": [1, 2, 3, 4]}, "sizes sum to 10", id="sum"),
        pytest.param({"sizes": [3001, -1, 0, 0]}, "smallest is -1", id="negative"),
        pytest.param({"seed": -1}, "seed=-1", id="seed"),
    ],
)
def test_wrong_arguments_end_in_one_sentence(changes, words):
    given = {"labels": LABELS, "num_clients": 4, "alpha": 1.0, "scale": "total"}
    with pytest.raises(ValueError, match=words):
        partitions.label_dirichlet(**(given | {"seed": 0} | changes))
