"""What several checks share: a small trainer, bounds of statistics, dp-accounting."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import dp_accounting
import jax
import jax.numpy as jnp
import numpy as np

from tests import trainer as trainer_lib
from trustml import parallel, rng
from trustml.privacy import accounting, clipping, plan, sampling

ADD = accounting.Relation.ADD_OR_REMOVE_ONE
SPECIAL = accounting.Relation.REPLACE_SPECIAL
REPLACE = accounting.Relation.REPLACE_ONE
DELTA = 1e-5


class Trainer(NamedTuple):
    """The loop's step on a sampler, and what every call of it released."""

    plan: plan.Plan
    sampler: sampling.Sampler
    state: Any
    release: Callable[..., Any]  # (state, Physical) -> (state, released mean)


def trainer(
    loss,
    params,
    columns,
    *,
    seed,
    mean,
    slots,
    noise_multiplier=None,
    sample_rate=None,
    num_devices=1,
    steps=6,
    clip=0.4,
    schedule=None,
) -> Trainer:
    """The pieces as a run joins them; no noise where noise_multiplier is None."""
    clipper = clipping.clipped_grad(loss, l2_clip_norm=clip)
    sampler = sampling.poisson(
        len(next(iter(columns.values()))),
        mean,
        sample_rate=sample_rate,
        physical_batch_size=slots,
        shards=num_devices,
        seed=seed,
    )
    made = plan.make(
        clipper,
        sampler,
        steps=steps,
        delta=DELTA,
        relation=ADD,
        noise_multiplier=noise_multiplier or 1.0,
        noise_schedule=schedule,
        accountant="rdp",
    )
    trained = trainer_lib.make(
        clipper,
        made,
        devices=parallel.devices(num_devices),
        noisy=noise_multiplier is not None,
    )

    def release(state, physical):
        return trained.release(state, columns, physical)

    return Trainer(made, sampler, trained.start(params, rng.root(seed)), release)


def silent(params, example, key):
    """A loss without gradient: what is released is noise alone."""
    return sum(0.0 * jnp.sum(x) for x in jax.tree.leaves(params))


def assert_stddev(sample, want):
    sample = np.asarray(sample, np.float64).ravel()
    # The estimate of a standard deviation from n draws has error 1 / sqrt(2 n).
    close = abs(np.std(sample) / want - 1) < 6 / math.sqrt(2 * sample.size)
    assert close, f"stddev {np.std(sample):.6g}, promised {want:.6g}"
    assert abs(np.mean(sample)) < 6 * want / math.sqrt(sample.size), "mean is not 0"


def pld(relation, event, count):
    accountant = dp_accounting.pld.PLDAccountant(relation)
    return accountant.compose(event, count).get_epsilon(DELTA)


def rdp(relation, event, count, delta=DELTA):
    accountant = dp_accounting.rdp.RdpAccountant(neighboring_relation=relation)
    return accountant.compose(event, count).get_epsilon(delta)
