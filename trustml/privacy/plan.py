"""A plan: clipper, sampler and noise joined into one object that owns the guarantee.

    noise_stddev = z s_t C,   event = sampler.event(noise_stddev, S, steps, relation),
    epsilon      = accounting.epsilon(event, delta, relation)

with z = `noise_multiplier`, C = `l2_clip_norm`, S = the clipper's own sensitivity and
s_t = 1, or the `noise_schedule`, whose distinct values are composed block by block.
Where the clip norm is tracked (rule `quantile`), z is that of gradients and bits
together, and gradients get the larger z_gradient of `quantile.gradient_multiplier`.
Noise is made from the plan and epsilon from the plan's event, so no number is typed
twice, and pairs that do not match raise when the plan is built.

With a banded strategy of more than one band (`correlated_noise`) the noise of a step is
partly taken back by later ones; z and the event are then those of the sampler that
keeps the steps of an example as far apart as the strategy has bands, and no other goes
with it.

With `grid_bits` sums are rounded to a grid and noise is a discrete Gaussian on it
(`discrete_gaussian`); the event is then of the sensitivity after rounding.

Exactly one of z and epsilon is given; a given epsilon is solved for z (`calibration`).

Example::

    made = plan.make(clipper, sampler, steps=1000, delta=1e-5,
                     relation=accounting.relation('add_or_remove_one'), epsilon=3.0)
    state = made.mechanism.init(rng.root())
    noisy, state = made.mechanism.update(sums, state)     # then / expected_batch_size
    made.epsilon(step=500)                                # spent half way
    print(made.explain())
"""

import collections
import os
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import dp_accounting
import numpy as np

from trustml import _validate
from trustml.privacy import (
    accounting,
    calibration,
    correlated_noise,
    discrete_gaussian,
    noise,
    pairing,
    promise,
    quantile,
    sampling,
)


class Plan(NamedTuple):
    """What is promised, and the parts that keep the promise; see the module docstring.

    Attributes:
      noise_multiplier: z, noise_stddev / l2_clip_norm; under a banded strategy that
        over the norm of its columns.
      noise_stddev: (step=None) -> absolute standard deviation of the noise on the sum
        at that step (None: the first). Where the clip norm is tracked it is that of
        the initial norm, and moves with the norm. Under a banded strategy it is that
        of the release at hand, and noise of different steps is correlated.
      sensitivity: S, L2 sensitivity of the sum under the relation.
      expected_batch_size: public constant to divide the noisy sum by: expected
        examples, or micro-batches where the clipper clips their means.
      steps: number of steps the guarantee covers.
      delta: as asked for.
      relation: neighbouring relation.
      accountant: 'pld', 'rdp' or 'monte_carlo', what `epsilon` answers with.
      event: (step=None) -> dp_accounting.DpEvent of the first `step` steps.
      epsilon: (delta=None, step=None, accountant=None) -> spent after `step` steps.
      epsilon_curve: steps -> float64[len(steps)], epsilon after each of them.
      mechanism: `noise.Mechanism` that adds the plan's noise.
      sampler: `sampling.Sampler`.
      digest: hexadecimal hash over all that defines the guarantee (neither seed nor
        layout does); a run may only be resumed under the same digest.
      explain: () -> the plan in plain words.
    """

    noise_multiplier: float
    noise_stddev: Callable[..., float]
    sensitivity: float
    expected_batch_size: float
    steps: int
    delta: float
    relation: accounting.Relation
    accountant: str
    event: Callable[..., accounting.Event]
    epsilon: Callable[..., float]
    epsilon_curve: Callable[[Iterable[int]], np.ndarray]
    mechanism: noise.Mechanism
    sampler: sampling.Sampler
    digest: str
    explain: Callable[[], str]


