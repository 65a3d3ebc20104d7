"""The loop's step and what every call of it released, for checks and for the audit."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from trustml import parallel
from trustml.audit import canaries
from trustml.experiments import step as step_lib


class Trainer(NamedTuple):
    """The compiled step of a plan.

    Attributes:
      start: (params, root of the noise) -> state.
      release: (state, columns, `sampling.Physical`) -> (state, released mean).
    """

    start: Callable[..., Any]
    release: Callable[..., Any]


def make(clipper, plan, *, devices, noisy=True) -> Trainer:
    """The pieces as a run joins them, with plain SGD; without noise where not `noisy`.

    `devices` are those that the plan's sampler deals to.
    """
    optimizer = canaries.recording(optax.sgd(0.1))
    mechanism = plan.mechanism if noisy else None
    step = jax.jit(
        step_lib.make_step(
            clipper,
            mechanism,
            optimizer,
            expected_batch_size=plan.expected_batch_size,
            l2_clip_norm=clipper.l2_clip_norm,
            selection=None,
            dropout_key=jax.random.key(1),
            devices=devices,
            backend="shard_map",
        )
    )

    def start(params, root):
        noise, norms = (), None
        if mechanism is not None:
            noise = mechanism.init(root)
            norms = mechanism.clip_norms(noise)
        state = step_lib.initial_state(params, optimizer, noise, None, norms)
        return parallel.replicate(state, devices)

    def release(state, columns, physical):
        rows = step_lib.rows_of(columns, physical, devices)
        state, _ = step(state, rows, np.bool_(physical.last))
        return state, jax.tree.map(np.asarray, state.opt_state.released)

    return Trainer(start, release)
