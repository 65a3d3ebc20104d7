"""Text canaries: a template with unknown positions, a secret code, copies in the data.

A pattern is a row of token ids with -1 at the L unknown positions, and an alphabet of A
tokens for each of them: A^L codes. Ids come from the caller, since what is one token
depends on the tokenizer. Two words of an alphabet that share an id, as they may in a
hashed vocabulary, are one and the same to the model: such an alphabet is refused. That
a token shares its id with a word of the data cannot be seen here; it moves the rank of
codes with and without the canary alike, which is one reason for the controls.

Code, label and the tags of the code are drawn at random for every seed. A code of the
attacker's choice, or digits that always wear one tag, would be ranked by what the model
knows of words, and the rank would be no evidence of memory.

Controls: the same data without the canary, a repeated ordinary row in its place
(`absent`); and the model with code A, asked for another code B (`decoy`).

Dimension key: L unknown positions, A tokens of an alphabet, R = A^L codes, T tokens.

Example::

    pattern = canary.pattern([41, 7, -1, -1], digits, max_length=8)
    secret = canary.draw(rng.root(seed=0), pattern, num_labels=7, code_tags=[[0, 0]])
    train = canary.insert(train, canary.example(pattern, secret), copies=10)

References: https://arxiv.org/abs/2203.13920, https://arxiv.org/abs/1802.08232
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy import typing as npt

from trustml import _validate, rng

UNKNOWN = -1
MAX_CODES = 10**6
_FIELDS = ("tokens", "length", "label", "slots")


class Pattern(NamedTuple):
    """The known part of a canary.

    Attributes:
      tokens: int32[T]; the first token of the alphabet at unknown positions, 0 at
        padding.
      length: tokens in use.
      positions: int32[L], of the unknown tokens.
      alphabet: int32[L, A], what may stand there.
    """

    tokens: np.ndarray
    length: int
    positions: np.ndarray
    alphabet: np.ndarray


class Secret(NamedTuple):
    """What is drawn for one seed.

    Attributes:
      code: int32[L], indices into the alphabets.
      label: intent.
      slots: int32[T], tags of all tokens; 0 at padding.
    """

    code: np.ndarray
    label: int
    slots: np.ndarray


def pattern(
    template: Sequence[int], alphabet: npt.ArrayLike, *, max_length: int
) -> Pattern:
    """A template with its unknown positions.

    Args:
      template: token ids, -1 where a token is unknown.
      alphabet: int[A], the ids that may stand at every unknown position, or int[L, A].
      max_length: T >= len(template).

    Raises:
      ValueError: if no position is unknown, the template is too long, an alphabet has
        fewer than 2 tokens or holds one twice.
    """
    ids = np.asarray(template, np.int32)
    max_length = _validate.integer_at_least("max_length", max_length, 1)
    positions = np.flatnonzero(ids == UNKNOWN).astype(np.int32)
    if ids.ndim != 1 or not positions.size:
        _validate.fail("template", ids.tolist(), "has no unknown position", "put -1")
    if ids.size > max_length:
        _validate.fail("max_length", max_length, f"cuts the {ids.size} tokens off")
    letters = np.asarray(alphabet, np.int32)
    if letters.ndim == 1:
        letters = np.tile(letters, (positions.size, 1))
    if letters.shape[:1] != positions.shape or letters.shape[-1] < 2:
        _validate.fail(
            "alphabet",
            list(letters.shape),
            f"must be [A] or [{positions.size}, A] with A >= 2",
        )
    for row in letters:
        found, counts = np.unique(row, return_counts=True)
        if counts.max() > 1:
            _validate.fail(
                "alphabet",
                row.tolist(),
                f"holds token {found[counts.argmax()]} twice",
                "words that share an id cannot be told apart; enlarge the vocabulary, "
                "or choose other words",
            )
    tokens = np.zeros(max_length, np.int32)
    tokens[: ids.size] = ids
    tokens[positions] = letters[:, 0]
    return Pattern(tokens, ids.size, positions, letters)


def num_codes(pattern: Pattern) -> int:
    """R = A^L."""
    return int(pattern.alphabet.shape[1]) ** int(pattern.positions.size)


def all_codes(pattern: Pattern) -> np.ndarray:
    """Every code in order, int32[R, L]; the last position runs fastest.

    Raises:
      ValueError: if R > 10^6.
    """
    count = num_codes(pattern)
    if count > MAX_CODES:
        _validate.fail(
            "pattern",
            f"{count} codes",
            f"must be at most {MAX_CODES} to be listed",
            "use beam, coordinate_descent or gumbel, and exposure.extrapolated",
        )
    width = pattern.positions.size
    digits = np.indices((pattern.alphabet.shape[1],) * width, dtype=np.int32)
    return digits.reshape(width, count).T.copy()


def random_codes(root: rng.Root, pattern: Pattern, count: int) -> np.ndarray:
    """`count` codes drawn at random, int32[count, L], of a stream of `root`."""
    count = _validate.integer_at_least("count", count, 1)
    shape = (count, pattern.positions.size)
    draws = _generator(root, "codes").integers(0, pattern.alphabet.shape[1], shape)
    return draws.astype(np.int32)


def index(pattern: Pattern, code: npt.ArrayLike) -> int:
    """Where a code stands in `all_codes`."""
    shape = (pattern.alphabet.shape[1],) * pattern.positions.size
    return int(np.ravel_multi_index(tuple(np.asarray(code)), shape))


def draw(
    root: rng.Root,
    pattern: Pattern,
    *,
    num_labels: int,
    code_tags: npt.ArrayLike,
    other_tag: int = 0,
) -> Secret:
    """A code, a label and tags of the code, each uniform and independent.

    Args:
      root: one for every seed; of the stream `canary`.
      pattern: the known part.
      num_labels: the label is drawn from range(num_labels).
      code_tags: int[K, L]; one row is drawn, the tags of the unknown positions (such as
        B-x, I-x, I-x for every type x, or only O).
      other_tag: of all other tokens.
    """
    num_labels = _validate.integer_at_least("num_labels", num_labels, 1)
    tags = np.asarray(code_tags, np.int32)
    width = pattern.positions.size
    if tags.ndim != 2 or tags.shape[1] != width or not len(tags):
        _validate.fail("code_tags", list(tags.shape), f"must be [K, {width}]")
    generator = _generator(root, "canary")
    code = generator.integers(0, pattern.alphabet.shape[1], width).astype(np.int32)
    label = int(generator.integers(num_labels))
    slots = np.zeros(pattern.tokens.size, np.int32)
    slots[: pattern.length] = other_tag
    slots[pattern.positions] = tags[generator.integers(len(tags))]
    return Secret(code, label, slots)


def decoy(root: rng.Root, pattern: Pattern, secret: Secret) -> Secret:
    """The same canary with a fresh code, uniform over all codes but the secret's."""
    count = num_codes(pattern)
    shift = int(_generator(root, "decoy").integers(1, count))
    shape = (pattern.alphabet.shape[1],) * pattern.positions.size
    other = np.unravel_index((index(pattern, secret.code) + shift) % count, shape)
    return secret._replace(code=np.asarray(other, np.int32))


