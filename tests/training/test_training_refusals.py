"""All that cannot work is reported in one error before any work is done, and leaves no folder behind."""

from __future__ import annotations

import inspect
import json
import re

import numpy as np
import pytest
import torch
from training_support import DEFAULTS, checkpoints, config, images, lines, point_system, points, system, train

import diffkit
from diffkit.data import from_array
from diffkit.errors import CheckpointError, DataError, OptionError, SpecError
from diffkit.parts.losses.hybrid import Hybrid
from diffkit.registry.aliases import TRAINING_ALIASES
from diffkit.training import TrainConfig
from diffkit.training.checkpoint import _manifest_bytes
from diffkit.training.config import TrainOptions
from diffkit.training.lock import RunLock
from diffkit.training.run_differences import config_differences


def refused(tmp_path, kind, text, **options):
    out = tmp_path / "run"
    with pytest.raises(kind, match=re.escape(text)):
        train(out, **options)
    assert not out.exists()


def unlabelled(count=23):
    data = images(count)
    data.labels = data.classes = None
    return data


def test_a_batch_larger_than_the_data_names_both_numbers(tmp_path):
    refused(tmp_path, DataError, "batch_size=24 is more than the 23 examples of the data; use batch_size=23",
            batch_size=24)  # fmt: skip


def test_data_that_does_not_fit_the_system(tmp_path):
    other = from_array(np.zeros((30, 3, 4, 4), np.uint8), labels=np.zeros(30, int))
    with pytest.raises(DataError) as caught:
        train(tmp_path / "run", data=other)
    text = str(caught.value)
    assert text.startswith("the data cannot be trained on:\n")
    assert "the data has shape (3, 4, 4), the system was composed for (1, 4, 4)" in text
    assert "the data has 256 bins, the system was composed for 17 bins; use bins=256" in text
    continuous = from_array(np.zeros((30, 1, 4, 4)))
    refused(tmp_path, DataError, "the data has continuous values (bins=None), the system was composed for 17 bins",
            data=continuous)  # fmt: skip


def test_what_cannot_be_written_is_reported_before_the_first_save(tmp_path):
    data = images()
    data.source = np.int64(7)
    refused(tmp_path, DataError, "description has source=np.int64(7), which JSON cannot hold", data=data)
    loss = Hybrid()
    object.__setattr__(loss, "vb_weight", np.float32(1))
    refused(tmp_path, SpecError, "loss 'hybrid' cannot be saved: JSON cannot hold vb_weight=np.float32(1.0)",
            system=system(loss=loss))  # fmt: skip


def test_numbers_of_numpy_train_and_resume(tmp_path):
    options = dict(
        steps=np.int64(2), batch_size=np.int32(5), lr=np.float32(0.01), betas=(np.float32(0.5), 0), ema=[0.5]
    )
    first = train(tmp_path, **options)
    again = train(tmp_path, **options)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_bins_given_as_options_of_the_decoder(tmp_path):
    train(tmp_path, system=system(bins={"bins": 17, "cdf": "exact"}), steps=1)


def test_labels_that_do_not_fit_the_network(tmp_path):
    mlp = ("mlp", {"hidden": 8, "depth": 1})
    refused(tmp_path, DataError, "network has none; load the data without labels; use num_classes=3",
            system=system(backbone=mlp))  # fmt: skip
    refused(tmp_path, DataError, "the network has 3 classes, but the data has no labels", data=unlabelled())
    refused(tmp_path, DataError, "the data has 5 classes, but the network has 3; use num_classes=5",
            data=images(classes=5))  # fmt: skip
    refused(tmp_path, DataError, "label_dropout=0.2 needs a network with a label for no class",
            system=system(backbone=("mlp", {"hidden": 8, "depth": 1, "num_classes": 3})))  # fmt: skip


class Values:
    """Data of a user's own, all of one value and class."""

    shape, classes = (1, 4, 4), None

    def __init__(self, value, dtype, bins, label=0, late=None):
        self.value, self.dtype, self.bins, self.label, self.late = value, dtype, bins, label, late

    def __len__(self):
        return 10

    def __getitem__(self, index):
        label = self.late if index == 9 and self.late is not None else self.label
        return np.full(self.shape, self.value, self.dtype), {"y": label}


