"""Seeded bugs: the real code with one thing changed, and the check that must notice.

A `Mutant` rewrites the source of one function of the library, or of a few: every text
to be replaced must occur exactly once in it, so a mutant cannot go stale unnoticed. The
new function is compiled in its own module and put in the place of the old one; nothing
is copied, and the whole trainer runs through it. `of` undoes everything at the end.

Most are bugs that libraries have shipped, see section 13 of the specification and
https://arxiv.org/abs/2202.12219: noise divided once too often, samplers and accountants
that do not match, norms that miss a leaf, keys used twice.
"""

import contextlib
import inspect
import sys
import textwrap
from collections.abc import Iterator
from typing import Any, NamedTuple
from unittest import mock

from trustml import parallel, rng
from trustml.experiments import loop, step
from trustml.privacy import (
    accounting,
    clipping,
    correlated_noise,
    draws,
    edp_sgd,
    noise,
    plan,
    quantile,
    rules,
    sampling,
)
from trustml.privacy.factored import norms, trace


class Edit(NamedTuple):
    """One function and the replacements in its source."""

    owner: Any  # module or class
    name: str
    changes: tuple[tuple[str, str], ...]


class Mutant(NamedTuple):
    """A bug and the checks that must each notice it."""

    caught_by: tuple[str, ...]
    edits: tuple[Edit, ...]


def rewritten(edit: Edit):
    """The function as edited, compiled in the namespace of its module."""
    function = inspect.unwrap(getattr(edit.owner, edit.name))
    source = textwrap.dedent(inspect.getsource(function))
    for old, new in edit.changes:
        if source.count(old) != 1:
            raise LookupError(
                f"{edit.name} holds {old!r} {source.count(old)} times, not once; the "
                "code has changed, so write the mutant anew"
            )
        source = source.replace(old, new)
    space = sys.modules[function.__module__].__dict__
    made: dict[str, Any] = {}
    # Definitions land in `made`; the function's globals are those of its module.
    code = compile(source, f"<mutant of {edit.name}>", "exec")
    exec(code, space, made)  # noqa: S102
    return made[edit.name]


@contextlib.contextmanager
def of(mutant: Mutant) -> Iterator[None]:
    """The library with the bug in it."""
    with contextlib.ExitStack() as stack:
        for edit in mutant.edits:
            patch = mock.patch.object(edit.owner, edit.name, rewritten(edit))
            stack.enter_context(patch)
        stack.callback(_forget)
        _forget()
        yield


def _forget() -> None:
    """Empties what the accountant remembers from before and with the bug."""
    accounting._one_step.cache_clear()
    accounting._without_replacement.cache_clear()


def mutant(caught_by, *edits) -> Mutant:
    """`edits` are (owner, name, old, new) or (owner, name, ((old, new), ...))."""
    made = []
    for owner, name, *change in edits:
        changes = ((change[0], change[1]),) if len(change) == 2 else change[0]
        made.append(Edit(owner, name, tuple(changes)))
    return Mutant(tuple(caught_by.split()), tuple(made))


_GAUSSIAN = "mechanism = noise.gaussian(multipliers * norm)"
_PLAIN = "mechanism = noise.gaussian(z * norm)"


def _noise_scale(scale):
    """Another scale in place of the plan's, with a schedule and without one."""
    changes = (
        (_PLAIN, _PLAIN.replace("z * norm", f"z * norm {scale}")),
        (_GAUSSIAN, _GAUSSIAN.replace("* norm", f"* norm {scale}")),
    )
    return (plan, "make", changes)


# Where noise is made inside the program of one device.
_KEPT = (
    ("params, key, norms = replicated", "params, key, norms, kept = replicated"),
    (
        "((state.params, key, norms), rows)",
        "((state.params, key, norms, state.noise), rows)",
    ),
    (
        "noisy, noise_state = mechanism.update(noisy, noise_state, within)",
        "_, noise_state = mechanism.update(noisy, noise_state, within)",
    ),
)  # fmt: skip
_LOOP = "sums, _, counts = jax.lax.fori_loop(0, trips, microbatch, start)"

