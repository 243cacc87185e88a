"""Feature networks with one mistake each."""

from __future__ import annotations

import torch
from torch import nn

from diffkit.evaluation.features import Features
from mutants import Mutant


class Blocks(nn.Module):
    """A normalized convolution and the mean of its maps."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())

    def forward(self, images):
        return self.layers(images).mean((2, 3))


class MeanOfAll(Blocks):
    """A mean over the batch too."""

    def forward(self, images):
        return super().forward(images).mean(0, keepdim=True)


class LogOfNothing(Blocks):
    def forward(self, images):
        return super().forward(images).mul(0).log()


class Trained(Blocks):
    """Normalized by the batch."""

    def eval(self):
        return self


class Drawn(Blocks):
    """Noise at each call."""

    def forward(self, images):
        found = super().forward(images)
        return found + torch.randn_like(found)


class InPlace(Blocks):
    def forward(self, images):
        return super().forward(images.mul_(0.5))


class Own:
    """An extractor of its own, whose identity is right."""

    name = "own"

    def __init__(self):
        self.network = Blocks().eval()

    @property
    def identity(self):
        return {"extractor": self.name, "sum": sum(float(each.detach().sum()) for each in self.network.parameters())}

    def __call__(self, images):
        return Features(self.network(images))


class IdentityOfTensors(Own):
    @property
    def identity(self):
        return dict(self.network.state_dict())


class NameAlone(Own):
    @property
    def identity(self):
        return {"extractor": self.name}


MUTANTS = [
    Mutant("extractor", MeanOfAll(), Blocks(), "a_row_for_each_image", "(3, D)"),
    Mutant("extractor", LogOfNothing(), Blocks(), "a_row_for_each_image", "finite pool"),
    Mutant("extractor", Trained(), Blocks(), "each_image_on_its_own", "pool of image"),
    Mutant("extractor", Drawn(), Blocks(), "same_images_same_features", "the same features again"),
    Mutant("extractor", InPlace(), Blocks(), "same_images_same_features", "images unchanged"),
    Mutant("extractor", IdentityOfTensors(), Own(), "identity_is_plain", "JSON"),
    Mutant("extractor", NameAlone(), Own(), "identity_follows_the_weights", "another identity"),
]
