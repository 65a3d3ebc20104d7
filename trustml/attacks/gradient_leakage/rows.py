"""The embedding-row leak: rows of the table that moved are the tokens of the client.

The gradient of a lookup is a scatter-add, so row v of dL/dE is 0 unless token v is in
the batch. This is exact for any batch size. It survives clipping (a scaling), the mean
over a batch and the sum over clients (a union), several local steps, and optimizers
that keep the rows they never saw at zero: SGD, and adaptive ones from a fresh state.
Which view of the table fits which rule:

- `nonzero`: a table used for the input only.
- `above_background`: a table tied to the output, where every row moves: row v of the
  output's part is sum_t (p_tv - [y_t = v]) h_t, small wherever v neither stands in the
  text nor is predicted. Rows far above the median of all log norms are claimed.
- `above_noise`: Gaussian noise of known s: ||row||^2 / s^2 of a row that did not move
  is chi-squared with D degrees of freedom, and a claim is a test at a level.
- `largest`: the rows of largest norm, where the number of tokens is known or supposed.

Decoupled weight decay moves every row by a known factor: `without_decay` takes it out
first. (Decay added to the gradient of an adaptive optimizer cannot be taken out.) The
last position embedding that moved gives the longest length.

All of it runs on the host in float64. Dimension key: V tokens, D width, P positions.

Example::

    claim = rows.nonzero(gradient['table']['embedding'])
    found = rows.score(claim, batch_tokens, vocab_size=8192)
    found.precision, found.recall, found.chance_recall

References: Melis et al. 2019, https://arxiv.org/abs/1805.04049 (section 4.1).
"""

from typing import Any, NamedTuple

import numpy as np
from numpy import typing as npt
from scipy import stats

from trustml import _validate


class Claim(NamedTuple):
    """Tokens that an attack says are in the batch.

    Attributes:
      tokens: int64[n], the row of largest norm first; ties by id.
      norms: float64[n], L2 norms of their rows.
    """

    tokens: np.ndarray
    norms: np.ndarray


class Found(NamedTuple):
    """A claim against the truth.

    Attributes:
      precision: share of the claimed tokens that are there; 0 where none is claimed.
      recall: share of the tokens there that are claimed.
      chance_recall: expected recall of as many tokens drawn at random.
      claimed: number of tokens claimed.
      true: number of distinct tokens there.
    """

    precision: float
    recall: float
    chance_recall: float
    claimed: int
    true: int


def nonzero(update_VD: npt.ArrayLike, *, tolerance: float = 0.0) -> Claim:
    """Claims every row with an L2 norm above `tolerance` times the largest one.

    Args:
      update_VD: gradient or change of the table.
      tolerance: 0 for gradients, where rows without a token are exactly 0; 1e-5 after
        `without_decay`, which leaves rounding errors.

    Raises:
      ValueError: for a table that is not [V, D], or holds NaN.
    """
    tolerance = _validate.in_half_open_interval("tolerance", tolerance, 0.0, 1.0)
    norms = _norms(update_VD)
    return _claim(norms, norms > tolerance * norms.max(initial=0.0))


def largest(update_VD: npt.ArrayLike, count: int) -> Claim:
    """Claims the `count` rows of largest norm.

    Raises:
      ValueError: if count is not an integer from 0 to V.
    """
    norms = _norms(update_VD)
    count = _validate.integer_at_least("count", count, 0)
    if count > norms.size:
        _validate.fail("count", count, f"must be <= V = {norms.size}")
    chosen = np.zeros(norms.size, bool)
    chosen[np.argsort(-norms, kind="stable")[:count]] = True
    return _claim(norms, chosen)


def above_background(update_VD: npt.ArrayLike, *, spreads: float = 6.0) -> Claim:
    """Claims rows whose log norm is far above the median of all rows.

    Claimed: log norm > median + spreads * 1.4826 * median absolute deviation. It takes
    most rows for background, so batches must hold less than half of the vocabulary.

    Args:
      update_VD: gradient or change of a table that is tied to the output.
      spreads: > 0, in units of a robust standard deviation.
    """
    spreads = _validate.positive("spreads", spreads, "6.0 is usual")
    norms = _norms(update_VD)
    logs = np.log(np.maximum(norms, np.finfo(np.float64).tiny))
    middle = np.median(logs)
    spread = 1.4826 * np.median(np.abs(logs - middle))
    return _claim(norms, logs > middle + spreads * spread)


