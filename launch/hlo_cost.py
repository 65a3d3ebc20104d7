"""What the compiler says a compiled step costs.

XLA's own figures, free of the noise of a clock: FLOPs, bytes accessed and the peak of
temporary memory. XLA counts the body of a loop once, however often it runs, so products
(`dot`, `convolution`) are counted here a second time from the optimized program, each
weighted by the trip counts of the loops around it: `product_flops`. A loop whose count
the compiler does not know (jax-privacy's over microbatches) still counts once.

Example::

    compiled = jax.jit(step).lower(params, batch).compile()
    cost = hlo_cost.of(compiled)
    cost["flops"], cost["bytes"], cost["temp_bytes"], cost["product_flops"]
"""

import math
import re
from typing import Any

import jax

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_RESULT = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\S+) ")
_SHAPE = re.compile(r"[a-z]+[0-9a-z]*\[([0-9,]*)\]")
_PRODUCT = re.compile(r" (dot|convolution)\(([^)]*)\)(.*)")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_KERNEL = re.compile(r"dim_labels=[^_]*_([0-9a-z]+)->")
_CONTRACTED = re.compile(r"lhs_contracting_dims=\{([0-9,]*)\}")


def of(compiled: jax.stages.Compiled) -> dict[str, float]:
    """Costs of a compiled function, per call and device.

    Returns:
      `flops` and `bytes` (loop bodies counted once), `temp_bytes` (peak temporary
      memory, arguments and results excluded), `product_flops` (matrix products and
      convolutions, loops counted in full; conditional branches counted all).
    """
    # None from a backend that reports nothing, which fails below.
    analysis: Any = compiled.cost_analysis()
    memory: Any = compiled.memory_analysis()
    return {
        "flops": float(analysis["flops"]),
        "bytes": float(analysis["bytes accessed"]),
        "temp_bytes": float(memory.temp_size_in_bytes),
        "product_flops": float(product_flops(compiled.as_text() or "")),
    }


def product_flops(hlo: str) -> int:
    """FLOPs of all `dot` and `convolution` of an optimized HLO program, with loops."""
    own: dict[str, int] = {}
    calls: dict[str, list[tuple[int, str]]] = {}
    entry = name = ""
    shapes: dict[str, tuple[int, ...]] = {}
    for line in hlo.splitlines():
        if head := _COMPUTATION.match(line):
            name, shapes = head[2], {}
            own[name], calls[name] = 0, []
            entry = name if head[1] else entry
        elif name and (result := _RESULT.match(line)):
            shapes[result[1]] = _dims(result[2])
            own[name] += _product(line, shapes, result[1])
            trips = _TRIPS.search(line)
            times = int(trips[1]) if trips else 1
            called = _CALLED.findall(line)
            for group in _BRANCHES.findall(line):
                called += [one.strip().lstrip("%") for one in group.split(",")]
            calls[name] += [(times, one) for one in called]

    totals: dict[str, int] = {}

    def total(name: str) -> int:
        if name not in totals:
            inner = sum(n * total(one) for n, one in calls.get(name, ()))
            totals[name] = own.get(name, 0) + inner
        return totals[name]

    return total(entry)


def _dims(text: str) -> tuple[int, ...]:
    found = _SHAPE.search(text)
    return tuple(int(n) for n in found[1].split(",") if n) if found else ()


def _product(line: str, shapes: dict[str, tuple[int, ...]], name: str) -> int:
    found = _PRODUCT.search(line)
    if not found:
        return 0
    operands = [part.split()[-1].lstrip("%") for part in found[2].split(", ")]
    if found[1] == "dot":
        contracted = _CONTRACTED.search(found[3])
        axes = [int(a) for a in contracted[1].split(",") if a] if contracted else []
        depth = math.prod(shapes[operands[0]][a] for a in axes)
    else:
        kernel, labels = shapes[operands[1]], _KERNEL.search(found[3])
        depth = math.prod(
            n
            for n, label in zip(kernel, labels[1] if labels else "", strict=True)
            if label != "o"
        )
    return 2 * math.prod(shapes[name]) * depth
