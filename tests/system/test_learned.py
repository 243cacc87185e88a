"""Parts with weights: the system holds their modules, saves them, and gives them to the parts."""

from __future__ import annotations

import json

import attrs
import pytest
import torch
from attrs import frozen
from torch import nn

import diffkit
from diffkit.errors import CheckpointError, OptionError, ProtocolError, SpecError
from diffkit.explain import explain
from diffkit.gaussian import mean_flat, squared_error
from diffkit.protocols import LearnedPart, Loss, VarianceParameterization
from diffkit.registry import registry
from diffkit.system.learned import Trained


class Scale(nn.Module):
    """A log-weight for each channel of the data."""

    def __init__(self, channels: int, rows: int = 1):
        super().__init__()
        self.log = nn.Parameter(torch.zeros(rows, channels))

    def forward(self, error: torch.Tensor) -> torch.Tensor:
        return error * self.log.mean(0).view(-1, *(1,) * (error.ndim - 2)).exp()


@frozen
class Scaled(LearnedPart, Loss):
    """A squared error with a learned weight of each channel."""

    rows: int = 1

    def build(self, data_shape):
        return Scale(data_shape[0], self.rows)

    def __call__(self, at):
        return {"loss": mean_flat(at.learned(squared_error(at.out, at.target)))}


@frozen
class FrozenScaled(Scaled):
    trained = False
    own: bool = True

    def build(self, data_shape):
        return Scale(data_shape[0]) if self.own else None


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setattr(registry("loss"), "_here", {**registry("loss")._here})
    registry("loss").register("scaled")(Scaled)
    registry("loss").register("frozen_scaled")(FrozenScaled)


def composed(loss="scaled", **more) -> diffkit.System:
    torch.manual_seed(0)
    settings = dict(backbone=("mlp", {"hidden": 8, "depth": 1}), data_shape=(2, 2), bins=None, schedule="cosine")
    return diffkit.compose(loss=loss, **(settings | more))


def changed(system: diffkit.System, value: float = 0.5) -> diffkit.System:
    with torch.no_grad():
        for module in (*system.learned.values(), *system.frozen.values()):
            module.log.fill_(value)
    return system


def test_the_module_of_a_part_is_of_the_system_and_is_given_to_its_part(tmp_path):
    system, x = composed(), torch.randn(3, 2, 2)
    assert "learned.loss.log" in system.state_dict() and "learned.loss.log" in dict(system.named_parameters())
    draws = dict(level=torch.tensor([1, 500, 1000]), noise=torch.randn(3, 2, 2))
    plain = diffkit.recompose(system, loss="simple").loss_terms(None, x, **draws)["loss"]
    torch.testing.assert_close(changed(system).loss_terms(None, x, **draws)["loss"], plain * torch.tensor(0.5).exp())
    system(x)["loss"].mean().backward()
    assert system.learned["loss"].log.grad.abs().min() > 0
    assert system.double().learned["loss"].log.dtype == torch.float64
    assert "loss 'scaled' has 2 weights of its own, trained" in str(explain(system))
    assert system.float().save(tmp_path / "saved") and composed("simple").trained is not None
    assert diffkit.load(tmp_path / "saved").learned["loss"].log.mean() == 0.5


def test_what_is_trained_has_names_as_in_the_network_and_saved_weights_are_found_by_them(tmp_path):
    system = changed(composed())
    trained, plain = system.trained, composed("simple")
    assert isinstance(trained, Trained) and plain.trained is plain.network
    names = [name for name, _ in trained.named_parameters()]
    assert names == [*dict(system.network.named_parameters()), "learned.loss.log"] == [*trained.state_dict()]
    system.save(tmp_path / "a")
    for target, count in ((composed(), len(names)), (plain, len(names) - 1)):
        assert len(diffkit.weights.load_matching(target, tmp_path / "a").taken) == count
    again = composed()
    again.trained.load_state_dict(trained.state_dict())
    assert again.learned["loss"].log.mean() == 0.5


def test_recompose_keeps_the_modules_of_parts_that_stay_and_fit():
    system = changed(composed())
    assert diffkit.recompose(system, sampler="ddim").learned["loss"] is system.learned["loss"]
    assert diffkit.recompose(system, loss="scaled").learned["loss"].log.mean() == 0
    larger = diffkit.recompose(system, data_shape=(2, 4), backbone="mlp")
    assert larger.learned["loss"] is system.learned["loss"]
    wider = diffkit.recompose(system, data_shape=(3, 2), backbone="mlp")
    assert wider.learned["loss"].log.shape == (1, 3)


def test_a_frozen_module_is_saved_in_a_file_of_its_own(tmp_path):
    system = changed(composed("frozen_scaled")).train()
    module = system.frozen["loss"]
    assert not module.training and not module.log.requires_grad and system.trained is system.network
    system.save(tmp_path / "a")
    assert "loss.log" not in diffkit.runtime.weights_files.read_weights(tmp_path / "a" / "model.safetensors")
    assert diffkit.load(tmp_path / "a").frozen["loss"].log.mean() == 0.5
    path = tmp_path / "a" / "loss.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match="is damaged"):
        diffkit.load(tmp_path / "a")


def test_a_module_of_the_callers_own_is_given_beside_the_part(tmp_path):
    part = ("frozen_scaled", {"own": False})
    with pytest.raises(OptionError, match=r"builds no module of its own; give compose modules={'loss': module}"):
        composed(part)
    own = Scale(2, rows=3)
    system = changed(composed(part, modules={"loss": own}))
    assert system.frozen["loss"] is own
    assert diffkit.recompose(system, data_shape=(2, 4), backbone="mlp").frozen["loss"] is own
    system.save(tmp_path / "a")
    assert json.loads((tmp_path / "a" / "spec.json").read_text())["modules"] == {"loss": "Scale"}
    with pytest.raises(SpecError, match=r"a module of its own for the loss \(Scale\); pass modules="):
        diffkit.load(tmp_path / "a")
    again = diffkit.load(tmp_path / "a", modules={"loss": Scale(2, rows=3)})
    assert again.frozen["loss"].log.mean() == 0.5


def test_what_does_not_fit_is_refused():
    @frozen
    class Learned(LearnedPart, VarianceParameterization):
        def build(self, data_shape):
            return nn.Identity()

        def log_variance(self, raw, cols):
            return 0

    @frozen
    class Holding(Loss):
        net: nn.Module = attrs.field(factory=nn.Identity)

        def __call__(self, at):
            return {"loss": at.out.flatten(1).mean(1)}

    with pytest.raises(ProtocolError, match=r"given a module; parts with weights are: schedule, loss, codec"):
        composed("simple", var=Learned())
    with pytest.raises(OptionError, match=r"holds a Identity in 'net'.*inherit from diffkit\.protocols\.LearnedPart"):
        composed(Holding())
    with pytest.raises(OptionError, match=r"modules has 'loss', which has no weights here; leave it out \(with"):
        composed("simple", modules={"loss": nn.Identity()})
    with pytest.raises(OptionError, match=r"modules\['loss'\] must be a torch\.nn\.Module, got int"):
        composed(modules={"loss": 3})

    class Clash(nn.Module):
        def __init__(self):
            super().__init__()
            self.learned = nn.Linear(2, 2)

        def forward(self, x, time):
            return self.learned(x)

    with pytest.raises(OptionError, match="the network has a module named 'learned'"):
        composed(backbone=Clash())
