"""Epsilon and delta against dp-accounting called directly, and against closed forms."""

import logging
import math

import dp_accounting
import numpy as np
import pytest
from dp_accounting import pld, rdp
from scipy import integrate, optimize, stats

from trustml.privacy import accounting

Relation = dp_accounting.NeighboringRelation
ADD, ONE, SPECIAL = (
    Relation.ADD_OR_REMOVE_ONE,
    Relation.REPLACE_ONE,
    Relation.REPLACE_SPECIAL,
)


def gaussian(z, steps):
    return dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(z), steps)


def poisson(q, z, steps):
    sampled = dp_accounting.PoissonSampledDpEvent(q, dp_accounting.GaussianDpEvent(z))
    return dp_accounting.SelfComposedDpEvent(sampled, steps)


def without_replacement(n, m, z, steps):
    sampled = dp_accounting.SampledWithoutReplacementDpEvent(
        n, m, dp_accounting.GaussianDpEvent(z)
    )
    return dp_accounting.SelfComposedDpEvent(sampled, steps)


# --- dp-accounting called directly: its own conventions, C = 1 ---------------------

STDDEV = 3.0  # with C = 1: S = 1, 1, 2 under add/remove, special, replace-one


def sensitivity(relation):
    return 2.0 if relation is ONE else 1.0


