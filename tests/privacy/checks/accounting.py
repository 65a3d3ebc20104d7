"""What is promised: events by dp-accounting, and draws that are what events assume."""

import math

import dp_accounting
import numpy as np
from scipy import stats

from tests.privacy.checks import common
from trustml import rng
from trustml.privacy import accounting, clipping, plan, sampling


def _plan(sampler, relation, steps, accountant, clip=0.5, **options):
    clipper = clipping.clipped_grad(common.silent, l2_clip_norm=clip)
    return plan.make(
        clipper, sampler, steps=steps, delta=common.DELTA, relation=relation,
        accountant=accountant, **options,
    )  # fmt: skip


def events(seed):
    """Epsilon of every kind of plan, from the noise that it adds, by dp-accounting."""
    gaussian = dp_accounting.GaussianDpEvent
    sampled = dp_accounting.PoissonSampledDpEvent
    slots = {"physical_batch_size": 25, "seed": seed}
    poisson = sampling.poisson(2000, 100, **slots)

    made = _plan(poisson, common.ADD, 30, "rdp", noise_multiplier=0.8)
    z = made.noise_stddev() / 0.5
    for delta, step in ((common.DELTA, 30), (1e-3, 30), (common.DELTA, 11)):
        want = common.rdp(common.ADD, sampled(0.05, gaussian(z)), step, delta)
        got = made.epsilon(delta=delta, step=step)
        assert math.isclose(got, want, rel_tol=1e-6), f"{got} is not {want}"
    want = common.pld(common.ADD, sampled(0.05, gaussian(z)), 30)
    got = made.epsilon(accountant="pld")
    assert math.isclose(got, want, rel_tol=1e-4), f"by PLD {got} is not {want}"

    made = _plan(poisson, common.ADD, 30, "rdp", epsilon=3.0)
    want = common.rdp(
        common.ADD, sampled(0.05, gaussian(made.noise_stddev() / 0.5)), 30
    )
    assert 2.99 < want <= 3.0, f"calibrated to 3, it costs {want}"

    relative = np.repeat([1.0, 0.6], 5)
    made = _plan(
        poisson, common.ADD, 10, "rdp", noise_multiplier=0.9, noise_schedule=relative
    )
    accountant = dp_accounting.rdp.RdpAccountant(neighboring_relation=common.ADD)
    for at in range(10):
        accountant.compose(sampled(0.05, gaussian(made.noise_stddev(at) / 0.5)))
    want, got = accountant.get_epsilon(common.DELTA), made.epsilon()
    assert math.isclose(got, want, rel_tol=1e-6), f"scheduled: {got} is not {want}"

    # Full batches, a record replaced: Gaussian DP in closed form, by PLD and by RDP.
    whole = sampling.poisson(100, 100, **slots)
    made = _plan(whole, common.REPLACE, 4, "pld", noise_multiplier=5.0)
    mu = 2 * math.sqrt(4) * 0.5 / made.noise_stddev()
    delta = accounting.gaussian_delta(made.epsilon(), mu)
    assert common.DELTA * 0.98 < delta <= common.DELTA * 1.001, (
        f"replaced: delta {delta:.3g}"
    )

    fixed = sampling.fixed_size(2000, 100, **slots)
    made = _plan(fixed, common.REPLACE, 10, "rdp", noise_multiplier=3.0)
    inner = gaussian(made.noise_stddev() / (2 * 0.5))
    event = dp_accounting.SampledWithoutReplacementDpEvent(2000, 100, inner)
    want, got = common.rdp(common.REPLACE, event, 10), made.epsilon()
    assert math.isclose(got, want, rel_tol=1e-6), f"fixed size: {got} is not {want}"

    shuffled = sampling.shuffled(2000, 100, **slots)
    made = _plan(shuffled, common.SPECIAL, 50, "rdp", noise_multiplier=2.0)
    want = common.rdp(
        common.SPECIAL, gaussian(made.noise_stddev() / 0.5), 3
    )  # epochs begun
    got = made.epsilon()
    assert math.isclose(got, want, rel_tol=1e-6), f"shuffled: {got} is not {want}"


def sampler_law(seed):
    """Poisson draws are coins: sizes, members, and steps that know of no other."""
    size, mean, steps = 100, 20, 1500
    sampler = sampling.poisson(size, mean, physical_batch_size=10, seed=seed)
    member = np.zeros((steps, size), bool)
    for step in range(steps):
        laid_out = sampler.physical(step)
        ids = np.concatenate([p.indices[p.mask] for p in laid_out])
        assert len(np.unique(ids)) == len(ids), "an example twice in one batch"
        member[step, ids] = True
    q = mean / size
    spread = math.sqrt(q * (1 - q))
    sizes = member.sum(1)
    assert abs(sizes.mean() - mean) < 6 * spread * math.sqrt(size / steps), "size"
    ratio = sizes.var() / (size * q * (1 - q))
    assert abs(ratio - 1) < 6 * math.sqrt(2 / steps), "sizes vary unlike coins"
    each = np.sum((member.sum(0) - steps * q) ** 2) / (steps * q * (1 - q))
    assert stats.chi2(size).sf(each) > 1e-7, "some are drawn more than others"
    agree = np.mean((member[1:] - q) * (member[:-1] - q)) / spread**2
    assert abs(agree) < 6 / math.sqrt(size * (steps - 1)), "steps resemble each other"
    # 4,950 pairs of examples; 6 standard errors.
    together = np.corrcoef(member.T)[np.triu_indices(size, 1)]
    assert np.abs(together).max() < 6 / math.sqrt(steps), "some are drawn together"
    shuffled = sampling.shuffled(60, 20, physical_batch_size=20, seed=seed)
    for epoch in range(2):
        seen = np.concatenate([shuffled.draw(3 * epoch + i) for i in range(3)])
        assert len(np.unique(seen)) == 60, "an epoch is not a permutation"
    first, second = (shuffled.draw(3 * epoch) for epoch in range(2))
    assert not np.array_equal(first, second), "epochs are permuted alike"


def secret_roots(seed):
    """128 bits of the OS: no word twice in 50 roots (chance 1 in 200,000)."""
    del seed
    words = np.concatenate([np.asarray(rng.root().words).ravel() for _ in range(50)])
    assert len(set(words.tolist())) == words.size, "words of secret roots repeat"
    assert bool(rng.root().secret) and not bool(rng.root(0).secret)
    seeds = [sampling.poisson(9, 3, physical_batch_size=3).seed for _ in range(20)]
    assert max(seeds) >= 2**120, "sampling seeds are short"  # else 256**-20
