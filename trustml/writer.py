"""What a run tells: metrics.jsonl, TensorBoard events and one line of progress.

`metrics.jsonl` has one flushed line per `write`, `{"step": 10, "loss": 0.5, ...}`, and
nothing that depends on the clock: a run that was killed and resumed ends with the
same bytes as one that was not. Clock readings go to `timing.jsonl`. Names of what is
not private begin with `nonprivate/`; that is the caller's business.

Write the row of a step BEFORE the checkpoint of that step: rows after the restored step
are dropped when a run resumes, and written again.

Example::

    with writer.Writer(workdir, 1000, examples_per_step=512, epsilon_budget=8.0,
                       resume_step=restored_step) as out:
        out.write(10, {'nonprivate/loss': 0.5, 'epsilon': 1.2})
"""

import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import rich.console
import rich.progress

from trustml import _validate

_PLAIN_SECONDS = 5.0  # between plain lines, where there is no terminal


def _event_files(directory: pathlib.Path, purge_step: int | None) -> Any:
    """A TensorBoard writer.

    tensorboardX imports PyTorch wherever it finds it (seconds, 200 MB), to know one
    type that is never given to it here; so PyTorch is out of sight during that import.
    """
    hide = "torch" not in sys.modules
    if hide:
        sys.modules["torch"] = None  # pyrefly: ignore[unsupported-operation]
    try:
        import tensorboardX
    finally:
        if hide:
            del sys.modules["torch"]
    return tensorboardX.SummaryWriter(str(directory), purge_step=purge_step)


def _number(name: str, value: Any) -> int | float | None:
    """A JSON number; None for NaN and infinities, which JSON does not have."""
    if value is None:
        return None
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "biuf":
        try:  # bfloat16 and its kin are kind 'V' to NumPy
            array = array.astype(np.float32)
        except (TypeError, ValueError):
            array = np.zeros(2)
        if array.size != 1:
            _validate.fail(
                f"metric {name}", value, "is not a scalar", "reduce it first"
            )
    number = array.reshape(()).item()
    if isinstance(number, float):
        return number if math.isfinite(number) else None
    return int(number)


def _keep_until(path: pathlib.Path, step: int | None) -> None:
    """Drops rows after `step` (all if None), and a last line that is incomplete."""
    if step is None or not path.exists():
        kept = b""
    else:
        rows = path.read_bytes().splitlines(keepends=True)
        rows = [row for row in rows if row.endswith(b"\n")]
        kept = b"".join(row for row in rows if json.loads(row)["step"] <= step)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(kept)
    os.replace(temporary, path)


