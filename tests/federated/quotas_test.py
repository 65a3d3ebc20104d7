"""Rules that leave no number to chance: who is drawn, and what is claimed."""

import dp_accounting
import numpy as np
import pytest

from trustml.federated import quotas

SIZES = 1 + np.random.default_rng(4).lognormal(2.0, 1.0, 60).astype(np.int64)
SIZES[[7, 30]] = 0


def test_stratified_quotas_are_kept_in_every_round():
    selector = quotas.stratified(13, seed=0)
    state = selector.init(SIZES)
    cohorts = [selector.select(state, round)[0] for round in range(5)]
    assert [len(m) for m in state.prepared] == [5, 5] + [6] * 8
    ends = [SIZES[members] for members in state.prepared]
    for below, above in zip(ends, ends[1:], strict=False):
        assert below.max() <= above.min()
    for cohort in cohorts:
        taken = [np.isin(cohort.clients, m).sum() for m in state.prepared]
        assert taken == [1] * 7 + [2] * 3


def test_top_k_takes_the_largest_ties_by_id():
    selector = quotas.top_k(3)
    cohort, _ = selector.select(selector.init([5, 9, 5, 0, 5, 7]), 0)
    assert cohort.clients.tolist() == [0, 1, 5]


@pytest.mark.parametrize(
    "make",
    [quotas.systematic, quotas.stratified, quotas.top_k],
    ids=["systematic", "stratified", "top_k"],
)
def test_what_is_not_coins_claims_no_amplification(make):
    selector = make(12)
    claim = selector.event(selector.init(SIZES), 1.3, 40)
    gaussian = dp_accounting.GaussianDpEvent(1.3)
    assert claim.event == dp_accounting.SelfComposedDpEvent(gaussian, 40)
    assert not claim.amplified and claim.rate == 1.0


def test_a_trace_counts_how_often_a_client_occurs():
    selector = quotas.trace([[3, 1], [3], [2], []])
    state = selector.init(SIZES)
    gaussian = dp_accounting.GaussianDpEvent(1.3)
    for rounds, often in ((1, 1), (4, 2)):
        claim = selector.event(state, 1.3, rounds)
        assert claim.event == dp_accounting.SelfComposedDpEvent(gaussian, often)
    empty = quotas.trace([[]])
    assert "no client" in empty.event(empty.init(SIZES), 1.3, 1).reason


def test_a_trace_claims_the_rounds_in_which_a_client_comes_most_often():
    # Rounds 3 to 5 hear client 3 each time, and may be those that are claimed for.
    selector = quotas.trace([[0], [1], [2], [3], [3], [3]])
    state = selector.init(np.full(4, 5))
    for rounds, often in ((1, 1), (2, 2), (3, 3), (6, 3)):
        claim = selector.event(state, 1.0, rounds)
        assert claim.event.count == often
    rng = np.random.default_rng(0)
    lists = [rng.choice(6, rng.integers(0, 4), replace=False) for _ in range(20)]
    selector = quotas.trace(lists)
    state = selector.init(np.full(6, 5))
    for rounds in (1, 4, 20):
        most = max(
            np.bincount(np.concatenate(lists[at : at + rounds]).astype(int)).max()
            for at in range(21 - rounds)
            if sum(map(len, lists[at : at + rounds]))
        )
        assert selector.event(state, 1.0, rounds).event.count == most