def test_values_and_labels_of_a_users_own_data(tmp_path):
    def check(text, *args):
        refused(tmp_path, DataError, text, data=Values(*args))

    check("examples 0, 1, 2, 3, ... have values in 17..17; with 17 bins they must lie in 0..16", 17, np.uint8, 17)
    check("have values in [16, 16]; floating point with bins must lie in [-1, 1], or give integers from 0 to 16",
          16, np.float32, 17)  # fmt: skip
    check("have values in [nan, nan]", np.nan, np.float32, 17)
    check("example 0 has class 3, but the network has 3 classes, 0..2", 1, np.uint8, 17, 3)
    check("example 0 has class -2, but the network has 3 classes", 1, np.uint8, 17, -2)
    refused(tmp_path, DataError, "are integers, but the data is continuous; give floating point",
            data=Values(1, np.int64, None), system=system(bins=None))  # fmt: skip


def test_a_label_that_only_a_later_batch_holds(tmp_path):
    with pytest.raises(DataError, match="example 9 has class 7, but the network has 3 classes"):
        train(tmp_path, data=Values(1, np.uint8, 17, 0, 7))


def test_a_system_with_nothing_to_train(tmp_path):
    refused(tmp_path, OptionError, "the system was composed with backbone=None, so there is nothing to train",
            system=system(backbone=None))  # fmt: skip
    frozen = system()
    for parameter in frozen.parameters():
        parameter.requires_grad_(False)
    refused(tmp_path, OptionError, "the system's network has no parameter that requires a gradient", system=frozen)


def test_a_system_that_no_name_can_rebuild(tmp_path):
    from attrs import frozen

    from diffkit.parts.schedules.cosine import Cosine

    @frozen
    class Mine:
        def problems(self, composition):
            return ()

        def table(self, num_steps):
            return Cosine().table(num_steps)

    refused(tmp_path, SpecError, "schedule 'Mine' is of a class that has no registered name",
            system=system(schedule=Mine()))  # fmt: skip


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"steps": 0}, "steps must be >= 1, got 0"),
        ({"steps": 1.5}, "steps must be an integer, got 1.5"),
        ({"batch_size": True}, "batch_size must be an integer, got True"),
        ({"microbatch": 0}, "microbatch must be >= 1, got 0"),
        ({"lr": -1.0}, "lr must be >= 0, got -1.0"),
        ({"lr": float("nan")}, "lr must be finite, got nan"),
        ({"betas": (0.9,)}, "betas must be 2 numbers, got (0.9,)"),
        ({"betas": (0.9, 1.0)}, "each of betas must be >= 0 and < 1, got 1.0"),
        ({"ema": "0.999"}, "ema must be a list of numbers, got '0.999'"),
        ({"ema": True}, "ema must be a list of numbers, got True"),
        ({"ema": 1}, "each of ema must be >= 0 and < 1, got 1"),
        ({"ema": (0.9, 0.9)}, "ema must not name a rate twice, got (0.9, 0.9)"),
        ({"ema": (1.0,)}, "each of ema must be >= 0 and < 1, got 1.0"),
        ({"precision": "fp8"}, "precision must be one of 'fp32', 'bf16', 'fp16', got 'fp8'"),
        ({"label_dropout": 1.5}, "label_dropout must be >= 0 and <= 1, got 1.5"),
        ({"grad_clip": 0}, "grad_clip must be > 0, got 0.0"),
        ({"keep": 0}, "keep must be >= 1, got 0"),
        ({"anneal": 1}, "anneal must be True or False, got 1"),
        (
            {"lr_schedule": "cosine", "anneal": True},
            "anneal=True is not 'cosine'; use anneal=False or lr_schedule='linear'",
        ),
        (
            {"lr_schedule": "rsqrt", "anneal_steps": 20},
            "anneal_steps=20 is option 'end', which lr_schedule 'rsqrt' does not have; use lr_schedule='cosine' or "
            "leave anneal_steps out",
        ),
        (
            {"rsqrt_steps": 5},
            "rsqrt_steps=5 is option 'start', which lr_schedule 'constant' does not have; use lr_schedule='rsqrt' or "
            "leave rsqrt_steps out",
        ),
        (
            {"lr_schedule": ("linear", {"end": 20}), "anneal_steps": 20},
            "anneal_steps=20 and the end=20 of lr_schedule 'linear' are the same option; leave anneal_steps out",
        ),
        (
            {"lr_schedule": ("wsd", {"decay": 0.5, "end": 3})},
            "lr_schedule=('wsd', {'decay': 0.5, 'end': 3}) would leave no learning rate for the last of 12 steps; use "
            "lr_schedule=('wsd', {'decay': 0.5, 'end': 12}) or steps=3",
        ),
        (
            {"lr_schedule": "cosine", "anneal_steps": 3},
            "anneal_steps=3 would leave no learning rate for the last of 12",
        ),
        ({"learning_rate": 1}, "train has no option 'learning_rate'; that is 'lr' here (known: out, val, config, "),
        ({"hook": "previews"}, "train has no option 'hook'; did you mean 'hooks'?"),
        ({"batchsize": 1}, "train has no option 'batchsize'; did you mean 'batch_size'?"),
    ],
)
def test_options(options, text, tmp_path):
    refused(tmp_path, OptionError, text, **options)