def read(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Rows of a `metrics.jsonl` or `timing.jsonl`, less an incomplete last line."""
    text = pathlib.Path(path).read_text(encoding="utf-8")
    complete = text[: text.rfind("\n") + 1]
    return [json.loads(line) for line in complete.splitlines()]


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
    )


class Writer:
    """Writes the metrics of one run; use it in a `with` statement.

    Attributes:
      workdir: directory of the run, made where it does not exist.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        total_steps: int,
        *,
        quiet: bool = False,
        resume_step: int | None = None,
        examples_per_step: float | None = None,
        epsilon_budget: float | None = None,
        name: str = "",
        stream: Any = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Opens the files of `workdir`.

        Args:
          workdir: directory of the run.
          total_steps: updates the run will make, for the progress line.
          quiet: write files only.
          resume_step: step of the restored checkpoint, rows after which are dropped;
            None starts the files anew.
          examples_per_step: (expected) batch size, for the examples per second.
          epsilon_budget: shown beside the epsilon spent.
          name: of the run, at the head of the progress line.
          stream: text file where progress goes; standard output where None.
          clock: seconds, monotonic.
        """
        self.workdir = pathlib.Path(workdir)
        self.workdir.mkdir(parents=True, exist_ok=True)
        self._total = _validate.integer_at_least("total_steps", total_steps, 1)
        self._examples = examples_per_step
        self._budget = epsilon_budget
        self._clock = clock
        metrics_path = self.workdir / "metrics.jsonl"
        _keep_until(metrics_path, resume_step)
        self._metrics = metrics_path.open("a", encoding="utf-8")
        timing_mode = "w" if resume_step is None else "a"
        timing_path = self.workdir / "timing.jsonl"
        self._timing = timing_path.open(timing_mode, encoding="utf-8")
        self._events = _event_files(
            self.workdir / "tensorboard",
            None if resume_step is None else resume_step + 1,
        )
        self._start = clock()
        self._first: tuple[int, float] | None = None  # after compilation
        self._last: tuple[int, float] | None = None
        self._quiet = quiet
        self._stream = sys.stdout if stream is None else stream
        self._name = name
        self._status: dict[str, float] = {}
        self._plain_at = -math.inf
        self._bar: rich.progress.Progress | None = None
        console = rich.console.Console(file=self._stream)
        if console.is_terminal and not quiet:
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn("{task.description}"),
                rich.progress.BarColumn(bar_width=20),
                rich.progress.TextColumn("{task.fields[status]}", markup=False),
                console=console,
            )
            self._task = self._bar.add_task(
                name or "step", total=total_steps, status=""
            )
            self._bar.update(self._task, completed=resume_step or 0)
            self._bar.start()

    def write(
        self,
        step: int,
        metrics: Mapping[str, Any],
        timing: Mapping[str, Any] | None = None,
    ) -> None:
        """Appends one row to each file and moves the progress line.

        Args:
          step: updates made so far.
          metrics: name -> scalar (Python, NumPy or JAX; NaN and inf become null), the
            same whenever the run is repeated.
          timing: name -> scalar that depends on the clock or the machine.
        Raises:
          ValueError: if a metric is not a scalar or is called 'step'.
        """
        if "step" in metrics:
            _validate.fail(
                "metric", "step", "is taken", "give it as the first argument"
            )
        row = {name: _number(name, value) for name, value in metrics.items()}
        self._metrics.write(json.dumps({"step": int(step), **row}) + "\n")
        self._metrics.flush()
        for name, value in row.items():
            if value is not None:
                self._events.add_scalar(name, value, step)
        self._time(int(step), timing or {})
        for name, value in row.items():
            short = name.rpartition("/")[2]
            if short in ("loss", "epsilon") and value is not None:
                self._status[short] = value
        self._show(int(step))

    def _time(self, step: int, extra: Mapping[str, Any]) -> None:
        now = self._clock()
        row: dict[str, Any] = {
            "step": step,
            "wall_seconds": round(now - self._start, 3),
        }
        self._status.pop("rate", None)
        if self._first is None:
            self._first = (step, now)
        elif step > self._first[0] and now > self._first[1]:
            self._status["pace"] = (now - self._first[1]) / (step - self._first[0])
        if self._last and self._examples and step > self._last[0]:
            seconds = now - self._last[1]
            if seconds > 0:
                rate = self._examples * (step - self._last[0]) / seconds
                row["examples_per_second"] = round(rate, 1)
                self._status["rate"] = rate
        if self._last is None or step > self._last[0]:
            self._last = (step, now)
        row |= {name: _number(name, value) for name, value in extra.items()}
        self._timing.write(json.dumps(row) + "\n")
        self._timing.flush()

    def _text(self, step: int) -> str:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        epsilon = "ε" if encoding.lower().replace("-", "") == "utf8" else "epsilon"
        parts = [f"{step}/{self._total}"]
        status = self._status
        if "loss" in status:
            parts.append(f"loss {status['loss']:.4f}")
        if "epsilon" in status:
            budget = "" if self._budget is None else f"/{self._budget:g}"
            parts.append(f"{epsilon} {status['epsilon']:.3f}{budget}")
        if "rate" in status:
            parts.append(f"{status['rate']:,.0f} examples/s")
        if "pace" in status and step < self._total:
            parts.append(f"{_duration(status['pace'] * (self._total - step))} left")
        elif step >= self._total:
            parts.append(f"{_duration(self._clock() - self._start)} in all")
        return "  ".join(parts)

    def _show(self, step: int) -> None:
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.update(self._task, completed=step, status=self._text(step))
            return
        now = self._clock()
        if now - self._plain_at >= _PLAIN_SECONDS or step >= self._total:
            self._plain_at = now
            self.say(f"{self._name or 'step'} {self._text(step)}")

    def say(self, text: str) -> None:
        """Prints one line above the progress line, unless `quiet`."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Closes the files and ends the progress line; may be called twice."""
        if self._bar is not None:
            self._bar.stop()
        self._metrics.close()
        self._timing.close()
        self._events.close()

    def __enter__(self) -> "Writer":
        """The writer itself."""
        return self

    def __exit__(self, *unused: object) -> None:
        """Closes it."""
        self.close()
