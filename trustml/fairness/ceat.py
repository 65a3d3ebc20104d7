"""CEAT: the association test on contextual embeddings, over contexts drawn at random.

A word has many contexts (sentences that hold it), each with its own vector. A draw
takes one context of every word and gives an effect size d_i as in WEAT, with a variance
V_i. A random-effects model joins N draws into the combined effect size CES
(`random_effects`; Guo and Caliskan 2021).

The cosines of all contexts of targets with all contexts of attributes are one table; a
draw is a gather from it. 25 + 25 words with 25 + 25 attributes of 50 contexts need 6.25
million cosines, however many draws are made.

**p means little.** All draws come from one finite pool of contexts: SE falls as
N^(-1/2), so p goes to 0 by raising N alone. What is uncertain is which contexts and
words were collected. The headline is therefore CES with the interval of
`cluster_bootstrap`, which resamples every word's contexts and then the words, and whose
width does not depend on N; p is a detail.

Dimension key: `W` targets (X before Y), `V` attributes (A before B), `M` contexts at
most of a word, `D` width, `N` draws, `R` replicates.

Example::

    pool = jax.jit(ceat.table)(x_WMD, y_WMD, a_VMD, b_VMD)
    point = jax.jit(ceat.ceat)(jax.random.key(0), pool)
    again = jax.jit(ceat.cluster_bootstrap)(jax.random.key(1), pool)
    result = ceat.summarise(point, again)
    print(result.ces, result.lo, result.hi)

References: https://arxiv.org/abs/2006.03955.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from trustml import _validate
from trustml.fairness import random_effects

VARIANCES = ("assoc", "d")
ALTERNATIVES = ("greater", "two-sided")

Contexts = Float[Array | np.ndarray, "_ M D"]


class Table(NamedTuple):
    """All cosines, and which rows and columns belong to which word.

    Attributes:
      cosines: float32[W * M, V * M]; context m of target w is row w * M + m.
      target_counts: int32[W]; contexts of each target, the first so many of its M.
      attribute_counts: int32[V].
      in_x: bool[W]; targets of X.
      in_a: bool[V]; attributes of A.
    """

    cosines: jax.Array
    target_counts: jax.Array
    attribute_counts: jax.Array
    in_x: jax.Array
    in_a: jax.Array


class Ceat(NamedTuple):
    """The combined effect size and its parts.

    Attributes:
      ces: float32[].
      tau_squared: float32[]; variance of the effect between draws beyond V.
      standard_error: float32[]; falls with N alone.
      z: float32[]; ces / standard_error.
      p: float32[]; of z under a normal law; see the warning above.
      n_undefined: int32[]; draws without an effect size (all scores equal), left out.
      effects: float32[N]; d of every draw.
      variances: float32[N]; V of every draw.
    """

    ces: jax.Array
    tau_squared: jax.Array
    standard_error: jax.Array
    z: jax.Array
    p: jax.Array
    n_undefined: jax.Array
    effects: jax.Array
    variances: jax.Array


class Summary(NamedTuple):
    """The headline, in plain numbers.

    Attributes:
      ces: combined effect size.
      lo: lower end of its cluster-bootstrap interval.
      hi: upper end.
      n_undefined: replicates, of all, without a combined effect size.
      details: 'p', 'z', 'tau_squared', 'standard_error', 'draws'; p falls with the
        number of draws alone.
    """

    ces: float
    lo: float
    hi: float
    n_undefined: int
    details: dict[str, float]


def table(
    x: Contexts,
    y: Contexts,
    a: Contexts,
    b: Contexts,
    counts: tuple[Any, Any, Any, Any] | None = None,
) -> Table:
    """Cosines of all contexts of targets with all contexts of attributes.

    Args:
      x: [nx, M, D], contexts of the targets X.
      y: [ny, M, D].
      a: [na, M, D], contexts of the attributes A.
      b: [nb, M, D].
      counts: int[nx], int[ny], int[na], int[nb]: contexts that each word has, >= 1; the
        rest of its M is never read. M each where None.

    Returns:
      Table.

    Raises:
      ValueError: on fewer than two words a side, on M or D that differ, or on counts
        outside 1..M.
    """
    lists = {"x": x, "y": y, "a": a, "b": b}
    m, d = x.shape[1:]
    for name, vectors in lists.items():
        if vectors.shape[1:] != (m, d) or vectors.shape[0] < 2:
            raise ValueError(
                f"{name} has shape {vectors.shape}; [words, {m}, {d}] with at least 2 "
                "words is needed (pad contexts, and pass their counts)."
            )
    full = [np.full(v.shape[0], m, np.int32) for v in lists.values()]
    given = full if counts is None else counts
    for name, vectors, count in zip(lists, lists.values(), given, strict=True):
        if count.shape != vectors.shape[:1]:
            raise ValueError(
                f"counts of {name} have shape {count.shape} for {vectors.shape[0]} "
                "words; give one for each."
            )
        if isinstance(count, np.ndarray) and not np.all((count > 0) & (count <= m)):
            raise ValueError(
                f"counts of {name} are {count.tolist()} and must lie in 1..{m}; leave "
                "out words without a context."
            )
    targets, attributes = (
        _unit(jnp.concatenate([jnp.asarray(u), jnp.asarray(v)])).reshape(-1, d)
        for u, v in ((x, y), (a, b))
    )
    counts_of = [jnp.asarray(c).astype(jnp.int32) for c in given]
    return Table(
        cosines=jnp.matmul(targets, attributes.T, precision=jax.lax.Precision.HIGHEST),
        target_counts=jnp.concatenate(counts_of[:2]),
        attribute_counts=jnp.concatenate(counts_of[2:]),
        in_x=jnp.arange(x.shape[0] + y.shape[0]) < x.shape[0],
        in_a=jnp.arange(a.shape[0] + b.shape[0]) < a.shape[0],
    )


def ceat(
    key: Any,
    pool: Table,
    *,
    draws: int = 10_000,
    variance: str = "assoc",
    alternative: str = "greater",
) -> Ceat:
    """N draws of one context a word, joined by a random-effects model.

    Args:
      key: one PRNG key.
      pool: of `table`.
      draws: N >= 2.
      variance: V of a draw. 'assoc': the variance of s over X and Y, as in the
        published code, though it is not a sampling variance of d; 'd': the usual one,
        (nx + ny)/(nx ny) + d^2 / (2 (nx + ny)).
      alternative: 'greater' (published code) or 'two-sided'.

    Returns:
      Ceat.

    Raises:
      ValueError: if an option is out of its bounds.
    """
    _validate.integer_at_least("draws", draws, 2, "10000 is usual")
    _validate.one_of("alternative", alternative, ALTERNATIVES)
    _validate.one_of("variance", variance, VARIANCES)
    at_targets, at_attributes = draw(key, pool, draws)
    effects, variances = effect_sizes(pool, at_targets, at_attributes, variance)
    combined = random_effects.combine(effects, variances)
    if alternative == "greater":
        p = jax.scipy.stats.norm.sf(combined.z)
    else:
        p = 2.0 * jax.scipy.stats.norm.sf(jnp.abs(combined.z))
    return Ceat(
        ces=combined.mean,
        tau_squared=combined.tau_squared,
        standard_error=combined.standard_error,
        z=combined.z,
        p=p,
        n_undefined=combined.n_left_out,
        effects=effects,
        variances=variances,
    )


def draw(
    key: Any, pool: Table, draws: int
) -> tuple[Int[Array, "N W"], Int[Array, "N V"]]:
    """Rows and columns of `pool.cosines`: a context of every word, N times."""
    keys = jax.random.split(key)
    return tuple(
        _pick(k, jnp.arange(counts.shape[0]), counts, draws, most)
        for k, counts, most in zip(keys, _counts(pool), _most(pool), strict=True)
    )


def effect_sizes(
    pool: Table,
    at_targets: Int[Array, "N W"],
    at_attributes: Int[Array, "N V"],
    variance: str = "assoc",
) -> tuple[Float[Array, " N"], Float[Array, " N"]]:
    """Effect size and V of every draw; NaN and 0 where all its scores are equal."""
    in_a, in_x = (side.astype(jnp.float32) for side in (pool.in_a, pool.in_x))
    nx = jnp.sum(in_x)
    ny, n = jnp.sum(1 - in_x), pool.in_x.shape[0]
    sign = in_a / jnp.sum(in_a) - (1 - in_a) / jnp.sum(1 - in_a)

    # One attribute at a time, for all draws: nothing of size N W V is ever held.
    def add(s, column):
        at, weight = column
        return s + weight * pool.cosines[at_targets, at[:, None]], None

    s_NW, _ = jax.lax.scan(
        add, jnp.zeros(at_targets.shape, jnp.float32), (at_attributes.T, sign)
    )
    mean_x, mean_y = s_NW @ in_x / nx, s_NW @ (1 - in_x) / ny
    spread = jnp.var(s_NW, 1, ddof=1)
    defined = spread > 0
    d = (mean_x - mean_y) * jax.lax.rsqrt(jnp.where(defined, spread, 1.0))
    if variance == "d":
        spread = jnp.where(defined, (nx + ny) / (nx * ny) + d * d / (2.0 * n), 0.0)
    return jnp.where(defined, d, jnp.nan), spread


def cluster_bootstrap(
    key: Any,
    pool: Table,
    *,
    replicates: int = 500,
    draws: int = 500,
    variance: str = "assoc",
) -> Float[Array, " R"]:
    """CES of resampled collections: contexts within a word, words within a list.

    Args:
      key: one PRNG key.
      pool: of `table`.
      replicates: R >= 1.
      draws: of each replicate; they add about 1/draws of the variance between draws to
        that between replicates.
      variance: as `ceat`.

    Returns:
      float32[R].

    Raises:
      ValueError: if an option is out of its bounds.
    """
    _validate.integer_at_least("replicates", replicates, 1, "500 is usual")
    _validate.integer_at_least("draws", draws, 2, "500 is usual")
    _validate.one_of("variance", variance, VARIANCES)

    def one(replicate):
        keys = jax.random.split(jax.random.fold_in(key, replicate), 6).reshape(2, 3)
        at: list[Any] = []
        sides = zip(keys, _counts(pool), _most(pool), _sides(pool), strict=True)
        for (k_context, k_word, k_draw), counts, most, first in sides:
            u = jax.random.uniform(k_context, (counts.shape[0], most))
            contexts = _floor(u, counts[:, None])
            size = jnp.sum(first)
            of_side = jnp.where(first, size, counts.shape[0] - size)
            start = jnp.where(first, 0, size)
            u = jax.random.uniform(k_word, counts.shape)
            words = start + _floor(u, of_side)
            at.append(_pick(k_draw, words, counts, draws, most, contexts))
        return random_effects.combine(*effect_sizes(pool, at[0], at[1], variance)).mean

    return jax.lax.map(one, jnp.arange(replicates))


def summarise(
    point: Ceat, replicates: Shaped[Any, " R"], level: float = 0.95
) -> Summary:
    """The headline: CES with the percentile interval of the cluster bootstrap.

    Raises:
      ValueError: if the level is out of its bounds, or 5% of the replicates are NaN.
    """
    _validate.in_open_interval("level", level, 0, 1, "0.95 is usual")
    values = np.asarray(replicates, np.float64)
    kept = values[~np.isnan(values)]
    if kept.size < 0.95 * values.size or not kept.size:
        raise ValueError(
            f"replicates holds {values.size - kept.size} NaN of {values.size}; collect "
            "more words a side, so that resampled ones differ."
        )
    lo, hi = np.quantile(kept, [(1 - level) / 2, (1 + level) / 2])
    details = {k: float(getattr(point, k)) for k in ("p", "z", "tau_squared")}
    details["standard_error"] = float(point.standard_error)
    details["draws"] = float(point.effects.size)
    missing = values.size - kept.size
    return Summary(float(point.ces), float(lo), float(hi), missing, details)


def _pick(key, words, counts, draws, most, contexts=None):
    """Flat places [N, len(words)] of one context each of the words."""
    u = jax.random.uniform(key, (draws, words.shape[0]))
    at = _floor(u, counts[words][None, :])
    if contexts is not None:
        at = contexts[words[None, :], at]
    return words[None, :] * most + at


def _floor(u, count):
    """Uniform in 0..count-1, from u in [0, 1)."""
    return jnp.minimum((u * count.astype(jnp.float32)).astype(jnp.int32), count - 1)


def _counts(pool):
    return pool.target_counts, pool.attribute_counts


def _sides(pool):
    return pool.in_x, pool.in_a


def _most(pool):
    """M of targets and of attributes."""
    rows, columns = pool.cosines.shape
    return rows // pool.in_x.shape[0], columns // pool.in_a.shape[0]


def _unit(x):
    x = x.astype(jnp.float32)
    return x / jnp.sqrt(jnp.sum(x * x, -1, keepdims=True))
