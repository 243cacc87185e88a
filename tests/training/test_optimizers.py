"""Optimizers in training: what each parameter is trained by, groups and frozen parameters by name, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import frozen
from torch import nn
from training_support import config, content, images, lines, system, train

import diffkit
from diffkit.errors import OptionError, ProtocolError
from diffkit.protocols import Optimizer
from diffkit.registry import registry
from diffkit.training import TrainConfig
from diffkit.training.engines import Engine
from diffkit.training.optimizers._muon import MuonWithAdamW, hidden_matrices, orthogonalized
from diffkit.training.optimizers.muon import Muon
from diffkit.training.trainer import Trainer

NAMES = registry("optimizer").built_in_names()
GROUPS = [{"pattern": "*.bias", "weight_decay": 0}, {"pattern": "out.*", "lr": 1e-3}]


def trainer(**options: Any) -> Trainer:
    composed = system()
    return Trainer(composed, composed.network, config(**options), Engine(torch.device("cpu")))


def updates(made: Trainer, count: int) -> Trainer:
    for i in range(count):
        made.update(images().batch([5 * i % 20 + k for k in range(5)]))
    return made


def names_of(made: Trainer, group: int) -> set[str]:
    ids = {id(p) for p in made.optimizer.param_groups[group]["params"]}
    return {name for name, p in made.network.named_parameters() if id(p) in ids}


# ---- which parameters ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "shape", "by_adamw"),
    [
        (("mlp", {"hidden": 8, "depth": 1, "num_classes": 2}), (1, 4, 4), {"time_embed", "label_emb", "first", "out"}),
        (
            ("unet", {"channels": 8, "groups": 4, "channel_mult": (1, 2), "num_classes": 2}),
            (3, 8, 8),
            {"time_embed", "label_emb", "input_blocks.0.0.weight", "out"},
        ),
        (
            ("dit", {"depth": 1, "hidden": 16, "heads": 2, "num_classes": 2}),
            (3, 8, 8),
            {"x_embedder", "t_embedder", "y_embedder", "final_layer"},
        ),
    ],
    ids=["mlp", "unet", "dit"],
)
def test_muon_trains_the_matrices_of_hidden_layers(backbone, shape, by_adamw):
    """AdamW has the first and last layers, embeddings and vectors of each built-in network, and nothing else."""
    network = diffkit.compose(backbone=backbone, data_shape=shape).network
    hidden = {id(p) for p in hidden_matrices(network)}
    for name, parameter in network.named_parameters():
        at_an_end = name in by_adamw or name.split(".")[0] in by_adamw
        assert (id(parameter) in hidden) == (parameter.ndim > 1 and not at_an_end), name


def test_muon_in_networks_of_other_forms():
    chain = nn.Sequential(nn.Linear(2, 8), nn.Linear(8, 8), nn.Embedding(3, 8), nn.Linear(8, 2))
    assert [*hidden_matrices(chain)] == [chain[1].weight]
    wrapped = nn.ModuleDict({"inner": nn.ModuleDict({"layers": chain})})
    assert [*hidden_matrices(wrapped)] == [chain[1].weight]
    assert [*hidden_matrices(chain, ["1.*"])] == [] == [*hidden_matrices(nn.LayerNorm(3))]
    with pytest.raises(OptionError, match=r"adamw='l\.\*' matches no parameter of the network"):
        [*hidden_matrices(chain, ["l.*"])]


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
@pytest.mark.parametrize("scale", ["adamw", "spectral"])
def test_muon_is_torchs_to_the_bit(shape, scale):
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("torch before 2.9 has no Muon")
    torch.manual_seed(0)
    ours, theirs = (nn.Parameter(value) for value in [torch.randn(shape)] * 2)
    theirs = nn.Parameter(ours.detach().clone())
    group = {"params": [ours], "lr": 0.02, "weight_decay": 0.1, "muon": True}
    fixed = {"momentum": 0.9, "nesterov": True}
    mine = MuonWithAdamW([group], iterations=5, spectral=scale == "spectral", betas=(0.9, 0.999), eps=1e-8, **fixed)
    adjust = {"adamw": "match_rms_adamw", "spectral": "original"}[scale]
    torchs = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn=adjust, **fixed)
    for _ in range(3):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        mine.step()
        torchs.step()
    assert torch.equal(ours, theirs)


def test_a_convolution_is_a_matrix_of_its_kernels():
    torch.manual_seed(0)
    conv, linear = nn.Conv2d(3, 4, 2), nn.Linear(12, 4)
    linear.weight.data = conv.weight.detach().flatten(1).clone()
    options = dict(momentum=0.9, nesterov=True, iterations=5, spectral=False, betas=(0.9, 0.999), eps=1e-8)
    for parameter in (conv.weight, linear.weight):
        parameter.grad = torch.linspace(-1, 2, 48).reshape(parameter.shape)
        MuonWithAdamW([{"params": [parameter], "lr": 0.1, "weight_decay": 0.0, "muon": True}], **options).step()
    assert torch.equal(conv.weight.flatten(1), linear.weight)
    singular = torch.linalg.svdvals(orthogonalized(torch.randn(5, 9), 5).float())
    assert ((singular > 0.6) & (singular < 1.3)).all()  # the polynomial oscillates around 1


def test_an_update_that_is_not_finite_is_skipped_without_a_read():
    """As on a GPU: the optimizer is told by a tensor."""
    made = updates(trainer(optimizer="muon"), 1)
    before = {k: v.clone() for k, v in {**made.files()["model"], **made.files()["optimizer"]}.items()}
    for parameter in made.network.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    made.engine.reads_free = False
    made.engine.apply(made.optimizer, torch.tensor(False))
    after = {**made.files()["model"], **made.files()["optimizer"]}
    assert all(torch.equal(after[name], value) for name, value in before.items())


# ---- training --------------------------------------------------------------------------------------------------------


def test_adamw_is_the_default_to_the_bit(tmp_path: Path):
    train(tmp_path / "default", steps=4, weight_decay=0.1, betas=(0.8, 0.99))
    slot = ("adamw", {"betas": [0.8, 0.99]})
    train(tmp_path / "named", steps=4, weight_decay=0.1, optimizer=slot)
    assert content(tmp_path / "default") == content(tmp_path / "named")
    train(tmp_path / "default", steps=5, weight_decay=0.1, optimizer=slot)  # the same run in other words


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "muon" else pytest.mark.slow) for name in NAMES]
)
def test_every_optimizer_resumes_to_the_bit(name: str, tmp_path: Path):
    """With groups, frozen parameters and a schedule; from a checkpoint in the middle."""
    how: dict[str, Any] = {"steps": 6, "save_every": 3, "lr": 1e-3, "weight_decay": 0.1, "optimizer": name}
    how |= {"param_groups": GROUPS, "freeze": "time_embed.*", "lr_schedule": "wsd", "warmup": 2}
    train(tmp_path / "whole", **how)
    train(tmp_path / "halves", **how)
    stopped = tmp_path / "halves" / "checkpoints"
    for path in (stopped / "step_00000006").iterdir():
        path.unlink()
    (stopped / "step_00000006").rmdir()
    train(tmp_path / "halves", **how)
    assert content(tmp_path / "whole") == content(tmp_path / "halves")
    assert lines(tmp_path / "whole") == lines(tmp_path / "halves")


def test_groups_have_rates_and_decays_of_their_own():
    made = updates(trainer(param_groups=GROUPS, weight_decay=0.1, lr=0.5, warmup=10, lr_schedule="cosine"), 2)
    groups = made.optimizer.param_groups
    assert names_of(made, 0) == {name for name, _ in made.network.named_parameters() if name.endswith(".bias")}
    assert names_of(made, 1) == {"out.0.weight", "out.2.weight"}  # the biases are of the group before
    assert [group["weight_decay"] for group in groups] == [0.0, 0.1, 0.1]
    factor = made.config.lr_at(1) / 0.5
    assert [group["lr"] for group in groups] == pytest.approx([0.5 * factor, 1e-3 * factor, 0.5 * factor])
    assert made.metrics()["lr"] == made.config.lr_at(1)


def test_adamws_share_of_muon_has_a_rate_of_its_own():
    made = trainer(optimizer=Muon(adamw_lr=0.1), lr=0.5, param_groups=[{"pattern": "layers.*", "lr": 0.2}])
    assert [(group["muon"], group["lr"]) for group in made.optimizer.param_groups] == [
        (True, 0.2),
        (False, pytest.approx(0.02)),
        (False, pytest.approx(0.05)),
    ]


def test_frozen_parameters_are_left_alone(tmp_path: Path):
    """No gradient, no state, not in the norm; the mean of them is what they are, and afterwards they can be trained."""
    composed, before = system(), system().network.state_dict()
    done = train(tmp_path, system=composed, freeze=("time_embed.*", "*.bias"), steps=3)
    for name, value in done.network.state_dict().items():
        frozen_name = name.startswith("time_embed.") or name.endswith(".bias")
        assert torch.equal(value, before[name]) == frozen_name, name
    assert all(parameter.requires_grad for parameter in done.network.parameters())
    made = content(tmp_path)["optimizer.safetensors"]
    assert b"time_embed" not in made and b"first.weight" in made
    recorded = json.loads((tmp_path / "config.json").read_text())
    assert recorded["train"]["freeze"] == ["time_embed.*", "*.bias"] and "time_embed.0.weight" in recorded["frozen"]
    assert diffkit.training.dry_run(system(), images(), steps=2, batch_size=5, freeze="time_embed.*").trained < sum(
        p.numel() for p in composed.network.parameters()
    )


def test_numbers_of_an_optimizer_are_stored(tmp_path: Path):
    """State that is no tensor, of parameters and of groups, as schedule-free optimizers have it."""

    class Counting(torch.optim.SGD):
        def step(self, closure=None):
            for group in self.param_groups:
                group["count"] = group.get("count", 0) + 1
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        state = self.state[parameter]
                        state["seen"], state["half"] = state.get("seen", 0) + 1, state["seen"] / 2 if state else 0.5
                        parameter.grad.mul_(1 / (group["count"] + state["seen"]))
            super().step()

    @registry("optimizer").register("counting", replace=True)
    @frozen
    class CountingPart(Optimizer):
        def build(self, groups, network):
            return Counting(groups, momentum=0.5)

    train(tmp_path / "whole", steps=4, save_every=2, optimizer="counting")
    train(tmp_path / "halves", steps=2, optimizer="counting")
    train(tmp_path / "halves", steps=4, optimizer="counting")
    assert content(tmp_path / "whole") == content(tmp_path / "halves")


# ---- what is refused -------------------------------------------------------------------------------------------------


class NeedsClosure(torch.optim.SGD):
    def step(self, closure):
        return super().step(closure)


def part_of(build):
    @registry("optimizer").register("of_a_test", replace=True)
    @frozen
    class OfATest(Optimizer):
        def build(self, groups, network):
            return build(groups)

    return OfATest()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"freeze": ("time_embd.*",)},
            "freeze='time_embd.*' matches no parameter of the network; did you mean 'time_embed.*'? (its modules: ",
        ),
        (
            {"param_groups": {"pattern": "*.bais", "lr": 0}},
            "param_groups='*.bais' matches no parameter of the network; did you mean",
        ),
        ({"freeze": "*"}, "freeze=('*',) leaves no parameter to train"),
        (
            {"param_groups": ["*:lr=0.1", "*.bias:lr=0.2"]},
            "param_groups='*.bias' matches parameters that are frozen or of a group before only; put it before them",
        ),
        (
            {"param_groups": ["*.bias:lr=0.1"], "freeze": "*.bias"},
            "param_groups='*.bias' matches parameters that are frozen or of a group before only",
        ),
        ({"param_groups": [{"lr": 1}]}, "param_groups must each have a pattern, such as {"),
        (
            {"param_groups": "*.bias:lr=fast"},
            "param_groups must be written as \"*.bias:weight_decay=0\", got '*.bias:lr=fast'",
        ),
        (
            {"param_groups": [{"pattern": "*", "rate": 1}]},
            "param_groups have no option 'rate' (options: pattern, lr, weight_decay)",
        ),
        ({"param_groups": [{"pattern": "*", "lr": -1}]}, "lr must be >= 0, got -1.0"),
        ({"freeze": [1]}, "freeze must be a list of words, got (1,)"),
        ({"optimizer": ("sgd", {"nesterov": True, "dampening": 0.1})}, "optimizer 'sgd': nesterov=True needs momentum"),
        ({"optimizer": ("muon", {"moment": 0.9})}, "optimizer 'muon' has no option 'moment'; did you mean 'momentum'?"),
        ({"optimizer": "sgd", "betas": (0.9, 0.99)}, "betas=(0.9, 0.99) is option 'betas', which optimizer 'sgd' does"),
        (
            {"optimizer": ("muon", {"adamw": ("heads.*",)})},
            "optimizer 'muon': adamw='heads.*' matches no parameter of the network",
        ),
    ],
    ids=str,
)
def test_what_is_wrong_is_refused_before_data_is_read(options: dict[str, Any], text: str, tmp_path: Path):
    class Unread:
        def __len__(self) -> int:
            raise AssertionError("read")

    with pytest.raises(OptionError) as caught:
        diffkit.train(system(), Unread(), out=tmp_path / "run", steps=2, batch_size=5, **options)
    assert text in str(caught.value) and not (tmp_path / "run").exists()


def test_an_optimizer_that_needs_a_closure_is_refused(tmp_path: Path):
    for build, name in ((torch.optim.LBFGS, "LBFGS"), (NeedsClosure, "NeedsClosure")):
        plain = part_of(lambda groups, build=build: build([p for g in groups for p in g["params"]]))
        text = (
            rf"optimizer='of_a_test' calls the loss itself \({name}\.step needs a closure\), .*; use optimizer='adamw'"
        )
        with pytest.raises(OptionError, match=text):
            train(tmp_path / "run", optimizer=plain)
    assert not (tmp_path / "run").exists()


def test_what_a_part_builds_is_checked(tmp_path: Path):
    with pytest.raises(ProtocolError, match=r"'of_a_test': build must return a torch\.optim\.Optimizer, got list"):
        train(tmp_path, optimizer=part_of(list))
    with pytest.raises(ProtocolError, match="'of_a_test': build must return an optimizer of each parameter, once"):
        train(tmp_path, optimizer=part_of(lambda groups: torch.optim.SGD(groups[0]["params"][:1])))
    with pytest.raises(ProtocolError, match="optimizer 'of_a_test' cannot be used: its own code raised KeyError: 'no'"):
        train(tmp_path, optimizer=part_of(lambda groups: groups[0]["no"]))

    @frozen
    class Nameless(Optimizer):
        def build(self, groups, network):
            return torch.optim.SGD(groups)

    with pytest.raises(
        OptionError, match=r"optimizer 'Nameless' has no registered name, by which a run could be resum"
    ):
        train(tmp_path, optimizer=Nameless())


def test_a_class_of_torch_is_named_as_the_part_that_it_is_here():
    for given in (torch.optim.RAdam, torch.optim.RAdam([torch.zeros(1)])):
        with pytest.raises(ProtocolError, match=r"protocols\.Optimizer .*, or use optimizer='radam'"):
            TrainConfig(steps=1, optimizer=given)
    with pytest.raises(ProtocolError, match=r"inherit from diffkit\.protocols\.Optimizer for the defaults$"):
        TrainConfig(steps=1, optimizer=torch.optim.SparseAdam)


def test_groups_in_one_text_are_those_of_a_list():
    text = "*.bias:weight_decay=0, out.*:lr=1e-3"
    assert TrainConfig(steps=1, param_groups=text) == TrainConfig(steps=1, param_groups=GROUPS)


def test_another_optimizer_group_or_frozen_parameter_is_another_run(tmp_path: Path):
    how: dict[str, Any] = {
        "steps": 2,
        "optimizer": ("muon", {"momentum": 0.9}),
        "param_groups": GROUPS,
        "freeze": "out.0.*",
    }
    train(tmp_path, **how)
    with pytest.raises(OptionError) as caught:
        train(tmp_path, **how | {"optimizer": "muon", "param_groups": GROUPS[:1], "freeze": ()})
    found = str(caught.value)
    assert "optimizer=('muon', {'momentum': 0.9}), now optimizer='muon'" in found
    assert (
        "freeze=('out.0.*',), now freeze=()" in found and "parameters (the first is out.0.weight) frozen, now" in found
    )
    assert found.count("ParameterGroup(pattern='out.*', lr=0.001, weight_decay=None)") == 1


def test_shards_are_refused_where_parameters_are_needed_whole():
    with pytest.raises(
        OptionError, match="strategy='fsdp' shares parameters among processes, but optimizer 'adafactor'"
    ):
        trainer(optimizer="adafactor", strategy="fsdp")
