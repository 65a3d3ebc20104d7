"""The audit of our own trainer: canaries through sampler, clipper, loop and plan.

A small model is trained by `experiments.step.make_step` on 64 real examples and n
canaries, each in or out by a coin; the released noisy means are what the audit reads.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from scipy import stats

from tests import trainer
from trustml import parallel, rng
from trustml.audit import canaries, lower_bounds, one_run, result, scores
from trustml.models import mlp
from trustml.privacy import accounting, clipping, plan, sampling

DELTA, ALPHA, REAL = 1e-5, 0.01, 64
PER_SIDE = {1.0: 20_000, 4.0: 5_000, 10.0: 5_000}
ADD = accounting.Relation.ADD_OR_REMOVE_ONE


class Gate(NamedTuple):
    """A trainer under audit.

    Attributes:
      plan: what it promises.
      contribution: length of a canary's clipped gradient; None where it moves.
      l2_clip_norm: C, or the first C_t.
      run: (seed, complement=False) -> (units float64[T, n], included bool[n]).
    """

    plan: plan.Plan
    contribution: float | None
    l2_clip_norm: float
    run: Callable


class Findings(NamedTuple):
    """One audited run at q = 1."""

    bound: result.AuditResult
    by_guesses: float
    variance_p: float
    units: np.ndarray
    included: np.ndarray


def real_columns():
    generator = np.random.default_rng(0)
    features = generator.normal(size=(REAL, 3)).astype(np.float32)
    return {"features": features, "label": (features[:, 0] > 0).astype(np.int32)}


def make(
    *,
    epsilon=None,
    noise_multiplier=None,
    per_side=500,
    steps=3,
    sample_rate=1.0,
    rule="flat",
    num_devices=1,
    l2_clip_norm=0.7,
    microbatches=3,
):
    """The trainer, compiled once; every run has coins, noise and draws of its own."""
    count = 2 * per_side
    task = canaries.wrap(mlp.task(3, 2, hidden=(4,)), count)
    clipper = clipping.clipped_grad(task.loss, l2_clip_norm=l2_clip_norm, rule=rule)
    devices = parallel.devices(num_devices)
    # All of these are constants; how many canaries are in is not among them.
    mean = round(sample_rate * (per_side + REAL))
    slots = -(-int(1.1 * mean + 20) // (microbatches * num_devices))

    def sampler_of(num_examples, seed):
        return sampling.poisson(
            num_examples,
            mean,
            sample_rate=sample_rate,
            physical_batch_size=slots,
            shards=num_devices,
            seed=seed,
        )

    made = plan.make(
        clipper,
        sampler_of(per_side + REAL, 0),
        steps=steps,
        delta=DELTA,
        relation=ADD,
        epsilon=epsilon,
        noise_multiplier=noise_multiplier,
    )
    trained = trainer.make(clipper, made, devices=devices)
    params = task.init(jax.random.key(0))
    tracked = clipper.rule.adapt is not None
    contribution = None if tracked else canaries.contribution(clipper, params)

    def run(seed, complement=False):
        root = rng.root(seed)
        included = canaries.coins(root, count) ^ complement
        columns = canaries.insert(real_columns(), included)
        seed_128 = rng.seed_128(rng.stream(root, "sampling"))
        sampler = sampler_of(len(columns["label"]), seed_128)
        # The complement is a run of its own, with noise of its own.
        noise_root = rng.Root(*rng.stream(root, "second")) if complement else root
        state = trained.start(params, noise_root)
        rows_T = []
        for at in range(steps):
            length = contribution
            if tracked:  # C_t, which a canary fills
                (length,) = np.asarray(made.mechanism.clip_norms(state.noise)).tolist()
            for physical in sampler.physical(at):
                state, means = trained.release(state, columns, physical)
            released = np.asarray(means["canary"], np.float64)
            rows_T.append(released * made.expected_batch_size / length)
        return np.stack(rows_T), included

    return Gate(made, contribution, l2_clip_norm, run)


def audit(gate, seed, guesses=None) -> Findings:
    """One run, audited at q = 1: a bound, and the variance of the canaries out."""
    units, included = gate.run(seed)
    steps, count = units.shape
    found = scores.total(units)
    bound = lower_bounds.gaussian(
        found[included],
        found[~included],
        threshold=steps / 2,
        delta=DELTA,
        alpha=ALPHA,
        independent_scores=True,
    )
    half = (guesses or count // 10) // 2
    by_guesses = one_run.epsilon_of_counts(
        one_run.guess(found, included, (half, half)),
        2 * half,
        count,
        delta=DELTA,
        alpha=ALPHA,
    )
    p = variance_p(gate, found[~included], steps)
    return Findings(bound, by_guesses, p, units, included)


def multiplier(gate):
    """Stddev of the noise in units of a canary's contribution."""
    return gate.plan.noise_stddev() / (gate.contribution or gate.l2_clip_norm)


def variance_p(gate, out_scores, steps):
    """Two-sided p-value of sum o_k^2 / (T z^2) against chi^2."""
    z = multiplier(gate)
    ratio = np.sum(np.square(out_scores)) / (steps * z**2)
    law = stats.chi2(out_scores.size)
    return float(2 * min(law.cdf(ratio), law.sf(ratio)))


@functools.cache
def at(epsilon, **options):
    """The gate of the specification at this epsilon; compiled once a session."""
    return make(epsilon=epsilon, per_side=PER_SIDE[epsilon], **options)
