"""Counts per subgroup against scikit-learn and SciPy, on generated and real groups."""

import gzip

import numpy as np
import pytest
from scipy import stats

from trustml.attacks import metrics, subgroups


def _scores(group, seed=0):
    rng = np.random.default_rng(seed)
    member = rng.random(group.size) < 0.5
    # The second group is known better.
    scores = rng.normal(size=group.size) + member * (0.5 + (group == 1))
    return scores, member


def _check(scores, member, group, size):
    sklearn = pytest.importorskip("sklearn.metrics")
    found = subgroups.at_fpr(scores, member, group, 0.1)
    for g in range(size):
        rows = group == g
        accused = scores[rows] > found.threshold
        want = sklearn.confusion_matrix(member[rows], accused, labels=[False, True])
        np.testing.assert_array_equal(found.counts[g], want)
        tp, n = want[1, 1], want[1].sum()
        exact = stats.binomtest(int(tp), int(n)).proportion_ci(method="exact")
        assert found.rates[g].tpr == tp / n
        assert found.rates[g].tpr_interval == pytest.approx(tuple(exact), abs=1e-9)
        own = metrics.tpr_at_fpr(scores[rows & member], scores[rows & ~member], 0.1)
        assert found.own[g] == own
        accused = scores[rows] > own.threshold
        want = sklearn.confusion_matrix(member[rows], accused, labels=[False, True])
        np.testing.assert_array_equal(found.own_counts[g], want)
    return found


def test_counts_are_those_of_scikit_learn():
    group = np.random.default_rng(1).choice([-1, 0, 1, 2], size=3000)
    scores, member = _scores(group)
    found = _check(scores, member, group, 3)
    assert found.unknown == (group < 0).sum()
    assert found.counts.sum() == (group >= 0).sum()
    assert found.rates[1].tpr > found.rates[0].tpr + 0.1


@pytest.mark.data
def test_counts_on_adult(data_dir):
    with gzip.open(data_dir / "adult" / "train.csv.gz", "rt") as file:
        header = file.readline().strip().split(",")
        at = next(i for i, name in enumerate(header) if name.strip() in ("sex", "Sex"))
        sex = np.array([line.split(",")[at].strip() for line in file if line.strip()])
    _, group = np.unique(sex, return_inverse=True)
    found = _check(*_scores(group), group, 2)
    assert found.counts.sum() == group.size


def test_a_group_too_small_for_its_own_threshold_has_none():
    group = np.r_[np.zeros(1000, int), np.ones(8, int)]
    scores, member = _scores(group)
    found = subgroups.at_fpr(scores, member, group, 0.01, names=("many", "few"))
    assert found.own[1] is None and not found.own_counts[1].any()
    assert found.rates[1].name == "few"
    assert found.counts[1].sum() == 8


def test_scores_of_infinity_are_counted_at_the_groups_own_threshold():
    # Nobody is above +inf, so nobody is accused; there is a threshold all the same.
    group = np.r_[np.zeros(1000, int), np.ones(150, int)]
    scores, member = _scores(group)
    scores[group == 1] = np.inf
    found = subgroups.at_fpr(scores, member, group, 0.1)
    assert found.own[1] is not None and np.isinf(found.own[1].threshold)
    members = int(member[group == 1].sum())
    np.testing.assert_array_equal(
        found.own_counts[1], [[150 - members, 0], [members, 0]]
    )


def test_wrong_input_is_refused():
    group = np.arange(100) % 2
    scores, member = _scores(group)
    with pytest.raises(ValueError, match="no name among 1"):
        subgroups.at_fpr(scores, member, group, 0.1, names=("one",))
    with pytest.raises(ValueError, match="group has type"):
        subgroups.counts(scores, member, group / 2, 0.0)
    with pytest.raises(ValueError, match=r"scores\[3\] is nan"):
        subgroups.counts(
            np.where(np.arange(100) == 3, np.nan, scores), member, group, 0.0
        )
    with pytest.raises(ValueError, match="one of each per example"):
        subgroups.counts(scores, member[:5], group, 0.0)
