"""Checks of arguments, in one voice.

Every check returns the value it was given, or raises a `ValueError` of one sentence
that names the field, the value, the bound and the cure:
`privacy.l2_clip_norm=-1.0 must be a finite number > 0; 1.0 is usual.`
Only static (Python) values are checked here, never traced arrays.

Example::

    def clipped_grad(loss, *, l2_clip_norm, rule='flat'):
        l2_clip_norm = _validate.positive('l2_clip_norm', l2_clip_norm, 'try 1.0')
        rule = _validate.one_of('rule', rule, ('flat', 'per_layer'))
"""

import difflib
import math
import numbers
import os
import pathlib
from collections.abc import Iterable
from typing import Any, NoReturn

import numpy as np


def fail(field: str, value: Any, bound: str, cure: str = "") -> NoReturn:
    """Raises the `ValueError` that every check here raises.

    Args:
      field: full name of the field, such as `privacy.delta`.
      value: what it was set to.
      bound: what was expected, such as `must be positive`.
      cure: what to do about it; may be empty.
    """
    raise ValueError(f"{field}={value!r} {bound}" + (f"; {cure}." if cure else "."))


def nearest(name: Any, choices: Iterable[str]) -> str | None:
    """The choice that is spelled most like `name`, or None where none is close."""
    by_lower = {str(choice).lower(): str(choice) for choice in choices}
    found = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0.5)
    return by_lower[found[0]] if found else None


def _number(field: str, value: Any, cure: str) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        fail(field, value, "must be a number", cure)
    return float(value)


def finite(field: str, value: Any, cure: str = "") -> float:
    """`value` as a float, if it is a finite number.

    Raises:
      ValueError: if it is not a number, NaN or infinite.
    """
    number = _number(field, value, cure)
    if not math.isfinite(number):
        fail(field, value, "must be finite", cure)
    return number


def positive(field: str, value: Any, cure: str = "") -> float:
    """`value` as a float, if it is finite and > 0; `ValueError` otherwise."""
    number = _number(field, value, cure)
    if not (number > 0 and math.isfinite(number)):
        fail(field, value, "must be a finite number > 0", cure)
    return number


def non_negative(field: str, value: Any, cure: str = "") -> float:
    """`value` as a float, if it is finite and >= 0; `ValueError` otherwise."""
    number = _number(field, value, cure)
    if not (number >= 0 and math.isfinite(number)):
        fail(field, value, "must be a finite number >= 0", cure)
    return number


def in_open_interval(
    field: str, value: Any, low: float, high: float, cure: str = ""
) -> float:
    """`value` as a float, if low < value < high; `ValueError` otherwise."""
    number = _number(field, value, cure)
    if not low < number < high:
        fail(field, value, f"must lie strictly between {low:g} and {high:g}", cure)
    return number


def in_half_open_interval(
    field: str, value: Any, low: float, high: float, cure: str = ""
) -> float:
    """`value` as a float, if low <= value < high; `ValueError` otherwise."""
    number = _number(field, value, cure)
    if not low <= number < high:
        fail(field, value, f"must be at least {low:g} and below {high:g}", cure)
    return number


def integer_at_least(field: str, value: Any, low: int, cure: str = "") -> int:
    """`value` as an int, if it is an integer >= low; `ValueError` otherwise.

    NumPy integers count as integers; booleans and 3.0 do not.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        fail(field, value, f"must be an integer >= {low}", cure)
    if value < low:
        fail(field, value, f"must be >= {low}", cure)
    return int(value)


def numbers_of(field: str, value: Any, cure: str = "") -> np.ndarray:
    """`value` as a float64 array, if it is one of numbers.

    Raises:
      ValueError: if it holds text or other things, or rows of different length.
    """
    try:
        found = np.asarray(value)
        if found.dtype.kind in "biufV":  # V: bfloat16 and its kin
            return found.astype(np.float64)
        what = f"{found.dtype.type.__name__}{list(found.shape)}"
    except (TypeError, ValueError):
        what = "a list of unequal rows or of other things"
    raise ValueError(
        f"{field} is {what} and must be an array of numbers; "
        f"{cure or 'give one number for each entry'}."
    )


def boolean(field: str, value: Any, cure: str = "") -> bool:
    """`value`, if it is True or False; `ValueError` otherwise."""
    if not isinstance(value, bool):
        fail(field, value, "must be True or False", cure)
    return value


def one_of(field: str, value: Any, choices: Iterable[str], cure: str = "") -> str:
    """`value`, if it is one of the names in `choices`.

    Raises:
      ValueError: otherwise; the sentence lists the names and suggests the nearest.
    """
    choices = tuple(choices)
    if isinstance(value, str) and value in choices:
        return value
    listed = ", ".join(choices)
    guess = nearest(value, choices)
    hint = f"did you mean {guess!r}?" if guess else cure
    bound = f"is not one of {listed}"
    if hint.endswith("?"):
        raise ValueError(f"{field}={value!r} {bound}; {hint}")
    fail(field, value, bound, hint)


def existing_file(field: str, path: Any, cure: str = "") -> pathlib.Path:
    """`path` as a `pathlib.Path`, if a file is there.

    Raises:
      FileNotFoundError: if not; the sentence says where it was looked for, and names
        the most similar file of that directory.
      ValueError: if it is not a path, or is a directory.
    """
    if not isinstance(path, (str, os.PathLike)) or not str(path):
        fail(field, path, "must be the path of a file", cure)
    full = pathlib.Path(path).expanduser().absolute()
    if full.is_file():
        return full
    if full.is_dir():
        fail(field, str(path), "is a directory, not a file", cure)
    names = [p.name for p in full.parent.iterdir()] if full.parent.is_dir() else []
    guess = nearest(full.name, names)
    hint = f"did you mean {guess!r}?" if guess else (cure or "check the path") + "."
    where = f"is not there (looked for {full})"
    raise FileNotFoundError(f"{field}={str(path)!r} {where}; {hint}")


def existing_directory(field: str, path: Any, cure: str = "") -> pathlib.Path:
    """`path` as a `pathlib.Path`, if a directory is there.

    Raises:
      FileNotFoundError: if not; the sentence says where it was looked for.
    """
    if not isinstance(path, (str, os.PathLike)) or not str(path):
        fail(field, path, "must be the path of a directory", cure)
    full = pathlib.Path(path).expanduser().absolute()
    if full.is_dir():
        return full
    where = f"is not a directory (looked for {full})"
    raise FileNotFoundError(
        f"{field}={str(path)!r} {where}; {cure or 'check the path'}."
    )
