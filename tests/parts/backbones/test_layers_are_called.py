"""Every layer of every built-in network is called, so that hooks, adapters and replacements act and train."""

import pytest
import torch
from backbone_support import NETWORKS, Case
from torch import Tensor, nn
from torch.nn.utils import parametrize


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
