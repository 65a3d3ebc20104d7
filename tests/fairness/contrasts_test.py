import numpy as np
import pytest

from trustml import intervals
from trustml.fairness import contrasts, gaps, rates


def newcombe(k_a, n_a, k_b, n_b, level):
    """Method 10 from the package's scalar Wilson limits."""
    p_a, p_b = k_a / n_a, k_b / n_b
    l_a, u_a = intervals.wilson(k_a, n_a, level)
    l_b, u_b = intervals.wilson(k_b, n_b, level)
    below = ((p_a - l_a) ** 2 + (u_b - p_b) ** 2) ** 0.5
    above = ((u_a - p_a) ** 2 + (p_b - l_b) ** 2) ** 0.5
    return p_a - p_b - below, p_a - p_b + above


def test_the_published_examples():
    """Newcombe 1998, table II, and Fagerland et al. 2015 have these digits."""
    found = contrasts.difference(56, 70, 48, 80)
    assert (round(found.lo, 4), round(found.hi, 4)) == (0.0524, 0.3339)
    found = contrasts.difference(9, 10, 3, 10)
    assert (round(found.lo, 4), round(found.hi, 4)) == (0.1705, 0.8090)
    found = contrasts.difference(10, 10, 0, 20)
    assert (round(found.lo, 4), round(found.hi, 4)) == (0.6791, 1.0)


@pytest.mark.parametrize(
    ("a", "b"), [((7, 30), (2, 41)), ((0, 12), (3, 9)), ((5, 5), (1, 8))]
)
def test_differences_and_ratios_of_two(a, b):
    for level in (0.8, 0.95):
        found = contrasts.difference(*a, *b, level=level)
        np.testing.assert_allclose(
            (found.lo, found.hi), newcombe(*a, *b, level), atol=1e-12
        )
        assert found.lo <= found.value <= found.hi
        back = contrasts.difference(*b, *a, level=level)
        np.testing.assert_allclose((back.lo, back.hi), (-found.hi, -found.lo))
        found = contrasts.ratio(*a, *b, level=level)
        assert found.lo <= found.value <= found.hi
        # The limits of a ratio include 1 exactly where those of a difference hold 0.
        apart = contrasts.difference(*a, *b, level=level)
        assert (found.lo < 1 < found.hi) == (apart.lo < 0 < apart.hi)


def test_what_is_not_defined_is_nan():
    assert np.isnan(contrasts.difference(0, 0, 1, 5).value)
    assert np.isnan(contrasts.ratio(1, 5, 0, 5).value)
    assert contrasts.ratio(1, 5, 1, 5, level=0.95).hi < np.inf
    alone = contrasts.largest_difference([3, 0], [9, 0])
    assert np.isnan(alone.value) and alone.high == -1
    assert np.isnan(contrasts.smallest_ratio([0, 0], [9, 9]).value)
    one = contrasts.largest_difference([3, 0, 1], [9, 0, 9])
    assert (one.high, one.low) == (0, 2), "numbers count the empty group"
    assert np.isnan(contrasts.worst([one, alone]).value)
    with pytest.raises(ValueError, match="level=1 must be > 0 and < 1|level=1"):
        contrasts.difference(1, 2, 1, 2, level=1)
    with pytest.raises(ValueError, match="name='recall' is not one of"):
        contrasts.parts("recall", np.zeros((1, 2, 2), int))
    with pytest.raises(ValueError, match=r"cells=.*are not \[G, 2, 2\]"):
        contrasts.parts("tpr", np.zeros((2, 2), int))


def test_values_are_those_of_rates_and_gaps():
    rng = np.random.default_rng(0)
    cells = rng.integers(3, 60, (5, 2, 2))
    for name in contrasts.RATES:
        k, n = contrasts.parts(name, cells)
        np.testing.assert_allclose(k / n, rates.rate(name, cells), rtol=1e-6)
        assert contrasts.largest_difference(k, n).value == pytest.approx(
            float(gaps.difference(cells, name)), abs=1e-6
        )
        assert contrasts.smallest_ratio(k, n).value == pytest.approx(
            float(gaps.ratio(cells, name)), abs=1e-6
        )
    both = [
        contrasts.largest_difference(*contrasts.parts(name, cells), family=2)
        for name in ("tpr", "fpr")
    ]
    assert contrasts.worst(both).value == pytest.approx(
        float(gaps.equalized_odds_difference(cells)), abs=1e-6
    )
    low = contrasts.worst(both, smallest=True)
    assert low.value == min(one.value for one in both)


@pytest.mark.parametrize(
    "truth", [(0.3, 0.3, 0.3, 0.3), (0.2, 0.3, 0.3, 0.45), (0.05, 0.06, 0.05, 0.1)]
)
def test_limits_of_the_largest_hold_the_truth(truth):
    """2,000 tables: at least 95% hold it, less 3 standard errors of 0.0049."""
    rng, p = np.random.default_rng(1), np.array(truth)
    n = np.array([60, 150, 400, 90])
    gap, quotient, wrong, wrong_ratio = p.max() - p.min(), p.min() / p.max(), 0, 0
    for k in rng.binomial(n, p, (2000, 4)):
        found = contrasts.largest_difference(k, n)
        wrong += not found.lo <= gap <= found.hi
        found = contrasts.smallest_ratio(k, n)
        wrong_ratio += not found.lo <= quotient <= found.hi
    assert wrong / 2000 <= 0.05 + 3 * 0.0049
    assert wrong_ratio / 2000 <= 0.05 + 3 * 0.0049


def test_having_looked_at_more_gaps_widens_the_near_limit_alone():
    one = contrasts.largest_difference([30, 10], [60, 60])
    two = contrasts.largest_difference([30, 10], [60, 60], family=2)
    assert two.lo < one.lo and two.hi == one.hi


@pytest.mark.parametrize("wrong", [2.5, -1, np.nan])
def test_cells_that_are_no_counts_are_refused(wrong):
    cells = np.full((2, 2, 2), 3.0)
    assert contrasts.parts("tpr", cells)[1].tolist() == [6, 6]
    cells[1, 1, 1] = wrong
    with pytest.raises(ValueError, match="cells='array' must hold whole numbers >= 0"):
        contrasts.parts("tpr", cells)
