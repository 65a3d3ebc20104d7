"""Sums of clipped per-example gradients, which carry their own sensitivity.

    g_clip = sum_i mask_i c_i g_i,   c_i = min(1, C / ||g_i||_2)     (Abadi et al. 2016)

A *rule* says how norms become factors c; a *method* says how norms and the weighted sum
are computed, and every method gives the same numbers for the same rule:

`book_keeping`  factors instead of per-example gradients, for any loss (see `factored`);
                costs little more than the ordinary gradient. The default.
`vmap`          `vmap(grad)` and one contraction: the oracle; memory B x parameters.

Either runs over the batch in chunks of `microbatch_size` in bounded memory.

Dimension key: B examples.

Example::

    clipper = clipping.clipped_grad(task.loss, l2_clip_norm=1.0)
    sums, info = clipper(params, batch, mask, key)
    clipper.sensitivity(NeighboringRelation.ADD_OR_REMOVE_ONE)   # 1.0
    print(clipper.explain(params, example))

References: https://arxiv.org/abs/1607.00133 (DP-SGD), https://arxiv.org/abs/2210.00038
(book-keeping).
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
from trustml.privacy import isolation
from trustml.privacy import trainable as trainable_lib
from trustml.privacy.factored import terms as terms_lib
from trustml.privacy.factored import trace

RULES = ("flat",)
METHODS = ("auto", "book_keeping", "vmap")

Relation = dp_accounting.NeighboringRelation


class ClipInfo(NamedTuple):
    """Diagnostics of one batch. NOT private: keep under `nonprivate/`.

    Attributes:
      norms_per_example: gradient norms before clipping, float32[B]; 0 where masked, inf
        where the gradient is not finite.
      losses_per_example: float32[B]; 0 where masked.
      nonfinite_per_example: bool[B]; examples whose loss or gradient is not finite,
        which contribute exactly 0.
    """

    norms_per_example: jax.Array
    losses_per_example: jax.Array
    nonfinite_per_example: jax.Array


class Row(NamedTuple):
    """How the gradient of one leaf is handled; a row of `Explanation`."""

    leaf: str
    shape: tuple[int, ...]
    rule: str
    norm: str
    dims: str
    flops_per_example: int
    bytes_per_example: int
    reason: str


class Explanation(NamedTuple):
    """What book-keeping found in a loss; `str` of it is a table."""

    rows: tuple[Row, ...]

    @property
    def materialized(self) -> int:
        """Number of leaves that keep a gradient per example for lack of a rule."""
        return len({row.leaf for row in self.rows if row.rule == "materialized"})

    def __str__(self) -> str:
        """A table with one line per leaf and form."""
        head = Row._fields
        cells = [head, *([str(x) for x in row] for row in self.rows)]
        width = [max(len(line[i]) for line in cells) for i in range(len(head))]
        lines = [
            "  ".join(x.ljust(w) for x, w in zip(line, width, strict=True)).rstrip()
            for line in cells
        ]
        count = self.materialized
        tail = f"{count} of {len({r.leaf for r in self.rows})} leaves are materialized."
        return "\n".join([*lines, tail])


@dataclasses.dataclass(frozen=True)
class ClippedGrad:
    """A clipped-gradient function with its guarantee; made by `clipped_grad`."""

    fn: Callable[..., tuple[Any, ClipInfo]]
    explain_fn: Callable[..., Explanation]
    loss: Callable
    l2_clip_norm: float
    rule: str
    method: str
    microbatch_size: int | None
    trainable: trainable_lib.Selection
    privacy_unit: str = "example"

    def __call__(self, params, batch, mask, key, example_ids=None):
        """Sum of clipped gradients and diagnostics.

        Args:
          params: pytree.
          batch: pytree of arrays [B, ...].
          mask: bool[B]; a False row contributes exactly 0, whatever it holds.
          key: a typed key; example i gets `fold_in(key, example_ids[i])`.
          example_ids: int[B] that name the examples, so that an example's randomness
            does not depend on its slot; slots where None.

        Returns:
          (sums, info): sums like `params` in float32, `None` for frozen leaves.
        """
        return self.fn(params, batch, mask, key, example_ids)

    def sensitivity(self, relation: Relation) -> float:
        """Largest L2 change of the sum when one example changes under `relation`."""
        if not isinstance(relation, Relation):
            names = ", ".join(r.name for r in Relation)
            raise ValueError(
                f"relation={relation!r} is not a NeighboringRelation; use one of "
                f"{names}."
            )
        return self.l2_clip_norm * (2.0 if relation is Relation.REPLACE_ONE else 1.0)

    def explain(self, params, example) -> Explanation:
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
        _check(self, params, batch, jax.random.key(0) if key is None else key)


def clipped_grad(
    loss: Callable[[Any, Any, Any], jax.Array],
    *,
    l2_clip_norm: float,
    rule: str = "flat",
    method: str = "auto",
    microbatch_size: int | None = None,
    trainable: trainable_lib.Selection = None,
) -> ClippedGrad:
    """Sum over a batch of the gradients of `loss`, each clipped to `l2_clip_norm`.

    g_clip = sum_i mask_i g_i min(1, C / ||g_i||_2)

    Formal guarantees: whatever one example holds (NaN and inf included), adding or
      removing it changes the sum by at most `l2_clip_norm` in L2, up to float32
      rounding (relative 1e-4); masked examples add exactly 0.

    Args:
      loss: (params, example, key) -> float32[]; one example, no batch axis.
      l2_clip_norm: C > 0, in units of the gradient.
      rule: how norms become factors; 'flat'.
      method: 'auto' and 'book_keeping' keep factors and choose the norm of each leaf by
        cost; 'vmap' is the oracle. Same numbers.
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
    if not callable(loss):
        raise ValueError(f"loss={loss!r} is not callable; pass (params, example, key).")
    _validate.positive(
        "l2_clip_norm", l2_clip_norm, "choose a finite clip norm above 0"
    )
    cure = "squared norms must fit float32; rescale the loss and the clip norm"
    _validate.in_half_open_interval("l2_clip_norm", l2_clip_norm, 1e-12, 1e12, cure)
    _validate.one_of("rule", rule, RULES)
    _validate.one_of("method", method, METHODS)
    if microbatch_size is not None:
        _validate.integer_at_least("microbatch_size", microbatch_size, 1)

    def split_loss(train, frozen, example, key):
        return loss(trainable_lib.combine(train, frozen), example, key)

    def prepared(train, frozen, batch, keys) -> trace.Factored:
        _check_loss(split_loss, train, frozen, batch, keys)
        return trace.factored(split_loss, train, frozen, batch, keys)

    def one_chunk(params, batch, mask, example_ids, key):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, example_ids)
        train, frozen = trainable_lib.partition(params, trainable)
        if method == "vmap":
            _check_loss(split_loss, train, frozen, batch, keys)
            return _by_vmap(split_loss, train, frozen, batch, mask, keys, l2_clip_norm)
        bound = prepared(train, frozen, batch, keys)
        return _by_factors(bound, train, frozen, batch, mask, keys, l2_clip_norm)

    def fn(params, batch, mask, key, example_ids=None):
        mask = jnp.asarray(mask)
        _check_key(key)
        params = _as_arrays(params)
        num_rows = _check_batch(batch, mask)
        if example_ids is None:
            example_ids = jnp.arange(num_rows, dtype=jnp.uint32)
        example_ids = _check_ids(example_ids, num_rows)
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
            sums, info = one_chunk(params, *rows, key)
        else:
            sums, info = _chunked(one_chunk, microbatch_size, params, rows, key)
        refused = mask & ~usable
        return sums, ClipInfo(
            jnp.where(refused, jnp.inf, info.norms_per_example),
            jnp.where(refused, jnp.nan, info.losses_per_example),
            info.nonfinite_per_example | refused,
        )

    def explain(params, example):
        params = _as_arrays(params)  # shapes alone will do
        train, frozen = trainable_lib.partition(params, trainable)
        batch = jax.tree.map(lambda x: jnp.asarray(x)[None], example)
        keys = jax.random.split(jax.random.key(0), 1)
        bound = prepared(train, frozen, batch, keys)
        out = jax.eval_shape(bound.run, train, frozen, batch, keys)
        return _explanation(train, out.leaves)

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


