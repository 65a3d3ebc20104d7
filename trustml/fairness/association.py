"""Word and sentence association tests: WEAT and SEAT.

    s(w) = mean_a cos(w, a) - mean_b cos(w, b)                of a target word w
    statistic = sum_X s - sum_Y s
    d = (mean_X s - mean_Y s) / std_{X u Y} s                 effect size, ddof = 1
    p = P[statistic of a random partition of X u Y >= statistic]        one-sided

d > 0: targets X lean to attributes A, targets Y to B. p comes from `permutation`: exact
up to 100,000 partitions, sampled beyond, and of any number of tests at once.

`seat` is the same on vectors of sentences. Their pooling is recorded in the result, as
d depends on it strongly.

Dimension key: `n` = nx + ny target words, `D` width, `T` tokens, `L` layers.

Example::

    result = association.weat(vectors, math, arts, male_terms, female_terms)
    print(result.effect_size, result.count, result.total, result.missing)
    s = association.scores(targets_LnD, a_LkD, b_LkD)          # L layers at once
    d, p = association.effect_size(s, 8), permutation.test(s, table).p

References: https://arxiv.org/abs/1608.07187 (WEAT); https://arxiv.org/abs/1903.10561
  (SEAT).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped

from trustml import _validate
from trustml.fairness import permutation

POOLINGS = ("mean", "cls", "last", "target_subwords")
METHODS = ("permutation", "parametric")
LISTS = ("targets_x", "targets_y", "attributes_a", "attributes_b")

_FEWEST = 2  # words a side

Vectors = Shaped[Array | np.ndarray, "..."]


class Association(NamedTuple):
    """The result of one association test.

    Attributes:
      effect_size: float64[...]; d.
      statistic: float64[...]; sum_X s - sum_Y s.
      p: float64[...].
      count: int[...]; p = count / total; None if parametric.
      total: N; None if parametric.
      method: 'exact', 'sampled' or 'parametric'.
      sizes: words of X, Y, A, B that were used.
      missing: name of a list -> words of it that have no vector, in its order.
      pooling: how vectors of sentences were made; '' for words.
      warnings: sentences to print beside d and p.
    """

    effect_size: np.ndarray
    statistic: np.ndarray
    p: np.ndarray
    count: np.ndarray | None
    total: int | None
    method: str
    sizes: tuple[int, int, int, int]
    missing: dict[str, tuple[str, ...]]
    pooling: str
    warnings: tuple[str, ...]


def weat(
    vectors: Mapping[str, Any],
    targets_x: Sequence[str],
    targets_y: Sequence[str],
    attributes_a: Sequence[str],
    attributes_b: Sequence[str],
    *,
    method: str = "permutation",
    samples: int = permutation.MOST_EXACT - 1,
    seed: int = 0,
) -> Association:
    """The word embedding association test (Caliskan et al. 2017), in float64.

    Args:
      vectors: word -> number[D].
      targets_x: words X; those without a vector are dropped and named in the result.
      targets_y: words Y.
      attributes_a: words A.
      attributes_b: words B.
      method: 'permutation', or 'parametric' (a normal law, with a warning).
      samples: partitions drawn where there are more than 100,000.
      seed: of that draw.

    Returns:
      Association of one test: arrays of shape [].

    Raises:
      ValueError: if fewer than two words of a list have a vector, or one is zero.
    """
    lists = (targets_x, targets_y, attributes_a, attributes_b)
    kept, missing, arrays = [], {}, []
    for name, words in zip(LISTS, lists, strict=True):
        kept.append([w for w in words if w in vectors])
        if lost := tuple(w for w in words if w not in vectors):
            missing[name] = lost
        if len(kept[-1]) < _FEWEST:
            raise ValueError(
                f"{name} has {len(kept[-1])} of {len(words)} words with a vector and "
                f"needs {_FEWEST}; without are {', '.join(map(repr, missing[name]))}: "
                "take a larger vocabulary, or leave this test out."
                if lost
                else f"{name} has {len(words)} words and needs {_FEWEST}."
            )
        arrays.append(np.array([np.asarray(vectors[w], np.float64) for w in kept[-1]]))
    result = compare(*arrays, words=kept, method=method, samples=samples, seed=seed)
    repeated = tuple(
        f"{name} holds {words} more than once, and each time counts"
        for name, of in zip(LISTS, kept, strict=True)
        if (words := ", ".join(dict.fromkeys(repr(w) for w in of if of.count(w) > 1)))
    )
    return result._replace(missing=missing, warnings=result.warnings + repeated)


def seat(
    targets_x: Vectors,
    targets_y: Vectors,
    attributes_a: Vectors,
    attributes_b: Vectors,
    *,
    pooling: str,
    method: str = "permutation",
    samples: int = permutation.MOST_EXACT - 1,
    seed: int = 0,
) -> Association:
    """The same test on vectors of sentences (May et al. 2019).

    Args:
      targets_x: [..., nx, D]; leading axes are layers or models.
      targets_y: [..., ny, D].
      attributes_a: [..., na, D].
      attributes_b: [..., nb, D].
      pooling: how `pool` made the vectors; recorded.
      method: as `weat`.
      samples: as `weat`.
      seed: as `weat`.

    Returns:
      Association; arrays of shape [...].

    Raises:
      ValueError: on fewer than two vectors of a list, a zero vector or other widths.
    """
    _validate.one_of("pooling", pooling, POOLINGS)
    lists = (targets_x, targets_y, attributes_a, attributes_b)
    arrays = [np.asarray(x, np.float64) for x in lists]
    result = compare(*arrays, method=method, samples=samples, seed=seed)
    return result._replace(pooling=pooling)


def compare(
    x: np.ndarray,
    y: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    *,
    words: Sequence[Sequence[str]] | None = None,
    method: str = "permutation",
    samples: int = permutation.MOST_EXACT - 1,
    seed: int = 0,
) -> Association:
    """One test, or one for every leading index, on vectors; what `weat` rests on.

    Args:
      x: float64[..., nx, D].
      y: float64[..., ny, D].
      a: float64[..., na, D].
      b: float64[..., nb, D].
      words: what the vectors of x, y, a, b stand for, to name them in errors.
      method: as `weat`.
      samples: as `weat`.
      seed: as `weat`.

    Returns:
      Association.

    Raises:
      ValueError: as `seat`.
    """
    _validate.one_of("method", method, METHODS)
    lists = (x, y, a, b)
    for i, (name, vectors) in enumerate(zip(LISTS, lists, strict=True)):
        _check(name, vectors, x.shape[-1], words[i] if words else None)
    nx, ny = x.shape[-2], y.shape[-2]
    s = np.asarray(scores(np.concatenate([x, y], -2), a, b))
    statistic = s[..., :nx].sum(-1) - s[..., nx:].sum(-1)
    count = total = None
    if method == "parametric":
        p, label = permutation.parametric(s, nx), "parametric"
        warnings = ("p is that of a normal approximation to the permutations",)
    else:
        table = permutation.partitions(nx, ny, samples=samples, seed=seed)
        found = permutation.test(s, table)
        count, total = np.asarray(found.count), int(found.total)
        p, label = count / total, "exact" if table.exact else "sampled"
        warnings = ()
    spread = np.std(s, -1, ddof=1)
    if np.any(spread == 0):
        warnings += ("all targets are alike: the effect size is not defined",)
    return Association(
        effect_size=effect_size(s, nx),
        statistic=np.asarray(statistic),
        p=p,
        count=count,
        total=total,
        method=label,
        sizes=(nx, ny, a.shape[-2], b.shape[-2]),
        missing={},
        pooling="",
        warnings=warnings,
    )


def scores(
    words: Float[Array | np.ndarray, "... n D"],
    a: Float[Array | np.ndarray, "... na D"],
    b: Float[Array | np.ndarray, "... nb D"],
) -> Float[Array | np.ndarray, "... n"]:
    """s(w) of every word; NumPy in, NumPy out, else a pure function of JAX.

    The mean of cosines with a set is the product with the mean of its unit vectors.

    Args:
      words: [..., n, D].
      a: [..., na, D], attributes A.
      b: [..., nb, D], attributes B.

    Returns:
      float[..., n]; NaN where a vector is zero.
    """
    axis = _unit(a).mean(-2) - _unit(b).mean(-2)
    if isinstance(words, np.ndarray) and isinstance(axis, np.ndarray):
        return np.matmul(_unit(words), axis[..., None])[..., 0]
    highest = jax.lax.Precision.HIGHEST
    return jnp.matmul(_unit(words), axis[..., None], precision=highest)[..., 0]


def effect_size(s: Float[Array | np.ndarray, "... n"], nx: int) -> Any:
    """D = (mean of the first nx - mean of the rest) / std of all, ddof = 1.

    Args:
      s: float[..., n].
      nx: number of targets in X.

    Returns:
      float[...]; NaN if all scores are equal.
    """
    xp: Any = np if isinstance(s, np.ndarray) else jnp
    gap = s[..., :nx].mean(-1) - s[..., nx:].mean(-1)
    spread = xp.std(s, -1, ddof=1)
    return xp.where(spread > 0, gap / xp.where(spread > 0, spread, 1.0), xp.nan)


def pool(
    hidden: Float[Array | np.ndarray, "T D"],
    mask: Bool[Array | np.ndarray, " T"],
    pooling: str,
    target: Bool[Array | np.ndarray, " T"] | None = None,
) -> Float[Array, " D"]:
    """One vector of a text from the states of its tokens.

    Args:
      hidden: [T, D]; what is masked may be NaN.
      mask: [T], tokens in use, marks such as [CLS] among them.
      pooling: 'mean' of all tokens in use, 'cls' the first of them, 'last' the last,
        'target_subwords' the mean of those in `target`.
      target: [T], sub-words of the target word.

    Returns:
      float[D]; NaN if no token is in use (or none is in `target`).

    Raises:
      ValueError: on an unknown pooling, or 'target_subwords' without `target`.
    """
    _validate.one_of("pooling", pooling, POOLINGS)
    hidden, mask = jnp.asarray(hidden), jnp.asarray(mask)
    if pooling == "cls":
        mask = mask & (jnp.cumsum(mask) == 1)
    elif pooling == "last":
        mask = mask & (jnp.cumsum(mask) == jnp.sum(mask))
    elif pooling == "target_subwords":
        if target is None:
            cure = "pass target: bool[T], true at the sub-words of the target"
            _validate.fail("target", target, "does not say where the word is", cure)
        mask = mask & jnp.asarray(target)
    kept = jnp.where(mask[:, None], hidden, 0.0)
    return kept.sum(0) / jnp.sum(mask).astype(hidden.dtype)


def _unit(x):
    xp: Any = np if isinstance(x, np.ndarray) else jnp
    # Squares of very long or short vectors leave the range of floats.
    x = x / xp.max(xp.abs(x), -1, keepdims=True)
    return x / xp.sqrt(xp.sum(x * x, -1, keepdims=True))


def _check(name: str, vectors: np.ndarray, width: int, words: Any) -> None:
    if vectors.ndim < 2 or vectors.shape[-1] != width or vectors.shape[-2] < _FEWEST:
        raise ValueError(
            f"{name} has shape {vectors.shape}; at least {_FEWEST} vectors of width "
            f"{width} are needed, as [..., words, {width}]."
        )
    flat = np.moveaxis(vectors, -2, 0).reshape(vectors.shape[-2], -1, width)
    bad = ~np.isfinite(flat).all(-1) | ~flat.any(-1)
    for i in np.flatnonzero(bad.any(-1)):
        word = f" ({words[i]!r})" if words is not None else ""
        raise ValueError(
            f"{name}[{i}]{word} is a vector of zeros, or not finite: it has no cosine; "
            "leave the word out."
        )
