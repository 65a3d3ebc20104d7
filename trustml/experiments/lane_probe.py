"""How many clients to train at once, and by which form of convolution: a timed probe.

    best of (kernel, L) by client-steps per second, among those with
    L (2 |params| + |optimizer|)  within the memory

More lanes share the cost of a step among more clients; too many, and their weights no
longer fit a cache (an MLP 784-200-10 on a CPU is fastest in one lane, one of 64-32-10
in sixteen), so this is measured, not computed. `kernel` is 'im2col' where convolutions
are rewritten as products (`federated.im2col`), 'vmap' where the loss is as written; the
two are compared where there is a convolution. For each kernel L goes up until it no
longer pays.

What is timed are full lanes: clients of one size, arbitrary rows, a model that is
thrown away, one program for each candidate. What the ladder leaves idle at the end of a
round is computed, from sizes as they are. What was chosen changes the bits of a run,
hence it is written to `lanes.json` in the run directory, and read from there when the
run goes on.

Example::

    chosen = lane_probe.settle(workdir, lambda: lane_probe.find(
        offered, build, params, steps, size, place))
    made = build(chosen, clients)
"""

import json
import math
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from trustml import parallel, report, rng, specs
from trustml.experiments import federation
from trustml.federated import feed, im2col, rounds, schedule
from trustml.federated.algorithms import base

FILE = "lanes.json"
LADDER = (1, 4, 8, 16, 32)
KERNELS = ("im2col", "vmap")
SECONDS = 0.3  # of measuring, for each candidate
SAMPLE = 64  # clients of a timed round at most, or as many as there are lanes
_PARTS = 3  # of a timing, the fastest of which counts
_WORTH = 0.8  # of the kernel's best so far; below it, no more lanes are tried
_HOPELESS = 0.25  # of the other kernel with as many lanes; below it, it is given up


class Candidate(NamedTuple):
    """A way to run a cohort.

    Attributes:
      kernel: of `KERNELS`.
      lanes: L.
      group: g; 0 = all lanes together.
    """

    kernel: str
    lanes: int
    group: int = 0


class Timing(NamedTuple):
    """A candidate and its client-steps per second."""

    candidate: Candidate
    steps_per_second: float


Build = Callable[..., rounds.Rounds]  # (candidate, population, narrowing=True)


