"""Runs one experiment from one config file.

  python -m launch.run --config=configs/quickstart.py[:smoke] [--workdir=runs/a]
                       [--config.privacy.epsilon=3 ...] [--debug]

  --config      a Python file with `get_config(arg)`; what follows a colon is `arg`.
  --config.X    overrides one field of it; `None` empties a field that may be empty.
  --workdir     where everything is written; default: runs/<name of the config>.
  --debug       show the traceback of errors that otherwise get one sentence.

The same command again continues where a killed run stopped. What is wrong with the
command, the configuration or the files it names ends before any computation, with
one sentence on stderr and exit code 2.
"""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import re
import runpy
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from absl import flags
from ml_collections import config_flags

from trustml import _validate, config, specs

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_EXAMPLE = "--config=configs/quickstart.py"


class Command(NamedTuple):
    """A command line, parsed.

    Attributes:
      config: what to run.
      workdir: where to.
    """

    config: specs.RunConfig
    workdir: pathlib.Path


def _experiment(name: str) -> Callable[[specs.RunConfig, pathlib.Path], Any]:
    """The function that runs experiment `name`; imported only when it is wanted."""
    if name == "train":
        from trustml.experiments import train

        return train.run
    if name == "trust_report":
        from trustml.experiments import trust_report

        return trust_report.run
    if name == "compare":
        from trustml.experiments import compare

        return compare.run
    if name == "membership":
        from trustml.experiments import membership

        return membership.run
    if name == "audit":
        from trustml.experiments import audit

        return audit.run
    if name == "canary_extraction":
        from trustml.experiments import canary_extraction

        return canary_extraction.run
    if name == "federate":
        from trustml.experiments import federate

        return federate.run
    if name == "centralised":
        from trustml.experiments import centralised

        return centralised.run
    if name == "tune":
        from trustml.experiments import tune

        return tune.run
    if name == "selection_study":
        from trustml.experiments import selection_study

        return selection_study.run
    if name == "prediction_sensitivity":
        from trustml.experiments import prediction_sensitivity

        return prediction_sensitivity.run
    if name == "intrinsic_extrinsic":
        from trustml.experiments import intrinsic_extrinsic

        return intrinsic_extrinsic.run
    if name == "fairness":
        from trustml.experiments import fairness

        return fairness.run
    if name == "generation":
        from trustml.experiments import generation

        return generation.run
    raise ValueError(f"experiment={name!r} has no entry in launch/run.py.")


def _find_config(path: str) -> pathlib.Path:
    """The config file, looked for here and then in the repository."""
    if not pathlib.Path(path).is_file() and (_ROOT / path).is_file():
        return _ROOT / path
    return _validate.existing_file("--config", path, f"try {_EXAMPLE}")


def _load(spec: str) -> Any:
    """The ConfigDict of `path[:arg]`."""
    name, _, arg = spec.partition(":")
    path = _find_config(name)
    try:
        get_config = runpy.run_path(str(path)).get("get_config")
        if get_config is None:
            raise ValueError("there is no get_config(arg) in it")
        return get_config(arg) if arg else get_config()
    except Exception as error:
        lines = [f for f in traceback.extract_tb(error.__traceback__)]
        inside = [f.lineno for f in lines if f.filename == str(path)]
        where = f"{name}:{inside[-1]}" if inside else name
        raise ValueError(f"{where}: {one_line(error)}") from error


