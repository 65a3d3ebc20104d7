"""Clipping rules: from the norm of a gradient to the factor that scales it.

A rule guarantees c(n) n <= C for every norm n, so one example moves the sum by at most
C. Each example's gradient is cut into groups of leaves (one group for all but
`per_layer`), and group l has a share of C:

    c_il = w(||g_il||, C_l),   C_l = s_l C,   sum_l s_l^2 = 1

so the sensitivity of the whole sum is sqrt(sum_l C_l^2) = C whatever the groups are.

| rule | factor w(n, C) | source |
| --- | --- | --- |
| `flat` | min(1, C/n) | Abadi et al. 2016 |
| `per_layer` | min(1, C_l/n_l) in each group | McMahan et al. 2018 |
| `automatic` | C/(n + gamma) | Bu et al. 2022 (AUTO-S) |
| `psac` | C/(n + r/(n + r)) | Xia et al. 2022 |
| `quantile` | min(1, C_t/n), C_t a private quantile | Andrew et al. 2019 |
| `custom` | yours; w(n, C) n <= C is tried on a grid | |

`quantile` names how C_t moves; `trustml.privacy.quantile` moves it, at the plan's
price.

Example::

    clipping.clipped_grad(loss, l2_clip_norm=1.0, rule='automatic')
    clipping.clipped_grad(loss, l2_clip_norm=1.0,
                          rule=rules.per_layer({'encoder/*': 2.0, '*': 1.0}))

References: https://arxiv.org/abs/1607.00133, https://arxiv.org/abs/1710.06963,
https://arxiv.org/abs/2206.07136, https://arxiv.org/abs/2212.00328,
https://arxiv.org/abs/1905.03871
"""

import fnmatch
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trustml import _validate

NAMES = ("flat", "per_layer", "automatic", "psac", "quantile")

Weight = Callable[[jax.Array, jax.Array], jax.Array]


class Groups(NamedTuple):
    """Which leaves are clipped together.

    Attributes:
      names: of the groups, G of them.
      index: group of every trainable leaf, in the order of the leaves.
      shares: s_l of every group; their squares sum to 1.
    """

    names: tuple[str, ...]
    index: tuple[int, ...]
    shares: tuple[float, ...]


class Adapt(NamedTuple):
    """How a tracked clip norm moves; see `trustml.privacy.quantile`.

    Attributes:
      target: the quantile of the norms to track, in (0, 1).
      learning_rate: of log C.
      bit_stddev: of the noise on the sum of bits, as a share of the expected batch.
    """

    target: float
    learning_rate: float
    bit_stddev: float


class Rule(NamedTuple):
    """A clipping rule; made by the functions of this module.

    Attributes:
      name: unique to what it does; part of the plan's digest.
      weight: (norms float32[B], clip norm float32[]) -> factors float32[B].
      groups: leaf paths -> `Groups`; None: all leaves are one group.
      adapt: how the clip norm moves; None where it stays.
    """

    name: str
    weight: Weight
    groups: Callable[[Sequence[str]], Groups] | None = None
    adapt: Adapt | None = None

    def groups_of(self, paths: Sequence[str]) -> Groups:
        """The groups of leaves with these paths."""
        if self.groups is None:
            return Groups(("all",), (0,) * len(paths), (1.0,))
        return self.groups(paths)


def flat() -> Rule:
    """Factor min(1, C / n): gradients longer than C are cut to C."""
    return Rule("flat", _cut)


def automatic(gamma: float = 0.01) -> Rule:
    """Factor C / (n + gamma): every gradient is brought to nearly C.

    With C = 1 the learning rate alone carries the scale.

    Args:
      gamma: > 0; keeps small gradients small.
    """
    gamma = _validate.positive("gamma", gamma, "0.01 is usual")
    return Rule(f"automatic({gamma:g})", lambda n, c: c / (n + gamma))


def psac(r: float = 0.1) -> Rule:
    """Factor C / (n + r / (n + r)): as `automatic`, but small gradients weigh less.

    Args:
      r: > 0.
    """
    r = _validate.positive("r", r, "0.1 is usual")
    return Rule(f"psac({r:g})", lambda n, c: c / (n + r / (n + r)))


