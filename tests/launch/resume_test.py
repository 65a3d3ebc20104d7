"""`kill -9` of real runs: what resumes ends bit for bit like what was never killed.

The processes share a compilation cache, so only the first one compiles.
"""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from typing import NamedTuple

import pytest

from launch import run

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_STEPS = 40


class Kind(NamedTuple):
    """What is run, and what its checkpoints must hold."""

    config: str
    overrides: dict[str, object]
    holds: tuple[str, ...]


_EXAMPLES = Kind(
    "configs/dp_digits.py:smoke",
    {
        "data.limit": 200,
        "model.channels": "(2,)",
        "privacy.noise_seed": 0,
        "privacy.epsilon": None,
        "privacy.noise_multiplier": 1.0,
        "privacy.accountant": "rdp",
        "privacy.check": False,
        "train.batch_size": 24,
        "train.physical_batch_size": 16,
        "train.eval_every": 10,
        "train.ema_decay": 0.9,
    },
    ("params", "noise", "average"),
)
_CLIENTS = {
    "data.limit": 300,
    "data.max_length": 12,
    "data.vocabulary_size": 256,
    "model.width": 8,
    "model.hidden": "()",
    "train.eval_every": 10,
    "federated.lanes": 2,
    "federated.weighting": "uniform",
}
_SCAFFOLD = Kind(
    "configs/federated.py:smoke",
    _CLIENTS | {"federated.algorithm": "scaffold"},
    ("params", "control", "memory"),
)
_USERS = Kind(
    "configs/federated.py:smoke",
    _CLIENTS
    | {
        "federated.selection": "capped_power",
        "privacy.enabled": True,
        "privacy.noise_multiplier": 0.8,
        "privacy.noise_seed": 3,
    },
    ("params", "aggregator"),
)
_ALWAYS = {
    "train.steps": _STEPS,
    "train.num_devices": 1,
    "train.log_every": 1,
    "train.checkpoint_every": 3,
}


def arguments(kind: Kind, workdir: pathlib.Path) -> list[str]:
    fields = (_ALWAYS | kind.overrides).items()
    changes = [f"--config.{name}={value}" for name, value in fields]
    return [f"--config={kind.config}", f"--workdir={workdir}", *changes]


def begin(kind, workdir: pathlib.Path, cache: pathlib.Path) -> subprocess.Popen:
    environment = os.environ | {
        "PYTHONPATH": str(_ROOT),
        # Compiles in half the time; what is compared is two runs of one program.
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-m", "launch.run", *arguments(kind, workdir)]
    return subprocess.Popen(
        command,
        cwd=_ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(kind, workdir: pathlib.Path, cache: pathlib.Path) -> None:
    process = begin(kind, workdir, cache)
    output, _ = process.communicate()
    assert process.returncode == 0, output


def rows(workdir: pathlib.Path) -> int:
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_after_row(process, workdir, wanted: int, delay: float) -> None:
    """SIGKILL as soon as `wanted` rows of metrics are written, and `delay` seconds."""
    while rows(workdir) < wanted:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.001)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def record(kind, workdir: pathlib.Path):
    """The metrics, and every leaf of the last checkpoint with its checksum."""
    last = sorted((workdir / "checkpoints").iterdir())[-1]
    table = json.loads((last / "meta.json").read_text())
    assert table["step"] == _STEPS
    paths = [leaf["path"] for leaf in table["leaves"]]
    for word in kind.holds:
        assert any(word in path for path in paths), f"no {word} in {paths}"
    return (workdir / "metrics.jsonl").read_bytes(), table["leaves"]


class Reference(NamedTuple):
    """A run that nobody killed, and the compilation cache it filled."""

    kind: Kind
    cache: pathlib.Path
    metrics: bytes
    leaves: list


@pytest.fixture(scope="module")
def reference(request, tmp_path_factory):
    kind, place = request.param, tmp_path_factory.mktemp("reference")
    finish(kind, place / "run", place / "cache")
    metrics, leaves = record(kind, place / "run")
    assert metrics.count(b"\n") == _STEPS
    return Reference(kind, place / "cache", metrics, leaves)


def killed_and_resumed(reference, workdir, kills: int, seed: int) -> None:
    kind, cache = reference.kind, reference.cache
    dice = random.Random(seed)
    for number in range(kills):
        process = begin(kind, workdir, cache)
        if number == 3:  # any time from the start of Python on
            time.sleep(dice.uniform(0, 3))
            process.kill()
            process.communicate()
        else:
            done = rows(workdir)
            # Rows after the last checkpoint are dropped, and written again.
            low = done + 1 if done else 1
            high = min(_STEPS - 2, low + _STEPS // max(kills, 2))
            wanted = dice.randint(min(low, high), high)
            kill_after_row(process, workdir, wanted, dice.uniform(0, 0.1))
        assert not (workdir / "report.html").exists()
    finish(kind, workdir, cache)
    found = record(kind, workdir)
    assert found == (reference.metrics, reference.leaves), f"seed {seed}"


@pytest.mark.parametrize("reference", [_EXAMPLES], indirect=True, ids=["examples"])
def test_killed_twice_and_resumed(reference, tmp_path, capsys):
    workdir = tmp_path / "run"
    killed_and_resumed(reference, workdir, 2, random.SystemRandom().getrandbits(32))
    times = {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()}
    # The command once more, of a finished run: nothing is done.
    assert run.main(arguments(reference.kind, workdir)) == 0
    assert "finished already" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in times} == times


@pytest.mark.slow
@pytest.mark.parametrize(
    "reference",
    [_EXAMPLES, _SCAFFOLD, _USERS],
    indirect=True,
    ids=["examples", "clients remember", "users"],
)
@pytest.mark.parametrize("attempt", range(2))
def test_killed_five_times_and_resumed(reference, tmp_path, attempt):
    seed = random.SystemRandom().getrandbits(32)
    killed_and_resumed(reference, tmp_path / "run", 5, seed)