@pytest.mark.parametrize("steps", [1, 30, 1000])
@pytest.mark.parametrize("relation", [ADD, SPECIAL, ONE])
@pytest.mark.parametrize(
    "make,stddev", [(gaussian, 40.0), (lambda z, t: poisson(0.02, z, t), STDDEV)]
)
def test_pld_equals_dp_accounting(make, stddev, relation, steps):
    ours = make(stddev / sensitivity(relation), steps)
    theirs = pld.PLDAccountant(relation).compose(make(stddev / 1.0, steps))
    for delta in (1e-7, 1e-3):
        found = accounting.epsilon(ours, delta, relation)
        assert found == pytest.approx(theirs.get_epsilon(delta), rel=1e-6, abs=1e-9)
    found = accounting.delta(ours, 0.3, relation)
    assert found == pytest.approx(theirs.get_delta(0.3), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("steps", [1, 1000])
@pytest.mark.parametrize(
    "relation,make",
    [
        (ADD, lambda z, t: poisson(0.02, z, t)),
        (SPECIAL, lambda z, t: poisson(0.02, z, t)),
        (ONE, lambda z, t: without_replacement(1000, 20, z, t)),
        (ADD, gaussian),
        (SPECIAL, gaussian),
        (ONE, gaussian),
    ],
)
def test_rdp_equals_dp_accounting(make, relation, steps):
    event = make(STDDEV / sensitivity(relation), steps)
    theirs = rdp.RdpAccountant(neighboring_relation=relation).compose(event)
    found = accounting.epsilon(event, 1e-5, relation, "rdp")
    assert found == pytest.approx(theirs.get_epsilon(1e-5), rel=1e-6)
    found = accounting.delta(event, 1.0, relation, "rdp")
    assert found == pytest.approx(theirs.get_delta(1.0), rel=1e-6)


def test_a_noise_schedule_equals_dp_accounting():
    blocks = [poisson(0.02, z, 20) for z in (1.5, 2.0)] + [gaussian(9.0, 2)]
    event = dp_accounting.ComposedDpEvent(blocks)
    for name, theirs in (("pld", pld.PLDAccountant(ADD)), ("rdp", rdp.RdpAccountant())):
        found = accounting.epsilon(event, 1e-5, ADD, name)
        expected = theirs.compose(event).get_epsilon(1e-5)
        assert found == pytest.approx(expected, rel=1e-6)


# --- closed forms ------------------------------------------------------------------


@pytest.mark.parametrize("relation", [ADD, SPECIAL, ONE])
@pytest.mark.parametrize("steps", [1, 16, 100])
def test_plain_releases_cost_gaussian_dp_by_either_accountant(relation, steps):
    # The trap of dp-accounting 0.6.0: one of its accountants doubles the sensitivity
    # under REPLACE_ONE, the other does not. A slip is a factor of 2 in mu.
    clip, stddev, delta = 1.7, 20.0, 1e-5
    mu = math.sqrt(steps) * sensitivity(relation) * clip / stddev
    exact = optimize.brentq(
        lambda e: accounting.gaussian_delta(e, mu) - delta, 1e-6, 100
    )
    event = gaussian(stddev / (sensitivity(relation) * clip), steps)
    by_pld = accounting.epsilon(event, delta, relation, "pld")
    assert exact <= by_pld * (1 + 1e-9) and by_pld == pytest.approx(exact, rel=1e-3)
    by_rdp = accounting.epsilon(event, delta, relation, "rdp")
    assert exact < by_rdp < 1.25 * exact
    orders = rdp.RdpAccountant([8.0]).compose(
        dp_accounting.GaussianDpEvent(1 / mu)
    )  # alpha mu^2 / 2 and nothing else
    same = rdp.RdpAccountant([8.0], relation).compose(event)
    assert same.get_epsilon(delta) == pytest.approx(orders.get_epsilon(delta), rel=1e-9)


def test_gaussian_delta_is_the_integral():
    for epsilon, mu in ((0.1, 0.5), (1.0, 1.0), (3.0, 0.4), (0.0, 2.0)):
        integral, _ = integrate.quad(
            lambda x, e=epsilon, m=mu: max(
                stats.norm.pdf(x, m) - math.exp(e) * stats.norm.pdf(x), 0.0
            ),
            epsilon / mu + mu / 2,
            20,
        )
        found = accounting.gaussian_delta(epsilon, mu)
        assert found == pytest.approx(integral, rel=1e-6)


# --- truncated Poisson sampling ----------------------------------------------------


def truncated(n, q, cap, z, steps):
    event = dp_accounting.TruncatedSubsampledGaussianDpEvent(n, q, cap, z)
    return dp_accounting.SelfComposedDpEvent(event, steps)


@pytest.mark.parametrize("relation", [ADD, SPECIAL, ONE])
@pytest.mark.parametrize("cap", [20, 30, 60])
@pytest.mark.parametrize("steps", [1, 200])
def test_truncated_sampling_equals_dp_accounting(relation, cap, steps):
    ours = truncated(1000, 0.02, cap, STDDEV / sensitivity(relation), steps)
    theirs = pld.PLDAccountant(relation).compose(
        truncated(1000, 0.02, cap, STDDEV / 1.0, steps)
    )
    found = accounting.epsilon(ours, 1e-6, relation)
    assert found == pytest.approx(theirs.get_epsilon(1e-6), rel=1e-6)
    found = accounting.delta(ours, 0.3, relation)
    assert found == pytest.approx(theirs.get_delta(0.3), rel=1e-6, abs=1e-12)


def test_a_cap_far_above_the_mean_costs_next_to_nothing_and_one_at_it_much():
    plain = accounting.epsilon(poisson(0.02, 1.5, 200), 1e-5, SPECIAL)
    cap = 400 + 6 * 20
    far = accounting.epsilon(truncated(20_000, 0.02, cap, 1.5, 200), 1e-5, SPECIAL)
    near = accounting.epsilon(truncated(20_000, 0.02, 400, 1.5, 200), 1e-5, SPECIAL)
    assert plain <= far < 1.001 * plain and near > 1.3 * plain


def mixture_delta(epsilon, z, left, right):
    """H_e(P || Q) of mixtures {mean: probability} of N(mean, z^2), by quadrature."""
    x = np.linspace(-9 * z - 1, 9 * z + 1, 20_001)

    def density(mixture):
        return sum(p * stats.norm.pdf(x, mean, z) for mean, p in mixture.items())

    above = density(left) - math.exp(epsilon) * density(right)
    return np.trapezoid(np.maximum(above, 0.0), x)


def two_records(first, second, q):
    """Law of the sum of a sample of at most one of two records."""
    alone = q * (1 - q) + q * q / 2
    sums = {0.0: (1 - q) ** 2}
    for value in (first, second):
        sums[value] = sums.get(value, 0.0) + alone
    return sums


@pytest.mark.parametrize("q,z", [(0.5, 2.5), (0.9, 2.0)])
def test_truncated_sampling_of_two_records_is_bounded(q, z):
    # Cap 1: a record in the sample shuts the other out. By hand, for records 1, -1, 0.
    for relation, worse in ((SPECIAL, 0.0), (ONE, -1.0)):
        event = truncated(2, q, 1, z / sensitivity(relation), 1)
        for epsilon in (0.05, 0.2, 0.5):
            bound = accounting.delta(event, epsilon, relation)
            attacks = [
                mixture_delta(epsilon, z, *pair)
                for other in (1.0, 0.0, -1.0)
                for pair in (
                    (two_records(1.0, other, q), two_records(worse, other, q)),
                    (two_records(worse, other, q), two_records(1.0, other, q)),
                )
            ]
            assert max(attacks) <= bound * (1 + 1e-6)
            assert bound < 12 * max(attacks)


# --- without replacement: the bound of our own -------------------------------------


def one_step_profile(epsilon, z, q):
    """H_e((1-q) N(0, z^2) + q N(1, z^2) || N(0, z^2)) at any epsilon, by its CDFs."""
    if epsilon < 0:
        # The reverse pair: all other records at the opposite end of the ball.
        return (
            1 - math.exp(epsilon) + math.exp(epsilon) * one_step_profile(-epsilon, z, q)
        )
    x = z * z * math.log((math.exp(epsilon) - 1 + q) / q) + 0.5
    below, shifted = stats.norm.sf(x / z), stats.norm.sf((x - 1) / z)
    return (1 - q) * below + q * shifted - math.exp(epsilon) * below


@pytest.mark.parametrize("q,z", [(0.5, 1.0), (0.1, 0.7)])
def test_two_adaptive_steps_without_replacement_are_bounded(q, z):
    # A real attack: after the first release the adversary knows its loss L and places
    # the other records, in the second step, on whichever side is worse for epsilon - L.
    def attack(epsilon):
        def integrand(x):
            ratio = 1 - q + q * math.exp((2 * x - 1) / (2 * z * z))
            density = stats.norm.pdf(x / z) / z * ratio
            return density * one_step_profile(epsilon - math.log(ratio), z, q)

        return integrate.quad(integrand, -9 * z, 1 + 9 * z, epsabs=1e-9, limit=500)[0]

    event = without_replacement(1000, round(1000 * q), z, 2)
    shortcut = pld.PLDAccountant(ADD).compose(poisson(q, z, 2))
    for epsilon in (0.3, 0.8):
        delta = attack(epsilon)
        ours = accounting.delta(event, epsilon, ONE)
        assert shortcut.get_delta(epsilon) < 0.995 * delta, "the shortcut is too small"
        assert delta <= ours * (1 + 1e-6)
        assert ours < 1.3 * delta


@pytest.mark.parametrize("delta", [1e-6, 1e-2])
def test_one_step_without_replacement_is_the_poisson_reduction(delta):
    event = without_replacement(1000, 100, 0.8, 1)
    reduction = pld.PLDAccountant(ADD).compose(poisson(0.1, 0.8, 1))
    found = accounting.epsilon(event, delta, ONE)
    assert found == pytest.approx(reduction.get_epsilon(delta), rel=1e-6)


def test_without_replacement_lies_between_the_reduction_and_rdp():
    event = without_replacement(10_000, 100, 1.0, 1000)
    reduction = pld.PLDAccountant(ADD).compose(poisson(0.01, 1.0, 1000))
    by_pld = accounting.epsilon(event, 1e-5, ONE)
    assert reduction.get_epsilon(1e-5) < by_pld
    assert by_pld < accounting.epsilon(event, 1e-5, ONE, "rdp")
    assert by_pld == pytest.approx(2.199, abs=1e-3)  # the figure of the docstring


def test_taking_all_examples_without_replacement_is_a_plain_release():
    whole = accounting.epsilon(without_replacement(50, 50, 5.0, 9), 1e-5, ONE)
    assert whole == accounting.epsilon(gaussian(5.0, 9), 1e-5, ONE)
    assert accounting.epsilon(poisson(1.0, 5.0, 9), 1e-5, ADD) == (
        accounting.epsilon(gaussian(5.0, 9), 1e-5, ADD)
    )


def test_our_profile_is_a_distribution():
    step = accounting._without_replacement(0.8, 0.05, 1e-4)
    pmf = step._pmf_remove.to_dense_pmf()
    assert pmf._probs.sum() + pmf._infinity_mass == pytest.approx(1, abs=1e-6)
    for epsilon in (-0.5, -0.01, 0.0, 0.2, 2.0):
        expected = one_step_profile(epsilon, 0.8, 0.05)
        found = step.get_delta_for_epsilon(epsilon)
        assert expected <= found * (1 + 1e-9) and found == pytest.approx(expected, 1e-3)


# --- behaviour ---------------------------------------------------------------------


def test_rdp_has_no_truncated_sampling():
    with pytest.raises(ValueError, match="'rdp' cannot answer: the RDP .* truncated"):
        accounting.epsilon(truncated(100, 0.1, 20, 1.0, 1), 1e-5, ONE, "rdp")


def test_epsilon_and_delta_invert_each_other():
    event = poisson(0.02, 1.0, 100)
    for name in ("pld", "rdp"):
        epsilon = accounting.epsilon(event, 1e-5, ADD, name)
        found = accounting.delta(event, epsilon, ADD, name)
        assert found == pytest.approx(1e-5, rel=1e-3)


def test_epsilon_grows_with_steps_and_falls_with_noise_and_delta():
    def of(q=0.02, z=2.0, steps=100, delta=1e-5):
        return accounting.epsilon(poisson(q, z, steps), delta, ADD)

    base = of()
    assert of(steps=101) > base > of(z=2.01) and of(q=0.021) > base > of(delta=2e-5)


def test_hardly_any_noise_is_answered_in_bounded_time_and_memory():
    # Thousands of units of loss: the grid is widened, the answer stays an upper bound.
    event = poisson(0.5, 0.02, 1000)
    assert accounting._grid(event, ADD) > 100 * accounting.DISCRETIZATION
    found = accounting.epsilon(event, 1e-5, ADD)
    assert found > 1e5 or math.isinf(found)
    mu = 1 / 0.02
    exact = optimize.brentq(lambda e: accounting.gaussian_delta(e, mu) - 1e-5, 1, 1e4)
    found = accounting.epsilon(gaussian(0.02, 1), 1e-5, ADD)
    assert exact <= found * (1 + 1e-9) and found == pytest.approx(exact, rel=1e-3)


def test_usual_events_use_the_documented_grid():
    for event in (poisson(0.01, 0.5, 1000), gaussian(1.0, 20), poisson(0.5, 5.0, 1000)):
        assert accounting._grid(event, ADD) == accounting.DISCRETIZATION


def test_order_of_composition_is_kept_and_equal_parts_are_merged():
    one, two = gaussian(1.0, 3), poisson(0.1, 2.0, 4)
    event = dp_accounting.ComposedDpEvent([one, two, one])
    assert accounting.describe(event) == (
        "6 x GaussianDpEvent(noise_multiplier=1.0) + 4 x PoissonSampledDpEvent("
        "sampling_probability=0.1, event=GaussianDpEvent(noise_multiplier=2.0))"
    )


def test_rough_epsilon_is_near_rdp():
    event = poisson(0.01, 1.0, 1000)
    near = accounting.epsilon(event, 1e-5, ADD, "rdp")
    assert accounting.rough_epsilon(event, 1e-5, ADD) == pytest.approx(near, rel=0.05)
    for z in (0.3, 1.0, 5.0):
        event = poisson(0.01, z, 1000)
        near = accounting.epsilon(event, 1e-5, ONE)
        rough = accounting.rough_epsilon(event, 1e-5, ONE)
        assert 0.6 * near < rough < 1.6 * near


def test_dp_accountings_word_on_left_out_orders_is_not_passed_on(caplog):
    with caplog.at_level(logging.WARNING, logger="absl"):
        accounting.epsilon(poisson(0.0234, 0.579845, 1), 1e-5, ADD, "rdp")
        assert not caplog.records
        logging.getLogger("absl").warning("something else")
    assert [record.message for record in caplog.records] == ["something else"]


def test_relations_have_names_and_no_default():
    assert accounting.relation("Replace_One") is ONE
    assert accounting.relation(ADD) is ADD
    with pytest.raises(ValueError, match="replace_on.*did you mean 'replace_one'"):
        accounting.relation("replace_on")


@pytest.mark.parametrize(
    "event,relation,name,sentence",
    [
        (poisson(0.1, 1.0, 2), ONE, "rdp", "accountant='rdp' .*use accountant='pld'"),
        (without_replacement(9, 3, 1.0, 2), ADD, "pld", "under REPLACE_ONE only"),
        (without_replacement(9, 3, 1.0, 2), SPECIAL, "rdp", "under REPLACE_ONE only"),
        (gaussian(0.0, 2), ADD, "pld", "noise_multiplier=0.0 gives epsilon=inf"),
        (gaussian(1.0, 2), ADD, "pdl", "accountant='pdl' .*did you mean 'pld'"),
        (dp_accounting.LaplaceDpEvent(1.0), ADD, "pld", "not a composition of"),
        (dp_accounting.ComposedDpEvent([]), ADD, "pld", "releases nothing"),
    ],
)
def test_what_has_no_answer_is_refused(event, relation, name, sentence):
    with pytest.raises(ValueError, match=sentence):
        accounting.epsilon(event, 1e-5, relation, name)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, 2.0, float("nan")])
def test_delta_outside_its_interval_is_refused(delta):
    with pytest.raises(ValueError, match="privacy.delta=.* strictly between 0 and 1"):
        accounting.epsilon(gaussian(1.0, 1), delta, ADD)
    with pytest.raises(ValueError, match="epsilon=-1.0 must be"):
        accounting.delta(gaussian(1.0, 1), -1.0, ADD)
    assert np.isfinite(accounting.delta(gaussian(1.0, 1), 0.0, ADD))
