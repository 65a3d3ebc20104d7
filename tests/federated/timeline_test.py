"""Timelines: bounds, caps, laws of retention, against loops over clients."""

import inspect

import numpy as np
import pytest
from scipy import stats

from trustml.federated import timeline

SIZES = np.array([0, 1, 3, 25, 60, 7])
OFFSETS = np.r_[0, np.cumsum(SIZES)]
LABELS = np.random.default_rng(0).integers(0, 3, OFFSETS[-1])
POINTS = np.random.default_rng(1).normal(size=(OFFSETS[-1], 2))
ARRIVED = timeline.even(SIZES, 5)
CAP = 6

ALL = {
    "static": lambda: timeline.static(SIZES, 5),
    "keep_all": lambda: timeline.keep_all(ARRIVED),
    "fifo": lambda: timeline.fifo(ARRIVED, CAP),
    "expiry": lambda: timeline.expiry(ARRIVED, 2),
    "reservoir": lambda: timeline.reservoir(ARRIVED, CAP, seed=3),
    "class_balanced": lambda: timeline.class_balanced(
        ARRIVED, CAP, LABELS, OFFSETS, seed=3
    ),
    "gradient_diversity": lambda: timeline.gradient_diversity(
        ARRIVED, CAP, POINTS, OFFSETS
    ),
}
CAPPED = ("fifo", "reservoir", "class_balanced", "gradient_diversity")


def held(made, period):
    """Local rows of every client, by the public index."""
    rows, offsets = timeline.rows(made, period, OFFSETS)
    parts = np.split(rows, offsets[1:-1])
    for client, part in enumerate(parts):
        assert np.all((part >= OFFSETS[client]) & (part < OFFSETS[client + 1]))
    return [(part - OFFSETS[k]).tolist() for k, part in enumerate(parts)]


@pytest.mark.parametrize("name", ALL)
def test_no_row_lies_outside_what_has_arrived_and_caps_are_kept(name):
    made = ALL[name]()
    before = [[] for _ in SIZES]
    assert made.periods == 5
    for period in range(made.periods):
        found, n = held(made, period), timeline.sizes(made, period)
        assert [len(rows) for rows in found] == n.tolist()
        for client, rows in enumerate(found):
            assert rows == sorted(set(rows))
            low, high = made.lo[period, client], made.hi[period, client]
            assert all(low <= row < high for row in rows)
            seen = ARRIVED[period - 1, client] if period else 0
            if name != "static":
                # What was deleted before never comes back.
                assert set(rows) <= set(before[client]) | set(range(seen, high))
            if name in CAPPED:
                assert len(rows) == min(CAP, high)
        before = found


def test_intervals_are_their_rules():
    np.testing.assert_array_equal(ARRIVED[:, 3], [5, 10, 15, 20, 25])
    assert timeline.fifo(ARRIVED, 6).lo[:, 3].tolist() == [0, 4, 9, 14, 19]
    assert timeline.expiry(ARRIVED, 2).lo[:, 3].tolist() == [0, 0, 5, 10, 15]
    assert timeline.expiry(ARRIVED, 9).lo.max() == 0
    np.testing.assert_array_equal(ARRIVED[-1], SIZES)


@pytest.mark.parametrize("name", ["fifo", "expiry", "reservoir"])
def test_static_capped_is_the_last_period_from_the_start(name):
    made = ALL[name]()
    at_once = timeline.at_the_end(made)
    for period in range(5):
        assert held(at_once, period) == held(made, 4)


def test_timestamps_give_the_counts_of_a_loop():
    generator = np.random.default_rng(0)
    times = np.concatenate([np.sort(generator.uniform(0, 10, n)) for n in SIZES])
    edges = np.array([2.0, 5.0, 11.0])
    found = timeline.by_time(times, OFFSETS, edges)
    for t, edge in enumerate(edges):
        for k in range(6):
            mine = times[OFFSETS[k] : OFFSETS[k + 1]]
            assert found[t, k] == sum(mine < edge)
    assert found[-1].tolist() == SIZES.tolist()


