"""Classifiers of noisy data: from a public file, and to and from a folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import attrs
import torch
from attrs import frozen
from torch import nn

from diffkit import __version__
from diffkit._errors import CheckpointError, OptionError, SpecError
from diffkit.files import load_weights, read_weights, storable, write_atomically
from diffkit.guidance.classifier import Classifier
from diffkit.saving import read_spec
from diffkit.spec import FORMAT, SPEC, WEIGHTS
from diffkit.weights._asking import TITLES
from diffkit.weights._loading import fill, revealed
from diffkit.weights._reading import read
from diffkit.weights._settling import settle


@frozen
class _Found:
    """A classifier's network and what it is built from."""

    recipe: Classifier
    data_shape: tuple[int, ...]
    num_classes: int
    network: nn.Module


def load_classifier(
    path: str | Path,
    *,
    preset: str | None = None,
    entry: str | None = None,
    device: str | torch.device = "cpu",
    **options: Any,
) -> nn.Module:
    """Build the classifier of noisy data that weights belong to: ``forward(x, time)`` -> logits; dropout is off.

    Args:
        path: A file of guided-diffusion, or a folder that `import_classifier` wrote, which says everything itself.
        preset: Name of a published configuration, such as "adm/classifier64".
        entry: Which set of weights, if the file holds several; "ema" if it has one.
        device: Where the network is built.
        options: Options of `diffkit.guidance.classifier.Classifier`, and data_shape.
    Raises:
        CheckpointError: The file cannot be read, is no classifier, or contradicts preset or options.
        OptionError: An option is unknown or missing.
    """
    if Path(path).is_dir():
        if preset is not None or entry is not None or options:
            raise OptionError(f"{path} says itself what its classifier is; leave preset, entry and options out")
        return _from_folder(Path(path), device)
    return _from_file(path, preset, entry, device, options).network


def import_classifier(
    path: str | Path, folder: str | Path, *, preset: str | None = None, entry: str | None = None, **options: Any
) -> Path:
    """Turn a public file of a classifier into a folder of JSON and safetensors that `load_classifier` opens.

    Args:
        path: A file of guided-diffusion.
        folder: Made if it is not there.
        preset, entry, options: As in `load_classifier`.
    Returns:
        The folder.
    Raises:
        CheckpointError: As `load_classifier`; or the folder cannot be written.
        OptionError: As `load_classifier`.
    """
    from safetensors.torch import save as to_bytes

    found, folder = _from_file(path, preset, entry, "cpu", options), Path(folder)
    content = to_bytes(storable(found.network.state_dict()))
    spec = {
        "format": FORMAT,
        "diffkit": __version__,
        "classifier": attrs.asdict(found.recipe),
        "data_shape": found.data_shape,
        "num_classes": found.num_classes,
        "weights": {"file": WEIGHTS, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()},
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / WEIGHTS, content)
        write_atomically(folder / SPEC, (json.dumps(spec, indent=2) + "\n").encode())
    except OSError as error:
        raise CheckpointError(f"cannot write {folder}: {error}; {len(content)} bytes are needed") from error
    return folder


def is_classifier(folder: str | Path) -> bool:
    """Return True for a folder that `import_classifier` wrote."""
    return (Path(folder) / SPEC).is_file() and "classifier" in read_spec(Path(folder) / SPEC)


def _from_file(
    path: str | Path, preset: str | None, entry: str | None, device: str | torch.device, options: dict[str, Any]
) -> _Found:
    weights = read(path, entry)
    found = revealed(weights, options)
    if found.family != "classifier":
        raise CheckpointError(f"{path} is {TITLES[found.family]} and no classifier; diffkit.load_checkpoint reads it")
    settled = settle(found, preset, options, weights.path)
    recipe, num_classes = Classifier(**settled.recipe), settled.composition["num_classes"]
    network = _built(recipe, settled.data_shape, num_classes)
    fill(network, weights, device)
    return _Found(recipe, settled.data_shape, num_classes, network.eval())


def _from_folder(folder: Path, device: str | torch.device) -> nn.Module:
    spec = read_spec(folder / SPEC)
    try:
        recipe, data_shape = Classifier(**spec["classifier"]), tuple(spec["data_shape"])
        network = _built(recipe, data_shape, spec["num_classes"])
    except (KeyError, TypeError) as error:
        raise SpecError(f"{folder / SPEC} describes no classifier: {error}") from error
    network.to_empty(device=device)
    load_weights(network, read_weights(folder / WEIGHTS, spec.get("weights")))
    return network.eval()


def _built(recipe: Classifier, data_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """The network, without memory for its weights."""
    with torch.device("meta"):
        return recipe.build(data_shape, num_classes)
