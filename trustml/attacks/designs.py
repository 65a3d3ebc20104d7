"""Designs: which model is trained on which examples.

Shadow models are trained on random parts of one pool of examples, so that of every
example there are models that saw it (IN) and models that did not (OUT). The data stay
in one place; a model has a row of indices into them.

| design | rule | for |
| --- | --- | --- |
| `paired` | one permutation: half for model 2j, half for 2j + 1 | attacks |
| `independent` | every (model, example) a fair coin | statistics of one run |
| `canary` | everyone else, and a fair coin for every (model, canary) | audits |

In `paired` every example is in exactly M/2 of the M models, and every model is a target
of the attacks for free. That has a trap: with the target's own row taken out, a member
is in one reference model less than a non-member, which is all that an attack by counts
needs. Whoever attacks model t therefore leaves out t AND `pair[t]`.

Dimension key: `M` models, `n` examples, `H` slots of the largest training set.

Example::

    design = designs.paired(64, 5010, seed=0)
    design.member.sum(axis=0)              # 32 for every example
    design.index[3], design.pair[3]        # 2505 examples, model 2

References: https://arxiv.org/abs/2112.03570 (Carlini et al. 2022: every example in half
of the models); https://arxiv.org/abs/2305.08846 (Steinke et al. 2023: coins).
"""

import hashlib
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int
from numpy import typing as npt

from trustml import _validate

NAMES = ("paired", "independent", "canary")


class Design(NamedTuple):
    """Which model is trained on which examples; made by the functions of this module.

    Attributes:
      name: that of the function which made it.
      member: bool[M, n], is example i in the training set of model m.
      index: int32[M, H], the examples of every model in ascending order, then -1 where
        a model has fewer than H.
      pair: int32[M], the complementary model; -1 where there is none.
      digest: hexadecimal; changes with `member` and `pair`.
    """

    name: str
    member: Bool[np.ndarray, "M n"]
    index: Int[np.ndarray, "M H"]
    pair: Int[np.ndarray, " M"]
    digest: str


def paired(num_models: int, num_examples: int, *, seed: int) -> Design:
    """Complementary halves, pair by pair: every example in exactly M/2 models.

    Where n is odd, one half of every pair, in turn, has an example more. The first M
    models of a larger design of the same seed are those of a smaller one.

    Args:
      num_models: M, even.
      num_examples: n >= 2.
      seed: of the permutations.

    Raises:
      ValueError: for a number out of its bounds.
    """
    models, examples = _sizes(num_models, num_examples)
    if models % 2:
        cure = f"take {models + 1}, whose halves are complements pair by pair"
        _validate.fail("num_models", models, "must be even", cure)
    member = np.zeros((models, examples), bool)
    for number in range(models // 2):
        order = _random(seed, number).permutation(examples)
        half = (examples + number % 2) // 2
        member[2 * number, order[:half]] = True
        member[2 * number + 1, order[half:]] = True
    return of_members(member, np.arange(models) ^ 1, name="paired")


def independent(num_models: int, num_examples: int, *, seed: int) -> Design:
    """A fair coin for every model and example; training sets differ in size.

    Args:
      num_models: M >= 1.
      num_examples: n >= 2.
      seed: of the coins.

    Raises:
      ValueError: for a number out of its bounds.
    """
    models, examples = _sizes(num_models, num_examples)
    coins = [_random(seed, m).integers(0, 2, examples) for m in range(models)]
    return of_members(np.array(coins, bool), name="independent")


def canary(
    num_models: int, num_examples: int, *, canaries: npt.ArrayLike, seed: int
) -> Design:
    """All examples that are no canaries, and a fair coin for every canary.

    Args:
      num_models: M >= 1.
      num_examples: n, canaries among them.
      canaries: int[N], their indices.
      seed: of the coins.

    Raises:
      ValueError: for a number out of its bounds, or a canary that is named twice.
    """
    models, examples = _sizes(num_models, num_examples)
    chosen = np.asarray(canaries)
    if chosen.ndim != 1 or not chosen.size or chosen.dtype.kind not in "iu":
        bound = f"has shape {chosen.shape} and type {chosen.dtype}"
        _validate.fail("canaries", "array", bound, "give int[N], N >= 1")
    wrong = chosen[(chosen < 0) | (chosen >= examples)]
    if wrong.size:
        bound = f"is outside [0, {examples})"
        _validate.fail("canaries", int(wrong[0]), bound, "number them among examples")
    if np.unique(chosen).size < chosen.size:
        bound = "names an example twice, which has one coin"
        _validate.fail("canaries", chosen.tolist(), bound, "name each once")
    member = np.ones((models, examples), bool)
    for m in range(models):
        member[m, chosen] = _random(seed, m).integers(0, 2, chosen.size).astype(bool)
    return of_members(member, name="canary")


def of_members(
    member: Bool[np.ndarray, "M n"],
    pair: npt.ArrayLike | None = None,
    *,
    name: str = "given",
) -> Design:
    """A design of your own.

    Args:
      member: bool[M, n]; no row without a member.
      pair: int[M], the model with the other examples, its own inverse; -1 or None
        where there is none.
      name: of the design.

    Raises:
      ValueError: if a model has no example, or two that are called a pair share one.
    """
    models = np.arange(len(member))
    pairs = np.full(len(member), -1) if pair is None else np.asarray(pair)
    empty = np.flatnonzero(~member.any(axis=1))
    if empty.size:
        bound = "has no example to train on"
        _validate.fail("model", int(empty[0]), bound, "give every model a member")
    if pairs.shape != models.shape or pairs.min() < -1 or pairs.max() >= len(models):
        bound = f"must hold one model in [-1, {len(models)}) for each"
        _validate.fail("pair", pairs.tolist(), bound, "-1 stands for none")
    has = pairs >= 0
    bad = has & ((pairs[pairs] != models) | (member & member[pairs]).any(axis=1))
    if bad.any():
        m = int(np.flatnonzero(bad)[0])
        bound = f"is no complement of model {m}"
        _validate.fail(f"pair[{m}]", int(pairs[m]), bound, "-1 stands for none")
    counts = member.sum(axis=1)
    index = np.full((len(member), counts.max()), -1, np.int32)
    for m, row in enumerate(member):
        index[m, : counts[m]] = np.flatnonzero(row)
    pairs = pairs.astype(np.int32)
    found = hashlib.blake2b(f"{member.shape}".encode(), digest_size=16)
    found.update(np.packbits(member).tobytes() + pairs.astype("<i4").tobytes())
    return Design(name, member, index, pairs, found.hexdigest())


def _sizes(num_models: int, num_examples: int) -> tuple[int, int]:
    models = _validate.integer_at_least("num_models", num_models, 1)
    cure = "an attack needs members and non-members"
    return models, _validate.integer_at_least("num_examples", num_examples, 2, cure)


def _random(seed: int, number: int) -> np.random.Generator:
    """The numbers of one pair or model, whatever the number of models."""
    seed = _validate.integer_at_least("seed", seed, 0)
    return np.random.default_rng([seed, number])
