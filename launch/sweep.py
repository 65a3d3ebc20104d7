"""Runs the sweep of a config file: a process per point, then the frontier.

  python -m launch.sweep --config=configs/dp_digits.py[:smoke] [--workdir=runs/s]
                         [--jobs=1] [--launcher=local] [--config.train.steps=100 ...]

  --config      a Python file with `get_config(arg)` and `sweep()`, a generator of
                dicts such as {'privacy.epsilon': 1.0, 'seed': 0}, one a point.
  --config.X    overrides one field in every point; not one that `sweep()` sets.
  --workdir     holds a directory and a log per point, and the results; default:
                runs/<name of the config>-sweep.
  --jobs        points that run at the same time.
  --launcher    local runs the points here; slurm makes the workdir, for the logs, and
                prints a script for sbatch.

The same command again skips the points that are finished and continues those that were
killed. SIGTERM ends the points that run, too. A point that fails is reported, the
others go on, and the exit code is 1. At the end, over all finished points: frontier.md,
.csv, .json, .svg and .html, where points that differ in the seed alone are one setting
with a t-interval over seeds. Points of experiment 'tune' are cells of a grid as well:
grid.json and .html, unless two points are one cell, which is told.
"""

import csv
import io
import json
import os
import pathlib
import re
import runpy
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from launch import run
from trustml import _validate, specs
from trustml import report as report_lib
from trustml.report import frontier, grid

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_LAUNCHERS = ("local", "slurm")
_GRACE_SECONDS = 10.0  # from asking a process to end to ending it
_CSV = (
    *("name", "epsilon", "delta", "value", "lo", "hi", "seeds", "seconds_per_step"),
    *("figure", "interval"),
)


class Terminated(Exception):
    """The sweep was told to end (SIGTERM)."""


class Point(NamedTuple):
    """One run of a sweep.

    Attributes:
      name: of its directory, unique in the sweep.
      setting: the name without the seed; equal for the seeds of one setting.
      arguments: of `launch.run`, the workdir included.
      workdir: where it writes.
    """

    name: str
    setting: str
    arguments: tuple[str, ...]
    workdir: pathlib.Path

    @property
    def finished(self) -> bool:
        """Whether its report is there."""
        return (self.workdir / "report.json").exists()

    @property
    def log(self) -> pathlib.Path:
        """What the process printed."""
        return self.workdir.with_name(f"{self.workdir.name}.log")


class Sweep(NamedTuple):
    """A command line, parsed.

    Attributes:
      points: in the order of `sweep()`.
      workdir: of the sweep.
      jobs: processes at the same time.
      launcher: one of 'local', 'slurm'.
      title: for the page.
    """

    points: list[Point]
    workdir: pathlib.Path
    jobs: int
    launcher: str
    title: str


def command_of(point: Point) -> list[str]:
    """The process of a point."""
    return [sys.executable, "-m", "launch.run", *point.arguments]


def parse(argv: Sequence[str]) -> Sweep:
    """A command line as a `Sweep`; every point's configuration has been checked.

    Raises:
      ValueError: a wrong flag, no `sweep()`, a point with a wrong field or value, a
        directory that holds another run than the point, or a finished point whose
        data file changed.
      FileNotFoundError: no config file, or a data file that is not there.
    """
    own, common = _split(argv)
    jobs: Any = int(own["jobs"]) if own["jobs"].isdecimal() else own["jobs"]
    jobs = _validate.integer_at_least(
        "jobs", jobs, 1, "1 runs one point after the other"
    )
    launcher = _validate.one_of("launcher", own["launcher"], _LAUNCHERS)
    spec = own["config"]
    if not spec:
        raise ValueError("--config is missing; try --config=configs/dp_digits.py.")
    stem = run.parse([f"--config={spec}", *common]).workdir.name
    workdir = pathlib.Path(own["workdir"] or f"runs/{stem}-sweep")
    overrides = _overrides(spec)
    _refuse_what_the_sweep_sets(common, overrides, spec)
    names = _names(overrides, spec)
    settings = _names([_without_seed(o) for o in overrides], spec, unique=False)
    points, configs = [], []
    for name, setting, changes in zip(names, settings, overrides, strict=True):
        place = workdir / name
        flags = [f"--config.{field}={value}" for field, value in changes.items()]
        arguments = (f"--config={spec}", *common, *flags, f"--workdir={place}")
        made = run.parse(arguments)
        if place.exists():
            run.claim(place, made.config)
        points.append(Point(name, setting, arguments, place))
        configs.append(made.config)
    _check_data(points, configs)
    return Sweep(points, workdir, jobs, launcher, f"Sweep of {stem}")