def _factors(norm2_upper, losses, mask, l2_clip_norm):
    """Clip factors [B] and which rows are not finite; such rows get factor 0."""
    finite = jnp.isfinite(norm2_upper) & jnp.isfinite(losses)
    norm = jnp.sqrt(jnp.where(finite, norm2_upper, 0.0))
    scale = l2_clip_norm / jnp.maximum(norm, l2_clip_norm)
    return jnp.where(finite & mask, scale, 0.0), ~finite & mask


def _info(norm2, losses, mask, bad) -> ClipInfo:
    norms = jnp.where(bad, jnp.inf, jnp.sqrt(jnp.maximum(norm2, 0.0)))
    return ClipInfo(_where(mask, norms, 0.0), _where(mask, losses, 0.0), bad)


def _by_factors(bound, train, frozen, batch, mask, keys, l2_clip_norm):
    out = bound.run(train, frozen, batch, keys)
    low_precision = any(
        jnp.issubdtype(x.dtype, jnp.floating) and jnp.finfo(x.dtype).bits < 32
        for x in jax.tree.leaves(out.leaves)
    )
    effective = l2_clip_norm * (1 - 2.0**-7) if low_precision else l2_clip_norm
    factors, bad = _factors(out.norm2_upper, out.losses, mask, effective)
    # 0 * NaN is NaN: the factors of rows that are not finite are zeroed as well.
    suspect = ~(jnp.isfinite(out.norm2_upper) & jnp.isfinite(out.losses))
    sums = bound.clipped_sum(trace.zeroed(out.leaves, suspect), factors)
    return sums, _info(out.norm2, out.losses, mask, bad)


