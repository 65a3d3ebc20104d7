"""Canaries of any kind for any task, with their coins on record.

| kind | example | score |
|---|---|---|
| `random` | noise in every field of the input, a uniform label | -loss |
| `mislabelled` | a natural input, a uniform wrong label | -loss |
| `text` | a template whose secret positions hold random tokens | -loss |
| `gradient` | zeros and a `canary_id`, for `canaries.wrap(task, count)` | `scores` |

`make` draws them and a fair coin for each, from streams of their own: what the trainer
draws from the same root tells nothing about them. `insert` adds those that are in,
`as_dict` is what to store before training (coins, and hashes that `coins_of` checks
again), and `digest` goes into the report.

With copies > 1 a canary is a group of rows: a bound from such canaries shows what
repeating does, and may lie above a plan's epsilon, which is that of one row.

Dimension key: n canaries, N examples.

Example::

    record = canary_records.make(root, 'mislabelled', 1000, task, data.train)
    json.dump(canary_records.as_dict(record), file)           # before training
    columns = canary_records.insert(data.train, record)
    ...                                                       # train on `columns`
    losses = ...                                              # of record.examples
    bound = one_run.epsilon_delta(-losses, record.coins, guesses=(50, 50), delta=1e-5)

References: Nasr et al. 2023, https://arxiv.org/abs/2302.07956; Carlini et al. 2019,
https://arxiv.org/abs/1802.08232 (text); Steinke et al. 2023,
https://arxiv.org/abs/2305.08846 (coins).
"""

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool

from trustml import _validate, rng
from trustml import task as task_lib
from trustml.audit import canaries
from trustml.data import batches

KINDS = ("random", "mislabelled", "text", "gradient")

Columns = Mapping[str, np.ndarray]  # name -> [N, ...]

# Fields that say how to read an input and are not themselves content.
_FORM = ("length",)


class CanaryRecord(NamedTuple):
    """Canaries and their coins; what an audit has to keep.

    Attributes:
      examples: name -> [n, ...], the fields of the data; with `canary_id` for gradient
        canaries.
      coins: bool[n], which of them are in.
      kind: of `KINDS`.
      key_id: hash of the stream that drew them, to tell two draws apart.
    """

    examples: dict[str, np.ndarray]
    coins: Bool[np.ndarray, " n"]
    kind: str
    key_id: str


class Template(NamedTuple):
    """A text with a secret in it.

    Attributes:
      example: name -> array, all fields of one example, such as tokens, length, label.
      positions: where in `example[field]` the secret is.
      alphabet: int[V], the tokens that may stand at each position.
      field: of the tokens.
    """

    example: Mapping[str, Any]
    positions: tuple[int, ...]
    alphabet: np.ndarray
    field: str = "tokens"


def make(
    root: rng.Root,
    kind: str,
    count: int,
    task: task_lib.Task,
    data: Columns,
    *,
    template: Template | None = None,
) -> CanaryRecord:
    """Draws canaries and their coins, from the streams `canaries` of `root`.

    Args:
      root: of the run; the same root gives the same canaries.
      kind: 'random', 'mislabelled', 'text' or 'gradient'; see the module docstring.
      count: n >= 1.
      task: whose predictions say how many classes there are.
      data: name -> [N, ...], examples of the same form. 'mislabelled' takes its inputs
        here: give rows that are not trained on, or the canary's input is in with its
        right label too.
      template: of the kind 'text', and of no other.

    Raises:
      ValueError: for an unknown kind, a template that does not fit, labels that are not
        classes, and more canaries than there are inputs or secrets.
    """
    kind = _validate.one_of("kind", kind, KINDS)
    count = _validate.integer_at_least("count", count, 1, "1000 are usual")
    if batches.size(data) < 1:
        _validate.fail("data", sorted(data), "has no example", "give the training data")
    if (kind == "text") != (template is not None):
        bound = f"does not go with kind={kind!r}"
        cure = "give a Template with 'text', and with no other kind"
        given = None if template is None else template.field
        _validate.fail("template", given, bound, cure)
    stream = rng.stream(rng.stream(root, "canaries"), kind)
    generator = np.random.Generator(np.random.Philox(key=rng.seed_128(stream)))
    if kind == "gradient":
        examples = _zeros(data, count)
        examples[canaries.FIELD] = np.arange(count, dtype=np.int32)
    elif template is not None:
        examples = _texts(generator, count, data, template)
    else:
        classes = _classes(task, data)
        make_one = _noise if kind == "random" else _mislabelled
        examples = make_one(generator, count, data, classes)
    words = np.asarray(stream.words).astype(">u4").tobytes()
    key_id = hashlib.sha256(b"trustml.audit.canaries:" + words).hexdigest()[:16]
    return CanaryRecord(examples, canaries.coins(root, count), kind, key_id)


def insert(
    data: Columns, record: CanaryRecord, *, copies: int = 1
) -> dict[str, np.ndarray]:
    """The data with the canaries that are in behind it, each `copies` times in a row.

    Args:
      data: name -> [N, ...].
      record: from `make`, for data of the same fields.
      copies: >= 1; see the module docstring.

    Returns:
      name -> [N + copies sum(coins), ...]; with `canary_id` for gradient canaries.

    Raises:
      ValueError: if the fields differ.
    """
    copies = _validate.integer_at_least("copies", copies, 1, "1 is usual")
    fields = dict(data)
    if record.kind == "gradient":
        if canaries.FIELD in fields:
            _validate.fail("data", sorted(data), f"has '{canaries.FIELD}' already")
        fields[canaries.FIELD] = np.full(batches.size(data), -1, np.int32)
    if set(fields) != set(record.examples):
        _validate.fail(
            "data",
            sorted(fields),
            f"has not the fields of the canaries, {sorted(record.examples)}",
            "insert canaries into data of the form they were made from",
        )
    rows = np.repeat(np.flatnonzero(record.coins), copies)
    return {
        name: np.concatenate([column, record.examples[name][rows]])
        for name, column in fields.items()
    }


