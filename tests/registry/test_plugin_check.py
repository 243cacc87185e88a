"""Loading every plugin on purpose, in processes of their own."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from registry_support import Site

from diffkit.errors import OptionError
from diffkit.registry import refresh
from diffkit.registry.check_plugins import check_plugins, main

LEAVES_A_CHILD = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(os.environ["ACME_PID"], "w").write(str(child.pid))
time.sleep(600)
"""

PLUGINS = {
    "good": None,
    "broken": "1 / 0",
    "gone": "import acme_missing",
    "exits": "raise SystemExit(2)",
    "dies": "import os; os._exit(7)",
    "prints": "print('x' * 100000)\n",
    "asks": "input()",
    "hangs": LEAVES_A_CHILD,
}


def test_each_plugin_is_reported_with_its_time_and_fault(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd
):
    monkeypatch.setenv("ACME_PID", str(tmp_path / "pid"))
    for name, source in PLUGINS.items():
        site.plugin(f"acme-{name}", name, source)
    site.module("acme_prints", PLUGINS["prints"] + (site.path / "acme_good.py").read_text())
    started = time.perf_counter()
    monkeypatch.setenv("DIFFKIT_PLUGINS", ",".join(f"acme-{name}" for name in PLUGINS))
    reports = {r.entry.name: r for r in check_plugins(["schedule"], timeout=4, workers=2)}
    assert time.perf_counter() - started < 60
    assert set(reports) == set(PLUGINS)
    assert site.imported() == []
    assert {name for name, report in reports.items() if report.ok} == {"good", "prints"}
    errors = {name: report.error for name, report in reports.items()}
    assert errors["broken"].endswith("ZeroDivisionError: division by zero")
    assert errors["gone"].endswith("acme-gone needs 'acme_missing', which is not installed")
    assert errors["exits"].endswith("SystemExit: 2")
    assert errors["dies"] == "ended the interpreter (exit status 7)"
    assert errors["asks"].endswith("EOFError: EOF when reading a line")
    hung = reports["hangs"]
    assert hung.timed_out
    assert hung.seconds >= 4
    assert hung.error == f"still loading after {hung.seconds:.1f} s"
    assert str(hung) == f"schedule acme-hangs:hangs 1.0: {hung.seconds:.1f} s, {hung.error}"
    assert str(reports["good"]).endswith(" s, ok")
    assert capfd.readouterr().out == ""
    if sys.platform == "linux":
        child = int((tmp_path / "pid").read_text())
        deadline = time.monotonic() + 5
        while _alive(child) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not _alive(child)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_the_module_prints_what_it_finds(
    site: Site, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("DIFFKIT_PLUGINS", "acme")
    assert main() == 0
    assert capsys.readouterr().out == "no plugins are installed\n"
    site.plugin("acme", "ramp")
    refresh()
    assert main() == 0
    assert capsys.readouterr().out.startswith("schedule acme:ramp 1.0: ")
    site.distribution("acme-odd", "[diffkit.schedule]\nodd\n")
    refresh()
    assert main() == 1
    assert (
        "acme_odd-1.0.dist-info has an entry point that is not of the form 'name = module:Class'"
        in capsys.readouterr().out
    )


def test_only_what_the_allow_list_admits_is_loaded(site: Site, monkeypatch: pytest.MonkeyPatch):
    site.plugin("acme", "ramp")
    monkeypatch.setenv("DIFFKIT_PLUGINS", "")
    assert check_plugins() == ()


def test_a_time_limit_is_positive():
    with pytest.raises(OptionError, match="timeout must be > 0, got 0"):
        check_plugins(timeout=0)
