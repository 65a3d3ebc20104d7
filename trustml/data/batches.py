"""Batches of a fixed shape, in NumPy: gather rows by index, mask what is padding.

A sampler says which examples are in a step, `gather` fetches them. Shapes never change,
so that a jitted step compiles once; slots that no example fills are masked, and hold
the all-zeros dummy example, on which every model is finite.

Dimension key: `N` examples, `M` microbatches, `P` physical batch.

Example::

    batch = batches.gather(dataset.train, indices, mask)   # indices, mask: [M, P]
    batch['tokens'].shape                                  # (M, P, T)
    for batch, mask in batches.evaluation(dataset.test, 256):
        total += evaluate(params, batch, mask)
"""

from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Bool

from trustml import _validate

Columns = Mapping[str, np.ndarray]  # name -> [N, ...], N the same for all


def size(columns: Columns) -> int:
    """The number of examples in the columns; 0 where there is no column."""
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(
            f"columns have different numbers of examples, {lengths}; "
            "give every column one row an example."
        )
    return next(iter(lengths.values()), 0)


def gather(
    columns: Columns, indices: np.ndarray, mask: np.ndarray
) -> dict[str, np.ndarray]:
    """Rows of every column at `indices`; zeros where `mask` is False.

    Args:
      columns: name -> [N, ...].
      indices: integers of any shape, such as [M, P]; where `mask` is True within
        [0, N), elsewhere anything.
      mask: bool, of the same shape.

    Returns:
      name -> [*indices.shape, ...]; a copy, the dtype of the column.

    Raises:
      ValueError: if the shapes differ, or an unmasked index lies outside the columns.
    """
    indices, mask = np.asarray(indices), np.asarray(mask)
    if indices.shape != mask.shape or mask.dtype != bool:
        raise ValueError(
            f"mask of shape {mask.shape} and type {mask.dtype} does not fit indices of "
            f"shape {indices.shape}; give one boolean for each index."
        )
    count = size(columns)
    used = indices[mask]
    if used.size and not (0 <= used.min() and used.max() < count):
        wrong = used[(used < 0) | (used >= count)][0]
        raise ValueError(
            f"indices holds {wrong}, which is outside [0, {count}); "
            "mask it or sample among the examples there are."
        )
    out = {}
    for name, column in columns.items():
        rows = np.zeros(indices.shape + column.shape[1:], column.dtype)
        rows[mask] = column[used]
        out[name] = rows
    return out


def evaluation(
    columns: Columns, batch_size: int
) -> Iterator[tuple[dict[str, np.ndarray], Bool[np.ndarray, " P"]]]:
    """Every example once, in order, in batches of one shape.

    The last batch is filled up with masked zeros.

    Args:
      columns: name -> [N, ...].
      batch_size: P >= 1.

    Yields:
      (name -> [P, ...], mask bool[P]), ceil(N / P) times.

    Raises:
      ValueError: if `batch_size` is not a positive integer.
    """
    batch_size = _validate.integer_at_least("batch_size", batch_size, 1, "try 256")
    count = size(columns)

    def chunks():
        for start in range(0, count, batch_size):
            indices = np.arange(start, start + batch_size)
            mask = indices < count
            yield gather(columns, indices, mask), mask

    return chunks()
