"""Codecs with one mistake each."""

from __future__ import annotations

from typing import ClassVar

import attrs
import torch
from attrs import frozen

from diffkit.options import number
from diffkit.parts.codecs.autoencoder import Autoencoder
from diffkit.parts.codecs.standardize import Standardize
from diffkit.protocols import Codec
from mutants import Mutant


@frozen
class Asinh(Codec):
    """A curve, written out."""

    elementwise: ClassVar[bool] = True
    scale: float = number(0.5)

    def encode(self, x):
        return (x / self.scale).asinh()

    def decode(self, z):
        return z.sinh() * self.scale

    def log_det(self, x):
        return -0.5 * (x.square() + self.scale**2).log().flatten(1).sum(1)


@frozen
class HalfTheSize(Asinh):
    """Says that there is one latent less."""

    def latent_shape(self, data_shape):
        return (*data_shape[:-1], data_shape[-1] - 1)


@frozen
class Shortened(Asinh):
    """Ends in float32."""

    def decode(self, z):
        return Asinh.decode(self, z).float()


@frozen
class Unscaled(Asinh):
    """Forgets the scale on the way back."""

    def decode(self, z):
        return z.sinh()


@frozen
class Rounded(Asinh):
    """Loses digits, and says it does not."""

    def encode(self, x):
        z = Asinh.encode(self, x)
        return z + ((64 * z).round() / 64 - z).detach()


@frozen
class OtherSign(Asinh):
    """The volume of decoding."""

    def log_det(self, x):
        return -Asinh.log_det(self, x)


@frozen
class OfTheBatch(Asinh):
    """One number for the batch."""

    def log_det(self, x):
        return Asinh.log_det(self, x).mean().expand(len(x))


@frozen
class Straight(Asinh):
    """A curve that is declared as a line."""

    affine: ClassVar[bool] = True


@frozen
class Neighbours(Asinh):
    """Adds the value before each, and says that values stay apart."""

    def encode(self, x):
        z = Asinh.encode(self, x).flatten(1)
        return torch.cat([z[:, :1], z[:, 1:] + z[:, :-1]], 1).view_as(x)

    def decode(self, z):
        rows = list(z.flatten(1).unbind(1))
        for i in range(1, len(rows)):
            rows[i] = rows[i] - rows[i - 1]
        return Asinh.decode(self, torch.stack(rows, 1).view_as(z))


@frozen
class Centred(Asinh):
    """Less the mean of the batch."""

    def encode(self, x):
        return Asinh.encode(self, x - x.mean())


@frozen
class InPlace(Asinh):
    """Divides its argument."""

    def encode(self, x):
        return x.div_(self.scale).asinh()


@frozen
class Looks(Asinh):
    """Reads a value."""

    def encode(self, x):
        return Asinh.encode(self, x) if float(x.max()) < 1e9 else x


@frozen
class MeanOfMeans(Standardize):
    """Weighs batches alike."""

    def measure(self, batches):
        parts = [Standardize().measure([x]) for x in batches]
        mean = torch.tensor([part.mean for part in parts]).mean(0)
        own = {"mean": tuple(mean.tolist()), "std": parts[0].std}
        return attrs.evolve(self, **{name: value for name, value in own.items() if getattr(self, name) is None})


@frozen
class Remeasured(Standardize):
    """Forgets what was given."""

    def measure(self, batches):
        found = Standardize().measure(batches)
        return attrs.evolve(self, mean=found.mean, std=found.std)


@frozen
class ScaledMean(Autoencoder):
    """Scales the mean alone."""

    def moments(self, x, module):
        mean, log_variance = self.raw_moments(x, module).chunk(2, 1)
        return torch.cat([self.scale * (mean - self.shift), log_variance], 1)


@frozen
class Mirrored(Autoencoder):
    """Latents from right to left, which are declared to be in their places."""

    def moments(self, x, module):
        return Autoencoder.moments(self, x, module).flip(-1)

    def decode(self, z, module):
        return Autoencoder.decode(self, z.flip(-1), module)


SMALL = dict(channels=(4, 4), latent_channels=2, scale=0.5, shift=0.1)

MUTANTS = [
    Mutant("codec", ScaledMean(**SMALL), Autoencoder(**SMALL), "latents_are_drawn", "log-variance"),
    Mutant("codec", Mirrored(**SMALL), Autoencoder(**SMALL), "spatial_as_declared", "the corner"),
    Mutant("codec", HalfTheSize(), Asinh(), "shapes_as_declared", "latents"),
    Mutant("codec", Shortened(), Asinh(), "shapes_as_declared", "float64"),
    Mutant("codec", Unscaled(), Asinh(), "decode_inverts_encode", "the data"),
    Mutant("codec", Rounded(), Asinh(), "decode_inverts_encode", "the data"),
    Mutant("codec", OtherSign(), Asinh(), "log_det_is_that_of_encode", "log |det J|"),
    Mutant("codec", OfTheBatch(), Asinh(), "log_det_is_that_of_encode", "log |det J|"),
    Mutant("codec", Straight(), Standardize(), "affine_as_declared", "the mean of the data"),
    Mutant("codec", Neighbours(), Asinh(), "elementwise_as_declared", "place 1 alone"),
    Mutant("codec", Centred(), Asinh(), "rows_alone", "latents of one alone"),
    Mutant("codec", InPlace(), Asinh(), "pure", "again"),
    Mutant("codec", Looks(), Asinh(), "pure", "value"),
    Mutant("codec", MeanOfMeans(), Standardize(), "measured_on_any_batches", "other batches"),
    Mutant("codec", Remeasured(), Standardize(), "measured_on_any_batches", "given options"),
]
RIGHT = [
    ("codec", Autoencoder(**SMALL)),
    ("codec", Asinh()),
    ("codec", Standardize(per="whole")),
    ("codec", Standardize(mean=(1, 2, 3), std=2)),
]
