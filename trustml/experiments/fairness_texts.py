"""Who is named by texts, and what a classifier makes of it.

A text may name several communities, or none, so a community is compared with the texts
outside of it: rates by Newcombe's limits of two disjoint groups, shares of the error
for all communities together, and areas under the ROC by identity with a bootstrap, or
with DeLong's variance where a bootstrap is too short.

Dimension key: `n` texts, `I` identities or communities.

Example::

    found = fairness_texts.communities(label, guess, member, names, spec, level=0.95)
    table = fairness_texts.areas(score, label, member, names, spec, level=0.95, seed=0)
    table.power_means['bpsn'].value
"""

import functools
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from trustml import specs
from trustml.experiments import fairness_measure
from trustml.fairness import contrasts, counts, delong, ranking, ranking_table

# So many numbers take some ten seconds of one core.
_MOST = 600_000_000
# With fewer of a class, or nearer to 1, a bootstrap of an area is too short.
_FEW, _HIGH = 30, 0.9
_LETTERS = re.compile(r"(\w)(\w+)")


class Community(NamedTuple):
    """Texts that name a community.

    Attributes:
      name: of the community.
      n: texts that name it.
      n_positive: those of them whose label is positive.
      flag: why there are too few, in words; '' if there are not.
      rates: rate -> `Rate` of these texts.
      against: rate -> these texts minus the others, limits that hold for all
        communities together.
    """

    name: str
    n: int
    n_positive: int
    flag: str
    rates: dict[str, fairness_measure.Rate]
    against: dict[str, contrasts.Limits]


def communities(
    label: np.ndarray,
    guess: np.ndarray,
    member: np.ndarray,
    names: Sequence[str],
    spec: specs.FairnessSpec,
    *,
    level: float,
) -> tuple[Community, ...]:
    """Rates of every community beside those of the others.

    Args:
      label: bool[n], positive.
      guess: bool[n].
      member: bool[n, I].
      names: I names.
      spec: its thresholds and `background`.
      level: of the intervals, over all communities.
    """
    made = counts.of_members(member, label, guess)
    patterns, members = np.asarray(made.patterns), np.asarray(made.members)
    inside = np.einsum("ug,uyk->gyk", members.astype(np.int64), patterns)
    # Others that are in no community at all are no background, if so asked.
    kept = members.any(axis=1) if spec.background == "targeted" else True
    outside = np.einsum(
        "ug,uyk->gyk", (~members & np.reshape(kept, (-1, 1))).astype(np.int64), patterns
    )
    rates = {
        rate: fairness_measure.together(rate, inside, level)
        for rate in fairness_measure.RATES
    }
    each = 1.0 - (1.0 - level) / max(1, len(names))
    out = []
    for g, name in enumerate(names):
        against = {}
        for rate in fairness_measure.RATES:
            k, n = contrasts.parts(rate, np.stack([inside[g], outside[g]]))
            pair = int(k[0]), int(n[0]), int(k[1]), int(n[1])
            against[rate] = contrasts.difference(*pair, level=each)
        out.append(
            Community(
                name,
                int(inside[g].sum()),
                int(inside[g, 1].sum()),
                fairness_measure.flag(inside[g], spec),
                {rate: found[g] for rate, found in rates.items()},
                against,
            )
        )
    return tuple(out)


def areas(
    score: np.ndarray,
    label: np.ndarray,
    member: np.ndarray,
    names: Sequence[str],
    spec: specs.FairnessSpec,
    *,
    level: float,
    seed: int,
    background: str = "all",
    clusters: np.ndarray | None = None,
) -> ranking_table.Table:
    """Areas under the ROC by identity, with intervals; see `fairness.ranking`.

    Where an area has fewer than 30 rows of a class, or is above 0.9, its interval is
    DeLong's on the logit scale, unless rows come in clusters.

    Args:
      score: float[n], larger means positive.
      label: bool[n].
      member: bool[n, I].
      names: I names.
      spec: its replicates (fewer where there are very many texts) and thresholds.
      level: of each interval.
      seed: of the bootstrap.
      background: see `ranking.auc_bias`.
      clusters: int[n], texts that are drawn together.
    """
    score = np.asarray(score, np.float32)
    point, drawn = _both(
        jax.random.key(seed),
        score,
        label,
        member,
        clusters,
        replicates(spec, *member.shape),
        background,
    )
    table = ranking_table.summarise(
        jax.device_get(point),
        jax.device_get(drawn),
        names,
        level=level,
        small=spec.least,
        small_class=spec.least_of_label,
    )
    if clusters is not None:
        return table
    known = member.any(axis=1) | (background == "all")

    def entry(row, area, used):
        return _in_closed_form(getattr(row, area), score, label, used, level)

    rows = []
    for row, inside in zip(table.identities, member.T, strict=True):
        outside = known & ~inside
        rows.append(
            row._replace(
                subgroup=entry(row, "subgroup", inside),
                bpsn=entry(row, "bpsn", np.where(label, outside, inside)),
                bnsp=entry(row, "bnsp", np.where(label, inside, outside)),
            )
        )
    return table._replace(identities=tuple(rows))


def _in_closed_form(entry, score, label, used, level) -> ranking_table.Entry:
    """The entry with DeLong's interval, where there is one and the bootstrap fails."""
    fewest = min(np.sum(used & label), np.sum(used & ~label))
    if math.isnan(entry.lo) or (fewest >= _FEW and entry.value <= _HIGH):
        return entry
    found = _delong(score[None], label, used)
    _, lo, hi = delong.interval(found.auc[0], found.covariance[0, 0], level)
    reason = "no interval: the area is 0 or 1" if math.isnan(lo) else ""
    return entry._replace(lo=lo, hi=hi, reason=reason)


_delong = jax.jit(delong.areas)


def replicates(spec: specs.FairnessSpec, n: int, identities: int) -> int:
    """Of the bootstrap of so many texts: those asked for, 100 where that takes long."""
    most = max(100, _MOST // (n * (2 * identities + 1)))
    return min(spec.replicates, most)


@functools.partial(jax.jit, static_argnums=(5, 6))
def _both(key, score, label, member, clusters, replicates, background):
    point = ranking.auc_bias(score, label, member, background=background)
    drawn = ranking.bootstrap(
        key,
        score,
        label,
        member,
        replicates=replicates,
        scheme="bayesian",  # no identity can vanish
        cluster=clusters,
        background=background,
    )
    return point, drawn


def masked(text: str, terms: Sequence[str] = ()) -> str:
    """The text with first letters only, and `terms` as they are.

    Args:
      text: that may offend.
      terms: lower-case words to leave; they name, they do not insult.
    """
    kept = set(terms)
    return _LETTERS.sub(
        lambda m: m[0] if m[0].lower() in kept else m[1] + "\u00b7" * len(m[2]), text
    )
