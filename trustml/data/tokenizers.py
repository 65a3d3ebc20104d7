"""Text to token ids: hashed (public), word vocabulary, pretrained.

Four tokenizers, one form: `encode(text or words, max_length)` gives `(tokens int32[T],
length)`, `encode_many` the same for a whole data set at once. Token id 0 is padding and
belongs to no word; positions at and after `length` hold 0.

* `hashed(size)`: id = 1 + blake2b(word) mod (size - 1). It depends on no data at all,
  so a private run leaks nothing through it. Words may share an id.
* `word(build_vocab(texts, size))`: the most frequent words of the texts; id 1 stands
  for every other word. A vocabulary built from private text is itself a release:
  whether a rare word is listed tells that somebody wrote it, and no epsilon covers
  that. Use it without privacy, or build it from public text.
* `characters(alphabet)`: one id a character, for language models; public, unless the
  alphabet was read off the data.
* `pretrained(directory)`: the `tokenizer.json` of a published checkpoint, [CLS] and
  [SEP] (or their like) included; public as well.

Example::

    tokenizer = tokenizers.hashed(8192)
    tokens, length = tokenizer.encode('play some jazz', max_length=16)
    encoded = tokenizer.encode_many(['play jazz', 'rain today?'], max_length=16)
    encoded.tokens.shape                                          # (2, 16)

Sources: feature hashing, Weinberger et al. 2009, https://arxiv.org/abs/0902.2206.
"""

import collections
import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tokenizers as hugging_face
from jaxtyping import Int32

from trustml import _validate

PAD = 0  # padding, in every tokenizer
UNKNOWN = 1  # any word that is not in the vocabulary of `word`

_WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")

Text = str | Sequence[str]  # a sentence, or its words


class Encoded(NamedTuple):
    """Texts as arrays.

    Attributes:
      tokens: int32[N, T]; 0 at and after `length`.
      length: int32[N]; tokens in use, at most T.
      word_index: int32[N, T]; the word (0, 1, ...) that a token is made from; -1 at
        padding and at marks such as [CLS].
    """

    tokens: Int32[np.ndarray, "N T"]
    length: Int32[np.ndarray, " N"]
    word_index: Int32[np.ndarray, "N T"]


class Tokenizer(NamedTuple):
    """A tokenizer; see the module docstring.

    Attributes:
      name: such as `hashed(8192)`.
      vocab_size: ids are in [0, vocab_size).
      digest: hexadecimal; equal digests encode every text alike.
      public: True if it was made without looking at the data it encodes.
      encode: (text or words, max_length) -> (tokens int32[T], length int32[]).
      encode_many: (texts, max_length) -> `Encoded`.
      unknown_id: id of whatever is not in the vocabulary; None if there is no such id.
    """

    name: str
    vocab_size: int
    digest: str
    public: bool
    encode: Callable[[Text, int], tuple[Int32[np.ndarray, " T"], Int32[np.ndarray, ""]]]
    encode_many: Callable[[Sequence[Text], int], Encoded]
    unknown_id: int | None = None


def normalize(word: str) -> str:
    """One spelling of a word: composed Unicode (NFC), lower case."""
    return unicodedata.normalize("NFC", word).lower()


def split_words(text: str) -> list[str]:
    """Words and single punctuation marks of a text: "don't stop!" -> don't, stop, !."""
    return _WORD.findall(text)


def word_places(text: str) -> list[tuple[int, int]]:
    """Where the words of `split_words` stand: (first character, last + 1) of each."""
    return [match.span() for match in _WORD.finditer(text)]


def _words(text: Text) -> Sequence[str]:
    return split_words(text) if isinstance(text, str) else text


def build_vocab(texts: Iterable[Text], size: int) -> tuple[str, ...]:
    """The `size` - 2 most frequent words, ties in alphabetical order.

    Give it training text only. Not private: see the module docstring.

    Args:
      texts: sentences, or lists of words.
      size: ids in all; two are kept for padding and for unknown words.

    Raises:
      ValueError: if size < 3, or the texts hold no word.
    """
    size = _validate.integer_at_least("data.vocabulary_size", size, 3, "try 8192")
    counts = collections.Counter(w for text in texts for w in _words(text))
    merged: collections.Counter = collections.Counter()
    for word_, count in counts.items():
        merged[normalize(word_)] += count
    if not merged:
        raise ValueError(
            "data.vocabulary='train' found no word in the training text; "
            "use data.vocabulary='hashed' or give texts that are not empty."
        )
    ranked = sorted(merged, key=lambda w: (-merged[w], w))
    return tuple(ranked[: size - 2])


