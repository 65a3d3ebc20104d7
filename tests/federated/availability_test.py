"""Availability: laws, independence of who is asked, the chain against its replay."""

import numpy as np
import pytest

from trustml.federated import availability, counters

CLIENTS = np.arange(4_000)

ALL = {
    "always": availability.always(),
    "bernoulli": availability.bernoulli(0.3, seed=1),
    "diurnal": availability.diurnal(0.4, 0.5, period=24, seed=1),
    "markov": availability.markov(0.2, 0.05, seed=1),
    "trace": availability.trace([3, 5, 3], [0, 4, 8], [2, 6, 9]),
}


def close(share, p, count):
    """Within four standard deviations, at a fixed seed."""
    return abs(share - p) <= 4 * np.sqrt(p * (1 - p) / count)


@pytest.mark.parametrize("name", ALL)
def test_who_else_is_asked_and_when_makes_no_difference(name):
    model = ALL[name]
    whole = {t: model.available(CLIENTS, t) for t in (9, 0, 4)}
    some = np.array([3_999, 3, 5])
    for t in (0, 4, 9):
        found = model.available(some, t)
        assert found.dtype == bool and found.tolist() == whole[t][some].tolist()
    assert model.available(some[:0], 3).shape == (0,)


def test_bernoulli_has_its_rate_and_forgets():
    first, second = (ALL["bernoulli"].available(CLIENTS, t) for t in (0, 1))
    assert close(first.mean(), 0.3, 4_000) and close(second.mean(), 0.3, 4_000)
    assert close((first & second).mean(), 0.09, 4_000)


def test_diurnal_follows_each_clients_own_day():
    phase = counters.uniforms(1, "phase", CLIENTS)
    for time in (0, 7, 31):
        chance = np.clip(0.4 + 0.5 * np.sin(2 * np.pi * (time / 24 + phase)), 0, 1)
        found = ALL["diurnal"].available(CLIENTS, time)
        assert not found[chance == 0].any()
        for low, high in ((0.0, 0.3), (0.3, 0.7), (0.7, 1.0)):
            part = (chance > low) & (chance <= high)
            error = np.sqrt(np.sum(chance[part] * (1 - chance[part])))
            assert abs(found[part].sum() - chance[part].sum()) < 4 * error


@pytest.mark.parametrize(
    "on,off",
    [(0.2, 0.05), (0.9, 0.7), (0.5, 0.5), (1.0, 1.0), (0.3, 0.0)],
    ids=["slow", "flips", "coin", "swings", "absorbed"],
)
def test_the_chain_is_its_replay_from_the_beginning(on, off):
    model, clients = availability.markov(on, off, seed=6), np.arange(300)
    state = counters.uniforms(6, "markov", clients, 0) < on / (on + off)
    for time in range(30):
        if time:
            u = counters.uniforms(6, "markov", clients, time)
            state = np.where(state, u < 1 - off, u < on)
        assert model.available(clients, time).tolist() == state.tolist()


def test_the_chain_switches_at_its_rates_from_its_equilibrium():
    model = ALL["markov"]
    before, after = (model.available(CLIENTS, t) for t in (50, 51))
    assert close(before.mean(), 0.8, 4_000)
    assert close((~after)[before].mean(), 0.05, before.sum())
    assert close(after[~before].mean(), 0.2, (~before).sum())


def test_a_trace_is_its_intervals():
    asked = np.array([5, 3, 1])
    by_time = [ALL["trace"].available(asked, t).tolist() for t in (0, 2, 4, 6, 8)]
    assert by_time == [
        [False, True, False],
        [False, False, False],
        [True, False, False],
        [False, False, False],
        [False, True, False],
    ]


@pytest.mark.parametrize(
    "make,sentence",
    [
        (lambda: availability.bernoulli(1.1, seed=0), "availability.p=1.1"),
        (lambda: availability.markov(0.0, 0.0, seed=0), "no equilibrium"),
        (lambda: availability.markov(0.1, -0.1, seed=0), "availability.off=-0.1"),
        (lambda: availability.diurnal(0.5, 0.1, period=0, seed=0), "period=0"),
        (lambda: availability.trace([1], [3], [2]), r"ends\[0\]=2 is before"),
        (lambda: availability.trace([1, 2], [3], [4]), "as many as starts"),
        (lambda: ALL["bernoulli"].available(CLIENTS, -1), "time=-1"),
    ],
    ids=["p", "still", "off", "period", "order", "lengths", "time"],
)
def test_bad_input_is_refused_in_a_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
