"""A plan in plain words: the promise, what it rests on, and what to mind.

Example::

    print(plan.make(clipper, sampler, ...).explain())
"""

import math
from typing import Any

from trustml.privacy import (
    accounting,
    balls_in_bins,
    correlated_noise,
    discrete_gaussian,
)


def explain(
    made: Any,
    clipper: Any,
    norm: float,
    banded: correlated_noise.Strategy | None,
    grid: discrete_gaussian.Grid | None,
) -> str:
    """All of it, a line each; `made` is a `plan.Plan`."""
    sampler, relation = made.sampler, made.relation.name

    def by(accountant: str) -> str:
        reason = accounting.unsupported(made.event(), made.relation, accountant)
        if reason is not None:
            return f"none ({reason})"
        return f"{made.epsilon(accountant=accountant):.4g}"

    answers = f"Epsilon by PLD: {by('pld')}; by RDP: {by('rdp')}."
    if made.accountant == "monte_carlo":
        answers = (
            f"Epsilon by Monte Carlo: {made.epsilon():.4g}, the upper confidence limit "
            f"at level {balls_in_bins.LEVEL:g} over the accountant's own draws. "
            f"By PLD: {by('pld')}."
        )
    units = f"{clipper.privacy_unit}s"
    of_units = "" if units == "examples" else f" {units}"
    within = f" within one of {sampler.bands} parts" if sampler.bands > 1 else ""
    lines = [
        f"Promise: ({made.epsilon():.4g}, {made.delta:g})-differential privacy for "
        f"each {clipper.privacy_unit}, under {relation}, over {made.steps} steps.",
        answers,
        f"Noise: multiplier z={made.noise_multiplier:.6g}, standard deviation "
        f"{made.noise_stddev():.6g} on the sum of gradients clipped to {norm:g} by "
        f"rule {rule_name(clipper.rule)!r} (sensitivity {made.sensitivity:g}).",
        f"Batches: {sampler.name}, sample rate {sampler.sample_rate:.6g}{within}, "
        f"expected batch size {made.expected_batch_size:g}{of_units}, a public "
        "constant.",
        f"Event: {accounting.describe(made.event())}.",
        f"Sampling seed: {_secrecy(sampler.secret)}. Noise is as secret as the root "
        "given to mechanism.init; a seeded root is reproducible, not secret.",
    ]
    if banded is not None:
        error = math.sqrt(correlated_noise.squared_error(banded, made.steps))
        lines.append(
            f"Correlation: banded over {banded.bands} steps, which take back part of "
            f"each other's noise; the standard deviation above is that of the first "
            f"step, {made.noise_stddev(made.steps - 1):.6g} that of the last. Sums of "
            f"all noise so far are off by {error * made.noise_multiplier * norm:.6g} "
            "(root mean square over the steps)."
        )
    if grid is not None:
        more = grid.sensitivity * grid.spacing / made.sensitivity - 1
        lines.append(
            f"Grid: sums are rounded to multiples of {grid.spacing:g}, which adds "
            f"{more:.2g} of the sensitivity; the noise is an exact discrete Gaussian "
            f"of scale {grid.scale} steps."
        )
    if made.delta * sampler.num_examples >= 1:
        lines.append(
            f"WARNING: delta={made.delta:g} is not below 1/{sampler.num_examples}: "
            "publishing one record outright would satisfy it; lower delta."
        )
    if sampler.rate_from_data and relation == "ADD_OR_REMOVE_ONE":
        lines.append(
            f"NOTE: the sample rate was computed from the number of {units}, which "
            "ADD_OR_REMOVE_ONE keeps private; this plan treats that number as public. "
            "Pass sample_rate as a constant to avoid it."
        )
    if relation == "REPLACE_ONE":
        lines.append(
            "NOTE: multipliers in the event are stddev / sensitivity, a record being "
            "replaced; dp-accounting's PLDAccountant reads them otherwise under "
            "REPLACE_ONE, so ask trustml.privacy.accounting for epsilon."
        )
    if sampler.name == "shuffled":
        lines.append(
            "NOTE: shuffled batches get no amplification by sampling: one full "
            "Gaussian release per epoch."
        )
    return "\n".join(lines)


def rule_name(rule: Any) -> str:
    """What a rule is called, also one that a user wrote."""
    if hasattr(rule, "name"):
        return rule.name
    if isinstance(rule, str) or not callable(rule):
        return str(rule)
    return f"{rule.__module__}.{rule.__qualname__}"


def _secrecy(secret: bool) -> str:
    return "secret (128 bits from the OS)" if secret else "reproducible, not secret"
