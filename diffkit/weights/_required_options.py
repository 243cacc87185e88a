"""Required options of a file's network that are missing, and the error message that lists them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from diffkit.errors import Message, Setting, joined, problem
from diffkit.guidance.classifier import Classifier
from diffkit.presets import names as preset_names
from diffkit.presets import preset as find_preset
from diffkit.weights._infer_options import InferredOptions
from diffkit.weights._known_options import TITLES, family_of
from diffkit.weights._option_conflicts import published_size, value_text

_MEANING: Mapping[str, str] = {
    "data_shape": "shape of one example, channels first",
    "attention_order": "how heads are laid out, 'legacy' or 'new'; the wrong one gives noise and no error",
    "num_heads": "attention heads, or instead num_head_channels, channels per head",
    "heads": "attention heads",
    "groups": "groups of every group norm",
    "schedule": "noise schedule it was trained with",
    "num_steps": "T it was trained with",
    "rescale_time": "whether times were scaled to 0..1000: True in improved-diffusion unless its flags say otherwise",
    "mean": "what it predicts",
    "var": "variance it was trained with; 'fixed_large', or 'fixed_small' (sigma_small)",
    "loss": "loss it was trained with; only training uses it",
    "bins": "values that data takes: 256 for 8-bit images, None for latents",
}


def missing_options(found: InferredOptions, known: Mapping[str, Any]) -> Iterator[str]:
    """Yield the required options that shapes do not show and that are not given."""
    shape = known.get("data_shape", found.data_shape)
    if shape is None:
        yield "data_shape"
    if found.family == "dit":
        if published_size(found) is None and "heads" not in known:
            yield "heads"
    else:
        if not {"num_heads", "num_head_channels"} & known.keys():
            yield "num_heads"
        one_head = known.get("num_heads") == 1 and known.get("num_heads_upsample", 1) == 1
        if "attention_order" not in known and not (one_head and "num_head_channels" not in known):
            yield "attention_order"
        if "groups" not in known and any(width % Classifier().groups for width in found.widths):
            yield "groups"
    if found.family != "classifier":
        yield from _missing_composition(found, known, shape)


def _missing_composition(
    found: InferredOptions, known: Mapping[str, Any], shape: tuple[int, ...] | None
) -> Iterator[str]:
    needed = ["schedule", "num_steps", "mean", "loss"]
    if shape is not None and found.channels_out == shape[0]:
        needed.append("var")
    if known.get("num_steps") != 1000:  # at 1000 steps scaled times are the same
        needed.append("rescale_time")
    if found.family == "dit" or (shape is not None and shape[0] not in (1, 3)):
        needed.append("bins")
    yield from (name for name in needed if name not in known)


def missing_options_text(
    found: InferredOptions, lacking: list[str], fits: tuple[str, ...], title: str, *, null_known: bool = False
) -> str:
    """Return the message that lists missing required options.

    Args:
        found: Options inferred from the file's shapes.
        lacking: Names of the options.
        fits: Names of the presets of these shapes, which also have the published values.
        title: Name of the file in the message.
        null_known: Whether ``null_class`` is given; a file does not show whether its last label means "no class".
    """
    unclear = ["null_class"] if found.family == "unet" and found.label_rows and not null_known else []
    width = max(map(len, lacking + unclear))
    lines = [f"{title} is {TITLES[found.family]}; its shapes do not show everything, so give also:"]
    about = {name: f"{_MEANING[name]}{_published_values(name, found, fits)}" for name in lacking}
    about |= dict.fromkeys(unclear, f"if the last of its {found.label_rows} labels means no class")
    lines += [Message(Setting(name), f"{'':{width - len(name)}}  {text}") for name, text in about.items()]
    return joined("\n  ", [*lines, *preset_hint(fits)])


def preset_hint(fits: tuple[str, ...]) -> list[str]:
    """Return a line of an error that names the presets of a file's shapes."""
    if not fits:
        return ["no preset has these shapes"]
    return [problem("a preset of these shapes gives all options", fix=[{"preset": name} for name in fits])]


def _published_values(name: str, found: InferredOptions, fits: tuple[str, ...]) -> str:
    """Return the values of an option in the presets that fit, else in all presets of the family."""
    if name == "data_shape" and not fits:
        return ""  # a list of all sizes would not help
    presets = [find_preset(preset) for preset in fits or preset_names()]
    values_of = [_value_text(name, p.composition) for p in presets if family_of(p.composition) == found.family]
    values = list(dict.fromkeys(value for value in values_of if value))
    return f" (published: {' or '.join(values)})" if values else ""


def _value_text(name: str, composition: Mapping[str, Any]) -> str:
    options = {**composition, **composition.get("backbone", {})}
    if name == "num_heads" and options.get("num_head_channels") is not None:
        name = "num_head_channels"
    return f"{name}={value_text(options[name])}" if name in options else ""
