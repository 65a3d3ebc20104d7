"""TFDS builders of the public data sets, over local files and without TensorFlow.

One builder, `TrustmlData`, with a configuration for each set of `sources`. It writes
array_record files, which need neither TensorFlow nor protocol buffers of it, and is
read as a data source. Nothing is downloaded.

What was prepared is kept in `$TRUSTML_CACHE/tfds`, else `~/.cache/trustml/tfds`, else
(where that is read-only) in a directory of this user under the system's temporary
one. The directory's name is a digest of the source files, of the code that reads them
and of the TFDS version, so a stale copy is never served. It is made aside and renamed
into place: several processes may prepare the same set at once, and a killed one leaves
no half-made copy behind that another would read.

Example::

    folder = builders.prepare('atis')                       # found under $TRUSTML_DATA
    columns = builders.columns(folder, 'train')             # {'text': [...], ...}
    tfds.builder_from_directory(folder).as_data_source('train')[0]     # TFDS's own way
"""

import contextlib
import functools
import hashlib
import inspect
import io
import os
import pathlib
import shutil
import stat
import tempfile
import uuid
import warnings
from typing import Any

import numpy as np

from trustml import _validate
from trustml.data import (
    adult,
    comments,
    compas,
    corpora,
    dataset,
    sources,
    tables,
)

with warnings.catch_warnings():
    # Its dependencies warn of their own affairs on import.
    warnings.simplefilter("ignore")
    import tensorflow_datasets as tfds
    from tensorflow_datasets.proto import tf_example_pb2

_PROTO: Any = tf_example_pb2
_CHUNK = 4096  # records read at once


