import csv
import json
import os
import pathlib
import shlex
import subprocess
import sys
import time

import pytest

from launch import run, sweep
from trustml.experiments import build

_ROOT = pathlib.Path(__file__).resolve().parents[2]

CONFIG = """
from trustml import config

def get_config(arg=''):
    cfg = config.default()
    cfg.privacy.epsilon = 8.0
    if arg == 'tiny':
        cfg.train.steps = 2
    return cfg

def sweep():
    for epsilon in (1.0, 8.0):
        for seed in range(3):
            yield {'privacy.epsilon': epsilon, 'seed': seed, 'report.epsilons': ()}
"""

# Stands in for `launch.run`: takes notes, writes a report, fails where it is told to.
FAKE = """
import json, pathlib, sys
workdir, epsilon, seed = pathlib.Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
workdir.mkdir(exist_ok=True)
with (workdir.parent / 'starts.txt').open('a') as file:
    file.write(workdir.name + chr(10))
if (workdir.parent / f'fail-{seed}').exists():
    sys.exit('it is broken')
accuracy = {'value': 0.8 + epsilon / 100 + seed / 1000, 'lo': 0.7, 'hi': 0.9, 'n': 50}
run = {'name': 'x', 'private': True, 'epsilon_spent': epsilon - 0.01, 'delta': 1e-5,
       'test': {'accuracy': accuracy}, 'cost': {'seconds_per_step': 0.1}}
(workdir / 'report.json').write_text(json.dumps({'runs': [run]}))
"""


def fake(point):
    made = run.parse(point.arguments)
    run.claim(point.workdir, made.config)
    epsilon, seed = made.config.privacy.epsilon, made.config.seed
    arguments = [str(point.workdir), str(epsilon), str(seed)]
    return [sys.executable, "-S", "-c", FAKE, *arguments]


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_points_are_named_by_what_differs(here):
    made = sweep.parse(["--config=mine.py:tiny", "--config.train.batch_size=64"])
    assert made.workdir.as_posix() == "runs/mine-tiny-sweep" and made.jobs == 1
    assert [p.name for p in made.points[:2]] == [
        "epsilon=1.0,seed=0",
        "epsilon=1.0,seed=1",
    ]
    assert {p.setting for p in made.points} == {"epsilon=1.0", "epsilon=8.0"}
    command = run.parse(made.points[4].arguments)
    assert command.workdir == made.workdir / "epsilon=8.0,seed=1"
    assert command.config.privacy.epsilon == 8.0 and command.config.seed == 1
    assert command.config.train.steps == 2 and command.config.train.batch_size == 64
    assert command.config.report.epsilons == ()


def test_flags_take_their_values_with_a_blank_too(here):
    argv = ["--config", "mine.py:tiny", "--jobs", "2", "--workdir", "s", "--launcher"]
    made = sweep.parse([*argv, "slurm", "--config.train.batch_size", "64"])
    assert made.workdir.as_posix() == "s" and made.jobs == 2
    assert made.launcher == "slurm"
    command = run.parse(made.points[0].arguments)
    assert command.config.train.steps == 2 and command.config.train.batch_size == 64


def test_equal_points_and_lone_points_have_names():
    same = [{"seed": 0}, {"seed": 0}]
    assert sweep._names(same, "a/mine.py") == ["000-mine", "001-mine"]
    clash = [{"data.name": "a b", "model.name": "x"}, {"data.name": "c/d"}]
    names = sweep._names([*clash, {"model.name": "y"}], "mine.py")
    assert names == ["data.name=a_b,model.name=x", "data.name=c_d", "model.name=y"]


