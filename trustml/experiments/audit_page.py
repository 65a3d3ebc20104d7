"""The report of experiment `audit`: promise and lower bound, budget by budget.

Everything here words and draws what `trustml.experiments.canary_run` measured.
"""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from trustml.audit import result
from trustml.report import fmt, leaks, study, tables, words

_CLOSE = 0.7  # share of the promise from which a bound is called close to it

METHODS = (
    "Canaries are examples whose gradient moves one coordinate of their own, as far as "
    "clipping allows; a fair coin decides whether each is in the data. The coins were "
    "stored before the first step, and the attacker sees every noisy update.",
    "The bound of the first screen was chosen before anything was measured: with full "
    "batches that of a Gaussian trade-off curve at half the steps, with sampled ones "
    "the (ε, δ) bound at a threshold that simulated scores of the theoretical law "
    "chose. The other methods stand beside it; each holds at its confidence by itself, "
    "and not all of them together.",
    "The canaries have coordinates and noise of their own, so their scores are "
    "independent; the one-run bounds need the coins alone.",
)
LIMITS = (
    "A bound below the promise proves no promise: it shows that this attack finds no "
    "breach of it. A bound above it proves a defect, up to its confidence.",
    "The canaries go through sampling, clipping, sums over devices, noise and "
    "division. They say nothing about how the gradients of the model's own parameters "
    "are clipped, which the trainer checks at its start.",
    "Noise, coins and batches were drawn once at every budget.",
)


class Audited(NamedTuple):
    """What was found at one budget.

    Attributes:
      name: of the run, 'eps=4'.
      promised: epsilon of the plan.
      headline: the method that counts.
      bounds: method -> bound with its claim.
      sample_rate: q.
      steps: of the run.
      noise_multiplier: z.
      coins: hash of the coins.
      test_accuracy: of the model that was trained beside the canaries.
    """

    name: str
    promised: float
    headline: str
    bounds: Mapping[str, result.AuditResult]
    sample_rate: float
    steps: int
    noise_multiplier: float
    coins: str
    test_accuracy: float


def write(
    workdir: str | os.PathLike, frame: Mapping[str, Any], found: Sequence[Audited]
) -> pathlib.Path:
    """report.json and report.html of the audits in `found`.

    Args:
      workdir: of the run.
      frame: of `describe.frame`.
      found: one entry a budget.

    Returns:
      The path of report.html.
    """
    sections = [_over_budgets(found), *(_of_budget(one) for one in found)]
    return study.write(
        workdir,
        frame,
        (kept(found), close(found)),
        sections,
        numbers={"audits": [as_dict(one) for one in found]},
        methods=METHODS,
        limits=LIMITS,
    )


def line(one: Audited) -> str:
    """The headline's bound beside the promise, for the terminal."""
    bound = one.bounds[one.headline]
    return (
        f"{one.name:>11}  promised epsilon {one.promised:.3g}, audited: at least "
        f"{bound.epsilon:.3g} ({bound.confidence:.0%} confidence, {bound.n_in} + "
        f"{bound.n_out} canaries)" + ("  VIOLATES ITS CLAIM" if broken(one) else "")
    )


def broken(one: Audited) -> dict[str, result.AuditResult]:
    """The bounds above the promise, by method."""
    return {
        name: bound
        for name, bound in one.bounds.items()
        if bound.claim is not None and bound.claim.violated
    }


def as_dict(one: Audited) -> dict[str, Any]:
    """Plain numbers for report.json."""
    bounds = {name: result.as_dict(bound) for name, bound in one.bounds.items()}
    return one._asdict() | {"bounds": bounds, "violated_by": sorted(broken(one))}


def kept(found: Sequence[Audited]) -> words.Card:
    """Whether any bound lies above its promise."""
    question = "Does the trainer keep its promise?"
    wrong = [one for one in found if broken(one)]
    points = []
    for one in found:
        text = f"ε = {one.promised:.3g} promised: "
        if not broken(one):
            points.append(text + f"all {len(one.bounds)} lower bounds lie below it.")
            continue
        by = fmt.listed(
            [
                f"{name} (at least {bound.epsilon:.3g}, {bound.confidence:.0%})"
                for name, bound in broken(one).items()
            ]
        )
        points.append(text + f"violated by {by}.")
    if wrong:
        names = fmt.listed([f"ε = {one.promised:.3g}" for one in wrong])
        headline = f"No: more leaks than promised at {names}."
    else:
        headline = "No breach was found: every lower bound lies below the promise."
    tone = "warn" if wrong else "good"
    return words.Card(question, headline, tuple(points), tone=tone)


