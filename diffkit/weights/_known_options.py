"""Known options of a file's network and its composition: those of the preset and of the caller."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from diffkit.errors import CheckpointError, OptionError, did_you_mean
from diffkit.guidance.classifier import Classifier
from diffkit.parts.backbones.dit import DiT
from diffkit.parts.backbones.unet import UNet
from diffkit.presets import preset as find_preset

RECIPES: Mapping[str, type[Any]] = {"unet": UNet, "classifier": Classifier, "dit": DiT}
TITLES: Mapping[str, str] = {"unet": "a U-Net", "classifier": "a classifier", "dit": "a DiT"}
COMPOSITION: tuple[str, ...] = (
    *("schedule", "mean", "var", "loss", "timesteps", "sampler"),
    *("num_steps", "train_spacing", "rescale_time", "clip_x_start", "bins", "sampling"),
)
"""Keywords of `diffkit.compose` that loading a file takes, besides data_shape."""
_NONE_MEANS_SOMETHING = ("bins", "num_classes", "sampling")


def recipe_options(family: str) -> tuple[str, ...]:
    """Return the names of the options of a family's network."""
    return tuple(attribute.name for attribute in attrs.fields(RECIPES[family]))


def known_options(family: str, preset: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the known options of preset and caller: options of the network and keywords of `diffkit.compose`.

    Args:
        family: "unet", "classifier" or "dit".
        preset: Name of a preset; options that it does not give have the recipe's defaults.
        options: The caller's options, which override the preset.
    Raises:
        OptionError: An option does not exist.
        UnknownComponentError: There is no preset of that name.
        CheckpointError: The preset is of another family.
    """
    _check_option_names(family, options)
    own = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    known = {} if preset is None else _preset_options(preset, family)
    if "num_heads" in own and "num_head_channels" not in own:
        known.pop("num_head_channels", None)
    if "data_shape" in own and "attention_resolutions" not in own:
        known.pop("attention_resolutions", None)  # those of another image size; the file's shapes show the levels
    both = known | own
    return {name: value for name, value in both.items() if value is not None or name in _NONE_MEANS_SOMETHING}


def family_of(composition: Mapping[str, Any]) -> str:
    """Return the family of a preset's composition."""
    backbone = composition.get("backbone")
    return "classifier" if backbone is None else str(backbone["name"])


def _preset_options(preset: str, family: str) -> dict[str, Any]:
    composition = dict(find_preset(preset).composition)
    kind = family_of(composition)
    if kind != family:
        raise CheckpointError(f"the file is {TITLES[family]}, but preset {preset!r} is {TITLES[kind]}")
    options = composition.pop("backbone", composition)
    names = recipe_options(family)
    recipe = RECIPES[family](**{name: value for name, value in options.items() if name in names})
    return composition | {name: getattr(recipe, name) for name in names}


def _check_option_names(family: str, options: Mapping[str, Any]) -> None:
    more = ("num_classes",) if family == "classifier" else COMPOSITION
    known = (*recipe_options(family), "data_shape", *more)
    unknown = [name for name in options if name not in known]
    if unknown:
        lines = (f"{TITLES[family]} has no option {name!r}{did_you_mean(name, known)}" for name in unknown)
        raise OptionError(f"{'; '.join(lines)} (options: {', '.join(known)})")