def test_a_point_that_fails_and_a_second_command(here, capsys):
    place = here / "s"
    place.mkdir()
    (place / "fail-1").touch()
    argv = ["--config=mine.py", "--workdir=s", "--jobs=2"]
    assert sweep.main(argv, fake) == 1
    out, err = capsys.readouterr()
    assert "epsilon=1.0,seed=1 FAILED with exit code 1: it is broken" in out
    assert "6/6" in out and " left" in out
    assert err.splitlines() == [
        f"failed: epsilon={e},seed=1 (see s/epsilon={e},seed=1.log)" for e in (1.0, 8.0)
    ]
    starts = (place / "starts.txt").read_text().splitlines()
    assert len(starts) == 6

    (place / "fail-1").unlink()
    assert sweep.main(argv, fake) == 0
    out, err = capsys.readouterr()
    assert "4 of 6 points are finished already" in out and err == ""
    starts = (place / "starts.txt").read_text().splitlines()
    assert sorted(starts[6:]) == ["epsilon=1.0,seed=1", "epsilon=8.0,seed=1"]

    # The frontier: means over three seeds, with t-intervals (t = 4.3027 for 95%).
    with (place / "frontier.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["epsilon=1.0", "epsilon=8.0"]
    assert float(rows[0]["value"]) == pytest.approx(0.811)
    half = 4.302653 * 0.001 / 3**0.5
    assert float(rows[0]["lo"]) == pytest.approx(0.811 - half, abs=1e-6)
    assert float(rows[0]["hi"]) == pytest.approx(0.811 + half, abs=1e-6)
    assert rows[1]["seeds"] == "3" and float(rows[1]["epsilon"]) == 7.99
    assert "| epsilon=8.0 | 7.99 |" in out
    assert (place / "frontier.html").exists() and (place / "frontier.svg").exists()

    assert sweep.main(argv, fake) == 0
    assert (place / "starts.txt").read_text().splitlines() == starts


def test_finished_points_whose_data_changed_are_refused(here, capsys, monkeypatch):
    rows = [f"word{n} tail\t{'ab'[n % 2]}" for n in range(100)]
    (here / "ok.tsv").write_text("text\tlabel\n" + "\n".join(rows) + "\n")
    argv = ["--config=mine.py", "--workdir=s", "--config.data.path=ok.tsv"]
    loads = []
    load = build.dataset
    monkeypatch.setattr(build, "dataset", lambda c: loads.append(c) or load(c))
    for point in sweep.parse(argv).points:
        config = run.parse(point.arguments).config
        run.claim(point.workdir, config)
        page = {"runs": [{"name": "x"}], "data": {"digest": load(config).digest}}
        (point.workdir / "report.json").write_text(json.dumps(page))
    assert loads == []
    assert sweep.main(argv, fake) == 0
    assert len(loads) == 3  # once for each seed, which chooses the splits
    assert "6 of 6 points are finished already" in capsys.readouterr().out
    (here / "ok.tsv").write_text("text\tlabel\n" + "\n".join(rows[:99]) + "\n")
    assert sweep.main(argv, fake) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert "data.path='ok.tsv' changed since the run in 's/epsilon=1.0,seed=0'" in err


def test_several_runs_of_one_report_stay_apart(here):
    made = sweep.parse(["--config=mine.py", "--workdir=s"])
    point = made.points[0]
    point.workdir.mkdir(parents=True)
    accuracy = {"value": 0.8, "lo": 0.7, "hi": 0.9, "n": 50}
    runs = [
        {"name": "eps=1", "private": True, "epsilon_spent": 1.0},
        {"name": "non-private", "private": False},
    ]
    page = {"runs": [entry | {"test": {"accuracy": accuracy}} for entry in runs]}
    (point.workdir / "report.json").write_text(json.dumps(page))
    sweep.summarize(made)
    found = json.loads((here / "s/frontier.json").read_text())["points"]
    names = ["epsilon=1.0, eps=1", "epsilon=1.0, non-private"]
    assert [entry["name"] for entry in found] == names


def _cells(made, algorithms):
    """A report of 'tune' for each of the first points, as cells sgd x sgd."""
    values = {"values": [0.3, 0.4], "value": 0.35, "lo": 0.0, "hi": 0.9, "n": 2}
    tuned = {"figure": "rouge_l", "client_rate": 1.0, "server_rate": 1.0, **values}
    for point, algorithm in zip(made.points, algorithms, strict=False):
        cell = {"partition": "iid", "prox": 0.0, "algorithm": algorithm, "seed": 0}
        page = {
            "title": "T",
            "cell": cell | {"client": "sgd", "server": "sgd"},
            "headline": {"figure": "rouge_l", "value": 0.35, "n": 2},
            "what": "ROUGE-L",
            "tuned": tuned,
            "shared": None,
            "budget": 1,
            "baseline": {},
        }
        point.workdir.mkdir(parents=True, exist_ok=True)
        (point.workdir / "report.json").write_text(json.dumps(page))


def test_cells_of_a_grid_are_a_frontier_by_their_figure(here):
    made = sweep.parse(["--config=mine.py", "--workdir=s"])
    _cells(made, ("fedavg", "scaffold"))
    sweep.summarize(made)
    with (here / "s/frontier.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["figure"] == "ROUGE-L" and row["interval"] == "seeds"
    assert row["seeds"] == "2" and float(row["value"]) == pytest.approx(0.35)
    assert "iid, algorithm scaffold" in (here / "s/grid.html").read_text()


def test_a_grid_that_cannot_be_made_leaves_the_frontier(here, capsys):
    made = sweep.parse(["--config=mine.py", "--workdir=s"])
    _cells(made, ("fedavg", "scaffold"))
    sweep.summarize(made)
    _cells(made, ("fedavg", "fedavg"))
    (here / "s/frontier.csv").unlink()
    assert sweep.summarize(made).exists()
    assert (here / "s/frontier.csv").exists()
    error = capsys.readouterr().err
    assert error.startswith("no grid: entries[1]['cell']='sgd x sgd, iid")
    assert error.count("\n") == 1
    assert not list((here / "s").glob("grid.*"))  # not that of other cells, either


def test_slurm_prints_a_script(here, capsys):
    assert sweep.main(["--config=mine.py", "--launcher=slurm", "--jobs=3"]) == 0
    script = capsys.readouterr().out
    assert script.startswith("#!/usr/bin/env bash\n#SBATCH --array=0-5%3\n")
    assert script.count("launch.run") == 6
    # Slurm opens the logs before the script begins and makes no directory for them.
    logs = pathlib.Path(shlex.split(script.split("--output=")[1])[0])
    assert logs == here / "runs/mine-sweep/%a.log" and logs.parent.is_dir()
    assert list(logs.parent.iterdir()) == []
    done = subprocess.run(["bash", "-n"], input=script, text=True)
    assert done.returncode == 0


WRONG = {
    "no config": ([], ["--config is missing; try --config=configs/"]),
    "no such config": (["--config=mnie.py"], ["looked for /", "'mine.py'?"]),
    "no sweep": (["--config=bare.py"], ["'bare.py' has no sweep(); define one"]),
    "empty sweep": (["--config=none.py"], ["sweep() of none.py yields no point"]),
    "wrong point": (["--config=typo.py"], ["'privacy.epsilom'; did you mean"]),
    "jobs 0": (["--config=mine.py", "--jobs=0"], ["jobs=0 must be >= 1; 1 runs one"]),
    "jobs in words": (["--config=mine.py", "--jobs=two"], ["jobs='two' must be an"]),
    "launcher": (["--config=mine.py", "--launcher=slum"], ["did you mean 'slurm'?"]),
    "unknown flag": (
        ["--config=mine.py", "--wrkdir=a"],
        ["--wrkdir; did you mean --workdir?"],
    ),
    "wrong value": (
        ["--config=mine.py", "--config.train.steps=0"],
        ["train.steps=0 must be >= 1"],
    ),
    "a field of the sweep": (
        ["--config=mine.py", "--config.privacy.epsilon=2.0"],
        ["--config.privacy.epsilon has no effect: sweep() of mine.py sets", "leave it"],
    ),
    "a field of the sweep, with a blank": (
        ["--config=mine.py", "--config.seed", "3"],
        ["--config.seed has no effect: sweep() of mine.py sets"],
    ),
    "another config after the first": (
        ["--config", "mine.py", "--jobs"],
        ["--jobs has no value; write --jobs=..."],
    ),
    "no place for a directory": (
        ["--config=mine.py", "--workdir=/proc/x"],
        ["workdir='/proc/x' cannot be used: /proc/x: No such file", "choose another"],
    ),
    "no place for the logs of slurm": (
        ["--config=mine.py", "--workdir=/proc/x", "--launcher=slurm"],
        ["workdir='/proc/x' cannot be used: /proc/x: No such file", "choose another"],
    ),
    "another sweep's directory": (
        ["--config=mine.py", "--workdir=s", "--config.train.steps=9"],
        ["train.steps is 1000 there and 9 here; choose another --workdir"],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_commands_get_one_sentence(here, capsys, name):
    bare = CONFIG[: CONFIG.index("def sweep")]
    (here / "bare.py").write_text(bare)
    (here / "none.py").write_text(bare + "def sweep():\n    return iter(())\n")
    (here / "typo.py").write_text(
        CONFIG.replace("privacy.epsilon'", "privacy.epsilom'")
    )
    place = here / "s/epsilon=1.0,seed=0"
    run.claim(
        place, run.parse(sweep.parse(["--config=mine.py"]).points[0].arguments).config
    )
    (place / "metrics.jsonl").touch()
    before = sorted(here.rglob("*"))
    argv, words = WRONG[name]
    assert sweep.main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    for word in words:
        assert word in error
    after = [p for p in sorted(here.rglob("*")) if "__pycache__" not in str(p)]
    assert after == before


# A point that notes its process and sleeps; a sweep of such points, two at a time.
SLEEP = "import os, sys, time; print(os.getpid(), flush=True); time.sleep(60)"
SLEEPERS = f"""
import sys
from launch import sweep
argv = ["--config=mine.py", "--workdir=s", "--jobs=2"]
sys.exit(sweep.main(argv, lambda point: [sys.executable, "-S", "-c", {SLEEP!r}]))
"""


def test_a_terminated_sweep_ends_its_points(here):
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEPERS],
        env=os.environ | {"PYTHONPATH": str(_ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    logs = [here / f"s/epsilon=1.0,seed={seed}.log" for seed in (0, 1)]
    while not all(log.exists() and log.read_text().endswith("\n") for log in logs):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    process.terminate()
    _, error = process.communicate()
    assert process.returncode == 143
    assert error == "stopped; the same command continues.\n"
    for log in logs:
        with pytest.raises(ProcessLookupError):
            os.kill(int(log.read_text()), 0)
    assert len(list((here / "s").glob("*.log"))) == 2


def test_a_point_that_does_not_want_to_end_is_killed(monkeypatch):
    monkeypatch.setattr(sweep, "_GRACE_SECONDS", 0.05)
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=1)"
    command = [sys.executable, "-S", "-c", f"{deaf}; time.sleep(60)"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        sweep._end([process])
    assert process.returncode == -9


def test_help(capsys):
    assert sweep.main(["--help"]) == 0
    assert "--launcher" in capsys.readouterr().out
