"""Checkpoints: folders of safetensors files with a manifest, written atomically.

    checkpoints/step_00001000/   model.safetensors, optimizer.safetensors, ..., manifest.json

A checkpoint is written under another name, every file and the folder are flushed to the disk, the manifest last, and
then it is renamed. The manifest has the size and SHA-256 of every file and of itself. Nothing is ever unpickled. Where
several processes hold shares of the weights, each writes its own; see `diffkit.training.sharded_files`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import frozen
from torch import Tensor

from diffkit.errors import CheckpointError, SpecError
from diffkit.runtime.distributed import Ranks
from diffkit.runtime.files import new_file, sync_folder, write_through
from diffkit.runtime.run_layout import CHECKPOINTS, MANIFEST, STEPS, step_name, step_of
from diffkit.runtime.strict_json import check_fields, json_object, readable_json, reason, shown, word
from diffkit.runtime.weights_files import read_each, write_weights
from diffkit.training.sharded_files import join_shards, whole_name

FORMAT = 1
_NAME = re.compile(r"step_(\d{8,})")
_FILE = re.compile(r"[\w.-]+\.safetensors")
_DOOMED = ".doomed-"
_DAMAGED = "damaged-"

Files = Mapping[str, Mapping[str, Tensor]]
"""Tensors by name, by the file they are in (without the suffix)."""


@frozen(eq=False)
class Checkpoint:
    """A checkpoint that was read and verified.

    Attributes:
        step: Completed updates.
        files: Its tensors, on the CPU, shares joined.
        manifest: Everything else.
    """

    step: int
    files: Files
    manifest: Mapping[str, Any]


def write(
    folder: Path, step: int, files: Files, facts: Mapping[str, Any], ranks: Ranks | None = None
) -> dict[str, dict[str, Any]]:
    """Write a checkpoint into the folder of checkpoints; remove what interrupted saves left there.

    Args:
        folder: The folder of checkpoints, which only this job writes to.
        step: Completed updates.
        files: Tensors, by name and file, that this process writes.
        facts: Plain data for the manifest.
        ranks: The processes that write it together; this one alone by default.
    Returns:
        The records of all of its files, by name.
    Raises:
        CheckpointError: It cannot be written, in one process or another; the folder's checkpoints are as before.
    """
    ranks = ranks or Ranks()
    target, temporary = folder / step_name(step), folder / f"{_DOOMED}{step_name(step)}"
    try:
        ranks.rank_zero(lambda: _create_temporary(folder, temporary))
        written = ranks.all_ranks(lambda: _write_files(temporary, files))
        records = {name: record for part in written for name, record in part.items()}
        manifest = {"format": FORMAT, "step": step, **facts, "files": records}
        ranks.rank_zero(lambda: _commit(temporary, target, manifest))
    except (OSError, RuntimeError) as error:
        if ranks.rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        size = sum(tensor.nbytes for tensors in files.values() for tensor in tensors.values())
        advice = f"; more than {size} bytes are needed" if _is_full(error) else ""
        raise CheckpointError(f"cannot write checkpoint {target}: {error}{advice}") from error
    return records


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Within the context, raise a `CheckpointError` that names the file instead of an `OSError`."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"cannot write {error.filename or path}: {error.strerror or error}") from error


def _is_full(error: Exception) -> bool:
    """Whether the disk is full, for this process or for the one that reported the error."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)


def _create_temporary(folder: Path, temporary: Path) -> None:
    folder.mkdir(exist_ok=True)
    if folder.is_symlink():
        raise OSError(errno.ELOOP, f"{folder} is a link, and a run does not write through links")
    _remove_unfinished(folder, [path.name for path in folder.iterdir()])
    temporary.mkdir()


def _write_files(temporary: Path, files: Files) -> dict[str, dict[str, Any]]:
    """Write files and return their records."""
    records = {}
    for name, tensors in files.items():
        with new_file(temporary / f"{name}.safetensors") as file:
            records[f"{name}.safetensors"] = write_weights(file, tensors)
    return records


