"""Users' epsilon against dp-accounting, classes against all of them, refusals."""

import dp_accounting
import numpy as np
import pytest
from dp_accounting import pld, rdp

from trustml.federated import probabilities, selection, user_privacy

SPECIAL = dp_accounting.NeighboringRelation.REPLACE_SPECIAL
SIZES = 1 + np.random.default_rng(0).lognormal(2.0, 1.0, 400).astype(np.int64)


def oracle(p, z, rounds, delta, relation=SPECIAL):
    accountant = pld.PLDAccountant(neighboring_relation=relation)
    gaussian = dp_accounting.GaussianDpEvent(z)
    event = dp_accounting.PoissonSampledDpEvent(p, gaussian)
    accountant.compose(event, rounds)
    return accountant.get_epsilon(delta)


@pytest.mark.parametrize(
    "p,z,rounds,epsilon",
    [(0.01, 1.0, 500, 1.580), (0.04, 1.0, 500, 6.673), (0.002, 0.8, 1500, 1.011)],
    ids=["1%", "4%", "0.2%"],
)
def test_epsilon_is_that_of_the_design(p, z, rounds, epsilon):
    selector = selection.uniform(p * 1000, seed=0)
    claim = selector.event(selector.init(np.ones(1000, int)), z, rounds)
    found = user_privacy.account(claim, delta=1e-6)
    assert found.epsilon_as_run == pytest.approx(epsilon, abs=5e-4)
    assert found.rate == pytest.approx(p) and "zero-out" in found.adjacency


def test_epsilon_is_dp_accountings_at_the_largest_inclusion():
    selector = selection.capped_power(8, seed=0)
    state = selector.init(SIZES)
    largest = float(selector.inclusion(state).max())
    assert largest == 4 * 8 / 400  # the cap binds
    found = user_privacy.account(selector.event(state, 1.1, 50), delta=1e-5)
    assert found.epsilon_as_run == pytest.approx(
        oracle(largest, 1.1, 50, 1e-5), abs=1e-6
    )
    add = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
    expected = oracle(largest, 1.1, 50, 1e-5, add)
    assert found.epsilon_as_run == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
def test_epsilon_over_a_grid_of_rates_noise_and_rounds():
    grid = [
        (p, z, rounds)
        for p in (0.001, 0.01, 0.03, 0.1)
        for z, rounds in ((0.7, 50), (1.0, 100), (1.0, 1000), (2.0, 300), (4.0, 2000))
    ]
    assert len(grid) == 20
    for p, z, rounds in grid:
        found = user_privacy.worst_class([p], [1.0], z, rounds, delta=1e-6)
        assert found.epsilon == pytest.approx(oracle(p, z, rounds, 1e-6), rel=1e-3)


def test_inverse_weights_make_the_seldom_client_decide():
    p = np.array([0.005, 0.01, 0.04])
    found = user_privacy.worst_class(p, 1 / p, 1.0, 500, delta=1e-6, tolerance=0.0)
    assert found.epsilon == pytest.approx(0.783, abs=5e-4) and found.exact
    assert found.inclusion == 0.005 and found.weight == 200.0
    for rate, expected in ((0.01, 0.505), (0.04, 0.454)):
        alone = oracle(rate, 200.0 * rate, 500, 1e-6)
        assert alone == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize("power", [0.0, 0.5], ids=["flat", "root"])
def test_the_worst_class_is_the_maximum_over_all_classes(power):
    p = np.geomspace(0.01, 0.5, 8)
    s = p**-power
    every = []
    for rate, weight in zip(p, s, strict=True):
        accountant = rdp.RdpAccountant(neighboring_relation=SPECIAL)
        gaussian = dp_accounting.GaussianDpEvent(2.0 * s.max() / weight)
        event = dp_accounting.PoissonSampledDpEvent(rate, gaussian)
        every.append(accountant.compose(event, 20).get_epsilon(1e-5))
    order = np.random.default_rng(0).permutation(8)
    # Clients that others exceed, that are never drawn or never count, change nothing.
    rates = np.concatenate([p[order], [0.002, 0.0, 0.9]])
    weights = np.concatenate([s[order], [s.min() / 2, 99.0, 0.0]])

    def worst(tolerance):
        return user_privacy.worst_class(
            rates, weights, 2.0, 20, delta=1e-5, accountant="rdp", tolerance=tolerance
        )

    found, loose = worst(0.0), worst(0.1)
    assert found.epsilon == pytest.approx(max(every), abs=1e-6) and found.exact
    assert found.inclusion == pytest.approx(p[int(np.argmax(every))])
    assert max(every) - 1e-9 <= loose.epsilon <= 1.1 * max(every)
    assert loose.evaluations <= found.evaluations <= 16


