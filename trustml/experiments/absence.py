"""Who of a cohort is heard, from the config: availability, dropout, deadline, surplus.

    asked = cohort * over_selection  ->  reachable -> survive -> in time -> first cohort

Virtual time: a client of mean speed makes one step a second. What was promised to
clients is that of `user_privacy.after_availability`: nothing where the number of their
examples decides whether they come in time.

Dimension key: m clients that were asked, K clients.

Example::

    absent = absence.make(config)
    selector = absent.selector(selector)
    found = absent.realise(cohort, steps)                 # `stragglers.Realised`
    tally = absence.count(tally, found)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from trustml import specs
from trustml.federated import availability, selection, stragglers, user_privacy


class Absence(NamedTuple):
    """What the config says of who is heard.

    Attributes:
      expected: whether anybody can be missing.
      selector: Selector -> Selector, whose claims know of it.
      realise: (cohort, steps int64[m]) -> `stragglers.Realised`.
      step_seconds: (clients) -> seconds of a step, float64[m].
      sentence: what it is, for a report; '' where nobody can be missing.
    """

    expected: bool
    selector: Callable[[selection.Selector], selection.Selector]
    realise: Callable[[selection.Cohort, np.ndarray], stragglers.Realised]
    step_seconds: Callable[[np.ndarray], np.ndarray]
    sentence: str


class Tally(NamedTuple):
    """Over the rounds so far; goes into checkpoints.

    Attributes:
      fates: int64[6], clients by `stragglers.FATES`.
      seconds: float64[], virtual, of all rounds.
      computed: int64[], steps of clients, heard or not.
      wasted: int64[], of them of those that were not heard.
    """

    fates: Any
    seconds: Any
    computed: Any
    wasted: Any


def make(config: specs.RunConfig) -> Absence:
    """Who is heard in the rounds of `config`."""
    spec = config.federated
    model = {
        "": availability.always,
        "bernoulli": lambda: availability.bernoulli(spec.reachable, seed=config.seed),
        "diurnal": lambda: availability.diurnal(
            spec.reachable, spec.swing, period=spec.day, seed=config.seed
        ),
    }[spec.availability]()
    clock = stragglers.clock(step_seconds=1.0, step_cv=spec.step_cv, seed=config.seed)
    policy = stragglers.policy(
        after=spec.dropout,
        deadline=spec.deadline or None,
        first=spec.cohort if spec.over_selection > 1 else None,
    )
    # Unless all make the same steps, who has more examples is done later.
    timed = policy.deadline is not None or policy.first is not None
    by_data = timed and not spec.local_steps
    fills_up = policy.first is not None

    def selector(chosen_by: selection.Selector) -> selection.Selector:
        def event(state, z, rounds):
            return user_privacy.after_availability(
                chosen_by.event(state, z, rounds),
                by_data=by_data,
                fills_up=fills_up,
                noise_multiplier=z,
                rounds=rounds,
            )

        return chosen_by._replace(event=event)

    def realise(cohort, steps):
        time = cohort.round
        return stragglers.realise(
            policy, clock, model, cohort, steps, time, seed=config.seed
        )

    said = []
    if spec.availability:
        chance = f"clients are reachable with chance {spec.reachable:g}"
        moves = f", which moves by {spec.swing:g} in days of {spec.day} rounds"
        said.append(chance + (moves if spec.availability == "diurnal" else ""))
    if spec.dropout:
        said.append(f"{spec.dropout:.0%} of them fail after training")
    if policy.deadline is not None:
        said.append(f"the server waits {policy.deadline:g} s")
    if policy.first is not None:
        said.append(f"{spec.asked} are asked and the first {policy.first} heard")
    return Absence(
        expected=bool(said),
        selector=selector,
        realise=realise,
        step_seconds=clock.step_seconds,
        sentence="; ".join(said),
    )


def nothing_yet() -> Tally:
    """Before the first round."""
    zero = np.zeros((), np.int64)
    return Tally(np.zeros(len(stragglers.FATES), np.int64), np.zeros(()), zero, zero)


def count(tally: Tally, found: stragglers.Realised) -> Tally:
    """The tally after another round."""
    return Tally(
        tally.fates + np.bincount(found.fates, minlength=len(stragglers.FATES)),
        tally.seconds + np.asarray(found.wall_seconds),
        tally.computed + found.steps.sum(),
        tally.wasted + np.asarray(found.wasted_steps),
    )
