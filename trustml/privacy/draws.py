"""From the ids of a step to a sampler: random numbers, layout, checks of the event.

What every sampler of `trustml.privacy.sampling` is made of. The random numbers of a
step are NumPy's Philox, keyed by the 128-bit seed, its counter's high words set to
(stream, step), so that any step can be asked for at once.

Dimension key: D devices, M microbatches, P slots of a microbatch.

Example::

    numbers = draws.generator(seed, "poisson", step)
    ids = draws.coins(numbers, 60_000, 0.01)
    physical = draws.lay_out(ids, capacity=4, slots=256, shards=None)
"""

import functools
import math
import secrets
from collections.abc import Callable
from typing import Any, NamedTuple

import dp_accounting
import numpy as np
from jaxtyping import Bool, Int

from trustml import _validate, rng

Relation = dp_accounting.NeighboringRelation

# Third words of the Philox counter; what they name must never change.
_STREAMS = {"poisson": 1, "fixed_size": 2, "shuffled": 3, "slots": 4}
_STREAMS |= {"parts": 5, "truncated_poisson": 6, "balls_in_bins": 7}
# Of clients, in `trustml.federated`.
_STREAMS |= {"cohort": 32, "systematic": 33, "strata": 34, "candidates": 35}
_STREAMS |= {"explored": 36, "exploited": 37}

Draw = Callable[[int], np.ndarray]  # step -> ids
Random = Callable[[str, int], np.random.Generator]  # (stream, number) -> its numbers


class Physical(NamedTuple):
    """A draw, laid out for one program; leading axis [D] where the sampler is sharded.

    Attributes:
      indices: int32[M, P] example ids; 0 where masked.
      mask: bool[M, P]; False slots are padding.
      trips: how many of the M microbatches (of every device) hold an example.
      last: False where another `Physical` of the same logical batch follows.
      closes: bool[M], the last microbatch of each micro-batch that is clipped as one;
        None where every example is clipped on its own.
    """

    indices: Int[np.ndarray, "*layout M P"]
    mask: Bool[np.ndarray, "*layout M P"]
    trips: int
    last: bool
    closes: Any = None


class Sampler(NamedTuple):
    """Pure functions of the step, and the constants the plan needs.

    Attributes:
      name: that of the function which made it.
      num_examples: number of records ids are drawn from.
      sample_rate: q; for `shuffled` the share m/N of one step (not an amplification),
        for `cyclic_poisson` the rate within the part at hand.
      rate_from_data: True where q was computed from num_examples.
      expected_batch_size: m, the public constant to divide the noisy sum by.
      physical_batch_size: P.
      capacity: M.
      draw: step -> sorted example ids, int64[n].
      physical: step -> list of `Physical`, all of one shape, at least one.
      event: (noise_stddev, sensitivity, steps, relation) -> dp_accounting.DpEvent whose
        multipliers are noise_stddev / sensitivity; ValueError where the sampler has no
        event under the relation.
      seed: 128-bit integer; save it with the run, restore it with `reseed`.
      secret: True where the seed came from the OS.
      reseed: (seed, secret=False) -> Sampler, the same with another seed.
      per_epoch: steps of an epoch, where the event counts epochs; else None.
      group_size: expected examples of a micro-batch, where every example draws one;
        else None.
      bands: b, where an example's steps lie b or more apart by a public pattern, which
        is what noise correlated over b steps needs; 1 where any step may follow.
      privacy_unit: what an id names, 'example' or 'user' (`trustml.privacy.users`).
    """

    name: str
    num_examples: int
    sample_rate: float
    rate_from_data: bool
    expected_batch_size: float
    physical_batch_size: int
    capacity: int
    draw: Callable[[int], np.ndarray]
    physical: Callable[[int], list[Physical]]
    event: Callable[..., dp_accounting.DpEvent]
    seed: int
    secret: bool
    reseed: Callable[..., "Sampler"]
    per_epoch: int | None = None
    group_size: int | None = None
    bands: int = 1
    privacy_unit: str = "example"


class Buffers(NamedTuple):
    """Where and from which seed batches are laid out, as the caller of a sampler says.

    Attributes:
      slots: P, of a microbatch of one device.
      shards: number of devices to deal over, or None for no leading axis.
      seed: 128-bit integer, or None for one from the OS.
      most: no batch is larger; None where that is not known.
    """

    slots: int
    shards: int | None
    seed: int | None
    most: int | None = None


