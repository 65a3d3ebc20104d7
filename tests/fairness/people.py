"""People of the public tables, and rows that have given counts."""

import csv
import gzip

import numpy as np


def table(path):
    with gzip.open(path, "rt") as file:
        yield from csv.DictReader(file)


def codes(values):
    names = sorted(set(values))
    return names, np.array([names.index(v) for v in values])


def compas(data_dir):
    """Race, label, guess of all 7,214 rows."""
    rows = list(table(data_dir / "compas" / "compas_two_years.csv.gz"))
    # The first `decile_score` of the file; DictReader keeps the last of a name.
    with gzip.open(data_dir / "compas" / "compas_two_years.csv.gz", "rt") as file:
        lines = list(csv.reader(file))
    column = lines[0].index("decile_score")
    decile = np.array([int(line[column]) for line in lines[1:]])
    names, race = codes([row["race"] for row in rows])
    label = np.array([int(row["two_year_recid"]) for row in rows])
    return names, race, label, (decile >= 5).astype(int)


def rows_of(cells):
    place = np.indices(cells.shape).reshape(3, -1)
    return np.repeat(place, cells.reshape(-1), axis=1)
