"""From a config file to frozen dataclasses, once; the only place that knows ConfigDict.

A config file starts from `default()`, changes what it needs and is handed to
`from_config_dict`, which refuses unknown fields (naming the nearest one), wrong types
and every value that is out of its static bounds. What it returns is frozen and
comparable, and has one stable `digest`, by which its checkpoints are known.

Example (`configs/mine.py`)::

    from trustml import config

    def get_config(arg=''):
        config.check_argument(arg)  # '' or 'smoke'
        cfg = config.default()
        cfg.data.name = 'snips'
        cfg.privacy.epsilon = 8.0  # the budget; noise is calibrated to it
        if arg == 'smoke':
            cfg.train.steps = 5
        return cfg
"""

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
from ml_collections import config_dict

from trustml import _validate, specs

_KIND_NAMES = {
    str: "text",
    int: "an integer",
    float: "a number",
    bool: "True or False",
}


def _convert(field: str, value: Any, kind: Any) -> Any:
    """`value` as the annotated type `kind`; `ValueError` if it is not one."""
    if dataclasses.is_dataclass(kind):
        return _build(kind, value, field)
    if isinstance(kind, types.UnionType):  # X | None
        (inner,) = [k for k in typing.get_args(kind) if k is not types.NoneType]
        return None if value is None else _convert(field, value, inner)
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, (tuple, list)):
            _validate.fail(field, value, "must be a tuple", "write (x,) for one entry")
        return tuple(_convert(field, v, typing.get_args(kind)[0]) for v in value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
        _validate.fail(field, value, f"must be {_KIND_NAMES[kind]}")
    return kind(value)


def _build(kind: Any, tree: Any, prefix: str) -> Any:
    if not isinstance(tree, (Mapping, ml_collections.ConfigDict)):
        _validate.fail(
            prefix, tree, "must be a tree of fields", "set its fields instead"
        )
    kinds = {f.name: f.type for f in dataclasses.fields(kind)}
    values = {}
    for name, value in tree.items():
        field = f"{prefix}.{name}" if prefix else name
        if name not in kinds:
            _unknown(field)
        values[name] = _convert(field, value, kinds[name])
    return kind(**values)


def _unknown(field: str) -> typing.NoReturn:
    known = field_names()
    last = field.rpartition(".")[2]
    same = [name for name in known if name.rpartition(".")[2] == last]
    guess = same[0] if same else _validate.nearest(field, known)
    hint = f"did you mean {guess}?" if guess else "see trustml/specs.py."
    raise ValueError(f"config has no field {field!r}; {hint}")


def _kinds() -> dict[str, Any]:
    """Dotted names of all fields -> their annotations."""
    kinds = {}
    for field in dataclasses.fields(specs.RunConfig):
        if dataclasses.is_dataclass(field.type):
            for inner in dataclasses.fields(field.type):
                kinds[f"{field.name}.{inner.name}"] = inner.type
        else:
            kinds[field.name] = field.type
    return kinds


def field_names() -> tuple[str, ...]:
    """Dotted names of all fields, such as 'privacy.epsilon'."""
    return tuple(_kinds())


def kind_of(field: str) -> str:
    """What a field takes: 'an integer', 'a number or None', 'a tuple of text' or so.

    Raises:
      ValueError: no such field; names the nearest.
    """
    kind = _kinds()[check_field(field)]
    if typing.get_origin(kind) is tuple:
        names = {str: "text", int: "integers", float: "numbers"}
        return f"a tuple of {names[typing.get_args(kind)[0]]}"
    if isinstance(kind, types.UnionType):
        return f"{_KIND_NAMES[typing.get_args(kind)[0]]} or None"
    return _KIND_NAMES[kind]


def check_field(field: str) -> str:
    """`field`, if it is a dotted name of this config; else `ValueError` with a hint."""
    if field not in field_names():
        _unknown(field)
    return field


def check_argument(arg: str, known: Sequence[str] = ("", "smoke")) -> str:
    """`arg`, what follows the colon of `--config=mine.py:arg`, if the file knows it.

    Without this check a mistyped `smok` would run the whole job.

    Args:
      arg: what `get_config` was given.
      known: what it may be; '' is the whole job.
    Raises:
      ValueError: it is none of them; names the nearest.
    """
    if arg in known:
        return arg
    names = [name for name in known if name]
    guess = _validate.nearest(arg, names)
    hint = f"did you mean {guess!r}?" if guess else "leave it out for the whole run."
    listed = ", ".join(repr(name) for name in names)
    raise ValueError(f"argument {arg!r} is not one of {listed}; {hint}")


def from_config_dict(cfg: Any) -> specs.RunConfig:
    """The frozen form of a ConfigDict (or of plain nested dicts), completely checked.

    Fields left out keep their defaults; a `data.path` makes `data.name` 'file'.

    Args:
      cfg: `ml_collections.ConfigDict`, as made by `default()` and changed.
    Raises:
      ValueError: unknown field, wrong type or value out of bounds, in one sentence.
      FileNotFoundError: a file of `data` that is not there.
    """
    tree = cfg.to_dict() if isinstance(cfg, ml_collections.ConfigDict) else cfg
    if isinstance(tree, Mapping) and isinstance(tree.get("data"), Mapping):
        if tree["data"].get("path"):
            tree = {**tree, "data": {**tree["data"], "name": "file"}}
    config = _build(specs.RunConfig, tree, "")
    for field in ("path", "valid_path", "test_path"):
        if path := getattr(config.data, field):
            _validate.existing_file(f"data.{field}", path)
    if config.model.checkpoint:
        _validate.existing_directory("model.checkpoint", config.model.checkpoint)
    return config


def default() -> Any:
    """All fields at their defaults, as a ConfigDict for a config file to change.

    It says nothing yet about the noise: set `privacy.epsilon` or one of its kin.
    Fields that may be None are typed placeholders, so that the command line can set
    them: `--config.privacy.epsilon=3`.
    """

    def tree(kind):
        result = ml_collections.ConfigDict()
        for field in dataclasses.fields(kind):
            if dataclasses.is_dataclass(field.type):
                result[field.name] = tree(field.type)
            elif field.default is None:
                (inner,) = set(typing.get_args(field.type)) - {types.NoneType}
                result[field.name] = config_dict.placeholder(inner)
            else:
                result[field.name] = field.default
        return result

    return tree(specs.RunConfig)


def to_dict(config: specs.RunConfig) -> dict[str, Any]:
    """Nested plain dicts; tuples become lists, as in `to_json`."""
    return json.loads(to_json(config))


def to_json(config: specs.RunConfig) -> str:
    """Readable JSON of all fields in order, the text of `config.json`."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def digest(config: specs.RunConfig) -> str:
    """32 hex digits that depend on every field and on nothing else."""
    text = json.dumps(dataclasses.asdict(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
