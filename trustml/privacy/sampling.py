"""Samplers: which examples make up the batch of a step, and what that is worth.

A sampler is a pure function (128-bit seed, step) -> example ids: NumPy's Philox, keyed
by the seed, its counter's high words set to (stream, step). There is no iterator state,
so step 10**6 costs what step 0 costs and a resumed run replays nothing. Every host
computes the same draw (a release of NumPy may change the streams: keep it for a run).

| sampler | draw | event | relation |
|---|---|---|---|
| `poisson` | n ~ Bin(N, q), uniform n-subset: N coins in O(n) | Poisson | any |
| `fixed_size` | uniform m-subset, without replacement | the same | REPLACE_ONE |
| `shuffled` | permuted epochs | Gaussian per epoch | REPLACE_SPECIAL |
| `truncated_poisson` | Poisson, at most `cap` of them | its own | REPLACE_* |
| `balls_in_bins` | every epoch each in one of K batches | its own | not REPLACE_ONE |
| `cyclic_poisson` | step t: coins of part t mod b | Poisson, steps/b times | any |

The draw must stay secret: amplification holds only against those who do not know it. A
seeded sampler is `reproducible, not secret`.

One compiled program. A draw becomes M physical microbatches of P slots with a mask; M
is static, `trips` of them are in use, so less than one microbatch is padding. A Poisson
draw beyond M*P (probability about 1e-23) becomes a second `Physical` of the same shape;
an empty one has trips = 0. With `shards=D` ids are dealt round-robin over D devices,
whose trip counts are equal; P is then the slots of one device.

What is public. `expected_batch_size` m normalises the noisy sum and is a constant;
never divide by the realised size. Under ADD_OR_REMOVE_ONE the number of records N is
itself private, and neither m nor q may be computed from it: pass `sample_rate`, made
from a public bound on N for example. Without it q = m/N, and N counts as public.

Dimension key: D devices, M microbatches, P slots of a microbatch.

Example::

    sampler = sampling.poisson(60_000, 256, physical_batch_size=64)
    for physical in sampler.physical(step):                # nearly always exactly one
        batch = {k: v[physical.indices] for k, v in train.items()}     # [M, P, ...]
        ...                                        # loop over the first physical.trips
    event = sampler.event(noise_stddev, clipper.sensitivity(relation), steps, relation)

References: https://arxiv.org/abs/2403.17673 (shuffling is not Poisson sampling).
"""

import functools
import math

import dp_accounting
import numpy as np

from trustml import _validate
from trustml.privacy import balls_in_bins as balls_in_bins_lib
from trustml.privacy import draws, sizes

Relation = dp_accounting.NeighboringRelation
Physical = draws.Physical
Sampler = draws.Sampler


def poisson(
    num_examples: int,
    expected_batch_size: float,
    *,
    sample_rate: float | None = None,
    physical_batch_size: int,
    shards: int | None = None,
    seed: int | None = None,
) -> Sampler:
    """Every example joins every batch with probability q, independently.

    Args:
      num_examples: N, number of records there are.
      expected_batch_size: m, public constant that normalises the sum; 0 < m <= N.
      sample_rate: q, a public constant in (0, 1]; None: m / num_examples, which treats
        num_examples as public (see the module docstring).
      physical_batch_size: P, slots of a microbatch (of one device).
      shards: None, or the number of devices to deal over (adds a leading axis).
      seed: None for 128 bits from the OS; an integer below 2**128 is reproducible.

    Raises:
      ValueError: when built, naming field, value, bound and cure.
    """
    size = sizes.num_examples(num_examples)
    mean = sizes.mean_size(expected_batch_size)
    rate = sizes.rate(sample_rate, mean, size)

    def drawing(random: draws.Random) -> draws.Draw:
        def draw(step: int) -> np.ndarray:
            return draws.coins(random("poisson", step), size, rate)

        return draw

    def event(z: float, steps: int, relation: Relation) -> dp_accounting.DpEvent:
        del relation  # any
        return _poisson_event(rate, z, steps)

    return draws.sampler(
        "poisson",
        drawing,
        event,
        draws.Buffers(physical_batch_size, shards, seed),
        num_examples=size,
        sample_rate=rate,
        rate_from_data=sample_rate is None,
        expected_batch_size=mean,
    )


