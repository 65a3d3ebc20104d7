"""Examples as points, for clients whose features differ.

| columns | coordinates |
|---|---|
| `image`, `features` | flat, standardised over the examples |
| `tokens` | words by tf-idf, projected to 64 random directions, of length 1 |

Sentence embeddings serve better where there is an encoder; hand them to `clusters`.

Dimension key: N examples, D coordinates.

Example::

    points = features.of_columns({'tokens': tokens_NL, 'length': length_N}, seed=0)
    dealt = clusters.cluster_dirichlet(points, 100, 0.5, scale='per_class', seed=0)
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import sparse

from trustml import _validate
from trustml.federated.partitions import base

_DIRECTIONS = 64


def of_columns(columns: Mapping[str, Any], *, seed: int) -> Float[np.ndarray, "N D"]:
    """Coordinates of every example.

    Args:
      columns: of a split; 'image', 'features', or 'tokens' and 'length'.
      seed: of the random directions.

    Raises:
      ValueError: where there are none of these columns.
    """
    for name in ("image", "features"):
        if name in columns:
            flat = np.asarray(columns[name], np.float64)
            flat = flat.reshape(len(flat), -1)
            spread = flat.std(0)
            return (flat - flat.mean(0)) / np.where(spread > 0, spread, 1.0)
    if not {"tokens", "length"} <= set(columns):
        bound = "holds nothing to cluster by"
        cure = "it needs 'image', 'features', or 'tokens' and 'length'"
        _validate.fail("columns", sorted(columns), bound, cure)
    return _of_words(
        np.asarray(columns["tokens"]), np.asarray(columns["length"]), seed=seed
    )


def _of_words(tokens: np.ndarray, length: np.ndarray, *, seed: int) -> np.ndarray:
    real = np.arange(tokens.shape[1]) < length[:, None]
    row, word = np.nonzero(real)[0], tokens[real]
    number = int(tokens.max(initial=0)) + 1
    pairs, times = np.unique(row * np.int64(number) + word, return_counts=True)
    row, word = pairs // number, pairs % number
    rare = np.log((1 + len(tokens)) / (1 + np.bincount(word, minlength=number))) + 1
    random = base.random("directions", seed)
    directions = random.normal(number * _DIRECTIONS).reshape(number, _DIRECTIONS)
    weights = sparse.csr_array((times * rare[word], (row, word)), (len(tokens), number))
    found = weights @ directions
    norm = np.linalg.norm(found, axis=1, keepdims=True)
    return found / np.where(norm > 0, norm, 1.0)