def _by_vmap(split_loss, train, frozen, batch, mask, keys, l2_clip_norm):
    mapped = jax.vmap(jax.value_and_grad(split_loss), (None, None, 0, 0))
    losses, grads = mapped(train, frozen, batch, keys)
    grads = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
    losses = losses.astype(jnp.float32)
    squares = [
        jnp.sum(jnp.square(g), axis=tuple(range(1, g.ndim)))
        for g in jax.tree.leaves(grads)
    ]
    norm2 = sum(squares[1:], squares[0])
    factors, bad = _factors(norm2, losses, mask, l2_clip_norm)
    suspect = ~(jnp.isfinite(norm2) & jnp.isfinite(losses))
    sums = jax.tree.map(
        lambda g: terms_lib.contract(factors, _where(~suspect, g, 0), ((0,), (0,))),
        grads,
    )
    return sums, _info(norm2, losses, mask, bad)


def _chunked(one_chunk, size, params, rows, key):
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
        sums, info = one_chunk(params, *x, key)
        return jax.tree.map(jnp.add, total, sums), info

    first = jax.tree.map(lambda x: x[0], xs)
    like = jax.eval_shape(one_chunk, params, *first, key)[0]
    sums, info = lax.scan(body, jax.tree.map(_zeros_like, like), xs)
    flat = jax.tree.map(lambda x: x.reshape(-1)[:num_rows], info)
    return sums, flat


def _zeros_like(aval):
    """Zeros of an abstract value, device-varying where it is."""
    zeros = jnp.zeros(aval.shape, aval.dtype)
    axes = aval.manual_axis_type
    varying = tuple(axes.varying) if axes is not None else ()
    return lax.pcast(zeros, varying, to="varying") if varying else zeros


def _check_batch(batch, mask) -> int:
    if mask.ndim != 1 or mask.dtype != jnp.bool_:
        raise ValueError(
            f"mask has shape {mask.shape} and dtype {mask.dtype}; give bool[B], True "
            "for every real example."
        )
    for path, x in jax.tree_util.tree_leaves_with_path(batch):
        shape = jnp.shape(x)
        if not shape or shape[0] != mask.shape[0]:
            name = f"batch['{trainable_lib.path_of(path)}']" if path else "batch"
            raise ValueError(
                f"{name} has shape {shape}, but the "
                f"mask has {mask.shape[0]} rows; every leaf needs the leading axis "
                f"[{mask.shape[0]}, ...]."
            )
    return mask.shape[0]


def _check_key(key) -> None:
    dtype = getattr(key, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jax.dtypes.prng_key) or key.shape:
        raise ValueError(
            f"key of type {type(key).__name__} and shape {getattr(key, 'shape', None)} "
            "is not one typed JAX key; give jax.random.key(seed), also to "
            "a loss without randomness."
        )


def _check_ids(example_ids, num_rows) -> jax.Array:
    ids = jnp.asarray(example_ids)
    if ids.shape != (num_rows,) or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(
            f"example_ids has shape {ids.shape} and dtype {ids.dtype}; give one "
            f"integer for each of the {num_rows} rows."
        )
    return ids


