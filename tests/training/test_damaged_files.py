"""One damaged line, or one file that is not JSON at all, costs that line or file and no run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from training_support import lines, train

from diffkit.errors import CheckpointError
from diffkit.training.checkpoint import newest_first


@pytest.mark.parametrize(
    "damage", [b"null\n", b'{"step": "x"}\n', b"\xb8\n", b"[" * 100_000 + b"\n", b'{"step": 1e999}\n']
)
def test_a_damaged_line_of_metrics_costs_that_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: bytes):
    train(tmp_path, steps=8)
    before = lines(tmp_path)
    written = (tmp_path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_bytes(b"".join([*written[:3], damage, *written[4:]]))
    assert lines(tmp_path) == before[:3] + before[4:]
    train(tmp_path, steps=12)
    warning = f"warning: {tmp_path / 'metrics.jsonl'} is damaged: line 4 is left out"
    assert warning in capsys.readouterr().err
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, *range(5, 13)]


@pytest.mark.parametrize("damage", [b"[" * 100_000, b"\xff", b"3", b'{"step": 12, "step": 12}'])
def test_a_damaged_manifest_falls_back_to_the_checkpoint_before(tmp_path: Path, damage: bytes):
    train(tmp_path, steps=12)
    (next(newest_first(tmp_path / "checkpoints")) / "manifest.json").write_bytes(damage)
    train(tmp_path, steps=12)
    assert (tmp_path / "checkpoints" / "step_00000012").is_dir()


@pytest.mark.parametrize(
    "change",
    [
        {"train": 3},
        {"data": None},
        {"train": {"steps": 8, "colour": 1}},
        {"train": {}},
        {"train": {"steps": "x"}},
        {"frozen": 3},
        {"format": None},
    ],
)
def test_a_damaged_description_of_a_run_is_written_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, object]
):
    train(tmp_path, steps=4)
    path = tmp_path / "config.json"
    written = path.read_bytes()
    for damage in (json.dumps(json.loads(written) | change).encode(), b"[" * 100_000):
        path.write_bytes(damage)
        train(tmp_path, steps=4)
        assert path.read_bytes() == written
        assert "config.json" in (said := capsys.readouterr().err) and said.endswith("; it is written again\n")


def test_a_sealed_checkpoint_of_something_else_gives_advice(tmp_path: Path):
    """Nothing is damaged, but its optimizer is another's; going on without it, as advised, works."""
    from safetensors.torch import load, save

    from diffkit.runtime.weights_files import digest
    from diffkit.training import checkpoint

    train(tmp_path, steps=8)
    newest = next(newest_first(tmp_path / "checkpoints"))
    tensors = load((newest / "optimizer.safetensors").read_bytes())
    name = next(full for full in tensors if full.startswith("exp_avg/"))
    for change, text in (
        ({name: tensors[name].flatten()[:1]}, f"{name} of optimizer has shape (1,), not"),
        ({name: None}, f"optimizer has no exp_avg of {name.removeprefix('exp_avg/')}"),
        ({name: tensors[name].int()}, f"{name} of optimizer holds torch.int32, not torch.float32"),
        (
            {"exp_avg/\x1b[2J": tensors[name].clone()},
            r"optimizer has 'exp_avg/\x1b[2J', of no parameter of the network",
        ),
    ):
        content = save({full: value for full, value in (tensors | change).items() if value is not None})
        (newest / "optimizer.safetensors").write_bytes(content)
        manifest = json.loads((newest / "manifest.json").read_text())
        del manifest["sha256"]
        manifest["files"]["optimizer.safetensors"] = digest(content)
        (newest / "manifest.json").write_bytes(
            checkpoint._manifest_bytes(manifest)
        )  # a test of what no damage would leave
        with pytest.raises(CheckpointError) as caught:
            train(tmp_path, steps=12)
        assert text in str(caught.value)
    shutil.rmtree(newest)
    train(tmp_path, steps=12)
    assert lines(tmp_path)[-1]["step"] == 12
