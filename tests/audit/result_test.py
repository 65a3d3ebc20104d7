"""Results against a plan's claim; the best of several pays for their number."""

import json
import math

import pytest

from tests.audit import gate
from trustml.audit import result

ONE = result.AuditResult(
    epsilon=1.0,
    delta=1e-5,
    confidence=0.975,
    kind="confidence",
    method="gaussian",
    strategy="band",
    assumption="scores are independent",
    n_in=10,
    n_out=12,
    threshold=0.5,
    epsilon_ceiling=3.0,
)


@pytest.fixture(scope="module")
def plan():
    return gate.make(noise_multiplier=2.0, per_side=8).plan


def test_a_bound_is_held_to_the_claim_at_its_own_delta(plan):
    claimed = plan.epsilon(1e-5)
    kept = result.against(ONE._replace(epsilon=claimed - 0.01), plan)
    assert kept.claim == (claimed, plan.digest, False) and not kept.warnings
    broken = result.against(ONE._replace(epsilon=claimed + 0.01), plan)
    assert broken.claim.violated
    (line,) = broken.warnings
    assert line.startswith("violates_claim") and plan.digest in line
    # At a larger delta the plan claims less.
    later = ONE._replace(epsilon=claimed - 0.01, delta=1e-3)
    assert result.against(later, plan).claim.violated
    assert result.against(later, plan).claim.epsilon < claimed


def test_a_delta_that_publishing_a_record_satisfies_is_named(plan):
    found = result.against(ONE._replace(delta=0.1, epsilon=0.0), plan)
    (line,) = found.warnings
    assert f"1/{plan.sampler.num_examples}" in line


def test_the_best_of_several_holds_at_what_is_left():
    best = result.strongest([ONE, ONE._replace(epsilon=2.0, epsilon_ceiling=2.5)])
    assert best.epsilon == 2.0 and best.confidence == pytest.approx(0.95)
    assert best.epsilon_ceiling == 3.0 and "best of 2" in best.strategy
    assert result.strongest([ONE]) == ONE


def test_a_bound_at_its_ceiling_says_so():
    assert result.saturation(0.99, 1.0) == (result.SATURATED,)
    assert result.saturation(0.97, 1.0) == () == result.saturation(0.0, 0.0)


def test_a_report_gets_plain_types(plan):
    found = result.as_dict(result.against(ONE._replace(threshold=math.nan), plan))
    again = json.loads(json.dumps(found, allow_nan=False))
    assert again == found and again["threshold"] is None
    assert again["claim"]["digest"] == plan.digest and again["kind"] == "confidence"
    assert result.as_dict(ONE)["claim"] is None


CREDIBLE = ONE._replace(kind="credible")
BAD = [
    ("credible_claim", lambda p: result.against(CREDIBLE, p), "cannot break a claim"),
    ("no_delta", lambda p: result.against(ONE._replace(delta=0.0), p), "has no claim"),
    ("none", lambda p: result.strongest([]), "is empty"),
    ("kinds", lambda p: result.strongest([ONE, CREDIBLE]), "must be 'confidence'"),
    (
        "deltas",
        lambda p: result.strongest([ONE, ONE._replace(delta=0.1)]),
        "results.delta",
    ),
    (
        "nothing_left",
        lambda p: result.strongest([ONE._replace(confidence=0.5)] * 2),
        "leaves no confidence",
    ),
]


@pytest.mark.parametrize("name,call,sentence", BAD, ids=[b[0] for b in BAD])
def test_bad_arguments_get_a_sentence(name, call, sentence, plan):
    with pytest.raises(ValueError, match=sentence):
        call(plan)
