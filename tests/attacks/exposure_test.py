"""Ranks, p-values, extrapolation and controls against brute force and SciPy."""

import numpy as np
import pytest
from scipy import stats

from trustml.attacks import exposure


def test_ranks_against_a_loop_with_ties():
    rng = np.random.default_rng(0)
    for _ in range(50):
        losses = rng.integers(0, 5, 20).astype(float)
        secret = int(rng.integers(20))
        lower = sum(x < losses[secret] for x in losses)
        equal = sum(x == losses[secret] for x in losses)
        mid = np.mean(np.arange(lower + 1, lower + equal + 1))
        one = exposure.exact(losses, secret)
        assert one.mid_rank == mid
        assert one.worst_rank == lower + equal
        assert one.p_value == (lower + equal) / 20
        assert one.bits == pytest.approx(np.log2(20 / mid))
        assert exposure.in_top(losses, secret, 7) == (lower + equal <= 7)


def test_ceiling_and_median_of_chance():
    losses = np.arange(1024.0)
    assert exposure.exact(losses, 0).bits == exposure.exact(losses, 0).ceiling == 10.0
    middle = [exposure.exact(losses, s).bits for s in range(1024)]
    assert np.median(middle) == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("shape", [-4.0, 0.0, 3.0])
def test_extrapolated_is_near_exact(shape):
    """Row 14: within 1 bit where both exist.

    The rank of the 10th of 10^4 has a relative standard deviation of 1/sqrt(10), which
    is 0.46 bits, of the 100th 0.14 bits; 1,000 draws fit the location and scale to 3%.
    """
    rng = np.random.default_rng(1)
    losses = stats.skewnorm.rvs(shape, loc=5, scale=2, size=10_000, random_state=rng)
    order = np.argsort(losses)
    sample = rng.choice(losses, 1000)
    for rank in (10, 100, 1000, 9000):
        secret = int(order[rank - 1])
        both = (
            exposure.extrapolated(
                float(losses[secret]), sample, candidates=losses.size
            ),
            exposure.exact(losses, secret).bits,
        )
        assert abs(both[0] - both[1]) < 1.0, (rank, both)


def test_extrapolated_ends_at_the_ceiling():
    """Also for losses more skewed than a skew-normal can be, far below their least."""
    losses = np.random.default_rng(0).exponential(size=1000) ** 2
    assert exposure.extrapolated(-5.0, losses, candidates=2**13) == 13.0
    assert exposure.extrapolated(1e3, losses, candidates=2**13) == 0.0


def test_estimated_is_extrapolated_with_the_rank_among_the_draws():
    losses = np.random.default_rng(0).normal(size=1000)
    one = exposure.estimated(-1.0, losses, candidates=10**7)
    bits = exposure.extrapolated(-1.0, losses, candidates=10**7)
    assert one.bits == bits and one.ceiling == np.log2(10**7)
    assert one.p_value == (1 + np.sum(losses <= -1.0)) / 1001
    assert np.log2(10**7 / one.mid_rank) == pytest.approx(bits)
    assert exposure.estimated(-50.0, losses, candidates=10**7).worst_rank == 1


def test_tail_against_scipy_and_far_out():
    for shape in (-3.0, 0.0, 2.0):
        for z in (-3.0, -1.0, 0.0, 2.0):
            expected = stats.skewnorm.logcdf(z, shape)
            assert exposure._log_cdf(z, shape) == pytest.approx(expected, abs=1e-4)
    # Without skewness it is the normal distribution, whose log is known far out.
    assert exposure._log_cdf(-30.0, 0.0) == pytest.approx(
        stats.norm.logcdf(-30.0), rel=1e-5
    )


def test_fisher_against_scipy():
    p = [0.3, 0.02, 1.0, 0.6]
    expected = stats.combine_pvalues(p, method="fisher").pvalue
    assert exposure.fisher(p) == pytest.approx(expected)


def test_recovery_counts_positions():
    assert exposure.recovery([1, 2, 3], [1, 2, 3], 10) == (True, 1.0, 0.1, 0)
    assert exposure.recovery([1, 0, 0], [1, 2, 3], 10) == (False, 1 / 3, 0.1, 2)


def _exposures(bits):
    losses = np.arange(1024.0)
    return [exposure.exact(losses, round(1024 / 2**b) - 1) for b in bits]


def test_summary_compares_seed_by_seed():
    inserted = _exposures([10, 8, 9, 10, 7, 10])
    absent, decoy = _exposures([1, 2, 0, 1, 3, 1]), _exposures([1, 1, 1, 2, 0, 5])
    found = exposure.summarise(inserted, absent=absent, decoy=decoy)
    np.testing.assert_allclose(found.delta_absent, [9, 6, 9, 9, 4, 9], atol=0.01)
    assert found.delta_median == pytest.approx(9.0, abs=0.01)
    # Six values: smallest and largest hold the median with 1 - 2/64 = 0.969.
    assert (found.delta_lo, found.delta_hi) == pytest.approx((4.0, 9.0), abs=0.01)
    assert found.recovered == 0.5
    assert found.p_value < 1e-6
    assert found.control_p_value > 0.01
    few = exposure.summarise(inserted[:3], absent=absent[:3], decoy=decoy[:3])
    assert (few.delta_lo, few.delta_hi) == (-np.inf, np.inf)


def test_exposure_without_control_is_refused():
    some = _exposures([3, 4])
    with pytest.raises(ValueError, match="absent=None is missing, and an exposure"):
        exposure.summarise(some, absent=None, decoy=some)
    with pytest.raises(ValueError, match=r"decoy=\[\] is missing"):
        exposure.summarise(some, absent=some, decoy=[])
    with pytest.raises(ValueError, match="decoy=1 must have 2 seeds"):
        exposure.summarise(some, absent=some, decoy=some[:1])


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"losses\[1\]='nan' has no rank"):
        exposure.exact([0.0, np.nan], 0)
    with pytest.raises(ValueError, match="secret=2 must be < R = 2"):
        exposure.exact([0.0, 1.0], 2)
    with pytest.raises(ValueError, match="must be one-dimensional, >= 1000"):
        exposure.extrapolated(0.0, np.zeros(10), candidates=9)
    with pytest.raises(ValueError, match="is a spread too small"):
        exposure.extrapolated(0.0, np.ones(1000), candidates=9)
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\]"):
        exposure.fisher([0.0])


def test_an_estimated_rank_is_no_recovery_however_many_codes_there_are():
    losses = np.random.default_rng(0).normal(size=1000)
    many = 8192**5  # beyond 64 bits
    found = [exposure.estimated(-50.0, losses, candidates=many)] * 6
    other = [exposure.estimated(0.0, losses, candidates=many)] * 6
    assert found[0].bits == pytest.approx(65.0)
    assert found[0].is_estimate
    summary = exposure.summarise(found, absent=other, decoy=other)
    assert summary.recovered == 0.0
