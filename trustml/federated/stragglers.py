"""What becomes of a cohort: a virtual clock, dropout, deadlines, over-selection.

    seconds_k = steps_k * speed_k + bytes * bandwidth_k + waiting

with speed (seconds per step) and bandwidth (seconds per byte) lognormal over clients,
fixed for the run. In this order a client of the cohort may

| fate | |
|---|---|
| `unavailable` | not reachable at the time of the round |
| `dropped_before` | fails before it computes: no steps |
| `dropped_after` | computes, and is not heard |
| `late` | is not done at the deadline; or its steps are cut so that it is |
| `surplus` | is done after the first m, where more were asked than needed |
| `heard` | |

Whoever is not heard has weight zero. First come, first heard favours fast clients and
so changes what is optimised: `rates` tells by tenths of speed and of size. It also ends
amplification by sampling (`user_privacy.after_availability` with fills_up=True).

Dimension key: m clients of a cohort, K clients.

Example::

    clock = stragglers.clock(step_seconds=0.1, step_cv=1.0, seed=0)
    policy = stragglers.policy(deadline=60.0, first=100)
    cohort, state = selector.select(state, round)               # selects 130
    found = stragglers.realise(policy, clock, model, cohort, steps, time, seed=0)
    clients = cohort.clients[found.heard]
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from trustml import _validate
from trustml.federated import availability, continual, counters, selection

FATES = ("heard", "unavailable", "dropped_before", "dropped_after", "late", "surplus")
LATE = ("drop", "truncate")


class Clock(NamedTuple):
    """How long clients take; virtual time, nothing is measured.

    Attributes:
      step_seconds: (clients) -> seconds per step, float64[m].
      fixed_seconds: (clients) -> seconds of the transfer, float64[m].
    """

    step_seconds: Callable[[np.ndarray], np.ndarray]
    fixed_seconds: Callable[[np.ndarray], np.ndarray]


class Policy(NamedTuple):
    """What the server does about those that fail or are slow.

    Attributes:
      before: chance to fail before computing.
      after: chance to fail after it.
      deadline: seconds, or None.
      late: 'drop', or 'truncate' the steps of those who would be late.
      first: only the first so many to be done are heard; None: all.
    """

    before: float
    after: float
    deadline: float | None
    late: str
    first: int | None


class Realised(NamedTuple):
    """What became of a cohort.

    Attributes:
      fates: int8[m], positions in `FATES`.
      heard: bool[m].
      steps: int64[m] steps each has computed, heard or not.
      seconds: float64[m] when each is done; inf for who never is.
      wall_seconds: when the round ends.
      wasted_steps: computed by clients that are not heard.
    """

    fates: Int[np.ndarray, " m"]
    heard: Bool[np.ndarray, " m"]
    steps: Int[np.ndarray, " m"]
    seconds: Float[np.ndarray, " m"]
    wall_seconds: float
    wasted_steps: int


class Report(NamedTuple):
    """Over many rounds.

    Attributes:
      selected: cohort sizes as drawn, int64[R].
      heard: realised ones, int64[R].
      wasted_share: of all steps computed.
      wall_seconds: of all rounds.
      fates: how often each of `FATES`.
    """

    selected: Int[np.ndarray, " R"]
    heard: Int[np.ndarray, " R"]
    wasted_share: float
    wall_seconds: float
    fates: dict[str, int]


def clock(
    *,
    step_seconds: float,
    step_cv: float = 0.0,
    transfer_bytes: float = 0.0,
    byte_seconds: float = 0.0,
    byte_cv: float = 0.0,
    seed: int,
) -> Clock:
    """Lognormal speeds and bandwidths of given means and coefficients of variation.

    Args:
      step_seconds: mean over clients, > 0.
      step_cv: 0 makes all clients alike.
      transfer_bytes: up and down, of a round.
      byte_seconds: mean over clients.
      byte_cv: of it.
      seed: of the clients' speeds.
    """
    mean = _validate.positive("clock.step_seconds", step_seconds, "1.0 counts steps")
    step_cv = _validate.non_negative("clock.step_cv", step_cv)
    transfer = _validate.non_negative("clock.transfer_bytes", transfer_bytes)
    per_byte = _validate.non_negative("clock.byte_seconds", byte_seconds)
    byte_cv = _validate.non_negative("clock.byte_cv", byte_cv)
    return Clock(
        lambda clients: mean * _lognormal(seed, "speed", clients, step_cv),
        lambda clients: (
            transfer * per_byte * _lognormal(seed, "bandwidth", clients, byte_cv)
        ),
    )


def policy(
    *,
    before: float = 0.0,
    after: float = 0.0,
    deadline: float | None = None,
    late: str = "drop",
    first: int | None = None,
) -> Policy:
    """A checked `Policy`; the default hears everybody who is reachable.

    Raises:
      ValueError: naming field, value, bound and cure.
    """
    cure = "it is a probability below 1"
    before = _validate.in_half_open_interval("policy.before", before, 0, 1, cure)
    after = _validate.in_half_open_interval("policy.after", after, 0, 1, cure)
    if deadline is not None:
        deadline = _validate.positive("policy.deadline", deadline, "leave it out")
    late = _validate.one_of("policy.late", late, LATE)
    if first is not None:
        first = _validate.integer_at_least("policy.first", first, 1, "leave it out")
    return Policy(before, after, deadline, late, first)


def realise(
    policy: Policy,
    clock: Clock,
    model: availability.Availability,
    cohort: selection.Cohort,
    steps: Int[np.ndarray, " m"],
    time: int,
    *,
    seed: int,
) -> Realised:
    """What becomes of a cohort that is asked for `steps` each at a time.

    Args:
      policy: of the server.
      clock: of the clients.
      model: who is reachable.
      cohort: who was selected.
      steps: tau_k of each.
      time: when, in the model's unit.
      seed: of the dropout, drawn by (client, round).

    Raises:
      ValueError: where steps are not one for each client, or negative.
    """
    clients, steps = cohort.clients, np.asarray(steps, np.int64)
    if steps.shape != clients.shape or np.any(steps < 0):
        bound = f"must be >= 0, one for each of {len(clients)} clients"
        _validate.fail("steps", steps.tolist(), bound)
    fates = np.zeros(len(clients), np.int8)
    lost_before, lost_after = (
        counters.uniforms(seed, "dropout", clients, cohort.round, draw) < chance
        for draw, chance in enumerate((policy.before, policy.after))
    )
    speed, fixed = clock.step_seconds(clients), clock.fixed_seconds(clients)
    cut = np.zeros(len(clients), bool)
    if policy.deadline is not None and policy.late == "truncate":
        room = np.maximum(policy.deadline - fixed, 0.0)
        fit = np.floor(room / speed).astype(np.int64)
        cut, steps = (fit == 0) & (steps > 0), np.minimum(steps, fit)
    seconds = steps * speed + fixed
    # Later lines have precedence.
    fates[lost_after] = FATES.index("dropped_after")
    if policy.deadline is not None:
        # Cut down to nothing is as good as late.
        late = cut if policy.late == "truncate" else seconds > policy.deadline
        fates[late] = FATES.index("late")
    fates[lost_before] = FATES.index("dropped_before")
    fates[~model.available(clients, time)] = FATES.index("unavailable")
    done = np.flatnonzero(fates == 0)
    awaited = len(done)
    if policy.first is not None and awaited > policy.first:
        order = done[np.argsort(seconds[done], kind="stable")]
        fates[order[policy.first :]] = FATES.index("surplus")
        awaited = policy.first
    idle = np.isin(fates, (FATES.index("unavailable"), FATES.index("dropped_before")))
    heard = fates == 0
    computed = np.where(idle, 0, steps)
    if policy.deadline is not None and policy.late == "drop":
        # Who is late computes until the server has stopped waiting.
        until = np.floor(np.maximum(policy.deadline - fixed, 0.0) / speed)
        late = fates == FATES.index("late")
        computed = np.where(late, np.minimum(steps, until), computed).astype(np.int64)
    seconds = np.where(idle | (fates == FATES.index("dropped_after")), np.inf, seconds)
    wall = float(seconds[heard].max(initial=0.0))
    full = policy.first is not None and awaited == policy.first
    if policy.deadline is not None and not full and awaited < len(clients):
        wall = policy.deadline
    wasted = int(computed[~heard].sum())
    return Realised(fates, heard, computed, seconds, wall, wasted)


def report(rounds: Sequence[Realised]) -> Report:
    """Realised cohorts, wasted steps and fates over rounds."""
    if not rounds:
        _validate.fail("rounds", 0, "are reported", "give one or more")
    computed = sum(int(found.steps.sum()) for found in rounds)
    wasted = sum(found.wasted_steps for found in rounds)
    fates = np.sum(
        [np.bincount(found.fates, minlength=len(FATES)) for found in rounds], axis=0
    )
    return Report(
        np.array([len(found.fates) for found in rounds], np.int64),
        np.array([int(found.heard.sum()) for found in rounds], np.int64),
        wasted / computed if computed else 0.0,
        float(sum(found.wall_seconds for found in rounds)),
        dict(zip(FATES, fates.tolist(), strict=True)),
    )


def rates(
    heard: Sequence[Int[np.ndarray, " _"]], values: Float[np.ndarray, " K"]
) -> Float[np.ndarray, " 10"]:
    """How often clients were heard per round, by tenths of them in order of `values`.

    Args:
      heard: ids of each round.
      values: of all clients: their sizes, or seconds per step.
    """
    if not heard:
        _validate.fail("heard", 0, "rounds are counted", "give one or more")
    often = np.bincount(np.concatenate(heard), minlength=len(values))
    return continual.by_decile(often / len(heard), values)


def _lognormal(seed: int, stream: str, clients: np.ndarray, cv: float) -> np.ndarray:
    """Mean 1 and this coefficient of variation."""
    variance = np.log1p(cv**2)
    normals = counters.normals(seed, stream, clients)
    return np.exp(np.sqrt(variance) * normals - variance / 2)
