"""Selectors: one table under one contract, their laws, their claims, their refusals."""

import dp_accounting
import numpy as np
import pytest

from trustml.federated import probabilities, quotas, selection, utility

SIZES = 1 + np.random.default_rng(4).lognormal(2.0, 1.0, 60).astype(np.int64)
SIZES[[7, 30]] = 0
SPECIAL = dp_accounting.NeighboringRelation.REPLACE_SPECIAL

TABLE = {
    "uniform": lambda seed: selection.uniform(12, seed=seed),
    "capped_power": lambda seed: selection.capped_power(12, seed=seed),
    "log": lambda seed: selection.poisson(probabilities.log(), 12, seed=seed),
    "scaled": lambda seed: selection.poisson(
        probabilities.log(), 12, p_max=0.3, scale=0.08, seed=seed
    ),
    "fixed_size": lambda seed: selection.fixed_size(12, seed=seed),
    "systematic": lambda seed: quotas.systematic(12, seed=seed),
    "stratified": lambda seed: quotas.stratified(13, seed=seed),
    "top_k": lambda seed: quotas.top_k(12),
    "cyclic": lambda seed: selection.cyclic(12, bands=4, seed=seed),
    "trace": lambda seed: quotas.trace([[3, 1], [5], []] * 100),
    "power_of_choice": lambda seed: utility.power_of_choice(
        12, candidates=30, seed=seed
    ),
    "oort": lambda seed: utility.oort(12, preferred_seconds=2.0, seed=seed),
}


def drive(selector, rounds, start=0, state=None):
    """Cohorts of consecutive rounds; clients report losses that their ids decide."""
    state = selector.init(SIZES) if state is None else state
    cohorts = []
    for round in range(start, start + rounds):
        cohort, state = selector.select(state, round)
        loss = 1.0 + np.sin(cohort.clients + round)
        state = selector.observe(state, round, cohort.clients, loss, 1.0 + loss)
        cohorts.append(cohort)
    return cohorts, state


@pytest.mark.parametrize("name", TABLE)
def test_every_selector_keeps_the_contract(name):
    selector = TABLE[name](11)
    cohorts, state = drive(selector, 8)
    for round, cohort in enumerate(cohorts):
        assert cohort.round == round and cohort.clients.dtype == np.int64
        assert np.all(np.diff(cohort.clients) > 0)
        assert cohort.inclusion.shape == cohort.clients.shape
        assert np.all((cohort.clients >= 0) & (cohort.clients < len(SIZES)))
    inclusion = selector.inclusion(state)
    if inclusion is not None and name != "cyclic":
        assert inclusion.shape == SIZES.shape and np.all(inclusion[SIZES == 0] == 0)
        for cohort in cohorts:
            np.testing.assert_allclose(cohort.inclusion, inclusion[cohort.clients])
        if name != "scaled":
            assert inclusion.sum() == pytest.approx(selector.cohort)
    assert selector.describe(state)
    # The same again, and from the middle on.
    again, _ = drive(TABLE[name](11), 8)
    assert [c.clients.tolist() for c in again] == [c.clients.tolist() for c in cohorts]
    _, half = drive(TABLE[name](11), 4)
    resumed, _ = drive(TABLE[name](11), 4, start=4, state=half)
    assert [c.clients.tolist() for c in resumed] == [
        c.clients.tolist() for c in cohorts[4:]
    ]
    if name not in ("top_k", "trace"):
        other, _ = drive(TABLE[name](12), 8)
        assert [c.clients.tolist() for c in other] != [
            c.clients.tolist() for c in cohorts
        ]


@pytest.mark.parametrize("name", ["fixed_size", "stratified", "cyclic"])
def test_observed_inclusion_is_the_declared_one(name):
    selector = TABLE[name](5)
    cohorts, state = drive(selector, 1_200)
    rounds = len(cohorts)
    counts = np.bincount(
        np.concatenate([c.clients for c in cohorts]), minlength=len(SIZES)
    )
    p = selector.inclusion(state)
    spread = np.sqrt(np.maximum(rounds * p * (1 - p), 1e-9))
    # The largest of 60 z-scores stays below 4.2 with probability 0.998.
    assert np.max(np.abs(counts - rounds * p) / np.maximum(spread, 1.0)) < 4.2


def test_cyclic_rounds_of_a_client_lie_bands_apart_also_after_resizing():
    selector = selection.cyclic(12, bands=4, seed=2)
    state = selector.init(SIZES)
    seen = {}
    for round in range(120):
        if round == 50:
            state = selector.resize(state, SIZES[::-1].copy())
        cohort, state = selector.select(state, round)
        for client in cohort.clients.tolist():
            assert round - seen.get(client, round - 4) >= 4
            assert (round - seen.get(client, round)) % 4 == 0
            seen[client] = round
    assert len(seen) > 40


def test_resizing_changes_probabilities_and_not_the_cap():
    selector = selection.capped_power(6, seed=0)
    state = selector.init(np.r_[np.ones(59, int), 0])
    grown = selector.resize(state, np.r_[np.ones(59, int), 400])
    assert selector.inclusion(state)[-1] == 0.0
    assert selector.inclusion(grown)[-1] == pytest.approx(4 * 6 / 60)
    with pytest.raises(ValueError, match="clients=3 are not the 60 there were"):
        selector.resize(state, [1, 2, 3])