def candidates(
    *,
    kernels: Sequence[str],
    lanes: int,
    group: int,
    cohort: int,
    lane_bytes: int,
    free_bytes: int,
) -> list[Candidate]:
    """What is worth timing, for each kernel with L ascending.

    Args:
      kernels: those that make a difference.
      lanes: L where it is given; 0: to be found, in `LADDER`.
      group: g; where positive every L holds whole groups.
      cohort: clients of a round; no L exceeds what they fill.
      lane_bytes: a lane's parameters, gradient and optimizer.
      free_bytes: that the lanes may take; one lane is always tried.
    """
    if lanes:
        return [Candidate(kernel, lanes, group) for kernel in kernels]
    whole = max(group, 1)
    found = [whole * math.ceil(step / whole) for step in LADDER]
    most = min(max(cohort, whole), free_bytes // max(lane_bytes, 1))
    found = [step for step in dict.fromkeys(found) if step <= most] or [whole]
    return [Candidate(kernel, step, group) for kernel in kernels for step in found]


def find(
    offered: Sequence[Candidate],
    build: Build,
    params: Any,
    steps: np.ndarray,
    size: int,
    place: rounds.Place,
    *,
    seconds: float = SECONDS,
) -> list[Timing]:
    """Times candidates, the fastest first; a single one is not timed.

    Args:
      offered: of `candidates`.
      build: (candidate, population, narrowing=True) -> the rounds to time, of cohorts
        like `steps`, or as many clients as lanes; see `rounds.Settings.narrowing`.
      params: a model to begin with.
      steps: int[M], of the clients of a usual cohort.
      size: examples of a client of the timed rounds, the same for all of them.
      place: rows handed in -> (data, index), as `rounds.Rounds.run` asks for.
      seconds: of measuring, for each.
    """
    if len(offered) == 1:
        return [Timing(offered[0], math.nan)]
    found: list[Timing] = []
    done: set[str] = set()  # kernels for which more lanes do not pay
    for candidate in offered:
        kernel, lanes = candidate.kernel, candidate.lanes
        if kernel in done:
            continue
        own = [t.steps_per_second for t in found if t.candidate.kernel == kernel]
        rivals = [t.steps_per_second for t in found if t.candidate.lanes == lanes]
        hopeless = _HOPELESS * max(rivals, default=0.0)
        many = lanes * max(1, min(SAMPLE, len(steps)) // lanes)
        useful = schedule.make(
            steps, lanes=lanes, group=max(candidate.group, 1)
        ).utilization
        rate = useful * _rate(
            build(candidate, many, narrowing=False),
            params,
            many,
            lanes,
            size,
            place,
            hopeless,
            seconds,
        )
        found.append(Timing(candidate, rate))
        if rate < max(hopeless, _WORTH * max(own, default=0.0)):
            done.add(kernel)
    return sorted(found, key=lambda t: -t.steps_per_second)


def of_run(
    config: specs.RunConfig,
    build: Build,
    loss: base.Loss,
    params: Any,
    held: np.ndarray,
    source: feed.Feed,
) -> list[Timing]:
    """Timings for a run, within what its config leaves open.

    Args:
      config: of the run.
      build: as for `find`.
      loss: of one example, as `source` places it.
      params: a model to begin with.
      held: int[K], examples of each client.
      source: of the clients' examples.
    """
    spec = config.federated
    sizes = held[held > 0] if held.any() else np.ones(1, np.int64)
    if spec.max_examples:
        sizes = np.minimum(sizes, spec.max_examples)
    steps = spec.epochs * -(-sizes // config.train.batch_size)
    if spec.local_steps:
        steps = np.full_like(steps, spec.local_steps)
    cohort = min(spec.asked, len(steps))
    usual = np.random.default_rng(config.seed).choice(steps, cohort, replace=False)
    data, _ = source.place(np.zeros(1, np.int64))
    example = jax.tree.map(lambda column: column[0], data)
    convolves = im2col.convolutions(loss, params, example, jax.random.key(0)) > 0
    optimizer = jax.eval_shape(federation.client_optimizer(config).init, params)
    lane = jax.tree.leaves((params, params, optimizer))
    offered = candidates(
        kernels=KERNELS if convolves else KERNELS[-1:],
        lanes=spec.lanes,
        group=spec.group,
        cohort=cohort,
        lane_bytes=sum(x.size * x.dtype.itemsize for x in lane),
        free_bytes=parallel.free_bytes() // 2,
    )
    rows = max(int(held.sum()), 1)
    return find(
        offered,
        build,
        params,
        usual,
        int(np.median(sizes)),
        lambda handed: source.place(np.arange(handed.sum()) % rows),
    )


def settle(workdir: pathlib.Path, timed: Callable[[], list[Timing]]) -> Candidate:
    """What `workdir` says was chosen; else chooses, writes it down and says so."""
    path = workdir / FILE
    if kept := _read(path):
        return Candidate(kept["kernel"], kept["lanes"], kept["group"])
    timings = timed()
    chosen = timings[0].candidate
    rows = [
        {**t.candidate._asdict(), "steps_per_second": round(t.steps_per_second, 1)}
        for t in timings
        if not math.isnan(t.steps_per_second)
    ]
    workdir.mkdir(parents=True, exist_ok=True)
    report.put(path, json.dumps({**chosen._asdict(), "timings": rows}, indent=1) + "\n")
    return chosen


def _read(path: pathlib.Path) -> dict[str, Any]:
    """What was written down; empty where nothing was, or not to its end."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def sentence(chosen: Candidate) -> str:
    """What was chosen, for people."""
    together = f", {chosen.group} at a time" if chosen.group else ""
    form = ", convolutions as products" if chosen.kernel == "im2col" else ""
    count = "1 lane" if chosen.lanes == 1 else f"{chosen.lanes} lanes"
    return f"clients train in {count}{together}{form}"


def _rate(made, params, many, lanes, size, place, hopeless, seconds) -> float:
    """Steps of lanes per second, in rounds that are not waited for one by one."""
    state = made.init(params, rng.root(0))
    key = jax.random.key(0)

    def run(state, many, count):
        # Light enough for any chain with noise; the time is the same.
        weights = np.full(many, 1e-12)
        chosen = rounds.Chosen(np.arange(many), np.full(many, size), weights, total=1.0)
        steps = 0
        begin = time.perf_counter()
        for _ in range(count):
            state, info = made.run(state, key, chosen, place)
            steps += int(info.steps.sum())
        jax.block_until_ready(state.server)
        return state, steps, time.perf_counter() - begin

    state, _, _ = run(state, lanes, 1)  # compiles; all lanes end together
    state, steps, spent = run(state, lanes, 1)
    if steps / spent > hopeless and spent < seconds:
        state, steps, spent = run(state, many, 1)
        if (count := min(int(seconds / spent), 50)) > 0:
            rates = []
            for _ in range(parts := min(_PARTS, count)):
                state, steps, spent = run(state, many, count // parts)
                rates.append(steps / spent)
            return max(rates)  # what else the machine does only slows it down
    return steps / spent
