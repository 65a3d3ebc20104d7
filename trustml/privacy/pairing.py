"""Which parts of a plan go together, and what each pair is worth; else one sentence.

Units, micro-batches, bands, schedules and grids each need a partner of their kind:
`plan.make` asks here before it searches for a noise.

Example::

    pairing.check_pair(clipper, sampler)
    scales = pairing.schedule(noise_schedule, steps, sampler)
"""

from typing import Any

import jax
import numpy as np

from trustml import _validate
from trustml.privacy import accounting, correlated_noise, sampling
from trustml.privacy import trainable as trainable_lib

# Samplers that may leave a record out of every batch, whichever record it is.
_LEAVE_OUT = ("poisson", "cyclic_poisson", "truncated_poisson", "micro_batches")


def event_sensitivity(
    clipper: Any, sampler: sampling.Sampler, relation: accounting.Relation
) -> float:
    """The sensitivity that the sampler's event is to be asked with."""
    own = clipper.sensitivity(relation)
    if sampler.name not in _LEAVE_OUT or relation is not relation.REPLACE_ONE:
        return own
    # Poisson sampling may also leave the record out, on either side: the pair
    # (1-q) N(0) + q N(+-c) needs a c that bounds one record's own share.
    alone = clipper.sensitivity(accounting.Relation.ADD_OR_REMOVE_ONE)
    return max(own, 2 * alone)


def check_pair(clipper: Any, sampler: sampling.Sampler) -> None:
    """Both have one unit; micro-batches go with independently drawn slots alone."""
    if clipper.privacy_unit != sampler.privacy_unit:
        _validate.fail(
            "sampler.privacy_unit",
            sampler.privacy_unit,
            f"does not fit a clipper whose unit is the {clipper.privacy_unit}",
            "for users join users.clipped_grad with users.sampler",
        )
    grouped = _group_size(clipper) != 1
    if grouped != (sampler.group_size is not None):
        field = "clipper" if grouped else "sampler"
        name = "edp_sgd" if grouped else sampler.name
        _validate.fail(
            field,
            name,
            "does not fit: means of micro-batches need a sampler that draws a "
            "micro-batch for every example on its own, and nothing else may use it",
            "join edp_sgd.clipped_grad with edp_sgd.micro_batches",
        )
    if grouped and sampler.group_size != clipper.group_size:
        _validate.fail(
            "clipper.group_size",
            clipper.group_size,
            f"differs from the sampler's {sampler.group_size}",
            "give both the same",
        )


def banded(
    strategy: correlated_noise.Strategy | None,
    sampler: sampling.Sampler,
    steps: int,
    scales: np.ndarray,
    adapt: Any,
) -> correlated_noise.Strategy | None:
    """The strategy, if it correlates anything; refuses what has no event with it."""
    bands = 1 if strategy is None else strategy.bands
    if bands != sampler.bands:
        _validate.fail(
            "strategy.bands",
            bands,
            f"does not fit the sampler {sampler.name} with bands={sampler.bands}: the "
            "steps of an example must lie as far apart as noise is correlated",
            "give sampling.cyclic_poisson and correlated_noise.optimize the same bands",
        )
    if strategy is None or bands == 1:
        return None
    if bands > steps:
        cure = "take fewer bands"
        _validate.fail("strategy.bands", bands, f"must be at most steps={steps}", cure)
    if len(set(scales)) > 1:
        _validate.fail(
            "noise_schedule",
            f"{len(set(scales))} levels",
            "does not fit a banded strategy, whose event is for one noise throughout",
            "leave one of the two out",
        )
    if adapt is not None:
        _validate.fail(
            "strategy.bands",
            bands,
            "does not fit a rule that moves the clip norm: noise of a past step was "
            "scaled to another norm",
            "use rule='flat', or one band",
        )
    return strategy


def schedule(given: Any, steps: int, sampler: sampling.Sampler) -> np.ndarray:
    """s_t of every step, float64[steps]."""
    if given is None:
        return np.ones(steps)
    scales = np.asarray(given, np.float64)
    cure = "take it from trustml.privacy.schedules"
    if scales.shape != (steps,):
        _validate.fail(
            "noise_schedule",
            f"{scales.dtype}{list(scales.shape)}",
            f"must have one entry for each of the {steps} steps",
            cure,
        )
    if not np.all(np.isfinite(scales) & (scales > 0)):
        worst = float(scales[np.argmin(np.isfinite(scales) & (scales > 0))])
        _validate.fail("noise_schedule", worst, "must be finite and > 0", cure)
    if sampler.per_epoch is not None and len(set(scales)) > 1:
        _validate.fail(
            "noise_schedule",
            f"{len(set(scales))} levels",
            f"does not fit the sampler {sampler.name}, whose guarantee is for whole "
            "epochs of one noise",
            "use sampling.poisson",
        )
    return scales


def size(bits: int, clipper: Any, params: Any, moves: bool) -> int:
    """How many coordinates are rounded; refuses what changes the noise on its way."""
    if moves:
        _validate.fail(
            "privacy.grid_bits",
            bits,
            "makes one grid for one noise and one clip norm throughout",
            "leave out the noise schedule, the strategy and rule='quantile'",
        )
    why = "with grid_bits, since what rounding adds grows with their number"
    shapes = jax.eval_shape(lambda x: x, trained(clipper, params, why))
    return sum(x.size for x in jax.tree.leaves(shapes))


def groups(clipper: Any, params: Any) -> Any:
    """The groups of parameters whose clip norms are tracked, each with its share."""
    if clipper.rule.groups is None:
        return clipper.rule.groups_of(["all"])
    if params is None:
        _validate.fail(
            "params",
            None,
            f"must be given with the rule '{clipper.rule.name}', which tracks a norm "
            "for each group of parameters",
            "pass the parameters to plan.make",
        )
    return clipper.groups(params)


def trained(clipper: Any, params: Any, why: str) -> Any:
    """The leaves that are trained; raises if there are no parameters, and `why`."""
    if params is None:
        _validate.fail(
            "params",
            None,
            f"must be given {why}",
            "pass the parameters, or their shapes, to plan.make",
        )
    return trainable_lib.partition(params, getattr(clipper, "trainable", None))[0]


def _group_size(clipper: Any) -> float:
    """Examples whose mean is clipped as one: 1, or the size of a micro-batch."""
    return getattr(clipper, "group_size", None) or 1
