"""Noise schedules and the composed events of plans that have one."""

import dp_accounting
import numpy as np
import pytest

from trustml.privacy import accounting, clipping, plan, sampling, schedules

ADD = accounting.Relation.ADD_OR_REMOVE_ONE


def make(schedule, sampler=None, **options):
    clipper = clipping.clipped_grad(lambda p, x, k: p * x, l2_clip_norm=2.0)
    if sampler is None:
        sampler = sampling.poisson(10_000, 100, physical_batch_size=32, seed=0)
    return plan.make(
        clipper,
        sampler,
        steps=len(schedule),
        delta=1e-5,
        **(
            {"relation": ADD, "noise_multiplier": 1.0, "noise_schedule": schedule}
            | options
        ),
    )


def test_schedules_by_hand():
    np.testing.assert_array_equal(schedules.constant(3), [1, 1, 1])
    got = schedules.exponential(7, 2, rho=0.5, floor=0.2)
    np.testing.assert_allclose(got, [1, 1, 0.5, 0.5, 0.25, 0.25, 0.2])
    np.testing.assert_allclose(schedules.inverse(4, 2, rho=1.0), [1, 1, 0.5, 0.5])
    got = schedules.stairs(6, 1, rho=0.5, every=2)
    np.testing.assert_allclose(got, [1, 1, 0.5, 0.5, 0.25, 0.25])


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_epsilon_is_that_of_the_composed_event(accountant):
    scales = schedules.exponential(90, 30, rho=0.9)
    made = make(scales, accountant=accountant)
    direct = {
        "pld": dp_accounting.pld.PLDAccountant(ADD),
        "rdp": dp_accounting.rdp.RdpAccountant(neighboring_relation=ADD),
    }[accountant]
    halfway = None
    for z in (1.0, 0.9, 0.81):
        gaussian = dp_accounting.GaussianDpEvent(z)
        direct.compose(dp_accounting.PoissonSampledDpEvent(0.01, gaussian), 30)
        halfway = direct.get_epsilon(1e-5) if halfway is None else halfway
    assert made.epsilon() == pytest.approx(direct.get_epsilon(1e-5), rel=1e-6)
    assert made.epsilon(step=30) == pytest.approx(halfway, rel=1e-6)


def test_noise_follows_the_schedule_and_calibration_its_event():
    scales = schedules.inverse(40, 10, rho=0.5)
    made = make(scales, epsilon=1.0, noise_multiplier=None)
    assert 0.999 <= made.epsilon() <= 1.0
    z = made.noise_multiplier
    for step in (0, 9, 10, 39):
        assert made.noise_stddev(step) == pytest.approx(2 * z * scales[step])
    assert make(schedules.constant(40)).digest == make(np.ones(40)).digest
    assert make(schedules.constant(40)).digest != make(scales).digest


def test_wrong_schedules_are_refused():
    with pytest.raises(ValueError, match="noise_schedule=0.0 must be finite and > 0"):
        make([1.0, 0.0])
    with pytest.raises(ValueError, match="one entry for each of the 2 steps"):
        make([1.0, 1.0], noise_schedule=[1.0])
    with pytest.raises(ValueError, match="noise_schedule='2 levels' does not fit the"):
        shuffled = sampling.shuffled(100, 10, physical_batch_size=10, seed=0)
        make([1.0, 0.5], shuffled, relation=accounting.relation("replace_special"))
    with pytest.raises(ValueError, match="rho=1.5 must be at most 1"):
        schedules.exponential(3, 1, rho=1.5)
    with pytest.raises(ValueError, match="floor=1"):
        schedules.exponential(3, 1, rho=0.5, floor=1.0)
