"""The values that flow through the interpreter: arrays, and sums not yet computed.

A `Value` is an array, or a *lazy* value: a sum of `Term`s together with a way to
compute it after all. Whoever needs the array calls `Value.array`, and only then does
the product exist; whoever can push a linear operation into the factors never asks.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from trustml.privacy.factored import terms as terms_lib

Terms = tuple[terms_lib.Term, ...]


class Value:
    """One value of the interpreted program.

    Attributes:
      tainted: whether it depends on the example or on its key.
      zero: whether it is known to be all zeros.
      scalar: where it is a broadcast scalar, that scalar's `Value`.
      reason: for a computed array, why it would have to be materialised as a gradient;
        '' where it is no larger than what it was computed from.
    """

    __slots__ = ("_array", "_force", "_terms", "reason", "scalar", "tainted", "zero")

    def __init__(
        self,
        array: Any = None,
        *,
        tainted: bool,
        force: Callable[[], Any] | None = None,
        terms: Callable[[], Terms] | None = None,
        zero: bool = False,
        scalar: "Value | None" = None,
        reason: str = "",
    ):
        """Give `array`, or `terms`, or both ways to get at them: `force`, `terms`."""
        self._array = array
        self._force = force
        self._terms = terms
        self.tainted = tainted
        self.zero = zero
        self.scalar = scalar
        self.reason = reason

    @property
    def lazy(self) -> bool:
        """Whether the value is known as a sum of products."""
        return self._terms is not None

    @property
    def array(self) -> jax.Array:
        """The value as an array; computes it on first use."""
        if self._array is None:
            self._array = self._force() if self._force else self.instantiated()
        return self._array

    def instantiated(self) -> jax.Array:
        """The sum of the instantiated terms; float32."""
        first, *rest = [terms_lib.instantiate(term) for term in self.terms()]
        for x in rest:
            first = first + x
        return first

    def terms(self) -> Terms:
        """The terms whose sum this is; an array is one `Dense` term."""
        if self._terms is None:
            if self.zero:
                return ()
            return (terms_lib.Term(terms_lib.Dense(self.array, self.reason)),)
        found = self._terms()
        self._terms = lambda: found
        return found


def known(array, *, tainted: bool = False, **notes) -> Value:
    """A computed array."""
    return Value(array, tainted=tainted, **notes)


def lazy(terms: Callable[[], Terms], force: Callable[[], Any] | None = None) -> Value:
    """A sum of products; always depends on the example."""
    return Value(tainted=True, terms=terms, force=force)


def is_zero_literal(x) -> bool:
    """Whether a literal of a jaxpr is zero."""
    try:
        return jnp.ndim(x) == 0 and bool(x == 0)
    except jax.errors.ConcretizationTypeError:
        return False
