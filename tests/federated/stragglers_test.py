"""What becomes of a cohort: fates against a loop, clocks, reports."""

import numpy as np
import pytest

from trustml.federated import availability, selection, stragglers

CLOCK = stragglers.clock(
    step_seconds=0.5,
    step_cv=1.0,
    transfer_bytes=100.0,
    byte_seconds=0.01,
    byte_cv=0.5,
    seed=2,
)
COHORT = selection.Cohort(7, np.arange(300), np.full(300, np.nan))
STEPS = 1 + np.arange(300) % 9
MODEL = availability.bernoulli(0.9, seed=0)


def realise(policy, model=MODEL, cohort=COHORT, steps=STEPS):
    return stragglers.realise(policy, CLOCK, model, cohort, steps, 3, seed=4)


def names(found):
    return [stragglers.FATES[fate] for fate in found.fates]


def test_clocks_have_their_mean_and_spread():
    clients = np.arange(40_000)
    speed = CLOCK.step_seconds(clients)
    # The mean of a lognormal of CV 1 over 40,000: standard error 0.5/200; that of the
    # CV is about 0.02 (its fourth moment is large).
    assert abs(speed.mean() - 0.5) < 4 * 0.5 / 200
    assert abs(speed.std() / speed.mean() - 1.0) < 0.1
    assert CLOCK.fixed_seconds(clients).mean() == pytest.approx(1.0, abs=0.01)
    assert np.all(speed > 0) and len(np.unique(speed)) == 40_000
    same = stragglers.clock(step_seconds=2.0, seed=0).step_seconds(clients[:3])
    assert same.tolist() == [2.0] * 3


def test_by_default_everybody_reachable_is_heard():
    found = realise(stragglers.policy())
    reachable = MODEL.available(COHORT.clients, 3)
    assert found.heard.tolist() == reachable.tolist()
    seconds = STEPS * CLOCK.step_seconds(COHORT.clients)
    seconds += CLOCK.fixed_seconds(COHORT.clients)
    np.testing.assert_allclose(found.seconds[reachable], seconds[reachable])
    assert found.wall_seconds == found.seconds[reachable].max()
    assert found.wasted_steps == 0 and np.isinf(found.seconds[~reachable]).all()
    assert np.all(found.steps[~reachable] == 0)


