"""A run that is finished says so, unless its data file changed since."""

import json

import pytest

from launch import run as launch
from trustml import config as config_lib
from trustml.experiments import build, compare, finished, train, trust_report


def write_rows(path, count=300):
    rows = [f"word{n % 7} tail{n}\t{'ab'[n % 7 < 3]}" for n in range(count)]
    path.write_text("text\tlabel\n" + "\n".join(rows) + "\n")


def make_config(experiment="train", **data):
    cfg = config_lib.default()
    cfg.experiment = experiment
    cfg.privacy.epsilon = 8.0 if experiment == "train" else None
    if experiment == "compare":
        cfg.privacy.noise_multiplier = 1.0
        cfg.privacy.group_size = 8
    for field, value in data.items():
        cfg.data[field] = value
    return config_lib.from_config_dict(cfg)


def finish(config, workdir, **data):
    """What a finished run leaves, as far as it matters here."""
    workdir.mkdir()
    (workdir / "report.json").write_text(json.dumps({"data": data}))
    (workdir / "report.html").write_text("a page")
    return workdir / "report.html"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "ok.tsv")
    return tmp_path


EXPERIMENTS = {
    "train": train.run,
    "trust_report": trust_report.run,
    "compare": compare.run,
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_refuses_data_that_changed(here, capsys, name):
    config, run = make_config(name, path="ok.tsv"), EXPERIMENTS[name]
    workdir = here / "run"
    page = finish(config, workdir, digest=build.dataset(config).digest)
    assert run(config, workdir) == page
    assert "finished already" in capsys.readouterr().out
    write_rows(here / "ok.tsv", 299)
    wanted = r"data\.path='ok\.tsv' changed since the run in .*/run' ended; choose "
    with pytest.raises(ValueError, match=wanted + "another --workdir, or delete"):
        run(config, workdir)
    assert "finished already" not in capsys.readouterr().out


def test_the_files_of_other_splits_count(here):
    write_rows(here / "test.tsv", 50)
    config = make_config(path="ok.tsv", test_path="test.tsv")
    finish(config, here / "run", digest=build.dataset(config).digest)
    write_rows(here / "test.tsv", 51)
    wanted = r"data\.path='ok\.tsv' or data\.test_path='test\.tsv' changed since"
    with pytest.raises(ValueError, match=wanted):
        train.run(config, here / "run")


def test_a_damaged_report_is_named(here):
    config = make_config(path="ok.tsv")
    finish(config, here / "run", digest=build.dataset(config).digest)
    path = here / "run" / "report.json"
    path.write_text(path.read_text()[:9])
    with pytest.raises(ValueError, match=r"run/report.json' is damaged \("):
        train.run(config, here / "run")


def test_what_has_no_file_or_no_record_returns_at_once(here, monkeypatch):
    """A built-in data set; a report of the time before digests were recorded."""
    monkeypatch.setattr(build, "dataset", None)
    config = make_config(name="snips")
    page = finish(config, here / "a", digest="of something")
    assert train.run(config, here / "a") == page
    config = make_config(path="ok.tsv")
    page = finish(config, here / "b", name="ok")
    assert train.run(config, here / "b") == page


def test_a_whole_run_records_its_data(here, capsys):
    (here / "mine.py").write_text(
        "from trustml import config\n"
        "def get_config(arg=''):\n"
        "    cfg = config.default()\n"
        "    cfg.data.path = 'ok.tsv'\n"
        "    cfg.data.vocabulary_size, cfg.model.width = 64, 4\n"
        "    cfg.model.hidden = ()\n"
        "    cfg.privacy.noise_multiplier, cfg.privacy.accountant = 1.0, 'rdp'\n"
        "    cfg.privacy.check, cfg.optimizer.name = False, 'sgd'\n"
        "    cfg.train.steps, cfg.train.batch_size = 2, 16\n"
        "    return cfg\n"
    )
    assert launch.main(["--config=mine.py"]) == 0
    report = json.loads((here / "runs/mine/report.json").read_text())
    assert report["data"]["digest"]
    assert launch.main(["--config=mine.py"]) == 0
    assert "finished already" in capsys.readouterr().out
    before = (here / "runs/mine/report.json").read_bytes()
    write_rows(here / "ok.tsv", 200)
    assert launch.main(["--config=mine.py"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith("error: data.path='ok.tsv' changed since the run in")
    assert (here / "runs/mine/report.json").read_bytes() == before


@pytest.mark.parametrize(
    "text", ['{"valid": 0.5}', '{"valid": 0.', "[1]", '{"valid": 1, "made_of": "b"}']
)
def test_what_was_kept_by_another_version_or_cut_off_is_not_there(tmp_path, text):
    path = tmp_path / "valid.json"
    assert finished.kept(path, "a", "made_of") is None
    path.write_text(text)
    assert finished.kept(path, "a", "made_of") is None
    path.write_text('{"valid": 1, "made_of": "a"}')
    assert finished.kept(path, "a", "made_of") == {"valid": 1}
