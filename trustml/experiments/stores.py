"""Client stores on disk: a directory of `.npy` files and a manifest with digests.

The manifest is written last, and the directory made aside and renamed into place, so a
directory that can be loaded is whole. Loading maps the files read-only: ten million
clients cost next to nothing until their rows are asked for. A file that was cut or
altered since is an error which names it; the check reads every byte once, in pieces.

Example::

    stores.save(held, 'runs/plays')
    held = stores.load('runs/plays')            # memory-mapped
"""

import functools
import hashlib
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np

from trustml import _validate
from trustml.federated import store

FORMAT = 1
_MANIFEST = "manifest.json"
_CHUNK = 1 << 22  # bytes


def save(held: store.ClientStore, directory: str | os.PathLike) -> pathlib.Path:
    """Writes a store; returns its directory.

    Raises:
      FileExistsError: if something is there already.
    """
    final = pathlib.Path(directory).expanduser().absolute()
    if final.exists():
        raise FileExistsError(
            f"directory={str(directory)!r} exists; give a new one, or remove it."
        )
    final.parent.mkdir(parents=True, exist_ok=True)
    aside = final.with_name(f".{final.name}-{uuid.uuid4().hex}")
    aside.mkdir()
    try:
        store.copy(held, functools.partial(create, aside))
        write_manifest(aside, held.digest)
        aside.rename(final)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return final


def create(folder: pathlib.Path, name: str, shape, dtype) -> np.ndarray:
    """A new file for one array, mapped so that it can be filled in pieces.

    For stores that are too large to be made in memory: fill such arrays, seal them with
    `store.seal` and write the manifest.
    """
    path = folder / f"{name}.npy"
    return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)


def write_manifest(folder: pathlib.Path, digest: str) -> None:
    """Lists the `.npy` files of a folder with shapes, types and SHA-256 digests."""
    files = {}
    for path in sorted(folder.glob("*.npy")):
        array = _open(path, memmap=True)
        files[path.stem] = {
            "shape": list(array.shape),
            "dtype": array.dtype.str,
            "bytes": path.stat().st_size,
            "sha256": _file_digest(path),
        }
    table = {"format": FORMAT, "digest": digest, "files": files}
    (folder / _MANIFEST).write_text(json.dumps(table, indent=1) + "\n")


def load(
    directory: str | os.PathLike, *, memmap: bool = True, check: bool = True
) -> store.ClientStore:
    """The store that `save` wrote, its arrays read-only.

    Args:
      directory: what `save` was given.
      memmap: map the files; False reads them into memory.
      check: compare the digest of every file; sizes are compared in any case.

    Raises:
      FileNotFoundError: if there is no such directory, or no manifest in it.
      ValueError: if a file is missing, cut or altered, or the manifest is no manifest.
    """
    folder = _validate.existing_directory("directory", directory, "save a store there")
    manifest = _read_manifest(folder)
    named = {}
    for name, entry in manifest["files"].items():
        path = folder / f"{name}.npy"
        _check_file(path, entry, check)
        named[name] = _open(path, memmap)
    return store.from_named(named, manifest["digest"])


def _read_manifest(folder: pathlib.Path) -> Mapping[str, Any]:
    path = _validate.existing_file(
        "manifest", folder / _MANIFEST, "the directory holds no store, or half of one"
    )
    try:
        manifest = json.loads(path.read_bytes())
        found = manifest["format"]
        whole = "offsets" in manifest["files"] and isinstance(manifest["digest"], str)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"manifest={str(path)!r} is not one of a store ({error!r}); save it again."
        ) from error
    if found != FORMAT or not whole:
        raise ValueError(
            f"manifest={str(path)!r} has format {found!r} and this version reads "
            f"{FORMAT}; save the store again with this version."
        )
    return manifest


def _check_file(path: pathlib.Path, entry: Mapping[str, Any], digest: bool) -> None:
    if not path.is_file():
        raise ValueError(
            f"file={str(path)!r} is named by the manifest and not there; copy the "
            "directory again."
        )
    size = path.stat().st_size
    if size != entry["bytes"]:
        raise ValueError(
            f"file={str(path)!r} has {size} bytes and the manifest says "
            f"{entry['bytes']}; it was cut or altered, copy the directory again."
        )
    if digest and _file_digest(path) != entry["sha256"]:
        raise ValueError(
            f"file={str(path)!r} has another SHA-256 digest than the manifest says; it "
            "was altered, copy the directory again."
        )


def _file_digest(path: pathlib.Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:  # read, not mapped: mapped pages would stay resident
        while piece := file.read(_CHUNK):
            found.update(piece)
    return found.hexdigest()


def _open(path: pathlib.Path, memmap: bool) -> np.ndarray:
    if memmap:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    array = np.load(path, allow_pickle=False)
    array.setflags(write=False)
    return array
