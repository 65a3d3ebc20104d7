"""Standard errors of means of groups whose texts come in clusters.

Of cluster c of group g, s_c is a sum of scores and n_c a number of texts; N and m are
those of the group, h_c = n_c / N, and e_c = s_c - m n_c what is left. A mean of few
clusters knows its own error badly, in two ways:

- what is left is too small, as m was fitted to it: e_c / sqrt(1 - h_c) mends that (CR2;
  exact where texts are independent), and Student's quantiles of Satterthwaite's
  degrees of freedom do the rest: `influence`;
- over many groups, the one whose error looks largest by luck decides how far groups
  lie apart by chance. So errors of groups are drawn together: `moderated`.

For the latter var(s_c) = a n_c + b n_c^2 (texts, and clusters as a whole) is fitted to
the other groups, and rho_g is by how much the variance of a group is larger. Under
the law of Smyth 2004, rho_g given its truth is chi-squared of d_g = M_g - 1 degrees,
and truths vary as s_0 d_0 over a chi-squared of d_0, hence

    rho~_g = (d_0 s_0 + d_g rho_g) / (d_0 + d_g),    mean_g ~ t of d_0 + d_g

where d_0 and s_0 are fitted to log rho_g; d_0 is 10 (G - 1) at most, as few groups are
little evidence that all vary alike.

Sources: Pustejovsky and Tipton 2018, https://doi.org/10.1080/07350015.2016.1247004;
Smyth 2004, https://doi.org/10.2202/1544-6115.1027. Dimension key: `M` clusters,
`G` groups.

Example::

    of_group = cluster_errors.influence(sums, counts)
    half = scipy.stats.t.isf(.025, of_group.df) * np.linalg.norm(of_group.adjusted)
    all_of_them = cluster_errors.moderated(sums, counts, group)
    chance = all_of_them.se * rng.standard_t(all_of_them.df, (2000, G))
"""

from typing import NamedTuple

import numpy as np
from scipy import optimize, special

_ROUNDING = 1e-12  # sums in another order
_A_GROUP = 10.0  # most that each group can tell of others, in degrees of freedom
_ALIKE = 1e-5  # variance of log rho_g beyond chance, below which groups vary alike


class Influence(NamedTuple):
    """What every cluster adds to the error of a group's mean.

    Attributes:
      plain: float64[M], e_c / N; its norm is the spread of a bootstrap over clusters.
      adjusted: float64[M], e_c / (N sqrt(1 - h_c)); its norm is the standard error.
      df: degrees of freedom; M - 1 of clusters of one size, fewer of others, and 0 of
        one cluster.
    """

    plain: np.ndarray
    adjusted: np.ndarray
    df: float


class Moderated(NamedTuple):
    """Standard errors of the means of all groups, each helped by the others.

    Attributes:
      se: float64[G]; nan where no cluster varies inside any group.
      df: float64[G], of Student's law of each mean; not more than all clusters have.
      prior: d_0, how much a group is like others.
    """

    se: np.ndarray
    df: np.ndarray
    prior: float


def influence(sums: np.ndarray, counts: np.ndarray) -> Influence:
    """Of the clusters of one group.

    Args:
      sums: float[M], of scores.
      counts: int[M], of texts; clusters without any add nothing.
    """
    total = counts.sum()
    if not total:
        return Influence(np.zeros(len(sums)), np.zeros(len(sums)), 0.0)
    share = counts / total
    left = (sums - sums.sum() / total * counts) / total
    # Not e_c itself: clusters that are all alike must leave exactly nothing.
    largest = np.abs(sums).max() / total
    left = np.where(np.abs(left) > _ROUNDING * largest, left, 0.0)
    rest = 1.0 - share
    if (counts > 0).sum() < 2:
        return Influence(np.zeros(len(sums)), np.zeros(len(sums)), 0.0)
    # Var of the estimate where texts are independent: 2 / df of its square.
    pull = share**2 / rest
    spread = (share**2).sum() + pull.sum() ** 2 - (pull**2).sum()
    return Influence(left, left / np.sqrt(rest), float(1.0 / spread))


