"""The table of wrong configurations and inputs: one sentence each, before any work.

Each row is a name, what is wrong, and words that its sentence must hold: the field, the
value, and a cure. All go through the command line; `wrong_calls_test.py` has the calls
of the library.
"""

import pathlib

import numpy as np
import pytest

from launch import run
from trustml import checkpoint, specs, writer

CONFIG = """
from trustml import config

def get_config(arg=''):
    cfg = config.default()
    cfg.data.path = 'data.tsv'
    cfg.data.vocabulary_size = 64
    cfg.data.max_length = 4
    cfg.model.width = 4
    cfg.model.hidden = ()
    cfg.privacy.epsilon = 8.0
    cfg.privacy.accountant = 'rdp'
    cfg.train.steps = 3
    cfg.train.batch_size = 16
    cfg.train.physical_batch_size = 16
    cfg.train.num_devices = 1
    if arg == 'report':
        cfg.experiment = 'trust_report'
        cfg.privacy.epsilon = None
        cfg.report.epsilons = (8.0,)
    elif arg == 'numbers':
        cfg.data.feature_columns = ('x', 'y')
        cfg.model.name = 'mlp'
    elif arg == 'adult':
        cfg.data.path = ''
        cfg.data.name = 'adult'
        cfg.model.name = 'mlp'
    elif arg:
        raise ValueError(f'{arg!r} is no variant; there are report, numbers, adult.')
    return cfg
"""

LINES = [f"play song {n}\t{('music', 'weather')[n % 2]}" for n in range(120)]
GOOD = "text\tlabel\n" + "\n".join(LINES) + "\n"
NUMBERS = "x\ty\tlabel\n" + "".join(f"{n}\t1\t{n % 2}\n" for n in range(120))


def at(line: int, content: str) -> str:
    """The good file with line `line` (counted from 1) replaced."""
    lines = GOOD.split("\n")
    lines[line - 1] = content
    return "\n".join(lines)


def field(name: str, value: str, *words: str, arg: str = ""):
    """A row that overrides one field; its name and value must be in the sentence."""
    spec = "--config=mine.py" + (f":{arg}" if arg else "")
    return ([spec, f"--config.{name}={value}"], {}, (name, *words))


def content(text: str | bytes, *words: str):
    """A row whose data file is wrong."""
    return (["--config=mine.py"], {"data.tsv": text}, words)


def both(*assignments: str, words: tuple[str, ...]):
    overrides = [f"--config.{assignment}" for assignment in assignments]
    return (["--config=mine.py", *overrides], {}, words)


def of_users(*assignments: str, words: tuple[str, ...]):
    """A row of a run whose users are told by their texts."""
    base = ("data.user_column=text", "privacy.unit=user")
    return both(*base, *assignments, words=words)


def on_a_grid(*assignments: str, words: tuple[str, ...]):
    return both("privacy.grid_bits=12", *assignments, words=words)