def test_one_rate_needs_no_list(tmp_path):
    train(tmp_path, steps=1, ema=0.5, ema_power=0.1)
    kept = json.loads((tmp_path / "config.json").read_text())["train"]
    assert kept["ema"] == [0.5] and kept["ema_power"] == [0.1]
    train(tmp_path, steps=2, ema=(0.5,), ema_power=[0.1])


def test_names_of_other_libraries_stand_for_options():
    import attrs

    names = {field.name for field in attrs.fields(TrainConfig)}
    assert set(TRAINING_ALIASES.values()) <= names and not names & TRAINING_ALIASES.keys()


def test_steps_must_be_given(tmp_path):
    with pytest.raises(OptionError, match=r"train needs its length; use steps=\.\.\. or epochs=\.\.\."):
        diffkit.train(system(), images(), out=tmp_path / "run", batch_size=5)


def test_a_configuration_and_options_that_override_it(tmp_path):
    diffkit.train(system(), images(), out=tmp_path, config=config(steps=3), steps=2, progress=False)
    kept = json.loads((tmp_path / "config.json").read_text())
    assert kept["train"]["steps"] == 2 and kept["train"]["batch_size"] == 5
    assert kept["data"]["classes"] == ["0", "1", "2"] and kept["data"]["examples"] == 23


def test_keywords_are_the_fields_of_the_configuration():
    import attrs

    fields = {field.name: field.type for field in attrs.fields(TrainConfig)}
    assert TrainOptions.__annotations__.keys() == fields.keys()
    given = {name: str(kind).replace("ForwardRef(", "").rstrip(")").strip("'").split("'")[0]
             for name, kind in TrainOptions.__annotations__.items()}  # fmt: skip
    wider = {name: f"{fields[name]} | float" for name in ("ema", "ema_power")} | {"freeze": "Sequence[str] | str"}
    wider["condition_dropout"] = "Mapping[str, float] | Sequence[str] | str"
    wider["param_groups"] = "Sequence[str | Mapping[str, Any] | ParameterGroup] | str"
    assert given == fields | wider
    with pytest.raises(OptionError) as caught:
        diffkit.train(system(), images(), out="run", zzz=1)
    known = str(caught.value).partition("(known: ")[2].rstrip(")").split(", ")
    assert {"system", "data", *known} == {*fields, *inspect.signature(diffkit.train).parameters} - {"options"}
    for name in fields:
        assert f"        {name}: " in (TrainConfig.__doc__ or "")


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(OptionError, match=r"out '.*file.*' cannot be written: .*; choose another folder"):
            train(out)


