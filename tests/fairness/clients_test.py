"""Fairness over clients: definitions written out, planted spread, Simpson."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from trustml.fairness import clients, counts, gaps


def test_figures_by_their_definitions():
    rng = np.random.default_rng(0)
    n = rng.integers(1, 30, 37)
    c = rng.binomial(n, rng.beta(6, 3, 37))
    a = c / n
    found = clients.measure(np.append(c, 0), np.append(n, 0))
    assert found.clients == 37, "a client without examples has no accuracy"
    m = len(a)
    pairs = sum(abs(x - y) for x in a for y in a)
    assert found.gini.value == pytest.approx(pairs / (2 * m * m * a.mean()))
    assert found.jain.value == pytest.approx(sum(a) ** 2 / (m * sum(x * x for x in a)))
    assert found.variance.value == pytest.approx(np.mean((a - a.mean()) ** 2))
    assert found.worst_decile.value == pytest.approx(np.mean(sorted(a)[:3]))
    assert np.isnan(found.shrunk[-1])
    for one in (found.mean, found.variance, found.worst_decile, found.gini, found.jain):
        assert one.lo < one.hi and one.lo <= one.value <= one.hi


def test_even_and_most_uneven():
    even = clients.measure([4] * 20, [8] * 20)
    assert even.jain.value == pytest.approx(1) and even.gini.value == pytest.approx(0)
    alone = np.array([0.0] * 9 + [1.0])
    assert clients.jain(alone) == pytest.approx(0.1)
    assert clients.gini(alone) == pytest.approx(0.9)
    nobody = np.zeros(5)
    assert clients.jain(nobody) == 1.0 and clients.gini(nobody) == 0.0
    assert clients.worst_decile(np.array([0.5])) == 0.5


def test_luck_is_told_from_truth():
    """3,000 clients of 1 to 19 examples, once alike and once from Beta(8, 2)."""
    rng = np.random.default_rng(1)
    n = rng.integers(1, 20, 3000)
    alike = clients.measure(rng.binomial(n, 0.8), n, replicates=100)
    # Luck alone: .8 * .2 * mean of 1/n = .16 * .187 = .030.
    assert alike.variance.value > 0.025 and alike.true_variance < 0.002
    p = rng.beta(8, 2, 3000)
    truly = clients.measure(rng.binomial(n, p), n, replicates=100)
    # Beta(8, 2): mean .8, variance .8 * .2 / 11 = .01455. Over 60 such worlds the
    # standard deviations of the estimates were .0031 and .0008: four of them.
    assert truly.m == pytest.approx(0.8, abs=0.0125)
    assert truly.true_variance == pytest.approx(0.01455, abs=0.0032)
    raw = np.mean((truly.shrunk - p) ** 2), np.mean((rng.binomial(n, p) / n - p) ** 2)
    assert raw[0] < raw[1] / 2, "shrunk accuracies are closer to the truth"
    inside = np.mean((truly.shrunk_lo <= p) & (p <= truly.shrunk_hi))
    # 3,000 intervals at 95%: sd 0.4 points.
    assert inside == pytest.approx(0.95, abs=0.016)


def test_shrinkage_is_the_posterior_mean():
    c, n = np.array([0, 5, 9, 30]), np.array([4, 9, 10, 60])
    found = clients.measure(c, n)
    m, s = found.m, found.s
    np.testing.assert_allclose(found.shrunk, (c + m * s) / (n + s), rtol=1e-12)
    best = stats.betabinom.logpmf(c, n, m * s, (1 - m) * s).sum()
    for other_m, other_s in ((m + 0.02, s), (m - 0.02, s), (m, s * 1.2), (m, s / 1.2)):
        law = stats.betabinom.logpmf(c, n, other_m * other_s, (1 - other_m) * other_s)
        assert law.sum() < best


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_all_wrong_and_all_right(rate):
    n = np.array([1, 5, 20])
    found = clients.measure(n * rate, n)
    assert found.variance.value == 0 and abs(found.m - rate) < 0.05
    assert np.all((found.shrunk >= 0) & (found.shrunk <= 1))


def test_pooled_gap_is_not_the_mean_of_gaps():
    """Two clients that select both groups alike, together they do not (Simpson)."""
    cells = np.zeros((2, 2, 2, 2), int)
    cells[0, 0, 0], cells[0, 1, 0] = (10, 90), (1, 9)  # selects 90%, group 0 mostly
    cells[1, 0, 0], cells[1, 1, 0] = (9, 1), (90, 10)  # selects 10%, group 1 mostly
    found = clients.gaps(cells, gaps.demographic_parity_difference)
    assert found.client_mean.value == pytest.approx(0, abs=1e-6)
    assert found.pooled.value == pytest.approx(91 / 110 - 19 / 110, abs=1e-6)
    assert found.undefined == 0


def test_gaps_against_a_loop():
    rng = np.random.default_rng(3)
    cells = rng.integers(0, 9, (12, 3, 2, 2))
    cells[4, 1:] = 0  # one client of a single group has no gap
    found = clients.gaps(cells, gaps.demographic_parity_difference, replicates=300)
    own = []
    for one in cells:
        rates = [g[:, 1].sum() / g.sum() for g in one if g.sum()]
        own += [max(rates) - min(rates)] if len(rates) > 1 else []
    rates = [g[:, 1].sum() / g.sum() for g in cells.sum(axis=0)]
    assert found.pooled.value == pytest.approx(max(rates) - min(rates), abs=1e-6)
    assert found.client_mean.value == pytest.approx(np.mean(own), abs=1e-6)
    assert found.undefined == 1
    for one in found[:2]:
        assert one.lo < one.hi


def test_one_client_has_no_interval():
    found = clients.measure([3, 0], [5, 0])
    assert found.mean.value == pytest.approx(0.6)
    for name in ("mean", "variance", "worst_decile", "gini", "jain"):
        one = getattr(found, name)
        assert np.isfinite(one.value) and np.isnan([one.lo, one.hi]).all()
    cells = np.array([[[[3, 1], [2, 4]], [[2, 2], [1, 5]]]])
    for more in (0, 1):  # the second client has one group, and so no gap
        added = np.concatenate([cells, cells * np.array([1, 0])[:, None, None]])
        of = clients.gaps(added[: 1 + more], lambda c: gaps.difference(c, "tpr"))
        assert of.undefined == more
        assert np.isnan([of.client_mean.lo, of.client_mean.hi]).all()
        assert of.client_mean.value == pytest.approx(5 / 6 - 4 / 6, abs=1e-6)
        assert np.isnan(of.pooled.lo) == (more == 0)


def test_cells_of_clients_come_from_vmap():
    rng = np.random.default_rng(4)
    group, label, guess = (jnp.asarray(rng.integers(0, 2, (5, 30))) for _ in range(3))
    count = jax.vmap(lambda g, y, k: counts.count(g, y, k, groups=2).cells)
    found = clients.gaps(
        count(group, label, guess), lambda c: gaps.difference(c, "tpr")
    )
    flat = counts.count(*(x.reshape(-1) for x in (group, label, guess)), groups=2)
    assert found.pooled.value == pytest.approx(
        float(gaps.difference(flat.cells, "tpr"))
    )


@pytest.mark.parametrize(
    ("correct", "examples", "sentence"),
    [
        ([1, 2], [3], "correct='array of shape .2,.' does not go with"),
        ([1, 5], [3, 4], "correct.1.=5.0 of examples.1.=4 is not a count"),
        ([0.5], [3], "correct.0.=0.5 of examples.0.=3 is not a count"),
        ([3, 2], [np.inf, 5], "correct.0.=3.0 of examples.0.=inf is not a count"),
        ([0, 0], [0, 0], "examples=0 leaves no client"),
    ],
)
def test_refusals(correct, examples, sentence):
    with pytest.raises(ValueError, match=sentence):
        clients.measure(correct, examples)


def test_gaps_refuse_other_shapes():
    with pytest.raises(ValueError, match="vmap counts.count over clients"):
        clients.gaps(np.zeros((2, 2, 2)), gaps.demographic_parity_difference)
