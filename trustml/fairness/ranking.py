"""Areas under the ROC by identity: who is ranked too high, who too low.

    AUC = P[s+ > s-] + P[s+ = s-] / 2,    exact with ties

For an identity with members m (a text names it) and the others o, three areas tell
three failures apart (Borkan et al. 2019); `overall` is the area on all rows:

| area | positives of | negatives of | low means |
|---|---|---|---|
| subgroup | m | m | the model cannot tell classes apart within the group |
| bpsn | o | m | members' negatives score high: false positives of the group |
| bnsp | m | o | members' positives score low: false negatives of the group |

The average equality gaps, 1/2 - P[s_o > s_m] within one class, tell how far members are
shifted: above 0, members score higher. Areas over identities are joined by a power mean
M_p = (mean a^p)^(1/p) that looks at the worst (p = -5), and with the overall area by
the mean of four (`final`).

Scores are sorted once for all identities, areas and replicates. A replicate is a weight
for each row; cumulative sums of the weights of members' negatives and positives give
every area. Each row's share of negatives below it is formed before shares are summed:
float32 is good to 1e-6 at 76,564 rows, where sums of ranks would not fit 32 bits.

An area that lacks positives or negatives is NaN, never 0; it is left out of the power
mean and counted. A masked row contributes nothing, whatever it holds.

Dimension key: `n` rows, `I` identities (they may overlap), `R` replicates.

Example::

    member = names_identity                          # bool[n, I]
    point = jax.jit(ranking.auc_bias)(scores, toxic, member)
    draw = jax.jit(lambda key: ranking.bootstrap(key, scores, toxic, member))
    table = ranking_table.summarise(point, draw(jax.random.key(0)), names)

References: https://arxiv.org/abs/1903.04561 (areas, gaps, power mean);
  https://arxiv.org/abs/2012.10289 (`background='targeted'`).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, Shaped

from trustml import _validate
from trustml.fairness import ranks, resampling

BACKGROUNDS = ("all", "targeted")

_ELEMENTS = 1 << 21  # of one table of cumulative sums, over the replicates of a chunk

Rows = Shaped[Array | np.ndarray, "..."]


class AucBias(NamedTuple):
    """Areas and gaps; with a leading axis [R] where they are replicates.

    Attributes:
      overall: float32[]; the area on all rows.
      subgroup: float32[I]; NaN where undefined, as all below.
      bpsn: float32[I].
      bnsp: float32[I].
      aeg_negative: float32[I]; 1/2 - P[s_o > s_m] within negatives.
      aeg_positive: float32[I]; the same within positives.
      power_means: float32[3], of subgroup, bpsn, bnsp, over defined identities.
      left_out: int32[3]; identities that each power mean leaves out.
      final: float32[]; mean of `overall` and the three power means.
      members: float32[I, 2]; weight of members' negatives and positives (their number
        where no weights are given).
      others: float32[I, 2]; the same of the background.
      n_nan: int32[]; rows in use whose score is NaN. If any, every area is NaN.
    """

    overall: jax.Array
    subgroup: jax.Array
    bpsn: jax.Array
    bnsp: jax.Array
    aeg_negative: jax.Array
    aeg_positive: jax.Array
    power_means: jax.Array
    left_out: jax.Array
    final: jax.Array
    members: jax.Array
    others: jax.Array
    n_nan: jax.Array


def auc(
    scores: Rows,
    labels: Rows,
    *,
    mask: Rows | None = None,
    weights: Rows | None = None,
) -> Float[Array, "..."]:
    """Area under the ROC with exact ties, of one or of many weightings of the rows.

    AUC = sum_ij w_i w_j ([s_i > s_j] + [s_i = s_j]/2) / (sum_i w_i sum_j w_j),
    i over positives, j over negatives

    Args:
      scores: [n], larger means positive; float64 is rounded to float32 first, which
        may make ties, as are those nearer to 0 than 1.2e-38.
      labels: [n], flags, or integers 0 and 1; True or 1 for positive.
      mask: [n], rows in use; all where None.
      weights: [n] or [R, n], >= 0; 1 where None.

    Returns:
      float32[] or [R]; NaN without positives or negatives, or with a NaN score.

    Raises:
      ValueError: if lengths differ, labels are others than 0 and 1 (inside jit: are of
        another type), or integer scores lie beyond int32.
    """
    scores, labels, mask = _checked(scores, labels, mask)
    ranked = ranks.rank(scores, mask)
    y = labels[ranked.order]

    def one(w):
        w = jnp.where(ranked.real, w[ranked.order], 0.0)
        share = ranks.share_below(ranked, jnp.where(y, 0.0, w)[:, None])
        return ranks.mean(jnp.where(y, w, 0.0)[:, None], share)[0]

    if weights is None:
        return one(jnp.ones(scores.shape, jnp.float32))
    weights = jnp.asarray(weights).astype(jnp.float32)
    if weights.shape[-1] != scores.shape[0]:
        raise ValueError(
            f"weights has shape {weights.shape} for {scores.shape[0]} scores; its last "
            "axis must have one weight for each row."
        )
    flat = weights.reshape(-1, scores.shape[0])
    areas = jax.lax.map(one, flat, batch_size=_chunk(None, flat.shape[0], flat[0].size))
    return areas.reshape(weights.shape[:-1])


def auc_bias(
    scores: Rows,
    labels: Rows,
    membership: Rows,
    *,
    mask: Rows | None = None,
    weights: Rows | None = None,
    background: str = "all",
    power: float = -5.0,
) -> AucBias:
    """Every area and gap of every identity, from one sort.

    Args:
      scores: [n], larger means positive (toxic).
      labels: [n], True or 1 for positive; as of `auc`.
      membership: [n, I], True or 1 where a row names the identity.
      mask: [n], rows in use; all where None.
      weights: [n], >= 0; 1 where None.
      background: 'all': others are all rows outside the identity (Jigsaw);
        'targeted': those of them that name some identity (HateXplain).
      power: p of the power mean, not 0; -5 is usual.

    Returns:
      AucBias.

    Raises:
      ValueError: as `auc`, also for membership, or an option is out of its bounds.
    """
    scores, labels, mask = _checked(scores, labels, mask)
    member = _membership(membership, scores.shape[0])
    _options(background, power)
    ranked = ranks.rank(scores, mask)
    if weights is None:
        weights = jnp.ones(scores.shape, jnp.float32)
    weights = jnp.asarray(weights).astype(jnp.float32)
    y, m = labels[ranked.order], member[ranked.order]
    return _measure(ranked, y, m, weights[ranked.order], background, power)


def bootstrap(
    key: Any,
    scores: Rows,
    labels: Rows,
    membership: Rows,
    *,
    replicates: int = 1000,
    scheme: str = "poisson",
    mask: Rows | None = None,
    cluster: Rows | None = None,
    background: str = "all",
    power: float = -5.0,
    chunk: int | None = None,
) -> AucBias:
    """Replicates of every area and gap under resampling of rows, from one sort.

    Args:
      key: one PRNG key; replicate r folds in r, so `chunk` changes nothing. The same
        key weighs the rows alike for another model: differences are paired.
      scores: as `auc_bias`.
      labels: as `auc_bias`.
      membership: as `auc_bias`.
      replicates: R >= 1.
      scheme: of the weights, see `resampling`; 'bayesian' for small groups.
      mask: [n], rows in use.
      cluster: [n], values in 0..n-1; rows of one cluster (a template, an author) get
        one common weight. Not with 'multinomial'.
      background: as `auc_bias`.
      power: as `auc_bias`.
      chunk: replicates at a time; None: as many as fit 8 MB.

    Returns:
      AucBias with a leading axis [R]; NaN where a replicate lacks a class.

    Raises:
      ValueError: if lengths differ or an option is out of its bounds.
    """
    scores, labels, mask = _checked(scores, labels, mask)
    n = scores.shape[0]
    member = _membership(membership, n)
    _options(background, power)
    _validate.integer_at_least("replicates", replicates, 1, "1000 is usual")
    _validate.one_of("scheme", scheme, resampling.SCHEMES)
    if cluster is not None and scheme == "multinomial":
        cure = "take 'poisson' or 'bayesian'"
        _validate.fail("scheme", scheme, "draws rows and not clusters", cure)
    ranked = ranks.rank(scores, mask)
    y, m = labels[ranked.order], member[ranked.order]
    # Weights belong to rows, not to ranks: with one key, two models are paired.
    place = jnp.cumsum(mask) - 1 if cluster is None else jnp.asarray(cluster)
    place, num_rows = place[ranked.order], jnp.sum(mask)

    def one(replicate):
        draw = jax.random.fold_in(key, replicate)
        w = resampling.weights(draw, scheme, n, num_rows)[place]
        return _measure(ranked, y, m, w, background, power)

    chunk = _chunk(chunk, replicates, n * (2 * member.shape[1] + 1))
    return jax.lax.map(one, jnp.arange(replicates), batch_size=chunk)


def power_mean(
    values: Float[Array | np.ndarray, "*B I"], power: float = -5.0
) -> tuple[Float[Array, "*B"], Int32[Array, "*B"]]:
    """M_p = (mean_i a_i^p)^(1/p) over entries that are not NaN.

    Args:
      values: [..., I], >= 0. An entry of 0 makes the mean 0 where p < 0.
      power: p, not 0; below 1 it leans to the smallest, -5 strongly.

    Returns:
      float32[...], NaN where no entry is defined; int32[...], entries left out.
    """
    power = _validate.finite("power", power, "-5 is usual")
    if power == 0:
        _validate.fail("power", power, "must not be 0", "-5 is usual")
    values = jnp.asarray(values).astype(jnp.float32)
    defined = ~jnp.isnan(values)
    number = jnp.sum(defined, -1, dtype=jnp.int32)
    # In units of the entry that leads, so that no power overflows.
    if power < 0:
        lead = jnp.min(jnp.where(defined, values, jnp.inf), -1, keepdims=True)
    else:
        lead = jnp.max(jnp.where(defined, values, -jnp.inf), -1, keepdims=True)
    usable = (lead > 0) & jnp.isfinite(lead)
    ratio = jnp.where(defined & usable, values, 1.0) / jnp.where(usable, lead, 1.0)
    total = jnp.sum(jnp.where(defined, ratio**power, 0.0), -1)
    mean = jnp.where(usable, lead, 0.0)[..., 0] * (
        total / jnp.maximum(number, 1).astype(jnp.float32)
    ) ** (1.0 / power)
    left_out = values.shape[-1] - number
    return jnp.where(number > 0, mean, jnp.nan), left_out


def _measure(ranked, y, member, w, background, power) -> AucBias:
    """All of `AucBias`; everything here is in the order of the scores."""
    w = jnp.where(ranked.real, w, 0.0)
    real = ranked.real[:, None]
    aside = jnp.any(member, 1, keepdims=True) if background == "targeted" else real
    others = aside & ~member & real
    pos, neg = jnp.where(y, w, 0.0)[:, None], jnp.where(y, 0.0, w)[:, None]

    def of(weight, rows):
        return jnp.where(rows, weight, 0.0)

    # Shares of all negatives, of members' negatives and of members' positives.
    weight = jnp.concatenate([neg, of(neg, member), of(pos, member)], 1)
    share = ranks.share_below(ranked, weight)
    below, below_neg, below_pos = jnp.split(share, [1, 1 + member.shape[1]], axis=1)
    subgroup = ranks.mean(of(pos, member), below_neg)
    bpsn = ranks.mean(of(pos, others), below_neg)
    # P[member's positive > other's negative], seen from the negatives.
    bnsp = 1.0 - ranks.mean(of(neg, others), below_pos)
    overall = ranks.mean(pos, below)[0]
    power_means, left_out = power_mean(jnp.stack([subgroup, bpsn, bnsp]), power)
    return AucBias(
        overall=overall,
        subgroup=subgroup,
        bpsn=bpsn,
        bnsp=bnsp,
        aeg_negative=0.5 - ranks.mean(of(neg, others), below_neg),
        aeg_positive=0.5 - ranks.mean(of(pos, others), below_pos),
        power_means=power_means,
        left_out=left_out,
        final=(overall + jnp.sum(power_means)) / 4.0,
        members=jnp.stack([of(x, member).sum(0) for x in (neg, pos)], 1),
        others=jnp.stack([of(x, others).sum(0) for x in (neg, pos)], 1),
        n_nan=ranked.n_nan,
    )


def _chunk(chunk, replicates, elements):
    if chunk is None:
        chunk = max(1, _ELEMENTS // max(1, elements))
    _validate.integer_at_least("chunk", chunk, 1, "or None")
    return min(chunk, replicates) or 1


def _checked(scores, labels, mask):
    scores, labels = _scores(scores), ranks.flags("labels", labels)
    mask = jnp.ones(scores.shape, bool) if mask is None else jnp.asarray(mask)
    if not scores.shape == labels.shape == mask.shape:
        raise ValueError(
            f"scores has shape {scores.shape}, labels {labels.shape}, mask "
            f"{mask.shape}; give one of each for every row."
        )
    return scores, labels, mask


def _membership(membership, n):
    member = ranks.flags("membership", membership)
    if member.ndim != 2 or member.shape[0] != n:
        raise ValueError(
            f"membership has shape {member.shape} for {n} scores; give one row per "
            "score and one column per identity."
        )
    return member


def _scores(scores):
    if not isinstance(scores, jax.Array):
        scores = np.asarray(scores)
        if scores.dtype.kind in "iu" and scores.dtype.itemsize > 4 and scores.size:
            most = max(scores.max(), -scores.min())
            if most > np.iinfo(np.int32).max:
                bound = "is beyond int32, where scores would wrap"
                _validate.fail("scores", int(most), bound, "give floats or ranks")
    return jnp.asarray(scores)


def _options(background, power):
    _validate.one_of("background", background, BACKGROUNDS)
    if not _validate.finite("power", power, "-5 is usual"):
        _validate.fail("power", power, "must not be 0", "-5 is usual")
