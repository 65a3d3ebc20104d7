"""From the curves of the selection study to its figures, with intervals over seeds.

    rounds to target   min { r : accuracy(r) >= target },  inf if never
    change             final accuracy of an arm less that of uniform, seed by seed
    saved              rounds to target of uniform less those of the arm, seed by seed
    growth             change (saved) in the continual setting less that in the static

Catch-up and regret (`trustml.federated.continual`) are against selection that is
uniform and has all data from the start. A figure that is inf for a seed has a count in
place of an interval: how many seeds came there at all.

Dimension key: S seeds, E evaluations.

Example::

    found = selection_measure.measure(config, outcomes)
    found['given', 'continual', 'activity'].change.lo
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from trustml import intervals, specs
from trustml.federated import continual

Key = tuple[str, str, str]  # world, setting, arm


class Measured(NamedTuple):
    """An arm in a setting of a world, over seeds.

    Attributes:
      seeds: S.
      round: int[E].
      curve: S rows of E accuracies.
      final: accuracy at the end.
      change: of it over uniform.
      rounds: to target, of each seed; inf if never.
      to_target: their mean, where all came there.
      saved: over uniform, where all of both came there.
      fewer: seeds with fewer rounds than uniform.
      reached: seeds that came there.
      examples: that clients had gone through by then, where all came there.
      passed: examples that clients went through in a round.
      catch_up: rounds, of each seed.
      regret: mean accuracy missed over rounds.
      deciles: error, of the tenths of clients by activity, the lightest first.
      taken: rounds that a client of each tenth took part in.
      share: of the weights of the objective, in each tenth.
      held: of the examples, in each tenth.
      objective: a sentence.
    """

    seeds: int
    round: list[int]
    curve: list[list[float]]
    final: intervals.Interval
    change: intervals.Interval
    rounds: list[float]
    to_target: intervals.Interval | None
    saved: intervals.Interval | None
    fewer: int
    reached: int
    examples: intervals.Interval | None
    passed: intervals.Interval
    catch_up: list[float]
    regret: intervals.Interval
    deciles: list[intervals.Interval | None]
    taken: list[float]
    share: list[float]
    held: list[float]
    objective: str


def measure(
    config: specs.RunConfig, outcomes: Mapping[Any, Any]
) -> dict[Key, Measured]:
    """All figures.

    Args:
      config: of the study.
      outcomes: `selection_study.Job` -> `selection_study.Outcome`.
    """
    level, spec = config.report.level, config.selection
    groups: dict[Key, list[Any]] = {}
    for job, outcome in sorted(outcomes.items(), key=lambda item: item[0].seed):
        groups.setdefault((job.world, job.setting, job.arm), []).append(outcome)
    found = {}
    for key, runs in groups.items():
        world, setting, _ = key
        base = groups[world, setting, "uniform"]
        static = groups[world, "static_all", "uniform"]
        found[key] = _measured(runs, base, static, spec, level)
    return {key: found[key] for key in sorted(found, key=lambda k: _order(spec, k))}


def growth(
    found: Mapping[Key, Measured], world: str, arm: str, level: float
) -> tuple[intervals.Interval, intervals.Interval | None]:
    """How much larger an arm's gain is where data arrive: (change, saved).

    Saved rounds are of seeds that all came to the target in both settings, else None.
    """

    def of(setting):
        one, base = found[world, setting, arm], found[world, setting, "uniform"]
        final = np.subtract(_ends(one), _ends(base))
        with np.errstate(invalid="ignore"):
            return final, np.subtract(base.rounds, one.rounds)

    (now, saved_now), (still, saved_still) = of("continual"), of("static_all")
    saved = saved_now - saved_still
    return (
        intervals.mean(now - still, level),
        intervals.mean(saved, level) if np.isfinite(saved).all() else None,
    )


def between(one: Measured, other: Measured, level: float) -> intervals.Interval:
    """Final accuracy of an arm less that of another one, seed by seed."""
    return intervals.mean(np.subtract(_ends(one), _ends(other)), level)


def band(one: Measured, level: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean accuracy by round with the interval of each, float64[E] thrice."""
    columns = [
        intervals.mean(values, level, bounds=(0, 1))
        for values in np.asarray(one.curve).T
    ]
    value, lo, hi = np.asarray(columns).T
    return value, lo, hi


def to_target(
    round: Sequence[int], curve: Sequence[float], target: float
) -> tuple[float, int]:
    """Round at which a curve first comes to the target, and its place; (inf, -1)."""
    there = np.asarray(curve) >= target - 1e-12
    if not there.any():
        return math.inf, -1
    place = int(np.argmax(there))
    return float(round[place]), place


def _measured(runs, base, static, spec, level) -> Measured:
    curve = [run.accuracy for run in runs]
    hits = [to_target(run.round, run.accuracy, spec.target) for run in runs]
    rounds = [hit[0] for hit in hits]
    others = [to_target(run.round, run.accuracy, spec.target)[0] for run in base]
    used = [
        run.examples[place] if place >= 0 else math.inf
        for run, (_, place) in zip(runs, hits, strict=True)
    ]
    ends, uniform = ([run.accuracy[-1] for run in side] for side in (runs, base))
    with np.errstate(invalid="ignore"):
        saved = np.subtract(others, rounds)
    pairs = list(zip(runs, static, strict=True))
    deciles = np.asarray([run.deciles for run in runs], np.float64)
    return Measured(
        seeds=len(runs),
        round=runs[0].round,
        curve=curve,
        final=intervals.mean(ends, level, bounds=(0, 1)),
        change=intervals.mean(np.subtract(ends, uniform), level),
        rounds=rounds,
        to_target=_mean(rounds, level),
        saved=_mean(saved, level),
        fewer=int(np.sum(np.asarray(rounds) < np.asarray(others))),
        reached=int(np.isfinite(rounds).sum()),
        examples=_mean(used, level),
        passed=intervals.mean([run.examples[-1] / run.round[-1] for run in runs]),
        catch_up=[_catch_up(run, still, spec.tolerance) for run, still in pairs],
        regret=intervals.mean(
            [continual.regret(run.accuracy, still.accuracy) for run, still in pairs],
            level,
        ),
        deciles=[_mean(column, level, (0, 1)) for column in deciles.T],
        taken=np.mean([run.taken for run in runs], axis=0).tolist(),
        share=np.mean([run.share for run in runs], axis=0).tolist(),
        held=np.mean([run.held for run in runs], axis=0).tolist(),
        objective=runs[0].objective,
    )


def _catch_up(run, still, tolerance: float) -> float:
    place = continual.catch_up(run.accuracy, still.accuracy, tolerance=tolerance)
    return float(run.round[int(place) - 1]) if math.isfinite(place) else math.inf


def _mean(values, level: float, bounds=(-math.inf, math.inf)):
    """The mean with its interval; None where one of them is not finite."""
    if not np.isfinite(values).all():
        return None
    return intervals.mean(values, level, bounds=bounds)


def _ends(one: Measured) -> list[float]:
    return [row[-1] for row in one.curve]


def _order(spec, key: Key) -> tuple[int, int, int]:
    world, setting, arm = key
    worlds = ("given", "correlated")
    return (
        worlds.index(world),
        spec.settings.index(setting),
        spec.arms.index(arm),
    )