def test_a_folder_that_holds_a_saved_system(tmp_path):
    system().save(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(OptionError, match="holds a saved system, not a run; choose another folder"):
        train(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_a_folder_that_holds_something_else(tmp_path):
    (tmp_path / "holiday.png").touch()
    with pytest.raises(OptionError, match=r"is not a run but holds 1 other files .first: 'holiday.png'."):
        train(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.png"]


def test_a_run_of_something_else_is_not_continued(tmp_path):
    train(tmp_path, steps=3)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"}
    with pytest.raises(OptionError) as caught:
        train(tmp_path, system=system(schedule="linear", num_steps=30), lr=1e-3, seed=0, batch_size=4, steps=9)
    assert str(caught.value).splitlines()[1:] == [
        "  batch_size=5, now batch_size=4",
        "  lr=0.01, now lr=0.001",
        "  schedule cosine(s=0.008, max_beta=0.999), now linear(start=0.0001, end=0.02)",
        "  num_steps=20, now num_steps=30",
        "pass the same options, or choose another folder",
    ]
    with pytest.raises(OptionError, match=r"this one:\n  schedule.s=0.008, now schedule.s=0.01\npass the same options"):
        train(tmp_path, system=system(schedule=("cosine", {"s": 0.01})))
    with pytest.raises(OptionError, match="data examples=23, now 24\n  data fingerprint="):
        train(tmp_path, data=images(24))
    other = images()
    other.images = 16 - other.images
    with pytest.raises(OptionError, match=r"this one:\n  data fingerprint='\w+', now '\w+'\npass"):
        train(tmp_path, data=other)
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"}
    assert after == before


def test_what_may_change_when_a_run_resumes(tmp_path):
    train(tmp_path, steps=3)
    train(tmp_path, steps=4, microbatch=2, log_every=2, save_every=3, keep=1, max_skips=3)
    assert checkpoints(tmp_path) == [4]
    assert json.loads((tmp_path / "config.json").read_text())["train"]["microbatch"] == 2


def test_annealing_fixes_the_number_of_steps(tmp_path):
    old = config(anneal=True)
    assert config_differences(old, config(anneal=True, steps=20), 12) == [
        "steps=12, now steps=20, which would change the learning rate of updates already made"
    ]
    train(tmp_path, lr_schedule="cosine", steps=2)
    with pytest.raises(OptionError, match=r"or choose another folder; a new run can begin with .* this one: --init"):
        train(tmp_path, lr_schedule="cosine", steps=3)
    assert config_differences(old, config(anneal=False), 12) == ["anneal=True, now anneal=False"]
    assert config_differences(config(), config(steps=20), 12) == []


def test_what_the_learning_rate_depends_on_is_fixed():
    old = config(anneal=True)
    assert config_differences(old, config(lr_schedule="linear"), 12) == []
    assert config_differences(config(), config(lr_schedule="constant", steps=20), 12) == []
    assert config_differences(old, config(lr_schedule="cosine"), 12) == [
        "lr_schedule=None, now lr_schedule='cosine'",
        "anneal=True, now anneal=False",
    ]
    rsqrt = config(lr_schedule="rsqrt", rsqrt_steps=5)
    assert config_differences(rsqrt, config(lr_schedule="rsqrt", rsqrt_steps=5, steps=20), 12) == []
    assert config_differences(rsqrt, config(lr_schedule="rsqrt"), 12) == ["rsqrt_steps=5, now rsqrt_steps=None"]
    longer = config(lr_schedule=("wsd", {"end": 40}), steps=40)
    assert config_differences(config(lr_schedule="wsd"), longer, 10) == []  # the fall has not begun
    assert len(config_differences(config(lr_schedule="wsd"), longer, 12)) == 2


def test_a_run_of_a_version_without_schedules_resumes(tmp_path):
    train(tmp_path, steps=2, anneal=True, anneal_steps=4)
    path = tmp_path / "config.json"
    kept = json.loads(path.read_text())
    for name in ("lr_schedule", "rsqrt_steps"):
        del kept["train"][name]
    path.write_text(json.dumps(kept))
    train(tmp_path, steps=4, lr_schedule="linear")
    assert [line["lr"] for line in lines(tmp_path)] == pytest.approx([1e-2, 7.5e-3, 5e-3, 2.5e-3])


def test_half_a_launchers_environment_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    refused(tmp_path, OptionError, "WORLD_SIZE=2 is set but RANK is not; start the processes with torchrun")


def test_the_lock_is_of_the_folder_not_the_process(tmp_path):
    with RunLock(tmp_path), pytest.raises(OptionError, match=r"is being written by another training \(process"):
        train(tmp_path)
    with RunLock(tmp_path):
        pass
    train(tmp_path, steps=1)


def test_a_configuration_that_cannot_be_read(tmp_path, capsys):
    """A checkpoint knows what it says; those of earlier versions do not."""
    train(tmp_path, steps=1)
    whole = (tmp_path / "config.json").read_bytes()
    for damaged in ("{", "[]", "{}", '{"format": 1}', '{"format": 1, "data": {}, "train": {"lr": "x", "steps": 1}}'):
        (tmp_path / "config.json").write_text(damaged)
        with pytest.raises(OptionError, match=r"batch_size=5, now batch_size=4"):
            train(tmp_path, steps=1, batch_size=4)
        train(tmp_path, steps=1)
        assert (tmp_path / "config.json").read_bytes() == whole
        assert "config.json" in capsys.readouterr().err
    manifest = tmp_path / "checkpoints" / "step_00000001" / "manifest.json"
    older = json.loads(manifest.read_text())
    del older["sha256"], older["run"]
    manifest.write_bytes(_manifest_bytes(older))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read as JSON: .*; put a copy of it back, or"):
        train(tmp_path)
    (tmp_path / "config.json").write_text('{"format": 2}')
    with pytest.raises(CheckpointError, match=r"config\.json has format 2, this diffkit reads 1"):
        train(tmp_path)


def test_silent_by_default(tmp_path, capfd):
    train(tmp_path / "a", steps=2)
    assert capfd.readouterr() == ("", "")
    train(tmp_path / "b", steps=2, progress=True)
    text = capfd.readouterr().err.splitlines()
    assert text[0] == f"training in {str(tmp_path / 'b')!r}: 2 steps"
    assert text[-1] == f"done: 2 steps; diffkit.load({str(tmp_path / 'b')!r}) has the result"
    train(tmp_path / "b", steps=4, progress=True)
    assert capfd.readouterr().err.startswith(f"continuing {str(tmp_path / 'b')!r} after step 2 of 4\n")


def test_a_bar_on_a_terminal(tmp_path, monkeypatch):
    import io
    import sys

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    train(tmp_path, steps=3, progress=True)
    shown = sys.stderr.getvalue()
    assert "3/3" in shown and "ETA" in shown and "loss" in shown and "images/s" in shown


def test_labels_are_not_needed_by_a_network_of_ones_own(tmp_path):
    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(2, 2)

        def forward(self, x, time):
            return self.linear(x)

    train(tmp_path, system=point_system(backbone=Own()), data=points(), label_dropout=0.0, steps=2)
    with pytest.raises(SpecError, match="has a network of its own"):
        diffkit.load(tmp_path)
    loaded = diffkit.load(tmp_path, backbone=Own())
    assert loaded.sample(2, progress=False).shape == (2, 2)
    assert DEFAULTS["label_dropout"] == 0.2


def test_previews_are_of_images(tmp_path):
    text = "previews are of images, but the data has shape (2,); leave preview_every out"
    options = dict(system=point_system(), data=points(), label_dropout=0.0)
    refused(tmp_path, DataError, text, preview_every=5, **options)


def test_dropping_classes_that_are_not_there(tmp_path):
    with pytest.raises(DataError, match=r"label_dropout=0.1 drops classes, but the data has no classes; load it with"):
        train(tmp_path, data=points(), system=point_system(), label_dropout=0.1)
