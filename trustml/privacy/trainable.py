"""Which parameters are trained: a pytree split in two, and put together again.

Frozen leaves need no weight gradient and carry no noise. Both halves keep the structure
of the whole, with `None` where the other half has the leaf; `None` is an empty subtree
to JAX and optax, so either half works as a pytree of parameters.

Example::

    train, frozen = partition(params, ('head/*',))
    params = combine(train, frozen)
"""

import fnmatch
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

Selection = None | Sequence[str] | Callable[[str], bool]


def path_of(path) -> str:
    """The path of a leaf as 'a/b/c'."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def selector(trainable: Selection) -> Callable[[str], bool]:
    """A predicate of leaf paths from globs, a predicate, or None (all leaves)."""
    if trainable is None:
        return lambda path: True
    if callable(trainable):
        return trainable
    if not isinstance(trainable, Iterable):
        raise ValueError(
            f"privacy.trainable={trainable!r} is not a glob, globs or a predicate of "
            "paths; give for example ('head/*',)."
        )
    patterns = (trainable,) if isinstance(trainable, str) else tuple(trainable)
    return lambda path: any(fnmatch.fnmatch(path, p) for p in patterns)


def partition(params: Any, trainable: Selection) -> tuple[Any, Any]:
    """Splits `params` into (trainable, frozen), each with None for the other's leaves.

    Raises:
      ValueError: if there is no leaf, none is selected, or a selected leaf is not of
        floats.
    """
    if not jax.tree.leaves(params):
        raise ValueError(
            f"params={params!r} holds no array to train; give the parameters that "
            "the loss takes, as made by the task's init."
        )
    chosen = selector(trainable)
    train = jax.tree_util.tree_map_with_path(
        lambda path, x: x if chosen(path_of(path)) else None, params
    )
    frozen = jax.tree_util.tree_map_with_path(
        lambda path, x: None if chosen(path_of(path)) else x, params
    )
    flat = jax.tree_util.tree_leaves_with_path(train)
    if not flat:
        raise ValueError(
            f"privacy.trainable={trainable!r} selects no parameter; "
            f"give a pattern that matches one of {_some_paths(params)}."
        )
    for path, leaf in flat:
        dtype = getattr(leaf, "dtype", type(leaf))
        if not jax.dtypes.issubdtype(dtype, jax.numpy.floating):
            raise ValueError(
                f"parameter '{path_of(path)}' has dtype {dtype}, and only floats can "
                "be trained; leave it out by `privacy.trainable` or make it part of "
                "the example."
            )
    return train, frozen


def combine(train: Any, frozen: Any) -> Any:
    """The whole tree from the two halves that `partition` made."""
    return jax.tree.map(
        lambda a, b: b if a is None else a, train, frozen, is_leaf=lambda x: x is None
    )


def paths(params: Any) -> list[str]:
    """The path of every leaf, in the order of the leaves."""
    return [path_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]


def _some_paths(params) -> str:
    known = paths(params)
    return ", ".join(known[:5]) + (", ..." if len(known) > 5 else "")
