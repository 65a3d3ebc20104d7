"""Users' epsilon against dp-accounting, classes against all of them, refusals."""

import dp_accounting
import numpy as np
import pytest
from dp_accounting import pld

from trustml.federated import (
    probabilities,
    quotas,
    selection,
    user_privacy,
    weighting,
)
from trustml.federated.aggregation import link

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
    blank = quotas.trace([[]])
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


def test_a_delta_of_zero_is_refused():
    with pytest.raises(ValueError, match="privacy.delta=0.0"):
        user_privacy.account(selection.NoEvent(""), delta=0.0)


def sized_coins(seed=0):
    return selection.poisson(probabilities.log(), 12, p_max=0.3, scale=0.08, seed=seed)


def test_private_sizes_are_claimed_only_where_nothing_else_knows_them():
    # Removing a client rescales the weights of data shares: zero-out alone is left.
    sizes = np.arange(1, 61)
    selector = sized_coins()
    state = selector.init(sizes)
    p = selector.inclusion(state)
    rules = {
        "fixed": weighting.mean(12.0),
        "shares": weighting.horvitz_thompson(weighting.data_share(sizes), p),
        "capped": weighting.capped_data(20.0, sizes, p),
    }
    release = link.Release("gaussian", 2.0, 1.0)
    for name, rule in rules.items():
        claim = user_privacy.of_release(selector, state, release, 5, fixed=rule.fixed)
        wanted = selection.ADD_REMOVE if name == "fixed" else selection.ZERO_OUT
        assert claim.adjacency == wanted
        found = user_privacy.account(claim, delta=1e-3)
        assert found.relation == claim.relation and np.isfinite(found.epsilon_as_run)
    one = sizes[:-1]
    fewer = weighting.data_share(one)[0] - weighting.data_share(sizes)[0]
    assert fewer > 0  # what the claim would have missed


def test_discrete_noise_is_accounted_by_rdp():
    selector = sized_coins()
    state = selector.init(np.arange(1, 61))
    release = link.Release("discrete", 1.0, 1.0)
    claim = user_privacy.of_release(selector, state, release, 10)
    rdp = user_privacy.account(claim, delta=1e-3, accountant="rdp").epsilon_as_run
    gaussian = user_privacy.of_release(
        selector, state, release._replace(kind="gaussian"), 10
    )
    tight = user_privacy.account(gaussian, delta=1e-3).epsilon_as_run
    assert rdp > 1.02 * tight
    with pytest.raises(ValueError, match="rdp"):
        user_privacy.account(claim, delta=1e-3)


def test_discrete_noise_stays_discrete_where_others_fill_up():
    selector = sized_coins()
    state = selector.init(np.arange(1, 61))
    release = link.Release("discrete", 1.0, 1.0)
    claim = user_privacy.of_release(selector, state, release, 10)
    after = user_privacy.after_availability(
        claim, by_data=False, fills_up=True, noise_multiplier=1.0, rounds=10
    )
    assert after.event.event == claim.event.event.event  # without its coins
    with pytest.raises(ValueError, match="rdp"):
        user_privacy.account(after, delta=1e-3)


def test_discrete_noise_asks_for_coins_by_the_selectors_name():
    selector = selection.fixed_size(5, seed=0)
    release = link.Release("discrete", 1.0, 1.0)
    state = selector.init(np.ones(20, int))
    with pytest.raises(ValueError, match="selection='fixed_size' has no bound with"):
        user_privacy.of_release(selector, state, release, 10)
