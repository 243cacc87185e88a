"""Weights are found under whatever trainers, running means and wrappers put around their names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from weights_support import FIXED, golden

import diffkit
from diffkit import weights
from diffkit.errors import CheckpointError, OptionError

State = Mapping[str, Tensor]
RECIPE = ("mlp", {"hidden": 8, "depth": 2})


def fresh(seed: int = 0, **more: Any) -> diffkit.System:
    torch.manual_seed(seed)
    return diffkit.compose(**(dict(backbone=RECIPE, data_shape=(2,), bins=None) | more))


def before(prefix: str) -> Callable[[State], State]:
    return lambda state: {f"{prefix}{name}": tensor for name, tensor in state.items()}


def inside(part: str) -> Callable[[State], State]:
    """A wrapper around one layer, in the middle of a name."""
    return lambda state: {name.replace("layers.0.", f"layers.0.{part}."): tensor for name, tensor in state.items()}


def compvis(state: State) -> Any:
    names = {**before("model.diffusion_model.")(state), "first_stage_model.encoder.conv_in.weight": torch.zeros(3)}
    return {"state_dict": {**names, "betas": torch.zeros(9), "model_ema.decay": torch.zeros(())}, "global_step": 7}


def denoising_diffusion(state: State) -> Any:
    other = {name: tensor + 1 for name, tensor in state.items()}
    mean = {**before("ema_model.model.")(state), **before("online_model.model.")(other), "initted": torch.ones(())}
    return {"step": 3, "model": {**before("model.")(other), "betas": torch.zeros(9)}, "ema": mean, "scaler": None}


def k_diffusion(state: State) -> Any:
    other = {name: tensor + 1 for name, tensor in state.items()}
    return {"model": before("inner_model.")(other), "model_ema": before("inner_model.")(state), "epoch": 1}


FORMS: dict[str, Callable[[State], Any]] = {
    "plain": dict,
    "DDP": before("module."),
    "compiled": before("_orig_mod."),
    "compiled DDP": before("module._orig_mod."),
    "of a system": before("network."),
    "AveragedModel": lambda state: {"n_averaged": torch.tensor(3), **before("module.")(state)},
    "averaged system": lambda state: {"n_averaged": torch.tensor(3), **before("module.backbone.")(state)},
    "Lightning": lambda state: {"state_dict": before("model.")(state), "epoch": 1, "callbacks": {}},
    "compiled Lightning": lambda state: {"state_dict": before("model._orig_mod.")(state)},
    "CompVis": compvis,
    "ema_pytorch": lambda state: {
        **before("ema_model.module.")(state),
        "initted": torch.ones(()),
        "step": torch.ones(()),
    },
    "ema_pytorch with both": lambda state: {
        **before("online_model.")({name: tensor + 1 for name, tensor in state.items()}),
        **before("ema_model.")(state),
    },
    "denoising-diffusion-pytorch": denoising_diffusion,
    "k-diffusion": k_diffusion,
    "FSDP": lambda state: before("_fsdp_wrapped_module.")(inside("_fsdp_wrapped_module")(state)),
    "checkpointed": inside("_checkpoint_wrapped_module"),
    "compiled layer": inside("_orig_mod"),
    "checkpointed and compiled, of a trainer": lambda state: {
        "net": before("module.")(inside("_checkpoint_wrapped_module._orig_mod")(state))
    },
    "DeepSpeed": lambda state: {"module": dict(state), "ds_version": "0.1"},
    "nested twice": lambda state: {"checkpoint": {"net": {"state_dict": dict(state)}}},
    "optimizer beside": lambda state: {"model": dict(state), "opt": {"state": {0: {"exp_avg": torch.zeros(8, 8)}}}},
    "params_ema": lambda state: {"params": {n: t + 1 for n, t in state.items()}, "params_ema": dict(state)},
    "mean without buffers": lambda state: {
        "model": {**{n: t + 1 for n, t in state.items()}, "position": torch.zeros(1)},
        "EMA": dict(state),
    },
    "another network beside": lambda state: {
        "critic": {name: torch.zeros(3) for name in state},
        "generator": dict(state),
    },
}


def flat(prefix: str, held: Mapping[Any, Any]) -> Iterator[tuple[str, Tensor]]:
    """The tensors in dictionaries, whose keys become prefixes, as safetensors holds them."""
    for key, value in held.items():
        if isinstance(value, Mapping):
            yield from flat(f"{prefix}{key}.", value)
        elif isinstance(value, Tensor):
            yield prefix + str(key), value.clone()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_every_form_is_read(form, ending, tmp_path):
    trained, system = fresh(1), fresh(2)
    held = FORMS[form](trained.network.state_dict())
    if ending == ".safetensors":
        from safetensors.torch import save_file

        save_file(dict(flat("", held)), tmp_path / "x.safetensors")
    else:
        torch.save(held, tmp_path / "x.pt")
    report = weights.load_matching(system, tmp_path / f"x{ending}")
    assert not report.left and not report.reshaped
    state = system.network.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in trained.network.state_dict().items())


QUICK = ("AveragedModel", "CompVis", "k-diffusion", "another network beside")


@pytest.mark.parametrize(
    "form", [pytest.param(form, marks=[] if form in QUICK else [pytest.mark.slow]) for form in FORMS]
)
def test_public_files_are_read_in_every_form(form, tmp_path):
    stored = golden("unet_uncond")
    torch.save(FORMS[form](stored.state), tmp_path / "x.pt")
    if form == "another network beside":  # nothing says which, before a network is there
        with pytest.raises(OptionError, match="sets of weights; use entry='critic' or entry='generator'"):
            diffkit.load_checkpoint(tmp_path / "x.pt", **FIXED, **stored.unseen)
        system = diffkit.load_checkpoint(tmp_path / "x.pt", entry="generator", **FIXED, **stored.unseen)
    else:
        system = diffkit.load_checkpoint(tmp_path / "x.pt", **FIXED, **stored.unseen)
    stored.check(system.network)


def test_what_this_library_and_torch_write_themselves(tmp_path):
    """Not names made up here: what the wrappers write."""
    from torch.optim.swa_utils import AveragedModel

    trained = fresh(1)
    assert trained.network is not None
    network = trained.network
    held = {
        "system": trained.state_dict(),
        "averaged": AveragedModel(network).state_dict(),
        "averaged system": {"model": AveragedModel(trained).state_dict(), "step": 3},
        "parallel": nn.DataParallel(network).state_dict(),
        "compiled": torch.compile(network, backend="eager").state_dict(),
    }
    for state in held.values():
        torch.save(state, tmp_path / "x.pt")
        assert len(weights.load_matching(fresh(2), tmp_path / "x.pt").taken) == len(network.state_dict())


def test_a_running_mean_is_preferred_and_that_is_reported(tmp_path):
    torch.save(k_diffusion(fresh(1).network.state_dict()), tmp_path / "x.pt")
    report = weights.load_matching(fresh(2), tmp_path / "x.pt")
    count = len(report.taken)
    assert str(report) == (
        f"{count} tensors taken from 'model_ema.inner_model' (and not from 'model.inner_model'), 0 left as they were"
    )
    for entry in ("model.inner_model", "model"):
        chosen = weights.load_matching(system := fresh(2), tmp_path / "x.pt", entry=entry)
        assert chosen.entry == "model.inner_model"
        assert torch.equal(system.network.first.bias, fresh(1).network.first.bias + 1)


def test_sets_that_fit_as_well_are_required(tmp_path):
    state = fresh(1).network.state_dict()
    for held, names in (
        ({"old": state, "new": state}, "entry='old' or entry='new'"),
        ({"ema_0.99": state, "ema_0.9999": state, "model": state}, "entry='ema_0.99' or entry='ema_0.9999'"),
    ):
        torch.save(held, tmp_path / "x.pt")
        with pytest.raises(OptionError, match=re.escape(f"several sets of weights; use {names}")):
            weights.load_matching(fresh(2), tmp_path / "x.pt")
        for entry in held:  # the advice works
            assert weights.load_matching(fresh(2), tmp_path / "x.pt", entry=entry).entry == entry


def test_where_nothing_fits_both_names_are_shown(tmp_path):
    torch.save({"encoder.weight": torch.zeros(3, 4)}, tmp_path / "x.pt")
    system = fresh()
    text = (
        f"nothing in {tmp_path / 'x.pt'} has the name and shape of a tensor of this MLPNetwork: the file has "
        "'encoder.weight' (3, 4), the network 'time_embed.0.weight' (8, 8)"
    )
    with pytest.raises(CheckpointError) as caught:
        weights.load_matching(system, tmp_path / "x.pt")
    name = next(iter(system.network.state_dict()))
    assert str(caught.value).startswith(text.partition("the network")[0]) and repr(name) in str(caught.value)
    torch.save({"model.first.weight": torch.zeros(3, 4)}, tmp_path / "x.pt")
    with pytest.raises(
        CheckpointError, match=re.escape("the file has 'first.weight' (3, 4), the network 'first.weight'")
    ):
        weights.load_matching(system, tmp_path / "x.pt")


class Wrapped(nn.Module):
    """A network, and something of its own."""

    def __init__(self, base: nn.Module):
        super().__init__()
        self.base = base
        self.down = nn.Linear(2, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.base(x, time) + 0 * self.down(x)


def test_a_wrapped_network_takes_the_weights_of_a_plain_one(tmp_path):
    trained, system = fresh(1), fresh(2)
    torch.save(trained.network.state_dict(), tmp_path / "x.pt")
    report = weights.load_matching(system.with_network(Wrapped(system.network)), tmp_path / "x.pt")
    assert report.left == ("down.weight", "down.bias")
    assert torch.equal(system.network.first.weight, trained.network.first.weight)


def test_the_folder_of_a_saved_system_or_a_run_is_taken(tmp_path):
    trained, wrapped = fresh(1), fresh(1)
    trained.save(tmp_path / "saved")
    assert not weights.load_matching(fresh(2), tmp_path / "saved").left
    wrapped = wrapped.with_network(Wrapped(wrapped.network))
    data = diffkit.data.from_array(torch.randn(8, 2).numpy())
    options = dict(steps=1, batch_size=4, progress=False)
    diffkit.train(wrapped, data, out=tmp_path / "run", **options)
    report = weights.load_matching(system := fresh(2), tmp_path / "run")
    assert not report.left and report.entry == "base"
    assert torch.equal(system.network.first.weight, wrapped.network.base.first.weight)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"cannot read .*model\.safetensors: No such file"):
        weights.load_matching(fresh(2), tmp_path / "empty")


def test_parametrized_weights_say_what_removes_them(tmp_path):
    network = fresh(1).network
    torch.nn.utils.parametrizations.weight_norm(network.first)
    torch.save(network.state_dict(), tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"it holds 'first\.parametrizations\.weight\.original0'") as caught:
        weights.load_matching(fresh(2), tmp_path / "x.pt")
    advice = re.search(r"save it after (.*), and so for the others", str(caught.value))
    assert advice is not None
    eval(advice[1], {"torch": torch, "network": network})  # the advice runs
    torch.save(network.state_dict(), tmp_path / "x.pt")
    assert not weights.load_matching(fresh(2), tmp_path / "x.pt").left
    torch.nn.utils.parametrizations.weight_norm(network.first)
    torch.save(network.state_dict(), tmp_path / "x.pt")
    assert not weights.load_matching(network, tmp_path / "x.pt").left  # a network that has the same


@pytest.mark.parametrize("mean", [{"decay": 0.9, "num_updates": 3}, {}])
def test_a_mean_saved_as_a_list_is_not_ignored(tmp_path, mean):
    """torch_ema keeps no names; the weights beside such a mean are not what samples were made with."""
    path, made = tmp_path / "run.pt", fresh(1)
    state = made.network.state_dict()
    listed = [tensor + 1 for tensor in state.values()]
    torch.save({"model": state, "ema": {**mean, "shadow_params": listed} if mean else listed}, path)
    with pytest.raises(OptionError, match=r"as a list.*entry='model'"):
        weights.load_matching(fresh(), path)
    other = fresh()
    weights.load_matching(other, path, entry="model")
    assert all(torch.equal(tensor, state[name]) for name, tensor in other.network.state_dict().items())


def test_names_under_several_prefixes_are_refused(tmp_path):
    path = tmp_path / "mixed.pt"
    made = diffkit.compose(
        backbone=("unet", {"channels": 8, "channel_mult": (1,), "num_res_blocks": 1, "groups": 4}),
        data_shape=(3, 8, 8),
        schedule="cosine",
    )
    names = list(made.network.state_dict().items())
    torch.save(dict(names[:3]) | {f"module.{name}": tensor for name, tensor in names[3:]}, path)
    with pytest.raises(CheckpointError, match=r"several prefixes, '' and 'module\.'; save it again"):
        weights.load_checkpoint(path)
