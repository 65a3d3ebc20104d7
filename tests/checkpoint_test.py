import errno
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trustml import checkpoint

_ROOT = pathlib.Path(__file__).resolve().parent.parent


class Noise(NamedTuple):
    key: jax.Array
    step: int


def _state(seed=0, width=3):
    draw = np.random.default_rng(seed)
    return {
        "params": {
            "kernel": jnp.asarray(draw.normal(size=(4, width)), jnp.float32),
            "half": jnp.asarray(draw.normal(size=5), jnp.bfloat16),
            "empty": jnp.zeros((0, 3), jnp.float32),
            "special": jnp.asarray([np.nan, -0.0, np.inf, 1e-45], jnp.float32),
        },
        "noise": Noise(jax.random.key(seed), 7),
        "keys": jax.random.split(jax.random.key(seed, impl="rbg"), 3),
        "counts": np.asarray(draw.integers(0, 2**60, size=4)),
        "scalars": [np.float64(0.1), np.int32(3), jnp.asarray(2, jnp.int32), True],
        "python": (2**127 + 1, 0.1, "text", None),
    }


def _bits(leaf):
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(
        leaf.dtype, jax.dtypes.prng_key
    ):
        leaf = jax.random.key_data(leaf)
    if isinstance(leaf, (jax.Array, np.ndarray, np.generic)):
        return np.asarray(leaf).dtype, np.shape(leaf), np.asarray(leaf).tobytes()
    return type(leaf), leaf


