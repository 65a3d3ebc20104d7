"""The driver: one compilation, groups kept and taken up again, sizes found out."""

import json
import shutil

import jax
import numpy as np
import optax
import pytest

from trustml import parallel
from trustml import task as task_lib
from trustml.attacks import designs, signals
from trustml.attacks import shadows as engine
from trustml.experiments import shadows

N, D, C, M = 40, 3, 2, 6


def init(key):
    return {"w": jax.random.normal(key, (D, C))}


def predict(params, example):
    return jax.nn.log_softmax(example["features"] @ params["w"])


TASK = task_lib.classification(init, predict)
DESIGN = designs.paired(M, N, seed=0)
SCORE = signals.of(TASK)


def make_train(steps):
    return engine.trainer(
        TASK.init, TASK.loss, optax.sgd(0.5), steps=steps or 5, batch_size=4
    )


def make_columns():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(N, D)).astype(np.float32)
    return {"features": features, "label": (features[:, 0] > 0).astype(np.int32)}


@pytest.fixture
def columns():
    return make_columns()


@pytest.fixture
def own():
    return engine.inputs(jax.random.key(0), DESIGN.index)


def run(columns, own, workdir, **changes):
    options = {"group_size": 2, "quiet": True, "fingerprint": "a"}
    options |= {"devices": parallel.devices(1), "workdir": workdir} | changes
    return shadows.run(make_train, SCORE, columns, own, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run: its directory, what it found, and what was compiled for it."""
    workdir, compiled = tmp_path_factory.mktemp("whole"), []
    compile_ = jax.stages.Lowered.compile

    def counted(lowered, *args, **kwargs):
        compiled.append(lowered)
        return compile_(lowered, *args, **kwargs)

    own = engine.inputs(jax.random.key(0), DESIGN.index)
    options = {"group_size": 2, "quiet": True, "fingerprint": "a"}
    options |= {"devices": parallel.devices(1), "workdir": workdir}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.stages.Lowered, "compile", counted)
        found = shadows.run(make_train, SCORE, make_columns(), own, **options)
    return workdir, found, compiled


@pytest.fixture
def copied(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "copied")
    return tmp_path / "copied"


def test_every_model_as_if_alone_and_one_compilation(columns, own, whole):
    workdir, (margin, log_prob), compiled = whole
    assert margin.shape == log_prob.shape == (M, N, 1)
    alone = jax.jit(shadows.group_of(make_train(None), SCORE))
    for m in range(M):
        want = alone(columns, engine.take(own, np.array([m])))
        np.testing.assert_allclose(margin[m], want[0][0], atol=1e-5)
        np.testing.assert_allclose(log_prob[m], want[1][0], atol=1e-5)
    assert len(compiled) == 1, "three groups, one program"
    rows = (workdir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [2, 4, 6]


def test_layouts_give_the_same(columns, own, tmp_path, whole):
    got, _ = run(columns, own, tmp_path, devices=parallel.devices(2))
    np.testing.assert_allclose(got, whole[1][0], atol=1e-5)


def test_what_is_kept_whole_is_not_trained_again(columns, own, copied, whole, capsys):
    want, _ = whole[1]
    files = sorted((copied / "shadows").iterdir())
    assert [file.name for file in files] == [f"models_0000{m}_2.npz" for m in (0, 2, 4)]
    files[0].write_bytes(files[0].read_bytes()[:100])
    files[1].unlink()
    stamp = files[2].stat().st_mtime_ns
    # Other inputs show who is trained: all but models 4 and 5.
    other = engine.inputs(jax.random.key(1), DESIGN.index)
    got, _ = run(columns, other, copied, group_size=0, quiet=False)
    said = capsys.readouterr().out
    assert "1 kept groups are of other data or settings" in said
    assert "trained at once" not in said, "the kept size is taken"
    same = [np.allclose(got[m], want[m], atol=1e-3) for m in range(M)]
    assert same == [False] * 4 + [True] * 2
    assert files[2].stat().st_mtime_ns == stamp
    again, _ = run(columns, own, copied)
    np.testing.assert_array_equal(again, got)


def test_another_fingerprint_keeps_nothing(copied):
    assert len(shadows._read(copied / "shadows", "a")[0]) == M
    assert shadows._read(copied / "shadows", "b") == ({}, 3, 0)
    assert list((copied / "shadows").iterdir()) == []


def test_a_killed_run_goes_on(columns, own, tmp_path, monkeypatch, whole):
    want, _ = whole[1]
    write, calls = shadows._write, []

    def killed(*args):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(args)
        write(*args)

    with monkeypatch.context() as patch:
        patch.setattr(shadows, "_write", killed)
        with pytest.raises(KeyboardInterrupt):
            run(columns, own, tmp_path)
    got, _ = run(columns, own, tmp_path)
    np.testing.assert_array_equal(got, want)
    texts = [(path / "metrics.jsonl").read_text() for path in (whole[0], tmp_path)]
    assert texts[0] == texts[1]


def test_memory_that_runs_out_halves_the_group_once(
    columns, own, tmp_path, monkeypatch, capsys
):
    train, sizes = shadows._train, []

    def small(program, columns, own, left, size, keep):
        sizes.append(size)
        if size > most:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        train(program, columns, own, left, size, keep)

    monkeypatch.setattr(shadows, "_train", small)
    most = 2
    run(columns, own, tmp_path / "a", group_size=4, quiet=False)
    assert sizes == [4, 2] and "do not fit into memory" in capsys.readouterr().out
    most = 1
    with pytest.raises(jax.errors.JaxRuntimeError):
        run(columns, own, tmp_path / "b", group_size=4)


def test_two_models_of_one_key_are_refused(columns, own, tmp_path):
    twice = engine.take(own, [0, 1, 0])
    with pytest.raises(ValueError, match="key of model=2 is that of model 0"):
        run(columns, twice, tmp_path)


def probe(seconds_of, columns, own, count=M):
    """The choice where a group of G takes `seconds_of[G]` by the clock."""
    now, asked = [0.0], []

    class Program:
        def __init__(self, size):
            self.size = size

        def __call__(self, *_):
            now[0] += seconds_of[self.size]
            return ()

    def vmap(train, axes):
        def fn(columns, own):
            asked.append(own.index.shape[0])
            return ()

        return fn

    with pytest.MonkeyPatch.context() as patch:
        lower = type("L", (), {})
        patch.setattr(shadows.jax, "vmap", vmap)

        def jit(fn):
            def lowered(columns, own):
                fn(columns, own)
                made = lower()
                made.compile = lambda: Program(own.index.shape[0])
                return made

            made = lower()
            made.lower = lowered
            return made

        patch.setattr(shadows.jax, "jit", jit)
        size = shadows.choose_group_size(
            make_train, SCORE, columns, own, parallel.devices(1), clock=lambda: now[0]
        )
    return size, asked


CLOCKS = {
    "no gain": ({1: 1.0, 2: 2.0}, 1, [1, 2]),
    "up to four": ({1: 1.0, 2: 1.5, 4: 2.0, 8: 4.0}, 4, [1, 2, 4, 8]),
    "as many as there are": ({1: 1, 2: 1, 4: 1, 8: 1}, 8, [1, 2, 4, 8]),
}


@pytest.mark.parametrize("seconds, size, tried", CLOCKS.values(), ids=CLOCKS)
def test_the_clock_decides_on_a_cpu(columns, own, seconds, size, tried):
    assert probe(seconds, columns, own) == (size, tried)


def test_the_real_probe_answers_with_a_power_of_two(columns, own):
    # Which one is the machine's affair.
    few = engine.take(own, [0, 1])
    size = shadows.choose_group_size(
        make_train, SCORE, columns, few, parallel.devices(1), steps=2
    )
    assert size in (1, 2)


def test_memory_decides_on_an_accelerator():
    # 10 + 5 (G - 1) <= 0.8 limit.
    assert shadows.fitting(10, 15, 1000, 64) == 64
    assert shadows.fitting(10, 15, 100, 64) == 8  # 45 fits in 80, 85 does not
    assert shadows.fitting(10, 15, 1, 64) == 1
    assert shadows.fitting(10, 9, 100, 32) == 32


def test_signals_come_back_as_they_were(tmp_path):
    margin = np.random.default_rng(0).normal(size=(M, N, 2)).astype(np.float32)
    made = signals.assemble(margin, margin, DESIGN, np.zeros(N), fingerprint="abc")
    for kept in (shadows.Kept(made, 2.5, 1e-5), shadows.Kept(made)):
        shadows.save(tmp_path / "s.npz", kept)
        found = shadows.load(tmp_path / "s.npz")
        assert found[1:] == kept[1:] and found.signals.fingerprint == "abc"
        for x, y in zip(found.signals[:-1], made[:-1], strict=True):
            np.testing.assert_array_equal(x, y)
            assert x.dtype == y.dtype
    np.savez(tmp_path / "other.npz", x=1)
    with pytest.raises(ValueError, match="does not hold signals of shadow models"):
        shadows.load(tmp_path / "other.npz")