def _commit(temporary: Path, target: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest, flush, and rename the folder to its final name."""
    write_through(temporary / MANIFEST, _manifest_bytes(manifest))
    sync_folder(temporary)
    if target.exists():
        target.rename(target.parent / f"{_DOOMED}old-{target.name}")
    temporary.rename(target)
    sync_folder(target.parent)


def prune(folder: Path, keep: int, every: int | None = None) -> None:
    """Remove damaged checkpoints and all but the newest others; each is renamed before its files are removed.

    Args:
        folder: The folder of checkpoints.
        keep: Number of the newest to keep.
        every: Checkpoints at multiples of this step are never removed.
    """
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    steps = sorted((name for name in names if _NAME.fullmatch(name)), key=_step_in_name, reverse=True)
    old = [name for name in steps[keep:] if every is None or _step_in_name(name) % every]
    for name in [*(name for name in names if name.startswith(_DAMAGED)), *old]:
        (folder / name).rename(folder / f"{_DOOMED}{name}")
        names.append(f"{_DOOMED}{name}")
    _remove_unfinished(folder, names)


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest of a checkpoint, after comparing it with its own digest.

    Raises:
        CheckpointError: It is missing or differs from what was written.
        SpecError: It was written by a newer diffkit.
    """
    manifest = _read_manifest(path / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise SpecError(
            f"{path} has format {shown(manifest.get('format'))}, written by diffkit "
            f"{word(manifest.get('diffkit'))}; this one reads format {FORMAT}; upgrade diffkit"
        )
    check_fields(manifest, str(path / MANIFEST), CheckpointError, step=int, files=dict, terms=(list, type(None)))
    for name, record in manifest["files"].items():
        if not _FILE.fullmatch(name):
            raise CheckpointError(f"{path / MANIFEST} is damaged: {shown(name)} is not the name of a file of it")
        check_fields(record, f"{name} in {path / MANIFEST}", CheckpointError, size=int, sha256=str)
    return manifest


def read(path: Path, only: Collection[str] | None = None) -> Checkpoint:
    """Read a checkpoint and verify it; with ``only``, read those of these files that it has.

    Raises:
        CheckpointError: A file is missing or differs from what was written.
        SpecError: It was written by a newer diffkit.
    """
    manifest = read_manifest(path)
    step = manifest["step"]
    if step_name(step) != path.name:
        raise CheckpointError(f"{path} holds step {step}: it was renamed")
    records = {name.removesuffix(".safetensors"): record for name, record in manifest["files"].items()}
    chosen = [name for name in records if only is None or whole_name(name) in only]
    found = read_each([(path / f"{name}.safetensors", records[name]) for name in chosen])
    return Checkpoint(step, join_shards(dict(zip(chosen, found, strict=True))), manifest)


def read_newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest intact checkpoint (None if there are no checkpoints), and the faults of newer ones.

    Damaged checkpoints are renamed; the next `prune` removes them.

    Raises:
        CheckpointError: There are checkpoints, but none is intact.
    """
    faults, damaged = [], []
    for path in newest_first(folder):
        try:
            found = read(path)
        except CheckpointError as error:
            faults.append(str(error))
            damaged.append(path)
            continue
        for bad in damaged:
            bad.rename(folder / f"{_DAMAGED}{bad.name}")
        return found, faults
    if faults:
        raise CheckpointError(
            "\n  ".join([f"no checkpoint in {folder} can be read; remove the run's folder to start anew:", *faults])
        )
    return None, []


def newest_first(folder: Path) -> Iterator[Path]:
    """Yield the paths of the checkpoints in a folder, newest first.

    The folder is listed, as a stored name of the newest one could be out of date.
    """
    found = [path for path in folder.glob(STEPS) if _NAME.fullmatch(path.name)] if folder.is_dir() else []
    return iter(sorted(found, key=step_of, reverse=True))


def completed_updates(run: Path) -> int:
    """Return the number of updates that a run has made, by its newest checkpoint; 0 before the first."""
    newest = next(newest_first(run / CHECKPOINTS), None)
    return 0 if newest is None else step_of(newest)


def intact_manifests(folder: Path) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Yield the checkpoints in a folder and their manifests, newest first, without damaged manifests."""
    for path in newest_first(folder):
        with contextlib.suppress(CheckpointError):
            yield path, read_manifest(path)


def _step_in_name(name: str) -> int:
    return int(name.removeprefix("step_"))


def _remove_unfinished(folder: Path, names: Iterable[str]) -> None:
    """Remove checkpoints of which the writing or the removal was interrupted, of these names in the folder."""
    for name in names:
        if not name.startswith(_DOOMED):
            continue
        path = folder / name
        if path.is_symlink():
            path.unlink()
        else:
            shutil.rmtree(path, ignore_errors=True)


def _manifest_bytes(manifest: Mapping[str, Any]) -> bytes:
    return readable_json({**manifest, "sha256": _manifest_digest(manifest)}).encode()


def _manifest_digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json_object(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: it is not the JSON that was written: {reason(error)}") from error
    if manifest.pop("sha256", None) != _manifest_digest(manifest):
        raise CheckpointError(f"{path} is damaged: its SHA-256 is not the one that was written")
    return manifest
