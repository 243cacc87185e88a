"""Sharded checkpoint files: names of the shards that several processes write, and how to join them.

A tensor that is split has its rows 0..a-1 in the file of rank 0, the next in that of rank 1, and so on; joining is
concatenation. So any number of processes can resume from the files of any other number, and every file is an ordinary
safetensors file.

    model.safetensors                        one file
    model-00001-of-00002.safetensors         two shards
    model-00002-of-00002.safetensors
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_SHARD = re.compile(r"(.+)-(\d{5})-of-\d{5}")


def shard_name(name: str, rank: int, size: int) -> str:
    """Return the name of one process's shard of a file."""
    return f"{name}-{rank + 1:05d}-of-{size:05d}"


def whole_name(name: str) -> str:
    """Return the name of the file that a shard belongs to."""
    match = _SHARD.fullmatch(name)
    return match[1] if match else name


def join_shards(files: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """Return files whose shards are joined: a tensor of several shards is concatenated along its first axis."""
    parts: dict[str, dict[str, list[Tensor]]] = {}
    for full in sorted(files):
        tensors = parts.setdefault(whole_name(full), {})
        for key, value in files[full].items():
            tensors.setdefault(key, []).append(value)
    return {
        name: {key: values[0] if len(values) == 1 else torch.cat(values) for key, values in tensors.items()}
        for name, tensors in parts.items()
    }