def _split(argv: Sequence[str]) -> tuple[str, list[str], list[str]]:
    """`--config`'s value, fields to set to None, and the other arguments."""
    spec, empty, rest = "", [], []
    tuples: dict[str, int] = {}  # field -> where in `rest` it is set
    arguments = iter(argv)
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if re.fullmatch("--?config", flag):
            spec = value if equals else next(arguments, "")
        elif match := re.fullmatch(r"--?(?:no)?config\.(.+)", flag):
            kind = config.kind_of(match[1])
            if kind.startswith("a tuple"):
                # The library would add values up; the last one counts, as elsewhere.
                if not equals:
                    value = next(arguments, "")
                    argument, equals = f"{flag}={value}", "="
                if match[1] in tuples:
                    at = tuples.pop(match[1])
                    del rest[at]
                    tuples = {f: i - (i > at) for f, i in tuples.items()}
                tuples[match[1]] = len(rest)
            if value.lower() == "none" and kind.endswith("or None"):
                empty.append(match[1])
            elif kind == "a tuple of text" and equals and value[:1] not in "('\"":
                names = tuple(value.split(","))  # a,b is friendlier than ('a','b')
                rest.append(f"{flag}={names!r}")
            else:
                rest.append(argument)
        else:
            rest.append(argument)
    if not spec:
        raise ValueError(f"--config is missing; try {_EXAMPLE}.")
    return spec, empty, rest


def parse(argv: Sequence[str]) -> Command:
    """A command line (without the program's name) as a `Command`.

    Raises:
      ValueError: unknown flag or field (naming the nearest), or a wrong value.
      FileNotFoundError: no config file, or a data file that is not there.
    """
    spec, empty, rest = _split([a for a in argv if a != "--debug"])
    tree = _load(spec)
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", "", "", flag_values=values)
    config_flags.DEFINE_config_dict(
        "config", tree, flag_values=values, sys_argv=["run", *rest]
    )
    try:
        left = values(["run", *rest])[1:]
    except flags.UnrecognizedFlagError as error:
        known = ["config", "workdir", "debug"]
        known += [f"config.{name}" for name in config.field_names()]
        guess = _validate.nearest(error.flagname, known)
        hint = f"did you mean --{guess}?" if guess else "--help lists the flags."
        raise ValueError(f"unknown flag --{error.flagname}; {hint}") from error
    except flags.Error as error:
        if match := re.match(r"flag --config\.([\w.]+)=(.*?): ", str(error), re.S):
            kind = config.kind_of(match[1])
            _validate.fail(match[1], match[2], f"must be {kind}")
        raise ValueError(f"{one_line(error)}; --help explains the flags.") from error
    if left:
        raise ValueError(f"unexpected argument {left[0]!r}; {_EXAMPLE} is the form.")
    tree: Any = values["config"].value
    for field in empty:
        with tree.unlocked(), tree.ignore_type():
            tree.update_from_flattened_dict({field: None})
    name, _, arg = spec.partition(":")
    stem = pathlib.Path(name).stem + (f"-{arg}" if arg else "")
    workdir = values["workdir"].value or f"runs/{stem}"
    made = config.from_config_dict(tree)
    _refuse_idle_baseline(made, rest)
    return Command(made, pathlib.Path(workdir))


def _refuse_idle_baseline(made: specs.RunConfig, argv: Sequence[str]) -> None:
    """Raises where the command sets a baseline and the run compares nothing.

    One that the config file brings is no mistake: the same file may hold a report and
    a sweep whose points are trained one by one.
    """
    if made.experiment != "train":
        return
    for argument in argv:
        match = re.match(r"--?config\.baseline\.(\w+)", argument)
        value = getattr(made.baseline, match[1]) if match else None
        if match and value is not None:
            bound = f"has no effect with experiment={made.experiment!r}"
            cure = "set experiment='trust_report', or leave it out"
            _validate.fail(f"baseline.{match[1]}", value, bound, cure)


def claim(workdir: pathlib.Path, run: specs.RunConfig) -> None:
    """Makes `workdir` the one of `run`, by its config.json; writes over nothing.

    Raises:
      ValueError: it holds another run (naming the first field that differs), or files
        that are no run at all.
    """
    path = workdir / "config.json"
    if workdir.exists() and not workdir.is_dir():
        _validate.fail("workdir", str(workdir), "is a file", "name a directory")
    others = [p.name for p in workdir.iterdir()] if workdir.is_dir() else []
    others = sorted(set(others) - {"config.json", "config.json.tmp"})
    if path.exists():
        there = _fields(json.loads(path.read_text()))
        here = _fields(config.to_dict(run))
        names = [n for n in [*here, *there] if there.get(n, "?") != here.get(n, "?")]
        if not names:
            return
        if others:
            name = names[0]
            bound = (
                f"holds another run: {name} is {there.get(name)!r} there "
                f"and {here.get(name)!r} here"
            )
            cure = "choose another --workdir, or delete it to start anew"
            _validate.fail("workdir", str(workdir), bound, cure)
    elif others:
        bound = f"holds files that are no run of ours, such as {others[0]!r}"
        cure = "choose an empty or a new directory"
        _validate.fail("workdir", str(workdir), bound, cure)
    workdir.mkdir(parents=True, exist_ok=True)
    temporary = workdir / "config.json.tmp"
    temporary.write_text(config.to_json(run))
    os.replace(temporary, path)