def word(vocab: Sequence[str]) -> Tokenizer:
    """A tokenizer of whole words: `vocab[i]` has id i + 2, any other word id 1.

    Args:
      vocab: distinct words, as from `build_vocab`.

    Raises:
      ValueError: if the vocabulary is empty or lists a word twice.
    """
    ids = {normalize(w): i + 2 for i, w in enumerate(vocab)}
    if not ids or len(ids) != len(vocab):
        why = f"lists {len(vocab) - len(ids)} words twice" if ids else "is empty"
        raise ValueError(
            f"vocab with {len(vocab)} words {why}; give distinct words, in lower case."
        )
    digest = _digest("word-1", *ids)
    size = len(ids) + 2
    made = _by_word(f"word({size})", size, digest, False, lambda w: ids.get(w, UNKNOWN))
    return made._replace(unknown_id=UNKNOWN)


def hashed(size: int) -> Tokenizer:
    """A public tokenizer that needs no vocabulary: id = 1 + hash(word) mod (size - 1).

    The hash is BLAKE2b of the UTF-8 bytes of the normalised word, so ids are the same
    on every machine and in every version. Id 0 is padding, and no word has it.

    Args:
      size: ids in all, padding included; at least 2.
    """
    size = _validate.integer_at_least("data.vocabulary_size", size, 2, "try 8192")

    def word_id(normal: str) -> int:
        raw = hashlib.blake2b(normal.encode("utf-8", "surrogatepass"), digest_size=8)
        return 1 + int.from_bytes(raw.digest(), "little") % (size - 1)

    return _by_word(
        f"hashed({size})", size, _digest("hashed-1", str(size)), True, word_id
    )


def characters(alphabet: str) -> Tokenizer:
    """A tokenizer of characters: `alphabet[i]` has id i + 2, any other character id 1.

    Case counts, and spaces and line ends are characters as well. A list of words is
    read as they stand with a space between two.

    Args:
      alphabet: distinct characters; `string.printable` fits English text.

    Raises:
      ValueError: if the alphabet is empty or has a character twice.
    """
    ids = {c: i + 2 for i, c in enumerate(alphabet)}
    if not ids or len(ids) != len(alphabet):
        why = f"has {len(alphabet) - len(ids)} twice" if ids else "is empty"
        bound = f"{why} and must list every character once"
        _validate.fail("alphabet", alphabet, bound, "string.printable is usual")

    def encode_many(texts: Sequence[Text], max_length: int) -> Encoded:
        _validate.integer_at_least("data.max_length", max_length, 1, "try 80")
        joined = [text if isinstance(text, str) else " ".join(text) for text in texts]
        lengths = np.array([min(len(text), max_length) for text in joined], np.int32)
        flat = [ids.get(c, UNKNOWN) for text in joined for c in text[:max_length]]
        words = [n for text in joined for n in _word_of(text[:max_length])]
        return Encoded(
            _pad(np.array(flat, np.int32), lengths, max_length, PAD),
            lengths,
            _pad(np.array(words, np.int32), lengths, max_length, -1),
        )

    return Tokenizer(
        f"characters({len(ids) + 2})",
        len(ids) + 2,
        _digest("characters-1", alphabet),
        True,
        _encode_one(encode_many),
        encode_many,
        UNKNOWN,
    )


def _word_of(text: str) -> list[int]:
    """The word that every character stands in; -1 for white space."""
    out, word_ = [], -1
    for before, now in zip(" " + text, text, strict=False):
        word_ += before.isspace() and not now.isspace()
        out.append(-1 if now.isspace() else word_)
    return out


