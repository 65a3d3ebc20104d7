"""Gaps, rates and calibration of a classifier by group, from one table of counts each.

    counts of (group, label, guess) -> rates with limits that hold together
                                    -> gaps with limits, beside their noise floor
                                    -> signed contrasts with a reference group

Every attribute, and every pair of attributes, is one table [G, 2, 2]; the label is
binary, `positive` or not. Groups that are too small are measured and flagged, and left
out of gaps. Communities overlap, so each is set against the examples outside of it.

Dimension key: `n` examples, `G` groups.

Example::

    found = fairness_measure.attribute('sex', cells, names, spec, level=0.95, seed=0)
    found.gaps['demographic parity difference'].lo
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from trustml import intervals as host_intervals
from trustml import specs
from trustml.fairness import contrasts, counts, floors, gaps, intervals, rates

RATES = ("selection", "fpr", "fnr", "ppv", "accuracy")
PARITY = "demographic parity difference"
ODDS = "equalized odds difference"
FPR, FNR = "false positive rate difference", "equal opportunity difference"
_BOOTSTRAPPED = (
    "demographic parity, to overall",
    "equalized odds, to overall",
    "differential fairness",
)
_BINS, _FINE = 10, 500  # of calibration: coarse bins, and fine ones that fill them
_CALIBRATED = 200  # draws of labels for the floor of calibration errors


class Decisions(NamedTuple):
    """What somebody decided about examples.

    Attributes:
      name: who, such as 'the model'.
      label: bool[n], is positive.
      guess: bool[n], was guessed to be.
      probability: float[n] of positive; None where nobody said.
      groups: attribute -> int[n]; negative is unknown.
    """

    name: str
    label: np.ndarray
    guess: np.ndarray
    probability: np.ndarray | None
    groups: Mapping[str, np.ndarray]


class Rate(NamedTuple):
    """k of n with limits that hold for all groups together."""

    value: float
    lo: float
    hi: float
    k: int
    n: int


class Gap(NamedTuple):
    """A gap between groups beside what chance gives.

    Attributes:
      value: the gap.
      lo: lower end of its interval.
      hi: upper end.
      floor_mean: its mean where groups are shuffled.
      floor: its 95% quantile there (5% for ratios).
      p_value: share of shuffles that are as far from none.
      high: group with the highest rate; '' where no two rates make the gap.
      low: group with the lowest.
      by: 'pairs' or 'bootstrap'.
    """

    value: float
    lo: float
    hi: float
    floor_mean: float
    floor: float
    p_value: float
    high: str
    low: str
    by: str


class Calibration(NamedTuple):
    """Whether scores of a group mean what they say.

    Attributes:
      name: of the group.
      over: mean score minus share of positives; above 0, scores are too high.
      ece: expected calibration error, 10 bins of equal width.
      ece_floor: its 95% quantile where scores are right.
    """

    name: str
    over: host_intervals.Interval
    ece: float
    ece_floor: float


class Attribute(NamedTuple):
    """All figures of one attribute, or of two crossed.

    Attributes:
      name: such as 'sex' or 'sex x race'.
      names: of its groups, those without examples left out.
      cells: int64[G, 2, 2].
      flags: why a group is too small, in words; '' if it is not.
      reference: number of the group that others are compared with.
      rates: rate -> one `Rate` a group.
      gaps: name -> `Gap`, over groups without flags.
      signed: name -> a `contrasts.Limits` for each group, minus (or over) the
        reference, of the favourable label.
      calibration: one a group; empty without probabilities.
      unknown: examples whose group is not known.
    """

    name: str
    names: tuple[str, ...]
    cells: np.ndarray
    flags: tuple[str, ...]
    reference: int
    rates: dict[str, tuple[Rate, ...]]
    gaps: dict[str, Gap]
    signed: dict[str, tuple[contrasts.Limits, ...]]
    calibration: tuple[Calibration, ...]
    unknown: int


def attributes(
    decided: Decisions,
    group_names: Mapping[str, Sequence[str]],
    config: specs.RunConfig,
    *,
    flip: bool,
) -> list[Attribute]:
    """Every attribute of `decided.groups`, and every pair where the config asks.

    Args:
      decided: the decisions.
      group_names: attribute -> names of its groups.
      config: its `fairness` section, level and seed.
      flip: whether positive is the unfavourable label.
    """
    spec, found = config.fairness, []
    wanted: list[tuple[str, ...]] = [(name,) for name in decided.groups]
    if spec.intersections:
        wanted += itertools.combinations(decided.groups, 2)
    references = dict(entry.split("=", 1) for entry in spec.reference)
    for of in wanted:
        sizes = tuple(len(group_names[name]) for name in of)
        group = np.stack([decided.groups[name] for name in of], axis=1)
        made = counts.count(group, decided.label, decided.guess, groups=sizes)
        names = [
            ", ".join(parts)
            for parts in itertools.product(*(group_names[name] for name in of))
        ]
        flat = np.ravel_multi_index(tuple(np.maximum(group, 0).T), sizes)
        one = attribute(
            " \u00d7 ".join(of),
            np.asarray(counts.flatten(made.cells)).astype(np.int64),
            names,
            spec,
            level=config.report.level,
            seed=config.seed,
            reference=references.get(of[0], "") if len(of) == 1 else "",
            flip=flip,
            unknown=int(made.unknown),
        )
        if decided.probability is not None and len(of) == 1:
            flat = np.where(np.all(group >= 0, axis=1), flat, -1)
            places = [names.index(name) for name in one.names]
            one = one._replace(
                calibration=_calibration(
                    decided, flat, one.names, places, config.report.level, config.seed
                )
            )
        found.append(one)
    return found


def attribute(
    name: str,
    cells: np.ndarray,
    names: Sequence[str],
    spec: specs.FairnessSpec,
    *,
    level: float,
    seed: int,
    reference: str = "",
    flip: bool = False,
    unknown: int = 0,
) -> Attribute:
    """Rates, gaps and contrasts from counts; see `Attribute`.

    Args:
      name: of the attribute.
      cells: int[G, 2, 2], [.., is positive, was guessed positive].
      names: of the groups.
      spec: thresholds of flags, and replicates.
      level: of the intervals.
      seed: of bootstraps and shuffles.
      reference: name of a group; '' takes the largest.
      flip: whether positive is the unfavourable label.
      unknown: examples in no group.
    """
    there = np.flatnonzero(cells.sum(axis=(1, 2)) > 0)
    cells, names = cells[there], tuple(names[g] for g in there.tolist())
    sizes = cells.sum(axis=(1, 2))
    base = names.index(reference) if reference in names else int(np.argmax(sizes))
    flags = tuple(flag(table, spec) for table in cells)
    judged = [g for g, why in enumerate(flags) if not why]
    return Attribute(
        name,
        names,
        cells,
        flags,
        base,
        {rate: together(rate, cells, level) for rate in RATES},
        _gaps(cells[judged], [names[g] for g in judged], spec, level, seed),
        _signed(cells[:, ::-1, ::-1] if flip else cells, base, spec, level, seed),
        (),
        unknown,
    )


def together(rate: str, cells: np.ndarray, level: float) -> tuple[Rate, ...]:
    """A rate of every group, with Wilson limits that hold together (Bonferroni)."""
    k_G, n_G = contrasts.parts(rate, cells)
    each = 1.0 - (1.0 - level) / max(1, len(k_G))
    return tuple(
        Rate(
            k / n if n else math.nan,
            *host_intervals.wilson(int(k), int(n), each),
            int(k),
            int(n),
        )
        for k, n in zip(k_G, n_G, strict=True)
    )


def flag(cells: np.ndarray, spec: specs.FairnessSpec) -> str:
    """Why a group [2, 2] is too small to judge, in words; '' if it is not."""
    small = intervals.small_groups(
        cells[None], least=spec.least, least_of_label=spec.least_of_label
    )
    (negatives, positives), said = cells.sum(axis=1), []
    if small.few[0]:
        said.append(f"{negatives + positives} examples")
    if small.few_positives[0]:
        said.append(f"{positives} positives")
    if small.few_negatives[0]:
        said.append(f"{negatives} negatives")
    return ", ".join(said)


def _measures(cells):
    """All gaps as functions of counts, for bootstraps and shuffles."""
    return {
        PARITY: gaps.demographic_parity_difference(cells),
        "demographic parity ratio": gaps.demographic_parity_ratio(cells),
        FNR: gaps.equal_opportunity_difference(cells),
        "equal opportunity ratio": gaps.equal_opportunity_ratio(cells),
        FPR: gaps.difference(cells, "fpr"),
        ODDS: gaps.equalized_odds_difference(cells),
        "equalized odds ratio": gaps.equalized_odds_ratio(cells),
        "predictive parity difference": gaps.difference(cells, "ppv"),
        "accuracy difference": gaps.difference(cells, "accuracy"),
        **_bootstrapped(cells),
    }


def _bootstrapped(cells):
    """Those that are no difference or ratio of two groups' rates."""
    found = (
        gaps.demographic_parity_difference(cells, method="to_overall"),
        gaps.equalized_odds_difference(cells, method="to_overall"),
        gaps.differential_fairness(cells),
    )
    return dict(zip(_BOOTSTRAPPED, found, strict=True))


