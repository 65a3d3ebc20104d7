"""What book-keeping found in a loss, leaf by leaf, as a table.

Example::

    print(clipping.clipped_grad(loss, l2_clip_norm=1.0).explain(params, example))
"""

from typing import NamedTuple

import jax

from trustml.privacy import trainable as trainable_lib


class Row(NamedTuple):
    """How the gradient of one leaf is handled; a row of `Explanation`."""

    leaf: str
    shape: tuple[int, ...]
    rule: str
    norm: str
    dims: str
    flops_per_example: int
    bytes_per_example: int
    reason: str


class Explanation(NamedTuple):
    """What book-keeping found in a loss; `str` of it is a table."""

    rows: tuple[Row, ...]

    @property
    def materialized(self) -> int:
        """Number of leaves that keep a gradient per example for lack of a rule."""
        return len({row.leaf for row in self.rows if row.rule == "materialized"})

    def __str__(self) -> str:
        """A table with one line per leaf and form."""
        head = Row._fields
        cells = [head, *([str(x) for x in row] for row in self.rows)]
        width = [max(len(line[i]) for line in cells) for i in range(len(head))]
        lines = [
            "  ".join(x.ljust(w) for x, w in zip(line, width, strict=True)).rstrip()
            for line in cells
        ]
        count = self.materialized
        tail = f"{count} of {len({r.leaf for r in self.rows})} leaves are materialized."
        return "\n".join([*lines, tail])


def of(train, leaves) -> Explanation:
    """The table for trainable leaves and their `factored.norms.Leaf`s."""
    rows = []
    named = jax.tree_util.tree_leaves_with_path(train)
    for (path, x), leaf in zip(named, leaves, strict=True):
        for note in leaf.notes:
            dims = " ".join(f"{k}={v}" for k, v in note.dims)
            name, shape = trainable_lib.path_of(path), tuple(x.shape)
            cost = (note.flops, note.bytes, note.reason)
            rows.append(Row(name, shape, note.kind, note.norm, dims, *cost))
    return Explanation(tuple(rows))
