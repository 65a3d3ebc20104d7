"""References: what the other models say of each example, without the target's partner.

M models were trained on random subsets; each is a target once, and the others are its
references. Of target t and example i the references split into IN (trained on i) and
OUT (not). `rotate` decides who may refer to whom, `summary` takes counts, means and
centred sums of squares of both sides, and the variance of a side pooled over examples,
each centred on its own mean:

    variance = sum_i SS_i / sum_i (n_i - 1)

Who must stay away. In a design of complementary pairs each example is in exactly half
of the models. Leave out the target alone, and a member of it has M/2 - 1 IN and M/2 OUT
references, a non-member the reverse: a score that looks at the counts reads membership
off the design, even on pure noise. So the partner goes as well. Without pairs both
sides are cut to the smaller one, and a design whose counts still differ between members
and non-members is refused.

Dimension key: `M` models (targets, and references again), `n` examples, `Q` queries.

Example::

    from trustml.attacks import likelihood, references

    rotation = references.rotate(signals.member, signals.pair, budget=16)
    summary = references.summary(signals.margin, rotation, signals.valid)
    scores = likelihood.student_t(signals.margin, summary)
    scores.value[0][scores.valid[0]]                      # of target 0

References: https://arxiv.org/abs/2112.03570 (targets in rotation; variances)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from trustml import _validate

Array = jax.Array | np.ndarray

# A variance below it is that of models that agree to the last digits.
FLOOR = 1e-6


class Rotation(NamedTuple):
    """Who may refer to whom.

    Attributes:
      member: bool[M, n], was example i in the training set of model m.
      use: bool[T, M], use[t, r]: model r is a reference of target t; T = M, or 1 where
        the target is none of the models.
      limit: int32[T, n], most references of a side of target t and example i; None
        where the design makes the counts independent of membership.
    """

    member: Array
    use: Array
    limit: Array | None


class Summary(NamedTuple):
    """References of every target and example, in counts, means and squares.

    Attributes:
      n_in: float32[M, n], references trained on the example.
      n_out: float32[M, n], references not trained on it.
      mean_in: float32[M, n, Q]; 0 where there is no such reference.
      mean_out: float32[M, n, Q].
      squares_in: float32[M, n, Q], sum of squares about `mean_in`.
      squares_out: float32[M, n, Q].
      variance_in: float32[M, Q], pooled over examples, at least 1e-6. Where no example
        has two references of the side: the variance over examples of mean_in -
        mean_out, shared out by the counts; 1 where that is missing too.
      variance_out: float32[M, Q].
      valid: bool[n], false where a signal of any model is not finite.
    """

    n_in: Array
    n_out: Array
    mean_in: Array
    mean_out: Array
    squares_in: Array
    squares_out: Array
    variance_in: Array
    variance_out: Array
    valid: Array


class Scores(NamedTuple):
    """What an attack says of every example under every target.

    Attributes:
      value: float32[M, n], larger means member; nan where not valid, so that a score
        nobody asked about cannot be ranked by mistake.
      valid: bool[M, n].
    """

    value: Array
    valid: Array


def rotate(
    member: Bool[np.ndarray, "M n"], pair: np.ndarray, *, budget: int | None = None
) -> Rotation:
    """Chooses the references of every target: never itself, never its partner.

    Args:
      member: the design.
      pair: int[M], the complementary model, -1 where there is none.
      budget: references of a target, for results at a smaller price; whole pairs, those
        that follow the target's own in the order of the models. None: all.

    Returns:
      Rotation; NumPy arrays.

    Raises:
      ValueError: if `pair` is not mutual or a pair shares an example, if there are too
        few models for the budget, or if the design tells members from non-members by
        the number of their references.
    """
    member, pair = np.asarray(member, bool), np.asarray(pair)
    models = member.shape[0]
    if pair.shape != (models,):
        raise ValueError(
            f"pair has shape {pair.shape} for {models} models; give one per model, -1 "
            "where there is none."
        )
    partner = _partners(member, pair)
    use = np.zeros((models, models), bool)
    most = models - 1 - int(np.any(pair >= 0))
    wanted = most if budget is None else budget
    _validate.integer_at_least("references.budget", wanted, 1, "train more models")
    for target in range(models):
        # From the target's pair on, so that no model serves all targets.
        order = [(target + step) % models for step in range(models)]
        units = dict.fromkeys(tuple(sorted({r, partner[r]})) for r in order)
        mine = {target, partner[target]}
        count = 0
        for unit in units:
            if not mine.intersection(unit) and count + len(unit) <= wanted:
                use[target, list(unit)] = True
                count += len(unit)
        if budget is not None and count != budget:
            _validate.fail(
                "references.budget",
                budget,
                f"cannot be had for target {target}: {count} of {models} models are at "
                "hand in whole pairs, its own left out",
                "choose an even number of at most M - 2, or train more models",
            )
    limit = None
    if not np.all(pair >= 0):
        n_in, n_out = _counts(member, use)
        limit = np.minimum(n_in, n_out).astype(np.int32)
    _check_counts(member, use, limit)
    return Rotation(member, use, limit)


def outside_target(member: Bool[np.ndarray, "M n"]) -> Rotation:
    """All models as references of one target that is none of them.

    The design was drawn without regard to the target's own training set, so neither a
    partner nor the number of references gives membership away.

    Args:
      member: the design.

    Returns:
      Rotation of one target, [1, M]; for `summary`, and scores of margins [1, n, Q].
    """
    member = np.asarray(member, bool)
    return Rotation(member, np.ones((1, len(member)), bool), None)


def summary(
    signal: Float[Array, "M n Q"],
    rotation: Rotation,
    valid: Bool[Array, " n"] | None = None,
) -> Summary:
    """Counts, means and squares of the references of every target and example.

    Two passes per target (mean, then squares about it), so nothing cancels; O(M^2 n Q).

    Args:
      signal: of every model, such as `Signals.margin`.
      rotation: of `rotate`.
      valid: examples to use; those with a signal that is not finite go as well.

    Returns:
      Summary.
    """
    signal, valid = clean(signal, valid)

    def one(inside, outside, _):
        n_in, mean_in, squares_in = _moments(signal, inside)
        n_out, mean_out, squares_out = _moments(signal, outside)
        gap = _gap_variance(n_in, n_out, mean_in, mean_out, valid)
        return Summary(
            n_in,
            n_out,
            mean_in,
            mean_out,
            squares_in,
            squares_out,
            _pooled(n_in, squares_in, valid, gap),
            _pooled(n_out, squares_out, valid, gap),
            valid,
        )

    found = over_targets(one, rotation)
    return found._replace(valid=valid)


def clean(
    signal: Array, valid: Bool[Array, " n"] | None
) -> tuple[jax.Array, jax.Array]:
    """The signal with 0 in place of what is not valid, and what is valid, bool[n].

    Args:
      signal: float[M, n, Q].
      valid: examples to use; those with a signal that is not finite go as well.

    Raises:
      ValueError: when traced, if the signal has no three axes.
    """
    if np.ndim(signal) != 3:
        bound = "has not the axes [M, n, Q] of models, examples and queries"
        cure = "of one query, give signal[:, :, None]"
        _validate.fail("signal.shape", list(np.shape(signal)), bound, cure)
    signal = jnp.asarray(signal, jnp.float32)
    ok = jnp.all(jnp.isfinite(signal), axis=(0, 2))
    if valid is not None:
        ok = ok & jnp.asarray(valid)
    return jnp.where(ok[None, :, None], signal, 0.0), ok


def over_targets(
    fn: Callable[[jax.Array, jax.Array, jax.Array], Any], rotation: Rotation
) -> Any:
    """`fn(inside, outside, target)` of every target, stacked.

    Args:
      fn: its arguments are bool[M, n], bool[M, n] (references of the two sides of each
        example) and the target's number.
      rotation: of `rotate`.
    """
    member, use = jnp.asarray(rotation.member), jnp.asarray(rotation.use)

    def one(target):
        inside = use[target][:, None] & member
        outside = use[target][:, None] & ~member
        if rotation.limit is not None:
            limit = jnp.asarray(rotation.limit)[target]
            inside, outside = _cut(inside, limit), _cut(outside, limit)
        return fn(inside, outside, target)

    return jax.lax.map(one, jnp.arange(use.shape[0]))


def scores(value: jax.Array, valid: jax.Array) -> Scores:
    """`Scores` with nan wherever a score is not valid or not finite."""
    valid = valid & jnp.isfinite(value)
    return Scores(jnp.where(valid, value, jnp.nan), valid)


def _moments(signal, mask):
    """Count, mean and centred sum of squares over the models of a mask."""
    count = jnp.sum(mask, axis=0, dtype=jnp.float32)
    some = jnp.maximum(count, 1.0)[:, None]
    mean = jnp.sum(jnp.where(mask[:, :, None], signal, 0.0), axis=0) / some
    away = jnp.where(mask[:, :, None], signal - mean[None], 0.0)
    # The second term takes back the rounding of the mean.
    left = jnp.sum(away, axis=0)
    squares = jnp.sum(away * away, axis=0) - left * left / some
    return count, mean, jnp.maximum(squares, 0.0)


def _pooled(count, squares, valid, fallback):
    freedom = jnp.sum(jnp.where(valid, jnp.maximum(count - 1.0, 0.0), 0.0))
    total = jnp.sum(jnp.where(valid[:, None], squares, 0.0), axis=0)
    found = jnp.where(freedom > 0, total / jnp.maximum(freedom, 1.0), fallback)
    return jnp.maximum(found, FLOOR)


def _gap_variance(n_in, n_out, mean_in, mean_out, valid):
    """Var(mean_in - mean_out) / mean(1/n_in + 1/n_out), an upper estimate; [Q]."""
    both = valid & (n_in > 0) & (n_out > 0)
    count = jnp.sum(both, dtype=jnp.float32)
    gap = jnp.where(both[:, None], mean_in - mean_out, 0.0)
    centre = jnp.sum(gap, axis=0) / jnp.maximum(count, 1.0)
    away = jnp.where(both[:, None], gap - centre[None], 0.0)
    spread = jnp.sum(away * away, axis=0) / jnp.maximum(count - 1.0, 1.0)
    shares = 1.0 / jnp.maximum(n_in, 1.0) + 1.0 / jnp.maximum(n_out, 1.0)
    share = jnp.sum(jnp.where(both, shares, 0.0)) / jnp.maximum(count, 1.0)
    return jnp.where(count > 1, spread / jnp.maximum(share, FLOOR), 1.0)


def _cut(mask, limit):
    """The first `limit` models of every example's mask; models are exchangeable."""
    order = jnp.cumsum(mask, axis=0, dtype=jnp.int32)
    return mask & (order <= limit[None])


