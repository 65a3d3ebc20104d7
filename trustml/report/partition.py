"""A figure of who holds which labels: clients from left to right, labels upwards.

Example::

    from trustml.report import partition

    svg = partition.clients(counts, ['cat', 'dog'])     # counts: int[clients, labels]
"""

from collections.abc import Sequence

import numpy as np
from matplotlib import ticker

from trustml.report import drawing

_MOST_LABELS = 25
_STEPS = 12  # of bubbles


def clients(
    counts: np.ndarray,
    label_names: Sequence[str] = (),
    *,
    most: int = 50,
    name: str = "partition",
) -> str:
    """Each client's mix of labels as bubbles, its size above; '' without examples.

    Clients stand in order of their size. Where there are more than `most`, those shown
    are spread evenly over that order, so that largest and smallest are among them. Of
    more than 25 labels the rarest are drawn as one.

    Args:
      counts: how many examples of each label a client holds, int[C, L].
      label_names: of the L labels; their numbers where empty.
      most: clients drawn.
      name: of the figure, unique on its page.
    """
    table = np.asarray(counts)
    if table.ndim != 2 or not table.size or not table.sum():
        return ""
    total, names = len(table), list(label_names or map(str, range(table.shape[1])))
    table, names = _join_rare(table, names)
    order = np.argsort(-table.sum(axis=1), kind="stable")
    shown = np.unique(np.linspace(0, total - 1, min(most, total)).round().astype(int))
    table = table[order[shown]]
    sizes = table.sum(axis=1)
    xs, ys = np.nonzero(table)

    def draw(fig):
        top, ax = fig.subplots(2, sharex=True, height_ratios=(1, 0.3 * len(names) + 1))
        top.bar(np.arange(len(table)), sizes, width=0.8, color=drawing.SERIES[0])
        top.set_ylabel("examples")
        top.grid(False, axis="x")
        if sizes.min() > 0 and sizes.max() > 30 * sizes.min():
            top.set_yscale("log")
            top.yaxis.set_minor_formatter(ticker.NullFormatter())
        widest = min(1.6 * 270 / len(table), 0.24 * 72)
        # Area, not diameter, goes with the share; bubbles of one step
        # share one outline, or the figure would be ten times as long.
        step = np.ceil(_STEPS * np.sqrt(table[xs, ys] / sizes[xs]))
        for size in np.unique(step):
            here = step == size
            area = (widest * size / _STEPS) ** 2
            ax.scatter(xs[here], ys[here], area, color=drawing.SERIES[0], linewidth=0)
        ax.set_yticks(range(len(names)), [_short(label) for label in names])
        ax.set_ylim(-0.7, len(names) - 0.3)
        ax.set_xlim(-0.8, len(table) - 0.2)
        ax.set_xticks([])
        ax.tick_params(axis="y", length=0)
        some = f"{len(table)} of {total:,} clients" if total > len(table) else "clients"
        ax.set_xlabel(f"{some}, largest first; a bubble is a share of one")

    kinds = (table > 0).sum(axis=1)
    alt = (
        f"Examples of {len(names)} labels at {len(table)} of {total} clients: between "
        f"{int(sizes.min())} and {int(sizes.max())} examples, and between "
        f"{int(kinds.min())} and {int(kinds.max())} labels each."
    )
    return drawing.svg(name, alt, draw, 1.5 + 0.24 * len(names))


def _join_rare(table: np.ndarray, names: list[str]) -> tuple[np.ndarray, list[str]]:
    """The rarest labels as one, where there are too many to draw."""
    if len(names) <= _MOST_LABELS:
        return table, names
    order = np.argsort(-table.sum(axis=0), kind="stable")
    kept, rest = np.sort(order[: _MOST_LABELS - 1]), order[_MOST_LABELS - 1 :]
    joined = np.column_stack([table[:, rest].sum(axis=1), table[:, kept]])
    return joined, [f"{len(rest)} others", *(names[label] for label in kept)]


def _short(text: str) -> str:
    return text if len(text) <= 18 else text[:17] + "…"
