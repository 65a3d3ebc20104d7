"""What an audit says: a lower bound on epsilon, and all that it rests on.

Every method returns an `AuditResult`. `against` holds it to what a plan claims, and
`strongest` takes the best of several (two scores of the same run, say), with the
confidence that is left.

Example::

    found = result.strongest([
        lower_bounds.gaussian(ratio_in, ratio_out, alpha=0.005, **options),
        lower_bounds.gaussian(spread_in, spread_out, alpha=0.005, **options),
    ])
    found = result.against(found, plan)
    if found.claim.violated:
        print(f'epsilon >= {found.epsilon:.2f}, claimed {found.claim.epsilon:.2f}')
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from trustml import _validate
from trustml.privacy import plan as plan_lib

KINDS = ("confidence", "credible")
SATURATED = "saturated: more scores needed"


class Claim(NamedTuple):
    """What a plan promises at the delta of a bound.

    Attributes:
      epsilon: the plan's, at the bound's delta.
      digest: of the plan.
      violated: whether the bound lies above it.
    """

    epsilon: float
    digest: str
    violated: bool


class AuditResult(NamedTuple):
    """A lower bound on epsilon.

    Attributes:
      epsilon: >= 0; 0 says nothing.
      delta: at which the bound holds.
      confidence: 1 - alpha; the bound exceeds epsilon with probability alpha at most.
      kind: 'confidence', or 'credible' where it is a posterior under a prior; never put
        both in one column of a table.
      method: how rates became epsilon, such as 'epsilon_delta' or 'gaussian'.
      strategy: how the threshold, or the number of guesses, came about.
      assumption: what the bound rests on, in words.
      n_in: canaries that were in.
      n_out: canaries that were out.
      threshold: "in" if score > threshold; nan where there is none.
      epsilon_ceiling: the bound that perfect scores would have given, as many as these.
      warnings: what a reader should know.
      fpr_hi: upper limit of the share of canaries out that are called in; nan where
        the bound does not use it.
      fnr_hi: upper limit of the share of canaries in that are called out; likewise.
      mu: lower bound of the Gaussian DP parameter; nan where there is none.
      epsilon_hi: upper end of a credible interval; nan for confidence bounds.
      claim: what `against` added.
    """

    epsilon: float
    delta: float
    confidence: float
    kind: str
    method: str
    strategy: str
    assumption: str
    n_in: int
    n_out: int
    threshold: float
    epsilon_ceiling: float
    warnings: tuple[str, ...] = ()
    fpr_hi: float = math.nan
    fnr_hi: float = math.nan
    mu: float = math.nan
    epsilon_hi: float = math.nan
    claim: Claim | None = None


def saturation(epsilon: float, ceiling: float) -> tuple[str, ...]:
    """The warning of a bound within 2% of its ceiling, or none."""
    return (SATURATED,) if epsilon > 0 and epsilon >= 0.98 * ceiling else ()


def against(result: AuditResult, plan: plan_lib.Plan) -> AuditResult:
    """`result` with the plan's claim at the same delta, and a warning if it is broken.

    Args:
      result: of kind 'confidence'.
      plan: of the trainer that was audited.

    Raises:
      ValueError: for a credible result, which proves nothing against a claim, and at
        delta = 0, where no Gaussian mechanism claims anything.
    """
    if result.kind != "confidence":
        _validate.fail(
            "result.kind",
            result.kind,
            "depends on a prior and cannot break a claim",
            "use a method of trustml.audit.lower_bounds or one_run",
        )
    if result.delta == 0:
        _validate.fail(
            "result.delta", 0.0, "has no claim", "audit at the delta of the plan"
        )
    epsilon = plan.epsilon(result.delta)
    claim = Claim(epsilon, plan.digest, result.epsilon > epsilon)
    notes = result.warnings
    if claim.violated:
        notes += (
            f"violates_claim: epsilon >= {result.epsilon:.4g}, where plan "
            f"{plan.digest} claims {epsilon:.4g}",
        )
    examples = plan.sampler.num_examples
    if result.delta * examples >= 1:
        notes += (
            f"delta={result.delta:g} is not below 1/{examples}: publishing one record "
            "outright would satisfy it",
        )
    return result._replace(claim=claim, warnings=notes)


def strongest(results: Iterable[AuditResult]) -> AuditResult:
    """The largest of several bounds, at the confidence that all of them hold together.

    With k bounds at alpha/k each, it holds at 1 - alpha.

    Args:
      results: bounds of one mechanism, kind 'confidence', at one delta; all that were
        computed, and not only those that came out well.

    Raises:
      ValueError: for no result, and for results that differ in delta or are credible.
    """
    results = tuple(results)
    if not results:
        _validate.fail("results", results, "is empty", "give a bound or more")
    if len({r.delta for r in results}) > 1:
        deltas = sorted({r.delta for r in results})
        _validate.fail("results.delta", deltas, "must be one", "audit at one delta")
    if any(r.kind != "confidence" for r in results):
        kinds = sorted({r.kind for r in results})
        _validate.fail("results.kind", kinds, "must be 'confidence'")
    best = max(results, key=lambda r: r.epsilon)
    if len(results) == 1:
        return best
    alpha = sum(1 - r.confidence for r in results)
    if alpha >= 1:
        _validate.fail(
            "results.confidence",
            [r.confidence for r in results],
            "leaves no confidence to the best of them",
            f"compute each at alpha/{len(results)}",
        )
    return best._replace(
        confidence=1 - alpha,
        strategy=f"{best.strategy}, best of {len(results)} (Bonferroni)",
        epsilon_ceiling=max(r.epsilon_ceiling for r in results),
    )


def as_dict(result: AuditResult) -> dict[str, Any]:
    """The result for a report: numbers that are not finite become None."""
    out = result._asdict()
    out["warnings"] = list(result.warnings)
    out["claim"] = None if result.claim is None else result.claim._asdict()
    return {
        name: None if isinstance(x, float) and not math.isfinite(x) else x
        for name, x in out.items()
    }
