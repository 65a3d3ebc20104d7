"""Checkpoints that survive `kill -9` and a full disk, and refuse to be mistaken.

A checkpoint of step s is the directory `<dir>/<s>`: the arrays, written by orbax, and
`meta.json`: the run's digest, one line per leaf (path, shape, dtype, checksum) and the
caller's own `meta`. It is written under another name and renamed when complete, so
what has the final name is whole. Only then are older ones removed.

The state is any pytree of JAX arrays, NumPy arrays and scalars, typed PRNG keys, Python
numbers and text; it comes back bit for bit, of the types that the template has.

Example::

    saver = checkpoint.Checkpointer(workdir / 'checkpoints', digest=config.digest(cfg))
    found = saver.restore(state)          # None at the first start
    step, state = (found.step, found.state) if found else (0, state)
    ...
    saver.save(step, state, {'epsilon': 1.2})
"""

import contextlib
import errno
import json
import logging
import os
import pathlib
import shutil
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from trustml import _validate

_PYTHON = (bool, int, float, str)  # kept in meta.json; integers of any size
_TEMPORARY = "unfinished-"
_REPLACED = "replaced-"


class Restored(NamedTuple):
    """What `Checkpointer.restore` found.

    Attributes:
      step: of the checkpoint.
      state: like the template.
      meta: what was given to `save`.
    """

    step: int
    state: Any
    meta: dict[str, Any]


class _Leaf(NamedTuple):
    """One row of the table in `meta.json`."""

    path: str
    shape: tuple[int, ...]
    dtype: str  # NumPy's name, 'key<fry>' of a PRNG key, or 'python int'
    value: Any = None  # of Python scalars
    impl: str = ""  # of PRNG keys
    crc: int = 0  # zlib.crc32 of the bytes


def _is_key(leaf: Any) -> bool:
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)


def _describe(path: Any, leaf: Any) -> _Leaf:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    if isinstance(leaf, _PYTHON) and not isinstance(leaf, np.generic):
        return _Leaf(name, (), f"python {type(leaf).__name__}")
    if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
        cure = "keep arrays, numbers, text and PRNG keys in the state"
        _validate.fail(f"state {name}", type(leaf).__name__, "cannot be saved", cure)
    return _Leaf(name, tuple(leaf.shape), str(leaf.dtype))


def _pack(path: Any, leaf: Any) -> tuple[_Leaf, np.ndarray | None]:
    """The row of a leaf and its contents as a flat array; None where it has none."""
    row = _describe(path, leaf)
    if row.dtype.startswith("python "):
        return row._replace(value=leaf), None
    if _is_key(leaf):
        row = row._replace(impl=str(jax.random.key_impl(leaf)))
        leaf = jax.random.key_data(leaf)
    flat = np.array(leaf).reshape(-1)  # a copy: the caller may donate the original
    row = row._replace(crc=zlib.crc32(flat.tobytes()))
    return row, flat if flat.size else None  # orbax does not take empty arrays


def _unpack(row: _Leaf, flat: np.ndarray | None, template: Any) -> Any:
    if row.dtype.startswith("python "):
        return row.value
    sharding = getattr(template, "sharding", None)
    if _is_key(template):
        data = np.zeros(0, np.uint32) if flat is None else flat
        width = jax.random.key_data(jax.random.key(0, impl=row.impl)).shape
        data = jnp.asarray(data.reshape(row.shape + width), jnp.uint32)
        return jax.device_put(jax.random.wrap_key_data(data, impl=row.impl), sharding)
    dtype = np.dtype(template.dtype)
    array = np.zeros(row.shape, dtype) if flat is None else flat
    array = np.asarray(array, dtype).reshape(row.shape)
    if isinstance(template, np.generic):
        return array[()]
    if isinstance(template, np.ndarray):
        return array
    return jax.device_put(array, sharding)