def test_reservoir_inclusion_is_uniform_at_every_period():
    # 4,000 clients alike are 4,000 reservoirs.
    clients, n, cap = 4_000, 12, 3
    arrived = timeline.even(np.full(clients, n), 3)
    made = timeline.reservoir(arrived, cap, seed=0)
    for period, seen in enumerate((4, 8, 12)):
        counts = np.bincount(made.kept[period].ravel(), minlength=n)[:seen]
        p = cap / seen
        # Rows of a client are drawn without replacement: covariance -p(1-p)/(seen-1).
        spread = clients * p * (1 - p) * seen / (seen - 1)
        statistic = np.sum((counts - clients * p) ** 2) / spread
        assert counts.sum() == clients * cap
        assert stats.chi2.sf(statistic, seen - 1) > 1e-3
    # Periods together: the three first kept are three of the first four.
    both = zip(made.kept[0], made.kept[2], strict=True)
    stays = np.mean([np.isin(early, late).sum() for early, late in both])
    # E = 3 * 4/12; a hypergeometric count's variance is below 3/4 here.
    assert abs(stays - 1.0) < 4 * np.sqrt(0.75 / clients)


def test_class_balanced_shares_slots_equally():
    made = ALL["class_balanced"]()
    for period in range(5):
        for client, rows in enumerate(held(made, period)):
            labels = LABELS[OFFSETS[client] : OFFSETS[client] + ARRIVED[period, client]]
            there = np.bincount(labels, minlength=3)
            kept = np.bincount(labels[rows], minlength=3)
            # A label has fewer slots than another one only if it has no more rows, but
            # for the slot that does not divide.
            for a in range(3):
                assert kept[a] == there[a] or kept[a] >= kept.max() - 1


def test_gradient_diversity_is_greedy_farthest_points():
    made = timeline.gradient_diversity(ARRIVED, CAP, POINTS, OFFSETS)
    before = [[] for _ in SIZES]
    for period in range(5):
        found = held(made, period)
        for client in range(len(SIZES)):
            start = ARRIVED[period - 1, client] if period else 0
            rows = before[client] + list(range(start, ARRIVED[period, client]))
            points = POINTS[OFFSETS[client] + np.array(rows, int)]
            chosen = []
            while len(chosen) < min(CAP, len(rows)):
                if not chosen:
                    distance = np.sum((points - points.mean(axis=0)) ** 2, axis=1)
                else:
                    gaps = points[:, None] - points[chosen]
                    distance = np.sum(gaps**2, axis=2).min(axis=1)
                distance[chosen] = -1
                chosen.append(int(np.argmax(distance)))
            assert found[client] == sorted(rows[i] for i in chosen)
        before = found


def test_duplicate_points_still_fill_the_storage():
    points = np.zeros((OFFSETS[-1], 2))
    made = timeline.gradient_diversity(ARRIVED, CAP, points, OFFSETS)
    assert timeline.sizes(made, 4).tolist() == np.minimum(SIZES, CAP).tolist()


SHORT = np.array([0, 3, 5])  # a store of clients with 3 and 2 examples
MORE = np.array([[1, 1], [3, 4]])  # of which the second gets 4


@pytest.mark.parametrize("made", ["keep_all", "fifo", "static", "reservoir"])
def test_more_arrivals_than_the_store_holds_are_refused(made):
    calendar = {
        "keep_all": lambda: timeline.keep_all(MORE),
        "fifo": lambda: timeline.fifo(MORE, 2),
        "static": lambda: timeline.static(MORE[1], 2),
        "reservoir": lambda: timeline.reservoir(MORE, 2, seed=0),
    }[made]()
    with pytest.raises(ValueError, match="of client 1=4 must be <= the 2 examples"):
        timeline.rows(calendar, 1, SHORT)
    with pytest.raises(ValueError, match=r"offsets='int64\[2\]' .* of 2 clients"):
        timeline.rows(calendar, 0, SHORT[:2])


def test_a_period_that_fits_the_store_is_given():
    rows, starts = timeline.rows(timeline.keep_all(MORE), 0, SHORT)
    assert (rows.tolist(), starts.tolist()) == ([0, 3], [0, 1, 2])


def test_retention_by_labels_or_points_reads_no_other_client():
    longer = np.array([0, 3, 5, 9])
    third = np.c_[MORE, [0, 0]]
    with pytest.raises(ValueError, match="of client 1=4 must be <= the 2 examples"):
        timeline.class_balanced(third, 2, np.zeros(9, int), longer, seed=0)
    with pytest.raises(ValueError, match="of client 1=4 must be <= the 2 examples"):
        timeline.gradient_diversity(third, 2, np.zeros((9, 2)), longer)


