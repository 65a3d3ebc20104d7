import io
import json
import struct
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import tensorboardX.proto.event_pb2 as event_pb2

from trustml import writer


class _Clock:
    """Seconds that pass only when told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def _open(path, *, stream=None, clock=None, **options):
    stream = io.StringIO() if stream is None else stream
    return writer.Writer(path, 40, stream=stream, clock=clock or _Clock(), **options)


def _events(path):
    """(step, name, value) of every scalar in the event files of a directory."""
    found = []
    for file in sorted(path.iterdir()):
        content, at = file.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack("<Q", content[at : at + 8])
            event = event_pb2.Event.FromString(content[at + 12 : at + 12 + length])
            at += 16 + length
            found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
    return found


def test_rows_are_flushed_and_exact(tmp_path):
    out = _open(tmp_path)
    out.write(10, {"loss": jnp.asarray(0.1), "n": np.int64(3), "ok": True})
    out.write(20, {"half": jnp.asarray(1.5, jnp.bfloat16), "nan": np.nan, "no": None})
    text = (tmp_path / "metrics.jsonl").read_text()  # before it is closed
    out.close()
    assert text.splitlines() == [
        '{"step": 10, "loss": 0.10000000149011612, "n": 3, "ok": 1}',
        '{"step": 20, "half": 1.5, "nan": null, "no": null}',
    ]
    assert writer.read(tmp_path / "metrics.jsonl")[0]["n"] == 3


def test_wrong_metrics(tmp_path):
    with _open(tmp_path) as out:
        with pytest.raises(ValueError, match="metric loss=.*not a scalar; reduce it"):
            out.write(1, {"loss": np.zeros(3)})
        with pytest.raises(ValueError, match="metric loss='x' is not a scalar"):
            out.write(1, {"loss": "x"})
        with pytest.raises(ValueError, match="metric='step' is taken"):
            out.write(1, {"step": 3})
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""
    with pytest.raises(ValueError, match="total_steps=0"):
        writer.Writer(tmp_path, 0)


def _train(path, start, stop, resume_step, clock):
    with _open(path, resume_step=resume_step, clock=clock) as out:
        for step in range(start, stop + 1):
            clock.now += 0.5
            out.write(step, {"loss": 1 / (step + 3), "epsilon": step**0.5})


def test_resumed_file_has_the_same_bytes(tmp_path):
    _train(tmp_path / "a", 0, 9, None, _Clock())
    clock = _Clock()
    _train(tmp_path / "b", 0, 7, None, clock)  # killed after 7; checkpoint at 5
    with (tmp_path / "b" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')  # within a write
    clock.now += 1000
    _train(tmp_path / "b", 6, 9, 5, clock)
    first, second = (tmp_path / name / "metrics.jsonl" for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    timing = [tmp_path / name / "timing.jsonl" for name in "ab"]
    assert [len(writer.read(path)) for path in timing] == [10, 12]
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == [
        "metrics.jsonl",
        "tensorboard",
        "timing.jsonl",
    ]


def test_a_new_start_drops_everything(tmp_path):
    _train(tmp_path, 0, 3, None, _Clock())
    _train(tmp_path, 1, 2, None, _Clock())
    assert [r["step"] for r in writer.read(tmp_path / "metrics.jsonl")] == [1, 2]
    assert [r["step"] for r in writer.read(tmp_path / "timing.jsonl")] == [1, 2]


def test_read_leaves_out_an_incomplete_line(tmp_path):
    (tmp_path / "m").write_text('{"step": 1}\n{"st')
    assert writer.read(tmp_path / "m") == [{"step": 1}]


def test_clock_readings_have_their_own_file(tmp_path):
    clock = _Clock()
    with _open(tmp_path, clock=clock, examples_per_step=64) as out:
        for step in (1, 11, 21):
            clock.now += 2.0
            out.write(step, {"loss": 1.0}, {"memory_bytes": 7})
    rows = writer.read(tmp_path / "timing.jsonl")
    assert rows[0] == {"step": 1, "wall_seconds": 2.0, "memory_bytes": 7}
    assert rows[2]["examples_per_second"] == 64 * 10 / 2.0
    assert "second" not in (tmp_path / "metrics.jsonl").read_text()


def test_tensorboard(tmp_path):
    with _open(tmp_path) as out:
        out.write(5, {"loss": 0.25, "bad": np.inf})
        out.write(6, {"loss": 0.125})
    assert _events(tmp_path / "tensorboard") == [(5, "loss", 0.25), (6, "loss", 0.125)]


def test_plain_lines_every_few_seconds(tmp_path):
    stream, clock = io.StringIO(), _Clock()
    options = {"examples_per_step": 100, "epsilon_budget": 8.0, "name": "run"}
    with _open(tmp_path, stream=stream, clock=clock, **options) as out:
        for step in range(1, 41):
            clock.now += 1.0
            out.write(step, {"nonprivate/loss": 1 / step, "epsilon": step / 10})
        out.say("done")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "run 1/40  loss 1.0000  ε 0.100/8"
    assert lines[1] == ("run 6/40  loss 0.1667  ε 0.600/8  100 examples/s  0:34 left")
    assert lines[-2].endswith(
        "40/40  loss 0.0250  ε 4.000/8  100 examples/s  0:40 in all"
    )
    assert lines[-1] == "done" and len(lines) == 1 + 7 + 1 + 1


def test_text_fits_the_encoding_of_the_stream(tmp_path):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with _open(tmp_path, stream=stream) as out:
        out.write(1, {"epsilon": 1.0})
    stream.seek(0)
    assert stream.read() == "step 1/40  epsilon 1.000\n"


def test_quiet_writes_files_only(tmp_path):
    stream = io.StringIO()
    with _open(tmp_path, stream=stream, quiet=True) as out:
        out.write(1, {"loss": 1.0})
        out.say("x")
    assert stream.getvalue() == ""
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["loss"] == 1.0


def test_progress_line_on_a_terminal(tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        encoding = "utf-8"

        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    stream = Terminal()
    with _open(tmp_path, stream=stream, epsilon_budget=8.0) as out:
        out.write(40, {"loss": 0.5, "epsilon": 2.0})
        out.say("[a note]")
    text = stream.getvalue()
    assert "40/40  loss 0.5000  ε 2.000/8" in text and "[a note]" in text
    out.close()


def test_torch_is_not_loaded(tmp_path):
    before = "torch" in sys.modules
    _open(tmp_path).close()
    assert ("torch" in sys.modules) is before