class TrustmlData(tfds.core.GeneratorBasedBuilder):
    """Builder of the sets in `sources.BY_NAME`; the configuration's name picks one.

    Features: `label` ClassLabel and `text` Text, `slots` Text (tags joined by blanks),
    `image` uint8[H, W, C], `features` float32[D], and a ClassLabel for every group;
    of `trustml.data.corpora` also `second`, `references`, `user` Text, `span` int32[2].

    Args:
      folder: where the source files are.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name=source.name, description=source.citation)
        for source in sources.BY_NAME.values()
    ]

    def __init__(self, *, folder: pathlib.Path | None = None, **kwargs):
        """See the class; further arguments are those of TFDS."""
        self._folder = folder
        super().__init__(**kwargs)

    @functools.cached_property
    def _source(self) -> sources.Source:
        return sources.BY_NAME[str(getattr(self.builder_config, "name", ""))]

    @functools.cached_property
    def _rows(self):
        folder = self._folder or locate(self._source)
        return sources.rows(self._source, folder)

    def _info(self) -> tfds.core.DatasetInfo:
        source, first = self._source, self._rows["train"][0]
        labels = source.label_names or dataset.sort_labels(
            row["label"] for rows in self._rows.values() for row in rows
        )
        label = tfds.features.ClassLabel(names=list(labels))
        features: dict[str, Any] = {"label": label}
        for name, value in first.items():
            if name == "label":
                continue
            if isinstance(value, str):
                features[name] = tfds.features.Text()
            elif isinstance(value, np.ndarray):
                features[name] = tfds.features.Tensor(
                    shape=value.shape, dtype=value.dtype, encoding="bytes"
                )
            else:
                names = list(source.group_names[name])
                features[name] = tfds.features.ClassLabel(names=names)
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{source.name}: {source.origin}.",
            citation=source.citation,
            license=source.licence,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,  # rows keep the order of the source
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in dataset.SPLITS}

    def _generate_examples(self, split: str):
        yield from enumerate(self._rows[split])


def locate(source: sources.Source, data_dir="") -> pathlib.Path:
    """The folder that holds every file of a set.

    Args:
      source: which set.
      data_dir: holds a folder for each set; `$TRUSTML_DATA` where empty.

    Raises:
      FileNotFoundError: if a file is not there; names it, the place, and the origin.
    """
    root = str(data_dir or os.environ.get("TRUSTML_DATA", ""))
    if not source.folder:
        folder = sources.packaged_folder(source)
    else:
        folder = pathlib.Path(root).expanduser().absolute() / source.folder
    for name in source.files:
        if (folder / name).is_file() and (root or not source.folder):
            continue
        setting = "data_dir" if data_dir else "TRUSTML_DATA"
        place = f"looked for {folder / name}, {setting}={root}"
        if not source.folder:
            place = f"looked for {folder / name}"
        elif not root:
            place = "TRUSTML_DATA is not set"
        wanted = f"{source.folder}/{name}".lstrip("/")
        raise FileNotFoundError(
            f"data.name={source.name!r} needs the file {wanted} ({place}); set "
            f"TRUSTML_DATA to the directory that holds it, made from {source.origin}."
        )
    return folder


def prepare(name: str, data_dir="") -> pathlib.Path:
    """The TFDS directory of a set; makes it on the first call.

    Args:
      name: one of `sources.BY_NAME`.
      data_dir: holds a folder for each set; `$TRUSTML_DATA` where empty.

    Returns:
      The directory, for `tfds.builder_from_directory` or `columns`.

    Raises:
      ValueError: for an unknown name, or a malformed file.
      FileNotFoundError: if a source file is not there.
      OSError: if no directory can be written, or the disk is full.
    """
    source = sources.BY_NAME[_validate.one_of("data.name", name, sources.BY_NAME)]
    folder = locate(source, data_dir)
    key = digest(source, folder)
    inner = pathlib.Path("trustml_data") / name / "1.0.0"
    refused = None
    for root in _cache_roots():
        done = root / name / key
        if _whole(done / inner):
            return done / inner
        try:
            _make(source.name, folder, done)
        except OSError as error:  # read-only, or full: try the next place
            refused = refused or error
            continue
        return done / inner
    raise OSError(
        f"TRUSTML_CACHE={os.environ.get('TRUSTML_CACHE', '')!r} and the temporary "
        f"directory cannot hold the data set {name!r} ({refused}); set TRUSTML_CACHE "
        "to a directory with space that you may write."
    ) from refused


def digest(source: sources.Source, folder: pathlib.Path) -> str:
    """Hexadecimal digest of the source files and of all that turns them to records."""
    found = hashlib.sha256(f"{source.name}\0{tfds.__version__}".encode())
    for module in (sources, corpora, adult, compas, comments, tables, dataset):
        found.update(inspect.getsource(module).encode())
    found.update(inspect.getsource(TrustmlData).encode())
    for name in source.files:
        found.update(hashlib.sha256((folder / name).read_bytes()).digest())
    return found.hexdigest()[:32]


def columns(folder: pathlib.Path, split: str) -> dict[str, list | np.ndarray]:
    """All examples of a split, column by column.

    Reads the records as TFDS does, but whole columns at once: 20 times faster than an
    example at a time.

    Args:
      folder: as `prepare` returns it.
      split: 'train', 'valid' or 'test'.

    Returns:
      feature name -> list of strings (Text), int32[N] (ClassLabel) or an array [N, ...]
      (Tensor).
    """
    builder: Any = tfds.builder_from_directory(folder)
    source = builder.as_data_source(
        split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
    )
    features = builder.info.features
    found = {name: [] for name in features}
    for start in range(0, len(source), _CHUNK):
        indices = range(start, min(start + _CHUNK, len(source)))
        for record in source.__getitems__(indices):
            values = _PROTO.Example.FromString(record).features.feature
            for name, column in found.items():
                value = values[name]
                kept = value.bytes_list.value or value.int64_list.value
                column.append(kept[0] if kept else b"")
    return {name: _column(features[name], found[name]) for name in found}


def label_names(folder: pathlib.Path) -> tuple[str, ...]:
    """Names of the labels of a prepared set."""
    features: Any = tfds.builder_from_directory(folder).info.features
    return tuple(features["label"].names)


def _column(feature, values):
    if isinstance(feature, tfds.features.ClassLabel):
        return np.array(values, np.int32)
    if isinstance(feature, tfds.features.Text):
        return [value.decode() for value in values]
    flat = np.frombuffer(b"".join(values), feature.np_dtype)
    return flat.reshape(len(values), *feature.shape)


def _make(name: str, folder: pathlib.Path, done: pathlib.Path) -> None:
    """Prepares a set beside `done` and renames it into place."""
    done.parent.mkdir(parents=True, exist_ok=True)
    aside = done.parent / f".making-{uuid.uuid4().hex}"
    broken = aside.with_name(f".broken-{uuid.uuid4().hex}")
    try:
        with _quiet():
            builder = TrustmlData(
                config=name, folder=folder, data_dir=aside, file_format="array_record"
            )
            builder.download_and_prepare(file_format="array_record")
        inner = builder.data_path.relative_to(aside)
        if done.exists() and not _whole(done / inner):
            # A cleaner of temporary directories has removed files of it.
            done.rename(broken)
        try:
            aside.rename(done)
        except OSError:
            if not _whole(done / inner):  # otherwise another process was faster
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(broken, ignore_errors=True)


def _whole(folder: pathlib.Path) -> bool:
    """True if every file of a prepared set is still there."""
    if not all((folder / n).is_file() for n in ("dataset_info.json", "features.json")):
        return False
    return all(any(folder.glob(f"*-{s}.array_record-*")) for s in dataset.SPLITS)


@contextlib.contextmanager
def _quiet():
    """Keeps TFDS's notices and progress bars off the terminal."""
    sink = io.StringIO()
    with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield


def _cache_roots():
    """Where prepared sets may live, best first."""
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    named = os.path.expanduser(os.environ.get("TRUSTML_CACHE") or f"{caches}/trustml")
    if not named.startswith("~"):  # as it does where the user has no home
        yield pathlib.Path(named).absolute() / "tfds"
    user = os.getuid() if hasattr(os, "getuid") else "user"
    shared = pathlib.Path(tempfile.gettempdir()) / f"trustml-{user}"
    with contextlib.suppress(OSError):
        shared.mkdir(mode=0o700, exist_ok=True)
    if _only_mine(shared):
        yield shared
    else:  # somebody else made it: what lies there cannot be trusted
        yield pathlib.Path(tempfile.mkdtemp(prefix="trustml-"))


def _only_mine(folder: pathlib.Path) -> bool:
    try:
        found = folder.lstat()
    except OSError:
        return False
    if not hasattr(os, "getuid"):
        return folder.is_dir()
    mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    return mine and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
