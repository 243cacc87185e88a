"""Run an exported file in a process of its own, and compare it with the system it came from."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attrs import frozen
from torch import Tensor

from diffkit.errors import CheckpointError, OptionError, needed
from diffkit.runtime.strict_json import parse_json, reason
from diffkit.runtime.weights_files import weights_record
from diffkit.system.module import System
from diffkit.tasks.exporting import host
from diffkit.tasks.exporting.graph import first_line
from diffkit.tasks.exporting.writing import FORMAT, LIBRARY, METADATA, ONNX, PROGRAM

LIMITS = {PROGRAM: 5e-5, LIBRARY: 1e-4, ONNX: 2e-4}
"""Largest difference of samples, relative to the largest of them."""


@frozen
class Comparison:
    """An exported file and the system it came from, on the same inputs.

    Attributes:
        kind: What the file is: "torch.export", "AOTInductor" or "ONNX".
        difference: Largest difference of an output, relative to the largest output.
        limit: What it may be.
        examples: How many examples were compared.
    """

    kind: str
    difference: float
    limit: float
    examples: int

    @property
    def ok(self) -> bool:
        """Whether the difference is within the limit."""
        return self.difference <= self.limit

    def __str__(self) -> str:
        """Return one line."""
        found = "the same bits" if self.difference == 0 else f"a relative difference of {self.difference:.1e}"
        verdict = "ok" if self.ok else f"more than {self.limit:g}"
        return f"{self.kind}, {self.examples} examples: {found} ({verdict})"


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Return what an exported file says of itself.

    Raises:
        CheckpointError: It is no file that `diffkit.export` wrote, or of a later version.
    """
    path = Path(path)
    try:
        text = _onnx_text(path) if path.suffix == ".onnx" else _zip_text(path)
        record = parse_json(text)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} is no file that diffkit.export wrote: {reason(error)}") from error
    if not isinstance(record, Mapping) or record.get("format") != FORMAT:
        raise CheckpointError(f"{path} was written by another version of diffkit; export it again")
    return dict(record)


def _zip_text(path: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(f"/extra/{METADATA}"):
                return archive.read(name).decode()
            if name.endswith("_metadata.json"):
                return str(json.loads(archive.read(name))[METADATA])
    raise KeyError(METADATA)


def _onnx_text(path: Path) -> str:
    with needed("onnx", "a file of ONNX"):
        import onnx
    try:
        model = onnx.load(path, load_external_data=False)
    except OSError:
        raise
    except Exception as error:  # of protobuf, whose errors share no class
        raise ValueError(first_line(error)) from error
    return str({each.key: each.value for each in model.metadata_props}[METADATA])


def check_export(path: str | Path, system: System, *, examples: int = 3, seed: int = 0) -> Comparison:
    """Run an exported file in a process without diffkit, and compare it with the system on the same noise.

    Args:
        path: The file.
        system: The system it came from.
        examples: How many examples to compare.
        seed: Of noise and conditions.
    Raises:
        CheckpointError: It is no such file, or it does not run.
        OptionError: The system has other weights, or the file cannot be compared.
    """
    record = read_metadata(path)
    network = system.network
    if network is None or weights_record(network.state_dict()) != record["weights"]:
        raise OptionError(f"{path} was exported with other weights than those of this system; export it again")
    if record["draws_noise"]:
        raise OptionError(f"{path} draws its noise itself, so it cannot be compared; export it without draw_noise")
    given = _inputs(record, system, examples, seed)
    expected = _expected(record, system, given)
    found = _run(Path(path), given)
    scale = float(expected.abs().max())
    difference = float((torch.from_numpy(found) - expected).abs().max()) / scale
    return Comparison(record["kind"], difference, LIMITS[record["kind"]], examples)


def _inputs(record: Mapping[str, Any], system: System, examples: int, seed: int) -> dict[str, Tensor]:
    generator, found = torch.Generator().manual_seed(seed), {}
    for each in record["inputs"]:
        shape = [examples if size == "batch" else size for size in each["shape"]]
        dtype = getattr(torch, each["dtype"])
        if each["name"] == "time":
            times = torch.tensor(system.table.time[1:])
            found["time"] = times[torch.randint(len(times), shape, generator=generator)].to(dtype)
        elif dtype.is_floating_point:
            found[each["name"]] = torch.randn(shape, generator=generator).to(dtype)
        else:
            found[each["name"]] = torch.randint(system.parts.classes or 1, shape, generator=generator).to(dtype)
    return found


@torch.no_grad()
def _expected(record: Mapping[str, Any], system: System, given: Mapping[str, Tensor]) -> Tensor:
    """What the system makes of the inputs, step by step."""
    given = dict(given)
    x = given.pop("x")
    if record["holds"] == "network":
        assert system.network is not None
        output: Tensor = system.network.eval()(x, given.pop("time"), **given)
        return output
    if record["sampling"] is None:
        raise OptionError("the file was exported with a sampler or guidance that has no name, so nothing can repeat it")
    noise = given.pop("noise", None)
    options: dict[str, Any] = {**record["sampling"], **given}
    job = system.prepare(len(x), **options)
    program, rows = job.program(), range(len(x))
    drawn = None if noise is None else iter(noise)
    with job.running("", program.num_steps, progress=False) as advance:
        start = x * float(job.table.total_std[-1])
        z = job.finish(program, rows, start, None if drawn is None else lambda: next(drawn), advance)
        return system.from_latents(z)


def _run(path: Path, given: Mapping[str, Tensor]) -> np.ndarray:
    """The output of the file in a process that does not import diffkit."""
    with tempfile.TemporaryDirectory() as folder:
        inputs, output = Path(folder, "inputs.npz"), Path(folder, "output.npy")
        arrays: dict[str, Any] = {name: value.numpy() for name, value in given.items()}
        np.savez(inputs, **arrays)
        command = [sys.executable, "-I", str(host.__file__), str(path.resolve()), str(inputs), str(output)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no output"])[-1]
            raise CheckpointError(f"{path} does not run: {last}")
        return np.asarray(np.load(output))