def per_layer(
    thresholds: Mapping[str, float] | None = None, rule: Rule | None = None
) -> Rule:
    """Each group of leaves is clipped on its own, to a share of C.

    Args:
      thresholds: glob of leaf paths -> relative threshold > 0; a leaf belongs to the
        first glob that matches. They are scaled so that sqrt(sum C_l^2) = C. None: one
        group for each module (leaves of one parent), all equal.
      rule: what each group is clipped by; `flat` where None.

    Raises:
      ValueError: when built, if a threshold is not finite and above 0 or there is none;
        when traced, if a trainable leaf matches no glob.
    """
    base = flat() if rule is None else rule
    if base.adapt is not None:
        _validate.fail(
            "rule",
            base.name,
            "has groups of its own",
            "give quantile(groups=...) instead",
        )
    if thresholds is None:
        return Rule(f"per_layer({base.name})", base.weight, _by_module)
    if not thresholds:
        _validate.fail("thresholds", thresholds, "is empty", "give {'*': 1.0}")
    given = {
        str(glob): _validate.positive(f"thresholds[{glob!r}]", value, "1.0 is usual")
        for glob, value in thresholds.items()
    }

    def groups(paths: Sequence[str]) -> Groups:
        return _by_globs(paths, given)

    return Rule(f"per_layer({base.name}, {given})", base.weight, groups)


def quantile(
    target: float = 0.5,
    *,
    learning_rate: float = 0.2,
    bit_stddev: float = 0.05,
    groups: Rule | None = None,
) -> Rule:
    """Flat clipping to a norm C_t that follows a quantile of the norms, privately.

    Args:
      target: quantile in (0, 1); 0.5 is the median.
      learning_rate: eta of C <- C exp(-eta (share below C - target)).
      bit_stddev: stddev of the noise on the sum of bits, in expected batch sizes.
      groups: a `per_layer` rule whose groups each get a norm of their own.

    Raises:
      ValueError: for a number out of its bounds.
    """
    target = _validate.in_open_interval("target", target, 0, 1, "0.5 is the median")
    eta = _validate.positive("learning_rate", learning_rate, "0.2 is usual")
    share = _validate.positive("bit_stddev", bit_stddev, "0.05 is usual")
    of = None if groups is None else groups.groups
    name = f"quantile({target:g}, {eta:g}, {share:g}"
    name += ")" if groups is None else f", {groups.name})"
    return Rule(name, _cut, of, Adapt(target, eta, share))


def custom(weight: Weight, name: str) -> Rule:
    """A rule of your own.

    Args:
      weight: (norms float32[B], C) -> factors float32[B], not negative, with
        factor * norm <= C; tried for norms from 0 to 1e12 and for several C.
      name: tells this rule from others; part of the plan's digest.

    Raises:
      ValueError: if the bound fails somewhere on the grid, with the place.
    """
    norms = np.concatenate([[0.0], np.logspace(-12, 12, 241)]).astype(np.float32)
    for clip_norm in (1e-3, 1.0, 1e3):
        factors = np.asarray(weight(jnp.asarray(norms), jnp.float32(clip_norm)))
        if factors.shape != norms.shape or not np.all(factors >= 0):
            _validate.fail(
                "weight",
                name,
                "must give one factor >= 0 for each norm",
                "return float32[B]",
            )
        over = factors.astype(np.float64) * norms > clip_norm * (1 + 1e-5)
        if np.any(over):
            at = norms[np.argmax(over)]
            _validate.fail(
                "weight",
                name,
                f"breaks factor * norm <= C at norm={at:g}, C={clip_norm:g}",
                "multiply it by min(1, C / norm)",
            )
    return Rule(f"custom({name})", weight)


def rule(value: Any) -> Rule:
    """The rule called `value` with its usual numbers, or the `Rule` itself.

    Raises:
      ValueError: if there is no such rule; the nearest name is offered.
    """
    if isinstance(value, Rule):
        return value
    known = {
        "flat": flat,
        "per_layer": per_layer,
        "automatic": automatic,
        "psac": psac,
        "quantile": quantile,
    }
    return known[_validate.one_of("rule", value, NAMES)]()


def _cut(norms: jax.Array, clip_norm: jax.Array) -> jax.Array:
    return clip_norm / jnp.maximum(norms, clip_norm)


def _by_module(paths: Sequence[str]) -> Groups:
    owners = [path.rpartition("/")[0] or path for path in paths]
    names = tuple(dict.fromkeys(owners))
    share = 1 / math.sqrt(len(names))
    index = tuple(names.index(owner) for owner in owners)
    return Groups(names, index, (share,) * len(names))


def _by_globs(paths: Sequence[str], thresholds: Mapping[str, float]) -> Groups:
    matched = []
    for path in paths:
        globs = (glob for glob in thresholds if fnmatch.fnmatchcase(path, glob))
        found = next(globs, None)
        if found is None:
            _validate.fail(
                "thresholds",
                list(thresholds),
                f"match no glob to the parameter '{path}'",
                "add '*' at the end",
            )
        matched.append(found)
    names = tuple(glob for glob in thresholds if glob in matched)
    whole = math.sqrt(sum(thresholds[name] ** 2 for name in names))
    shares = tuple(thresholds[name] / whole for name in names)
    return Groups(names, tuple(names.index(glob) for glob in matched), shares)
