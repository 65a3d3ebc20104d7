"""Epsilon of error rates against the definition and Gaussian DP's own delta."""

import math

import numpy as np
import pytest
from scipy import stats

from trustml.audit import rates
from trustml.privacy import accounting


@pytest.mark.parametrize("mu", [0.05, 0.3, 1.0, 3.0, 8.0])
@pytest.mark.parametrize("delta", [1e-9, 1e-5, 1e-2])
def test_epsilon_of_gaussian_dp_inverts_its_delta(mu, delta):
    epsilon = rates.gaussian_epsilon(mu, delta)
    if epsilon == 0:
        assert accounting.gaussian_delta(0.0, mu) <= delta
    else:
        assert accounting.gaussian_delta(epsilon, mu) == pytest.approx(delta, rel=1e-6)


def test_epsilon_of_gaussian_dp_at_its_ends():
    assert rates.gaussian_epsilon(0.0, 1e-5) == 0
    assert rates.gaussian_epsilon(math.inf, 1e-5) == math.inf


@pytest.mark.parametrize("delta", [0.0, 1e-3, 0.1])
def test_epsilon_is_the_least_that_allows_the_rates(delta):
    generator = np.random.default_rng(0)
    for tpr, fpr in generator.random((200, 2)):
        found = float(rates.epsilon(tpr, fpr, delta=delta))

        def allowed(epsilon, tpr=tpr, fpr=fpr):
            grown = math.exp(epsilon)
            return tpr <= grown * fpr + delta and 1 - fpr <= grown * (1 - tpr) + delta

        assert allowed(found + 1e-9)
        assert found == 0 or not allowed(found - 1e-9)


def test_mu_is_that_of_two_normals_and_never_of_the_wrong_sign():
    cut = np.linspace(-1, 2, 7)
    tpr, fpr = stats.norm.sf(cut - 0.8), stats.norm.sf(cut)
    np.testing.assert_allclose(rates.mu(tpr, fpr), 0.8, rtol=1e-9)
    np.testing.assert_array_equal(rates.mu(fpr, tpr), 0.0)
    assert rates.mu(0.0, 1.0) == 0 and rates.epsilon(0.0, 1.0, delta=0.0) == 0
