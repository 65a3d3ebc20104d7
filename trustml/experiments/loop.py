"""The training loop: batches through the compiled step, written down and resumed.

Everything a step depends on (parameters, optimizer, noise keys, sampler seed, step) is
in the checkpoint, and one is written before the first step: a killed run repeats its
steps with the same noise on the same batches, so nothing is drawn twice.
"""

import json
import math
import pathlib
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from trustml import checkpoint, specs
from trustml import config as config_lib
from trustml import task as task_lib
from trustml import writer as writer_lib
from trustml.data import datasets
from trustml.experiments import build, device_loss, evaluate, units
from trustml.experiments import step as step_lib
from trustml.privacy import plan as plan_lib


class Cost(NamedTuple):
    """What training cost.

    Attributes:
      seconds_per_step: median over steps, compilation and evaluation left out.
      compile_seconds: of the step.
      wall_seconds: of the loop in this process.
      flops: of one microbatch and one update, as the compiler counts them.
      bytes_accessed: likewise.
      peak_temp_bytes: temporary memory of the step.
    """

    seconds_per_step: float
    compile_seconds: float
    wall_seconds: float
    flops: float
    bytes_accessed: float
    peak_temp_bytes: float


class Trained(NamedTuple):
    """A trained model and its record."""

    params: Any  # averaged, where the config asks for it
    plan: plan_lib.Plan | None
    clipper: step_lib.Clipper | None
    rows: list[dict[str, Any]]  # of metrics.jsonl
    cost: Cost


def fit(
    config: specs.RunConfig,
    data: datasets.Dataset,
    task: task_lib.Task,
    workdir: pathlib.Path,
    *,
    name: str = "",
    quiet: bool = False,
) -> Trained:
    """Trains `task` on `data` as the config says, resuming what `workdir` holds.

    Raises:
      ValueError: for whatever is out of bounds, before any step.
      OSError: if the disk is full; the last checkpoint is intact.
      device_loss.DeviceError: a device failed; so is it then.
    """
    ready = step_lib.prepare(config, data, task)
    state, sampler, plan, devices = (
        ready.state,
        ready.sampler,
        ready.plan,
        ready.devices,
    )
    where = build.data_files(config) or f"data.name={config.data.name!r}"
    digests = {
        "another configuration": config_lib.digest(config),
        f"other data ({where})": data.digest,
        "another privacy plan": plan.digest if plan else "none",
    }
    saver = checkpoint.Checkpointer(
        workdir / "checkpoints", digest=":".join(digests.values()), parts=tuple(digests)
    )
    found = saver.restore({"state": state, "sampling": sampler.seed})
    if found is None:
        if ready.clipper is not None and config.privacy.check:
            params = jax.device_get(state.params)
            ready.clipper.check(params, _first_rows(ready.columns))
        saver.save(0, {"state": state, "sampling": sampler.seed})
    else:
        state = found.state["state"]
        sampler = sampler.reseed(found.state["sampling"], secret=sampler.secret)
    first = found.step if found else 0

    rows = step_lib.rows_of(ready.columns, sampler.physical(first)[0], devices)
    began = time.perf_counter()
    compiled = jax.jit(ready.step, donate_argnums=0).lower(state, rows, True).compile()
    compile_seconds = time.perf_counter() - began

    total, every = config.train.steps, config.train
    each = units.examples_each(ready.columns)
    seconds: list[float] = []
    out = writer_lib.Writer(
        workdir,
        total,
        quiet=quiet,
        resume_step=first if found else None,
        examples_per_step=sampler.expected_batch_size * each,
        epsilon_budget=config.privacy.epsilon if plan else None,
        name=name,
    )
    # The state is donated: what is whole when a device fails is on disk.
    with out, device_loss.explained(saver, "step", lambda: None):
        clock = time.perf_counter()
        for done in range(first, total):
            counts: Any = None
            for physical in sampler.physical(done):
                rows = step_lib.rows_of(ready.columns, physical, devices)
                state, counts = compiled(state, rows, np.bool_(physical.last))
            now = done + 1
            if due(every.log_every, now, total):
                row = _metrics(counts, plan, now)  # waits for the device
                row["nonprivate/nonfinite"] = int(state.nonfinite)
                seconds.append((time.perf_counter() - clock) / (now - first))
                first, clock = now, time.perf_counter()
                if due(every.eval_every, now, total):
                    row |= _valid(task, state, ready.selection, data)
                    clock = time.perf_counter()
                out.write(now, row)
            if due(every.checkpoint_every, now, total):
                saver.save(now, {"state": state, "sampling": sampler.seed})
                clock = time.perf_counter()
    cost = Cost(
        seconds_per_step=float(np.median(seconds)) if seconds else float("nan"),
        compile_seconds=compile_seconds,
        wall_seconds=time.perf_counter() - began,
        **_analysis(compiled),
    )
    cost = _remembered(cost, workdir / "cost.json")
    rows_written = writer_lib.read(workdir / "metrics.jsonl")
    params = step_lib.trained(state, ready.selection)
    return Trained(params, plan, ready.clipper, rows_written, cost)


def due(every: int, step: int, total: int) -> bool:
    """Whether what is done each `every` steps (0: never), and at the end, is due."""
    return step == total or (every > 0 and step % every == 0)


def _first_rows(columns):
    return {name: column[:3] for name, column in columns.items()}


def _metrics(counts: step_lib.Counts, plan, step: int) -> dict[str, Any]:
    examples = max(1.0, float(counts.examples))
    row: dict[str, Any] = {
        "nonprivate/loss": float(counts.loss) / examples,
        "nonprivate/batch_size": int(counts.examples),
    }
    if plan is not None:
        row |= {
            "epsilon": plan.epsilon(step=step),
            "nonprivate/mean_norm": float(counts.norm) / examples,
            "nonprivate/clipped_fraction": float(counts.clipped) / examples,
        }
    return row


def _valid(task, state, selection, data) -> dict[str, float]:
    """Accuracy of what training returns and, under an average, of the last as well."""
    used = {"nonprivate/valid_accuracy": step_lib.trained(state, selection)}
    if jax.tree.leaves(state.average):
        used["nonprivate/valid_accuracy_last"] = state.params
    return {
        name: float(np.mean(evaluate.predictions(task, params, data.valid).correct))
        for name, params in used.items()
    }


def _remembered(cost: Cost, path: pathlib.Path) -> Cost:
    """`cost`, kept at `path`; if this process made no step, what was kept there."""
    if math.isnan(cost.seconds_per_step) and path.exists():
        return Cost(**json.loads(path.read_text()))
    part = path.with_suffix(".part")  # a kill leaves the old file or the new one
    part.write_text(json.dumps(cost._asdict()))
    part.replace(path)
    return cost


def _analysis(compiled) -> dict[str, float]:
    costs = compiled.cost_analysis() or {}
    memory = compiled.memory_analysis()
    return {
        "flops": float(costs.get("flops", float("nan"))),
        "bytes_accessed": float(costs.get("bytes accessed", float("nan"))),
        "peak_temp_bytes": float(getattr(memory, "temp_size_in_bytes", float("nan"))),
    }
