import errno
import json
import os
import pathlib
import subprocess
import sys

import pytest

from launch import run

_ROOT = pathlib.Path(__file__).resolve().parents[2]

_CONFIG = """
from trustml import config

def get_config(arg=''):
    cfg = config.default()
    cfg.privacy.epsilon = 8.0
    if arg == 'typo':
        cfg.train.stesp = 3
    elif arg == 'text':
        cfg.train.steps = 'many'
    elif arg not in ('', 'smoke'):
        raise ValueError(f'{arg!r} is no variant; there is smoke.')
    return cfg
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with one config, and an experiment that only takes notes."""
    (tmp_path / "mine.py").write_text(_CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "_experiment", lambda name: _write_note)
    return tmp_path


def _write_note(config, workdir):
    assert (workdir / "config.json").exists()
    (workdir / "note.txt").write_text(config.data.name)
    if config.seed == 13:
        raise RuntimeError("a bug")
    if config.seed == 15:
        raise KeyboardInterrupt
    if config.seed == 16:
        json.loads("{")
    if config.seed == 17:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if config.seed == 18:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "/runs/a.json")
    if config.seed == 19:
        raise OSError(errno.ENOSPC, "the disk is full: 3 MB are needed.")
    if config.seed == 20:
        raise PermissionError(errno.EACCES, "Permission denied", "mine.tsv")


def test_overrides_and_workdir(here):
    command = run.parse(
        [
            "--config=mine.py",
            "--config.privacy.epsilon=none",
            "--config.privacy.noise_multiplier=1",
            "--config.privacy.noise_seed=340282366920938463463374607431768211455",
            "--config.model.hidden=(32, 16)",
            "--config.privacy.trainable=*/bias,head/*",
            "--noconfig.privacy.check",
            "--config.train.steps=7",
        ]
    )
    privacy = command.config.privacy
    assert privacy.epsilon is None and privacy.noise_multiplier == 1.0
    assert privacy.noise_seed == 2**128 - 1 and privacy.check is False
    assert privacy.trainable == ("*/bias", "head/*")
    assert command.config.model.hidden == (32, 16)
    assert command.config.train.steps == 7
    assert command.workdir == pathlib.Path("runs/mine")
    again = run.parse(
        [
            "--config=mine.py",
            "--config.model.hidden=(32, 16)",
            "--config.privacy.trainable=*/bias",
            "--config.model.hidden=8",
            "--config.privacy.trainable",
            "head/*",
            "--config.train.steps=7",
            "--config.train.steps=9",
        ]
    ).config
    assert again.model.hidden == (8,) and again.train.steps == 9
    assert again.privacy.trainable == ("head/*",)
    assert run.parse(["--config", "mine.py:smoke"]).workdir.name == "mine-smoke"
    named = run.parse(["--config=mine.py", "--workdir=runs/a"])
    assert named.workdir == pathlib.Path("runs/a")


def test_a_baseline_that_the_file_brings_does_not_hinder_training(here):
    """As in the sweep of quickstart, whose points train one budget each."""
    text = _CONFIG.replace("arg == 'typo'", "arg == 'report'").replace(
        "cfg.train.stesp = 3",
        "cfg.experiment, cfg.privacy.epsilon, cfg.baseline.steps = "
        "'trust_report', None, 7",
    )
    (here / "mine.py").write_text(text)
    argv = ["--config=mine.py:report", "--config.experiment=train"]
    made = run.parse([*argv, "--config.privacy.epsilon=3"]).config
    assert made.experiment == "train" and made.baseline.steps == 7
    dropped = run.parse([*argv[:1], "--config.baseline.steps=None"]).config
    assert dropped.baseline.steps is None
    run.parse([*argv, "--config.privacy.epsilon=3", "--config.baseline.steps=none"])


def test_runs_and_runs_again(here, capsys):
    assert run.main(["--config=mine.py"]) == 0
    assert (here / "runs/mine/note.txt").read_text() == "snips"
    assert run.main(["--config=mine.py"]) == 0
    assert capsys.readouterr().err == ""
    assert run.main(["--help"]) == 0
    assert "--workdir" in capsys.readouterr().out


