"""A DDPMPipeline's folder opened as a System, and a System written as one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import numpy as np

import diffkit
from diffkit import OptionError
from diffkit.registry.resolve import Slot
from diffkit_diffusers.backbones import DiffusersUNet2D
from diffkit_diffusers.betas import DiffusersBetas
from diffkit_diffusers.networks import LabelledNetwork
from diffkit_diffusers.reading import MEANS, from_scheduler_config

PIPELINES = ("DDPMPipeline", "DDIMPipeline")


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
    reading = from_scheduler_config(folder / "scheduler")
    sides = config["sample_size"]
    data_shape = (config["in_channels"], *((sides, sides) if isinstance(sides, int) else sides))
    system = reading.compose(**{"backbone": _recipe(config), "data_shape": data_shape} | slots)
    if isinstance(system.network, LabelledNetwork):
        system.network.model.load_state_dict(model.state_dict())
    return system.eval()


def write_pipeline(system: diffkit.System, folder: str | Path, *, sampler: Slot = None) -> Path:
    """Write a system as a DDPMPipeline that ``DDPMPipeline.from_pretrained`` opens.

    Args:
        system: Its network must be one of diffusers (backbone="diffusers_unet2d").
        folder: Made if it is not there.
        sampler: Keep this sampler, in a `DiffkitScheduler`: opening the folder then needs this package. None writes a
            DDPMScheduler, which anybody has.
    Returns:
        The folder.
    Raises:
        OptionError: The system has something that no DDPMPipeline has; every such thing is listed.
    """
    from diffusers import DDPMPipeline, DDPMScheduler

    from diffkit_diffusers.scheduler import DiffkitScheduler

    problems = list(_network_problems(system)) + ([] if sampler is not None else list(_scheduler_problems(system)))
    if problems:
        raise OptionError("\n  ".join(["this system cannot be written as a DDPMPipeline:", *problems]))
    scheduler = (
        DDPMScheduler(**_scheduler_config(system))
        if sampler is None
        else DiffkitScheduler.from_system(system, sampler=sampler)
    )
    assert isinstance(system.network, LabelledNetwork)
    folder = Path(folder)
    DDPMPipeline(unet=system.network.model, scheduler=scheduler).save_pretrained(folder)
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


def _scheduler_problems(system: diffkit.System) -> list[str]:
    """What a DDPMScheduler cannot say."""
    table, names = system.table, system.parts.names
    times = np.arange(system.num_steps)
    found = []
    if not np.allclose(table.total_std, 1, atol=1e-12):
        found.append(f"schedule {names['schedule']!r} does not preserve the variance; pass sampler=")
    if not np.allclose(table.time[1:], times, atol=1e-9):
        found.append("the network is conditioned on other times than 0, 1, ..., T - 1; pass sampler=")
    if names["mean"] not in MEANS.values():
        found.append(f"mean {names['mean']!r} is none of {', '.join(MEANS.values())}; pass sampler=")
    if names["var"] not in ("fixed_small", "fixed_large", "learned_range"):
        found.append(f"var {names['var']!r} is none of fixed_small, fixed_large, learned_range; pass sampler=")
    return found


def _scheduler_config(system: diffkit.System) -> dict[str, Any]:
    schedule, names = system.parts.schedule, system.parts.names
    config: dict[str, Any] = {
        "num_train_timesteps": system.num_steps,
        "prediction_type": {mean: prediction for prediction, mean in MEANS.items()}[names["mean"]],
        "variance_type": names["var"],
        "clip_sample": system.settings.clip_x_start,
    }
    plain = isinstance(schedule, DiffusersBetas) and system.settings.train_spacing is None
    if isinstance(schedule, DiffusersBetas) and plain and not schedule.smallest_alpha_bar:
        config |= {
            "beta_start": schedule.beta_start,
            "beta_end": schedule.beta_end,
            "beta_schedule": schedule.beta_schedule,
            "trained_betas": None if schedule.trained_betas is None else list(schedule.trained_betas),
            "rescale_betas_zero_snr": schedule.rescale_zero_snr,
        }
    else:
        config["trained_betas"] = system.table.beta[1:].tolist()
    return config
