"""The blind baseline: can members be told from non-members without any model?

A logistic regression on the inputs alone, cross-fitted: every example is scored by a
classifier that never saw it. If that works, members and non-members differ in something
else than membership (their date, their source), and the figure of an attack may measure
just this difference. So the report leads with the blind figure, and nothing is
concluded about leakage.

At chance it says that this linear classifier found no difference, not that there is
none.

Scores of different folds come from different classifiers; they are compared by their
rank within the fold. Folds hold the same share of members.

Dimension key: `n` examples, `F` features, `K` folds, `T` tokens.

Example::

    bag = blind.bag_of_tokens(tokens, mask, buckets=2000)
    found = blind.measure(bag, member)
    if found.differs:
        print(found.sentence)

References: https://arxiv.org/abs/2406.16201 (blind baselines),
https://arxiv.org/abs/2402.07841 (pre-training data at chance once these are removed)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

from trustml import _validate
from trustml.attacks import heads, metrics


class Blind(NamedTuple):
    """What a classifier of inputs alone finds.

    Attributes:
      auc: cross-fitted; 0.5 is chance.
      lo: lower end of the interval.
      hi: upper end.
      stderr: of the AUC where there is no difference.
      differs: the AUC is more than 3 stderr away from 0.5.
      sentence: what follows, for the report.
    """

    auc: float
    lo: float
    hi: float
    stderr: float
    differs: bool
    sentence: str


def measure(
    features: Float[np.ndarray, "n F"],
    member: Bool[np.ndarray, " n"],
    *,
    folds: int = 5,
    l2: float = 1e-2,
    steps: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> Blind:
    """Cross-fitted AUC of a logistic regression on the inputs.

    Args:
      features: inputs as they come, no output of a model trained on them.
      member: of the target.
      folds: K >= 2.
      l2: weight of |w|^2/2 beside the mean loss, on standardised features.
      steps: of Adam on all rows.
      level: confidence of the interval.
      seed: of the folds.

    Returns:
      Blind.

    Raises:
      ValueError: with fewer members or non-members than folds, or features that are not
        finite.
    References: https://arxiv.org/abs/2406.16201
    """
    folds = _validate.integer_at_least("blind.folds", folds, 2, "5 is the default")
    l2 = _validate.non_negative("blind.l2", l2, "1e-2 is the default")
    features, member = np.asarray(features, np.float32), np.asarray(member, bool)
    n_in, n_out = int(member.sum()), int((~member).sum())
    if min(n_in, n_out) < folds:
        raise ValueError(
            f"{n_in} members and {n_out} non-members do not fill {folds} folds; use "
            "fewer folds or more examples."
        )
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if bad.size:
        raise ValueError(
            f"features[{bad[0]}] is not finite ({bad.size} in all); drop such examples "
            "from the attack as well."
        )
    fold = _folds(member, folds, np.random.default_rng(seed))
    logits = np.asarray(_cross_fit(features, member, fold, folds, l2, steps))
    rank = np.zeros(member.size)
    for k in range(folds):
        rows = fold == k
        rank[rows] = (stats.rankdata(logits[rows]) - 0.5) / rows.sum()
    area = metrics.auc(rank[member], rank[~member], level)
    # Under the null every order is equally likely (Mann and Whitney 1947).
    stderr = float(np.sqrt((n_in + n_out + 1) / (12.0 * n_in * n_out)))
    differs = abs(area.value - 0.5) > 3.0 * stderr
    figure = f"AUC {area.value:.3f} ({area.lo:.3f}-{area.hi:.3f})"
    if differs:
        sentence = (
            "A classifier that sees no model tells members from non-members: "
            f"{figure}; 0.5 is chance. Nothing is concluded about leakage from an "
            "attack on these examples: it may measure that difference."
        )
    else:
        sentence = (
            "A linear classifier of the inputs alone is within three standard errors "
            f"of chance: {figure}. It found "
            "no difference between members and non-members but membership."
        )
    return Blind(area.value, area.lo, area.hi, stderr, bool(differs), sentence)


def bag_of_tokens(
    tokens: Int[np.ndarray, "n T"],
    mask: Bool[np.ndarray, "n T"],
    *,
    buckets: int = 2000,
) -> np.ndarray:
    """log(1 + count) of every token of a text, float32[n, buckets].

    Args:
      tokens: numbers >= 0; those from `buckets` on share a bucket with others.
      mask: true for real tokens.
      buckets: at least the vocabulary, for a bucket of each token.

    Raises:
      ValueError: on a token below 0.
    """
    buckets = _validate.integer_at_least("blind.buckets", buckets, 1)
    tokens, mask = np.asarray(tokens), np.asarray(mask, bool)
    rows = np.nonzero(mask)[0]
    kept = tokens[mask]
    if kept.size and kept.min() < 0:
        _validate.fail("tokens", int(kept.min()), "must be >= 0", "mask the padding")
    size = tokens.shape[0]
    count = np.bincount(rows * buckets + kept % buckets, minlength=size * buckets)
    return np.log1p(count.reshape(size, buckets)).astype(np.float32)


def _folds(member, folds, rng):
    fold = np.zeros(member.size, int)
    for side in (member, ~member):
        rows = rng.permutation(np.flatnonzero(side))
        fold[rows] = np.arange(rows.size) % folds
    return fold


def _cross_fit(features, member, fold, folds, l2, steps):
    """Logit of every example by the classifier of the other folds, float32[n]."""
    x, truth = jnp.asarray(features), jnp.asarray(member).astype(jnp.float32)
    fold = jnp.asarray(fold, jnp.int32)

    def one(k):
        learnt = (fold != k).astype(jnp.float32)
        share = jnp.sum(learnt)
        centre = jnp.sum(x * learnt[:, None], axis=0) / share
        away = jnp.square(x - centre[None]) * learnt[:, None]
        scale = jnp.sqrt(jnp.sum(away, axis=0) / share)
        standard = (x - centre[None]) / jnp.where(scale > 1e-6, scale, 1.0)[None]
        # A token that the other folds hold once must not decide by itself.
        standard = jnp.clip(standard, -5.0, 5.0)

        def loss(params, _):
            logit = heads.apply(params, standard)[:, 0]
            each = jax.nn.softplus(logit) - truth * logit
            size = jnp.sum(jnp.square(params[0][0]))
            return jnp.sum(each * learnt) / share + 0.5 * l2 * size

        first = heads.init(jax.random.key(0), (x.shape[1], 1))
        fitted = heads.fit(
            first, loss, jax.random.key(1), steps=steps, learning_rate=0.05
        )
        logit = heads.apply(fitted.params, standard)[:, 0]
        return jnp.where(fold == k, logit, 0.0)

    return jnp.sum(jax.lax.map(one, jnp.arange(folds)), axis=0)