def above_noise(
    update_VD: npt.ArrayLike, noise_stddev: float, *, level: float = 0.05
) -> Claim:
    """Claims rows that Gaussian noise alone would not make so long.

    Each row is tested at level / V, so the chance of any false claim is at most
    `level`.

    Args:
      update_VD: what was seen, noise included.
      noise_stddev: s > 0, of the noise in every coordinate.
      level: in (0, 1).
    """
    stddev = _validate.positive("noise_stddev", noise_stddev)
    level = _validate.in_open_interval("level", level, 0.0, 1.0)
    norms = _norms(update_VD)
    width = np.shape(update_VD)[1]
    bound = stats.chi2.isf(level / norms.size, width)
    return _claim(norms, (norms / stddev) ** 2 > bound)


def without_decay(
    change_VD: npt.ArrayLike,
    before_VD: npt.ArrayLike,
    *,
    learning_rate: float,
    weight_decay: float,
    steps: int = 1,
) -> np.ndarray:
    """The change of the table, less that of decoupled weight decay.

    A row without a token goes from w to w (1 - rate decay)^steps. Rows with tokens keep
    an error of the second order, since decay also shrank their earlier steps.

    Args:
      change_VD: after - before, over all local steps.
      before_VD: the table before them, which the server sent out.
      learning_rate: of every step.
      weight_decay: of every step, multiplied by the learning rate (as in AdamW).
      steps: number of local steps.

    Returns:
      float64[V, D]; zero up to rounding in rows without a token.
    """
    rate = _validate.positive("learning_rate", learning_rate)
    decay = _validate.non_negative("weight_decay", weight_decay)
    steps = _validate.integer_at_least("steps", steps, 1)
    shrink = np.expm1(steps * np.log1p(-rate * decay))
    change, before = (np.asarray(x, np.float64) for x in (change_VD, before_VD))
    return change - shrink * before


def longest_length(
    update_PD: npt.ArrayLike, *, offset: int = 0, tolerance: float = 0.0
) -> int:
    """Length of the longest text, from the table of learned positions.

    Args:
      update_PD: gradient or change of the position embeddings.
      offset: row of the first position (2 in RoBERTa).
      tolerance: as in `nonzero`.

    Returns:
      Number of tokens; 0 where no row moved.
    """
    offset = _validate.integer_at_least("offset", offset, 0)
    moved = nonzero(update_PD, tolerance=tolerance).tokens
    return int(max(moved.max(initial=-1) + 1 - offset, 0))


def score(claim: Claim, true_tokens: Any, vocab_size: int) -> Found:
    """Precision and recall of a claim, beside the recall of a random set.

    Args:
      claim: what the attack says.
      true_tokens: ids in the batch, repetitions allowed, padding left out.
      vocab_size: V; n tokens drawn at random have expected recall n / V.

    Raises:
      ValueError: if there is no true token, or one is not in [0, V).
    """
    vocab_size = _validate.integer_at_least("vocab_size", vocab_size, 1)
    true = np.unique(np.asarray(true_tokens))
    if not true.size or true[0] < 0 or true[-1] >= vocab_size:
        _validate.fail(
            "true_tokens",
            true.tolist()[:3],
            f"must be ids in [0, {vocab_size}), at least one",
            "leave padding out and check vocab_size",
        )
    right = int(np.isin(claim.tokens, true).sum())
    count = claim.tokens.size
    return Found(
        precision=right / count if count else 0.0,
        recall=right / true.size,
        chance_recall=count / vocab_size,
        claimed=count,
        true=int(true.size),
    )


def _norms(update_VD: npt.ArrayLike) -> np.ndarray:
    update = np.asarray(update_VD, np.float64)
    if update.ndim != 2:
        _validate.fail(
            "update",
            list(update.shape),
            "is not the shape [V, D] of a table",
            "pass the leaf of the embedding table",
        )
    if np.isnan(update).any():
        row = int(np.flatnonzero(np.isnan(update).any(axis=1))[0])
        _validate.fail(
            f"update[{row}]", "nan", "has no norm", "check the client's loss"
        )
    return np.linalg.norm(update, axis=1)


def _claim(norms: np.ndarray, chosen: np.ndarray) -> Claim:
    tokens = np.flatnonzero(chosen)
    tokens = tokens[np.argsort(-norms[tokens], kind="stable")]
    return Claim(tokens, norms[tokens])
