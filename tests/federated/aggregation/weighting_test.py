"""What clients count, and the constant they are divided by."""

import numpy as np
import pytest

from trustml.federated.aggregation import weighting

N = np.array([1, 2, 3, 5, 8, 20])


def test_weights_by_their_formulas():
    p = np.array([0.1, 0.2, 0.2, 0.5, 0.5, 1.0])
    np.testing.assert_array_equal(weighting.uniform().weights(N, p), np.ones(6))
    np.testing.assert_array_equal(weighting.by_examples().weights(N, None), N)
    capped = weighting.capped(examples=4).weights(N, None)
    np.testing.assert_allclose(capped, [0.25, 0.5, 0.75, 1, 1, 1])
    inverse = weighting.inverse_probability(largest=10)
    np.testing.assert_allclose(inverse.weights(N, p), 1 / p, rtol=1e-6)
    both = weighting.inverse_probability(largest=10, examples=4).weights(N, p)
    np.testing.assert_allclose(both, capped / p, rtol=1e-6)
    for weights in (capped, both):
        assert weights.dtype == np.float32


def test_inverse_probabilities_make_the_denominator_the_population():
    p = np.array([0.1, 0.2, 0.2, 0.5, 0.5, 1.0])
    s = weighting.inverse_probability(largest=10).weights(N, p)
    assert weighting.expected_weight(s, p) == pytest.approx(6)


def test_what_is_out_of_bounds_is_refused():
    inverse = weighting.inverse_probability(largest=4)
    with pytest.raises(ValueError, match="largest=4.0 is below a weight of 10; raise"):
        inverse.weights(N, np.full(6, 0.1))
    with pytest.raises(ValueError, match="probabilities=None must be given"):
        inverse.weights(N, None)
    with pytest.raises(ValueError, match=r"probabilities=0.0 must lie in \(0, 1\]"):
        inverse.weights(N, np.array([0, 1, 1, 1, 1, 1.0]))
    with pytest.raises(ValueError, match="num_examples=-1.0 must be finite"):
        weighting.by_examples().weights(np.array([-1, 2]), None)
    with pytest.raises(ValueError, match="expected_weight=0.0 must be"):
        weighting.expected_weight(np.zeros(3), 0.5)