WRONG = [
    ([], ["--config is missing; try --config=configs/quickstart.py"]),
    (["--config=mnie.py"], ["--config='mnie.py'", "looked for /", "'mine.py'?"]),
    (["--config=mine.py:smok"], ["mine.py:12: 'smok' is no variant; there is smoke."]),
    (["--config=mine.py:typo"], ["'train.stesp'; did you mean train.steps?"]),
    (["--config=mine.py:text"], ["mine.py:10:", "steps"]),
    (["--config=empty.py"], ["empty.py: there is no get_config(arg)"]),
    (["--config=broken.py"], ["broken.py: '(' was never closed"]),
    (["--config=mine.py", "--wrkdir=x"], ["--wrkdir; did you mean --workdir?"]),
    (["--config=mine.py", "--zzz=x"], ["--zzz; --help lists"]),
    (
        ["--config=mine.py", "--confg.train.steps=3"],
        ["--confg.train.steps; did you mean --config.train.steps?"],
    ),
    (
        ["--config=mine.py", "--config.train.stesp=3"],
        ["'train.stesp'; did you mean train.steps?"],
    ),
    (
        ["--config=mine.py", "--config.steps=3"],
        ["'steps'; did you mean train.steps?"],
    ),
    (
        ["--config=mine.py", "--config.train.steps=abc"],
        ["train.steps='abc' must be an integer."],
    ),
    (
        ["--config=mine.py", "--config.train.steps=None"],
        ["train.steps='None' must be an integer."],
    ),
    (
        ["--config=mine.py", "--config.privacy.epsilon=x"],
        ["privacy.epsilon='x' must be a number or None."],
    ),
    (
        ["--config=mine.py", "--config.model.hidden=a"],
        ["model.hidden='a' must be an integer."],
    ),
    (["--config=mine.py", "--config.train.steps"], ["--config.train.steps"]),
    (["--config=mine.py", "--config.train.steps=0"], ["train.steps=0 must be >= 1"]),
    (["--config=mine.py", "steps"], ["unexpected argument 'steps'"]),
    (["--config=mine.py", "--workdir=mine.py"], ["workdir='mine.py' is a file"]),
    (["--config=mine.py", "--workdir=."], ["no run of ours, such as 'broken.py'"]),
    (
        ["--config=mine.py", "--workdir=/proc/x"],
        [
            "workdir='/proc/x' cannot be used: /proc/x: No such file or directory; "
            "choose another --workdir."
        ],
    ),
    (
        ["--config=mine.py", "--workdir=mine.py/a"],
        ["workdir='mine.py/a' cannot be used: ", "Not a directory; choose another"],
    ),
]


@pytest.mark.parametrize(("argv", "parts"), WRONG, ids=str)
def test_wrong_commands_get_one_sentence(here, capsys, argv, parts):
    (here / "empty.py").write_text("x = 3\n")
    (here / "broken.py").write_text("def get_config(\n")
    before = sorted(here.rglob("*"))
    assert run.main(argv) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.count("\n") == 1
    for part in parts:
        assert part in text
    after = [p for p in sorted(here.rglob("*")) if "__pycache__" not in str(p)]
    assert after == before


def test_a_workdir_of_another_config_is_left_alone(here, capsys):
    assert run.main(["--config=mine.py"]) == 0
    kept = {p: p.read_bytes() for p in here.rglob("*") if p.is_file()}
    assert run.main(["--config=mine.py", "--config.privacy.epsilon=3"]) == 2
    error = capsys.readouterr().err
    assert "privacy.epsilon is 8.0 there and 3.0 here; choose another" in error
    assert kept == {p: p.read_bytes() for p in here.rglob("*") if p.is_file()}


def test_a_config_that_never_ran_may_be_replaced(here):
    assert run.main(["--config=mine.py"]) == 0
    (here / "runs/mine/note.txt").unlink()
    assert run.main(["--config=mine.py", "--config.seed=3"]) == 0
    assert json.loads((here / "runs/mine/config.json").read_text())["seed"] == 3


def test_bugs_keep_their_traceback(here):
    with pytest.raises(RuntimeError, match="a bug"):
        run.main(["--config=mine.py", "--config.seed=13", "--workdir=a"])
    with pytest.raises(ValueError, match="Expecting property name"):
        run.main(["--config=mine.py", "--config.seed=16", "--workdir=b"])
    with pytest.raises(ValueError, match="--config is missing"):
        run.main(["--debug"])


def test_interrupted(here, capsys):
    assert run.main(["--config=mine.py", "--config.seed=15"]) == 130
    assert "the same command continues" in capsys.readouterr().err


CONFIGS = sorted(p.name for p in (_ROOT / "configs").glob("*.py"))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_mistyped_argument_of_our_configs_is_refused(here, capsys, name):
    assert run.main([f"--config=configs/{name}:smok"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: configs/{name}:") and error.count("\n") == 1
    assert "'smok' is not one of" in error and "did you mean 'smoke'?" in error


SYSTEM = {
    17: "the disk is full: runs/mine could not be written; free some space and run the "
    "same command again, which continues.",
    18: "the disk is full: /runs/a.json could not be written; free some space and run "
    "the same command again, which continues.",
    19: "the disk is full: 3 MB are needed.",
    20: "mine.tsv: Permission denied; check that path and who may use it.",
}


@pytest.mark.parametrize("seed", SYSTEM)
def test_what_the_system_refuses_gets_a_path_and_a_cure(here, capsys, seed):
    assert run.main(["--config=mine.py", f"--config.seed={seed}"]) == 2
    assert capsys.readouterr().err == f"error: {SYSTEM[seed]}\n"
    with pytest.raises(OSError):
        run.main(["--config=mine.py", f"--config.seed={seed}", "--debug"])


def test_every_experiment_has_an_entry():
    with pytest.raises(ValueError, match="experiment='x' has no entry"):
        run._experiment("x")


def test_as_a_program(tmp_path):
    command = [sys.executable, "-m", "launch.run", "--config=nothing.py"]
    environment = os.environ | {"PYTHONPATH": str(_ROOT)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: --config='nothing.py' is not there")
    assert done.stderr.count("\n") == 1


def test_a_workdir_in_use_is_refused(tmp_path):
    first, second = (os.open(tmp_path, os.O_RDONLY) for _ in range(2))
    run._lock(first, tmp_path)
    with pytest.raises(ValueError, match="in use by another process; wait for it"):
        run._lock(second, tmp_path)
    os.close(first)
    run._lock(second, tmp_path)
    os.close(second)