def pretrained(directory) -> Tokenizer:
    """The tokenizer of a published checkpoint, with its marks ([CLS] ... [SEP]).

    Texts that are too long lose words at the end and keep their marks. Padding is id 0,
    also where the checkpoint has another id for it: models mask by `length`.

    Args:
      directory: in the Hugging Face layout; holds `tokenizer.json`.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: when encoding, if `max_length` leaves no room beside the marks.
    """
    folder = _validate.existing_directory("data.pretrained_dir", directory)
    path = _validate.existing_file(
        "tokenizer.json", folder / "tokenizer.json", "give a Hugging Face checkpoint"
    )
    content = path.read_bytes()
    try:
        engine = hugging_face.Tokenizer.from_buffer(content)
    except Exception as error:
        raise ValueError(
            f"tokenizer.json={str(path)!r} cannot be read ({error}); download it again."
        ) from error
    marks = engine.num_special_tokens_to_add(False)

    def encode_many(texts: Sequence[Text], max_length: int) -> Encoded:
        _validate.integer_at_least(
            "data.max_length", max_length, marks + 1, f"it holds {marks} marks too"
        )
        engine.no_padding()
        engine.enable_truncation(max_length)
        found: list[Any] = [None] * len(texts)
        # The engine wants a batch to be all sentences or all lists of words.
        for as_words in (False, True):
            rows = [
                n for n, text in enumerate(texts) if isinstance(text, str) != as_words
            ]
            batch = [list(texts[n]) if as_words else texts[n] for n in rows]
            coded = engine.encode_batch(batch, is_pretokenized=as_words)
            for n, one in zip(rows, coded, strict=True):
                found[n] = one
        lengths = np.array([len(one.ids) for one in found], np.int32)
        ids = [i for one in found for i in one.ids]
        index = [-1 if w is None else w for one in found for w in one.word_ids]
        return Encoded(
            _pad(np.array(ids, np.int32), lengths, max_length, PAD),
            lengths,
            _pad(np.array(index, np.int32), lengths, max_length, -1),
        )

    return Tokenizer(
        name=f"pretrained({folder.name})",
        vocab_size=engine.get_vocab_size(),
        digest=hashlib.blake2b(b"pretrained-1" + content, digest_size=16).hexdigest(),
        public=True,
        encode=_encode_one(encode_many),
        encode_many=encode_many,
        unknown_id=_unknown_id(engine, content),
    )


def _unknown_id(engine, content: bytes) -> int | None:
    """Id of [UNK] or its like; byte-level vocabularies have none."""
    model = json.loads(content)["model"]
    if model.get("unk_id") is not None:
        return int(model["unk_id"])
    return engine.token_to_id(model.get("unk_token") or "")


def _by_word(name, size, digest, public, word_id) -> Tokenizer:
    """A tokenizer of one id a word, given normalised word -> id."""
    seen: dict[str, int] = {}  # word as written -> id

    def encode_many(texts: Sequence[Text], max_length: int) -> Encoded:
        _validate.integer_at_least("data.max_length", max_length, 1, "try 32")
        clipped = [_words(text)[:max_length] for text in texts]
        lengths = np.array([len(words) for words in clipped], np.int32)
        flat = [w for words in clipped for w in words]
        for w in set(flat).difference(seen):
            seen[w] = word_id(normalize(w))
        ids = np.array([seen[w] for w in flat], np.int32)
        tokens = _pad(ids, lengths, max_length, PAD)
        places = np.arange(max_length, dtype=np.int32)
        index = np.where(places < lengths[:, None], places, np.int32(-1))
        return Encoded(tokens, lengths, index)

    return Tokenizer(name, size, digest, public, _encode_one(encode_many), encode_many)


def _encode_one(encode_many):
    def encode(text: Text, max_length: int):
        many = encode_many([text], max_length)
        return many.tokens[0], many.length[0]

    return encode


def _pad(flat, lengths, max_length, filler):
    """Rows of different length, one after the other, to a rectangle int32[N, T]."""
    out = np.full((len(lengths), max_length), filler, np.int32)
    out[np.arange(max_length) < lengths[:, None]] = flat
    return out


def _digest(*parts: str) -> str:
    joined = "\0".join(parts).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(joined, digest_size=16).hexdigest()
