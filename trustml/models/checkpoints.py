"""Puts the arrays of a checkpoint where a model keeps them, or says what does not fit.

A loader states where every array goes, `{name: (path in the parameters, transpose)}`;
`check_names` compares the names, `place` the shapes. PyTorch keeps the kernel of a
linear layer as [out, in], we as [in, out]: those are transposed. GPT-2's "Conv1D" keeps
[in, out] and is not.

Example::

    tensors = hf.read_tensors(directory)
    places = {'wte.weight': (('word', 'embedding'), False)}
    checkpoints.check_names(directory, tensors, places, ignored=('lm_head.weight',))
    params = checkpoints.place(directory, tensors, places, shapes)
"""

import os
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from trustml import _validate

Places = Mapping[str, tuple[tuple[str, ...], bool]]
_SHOWN = 12  # names in an error


def check_names(
    directory: str | os.PathLike[str],
    found: Collection[str],
    needed: Collection[str],
    ignored: Collection[str] = (),
) -> None:
    """Raises where a checkpoint lacks arrays, or has some that no one asked for.

    Args:
      directory: for the error.
      found: names in the checkpoint.
      needed: names that must be there.
      ignored: names that may be there.

    Raises:
      ValueError: that lists both sets, the missing and the unexpected names.
    """
    missing = sorted(set(needed) - set(found))
    unexpected = sorted(set(found) - set(needed) - set(ignored))
    if missing or unexpected:
        raise ValueError(
            f"model.checkpoint={str(directory)!r} does not match its config.json: "
            f"missing {_listed(missing)}; unexpected {_listed(unexpected)}; fetch both "
            "files again, or use a checkpoint of this family."
        )


def place(
    directory: str | os.PathLike[str],
    tensors: Mapping[str, np.ndarray],
    places: Places,
    shapes: Any,
) -> dict[str, Any]:
    """The parameters, a nested dict of contiguous NumPy arrays.

    Args:
      directory: for the error.
      tensors: arrays by name; those without a place are left out.
      places: name -> (path, whether to transpose).
      shapes: the parameters as a nested dict of things with a `shape`.

    Raises:
      ValueError: for an array of another shape than the configuration says.
    """
    params: dict[str, Any] = {}
    for name, (path, transpose) in places.items():
        value = tensors[name].T if transpose else tensors[name]
        node, expected = params, shapes
        for part in path[:-1]:
            node, expected = node.setdefault(part, {}), expected[part]
        if value.shape != expected[path[-1]].shape:
            _validate.fail(
                f"model.checkpoint={str(directory)!r}: shape of {name}",
                tensors[name].shape,
                "does not match config.json",
                "fetch both files again",
            )
        node[path[-1]] = np.ascontiguousarray(value)
    return params


def check_tied(
    directory: str | os.PathLike[str],
    tensors: Mapping[str, np.ndarray],
    name: str,
    other: str,
) -> None:
    """Raises where `name` is there and is not the array `other`, as in a tied head."""
    if name in tensors and not np.array_equal(tensors[name], tensors[other]):
        _validate.fail(
            f"model.checkpoint={str(directory)!r}: tensor",
            name,
            f"differs from {other}, but the output here reads the table of words",
            "use a checkpoint with tie_word_embeddings",
        )


def _listed(names: list[str]) -> str:
    if not names:
        return "none"
    more = len(names) - _SHOWN
    listed = ", ".join(names[:_SHOWN])
    return f"{len(names)} ({listed}{f', and {more} more' if more > 0 else ''})"
