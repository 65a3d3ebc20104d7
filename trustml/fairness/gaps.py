"""Gaps between groups: one number from the rates of all groups.

Two families of signs, never mixed. Unsigned (fairlearn's): the largest rate minus the
smallest, or their ratio, smallest over largest. Signed (AIF360's): rate of group `a`
minus rate of group `b`, where AIF360 has the unprivileged group first and the rate of
the favourable label.

All functions take cells [G, 2, 2] (those that say so [G, K, K]) and give float[]; they
are pure, so `vmap` over a stack of cells is a bootstrap. A group whose rate is
undefined is left out of a maximum or minimum; with fewer than two groups left a gap is
NaN. `empty='zero'` has 0 for such a rate instead, as fairlearn has.

| function | formula | source |
|---|---|---|
| `difference`, `ratio` | max - min, min / max of any rate | fairlearn |
| `demographic_parity_*` | of selection | fairlearn |
| `equal_opportunity_*` | of TPR | Hardt et al. 2016, arXiv 1610.02413 |
| `equalized_odds_*` | worst (or mean) of those of TPR and FPR | the same; fairlearn |
| `signed`, `disparate_impact` | r_a - r_b, selection_a / selection_b | AIF360 |
| `average_odds`, `average_abs_odds` | (dFPR + dTPR) / 2, with | . | inside | AIF360 |
| `predictive_value` | (dPPV + dFOR) / 2 | AIF360 |
| `tpr_gap_rms` | root mean square over classes of dTPR | De-Arteaga 2019, 1901.09451 |
| `differential_fairness` | max |log p_i - log p_j| | Foulds 2018, arXiv 1807.08362 |
| `generalized_entropy` | inequality of benefits | Speicher 2018, arXiv 1807.00787 |
| `conditional` | a gap inside each level of a control, weighted by size | fairlearn |

Golden figures: `tests/fairness/gaps_test.py`. Dimension key: `G` groups, `K` classes,
`L` levels of a control.

Example::

    from trustml.fairness import gaps

    gaps.difference(cells, 'fpr')
    gaps.equalized_odds_difference(cells, agg='mean')
    gaps.signed(cells, 'selection', a=0, b=1)
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from trustml import _validate
from trustml.fairness import counts, rates

_METHODS = ("between_groups", "to_overall")


def difference(
    cells: Any, name: str, *, method: str = "between_groups", empty: str = "nan"
) -> jax.Array:
    """Largest minus smallest rate; or the largest distance from the rate of all.

    Args:
      cells: [G, 2, 2].
      name: of a rate, one of `rates.NAMES`.
      method: 'between_groups', or 'to_overall': max_g |r_g - r|, where r is the rate of
        all examples together, not the mean of groups.
      empty: as of `rates.rate`.
    """
    found, overall = _found(cells, name, method, empty)
    if method == "to_overall":
        return _defined(jnp.nanmax, jnp.abs(found - overall), found, 1)
    return _defined(lambda r: jnp.nanmax(r) - jnp.nanmin(r), found, found, 2)


def ratio(
    cells: Any, name: str, *, method: str = "between_groups", empty: str = "nan"
) -> jax.Array:
    """Smallest over largest rate; or the smallest min(r_g / r, r / r_g).

    0/0 (all rates 0) is NaN.

    Args:
      cells: [G, 2, 2].
      name: of a rate.
      method: as of `difference`.
      empty: likewise.
    """
    found, overall = _found(cells, name, method, empty)
    if method == "to_overall":
        both = jnp.minimum(_over(found, overall), _over(overall, found))
        # A rate of 0 beside another is infinitely far away.
        both = jnp.where((found == 0) ^ (overall == 0), 0.0, both)
        both = jnp.where(jnp.isnan(found), jnp.nan, both)
        return _defined(jnp.nanmin, both, both, 1)
    return _defined(lambda r: _over(jnp.nanmin(r), jnp.nanmax(r)), found, found, 2)


def demographic_parity_difference(cells: Any, **how: str) -> jax.Array:
    """`difference` of selection rates; keywords as there."""
    return difference(cells, "selection", **how)


def demographic_parity_ratio(cells: Any, **how: str) -> jax.Array:
    """`ratio` of selection rates; keywords as there."""
    return ratio(cells, "selection", **how)


def equal_opportunity_difference(cells: Any, **how: str) -> jax.Array:
    """`difference` of true positive rates; keywords as there."""
    return difference(cells, "tpr", **how)


def equal_opportunity_ratio(cells: Any, **how: str) -> jax.Array:
    """`ratio` of true positive rates; keywords as there."""
    return ratio(cells, "tpr", **how)


def equalized_odds_difference(
    cells: Any, *, agg: str = "worst_case", **how: str
) -> jax.Array:
    """The larger of the differences of TPR and FPR, or (`agg='mean'`) their mean.

    Args:
      cells: [G, 2, 2].
      agg: 'worst_case' or 'mean'.
      **how: keywords of `difference`.
    """
    both = jnp.stack([difference(cells, name, **how) for name in ("tpr", "fpr")])
    return _aggregate(both, agg, jnp.max)


def equalized_odds_ratio(
    cells: Any, *, agg: str = "worst_case", **how: str
) -> jax.Array:
    """The smaller of the ratios of TPR and FPR, or (`agg='mean'`) their mean.

    NaN where either is, as where all FPRs are 0 (fairlearn 0.15 then has NaN or the
    other ratio, by which of the two it is).

    Args:
      cells: [G, 2, 2].
      agg: 'worst_case' or 'mean'.
      **how: keywords of `ratio`.
    """
    both = jnp.stack([ratio(cells, name, **how) for name in ("tpr", "fpr")])
    return _aggregate(both, agg, jnp.min)


def worst_group(cells: Any, name: str = "accuracy") -> jax.Array:
    """The smallest rate of a group; NaN where none is defined.

    Args:
      cells: [G, 2, 2]; for accuracy [G, K, K].
      name: of a rate of which more is better.
    """
    found = rates.accuracy(cells) if name == "accuracy" else rates.rate(name, cells)
    return _defined(jnp.nanmin, found, found, 1)


def signed(cells: Any, name: str, a: int, b: int) -> jax.Array:
    """r_a - r_b of any rate; for AIF360 `a` is the unprivileged group.

    Args:
      cells: [G, 2, 2], class 1 the favourable label.
      name: of a rate.
      a: number of a group.
      b: of another.
    """
    a, b = _pair(cells, a, b)
    found = rates.rate(name, cells)
    return found[a] - found[b]


def statistical_parity_difference(cells: Any, a: int, b: int) -> jax.Array:
    """`signed` difference of selection; a the unprivileged group."""
    return signed(cells, "selection", a, b)


def disparate_impact(cells: Any, a: int, b: int) -> jax.Array:
    """selection_a / selection_b; a the unprivileged group; NaN where b selects none."""
    a, b = _pair(cells, a, b)
    found = rates.selection(cells)
    return _over(found[a], found[b])


def average_odds(cells: Any, a: int, b: int) -> jax.Array:
    """((FPR_a - FPR_b) + (TPR_a - TPR_b)) / 2; a the unprivileged group."""
    return (signed(cells, "fpr", a, b) + signed(cells, "tpr", a, b)) / 2


def average_abs_odds(cells: Any, a: int, b: int) -> jax.Array:
    """(|FPR_a - FPR_b| + |TPR_a - TPR_b|) / 2."""
    apart = [jnp.abs(signed(cells, name, a, b)) for name in ("fpr", "tpr")]
    return (apart[0] + apart[1]) / 2


def predictive_value(cells: Any, a: int, b: int) -> jax.Array:
    """((PPV_a - PPV_b) + (FOR_a - FOR_b)) / 2; a the unprivileged group."""
    return (signed(cells, "ppv", a, b) + signed(cells, "for_", a, b)) / 2


def tpr_gap_rms(cells: Any, a: int, b: int) -> jax.Array:
    """sqrt(mean_k (TPR_a,k - TPR_b,k)^2) over the classes where both are defined.

    Args:
      cells: [G, K, K].
      a: number of a group.
      b: of another.
    """
    a, b = _pair(cells, a, b)
    found = rates.tpr(rates.one_vs_rest(cells))
    apart = found[a] - found[b]
    return _defined(lambda d: jnp.sqrt(jnp.nanmean(d**2)), apart, apart, 1)


def differential_fairness(
    cells: Any, *, concentration: float = 1.0, of: str = "guess"
) -> jax.Array:
    """Epsilon of differential fairness: the largest |log p_i - log p_j|.

    p_g,k = (n_g,k + c/K) / (n_g + c), over all pairs of groups that have examples and
    all outcomes k.

    Args:
      cells: [G, K, K]; intersections as groups (`counts.flatten`).
      concentration: c > 0, of the Dirichlet prior; AIF360 has 1.
      of: 'guess', or 'label' for the data themselves.
    """
    c = _validate.positive("concentration", concentration, "1.0 is usual")
    of = _validate.one_of("of", of, ("guess", "label"))
    cells = counts.floats(cells)
    outcomes = cells.sum(axis=-2 if of == "guess" else -1)
    n = outcomes.sum(axis=-1, keepdims=True)
    logs = jnp.log((outcomes + c / cells.shape[-1]) / (n + c))
    logs = jnp.where(n > 0, logs, jnp.nan)

    def apart(found):
        return jnp.max(jnp.nanmax(found, axis=0) - jnp.nanmin(found, axis=0))

    return _defined(apart, logs, logs[:, 0], 2)


def generalized_entropy(
    cells: Any, alpha: float = 2.0, *, between: bool = False
) -> jax.Array:
    """Inequality of benefits b = guess - label + 1 in {0, 1, 2} (Speicher et al. 2018).

    mean[(b/mu)^alpha - 1] / (alpha (alpha - 1)); alpha = 1 (Theil): mean[(b/mu)
    ln(b/mu)]; alpha = 0: -mean[ln(b/mu)], infinite if somebody has no benefit.

    Args:
      cells: [G, 2, 2], class 1 the favourable label.
      alpha: 0, 1, or another number; 2 is half the squared coefficient of variation.
      between: with every benefit replaced by its group's mean.

    Returns:
      float[]; NaN without examples, or where nobody has any benefit.
    """
    alpha = _validate.finite("alpha", alpha, "2.0 and 1.0 (Theil) are usual")
    parts = rates._parts(cells)
    n_GB = jnp.stack([parts.fn, parts.tn + parts.tp, parts.fp], axis=-1)
    benefit = jnp.arange(3, dtype=n_GB.dtype)
    n_G = n_GB.sum(axis=-1)
    mu = _over((n_GB @ benefit).sum(), n_G.sum())
    if between:
        mean_G = _over(n_GB @ benefit, n_G)
        values, sizes = jnp.where(n_G > 0, mean_G, 0.0), n_G
    else:
        values, sizes = benefit, n_GB.sum(axis=tuple(range(n_GB.ndim - 1)))
    x = _over(values, mu)
    if alpha == 1:
        each = jnp.where(x > 0, x * jnp.log(jnp.where(x > 0, x, 1.0)), x)
    elif alpha == 0:
        each = -jnp.log(x)
    else:
        each = (x**alpha - 1) / (alpha * (alpha - 1))
    # 0 examples times an infinite term is 0.
    total = jnp.where(sizes > 0, each * sizes, 0.0).sum()
    return jnp.where(jnp.isnan(mu), jnp.nan, _over(total, sizes.sum()))


def conditional(cells: Any, gap: Callable[[Any], jax.Array]) -> jax.Array:
    """The mean over levels of a control attribute of the gap inside each, by size.

    Args:
      cells: [L, G, K, K], from `count` with groups=(L, G).
      gap: cells [G, K, K] -> float[].

    Returns:
      float[]; levels where the gap is undefined are left out.
    """
    cells = counts.floats(cells)
    found = jax.vmap(gap)(cells)
    n = cells.sum(axis=(1, 2, 3)).astype(found.dtype)
    n = jnp.where(jnp.isnan(found), 0.0, n)
    return _over(jnp.sum(jnp.where(n > 0, found, 0.0) * n), n.sum())


def _found(cells, name, method, empty):
    """Rates of groups, and of all examples together."""
    _validate.one_of("method", method, _METHODS)
    cells = counts.floats(cells)
    if cells.ndim != 3:
        bound = "are not [G, K, K]"
        cure = "counts.flatten makes one group of every intersection"
        _validate.fail("cells", f"array of shape {cells.shape}", bound, cure)
    found = rates.rate(name, cells, empty=empty)
    return found, rates.rate(name, cells.sum(axis=0), empty=empty)


def _over(part, whole):
    return jnp.where(whole != 0, part / jnp.where(whole != 0, whole, 1.0), jnp.nan)


def _defined(reduce, values, found, least):
    """`reduce` of values that may be NaN; NaN where fewer than `least` are defined."""
    enough = jnp.sum(~jnp.isnan(found)) >= least
    # What is reduced where nothing is defined does not matter, but must not warn.
    safe = jnp.where(enough, values, 0.0)
    return jnp.where(enough, reduce(safe), jnp.nan)


def _aggregate(both, agg, worst):
    _validate.one_of("agg", agg, ("worst_case", "mean"))
    return jnp.mean(both) if agg == "mean" else worst(both)


def _pair(cells, a, b):
    groups = jnp.shape(cells)[0]
    for field, value in (("a", a), ("b", b)):
        if not 0 <= value < groups:
            _validate.fail(field, value, f"is no number of one of {groups} groups")
    return a, b
