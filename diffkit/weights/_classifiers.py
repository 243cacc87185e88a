"""Classifiers of noisy data: loaded from a public file, saved to and loaded from a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from attrs import frozen
from torch import nn

from diffkit._version import __version__
from diffkit.errors import CheckpointError, OptionError, SpecError
from diffkit.guidance.classifier import Classifier
from diffkit.options import check_integer
from diffkit.runtime.files import check_fit, load_weights
from diffkit.runtime.run_layout import SPEC
from diffkit.runtime.strict_json import check_fields, word
from diffkit.system.building import bounded
from diffkit.system.loading import read_model, read_spec
from diffkit.system.saving import FORMAT, write
from diffkit.weights._known_options import TITLES
from diffkit.weights._load import infer_file_options, load_into_meta_network
from diffkit.weights._read_state_dict import read_weights_file
from diffkit.weights._resolve_options import resolve_options


@frozen
class _ClassifierInFile:
    """A classifier from a file: network and recipe, with the spec in the file, if there is one."""

    recipe: Classifier
    data_shape: tuple[int, ...]
    num_classes: int
    network: nn.Module
    spec: Mapping[str, Any]


def load_classifier(
    path: str | Path,
    *,
    preset: str | None = None,
    entry: str | None = None,
    network: nn.Module | None = None,
    device: str | torch.device = "cpu",
    **options: Any,
) -> nn.Module:
    """Load a classifier of noisy data from a file or folder: ``forward(x, time)`` -> logits; dropout is off.

    Args:
        path: A file of guided-diffusion, or a folder, which needs no options: one that `import_classifier` or
            `diffkit.guidance.NoisyClassifier.save` wrote, or the run of a classifier.
        preset: Name of a published configuration, such as "adm/classifier64".
        entry: Name of the set of weights, if the file has several; by default "ema" if there is one.
        network: The module to load the weights into, if a network of your own was trained.
        device: Device of the network.
        options: Options of `diffkit.guidance.classifier.Classifier`, and data_shape.
    Raises:
        CheckpointError: The file cannot be read, is not a classifier, or contradicts preset or options.
        OptionError: An option is unknown or missing.
    """
    if Path(path).is_dir():
        if preset is not None or entry is not None or options:
            raise OptionError(f"{path} describes its classifier itself; leave preset, entry and options out")
        return _from_folder(Path(path), network, device)
    if network is not None:
        raise OptionError("network is for the folder of a classifier that was trained here; leave it out for a file")
    return _from_file(path, preset, entry, device, options).network


def import_classifier(
    path: str | Path, folder: str | Path, *, preset: str | None = None, entry: str | None = None, **options: Any
) -> Path:
    """Convert a public file of a classifier to a folder of JSON and safetensors that `load_classifier` opens.

    Args:
        path: A file of guided-diffusion.
        folder: The folder, created if needed.
        preset, entry, options: As in `load_classifier`.
    Returns:
        The folder.
    Raises:
        CheckpointError: As `load_classifier`; or the folder cannot be written.
        OptionError: As `load_classifier`.
    """
    found = _from_file(path, preset, entry, "cpu", options)
    spec = {
        "classifier": attrs.asdict(found.recipe),
        "data_shape": found.data_shape,
        "num_classes": found.num_classes,
    }
    return write({"format": FORMAT, "diffkit": __version__, **found.spec, **spec}, found.network.state_dict(), folder)


def is_classifier(folder: str | Path) -> bool:
    """Return whether a folder has a classifier: trained, saved or imported."""
    return (Path(folder) / SPEC).is_file() and "classifier" in read_spec(Path(folder) / SPEC)


def _from_file(
    path: str | Path, preset: str | None, entry: str | None, device: str | torch.device, options: dict[str, Any]
) -> _ClassifierInFile:
    weights = read_weights_file(path, entry)
    found = infer_file_options(weights, options)
    if found.family != "classifier":
        raise CheckpointError(f"{path} is {TITLES[found.family]}, not a classifier; diffkit.load_checkpoint reads it")
    spec = (weights.spec if preset is None and not options else None) or {}
    if spec:
        recipe, shape, num_classes = _recipe_in_spec(weights.path, spec)
    else:
        resolved = resolve_options(found, preset, options, weights.path)
        recipe, shape, num_classes = Classifier(**resolved.recipe), resolved.data_shape, found.channels_out
    network = _build_on_meta(recipe, shape, num_classes)
    load_into_meta_network(network, weights, device)
    return _ClassifierInFile(recipe, shape, num_classes, network.eval(), spec)


def _from_folder(folder: Path, network: nn.Module | None, device: str | torch.device) -> nn.Module:
    spec = read_spec(folder / SPEC)
    network = _build_from_spec(folder, spec) if network is None else network
    weights = read_model(folder, spec)
    if any(tensor.is_meta for tensor in network.state_dict().values()):
        check_fit(network, weights)  # before memory is allocated
        network.to_empty(device=device)
    load_weights(network, weights)
    return network.to(device).eval()


def _build_from_spec(folder: Path, spec: Mapping[str, Any]) -> nn.Module:
    """Build the classifier that a spec describes, on the meta device."""
    if "classifier" not in spec:
        raise SpecError(f"{folder} does not hold a classifier; a saved system is read by diffkit.load")
    check_fields(spec, str(folder / SPEC), SpecError, classifier=dict)
    if "class" in spec["classifier"]:
        name = word(spec["classifier"]["class"])
        raise SpecError(f"the classifier in {folder} is a network of its own ({name}); pass network=")
    return _build_on_meta(*_recipe_in_spec(folder / SPEC, spec))


def _recipe_in_spec(path: Path, spec: Mapping[str, Any]) -> tuple[Classifier, tuple[int, ...], int]:
    """Return the recipe of a classifier, shape of an example and number of classes in a spec."""
    check_fields(spec, str(path), SpecError, classifier=dict, data_shape=(list, tuple), num_classes=int)
    options, sizes = spec["classifier"], spec["data_shape"]
    unknown = options.keys() - attrs.fields_dict(Classifier).keys()
    if unknown:
        raise SpecError(f"{path} describes no classifier: there is no option {word(min(unknown))!r}")
    shape = tuple(check_integer(f"each of data_shape of {path}", size, ge=1) for size in sizes)
    try:
        return Classifier(**options), shape, spec["num_classes"]
    except OptionError as error:
        raise SpecError(f"{path} describes no classifier: {error}") from error


def _build_on_meta(recipe: Classifier, data_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Build a classifier on the meta device."""
    with bounded(torch.device("meta")), torch.device("meta"):
        return recipe.build(data_shape, num_classes)
