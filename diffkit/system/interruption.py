"""Calls of `System.sample` that are interrupted and go on from a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffkit.errors import OptionError
from diffkit.runtime.files import weights_digest
from diffkit.system.cache import has_value
from diffkit.system.conditions import mapped
from diffkit.system.points import placed, read_point, write_point
from diffkit.system.prepared import SamplingJob
from diffkit.system.sampling import Program, TrajectoryPoint


def sample_resumably(
    job: SamplingJob,
    program: Program,
    batches: Sequence[range],
    start: Tensor | None,
    resume: str | Path,
    advance: Callable[[int], None],
) -> list[Tensor]:
    """Return the latents of each batch, going on from a file, which an interruption leaves and the end removes.

    Args:
        job, program, batches, start: Of the call.
        resume: The file.
        advance: Called with a number of finished steps.
    Raises:
        OptionError: The call has no seed, the file is of another call, or cannot be written.
        CheckpointError: The file is damaged.
    """
    if job.seed is None:
        raise OptionError("resume needs a seed, from which the noise of the steps to come follows; pass seed=0")
    path, call = _checked_path(resume), _facts(job, program, batches, start)
    out, point = _continued(path, call, batches, job.device)
    advance(len(out) * program.num_steps + (point.step if point else 0))
    try:
        for rows in batches[len(out) :]:
            noise_fn = job.noise(rows)
            x = job.begin(rows, noise_fn, start)
            step_fn = job.step_fn(program, job.denoiser(rows), x, with_denoised=True)
            for reached in program.run(job.denoisers(program, rows), x, noise_fn, step_fn, point):
                point = reached
                advance(1)
            assert point is not None, "a program has steps"
            out.append(point.x)
            point = None
    except BaseException:
        if out or point:
            write_point(path, point, call, {f"done.{i}": each for i, each in enumerate(out)})
        raise
    path.unlink(missing_ok=True)
    return out


def _checked_path(resume: object) -> Path:
    """The file, which an interruption must be able to write."""
    if not isinstance(resume, str | Path):
        raise OptionError("must be the path of a file", option="resume", value=resume)
    path = Path(resume)
    if path.is_dir() or not path.parent.is_dir():
        raise OptionError("must be the path of a file in a folder that exists", option="resume", value=str(resume))
    return path


def _continued(
    path: Path, call: Mapping[str, Any], batches: Sequence[range], device: torch.device
) -> tuple[list[Tensor], TrajectoryPoint | None]:
    """What a file has of a call: the samples of the batches that are done, and the point of the next one."""
    if not path.exists():
        return [], None
    point, found, tensors = read_point(path)
    other = sorted(name for name in call if found.get(name) != call[name])
    if other:
        raise OptionError(
            f"{path} is of a call with other {', '.join(other)}; repeat that call, or remove the file to begin anew"
        )
    done = [tensors[f"done.{i}"].to(device) for i in range(len(batches)) if f"done.{i}" in tensors]
    return done, None if point is None else placed(point, device)


def _facts(job: SamplingJob, program: Program, batches: Sequence[range], start: Tensor | None) -> dict[str, Any]:
    """What tells a call from others: all but the weights of networks and functions."""
    given = [] if start is None else [start]

    def note(tensor: Tensor) -> Tensor:
        given.append(tensor)
        return tensor

    mapped(note, dict(job.conditions))
    guidance = [repr(one) for one in job.parts.guidance if has_value(one)]
    return {
        "n": job.n,
        "batch_size": len(batches[0]),
        "seed": list(job.seed) if isinstance(job.seed, Sequence) else job.seed,
        "steps": list(program.levels),
        "sampler": repr(job.parts.sampler),
        "guidance": guidance,
        "clip": job.clip,
        "conditions": weights_digest({str(i): tensor for i, tensor in enumerate(given)}, shapes=True),
    }
