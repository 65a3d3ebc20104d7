"""Bugs planted in the trainer, and an audit that is told of none of them.

1,000 canaries, sample rate 1/4, z = 1.5, 20 steps, delta = 1e-5; the claim is epsilon =
4.2. Two scores, each at alpha/2: the log likelihood ratio, and the variance over steps,
which alone sees a noise key that is used again. `pytest -m slow -s` prints the table.
"""

import jax
import numpy as np
import pytest

from tests.audit import gate
from tests.privacy import mutants
from trustml.audit import lower_bounds, result, scores
from trustml.privacy import plan, sampling

DELTA, ALPHA, RATE, Z, STEPS = 1e-5, 0.05, 0.25, 1.5, 20
RUNS = 10

BUGS = {
    "noise halved": mutants.mutant("", (plan, "make", mutants._PLAIN,
                                        mutants._PLAIN.replace("norm", "norm / 2"))),
    "clipped as one batch": mutants.TABLE["the mean clipped in place of its members"],
    "one key for all steps": mutants.TABLE["one key for all steps"],
    "sampling forgotten": mutants.mutant(
        "", (sampling, "_coins", "int(generator.binomial(size, rate))", "size")
    ),
}  # fmt: skip


def made():
    return gate.make(
        noise_multiplier=Z, per_side=500, steps=STEPS, sample_rate=RATE, microbatches=1
    )


def audited(built, claim, seed):
    """The bound from the releases of one run."""
    units, included = built.run(seed)
    law = {"sample_rate": RATE, "noise_multiplier": Z}
    read = (scores.subsampled(units, **law), scores.temporal_variance(units))
    found = result.strongest(
        lower_bounds.gaussian(
            x[included],
            x[~included],
            delta=DELTA,
            alpha=ALPHA / len(read),
            independent_scores=True,
        )
        for x in read
    )
    return result.against(found, claim)


def rows(bug):
    """Bounds of ten runs, and whether each breaks the claim of a correct build."""
    claim = made().plan
    if bug is None:
        built = made()
        found = [audited(built, claim, seed) for seed in range(RUNS)]
    else:
        # JAX's own check that no key is used twice would find one of them at once.
        with mutants.of(BUGS[bug]), jax.debug_key_reuse(False):
            built = made()
            found = [audited(built, claim, seed) for seed in range(RUNS)]
    epsilons = [x.epsilon for x in found]
    broken = sum(x.claim.violated for x in found)
    print(
        f"\n{bug or 'correct'} | claimed {found[0].claim.epsilon:.2f} | median "
        f"{np.median(epsilons):.2f} [{min(epsilons):.2f}, {max(epsilons):.2f}] | above "
        f"in {broken} of {RUNS}"
    )
    return broken


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_correct_build_is_never_above_its_claim():
    assert rows(None) == 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_is_found_in_nine_runs_of_ten(bug):
    assert rows(bug) >= 9
