"""Noise from a target epsilon, and a store of what the accountant has answered.

`calibrate` solves epsilon(z) = target in logarithms of both: start from RDP, correct by
the exact accountant until 0.9995 target <= epsilon <= target, never above it. z has six
significant digits and is the same on every run. Searches and evaluations are kept in
`cache_dir`, if there is one, each under a hash of all that it depends on.

Example::

    def event_of(z):
        return sampler.event(z * norm, sensitivity, steps, relation)

    z = calibration.calibrate(event_of, 3.0, 1e-5, relation, 'pld', cache_dir=None)
    calibration.evaluate(event_of(z), 1e-5, relation, 'pld', cache_dir=None)    # <= 3
"""

import hashlib
import json
import math
import os
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

from scipy import optimize

from trustml import _validate
from trustml.privacy import accounting

# A calibrated epsilon lies in [_ACCEPT, 1] times the target; the search aims between.
_ACCEPT, _AIM = 0.9995, 0.99975
_SEARCH_VERSION = 1
_SMALLEST, _LARGEST = 0.03, 1e6  # noise multipliers that are searched
_MOST_EVALUATIONS = 60


def evaluate(
    event: accounting.Event,
    delta: float,
    relation: accounting.Relation,
    accountant: str,
    cache_dir: str | os.PathLike | None,
) -> float:
    """`accounting.epsilon`, kept in `cache_dir`."""

    def compute() -> float:
        return accounting.epsilon(event, delta, relation, accountant)

    key = _cache_key("epsilon", event, delta, relation, accountant)
    return _cached(cache_dir, key, compute)


def calibrate(
    event_of: Callable[[float], accounting.Event],
    target: float,
    delta: float,
    relation: accounting.Relation,
    accountant: str,
    cache_dir: str | os.PathLike | None,
) -> float:
    """The smallest noise multiplier found whose epsilon does not exceed the target.

    Args:
      event_of: noise multiplier -> event of the whole training.
      target: epsilon > 0.
      delta: in (0, 1).
      relation: neighbouring relation.
      accountant: one of `accounting.ACCOUNTANTS`.
      cache_dir: directory for results; None: keep nothing on disk.

    Raises:
      ValueError: if no noise multiplier in [0.03, 1e6] reaches the target.
    """
    cure = "ask for an epsilon such as 1.0 or 8.0"
    target = _validate.positive("privacy.epsilon", target, cure)

    def exact(z: float) -> float:
        return evaluate(event_of(z), delta, relation, accountant, cache_dir)

    def rough(z: float) -> float:
        return accounting.rough_epsilon(event_of(z), delta, relation)

    def search() -> float:
        return _search(rough, exact, target, delta)

    key = _cache_key("calibrate", event_of(1.0), delta, relation, accountant)
    key |= {"target": target, "search": _SEARCH_VERSION}
    return _cached(cache_dir, key, search)


def _search(
    rough: Callable[[float], float],
    exact: Callable[[float], float],
    target: float,
    delta: float,
) -> float:
    """A z of six digits whose epsilon is in [_ACCEPT, 1] * target, next to smallest.

    x = log z, y = log epsilon: first x from the rough estimate, second by its slope,
    then by interpolation of x over y through the last three points, always inside the
    bracket known so far, and by bisection where that does not help.
    """
    low, high = math.log(_SMALLEST), math.log(_LARGEST)
    aim = math.log(_AIM * target)
    points: list[tuple[float, float]] = []
    too_little_noise, enough = False, None

    def excess(x: float) -> float:
        return _log(rough(math.exp(x))) - aim

    if excess(low) > 0 > excess(high):
        x = optimize.brentq(excess, low, high, xtol=1e-4)
    else:
        x = 0.0
    slope = min((excess(x + 0.05) - excess(x - 0.05)) / 0.1, -0.5)
    for attempt in range(_MOST_EVALUATIONS):
        z = float(f"{math.exp(x):.6g}")
        x, found = math.log(z), exact(z)
        if _ACCEPT * target <= found <= target:
            return z
        if found > target:
            low, too_little_noise = max(low, x), True
        else:
            high, enough = min(high, x), z
        if high - low < 2e-6:
            break
        points = [*points[-2:], (x, _log(found))]
        if len(points) == 1:
            step = (aim - points[0][1]) / slope
        else:
            step = _interpolate(points, aim) - x
        # A step of more than a factor of 2 trusts the curve too far from where it is
        # known, unless nothing better is known yet.
        x += min(max(step, -0.7), 0.7) if attempt else step
        if not low < x < high or attempt > 8:
            x = (low + high) / 2
        if attempt > 8 and not too_little_noise:
            x = low
        elif attempt > 8 and enough is None:
            x = high
    if enough is not None and too_little_noise:
        # Epsilon drops from above to below the target within the last digits of z (it
        # may fall to 0 at once): the first z below keeps the promise.
        return enough
    _validate.fail(
        "privacy.epsilon",
        target,
        f"is out of reach at delta={delta:g}: every noise multiplier from "
        f"{_SMALLEST:g} to {_LARGEST:g} gives "
        + ("a larger one" if enough is None else "a smaller one"),
        "ask for another epsilon, change delta, the number of steps or the batch size",
    )


def _interpolate(points: list[tuple[float, float]], y: float) -> float:
    """The x at y of the polynomial through (y_i, x_i), by Lagrange's formula."""
    known = {at: x for x, at in points}
    return sum(
        x * math.prod((y - other) / (at - other) for other in known if other != at)
        for at, x in known.items()
    )


def _log(value: float) -> float:
    return math.log(min(max(value, 1e-12), 1e12))


def _cache_key(
    kind: str,
    event: accounting.Event,
    delta: float,
    relation: accounting.Relation,
    accountant: str,
) -> dict[str, Any]:
    return {
        "kind": kind,
        "event": accounting.describe(event),
        "delta": delta,
        "relation": relation.name,
        "accountant": accountant,
        "version": accounting.VERSION,
        "discretization": accounting.DISCRETIZATION,
    }


def _cached(
    cache_dir: str | os.PathLike | None,
    key: dict[str, Any],
    compute: Callable[[], float],
) -> float:
    """The number kept under `key`, or `compute()`, which is then kept.

    A file that cannot be read, or does not vouch for its number, counts as absent; a
    directory that cannot be written to costs time only.
    """
    if cache_dir is None:
        return compute()
    path = pathlib.Path(cache_dir) / f"{digest(key)}.json"
    try:
        kept = json.loads(path.read_text())
        number = float(kept["value"])
        if kept["check"] == digest([key, number]) and not math.isnan(number):
            return number
    except (OSError, ValueError, KeyError, TypeError):
        pass
    number = float(compute())
    record = {"key": key, "value": number, "check": digest([key, number])}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Written whole beside its place and then moved there: never half a file.
        with tempfile.NamedTemporaryFile(
            "w", dir=path.parent, suffix=".part", delete=False
        ) as file:
            json.dump(record, file)
        os.replace(file.name, path)
    except OSError:
        pass
    return number


def digest(content: Any) -> str:
    """Hexadecimal SHA-256 of `content` as JSON with sorted keys."""
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
