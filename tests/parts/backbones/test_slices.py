"""Large batches are evaluated in slices on a CPU, and nothing but memory and time shows it."""

from __future__ import annotations

import pytest
import torch

from diffkit.parts.backbones import _slices
from diffkit.registry import registry

NETWORKS = {
    "unet": ((3, 8, 8), dict(channels=8, num_res_blocks=1, channel_mult=(1, 2), groups=4, num_classes=3)),
    "dit": ((3, 8, 8), dict(hidden=16, depth=2, heads=2, patch=2, num_classes=3)),
}
BATCH, ROWS = 11, 4


@pytest.fixture(params=NETWORKS)
def network(request, monkeypatch):
    """A network in eval mode with random weights, of which slices hold `ROWS` examples."""
    shape, options = NETWORKS[request.param]
    monkeypatch.setattr(_slices, "SLICE_BYTES", 0)
    monkeypatch.setattr(_slices, "MIN_ROWS", ROWS)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    torch.manual_seed(0)
    built = registry("backbone").create(request.param, **options).build(shape, 3)
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return built.eval()


def sizes(network, *, time: int = BATCH) -> tuple[torch.Tensor, list[int]]:
    """The output for `BATCH` examples, and the number of examples in each evaluation."""
    generator = torch.Generator().manual_seed(0)
    x, times = torch.randn(BATCH, 3, 8, 8, generator=generator), 1000 * torch.rand(time, generator=generator)
    seen = []
    evaluate = network._evaluate  # what a slice is given cannot be seen from outside: hooks end the slicing
    network._evaluate = lambda x, emb, *rest: seen.append(len(x)) or evaluate(x, emb, *rest)
    try:
        return network(x, times.expand(time) if time > 1 else times[0], y=torch.arange(BATCH) % 3), seen
    finally:
        del network._evaluate


@pytest.mark.parametrize("time", [BATCH, 1])
def test_slices_are_the_whole(network, time):
    whole, together = sizes(network, time=time)
    with torch.no_grad():
        sliced, apart = sizes(network, time=time)
    assert together == [BATCH] and apart == [ROWS, ROWS, BATCH - 2 * ROWS]
    torch.testing.assert_close(sliced, whole.detach(), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_a_hook_and_training_mode_see_all_examples(network):
    layer = next(layer for layer in network.modules() if isinstance(layer, torch.nn.Linear))
    handle = layer.register_forward_hook(lambda *given: None)
    assert sizes(network)[1] == [BATCH]
    handle.remove()
    assert len(sizes(network)[1]) == 3
    assert sizes(network.train())[1] == [BATCH]
