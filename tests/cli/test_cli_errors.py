"""Every refusal of a command line: one line that names what would work."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cli_support import Command, Refused

from diffkit.registry import registry


def test_unknown_command(refused: Refused):
    assert all(word in refused("trian") for word in ("trian", "train"))


def test_unknown_part(refused: Refused):
    text = refused("explain", "--schedule", "cosin")
    assert "did you mean 'cosine'?" in text and all(name in text for name in registry("schedule").names())
    assert text == refused("explain", "--schedule=cosin") == refused("train", "--schedule", "cosin", "--help")


def test_part_without_a_name(refused: Refused):
    assert refused("explain", "--schedule=").startswith("--schedule needs a name; Noise schedule.")
    assert "--schedule requires" in refused("explain", "--schedule")


def test_unknown_option(refused: Refused):
    assert refused("explain", "--num-step", "3") == "unknown option: --num-step. Did you mean --num-steps?"
    assert refused("list", "--zzz") == "unknown option: --zzz"


@pytest.mark.parametrize("name", ["train", "train-classifier"])
def test_an_option_of_another_library(refused: Refused, name: str):
    assert refused(name, "--learning-rate", "1") == "no option '--learning-rate'; that is --lr here"
    assert refused(name, "--max_grad_norm", "1") == "no option '--max-grad-norm'; that is --grad-clip here"
    assert "that is" not in refused("explain", "--learning-rate", "1")


def test_unknown_option_of_a_part(refused: Refused):
    assert refused("explain", "--schedule", "cosine", "--schedule.ss", "1") == (
        "schedule 'cosine' has no option 'ss'; did you mean 's'? (options: s, max_beta)"
    )
    assert refused("explain", "--schedule.s", "1") == (
        "schedule 'linear' has no option 's' (options: start, end); schedule 'cosine' has it: --schedule cosine"
    )
    assert refused("explain", "--mean.x", "1") == "mean 'eps' has no option 'x' (options: none)"
    assert refused("sample", "RUN", "--sampler.eta", "1") == (
        "--sampler.eta needs a sampler; write --sampler NAME before it, such as ddim, dpm2_ancestral or "
        "dpmpp_2s_ancestral"
    )
    assert refused("nll", "RUN", "--data", "digits", "--data.splt", "all") == (
        "data 'digits' has no option 'splt'; did you mean 'split'? (options: split, labels)"
    )


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--num-steps", "1.7"], "an integer"),
        (["--num-steps", "true"], "an integer"),
        (["--bins", "many"], "an integer or a table or none"),
        (["--data-shape", "3,x"], "a list of integers"),
        (["--rescale-time", "maybe"], "into bool"),
        (["--schedule", "cosine", "--schedule.s", "a"], "a number"),
        (["--schedule", "cosine", "--schedule.s", "-1"], ">= 0"),
        (["--schedule", "cosine", "--schedule.s", "nan"], "finite"),
        (["--num-steps"], "requires an argument"),
        (["--num-steps", "3", "--num_steps", "4"], "multiple times"),
        (["word"], "'word' is one argument too many; this command takes options only"),
    ],
)
def test_bad_values(refused: Refused, words: list[str], reason: str):
    text = refused("explain", *words)
    assert reason in text
    assert text.flags == [word for word in words[-2:] if word.startswith("--")][-1:]


def test_bad_values_of_parts_are_reported_together(refused: Refused):
    found = refused("explain", "--schedule.start", "-1", "--schedule.end", "3")
    assert found.splitlines() == [
        "2 faults:",
        "  --schedule.start must be > 0 and < 1, got -1.0",
        "  --schedule.end must be > 0 and < 1, got 3.0",
    ]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_pipes_and_devices_are_neither_read_nor_replaced(refused: Refused, tmp_path: Path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for words in (["explain", "--config"], ["explain", "--spec"], ["explain", "--plot"], ["train", "--out"]):
        flag = words[-1]
        assert refused(*words, pipe) == f"{flag} must be a file or folder, got '{pipe}', which is a pipe or device"
    assert refused("export", "RUN", "--to", os.devnull).startswith("--to must be a file or folder, got '/dev/null'")


def test_missing_options(refused: Refused):
    assert refused("sample") == "diffkit sample needs RUN"
    assert refused("nll") == "diffkit nll needs RUN and --data"
    assert refused("train") == "diffkit train needs --out and --data"
    line = ("train", "--out", "run", "--data", "digits")
    assert refused(*line) == "train needs its length; use --steps ... or --epochs ..."


def test_parts_that_do_not_fit(refused: Refused):
    found = refused("explain", "--loss", "hybrid")
    assert found.startswith("1 problem composing this system:\n  loss 'hybrid' trains the variance")


def test_data_that_is_not_there(refused: Refused, tmp_path: Path):
    assert "did you mean 'digits'?" in refused("nll", "RUN", "--data", "digit")
    assert refused("nll", "RUN", "--data", tmp_path) == "diffkit nll needs --data.size"


def test_debug_shows_where_an_error_came_from(command: Command):
    found = command("--debug", "list", "vars")
    assert found.code == 2
    assert "Traceback" in found.err and found.err.rstrip().splitlines()[-1].startswith("error: no kind 'vars'")


def test_interrupt_has_its_own_exit_code(command: Command, monkeypatch: pytest.MonkeyPatch):
    from diffkit.cli.commands import list as listing

    def interrupted(given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(listing, "run", interrupted)
    found = command("list")
    assert (found.code, found.err) == (130, "interrupted\n")


MISSING = """
import sys
sys.modules |= dict.fromkeys({blocked!r})
from diffkit.__main__ import main
sys.exit(main({words!r}))
"""


def without(blocked: set[str], *words: str) -> subprocess.CompletedProcess[str]:
    """A command line on a machine where some packages are not installed."""
    code = MISSING.format(blocked=blocked, words=list(words))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("blocked", ["cyclopts", "rich"])
def test_missing_extra_of_the_command_itself(blocked: str):
    found = without({blocked}, "list")
    assert found.returncode == 2 and found.stdout == ""
    assert found.stderr == ("error: the diffkit command needs the 'cli' extra; run: pip install \"diffkit[cli]\"\n")


@pytest.mark.parametrize(
    ("blocked", "words", "extras"),
    [
        (["torchmetrics", "torch_fidelity", "PIL"], ["--data", "photos", "--data.size", "8"], {"inception", "train"}),
        (["torchmetrics", "sklearn"], ["--data", "digits", "--extractor", "digits"], {"demo", "metrics"}),
        (["sklearn", "matplotlib"], ["--data", "digits", "--plot", "a.png"], {"demo", "plot"}),
    ],
)
def test_missing_extras_are_named_together_before_any_work(
    command: Command, saved: Path, tmp_path: Path, monkeypatch, blocked: list[str], words: list[str], extras: set[str]
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for module in blocked:
        monkeypatch.setitem(sys.modules, module, None)
    found = command("nll" if "--plot" in words else "evaluate", saved, *words)
    assert found.code == 2 and found.out == "" and found.err.count("\n") == 1
    want = re.search(r'pip install "diffkit\[(.*)\]"', found.err)
    assert want is not None and set(want[1].split(",")) == extras


def test_extras_bring_the_modules_that_are_looked_for():
    import tomllib
    from importlib.metadata import packages_distributions

    from diffkit.cli.shared.extras import MODULES

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    offered = project["project"]["optional-dependencies"]

    def brought(extra: str) -> set[str]:
        found = set()
        for line in offered[extra]:
            nested = re.fullmatch(r"diffkit\[(.*)\]", line)
            found |= set().union(*map(brought, nested[1].split(","))) if nested else {re.split(r"[><=]", line)[0]}
        return {name.lower() for name in found}

    owners = {module: {name.lower() for name in names} for module, names in packages_distributions().items()}
    known = {"jinja2": {"jinja2"}, "torch_fidelity": {"torch-fidelity"}}
    for extra, modules in MODULES.items():
        for module in modules:
            assert brought(extra) & (owners.get(module) or known.get(module) or {module}), (extra, module)


def test_code_of_others_that_ends_the_process(command: Command, refused: Refused, monkeypatch: pytest.MonkeyPatch):
    words = ["evaluate", "--data", "digits", "--save-reference", "x.npz", "--extractor"]
    assert refused(*words, "sys:exit") == "extractor 'sys:exit' cannot be made: SystemExit"
    from diffkit.cli.commands import size

    monkeypatch.setattr(size, "run", lambda given: sys.exit())
    found = command("size")
    assert (found.code, found.err) == (
        1,
        "error: a part or module of others called sys.exit(), so the command is not done\n",
    )


def test_a_seed_is_not_negative(refused: Refused, tmp_path: Path):
    for words in (
        ["sample", "RUN"],
        ["nll", "RUN", "--data", "digits"],
        ["report", "RUN"],
        ["evaluate", "RUN", "--data", "digits"],
        ["edit", "RUN", "PICTURES"],
        ["demo"],
    ):
        assert refused(*words, "--seed", "-1") == "--seed must be >= 0, got -1"
    assert refused("nll", "RUN", "--data", "digits", "--rows-per-call", "0") == "--rows-per-call must be >= 1, got 0"


def test_which_mean(refused: Refused, tmp_path: Path):
    for more in ([], ["--rate", "0.9", "--width", "0.1"]):
        assert refused("average", "RUN", "--out", tmp_path / "o", *more).startswith("give either --rate, ")


def test_what_a_mean_would_need_is_reported_in_flags(command: Command, refused: Refused, tmp_path: Path):
    small = ["--data", "digits", "--steps", "1", "--batch-size", "2", "--num-steps", "4", "--backbone.hidden", "8"]
    found = command("train", *small, "--backbone", "mlp", "--schedule", "cosine", "--out", tmp_path / "run")
    assert found.code == 0, found.err
    text = refused("average", tmp_path / "run", "--width", "0.1", "--out", tmp_path / "o")
    assert text.endswith("use --ema-power 0.05,0.1")


@pytest.mark.parametrize("name", ["train", "train-classifier"])
def test_training_begins_in_no_folder_of_other_things(refused: Refused, tmp_path: Path, name: str):
    (tmp_path / "thesis.txt").touch()
    assert refused(name, "--data", "digits", "--steps", "1", "--out", tmp_path) == (
        f"--out {tmp_path} holds something, such as thesis.txt, but no run; name another folder"
    )


def test_images_are_read_only_for_what_can_be_trained(command: Command, refused: Refused, tmp_path: Path):
    """Reading them takes minutes where there are many; here it fails, so whatever else is said came before."""
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.png").write_text("no image")
    words = ["--data", photos, "--data.size", "8", "--steps", "1", "--out", tmp_path / "run"]
    assert "cannot be read" in command("train", *words).err
    assert "has none to train" in refused("train", *words, "--loss", "hybrid")
    assert "nowhere/spec.json is not there" in refused("nll", tmp_path / "nowhere", *words[:4])
    for name in ("train", "train-classifier"):
        assert refused(name, *words, "--track", "mlflow").startswith("no tracker named 'mlflow'")


def test_more_than_memory_holds_is_not_begun(refused: Refused, saved: Path, tmp_path: Path):
    number, out = "100000000000", ["--out", tmp_path / "o"]
    assert refused("edit", "RUN", "P", "-n", number, *out) == f"-n must be >= 1 and <= 10000, got {number}"
    assert refused("interpolate", "RUN", "A", "B", "-n", number, *out) == f"-n must be >= 2 and <= 10000, got {number}"
    assert refused("evaluate", saved, "--data", "digits", "--extractor", "digits", "--num", number) == (
        f"--num must be <= 1000000 where samples are drawn from a system, got {number}"
    )


def test_memory_that_runs_out(command: Command, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    words = ["--num-steps", "30", "--backbone", "mlp", "--backbone.hidden"]
    assert "the network needs more memory than there is; use one that is smaller" in refused(
        "size", *words, "9999999999999"
    )

    from diffkit.cli.commands import size

    def failing(given: object) -> None:
        raise RuntimeError("another fault")

    monkeypatch.setattr(size, "run", failing)
    with pytest.raises(RuntimeError, match="another fault"):
        command("size")


def test_a_compiler_that_fails(refused: Refused, monkeypatch: pytest.MonkeyPatch):
    from diffkit.cli.commands import size

    def failing(given: object) -> None:
        raise type("InductorError", (RuntimeError,), {"__module__": "torch._inductor.exc"})("no compiler\nat all")

    monkeypatch.setattr(size, "run", failing)
    assert refused("size") == "torch's compiler failed (no compiler); leave --compile out"


def test_words_that_are_nearly_right(refused: Refused, tmp_path: Path):
    (tmp_path / "notes.txt").touch()
    notes = tmp_path / "notes.txt"
    assert "--network: unable to convert" in refused("explain", "--network", "unet")
    assert "unknown option: --hlep" in refused("sample", "RUN", "--hlep")
    assert refused("sample", "RUN", "--steps", "") == "--steps must not be empty"
    assert refused("sample", "RUN", "--out", "") == "--out must not be empty"
    assert "is a file, but not a .npz, .npy, .zip or .tar" in refused("nll", "RUN", "--data", notes)
    assert refused("sample", notes).startswith(f"{notes} is a file; a saved system is a folder with spec.json")


def test_processes_of_one_job_say_an_error_once(command: Command, monkeypatch: pytest.MonkeyPatch):
    """The launcher keeps what was said; an error of one process alone is said by it, whichever it is."""
    import torch.distributed as dist

    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    launcher = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)

    def said(rank: int, *words: str) -> bool:
        monkeypatch.setenv("RANK", str(rank))
        found = command(*words)
        assert found.code == 2
        return found.err.startswith("error: ")

    assert [said(rank, "train") for rank in (0, 1)] == [True, True]  # nobody is there to ask
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    assert [said(rank, "train") for rank in (1, 0, 1)] == [True, False, False]
    assert said(1, "sample")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert said(0, "train")
    del store
    monkeypatch.setenv("MASTER_PORT", "no number")
    assert said(0, "train")


def test_a_zero_byte_in_a_path_of_a_file_of_options_is_refused(refused, tmp_path):
    (tmp_path / "options.toml").write_text('out = "a\\u0000b"\n', encoding="utf-8")
    found = refused("sample", tmp_path, "--config", tmp_path / "options.toml")
    assert "out must be without a zero byte" in found and "\0" not in found


def test_an_option_is_not_the_value_of_the_one_before(refused: Refused, tmp_path: Path):
    """Or ``--print-config`` behind an option without its value would begin a run."""
    for words in (["--device", "--print-config"], ["--out", "--print-config"], ["--track", "--steps=3"]):
        text = refused("train", "--data", "digits", "--out", tmp_path / "x", "--steps", "9", *words)
        assert text.flags == words[:1] and "requires an argument" in text
    assert not (tmp_path / "x").exists()


def test_behind_two_dashes_nothing_is_an_option(refused: Refused):
    assert refused("train", "--data", "digits", "--", "--print-config").startswith("--print-config stands behind '--'")