def example(pattern: Pattern, secret: Secret) -> dict[str, np.ndarray]:
    """The canary as one example, secret included."""
    tokens = pattern.tokens.copy()
    rows = np.arange(pattern.positions.size)
    tokens[pattern.positions] = pattern.alphabet[rows, secret.code]
    return target(pattern, secret) | {"tokens": tokens}


def target(pattern: Pattern, secret: Secret) -> dict[str, np.ndarray]:
    """What the attacker knows: the canary without its code.

    Secrets of many models are stacked along a new axis, for `jax.vmap`.
    """
    return {
        "tokens": pattern.tokens.copy(),
        "length": np.asarray(pattern.length, np.int32),
        "label": np.asarray(secret.label, np.int32),
        "slots": secret.slots.copy(),
    }


def insert(
    columns: Mapping[str, np.ndarray], row: Mapping[str, Any], copies: int
) -> dict[str, np.ndarray]:
    """The columns with `copies` of one row more at their end.

    For the control `absent` the row is an ordinary one, so that sizes match.

    Raises:
      ValueError: if columns and row have not the same names and shapes.
    """
    copies = _validate.integer_at_least("copies", copies, 0)
    if set(columns) != set(row):
        _validate.fail(
            "columns",
            sorted(columns),
            f"must be those of the row, {sorted(row)}",
            f"keep {', '.join(_FIELDS)}",
        )
    out = {}
    for name, column in columns.items():
        one = np.asarray(row[name], column.dtype)
        if one.shape != column.shape[1:]:
            _validate.fail(
                f"row[{name!r}]", list(one.shape), f"must be {list(column.shape[1:])}"
            )
        out[name] = np.concatenate([column, np.repeat(one[None], copies, axis=0)])
    return out


def _generator(root: rng.Root, name: str) -> np.random.Generator:
    return np.random.Generator(
        np.random.Philox(key=rng.seed_128(rng.stream(root, name)))
    )