def _against(cells, base):
    """AIF360's means of two differences, of every group with group `base`."""
    found = {name: rates.rate(name, cells) for name in ("fpr", "tpr", "ppv", "for_")}
    apart = {name: rate - rate[base][None] for name, rate in found.items()}
    return {
        "average odds difference": (apart["fpr"] + apart["tpr"]) / 2,
        "predictive value difference": (apart["ppv"] + apart["for_"]) / 2,
    }


@jax.jit
def _figures(tables, base):
    """All measures of tables [R, G, 2, 2], by one program for seen and drawn ones."""
    return jax.vmap(lambda cells: {**_measures(cells), **_against(cells, base)})(tables)


def _figures_of(cells, spec, seed, base) -> dict[str, np.ndarray]:
    """Every measure of the table itself, then of its bootstrap replicates."""
    drawn = intervals.resample_on_host(seed, cells, spec.replicates - 1)
    tables = _padded(np.concatenate([cells[None], drawn]))
    found = jax.device_get(_figures(tables, base))
    return {name: np.asarray(x, np.float64) for name, x in found.items()}


def _quantiles(drawn: np.ndarray, level: float) -> contrasts.Limits:
    """The first value with quantiles of the others that are defined."""
    value, rest = float(drawn[0]), drawn[1:][~np.isnan(drawn[1:])]
    if math.isnan(value) or not rest.size:
        return contrasts.Limits(value, math.nan, math.nan)
    lo, hi = np.quantile(rest, [(1 - level) / 2, (1 + level) / 2])
    return contrasts.Limits(value, float(lo), float(hi))


