"""Every part passes diffkit's conformance kit, which measures the orders that samplers declare."""

from __future__ import annotations

from diffkit_edm import EDM, EDMHeun, EDMKarras, EDMLogNormal, EDMLoss, EDMStochastic

from diffkit.testing import Check, parametrize_checks


@parametrize_checks("schedule", EDMKarras(), EDMKarras(0.01, 50, 3))
def test_schedule(check: Check):
    check()


@parametrize_checks("mean", EDM(), EDM(1.0))
def test_mean(check: Check):
    check()


@parametrize_checks("loss", EDMLoss(), EDMLoss(1.0))
def test_loss(check: Check):
    check()


@parametrize_checks("timesteps", EDMLogNormal(), EDMLogNormal(0.5, 2.0))
def test_timesteps(check: Check):
    check()


# A noise_scale that is not 1 is meant to break the marginals.
@parametrize_checks("sampler", EDMHeun(), EDMStochastic(), EDMStochastic(churn=5, churn_min=0), EDMStochastic(0))
def test_sampler(check: Check):
    check()
