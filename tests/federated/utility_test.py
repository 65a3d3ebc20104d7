"""Loss-based rules against their formulas, and what reports do to the state."""

import math

import numpy as np
import pytest

from trustml.federated import utility

SIZES = np.array([10, 20, 5, 40, 0, 8, 16, 30])


def reported(selector, loss, seconds=None, round=0):
    state = selector.init(SIZES)
    clients = np.flatnonzero(np.isfinite(loss))
    seconds = np.ones(len(SIZES)) if seconds is None else np.asarray(seconds)
    return selector.observe(
        state, round, clients, np.asarray(loss)[clients], seconds[clients]
    )


def test_power_of_choice_takes_the_unseen_and_then_the_highest_losses():
    loss = [0.5, np.nan, 3.0, 0.1, np.nan, 2.0, 0.7, 0.2]
    selector = utility.power_of_choice(3, candidates=7, seed=0)
    cohort, _ = selector.select(reported(selector, loss), 1)
    assert cohort.clients.tolist() == [1, 2, 5]
    assert np.isnan(cohort.inclusion).all()


def test_power_of_choice_draws_candidates_by_size():
    # One candidate, one place: the chance is n over the sum.
    selector = utility.power_of_choice(1, candidates=1, seed=3)
    state, counts, rounds = selector.init(SIZES), np.zeros(len(SIZES)), 2_000
    for round in range(rounds):
        counts[selector.select(state, round)[0].clients] += 1
    p = SIZES / SIZES.sum()
    # Eight z-scores at a fixed seed, each within 4 standard deviations.
    assert np.all(np.abs(counts - rounds * p) <= 4 * np.sqrt(rounds * p * (1 - p)))


def test_oort_scores_are_those_of_a_loop():
    selector = utility.oort(3, preferred_seconds=2.0, seed=0)
    loss = np.array([0.5, 1.0, 3.0, 0.1, np.nan, 2.0, 0.7, 0.2])
    seconds = np.array([1.0, 4.0, 2.0, 8.0, 1.0, 1.0, 3.0, 1.0])
    state = reported(selector, loss, seconds, round=4)
    clients = np.flatnonzero(np.isfinite(loss))
    found = utility.score(state.observed, SIZES, clients, 9, 2.0, 2.0)
    use = [SIZES[k] * loss[k] for k in clients]
    cut = sorted(use)[int(0.95 * (len(use) - 1))]
    use = [min(u, cut) for u in use]
    for place, k in enumerate(clients):
        expected = (use[place] - min(use)) / (max(use) - min(use))
        expected += math.sqrt(0.1 * math.log(10) / 5)
        if seconds[k] > 2.0:
            expected *= (2.0 / seconds[k]) ** 2
        assert found[place] == pytest.approx(expected, rel=1e-6)


def test_oort_explores_first_and_exploits_later():
    selector = utility.oort(4, seed=1)
    cohort, _ = selector.select(selector.init(SIZES), 0)
    assert len(cohort.clients) == 4 and 4 not in cohort.clients
    # All seen: the best by a margin is nearly always there, the worst hardly ever.
    loss = np.array([0.1, 0.1, 0.1, 50.0, np.nan, 0.1, 0.1, 0.1])
    state = reported(selector, loss)
    drawn = [selector.select(state, r)[0].clients for r in range(200, 260)]
    assert all(len(clients) == 4 for clients in drawn)
    assert sum(3 in clients for clients in drawn) == 60
    # Half seen and late: four fifths of the cohort come from the seen ones.
    loss[[0, 1]] = np.nan
    state = reported(selector, loss)
    drawn = [selector.select(state, r)[0].clients for r in range(200, 260)]
    unseen = [np.isin(clients, [0, 1]).sum() for clients in drawn]
    assert set(unseen) == {1}


def test_who_reports_no_numbers_is_asked_after_all_others():
    selector = utility.oort(3, seed=0)
    state = reported(selector, np.full(8, 1.5), round=2)
    after = selector.observe(
        state, 6, np.array([0, 1, 2, 3]), [np.nan, np.inf, -1.0, 0.5], np.ones(4)
    )
    np.testing.assert_array_equal(
        after.observed.loss[:4], np.float32([np.nan, np.nan, np.nan, 0.5])
    )
    assert after.observed.last[:4].tolist() == [6, 6, 6, 6]
    # Five others hold data; 0, 1 and 2 come where these are too few.
    for count, broken in ((3, 0), (4, 0), (5, 1), (7, 3)):
        for many in (
            utility.oort(count, seed=0),
            utility.power_of_choice(count, candidates=7, seed=0),
        ):
            known = many.init(SIZES)._replace(observed=after.observed)
            clients = many.select(known, 7)[0].clients
            assert len(clients) == count and np.isin(clients, [0, 1, 2]).sum() == broken
    # The state before is as it was.
    assert state.observed.loss[3] == 1.5
    with pytest.raises(ValueError, match="one for each client"):
        selector.observe(state, 6, np.array([0]), [1.0, 2.0], [1.0])


@pytest.mark.parametrize(
    "make,sentence",
    [
        (lambda: utility.power_of_choice(5, candidates=3), "at least cohort=5"),
        (
            lambda: utility.power_of_choice(8, candidates=9).init(SIZES),
            "cohort=8 exceeds the 7 clients that hold data",
        ),
        (lambda: utility.oort(8).init(SIZES), "cohort=8 exceeds the 7 clients"),
        (lambda: utility.oort(2, preferred_seconds=0.0), "preferred_seconds=0.0"),
    ],
    ids=["candidates", "choice", "oort", "seconds"],
)
def test_bad_input_is_refused_in_a_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
