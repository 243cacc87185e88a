"""Write the adapter of a system as the package peft does: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

from pathlib import Path

from diffkit.errors import OptionError
from diffkit.parts.adapters.lora import LoRA
from diffkit.runtime.files import new_file, unwrap_module
from diffkit.runtime.publishing import new_folder
from diffkit.runtime.strict_json import readable_json
from diffkit.runtime.weights_files import write_weights
from diffkit.system.attached import adapter_of
from diffkit.system.module import System

_OURS, _THEIRS = ".parametrizations.weight.0.", "base_model.model."


def export_peft(system: System, folder: str | Path) -> Path:
    """Write the LoRA of a system as peft does; ``PeftModel.from_pretrained(network, folder)`` reads it.

    Args:
        system: A system with the adapter "lora"; the network is that of its base, without an adapter.
        folder: Created if missing.
    Returns:
        The folder.
    Raises:
        OptionError: The system has no such adapter.
    """
    attached, folder = adapter_of(system.network), Path(folder)
    if system.network is None or attached is None or not isinstance(attached.adapter, LoRA):
        raise OptionError("the system has no adapter 'lora', which is all that peft's files can hold here")
    tensors = {
        f"{_THEIRS}{name.replace(_OURS, '.')}.weight": tensor.detach()
        for name, tensor in unwrap_module(system.network).state_dict().items()
    }
    part = attached.adapter
    layers = sorted({name.partition(_OURS)[0] for name in attached.own})
    config = {
        "peft_type": "LORA",
        "r": part.r,
        "lora_alpha": part.alpha or part.r,
        "target_modules": layers,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "task_type": None,
        "base_model_name_or_path": attached.base,
    }
    with new_folder(folder) as work:
        (work / "adapter_config.json").write_text(readable_json(config), encoding="utf-8")
        with new_file(work / "adapter_model.safetensors") as file:
            write_weights(file, tensors)
    return folder