def cyclic_poisson(
    num_examples: int,
    expected_batch_size: float,
    *,
    bands: int,
    sample_rate: float | None = None,
    physical_batch_size: int,
    shards: int | None = None,
    seed: int | None = None,
) -> Sampler:
    """Step t draws, by coins, from part t mod b of a fixed random partition.

    Each example is put into one of b parts by a throw of its own, once for the run, so
    no other example moves when one comes or goes, and every relation is allowed. Its
    steps then lie b apart, which noise correlated over b steps needs
    (`trustml.privacy.correlated_noise`). b = 1 is `poisson`, draw for draw.

    Args:
      num_examples: N, number of records there are.
      expected_batch_size: m; 0 < m <= N/b.
      bands: b >= 1, number of parts.
      sample_rate: q' within a part, a public constant; None: m b / num_examples, which
        treats num_examples as public.
      physical_batch_size: as for `poisson`, like the others.
      shards: see `poisson`.
      seed: see `poisson`.

    Raises:
      ValueError: when built, naming field, value, bound and cure.
    """
    size = sizes.num_examples(num_examples)
    cure = "1 is Poisson sampling"
    bands = _validate.integer_at_least("bands", bands, 1, cure)
    if bands > size:
        bound = f"must be at most the {size} examples there are"
        _validate.fail("bands", bands, bound, "lower it")
    mean = sizes.mean_size(expected_batch_size)
    rate = sizes.rate(sample_rate, mean, size, bands)

    def drawing(random: draws.Random) -> draws.Draw:
        @functools.cache
        def parts() -> list[np.ndarray]:
            if bands == 1:
                return [np.arange(size)]
            part = random("parts", 0).integers(0, bands, size)
            return [np.flatnonzero(part == number) for number in range(bands)]

        def draw(step: int) -> np.ndarray:
            members = parts()[step % bands]
            return members[draws.coins(random("poisson", step), len(members), rate)]

        return draw

    def event(z: float, steps: int, relation: Relation) -> dp_accounting.DpEvent:
        del relation  # any
        return _poisson_event(rate, z, -(-steps // bands))

    return draws.sampler(
        "cyclic_poisson",
        drawing,
        event,
        draws.Buffers(physical_batch_size, shards, seed),
        num_examples=size,
        sample_rate=rate,
        rate_from_data=sample_rate is None,
        expected_batch_size=mean,
        bands=bands,
    )


def truncated_poisson(
    num_examples: int,
    expected_batch_size: float,
    *,
    cap: int | None = None,
    physical_batch_size: int,
    shards: int | None = None,
    seed: int | None = None,
) -> Sampler:
    """As `poisson`, and of a draw beyond `cap` a uniform subset of `cap` is kept.

    No batch is ever larger, so memory and time of a step have a bound that holds and
    not one that nearly always does. Whoever is in a full batch takes the place of
    another example, hence N is part of the event, and public. Only PLD knows the event.

    Args:
      num_examples: N, number of records there are; public.
      expected_batch_size: m, before the cut; 0 < m <= N.
      cap: at least m; None: m + 6 sqrt(m), rounded up, which costs next to nothing.
      physical_batch_size: as for `poisson`, like the others.
      shards: see `poisson`.
      seed: see `poisson`.

    Raises:
      ValueError: when built, naming field, value, bound and cure.

    References: https://arxiv.org/abs/2508.15089
    """
    size = sizes.num_examples(num_examples)
    mean = sizes.mean_size(expected_batch_size)
    rate = sizes.rate(None, mean, size)
    cure = "leave it out for m + 6 sqrt(m)"
    if cap is None:
        cap = math.ceil(mean + 6 * math.sqrt(mean))
    cap = _validate.integer_at_least("cap", cap, 1, cure)
    if cap < mean:
        bound = f"must be at least expected_batch_size={mean:g}"
        _validate.fail("cap", cap, bound, cure)
    most = min(cap, size)

    def drawing(random: draws.Random) -> draws.Draw:
        def draw(step: int) -> np.ndarray:
            # A uniform subset of a uniform subset is one of the size in the end.
            numbers = random("truncated_poisson", step)
            count = min(int(numbers.binomial(size, rate)), most)
            return draws.subset(numbers, size, count)

        return draw

    def event(z: float, steps: int, relation: Relation) -> dp_accounting.DpEvent:
        if relation is Relation.ADD_OR_REMOVE_ONE:
            valid = "REPLACE_ONE or REPLACE_SPECIAL (its N is public)"
            _refuse("truncated_poisson", relation, valid)
        truncated = dp_accounting.TruncatedSubsampledGaussianDpEvent(
            size, rate, most, z
        )
        return dp_accounting.SelfComposedDpEvent(truncated, steps)

    return draws.sampler(
        "truncated_poisson",
        drawing,
        event,
        draws.Buffers(physical_batch_size, shards, seed, most),
        num_examples=size,
        sample_rate=rate,
        rate_from_data=True,
        expected_batch_size=mean,
    )


def fixed_size(
    num_examples: int,
    expected_batch_size: int,
    *,
    physical_batch_size: int,
    shards: int | None = None,
    seed: int | None = None,
) -> Sampler:
    """Every batch is a uniform subset of exactly m of the N examples (N is public).

    Arguments and errors as for `poisson`; expected_batch_size is an integer.
    """
    size = sizes.num_examples(num_examples)
    batch = sizes.batch_size(expected_batch_size, size)

    def drawing(random: draws.Random) -> draws.Draw:
        def draw(step: int) -> np.ndarray:
            return draws.subset(random("fixed_size", step), size, batch)

        return draw

    def event(z: float, steps: int, relation: Relation) -> dp_accounting.DpEvent:
        if relation is not Relation.REPLACE_ONE:
            _refuse("fixed_size", relation, "REPLACE_ONE (its N and m are public)")
        gaussian = dp_accounting.GaussianDpEvent(z)
        sampled = dp_accounting.SampledWithoutReplacementDpEvent(size, batch, gaussian)
        return dp_accounting.SelfComposedDpEvent(sampled, steps)

    return draws.sampler(
        "fixed_size",
        drawing,
        event,
        draws.Buffers(physical_batch_size, shards, seed),
        num_examples=size,
        sample_rate=batch / size,
        rate_from_data=True,
        expected_batch_size=batch,
    )


def shuffled(
    num_examples: int,
    expected_batch_size: int,
    *,
    physical_batch_size: int,
    shards: int | None = None,
    seed: int | None = None,
    amplified: bool = False,
) -> Sampler:
    """Epochs of floor(N/m) batches of exactly m, a new permutation for each epoch.

    An example is in at most one batch per epoch, so an epoch costs one unamplified
    Gaussian release, whatever its length; a begun epoch counts as a whole one. To claim
    Poisson's amplification for shuffled batches is an error (Chua et al. 2024), hence
    `amplified=True` is refused. Other arguments and errors as for `fixed_size`.
    """
    if amplified:
        _validate.fail(
            "amplified",
            amplified,
            "has no proof: shuffled batches are not Poisson samples",
            "use sampling.poisson for amplification",
        )
    size = sizes.num_examples(num_examples)
    batch = sizes.batch_size(expected_batch_size, size)
    per_epoch = size // batch

    def drawing(random: draws.Random) -> draws.Draw:
        @functools.lru_cache(maxsize=2)
        def permutation(epoch: int) -> np.ndarray:
            return random("shuffled", epoch).permutation(size)

        def draw(step: int) -> np.ndarray:
            start = (step % per_epoch) * batch
            return np.sort(permutation(step // per_epoch)[start : start + batch])

        return draw

    def event(z: float, steps: int, relation: Relation) -> dp_accounting.DpEvent:
        if relation is not Relation.REPLACE_SPECIAL:
            _refuse("shuffled", relation, "REPLACE_SPECIAL (zero-out)")
        epochs = -(-steps // per_epoch)
        return dp_accounting.SelfComposedDpEvent(
            dp_accounting.GaussianDpEvent(z), epochs
        )

    return draws.sampler(
        "shuffled",
        drawing,
        event,
        draws.Buffers(physical_batch_size, shards, seed),
        num_examples=size,
        sample_rate=batch / size,
        rate_from_data=True,
        expected_batch_size=batch,
        per_epoch=per_epoch,
    )


def balls_in_bins(
    num_examples: int,
    expected_batch_size: float,
    *,
    bins: int | None = None,
    physical_batch_size: int,
    shards: int | None = None,
    seed: int | None = None,
) -> Sampler:
    """Epochs of K batches; each example falls into one of them, anew in every epoch.

    Every example is seen exactly once an epoch, as with shuffling, but by throws of
    their own, whose amplification has a proof. There is no closed form: the guarantee
    comes from the accountant 'monte_carlo', an upper limit at a level of confidence
    (`trustml.privacy.balls_in_bins`). A begun epoch counts as a whole one.

    Args:
      num_examples: N, number of records there are.
      expected_batch_size: 0 < m <= N. With `bins` it is the public constant to divide
        by; without, it only finds K, and N/K is the constant.
      bins: K, a public constant; None: N/m rounded, which treats num_examples as
        public.
      physical_batch_size: as for `poisson`, like the others.
      shards: see `poisson`.
      seed: see `poisson`.

    Raises:
      ValueError: when built, naming field, value, bound and cure.
    """
    size = sizes.num_examples(num_examples)
    mean = sizes.mean_size(expected_batch_size)
    if mean > size:
        sizes.too_large(mean, size)
    cure = "leave it out for N/m"
    batches = round(size / mean) if bins is None else bins
    batches = _validate.integer_at_least("bins", batches, 1, cure)
    if batches > size:
        bound = f"must be at most the {size} examples there are"
        _validate.fail("bins", batches, bound, cure)

    def drawing(random: draws.Random) -> draws.Draw:
        @functools.lru_cache(maxsize=2)
        def thrown(epoch: int) -> tuple[np.ndarray, np.ndarray]:
            into = random("balls_in_bins", epoch).integers(0, batches, size)
            order = np.argsort(into, kind="stable")
            return order, np.searchsorted(into[order], np.arange(batches + 1))

        def draw(step: int) -> np.ndarray:
            order, starts = thrown(step // batches)
            at = step % batches
            return order[starts[at] : starts[at + 1]].astype(np.int64)

        return draw

    def event(z: float, steps: int, relation: Relation) -> dp_accounting.DpEvent:
        if relation is Relation.REPLACE_ONE:
            valid = "ADD_OR_REMOVE_ONE or REPLACE_SPECIAL"
            _refuse("balls_in_bins", relation, valid)
        epoch = gaussian = dp_accounting.GaussianDpEvent(z)
        if batches > 1:
            epoch = balls_in_bins_lib.BallsInBinsDpEvent(batches, gaussian)
        return dp_accounting.SelfComposedDpEvent(epoch, -(-steps // batches))

    # N/K is private where K alone is public, and so no constant to divide by.
    constant = size / batches if bins is None else mean
    return draws.sampler(
        "balls_in_bins",
        drawing,
        event,
        draws.Buffers(physical_batch_size, shards, seed),
        num_examples=size,
        sample_rate=1 / batches,
        rate_from_data=bins is None,
        expected_batch_size=constant,
        per_epoch=batches,
    )


def _poisson_event(rate: float, z: float, steps: int) -> dp_accounting.DpEvent:
    gaussian = dp_accounting.GaussianDpEvent(z)
    sampled = dp_accounting.PoissonSampledDpEvent(rate, gaussian)
    return dp_accounting.SelfComposedDpEvent(sampled, steps)


def _refuse(name: str, relation: Relation, valid: str) -> None:
    _validate.fail(
        "privacy.relation",
        relation.name,
        f"does not fit the sampler {name}, whose guarantee holds under {valid}",
        "change the relation, or use sampling.poisson, which allows any",
    )
