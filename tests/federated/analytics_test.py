"""Analytics: sensitivity by brute force, noise and epsilon by their laws, Zipf data."""

import inspect
import math

import dp_accounting
import numpy as np
import pytest

from trustml import rng
from trustml.federated import analytics
from trustml.privacy import accounting, discrete_gaussian

ROOT = rng.root(0)
NOISES = {"gaussian": analytics.gaussian(1.5), "geometric": analytics.geometric(0.5)}


def counts(values, sizes, **options):
    options = {"bins": 6, "limit": 3, "noise": NOISES["gaussian"], **options}
    found = analytics.histogram(values, sizes, root=ROOT, number=1, **options)
    return np.zeros(6, np.int64) if found is None else found.counts


@pytest.mark.parametrize("counted", analytics.COUNTED)
def test_one_client_moves_counts_by_what_was_declared(counted):
    # The noise is that of the number: differences are those of the counts.
    gen = np.random.default_rng(0)
    worst = np.zeros(2)
    for trial in range(60):
        sizes = gen.integers(0, 9, 5)
        sizes[2] = 8
        owner = np.repeat(np.arange(5), sizes)
        values = gen.integers(0, 6, len(owner))
        if trial % 3 == 0:
            values[owner == 2] = 4
        without = sizes.copy()
        without[2] = 0
        moved = counts(values, sizes, counted=counted) - counts(
            values[owner != 2], without, counted=counted
        )
        worst = np.maximum(worst, [np.abs(moved).sum(), np.linalg.norm(moved)])
    most = 3 if counted == "examples" else math.sqrt(3)
    np.testing.assert_allclose(worst, [3, most])
    if counted == "clients":  # a value held often counts once
        np.testing.assert_array_equal(moved <= 1, True)


def test_one_client_moves_the_count_of_a_quantile_by_what_was_declared(monkeypatch):
    # One step on the doubled scale; where noise is 0 the answer tells on which side.
    zeros = lambda noise, generator, scale, count: np.zeros(count, int)  # noqa: E731
    monkeypatch.setattr(analytics, "_drawn", zeros)
    sizes = np.array([9, 40])
    values = np.concatenate([np.full(9, -1.0), np.linspace(-1, 1, 40)])
    found = analytics.quantile(
        values, sizes, 0.5, low=-2, high=2, noise=NOISES["gaussian"], root=ROOT,
        number=0, limit=4, steps=1,
    )  # fmt: skip
    # 4 pieces of each: 4 below 0 and 2 +- 2 of the second client.
    assert found.scale == math.ceil(1.5 * 4)
    assert found.high == 0
    # A client on one side counts 4 on the doubled scale: noise of as much just ties.
    for side, ties in ((-1.0, -4), (1.0, 4)):
        ends = []
        for offset in (ties, ties + int(np.sign(ties))):
            drawn = lambda *rest, offset=offset: np.full(1, offset)  # noqa: E731
            monkeypatch.setattr(analytics, "_drawn", drawn)
            one = analytics.quantile(
                np.full(9, side), np.array([9]), 0.5, low=-2, high=2,
                noise=NOISES["gaussian"], root=ROOT, number=0, limit=4, steps=1,
            )  # fmt: skip
            ends.append((one.low, one.high))
        before, after = ends
        assert before == (-2, 0)
        assert after == ((0, 2) if side < 0 else (-2, 0))


@pytest.mark.parametrize("name", NOISES)
def test_noise_follows_its_law(name):
    limit, draws = 2, 4000
    found = analytics.histogram(
        np.zeros(1, int), np.ones(1, int), bins=draws, limit=limit,
        noise=NOISES[name], root=ROOT, number=3,
    )  # fmt: skip
    noise = found.counts[1:]
    if name == "gaussian":
        assert found.scale == math.ceil(1.5 * math.sqrt(2))
        variance, fourth = found.scale**2, 3.0
    else:
        assert found.scale == 4
        r = math.exp(-1 / 4)
        variance, fourth = 2 * r / (1 - r) ** 2, 6.1
    # The variance of a variance is (kurtosis - 1) / n; 4 standard errors.
    slack = 4 * math.sqrt((fourth - 1) / draws)
    assert np.mean(noise.astype(float) ** 2) / variance == pytest.approx(1, abs=slack)
    again = counts(np.zeros(1, int), np.ones(1, int))
    np.testing.assert_array_equal(again, counts(np.zeros(1, int), np.ones(1, int)))