# --- claims --------------------------------------------------------------------------


def poisson_event(p, z, rounds):
    gaussian = dp_accounting.GaussianDpEvent(z)
    sampled = dp_accounting.PoissonSampledDpEvent(p, gaussian)
    return dp_accounting.SelfComposedDpEvent(sampled, rounds)


def test_coins_claim_poisson_sampling_at_their_largest_probability():
    selector = selection.capped_power(12, seed=0)
    state = selector.init(SIZES)
    claim = selector.event(state, 1.3, 40)
    largest = float(selector.inclusion(state).max())
    assert claim.event == poisson_event(largest, 1.3, 40) and claim.rate == largest
    assert claim.relation is SPECIAL and "zero-out" in claim.adjacency
    assert claim.amplified


def test_a_fixed_scale_claims_its_cap_under_add_or_remove():
    selector = TABLE["scaled"](0)
    state = selector.init(SIZES[:10])
    assert selector.inclusion(state).max() < 0.3
    claim = selector.event(state, 1.3, 40)
    assert claim.event == poisson_event(0.3, 1.3, 40)
    assert claim.relation.name == "ADD_OR_REMOVE_ONE" and "add" in claim.adjacency


def test_a_fixed_size_claims_subsets_at_twice_the_sensitivity():
    selector = selection.fixed_size(12, seed=0)
    claim = selector.event(selector.init(SIZES), 1.3, 40)
    inner = dp_accounting.SampledWithoutReplacementDpEvent(
        58, 12, dp_accounting.GaussianDpEvent(0.65)
    )
    assert claim.event == dp_accounting.SelfComposedDpEvent(inner, 40)
    assert claim.relation.name == "REPLACE_ONE"


def test_cyclic_claims_coins_of_a_group_as_often_as_its_turn_comes():
    selector = selection.cyclic(12, bands=4, seed=0)
    claim = selector.event(selector.init(SIZES), 1.3, 41)
    assert claim.event == poisson_event(12 * 4 / 60, 1.3, 11)


@pytest.mark.parametrize("name", ["power_of_choice", "oort"])
def test_choices_by_loss_claim_nothing(name):
    selector = TABLE[name](0)
    refused = selector.event(selector.init(SIZES), 1.3, 40)
    assert isinstance(refused, selection.NoEvent) and "losses" in refused.reason


def test_seeds_of_the_os_are_secret_and_others_are_not():
    assert selection.uniform(3).secret and not selection.uniform(3, seed=1).secret
    assert selection.uniform(3).seed != selection.uniform(3).seed
    assert quotas.top_k(3).seed is None


@pytest.mark.parametrize(
    "make,sentence",
    [
        (
            lambda: selection.capped_power(600, p_max=0.04).init(np.ones(10_000, int)),
            "selection.cohort=600 exceeds .* = 400; raise p_max to 0.06",
        ),
        (lambda: selection.fixed_size(59).init(SIZES), "exceeds the 58 clients"),
        (lambda: quotas.top_k(59).init(SIZES), "exceeds the 58 clients"),
        (lambda: quotas.stratified(59).init(SIZES), "exceeds the 58 clients"),
        (lambda: selection.fixed_size(0), "selection.cohort=0"),
        (lambda: selection.uniform(0), "selection.cohort=0"),
        (lambda: quotas.stratified(5), "strata=10 must be at most cohort=5"),
        (lambda: selection.cyclic(20, bands=4).init(SIZES), "clients/bands = 15"),
        (lambda: selection.uniform(3).init([0, 0]), "no example at all"),
        (lambda: selection.uniform(3).init([4, -1]), r"sizes\[1\]=-1"),
        (lambda: quotas.trace([[1, 1]]), "holds a client twice"),
        (lambda: quotas.trace([]), "selection.trace=0"),
        (lambda: quotas.trace([[70]]).init(SIZES), "70 is no client"),
        (lambda: drive(quotas.trace([[1]]), 2), "round=1 is beyond the 1 rounds"),
        (
            lambda: quotas.trace([[1]]).event(quotas.trace([[1]]).init(SIZES), 1.0, 2),
            "rounds=2 exceed the trace of 1",
        ),
        (
            lambda: selection.poisson(probabilities.log(), 3, scale=0.1),
            "p_max=None must be given with scale",
        ),
        (lambda: selection.uniform(3, seed=2**128), "selection.seed"),
        (
            lambda: quotas.top_k(3).event(quotas.top_k(3).init(SIZES), 0.0, 1),
            "noise_multiplier=0.0",
        ),
        (lambda: drive(selection.uniform(3), 1, start=-1), "round=-1"),
    ],
    ids=[
        "cap",
        "fixed_size",
        "top_k",
        "stratified",
        "zero",
        "zero_coins",
        "strata",
        "cyclic",
        "nothing",
        "negative",
        "twice",
        "no_rounds",
        "no_client",
        "beyond",
        "rounds",
        "scale",
        "seed",
        "noise",
        "round",
    ],
)
def test_bad_input_is_refused_in_a_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
