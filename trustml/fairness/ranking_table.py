"""The areas of `ranking` as a table: intervals, flags and reasons.

    lo, hi = quantiles (1 -+ level)/2 of the replicates that are defined

An identity of 35 texts has an area known to about 0.1: no entry stands without its
interval, and a small group is flagged. An area that is not defined says why. Where more
than 1% of the replicates lack a class, the interval describes the rest of them, and the
entry says so. A bootstrap redraws what it saw: from one negative it has the spread of
none, so with fewer than 5 of a class there is no interval, and with fewer than 30, or
at an area above 0.9, it is too short (`delong` has better ones, for independent rows).

Whether an identity ranks worse than all rows together is read off `against`, the
difference of two areas on the same replicates, never off two intervals; its ends,

    BPSN_i - AUC -+ c se_i,   c = quantile of max_i |D*_i - D_i| / se_i,

hold for all identities that are not flagged together.

Dimension key: `I` identities, `R` replicates.

Example::

    table = ranking_table.summarise(point, replicates, names=communities)
    for row in table.identities:
        print(f'{row.name:12s} {row.bpsn.value:.3f} [{row.bpsn.lo:.3f}, '
              f'{row.bpsn.hi:.3f}] {"; ".join(row.flags)}')
    print(table.power_means['bpsn'].value, table.left_out['bpsn'])
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from trustml import _validate
from trustml.fairness import ranking

AREAS = ("subgroup", "bpsn", "bnsp")

LEAST = 5  # rows of either class that an interval needs
_MOST_UNDEFINED = 0.01  # of the replicates; more is said in the entry
_NAN = float("nan")
# Who has to be there: (members or others) of (negatives, positives).
_NEEDS = {
    "subgroup": ("members", "members"),
    "bpsn": ("members", "others"),
    "bnsp": ("others", "members"),
}


class Entry(NamedTuple):
    """One figure.

    Attributes:
      value: on the data as given; nan if not defined.
      lo: lower end of the interval.
      hi: upper end.
      n_undefined: replicates in which it was not defined.
      reason: why there is no value, or what its interval lacks; '' if all is well.
    """

    value: float
    lo: float
    hi: float
    n_undefined: int
    reason: str


class Identity(NamedTuple):
    """One identity.

    Attributes:
      name: of the identity.
      n: rows that name it.
      n_positive: positives among them.
      subgroup: Entry.
      bpsn: Entry.
      bnsp: Entry.
      aeg_negative: Entry; > 0: members' negatives score high.
      aeg_positive: Entry; > 0: members' positives score high.
      flags: why the group is too small to judge; empty if it is not.
      against: Entry; bpsn minus the area on all rows, with ends that hold for all
        identities without flags together.
    """

    name: str
    n: int
    n_positive: int
    subgroup: Entry
    bpsn: Entry
    bnsp: Entry
    aeg_negative: Entry
    aeg_positive: Entry
    flags: tuple[str, ...]
    against: Entry


class Table(NamedTuple):
    """All of them.

    Attributes:
      overall: the area on all rows.
      identities: one each, in the order of `names`.
      power_means: 'subgroup', 'bpsn', 'bnsp' -> Entry.
      left_out: the same -> identities that are not in that power mean.
      final: the mean of `overall` and the three power means.
      level: of every interval, each by itself.
    """

    overall: Entry
    identities: tuple[Identity, ...]
    power_means: dict[str, Entry]
    left_out: dict[str, int]
    final: Entry
    level: float


def summarise(
    point: ranking.AucBias,
    replicates: ranking.AucBias,
    names: Sequence[str],
    *,
    level: float = 0.95,
    small: int = 30,
    small_class: int = 10,
) -> Table:
    """Point estimates and replicates as one table of plain numbers.

    Args:
      point: of `ranking.auc_bias`, without weights (flags count rows).
      replicates: of `ranking.bootstrap` on the same rows.
      names: I names.
      level: confidence of each interval.
      small: identities with fewer rows are flagged.
      small_class: so are those with fewer positives, or fewer negatives.

    Returns:
      Table.

    Raises:
      ValueError: if names, point and replicates do not go together.
    """
    _validate.in_open_interval("level", level, 0, 1, "0.95 is usual")
    point, drawn = _on_host(point), _on_host(replicates)
    if drawn.overall.ndim != 1 or drawn.subgroup.shape[1:] != point.subgroup.shape:
        raise ValueError(
            f"replicates.subgroup has shape {drawn.subgroup.shape} and point.subgroup "
            f"{point.subgroup.shape}; give the output of ranking.bootstrap for the "
            "same identities."
        )
    if len(names) != point.subgroup.size:
        raise ValueError(
            f"names has {len(names)} entries for {point.subgroup.size} identities; "
            "give one name for each column of membership."
        )

    nan = ""
    if point.n_nan > 0:
        nan = f"{int(point.n_nan)} score(s) are NaN: mask and count such rows"

    def entry(field, at=(), reason="", few=""):
        values = getattr(drawn, field)[(slice(None), *at)]
        found = _entry(getattr(point, field)[at], values, level, nan or reason)
        if np.isnan(found.value) or not few:
            return found
        return found._replace(lo=_NAN, hi=_NAN, reason=f"no interval: {few}")

    identities = []
    for i, name in enumerate(names):
        areas = [
            entry(a, (i,), _lacks(a, point, i, 1), _lacks(a, point, i, LEAST))
            for a in AREAS
        ]
        gaps = [
            entry(
                f"aeg_{word}",
                (i,),
                *(_lacking(f"{word}s", point, i, least) for least in (1, LEAST)),
            )
            for word in ("negative", "positive")
        ]
        n_negative, n_positive = (int(x) for x in point.members[i])
        flags = []
        for what, count, least in (
            ("rows", n_negative + n_positive, small),
            ("positives", n_positive, small_class),
            ("negatives", n_negative, small_class),
        ):
            if count < least:
                flags.append(f"{count} {what}, fewer than {least}")
        n = n_negative + n_positive
        identities.append(
            Identity(
                str(name),
                n,
                n_positive,
                *areas,
                *gaps,
                flags=tuple(flags),
                against=areas[1],
            )
        )
    judged = [not row.flags for row in identities]
    against = _against(point, drawn, np.array(judged, bool), level)
    identities = [
        row._replace(against=one._replace(reason=row.bpsn.reason))
        for row, one in zip(identities, against, strict=True)
    ]
    none = "no identity has this area"
    means = {a: entry("power_means", (k,), none) for k, a in enumerate(AREAS)}
    return Table(
        overall=entry("overall", reason="positives and negatives are needed"),
        identities=tuple(identities),
        power_means=means,
        left_out={a: int(point.left_out[k]) for k, a in enumerate(AREAS)},
        final=entry("final", reason="a part of it is not defined"),
        level=float(level),
    )


def _on_host(areas: ranking.AucBias) -> Any:
    return ranking.AucBias(*(np.asarray(x, np.float64) for x in areas))  # pyrefly: ignore


def _entry(value: float, drawn: np.ndarray, level: float, reason: str) -> Entry:
    kept = drawn[~np.isnan(drawn)]
    missing = drawn.size - kept.size
    if np.isnan(value):
        return Entry(_NAN, _NAN, _NAN, missing, reason)
    if not kept.size:
        return Entry(float(value), _NAN, _NAN, missing, "in no replicate defined")
    lo, hi = np.quantile(kept, [(1 - level) / 2, (1 + level) / 2])
    note = f"in {missing} of {drawn.size} replicates not defined"
    note = note if missing > _MOST_UNDEFINED * drawn.size else ""
    return Entry(float(value), float(lo), float(hi), missing, note)


def _against(point: Any, drawn: Any, judged: np.ndarray, level: float) -> list[Entry]:
    """BPSN minus the area on all rows, with ends by the largest deviation."""
    value, values = point.bpsn - point.overall, drawn.bpsn - drawn.overall[:, None]
    missing = np.isnan(values).sum(axis=0)
    away = np.where(np.isnan(values), 0.0, values - value)
    se = np.sqrt((away**2).sum(axis=0) / np.maximum(len(values) - missing, 1))
    used = judged & (se > 0) & ~np.isnan(value)
    factor = _NAN
    if used.any():
        factor = np.quantile(np.abs(away[:, used] / se[used]).max(axis=1), level)
    half = factor * se
    rows = zip(value, value - half, value + half, missing, strict=True)
    return [Entry(float(v), float(lo), float(hi), int(n), "") for v, lo, hi, n in rows]


def _lacks(area: str, point: Any, i: int, least: int) -> str:
    """What an area has fewer than `least` of; '' if nothing."""
    negatives, positives = _NEEDS[area]
    lacking = (
        _lacking("negatives", point, i, least, (negatives,)),
        _lacking("positives", point, i, least, (positives,)),
    )
    return ", ".join(filter(None, lacking))


def _lacking(kind: str, point: Any, i: int, least: int, who=("members", "others")):
    column, said = ("negatives", "positives").index(kind), []
    for one in who:
        count = int(getattr(point, one)[i, column])
        if count < least:
            number = f"{count or 'no'} {kind[:-1] if count == 1 else kind}"
            said.append(f"{number} among {one}")
    return ", ".join(said)
