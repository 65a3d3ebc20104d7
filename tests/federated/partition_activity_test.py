"""Partitions in which labels go with activity."""

import numpy as np
import pytest

from trustml.federated import partitions
from trustml.federated.partitions import activity

LABELS = np.repeat(np.arange(12), np.arange(20, 140, 10))


def deal(seed=0, **changes):
    return activity.label_activity(LABELS, 60, 0.5, seed=seed, **changes)


def test_every_example_goes_to_one_client():
    made = deal()
    np.testing.assert_array_equal(np.sort(made.permutation), np.arange(len(LABELS)))
    assert len(made.offsets) == 61 and np.diff(made.offsets).min() >= 1


def test_heavy_and_light_clients_share_no_label():
    made = deal()
    held = partitions.counts(made, LABELS)
    heavy, light = held[:6].sum(axis=0), held[6:].sum(axis=0)
    assert not np.any((heavy > 0) & (light > 0))
    # Half of the examples on each side, up to half of the commonest label.
    assert abs(heavy.sum() - len(LABELS) / 2) <= 130 / 2
    np.testing.assert_array_equal(heavy + light, np.bincount(LABELS))
    sizes = np.diff(made.offsets)
    assert sizes[:6].mean() > 7 * sizes[6:].mean()


def test_seeds_make_other_partitions_and_the_same_one_the_same():
    assert deal().digest == deal().digest
    assert len({deal(seed).digest for seed in range(3)}) == 3
    assert deal(cv=0.5).digest != deal().digest


@pytest.mark.parametrize(
    "labels, clients, message",
    [
        pytest.param(np.zeros(9, int), 3, "labels=1 cannot be split", id="one label"),
        pytest.param(np.arange(9) % 3, 1, "cannot be split", id="one client"),
        pytest.param(np.arange(9) % 3, 9, "is too many", id="too many clients"),
    ],
)
def test_refuses_what_cannot_be(labels, clients, message):
    with pytest.raises(ValueError, match=message):
        activity.label_activity(labels, clients, 0.5, seed=0)
