"""Secrets planted in a data set: what every seed hides, and the codes that are asked.

Every seed has a secret of its own (code, intent, slot type, drawn at random), a decoy,
and an ordinary training row. A model with k copies of the secret has most - k of the
ordinary row, in the same slots of its training set, so that sizes and order match.

Codes few enough are all scored. Of more than a million the losses of random ones are
taken, from which exposure is extrapolated, and those of the sub-space where all but the
last words of the code are known: there both the exact rank and the extrapolation can be
had, and compared.

Dimension key: `S` seeds, `L` words of a code, `R` codes scored, `T` tokens.

Example::

    plan = planted.plan(config, data, seeds=16)
    columns = planted.columns(plan, data)           # training rows, then the secrets
    index, seed = planted.index(plan, len(data.train['label']), (0, 1, 10, 100))
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from trustml import _validate, rng, specs
from trustml.attacks.extraction import canary
from trustml.data import datasets, tokenizers

_NAMES = ("tokens", "length", "label", "slots")
_SUBSPACE = 10**4  # codes of the sub-space that is ranked of longer codes


class Planted(NamedTuple):
    """The secrets of S seeds.

    Attributes:
      pattern: of T = its own length.
      secrets: S of them.
      decoys: S of them, of the same intents and slots.
      targets: name -> [S, ...], what the attacker knows.
      codes: int32[R, L] where all are scored; else int32[S, R, L]: secret, decoy,
        `sampled` random ones, the sub-space.
      sampled: number of random codes; 0 where all are scored.
      ordinary: int[S], rows of the training split.
      shared: words of the alphabet whose id other words of the data have as well.
    """

    pattern: canary.Pattern
    secrets: tuple[canary.Secret, ...]
    decoys: tuple[canary.Secret, ...]
    targets: dict[str, np.ndarray]
    codes: np.ndarray
    sampled: int
    ordinary: np.ndarray
    shared: tuple[str, ...]


def plan(config: specs.RunConfig, data: datasets.Dataset, *, seeds: int) -> Planted:
    """Draws the secrets of `seeds` seeds; a seed's do not depend on how many there are.

    Raises:
      ValueError: if the data have no slots or no types of them, or words of the
        alphabet share an id.
    """
    spec, tokenizer = config.canary, data.tokenizer
    if tokenizer is None or not data.slot_names:
        bound = "has no slots to hide a code in"
        cure = "choose snips, atis or nlu_eval"
        _validate.fail("data.name", data.name, bound, cure)
    known, letters = (_ids(tokenizer, w) for w in (spec.words, spec.alphabet))
    template = [*known.tolist(), *[canary.UNKNOWN] * spec.length]
    pattern = canary.pattern(template, letters, max_length=len(template))
    tags, secrets, decoys = _code_tags(config, data), [], []
    roots = [rng.stream(rng.root(config.seed), f"secret {s}") for s in range(seeds)]
    ordinary = []
    for root in roots:
        secret = canary.draw(
            root, pattern, num_labels=len(data.label_names), code_tags=tags
        )
        secrets.append(secret)
        decoys.append(canary.decoy(root, pattern, secret))
        chosen = rng.seed_128(rng.stream(root, "ordinary"))
        ordinary.append(chosen % len(data.train["label"]))
    known_rows = [canary.target(pattern, secret) for secret in secrets]
    targets = {n: np.stack([row[n] for row in known_rows]) for n in known_rows[0]}
    sampled = 0 if canary.num_codes(pattern) <= canary.MAX_CODES else spec.candidates
    if sampled:
        rows = zip(roots, secrets, decoys, strict=True)
        codes = np.stack([_some(pattern, *row, sampled) for row in rows])
    else:
        codes = canary.all_codes(pattern)
    shared = _shared(tokenizer, data, spec.alphabet, letters)
    return Planted(
        pattern,
        tuple(secrets),
        tuple(decoys),
        targets,
        codes,
        sampled,
        np.array(ordinary),
        shared,
    )


def columns(plan: Planted, data: datasets.Dataset) -> dict[str, np.ndarray]:
    """The training split, and one row more for the secret of every seed."""
    out = {name: data.train[name] for name in _NAMES}
    width = out["tokens"].shape[1]
    for secret in plan.secrets:
        row: dict[str, Any] = canary.example(plan.pattern, secret)
        for name in ("tokens", "slots"):
            row[name] = np.pad(row[name], (0, width - len(row[name])))
        out = canary.insert(out, row, 1)
    return out


def index(
    plan: Planted, size: int, copies: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Training sets int32[M, size + most] and seeds int32[M], seed after seed.

    Args:
      plan: of S seeds.
      size: rows of the training split.
      copies: K numbers of copies; M = S K.
    """
    most, rows, seeds = max(copies), [], []
    for seed, ordinary in enumerate(plan.ordinary.tolist()):
        for count in copies:
            added = [size + seed] * count + [ordinary] * (most - count)
            rows.append(np.concatenate([np.arange(size), added]))
            seeds.append(seed)
    return np.array(rows, np.int32), np.array(seeds, np.int32)


def subspace(pattern: canary.Pattern) -> int:
    """Last words of a code that make at most 10^4 codes."""
    letters = pattern.alphabet.shape[1]
    width = int(np.log(_SUBSPACE) / np.log(letters) + 1e-9)
    return min(max(width, 1), pattern.positions.size)


def _some(pattern, root, secret, decoy, sampled) -> np.ndarray:
    random = canary.random_codes(root, pattern, sampled)
    width = subspace(pattern)
    letters = pattern.alphabet.shape[1]
    ends = np.indices((letters,) * width, dtype=np.int32).reshape(width, -1).T
    begin = np.tile(secret.code[:-width], (len(ends), 1))
    known = np.concatenate([begin, ends], axis=1)
    return np.concatenate([secret.code[None], decoy.code[None], random, known])


def _ids(tokenizer: tokenizers.Tokenizer, words: Sequence[str]) -> np.ndarray:
    found = tokenizer.encode_many([[word] for word in words], 1)
    return found.tokens[:, 0]


def _code_tags(config: specs.RunConfig, data: datasets.Dataset) -> list[list[int]]:
    """Rows of tags of a code: B-x, I-x, I-x, ... of every type x, or O throughout."""
    numbers = {tag: n for n, tag in enumerate(data.slot_names)}
    length = config.canary.length
    if config.canary.code_tags == "outside":
        return [[0] * length]
    kinds = [tag[2:] for tag in numbers if tag.startswith("B-")]
    kinds = [kind for kind in kinds if f"I-{kind}" in numbers]
    if not kinds:
        bound = "needs types of slots that span words, and the data have none"
        _validate.fail("canary.code_tags", "slot", bound, "use 'outside'")
    return [
        [numbers[f"B-{kind}"], *[numbers[f"I-{kind}"]] * (length - 1)] for kind in kinds
    ]


def _shared(tokenizer, data, alphabet, letters) -> tuple[str, ...]:
    words = set()
    for texts in data.texts.values():
        for text in texts:
            words.update(
                tokenizers.split_words(text) if isinstance(text, str) else text
            )
    others = sorted({tokenizers.normalize(word) for word in words})
    own = {tokenizers.normalize(word): word for word in alphabet}
    others = [word for word in others if word not in own]
    taken = set(_ids(tokenizer, others).tolist()) if others else set()
    return tuple(
        w for w, i in zip(alphabet, letters.tolist(), strict=True) if i in taken
    )
