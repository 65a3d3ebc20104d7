"""COMPAS as features: public constants only, and neither race nor sex among them.

ProPublica's file of 7,214 people of Broward County: what the courts knew at screening,
whether they were charged again within two years, and the score that a company sold.
The features are those of Dressel and Farid but for the wording of the charge: age,
priors, three juvenile counts and the degree of the charge. Counts enter as log(1 + x)
over log(41), years as (age - 35) / 12: round numbers, chosen without the rows.

Race, sex and ProPublica's three classes of age are the groups to report by. The score
is one as well, `decile_score` of 1 to 10, so that a report can measure it beside a
model; the file names that column twice, and the first counts. `label` is
`two_year_recid`: a new charge, which is not a new offence, and is itself measured
through who is policed.

Source: Larson et al. 2016, github.com/propublica/compas-analysis; Dressel and Farid
2018, https://doi.org/10.1126/sciadv.aao5580.

Example::

    rows = compas.read(pathlib.Path('data/compas'))['train']
    rows[0]['features'], compas.GROUP_NAMES['race'][rows[0]['race']]
"""

import csv
import gzip
import io
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from trustml.data import dataset

FILE = "compas_two_years.csv.gz"
_COUNTS = ("priors_count", "juv_fel_count", "juv_misd_count", "juv_other_count")
_LOG = math.log1p(40.0)
_DEGREES = {"F": 1.0, "M": 0.0}
_AGE = {
    "Less than 25": "under 25",
    "25 - 45": "25 to 45",
    "Greater than 45": "over 45",
}

FEATURE_NAMES = ("age", *_COUNTS, "felony")
LABEL_NAMES = ("no new charge", "new charge")
SCORES = tuple(str(score) for score in range(1, 11))
GROUP_NAMES = {
    "race": (
        *("African-American", "Caucasian", "Hispanic", "Other", "Asian"),
        "Native American",
    ),
    "sex": ("Female", "Male"),
    "age": tuple(_AGE.values()),
    "decile_score": SCORES,
}
_COLUMNS = (
    *("id", "age", "age_cat", "race", "sex", "c_charge_degree"),
    *_COUNTS,
    *("decile_score", "two_year_recid"),
)


def read(folder: pathlib.Path) -> dict[str, list[dict[str, Any]]]:
    """All people, in the order of the file; the split is by a hash of their number.

    A tenth is 'valid', three tenths are 'test': the rest of a person's row, which many
    share, has no say in it.

    Raises:
      ValueError: if the file is malformed; names the line.
    """
    path = folder / FILE
    try:
        text = gzip.decompress(path.read_bytes()).decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{FILE}={str(path)!r} cannot be unpacked ({error}); copy the file again."
        ) from error
    head, *lines = csv.reader(io.StringIO(text))
    missing = [name for name in _COLUMNS if name not in head]
    if missing:
        raise ValueError(
            f"{FILE}={str(path)!r} lacks the column {missing[0]!r}; use the published "
            "file."
        )
    at = {name: head.index(name) for name in _COLUMNS}  # the first of two
    out: dict[str, list[dict[str, Any]]] = {"train": [], "valid": [], "test": []}
    for n, line in enumerate(lines, 2):
        row = {k: line[place] if place < len(line) else "" for k, place in at.items()}
        try:
            made = {"features": features(row), "label": _label(row), **groups(row)}
        except ValueError as error:
            raise ValueError(f"{FILE}={str(path)!r} line {n} {error}") from error
        at_fraction = dataset.hash_fraction(row["id"].encode())
        split = (
            "valid" if at_fraction < 0.1 else "test" if at_fraction < 0.4 else "train"
        )
        out[split].append(made)
    return out


def features(row: Mapping[str, str]) -> np.ndarray:
    """Features of one person, float32[D], in the order of `FEATURE_NAMES`.

    Args:
      row: column name -> text, as in the published file.

    Raises:
      ValueError: if a number does not parse, or the degree of the charge is not known.
    """
    degree = _DEGREES.get(row["c_charge_degree"])
    if degree is None:
        raise _unknown(row, "c_charge_degree")
    counts = [math.log1p(_whole(row, name)) / _LOG for name in _COUNTS]
    return np.array([(_whole(row, "age") - 35.0) / 12.0, *counts, degree], np.float32)


def groups(row: Mapping[str, str]) -> dict[str, int]:
    """Sensitive attributes and the score: group name -> index in `GROUP_NAMES`."""
    named = {
        "race": ("race", row["race"]),
        "sex": ("sex", row["sex"]),
        "age": ("age_cat", _AGE.get(row["age_cat"], "")),
        "decile_score": ("decile_score", row["decile_score"]),
    }
    found = {}
    for name, (column, value) in named.items():
        if value not in GROUP_NAMES[name]:
            raise _unknown(row, column)
        found[name] = GROUP_NAMES[name].index(value)
    return found


def _label(row) -> str:
    if row["two_year_recid"] not in ("0", "1"):
        raise _unknown(row, "two_year_recid")
    return LABEL_NAMES[int(row["two_year_recid"])]


def _whole(row, column: str) -> int:
    if not row[column].isdecimal():
        raise ValueError(
            f"has {column}={row[column]!r}, which is no whole number >= 0; use the "
            "published file."
        )
    return int(row[column])


def _unknown(row, column: str) -> ValueError:
    return ValueError(
        f"has {column}={row[column]!r}, which the published file never has; use that."
    )