# name: (arguments, files, words)
COMMANDS = {
    # Privacy.
    "negative clip": field(
        "privacy.l2_clip_norm", "-1", "=-1.0", "> 0", "1.0 is usual"
    ),
    "clip 0": field("privacy.l2_clip_norm", "0", "=0.0", "> 0", "1.0 is usual"),
    "clip NaN": field("privacy.l2_clip_norm", "nan", "=nan", "finite"),
    "clip infinite": field("privacy.l2_clip_norm", "inf", "=inf", "finite"),
    "delta 1": field("privacy.delta", "1", "=1.0", "between 0 and 1", "1e-5 is usual"),
    "delta 0": field("privacy.delta", "0", "=0.0", "between 0 and 1", "1e-5 is usual"),
    "negative epsilon": field("privacy.epsilon", "-1", "> 0", "privacy.enabled=False"),
    "epsilon 0": field("privacy.epsilon", "0", "> 0", "set privacy.enabled=False"),
    "epsilon out of reach": field(
        "privacy.epsilon", "1e7", "=10000000.0 is out of reach", "ask for another"
    ),
    "epsilon and noise": both(
        "privacy.noise_multiplier=1",
        words=("privacy.epsilon=8.0", "privacy.noise_multiplier=1.0", "set one of"),
    ),
    "neither epsilon nor noise": both(
        "privacy.epsilon=None", words=("privacy.epsilon=None", "set exactly one")
    ),
    "noise 0": both(
        "privacy.epsilon=None",
        "privacy.noise_multiplier=0",
        words=("privacy.noise_multiplier=0.0 gives epsilon=inf", "enabled=False"),
    ),
    "negative noise": both(
        "privacy.epsilon=None",
        "privacy.noise_multiplier=-1",
        words=("privacy.noise_multiplier=-1.0", "> 0", "enabled=False"),
    ),
    "unknown method": field("privacy.method", "bookkeeping", "mean 'book_keeping'?"),
    "unknown sampler": field("privacy.sampler", "poison", "did you mean 'poisson'?"),
    "unknown rule": field("privacy.rule", "falt", "did you mean 'flat'?"),
    "unknown accountant": field("privacy.accountant", "pdl", "did you mean 'pld'?"),
    "unknown relation": field(
        "privacy.relation", "add_remove_one", "did you mean 'add_or_remove_one'?"
    ),
    "relation against sampler": field(
        "privacy.sampler", "fixed_size", "='fixed_size'", "'replace_one'"
    ),
    "shuffled is not amplified": both(
        "privacy.sampler=shuffled",
        "privacy.relation=replace_one",
        words=("privacy.relation='replace_one'", "'shuffled'", "replace_special"),
    ),
    "negative microbatch": field("privacy.microbatch_size", "-1", "=-1", "0 takes all"),
    "microbatch beyond the batch": field(
        "privacy.microbatch_size", "17", "=17", "physical_batch_size=16", "0 takes"
    ),
    "noise seed too long": field(
        "privacy.noise_seed", str(2**128), "must be < 2**128", "None takes secret"
    ),
    "trainable matches nothing": both(
        "privacy.trainable=haed/*",
        words=(
            "privacy.trainable=('haed/*',) selects no parameter",
            "one of output/bias",
        ),
    ),
    "trust_report takes no epsilon": field(
        "privacy.epsilon", "3", "=3.0", "set report.epsilons", arg="report"
    ),
    "trust_report without privacy": field(
        "privacy.enabled", "False", "report.epsilons=(8.0,)", "=()", arg="report"
    ),
    "a budget out of reach": (
        ["--config=mine.py:report", "--config.report.epsilons=(8.0,1e7)"],
        {},
        ("privacy.epsilon=10000000.0 is out of reach", "ask for another"),
    ),
    "a budget twice": field(
        "report.epsilons", "(1.0,1.0)", "repeats a budget", "once", arg="report"
    ),
    "negative budget": field(
        "report.epsilons", "(-1.0,)", "=-1.0", "give positive", arg="report"
    ),
    "level 1": field("report.level", "1", "=1.0", "0.95 is usual", arg="report"),
    "baseline without a comparison": field(
        "baseline.steps", "9", "=9", "experiment='train'", "set experiment='trust_rep"
    ),
    "baseline of a report turned into one run": (
        [
            "--config=mine.py:report",
            *("--config.experiment=train", "--config.privacy.epsilon=3"),
            *("--config.baseline.dropout", "0.5"),
        ],
        {},
        ("baseline.dropout=0.5 has no effect", "experiment='train'", "leave it out"),
    ),
    # Users as the unit; noise on a grid.
    "unknown unit": field("privacy.unit", "usr", "did you mean 'user'?"),
    "users without their column": field(
        "privacy.unit", "user", "='user' needs data.user_column", "name the column"
    ),
    "user column without a file": both(
        "data.path=",
        "data.user_column=who",
        words=("data.user_column='who'", "data.name='snips'", "set data.path"),
    ),
    "missing user column": field(
        "data.user_column", "txt", "='txt' is not a column", "mean 'text'?"
    ),
    "users and a limit": of_users(
        "data.limit=50", words=("data.limit=50", "one user changes", "set it to 0")
    ),
    "users and micro-batches": of_users(
        "privacy.group_size=8",
        words=("privacy.group_size=8", "privacy.unit='user'", "0 clips every user"),
    ),
    "comparison of users": of_users(
        "experiment=compare",
        "privacy.group_size=8",
        words=("privacy.group_size=8", "does not go with privacy.unit='user'"),
    ),
    "users without examples": field(
        "privacy.max_examples_per_user", "0", "=0 must be >= 1", "16 is usual"
    ),
    "batch larger than the users": of_users(
        "train.batch_size=1000",
        words=("train.batch_size=1000", "training users there are", "lower train.b"),
    ),
    "a user without a name": (
        ["--config=mine.py", "--config.data.user_column=who"],
        {"data.tsv": "text\tlabel\twho\na\tx\tann\nb\ty\t\n"},
        ("line 3", "who=''", "give a user, as text or a whole number"),
    ),
    "a user spelt in two ways": (
        ["--config=mine.py", "--config.data.user_column=who"],
        {"data.tsv": "text\tlabel\twho\na\tx\tann\nb\ty\tann \n"},
        ("line 3", "who='ann '", "differs from 'ann'", "write both alike"),
    ),
    "a negative grid": field("privacy.grid_bits", "-1", "=-1", "0 is Gaussian noise"),
    "a grid of too many bits": field(
        "privacy.grid_bits", "31", "=31 must be at most 30", "12 is usual"
    ),
    "a grid finer than the draws": field(
        "privacy.grid_bits", "30", "more than the 2^28 grid steps", "lower it"
    ),
    "a grid by the PLD accountant": on_a_grid(
        "privacy.accountant=pld", words=("privacy.accountant='pld'", "use 'rdp'")
    ),
    "a grid of scheduled noise": on_a_grid(
        "privacy.noise_schedule=exponential",
        "privacy.noise_decay=0.9",
        words=("privacy.noise_schedule='exponential'", "set privacy.grid_bits=0"),
    ),
    "a grid of correlated noise": on_a_grid(
        "privacy.bands=2", words=("privacy.bands=2", "set privacy.grid_bits=0")
    ),
    "a grid of a clip norm that moves": on_a_grid(
        "privacy.rule=quantile", words=("privacy.rule='quantile'", "grid_bits=12")
    ),
    "a grid of batches without a bound": on_a_grid(
        "privacy.sampler=fixed_size",
        "privacy.relation=replace_one",
        words=("privacy.sampler='fixed_size'", "set privacy.grid_bits=0"),
    ),
    # Training.
    "steps 0": field("train.steps", "0", "=0 must be >= 1"),
    "steps a fraction": field("train.steps", "2.5", "='2.5' must be an integer"),
    "steps in words": field("train.steps", "many", "='many' must be an integer"),
    "batch size 0": field("train.batch_size", "0", "=0 must be >= 1"),
    "batch larger than the data": both(
        "train.batch_size=1000",
        words=("train.batch_size=1000", "at most the", "lower train.batch_size."),
    ),
    "all batches larger than the data": (
        ["--config=mine.py:report", "--config.baseline.batch_size=500"]
        + [f"--config.train.{x}batch_size=1000" for x in ("", "physical_")],
        {},
        (
            "train.batch_size=1000 and baseline.batch_size=500",
            "lower train.batch_size and baseline.batch_size",
            "(train.physical_batch_size=1000 follows by itself)",
        ),
    ),
    "data limited below the batch": both(
        "data.limit=10", words=("batch_size=16", "at most the 10", "lower train.batch")
    ),
    "log never": field("train.log_every", "0", "=0 must be >= 1"),
    "negative checkpoint interval": field(
        "train.checkpoint_every", "-1", "=-1", "0 means only at the end"
    ),
    "too many devices": field("train.num_devices", "99", "=99", "at most", "lower it"),
    "unknown backend": field("train.backend", "shardmap", "did you mean 'shard_map'?"),
    "unknown experiment": field("experiment", "trane", "did you mean 'train'?"),
    "negative seed": field("seed", "-1", "=-1 must be >= 0"),
    "learning rate 0": field("optimizer.learning_rate", "0", "> 0", "try 1e-3"),
    "unknown optimizer": field("optimizer.name", "adm", "did you mean 'adam'?"),
    "unknown schedule": field("optimizer.schedule", "cosin", "did you mean 'cosine'?"),
    "warm-up longer than training": field(
        "optimizer.warmup_steps", "3", "=3", "train.steps=3", "shorten the warm-up"
    ),
    "weight decay without effect": field(
        "optimizer.weight_decay", "0.1", "=0.1", "'adam'", "choose adamw"
    ),
    # Models.
    "unknown model": field("model.name", "transfomer", "did you mean 'transformer'?"),
    "images wanted, text given": field(
        "model.name", "cnn", "='cnn'", "'image'", "choose another model"
    ),
    "numbers wanted, text given": field(
        "model.name", "mlp", "='mlp'", "'features'", "choose another model"
    ),
    "slots wanted": field("model.name", "bilstm", "slots", "another model"),
    "BERT without its vocabulary": field(
        "model.name", "bert", "data.vocabulary='hashed'", "set data.vocabulary="
    ),
    "heads do not divide": both(
        "model.name=transformer",
        "model.heads=3",
        words=("model.heads=3", "model.width=4", "choose a divisor"),
    ),
    "width 0": field("model.width", "0", "=0 must be >= 1"),
    "hidden 0": field("model.hidden", "(8,0)", "=0 must be >= 1"),
    "dropout 1": field("model.dropout", "1", "=1.0", "below 1"),
    "unknown dtype": field("model.compute_dtype", "bfloat", "mean 'bfloat16'?"),
    "checkpoint is nowhere": field(
        "model.checkpoint", "nowhere", "='nowhere'", "looked for /", "check the path"
    ),
    "checkpoint without files": both(
        "model.name=bert",
        "data.vocabulary=pretrained",
        "model.checkpoint=.",
        words=("tokenizer.json", "looked for /", "Hugging Face"),
    ),
    # Data.
    "unknown data set": both(
        "data.path=", "data.name=snip", words=("data.name='snip'", "mean 'snips'?")
    ),
    "no path": both(
        "data.path=", "data.name=file", words=("data.name='file'", "set data.path")
    ),
    "missing file": field("data.path", "dta.tsv", "looked for /", "mean 'data.tsv'?"),
    "missing test file": field("data.test_path", "no.tsv", "='no.tsv'", "looked for /"),
    "a directory": field("data.path", ".", "='.' is a directory"),
    "unknown suffix": field("data.path", "mine.py", ".tsv, .csv, .jsonl", "convert"),
    "TRUSTML_DATA unset": (
        ["--config=mine.py:adult"],
        {},
        ("data.name='adult'", "set TRUSTML_DATA to the directory"),
    ),
    "missing column": field("data.text_column", "txt", "='txt'", "mean 'text'?"),
    "missing label column": field("data.label_column", "labels", "mean 'label'?"),
    "row too short": content(at(4, "no label"), "line 4 has 1 fields", "every field"),
    "not UTF-8": content(at(3, "caf\xe9\tx").encode("latin1"), "line 3 is not UTF-8"),
    "empty file": content("", "data.tsv", "holds no rows; give a file with examples"),
    "header only": content("text\tlabel\n", "holds no rows; give a file"),
    "column twice": content("text\ttext\na\tb\n", "'text' twice", "its own name"),
    "one label": content(
        GOOD.replace("weather", "music"), "('music',)", "give at least two"
    ),
    "too few rows": content("text\tlabel\na\tx\nb\ty\n", "data.tsv", "more rows"),
    "label outside the set": (
        ["--config=mine.py", "--config.data.valid_path=valid.tsv"],
        {"valid.tsv": "text\tlabel\nhello\tmusic\nhello\tmusik\n"},
        ("valid.tsv", "line 3", "label='musik'", "mean 'music'?"),
    ),
    "not JSON": (
        ["--config=mine.py", "--config.data.path=a.jsonl"],
        {"a.jsonl": '{"text": "a", "label": "x"}\n{"text": \n'},
        ("a.jsonl", "line 2 is not JSON", "one JSON object a line"),
    ),
    "not gzip": (
        ["--config=mine.py", "--config.data.path=a.tsv.gz"],
        {"a.tsv.gz": GOOD},
        ("a.tsv.gz", "not a whole gzip file", "copy it again"),
    ),
    "NaN among numbers": (
        ["--config=mine.py:numbers"],
        {"data.tsv": NUMBERS.replace("7\t1\t1", "nan\t1\t1", 1)},
        ("line 9", "x='nan'", "give a finite number"),
    ),
    "text among numbers": (
        ["--config=mine.py:numbers"],
        {"data.tsv": NUMBERS.replace("7\t1\t1", "7\tabc\t1", 1)},
        ("line 9", "y='abc'", "give a finite number"),
    ),
    "unknown vocabulary": field("data.vocabulary", "hash", "did you mean 'hashed'?"),
    "vocabulary size 1": field("data.vocabulary_size", "1", "=1 must be >= 2"),
    "max_length 0": field("data.max_length", "0", "=0 must be >= 1"),
    "all for validation": field("data.valid_fraction", "1", "=1.0", "below 1"),
    "none for validation": both(
        "data.valid_fraction=0",
        words=("'data.tsv' has no valid examples", "raise data.valid_fraction"),
    ),
    "negative limit": field("data.limit", "-1", "=-1", "0 takes all"),
    # The command.
    "no config": ([], {}, ("--config is missing; try --config=configs/",)),
    "missing config": (["--config=mien.py"], {}, ("looked for /", "mean 'mine.py'?")),
    "unknown variant": (["--config=mine.py:smoek"], {}, ("'smoek' is no variant",)),
    "unknown flag": (["--config=mine.py", "--wokdir=a"], {}, ("mean --workdir?",)),
    "unknown field": both("privacy.epsilom=1", words=("mean privacy.epsilon?",)),
    "field of another tree": both("model.steps=1", words=("mean train.steps?",)),
    "workdir is a file": (
        ["--config=mine.py", "--workdir=data.tsv"],
        {},
        ("workdir='data.tsv' is a file; name a directory",),
    ),
    "workdir with other things": (
        ["--config=mine.py", "--workdir=."],
        {},
        ("workdir='.'", "no run of ours", "choose an empty or a new directory"),
    ),
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(CONFIG)
    (tmp_path / "data.tsv").write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TRUSTML_DATA", raising=False)
    return tmp_path


def snapshot(directory: pathlib.Path):
    files = [p for p in directory.rglob("*") if "__pycache__" not in p.parts]
    return {p: p.read_bytes() if p.is_file() else None for p in files}


def refused(argv, words, capsys, directory: pathlib.Path):
    """Runs the command and checks all that the contract asks of a refusal."""
    before = snapshot(directory)
    code = run.main(argv)
    out, err = capsys.readouterr()
    assert code == 2
    assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n")
    assert "Traceback" not in out + err
    for word in words:
        assert word in err, err
    after = snapshot(directory)
    after.pop(directory / "runs", None)  # the parent of run directories may be made
    before.pop(directory / "runs", None)
    assert after == before


@pytest.mark.parametrize("name", COMMANDS)
def test_wrong_commands(here, capsys, name):
    argv, files, words = COMMANDS[name]
    for file, text in files.items():
        text = text if isinstance(text, bytes) else text.encode()
        (here / file).write_bytes(text)
    refused(argv, words, capsys, here)


def test_the_table_is_long_enough():
    assert len(COMMANDS) >= 40


def _begun(here) -> specs.RunConfig:
    """The directory of a run that was begun, with its config.json."""
    command = run.parse(["--config=mine.py", "--workdir=begun"])
    run.claim(command.workdir, command.config)
    return command.config


def test_workdir_of_another_config(here, capsys):
    _begun(here)
    (here / "begun/metrics.jsonl").write_text("{}\n")
    argv = ["--config=mine.py", "--workdir=begun", "--config.train.batch_size=20"]
    words = ("workdir='begun'", "train.batch_size is 16 there and 20", "choose another")
    refused(argv, words, capsys, here)


def test_interrupted_run_whose_data_changed(here, capsys, monkeypatch):
    argv = ["--config=mine.py", "--workdir=begun", "--config.optimizer.name=sgd"]

    def interrupt(self, step, state):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(writer.Writer, "write", interrupt)
        assert run.main(argv) == 130
    capsys.readouterr()
    (here / "data.tsv").write_text(at(4, "another song\tmusic"))
    words = (
        "begun/checkpoints/00000000' was made with other data (data.path='data.tsv')",
        "undo that change, choose another workdir, or delete this one",
    )
    refused(argv, words, capsys, here)


def test_checkpoint_of_another_model(here, capsys, monkeypatch):
    """A run whose directory got the checkpoint of another: by digest, by leaves."""
    _begun(here)
    argv = ["--config=mine.py", "--workdir=begun"]
    other = {"state": {"w": np.zeros(3, np.float32)}, "sampling": 0}
    place = here / "begun/checkpoints"
    checkpoint.Checkpointer(place, digest="another").save(1, other)
    words = ("checkpoint=", "digest 'another'", "choose another workdir, or delete")
    refused(argv, words, capsys, here)

    opened = checkpoint.Checkpointer.__init__

    def open_as_another(self, directory, *, digest="", parts=(), keep=2):
        opened(self, directory, digest="another", keep=keep)

    monkeypatch.setattr(checkpoint.Checkpointer, "__init__", open_as_another)
    words = ("checkpoint=", "another model or optimizer: state/", "is not in it")
    refused(argv, words, capsys, here)

    (place / "00000001/meta.json").write_text("{")
    refused(argv, ("is damaged; delete it", "the start"), capsys, here)
