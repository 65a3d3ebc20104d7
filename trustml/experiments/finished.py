"""What a finished run answers when its command is given again.

It is not done again, but its report must still be true: the configuration is compared
by `launch/run.py`, a data file of the user's by the digest in `report.json`. The public
data sets do not change, and are not loaded for this.

Example::

    if page := finished.page(config, workdir):
        return page
"""

import hashlib
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax

from trustml import config as config_lib
from trustml import specs
from trustml.experiments import build
from trustml.report import schema


def page(config: specs.RunConfig, workdir: pathlib.Path) -> pathlib.Path | None:
    """The page of the run in `workdir`, said to be there; None if it has not ended.

    Raises:
      ValueError: as `check_data`.
    """
    path = workdir / "report.html"
    if not path.exists():
        return None
    check_data(config, workdir)
    print(f"finished already; report: {path}")
    return path


def check_data(
    config: specs.RunConfig,
    workdir: pathlib.Path,
    digest_of: Callable[[specs.RunConfig], str] | None = None,
) -> None:
    """Raises if the data file is not the one that the report in `workdir` is about.

    Args:
      config: of the run, with `data.path` or without.
      workdir: of a finished run.
      digest_of: loads the data of a config and returns its digest; `build.dataset`
        where None. One that remembers saves time where many runs share a file.
    Raises:
      ValueError: the data changed; names the files.
    """
    path = workdir / "report.json"
    if not config.data.path or not path.exists():
        return
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(
            f"{str(path)!r} is damaged ({error}); delete {str(workdir)!r} and start "
            "anew."
        ) from error
    there = schema.get(found, "data", "digest")
    if there is None:  # of the time before it was recorded
        return
    here = digest_of(config) if digest_of else build.dataset(config).digest
    if here != there:
        changed = f"{build.data_files(config)} changed since the run in"
        raise ValueError(
            f"{changed} {str(workdir)!r} ended; choose another --workdir, or delete "
            "that directory to start anew."
        )


def kept(path: pathlib.Path, mark: str, name: str) -> dict[str, Any] | None:
    """What a part of a run kept in `path`, if it can be read and is of `mark`.

    Args:
      path: of a JSON object.
      mark: `fingerprint` of what is asked for.
      name: of the entry that has it; not in what is returned.
    """
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):  # not there, or cut off
        return None
    if not isinstance(found, dict) or found.pop(name, None) != mark:
        return None
    return found


def fingerprint(config: specs.RunConfig, data_digest: str) -> str:
    """Of all that a kept part of a run depends on: settings, data, JAX's version."""
    mark = hashlib.sha256()
    for part in (config_lib.digest(config), data_digest, jax.__version__):
        mark.update(part.encode())
    return mark.hexdigest()[:32]