def test_rounds_that_differ_are_composed_each_at_its_own_probability():
    selector = selection.poisson(probabilities.power(1.0), 8, seed=0)
    early, late = selector.init(np.ones(400, int)), selector.init(SIZES)
    claims = [selector.event(early, 3.0, 10), selector.event(late, 3.0, 10)]
    found = user_privacy.account(user_privacy.compose(claims), delta=1e-5)
    accountant = pld.PLDAccountant(neighboring_relation=SPECIAL)
    for p in (0.02, float(selector.inclusion(late).max())):
        gaussian = dp_accounting.GaussianDpEvent(3.0)
        accountant.compose(dp_accounting.PoissonSampledDpEvent(p, gaussian), 10)
    assert found.epsilon_as_run == pytest.approx(accountant.get_epsilon(1e-5), abs=1e-6)
    fixed = selection.fixed_size(8, seed=0)
    other = fixed.event(fixed.init(SIZES), 1.0, 30)
    with pytest.raises(ValueError, match="use one selector throughout"):
        user_privacy.compose([claims[0], other])
    refused = selection.NoEvent("because")
    assert user_privacy.compose([claims[0], refused]) is refused
    with pytest.raises(ValueError, match="claims=0 are composed"):
        user_privacy.compose([])


def test_a_fixed_size_is_bounded_from_above_under_replacement():
    selector = selection.fixed_size(8, seed=0)
    claim = selector.event(selector.init(SIZES), 2.0, 50)
    found = user_privacy.account(claim, delta=1e-5)
    assert "replace-one" in found.adjacency
    # Zero-out by coins of the same rate is what it covers, with room to spare.
    assert found.epsilon_as_run > oracle(8 / 400, 2.0, 50, 1e-5)
    # Without sampling, the whole sensitivity of 2 C in every round.
    everyone = oracle(1.0, 1.0, 50, 1e-5)
    assert found.epsilon_as_run < everyone


def test_no_claim_is_no_finite_epsilon():
    refused = selection.NoEvent("the choice depends on losses")
    found = user_privacy.account(refused, delta=1e-5)
    assert found.epsilon_as_run == np.inf and found.event is None
    assert "No promise to users: the choice" in user_privacy.explain(found)


def test_absence_lowers_nothing_unless_it_is_filled_up_or_tells_of_data():
    selector = selection.uniform(8, seed=0)
    claim = selector.event(selector.init(SIZES), 2.0, 50)

    def after(**how):
        return user_privacy.after_availability(
            claim, noise_multiplier=2.0, rounds=50, **how
        )

    assert after(by_data=False, fills_up=False) is claim
    filled = after(by_data=False, fills_up=True)
    gaussian = dp_accounting.GaussianDpEvent(2.0)
    assert filled.event == dp_accounting.SelfComposedDpEvent(gaussian, 50)
    assert not filled.amplified
    assert "silence" in after(by_data=True, fills_up=False).reason


def test_calibration_keeps_the_promise_and_refuses_what_has_none():
    selector = selection.capped_power(8, seed=0)
    state = selector.init(SIZES)
    z = user_privacy.calibrate(selector, state, epsilon=1.0, delta=1e-5, rounds=5)
    claim = selector.event(state, z, 5)
    found = user_privacy.account(claim, delta=1e-5).epsilon_as_run
    assert 0.999 <= found <= 1.0
    blank = selection.trace([[]])
    with pytest.raises(ValueError, match="has no guarantee: the trace holds no client"):
        user_privacy.calibrate(
            blank, blank.init(SIZES), epsilon=2.0, delta=1e-5, rounds=1
        )


def test_what_if_is_named_so_and_agrees_with_the_run_it_supposes():
    kept = {"inclusion": 0.08, "clients": 400, "cohort": 8.0, "delta": 1e-6}
    same = user_privacy.extrapolate(
        3.0, 30, population=400, supposed_cohort=8.0, **kept
    )
    assert same.epsilon_extrapolated == pytest.approx(oracle(0.08, 3.0, 30, 1e-6))
    larger = user_privacy.extrapolate(
        0.3, 30, population=40_000, supposed_cohort=80.0, **kept
    )
    assert larger.noise_multiplier == pytest.approx(3.0)
    assert larger.rate == pytest.approx(0.008)
    expected = oracle(0.008, 3.0, 30, 1e-6)
    assert larger.epsilon_extrapolated == pytest.approx(expected, rel=1e-6)
    claim = selection.NoEvent("x")
    text = user_privacy.explain(user_privacy.account(claim, delta=1e-6), larger)
    assert "What if, not of this run" in text and "40000 clients" in text
    with pytest.raises(
        ValueError, match="extrapolate.cohort=200.0 gives .* at most 100"
    ):
        user_privacy.extrapolate(1.0, 1, population=400, supposed_cohort=200.0, **kept)


@pytest.mark.parametrize(
    "make,sentence",
    [
        (
            lambda: user_privacy.worst_class([1.1], [1.0], 1.0, 1, delta=1e-5),
            "inclusion=1.1 must lie between 0 and 1",
        ),
        (
            lambda: user_privacy.worst_class([0.1], [-1.0], 1.0, 1, delta=1e-5),
            "weights=-1.0 must be a finite number >= 0",
        ),
        (
            lambda: user_privacy.worst_class([0.1], [0.0], 1.0, 1, delta=1e-5),
            "weights=0.0 are zero for all clients",
        ),
        (
            lambda: user_privacy.worst_class([0.1, 0.2], [1.0], 1.0, 1, delta=1e-5),
            "one for each of the 2 clients",
        ),
        (
            lambda: user_privacy.account(selection.NoEvent(""), delta=0.0),
            "privacy.delta=0.0",
        ),
    ],
    ids=["inclusion", "negative", "zero", "lengths", "delta"],
)
def test_bad_input_is_refused_in_a_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
