"""What parameters may be trained: those that keep small updates, and that a checkpoint can hold."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from test_training_classifier import noisy
from torch import nn
from training_support import point_system, points, system, train

import diffkit
from diffkit.errors import CheckpointError, OptionError
from diffkit.training import dry_run

LOST = "and lose most updates to rounding; call float() on the system and train with precision="


@pytest.mark.parametrize(("dtype", "precision"), [(torch.bfloat16, "bf16"), (torch.float16, "fp16")], ids=str)
@pytest.mark.parametrize("make", [system, noisy])
def test_short_weights_are_refused_before_the_run_and_the_advice_works(tmp_path, make, dtype, precision):
    short, options = make().to(dtype), dict(label_dropout=0.0, steps=2)
    total = len([*short.parameters()])
    text = f"{total} of the {total} parameters to train are short, such as 'time_embed.0.weight' in "
    text = f"{text}{str(dtype).removeprefix('torch.')}, {LOST}{precision!r}"
    for begin in (lambda: train(tmp_path, system=short, **options), lambda: _tried(short)):
        with pytest.raises(OptionError, match=re.escape(text)):
            begin()
    assert not any(tmp_path.iterdir())
    trained = train(tmp_path, system=short.float(), precision=precision, **options)
    assert {p.dtype for p in trained.parameters()} == {torch.float32}


def _tried(short) -> None:
    from training_support import images

    dry_run(short, images(), steps=2, batch_size=5)


def test_some_short_weights_are_refused_and_named(tmp_path):
    mixed = point_system()
    mixed.network.layers.bfloat16()
    with pytest.raises(OptionError, match=r"8 of the 18 parameters to train .* 'layers.0.norm.weight' in bfloat16"):
        train(tmp_path, system=mixed, data=points(), label_dropout=0.0)


def test_short_weights_that_stay_as_they_are_do_not_matter(tmp_path):
    class Grown(nn.Module):
        """A network in bfloat16, frozen, with trained parameters in float32."""

        def __init__(self):
            super().__init__()
            self.trained = nn.Linear(2, 2)
            self.frozen = nn.Linear(2, 2).bfloat16().requires_grad_(False)

        def forward(self, x, time):
            return self.trained(x) + self.frozen(x.bfloat16()).float()

    grown = point_system(backbone=Grown())
    train(tmp_path, system=grown, data=points(), label_dropout=0.0, steps=2)


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore:.*quantized tensor creation", "ignore::FutureWarning"
)  # of torch.ao itself
def test_quantized_layers_are_refused_and_the_advice_works(tmp_path):
    plain = point_system()
    packed = plain.with_network(
        torch.ao.quantization.quantize_dynamic(copy.deepcopy(plain.network), {nn.Linear}, dtype=torch.qint8)
    )
    options = dict(data=points(), label_dropout=0.0, steps=2)
    with pytest.raises(OptionError, match=r"the network cannot be trained: '.*_packed_params.*' in its state is"):
        train(tmp_path / "packed", system=packed, **options)
    with pytest.raises(CheckpointError, match=r"the network cannot be saved: .* save it as it was before"):
        packed.save(tmp_path / "saved")
    assert not any(tmp_path.iterdir())
    trained = train(tmp_path / "plain", system=plain, **options)
    trained.save(tmp_path / "saved")
    short = torch.ao.quantization.quantize_dynamic(copy.deepcopy(trained), {nn.Linear}, dtype=torch.qint8)
    found = short.sample(4, steps=3, seed=0, progress=False)
    # 8 bits for each weight; a layer left out would be off by more than 1
    torch.testing.assert_close(found, trained.sample(4, steps=3, seed=0, progress=False), rtol=0, atol=0.2)
    assert isinstance(diffkit.load(tmp_path / "saved"), diffkit.System)
