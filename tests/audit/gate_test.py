"""The audit gate: what the trainer leaks lies below its promise, and close to it."""

import numpy as np
import pytest

from tests.audit import gate
from trustml.audit import lower_bounds, rates, scores
from trustml.privacy import rules

SEEDS = range(20)


def summary(values):
    return f"{np.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def violations(bounds, epsilon):
    return sum(bound > epsilon for bound in bounds)


@pytest.mark.parametrize("epsilon", sorted(gate.PER_SIDE))
def test_gate_at_full_batches(epsilon):
    made = gate.at(epsilon)
    promised = made.plan.epsilon()
    assert 0.999 * epsilon < promised <= epsilon
    # Noise and coins of their own at every epsilon.
    found = [gate.audit(made, 1000 * round(epsilon) + seed) for seed in SEEDS]
    bounds = [f.bound.epsilon for f in found]
    by_guesses = [f.by_guesses for f in found]
    smallest = min(f.variance_p for f in found)
    print(
        f"\nepsilon {promised:.3f}: at least {summary(bounds)}; by one run's guesses "
        f"{summary(by_guesses)}; smallest p of the variance {smallest:.3g}"
    )
    # Each bound fails with probability at most 1%: two of 20 with 1.7%. The seeds are
    # fixed; one violation is tolerated, and would be looked into.
    assert violations(bounds, promised) <= 1
    assert violations(by_guesses, promised) <= 1
    assert min(bounds) >= 0.7 * promised
    # Twenty p-values: the smallest is below 2.5e-4 once in two hundred such tests.
    assert smallest > 2.5e-4


def test_gate_with_two_runs():
    """Each canary in one run and out of the other: no assumption on other canaries."""
    made = gate.at(4.0)
    for seed in range(3):
        one, included = made.run(seed)
        two, others = made.run(seed, complement=True)
        np.testing.assert_array_equal(included, ~others)
        first, second = scores.total(one), scores.total(two)
        inside = np.where(included, first, second)
        outside = np.where(included, second, first)
        bound = lower_bounds.gaussian(
            inside,
            outside,
            threshold=len(one) / 2,
            delta=gate.DELTA,
            alpha=gate.ALPHA,
            independent_scores=True,
        )
        assert 0.7 * made.plan.epsilon() <= bound.epsilon <= made.plan.epsilon()
        # Noise of two runs is independent: 10,000 pairs, 5 standard errors.
        noise = np.corrcoef(first - 3 * included, second - 3 * others)[0, 1]
        assert abs(noise) < 5 / np.sqrt(first.size)


def test_two_devices_release_what_one_does():
    alone, _ = gate.at(4.0).run(0)
    spread, _ = gate.at(4.0, num_devices=2).run(0)
    np.testing.assert_allclose(spread, alone, rtol=0, atol=1e-4)


SAMPLED = [(0.2, 10.0, 8), (0.05, 4.0, 30)]


@pytest.mark.parametrize("rate,epsilon,steps", SAMPLED)
def test_gate_with_sampling(rate, epsilon, steps):
    """Never above theory; how close it comes depends on delta, and is not gated."""
    per_side = 2_000
    made = gate.make(epsilon=epsilon, per_side=per_side, steps=steps, sample_rate=rate)
    z = gate.multiplier(made)
    law = {"sample_rate": rate, "noise_multiplier": z}
    errors = {"delta": gate.DELTA, "alpha": gate.ALPHA}
    threshold = scores.fixed_threshold(
        steps=steps, per_side=per_side, seed=1, **law, **errors
    )
    bounds = []
    for seed in SEEDS:
        units, included = made.run(seed)
        found = scores.subsampled(units, **law)
        bound = lower_bounds.epsilon_delta(
            found[included],
            found[~included],
            threshold=threshold,
            independent_scores=True,
            **errors,
        )
        bounds.append(bound.epsilon)
        assert gate.variance_p(made, scores.total(units)[~included], steps) > 1e-4
    print(f"\nepsilon {epsilon}, q {rate}, {steps} steps: {summary(bounds)}")
    assert violations(bounds, made.plan.epsilon()) <= 1
    assert np.median(bounds) > 0.1, "an audit that finds nothing shows nothing"


@pytest.mark.parametrize("rule", ["automatic", "psac", "per_layer"])
def test_gate_under_other_rules(rule):
    made = gate.make(epsilon=4.0, per_side=2_000, rule=rule)
    promised = made.plan.epsilon()
    bounds = [gate.audit(made, seed).bound.epsilon for seed in range(5)]
    assert max(bounds) <= promised
    mu = np.sqrt(3) / gate.multiplier(made)
    expected = rates.gaussian_epsilon(mu, gate.DELTA)
    if rule == "per_layer":  # a share of C under the noise of the whole
        assert made.contribution == pytest.approx(0.7 / np.sqrt(3), rel=1e-6)
        assert expected < 0.6 * promised
    else:
        assert expected == pytest.approx(promised, rel=1e-2)
    assert min(bounds) >= 0.5 * expected


def test_gate_where_the_clip_norm_is_tracked():
    """Gradients leak less than what gradients and bits together were charged."""
    made = gate.make(epsilon=4.0, per_side=2_000, rule=rules.quantile())
    mu = np.sqrt(3) / gate.multiplier(made)
    expected = rates.gaussian_epsilon(mu, gate.DELTA)
    assert expected < made.plan.epsilon()
    for seed in range(5):
        found = gate.audit(made, seed)
        assert 0.5 * expected <= found.bound.epsilon <= made.plan.epsilon()
        assert found.variance_p > 1e-3


def test_a_gate_that_is_lied_to_closes(monkeypatch):
    """Noise of half the promised scale is above theory in every run."""
    made = gate.make(epsilon=4.0, per_side=2_000)
    weak = gate.make(noise_multiplier=made.plan.noise_multiplier / 2, per_side=2_000)
    lying = weak._replace(plan=made.plan)
    for seed in range(3):
        found = gate.audit(lying, seed)
        assert found.bound.epsilon > made.plan.epsilon()
        assert found.variance_p < 1e-10