def _partners(member, pair):
    """The partner of every model, itself where there is none."""
    models = pair.size
    partner = np.where(pair >= 0, pair, np.arange(models))
    for model in np.flatnonzero(pair >= 0).tolist():
        other = int(pair[model])
        if other >= models or other == model or pair[other] != model:
            raise ValueError(
                f"pair[{model}]={other} is not mutual; the partner of a partner must "
                "be the model itself, -1 where there is none."
            )
        shared = np.flatnonzero(member[model] & member[other])
        if shared.size:
            raise ValueError(
                f"models {model} and {other} are a pair and both trained on example "
                f"{shared[0]} ({shared.size} in all); a pair must share none, or set "
                "pair=-1."
            )
    return partner.tolist()


def _counts(member, use):
    use = use.astype(np.float32)
    inside = use @ member.astype(np.float32)
    return inside, use.sum(axis=1, keepdims=True) - inside


def _check_counts(member, use, limit):
    """Refuses designs where the number of references gives membership away."""
    n_in, n_out = _counts(member, use)
    some = (n_in > 0) & (n_out > 0)
    if limit is not None:
        n_in = np.minimum(n_in, limit)
    gaps, errors = [], []
    for target in range(member.shape[0]):
        ins = n_in[target, some[target] & member[target]]
        outs = n_in[target, some[target] & ~member[target]]
        if ins.size > 1 and outs.size > 1:
            gaps.append(ins.mean() - outs.mean())
            errors.append(np.sqrt(ins.var() / ins.size + outs.var() / outs.size))
    # Targets share their examples, so their errors are not averaged down.
    if gaps and abs(np.mean(gaps)) > 5.0 * np.mean(errors) + 1e-3:
        raise ValueError(
            f"member: its members have {np.mean(gaps):+.3g} IN references against "
            "non-members, so that counts alone tell them apart; use the paired design "
            "(and its pairs), or a fair coin per model and example."
        )
