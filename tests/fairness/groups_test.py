"""Accuracy per group: counts against a loop, the gap's interval by simulation."""

import numpy as np
import pytest

from trustml import intervals
from trustml.fairness import groups


def _data(seed=0, n=600):
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 4, size=n)
    correct = rng.random(n) < np.array([0.95, 0.9, 0.85, 0.6])[group]
    return correct, group


def test_rates_are_those_of_a_loop():
    correct, group = _data()
    result = groups.accuracy_by(correct, group, names="abcd")
    for g, rate in enumerate(result.rates):
        mine = correct[group == g]
        assert (rate.n, rate.correct) == (mine.size, mine.sum())
        assert rate.value == mine.mean()
        assert (rate.lo, rate.hi) == intervals.proportion(int(mine.sum()), mine.size)
    assert result.gap.worst == "d"
    assert (
        result.gap.value == max(r.value for r in result.rates) - result.rates[3].value
    )
    assert 0 < result.gap.lo < result.gap.value < result.gap.hi
    assert result.gap.value > result.gap.floor_95 > result.gap.floor_mean > 0


def test_order_of_rows_does_not_matter():
    correct, group = _data()
    order = np.random.default_rng(1).permutation(correct.size)
    assert groups.accuracy_by(correct, group) == groups.accuracy_by(
        correct[order], group[order]
    )


def test_small_empty_and_unknown_groups_are_shown_but_not_judged():
    correct = np.array([True] * 100 + [False] * 5 + [True] * 3)
    group = np.array([0] * 60 + [1] * 40 + [2] * 5 + [-1] * 3)
    result = groups.accuracy_by(correct, group, names=("a", "b", "tiny", "empty"))
    assert [rate.small for rate in result.rates] == [False, False, True, True]
    assert np.isnan(result.rates[3].value) and result.rates[3].hi == 1.0
    assert result.unknown == 3
    # 'tiny' has accuracy 0 and would make the gap 1.
    assert result.gap.value == 0.0 and result.gap.left_out == 2


def test_one_group_has_no_gap():
    result = groups.accuracy_by(np.ones(50, bool), np.zeros(50, int))
    assert np.isnan(result.gap.value)


@pytest.mark.parametrize("rates", [[0.95] * 5, [0.98, 0.95, 0.9, 0.9, 0.8], [0.9, 0.7]])
def test_gap_interval_covers_and_floor_holds(rates):
    rng = np.random.default_rng(5)
    n = np.full(len(rates), 100)
    group = np.repeat(np.arange(len(rates)), n)
    covered = above = 0
    trials = 200
    for trial in range(trials):
        correct = rng.random(group.size) < np.array(rates)[group]
        gap = groups.accuracy_by(correct, group, replicates=200, seed=trial).gap
        covered += gap.lo <= max(rates) - min(rates) <= gap.hi
        above += gap.value > gap.floor_95
    # 3 s.e. of .95 over 200 trials: .046.
    assert covered / trials > 0.95 - 0.046
    if max(rates) == min(rates):
        assert above / trials < 0.05 + 0.046


def test_change_against_a_baseline_is_paired_and_simultaneous():
    _, group = _data()
    before = np.ones(group.size, bool)
    after = before & ~((group == 2) & (np.arange(group.size) % 3 == 0))
    result = groups.accuracy_by(after, group, baseline=before)
    assert [rate.change.value < -0.2 for rate in result.rates] == [0, 0, 1, 0]
    rows = group == 2
    expected = intervals.paired_change(before[rows], after[rows], 1 - 0.05 / 4)
    assert result.rates[2].change == expected
    assert groups.rows(result)[2]["change"]["value"] == expected.value


def test_buckets_have_readable_names():
    index, names = groups.buckets(np.array([1, 4, 5, 8, 9, 40]), (4, 8, 9), "words")
    assert index.tolist() == [0, 0, 1, 1, 2, 3]
    assert names == ("up to 4 words", "5\u20138 words", "9 words", "10 or more words")
    index, names = groups.buckets(np.array([0.5, 1.5]), (1,))
    assert index.tolist() == [0, 1] and names == ("up to 1", "above 1")


@pytest.mark.parametrize(
    "call,words",
    [
        (lambda: groups.accuracy_by([True], [0, 1]), "one of each"),
        (lambda: groups.accuracy_by([True], [0.5]), "integers"),
        (lambda: groups.accuracy_by([0.3], [0]), "0 and 1"),
        (lambda: groups.accuracy_by([True], [2], names="ab"), "index 2"),
        (lambda: groups.buckets([1], (4, 4)), "must increase"),
    ],
)
def test_bad_input_gets_a_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()
