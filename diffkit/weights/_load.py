"""Load a public file of weights as a system."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from attrs import field, frozen
from torch import Tensor, nn

from diffkit.errors import CheckpointError, Message, OptionError
from diffkit.presets import preset as find_preset
from diffkit.runtime.files import check_fit, load_weights
from diffkit.system.compose import compose, recompose
from diffkit.system.loading import from_spec
from diffkit.system.module import System
from diffkit.weights._infer_options import InferredOptions, infer_options
from diffkit.weights._known_options import TITLES
from diffkit.weights._read_state_dict import Weights, read
from diffkit.weights._resolve_options import changes, fitting, resolve_options
from diffkit.weights._values import check_values


@frozen
class Identity:
    """Description of a file of weights, as far as it can be inferred; ``print`` shows it.

    Attributes:
        path: The file.
        family: "unet", "classifier" or "dit".
        options: Options of the network that follow from shapes.
        num_parameters: Values in the file.
        dtypes: Types of its tensors.
        entry: The set of weights described, if the file holds several.
        entries: All sets in the file.
        presets: Published configurations of exactly these shapes.
        complete: True if the file carries a spec, so that loading it needs no options.
    """

    path: Path
    family: str
    options: Mapping[str, Any] = field(hash=False)
    num_parameters: int
    dtypes: tuple[str, ...]
    entry: str | None
    entries: tuple[str, ...]
    presets: tuple[str, ...]
    complete: bool = False

    def __str__(self) -> str:
        of = f", entry {self.entry!r} of {', '.join(map(repr, self.entries))}" if self.entry else ""
        lines = [
            f"{self.path.name}: {TITLES[self.family]}, {self.num_parameters:,} values in {', '.join(self.dtypes)}{of}"
        ]
        lines += [f"{name} = {value!r}" for name, value in self.options.items()]
        fits = " or ".join(map(repr, self.presets)) or "none"
        last = "it carries its spec" if self.complete else f"presets of these shapes: {fits}"
        return "\n  ".join([*lines, last])


def identify(path: str | Path, *, entry: str | None = None) -> Identity:
    """Return a description of the network whose weights a file holds; nothing is built.

    Args:
        path: The file.
        entry: Which set of weights, if it holds several.
    Raises:
        CheckpointError: It cannot be read, or is of an unknown kind.
    """
    weights = read(path, entry)
    found = inferred(weights, {})
    options = dict(found.options) | {"channels_in": found.channels_in, "channels_out": found.channels_out}
    if found.family != "classifier":
        options["label_rows"] = found.label_rows
    if found.attention:
        options["attention_levels"] = tuple(level for level, attends in enumerate(found.attention) if attends)
    if found.data_shape:
        options["data_shape"] = found.data_shape
    return Identity(
        path=weights.path,
        family=found.family,
        options=options,
        num_parameters=sum(tensor.numel() for tensor in weights.tensors.values()),
        dtypes=tuple(sorted({str(t.dtype).removeprefix("torch.") for t in weights.tensors.values()})),
        entry=weights.entry,
        entries=weights.entries,
        presets=fitting(found, weights.path.name),
        complete=weights.spec is not None,
    )


def load_checkpoint(
    path: str | Path,
    *,
    preset: str | None = None,
    entry: str | None = None,
    device: str | torch.device = "cpu",
    **options: Any,
) -> System:
    """Build the system that a public file of weights belongs to, ready to sample (dropout off).

    Most options of the network follow from shapes. The others, such as the order of attention heads, the noise schedule
    and T, come from a preset or the caller; without either, the error lists the missing options with the published
    values. A file of `diffkit.weights.export` carries all of them.

    Args:
        path: A file of improved-diffusion, guided-diffusion or DiT; PyTorch's or safetensors.
        preset: Name of a published configuration, see `diffkit.preset`; the system samples by default as published.
        entry: Which set of weights, if the file holds several; "ema" if it has one.
        device: Where the network is built.
        options: Options of the network (those of the backbones `unet` and `dit`) and keywords of `diffkit.compose`,
            side by side; they override the preset.
    Raises:
        CheckpointError: The file cannot be read, is of another kind, or contradicts preset or options.
        OptionError: An option is unknown or missing.
        CompositionError: As `diffkit.compose`.
        SpecError: The file carries a spec that cannot be built here; a preset or options do not help.
    """
    weights = read(path, entry)
    found = inferred(weights, options)
    if found.family == "classifier":
        raise CheckpointError(
            f"{path} is a classifier, which guides sampling, not a system; diffkit.weights.load_classifier reads it"
        )
    if weights.spec is not None and preset is None:
        system = _from_own_spec(weights.spec, found, options, weights.path)
    else:
        settled = resolve_options(found, preset, options, weights.path)
        published = None if preset is None else find_preset(preset).sampling_with(options)
        composition = {"sampling": published, **settled.composition}
        system = compose(
            backbone=(found.family, settled.recipe), data_shape=settled.data_shape, device="meta", **composition
        )
    assert system.network is not None, "it was composed with one"
    fill(system.network, weights, device)
    return system.eval()


def _from_own_spec(spec: Mapping[str, Any], found: InferredOptions, options: Mapping[str, Any], path: Path) -> System:
    """The system of a file's spec on the meta device; the caller's options override it."""
    system = from_spec(spec, device="meta")
    if not options:
        return system
    recipe: Any = system.parts.backbone
    assert recipe is not None, "no other is written"
    own = changes(found, options, recipe, path)
    more = {name: value for name, value in options.items() if name not in own}
    return recompose(system, **more, backbone=attrs.evolve(recipe, **own), device="meta")


def inferred(weights: Weights, options: Mapping[str, Any]) -> InferredOptions:
    """Return the options inferred from a file; errors name the file."""
    try:
        found = infer_options(weights.shapes, options.get("num_res_blocks"))
    except CheckpointError as error:
        raise CheckpointError(f"{weights.path}: {error}") from error
    except OptionError as error:
        raise OptionError(Message(f"{weights.path}: ", error.message)) from error
    if found.family != "dit":
        return found
    return attrs.evolve(found, data_shape=_grid_shape(found, weights.tensors["pos_embed"]))


def _grid_shape(found: InferredOptions, table: Tensor) -> tuple[int, ...] | None:
    """Shape of an example of a transformer: the one whose fixed positions are in the file; None if none has them."""
    from diffkit.parts.backbones._dit import positions

    total, hidden, patch = found.positions, found.options["hidden"], found.options["patch"]
    rows = sorted((r for r in range(1, total + 1) if total % r == 0), key=lambda r: abs(math.log(r * r / total)))
    for count in rows:
        # The published tables were made in another precision; positions that differ do so by 0.01 and more.
        if torch.allclose(positions(count, total // count, hidden), table[0].float(), atol=1e-3):
            return found.channels_in, count * patch, total // count * patch
    return None


def fill(network: nn.Module, weights: Weights, device: str | torch.device) -> None:
    """Load the weights of a file into a network that was built on the meta device."""
    try:
        check_fit(network, weights.tensors)  # before there is memory for it
    except CheckpointError as error:
        raise CheckpointError(f"{weights.path}: {error}") from error
    check_values(weights.path, weights.tensors, network)
    load_weights(network.to_empty(device=device), weights.tensors)
