"""Every layer of every built-in network is called, so that hooks, adapters and replacements act and train."""

from collections.abc import Callable

import pytest
import torch
from backbone_support import inputs, randomize
from torch import Tensor, nn
from torch.nn.utils import parametrize

from diffkit.backbones.dit import DiT
from diffkit.backbones.mlp import MLP
from diffkit.backbones.unet import UNet
from diffkit.guidance.classifier import Classifier

SMALL = {"channels": 8, "groups": 4, "num_res_blocks": 1, "channel_mult": (1, 2), "num_head_channels": 4}
IMAGE = (2, 8, 8)
NETWORKS = {
    "unet": (UNet(**SMALL, attention_resolutions=(8, 4), num_classes=3), IMAGE),
    "unet without scale and shift": (
        UNet(**SMALL, attention_order="new", scale_shift_norm=False, conv_resample=False, low_res_channels=2),
        IMAGE,
    ),
    "unet resampling in its blocks": (UNet(**SMALL, resblock_updown=True, checkpoint=True, dropout=0.1), IMAGE),
    "unet of sequences": (UNet(**SMALL, num_classes=3, null_class=True), (2, 8)),
    "unet of volumes": (UNet(**SMALL), (2, 3, 4, 4)),
    "dit": (DiT(depth=2, hidden=16, heads=2, num_classes=3), IMAGE),
    "dit without classes": (DiT(depth=1, hidden=16, heads=2, checkpoint=True), IMAGE),
    "mlp": (MLP(hidden=16, depth=2, num_classes=3, null_class=True), (2,)),
    **{f"classifier, {pool}": (Classifier(**SMALL, pool=pool), IMAGE) for pool in ("adaptive", "attention", "spatial")},
    "classifier, spatial_v2": (Classifier(**SMALL, pool="spatial_v2", resblock_updown=True), (2, 8)),
}


class Case:
    """A network with random weights, and what it is called with."""

    def __init__(self, name: str):
        recipe, shape = NETWORKS[name]
        self.network = randomize(recipe.build(shape, 2)).eval()
        self.x, self.time = inputs(shape)
        self.conditions = {"y": torch.tensor([0, 2])} if getattr(self.network, "num_labels", 0) else {}
        if getattr(recipe, "low_res_channels", 0):
            self.conditions["low_res"] = inputs((2, 4, 4), seed=3)[0]

    def __call__(self) -> Tensor:
        return self.network(self.x, self.time, **self.conditions)

    @property
    def layers(self) -> dict[str, nn.Module]:
        """Modules that have parameters of their own."""
        return {n: m for n, m in self.network.named_modules() if any(True for _ in m.parameters(recurse=False))}

    def replace(self, make: Callable[[nn.Module], nn.Module]) -> dict[str, nn.Module]:
        """Put something else in the place of every layer that is a leaf; return it by name."""
        made = {}
        for name, layer in self.layers.items():
            if not any(True for _ in layer.children()):
                parent, _, own = name.rpartition(".")
                made[name] = make(layer)
                setattr(self.network.get_submodule(parent), own, made[name])
        return made


@pytest.fixture(params=NETWORKS)
def case(request) -> Case:
    return Case(request.param)


def _spread(vector: Tensor, out: Tensor, layer: nn.Module) -> Tensor:
    """Values of channels as they meet a layer's output."""
    last = isinstance(layer, nn.Linear | nn.LayerNorm | nn.Embedding)
    return vector if last else vector.view(-1, *(1,) * (out.ndim - 2))


class Adapter(nn.Module):
    """A frozen layer and a trained branch beside it, which hides the layer's attributes."""

    def __init__(self, base: nn.Module):
        super().__init__()
        self.base = base.requires_grad_(False)
        names = ("out_channels", "out_features", "num_channels", "embedding_dim")
        width = next((getattr(base, name) for name in names if hasattr(base, name)), None)
        self.branch = nn.Parameter(torch.linspace(-1, 1, width or base.normalized_shape[0]))

    def forward(self, x: Tensor) -> Tensor:
        out = self.base(x)
        return out + _spread(self.branch, out, self.base)


class Moved(nn.Module):
    """A weight and what is added to it."""

    def __init__(self, like: Tensor):
        super().__init__()
        self.by = nn.Parameter(torch.linspace(-1, 1, like.numel()).view_as(like))

    def forward(self, weight: Tensor) -> Tensor:
        return weight.detach() + self.by


def _check_trains(case: Case, before: Tensor, added: dict[str, Tensor]) -> None:
    out = case()
    assert (out - before).abs().max() > 1e-3
    out.square().sum().backward()
    dead = [name for name, value in added.items() if value.grad is None or not value.grad.abs().max() > 0]
    assert not dead


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # labels have no gradient
def test_hooks_see_and_change_what_every_layer_does(case):
    before, seen, hooks = case().detach(), [], []
    for name, layer in case.layers.items():
        hooks.append(layer.register_forward_pre_hook(lambda layer, given, name=name: seen.append(name)))
        hooks.append(layer.register_forward_hook(lambda layer, given, out, name=name: seen.append(name)))
        hooks.append(layer.register_full_backward_hook(lambda layer, into, out, name=name: seen.append(name)))
    case().square().sum().backward()
    assert all(seen.count(name) >= 3 for name in case.layers)
    for hook in hooks:
        hook.remove()
    with torch.no_grad():
        for name, layer in case.layers.items():
            hook = layer.register_forward_hook(lambda layer, given, out: out * torch.linspace(0.5, 1.5, out.shape[-1]))
            assert (case() - before).abs().max() > 1e-6, name
            hook.remove()


def test_adapters_act_and_train(case):
    before = case().detach()
    adapters = case.replace(Adapter)
    _check_trains(case, before, {name: adapter.branch for name, adapter in adapters.items()})


def test_parametrizations_act_and_train(case):
    before, added = case().detach(), {}
    for name, layer in case.layers.items():
        for key, parameter in list(layer.named_parameters(recurse=False)):
            moved = Moved(parameter)
            parametrize.register_parametrization(layer, key, moved)
            if key != "bias":
                added[f"{name}.{key}"] = moved.by
    _check_trains(case, before, added)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_norms_of_weights_act_and_train(case):
    convolutions = {
        n: m for n, m in case.layers.items() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    }
    before = case().detach()
    for layer in convolutions.values():
        nn.utils.weight_norm(layer)
        with torch.no_grad():
            layer.weight_g.mul_(1.5)
    _check_trains(case, before, {name: layer.weight_g for name, layer in convolutions.items()})


def test_a_replaced_forward_is_called(case):
    called = []
    for name, layer in case.layers.items():

        def forward(*given, of=layer.forward, name=name):
            called.append(name)
            return of(*given)

        layer.forward = forward
    case()
    assert set(called) == set(case.layers)


def test_a_wrapped_block_is_called_as_the_block_was(case):
    """Such as torch.compile and activation checkpointing make them."""

    class Wrapped(nn.Module):
        def __init__(self, inner: nn.Module):
            super().__init__()
            self.inner, self.calls = inner, 0

        def forward(self, *given):
            self.calls += 1
            return self.inner(*given)

    before, wrapped = case().detach(), []
    blocks = [m for m in case.network.modules() if isinstance(m, nn.ModuleList | nn.Sequential)]
    for block in blocks:
        for i, child in enumerate(block):
            block[i] = Wrapped(child)
            wrapped.append(block[i])
    torch.testing.assert_close(case().detach(), before)
    assert all(each.calls for each in wrapped)
