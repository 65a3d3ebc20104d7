"""Intervals for anything computed from counts: exact bootstraps that touch no rows.

Drawing n rows with replacement and counting their cells *is* one draw of a multinomial,
so a replicate costs as many numbers as there are cells, however many rows there were:

    cells* ~ Multinomial(n, cells / n),   theta*_r = measure(cells*_r)

| method | replicates | ends |
|---|---|---|
| 'multinomial' | Multinomial(n, cells / n); `stratify` fixes margins | quantiles |
| 'bayesian' | Dirichlet(cells): no group can vanish (Rubin 1981) | quantiles |
| 'bca' | as 'multinomial' | corrected for bias and acceleration (Efron 1987) |

The acceleration needs the jackknife; leaving one row out takes as few values as there
are cells, so it is exact too. A measure may give any pytree of arrays, all of them in
one pass: write one function of all figures of a report.

Not for gaps: max - min is never negative and biased upwards, and where groups are alike
the quantiles of its bootstrap lie above 0 every time, so they never hold the truth.
Take `contrasts.largest_difference`, and `floors.floor` for how large a gap is where
groups do not matter; a bootstrap is for rates and for signed differences. For rates of
many groups at once see `simultaneous`; for two models on the same rows `paired`; for
rows that come in clusters `ci_of_clusters`.

JAX counts replicates in float32, exact to 2^24 rows; beyond that `ci` draws with NumPy
in float64 (not inside jit, where it cannot know).

Dimension key: `G` groups, `K` classes, `R` replicates, `M` clusters.

Example::

    from trustml.fairness import gaps, intervals, rates

    def measure(cells):
        return {'dp': gaps.signed(cells, 'selection', a=0, b=1),
                'fpr': rates.fpr(cells)}

    found = intervals.ci(jax.random.key(0), cells, measure, replicates=2000)
    found['dp'].value, found['dp'].lo, found['dp'].hi, found['fpr'].lo   # float32[G]
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy import stats
from jax.scipy.special import ndtri

from trustml import _validate
from trustml.fairness import counts

_FLOAT32_EXACT = 2**24
_METHODS = ("multinomial", "bayesian", "bca")
_STRATA = ("none", "group", "group_label")
_TOO_MANY_UNDEFINED = 0.01
_LEAST_OF_SIDE = 10  # successes, and failures, of a rate with symmetric ends


class Interval(NamedTuple):
    """A figure and its uncertainty; arrays of one shape, that of the figure.

    Attributes:
      value: on the counts as given; NaN where undefined.
      lo: lower end.
      hi: upper end.
      se: standard deviation of the replicates.
      n_undefined: int32, replicates left out because the figure is undefined there.
      flagged: bool, more than 1% of them are, or BCa fell back on quantiles.
    """

    value: jax.Array
    lo: jax.Array
    hi: jax.Array
    se: jax.Array
    n_undefined: jax.Array
    flagged: jax.Array


def resample(
    key: Any,
    cells: Any,
    replicates: int,
    *,
    method: str = "multinomial",
    stratify: str = "none",
    axes: int = 2,
) -> jax.Array:
    """Replicates of a table.

    Args:
      key: of the draws.
      cells: [*groups, K, K], counts; sums of weights only with 'bayesian', which then
        treats a weight of 2 as two rows.
      replicates: R.
      method: 'multinomial' or 'bayesian'.
      stratify: 'none', or margins that stay as they are: 'group' the examples of every
        group, 'group_label' those of every group and label.
      axes: of a group's table, for `stratify`; 3 for the joint counts of `paired`.

    Returns:
      float[R, *groups, K, K]; of 'bayesian' with the same totals in every replicate.
    """
    method = _validate.one_of("method", method, _METHODS)
    stratify = _validate.one_of("stratify", stratify, _STRATA)
    _validate.integer_at_least("replicates", replicates, 1, "1000 is usual")
    cells = counts.floats(cells)
    rows = _strata(cells, stratify, axes)
    n = rows.sum(axis=-1)
    if method == "bayesian":
        # Dirichlet(cells) as gammas; those of empty cells are 0.
        shape = jnp.where(rows > 0, rows, 1.0)
        drawn = jax.random.gamma(key, shape, (replicates, *rows.shape))
        drawn = jnp.where(rows[None] > 0, drawn, 0.0)
        total = drawn.sum(axis=-1, keepdims=True)
        drawn = drawn / jnp.where(total > 0, total, 1.0) * n[None, :, None]
    else:
        empty = n <= 0
        p = rows / jnp.where(empty, 1.0, n)[:, None]
        # Nothing is drawn from an empty stratum, but its law must be one.
        p = jnp.where(empty[:, None], 1.0 / rows.shape[-1], p)
        drawn = jax.random.multinomial(key, n, p, shape=(replicates, *rows.shape))
    return drawn.reshape(replicates, *cells.shape)


def resample_on_host(
    seed: int, cells: Any, replicates: int, *, stratify: str = "none", axes: int = 2
) -> np.ndarray:
    """As `resample` by 'multinomial', with NumPy: int64[R, ...], exact at any size."""
    cells = counts.host(cells)
    rows = _strata(cells, _validate.one_of("stratify", stratify, _STRATA), axes)
    rng = np.random.default_rng(seed)
    drawn = np.zeros((replicates, *rows.shape), np.int64)
    for s, row in enumerate(rows):
        if row.sum():
            drawn[:, s] = rng.multinomial(row.sum(), row / row.sum(), size=replicates)
    return drawn.reshape(replicates, *cells.shape)


def ci(
    key: Any,
    cells: Any,
    measure: Callable[[jax.Array], Any],
    *,
    method: str = "multinomial",
    stratify: str = "none",
    replicates: int = 1000,
    level: float = 0.95,
) -> Any:
    """Bootstrap intervals of whatever `measure` computes from counts.

    Not for a largest gap or ratio: where groups are alike their quantiles never hold 0
    (or 1); see `contrasts`.

    Formal guarantee: 'multinomial' with stratify='none' has exactly the law of the
      bootstrap that draws rows.
    Args:
      key: of the draws; the same key gives the same interval.
      cells: [*groups, K, K], or joint counts [*groups, K, K, K] with `paired`.
      measure: cells -> pytree of float arrays; pure, NaN where undefined.
      method: 'multinomial', 'bayesian' or 'bca'.
      stratify: as of `resample`.
      replicates: R; ends of 1000 are good to a tenth of the standard error.
      level: of each figure by itself.

    Returns:
      The pytree of `measure` with an `Interval` for every leaf.

    Raises:
      ValueError: on unknown options, a level outside (0, 1), or BCa with fixed margins.
    """
    method = _validate.one_of("method", method, _METHODS)
    level = _validate.in_open_interval("level", level, 0.0, 1.0, "0.95 is usual")
    _validate.integer_at_least("replicates", replicates, 2, "1000 is usual")
    if method == "bca" and stratify != "none":
        cure = "take method='multinomial'"
        _validate.fail("stratify", stratify, "has no acceleration for BCa", cure)
    margins: Any = {
        "stratify": stratify,
        "axes": 3 if isinstance(measure, _Change) else 2,
    }
    if method != "bayesian" and _too_many(cells):
        seed = int(jax.random.bits(key, dtype=jnp.uint32))
        tables: Any = resample_on_host(seed, cells, replicates, **margins)
    else:
        tables = resample(key, cells, replicates, method=method, **margins)
    if method != "bca":
        return of_tables(cells, tables, measure, level=level)
    return _bca(cells, tables, measure, level)


def of_tables(
    cells: Any,
    tables: Any,
    measure: Callable[[jax.Array], Any],
    *,
    level: float = 0.95,
) -> Any:
    """`ci` by quantiles from replicates that are there already.

    Args:
      cells: [...], what was seen.
      tables: [R, ...], replicates of it.
      measure: cells -> pytree.
      level: of each figure by itself.
    """
    value = measure(counts.floats(cells))
    drawn = jax.vmap(measure)(counts.floats(tables))
    tail = (1.0 - level) / 2.0

    def one(value, drawn):
        lo, hi = _quantiles(drawn, jnp.array([tail, 1.0 - tail], drawn.dtype))
        return _interval(value, drawn, lo, hi)

    return jax.tree.map(one, value, drawn)


def ci_of_clusters(
    key: Any,
    clusters: Any,
    measure: Callable[[jax.Array], Any],
    *,
    replicates: int = 1000,
    level: float = 0.95,
) -> Any:
    """Intervals where rows come in clusters: templates, prompts, clients.

    Clusters are drawn with replacement, each with all of its counts.

    Args:
      key: of the draws.
      clusters: [M, ...], the counts of each cluster.
      measure: counts [...], added up over clusters -> pytree.
      replicates: R.
      level: of each figure by itself.
    """
    clusters = counts.floats(clusters)
    m = clusters.shape[0]
    _validate.integer_at_least("clusters", m, 2, "one cluster shows no variation")
    even = jnp.full(m, 1.0 / m)
    drawn = jax.random.multinomial(key, float(m), even, shape=(replicates, m))
    flat = clusters.reshape(m, -1)
    # Totals beyond 2^24 would lose units in a lower precision.
    tables = jnp.matmul(drawn.astype(flat.dtype), flat, precision="highest")
    tables = tables.reshape(replicates, *clusters.shape[1:])
    return of_tables(clusters.sum(axis=0), tables, measure, level=level)


def paired(measure: Callable[[jax.Array], Any]) -> Callable[[jax.Array], Any]:
    """The change of a measure from model a to model b, as a measure of joint counts.

    Args:
      measure: cells [..., K, K] -> pytree.

    Returns:
      joint [..., K, K, K], [.., label, guess of a, guess of b] -> pytree, b minus a.
        `ci` of it is the interval of the difference on the same rows.
    """
    return _Change(measure)


class _Change(NamedTuple):
    """What `paired` makes; a type, so that `ci` knows that counts are joint."""

    measure: Callable[[jax.Array], Any]

    def __call__(self, joint: jax.Array) -> Any:
        of_a, of_b = (self.measure(joint.sum(axis=axis)) for axis in (-1, -2))
        return jax.tree.map(jnp.subtract, of_b, of_a)


class Simultaneous(NamedTuple):
    """Intervals of the rates of all groups that hold together.

    Attributes:
      value: float[G].
      lo: float[G].
      hi: float[G].
      se: float[G].
      factor: float[], c; an end is c standard errors away.
      flagged: bool[G], a rate with too few successes or failures for such ends.
    """

    value: jax.Array
    lo: jax.Array
    hi: jax.Array
    se: jax.Array
    factor: jax.Array
    flagged: jax.Array


def simultaneous(
    key: Any,
    cells: Any,
    measure: Callable[[jax.Array], jax.Array],
    *,
    replicates: int = 2000,
    level: float = 0.95,
) -> Simultaneous:
    """Intervals of several figures that all hold together, by the largest deviation.

    c = quantile of max_g |theta*_g - theta_g| / se_g; ends at theta_g +- c se_g.

    Symmetric ends fail where groups are small: four true positive rates of .71 to .94
    on 14 to 210 positives are all held 78% of the time, not 95%. So rates with fewer
    than 10 successes or failures, as far as value and se tell, k = p^2 (1 - p) / se^2,
    are flagged; take `wilson_of_groups` for them.

    Args:
      key: of the draws.
      cells: [G, K, K].
      measure: cells -> float[G].
      replicates: R.
      level: of all together.

    Returns:
      Simultaneous; a figure that is undefined or does not vary counts for nothing in
      the maximum, has the ends NaN or its value, and is flagged. Flags are of rates;
      of figures outside [0, 1] they say nothing.
    """
    level = _validate.in_open_interval("level", level, 0.0, 1.0, "0.95 is usual")
    value = measure(counts.floats(cells))
    drawn = jax.vmap(measure)(resample(key, cells, replicates))
    se = jnp.nanstd(drawn, axis=0)
    varies = se > 0
    apart = jnp.abs(drawn - value[None]) / jnp.where(varies, se, 1.0)[None]
    apart = jnp.where(varies[None] & ~jnp.isnan(apart), apart, 0.0)
    factor = jnp.quantile(apart.max(axis=1), level)
    half = jnp.where(varies, factor * se, 0.0)
    # p (1 - p) / se^2 is the number of trials; fewer of either side is not normal.
    trials = value * (1 - value) / jnp.where(varies, se, 1.0) ** 2
    few = trials * jnp.minimum(value, 1 - value) < _LEAST_OF_SIDE
    few &= (value >= 0) & (value <= 1)
    return Simultaneous(value, value - half, value + half, se, factor, few | ~varies)


def wilson_of_groups(
    successes: Any, trials: Any, *, level: float = 0.95
) -> tuple[jax.Array, jax.Array]:
    """Wilson intervals of G rates that hold together (Bonferroni); for small groups.

    Args:
      successes: int[G].
      trials: int[G]; 0 gives (0, 1).
      level: of all together.

    Returns:
      lo float[G], hi float[G].
    """
    level = _validate.in_open_interval("level", level, 0.0, 1.0, "0.95 is usual")
    k, n = counts.floats(successes), counts.floats(trials)
    z = ndtri(1.0 - (1.0 - level) / (2 * max(k.size, 1)))
    some = jnp.where(n > 0, n, 1.0)
    p = k / some
    scale = 1 + z**2 / some
    centre = (p + z**2 / (2 * some)) / scale
    half = z * jnp.sqrt(p * (1 - p) / some + z**2 / (4 * some**2)) / scale
    lo = jnp.where((n > 0) & (k > 0), centre - half, 0.0)
    hi = jnp.where((n > 0) & (k < n), centre + half, 1.0)
    return lo, hi


class Small(NamedTuple):
    """Which groups are too small to judge.

    Attributes:
      n: float[G], examples.
      few: bool[G], fewer than 30 examples.
      few_positives: bool[G], fewer than 10.
      few_negatives: bool[G], fewer than 10.
    """

    n: jax.Array
    few: jax.Array
    few_positives: jax.Array
    few_negatives: jax.Array

    @property
    def flagged(self) -> jax.Array:
        """bool[G], whether any of these holds."""
        return self.few | self.few_positives | self.few_negatives


def small_groups(cells: Any, *, least: int = 30, least_of_label: int = 10) -> Small:
    """Flags of small groups; `Small.flagged` groups are usually left out of gaps.

    Args:
      cells: [G, 2, 2].
      least: examples below which a group is flagged.
      least_of_label: positives, or negatives, below which it is.
    """
    by_label = counts.floats(cells).sum(axis=-1)
    n = by_label.sum(axis=-1)
    few_negatives, few_positives = (by_label[:, k] < least_of_label for k in (0, 1))
    return Small(n, n < least, few_positives, few_negatives)


def _strata(cells, stratify, axes):
    """Cells as rows, a row for each part that is drawn by itself."""
    k = cells.shape[-1]
    each = {"none": cells.size, "group": k**axes, "group_label": k ** (axes - 1)}
    return cells.reshape(-1, each[stratify])


def _too_many(cells) -> bool:
    if isinstance(cells, jax.core.Tracer):
        return False
    return bool(np.asarray(cells, np.float64).sum() >= _FLOAT32_EXACT)


def _quantiles(drawn, at):
    """Quantiles over axis 0 of what is defined; `at` [2] or [2, ...]."""
    if at.ndim == 1:
        return jnp.nanquantile(drawn, at, axis=0)
    flat = drawn.reshape(drawn.shape[0], -1)
    at = at.reshape(2, -1)
    each = jax.vmap(lambda x, q: jnp.nanquantile(x, q), in_axes=(1, 1))(flat, at)
    return each.T.reshape(2, *drawn.shape[1:])


def _interval(value, drawn, lo, hi, fell_back=None):
    lost = jnp.isnan(drawn).sum(axis=0, dtype=jnp.int32)
    flagged = lost > int(_TOO_MANY_UNDEFINED * drawn.shape[0])
    if fell_back is not None:
        flagged |= fell_back
    se = jnp.nanstd(drawn, axis=0, ddof=1)
    nothing = jnp.isnan(value)
    lo, hi = (jnp.where(nothing, jnp.nan, end) for end in (lo, hi))
    return Interval(value, lo, hi, se, lost, flagged)


def _bca(cells, tables, measure, level):
    cells = counts.floats(cells)
    value, drawn = measure(cells), jax.vmap(measure)(counts.floats(tables))
    flat = cells.reshape(-1)
    one_less = flat[None] - jnp.eye(flat.size, dtype=flat.dtype)
    # An empty cell has no row to leave out; whatever stands there has weight 0.
    one_less = jnp.maximum(one_less, 0.0).reshape(-1, *cells.shape)
    left = jax.vmap(measure)(one_less)
    tail = (1.0 - level) / 2.0
    z_ends = ndtri(jnp.array([tail, 1.0 - tail]))

    def one(value, drawn, left):
        shape = (-1,) + (1,) * (left.ndim - 1)
        weight = jnp.where(jnp.isnan(left), 0.0, flat.reshape(shape))
        left = jnp.where(weight > 0, left, 0.0)
        total = jnp.maximum(weight.sum(axis=0), 1.0)
        away = (weight * left).sum(axis=0) / total - left
        away = jnp.where(weight > 0, away, 0.0)
        squares = (weight * away**2).sum(axis=0)
        steep = jnp.where(squares > 0, squares, 1.0) ** 1.5
        a = (weight * away**3).sum(axis=0) / (6 * steep)
        defined = ~jnp.isnan(drawn)
        below = (drawn < value[None]) & defined
        at_most = (drawn <= value[None]) & defined
        n = jnp.maximum(defined.sum(axis=0), 1).astype(drawn.dtype)
        share = (below.sum(axis=0) + at_most.sum(axis=0)).astype(drawn.dtype) / (2 * n)
        z0 = ndtri(share)
        degenerate = ~jnp.isfinite(z0) | (squares <= 0)
        z0 = jnp.where(degenerate, 0.0, z0)
        z = z0[None] + z_ends.reshape(2, *(1,) * value.ndim)
        at = stats.norm.cdf(
            z0[None] + z / (1 - jnp.where(degenerate, 0.0, a)[None] * z)
        )
        lo, hi = _quantiles(drawn, at)
        return _interval(value, drawn, lo, hi, degenerate)

    return jax.tree.map(one, value, drawn, left)
