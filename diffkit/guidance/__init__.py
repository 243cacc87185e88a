"""Guidance: changes the estimates of the network while sampling.

    system.sample(16, guidance=("cfg", {"scale": 2.0}), y=labels)
    system.sample(16, guidance=[ClassifierFree(4.0, interval=(0.2, 3.0)), "dynamic_threshold"], y=labels)

A guidance is a name, a pair, a mapping with a "name", an instance, or a list of these; the parts are in
`diffkit.parts.guidance`. Every guidance changes the estimate of clean data, never a learned variance, so it works with
every sampler, mean parameterization and number of channels. Of several, the first is nearest to the network, and each
takes the result of those before it as the network's; those that act after clipping (`ClassifierGuidance`) keep this
order.

`MMPS`, `PiGDM`, `DiffPIR` and `DPS` guide towards measurements of the data; `diffkit.tasks.solve` uses them. This
package also holds the classifier of noisy data that `ClassifierGuidance` needs: `Classifier` is its recipe, and
`NoisyClassifier` is what `diffkit.train` trains.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffkit.runtime.lazy import on_first_use

if TYPE_CHECKING:
    from diffkit.guidance.classifier import Classifier as Classifier
    from diffkit.guidance.noisy_classifier import NoisyClassifier as NoisyClassifier
    from diffkit.parts.guidance.apg import AdaptiveProjected as AdaptiveProjected
    from diffkit.parts.guidance.autoguidance import Autoguidance as Autoguidance
    from diffkit.parts.guidance.cfg import ClassifierFree as ClassifierFree
    from diffkit.parts.guidance.cfg_zero import ClassifierFreeZero as ClassifierFreeZero
    from diffkit.parts.guidance.classifier import ClassifierGuidance as ClassifierGuidance
    from diffkit.parts.guidance.diffpir import DiffPIR as DiffPIR
    from diffkit.parts.guidance.dps import DPS as DPS
    from diffkit.parts.guidance.dynamic_threshold import DynamicThreshold as DynamicThreshold
    from diffkit.parts.guidance.gradient import GradientGuidance as GradientGuidance
    from diffkit.parts.guidance.mmps import MMPS as MMPS
    from diffkit.parts.guidance.pigdm import PiGDM as PiGDM
    from diffkit.parts.guidance.static_threshold import StaticThreshold as StaticThreshold

__all__, __getattr__, __dir__ = on_first_use(__name__)