def test_late_clients_are_dropped_at_the_deadline_and_their_steps_wasted():
    found = realise(stragglers.policy(deadline=3.0), model=availability.always())
    speed, fixed = (f(COHORT.clients) for f in CLOCK)
    wasted = 0
    for k in range(300):
        late = STEPS[k] * speed[k] + fixed[k] > 3.0
        assert names(found)[k] == ("late" if late else "heard")
        if late:
            done = min(STEPS[k], int(max(3.0 - fixed[k], 0.0) // speed[k]))
            wasted += done
    assert found.wasted_steps == wasted > 0 and found.wall_seconds == 3.0


def test_truncation_keeps_the_deadline_with_as_many_steps_as_fit():
    found = realise(
        stragglers.policy(deadline=3.0, late="truncate"), model=availability.always()
    )
    speed, fixed = (f(COHORT.clients) for f in CLOCK)
    for k in range(300):
        fit = int(max(3.0 - fixed[k], 0.0) // speed[k])
        assert found.steps[k] == min(STEPS[k], fit)
        assert names(found)[k] == ("heard" if fit else "late")
    assert 0 < np.sum(found.steps < STEPS) < 300 and found.wasted_steps == 0


def test_only_the_first_are_heard_and_they_are_the_fastest():
    found = realise(stragglers.policy(first=100))
    assert found.heard.sum() == 100
    surplus = found.fates == stragglers.FATES.index("surplus")
    assert found.seconds[found.heard].max() <= found.seconds[surplus].min()
    assert found.wall_seconds == found.seconds[found.heard].max()
    assert found.wasted_steps == found.steps[surplus].sum() > 0


def test_dropout_has_its_rates_before_and_after_computing():
    always, counts = availability.always(), np.zeros(len(stragglers.FATES))
    policy = stragglers.policy(before=0.2, after=0.1)
    for round in range(20):
        found = realise(policy, always, COHORT._replace(round=round))
        counts += np.bincount(found.fates, minlength=len(counts))
        idle = found.fates == stragglers.FATES.index("dropped_before")
        gone = found.fates == stragglers.FATES.index("dropped_after")
        assert np.all(found.steps[idle] == 0) and np.all(found.steps[gone] > 0)
        assert found.wasted_steps == found.steps[gone].sum()
    share = counts / counts.sum()
    for fate, p in (("dropped_before", 0.2), ("dropped_after", 0.08), ("heard", 0.72)):
        # Four standard deviations of a share of 6,000, at a fixed seed.
        limit = 4 * np.sqrt(p * (1 - p) / 6_000)
        assert abs(share[stragglers.FATES.index(fate)] - p) < limit


def test_what_becomes_of_a_client_does_not_depend_on_the_others():
    policy = stragglers.policy(before=0.2, after=0.1, deadline=3.0)
    whole = realise(policy)
    part = COHORT._replace(clients=np.arange(0, 300, 7))
    found = realise(policy, cohort=part, steps=STEPS[::7])
    assert found.fates.tolist() == whole.fates[::7].tolist()


def test_an_empty_cohort_is_a_round():
    empty = selection.Cohort(0, np.zeros(0, np.int64), np.zeros(0))
    found = realise(stragglers.policy(first=3), cohort=empty, steps=np.zeros(0, int))
    assert found.wall_seconds == 0.0 and not found.heard.any()
    report = stragglers.report([found])
    assert report.wasted_share == 0.0 and report.selected.tolist() == [0]


def test_reports_count_rounds():
    rounds = [
        realise(stragglers.policy(first=100), cohort=COHORT._replace(round=r))
        for r in range(3)
    ]
    report = stragglers.report(rounds)
    assert report.selected.tolist() == [300] * 3 and report.heard.tolist() == [100] * 3
    assert sum(report.fates.values()) == 900 and report.fates["heard"] == 300
    wasted = sum(r.wasted_steps for r in rounds) / sum(r.steps.sum() for r in rounds)
    assert report.wasted_share == pytest.approx(wasted)
    assert report.wall_seconds == pytest.approx(sum(r.wall_seconds for r in rounds))


def test_over_selection_favours_the_fast_and_the_report_shows_it():
    sizes = 1 + np.random.default_rng(0).integers(0, 20, 2_000)
    selector = selection.uniform(130, seed=0)
    state, policy, heard = selector.init(sizes), stragglers.policy(first=100), []
    for round in range(60):
        cohort, state = selector.select(state, round)
        steps = -(-sizes[cohort.clients] // 5)
        found = realise(policy, availability.always(), cohort, steps)
        heard.append(cohort.clients[found.heard])
    speed = CLOCK.step_seconds(np.arange(2_000))
    by_speed = stragglers.rates(heard, speed)
    by_size = stragglers.rates(heard, sizes.astype(float))
    assert by_speed[0] > 1.3 * by_speed[-1] and by_size[0] > 1.1 * by_size[-1]
    often = np.bincount(np.concatenate(heard), minlength=2_000) / 60
    assert by_speed.mean() == pytest.approx(often.mean())


@pytest.mark.parametrize(
    "make,sentence",
    [
        (lambda: stragglers.policy(before=1.0), "policy.before=1.0"),
        (lambda: stragglers.policy(deadline=0.0), "policy.deadline=0.0"),
        (lambda: stragglers.policy(late="wait"), "policy.late='wait'"),
        (lambda: stragglers.policy(first=0), "policy.first=0"),
        (lambda: stragglers.clock(step_seconds=0.0, seed=0), "step_seconds=0.0"),
        (
            lambda: realise(stragglers.policy(), steps=-STEPS),
            "must be >= 0, one for each of 300 clients",
        ),
        (lambda: stragglers.report([]), "rounds=0 are reported"),
    ],
    ids=["before", "deadline", "late", "first", "clock", "steps", "report"],
)
def test_bad_input_is_refused_in_a_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
