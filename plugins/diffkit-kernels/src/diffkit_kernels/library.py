"""The C kernel as a shared library, compiled for this CPU at first use and cached in the user's cache folder.

The file's name is a digest of source, compiler, flags and CPU, so that another of any of them compiles anew. It is
written under another name and renamed, so that processes that start together each find a whole file.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from diffkit.runtime.output import log

SOURCE = Path(__file__).with_name("group_norm.c")
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fopenmp", "-shared", "-fPIC")
SECONDS = 120
"""Time limit of a compilation, which takes two seconds."""


@cache
def load() -> ctypes.CDLL | None:
    """Return the library, compiled if need be; None, with a remark, where that fails."""
    try:
        file = _compiled()
        try:
            return ctypes.CDLL(str(file))
        except OSError:  # a damaged file
            file.unlink()
            return ctypes.CDLL(str(_compiled()))
    except (OSError, subprocess.SubprocessError) as error:
        reason = (getattr(error, "stderr", None) or str(error) or type(error).__name__).strip().splitlines()[0]
        log(f"note: diffkit-kernels cannot compile its kernel ({reason}); networks run without it, and slower")
        return None


def _compiled() -> Path:
    compiler = shutil.which(os.environ.get("CC") or "cc")
    if compiler is None:
        raise OSError("there is no C compiler 'cc'; install one, or name it in the variable CC")
    folder = _folder()
    file = folder / f"group_norm-{_digest(compiler)}.so"
    if not file.is_file():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as made:
            new = Path(made) / file.name
            command = [compiler, *FLAGS, "-o", str(new), str(SOURCE), "-lm"]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=SECONDS)
            new.replace(file)
    return file


def _folder() -> Path:
    """The user's cache folder of this package."""
    if sys.platform == "darwin":
        home = Path("~/Library/Caches").expanduser()
    else:
        home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return home / "diffkit-kernels"


def _digest(compiler: str) -> str:
    found = hashlib.sha256(SOURCE.read_bytes())
    stat = Path(compiler).resolve().stat()
    for fact in (*FLAGS, Path(compiler).resolve(), stat.st_size, stat.st_mtime_ns, platform.machine(), _cpu()):
        found.update(f"{fact}\0".encode())
    return found.hexdigest()[:32]


def _cpu() -> str:
    """What this CPU can do: a folder may be shared by machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
