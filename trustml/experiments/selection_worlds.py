"""The clients of the selection study: who holds what, when, and what they meet.

A world is all that a seed decides before selection: the partition, the order in which
examples arrive, and the timelines of the settings. `meets` says what error a tenth of
the clients, by activity, meets from errors on the test split:

    e_d = mean over clients k of tenth d of  sum over labels l of  pi_kl e_l

with pi_k the labels that client k holds and e_l the error on test examples of label l.
It is what fresh examples of the clients' labels would show; labels of which the test
split has none are left out.

Dimension key: K clients, N examples, n of the test split, T periods.

Example::

    world = selection_worlds.make(config, data, seed=0, name='given')
    world.meets @ (1.0 - correct)
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from trustml import specs
from trustml.data import datasets
from trustml.experiments import federation
from trustml.federated import continual, timeline
from trustml.federated.partitions import base

TENTHS = 10


class World(NamedTuple):
    """See the module docstring.

    Attributes:
      offsets: int64[K+1], where the examples of each client begin.
      rows: int64[N], which row of the data each of them is, in the order of arrival.
      calendars: setting -> who holds what in which period.
      tenth: int64[K], by how many examples a client has in all, 0 the lightest.
      meets: float64[10, n]; rows sum to 1, NaN where a tenth holds no such label.
    """

    offsets: np.ndarray
    rows: np.ndarray
    calendars: dict[str, timeline.Timeline]
    tenth: np.ndarray
    meets: np.ndarray


def make(
    config: specs.RunConfig, data: datasets.Dataset, seed: int, name: str
) -> World:
    """The world of a seed.

    Args:
      config: of the study.
      data: its data.
      seed: of the partition and of the arrivals.
      name: 'given' for the config's partition, 'correlated' for that in which labels go
        with activity.

    Raises:
      ValueError: for a partition that cannot be.
    """
    spec = config.federated
    if name == "correlated":
        spec = dataclasses.replace(spec, partition="label_activity")
    config = dataclasses.replace(config, federated=spec, seed=seed)
    # Only labels and row numbers are dealt; the data stay where they are.
    count = len(data.train["label"])
    thin = {"label": data.train["label"], "row": np.arange(count)}
    held, _ = federation.store(config, data._replace(train=thin), shuffled=False)
    offsets, rows = np.asarray(held.offsets), np.asarray(held.columns["row"], np.int64)
    sizes = np.diff(offsets)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    raw = base.random("arrivals", seed).bits.random_raw(count)
    if config.selection.arrival != "ordered":
        rows = rows[np.lexsort((raw, owner))]
    tenth = continual.deciles(sizes, TENTHS)
    label = np.asarray(data.train["label"])[rows]
    return World(
        offsets=offsets,
        rows=rows,
        calendars=calendars(config, held._replace(columns={"label": label}), raw),
        tenth=tenth,
        meets=_meets(label, owner, tenth, np.asarray(data.test["label"])),
    )


def calendars(config: specs.RunConfig, held, raw) -> dict[str, timeline.Timeline]:
    """Setting -> who holds what in which period."""
    spec, sizes = config.federated, np.diff(held.offsets)
    if config.selection.arrival == "scattered":
        # A number of the generator is a time; sorted within each client.
        owner = np.repeat(np.arange(len(sizes)), sizes)
        times = np.sort(raw.astype(np.float64) * 2.0**-64 + owner) - owner
        edges = np.arange(1, spec.periods + 1) / spec.periods
        edges[-1] = np.inf
        arrived = timeline.by_time(times, held.offsets, edges)
        stored = federation.kept(config, held, arrived)
    else:
        stored = federation.periods(config, held)
    found = {
        "static_all": timeline.static(sizes, 1),
        "static_capped": timeline.at_the_end(stored),
        "continual": stored,
    }
    return {name: found[name] for name in config.selection.settings}


def by_tenth(
    world: World, values: np.ndarray, how: Callable[[np.ndarray], float]
) -> list[float]:
    """A figure of clients, by tenths of their activity."""
    return [float(how(values[world.tenth == part])) for part in range(TENTHS)]


def _meets(label, owner, tenth, of_test) -> np.ndarray:
    labels = 1 + max(int(label.max()), int(of_test.max()))
    clients = len(tenth)
    flat = np.bincount(owner * labels + label, minlength=clients * labels)
    held = flat.reshape(clients, labels).astype(np.float64)
    tested = np.bincount(of_test, minlength=labels)
    held[:, tested == 0] = 0.0
    sums = held.sum(axis=1, keepdims=True)
    mixes = np.divide(held, sums, out=np.zeros_like(held), where=sums > 0)
    out = np.full((TENTHS, len(of_test)), np.nan)
    for part in range(TENTHS):
        mix = mixes[tenth == part].sum(axis=0)
        if mix.sum() > 0:
            out[part] = (mix / mix.sum() / np.maximum(tested, 1))[of_test]
    return out
