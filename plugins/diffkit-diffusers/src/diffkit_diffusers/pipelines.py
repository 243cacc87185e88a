"""A DDPMPipeline's folder opened as a System, and a System written as one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs

import diffkit
from diffkit import OptionError
from diffkit.registry.resolve import Slot
from diffkit_diffusers.backbones import DiffusersUNet2D
from diffkit_diffusers.networks import LabelledNetwork
from diffkit_diffusers.reading import from_scheduler_config
from diffkit_diffusers.schedulers import SCALES_INPUT
from diffkit_diffusers.writing import to_scheduler_config

PIPELINES = {"DDPMPipeline": 1000, "DDIMPipeline": 50}
"""The pipelines that can be opened, and how many steps they take by default."""


def open_pipeline(folder: str | Path, **slots: Any) -> diffkit.System:
    """Return the system in the folder of an unconditional pipeline of diffusers, with its weights.

    Args:
        folder: As ``save_pretrained`` wrote it: model_index.json, unet/, scheduler/. Weights must be safetensors.
        slots: Anything `diffkit.compose` takes, in place of what the folder says.
    Raises:
        OptionError: It is not the folder of such a pipeline, or holds what diffkit cannot do.
    """
    from diffusers import UNet2DModel

    folder = Path(folder)
    index = _json(folder / "model_index.json")
    if index.get("_class_name") not in PIPELINES:
        raise OptionError(
            f"{folder} holds a pipeline of class {index.get('_class_name')!r}; these can be opened: "
            f"{', '.join(PIPELINES)}"
        )
    config = _json(folder / "unet" / "config.json")
    if config.get("_class_name") != "UNet2DModel":
        raise OptionError(f"{folder} has a network of class {config.get('_class_name')!r}; UNet2DModel can be opened")
    try:
        model = UNet2DModel.from_pretrained(folder / "unet", use_safetensors=True, local_files_only=True)
    except OSError as error:
        raise OptionError(f"{folder} has no weights that can be read; they must be safetensors: {error}") from error
    reading = from_scheduler_config(folder / "scheduler", steps=PIPELINES[index["_class_name"]])
    sides = config["sample_size"]
    data_shape = (config["in_channels"], *((sides, sides) if isinstance(sides, int) else sides))
    system = reading.compose(**{"backbone": _recipe(config), "data_shape": data_shape} | slots)
    if isinstance(system.network, LabelledNetwork):
        system.network.model.load_state_dict(model.state_dict())
    return system.eval()


def write_pipeline(system: diffkit.System, folder: str | Path, *, sampler: Slot = None) -> Path:
    """Write a system as a pipeline that ``DiffusionPipeline.from_pretrained`` opens.

    That is a DDIMPipeline for a DDIMScheduler, and a DDPMPipeline for other schedulers.

    Args:
        system: Its network must be one of diffusers (backbone="diffusers_unet2d").
        folder: Made if it is not there.
        sampler: Write this sampler, in a `DiffkitScheduler`: opening the folder then needs this package. None writes
            the scheduler that has the system's own sampler, which anybody has.
    Returns:
        The folder.
    Raises:
        OptionError: The system has something that no such pipeline has; every such thing is listed.
    """
    import diffusers

    from diffkit_diffusers.scheduler import DiffkitScheduler

    problems, config = list(_network_problems(system)), {}
    if sampler is None:
        try:
            config = to_scheduler_config(system)
        except OptionError as error:
            problems += [line.strip() for line in str(error).splitlines()[1:]]
        if config.get("_class_name") in SCALES_INPUT:
            problems.append(f"a pipeline does not scale the input as {config['_class_name']} needs; pass sampler=")
    if problems:
        raise OptionError("\n  ".join(["this system cannot be written as a pipeline of diffusers:", *problems]))
    name = config.pop("_class_name", None)
    scheduler = (
        DiffkitScheduler.from_system(system, sampler=sampler) if name is None else getattr(diffusers, name)(**config)
    )
    pipeline = diffusers.DDIMPipeline if name == "DDIMScheduler" else diffusers.DDPMPipeline
    assert isinstance(system.network, LabelledNetwork)
    folder = Path(folder)
    pipeline(unet=system.network.model, scheduler=scheduler).save_pretrained(folder)
    return folder


def _json(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OptionError(f"{file} cannot be read as JSON: {error}") from error
    return content


def _recipe(config: dict[str, Any]) -> DiffusersUNet2D:
    names = [f.name for f in attrs.fields(DiffusersUNet2D)]
    return DiffusersUNet2D(**{name: config[name] for name in names if name in config})


def _network_problems(system: diffkit.System) -> list[str]:
    if isinstance(system.parts.backbone, DiffusersUNet2D):
        return []
    return [f"backbone {system.parts.names['backbone']!r} is no UNet2DModel; compose with backbone='diffusers_unet2d'"]
