"""Draw samples into a folder, batch by batch, shared between processes, resumable.

sampling = Sampling(load(Path("runs/a"), device), 50_000, batch_size=256)
folder = sample_folder(sampling, Path("samples"), ("npz",))     # refuses a folder of anything else
draw_into(folder, sampling)                                     # goes on where a stopped call ended

The files are the same for any number of processes, and after any interruption.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffkit.errors import UNSET, OptionError
from diffkit.evaluation.sample_folder import SampleFolder
from diffkit.evaluation.sample_folder import digest as label_digest
from diffkit.evaluation.sampling import Sampling, digest, fingerprint
from diffkit.evaluation.saved_guidance import described, without_defaults
from diffkit.runtime.distributed import Ranks
from diffkit.runtime.images import need_pillow
from diffkit.runtime.output import log, note
from diffkit.system.randomness import NOISE
from diffkit.training.lock import RunLock
from diffkit.training.precision import computing_in

FORMATS = ("png", "grid", "npz")


def sample_folder(
    sampling: Sampling,
    out: Path,
    formats: Sequence[str] = ("png", "grid"),
    *,
    overwrite: bool = False,
    precision: str = "fp32",
    ranks: Ranks | None = None,
) -> SampleFolder:
    """Return the folder that samples go to, after checking that it holds nothing but a part of the same ones.

    Args:
        sampling: The samples.
        out: The folder; it need not exist.
        formats: What is written: "png" (a file each), "grid" (the first in one picture, next to the folder), "npz".
        overwrite: Start again; samples in the folder are removed when `draw_into` begins.
        precision: Precision of the network: "fp32", "bf16" or "fp16".
        ranks: The processes that share the work.
    Raises:
        OptionError: A format does not fit the data, or the folder holds other samples or anything else.
    """
    ranks, saved = ranks or Ranks(), sampling.saved
    check_formats(formats, saved.final.data_shape, saved.bins)
    loaded = ranks.gather(digest(saved))
    if len(set(loaded)) > 1:
        raise OptionError("the system changed while the processes read it; sample from a run that is not training")
    names = () if sampling.labels is None else tuple(map(saved.name, sampling.labels.tolist()))
    facts = _facts(sampling, loaded[0], formats, precision)
    shape = saved.final.data_shape
    updated = partial(_updated, sampling)
    folder = SampleFolder(out, tuple(formats), sampling.batches, sampling.labels, names, shape, facts, updated)
    ranks.rank_zero(lambda: folder.check(overwrite))
    return folder


def check_formats(formats: Sequence[str], shape: tuple[int, ...] = (), bins: int | None = None) -> None:
    """Raise unless there are such formats, and pictures can be written, of data of this shape if it is given.

    Raises:
        OptionError: A format is unknown, or data of this shape has no pixels of 8 bits.
        MissingExtraError: Pillow is not installed.
    """
    if not formats or any(each not in FORMATS for each in formats):
        raise OptionError(f"must be some of {', '.join(FORMATS)}", option="format", value=tuple(formats))
    if not {"png", "grid"} & set(formats):
        return
    need_pillow("writing PNG files")
    if not shape:
        return
    if len(shape) != 3:
        raise OptionError(f"data of shape {shape} is not a picture", fix={"format": ("npz",)})
    if bins is None or bins > 256:
        kind = "continuous" if bins is None else f"{bins}-valued"
        raise OptionError(f"{kind} data does not fit into 8-bit PNG files", fix={"format": ("npz",)})


def draw_into(
    folder: SampleFolder,
    sampling: Sampling,
    *,
    overwrite: bool = False,
    precision: str = "fp32",
    ranks: Ranks | None = None,
) -> list[str]:
    """Draw the samples that a folder lacks, every process its share; return a line for each file that is there then.

    Args:
        folder: The folder, as `sample_folder` returned it.
        sampling, overwrite, precision, ranks: As for `sample_folder`.
    Raises:
        OptionError: Another process writes to the folder.
        DivergedError: All samples of a batch are not finite.
    """
    ranks = ranks or Ranks()
    locks: list[RunLock] = []

    def begin() -> list[int]:
        locks.append(folder.begin(overwrite))
        return folder.pending()

    pending = ranks.rank_zero(begin)
    mine = pending[ranks.rank :: ranks.size]
    if ranks.rank == 0 and len(pending) < len(folder.batches):
        done = sampling.count - sum(len(folder.batches[number]) for number in pending)
        note(f"{done} of {sampling.count} samples are there already")
    if sampling.options.get("compile") and pending and ranks.rank == 0:
        log("compiling: the first step takes minutes")
    if mine:
        with computing_in(precision, sampling.saved.system.device):
            _draw(sampling, folder, mine, ranks)
    ranks.gather(None)  # a barrier
    lines = ranks.rank_zero(folder.finish)
    for lock in locks:
        lock.release()
    return lines


def _draw(sampling: Sampling, folder: SampleFolder, numbers: Sequence[int], ranks: Ranks) -> None:
    """Make the batches of these numbers."""
    job = sampling.job(folder.batches[numbers[0]])
    total, parent = len(numbers) * sampling.count_steps(folder.batches[numbers[0]]), os.getppid()
    with job.running(f"sampling {sampling.count}", total, ranks.rank == 0) as advance:
        for number in numbers:
            if ranks.size > 1 and os.getppid() != parent:
                raise SystemExit(143)  # killed itself, a launcher can send no signal: as if SIGTERM had come
            folder.keep(number, sampling.draw(folder.batches[number], advance))


def _facts(sampling: Sampling, system: str, formats: Sequence[str], precision: str) -> dict[str, Any]:
    """Everything that the samples depend on, as plain data."""
    compiled, guidance = sampling.options.get("compile"), sampling.options.get("guidance", UNSET)
    return {
        "system": system,
        "n": sampling.count,
        "format": sorted(formats),
        "classes": None if sampling.labels is None else label_digest(sampling.labels),
        "low_res": None if sampling.low_res is None else fingerprint(sampling.low_res),
        "each": sampling.each,
        **{kind: sampling.options.get(kind) for kind in ("steps", "sampler", "clip")},
        **({"final": sampling.options["final"]} if "final" in sampling.options else {}),
        "guidance": None if guidance is UNSET else described(guidance) or "none",
        "seed": sampling.seed,
        "noise": NOISE,
        "batch_size": sampling.batch_size,
        "device": sampling.saved.system.device.type,
        **({"conditions": _digest_of(sampling.conditions)} if sampling.conditions else {}),
        **({"precision": precision} if precision != "fp32" else {}),
        **({} if sampling.adaptive is None else {"adaptive": sampling.adaptive}),
        **({"compile": "step" if compiled is True else compiled} if compiled else {}),
    }


def _updated(sampling: Sampling, old: dict[str, Any]) -> dict[str, Any]:
    """Return facts that an earlier version wrote with all options of the guidance, as `_facts` has them."""
    words, guidance = old.get("guidance"), sampling.options.get("guidance")
    return {**old, "guidance": without_defaults(words, guidance)} if isinstance(words, str) else old


def _digest_of(conditions: Mapping[str, NDArray[Any]]) -> str:
    """Return 16 digits that stand for conditions."""
    found = hashlib.sha256()
    for name, values in sorted(conditions.items()):
        found.update(f"{name} {values.dtype} {values.shape}".encode() + np.ascontiguousarray(values).tobytes())
    return found.hexdigest()[:16]
