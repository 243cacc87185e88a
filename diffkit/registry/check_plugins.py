"""Does every installed plugin load? Each is imported in a process of its own, with a time limit.

Listing parts imports nothing, so a plugin that fails, exits, crashes or hangs on import goes unnoticed until its name
is looked up. Here each one is loaded in a separate process:

    for report in check_plugins():
        print(report)

``python -m diffkit.registry.check_plugins`` does that, and reports metadata that names no part; its exit status is 1
if anything is wrong.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from attrs import frozen

from diffkit.options import check_number
from diffkit.registry.kinds import OFFERED
from diffkit.registry.lookup import BUILT_IN, LOCAL, Entry, faults, registry
from diffkit.runtime.output import show

_CHILD = "from diffkit.registry.check_plugins import _load_one; _load_one()"


@frozen
class PluginReport:
    """Result of loading one plugin.

    Attributes:
        entry: The part, and the distribution that offers it.
        seconds: Time of its import, or until the time limit.
        error: The error, in one line or more; None if it loaded and follows its protocol.
        timed_out: True if it was still loading when the time was up.
    """

    entry: Entry
    seconds: float
    error: str | None = None
    timed_out: bool = False

    @property
    def ok(self) -> bool:
        """True if it loaded and follows its protocol."""
        return self.error is None

    def __str__(self) -> str:
        outcome = "ok" if self.error is None else self.error
        return f"{self.entry.kind} {self.entry.qualified} {self.entry.version}: {self.seconds:.1f} s, {outcome}"


def check_plugins(
    kinds: Iterable[str] | None = None, *, timeout: float = 10.0, workers: int = 2
) -> tuple[PluginReport, ...]:
    """Load every plugin that DIFFKIT_PLUGINS allows, each in a new process, and report on it.

    Nothing is imported in this process. `diffkit.registry.faults` lists metadata that names no part.

    Args:
        kinds: Kinds of part, or "command"; all by default.
        timeout: Seconds that one plugin may take, start of its process included, > 0.
        workers: Number of processes at a time.
    Returns:
        One report for each plugin, in the order of `Registry.entries`.
    """
    check_number("timeout", timeout, gt=0)
    entries = [
        entry
        for kind in (OFFERED if kinds is None else kinds)
        for entry in registry(kind).entries()
        if entry.origin not in (BUILT_IN, LOCAL)
    ]
    with ThreadPoolExecutor(max(1, workers)) as pool:
        return tuple(pool.map(lambda entry: _check(entry, timeout), entries))


def _check(entry: Entry, timeout: float) -> PluginReport:
    with tempfile.TemporaryDirectory(prefix="diffkit-check-") as folder:
        answer = Path(folder) / "answer.json"
        path = os.pathsep.join(p or str(Path.cwd()) for p in sys.path)
        started = time.perf_counter()
        # Output goes to DEVNULL rather than to pipes, which a grandchild could hold open.
        child = subprocess.Popen(
            [sys.executable, "-P", "-c", _CHILD, entry.kind, entry.qualified, str(answer)],
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=os.name == "posix",
        )
        try:
            status = child.wait(timeout)
        except subprocess.TimeoutExpired:
            seconds = time.perf_counter() - started
            return PluginReport(entry, seconds, f"still loading after {seconds:.1f} s", timed_out=True)
        finally:
            _end(child)
        if not answer.is_file():
            return PluginReport(entry, time.perf_counter() - started, f"ended the interpreter (exit status {status})")
        found = json.loads(answer.read_text(encoding="utf-8"))
        return PluginReport(entry, found["seconds"], found["error"])


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a process and its children."""
    if os.name == "posix":
        with suppress(ProcessLookupError, PermissionError):  # it has ended, without children
            os.killpg(child.pid, signal.SIGKILL)
    child.kill()
    child.wait()


def _load_one() -> None:
    """Main function of the new process: load one part and write the result."""
    kind, name, answer = sys.argv[1:]
    import diffkit.protocols  # noqa: F401  its import is not the plugin's time

    started = time.perf_counter()
    try:
        registry(kind).get(name)
        error = None
    except Exception as failure:
        error = str(failure)
    seconds = time.perf_counter() - started
    Path(answer).write_text(json.dumps({"seconds": seconds, "error": error}), encoding="utf-8")


def main(kinds: Iterable[str] | None = None, timeout: float = 10.0) -> int:
    """Print the results of loading the installed plugins, and return an exit status; arguments of `check_plugins`."""
    reports, found = check_plugins(kinds, timeout=timeout), faults()
    for line in (*reports, *found):
        show(line)
    if not reports and not found:
        show("no plugins are installed")
    return 0 if all(report.ok for report in reports) and not found else 1


if __name__ == "__main__":
    sys.exit(main())
