"""Who is reachable when: a pure function of (seed, client, time).

| model | chance of client k at time t |
|---|---|
| `always` | 1 |
| `bernoulli(p)` | p, anew at every time |
| `diurnal(a, b, T)` | clip(a + b sin 2 pi (t/T + phi_k), 0, 1), phi_k uniform, fixed |
| `markov(on, off)` | chain: switches on with chance on, off with chance off |
| `trace` | 1 within the client's given intervals, else 0 |

Only the clients asked about are looked at, in any order and at any time, so a cohort of
200 of ten million costs 200. Even the chain needs no history from its beginning: one
uniform u moves all states at once, u < min(on, 1 - off) makes everybody on and
u >= max(on, 1 - off) everybody off, so that one goes back only to the last such time
(on average 1 / (1 - |1 - on - off|) steps) and replays from there.

Here absence depends on time and chance, never on the data. Where it does in truth, no
claim on privacy survives (`user_privacy.after_availability`).

Example::

    model = availability.diurnal(0.4, 0.3, period=24, seed=0)
    reachable = model.available(cohort.clients, time)            # bool[m]
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int
from numpy import typing as npt

from trustml import _validate
from trustml.federated import counters


class Availability(NamedTuple):
    """A model of who is reachable.

    Attributes:
      name: as a report prints it.
      available: (clients int[m], time >= 0) -> bool[m].
    """

    name: str
    available: Callable[[np.ndarray, int], np.ndarray]


def always() -> Availability:
    """Everybody, at all times."""
    return Availability("always", lambda clients, time: np.ones(len(clients), bool))


def bernoulli(p: float, *, seed: int) -> Availability:
    """With chance p, independently over clients and times."""
    p = _chance("p", p)

    def available(clients: Int[np.ndarray, " m"], time: int) -> Bool[np.ndarray, " m"]:
        return counters.uniforms(seed, "available", clients, _time(time)) < p

    return Availability(f"bernoulli({p:g})", available)


def diurnal(level: float, swing: float, *, period: float, seed: int) -> Availability:
    """A chance that rises and falls over the day, each client in a time zone.

    Args:
      level: a, mean chance where nothing is clipped.
      swing: b >= 0, half of what it moves.
      period: T > 0, times in a day.
      seed: of time zones and coins.
    """
    level = _validate.finite("availability.level", level)
    swing = _validate.non_negative("availability.swing", swing, "0 is bernoulli")
    period = _validate.positive("availability.period", period, "24 for hours")

    def available(clients: Int[np.ndarray, " m"], time: int) -> Bool[np.ndarray, " m"]:
        phase = counters.uniforms(seed, "phase", clients)
        wave = np.sin(2 * np.pi * (_time(time) / period + phase))
        chance = np.clip(level + swing * wave, 0.0, 1.0)
        return counters.uniforms(seed, "available", clients, time) < chance

    return Availability(f"diurnal({level:g}, {swing:g}, {period:g})", available)


def markov(on: float, off: float, *, seed: int) -> Availability:
    """A chain of two states for every client, in its equilibrium from time 0.

    Args:
      on: chance to be reachable next, of one that is not.
      off: chance not to be reachable next, of one that is.
      seed: of the chains.

    Raises:
      ValueError: where neither can ever happen, so that there is no equilibrium.
    """
    on, off = _chance("on", on), _chance("off", off)
    if on + off == 0:
        bound = "with off=0.0 has no equilibrium"
        _validate.fail("availability.on", on, bound, "use always")

    def available(clients: Int[np.ndarray, " m"], time: int) -> Bool[np.ndarray, " m"]:
        clients = np.asarray(clients)
        state, flips = np.zeros(len(clients), bool), np.zeros(len(clients), bool)
        open_, at = np.arange(len(clients)), _time(time)
        while at > 0 and len(open_):
            u = counters.uniforms(seed, "markov", clients[open_], at)
            next_if_on, next_if_off = u < 1.0 - off, u < on
            meets = next_if_on == next_if_off
            state[open_[meets]] = next_if_on[meets] ^ flips[open_[meets]]
            open_, swaps = open_[~meets], next_if_off[~meets]
            flips[open_] ^= swaps
            at -= 1
        start = counters.uniforms(seed, "markov", clients[open_], 0) < on / (on + off)
        state[open_] = start ^ flips[open_]
        return state

    return Availability(f"markov({on:g}, {off:g})", available)


def trace(
    clients: npt.ArrayLike, starts: npt.ArrayLike, ends: npt.ArrayLike
) -> Availability:
    """Given intervals [start, end); a client without one is never reachable.

    Raises:
      ValueError: where an interval ends before it starts, or the lengths differ.
    """
    ids, begin, end = (np.asarray(values) for values in (clients, starts, ends))
    if not ids.shape == begin.shape == end.shape or ids.ndim != 1:
        bound = "must be as many as starts and ends"
        _validate.fail("clients", list(ids.shape), bound)
    if np.any(end < begin):
        row = int(np.argmax(end < begin))
        bound = f"is before its start {begin[row]}"
        _validate.fail(f"ends[{row}]", end[row].item(), bound)

    def available(asked: Int[np.ndarray, " m"], time: int) -> Bool[np.ndarray, " m"]:
        return np.isin(asked, ids[(begin <= time) & (time < end)])

    return Availability(f"trace of {len(ids)} intervals", available)


def _chance(name: str, value: float) -> float:
    value = _validate.non_negative(f"availability.{name}", value, "it is a probability")
    if value > 1:
        _validate.fail(f"availability.{name}", value, "must be at most 1")
    return value


def _time(time: int) -> int:
    return _validate.integer_at_least("time", time, 0, "times count from 0")
