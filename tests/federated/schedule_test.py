"""Queues, the ladder and windows, against a walk through them lane by lane."""

import numpy as np
import pytest

from trustml.federated import schedule

RNG = np.random.default_rng(0)
SIZES = {
    "ragged": RNG.integers(0, 90, 37),
    "one giant": np.array([1, 0, 2, 500, 3]),
    "edges": np.array([0, 1, 9, 10, 11]),
    "nobody has any": np.zeros(4, int),
    "nobody": np.zeros(0, int),
}


def replay(made, cut, index, *, batch_size, length, capacity):
    """Rows that each client meets, in order; and the lane-steps that were executed."""
    met = {m: [] for m in range(len(made.steps))}
    place_of = {
        (d, p): m for m, (d, p) in enumerate(zip(made.device, made.place, strict=True))
    }
    first = schedule.first_places(made, capacity)
    in_lane = {(d, lane): first[d, lane] for d, lane in np.ndindex(first.shape)}
    executed = 0
    for packed, ends in schedule.windows(
        made, cut, index, batch_size=batch_size, length=length, capacity=capacity
    ):
        window = schedule.unpack(packed)
        starts = [0, *ends[:-1]]
        for width, start, stop in zip(made.ladder, starts, ends, strict=True):
            executed += width * (stop - start) * made.devices
            outside = window.place[:, start:stop, width:]
            assert (outside == capacity).all()
            for d, s, lane in np.ndindex(made.devices, stop - start, width):
                at = d, s + start, lane
                place = window.place[at]
                if place == capacity:
                    continue
                assert in_lane[d, lane] == place
                client = place_of[d, place]
                assert window.step[at] == len(met[client])
                met[client].append(window.index[at][: window.count[at]].tolist())
                done = len(met[client]) == made.steps[client]
                assert done == window.last[at]
                if done:
                    in_lane[d, lane] = window.following[at]
    return met, executed


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("remainder", schedule.REMAINDERS)
@pytest.mark.parametrize("devices", [1, 3])
def test_every_client_meets_its_rows_in_order(name, remainder, devices):
    sizes, batch, epochs = SIZES[name], 10, 2
    cut = schedule.batches(sizes, batch_size=batch, epochs=epochs, remainder=remainder)
    made = schedule.make(cut.steps, lanes=4, devices=devices)
    index = np.arange(cut.rows.sum()) + 1000
    met, executed = replay(made, cut, index, batch_size=batch, length=7, capacity=64)
    base = 1000
    for client, size in enumerate(sizes.tolist()):
        expected = []
        for _ in range(epochs):
            rows = np.arange(base, base + size)
            base += size
            for begin in range(0, size, batch):
                part = rows[begin : begin + batch]
                if len(part) < batch and remainder == "drop":
                    continue
                if remainder == "fill":
                    part = np.resize(np.roll(rows, -begin), batch)
                expected.append(part.tolist())
        assert met[client] == expected
    assert executed == made.widths.sum() * devices
    if executed:
        assert made.utilization == pytest.approx(made.steps.sum() / executed)


def test_a_fixed_number_of_steps_begins_the_rows_anew():
    cut = schedule.batches(np.array([3, 25, 0]), batch_size=10, steps=5)
    np.testing.assert_array_equal(cut.steps, [5, 5, 0])
    np.testing.assert_array_equal(cut.rows, [15, 50, 0])
    np.testing.assert_array_equal(cut.count, [3] * 5 + [10, 10, 5, 10, 10])


def test_lanes_fall_only_and_to_widths_of_the_ladder():
    cut = schedule.batches(RNG.integers(1, 400, 60), batch_size=10)
    made = schedule.make(cut.steps, lanes=16, group=2)
    assert (np.diff(made.widths) <= 0).all()
    assert set(made.widths.tolist()) <= set(schedule.ladder(16, 2))


@pytest.mark.parametrize(
    ("mean", "spread", "batch", "cohort", "lanes", "least"),
    [(227, 89, 20, 50, 16, 0.96), (100, 200, 20, 200, 32, 0.93)],
    ids=["even", "uneven"],
)
def test_little_is_executed_for_nothing(mean, spread, batch, cohort, lanes, least):
    # The mean over 30 cohorts of lognormal sizes; the specification's worst of 200.
    rng = np.random.default_rng(1)
    variance = np.log1p((spread / mean) ** 2)
    shares = []
    for _ in range(30):
        logs = rng.normal(np.log(mean) - variance / 2, np.sqrt(variance), cohort)
        steps = schedule.batches(np.exp(logs).astype(int), batch_size=batch).steps
        shares.append(schedule.make(steps, lanes=lanes).utilization)
    assert np.mean(shares) > least


def test_without_a_ladder_all_lanes_run_to_the_end():
    steps = np.array([9, 1, 1, 1])
    made = schedule.make(steps, lanes=4, narrowing=False)
    assert made.ladder == (4,) and made.widths.tolist() == [4] * 9
    assert schedule.make(steps, lanes=4).widths.tolist() == [4] + [1] * 8


def test_groups_have_to_fit():
    with pytest.raises(ValueError, match=r"federated.lanes=6 .*federated.group=4"):
        schedule.ladder(6, 4)
    assert schedule.ladder(16, 4) == (16, 8, 4)
