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
from diffkit.weights._read_state_dict import FileWeights, read_weights_file
from diffkit.weights._resolve_options import changed_options, fitting_presets, resolve_options
from diffkit.weights._values import check_tensor_values


@frozen
class Identity:
    """Result of `identify`: description of a file of weights, as far as it can be inferred; ``print`` shows it.

    Attributes:
        path: The file.
        family: "unet", "classifier" or "dit".
        options: Options of the network that follow from shapes.
        num_parameters: Number of values in the file.
        dtypes: Types of its tensors.
        entry: The set of weights described, if the file has several.
        entries: All sets in the file.
        presets: Published configurations with exactly these shapes.
        complete: True if the file has an embedded spec, so that loading it needs no options.
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
    """Identify a file of weights: return a description of its network, without building it.

    Args:
        path: The file.
        entry: Name of the set of weights, if the file has several.
    Raises:
        CheckpointError: The file cannot be read, or is of an unknown kind.
    """
    weights = read_weights_file(path, entry)
    found = infer_file_options(weights, {})
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
        presets=fitting_presets(found, weights.path.name),
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
    """Load a public file of weights as a system, ready to sample (dropout off).

    Most options of the network follow from shapes. The others, such as the order of attention heads, the noise schedule
    and T, come from a preset or the caller; without either, the error lists the missing options with the published
    values. A file of `diffkit.weights.export` carries all of them.

    Args:
        path: A file of improved-diffusion, guided-diffusion or DiT; PyTorch's or safetensors.
        preset: Name of a published configuration, see `diffkit.preset`; the system samples by default as published.
        entry: Name of the set of weights, if the file has several; by default "ema" if there is one.
        device: Device of the network.
        options: Options of the network (those of `unet` and `dit`) and keywords of `diffkit.compose`; they
            override the preset.
    Raises:
        CheckpointError: The file cannot be read, is of another kind, or contradicts preset or options.
        OptionError: An option is unknown or missing.
        CompositionError: As `diffkit.compose`.
        SpecError: The file has a spec that cannot be built here.
    """
    weights = read_weights_file(path, entry)
    found = infer_file_options(weights, options)
    if found.family == "classifier":
        raise CheckpointError(
            f"{path} is a classifier, which guides sampling, not a system; diffkit.weights.load_classifier reads it"
        )
    if weights.spec is not None and preset is None:
        system = _system_from_embedded_spec(weights.spec, found, options, weights.path)
    else:
        resolved = resolve_options(found, preset, options, weights.path)
        published = None if preset is None else find_preset(preset).sampling_with(options)
        composition = {"sampling": published, **resolved.composition}
        system = compose(
            backbone=(found.family, resolved.recipe),
            data_shape=resolved.data_shape,
            device="meta",
            **composition,
        )
    assert system.network is not None, "it was composed with one"
    load_into_meta_network(system.network, weights, device)
    return system.eval()


def _system_from_embedded_spec(
    spec: Mapping[str, Any], found: InferredOptions, options: Mapping[str, Any], path: Path
) -> System:
    """Return the system of the spec in a file, on the meta device; the caller's options override the spec."""
    system = from_spec(spec, device="meta")
    if not options:
        return system
    recipe: Any = system.parts.backbone
    assert recipe is not None, "only systems with a recipe are exported with a spec"
    own = changed_options(found, options, recipe, path)
    more = {name: value for name, value in options.items() if name not in own}
    return recompose(system, **more, backbone=attrs.evolve(recipe, **own), device="meta")


def infer_file_options(weights: FileWeights, options: Mapping[str, Any]) -> InferredOptions:
    """Return the options inferred from a file of weights; errors name the file."""
    try:
        found = infer_options(weights.shapes, options.get("num_res_blocks"))
    except CheckpointError as error:
        raise CheckpointError(f"{weights.path}: {error}") from error
    except OptionError as error:
        raise OptionError(Message(f"{weights.path}: ", error.message)) from error
    if found.family != "dit":
        return found
    return attrs.evolve(found, data_shape=_shape_from_grid(found, weights.tensors["pos_embed"]))


def _shape_from_grid(found: InferredOptions, table: Tensor) -> tuple[int, ...] | None:
    """Return the shape of a DiT's examples, whose grid has the positions in the file; None if no grid has them."""
    from diffkit.parts.backbones._dit import positions

    total, hidden, patch = found.positions, found.options["hidden"], found.options["patch"]
    rows = sorted((r for r in range(1, total + 1) if total % r == 0), key=lambda r: abs(math.log(r * r / total)))
    for count in rows:
        # The published tables were made in another precision; different positions differ by 0.01 and more.
        if torch.allclose(positions(count, total // count, hidden), table[0].float(), atol=1e-3):
            return found.channels_in, count * patch, total // count * patch
    return None


def load_into_meta_network(network: nn.Module, weights: FileWeights, device: str | torch.device) -> None:
    """Load the weights of a file into a network on the meta device, after checking that they fit."""
    try:
        check_fit(network, weights.tensors)  # before memory is allocated
    except CheckpointError as error:
        raise CheckpointError(f"{weights.path}: {error}") from error
    check_tensor_values(weights.path, weights.tensors, network)
    load_weights(network.to_empty(device=device), weights.tensors)
