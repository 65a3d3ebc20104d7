"""How much of planted secrets models give away: exposure, recovery, and the price.

Everything is per number of copies, over seeds, beside both controls: the models of the
same seeds without the secret (0 copies), and another code asked of the same models.
Intervals are t-intervals over seeds for means, exact ones for shares of seeds, and of
order statistics for medians. All of it runs on the host.

Dimension key: `M = S K` models, seed after seed; `R` codes, `L` words of a code.

Example::

    found = exposures.measure('undefended', planted, (0, 1, 10), correct=correct,
                              f1=f1, losses=losses, guesses={}, exhaustive=True)
    found.rows[-1].summary.delta_median
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy import typing as npt
from scipy import stats

from trustml import intervals
from trustml.attacks import exposure
from trustml.attacks.extraction import canary
from trustml.experiments import planted as planted_lib
from trustml.models import tagging

_DRAWN = 1000  # codes that exposure is extrapolated from where it is known exactly


class Guess(NamedTuple):
    """What one attack answers, over seeds.

    Attributes:
      words: mean share of the code's words that are right; chance is 1 / A.
      hamming: mean number of words that are wrong.
      whole: seeds whose whole code is right.
      share: the same as a share of seeds, with its exact interval.
    """

    words: intervals.Interval
    hamming: intervals.Interval
    whole: int
    share: intervals.Interval


class Row(NamedTuple):
    """The models of one number of copies.

    Attributes:
      copies: of the secret in the training set.
      accuracy: of intents on the test split.
      slot_f1: of spans on the test split.
      guesses: attack -> `Guess`.
      bits: exposure of every seed's secret.
      decoy_bits: of every seed's decoy.
      gaps: extrapolated minus exact exposure, where both exist: of all codes, or of the
        sub-space in which only the last words of the code are unknown.
      subspace_bits: exact exposure in that sub-space; () where all codes are scored.
      summary: beside both controls; None at 0 copies, which are the control.
    """

    copies: int
    accuracy: intervals.Interval
    slot_f1: intervals.Interval
    guesses: dict[str, Guess]
    bits: tuple[float, ...]
    decoy_bits: tuple[float, ...]
    gaps: tuple[float, ...]
    subspace_bits: tuple[float, ...]
    summary: exposure.Summary | None


class Found(NamedTuple):
    """One set of models.

    Attributes:
      name: of its defence, or 'undefended'.
      seeds: S.
      rows: one a number of copies, in their order.
      uniform_p: Kolmogorov-Smirnov p-value of the p-values of models without the
        secret being uniform; a small one says that the control is none.
      estimated: whether exposures are extrapolated.
      epsilon: of each model, for one example; None without privacy.
      delta: of the same guarantee.
    """

    name: str
    seeds: int
    rows: tuple[Row, ...]
    uniform_p: float
    estimated: bool
    epsilon: float | None
    delta: float | None


class _Scored(NamedTuple):
    true: exposure.Exposure
    decoy: exposure.Exposure
    gap: float
    subspace: exposure.Exposure | None
    best: np.ndarray


def measure(
    name: str,
    planted: planted_lib.Planted,
    copies: Sequence[int],
    *,
    correct: npt.ArrayLike,
    f1: Sequence[float],
    losses: np.ndarray,
    guesses: Mapping[str, np.ndarray],
    exhaustive: bool,
    level: float = 0.95,
    epsilon: float | None = None,
    delta: float | None = None,
) -> Found:
    """Figures of M models.

    Args:
      name: of the set.
      planted: secrets of S seeds.
      copies: K numbers, 0 among them.
      correct: bool[M, n], intents of the test split.
      f1: M of them.
      losses: float32[M, R], of `planted.codes`.
      guesses: attack -> int32[M, L].
      exhaustive: whether the best of all codes is a guess too.
      level: of the intervals.
      epsilon: of each model.
      delta: of each model.
    """
    count, each = len(planted.secrets), len(copies)
    scored = [_score(planted, m // each, row, m) for m, row in enumerate(losses)]
    answers = dict(guesses)
    if exhaustive:
        answers = {"exhaustive": np.stack([one.best for one in scored])} | answers
    accuracy = np.asarray(correct).mean(axis=1)
    letters = planted.pattern.alphabet.shape[1]
    absent = [scored[s * each + list(copies).index(0)].true for s in range(count)]
    rows = []
    for place, number in enumerate(copies):
        models = np.arange(count) * each + place
        own = [scored[m] for m in models]
        inserted, decoy = [one.true for one in own], [one.decoy for one in own]
        summary = None
        if number:
            summary = exposure.summarise(
                inserted, absent=absent, decoy=decoy, level=level
            )
        found = {
            attack: _guess(codes[models], planted, letters, level)
            for attack, codes in answers.items()
        }
        rows.append(
            Row(
                copies=number,
                accuracy=intervals.mean(accuracy[models], level, bounds=(0, 1)),
                slot_f1=intervals.mean(
                    np.asarray(f1, float)[models], level, bounds=(0, 1)
                ),
                guesses=found,
                bits=tuple(one.bits for one in inserted),
                decoy_bits=tuple(one.bits for one in decoy),
                gaps=tuple(one.gap for one in own),
                subspace_bits=tuple(
                    one.subspace.bits for one in own if one.subspace is not None
                ),
                summary=summary,
            )
        )
    uniform = stats.kstest([one.p_value for one in absent], "uniform").pvalue
    estimated = bool(planted.sampled)
    return Found(name, count, tuple(rows), float(uniform), estimated, epsilon, delta)


def f1(tags_nT: np.ndarray, test: Mapping[str, np.ndarray], names: Sequence[str]):
    """Micro-averaged span F1 of predicted tags, as `evaluate.slot_f1` counts it."""
    guesses = tagging.decode(tags_nT, test["length"], names)
    golds = tagging.decode(test["slots"], test["length"], names)
    return tagging.span_scores(guesses, golds).f1


def as_dict(found: Found) -> dict[str, Any]:
    """Plain numbers for report.json."""
    rows = []
    for row in found.rows:
        plain = row._asdict()
        plain["guesses"] = {name: one._asdict() for name, one in row.guesses.items()}
        plain["summary"] = None if row.summary is None else row.summary._asdict()
        rows.append(plain)
    return found._asdict() | {"rows": rows}


def _guess(codes, planted, letters, level) -> Guess:
    pairs = zip(codes, planted.secrets, strict=True)
    found = [exposure.recovery(code, one.code, letters) for code, one in pairs]
    whole = sum(one.full for one in found)
    ends = intervals.proportion(whole, len(found), level)
    width = planted.pattern.positions.size
    return Guess(
        intervals.mean([r.per_position for r in found], level, bounds=(0, 1)),
        intervals.mean([r.hamming for r in found], level, bounds=(0, width)),
        whole,
        intervals.Interval(whole / len(found), *ends),
    )


def _score(planted, seed: int, losses: np.ndarray, draw: int) -> _Scored:
    """Exposure of one model's secret and decoy, `draw` the seed of random codes."""
    pattern, count = planted.pattern, planted.sampled
    own, fresh = planted.secrets[seed], planted.decoys[seed]
    if not count:
        at = canary.index(pattern, own.code)
        true = exposure.exact(losses, at)
        decoy = exposure.exact(losses, canary.index(pattern, fresh.code))
        best = planted.codes[int(np.argmin(losses))]
        return _Scored(true, decoy, _gap(true, losses, at, draw), None, best)
    total, random = canary.num_codes(pattern), losses[2 : 2 + count]
    true, decoy = (
        exposure.estimated(float(value), random, candidates=total)
        for value in losses[:2]
    )
    ends, width = losses[2 + count :], planted_lib.subspace(pattern)
    shape = (pattern.alphabet.shape[1],) * width
    at = int(np.ravel_multi_index(tuple(own.code[-width:]), shape))
    inside = exposure.exact(ends, at)
    best = planted.codes[seed][int(np.argmin(losses))]
    return _Scored(true, decoy, _gap(inside, ends, at, draw), inside, best)


def _gap(exact: exposure.Exposure, losses: np.ndarray, at: int, draw: int) -> float:
    """Extrapolated minus exact exposure; NaN with too few codes for the first."""
    if losses.size < exposure.MIN_RANDOM:
        return float("nan")
    drawn = np.random.default_rng(draw).choice(losses, _DRAWN)
    bits = exposure.extrapolated(float(losses[at]), drawn, candidates=losses.size)
    return bits - exact.bits
