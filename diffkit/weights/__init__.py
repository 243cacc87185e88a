"""Public checkpoints in and out: improved-diffusion, guided-diffusion with its classifiers, and DiT.

    system = diffkit.load_checkpoint("cifar10_uncond_50M_500K.pt", preset="iddpm/cifar10-uncond")
    diffkit.weights.export(system, "cifar10.safetensors")

Files are read without running anything that is in them.
"""

from __future__ import annotations

from diffkit.system.codec_files import save_codec
from diffkit.weights._classifiers import import_classifier, is_classifier, load_classifier
from diffkit.weights._export import export
from diffkit.weights._load import Identity, identify, load_checkpoint
from diffkit.weights._merge import merged
from diffkit.weights._partial_load import Loaded, load_matching
from diffkit.weights._peft import export_peft

__all__ = [
    "Identity",
    "Loaded",
    "export",
    "export_peft",
    "identify",
    "import_classifier",
    "is_classifier",
    "load_checkpoint",
    "load_classifier",
    "load_matching",
    "merged",
    "save_codec",
]