def make(
    clipper: Any,
    sampler: sampling.Sampler,
    *,
    steps: int,
    delta: float,
    relation: accounting.Relation | str,
    noise_multiplier: float | None = None,
    epsilon: float | None = None,
    noise_schedule: Iterable[float] | None = None,
    strategy: correlated_noise.Strategy | None = None,
    grid_bits: int | None = None,
    accountant: str = "pld",
    params: Any = None,
    cache_dir: str | os.PathLike | None = None,
) -> Plan:
    """Joins clipper, sampler and Gaussian noise into a plan.

    Formal guarantee: training for `steps` steps on `sampler`'s batches with sums from
      `clipper` and noise from `mechanism` is (epsilon(), delta)-DP under `relation`.

    Args:
      clipper: offers `sensitivity(relation)`, `l2_clip_norm`, `rule`, `privacy_unit`.
      sampler: see `trustml.privacy.sampling`.
      steps: number of training steps, >= 1.
      delta: in (0, 1), well below 1 / number of examples.
      relation: what neighbouring data sets are; a member or its name; no default.
      noise_multiplier: z > 0; this or epsilon.
      epsilon: target > 0; this or noise_multiplier.
      noise_schedule: s_t > 0 of every step, fixed before training (see `schedules`);
        None: 1 throughout.
      strategy: how noise is correlated over steps, with as many bands as the sampler
        (`sampling.cyclic_poisson`); None, or one band: not at all.
      grid_bits: b of `discrete_gaussian.grid`, whose noise goes with 'rdp' and neither
        schedule, strategy nor tracked norms; None: continuous noise in float32.
      accountant: 'pld' (tight), 'rdp', or 'monte_carlo' for `sampling.balls_in_bins`.
      params: the parameters or their shapes; only with `grid_bits`, where the strategy
        has more than one band, or the rule tracks a norm for each of several groups.
      cache_dir: directory for results of the accountant; None: keep nothing on disk.

    Raises:
      ValueError: for a bad number, for parts that do not match, and where no noise
        reaches the target; the sentence names field, value, bound and cure.
    """
    steps = _validate.integer_at_least(
        "train.steps", steps, 1, "train for a step or more"
    )
    delta = accounting.check_delta(delta)
    relation = accounting.relation(relation)
    _validate.one_of("privacy.accountant", accountant, accounting.ACCOUNTANTS)
    if (noise_multiplier is None) == (epsilon is None):
        raise ValueError(
            f"privacy.noise_multiplier={noise_multiplier!r} and "
            f"privacy.epsilon={epsilon!r} must not be both given or both absent; set "
            "exactly one of them and leave the other None."
        )
    norm = _validate.positive("privacy.l2_clip_norm", clipper.l2_clip_norm)
    sensitivity = _validate.positive(
        "clipper.sensitivity", clipper.sensitivity(relation)
    )
    event_sensitivity = pairing.event_sensitivity(clipper, sampler, relation)
    pairing.check_pair(clipper, sampler)
    scales = pairing.schedule(noise_schedule, steps, sampler)
    expected = sampler.expected_batch_size
    if sampler.group_size is not None:
        expected = expected / sampler.group_size
    adapt = getattr(clipper.rule, "adapt", None)
    banded = pairing.banded(strategy, sampler, steps, scales, adapt)
    shares = (1.0,) if adapt is None else pairing.groups(clipper, params).shares
    moves = banded is not None or adapt is not None or bool(np.any(scales != 1))
    size = 0 if grid_bits is None else pairing.size(grid_bits, clipper, params, moves)

    def grid_of(z: float) -> discrete_gaussian.Grid | None:
        if grid_bits is None:
            return None
        return discrete_gaussian.grid(z * norm, event_sensitivity, size, bits=grid_bits)

    def event_of(z: float, count: int) -> accounting.Event:
        grid = grid_of(z)
        if grid is not None:
            return discrete_gaussian.discrete(
                sampler.event(grid.scale, grid.sensitivity, count, relation)
            )
        blocks = _blocks(scales[:count])
        events = [
            sampler.event(z * scale * norm, event_sensitivity, number, relation)
            for scale, number in blocks
        ]
        if len(events) == 1:
            return events[0]
        return dp_accounting.ComposedDpEvent(events)

    # Raises here, before any search, where sampler, relation and accountant clash.
    probe = event_of(1.0, steps)
    reason = accounting.unsupported(probe, relation, accountant)
    if reason is not None:
        other = accounting.suited(probe, relation)
        cure = f"set privacy.accountant={other!r}" if other else "change the relation"
        _validate.fail(
            "privacy.accountant", accountant, f"does not fit: {reason}", cure
        )

    if epsilon is not None:
        z = calibration.calibrate(
            lambda z: event_of(z, steps),
            epsilon,
            delta,
            relation,
            accountant,
            cache_dir,
        )
    else:
        z = _noise_multiplier(noise_multiplier)
    memory: dict[tuple, float] = {}
    multipliers = z * scales
    if adapt is not None:
        bits = adapt.bit_stddev * expected
        multipliers = np.array(
            [
                quantile.gradient_multiplier(m, bits, len(shares))
                for m in multipliers.tolist()
            ]
        )

    if banded is not None:
        of_release = correlated_noise.released_scale(banded, steps)
        multipliers = multipliers * banded.column_norm * of_release
    grid = grid_of(z)
    if grid is not None:
        multipliers = np.full(steps, grid.noise_stddev / norm)

    def noise_stddev(step: int | None = None) -> float:
        at = 0 if step is None else _step(step, steps)
        return float(multipliers[min(at, steps - 1)]) * norm

    if adapt is not None:
        mechanism = quantile.mechanism(
            adapt,
            multipliers=multipliers,
            clip_norms=[norm * share for share in shares],
            expected_batch_size=expected,
        )
    elif banded is not None:
        why = (
            "with a banded strategy, whose noise is kept for later steps in buffers "
            "like the parameters"
        )
        mechanism = correlated_noise.banded(
            banded,
            stddev=z * norm * banded.column_norm,
            like=pairing.trained(clipper, params, why),
        )
    elif grid is not None:
        mechanism = discrete_gaussian.mechanism(grid)
    elif noise_schedule is None:
        mechanism = noise.gaussian(z * norm)
    else:
        mechanism = noise.gaussian(multipliers * norm)

    def event(step: int | None = None) -> accounting.Event:
        count = steps if step is None else _step(step, steps, lowest=1)
        return event_of(z, count)

    default_delta, default_accountant = delta, accountant

    def spent(
        delta: float | None = None,
        step: int | None = None,
        accountant: str | None = None,
    ) -> float:
        count = steps if step is None else _step(step, steps)
        if count == 0:
            return 0.0
        at = default_delta if delta is None else accounting.check_delta(delta)
        by = default_accountant if accountant is None else accountant
        if (count, at, by) not in memory:
            memory[count, at, by] = calibration.evaluate(
                event(count), at, relation, by, cache_dir
            )
        return memory[count, at, by]

    def curve(at_steps: Iterable[int]) -> np.ndarray:
        # `accounting` keeps one step's distribution; a point is a self-composition.
        return np.array([spent(step=step) for step in at_steps])

    identity = {
        "unit": clipper.privacy_unit,
        "rule": promise.rule_name(clipper.rule),
        "l2_clip_norm": norm,
        "trainable": repr(getattr(clipper, "trainable", None)),
        "sensitivity": event_sensitivity,
        "sampler": sampler.name,
        "expected_batch_size": float(sampler.expected_batch_size),
        "noise_multiplier": z,
        "steps": steps,
        "delta": delta,
        "relation": relation.name,
        "accountant": accountant,
        "event": accounting.describe(event_of(z, steps)),
    }
    if banded is not None:
        identity["strategy"] = list(banded.coefficients)
    made = Plan(
        noise_multiplier=z,
        noise_stddev=noise_stddev,
        sensitivity=sensitivity,
        expected_batch_size=expected,
        steps=steps,
        delta=delta,
        relation=relation,
        accountant=accountant,
        event=event,
        epsilon=spent,
        epsilon_curve=curve,
        mechanism=mechanism,
        sampler=sampler,
        digest=calibration.digest(identity),
        explain=lambda: promise.explain(made, clipper, norm, banded, grid),
    )
    return made


def _blocks(scales: np.ndarray) -> list[tuple[float, int]]:
    """Distinct values and how often they occur, in order of appearance."""
    counts = collections.Counter(scales.tolist())
    return list(counts.items())


def _noise_multiplier(value: Any) -> float:
    cure = "set privacy.enabled=False to train without privacy"
    field = "privacy.noise_multiplier"
    if _validate.non_negative(field, value, cure) == 0:
        raise ValueError(f"{field}={value!r} gives epsilon=inf; {cure}.")
    return float(value)


def _step(step: int, steps: int, lowest: int = 0) -> int:
    cure = f"the plan covers {steps} steps; make a longer plan before training"
    number = _validate.integer_at_least("step", step, lowest, cure)
    if number > steps:
        _validate.fail("step", step, f"must be at most {steps}", cure)
    return number
