"""Guidance: changes the estimates of the network while sampling.

    system.sample(16, guidance=ClassifierFree(2.0), y=labels)
    system.sample(16, guidance=[ClassifierFree(4.0, interval=(0.2, 3.0)), DynamicThreshold(0.995)], y=labels)

Every guidance changes the estimate of clean data, never a learned variance, so it works with every sampler, mean
parameterization and number of channels. Of several, the first is nearest to the network, and each takes the
result of those before it as the network's; those that act after clipping (`ClassifierGuidance`) keep this order.

`MMPS`, `PiGDM`, `DiffPIR` and `DPS` guide towards measurements of the data; `diffkit.tasks.solve` uses them.

In configuration files and on the command line a guidance is given by its name and options; see `guidance_for`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from diffkit.errors import OptionError, did_you_mean
from diffkit.options import option_names
from diffkit.runtime.lazy import on_first_use

if TYPE_CHECKING:
    from diffkit.guidance.autoguidance import Autoguidance as Autoguidance
    from diffkit.guidance.classifier import Classifier as Classifier
    from diffkit.guidance.classifier_free import ClassifierFree as ClassifierFree
    from diffkit.guidance.diffpir import DiffPIR as DiffPIR
    from diffkit.guidance.dps import DPS as DPS
    from diffkit.guidance.gradient import ClassifierGuidance as ClassifierGuidance
    from diffkit.guidance.gradient import GradientGuidance as GradientGuidance
    from diffkit.guidance.mmps import MMPS as MMPS
    from diffkit.guidance.noisy_classifier import NoisyClassifier as NoisyClassifier
    from diffkit.guidance.pigdm import PiGDM as PiGDM
    from diffkit.guidance.threshold import DynamicThreshold as DynamicThreshold
    from diffkit.guidance.threshold import StaticThreshold as StaticThreshold
    from diffkit.protocols import Guidance


__all__, __getattr__, __dir__ = on_first_use(__name__)
__all__ += ["NAMES", "guidance_class", "guidance_for"]

NAMES: dict[str, str] = {
    "autoguidance": "Autoguidance",
    "cfg": "ClassifierFree",
    "classifier": "ClassifierGuidance",
    "dynamic_threshold": "DynamicThreshold",
    "static_threshold": "StaticThreshold",
}
"""Name in configuration files -> class."""


def guidance_class(name: str) -> Callable[..., Guidance]:
    """Return the class of a registered name; "-" is read as "_".

    Raises:
        OptionError: There is no guidance of that name.
    """
    found = NAMES.get(name.replace("-", "_"))
    if found is None:
        known = ", ".join(sorted(NAMES))
        raise OptionError(f"no guidance named {name!r}{did_you_mean(name, NAMES)} (known: {known})")
    made: Callable[..., Guidance] = __getattr__(found)
    return made


def guidance_for(slot: Any) -> Guidance | list[Guidance] | None:
    """Return the guidance, as ``system.sample(guidance=...)`` takes it, that a configuration describes.

    Args:
        slot: A name ("cfg" needs options), a pair ("cfg", {"scale": 2.0}), a mapping {"name": "cfg", "scale": 2.0},
            a guidance, a list of these, or None.
    Raises:
        OptionError: A name or an option is unknown, or a value is wrong.
    """
    if slot is None:
        return None
    pair = isinstance(slot, tuple | list) and len(slot) == 2 and isinstance(slot[0], str)
    if pair and isinstance(slot[1], Mapping):
        return _made(slot[0], slot[1])
    if isinstance(slot, tuple | list):
        found = [guidance_for(one) for one in slot]
        return [one for one in found if one is not None and not isinstance(one, list)]
    if isinstance(slot, str):
        return _made(slot, {})
    if isinstance(slot, Mapping):
        if not isinstance(slot.get("name"), str):
            raise OptionError(f"guidance as a mapping needs a 'name', got {dict(slot)!r}")
        return _made(slot["name"], {key: value for key, value in slot.items() if key != "name"})
    given: Guidance = slot
    return given


def _made(name: str, options: Mapping[str, Any]) -> Guidance:
    factory = guidance_class(name)
    known = option_names(factory) or ()
    for option in options:
        if option not in known:
            raise OptionError(
                f"guidance {name!r} has no option {option!r}{did_you_mean(option, known)} (options: {', '.join(known)})"
            )
    try:
        return factory(**options)
    except OptionError as error:
        raise OptionError(f"guidance {name!r}: {error}") from error
    except TypeError as error:
        raise OptionError(f"guidance {name!r} cannot be made with these options: {error}") from error
