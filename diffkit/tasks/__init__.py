"""Tasks of a trained system besides unconditional sampling, each a function of the system.

    painted = tasks.inpaint(system, image, known, seed=0)
    sharp = tasks.super_resolve(system, low_res, steps=100)
    edited = tasks.image_to_image(system, image, strength=0.6, y=3)
    found = tasks.solve(system, measurement, MMPS(blur, noise_std=0.05), steps=100)
    inversion = tasks.invert(system, image, steps=50); inversion.error
    between = tasks.interpolate(system, a, b, 7)
    found = tasks.sample_adaptive(system, 16, rtol=0.01); found.samples
    path = tasks.rollout(system, 16, steps=20, seed=0); tasks.log_prob(path).total

All take the spacing, guidance and conditions of `System.sample`, and its sampler and seed where they apply. Results
are a function of the seed and the example's index alone. Arguments are checked before any work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffkit.runtime.lazy import on_first_use

if TYPE_CHECKING:
    from diffkit.tasks.adaptive import AdaptiveSamples as AdaptiveSamples
    from diffkit.tasks.adaptive import sample_adaptive as sample_adaptive
    from diffkit.tasks.bdia import ExactCode as ExactCode
    from diffkit.tasks.bdia import exact_decode as exact_decode
    from diffkit.tasks.bdia import exact_encode as exact_encode
    from diffkit.tasks.editing import image_to_image as image_to_image
    from diffkit.tasks.inpainting import inpaint as inpaint
    from diffkit.tasks.interpolation import interpolate as interpolate
    from diffkit.tasks.inverse import average_pool as average_pool
    from diffkit.tasks.inverse import masked as masked
    from diffkit.tasks.inverse import solve as solve
    from diffkit.tasks.inversion import Inversion as Inversion
    from diffkit.tasks.inversion import invert as invert
    from diffkit.tasks.inversion import reconstruct as reconstruct
    from diffkit.tasks.reflow import reflow_pairs as reflow_pairs
    from diffkit.tasks.rollouts import Rollout as Rollout
    from diffkit.tasks.rollouts import rollout as rollout
    from diffkit.tasks.step_densities import StepDensities as StepDensities
    from diffkit.tasks.step_densities import log_prob as log_prob
    from diffkit.tasks.super_resolution import super_resolve as super_resolve

__all__, __getattr__, __dir__ = on_first_use(__name__)