def close(found: Sequence[Audited]) -> words.Card:
    """How much of the promise the headline's bound reaches."""
    points, shares = [], []
    for one in found:
        bound = one.bounds[one.headline]
        shares.append(bound.epsilon / one.promised)
        points.append(
            f"ε = {one.promised:.3g}: at least {bound.epsilon:.3g}, "
            f"{fmt.percent(shares[-1], 0)} of it, at {bound.confidence:.0%} confidence "
            f"({bound.n_in:,} canaries in, {bound.n_out:,} out)."
        )
    least = min(shares)
    if max(shares) > 1:
        headline = "It found more than was promised."
    elif least >= _CLOSE:
        headline = (
            f"Close: it reaches {fmt.percent(least, 0)} of the promise or more, so a "
            "larger defect would have been seen."
        )
    else:
        headline = (
            f"Not very: it reaches {fmt.percent(least, 0)} of the promise at the "
            "least, and a smaller defect may hide in the gap."
        )
    return words.Card("How sharp is the audit?", headline, tuple(points))


def _over_budgets(found: Sequence[Audited]) -> study.Section:
    methods = [name for name in found[0].bounds]
    series = [
        {
            "name": method,
            "points": [
                {"epsilon": one.promised, "value": one.bounds[method].epsilon}
                for one in found
            ],
        }
        for method in methods
    ]
    rows = []
    for one in found:
        bound = one.bounds[one.headline]
        rows.append(
            (
                f"{one.promised:.4g}",
                f"{bound.epsilon:.4g}",
                fmt.percent(bound.epsilon / one.promised, 0),
                f"{bound.confidence:.0%}",
                "violated" if broken(one) else "kept",
                f"{one.noise_multiplier:.4g}",
                f"{one.steps:,}",
                f"{one.sample_rate:.3g}",
                fmt.percent(one.test_accuracy),
            )
        )
    head = (
        *("ε promised", "ε at least", "share", "confidence", "claim"),
        *("noise multiplier σ", "steps", "sampling rate", "right on test examples"),
    )
    drawn = (
        (
            "Audited ε against promised ε",
            leaks.against_epsilon(
                series, "ε at least", identity=True, name="audit-epsilon"
            ),
            "Lower bounds, each at its own confidence. Dashed: the promise; a point "
            "above that line would prove a defect.",
        ),
    )
    return study.Section(
        "Promise and audit",
        figures=drawn,
        tables=(tables.table(head, rows, f"The bound chosen: {found[0].headline}"),),
    )


def _of_budget(one: Audited) -> study.Section:
    rows, notes = [], []
    for name, bound in one.bounds.items():
        violated = bound.claim is not None and bound.claim.violated
        rows.append(
            (
                name + (" *" if name == one.headline else ""),
                f"{bound.epsilon:.4g}",
                "above the promise" if violated else "below",
                f"{bound.confidence:.0%}",
                f"{bound.epsilon_ceiling:.4g}",
                f"{bound.n_in:,} + {bound.n_out:,}",
                bound.strategy,
                bound.assumption,
            )
        )
        notes += [f"{name}: {note}." for note in bound.warnings]
    head = (
        *("method", "ε at least", "against the promise", "confidence"),
        *("most it could say", "canaries in + out", "threshold", "rests on"),
    )
    note = f"*: chosen beforehand. Coins: {one.coins}. {' '.join(notes)}"
    caption = f"Lower bounds on ε at δ = {fmt.scientific(_delta(one))}"
    title = f"Audited at ε = {one.promised:.3g}"
    return study.Section(title, tables=(tables.table(head, rows, caption, note),))


def _delta(one: Audited) -> float:
    return one.bounds[one.headline].delta