def _padded(cells: np.ndarray) -> np.ndarray:
    """With empty groups up to a multiple of 32, which no gap sees: one compilation."""
    groups = cells.shape[-3]
    wide = np.zeros((*cells.shape[:-3], -(-groups // 32) * 32, 2, 2), np.float32)
    wide[..., :groups, :, :] = cells
    return wide


def _gaps(cells, names, spec, level, seed) -> dict[str, Gap]:
    if len(names) < 2:
        return {}
    parts = {rate: contrasts.parts(rate, cells) for rate in (*RATES, "tpr")}

    def apart(rate, family=1):
        return contrasts.largest_difference(*parts[rate], level=level, family=family)

    def over(rate, family=1):
        return contrasts.smallest_ratio(*parts[rate], level=level, family=family)

    limits = {
        PARITY: apart("selection"),
        "demographic parity ratio": over("selection"),
        FNR: apart("tpr"),
        "equal opportunity ratio": over("tpr"),
        FPR: apart("fpr"),
        ODDS: contrasts.worst([apart("tpr", 2), apart("fpr", 2)]),
        "equalized odds ratio": contrasts.worst(
            [over("tpr", 2), over("fpr", 2)], smallest=True
        ),
        "predictive parity difference": apart("ppv"),
        "accuracy difference": apart("accuracy"),
    }
    drawn = _figures_of(cells, spec, seed, 0)
    shuffled = floors.shuffled(seed, cells, spec.replicates)
    chance = jax.device_get(_figures(_padded(shuffled), 0))
    out = {}
    for name in [*limits, *_BOOTSTRAPPED]:
        value = float(drawn[name][0])
        floor = _floor(value, chance[name], name.endswith("ratio"))
        if name in limits:
            one, by = limits[name], "pairs"
        else:
            one, by = _quantiles(drawn[name], level), "bootstrap"
        pair = (names[one.high], names[one.low]) if one.high >= 0 else ("", "")
        out[name] = Gap(value, one.lo, one.hi, *floor, *pair, by)
    return out


def _floor(value: float, chance: np.ndarray, ratio: bool):
    """Mean, the quantile that chance alone reaches one time in 20, and the p-value."""
    chance = chance[~np.isnan(chance)]
    if math.isnan(value) or not chance.size:
        return math.nan, math.nan, math.nan
    # Figures are sums of float32; one that is equal must count as equal.
    beyond = chance <= value + 1e-6 if ratio else chance >= value - 1e-6
    quantile = np.quantile(chance, 0.05 if ratio else 0.95)
    p_value = (1 + beyond.sum()) / (1 + chance.size)
    return float(chance.mean()), float(quantile), float(p_value)


def _signed(cells, base, spec, level, seed):
    """Contrasts of every group with the reference; class 1 is favourable here."""
    groups = range(len(cells))
    parts = {rate: contrasts.parts(rate, cells) for rate in ("selection", "tpr")}

    def of(make, rate):
        k, n = parts[rate]
        return tuple(
            make(int(k[g]), int(n[g]), int(k[base]), int(n[base]), level=level)
            for g in groups
        )

    drawn = _figures_of(cells, spec, seed, base)
    return {
        "statistical parity difference": of(contrasts.difference, "selection"),
        "disparate impact": of(contrasts.ratio, "selection"),
        "equal opportunity difference": of(contrasts.difference, "tpr"),
        **{
            name: tuple(_quantiles(drawn[name][:, g], level) for g in groups)
            for name in ("average odds difference", "predictive value difference")
        },
    }


def _calibration(decided, flat, names, places, level, seed) -> tuple[Calibration, ...]:
    """Of each group; `places` are their numbers in `flat`."""
    p = np.asarray(decided.probability, np.float64)
    place = np.full(max(places) + 1, -1)
    place[places] = np.arange(len(places))
    flat = np.where(flat >= 0, place[flat], -1)
    wide = -(-len(places) // 32) * 32
    hist = np.asarray(rates.histogram(flat, decided.label, p, groups=wide, bins=_FINE))
    found = np.asarray(_error(hist))
    rng, middle = np.random.default_rng(seed), (np.arange(_FINE) + 0.5) / _FINE
    total = hist.sum(axis=1)
    drawn = rng.binomial(total, middle, size=(_CALIBRATED, *total.shape))
    chance = np.asarray(_error(np.stack([total - drawn, drawn], axis=2)))
    floor = np.quantile(chance, 0.95, axis=0)
    out = []
    for g, name in enumerate(names):
        rows = flat == g
        over = host_intervals.mean(
            p[rows] - decided.label[rows], level, bounds=(-1.0, 1.0)
        )
        out.append(Calibration(name, over, float(found[g]), float(floor[g])))
    return tuple(out)


@jax.jit
def _error(hist):
    """Calibration errors [..., G] of histograms [..., G, 2, S]."""
    flat = hist.reshape(-1, *hist.shape[-2:])
    return rates.calibration_error(flat, bins=_BINS).reshape(hist.shape[:-2])