def test_unsigned_times_are_seen_to_fall():
    times, ends = np.array([3, 1], np.uint32), np.array([0, 2])
    by_time = inspect.unwrap(timeline.by_time)
    with pytest.raises(ValueError, match="row 1.* is earlier than"):
        by_time(times, ends, times[:1])
    with pytest.raises(ValueError, match="edges=.* must ascend"):
        by_time(times[::-1], ends, times)


def test_the_last_period_may_have_no_end():
    edges = np.array([1.0, np.inf])
    found = timeline.by_time(np.array([0.5, 1.0, 9.0]), np.array([0, 3]), edges)
    assert found.tolist() == [[1], [3]]


def no_number(row, value=np.nan, like=POINTS):
    changed = np.array(like)
    changed[row] = value
    return changed


# As users have them: without the types that only tests check.
def balanced(labels):
    plain = inspect.unwrap(timeline.class_balanced)
    return plain(ARRIVED, CAP, labels, OFFSETS, seed=3)


def diverse(points):
    return inspect.unwrap(timeline.gradient_diversity)(ARRIVED, CAP, points, OFFSETS)


@pytest.mark.parametrize(
    "make,sentence",
    [
        (lambda: timeline.even(SIZES, 0), "periods=0"),
        (lambda: timeline.fifo(ARRIVED, 0), "most=0"),
        (lambda: timeline.expiry(ARRIVED, 0), "horizon=0"),
        (lambda: timeline.keep_all(ARRIVED[::-1]), "falls over periods"),
        (lambda: timeline.keep_all(ARRIVED - 1), "falls over periods or is negative"),
        (lambda: timeline.sizes(timeline.keep_all(ARRIVED), 5), "period=5 is beyond"),
        (
            lambda: timeline.by_time(
                np.array([1.0, 0.0]), np.array([0, 2]), np.ones(1)
            ),
            "is earlier than the one before it",
        ),
        (
            lambda: timeline.by_time(
                np.array([1.0]), np.array([0, 1]), np.array([2.0, 1.0])
            ),
            "edges=.* must ascend",
        ),
        (
            lambda: timeline.by_time(
                np.array([2.0, np.nan, 1.0]), np.array([0, 3]), np.ones(1)
            ),
            r"times\[1\]='nan' must be finite",
        ),
        (
            lambda: timeline.by_time(
                np.array([1.0, np.inf]), np.array([0, 2]), np.ones(1)
            ),
            r"times\[1\]='inf' must be finite",
        ),
        (
            lambda: timeline.by_time(
                np.ones(1), np.array([0, 1]), np.array([2.0, np.nan, 1.0])
            ),
            r"edges\[1\]='nan' is no time",
        ),
        (
            lambda: timeline.by_time(np.ones(1), np.array([0, 2]), np.ones(1)),
            "times=1 rows must be the 2 examples",
        ),
        (lambda: balanced(LABELS[:-1]), "labels=95 rows must be the 96 examples"),
        (lambda: balanced(np.r_[LABELS, 0]), "labels=97 rows must be the 96 examples"),
        (lambda: balanced(LABELS + 0.5), r"labels='float64\[96\]' must be integers"),
        (lambda: balanced(LABELS == 1), r"labels='bool\[96\]' must be integers"),
        (lambda: balanced(LABELS[:, None]), r"labels='int64\[96, 1\]' must be int"),
        (lambda: balanced(LABELS - 1), r"labels\[\d+\]=-1 must be >= 0"),
        (lambda: diverse(no_number(7)), r"embeddings\[7, 0\]=nan must be finite"),
        (lambda: diverse(no_number(7, np.inf)), r"embeddings\[7, 0\]=inf must be"),
        (lambda: diverse(POINTS[:-1]), "embeddings=95 rows must be the 96 examples"),
        (lambda: diverse(POINTS[:, 0]), r"embeddings=\[96\] must be an array"),
    ],
    ids=[
        "periods",
        "cap",
        "horizon",
        "falls",
        "negative",
        "beyond",
        "times",
        "edges",
        "nan_time",
        "inf_time",
        "nan_edge",
        "few_times",
        "few_labels",
        "many_labels",
        "fractions",
        "bool_labels",
        "table_of_labels",
        "negative_label",
        "nan_point",
        "inf_point",
        "few_points",
        "flat_points",
    ],
)
def test_bad_input_is_refused_in_a_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
