"""A network that the machine cannot hold is refused before its memory is taken."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import diffkit
from diffkit.errors import OptionError
from diffkit.system.building import MOST_TENSORS, bounded

HUGE = [
    dict(backbone=("mlp", {"hidden": 10**9})),
    dict(backbone=("mlp", {"hidden": 2**40})),
    dict(backbone=("mlp", {"hidden": 2**63})),
    pytest.param(dict(backbone=("mlp", {"depth": 10_000, "hidden": 1})), marks=pytest.mark.slow),
    dict(backbone=("mlp", {"num_classes": 10**12})),
    dict(backbone=("unet", {"channels": 32 * 10**8}), data_shape=(3, 32, 32)),
    pytest.param(
        dict(backbone=("unet", {"num_res_blocks": 1000, "channels": 32}), data_shape=(3, 32, 32)),
        marks=pytest.mark.slow,
    ),
    dict(backbone=("dit", {"hidden": 2**31, "heads": 1}), data_shape=(3, 32, 32)),
]


@pytest.mark.parametrize("asked", HUGE, ids=str)
def test_a_network_that_is_too_large_is_refused_at_once(asked):
    with pytest.raises(OptionError, match=r"the network (needs|has) .*; use one that is (smaller|less deep)"):
        diffkit.compose(**(dict(data_shape=(2,), bins=None) | asked))


def test_counting_ends_with_the_block():
    with bounded(None):
        nn.Linear(2, 2)
    layers = [nn.Module() for _ in range(2)]
    with pytest.raises(OptionError, match=f"more than {MOST_TENSORS} weights"), bounded(torch.device("meta")):
        for i in range(MOST_TENSORS + 1):
            layers[0].register_parameter(f"p{i}", nn.Parameter(torch.empty(0, device="meta")))
    for i in range(MOST_TENSORS + 1):
        layers[1].register_parameter(f"p{i}", nn.Parameter(torch.empty(0, device="meta")))


def test_other_errors_of_a_recipe_are_its_own():
    with pytest.raises(RuntimeError, match="not mine"), bounded(None):
        raise RuntimeError("not mine")
