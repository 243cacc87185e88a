"""Options of any size are refused in words, or what is composed of them computes finite numbers."""

from __future__ import annotations

import attrs
import pytest
import torch

import diffkit
from diffkit.errors import DiffkitError, DivergedError, OptionError
from diffkit.registry import registry

SYSTEM = dict(backbone=("mlp", {"hidden": 8, "depth": 1}), data_shape=(2,), num_steps=50, bins=None)
SIZES = (1e-300, 1e-9, 1e-6, 1e6, 1e9, 1e300, -1e-9, -1e9, -1e300, 0.0, 1, 1000, 10**12)
PARTS = [(kind, name) for kind in ("schedule", "mean", "var", "loss", "timesteps", "sampler")
         for name in registry(kind).built_in_names()]  # fmt: skip


def options_of(kind, name):
    fields = attrs.fields(registry(kind).get(name))
    return [field.name for field in fields if not isinstance(field.default, bool | str)]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), [part for part in PARTS if options_of(*part)])
def test_extreme_options(kind, name):
    for option in options_of(kind, name):
        for size in SIZES:
            try:
                system = diffkit.compose(**SYSTEM, **{kind: (name, {option: size})})
                torch.manual_seed(0)
                assert system(torch.randn(4, 2) / 2)["loss"].isfinite().all(), (option, size)
                assert system.sample(4, steps=6, seed=0, progress=False).isfinite().all(), (option, size)
            except DiffkitError:
                continue


BAD = [
    (dict(loss=("huber", {"delta": 1e300})), "delta must be 0 or of a size from 1e-18 to 1e+18, got 1e+300"),
    (
        dict(schedule=("shifted_cosine", {"log_snr_min": -1e9})),
        "the table of schedule ShiftedCosine cannot be computed: ",
    ),
    (dict(num_steps=2**63), "num_steps 9223372036854775808 is more than a table holds; use at most 1000000"),
    (dict(timesteps=("loss_second_moment", {"history": 10**12})), "history must be >= 1 and <= 1000, got"),
]


@pytest.mark.parametrize(("parts", "text"), BAD, ids=[text[:30] for _, text in BAD])
def test_what_cannot_be_computed_is_refused(parts, text):
    with pytest.raises(OptionError) as refused:
        diffkit.compose(**SYSTEM | parts)
    assert text in str(refused.value)


def test_samples_that_are_not_finite_are_logged(capsys):
    system = diffkit.compose(**SYSTEM, schedule="cosine")
    nan = lambda x, time: x * float("nan")  # noqa: E731
    with pytest.raises(DivergedError, match="none of 3 samples is finite"):
        system.sample(3, model=nan, progress=False)
    some = lambda x, time: torch.where(torch.arange(len(x))[:, None] == 1, float("inf"), 0 * x)  # noqa: E731
    system.sample(3, model=some, progress=False)
    assert "warning: 1 of 3 samples are not finite (1)" in capsys.readouterr().err
