"""The client that decides, against dp-accounting for every one of them."""

import dp_accounting
import numpy as np
import pytest
from dp_accounting import pld, rdp

from trustml.federated import user_classes

SPECIAL = dp_accounting.NeighboringRelation.REPLACE_SPECIAL


def oracle(p, z, rounds, delta, relation=SPECIAL):
    accountant = pld.PLDAccountant(neighboring_relation=relation)
    gaussian = dp_accounting.GaussianDpEvent(z)
    event = dp_accounting.PoissonSampledDpEvent(p, gaussian)
    accountant.compose(event, rounds)
    return accountant.get_epsilon(delta)


@pytest.mark.slow
def test_epsilon_over_a_grid_of_rates_noise_and_rounds():
    grid = [
        (p, z, rounds)
        for p in (0.001, 0.01, 0.03, 0.1)
        for z, rounds in ((0.7, 50), (1.0, 100), (1.0, 1000), (2.0, 300), (4.0, 2000))
    ]
    assert len(grid) == 20
    for p, z, rounds in grid:
        found = user_classes.worst([p], [1.0], z, rounds, delta=1e-6)
        assert found.epsilon == pytest.approx(oracle(p, z, rounds, 1e-6), rel=1e-3)


def test_inverse_weights_make_the_seldom_client_decide():
    p = np.array([0.005, 0.01, 0.04])
    found = user_classes.worst(p, 1 / p, 1.0, 500, delta=1e-6, tolerance=0.0)
    assert found.epsilon == pytest.approx(0.783, abs=5e-4) and found.exact
    assert found.inclusion == 0.005 and found.weight == 200.0
    for rate, expected in ((0.01, 0.505), (0.04, 0.454)):
        alone = oracle(rate, 200.0 * rate, 500, 1e-6)
        assert alone == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize("power", [0.0, 0.5], ids=["flat", "root"])
def test_the_worst_class_is_the_maximum_over_all_classes(power):
    p = np.geomspace(0.01, 0.5, 5)
    s = p**-power
    every = []
    for rate, weight in zip(p, s, strict=True):
        accountant = rdp.RdpAccountant(neighboring_relation=SPECIAL)
        gaussian = dp_accounting.GaussianDpEvent(2.0 * s.max() / weight)
        event = dp_accounting.PoissonSampledDpEvent(rate, gaussian)
        every.append(accountant.compose(event, 20).get_epsilon(1e-5))
    order = np.random.default_rng(0).permutation(5)
    # Clients that others exceed, that are never drawn or never count, change nothing.
    rates = np.concatenate([p[order], [0.002, 0.0, 0.9]])
    weights = np.concatenate([s[order], [s.min() / 2, 99.0, 0.0]])

    def worst(tolerance):
        return user_classes.worst(
            rates, weights, 2.0, 20, delta=1e-5, accountant="rdp", tolerance=tolerance
        )

    found, loose = worst(0.0), worst(0.1)
    assert found.epsilon == pytest.approx(max(every), abs=1e-6) and found.exact
    assert found.inclusion == pytest.approx(p[int(np.argmax(every))])
    assert max(every) - 1e-9 <= loose.epsilon <= 1.1 * max(every)
    assert loose.evaluations <= found.evaluations <= 10


@pytest.mark.parametrize(
    "p,s,sentence",
    [
        ([1.1], [1.0], "inclusion=1.1 must lie between 0 and 1"),
        ([0.1], [-1.0], "weights=-1.0 must be a finite number >= 0"),
        ([0.1], [0.0], "weights=0.0 are zero for all clients"),
        ([0.1, 0.2], [1.0], "one for each of the 2 clients"),
    ],
    ids=["inclusion", "negative", "zero", "lengths"],
)
def test_bad_input_is_refused_in_a_sentence(p, s, sentence):
    with pytest.raises(ValueError, match=sentence):
        user_classes.worst(p, s, 1.0, 1, delta=1e-5)
