"""What a partition is, its digest, its random numbers, and how examples are dealt.

Every partition comes down to a table of how many examples of each kind a client gets;
`deal` then hands out the examples of each kind in a shuffled order. The kinds are
labels, clusters, or nothing at all.

Dimension key: N examples, C clients, L labels.

Example::

    random = base.Random(seed)
    client_of = base.deal(kinds, table, random)
    made = base.make('mine', client_of, 100, parameters, seed, data_digest)
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int
from scipy import special

from trustml import _validate, rng


class Partition(NamedTuple):
    """Who holds which example.

    Attributes:
      offsets: int64[C+1].
      permutation: int64[N]; client c holds permutation[offsets[c]:offsets[c+1]], in
        rising order. A partition of a part of the data has fewer than N.
      digest: hexadecimal SHA-256 of name, parameters, seed, data digest, offsets and
        permutation.
      name: of the function that made it.
      parameters: of that function, numbers and text only.
      client_key: [C], what the data call each client; None where they are numbers.
    """

    offsets: Int[np.ndarray, " clients_and_one"]
    permutation: Int[np.ndarray, " examples"]
    digest: str
    name: str
    parameters: Mapping[str, Any]
    client_key: np.ndarray | None = None


class Random(NamedTuple):
    """Random numbers of a partition, made of raw words of Philox.

    Attributes:
      bits: the generator of the words.
    """

    bits: np.random.Philox

    def uniform(self, *shape: int) -> np.ndarray:
        """Float64 strictly between 0 and 1: the middles of 2**53 equal parts."""
        words = self.bits.random_raw(int(np.prod(shape))).reshape(shape)
        return ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53

    def order(self, count: int) -> Int[np.ndarray, " count"]:
        """A shuffle of 0 ... count-1."""
        return np.argsort(self.bits.random_raw(count), kind="stable")

    def normal(self, count: int) -> np.ndarray:
        """Standard normal numbers."""
        return special.ndtri(self.uniform(count))

    def log_dirichlet(self, concentration: np.ndarray, count: int) -> np.ndarray:
        """Logarithms of `count` mixes from Dir(concentration), float64[count, L].

        A Gamma(a) number is one of Gamma(a + 1) times U^(1/a); logarithms are kept, so
        that the smallest concentrations give one label and not 0/0.
        """
        shape = (count, len(concentration))
        one_more = special.gammaincinv(concentration + 1, self.uniform(*shape))
        logs = np.log(one_more) + np.log(self.uniform(*shape)) / concentration
        return logs - special.logsumexp(logs, axis=1, keepdims=True)


def random(name: str, seed: Any) -> Random:
    """The random numbers of the partition `name` with a seed of at most 128 bits."""
    number = rng.check_seed("seed", seed)
    digest = hashlib.sha256(f"trustml.partitions:{name}:{number}".encode()).digest()
    return Random(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def make(
    name: str,
    client_of: Int[np.ndarray, " examples"],
    num_clients: int,
    parameters: Mapping[str, Any],
    seed: int,
    data_digest: str,
    *,
    client_key: np.ndarray | None = None,
) -> Partition:
    """The partition that gives example n to client `client_of[n]`; -1 gives it to none.

    Args:
      name: of the rule.
      client_of: [N].
      num_clients: C.
      parameters: of the rule.
      seed: of the rule.
      data_digest: of what the rule looked at.
      client_key: [C].
    """
    permutation = np.argsort(client_of, kind="stable").astype(np.int64)
    permutation = permutation[int((client_of < 0).sum()) :]
    offsets = np.zeros(num_clients + 1, np.int64)
    counts = np.bincount(client_of[client_of >= 0], minlength=num_clients)
    np.cumsum(counts, out=offsets[1:])
    return seal(name, offsets, permutation, parameters, seed, data_digest, client_key)


def seal(
    name, offsets, permutation, parameters, seed, data_digest, client_key=None
) -> Partition:
    """A partition of its arrays, with its digest; see `make`."""
    head = [name, parameters, seed, data_digest]
    found = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    for array in (offsets, permutation):
        found.update(array.astype("<i8").tobytes())
    return Partition(
        offsets, permutation, found.hexdigest(), name, dict(parameters), client_key
    )


def deal(
    kinds: Int[np.ndarray, " examples"], table: np.ndarray, random: Random
) -> Int[np.ndarray, " examples"]:
    """Which client each example goes to, where client c gets table[c, l] of kind l.

    Args:
      kinds: [N], from 0 to L-1.
      table: int[C, L], whose columns sum to what there is of each kind.
      random: which of them.
    """
    clients, labels = table.shape
    by_kind = np.lexsort((random.bits.random_raw(len(kinds)), kinds))
    numbers = np.broadcast_to(np.arange(clients), (labels, clients)).ravel()
    out = np.empty(len(kinds), np.int64)
    out[by_kind] = np.repeat(numbers, table.T.ravel())
    return out


def split_test(
    partition: Partition, labels: Any, test_labels: Any, *, seed: int
) -> Partition:
    """Gives test examples to the clients of a partition, in the mix of its labels.

    Of each label a client gets the share of the test examples that it has of the
    training examples, rounded by largest remainders; of labels without a training
    example, its share of all.

    Args:
      partition: of the training examples.
      labels: [N], their labels.
      test_labels: those of the test examples.
      seed: which of them go where.

    Raises:
      ValueError: if the partition holds no example.
    """
    given, of_test = kinds("labels", labels), kinds("test_labels", test_labels)
    names, code = np.unique(np.concatenate([given, of_test]), return_inverse=True)
    train, test = code[: len(given)], code[len(given) :]
    held = table(partition, train, len(names))
    sizes = held.sum(axis=1)
    if not sizes.sum():
        raise ValueError("partition holds no example; no mix can be told from it.")
    weights = np.where(held.sum(axis=0) > 0, held, sizes[:, None])
    counts = np.bincount(test, minlength=len(names))
    shares = [
        largest_remainder(int(count), column)
        for count, column in zip(counts, weights.T, strict=True)
    ]
    name = "split_test"
    numbers = random(name, seed)
    client_of = deal(test, np.stack(shares, axis=1), numbers)
    return make(
        name,
        client_of,
        len(held),
        {"of": partition.digest},
        seed,
        data_digest(given, of_test),
        client_key=partition.client_key,
    )


def table(partition: Partition, kinds: np.ndarray, num_kinds: int) -> np.ndarray:
    """How many examples of each kind each client holds, int64[C, L]."""
    clients = len(partition.offsets) - 1
    owner = np.repeat(np.arange(clients), np.diff(partition.offsets))
    cell = owner * num_kinds + kinds[partition.permutation]
    return np.bincount(cell, minlength=clients * num_kinds).reshape(clients, num_kinds)


def largest_remainder(total: int, weights: Any) -> Int[np.ndarray, " clients"]:
    """Whole numbers that sum to `total` and are nearest to total * weights / sum.

    The rest goes to the largest fractions; ties to the first.
    """
    weights = np.asarray(weights, np.float64)
    exact = total * (weights / weights.sum())
    whole = np.floor(exact).astype(np.int64)
    left = total - int(whole.sum())
    first = np.argsort(whole - exact, kind="stable")
    whole[first[:left]] += 1
    return whole


def kinds(field: str, values: Any) -> np.ndarray:
    """Labels as a flat array of numbers or text."""
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in "biuUS":
        raise ValueError(
            f"{field}={array.dtype}{list(array.shape)} must be a whole number or text "
            "for each example; give a flat array of labels."
        )
    return array


def check_clients(num_clients: Any, num_examples: int, each: int = 0) -> int:
    """`num_clients`, if so many can be given `each` examples or more."""
    number = _validate.integer_at_least("num_clients", num_clients, 1)
    if number * each > num_examples:
        _validate.fail(
            "num_clients",
            number,
            f"is too many to give {num_examples} examples out with {each} or more each",
            f"take at most {num_examples // each} clients",
        )
    return number


def data_digest(*arrays: np.ndarray) -> str:
    """SHA-256 of what a rule looks at."""
    found = hashlib.sha256()
    for array in arrays:
        if array.dtype.kind in "biu":
            array = array.astype("<i8")  # whatever width they came in
        elif array.dtype.kind == "U":
            array = np.frombuffer("\0".join(array.tolist()).encode(), np.uint8)
        found.update(f"{array.dtype.newbyteorder('<').str}{array.shape}".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()
