"""Noise schedules: the noise of every step relative to the plan's noise multiplier.

A schedule is fixed before training, so a plan composes one event for each distinct
value and calibrates the multiplier of the first. A schedule chosen from results of the
run has no such event, and there is none here.

| schedule | relative noise in epoch e |
| --- | --- |
| `constant` | 1 |
| `exponential` | max(floor, rho^e) |
| `inverse` | 1 / (1 + rho e) |
| `stairs` | rho^(e // every) |

Example::

    relative = schedules.exponential(steps=1000, steps_per_epoch=100, rho=0.9)
    made = plan.make(clipper, sampler, steps=1000, noise_schedule=relative, ...)
"""

import numpy as np
from jaxtyping import Float

from trustml import _validate

NAMES = ("constant", "exponential", "inverse", "stairs")


def constant(steps: int) -> Float[np.ndarray, " steps"]:
    """The same noise at every step."""
    return np.ones(_validate.integer_at_least("steps", steps, 1))


def exponential(
    steps: int, steps_per_epoch: int, *, rho: float, floor: float = 0.0
) -> Float[np.ndarray, " steps"]:
    """max(floor, rho^epoch); 0 < rho <= 1, 0 <= floor < 1."""
    rho = _rate("rho", rho)
    floor = _validate.in_half_open_interval("floor", floor, 0, 1)
    return np.maximum(floor, rho ** _epochs(steps, steps_per_epoch))


def inverse(
    steps: int, steps_per_epoch: int, *, rho: float
) -> Float[np.ndarray, " steps"]:
    """1 / (1 + rho epoch); rho >= 0."""
    rho = _validate.non_negative("rho", rho, "0 keeps the noise")
    return 1 / (1 + rho * _epochs(steps, steps_per_epoch))


def stairs(
    steps: int, steps_per_epoch: int, *, rho: float, every: int
) -> Float[np.ndarray, " steps"]:
    """rho^(epoch // every); 0 < rho <= 1, every >= 1 epochs."""
    every = _validate.integer_at_least("every", every, 1, "count epochs")
    return _rate("rho", rho) ** (_epochs(steps, steps_per_epoch) // every)


def _rate(field: str, value: float) -> float:
    rate = _validate.positive(field, value, "0.9 is usual")
    if rate > 1:
        _validate.fail(field, value, "must be at most 1", "noise decays")
    return rate


def _epochs(steps: int, steps_per_epoch: int) -> np.ndarray:
    steps = _validate.integer_at_least("steps", steps, 1)
    length = _validate.integer_at_least("steps_per_epoch", steps_per_epoch, 1)
    return np.arange(steps) // length