def _sync(path: pathlib.Path) -> None:
    """Asks the operating system to put a file or a directory's entries on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _is_disk_full(error: BaseException | None) -> bool:
    while error is not None:
        number = getattr(error, "errno", None)
        # tensorstore reports a failed write as a ValueError with the system's text.
        if number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def _without_log() -> Iterator[None]:
    """Keeps orbax from printing the traces of errors that are raised here anyway."""
    logger = logging.getLogger("absl")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _write(directory: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    with _without_log():
        ocp.PyTreeCheckpointer().save(directory, arrays)


def _read(directory: pathlib.Path) -> dict[str, np.ndarray]:
    with _without_log():
        return ocp.PyTreeCheckpointer().restore(directory)


class Checkpointer:
    """Saves and restores the state of one run in one directory."""

    def __init__(
        self,
        directory: str | os.PathLike,
        *,
        digest: str = "",
        parts: Sequence[str] = (),
        keep: int = 2,
    ):
        """Opens `directory`, which is made at the first save.

        Args:
          directory: only checkpoints belong in it.
          digest: of the configuration; a checkpoint with another one is refused.
          parts: where colons divide `digest`, what the refusal says of each part that
            differs, such as 'other data'.
          keep: complete checkpoints that remain after a save, at least 1.
        """
        self.directory = pathlib.Path(directory).absolute()
        self._digest = digest
        self._parts = tuple(parts)
        self._keep = _validate.integer_at_least("keep", keep, 1)
        self._clean()

    def _clean(self) -> None:
        """Removes what a killed process left; puts back what it was replacing."""
        if not self.directory.is_dir():
            return
        for path in self.directory.glob(f"{_REPLACED}*"):
            original = self.directory / path.name.removeprefix(_REPLACED)
            if original.exists():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.rename(original)
        for path in self.directory.glob(f"{_TEMPORARY}*"):
            shutil.rmtree(path, ignore_errors=True)

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, ascending."""
        if not self.directory.is_dir():
            return []
        names = (path.name for path in self.directory.iterdir() if path.is_dir())
        return sorted(int(name) for name in names if name.isdecimal())

    def _path(self, step: int) -> pathlib.Path:
        return self.directory / f"{step:08d}"

    def save(self, step: int, state: Any, meta: dict[str, Any] | None = None) -> None:
        """Writes a checkpoint and removes all but the newest `keep`; returns when done.

        Args:
          step: updates made so far, >= 0.
          state: pytree; copied before anything is written.
          meta: small and JSON-like.
        Raises:
          OSError: the disk is full; earlier checkpoints are as they were.
          ValueError: a leaf that cannot be saved.
        """
        step = _validate.integer_at_least("step", step, 0)
        leaves = jax.tree_util.tree_flatten_with_path(state)[0]
        packed = [_pack(path, leaf) for path, leaf in leaves]
        arrays = {f"{i:05d}": flat for i, (_, flat) in enumerate(packed)}
        arrays = {name: flat for name, flat in arrays.items() if flat is not None}
        table = {
            "step": step,
            "digest": self._digest,
            "meta": meta or {},
            "leaves": [row._asdict() for row, _ in packed],
        }
        temporary = self.directory / f"{_TEMPORARY}{step:08d}"
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            if arrays:
                _write(temporary / "arrays", arrays)
            (temporary / "meta.json").write_text(json.dumps(table, indent=1))
            _sync(temporary / "meta.json")
            _sync(temporary)
            self._publish(temporary, step)
        except Exception as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if not _is_disk_full(error):
                raise
            raise OSError(errno.ENOSPC, self._disk_full(step, arrays)) from error
        for old in self.steps()[: -self._keep]:
            shutil.rmtree(self._path(old), ignore_errors=True)

    def _publish(self, temporary: pathlib.Path, step: int) -> None:
        final = self._path(step)
        replaced = self.directory / f"{_REPLACED}{final.name}"
        if final.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            final.rename(replaced)
        temporary.rename(final)
        _sync(self.directory)
        shutil.rmtree(replaced, ignore_errors=True)

    def _disk_full(self, step: int, arrays: dict[str, np.ndarray]) -> str:
        needed = sum(flat.nbytes for flat in arrays.values()) / 1e6
        kept = self.steps()
        intact = (
            f"the checkpoint of step {kept[-1]} is intact" if kept else "none is lost"
        )
        return (
            f"the disk is full: the checkpoint of step {step} needs about "
            f"{needed:.1f} MB in {self.directory}; {intact}, so free some space and "
            "run the same command again."
        )

    def restore(self, template: Any) -> Restored | None:
        """The newest checkpoint; None where there is none.

        Args:
          template: the state as the run would start with it (or its `jax.eval_shape`);
            gives the structure, the types of leaves and where arrays are placed.
        Raises:
          ValueError: a checkpoint of another configuration or model (naming the first
            leaf that differs), or one that was damaged after it was written.
        """
        steps = self.steps()
        if not steps:
            return None
        path = self._path(steps[-1])
        cure = "choose another workdir, or delete this one to start anew"
        damaged = (
            f"checkpoint {path} is damaged; delete it to continue from "
            f"{f'step {steps[-2]}' if len(steps) > 1 else 'the start'}."
        )
        try:
            table = json.loads((path / "meta.json").read_text())
            rows = [
                _Leaf(**r)._replace(shape=tuple(r["shape"])) for r in table["leaves"]
            ]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ValueError(damaged) from error
        if table["digest"] != self._digest:
            self._refuse(path, table["digest"], cure)
        leaves, structure = jax.tree_util.tree_flatten_with_path(template)
        wanted = [_describe(p, leaf) for p, leaf in leaves]
        if difference := _first_difference(rows, wanted):
            bound = f"holds another model or optimizer: {difference}"
            _validate.fail("checkpoint", str(path), bound, cure)
        try:
            arrays = _read(path / "arrays") if (path / "arrays").is_dir() else {}
            flats = [arrays.get(f"{i:05d}") for i in range(len(rows))]
        except Exception as error:  # orbax and tensorstore have no common error
            raise ValueError(damaged) from error
        for row, flat in zip(rows, flats, strict=True):
            content = b"" if flat is None else np.asarray(flat).tobytes()
            if zlib.crc32(content) != row.crc and not row.dtype.startswith("python "):
                raise ValueError(damaged)
        restored = [
            _unpack(row, flat, leaf)
            for row, flat, (_, leaf) in zip(rows, flats, leaves, strict=True)
        ]
        state = jax.tree_util.tree_unflatten(structure, restored)
        return Restored(table["step"], state, table["meta"])

    def _refuse(self, path: pathlib.Path, digest: str, cure: str) -> NoReturn:
        """Raises for the checkpoint at `path`, whose digest is not ours."""
        there, here = digest.split(":"), self._digest.split(":")
        if not len(there) == len(here) == len(self._parts):
            bound = f"has the digest {digest!r} of another configuration"
            _validate.fail("checkpoint", str(path), f"{bound} ({self._digest!r})", cure)
        pairs = zip(self._parts, there, here, strict=True)
        differ = [part for part, old, new in pairs if old != new]
        bound = f"was made with {' and '.join(differ)}"
        _validate.fail("checkpoint", str(path), bound, f"undo that change, {cure}")


def _first_difference(saved: list[_Leaf], wanted: list[_Leaf]) -> str:
    """What differs first, as a phrase; '' where nothing does."""
    have, want = {row.path: row for row in saved}, {row.path: row for row in wanted}
    for path, row in want.items():
        if path not in have:
            return f"{path} is not in it"
        there = have[path]
        if (there.shape, there.dtype) != (row.shape, row.dtype):
            return (
                f"{path} is {there.dtype}{list(there.shape)} in it "
                f"and {row.dtype}{list(row.shape)} here"
            )
    for path in have:
        if path not in want:
            return f"{path} is in it and not here"
    if [row.path for row in saved] != [row.path for row in wanted]:
        return "its leaves come in another order"
    return ""
