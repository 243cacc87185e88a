"""A perceptron for points and tiny images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from attrs import frozen

from diffkit.options import flag, integer
from diffkit.parts.backbones._labels import label_count, null_conditions
from diffkit.protocols import ConditionalBackbone, SelfConditionedBackbone, TwoTimeBackbone
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import nn


@registry("backbone").register("mlp")
@frozen
class MLP(ConditionalBackbone, SelfConditionedBackbone, TwoTimeBackbone):
    """Residual perceptron on flattened data, for points in the plane and tiny images.

    Data of any shape is taken, (2,) included, but its size is fixed once built.

    Attributes:
        hidden: Width of every layer and of the time embedding.
        depth: Number of residual layers.
        num_classes: Number of classes; the network then needs ``y``. None or 0 for none.
        null_class: Add a label "no class", with index num_classes, for classifier-free guidance.
        times: 1, or 2 for a network that is also given the time that a step goes to, as losses and samplers of flow
            maps need it. Weights of a network of one time load, and compute what they did.
        self_condition: The network also reads its own estimate of x_start from the call before, as Chen et al. 2022,
            arXiv:2208.04202, section 3.3: training gives half of the examples one, by another pass without gradient.
    Source: the residual layers are those of He et al. 2016, arXiv:1603.05027, with layer norm; conditioning is added
        between the two linear maps, as in Ho et al. 2020, arXiv:2006.11239, appendix B.
    """

    hidden: int = integer(128, ge=1)
    depth: int = integer(3, ge=1, le=10_000)
    num_classes: int | None = integer(None, optional=True, ge=0)
    null_class: bool = flag(False)
    times: int = integer(1, ge=1, le=2)
    self_condition: bool = flag(False)

    def __attrs_post_init__(self) -> None:
        """Raise `OptionError` for options without effect."""
        label_count(self.num_classes, self.null_class)

    def null_conditions(self) -> Mapping[str, Any] | None:
        """Return the null class."""
        return null_conditions(self.num_classes, self.null_class)

    def count_classes(self) -> int:
        """Return the number of classes."""
        return self.num_classes or 0

    def build(self, data_shape: tuple[int, ...], out_channels: int) -> nn.Module:
        """Return the network, ``forward(x, time, y=None)``."""
        from diffkit.parts.backbones._mlp import MLPNetwork

        num_labels = label_count(self.num_classes, self.null_class)
        sizes = {"width": self.hidden, "depth": self.depth, "num_labels": num_labels}
        return MLPNetwork(data_shape, out_channels, **sizes, times=self.times, self_condition=self.self_condition)
