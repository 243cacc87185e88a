"""Resolve the options of a file: combine those inferred from shapes, of the preset and of the caller.

One error reports all options that contradict the file, another all that are missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import field, frozen

from diffkit.errors import CheckpointError, OptionError, joined
from diffkit.presets import names as preset_names
from diffkit.presets import preset as find_preset
from diffkit.weights._infer_options import InferredOptions
from diffkit.weights._known_options import COMPOSITION, family_of, known_options, recipe_options
from diffkit.weights._option_conflicts import attention_resolutions, option_conflicts, published_size
from diffkit.weights._required_options import missing_options, missing_options_text, preset_hint


@frozen
class ResolvedOptions:
    """The resolved options of a file: a composition that fits it.

    Attributes:
        recipe: Options of the network's recipe.
        data_shape: Shape of one example.
        composition: All other keywords of `diffkit.compose`.
    """

    recipe: Mapping[str, Any] = field(hash=False)
    data_shape: tuple[int, ...]
    composition: Mapping[str, Any] = field(hash=False)


def resolve_options(
    found: InferredOptions, preset: str | None, options: Mapping[str, Any], path: Path
) -> ResolvedOptions:
    """Return the resolved options of a file, or raise an error that lists all contradicting or missing options.

    Args:
        found: Options inferred from the file's shapes.
        preset: Name of a preset for the other options.
        options: The caller's options, which override the preset.
        path: The file, for messages.
    Raises:
        CheckpointError: The preset or the options contradict the file.
        OptionError: An option is unknown, or missing.
    """
    known = known_options(found.family, preset, options)
    _check_conflicts(found, known, path, f"preset {preset!r}" if preset and not options else "the options given")
    lacking = list(missing_options(found, known))
    if lacking:
        fits, null_known = fitting_presets(found, path.name), "null_class" in known
        raise OptionError(missing_options_text(found, lacking, fits, str(path), null_known=null_known))
    return _to_composition(found, known)


def changed_options(found: InferredOptions, options: Mapping[str, Any], recipe: Any, path: Path) -> dict[str, Any]:
    """Return the caller's options that change the recipe in a file's spec.

    Args:
        found: Options inferred from the file's shapes.
        options: The caller's options.
        recipe: Recipe of the network.
        path: The file, for messages.
    Raises:
        CheckpointError: The options contradict the file.
        OptionError: An option is unknown.
    """
    known = known_options(found.family, None, options)
    labels = {name: getattr(recipe, name) for name in ("num_classes", "null_class") if hasattr(recipe, name)}
    _check_conflicts(found, labels | known, path, "the options given")
    own = {name: known[name] for name in options if name in recipe_options(found.family) and name in known}
    heads = {"num_head_channels": None} if "num_heads" in own and found.family != "dit" else {}
    return heads | own


def _check_conflicts(found: InferredOptions, known: Mapping[str, Any], path: Path, whose: str) -> None:
    wrong = list(option_conflicts(found, known))
    if wrong:
        raise CheckpointError(
            joined("\n  ", [f"{path} does not fit {whose}:", *wrong, *preset_hint(fitting_presets(found, path.name))])
        )


def fitting_presets(found: InferredOptions, file: str = "") -> tuple[str, ...]:
    """Return the names of the presets that fit a file's shapes; one for a file of this name comes first."""
    presets = [preset for preset in map(find_preset, preset_names()) if family_of(preset.composition) == found.family]
    fits = [p for p in presets if not list(option_conflicts(found, known_options(found.family, p.name, {})))]
    return tuple(p.name for p in sorted(fits, key=lambda p: p.file != file))


def _to_composition(found: InferredOptions, known: Mapping[str, Any]) -> ResolvedOptions:
    shape = tuple(known.get("data_shape") or found.data_shape or ())
    own = recipe_options(found.family)
    recipe = {name: value for name, value in known.items() if name in own} | dict(found.options)
    if found.family == "dit":
        recipe |= _dit_dimensions(found, known)
    else:
        recipe.setdefault("num_head_channels", None)  # heads are counted, unless channels per head are given
        recipe["attention_resolutions"] = attention_resolutions(found, shape)
    if found.family == "unet":
        recipe["low_res_channels"] = found.channels_in - shape[0]
    if found.family == "classifier":
        return ResolvedOptions(recipe, shape, {"num_classes": found.channels_out})
    composition = {name: known[name] for name in COMPOSITION if name in known}
    if found.channels_out > shape[0]:
        composition.setdefault("var", "learned_range")  # no published network has learned variances of another kind
    composition.setdefault("rescale_time", False)
    return ResolvedOptions(recipe | _class_options(found, known), shape, composition)


def _class_options(found: InferredOptions, known: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of classes and of the label for no class, which published DiTs have and U-Nets have not."""
    if not found.label_rows:
        return {"num_classes": None, "null_class": False}
    null = bool(known.get("null_class", found.family == "dit" and "num_classes" not in known))
    return {"num_classes": found.label_rows - null, "null_class": null}


def _dit_dimensions(found: InferredOptions, known: Mapping[str, Any]) -> dict[str, Any]:
    size = published_size(found)
    if size is not None:
        return {"size": size, "depth": None, "hidden": None, "heads": known.get("heads")}
    return {"size": "S", "heads": known["heads"]}