def _check_loss(split_loss, train, frozen, batch, keys) -> None:
    one = jax.tree.map(trace.shape_of_one, (batch, keys))
    like = jax.tree.map(lambda x: trace.abstract(x, x.shape), (train, frozen))
    out = jax.eval_shape(split_loss, *like, *one)
    shape = getattr(out, "shape", None)
    if isinstance(out, tuple):
        raise ValueError(
            f"loss returns a tuple of {len(out)}, and must return one scalar for ONE "
            "example; return the loss alone, without auxiliary values."
        )
    if shape != ():
        raise ValueError(
            f"loss returns {type(out) if shape is None else f'shape {shape}'}, and "
            "must return one scalar for ONE example; drop the batch axis and sum or "
            "average inside the loss."
        )
    if not jnp.issubdtype(out.dtype, jnp.floating):
        raise ValueError(f"loss returns dtype {out.dtype}; return a float scalar.")
    program = trace.gradient_program(split_loss, train, frozen, batch, keys)
    isolation.check_program(program.jaxpr)


def _explanation(train, leaves) -> Explanation:
    rows = []
    named = jax.tree_util.tree_leaves_with_path(train)
    for (path, x), leaf in zip(named, leaves, strict=True):
        for note in leaf.notes:
            dims = " ".join(f"{k}={v}" for k, v in note.dims)
            name, shape = trainable_lib.path_of(path), tuple(x.shape)
            cost = (note.flops, note.bytes, note.reason)
            rows.append(Row(name, shape, note.kind, note.norm, dims, *cost))
    return Explanation(tuple(rows))


def _check(clipper: ClippedGrad, params, batch, key) -> None:
    rows = min(3, jax.tree.leaves(batch)[0].shape[0])
    few = jax.tree.map(lambda x: jnp.asarray(x)[:rows], batch)
    mask = jnp.arange(rows) < max(1, rows - 1)
    options = {"l2_clip_norm": clipper.l2_clip_norm, "trainable": clipper.trainable}
    oracle = clipped_grad(clipper.loss, method="vmap", **options)
    run = jax.jit(clipper.fn)
    got, info = run(params, few, mask, key)
    want, truth = jax.jit(oracle.fn)(params, few, mask, key)
    low = any(
        jnp.issubdtype(x.dtype, jnp.floating) and jnp.finfo(x.dtype).bits < 32
        for x in jax.tree.leaves(params)
    )
    low = low or _has_low_precision(clipper.loss, params, few, key)
    tolerance = 2e-2 if low else 1e-4
    whole = math.sqrt(sum(float(jnp.sum(x**2)) for x in jax.tree.leaves(want))) or 1.0
    named = jax.tree_util.tree_leaves_with_path(want)
    for (path, w), g in zip(named, jax.tree.leaves(got), strict=True):
        error = float(jnp.linalg.norm((w - g).ravel())) / whole
        if not error <= tolerance:
            raise ValueError(
                f"parameter '{trainable_lib.path_of(path)}': the clipped sum of "
                f"method='{clipper.method}' is off by {error:.1e} of the whole, bound "
                f"{tolerance:g}; use method='vmap' and report the loss as a defect."
            )
    n, t = info.norms_per_example, truth.norms_per_example
    wrong = float(
        jnp.max(jnp.abs(n - t) / jnp.maximum(t, 1e-30), initial=0, where=t > 0)
    )
    if jnp.all(jnp.isfinite(t)) and not wrong <= tolerance:
        raise ValueError(
            f"gradient norms of method='{clipper.method}' are off by {wrong:.1e}, "
            f"bound {tolerance:g}; use method='vmap' and report the loss as a defect."
        )
    if rows > 1:
        _check_isolation(run, params, few, key, info, rows)


def _check_isolation(run, params, few, key, info, rows) -> None:
    """Changes the last row, then fills it with NaN: no other row may move."""

    def filled(x):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x.at[-1].set(x[0])
        return x.at[-1].set(jnp.nan)

    everyone = jnp.ones((rows,), bool)
    base = run(params, few, everyone, key)[1]
    for changed in (
        jax.tree.map(lambda x: x.at[-1].set(x[0]), few),
        jax.tree.map(filled, few),
    ):
        other = run(params, changed, everyone, key)[1]
        for name in ("losses_per_example", "norms_per_example"):
            before, after = (getattr(i, name)[:-1] for i in (base, other))
            if not bool(jnp.allclose(before, after, rtol=1e-6, equal_nan=True)):
                raise ValueError(
                    f"loss: changing one example moved the {name} of another, so "
                    "examples are not isolated; remove whatever mixes the batch (batch "
                    "statistics, in-batch negatives)."
                )


def _has_low_precision(loss, params, few, key) -> bool:
    one = jax.tree.map(trace.shape_of_one, few)
    program = jax.make_jaxpr(loss)(params, one, key)
    return any(name in str(program) for name in ("bf16", "f16["))
