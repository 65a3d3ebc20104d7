"""The form every data set takes: NumPy columns for each split, and what describes them.

A column holds one value an example. Text gives `tokens` int32[N, T], `length` int32[N],
`label` int32[N] and, for tagging, `slots` int32[N, T]; images `image` float32[N, H, W,
C] in [0, 1] and `label`; tables `features` float32[N, D] and `label`. Row n of all
columns of a split is one `Example` of `trustml.task`. Examples of two texts have the
columns of `trustml.data.pairs`.

Slots: the slot of padding is 0, which is also the tag `O` wherever there is one; mask
by `length`. Where a tokenizer cuts a word into pieces, the first piece carries the tag
of the word, later ones its continuation (`B-city` goes on as `I-city`), [CLS] and [SEP]
the tag 0.

Splits by hash: where a set comes without a split, an example goes to it if a hash of
its own content (and a seed) falls below the fraction. So an example's split depends on
that example alone: repeated texts stay together, and a data set without one person's
example differs in that one row only, as differential privacy asks.

Example::

    data = datasets.load('snips', max_length=16)
    data.train['tokens'].shape, data.label_names[data.train['label'][0]]
    data.groups['test']['length'], data.group_names['length']
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from trustml import _validate
from trustml.data import pairs, tokenizers

SPLITS = ("train", "valid", "test")
KINDS = ("classification", "tagging", "span", "seq2seq")  # the first: slots too
VOCABULARIES = ("hashed", "train", "pretrained")


class Split(NamedTuple):
    """Examples as they were read; columns that do not apply are None.

    Attributes:
      labels: label names or their numbers, one an example.
      texts: sentences, or lists of words.
      slots: tag names, one list an example, as long as its words.
      image: float32[N, H, W, C].
      features: float32[N, D].
      groups: name -> int32[N].
      users: whose each example is, where that is known.
      second: questions or targets.
      spans: int32[N, 2], first character and last + 1 of an answer in the text.
      references: all right answers or sentences of each example.
    """

    labels: Sequence[str] | np.ndarray
    texts: Sequence[tokenizers.Text] | None = None
    slots: Sequence[Sequence[str]] | None = None
    image: np.ndarray | None = None
    features: np.ndarray | None = None
    groups: Mapping[str, np.ndarray] = {}
    users: Sequence[str] | None = None
    second: Sequence[str] | None = None
    spans: np.ndarray | None = None
    references: Sequence[tuple[str, ...]] | None = None


class Dataset(NamedTuple):
    """A data set ready for training; see the module docstring.

    Attributes:
      train: column name -> array with N rows.
      valid: the same columns; may have no rows (`files.load` with no fraction).
      test: the same columns; may have no rows.
      label_names: name of label 0, 1, ...
      slot_names: name of slot 0, 1, ...; empty where there are no slots.
      tokenizer: for text; None otherwise.
      vocab_size: of the tokenizer; 0 without one.
      feature_names: of the D features of a table; empty otherwise.
      name: of the data set.
      source: where it comes from, in words.
      licence: in words.
      texts: split -> the sentences, or lists of words, as they were read.
      groups: split -> group name -> int32[N], to report accuracy by. Sensitive
        attributes, and the length of texts in words.
      group_names: group name -> name of value 0, 1, ...
      digest: hexadecimal; changes with the data, the tokenizer and every option.
      user_ids: whose each row of `train` is, text[N]; None where that is not known.
      kind: one of `KINDS`: what is learnt from an example. Where it is not
        'classification', `label` is a property to sort examples by, and no target.
      second: split -> the questions or targets as they were read.
      references: split -> all right answers or sentences of each example.
    """

    train: dict[str, np.ndarray]
    valid: dict[str, np.ndarray]
    test: dict[str, np.ndarray]
    label_names: tuple[str, ...]
    slot_names: tuple[str, ...]
    tokenizer: tokenizers.Tokenizer | None
    vocab_size: int
    feature_names: tuple[str, ...]
    name: str
    source: str
    licence: str
    texts: dict[str, list[tokenizers.Text]]
    groups: dict[str, dict[str, np.ndarray]]
    group_names: dict[str, tuple[str, ...]]
    digest: str
    user_ids: np.ndarray | None = None
    kind: str = "classification"
    second: dict[str, list[str]] = {}
    references: dict[str, list[tuple[str, ...]]] = {}


def hash_fraction(content: bytes, seed: int = 0) -> float:
    """A number in [0, 1) that depends on `content` and `seed` alone."""
    salt = seed.to_bytes(16, "little")
    raw = hashlib.blake2b(content, digest_size=8, salt=salt).digest()
    return int.from_bytes(raw, "little") / 2**64


def choose_tokenizer(
    vocabulary: str, vocabulary_size: int, pretrained_dir, train_texts
) -> tokenizers.Tokenizer:
    """The tokenizer that the fields `data.vocabulary...` ask for.

    Args:
      vocabulary: 'hashed', 'train' (from `train_texts`; not private) or 'pretrained'.
      vocabulary_size: for 'hashed' and 'train', padding included.
      pretrained_dir: for 'pretrained': the directory of the checkpoint.
      train_texts: sentences or lists of words of the training split.
    """
    _validate.one_of("data.vocabulary", vocabulary, VOCABULARIES)
    if vocabulary == "hashed":
        return tokenizers.hashed(vocabulary_size)
    if vocabulary == "train":
        return tokenizers.word(tokenizers.build_vocab(train_texts, vocabulary_size))
    if not pretrained_dir:
        raise ValueError(
            "data.vocabulary='pretrained' needs a checkpoint; set pretrained_dir "
            "(model.checkpoint) to a directory that holds tokenizer.json."
        )
    return tokenizers.pretrained(pretrained_dir)


def subset(split: Split, limit: int, seed: int) -> Split:
    """`limit` examples chosen at random with `seed`, in their order; 0 keeps all."""
    count = len(split.labels)
    if not limit or limit >= count:
        return split
    rows = np.sort(np.random.default_rng(seed).permutation(count)[:limit])
    return take(split, rows)


def take(split: Split, rows: np.ndarray) -> Split:
    """The examples of `split` at `rows`, an integer array."""

    def pick(column) -> Any:
        if column is None or isinstance(column, np.ndarray):
            return None if column is None else column[rows]
        return [column[n] for n in rows]

    return Split(
        labels=pick(split.labels),
        texts=pick(split.texts),
        slots=pick(split.slots),
        image=pick(split.image),
        features=pick(split.features),
        groups={name: column[rows] for name, column in split.groups.items()},
        users=pick(split.users),
        second=pick(split.second),
        spans=pick(split.spans),
        references=pick(split.references),
    )


def assemble(
    splits: Mapping[str, Split],
    *,
    label_names: Sequence[str],
    max_length: int,
    tokenizer: tokenizers.Tokenizer | None,
    length_edges: Sequence[int],
    digest_of: Sequence[str],
    name: str,
    source: str,
    licence: str,
    feature_names: Sequence[str] = (),
    group_names: Mapping[str, tuple[str, ...]] | None = None,
    kind: str = "classification",
    second_length: int = 32,
) -> Dataset:
    """Makes a `Dataset` of examples that were read.

    Args:
      splits: train, valid and test.
      label_names: every label, in the order of their numbers.
      max_length: T; longer texts lose their end.
      tokenizer: for texts.
      length_edges: a text of at most `length_edges[b]` words is in length group b.
        Constants, so that the groups release nothing about the data.
      digest_of: strings that determine the data and its options.
      name: see `Dataset`, here and below.
      source: where the data come from.
      licence: in words.
      feature_names: of a table.
      group_names: of `Split.groups`.
      kind: see `Dataset`.
      second_length: U; longer second texts lose their end.
    """
    group_names = dict(group_names or {})
    columns = {part: {} for part in SPLITS}
    texts, groups = {}, {part: dict(splits[part].groups) for part in SPLITS}
    slot_names = _slot_names(splits)
    for part in SPLITS:
        split = splits[part]
        if split.texts is not None and tokenizer is not None:
            if split.second is not None:
                columns[part] |= pairs.columns(
                    kind, split, tokenizer, max_length, second_length
                )
            else:
                encoded = tokenizer.encode_many(split.texts, max_length)
                columns[part]["tokens"] = encoded.tokens
                columns[part]["length"] = encoded.length
                if slot_names:
                    tags = _encode_slots(split.slots, encoded, slot_names)
                    columns[part]["slots"] = tags
            words = [
                len(tokenizers.split_words(t) if isinstance(t, str) else t)
                for t in split.texts
            ]
            bucket = np.searchsorted(length_edges, words, side="left")
            groups[part]["length"] = bucket.astype(np.int32)
            group_names["length"] = _length_names(length_edges)
            texts[part] = list(split.texts)
        for field in ("image", "features"):
            if getattr(split, field) is not None:
                columns[part][field] = getattr(split, field)
        columns[part]["label"] = _encode_labels(split.labels, label_names)
    users = splits["train"].users
    parts = [*digest_of, tokenizer.digest if tokenizer else "", str(max_length)]
    if splits["train"].second is not None:
        parts.append(str(second_length))
    joined = "\0".join(parts).encode()
    return Dataset(
        **columns,
        label_names=tuple(label_names),
        slot_names=slot_names,
        tokenizer=tokenizer,
        vocab_size=tokenizer.vocab_size if tokenizer else 0,
        feature_names=tuple(feature_names),
        name=name,
        source=source,
        licence=licence,
        texts=texts,
        groups=groups,
        group_names=group_names,
        digest=hashlib.blake2b(joined, digest_size=16).hexdigest(),
        user_ids=None if users is None else np.array(users, np.str_),
        kind=kind,
        second=_present({part: splits[part].second for part in SPLITS}),
        references=_present({part: splits[part].references for part in SPLITS}),
    )


def _present(columns: Mapping[str, Sequence[Any] | None]) -> dict[str, list[Any]]:
    return {part: list(held) for part, held in columns.items() if held is not None}


def sort_labels(labels) -> tuple[str, ...]:
    """Distinct labels in order: as numbers if all are whole numbers, else as text."""
    distinct = set(labels)
    try:
        return tuple(sorted(distinct, key=lambda name: (int(name), name)))
    except ValueError:
        return tuple(sorted(distinct))


def _encode_labels(labels, names) -> np.ndarray:
    if isinstance(labels, np.ndarray):
        return labels.astype(np.int32)
    numbers = {name: n for n, name in enumerate(names)}
    return np.array([numbers[label] for label in labels], np.int32)


def _slot_names(splits) -> tuple[str, ...]:
    found = {
        tag for split in splits.values() for tags in split.slots or () for tag in tags
    }
    return tuple(sorted(found, key=lambda tag: (tag != "O", tag)))


def _encode_slots(slots, encoded, names) -> np.ndarray:
    """int32[N, T] of tag numbers, by the word that each token is made from."""
    numbers = {tag: n for n, tag in enumerate(names)}
    counts = np.array([len(tags) for tags in slots], np.int64)
    starts = np.cumsum(counts) - counts
    flat = np.array([numbers[tag] for tags in slots for tag in tags] + [0], np.int32)
    index = encoded.word_index
    first = np.where(index >= 0, starts[:, None] + index, len(flat) - 1)
    tags = np.where(index >= 0, flat[first], np.int32(0))
    goes_on = np.zeros(index.shape, bool)
    goes_on[:, 1:] = (index[:, 1:] == index[:, :-1]) & (index[:, 1:] >= 0)
    inside = [numbers.get("I-" + tag[2:]) if tag[:2] == "B-" else None for tag in names]
    inner = np.array([n if m is None else m for n, m in enumerate(inside)], np.int32)
    return np.where(goes_on, inner[tags], tags)


def _length_names(edges) -> tuple[str, ...]:
    low = [0, *(edge + 1 for edge in edges)]
    spans = [f"{a}–{b} words" for a, b in zip(low[1:], edges[1:], strict=False)]
    return (f"up to {edges[0]} words", *spans, f"{low[-1]} words or more")
