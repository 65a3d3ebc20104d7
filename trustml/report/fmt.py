"""Figures as text: percentages, intervals, changes with their sign, lists of names.

Example::

    fmt.estimate({'value': .954, 'lo': .93, 'hi': .97})       # '95.4% (93.0–97.0%)'
    fmt.signed(-1.25)                                         # '−1.2'
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from trustml.report import schema


def percent(value: float | None, digits: int = 1) -> str:
    """0.954 -> '95.4%'; None -> 'n/a'."""
    return "n/a" if value is None else f"{100 * value:.{digits}f}%"


def percent_up(value: float) -> str:
    """A limit, rounded up: never understated, by at most 2% of it, 100% only at 1."""
    shown, digits = 100.0, 1
    for digits in (1, 2, 3):
        shown = math.ceil(round(value * 10 ** (2 + digits), 6)) / 10**digits
        if value >= 1 or (shown < 100 and shown <= 102 * value):
            break
    return f"{shown:.{digits}f}%" if shown < 100 else "100%"


def scientific(value: float) -> str:
    """1e-05 -> '1e-5'; 0.01 -> '0.01'."""
    return re.sub(r"e([+-])0+", lambda m: "e" + m[1].strip("+"), f"{value:.3g}")


def estimate(entry: Mapping[str, Any]) -> str:
    """{'value': .954, 'lo': .93, 'hi': .97} -> '95.4% (93.0–97.0%)'."""
    text, ends = percent(schema.number(entry, "value")), ends_of(entry)
    return text if ends is None else f"{text} ({span(ends)}%)"


def points_change(change: Mapping[str, Any]) -> str:
    """A paired change in points: '−3.9 points (−5.5 to −2.3)'."""
    value, ends = schema.number(change, "value"), ends_of(change)
    if value is None:
        return "n/a"
    text = f"{signed(100 * value)} points"
    if ends is None:
        return text
    return f"{text} ({signed(100 * ends[0])} to {signed(100 * ends[1])})"


def signed(value: float, digits: int = 1) -> str:
    """A number with its sign, a true minus and no negative zero."""
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0.0:
        return text
    return ("+" if value > 0 else "\u2212") + text


def ends_of(entry: Any) -> tuple[float, float] | None:
    """Ends of an interval, if it has both."""
    lo, hi = schema.number(entry, "lo"), schema.number(entry, "hi")
    return None if lo is None or hi is None else (lo, hi)


def span(ends: tuple[float, float]) -> str:
    """(0.93, 0.97) -> '93.0–97.0', to be followed by a unit."""
    return f"{100 * ends[0]:.1f}–{100 * ends[1]:.1f}"


def capital(text: str) -> str:
    """`text` with a first capital; a leading ε stays small."""
    return text[:1].upper() + text[1:] if text[:1] != "ε" else text


def listed(parts: Sequence[str]) -> str:
    """['a', 'b', 'c'] -> 'a, b and c'."""
    if len(parts) < 2:
        return "".join(parts)
    return ", ".join(parts[:-1]) + " and " + parts[-1]