def _assert_same(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for one, two in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert type(one) is type(two)
        assert _bits(one) == _bits(two)


def test_round_trip_is_bit_exact(tmp_path):
    saver = checkpoint.Checkpointer(tmp_path / "c", digest="d")
    assert saver.restore(_state()) is None
    saver.save(3, _state(), {"epsilon": 1.25})
    found = checkpoint.Checkpointer(tmp_path / "c", digest="d").restore(_state(1))
    assert found.step == 3 and found.meta == {"epsilon": 1.25}
    _assert_same(found.state, _state())
    keys = found.state["keys"], _state()["keys"]
    draws = [jax.random.normal(key[1], (3,)) for key in keys]
    np.testing.assert_array_equal(*draws)


def test_template_may_be_abstract_and_sharded(tmp_path):
    mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.NamedSharding(mesh, jax.P("d"))
    state = {"x": jax.device_put(jnp.arange(8.0), sharding), "k": jax.random.key(3)}
    saver = checkpoint.Checkpointer(tmp_path)
    saver.save(1, state)
    restored = saver.restore(state).state
    assert restored["x"].sharding == sharding
    _assert_same(restored, state)
    abstract = jax.eval_shape(lambda: {"x": jnp.arange(8.0), "k": jax.random.key(0)})
    _assert_same(saver.restore(abstract).state, state)


def test_keeps_the_newest(tmp_path):
    saver = checkpoint.Checkpointer(tmp_path, keep=2)
    for step in (1, 2, 10):
        saver.save(step, {"x": np.full(3, step)})
    assert saver.steps() == [2, 10]
    saver.save(10, {"x": np.full(3, 11)})  # again: replaced
    assert saver.steps() == [2, 10]
    assert saver.restore({"x": np.zeros(3, int)}).state["x"][0] == 11
    assert sorted(os.listdir(tmp_path)) == ["00000002", "00000010"]


def test_refuses_other_digest(tmp_path):
    checkpoint.Checkpointer(tmp_path, digest="aaa").save(1, {"x": np.zeros(3)})
    with pytest.raises(ValueError, match="'aaa' of another configuration.*workdir"):
        checkpoint.Checkpointer(tmp_path, digest="bbb").restore({"x": np.zeros(3)})


def test_names_the_parts_of_a_digest_that_differ(tmp_path):
    state, parts = {"x": np.zeros(3)}, ("another model", "other data")
    checkpoint.Checkpointer(tmp_path, digest="a:b").save(1, state)

    def refusal(digest):
        with pytest.raises(ValueError) as error:
            saver = checkpoint.Checkpointer(tmp_path, digest=digest, parts=parts)
            saver.restore(state)
        return str(error.value)

    where = f"checkpoint={str(tmp_path / '00000001')!r} was made with"
    cure = "; undo that change, choose another workdir, or delete this one"
    assert refusal("a:c").startswith(f"{where} other data{cure}")
    assert refusal("c:d").startswith(f"{where} another model and other data{cure}")
    assert "the digest 'a:b' of another configuration ('a')" in refusal("a")


@pytest.mark.parametrize(
    ("template", "phrase"),
    [
        (
            {"a": {"w": np.zeros(4)}, "b": 1},
            r"a/w is float64\[3\] in it and float64\[4\]",
        ),
        (
            {"a": {"w": np.zeros(3, np.float32)}, "b": 1},
            r"a/w is float64\[3\] in it and float32\[3\] here",
        ),
        ({"a": {"w": np.zeros(3), "v": np.zeros(2)}, "b": 1}, "a/v is not in it"),
        ({"a": {"w": np.zeros(3)}}, "b is in it and not here"),
        ({"a": {"w": np.zeros(3)}, "b": 1.0}, "b is python int.* and python float"),
        ({"a": {"w": jax.random.split(jax.random.key(0), 3)}, "b": 1}, "key<fry>"),
    ],
)
def test_refuses_another_tree(tmp_path, template, phrase):
    saver = checkpoint.Checkpointer(tmp_path)
    saver.save(1, {"a": {"w": np.zeros(3)}, "b": 1})
    with pytest.raises(ValueError, match=phrase) as error:
        saver.restore(template)
    assert "\n" not in str(error.value)


def test_other_key_implementation_is_another_state(tmp_path):
    saver = checkpoint.Checkpointer(tmp_path)
    saver.save(1, {"k": jax.random.key(0)})
    with pytest.raises(ValueError, match="k is key<fry>.*key<rbg>"):
        saver.restore({"k": jax.random.key(0, impl="rbg")})


def test_refuses_what_it_cannot_save(tmp_path):
    with pytest.raises(ValueError, match="state f='function' cannot be saved"):
        checkpoint.Checkpointer(tmp_path).save(1, {"f": lambda x: x})
    with pytest.raises(ValueError, match="keep=0"):
        checkpoint.Checkpointer(tmp_path, keep=0)


@pytest.mark.parametrize("where", ["before", "within", "text"])
def test_full_disk_leaves_the_previous_one(tmp_path, monkeypatch, where):
    saver = checkpoint.Checkpointer(tmp_path, digest="d")
    saver.save(1, _state(1))

    def full(directory, arrays):
        if where == "within":
            real(directory, arrays)
        if where == "text":
            raise ValueError(
                "INTERNAL: write failed [OS error: No space left on device]"
            )
        raise OSError(errno.ENOSPC, "No space left on device")

    real = checkpoint._write
    monkeypatch.setattr(checkpoint, "_write", full)
    with pytest.raises(
        OSError, match="disk is full.*step 2.*step 1 is intact"
    ) as error:
        saver.save(2, _state(2))
    assert error.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["00000001"]
    found = saver.restore(_state())
    assert found.step == 1
    _assert_same(found.state, _state(1))


def test_other_errors_are_not_taken_for_a_full_disk(tmp_path, monkeypatch):
    def broken(directory, arrays):
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(checkpoint, "_write", broken)
    with pytest.raises(PermissionError):
        checkpoint.Checkpointer(tmp_path).save(1, {"x": np.zeros(2)})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("how", ["bits", "table", "missing"])
def test_damage_is_noticed(tmp_path, how):
    saver = checkpoint.Checkpointer(tmp_path)
    saver.save(1, {"x": np.arange(1000.0)})
    saver.save(2, {"x": np.random.default_rng(0).normal(size=1000)})
    path = tmp_path / "00000002"
    if how == "bits":
        biggest = max(path.rglob("d/*"), key=lambda p: p.stat().st_size)
        content = bytearray(biggest.read_bytes())
        content[len(content) // 2] ^= 1
        biggest.write_bytes(content)
    elif how == "table":
        (path / "meta.json").write_text((path / "meta.json").read_text()[:99])
    else:
        for file in path.rglob("d/*"):
            file.unlink()
    with pytest.raises(
        ValueError, match="is damaged; delete it to continue from step 1"
    ):
        saver.restore({"x": np.zeros(1000)})


def test_leftovers_of_a_killed_process(tmp_path):
    saver = checkpoint.Checkpointer(tmp_path)
    saver.save(1, {"x": np.zeros(2)})
    (tmp_path / "unfinished-00000002").mkdir()
    (tmp_path / "00000001").rename(tmp_path / "replaced-00000001")
    again = checkpoint.Checkpointer(tmp_path)
    assert again.steps() == [1] and os.listdir(tmp_path) == ["00000001"]


_SAVING_FOREVER = """
    import sys
    import jax
    import jax.numpy as jnp
    from trustml import checkpoint
    saver = checkpoint.Checkpointer(sys.argv[1], digest="d")
    like = {"a": jnp.zeros((300, 300)), "k": jax.random.key(0), "n": 0}
    found = saver.restore(like)
    step = found.step if found else 0
    if found:
        assert found.state["n"] == step, found.state["n"]
        assert bool((found.state["a"] == step).all())
        assert bool(found.state["k"] == jax.random.key(step))
    print("at", step, flush=True)
    while True:
        step += 1
        state = {"a": like["a"] + step, "k": jax.random.key(step), "n": step}
        saver.save(step, state)
        print("saved", step, flush=True)
"""


def test_kill_at_any_moment_loses_nothing(tmp_path):
    script = tmp_path / "saving.py"
    script.write_text(textwrap.dedent(_SAVING_FOREVER))
    command = [sys.executable, str(script), str(tmp_path / "c")]
    environment = os.environ | {"PYTHONPATH": str(_ROOT)}
    reached = 0
    for wait in (0.21, 0.13, 0.0):
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=environment
        )
        # Continues at, or one after, the last step announced: never before it.
        first = process.stdout.readline().split()
        assert first[0] == "at" and reached <= int(first[1]) <= reached + 1
        process.stdout.readline()
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        lines = process.communicate()[0].splitlines()
        steps = [int(line.split()[1]) for line in lines if line.startswith("saved ")]
        reached = max([int(first[1]) + 1, *steps])
    saver = checkpoint.Checkpointer(tmp_path / "c", digest="d")
    like = {"a": jnp.zeros((300, 300)), "k": jax.random.key(0), "n": 0}
    found = saver.restore(like)
    assert found.step in (reached, reached + 1) and found.state["n"] == found.step
    assert reached >= 3