def test_laplace_draws_have_their_probabilities():
    drawn = discrete_gaussian.sample_laplace(np.random.default_rng(0), 2, 40_000)
    r = math.exp(-1 / 2)
    for k in range(-3, 4):
        p = (1 - r) / (1 + r) * r ** abs(k)
        slack = 4 * math.sqrt(p * (1 - p) / 40_000)
        assert np.mean(drawn == k) == pytest.approx(p, abs=slack)


def test_epsilon_is_that_of_dp_accounting():
    values, sizes = np.zeros(4, int), np.ones(4, int)

    def event(noise, limit, **options):
        return analytics.histogram(
            values, sizes, bins=3, limit=limit, noise=noise, root=ROOT, number=0,
            **options,
        )  # fmt: skip

    found = event(analytics.gaussian(2.0), 4)
    accountant = dp_accounting.rdp.RdpAccountant(
        orders=range(2, 257), neighboring_relation=found.relation
    )
    accountant.compose(dp_accounting.GaussianDpEvent(2.0))
    ours = accounting.epsilon(found.event, 1e-6, found.relation, "rdp")
    assert ours == pytest.approx(accountant.get_epsilon(1e-6), rel=1e-3)
    # Pure: at any small delta the epsilon that was asked for, and never more.
    found = event(analytics.geometric(0.5), 4)
    assert found.scale == 8
    ours = dp_accounting.pld.PLDAccountant(found.relation)
    ours.compose(found.event)
    assert ours.get_epsilon(1e-12) == pytest.approx(0.5, abs=1e-3)


def test_the_event_of_geometric_noise_bounds_every_output_set():
    # Against exact probabilities of two-sided geometric noise on counts 3 apart.
    limit, scale = 3, 6
    found = analytics.histogram(
        np.zeros(1, int), np.ones(1, int), bins=1, limit=limit, counted="examples",
        noise=analytics.geometric(limit / scale), root=ROOT, number=0,
    )  # fmt: skip
    assert found.scale == scale
    accountant = dp_accounting.pld.PLDAccountant(found.relation)
    accountant.compose(found.event)
    k, r = np.arange(-400, 400), math.exp(-1 / scale)
    p = (1 - r) / (1 + r) * r ** np.abs(k)
    q = (1 - r) / (1 + r) * r ** np.abs(k - limit)
    for epsilon in (0.0, 0.1, 0.3, 0.5):
        exact = np.maximum(p - math.exp(epsilon) * q, 0).sum()
        assert accountant.get_delta(epsilon) >= exact - 1e-9
    assert accountant.get_delta(0.0) < 0.25


def zipf(clients=2000, bins=300, seed=0):
    gen = np.random.default_rng(seed)
    sizes = gen.integers(0, 12, clients)
    share = 1 / np.arange(1, bins + 1)
    values = gen.choice(bins, int(sizes.sum()), p=share / share.sum())
    return values, sizes


def test_heavy_hitters_of_zipf_data():
    values, sizes = zipf()
    owner = np.repeat(np.arange(len(sizes)), sizes)
    exact = np.bincount(np.unique(owner * 300 + values) % 300, minlength=300)
    found = analytics.heavy_hitters(
        values, sizes, bins=300, limit=12, noise=analytics.gaussian(2.0), root=ROOT,
        number=0,
    )  # fmt: skip
    # Scale 7; a bin that nobody holds stays below 4 of them or so.
    assert 20 < found.threshold < 35
    assert found.bins[0] == 0
    assert set(np.flatnonzero(exact > found.threshold + 28)) <= set(found.bins)
    assert exact[found.bins].min() > found.threshold - 28
    assert np.abs(found.counts - exact[found.bins]).max() < 28  # 4 s
    assert list(found.counts) == sorted(found.counts, reverse=True)


def test_bins_that_nobody_holds_are_seldom_found():
    values, sizes = np.zeros(50, int), np.ones(50, int)
    false = 0
    for number in range(60):
        for noise in NOISES.values():
            found = analytics.heavy_hitters(
                values, sizes, bins=50, limit=1, noise=noise, root=ROOT,
                number=number, false_rate=0.1,
            )  # fmt: skip
            false += bool(np.any(found.bins != 0))
    # 120 trials of chance 0.1 at most: mean 12, 3 standard deviations 9.9.
    assert false <= 21


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_quantiles_are_close(share):
    gen = np.random.default_rng(1)
    sizes = gen.integers(0, 8, 1500)
    values = gen.lognormal(size=int(sizes.sum()))
    found = analytics.quantile(
        values, sizes, share, low=0, high=32, noise=analytics.gaussian(3.0),
        root=ROOT, number=0, limit=4, steps=14,
    )  # fmt: skip
    assert found.high - found.low == pytest.approx(32 / 2**14)
    # Noise of 12 / 2 on counts of some 4400, 4 of them in any of 14 steps, and the
    # choice of 4 of up to 7 examples: 0.01 and 4 sqrt(q (1 - q) / 4400) = 0.03.
    assert np.mean(values < found.value) == pytest.approx(share, abs=0.035)
    assert found.event.count == 14


