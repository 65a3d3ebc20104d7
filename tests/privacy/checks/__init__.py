"""Checks of the whole private trainer, each a function of a seed that asserts.

They run the real sampler, clipper, loop, plan and accountant, and hold for every seed:
statistical bounds are six standard errors wide or p > 1e-7, so twenty seeds of all of
them fail by chance less than once in ten thousand. `mutants.py` breaks the trainer and
names the check that must notice.
"""

from tests.privacy.checks import accounting, clipping, mechanisms, noise, resume

ALL = {
    check.__name__: check
    for check in (
        noise.released_noise,
        noise.released_noise_on_two_devices,
        noise.tracked_norms,
        noise.bits,
        clipping.clipped_sum,
        clipping.released_sum,
        clipping.sensitivity,
        clipping.gram_guard,
        clipping.low_precision,
        accounting.events,
        accounting.sampler_law,
        resume.resume,
        mechanisms.audit,
        mechanisms.micro_batches,
        mechanisms.correlated,
        accounting.secret_roots,
    )
}