_UNCLIPPED = (
    "sums = bound.clipped_sum(trace.zeroed(out.leaves, bad), factors)",
    "ones = [jnp.where(bad | ~mask, 0.0, 1.0)] * len(factors)\n"
    "    sums = bound.clipped_sum(trace.zeroed(out.leaves, bad), ones)",
)
_SCALED = (
    "    long = jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves({0})))\n"
    "    {0} = jax.tree.map(lambda x: x * jnp.minimum({1}, {2} / long), {0})\n"
)

TABLE: dict[str, Mutant] = {
    # --- the scale of the noise -----------------------------------------------------
    "noise divided by the batch size once more": mutant(
        "released_noise audit", _noise_scale("/ sampler.expected_batch_size")
    ),
    "noise divided by the accumulation steps": mutant(
        "released_noise audit", _noise_scale("/ sampler.capacity")
    ),
    "noise divided by their root": mutant(
        "released_noise audit", _noise_scale("/ sampler.capacity**0.5")
    ),
    "noise of unit scale, the clip norm forgotten": mutant(
        "released_noise audit", _noise_scale("/ norm")
    ),
    "the variance taken for the standard deviation": mutant(
        "released_noise audit",
        (noise, "add", "jnp.asarray(scale, jnp.float32)", "jnp.float32(scale) ** 2"),
    ),
    "noise added on every device, before their sum": mutant(
        "released_noise_on_two_devices",
        (
            step,
            "make_step",
            (
                *_KEPT,
                (
                    _LOOP,
                    "(sums, within), _, counts = jax.lax.fori_loop(\n"
                    "            0, trips, microbatch, start)\n"
                    "        sums = (mechanism.update(sums, kept)[0], within)",
                ),
            ),
        ),
    ),
    "noise added to every microbatch": mutant(
        "released_noise audit",
        (
            step,
            "make_step",
            (
                *_KEPT,
                (
                    "counts = jax.tree.map(jnp.add, counts, _count(info, one[1]))",
                    "new, _ = mechanism.update(new, kept)\n"
                    "            counts = jax.tree.map(jnp.add, counts, "
                    "_count(info, one[1]))",
                ),
            ),
        ),
    ),
    "an empty batch gets no noise": mutant(
        "released_noise",
        (
            step,
            "make_step",
            "            mean = jax.tree.map(",
            "            noisy = jax.tree.map(\n"
            "                lambda s: jnp.where(counts.examples > 0, s, 0.0), noisy)\n"
            "            mean = jax.tree.map(",
        ),
    ),
    "one leaf gets no noise": mutant(
        "released_noise",
        (
            noise,
            "add",
            "return treedef.unflatten(noisy)",
            "return treedef.unflatten([*noisy[:-1], leaves[-1][1]])",
        ),
    ),
    # --- keys and draws of the noise ------------------------------------------------
    "one key for all leaves": mutant(
        "released_noise", (noise, "_add", "rng.leaf_key(key, path)", "key")
    ),
    "one key for all steps": mutant(
        "released_noise audit",
        (noise, "gaussian", "rng.step_key(state.root, state.step)",
         "rng.step_key(state.root, 0)"),
    ),
    "the counter of releases stands still": mutant(
        "released_noise audit",
        (noise, "gaussian", "NoiseState(state.root, state.step + 1)",
         "NoiseState(state.root, state.step)"),
    ),
    "noise drawn in bfloat16": mutant(
        "released_noise",
        (noise, "_add", "leaf.shape, jnp.float32)",
         "leaf.shape, jnp.bfloat16).astype(jnp.float32)"),
    ),
    "uniform noise of the same variance": mutant(
        "released_noise",
        (noise, "_add", "jax.random.normal(rng.leaf_key(key, path), leaf.shape, "
         "jnp.float32)", "jax.random.uniform(rng.leaf_key(key, path), leaf.shape, "
         "jnp.float32, -(3**0.5), 3**0.5)"),
    ),
    "noise begins anew after a resume": mutant(
        "resume",
        (loop, "fit", 'state = found.state["state"]',
         'state = found.state["state"]._replace(noise=ready.state.noise)'),
    ),
    "batches begin anew after a resume": mutant(
        "resume",
        (loop, "fit", 'sampler = sampler.reseed(found.state["sampling"], '
         "secret=sampler.secret)", "pass"),
    ),
    "steps are counted from 0 after a resume": mutant(
        "resume",
        (loop, "fit", "for physical in sampler.physical(done):",
         "for physical in sampler.physical(done - (found.step if found else 0)):"),
    ),
    "secret keys of 32 bits": mutant(
        "secret_roots",
        (rng, "root", "secrets.token_bytes(16)", "secrets.token_bytes(4) * 4"),
    ),
    "sampling seeds of 31 bits": mutant(
        "secret_roots",
        (draws, "sampler", "secrets.randbits(128)", "secrets.randbits(31)"),
    ),
    # --- norms and factors ----------------------------------------------------------
    "one leaf left out of the norm": mutant(
        "clipped_sum sensitivity",
        (clipping.Limits, "factors", "self.in_groups(norm2_leaves)",
         "self.in_groups([0 * norm2_leaves[0], *norm2_leaves[1:]])"),
    ),
    "the clip norm ignored": mutant(
        "clipped_sum sensitivity released_sum audit",
        (rules, "_cut", "clip_norm / jnp.maximum(norms, clip_norm)",
         "jnp.ones_like(norms) + 0 * clip_norm"),
    ),
    "one bias left unclipped": mutant(
        "clipped_sum sensitivity",
        (clipping.Limits, "factors",
         "return [of_group[group] for group in self.groups.index], ~finite",
         "every = [of_group[group] for group in self.groups.index]\n"
         "    every[0] = jnp.where(finite & mask, 1.0, 0.0)\n"
         "    return every, ~finite"),
    ),
    "the larger of 1 and C / norm": mutant(
        "clipped_sum sensitivity audit",
        (rules, "_cut", "jnp.maximum(norms, clip_norm)",
         "jnp.minimum(norms, clip_norm)"),
    ),
    "the square of the norm used as the norm": mutant(
        "clipped_sum audit",
        (clipping.Limits, "factors", "jnp.sqrt(jnp.where(finite, x, 0.0))",
         "jnp.where(finite, x, 0.0)"),
    ),
    "every example clipped by the mean of the norms": mutant(
        "clipped_sum sensitivity",
        (clipping.Limits, "factors", "factors = self.rule.weight(norms,",
         "norms = jnp.zeros_like(norms) + jnp.mean(norms)\n"
         "        factors = self.rule.weight(norms,"),
    ),
    "the mean over leaves in place of their sum": mutant(
        "clipped_sum sensitivity",
        (clipping.Limits, "in_groups", "    return sums",
         "    return [x / len(per_leaf) for x in sums]"),
    ),
    "each layer clipped to the whole norm": mutant(
        "clipped_sum sensitivity",
        (rules, "_by_module", "share = 1 / math.sqrt(len(names))", "share = 1.0"),
    ),
    "each microbatch clipped as a whole": mutant(
        "clipped_sum released_sum sensitivity audit",
        (clipping, "_by_factors",
         (_UNCLIPPED,
          ("    return sums, limits.info",
           _SCALED.format("sums", "1.0", "limits.clip_norms[0]")
           + "    return sums, limits.info"))),
    ),
    "the mean clipped in place of its members": mutant(
        "clipped_sum released_sum sensitivity audit",
        (clipping, "_by_factors", (_UNCLIPPED,)),
        (step, "make_step",
         "            updates, opt_state = optimizer",
         textwrap.indent(_SCALED.format("mean", "1.0", "l2_clip_norm"), " " * 8)
         + "            updates, opt_state = optimizer"),
    ),
    "Gram norms without a guard": mutant(
        "gram_guard",
        (trace, "factored", "jnp.maximum(n.value, 0.0) + n.slack",
         "jnp.maximum(n.value, 0.0)"),
    ),
    "scaled factors rounded to bfloat16": mutant(
        "low_precision",
        (norms, "_times", "return g.astype(jnp.float32) * c",
         "return (g.astype(jnp.float32) * c).astype(g.dtype)"),
    ),
    "randomness of an example by its slot": mutant(
        "sensitivity",
        (clipping, "clipped_grad",
         "keys = jax.vmap(jax.random.fold_in, (None, 0))(key, example_ids)",
         "keys = jax.vmap(jax.random.fold_in, (None, 0))(\n"
         "            key, jnp.arange(mask.shape[0], dtype=jnp.uint32))"),
    ),
    # --- masks and rows that are not finite -----------------------------------------
    "the mask ignored: padding contributes": mutant(
        "clipped_sum",
        (clipping, "clipped_grad", "usable = mask & _finite_rows(batch, num_rows)",
         "usable = _finite_rows(batch, num_rows)"),
    ),
    "zeros of padding trained on": mutant(
        "released_sum",
        (step, "make_step", "sums_fn(params, one[0], one[1], key,",
         "sums_fn(params, one[0], one[1] | True, key,"),
    ),
    "an example with NaN is not dropped": mutant(
        "clipped_sum sensitivity",
        (clipping, "_finite_rows", "finite &= jnp.all(",
         "finite |= jnp.all("),
        (clipping.Limits, "factors", "finite = jnp.isfinite(losses)",
         "finite = jnp.isfinite(losses) | True"),
        (clipping.Limits, "in_groups", "    return sums",
         "    return [jnp.where(jnp.isnan(x), 1.0, x) for x in sums]"),
    ),
    "bits of masked examples count": mutant(
        "bits",
        (quantile, "within", "jnp.where(mask[:, None], bits.astype(jnp.float32) - 0.5, "
         "0.0)", "bits.astype(jnp.float32) - 0.5"),
    ),
    # --- division and accumulation --------------------------------------------------
    "divided by the realised batch size": mutant(
        "released_sum",
        (step, "make_step", "(s / expected_batch_size)",
         "(s / jnp.maximum(counts.examples, 1.0))"),
    ),
    "divided by the physical batch size": mutant(
        "released_sum audit",
        (step, "make_step", "(s / expected_batch_size)",
         "(s / (rows[1].shape[-1] * 1.0))"),
    ),
    "sums of a step begun count again in the next": mutant(
        "released_sum",
        (step, "make_step", "partial, none = zeros", "partial, none = sums, zeros[1]"),
    ),
    "only the first buffers of a large draw are used": mutant(
        "released_sum",
        (step, "make_step", "sums = jax.tree.map(jnp.add, state.partial, sums)",
         "sums = jax.tree.map(lambda a, b: b + 0 * a, state.partial, sums)"),
    ),
    "the mean over devices in place of their sum": mutant(
        "released_sum",
        (parallel, "map_sum",
         (("jax.lax.psum(sums, AXIS), per_shard\n", "jax.lax.pmean(sums, AXIS), "
           "per_shard\n"),)),
    ),
    # --- what the accountant is told ------------------------------------------------
    "sensitivity of adding, where records are replaced": mutant(
        "sensitivity events",
        (clipping.ClippedGrad, "sensitivity", "(2.0 if relation", "(1.0 if relation"),
    ),
    "the plan forgets the sensitivity": mutant(
        "events",
        (plan, "make", "sampler.event(z * scale * norm, event_sensitivity, number,",
         "sampler.event(z * scale * norm, norm, number,"),
    ),
    "z not halved by the PLD accountant": mutant(
        "events",
        (accounting, "_one_step",
         "doubled = 2.0 if relation is Relation.REPLACE_ONE else 1.0",
         "doubled = 4.0 if relation is Relation.REPLACE_ONE else 1.0"),
    ),
    "q of the physical batch": mutant(
        "events",
        (sampling, "poisson", "_poisson_event(rate, z, steps)",
         "_poisson_event(physical_batch_size / size, z, steps)"),
    ),
    "Poisson's event for shuffled batches": mutant(
        "events",
        (sampling, "shuffled",
         "dp_accounting.GaussianDpEvent(z), epochs",
         "dp_accounting.PoissonSampledDpEvent(\n"
         "                batch / size, dp_accounting.GaussianDpEvent(z)), steps"),
    ),
    "epochs counted for steps": mutant(
        "events",
        (sampling, "poisson", "_poisson_event(rate, z, steps)",
         "_poisson_event(rate, z, max(1, int(steps * rate)))"),
    ),
    "epsilon of another delta": mutant(
        "events",
        (plan, "make", "event(count), at, relation, by, cache_dir",
         "event(count), 100 * at, relation, by, cache_dir"),
    ),
    "epsilon calibrated for fewer steps": mutant(
        "events audit",
        (plan, "make", "lambda z: event_of(z, steps)",
         "lambda z: event_of(z, max(1, steps // 2))"),
    ),
    "the event ignores the schedule": mutant(
        "events", (plan, "make", "blocks = _blocks(scales[:count])",
                   "blocks = [(1.0, count)]"),
    ),
    "the noise ignores the schedule": mutant(
        "released_noise",
        (plan, "make", _GAUSSIAN, "mechanism = noise.gaussian(z * norm)"),
    ),
    # --- tracked clip norms ---------------------------------------------------------
    "bits not counted in z": mutant(
        "tracked_norms",
        (quantile, "gradient_multiplier", "return left**-0.5", "return z"),
    ),
    "bits not centred": mutant(
        "bits",
        (quantile, "within", "bits.astype(jnp.float32) - 0.5",
         "bits.astype(jnp.float32)"),
    ),
    "noise of the bits not scaled by the batch": mutant(
        "tracked_norms",
        (quantile, "mechanism", "adapt.bit_stddev * expected_batch_size",
         "adapt.bit_stddev"),
    ),
    "bits and gradients of full sensitivity in half the noise": mutant(
        "tracked_norms",
        (quantile, "gradient_multiplier", "(2 * bit_stddev) ** -2",
         "(4 * bit_stddev) ** -2"),
    ),
    # --- sampling -------------------------------------------------------------------
    "the same batch at every step": mutant(
        "sampler_law",
        (draws, "generator", "[0, 0, step, _STREAMS[name]]",
         "[0, 0, 0 * step, _STREAMS[name]]"),
    ),
    "batches of one size under Poisson's event": mutant(
        "sampler_law",
        (draws, "coins", "int(generator.binomial(size, rate))",
         "round(size * rate)"),
    ),
    "drawn with replacement": mutant(
        "sampler_law",
        (draws, "subset", "replace=False", "replace=True"),
    ),
    "neighbours drawn together": mutant(
        "sampler_law",
        (draws, "subset", "ids = generator.choice(size, count, replace=False, "
         "shuffle=False)",
         "ids = (generator.integers(size) + np.arange(count)) % size"),
    ),
    "one permutation for all epochs": mutant(
        "sampler_law",
        (sampling, "shuffled", 'random("shuffled", epoch).permutation(size)',
         'random("shuffled", 0).permutation(size)'),
    ),
    "examples drawn at twice the rate that is told": mutant(
        "sampler_law",
        (draws, "coins", "int(generator.binomial(size, rate))",
         "int(generator.binomial(size, min(1.0, 2 * rate)))"),
    ),
    # --- micro-batches clipped as one -----------------------------------------------
    "the micro-batch's sensitivity forgotten": mutant(
        "micro_batches",
        (edp_sgd.MicroBatchGrad, "sensitivity", "2.0 * self.l2_clip_norm",
         "1.0 * self.l2_clip_norm"),
    ),
    "the micro-batch's sensitivity shared by its members": mutant(
        "micro_batches",
        (edp_sgd.MicroBatchGrad, "sensitivity", "2.0 * self.l2_clip_norm",
         "2.0 * self.l2_clip_norm / self.group_size"),
    ),
    "a micro-batch's mean not clipped": mutant(
        "micro_batches", (edp_sgd, "clipped_grad", "c[0] * g", "1.0 * g")
    ),
    "crowded micro-batches lose members": mutant(
        "micro_batches",
        (edp_sgd, "micro_batches", "[slot == j][:most]", "[slot == j][:size // 2]"),
    ),
    # --- noise correlated over steps ------------------------------------------------
    "the columns of the strategy taken for length 1": mutant(
        "correlated",
        (plan, "make", "stddev=z * norm * banded.column_norm", "stddev=z * norm"),
    ),
    "the noise of one step before is lost": mutant(
        "correlated",
        (correlated_noise, "banded", "noisy = jax.tree.map(jnp.add, sums, fresh)",
         "noisy = jax.tree.map(jnp.add, sums, noise.add(sums, key, scale))"),
    ),
    "parts drawn anew at every step": mutant(
        "correlated",
        (sampling, "cyclic_poisson", "parts()[step % bands]",
         "np.flatnonzero(random('parts', step).integers(0, bands, size) == 0)"),
    ),
    "BandMF pays for independent batches": mutant(
        "correlated",
        (sampling, "cyclic_poisson", "_poisson_event(rate, z, -(-steps // bands))",
         "_poisson_event(rate / bands, z, -(-steps // bands))"),
    ),
    "sampling seeds of a fixed integer": mutant(
        "secret_roots",
        (draws, "sampler", "return seeded(secrets.randbits(128), secret=True)",
         "return seeded(0, secret=True)"),
    ),
}  # fmt: skip