def _execute(command: Command) -> None:
    """Runs the experiment; one that fails at the start leaves no directory behind."""
    made = not command.workdir.exists()
    claim(command.workdir, command.config)
    lock = os.open(command.workdir, os.O_RDONLY)
    try:
        _lock(lock, command.workdir)
        _experiment(command.config.experiment)(command.config, command.workdir)
    except Exception:
        if made and [p.name for p in command.workdir.iterdir()] == ["config.json"]:
            (command.workdir / "config.json").unlink()
            command.workdir.rmdir()
        raise
    finally:
        os.close(lock)


def _lock(handle: int, workdir: pathlib.Path) -> None:
    """Keeps other processes out of `workdir` until this one ends."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        bound = "is in use by another process"
        cure = "wait for it to end, or choose another --workdir"
        _validate.fail("workdir", str(workdir), bound, cure)


def _fields(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted names and values of nested dicts."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _fields(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


@contextlib.contextmanager
def explained(workdir: pathlib.Path) -> Iterator[None]:
    """Gives what the operating system refuses inside a path and a cure.

    Raises:
      OSError: of the same number, with a sentence. Errors that bring one stay as they
        are, and those that name no file (unless the disk is full).
    """
    try:
        yield
    except OSError as error:
        number, name = error.errno, error.filename
        if number is None or error.strerror != os.strerror(number):
            raise
        if number in (errno.ENOSPC, errno.EDQUOT):
            text = (
                f"the disk is full: {name or workdir} could not be written; free some "
                "space and run the same command again, which continues."
            )
        elif name is None:
            raise
        elif _is_about(name, workdir):
            bound = f"cannot be used: {name}: {error.strerror}"
            text = f"workdir={str(workdir)!r} {bound}; choose another --workdir."
        else:
            text = f"{name}: {error.strerror}; check that path and who may use it."
        raise OSError(number, text) from error


def _is_about(name: Any, workdir: pathlib.Path) -> bool:
    """Whether a path is `workdir`, in it, or on the way to it."""
    path, place = pathlib.Path(str(name)).absolute(), workdir.absolute()
    return path.is_relative_to(place) or place.is_relative_to(path)


def one_line(error: BaseException) -> str:
    """What an error says, on one line, without the number of the system's errors."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror
        if error.filename:
            text += f": {error.filename}"
    return " ".join(text.split()) or type(error).__name__


def _is_for_the_user(error: BaseException) -> bool:
    """Whether the error's own sentence says it all.

    So for what the operating system refuses, for a device that failed, and for a
    ValueError that was raised by a line of this repository, not by a library that it
    called.
    """
    if isinstance(error, OSError):
        return True
    if isinstance(error, RuntimeError):
        return type(error).__name__ == "DeviceError"  # known without importing JAX
    frames = list(traceback.walk_tb(error.__traceback__))
    module = frames[-1][0].f_globals.get("__name__", "") if frames else ""
    return module.partition(".")[0] in ("trustml", "launch") or module == __name__


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; returns the exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if "--help" in argv or "-h" in argv:
        print(__doc__)
        return 0
    try:
        command = parse(argv)
        with explained(command.workdir):
            _execute(command)
    except (ValueError, OSError, RuntimeError) as error:
        if "--debug" in argv or not _is_for_the_user(error):
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command continues.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
