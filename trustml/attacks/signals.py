"""Signals: the one array that every membership attack reads.

Dimension key: `M` models, `n` examples, `Q` queries of an example (heads, augmented
views), `C` classes.

    margin = log p_y - log sum_{k != y} p_k                     (Carlini et al. 2022)

is the logit of the probability of the true class. It is computed from
log-probabilities, never as log(p / (1 - p)), which in float32 is infinite from a logit
of 17 on and makes ties of what an attack has to rank.

References: https://arxiv.org/abs/2112.03570
"""

from typing import NamedTuple

import numpy as np


class Signals(NamedTuple):
    """What M models say of n examples; every score is oriented: larger means member.

    Attributes:
      margin: float32[M, n, Q], the logit of the true class's probability.
      log_prob: float32[M, n, Q], log p_y.
      member: bool[M, n], was example i in the training set of model m.
      pair: int32[M], the complementary model of the design; -1 where there is none.
      label: int32[n], class.
      group: int32[n], subgroup; -1 where there is none.
      valid: bool[n], false for padding and for examples with a signal that is not
        finite.
      fingerprint: of data, design, parameters and versions; signals that were kept are
        used again only where it is equal.
    """

    margin: np.ndarray
    log_prob: np.ndarray
    member: np.ndarray
    pair: np.ndarray
    label: np.ndarray
    group: np.ndarray
    valid: np.ndarray
    fingerprint: str
