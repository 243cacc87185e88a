"""Files that are not weights: one clear error each, and nothing in them is run."""

from __future__ import annotations

import argparse
import os
import pickle
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from weights_support import golden, written

import diffkit
from diffkit import weights
from diffkit.errors import CheckpointError


class Payload:
    """What an attacker would put into a file: unpickling it creates another file."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


class ShellPayload(Payload):
    """The same by way of the shell."""

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def refused(path):
    with pytest.raises(CheckpointError) as caught:
        diffkit.load_checkpoint(path, preset="iddpm/cifar10-uncond")
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert str(path) in text
    return text


@pytest.mark.parametrize("payload", [Payload, ShellPayload])
@pytest.mark.parametrize("how", ["torch", "old torch", "pickle", "old pickle", "beside weights", "in args"])
def test_code_in_a_pickle_is_not_run(payload, how, tmp_path):
    path, proof = tmp_path / "evil.pt", tmp_path / "executed"
    evil, state = payload(proof), golden("unet_uncond").state
    if how == "torch":
        torch.save(evil, path)
    elif how == "old torch":
        torch.save(evil, path, _use_new_zipfile_serialization=False)
    elif how == "beside weights":
        torch.save(state | {"extra": evil}, path)
    elif how == "in args":
        torch.save({"ema": state, "args": argparse.Namespace(model=evil)}, path)
    else:
        path.write_bytes(pickle.dumps(evil, protocol=5 if how == "pickle" else 2))
    text = refused(path)
    assert not proof.exists()
    assert "could run code, so nothing was read" in text or "damaged" in text
    for read in (weights.identify, weights.load_classifier):
        with pytest.raises(CheckpointError):
            read(path)
    assert not proof.exists()
    pickle.loads(pickle.dumps(evil))  # the payload does work
    assert proof.exists()


def test_a_whole_pickled_module_reports_what_to_save_instead(tmp_path):
    torch.save(torch.nn.Linear(1, 1), tmp_path / "module.pt")
    assert "torch.nn.modules.linear.Linear" in refused(tmp_path / "module.pt")
    assert "save its plain state_dict again" in refused(tmp_path / "module.pt")


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.999])
def test_truncated_files(ending, share, tmp_path):
    path = written(tmp_path, "unet_uncond", ending)
    content = path.read_bytes()
    path.write_bytes(content[: max(10, int(len(content) * share))])
    assert "is damaged or truncated" in refused(path)


def test_truncated_files_of_old_torch(tmp_path):
    path = tmp_path / "old.pt"
    torch.save(golden("unet_uncond").state, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:5000])
    assert "is damaged or truncated" in refused(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"hello", "is not a file of weights: neither PyTorch nor safetensors wrote it"),
        (b"<!DOCTYPE html><html>404: not found</html>", "is not a file of weights"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "is not a file of weights"),
        (b"PK\x03\x04 but no archive", "is damaged or truncated"),
        (b"\x80\x02 but no pickle", "is damaged or truncated"),
        (b"\x10\0\0\0\0\0\0\0{not json       ", "is damaged or truncated"),
    ],
)
def test_files_of_other_kinds(content, message, tmp_path):
    (tmp_path / "x.pt").write_bytes(content)
    assert message in refused(tmp_path / "x.pt")


def repacked(path: Path, to: Path) -> Path:
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(to, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return to


def test_a_compressed_file_is_read_unless_it_would_fill_the_memory(tmp_path):
    torch.save({"weight": torch.arange(100.0)}, tmp_path / "x.pt")
    layer = torch.nn.Module()
    layer.weight = torch.nn.Parameter(torch.zeros(100))
    weights.load_matching(layer, repacked(tmp_path / "x.pt", tmp_path / "y.pt"))
    assert torch.equal(layer.weight.detach(), torch.arange(100.0))
    torch.save({"weight": torch.zeros(1_000_000)}, tmp_path / "x.pt")
    assert "would unpack to 400" in refused(repacked(tmp_path / "x.pt", tmp_path / "z.pt"))


def test_the_advice_for_a_file_with_more_than_tensors_runs(tmp_path):
    """Such as those of Lightning, whose best score is a number of NumPy."""
    path = tmp_path / "lightning.ckpt"
    torch.save({"state_dict": {"model.weight": torch.ones(3)}, "best": np.float64(1.0)}, path)
    layer = torch.nn.Module()
    layer.weight = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(CheckpointError, match="save its plain state_dict again") as caught:
        weights.load_matching(layer, path)
    advice = re.search(r"torch\.load\(.*\)", str(caught.value))
    assert advice is not None
    torch.save(eval(advice[0])["state_dict"], path)
    assert weights.load_matching(layer, path).taken == ("weight",)


def test_a_dictionary_that_holds_itself_ends(tmp_path):
    held = {"weight": torch.zeros(1)}
    held["again"] = held
    torch.save(held, tmp_path / "x.pt")
    assert "of an unknown kind of network" in refused(tmp_path / "x.pt")


@pytest.mark.parametrize("name", ["\x1b[31mred", "a\nb", "\u202eb", "\udc80"])
def test_names_with_control_characters_are_refused(name, tmp_path):
    torch.save({name: torch.zeros(1)}, tmp_path / "x.pt")
    assert refused(tmp_path / "x.pt").isprintable()


def test_an_archive_of_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "is damaged or truncated" in refused(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("held", "message"),
    [
        (torch.zeros(3), "holds a Tensor, not weights by name"),
        ([torch.zeros(3)], "holds a list, not weights by name"),
        ({}, "holds no weights by name (it holds nothing)"),
        ({"step": 3, "loss": 0.5}, "holds no weights by name (it holds 'step', 'loss')"),
        ({0: torch.zeros(1)}, "holds no weights by name (it holds 0)"),
    ],
)
def test_files_of_pytorch_that_hold_something_else(held, message, tmp_path):
    torch.save(held, tmp_path / "x.pt")
    assert message in refused(tmp_path / "x.pt")


def test_a_file_that_is_not_there(tmp_path):
    assert refused(tmp_path / "x.pt") == f"cannot read {tmp_path / 'x.pt'}: No such file or directory"


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.pt")
    assert refused(tmp_path / "x.pt").endswith("x.pt: it is a pipe or a device, not an ordinary file")
    saved = diffkit.compose(backbone="mlp", data_shape=(2,), bins=None).save(tmp_path / "saved")
    (saved / "model.safetensors").unlink()
    os.mkfifo(saved / "model.safetensors")
    with pytest.raises(CheckpointError, match="it is a pipe or a device"):
        diffkit.load(saved)


def test_the_ending_of_the_name_does_not_matter(tmp_path):
    one = written(tmp_path, "unet_uncond", ".safetensors").rename(tmp_path / "weights.pt")
    other = written(tmp_path, "unet_uncond", ".pt").rename(tmp_path / "weights.safetensors")
    assert weights.identify(one).options == weights.identify(other).options


def test_a_folder_of_something_else_is_not_a_classifier(tmp_path):
    with pytest.raises(CheckpointError, match="is not there"):
        weights.load_classifier(tmp_path)
    system = diffkit.compose(backbone="mlp", data_shape=(2,), bins=None)
    with pytest.raises(diffkit.SpecError, match=r"does not hold a classifier; a saved system is read by diffkit.load"):
        weights.load_classifier(system.save(tmp_path / "system"))


def test_a_safetensors_file_may_begin_as_a_pickle_does(tmp_path):
    """Its first byte is of the size of its header, and 0x80 as often as any."""
    from safetensors.torch import save_file

    for length in range(64):
        save_file({"w": torch.zeros(1)}, tmp_path / "x.safetensors", {"note": "x" * (8 * length)})
        if (tmp_path / "x.safetensors").read_bytes()[0] == 0x80:
            break
    else:
        raise AssertionError("no header had that size")
    assert "is damaged" not in refused(tmp_path / "x.safetensors")
