"""The table of the published scripts' flags is whole, and every option it names is there and takes what it shows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs
import numpy as np
import pytest
import torch

import diffkit
from diffkit.cli.parsing.commands import load, table
from diffkit.cli.parsing.options import options_of
from diffkit.cli.parsing.parts import part_options
from diffkit.cli.parsing.request import look, resolve
from diffkit.registry import SLOTS, registry

PAGE = Path(__file__).parents[2] / "docs" / "from-openai.md"

# Read off the scripts of improved-diffusion 1bc7bbb and guided-diffusion 22e0df8.
MODEL = """image_size num_channels num_res_blocks num_heads num_heads_upsample attention_resolutions dropout learn_sigma
sigma_small class_cond diffusion_steps noise_schedule timestep_respacing use_kl predict_xstart rescale_timesteps
rescale_learned_sigmas use_checkpoint use_scale_shift_norm large_size small_size num_head_channels channel_mult
resblock_updown use_fp16 use_new_attention_order"""
FLAGS = {
    "Model and diffusion": MODEL,
    "Training: image_train.py, super_res_train.py": """data_dir schedule_sampler lr weight_decay lr_anneal_steps
        batch_size microbatch ema_rate log_interval save_interval resume_checkpoint use_fp16 fp16_scale_growth""",
    "Sampling: image_sample.py": "clip_denoised num_samples batch_size use_ddim model_path",
    "Upsampling: super_res_sample.py": "clip_denoised num_samples batch_size use_ddim base_samples model_path",
    "Scoring: image_nll.py": "data_dir clip_denoised num_samples batch_size model_path",
    "Classifiers: classifier_train.py": """data_dir val_data_dir noised iterations lr weight_decay anneal_lr batch_size
        microbatch schedule_sampler resume_checkpoint log_interval eval_interval save_interval image_size
        classifier_use_fp16 classifier_width classifier_depth classifier_attention_resolutions
        classifier_use_scale_shift_norm classifier_resblock_updown classifier_pool""",
    "Sampling with a classifier: classifier_sample.py": """clip_denoised num_samples batch_size use_ddim model_path
        classifier_path classifier_scale""",
    "Measuring: evaluations/evaluator.py": "ref_batch sample_batch",
    "Data sets: datasets/cifar10.py, datasets/lsun_bedroom.py": "image-size prefix lmdb_path out_dir",
    "Environment": """OPENAI_LOGDIR OPENAI_LOG_FORMAT OPENAI_LOG_FORMAT_MPI DIFFUSION_BLOB_LOGDIR
        DIFFUSION_TRAINING_TEST""",
}
NEEDED = {
    "train": ["--data", "pictures", "--data.size", "64", "--out", "runs/a", "--steps", "1"],
    "train-classifier": ["--data", "pictures", "--data.size", "64", "--out", "runs/c", "--steps", "1"],
    "sample": ["runs/a"],
    "nll": ["runs/a", "--data", "pictures", "--data.size", "64"],
    "evaluate": ["--data", "pictures", "--data.size", "64"],
}


IN_PYTHON = "In Python"


def all_sections() -> dict[str, str]:
    found = re.split(r"^## (.*)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(found[1::2], found[2::2], strict=True))


def sections() -> dict[str, str]:
    """Those about commands."""
    return {title: text for title, text in all_sections().items() if title != IN_PYTHON}


def rows(section: str) -> list[list[str]]:
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


@pytest.mark.parametrize("title", FLAGS)
def test_every_flag_has_a_line(title: str):
    named = [re.findall(r"`([^`]+)`", cells[0])[0] for cells in rows(sections()[title])]
    assert set(FLAGS[title].split()) <= set(named)
    own = set(named) - set(FLAGS[title].split())
    assert own <= {"timestep_respacing", "class_cond"}  # which matter to a script although they describe the process


def test_a_line_without_an_option_gives_advice():
    for section in sections().values():
        for flag, here, note in rows(section):
            assert here or note, flag


def fragments() -> Iterator[tuple[str, str]]:
    for section in sections().values():
        command = re.search(r"`diffkit ([\w-]+)", section)
        for cells in rows(section):
            for words in re.findall(r"`([^`]+)`", cells[1]):
                assert command is not None
                yield command[1], words


def without_named(needed: Sequence[str], words: Sequence[str]) -> list[str]:
    """What a command line needs, but what it has already."""
    kept: list[str] = []
    for word, following in zip(needed, [*needed[1:], ""], strict=True):
        if word.startswith("--"):
            kept += [] if word in words or (word.startswith("--data.") and "--data" in words) else [word, following]
        elif needed.index(word) == 0 and words[0].startswith("-"):
            kept.append(word)
    return kept


@pytest.mark.parametrize(("command", "words"), sorted(set(fragments())))
def test_every_option_is_there_and_takes_the_value(
    command: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "base.npz").touch()
    line = words.split()
    parsed, _ = resolve(look(command, load(table()[command]).SPEC, [*without_named(NEEDED[command], line), *line]))
    assert parsed.values or parsed.parts


def known() -> set[str]:
    """Every option of any command, of any part."""
    found = {"-n", "--config", "--print-config", "--preset", "--help"}
    for name in table():
        spec = load(table()[name]).SPEC
        options = [option for cls in spec.options.values() for option in options_of(cls)]
        found |= {option.flag for option in options} | {option.negative for option in options}
        found |= {f"--{kind}" for kind in spec.slots}
    for kind in SLOTS:
        for name in registry(kind).built_in_names():
            found |= {option.flag for option in part_options(kind, name)}
    from diffkit.data import Folder, NumpyFile

    sources = [*map(registry("data").get, registry("data").built_in_names()), NumpyFile, Folder]
    names = {field.name.replace("_", "-") for cls in sources for field in attrs.fields(cls)}
    found |= {f"--{slot}.{name}" for slot in ("data", "val") for name in names}
    return found | {f"--guidance{name}" for name in ("", ".scale", ".classifier", ".shift")}


def test_every_option_anywhere_on_the_page_is_there():
    named = set(re.findall(r"(?<![\w-])(--?[a-z][\w.-]*)", "\n".join(re.findall(r"`([^`]*)`", PAGE.read_text()))))
    assert len(named) > 50
    assert named - known() == set()


def expressions() -> Iterator[str]:
    """What the section on Python says to type, where it is an expression and no keyword of one."""
    for _, here in rows(all_sections()[IN_PYTHON]):
        for text in re.findall(r"`([^`]+)`", here):
            if re.match(r"[\w.]+\(|[\w.]+\[|table", text):
                yield text


@pytest.mark.parametrize("text", [*expressions()])
def test_what_is_to_be_typed_in_python_runs(text: str):
    system = diffkit.compose(schedule="cosine", backbone=None, data_shape=(1, 4, 4), num_steps=1000)

    def model(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return x * 0.5

    system.network = torch.nn.Identity()
    system.network.forward = model  # type: ignore[method-assign]
    x, t = torch.zeros(2, 1, 4, 4), torch.tensor([0, 9])
    row = system.objective.level(t + 1, x)
    names = dict(diffkit=diffkit, registry=registry, ProcessTable=diffkit.ProcessTable, np=np, system=system)
    names |= dict(table=system.table, k=3, n=2, x=x, x_start=x, t=t, noise=x, model=model, level=row, T=10, cap=0.9)
    names |= dict(f=lambda u: np.cos(u), u=np.arange(11) / 10)
    assert eval(text, names) is not None


def test_the_section_on_python_has_expressions():
    assert len([*expressions()]) >= 14
