"""Sums of clipped per-example gradients, which carry their own sensitivity.

    g_clip = sum_i mask_i c_i g_i,   c_i = min(1, C / ||g_i||_2)     (Abadi et al. 2016)

A *rule* says how norms become factors c (`trustml.privacy.rules`); a *method* says how
norms and the weighted sum are computed, and every method gives the same numbers:

`book_keeping`  factors instead of per-example gradients, for any loss (see `factored`);
                costs little more than the ordinary gradient. The default.
`ghost`         norms from the factors, then the ordinary gradient of sum_i c_i loss_i:
                a forward and backward pass more, nothing kept between the two. For
                models under `remat`.
`vmap`          `vmap(grad)` and one contraction: the oracle; memory B x parameters.

Each runs over the batch in chunks of `microbatch_size` in bounded memory.

Dimension key: B examples, G groups of leaves that are clipped together.

Example::

    clipper = clipping.clipped_grad(task.loss, l2_clip_norm=1.0)
    sums, info = clipper(params, batch, mask, key)
    clipper.sensitivity(NeighboringRelation.ADD_OR_REMOVE_ONE)   # 1.0
    print(clipper.explain(params, example))

References: https://arxiv.org/abs/1607.00133 (DP-SGD), https://arxiv.org/abs/2210.00038
(book-keeping), https://arxiv.org/abs/2110.05679 (ghost clipping).
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import dp_accounting
import jax
import jax.numpy as jnp
from jax import lax

from trustml import _validate
from trustml.privacy import arguments, coverage, explanation, isolation
from trustml.privacy import rules as rules_lib
from trustml.privacy import trainable as trainable_lib
from trustml.privacy.factored import terms as terms_lib
from trustml.privacy.factored import trace

METHODS = ("auto", "book_keeping", "ghost", "vmap")

Relation = dp_accounting.NeighboringRelation


class ClipInfo(NamedTuple):
    """Diagnostics of one batch. NOT private: keep under `nonprivate/`.

    Attributes:
      norms_per_example: gradient norms before clipping, float32[B]; 0 where masked, inf
        where the gradient is not finite.
      losses_per_example: float32[B]; 0 where masked.
      nonfinite_per_example: bool[B]; examples whose loss or gradient is not finite,
        which contribute exactly 0.
      group_norms_per_example: norms of each group of leaves, float32[B, G].
    """

    norms_per_example: jax.Array
    losses_per_example: jax.Array
    nonfinite_per_example: jax.Array
    group_norms_per_example: jax.Array


@dataclasses.dataclass(frozen=True)
class ClippedGrad:
    """A clipped-gradient function with its guarantee; made by `clipped_grad`."""

    fn: Callable[..., tuple[Any, ClipInfo]]
    explain_fn: Callable[..., explanation.Explanation]
    loss: Callable
    l2_clip_norm: float
    rule: rules_lib.Rule
    method: str
    microbatch_size: int | None
    trainable: trainable_lib.Selection
    privacy_unit: str = "example"

    def __call__(
        self, params, batch, mask, key, example_ids=None, group_clip_norms=None
    ):
        """Sum of clipped gradients and diagnostics.

        Args:
          params: pytree.
          batch: pytree of arrays [B, ...].
          mask: bool[B]; a False row contributes exactly 0, whatever it holds.
          key: a typed key; example i gets `fold_in(key, example_ids[i])`.
          example_ids: int[B] that name the examples, so that an example's randomness
            does not depend on its slot; slots where None.
          group_clip_norms: float32[G] instead of the built-in norms, for a rule whose
            norms move. Whoever passes them owns the sensitivity: their L2 norm.

        Returns:
          (sums, info): sums like `params` in float32, `None` for frozen leaves.
        """
        return self.fn(params, batch, mask, key, example_ids, group_clip_norms)

    def groups(self, params) -> rules_lib.Groups:
        """Which trainable leaves of `params` are clipped together."""
        train, _ = trainable_lib.partition(params, self.trainable)
        return self.rule.groups_of(trainable_lib.paths(train))

    def sensitivity(self, relation: Relation) -> float:
        """Largest L2 change of the sum when one example changes under `relation`."""
        if not isinstance(relation, Relation):
            names = ", ".join(r.name for r in Relation)
            raise ValueError(
                f"relation={relation!r} is not a NeighboringRelation; use one of "
                f"{names}."
            )
        return self.l2_clip_norm * (2.0 if relation is Relation.REPLACE_ONE else 1.0)

    def explain(self, params, example) -> explanation.Explanation:
        """How each leaf is handled, for one example without a batch axis."""
        return self.explain_fn(params, example)

    def check(self, params, batch, key=None) -> None:
        """Compares the method with `vmap(grad)` on a few rows, and isolates examples.

        Run it once before training: it compiles both methods for at most 3 rows of
        `batch` and raises if a norm or the clipped sum is off, or if one row's content
        changes another row's loss or norm.

        Raises:
          ValueError: names the leaf, or the rows, that disagree.
        """
        oracle = clipped_grad(
            self.loss,
            l2_clip_norm=self.l2_clip_norm,
            rule=self.rule,
            method="vmap",
            trainable=self.trainable,
        )
        key = jax.random.key(0) if key is None else key
        coverage.check(self, oracle, params, batch, key)


def clipped_grad(
    loss: Callable[[Any, Any, Any], jax.Array],
    *,
    l2_clip_norm: float,
    rule: str | rules_lib.Rule = "flat",
    method: str = "auto",
    microbatch_size: int | None = None,
    trainable: trainable_lib.Selection = None,
) -> ClippedGrad:
    """Sum over a batch of the gradients of `loss`, each clipped to `l2_clip_norm`.

    g_clip = sum_i mask_i g_i min(1, C / ||g_i||_2)        (or another rule's factor)

    Formal guarantees: whatever one example holds (NaN and inf included), adding or
      removing it changes the sum by at most `l2_clip_norm` in L2, up to float32
      rounding (relative 1e-4); masked examples add exactly 0.

    Args:
      loss: (params, example, key) -> float32[]; one example, no batch axis.
      l2_clip_norm: C > 0, in units of the gradient.
      rule: how norms become factors: a name of `rules.NAMES`, or a `rules.Rule`.
      method: 'auto' and 'book_keeping' keep factors and choose the norm of each leaf by
        cost; 'ghost' takes two passes (float32 models, rules of one group); 'vmap' is
        the oracle. Same numbers.
      microbatch_size: rows processed at a time, to bound memory; None for all at once.
      trainable: globs of leaf paths, or a predicate of paths; None for all leaves.

    Returns:
      A `ClippedGrad`: call it as fn(params, batch, mask, key) -> (sums, ClipInfo).

    Raises:
      ValueError: when built, if an argument is out of its bounds; when traced, if the
        loss is not a scalar of one example or could mix examples.

    | edge case | what happens |
    | --- | --- |
    | zero gradient | contributes 0, no NaN |
    | loss, norm or norm^2 not finite | contributes exactly 0, flagged in ClipInfo |
    | masked row | contributes exactly 0, whatever it holds |
    | empty batch (all masked) | zero sum |
    | float16/bfloat16 factors | C is reduced by 2^-7, the rounding of c_i g_i |

    References: https://arxiv.org/abs/1607.00133, https://arxiv.org/abs/2210.00038
    """
    arguments.check_loss_takes(loss)
    _validate.positive(
        "l2_clip_norm", l2_clip_norm, "choose a finite clip norm above 0"
    )
    cure = "squared norms must fit float32; rescale the loss and the clip norm"
    _validate.in_half_open_interval("l2_clip_norm", l2_clip_norm, 1e-12, 1e12, cure)
    rule = rules_lib.rule(rule)
    _validate.one_of("method", method, METHODS)
    if microbatch_size is not None:
        _validate.integer_at_least("microbatch_size", microbatch_size, 1)

    def split_loss(train, frozen, example, key):
        return loss(trainable_lib.combine(train, frozen), example, key)

    def prepared(train, frozen, batch, keys) -> trace.Factored:
        arguments.check_scalar(split_loss, train, frozen, batch, keys)
        program = trace.gradient_program(split_loss, train, frozen, batch, keys)
        isolation.check_program(program.jaxpr)
        return trace.factored(split_loss, train, frozen, batch, keys)

    def one_chunk(params, clip_norms, batch, mask, example_ids, key):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, example_ids)
        train, frozen = trainable_lib.partition(params, trainable)
        groups = rule.groups_of(trainable_lib.paths(train))
        limits = Limits(rule, groups, clip_norms)
        bound = prepared(train, frozen, batch, keys)
        by = {"vmap": _by_vmap, "ghost": _by_ghost}.get(method, _by_factors)
        return by(split_loss, bound, train, frozen, batch, mask, keys, limits)

    def fn(params, batch, mask, key, example_ids=None, group_clip_norms=None):
        mask = jnp.asarray(mask)
        arguments.check_key(key)
        arguments.check_params(params)
        params = _as_arrays(params)
        num_rows = arguments.check_batch(batch, mask)
        if example_ids is None:
            example_ids = jnp.arange(num_rows, dtype=jnp.uint32)
        example_ids = arguments.check_ids(example_ids, num_rows)
        train, _ = trainable_lib.partition(params, trainable)
        groups = rule.groups_of(trainable_lib.paths(train))
        clip_norms = group_norms(l2_clip_norm, groups, group_clip_norms)
        batch = jax.tree.map(jnp.asarray, batch)
        # Masked rows, and rows that hold NaN or inf, become the all-zeros example
        # before the forward pass: what the compiler makes of a batch may mix 0 * NaN
        # into others.
        usable = mask & _finite_rows(batch, num_rows)
        rows = (
            jax.tree.map(lambda x: _where(usable, x, 0), batch),
            usable,
            example_ids,
        )
        if microbatch_size is None or microbatch_size >= num_rows:
            sums, info = one_chunk(params, clip_norms, *rows, key)
        else:
            same = (params, clip_norms)
            sums, info = _chunked(one_chunk, microbatch_size, same, rows, key)
        refused = mask & ~usable
        return sums, ClipInfo(
            jnp.where(refused, jnp.inf, info.norms_per_example),
            jnp.where(refused, jnp.nan, info.losses_per_example),
            info.nonfinite_per_example | refused,
            _where(~refused, info.group_norms_per_example, jnp.inf),
        )

    def explain(params, example):
        arguments.check_params(params)
        params = _as_arrays(params)  # shapes alone will do
        train, frozen = trainable_lib.partition(params, trainable)
        batch = jax.tree.map(lambda x: jnp.asarray(x)[None], example)
        keys = jax.random.split(jax.random.key(0), 1)
        bound = prepared(train, frozen, batch, keys)
        out = jax.eval_shape(bound.run, train, frozen, batch, keys)
        return explanation.of(train, out.leaves)

    return ClippedGrad(
        fn=fn,
        explain_fn=explain,
        loss=loss,
        l2_clip_norm=float(l2_clip_norm),
        rule=rule,
        method=method,
        microbatch_size=microbatch_size,
        trainable=trainable,
    )


def _as_arrays(params):
    """`params` with plain numbers as arrays."""
    return jax.tree.map(lambda x: x if hasattr(x, "dtype") else jnp.asarray(x), params)


def _where(mask, x, other):
    shaped = mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim))
    return jnp.where(shaped, x, jnp.asarray(other, x.dtype))


def _finite_rows(batch, num_rows):
    """Which rows hold only finite numbers, bool[B]."""
    finite = jnp.ones((num_rows,), bool)
    for x in jax.tree.leaves(batch):
        if jnp.issubdtype(x.dtype, jnp.inexact):
            finite &= jnp.all(jnp.isfinite(x), axis=tuple(range(1, x.ndim)))
    return finite


def group_norms(total: float, groups: rules_lib.Groups, given=None) -> jax.Array:
    """Clip norm of every group, float32[G]: `given`, or its share of `total`."""
    if given is None:
        return total * jnp.asarray(groups.shares, jnp.float32)
    given = jnp.asarray(given)
    if given.shape != (len(groups.names),) or given.dtype != jnp.float32:
        _validate.fail(
            "group_clip_norms",
            f"{given.dtype}{list(given.shape)}",
            f"must be float32[{len(groups.names)}]",
            "give one norm for each group of the rule",
        )
    return given


class Limits(NamedTuple):
    """A rule, its groups and their clip norms, float32[G]."""

    rule: rules_lib.Rule
    groups: rules_lib.Groups
    clip_norms: jax.Array

    def in_groups(self, per_leaf) -> list[jax.Array]:
        """Sums over the leaves of each group."""
        sums: list[Any] = [None] * len(self.groups.names)
        for group, x in zip(self.groups.index, per_leaf, strict=True):
            sums[group] = x if sums[group] is None else sums[group] + x
        return sums

    def factors(self, norm2_leaves, losses, mask, shrink=1.0):
        """Factors [B] of every leaf, and which rows are not finite (factor 0)."""
        norm2 = self.in_groups(norm2_leaves)
        finite = jnp.isfinite(losses)
        for x in norm2:
            finite &= jnp.isfinite(x)
        of_group = []
        for x, clip_norm in zip(norm2, self.clip_norms, strict=True):
            norms = jnp.sqrt(jnp.where(finite, x, 0.0))
            factors = self.rule.weight(norms, clip_norm * jnp.float32(shrink))
            of_group.append(jnp.where(finite & mask, factors, 0.0))
        return [of_group[group] for group in self.groups.index], ~finite

    def info(self, norm2_leaves, losses, mask, bad) -> ClipInfo:
        """The diagnostics of a batch."""
        norm2 = jnp.stack(self.in_groups(norm2_leaves), axis=1)
        norms = _where(~bad, jnp.sqrt(jnp.maximum(norm2, 0.0)), jnp.inf)
        whole = jnp.sqrt(jnp.sum(jnp.square(norms), axis=1))
        return ClipInfo(
            _where(mask, whole, 0.0),
            _where(mask, losses, 0.0),
            bad & mask,
            _where(mask, norms, 0.0),
        )


def _is_low_precision(x) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating) and jnp.finfo(x.dtype).bits < 32


def _by_factors(split_loss, bound, train, frozen, batch, mask, keys, limits):
    del split_loss  # traced in `bound`
    out = bound.run(train, frozen, batch, keys)
    low_precision = any(map(_is_low_precision, jax.tree.leaves(out.leaves)))
    shrink = 1 - 2.0**-7 if low_precision else 1.0
    factors, bad = limits.factors(out.norm2_upper, out.losses, mask, shrink)
    # 0 * NaN is NaN: the factors of rows that are not finite are zeroed as well.
    sums = bound.clipped_sum(trace.zeroed(out.leaves, bad), factors)
    return sums, limits.info(out.norm2, out.losses, mask, bad)


def _by_ghost(split_loss, bound, train, frozen, batch, mask, keys, limits):
    if len(limits.groups.names) > 1:
        _validate.fail(
            "method",
            "ghost",
            f"has one factor for an example, and the rule '{limits.rule.name}' has "
            f"{len(limits.groups.names)}",
            "use method='book_keeping'",
        )
    out = bound.run(train, frozen, batch, keys)
    if any(map(_is_low_precision, jax.tree.leaves((out.leaves, train)))):
        _validate.fail(
            "method",
            "ghost",
            "adds up gradients in the precision of the loss, which must be float32 for "
            "the clip norm to hold",
            "use method='book_keeping' for a loss in low precision",
        )
    factors, bad = limits.factors(out.norm2_upper, out.losses, mask)
    # A row of weight 0 takes the content of a finite one: 0 * NaN is NaN.
    good = mask & ~bad
    rows = jnp.where(good, jnp.arange(mask.shape[0]), jnp.argmax(good))
    batch = jax.tree.map(lambda x: x[rows], batch)
    keys = jax.random.clone(keys[rows])  # on purpose: the same randomness twice
    weights = lax.stop_gradient(factors[0])

    def total(train):
        losses = jax.vmap(split_loss, (None, None, 0, 0))(train, frozen, batch, keys)
        return jnp.sum(weights * losses.astype(jnp.float32))

    any_good = jnp.any(good)
    sums = jax.tree.map(lambda g: jnp.where(any_good, g, 0.0), jax.grad(total)(train))
    return sums, limits.info(out.norm2, out.losses, mask, bad)


def _by_vmap(split_loss, bound, train, frozen, batch, mask, keys, limits):
    del bound  # factors are of no use here
    mapped = jax.vmap(jax.value_and_grad(split_loss), (None, None, 0, 0))
    losses, grads = mapped(train, frozen, batch, keys)
    leaves, tree = jax.tree.flatten(grads)
    leaves = [g.astype(jnp.float32) for g in leaves]
    losses = losses.astype(jnp.float32)
    norm2 = [jnp.sum(jnp.square(g), axis=tuple(range(1, g.ndim))) for g in leaves]
    factors, bad = limits.factors(norm2, losses, mask)
    sums = [
        terms_lib.contract(c, _where(~bad, g, 0), ((0,), (0,)))
        for c, g in zip(factors, leaves, strict=True)
    ]
    return tree.unflatten(sums), limits.info(norm2, losses, mask, bad)


def _chunked(one_chunk, size, same, rows, key):
    """`one_chunk` over consecutive chunks of `size` rows, the sums accumulated."""
    num_rows = rows[1].shape[0]
    chunks = math.ceil(num_rows / size)
    short = chunks * size - num_rows

    def split(x):
        if short:  # padded with zeros: a mask of False, an example of zeros
            x = jnp.pad(x, ((0, short), *((0, 0),) * (x.ndim - 1)))
        return x.reshape(chunks, size, *x.shape[1:])

    xs = jax.tree.map(split, rows)

    def body(total, x):
        sums, info = one_chunk(*same, *x, key)
        return jax.tree.map(jnp.add, total, sums), info

    first = jax.tree.map(lambda x: x[0], xs)
    like = jax.eval_shape(one_chunk, *same, *first, key)[0]
    sums, info = lax.scan(body, jax.tree.map(_zeros_like, like), xs)
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:num_rows], info)
    return sums, flat


def _zeros_like(aval):
    """Zeros of an abstract value, device-varying where it is."""
    zeros = jnp.zeros(aval.shape, aval.dtype)
    axes = aval.manual_axis_type
    varying = tuple(axes.varying) if axes is not None else ()
    return lax.pcast(zeros, varying, to="varying") if varying else zeros
