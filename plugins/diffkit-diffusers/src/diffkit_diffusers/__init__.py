"""diffusers and diffkit, each in terms of the other.

Parts, found by name: schedule "diffusers_betas", spacing "diffusers", samplers "diffusers_ddim", "diffusers_multistep",
"diffusers_singlestep", "diffusers_unipc", "diffusers_pndm", "diffusers_lcm" and "diffusers_tcd", backbones
"diffusers_unet2d" and "diffusers_dit".
Functions: `from_scheduler_config`, `to_scheduler_config`, `open_pipeline`, `write_pipeline`. `DiffkitScheduler`: any
diffkit sampler as a scheduler of diffusers. What needs diffusers imports it when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffkit_diffusers.backbones import DiffusersDiT as DiffusersDiT
    from diffkit_diffusers.backbones import DiffusersUNet2D as DiffusersUNet2D
    from diffkit_diffusers.backbones import DiffusersUNet2DCondition as DiffusersUNet2DCondition
    from diffkit_diffusers.betas import DiffusersBetas as DiffusersBetas
    from diffkit_diffusers.ddim import DiffusersDDIM as DiffusersDDIM
    from diffkit_diffusers.lcm import DiffusersLCM as DiffusersLCM
    from diffkit_diffusers.multistep import DiffusersMultistep as DiffusersMultistep
    from diffkit_diffusers.pipelines import open_pipeline as open_pipeline
    from diffkit_diffusers.pipelines import write_pipeline as write_pipeline
    from diffkit_diffusers.pndm import DiffusersPNDM as DiffusersPNDM
    from diffkit_diffusers.reading import SchedulerReading as SchedulerReading
    from diffkit_diffusers.reading import from_scheduler_config as from_scheduler_config
    from diffkit_diffusers.scheduler import DiffkitScheduler as DiffkitScheduler
    from diffkit_diffusers.singlestep import DiffusersSinglestep as DiffusersSinglestep
    from diffkit_diffusers.spacing import DiffusersSpacing as DiffusersSpacing
    from diffkit_diffusers.tcd import DiffusersTCD as DiffusersTCD
    from diffkit_diffusers.unipc import DiffusersUniPC as DiffusersUniPC
    from diffkit_diffusers.writing import to_scheduler_config as to_scheduler_config

_HOME = {
    "DiffkitScheduler": "scheduler",
    "DiffusersBetas": "betas",
    "DiffusersDDIM": "ddim",
    "DiffusersDiT": "backbones",
    "DiffusersLCM": "lcm",
    "DiffusersMultistep": "multistep",
    "DiffusersPNDM": "pndm",
    "DiffusersSinglestep": "singlestep",
    "DiffusersSpacing": "spacing",
    "DiffusersTCD": "tcd",
    "DiffusersUNet2D": "backbones",
    "DiffusersUNet2DCondition": "backbones",
    "DiffusersUniPC": "unipc",
    "SchedulerReading": "reading",
    "from_scheduler_config": "reading",
    "open_pipeline": "pipelines",
    "to_scheduler_config": "writing",
    "write_pipeline": "pipelines",
}
__all__ = [
    "DiffkitScheduler",
    "DiffusersBetas",
    "DiffusersDDIM",
    "DiffusersDiT",
    "DiffusersLCM",
    "DiffusersMultistep",
    "DiffusersPNDM",
    "DiffusersSinglestep",
    "DiffusersSpacing",
    "DiffusersTCD",
    "DiffusersUNet2D",
    "DiffusersUNet2DCondition",
    "DiffusersUniPC",
    "SchedulerReading",
    "from_scheduler_config",
    "open_pipeline",
    "to_scheduler_config",
    "write_pipeline",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'diffkit_diffusers' has no attribute {name!r}")
    return getattr(importlib.import_module(f"diffkit_diffusers.{_HOME[name]}"), name)