def digest(record: CanaryRecord) -> str:
    """Hexadecimal hash over canaries and coins."""
    return _digest(record.examples, record.kind, record.coins)


def as_dict(record: CanaryRecord) -> dict[str, Any]:
    """What to store before training, in types of JSON; as secret as the coins are."""
    coins = record.coins
    return {
        "kind": record.kind,
        "key_id": record.key_id,
        "count": int(coins.size),
        "coins": np.packbits(coins).tobytes().hex(),
        "digest": digest(record),
    }


def coins_of(stored: Mapping[str, Any], record: CanaryRecord) -> np.ndarray:
    """The coins that `as_dict` stored, bool[n], checked against the canaries.

    Args:
      stored: what `as_dict` gave, read back.
      record: whose examples are the canaries.

    Raises:
      ValueError: if coins or canaries are not those that were stored.
    """
    packed = np.frombuffer(bytes.fromhex(stored["coins"]), np.uint8)
    flips = np.unpackbits(packed, count=int(stored["count"])).astype(bool)
    if _digest(record.examples, record.kind, flips) != stored["digest"]:
        _validate.fail(
            "digest",
            stored["digest"],
            "is not that of these canaries with the coins on record",
            "audit with the canaries and the coins that were drawn before training",
        )
    return flips


def _digest(examples: Columns, kind: str, flips: np.ndarray) -> str:
    sha = hashlib.sha256(f"{kind}:{flips.size}:".encode())
    sha.update(np.packbits(flips).tobytes())
    for name in sorted(examples):
        column = np.ascontiguousarray(examples[name])
        sha.update(f"{name}:{column.dtype.str}:{column.shape}:".encode())
        sha.update(column.tobytes())
    return sha.hexdigest()


def _zeros(data: Columns, count: int) -> dict[str, np.ndarray]:
    return {
        name: np.zeros((count, *column.shape[1:]), column.dtype)
        for name, column in data.items()
    }


def _noise(generator, count: int, data: Columns, classes: int):
    """Normal noise of each field's mean and spread; uniform integers of its range."""
    rows = generator.integers(0, batches.size(data), count)
    out = {}
    for name, column in data.items():
        shape = (count, *column.shape[1:])
        if name == "label":
            out[name] = generator.integers(0, classes, count).astype(column.dtype)
        elif name in _FORM or column.dtype == bool:
            out[name] = column[rows]
        elif np.issubdtype(column.dtype, np.integer):
            drawn = generator.integers(column.min(), column.max(), shape, endpoint=True)
            out[name] = drawn.astype(column.dtype)
        else:
            noise = generator.normal(column.mean(), column.std() + 1e-6, shape)
            out[name] = noise.astype(column.dtype)
    if "length" in data and "tokens" in data:  # padding stays padding
        beyond = np.arange(out["tokens"].shape[1]) >= out["length"][:, None]
        for name in ("tokens", "slots"):
            if name in out:
                out[name][beyond] = 0
    return out


def _mislabelled(generator, count: int, data: Columns, classes: int):
    if count > batches.size(data):
        _validate.fail(
            "count",
            count,
            f"is more than the {batches.size(data)} inputs of data",
            "give more data, or ask for fewer canaries",
        )
    rows = generator.choice(batches.size(data), count, replace=False)
    out = {name: column[rows] for name, column in data.items()}
    label = out["label"]
    moved = (label + generator.integers(1, classes, count)) % classes
    out["label"] = moved.astype(label.dtype)
    return out


def _texts(generator, count: int, data: Columns, template: Template):
    example = {name: np.asarray(x) for name, x in template.example.items()}
    if set(example) != set(data) or template.field not in example:
        _validate.fail(
            "template.example",
            sorted(example),
            f"has not the fields of the data, {sorted(data)}, or no {template.field!r}",
            "give every field of one example",
        )
    positions = np.asarray(template.positions, np.int64)
    width, alphabet = example[template.field].shape[0], np.asarray(template.alphabet)
    if not positions.size or np.any((positions < 0) | (positions >= width)):
        bound = f"must be one or more of the {width} places of {template.field!r}"
        _validate.fail("template.positions", template.positions, bound)
    most = alphabet.size**positions.size
    if count > most:
        _validate.fail(
            "count",
            count,
            f"is more than the {most} secrets of the template",
            "take more positions or a larger alphabet",
        )
    # Distinct secrets, or two canaries would be one.
    found: dict[tuple[int, ...], None] = {}
    while len(found) < count:
        for row in generator.integers(0, alphabet.size, (count, positions.size)):
            if len(found) < count:
                found.setdefault(tuple(row.tolist()))
    out = {}
    for name, column in data.items():
        repeated = np.repeat(example[name][None], count, axis=0)
        out[name] = repeated.astype(column.dtype)
    out[template.field][:, positions] = alphabet[np.array(list(found))]
    return out


def _classes(task: task_lib.Task, data: Columns) -> int:
    """How many classes the task predicts."""
    if "label" not in data or np.ndim(data["label"]) != 1:
        bound = "has no field 'label' with one class an example"
        cure = "use kind='gradient' or 'text'"
        _validate.fail("data", sorted(data), bound, cure)
    one = {name: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for name, x in data.items()}

    def predict(example):
        params = task.init(jax.random.key(0))
        return task_lib.label_log_probs(task.predict(params, example))

    (classes,) = jax.eval_shape(predict, one).shape
    if classes < 2:
        _validate.fail("task", classes, "must predict two classes or more")
    return int(classes)
