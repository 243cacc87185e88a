"""Write a system's sampling, or its network, into one file that runs without diffkit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from diffkit._version import __version__
from diffkit.errors import CheckpointError, OptionError, SpecError, needed
from diffkit.runtime.files import flush, replacing, unwrap_module
from diffkit.runtime.strict_json import reason
from diffkit.runtime.weights_files import weights_record
from diffkit.system.call_options import JobOptions, conditions_in, options_in, shows_options
from diffkit.system.conditions import refuse
from diffkit.system.module import System
from diffkit.system.prepared import SamplingJob
from diffkit.system.sampling_defaults import plain_steps
from diffkit.system.saving import part_spec
from diffkit.tasks.exporting.graph import Input, first_line, quietly, traced
from diffkit.tasks.exporting.walk import Walk
from diffkit.tensors import precision_of

FORMAT = 1
METADATA = "diffkit.json"
"""Name under which a file holds what it is: of the extra file in it, or of its property."""
PROGRAM, LIBRARY, ONNX = "torch.export", "AOTInductor", "ONNX"
_MOST_OF_ONNX = 1_500_000_000
"""Bytes of weights from which on torch would write them into a second file; a file of ONNX holds 2 GB."""


@shows_options(JobOptions)
def export(
    system: System,
    to: str | Path,
    *,
    loop: bool = True,
    compiled: bool = False,
    draw_noise: bool = False,
    **options: Unpack[JobOptions],
) -> Path:
    """Write sampling, or the network alone, into one file that runs where diffkit is not installed.

    The file takes standard normal noise x (batch, C, *S), for a batch of any size, then the noise of the steps
    (steps, batch, C, *S) if the sampler adds noise, then the conditions, in the order given here, and returns samples
    (batch, C, *S). The steps are a loop in it, so its size does not grow with their number. The network alone takes x,
    time (batch,) and the conditions. What it takes and where it comes from is written inside as well.

    Args:
        system: The system, on the device where the file will run.
        to: The file: ``.pt2`` for PyTorch, ``.onnx`` for ONNX, which needs the extra "onnx".
        loop: False writes the network alone.
        compiled: Compile the graph to a library inside the .pt2 file (AOTInductor), for machines like this one. It
            needs a C++ compiler.
        draw_noise: Draw the noise of the steps in the file, from torch's generator, in place of an input.
        options: Those of `diffkit.system.call_options.JobOptions`.
        conditions: An example of each condition, as for `System.sample`: its name, shape and dtype are those of the
            file's input. y, class numbers, needs no example.
    Returns:
        The path.
    Raises:
        OptionError: An argument is wrong, a condition is no tensor, or torch cannot make this one graph.
        MissingExtraError: The extra "onnx" is missing.
        CheckpointError: The file cannot be written.
    """
    path = Path(to)
    kind = _kind(path, compiled, draw_noise)
    conditions = conditions_in(options, JobOptions)
    if system.parts.classes and "y" not in conditions:
        conditions["y"] = 0
    given = {**(system.settings.sampling or {}), **options_in(options, JobOptions)}
    if given.pop("compile", False):
        raise OptionError("compile is for calls of the system; use compiled=True to compile the file")
    if given.pop("seed", None) is not None:
        raise OptionError("a file has no seed: its noise is given at each call")
    if "n" in conditions:
        raise OptionError("a file takes a batch of any size; leave n out")
    if not loop:
        _refuse_sampling({**options_in(options, JobOptions), "draw_noise": draw_noise})
    job = system.prepare(2, **given, **conditions)
    taken = _conditions(job, conditions)
    module, inputs, what = _sampling(system, job, taken, draw_noise) if loop else _network(job, taken)
    record = _record(system, job, kind, inputs, loop, draw_noise)
    if loop:
        record["sampling"] = _plain_sampling(job, given)
    program = traced(module, inputs, what)
    try:
        with replacing(path) as temporary:
            _WRITERS[kind](program, temporary, record)
            with temporary.open("r+b") as file:
                flush(file)
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {reason(error)}") from error
    return path


def _refuse_sampling(options: Mapping[str, Any]) -> None:
    """Raise `OptionError` if an option has no effect on the network alone."""
    for name, value in options.items():
        if name != "model" and value is not None and value is not False:
            text = "is of sampling, and the graph is the network alone"
            raise OptionError(text, option=name, fix={"loop": True})


def _kind(path: Path, compiled: bool, draw_noise: bool) -> str:
    """What the file is; checks what it needs."""
    if path.suffix not in (".pt2", ".onnx"):
        raise OptionError(f"an exported graph is a file that ends in .pt2 or .onnx, got {path.name!r}")
    if path.is_dir() or not path.parent.is_dir():
        what = f"{path} is a folder; name a file" if path.is_dir() else f"{path.parent} is not a folder; make it first"
        raise OptionError(what)
    if path.suffix == ".onnx":
        if compiled or draw_noise:
            text = "is for .pt2 files; ONNX has neither libraries nor torch's generator"
            raise OptionError(text, option="compiled" if compiled else "draw_noise", value=True)
        with needed("onnx", "a file of ONNX"):
            import onnx  # noqa: F401
            import onnxscript  # noqa: F401
        return ONNX
    if compiled and not any(map(shutil.which, ("g++", "clang++", "cl"))):
        raise OptionError("compiled=True needs a C++ compiler, and there is none; install g++, or leave it out")
    return LIBRARY if compiled else PROGRAM


def _conditions(job: SamplingJob, given: Mapping[str, Any]) -> dict[str, Tensor]:
    """Examples of the conditions that the caller gave, and of masks that go with them, as the network gets them."""
    taken = [name for name in job.conditions if name in given or name.removesuffix("_mask") in given]
    problems = [
        f"condition {name!r} is a {type(job.conditions[name]).__name__}, and an exported graph takes tensors; give the "
        "tensor that the network computes with"
        for name in taken
        if not isinstance(job.conditions[name], Tensor)
    ]
    refuse(problems)
    return {name: job.conditions[name] for name in taken}


def _sampling(
    system: System, job: SamplingJob, conditions: Mapping[str, Tensor], draws: bool
) -> tuple[nn.Module, list[Input], str]:
    walk = Walk(system, job, tuple(conditions), draws=draws)
    x = torch.zeros(2, *job.parts.data_shape, device=job.device)
    inputs = [Input("x", x, "standard normal noise")]
    if walk.takes_noise:
        noise = x.new_zeros(walk.program.num_steps, *x.shape)
        inputs.append(Input("noise", noise, "standard normal noise of each step", batch_axis=1))
    inputs += [Input(name, value, "condition of the network") for name, value in conditions.items()]
    names = [job.parts.label("sampler"), *(f"guidance {type(one).__name__!r}" for one in job.parts.guidance)]
    return walk, inputs, " with ".join(names)


def _network(job: SamplingJob, conditions: Mapping[str, Tensor]) -> tuple[nn.Module, list[Input], str]:
    network, dtype = job.model, precision_of(job.model) or torch.float32
    x = torch.zeros(2, *job.parts.data_shape, device=job.device, dtype=dtype)
    inputs = [
        Input("x", x, "noisy data, scaled by the mean parameterization's c_in"),
        Input("time", x.new_zeros(2, dtype=torch.promote_types(dtype, torch.float32)), "time of the level of x"),
        *(Input(name, value, "condition of the network") for name, value in conditions.items()),
    ]
    return _Positional(network, tuple(conditions)), inputs, f"network {type(network).__name__!r}"


class _Positional(nn.Module):
    """A network whose conditions are positional."""

    def __init__(self, network: Any, names: Sequence[str]):
        super().__init__()
        self.network, self.names = network, names
        self.eval()

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        time, *conditions = more
        found: Tensor = self.network(x, time, **dict(zip(self.names, conditions, strict=True)))
        return found


def _record(
    system: System, job: SamplingJob, kind: str, inputs: Sequence[Input], loop: bool, draw_noise: bool
) -> dict[str, Any]:
    """What the file says of itself."""
    network = unwrap_module(job.model) if isinstance(job.model, nn.Module) else None
    shape = system.data_shape if loop else (job.parts.out_channels, *job.parts.data_shape[1:])
    try:
        spec = system.spec()
    except SpecError:  # a part without a name: the file runs all the same
        spec = None
    return {
        "format": FORMAT,
        "diffkit": __version__,
        "torch": torch.__version__,
        "kind": kind,
        "holds": "sampling" if loop else "network",
        "steps": job.program().num_steps if loop else None,
        "inputs": [each.record for each in inputs],
        "output": {"name": "samples" if loop else "output", "shape": ["batch", *shape]},
        "draws_noise": draw_noise and job.program().stochastic,
        "device": str(job.device),
        "system": spec,
        "weights": None if network is None else weights_record(network.state_dict()),
    }


def _plain_sampling(job: SamplingJob, given: Mapping[str, Any]) -> dict[str, Any] | None:
    """What it samples with, as JSON; None if a part of it has no name."""
    if job.transform is not None:
        return None
    try:
        return {
            "sampler": _named("sampler", job.parts.sampler),
            "steps": plain_steps(given.get("steps")),
            "guidance": [_named("guidance", one) for one in job.parts.guidance],
            "clip": job.clip,
            "final": job.final,
        }
    except (SpecError, OptionError):
        return None


def _named(kind: str, part: Any) -> dict[str, Any]:
    spec = part_spec(kind, part)
    return {"name": spec["name"], **spec["options"]}


def _write_program(program: ExportedProgram, path: Path, record: Mapping[str, Any]) -> None:
    try:
        with path.open("wb") as file:
            torch.export.save(program, file, extra_files={METADATA: json.dumps(record)})
    except OSError:
        raise
    except Exception as error:  # what can be traced, and not be written
        raise OptionError(f"torch cannot write this graph: {first_line(error)}") from error


@torch.no_grad()
def _write_library(program: ExportedProgram, path: Path, record: Mapping[str, Any]) -> None:
    from torch._inductor import aoti_compile_and_package, config

    configs: dict[str, Any] = {"aot_inductor.metadata": {METADATA: json.dumps(record)}}
    if hasattr(config.aot_inductor, "check_lowerbound"):  # which would refuse one example
        configs["aot_inductor.check_lowerbound"] = False

    # the function wants this ending, which the file that is replaced has not
    made = path.with_name(f"{path.name}.pt2")
    try:
        with quietly():
            aoti_compile_and_package(program, package_path=str(made), inductor_configs=configs)
        made.replace(path)
    except OSError:
        raise
    except Exception as error:  # of the compiler, of several kinds
        raise OptionError(f"torch's compiler failed: {first_line(error)}; leave compiled out") from error
    finally:
        made.unlink(missing_ok=True)


@torch.no_grad()
def _write_onnx(program: ExportedProgram, path: Path, record: Mapping[str, Any]) -> None:
    names = [each["name"] for each in record["inputs"]]
    size = sum(each.numel() * each.element_size() for each in program.state_dict.values())
    if size > _MOST_OF_ONNX:
        raise OptionError(f"{size / 1e9:.1f} GB of weights do not fit into a file of ONNX; export a .pt2 file")
    try:
        with quietly():
            found = torch.onnx.export(
                program, dynamo=True, verbose=False, input_names=names, output_names=[record["output"]["name"]]
            )
    except Exception as error:  # of the exporter, of several kinds, of which the innermost names the operator
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise OptionError(f"torch's exporter to ONNX failed: {first_line(cause)}; export a .pt2 file") from error
    assert found is not None
    found.model.metadata_props[METADATA] = json.dumps(record)
    found.save(path)


_WRITERS = {PROGRAM: _write_program, LIBRARY: _write_library, ONNX: _write_onnx}