def sampler(
    name: str,
    draws: Callable[[Random], Draw],
    event_with: Callable[..., dp_accounting.DpEvent],
    buffers: Buffers,
    *,
    num_examples: int,
    sample_rate: float,
    rate_from_data: bool,
    expected_batch_size: float,
    per_epoch: int | None = None,
    bands: int = 1,
) -> Sampler:
    """A sampler of a way to draw and what that is worth.

    Args:
      name: of the function that makes it.
      draws: its random numbers -> (step -> ids).
      event_with: (noise multiplier, steps, relation) -> event; ValueError where there
        is none.
      buffers: of the microbatches.
      num_examples: as in `Sampler`, like the others.
      sample_rate: see `Sampler`.
      rate_from_data: see `Sampler`.
      expected_batch_size: see `Sampler`.
      per_epoch: see `Sampler`.
      bands: see `Sampler`.

    Raises:
      ValueError: naming field, value, bound and cure.
    """
    shards, mean = buffers.shards, expected_batch_size
    cure = "it is the number of slots of a microbatch"
    slots = _validate.integer_at_least("physical_batch_size", buffers.slots, 1, cure)
    if shards is not None:
        cure = "it is the number of devices"
        shards = _validate.integer_at_least("shards", shards, 1, cure)
    likely = mean + 10 * math.sqrt(mean) if buffers.most is None else buffers.most
    capacity = math.ceil(min(likely, num_examples) / (slots * (shards or 1)))

    def event(noise_stddev, sensitivity, steps, relation):
        if not isinstance(relation, Relation):
            names = ", ".join(str(member) for member in Relation)
            _validate.fail("relation", relation, f"must be one of {names}")
        steps = _validate.integer_at_least("steps", steps, 1, "take a step or more")
        off = "set privacy.enabled=False to train without privacy"
        stddev = _validate.positive("noise_stddev", noise_stddev, off)
        bound = "take it from the clipper"
        multiplier = stddev / _validate.positive("sensitivity", sensitivity, bound)
        return event_with(multiplier, steps, relation)

    def seeded(seed: int, secret: bool = False) -> Sampler:
        seed = rng.check_seed("sampling.seed", seed)
        draw_at = draws(functools.partial(generator, seed))

        def draw(step: int) -> np.ndarray:
            step = _validate.integer_at_least("step", step, 0, "steps count from 0")
            return draw_at(step)

        def physical(step: int) -> list[Physical]:
            return lay_out(draw(step), capacity, slots, shards)

        return Sampler(
            name=name,
            num_examples=num_examples,
            sample_rate=sample_rate,
            rate_from_data=rate_from_data,
            expected_batch_size=mean,
            physical_batch_size=slots,
            capacity=capacity,
            draw=draw,
            physical=physical,
            event=event,
            seed=seed,
            secret=secret,
            reseed=seeded,
            per_epoch=per_epoch,
            bands=bands,
        )

    if buffers.seed is None:
        return seeded(secrets.randbits(128), secret=True)
    return seeded(buffers.seed)


def generator(seed: int, name: str, step: int) -> np.random.Generator:
    """The random numbers of one step of the stream `name`."""
    # The two low words count the draws of one step: 2**128 of them.
    words = np.array([0, 0, step, _STREAMS[name]], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=seed, counter=words))


def subset(generator: np.random.Generator, size: int, count: int) -> np.ndarray:
    """`count` of `size` ids, each subset with the same chance; sorted, int64."""
    # Unshuffled choice is O(count): Floyd's algorithm, or a partial shuffle where the
    # subset is a large part of the whole.
    ids = generator.choice(size, count, replace=False, shuffle=False)
    return np.sort(ids.astype(np.int64))


def coins(generator: np.random.Generator, size: int, rate: float) -> np.ndarray:
    """Each of `size` ids with probability `rate`; one binomial, then a subset."""
    return subset(generator, size, int(generator.binomial(size, rate)))


def lay_out(
    ids: np.ndarray, capacity: int, slots: int, shards: int | None
) -> list[Physical]:
    """Ids in buffers of one shape, as many as they fill, dealt over the devices."""
    devices = shards or 1
    room = devices * capacity * slots
    chunks = [ids[start : start + room] for start in range(0, max(len(ids), 1), room)]
    laid_out = []
    for number, chunk in enumerate(chunks):
        indices = np.zeros((devices, capacity * slots), np.int32)
        mask = np.zeros((devices, capacity * slots), bool)
        for device in range(devices):
            dealt = chunk[device::devices]
            indices[device, : len(dealt)] = dealt
            mask[device, : len(dealt)] = True
        shape = (capacity, slots) if shards is None else (devices, capacity, slots)
        trips = math.ceil(len(chunk) / (devices * slots))
        last = number == len(chunks) - 1
        laid_out.append(
            Physical(indices.reshape(shape), mask.reshape(shape), trips, last)
        )
    return laid_out
