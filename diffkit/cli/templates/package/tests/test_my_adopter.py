"""A model is read by name, once the package is installed; its step is the library's own."""

from __future__ import annotations

import pytest
import torch

import diffkit


class Model:
    sigmas = torch.linspace(0.01, 10.0, 50)

    def denoise(self, x, sigma):
        return x / (1 + sigma.view(-1, 1, 1, 1) ** 2)


def test_it_is_adopted():
    system = diffkit.adopt(Model(), reader="my_part", data_shape=(1, 4, 4))
    assert system.sample(2, steps=3, progress=False).shape == (2, 1, 4, 4)


def test_another_object_is_refused():
    with pytest.raises(diffkit.OptionError, match="adopt the model that has both"):
        diffkit.adopt(object(), reader="my_part", data_shape=(1, 4, 4))
