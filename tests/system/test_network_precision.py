"""Networks in any precision: what goes in is cast at the denoiser's boundary, and what comes out is cast back."""

from __future__ import annotations

import pytest
import torch
from networks import Tiny
from torch import nn

import diffkit
from diffkit.guidance import Autoguidance, ClassifierGuidance
from diffkit.tensors import precision_of

SHAPE = (3, 8, 8)
UNET = ("unet", dict(channels=32, channel_mult=(1,), num_res_blocks=1, attention_resolutions=(), num_classes=3))
DIT = ("dit", dict(patch=4, depth=1, hidden=16, heads=2, num_classes=3))
MLP = ("mlp", dict(hidden=16, depth=1, num_classes=3))
DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


def system_of(backbone, **more):
    torch.manual_seed(0)
    system = diffkit.compose(schedule="cosine", backbone=backbone, data_shape=SHAPE, num_steps=20, **more).eval()
    for weight in system.parameters():
        nn.init.normal_(weight, std=0.1)
    return system


@pytest.mark.parametrize("backbone", [UNET, DIT, MLP], ids=lambda b: b[0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_built_in_networks_sample_and_score_in_any_precision(backbone, dtype):
    system, y, x = system_of(backbone), [0, 1], torch.rand(2, *SHAPE) * 2 - 1
    call = dict(steps=4, seed=3, y=y, progress=False)
    wanted, bound = system.sample(2, **call), system.bits_per_dim(x, steps=4, seed=3, y=torch.tensor(y)).total
    system = system.to(dtype)
    found = system.sample(2, **call)
    assert found.dtype == torch.float32
    # bfloat16 keeps 8 bits and 4 steps add up; a wrong time or a network left out would be off by more than 1
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.1)
    torch.testing.assert_close(system.bits_per_dim(x, steps=4, seed=3, y=y).total, bound, rtol=0.05, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("data", [torch.float32, torch.float64], ids=str)
def test_training_has_the_precision_of_the_data(dtype, data):
    system = system_of(UNET).to(dtype)
    x, level, noise = torch.zeros(2, *SHAPE, dtype=data), torch.tensor([3, 20]), torch.ones(2, *SHAPE, dtype=data)
    terms = system.loss_terms(None, x, level, noise, y=torch.tensor([0, 2]))
    assert terms["loss"].dtype == data
    terms["loss"].mean().backward()
    assert all(weight.grad is not None and weight.grad.dtype == dtype for weight in system.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_the_flow_goes_through_any_precision(dtype):
    pytest.importorskip("torchdiffeq")
    from diffkit.likelihood import ode_likelihood

    system, x = system_of(("mlp", dict(hidden=16, depth=1)), bins=None).to(dtype), torch.zeros(2, *SHAPE)
    found = ode_likelihood(system, x, method="euler", options={"step_size": 1.0}, rtol=1e-2, atol=1e-2)
    assert found.bits.isfinite().all()


class Noting(Tiny):
    """Notes what it is given."""

    def forward(self, x, time, context=None, y=None):
        self.given = [v if v is None else v.dtype for v in (x, time, context, y)]
        return super().forward(x, time)


@pytest.mark.parametrize(
    ("data", "network", "time"),
    [
        (torch.float32, torch.float32, torch.float32),
        (torch.float32, torch.bfloat16, torch.float32),
        (torch.float32, torch.float64, torch.float64),
        (torch.float64, torch.float32, torch.float32),
        (torch.float64, torch.float64, torch.float64),
        (torch.float64, torch.float16, torch.float32),
    ],
    ids=str,
)
def test_a_network_is_given_its_own_precision_and_whole_times(data, network, time):
    noting = Noting(3, 3).to(network)
    system = diffkit.compose(schedule="cosine", backbone=noting, data_shape=SHAPE)
    out = system.sample(
        2, steps=2, start=torch.zeros(2, *SHAPE, dtype=data), context=torch.zeros(2, 5), y=[0, 1], progress=False
    )
    assert out.dtype == data and noting.given == [network, time, network, torch.int64]


def test_guidance_calls_another_network_in_its_own_precision():
    noting = Noting(3, 3).bfloat16()
    system_of(Tiny(3, 3)).sample(2, steps=2, guidance=Autoguidance(noting, 2.0), progress=False)
    assert noting.given[:2] == [torch.bfloat16, torch.float32]


def test_the_precision_is_that_of_the_first_weight_that_is_computed_with():
    network = nn.ParameterList([nn.Parameter(torch.zeros(2, dtype=torch.int8), requires_grad=False)])
    assert precision_of(network) is None and precision_of(lambda x, time: x) is None
    network.append(nn.Parameter(torch.zeros(2, dtype=torch.float8_e4m3fn), requires_grad=False))
    network.append(torch.zeros(2, dtype=torch.bfloat16))
    assert precision_of(network) == torch.bfloat16


def test_a_classifier_is_called_in_its_own_precision():
    class Telling(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, 3, dtype=torch.bfloat16))

        def forward(self, x, time):
            self.given = x.dtype, time.dtype
            return x.mean((2, 3)) @ self.weight

    telling = Telling()
    call = dict(steps=2, y=[0, 1], seed=0, progress=False)
    for shift in ("score", "mean"):
        guidance = ClassifierGuidance(telling, scale=1.0, shift=shift, label="y")
        assert system_of(Noting(3, 3)).sample(2, guidance=guidance, **call).dtype == torch.float32
        assert telling.given == (torch.bfloat16, torch.float32)
