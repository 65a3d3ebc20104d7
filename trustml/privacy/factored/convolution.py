"""The gradient of a convolution kernel, one matrix product for each kernel position.

    out[ci, co, q] = sum over n, p of  x[ci, n, q * stride + p * dilation] g[co, n, p]

Each position q of the kernel sees one strided slice of the padded input, so the kernel
gradient is a stack of products of matrices, and its squared norm is the sum over
positions of products of Gram matrices:

    sum_q |x_q g^T|^2 = sum_st (sum_q x_q x_q^T)_st (g g^T)_st

Example::

    offsets = convolution.Offsets.of(conv)      # None where there is no such form
    kernel = offsets.instantiate(conv.x, conv.g)
"""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from trustml.privacy.factored import terms as terms_lib
from trustml.privacy.factored.terms import Conv

MAX_OFFSETS = 64  # kernel positions that are unrolled


@dataclasses.dataclass(frozen=True)
class Offsets:
    """The sizes of a kernel gradient, and its products; see the module docstring.

    With groups (a depthwise convolution) ci and co are both split into groups, and each
    co meets the ci of its own group.

    Attributes:
      params: of the `conv_general_dilated` that makes the kernel gradient.
      kernel: spatial extent of the kernel.
      window: spatial extent of g.
      t: T, contracted positions.
      i: I, rows of the kernel as a matrix.
      o: O, columns.
    """

    params: Any
    kernel: tuple[int, ...]
    window: tuple[int, ...]
    t: int
    i: int
    o: int

    @classmethod
    def of(cls, conv: Conv) -> "Offsets | None":
        """The offsets of one term, or None where its form or size has none."""
        params = dict(conv.params)
        numbers = params["dimension_numbers"]
        if any(d != 1 for d in params["lhs_dilation"]):
            return None
        k = conv.kept
        x, g, out = conv.x.shape[k:], conv.g.shape[k:], conv.shape[k:]
        kernel = tuple(out[d] for d in numbers.out_spec[2:])
        window = tuple(g[d] for d in numbers.rhs_spec[2:])
        if math.prod(kernel) > MAX_OFFSETS:
            return None
        t = math.prod(window) * x[numbers.lhs_spec[1]]
        i = math.prod(kernel) * x[numbers.lhs_spec[0]]
        return cls(params, kernel, window, t, i, g[numbers.rhs_spec[0]])

    def slices(self, x):
        """The part of x under each position of the kernel, in x's own layout."""
        spec = self.params["dimension_numbers"].lhs_spec
        config = [(0, 0, 0)] * x.ndim
        for axis, (lo, hi) in zip(spec[2:], self.params["padding"], strict=True):
            config[axis] = (lo, hi, 0)
        x = lax.pad(x, jnp.zeros((), x.dtype), config)
        for flat in range(math.prod(self.kernel)):
            position = np.unravel_index(flat, self.kernel)
            start, limit, step = [0] * x.ndim, list(x.shape), [1] * x.ndim
            for d, axis in enumerate(spec[2:]):
                dilation = self.params["rhs_dilation"][d]
                start[axis] = int(position[d]) * self.params["window_strides"][d]
                limit[axis] = start[axis] + (self.window[d] - 1) * dilation + 1
                step[axis] = dilation
            yield lax.slice(x, start, limit, step)

    def gram(self, x, g):
        """(sum over the kernel of x_q x_q^T) * (g g^T), [T, T]."""
        numbers = self.params["dimension_numbers"]
        aa = None
        for part in self.slices(x):
            one = terms_lib.contract(part, part, ((numbers.lhs_spec[0],),) * 2)
            aa = one if aa is None else aa + one
        gg = terms_lib.contract(g, g, ((numbers.rhs_spec[0],),) * 2)
        aa = _positions_in_order(aa, numbers.lhs_spec)
        gg = _positions_in_order(gg, numbers.rhs_spec)
        return aa * gg

    def instantiate(self, x, g):
        """The kernel gradient, in the layout of the parameter."""
        numbers = self.params["dimension_numbers"]
        parts = [self._product(part, g) for part in self.slices(x)]
        whole = jnp.stack(parts).reshape(*self.kernel, *parts[0].shape)
        # axes now: kernel..., batch of x, out-feature of g
        n = len(self.kernel)
        order = [0] * (n + 2)
        order[numbers.out_spec[0]] = n
        order[numbers.out_spec[1]] = n + 1
        for d, axis in enumerate(numbers.out_spec[2:]):
            order[axis] = d
        return jnp.transpose(whole, order)

    def _product(self, x, g):
        """One position of the kernel: [ci, co], group by group."""
        numbers, groups = (
            self.params["dimension_numbers"],
            self.params["batch_group_count"],
        )
        if groups == 1:
            return terms_lib.contract(
                x, g, (numbers.lhs_spec[1:], numbers.rhs_spec[1:])
            )
        x = _split_axis(x, numbers.lhs_spec[0], groups)  # [groups, ...]
        g = _split_axis(g, numbers.rhs_spec[0], groups)
        contracting = [[d + 1 for d in spec[1:]] for spec in numbers[:2]]
        out = terms_lib.contract(x, g, contracting, ((0,), (0,)))  # [groups, ci, co]
        return jnp.moveaxis(out, 0, 1).reshape(out.shape[1], -1)


def _split_axis(x, axis, groups):
    """Splits an axis into groups, which become the leading axis."""
    shape = (*x.shape[:axis], groups, x.shape[axis] // groups, *x.shape[axis + 1 :])
    return jnp.moveaxis(x.reshape(shape), axis, 0)


def _positions_in_order(gram, spec):
    """[positions of one operand, positions again], axes ordered (feature, spatial)."""
    free = sorted(spec[1:])
    order = [free.index(axis) for axis in spec[1:]]
    half = len(free)
    return jnp.transpose(gram, (*order, *(half + d for d in order)))
