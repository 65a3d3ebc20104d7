"""All clients' examples in flat columns: client k owns rows offsets[k]:offsets[k+1].

    columns[name]: [N, ...], sorted by (client, time);  offsets: int64[K+1], 0 ... N

Compressed sparse rows, once for clients and once more for text, whose columns are
`flat.Ragged`: one array of tokens, cut or padded only when a batch is made. Offsets and
columns may be memory-mapped files; nothing here loops over clients, and nothing holds
more than 16 bytes for each of them.

Clients may have no examples. Where one person owns several clients `user` says so: the
person is then the unit of privacy, and sensitivity counts the clients together.

The digest covers names, types, shapes and bytes of everything that the store holds. So
a run that is resumed, or repeated elsewhere, can tell whether it sees the same data.

Library code opens files read-only. `copy` fills arrays that the caller supplies, and
`trustml.experiments.stores` supplies files.

Dimension key: N examples, K clients, T tokens of all texts together, M clients asked
for, R their rows.

Example::

    held = store.from_arrays({'image': x, 'label': y}, authors, time=dates)
    store.sizes(held)                          # int32[K]
    mine = store.rows(held, [3, 5])            # of clients 3 and 5
    held.columns['image'][mine]
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from trustml import _validate
from trustml.federated import flat

Target = Callable[[str, tuple[int, ...], np.dtype], np.ndarray]  # -> where to write


class ClientStore(NamedTuple):
    """Examples of all clients; see the module docstring.

    Attributes:
      columns: name -> array [N, ...] or `flat.Ragged` of N rows.
      offsets: int64[K+1].
      digest: hexadecimal SHA-256 of all the rest.
      time: [N], never falling within a client; None where unknown.
      client_key: [K], what the data call each client; None where they are numbers.
      user: int[K], the number of the person each client belongs to; None where every
        client is a person.
    """

    columns: Mapping[str, flat.Column]
    offsets: Int[np.ndarray, " clients_and_one"]
    digest: str
    time: np.ndarray | None = None
    client_key: np.ndarray | None = None
    user: np.ndarray | None = None


def from_arrays(
    columns: Mapping[str, Any],
    clients: Any,
    *,
    time: Any = None,
    user: Any = None,
    client_keys: Any = None,
) -> ClientStore:
    """The store of examples in any order: one stable sort by (client, time).

    Integers are kept in the smallest type that holds them.

    Args:
      columns: name -> array [N, ...] or `flat.Ragged` of N rows.
      clients: [N], whose each example is: numbers or text.
      time: [N], numbers or dates to order a client's examples by; their order where
        None.
      user: [N], which person's each example is; the same for all of a client.
      client_keys: every client, without repeats, in the order of their numbers; needed
        where some have no examples. Those of `clients`, sorted, where None.

    Raises:
      ValueError: for columns of different lengths, a row of no client (blank, NaN,
        masked), a client that `client_keys` lacks, a client of two persons, or times
        that cannot be ordered.
    """
    owners = _vector("clients", clients)
    _check_named("clients", clients, owners)
    count = len(owners)
    _check_columns(columns, count)
    keys, code = _codes(owners, client_keys)
    if time is None:
        order = np.argsort(code, kind="stable")
    else:
        given, time = time, _vector("time", time, count)
        if (row := _first_gap(given, time)) is not None:
            bound = "has no place in an order"
            _validate.fail(f"time[{row}]", str(given[row]), bound, "drop these rows")
        order = np.lexsort((time, code))  # stable
    offsets = np.zeros(len(keys) + 1, np.int64)
    np.cumsum(np.bincount(code, minlength=len(keys)), out=offsets[1:])
    users = None
    if user is not None:
        persons = _vector("user", user, count)
        _check_named("user", user, persons)
        users = _users(persons, code, len(keys))
    numbered = keys.dtype.kind in "iu" and np.array_equal(keys, np.arange(len(keys)))
    return seal(
        _sorted(columns, order),
        offsets,
        time=None if time is None else time[order],
        client_key=None if numbered else keys,
        user=users,
    )


def from_partition(
    columns: Mapping[str, Any],
    offsets: Int[np.ndarray, " clients_and_one"],
    permutation: Int[np.ndarray, " rows"],
    *,
    client_key: np.ndarray | None = None,
) -> ClientStore:
    """The store of a `partitions.Partition`.

    Client k gets the examples permutation[offsets[k]:offsets[k+1]], in that order.

    Args:
      columns: name -> array [N, ...] or `flat.Ragged` of N rows.
      offsets: int64[K+1].
      permutation: which example each row of the store is.
      client_key: [K], names of the clients.
    """
    first = next(iter(columns.values()), np.zeros(0))
    _check_columns(columns, flat.length(first))
    return seal(_sorted(columns, permutation), offsets, client_key=client_key)


def seal(
    columns: Mapping[str, flat.Column],
    offsets: np.ndarray,
    *,
    time: np.ndarray | None = None,
    client_key: np.ndarray | None = None,
    user: np.ndarray | None = None,
) -> ClientStore:
    """The store of columns that are sorted already, as those of a file are.

    Raises:
      ValueError: if columns and offsets do not fit one another.
    """
    if not columns:
        raise ValueError("columns={} holds no column; give one or more.")
    offsets = np.asanyarray(offsets)
    if offsets.ndim != 1 or not len(offsets) or offsets.dtype != np.int64:
        raise ValueError(
            f"offsets={offsets.dtype}{list(offsets.shape)} must be int64[K+1]; it says "
            "where each client's rows start, and where the last one's end."
        )
    _check_columns(columns, int(offsets[-1]))
    _check_offsets("offsets", offsets)
    for name, column in columns.items():
        if isinstance(column, flat.Ragged):
            _check_offsets(f"{name}.offsets", column.offsets)
    clients = len(offsets) - 1
    for field, value in (("client_key", client_key), ("user", user)):
        if value is not None and len(value) != clients:
            raise ValueError(
                f"{field} has {len(value)} entries and offsets tell of {clients} "
                "clients; give one for each client."
            )
    if time is not None and len(time) != offsets[-1]:
        raise ValueError(
            f"time has {len(time)} entries and the columns {offsets[-1]} rows; give "
            "one for each row."
        )
    made = ClientStore(dict(columns), offsets, "", time, client_key, user)
    digests = {name: flat.digest(array) for name, array in arrays(made).items()}
    return made._replace(digest=join_digests(digests))


def sizes(store: ClientStore) -> Int[np.ndarray, " clients"]:
    """Number of examples of each client, int32[K]."""
    out = np.empty(len(store.offsets) - 1, np.int32)
    for start in range(0, len(out), flat.CHUNK):  # no int64 copy of all offsets
        part = out[start : start + flat.CHUNK]
        np.subtract(
            store.offsets[start + 1 : start + 1 + len(part)],
            store.offsets[start : start + len(part)],
            out=part,
            casting="same_kind",
        )
        flat.release(store.offsets)
    return out


def rows(store: ClientStore, clients: Any) -> Int[np.ndarray, " rows"]:
    """Rows of one client or of several, one after another: int64[R]."""
    asked = np.atleast_1d(np.asarray(clients))
    total = len(store.offsets) - 1
    if asked.dtype.kind not in "iu" and len(asked):
        _validate.fail("clients", asked.tolist(), "must be numbers of clients")
    asked = asked.astype(np.int64)
    wrong = asked[(asked < 0) | (asked >= total)]
    if len(wrong):
        cure = f"the store has clients 0 to {total - 1}"
        _validate.fail("client", int(wrong[0]), f"must be below {total}", cure)
    starts = np.asarray(store.offsets[asked])
    counts = np.asarray(store.offsets[asked + 1]) - starts
    flat.release(store.offsets)
    skipped = np.cumsum(counts) - counts
    return np.repeat(starts - skipped, counts) + np.arange(counts.sum())


def arrays(store: ClientStore) -> dict[str, np.ndarray]:
    """Every array of the store by the name that files and digests use."""
    out = {"offsets": store.offsets}
    for name, column in store.columns.items():
        if isinstance(column, flat.Ragged):
            out[f"columns.{name}.values"] = column.values
            out[f"columns.{name}.offsets"] = column.offsets
        else:
            out[f"columns.{name}"] = column
    for name in ("time", "client_key", "user"):
        if getattr(store, name) is not None:
            out[name] = getattr(store, name)
    return out


def from_named(named: Mapping[str, np.ndarray], digest: str) -> ClientStore:
    """The store of which `arrays` gave these, with the digest it had."""
    columns: dict[str, flat.Column] = {}
    for name, array in named.items():
        if not name.startswith("columns."):
            continue
        column, _, part = name.removeprefix("columns.").partition(".")
        if not part:
            columns[column] = array
        elif part == "values":
            columns[column] = flat.Ragged(array, named[f"columns.{column}.offsets"])
    rest = {name: named.get(name) for name in ("time", "client_key", "user")}
    return ClientStore(columns, named["offsets"], digest, **rest)


def copy(store: ClientStore, target: Target) -> dict[str, str]:
    """Writes every array into what `target(name, shape, dtype)` returns, in pieces.

    Returns:
      name -> digest of the array.
    """
    digests = {}
    for name, array in arrays(store).items():
        into = target(name, array.shape, array.dtype)
        for start in range(0, len(array), step := flat.rows_at_once(array)):
            into[start : start + step] = array[start : start + step]
        digests[name] = flat.digest(array)
    return digests


def join_digests(digests: Mapping[str, str]) -> str:
    """Digest of a store from those of its arrays."""
    return hashlib.sha256(
        json.dumps(dict(sorted(digests.items()))).encode()
    ).hexdigest()


def _vector(field: str, values: Any, count: int | None = None) -> np.ndarray:
    found = np.asarray(values)
    if found.ndim != 1 or found.dtype == object:
        raise ValueError(
            f"{field}={found.dtype}{list(found.shape)} must be one number or text for "
            "each example; give a flat array of one type."
        )
    if count is not None and len(found) != count:
        raise ValueError(
            f"{field} has {len(found)} entries and clients {count}; give one for each "
            "example."
        )
    return found


def _first_gap(given: Any, values: np.ndarray) -> int | None:
    """The first row that is masked, NaN, NaT or blank; None if no row is."""
    gaps = np.ma.getmaskarray(given) if np.ma.isMaskedArray(given) else None
    if gaps is None and values.dtype.kind == "f":
        gaps = ~np.isfinite(values)
    elif gaps is None and values.dtype.kind == "M":
        gaps = np.isnat(values)
    elif gaps is None and values.dtype.kind in "US":
        gaps = np.char.str_len(np.char.strip(values)) == 0
    return int(np.argmax(gaps)) if gaps is not None and gaps.any() else None


def _check_named(field: str, given: Any, values: np.ndarray) -> None:
    """Raises where a row is nobody's; all such rows would be one client's."""
    if (row := _first_gap(given, values)) is not None:
        value = "masked" if np.ma.isMaskedArray(given) else values[row].item()
        bound = "says not whose the example is"
        cure = "name a client, or drop the row"
        _validate.fail(f"{field}[{row}]", value, bound, cure)


def _check_columns(columns: Mapping[str, Any], count: int) -> None:
    for name, column in columns.items():
        if not name or "." in name or "/" in name:
            _validate.fail("column", name, "must be a name without '.' and '/'")
        if not isinstance(column, flat.Ragged) and not flat.is_array(column):
            raise ValueError(
                f"columns[{name!r}] is no array of numbers or texts; where rows differ "
                "in length make it with flat.ragged."
            )
        if flat.length(column) != count:
            raise ValueError(
                f"columns[{name!r}] has {flat.length(column)} rows where {count} are "
                "expected; give every column a row for each example."
            )
        if isinstance(column, flat.Ragged) and column.offsets[-1] != len(column.values):
            raise ValueError(
                f"columns[{name!r}].offsets ends at {column.offsets[-1]} and there are "
                f"{len(column.values)} values; they must agree."
            )


def _sorted(columns: Mapping[str, Any], order: np.ndarray) -> dict[str, flat.Column]:
    return {name: flat.take(flat.narrow(c), order) for name, c in columns.items()}


def _check_offsets(field: str, offsets: np.ndarray) -> None:
    falls = offsets[0] != 0
    for start in range(0, len(offsets), flat.CHUNK):
        part = offsets[start : start + flat.CHUNK + 1]
        falls = falls or bool((part[1:] < part[:-1]).any())
    if falls:
        raise ValueError(f"{field} must start at 0 and never fall; sort the rows.")


def _codes(owners: np.ndarray, client_keys: Any) -> tuple[np.ndarray, np.ndarray]:
    """Keys of the clients in order, and the number of each example's client."""
    found, code = np.unique(owners, return_inverse=True)
    if client_keys is None:
        return found, code
    keys = _vector("client_keys", client_keys)
    order = np.argsort(keys, kind="stable")
    if (keys[order][1:] == keys[order][:-1]).any():
        raise ValueError("client_keys names a client twice; give each one once.")
    place = np.minimum(np.searchsorted(keys[order], found), max(len(keys) - 1, 0))
    known = keys[order][place] == found if len(keys) else np.zeros(len(found), bool)
    if not known.all():
        missing = found[~known][0]
        raise ValueError(
            f"clients holds {missing!r}, which client_keys lacks; name every client."
        )
    return keys, order[place][code]


def _users(user: np.ndarray, code: np.ndarray, clients: int) -> np.ndarray:
    """Number of each client's user; clients without examples are users of their own."""
    found, number = np.unique(user, return_inverse=True)
    out = np.full(clients, -1, np.int64)
    out[code] = number
    if (out[code] != number).any():
        client = int(code[np.flatnonzero(out[code] != number)[0]])
        raise ValueError(
            f"user gives client {client} two users; a client belongs to one person: "
            "make a client of each (user, client)."
        )
    alone = out < 0
    out[alone] = len(found) + np.arange(alone.sum())
    return np.asarray(flat.narrow(out))
