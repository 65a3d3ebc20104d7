"""UCI Adult as features: public constants only, nothing estimated from the data.

Numeric columns are shifted and scaled by round numbers chosen from the published
description of the census extract (ages of adults, school years, a 40-hour week);
capital gains and losses, which are mostly 0, by log(1 + x) over log(1 + 100,000).
Categories are one-hot over the fixed list of `adult.names`, `?` (not stated) included.
Statistics of the training rows would be releases of private data that no epsilon
covers; these constants are not.

Left out: `fnlwgt`, a weight of the census and no attribute of the person, and
`education`, which `education_num` repeats. `sex` and `race` are among the features,
as in the usual benchmark, and with the age bucket they are the groups to report by.

Source: Becker and Kohavi 1996, https://doi.org/10.24432/C5XW20.

Example::

    features = adult.features(row)              # float32[D], row: column -> string
    adult.FEATURE_NAMES[0], adult.groups(row)   # 'age', {'sex': 1, 'race': 4, 'age': 2}
"""

import math
from collections.abc import Mapping

import numpy as np

_LOG = math.log1p(100_000.0)

# Column -> (centre, scale); the feature is (x - centre) / scale.
_LINEAR = {
    "age": (40.0, 15.0),  # years; the extract holds people of 17 to 90
    "education_num": (10.0, 2.5),  # 1 to 16; 9 is high school, 13 a bachelor's degree
    "hours_per_week": (40.0, 12.0),  # a full week is 40
}
_LOGARITHMIC = ("capital_gain", "capital_loss")  # dollars

NUMBERS = (*_LINEAR, *_LOGARITHMIC)
CATEGORIES = {
    "workclass": (
        "Private|Self-emp-not-inc|Self-emp-inc|Federal-gov|Local-gov|State-gov|"
        "Without-pay|Never-worked|?"
    ),
    "marital_status": (
        "Married-civ-spouse|Divorced|Never-married|Separated|Widowed|"
        "Married-spouse-absent|Married-AF-spouse"
    ),
    "occupation": (
        "Tech-support|Craft-repair|Other-service|Sales|Exec-managerial|Prof-specialty|"
        "Handlers-cleaners|Machine-op-inspct|Adm-clerical|Farming-fishing|"
        "Transport-moving|Priv-house-serv|Protective-serv|Armed-Forces|?"
    ),
    "relationship": "Wife|Own-child|Husband|Not-in-family|Other-relative|Unmarried",
    "race": "White|Asian-Pac-Islander|Amer-Indian-Eskimo|Other|Black",
    "sex": "Female|Male",
    "native_country": (
        "United-States|Cambodia|England|Puerto-Rico|Canada|Germany|"
        "Outlying-US(Guam-USVI-etc)|India|Japan|Greece|South|China|Cuba|Iran|Honduras|"
        "Philippines|Italy|Poland|Jamaica|Vietnam|Mexico|Portugal|Ireland|France|"
        "Dominican-Republic|Laos|Ecuador|Taiwan|Haiti|Columbia|Hungary|Guatemala|"
        "Nicaragua|Scotland|Thailand|Yugoslavia|El-Salvador|Trinadad&Tobago|Peru|Hong|"
        "Holand-Netherlands|?"
    ),
}
_ONE_HOT = {column: tuple(names.split("|")) for column, names in CATEGORIES.items()}
_AGE_EDGES = (29, 44, 59)  # last year of every age bucket but the last

FEATURE_NAMES = (
    *NUMBERS,
    *(f"{column}={name}" for column, names in _ONE_HOT.items() for name in names),
)
LABEL_NAMES = ("<=50K", ">50K")
GROUP_NAMES = {
    "sex": _ONE_HOT["sex"],
    "race": _ONE_HOT["race"],
    "age": ("up to 29", "30–44", "45–59", "60 or more"),
}
_PLACE = {name: n for n, name in enumerate(FEATURE_NAMES)}


def features(row: Mapping[str, str]) -> np.ndarray:
    """Features of one person, float32[D], in the order of `FEATURE_NAMES`.

    Args:
      row: column name -> text, as in the published files.

    Raises:
      ValueError: if a number does not parse, or a category is not in the public list.
    """
    out = np.zeros(len(FEATURE_NAMES), np.float32)
    for n, (column, (centre, scale)) in enumerate(_LINEAR.items()):
        out[n] = (_number(row, column) - centre) / scale
    for n, column in enumerate(_LOGARITHMIC, len(_LINEAR)):
        out[n] = math.log1p(_number(row, column)) / _LOG
    for column in _ONE_HOT:
        place = _PLACE.get(f"{column}={row[column]}")
        if place is None:
            raise ValueError(
                f"has {column}={row[column]!r}, which is not in the public list of "
                "adult.names; use the published files."
            )
        out[place] = 1.0
    return out


def groups(row: Mapping[str, str]) -> dict[str, int]:
    """Sensitive attributes of one person: group name -> index in `GROUP_NAMES`."""
    return {
        "sex": _ONE_HOT["sex"].index(row["sex"]),
        "race": _ONE_HOT["race"].index(row["race"]),
        "age": int(np.searchsorted(_AGE_EDGES, _number(row, "age"), side="left")),
    }


def _number(row: Mapping[str, str], column: str) -> float:
    try:
        value = float(row[column])
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ValueError(
            f"has {column}={row[column]!r}, which is no number >= 0; "
            "use the published files."
        )
    return value