def moderated(sums: np.ndarray, counts: np.ndarray, group: np.ndarray) -> Moderated:
    """Of all groups.

    Args:
      sums: float[M], of scores.
      counts: int[M], of texts, all > 0.
      group: int[M] in 0..G-1, each with a cluster at least; one of a single cluster
        has the error that others foretell.
    """
    groups = int(group.max()) + 1
    n = counts.astype(float)
    total, squares = np.bincount(group, n), np.bincount(group, n**2)
    left = np.concatenate(
        [influence(sums[group == g], n[group == g]).plain for g in range(groups)]
    )
    order = np.argsort(np.argsort(group, kind="stable"), kind="stable")
    square = (left[order] * total[group]) ** 2
    df = np.bincount(group) - 1.0
    share, scale = n / total[group], float(square.max())
    nothing = np.full(groups, np.nan)
    if not scale or not df.any():
        return Moderated(nothing, nothing, float("nan"))
    # E e_c^2 where var(s_c) = a n_c + b n_c^2, m being fitted.
    of_texts = n * (1 - share)
    of_clusters = n**2 * (1 - 2 * share) + share**2 * squares[group]
    laws, square = np.stack([of_texts, of_clusters], axis=1), square / scale
    variance, rho = np.zeros(groups), np.zeros(groups)
    for g in range(groups):
        # By the others: a law that a group bent to itself would foretell it too well.
        mine = group == g
        others = ~mine if (df > 0)[np.arange(groups) != g].any() else mine | True
        a, b = _law(laws[others], square[others], n[others])
        law = n * a + n**2 * b
        each, foretold = square / law, laws @ np.array([a, b]) / law
        level = each.sum() / foretold.sum()
        variance[g] = scale * level * (a * total[g] + b * squares[g]) / total[g] ** 2
        if df[g]:
            rho[g] = each[mine].sum() / foretold[mine].sum() / level
    prior, typical = _alike(rho, df)
    # So few groups cannot tell that all of them vary alike.
    prior = min(prior, _A_GROUP * (groups - 1.0))
    drawn = (prior * typical + df * rho) / (prior + df)
    return Moderated(np.sqrt(variance * drawn), np.minimum(prior + df, df.sum()), prior)


def _law(laws, square, n) -> tuple[float, float]:
    """Of var(s_c) = a n_c + b n_c^2, a and b, by weights that go with the fit."""
    law, a, b = n, 1.0, 0.0
    for _ in range(3):
        columns = laws / law[:, None]
        # Clusters of one size fit both laws: a is then taken, as by rounding b may be.
        size = np.linalg.norm(columns, axis=0) * np.array([1.0, 1.0 + 1e-6])
        found = optimize.nnls(columns / size, square / law)[0] / size
        if not found.any():  # these clusters do not vary
            break
        a, b = (float(x) for x in found)
        law = n * a + n**2 * b
    return a, b


def _alike(rho, df) -> tuple[float, float]:
    """d_0 and s_0 from log rho_g, by their mean and variance."""
    some = (df > 0) & (rho > 0)
    if some.sum() < 2:
        return float("inf"), float((rho * df).sum() / df.sum())
    half = df[some] / 2
    logs = np.log(rho[some]) - special.digamma(half) + np.log(half)
    beyond = logs.var(ddof=1) - special.polygamma(1, half).mean()
    if beyond <= _ALIKE:
        return float("inf"), float((rho * df).sum() / df.sum())
    half_prior = optimize.brentq(
        lambda x: special.polygamma(1, x) - beyond, 1e-3, 2 / _ALIKE
    )
    typical = np.exp(logs.mean() + special.digamma(half_prior) - np.log(half_prior))
    return 2 * float(half_prior), float(typical)