def _split(argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The values of our own flags, after '=' or a blank, and the other arguments."""
    own = {"config": "", "workdir": "", "jobs": "1", "launcher": "local"}
    common = []
    arguments = iter(argv)
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        name = flag.removeprefix("-").removeprefix("-")
        if name not in own or name == flag:
            common.append(argument)
            continue
        given = value if equals else next(arguments, None)
        if given is None:
            raise ValueError(f"{flag} has no value; write {flag}=...")
        own[name] = given
    return own, common


def _refuse_what_the_sweep_sets(
    common: Sequence[str], overrides: list[dict[str, Any]], spec: str
) -> None:
    """Raises for `--config.X` where the points have an X of their own, which wins."""
    swept = {field for point in overrides for field in point}
    for argument in common:
        match = re.match(r"--?(?:no)?config\.([\w.]+)", argument)
        if match and match[1] in swept:
            raise ValueError(
                f"--config.{match[1]} has no effect: sweep() of "
                f"{spec.partition(':')[0]} sets {match[1]} itself; leave it out, or "
                "change sweep()."
            )


def _check_data(points: Sequence[Point], configs: Sequence[specs.RunConfig]) -> None:
    """Raises where a finished point's data file changed; loads once for each seed."""
    ended = [
        (point, made)
        for point, made in zip(points, configs, strict=True)
        if made.data.path and point.finished
    ]
    if not ended:
        return
    from trustml.experiments import build, finished  # they take seconds to import

    known: dict[Any, str] = {}

    def digest_of(made: specs.RunConfig) -> str:
        key = (made.data, made.seed, made.model.checkpoint)
        if key not in known:
            known[key] = build.dataset(made).digest
        return known[key]

    for point, made in ended:
        finished.check_data(made, point.workdir, digest_of)


def _overrides(spec: str) -> list[dict[str, Any]]:
    """What `sweep()` of the config file yields."""
    name = spec.partition(":")[0]
    path = name if pathlib.Path(name).is_file() else str(_ROOT / name)
    sweep = runpy.run_path(path).get("sweep")
    if sweep is None:
        raise ValueError(
            f"--config={name!r} has no sweep(); define one that yields a dict of "
            "overrides per point, such as {'privacy.epsilon': 1.0, 'seed': 0}."
        )
    found = [dict(point) for point in sweep()]
    if not found:
        raise ValueError(f"sweep() of {name} yields no point; yield one dict or more.")
    return found


def _without_seed(changes: dict[str, Any]) -> dict[str, Any]:
    seeds = ("seed", "privacy.noise_seed")
    return {field: value for field, value in changes.items() if field not in seeds}


def _names(
    overrides: list[dict[str, Any]], spec: str, unique: bool = True
) -> list[str]:
    """Names for directories from the fields in which the points differ."""
    fields = list(dict.fromkeys(field for point in overrides for field in point))
    missing = object()
    differ = [
        f for f in fields if len({repr(p.get(f, missing)) for p in overrides}) > 1
    ]
    short = [field.rpartition(".")[2] for field in differ]
    shown = short if len(set(short)) == len(short) else differ
    names = []
    for point in overrides:
        parts = [
            f"{name}={point[field]}"
            for name, field in zip(shown, differ, strict=True)
            if field in point
        ]
        text = ",".join(parts) or pathlib.Path(spec.partition(":")[0]).stem
        names.append(re.sub(r"[^\w.,=+-]+", "_", text).strip("_"))
    if unique and len(set(names)) < len(names):
        names = [f"{number:03d}-{name}" for number, name in enumerate(names)]
    return names


def execute(
    sweep: Sweep,
    command: Callable[[Point], list[str]] = command_of,
    say: Callable[[str], None] = print,
) -> list[Point]:
    """Runs what is not finished, `jobs` at a time; returns the points that failed.

    Args:
      sweep: what to run.
      command: from a point to its process.
      say: takes one line of progress.
    Raises:
      Terminated: SIGTERM came; what was running has ended.
    """
    waiting = [point for point in sweep.points if not point.finished]
    total, left = len(sweep.points), len(waiting)
    if left < total:
        say(f"{total - left} of {total} points are finished already")
    sweep.workdir.mkdir(parents=True, exist_ok=True)
    paths = [str(_ROOT), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    running: dict[subprocess.Popen, tuple[Point, float]] = {}
    failed, began, ended = [], time.monotonic(), 0
    told = []  # to end: noted and not raised, so that no process goes unregistered
    before = signal.signal(signal.SIGTERM, lambda *_: told.append(True))
    try:
        while waiting or running:
            if told:
                raise Terminated
            while waiting and len(running) < sweep.jobs:
                point = waiting.pop(0)
                with point.log.open("a") as log:
                    process = subprocess.Popen(
                        command(point),
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        stdin=subprocess.DEVNULL,
                        env=environment,
                    )
                running[process] = (point, time.monotonic())
            time.sleep(0.02)
            for process in [p for p in running if p.poll() is not None]:
                point, start = running.pop(process)
                now, ended = time.monotonic(), ended + 1
                state = f"done in {_duration(now - start)}"
                if process.returncode or not point.finished:
                    failed.append(point)
                    state = f"FAILED with exit code {process.returncode}"
                    state += f": {_last_line(point.log)}"
                remaining = (now - began) / ended * (left - ended)
                eta = f"; {_duration(remaining)} left" if ended < left else ""
                say(f"{total - left + ended}/{total} {point.name} {state}{eta}")
    finally:
        _end(running)
        signal.signal(signal.SIGTERM, before)
    return failed


def _end(processes: Iterable[subprocess.Popen]) -> None:
    """Ends processes, and those that do not want to after some seconds by force."""
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _last_line(path: pathlib.Path) -> str:
    lines = path.read_text(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "no output")


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
    )


def summarize(sweep: Sweep) -> pathlib.Path | None:
    """Writes the frontier of the finished points; returns the page, or None."""
    found: list[dict[str, Any]] = []
    cells: list[dict[str, Any]] = []
    for point in sweep.points:
        if point.finished:
            page = json.loads((point.workdir / "report.json").read_text())
            if (cell := grid.entry(page)) is not None:
                cells.append(cell)
            entries = frontier.point(page)
            for entry in entries:
                several = f", {entry['name']}" if len(entries) > 1 else ""
                found.append(entry | {"name": point.setting + several})
    if not found:
        return None
    page = frontier.write(sweep.workdir, found, title=sweep.title)
    report_lib.put(sweep.workdir / "frontier.csv", _table(frontier.collapse(found)))
    if cells:
        _write_grid(sweep, cells)
    return page


def _write_grid(sweep: Sweep, cells: list[dict[str, Any]]) -> None:
    """Writes the grid; cells that make none are told, and an older grid is removed."""
    try:
        grid.write(sweep.workdir, cells, title=sweep.title)
    except ValueError as error:
        for name in ("grid.json", "grid.html"):
            (sweep.workdir / name).unlink(missing_ok=True)
        print(f"no grid: {run.one_line(error)}", file=sys.stderr)


def _table(entries: Iterable[dict[str, Any]]) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(_CSV)
    for entry in entries:
        table.writerow(["" if entry[key] is None else entry[key] for key in _CSV])
    return text.getvalue()


def slurm(sweep: Sweep) -> str:
    """A script for `sbatch` that runs the points as an array.

    Slurm opens the logs before the script begins and makes no directory for them: the
    workdir has to be there when the script is submitted.
    """
    lines = "\n".join(
        f"  {shlex.quote(shlex.join(command_of(p)))}" for p in sweep.points
    )
    place = shlex.quote(str(sweep.workdir.absolute() / "%a.log"))
    return (
        "#!/usr/bin/env bash\n"
        f"#SBATCH --array=0-{len(sweep.points) - 1}%{sweep.jobs}\n"
        f"#SBATCH --output={place}\n"
        "# The finished points of this sweep become its frontier by the same command\n"
        "# with --launcher=local.\n"
        f"cd {shlex.quote(str(pathlib.Path.cwd()))}\n"
        f'export PYTHONPATH={shlex.quote(str(_ROOT))}"${{PYTHONPATH:+:$PYTHONPATH}}"\n'
        f'commands=(\n{lines}\n)\neval "${{commands[$SLURM_ARRAY_TASK_ID]}}"\n'
    )


def main(
    argv: Sequence[str] | None = None,
    command: Callable[[Point], list[str]] = command_of,
) -> int:
    """Runs a command line; returns the exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if "--help" in argv or "-h" in argv:
        print(__doc__)
        return 0
    try:
        sweep = parse(argv)
        if sweep.launcher == "slurm":
            with run.explained(sweep.workdir):
                sweep.workdir.mkdir(parents=True, exist_ok=True)
            print(slurm(sweep), end="")
            return 0
        with run.explained(sweep.workdir):
            failed = execute(sweep, command)
            page = summarize(sweep)
    except (ValueError, OSError) as error:
        if "--debug" in argv:
            raise
        print(f"error: {run.one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command continues.", file=sys.stderr)
        return 130
    except Terminated:
        print("stopped; the same command continues.", file=sys.stderr)
        return 143
    if page is not None:
        print(f"\n{(sweep.workdir / 'frontier.md').read_text()}\nfrontier: {page}")
    for point in failed:
        print(f"failed: {point.name} (see {point.log})", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