def test_nobody_gives_no_answer():
    none, nobody = np.zeros(0, int), np.zeros(3, int)
    options = {"noise": NOISES["gaussian"], "root": ROOT, "number": 0}
    assert analytics.histogram(none, nobody, bins=3, limit=1, **options) is None
    assert analytics.heavy_hitters(none, nobody, bins=3, limit=1, **options) is None
    assert analytics.quantile(none, nobody, 0.5, low=0, high=1, **options) is None


WRONG = {
    "bins": ({"values": np.array([0, 6])}, "values=6 must be from 0 to 5"),
    "sizes": ({"sizes": np.array([1])}, "sizes=1 must add up to the 2 values"),
    "limit": ({"limit": 0}, "limit=0"),
    "counted": ({"counted": "rows"}, "counted='rows'"),
    "number": ({"number": -1}, "number=-1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_input_is_refused(name):
    changed, said = WRONG[name]
    options = {
        "values": np.array([0, 1]), "sizes": np.array([1, 1]), "bins": 6, "limit": 1,
        "noise": NOISES["gaussian"], "root": ROOT, "number": 0,
    } | changed  # fmt: skip
    with pytest.raises(ValueError, match=said):
        analytics.histogram(options.pop("values"), options.pop("sizes"), **options)


@pytest.fixture
def unchecked(monkeypatch):
    """Queries as users have them: without the types that only tests check."""
    for name in ("histogram", "heavy_hitters", "quantile"):
        plain = inspect.unwrap(getattr(analytics, name))
        monkeypatch.setattr(analytics, name, plain)


NOT_WHOLE = {
    "float": (np.array([0.0, 1.0]), r"values='float64\[2\]' must be integers"),
    "fraction": (np.array([0.5, 1.0]), r"values='float64\[2\]' must be integers"),
    "bool": (np.array([True, False]), r"values='bool\[2\]' must be integers"),
    "text": (np.array(["a", "b"]), r"values='str_\[2\]' must be integers"),
    "table": (np.array([[0], [1]]), r"values='int64\[2, 1\]' must be integers"),
}


@pytest.mark.parametrize("name", NOT_WHOLE)
@pytest.mark.parametrize("query", ["histogram", "heavy_hitters"])
@pytest.mark.usefixtures("unchecked")
def test_bins_that_are_no_integers_are_refused_by_name(query, name):
    values, said = NOT_WHOLE[name]
    with pytest.raises(ValueError, match=said):
        getattr(analytics, query)(
            values, np.array([1, 1]), bins=6, limit=1, noise=NOISES["gaussian"],
            root=ROOT, number=0,
        )  # fmt: skip


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("sizes", [np.array([1.5, 1.5]), np.array(["1", "1"])])
def test_sizes_that_are_no_integers_are_refused_by_name(sizes):
    with pytest.raises(ValueError, match=r"sizes='.*\[2\]' must be integers"):
        counts(np.array([0, 1]), sizes)
    # Nothing at all is of any type.
    np.testing.assert_array_equal(counts(np.array([]), np.array([])), 0)


def median(values):
    return analytics.quantile(
        values, np.array([2, 2]), 0.5, low=0, high=1, limit=2, steps=3, root=ROOT,
        number=0, noise=analytics.gaussian(1e-6),
    )  # fmt: skip


@pytest.mark.usefixtures("unchecked")
def test_a_quantile_takes_infinities_and_refuses_what_has_no_order():
    low, high = -np.inf, np.inf
    ends = median(np.array([low, 0.2, low, low])), median(np.array([high] * 4))
    assert (ends[0].low, ends[1].high) == (0, 1)
    with pytest.raises(ValueError, match=r"values\[2\]=nan .*1 of 4"):
        median(np.array([0.1, 0.2, np.nan, high]))
    with pytest.raises(ValueError, match="values is str_.*array of numbers"):
        median(np.array(["0.1", "0.2", "0.3", "0.4"]))
    # Two numbers of an example would move the count by more than was declared.
    with pytest.raises(ValueError, match=r"values=\[4, 2\] must be numbers on one"):
        median(np.zeros((4, 2)))
