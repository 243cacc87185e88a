"""What plugins cost a program that does not name them: nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from registry_support import Site, schedule

import diffkit
from diffkit.registry import faults, refresh, registry

ROOT = Path(diffkit.__file__).parents[1]
BREAKAGE = ["1 / 0", "import acme_missing", "raise SystemExit", "def", ""]


def fifty(site: Site) -> None:
    """50 plugins, 5 of them broken in different ways, 5 sharing a name, 1 named as a built-in, and garbage."""
    for i in range(50):
        source = BREAKAGE[i // 10] if i % 10 == 0 else schedule()
        name = "shared" if i in range(41, 46) else "cosine" if i == 47 else f"acme_{i}"
        site.plugin(f"acme-{i}", name, source)
    site.distribution("acme-garbage", b"\xff\xfe\0[diffkit.schedule]")


def python(code: str, site: Site, **env: str) -> dict[str, object]:
    """Run code that prints one line of JSON."""
    path = os.pathsep.join([str(site.path), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {k: v for k, v in os.environ.items() if k != "DIFFKIT_PLUGINS"} | {"PYTHONPATH": path} | env
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


PRELUDE = """
import json, sys
scans, files = [], []
def watch(event, args):
    if event == "open" and str(args[0]).endswith("entry_points.txt"):
        scans.append(str(args[0]))
sys.addaudithook(watch)
def report(**more):
    acme = sorted(m for m in sys.modules if m.startswith("acme"))
    print(json.dumps({"scans": len(scans), "acme": acme, **more}))
"""


def test_importing_and_composing_built_ins_touches_no_plugin(site: Site):
    fifty(site)
    code = (
        PRELUDE
        + """
import diffkit
torch_free = "torch" not in sys.modules
system = diffkit.compose(
    schedule="cosine", mean="v", var="learned_range", loss="hybrid", timesteps="loss_second_moment",
    sampler=("ddim", {"eta": 0.5}), backbone=("mlp", {"hidden": 8}), data_shape=(2,), num_steps=4, bins=None,
)
spec = system.spec()
again = diffkit.from_spec(spec)
drawn = system.sample(2, progress=False, sampler="ancestral")
report(torch_free=torch_free, shape=list(drawn.shape))
"""
    )
    # On import, torch itself scans for device backends, and cannot be imported beside the garbage.
    found = python(code, site, TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    assert found == {"scans": 0, "acme": [], "torch_free": True, "shape": [2, 2]}


def test_listing_reads_metadata_once_and_imports_none(site: Site):
    fifty(site)
    code = (
        PRELUDE
        + """
import diffkit
from diffkit.registry import KINDS, registry
text = diffkit.describe()
first = len(scans)
for kind in KINDS:
    registry(kind).names()
report(first=first, lines=sum("acme_" in line for line in text.splitlines()), torch="torch" in sys.modules)
"""
    )
    found = python(code, site)
    assert found["scans"] == found["first"] > 50
    assert found["acme"] == []
    assert found["lines"] == 44
    assert found["torch"] is False


def test_one_plugin_works_among_broken_ones(site: Site):
    fifty(site)
    assert diffkit.compose(schedule="acme_7", backbone=None, num_steps=3).parts.names["schedule"] == "acme_7"
    assert site.imported() == ["acme_7"]
    assert len(faults()) == 1


def test_many_threads_may_ask_first(site: Site):
    names = {f"ramp{i}": site.plugin(f"acme-{i}", f"ramp{i}", SLOW + schedule()) for i in range(4)}
    asked = [*names, "cosine", "linear"] * 6
    barrier = threading.Barrier(32)

    def ask(i: int) -> object:
        barrier.wait()
        registry("schedule").entries()
        return registry("schedule").get(asked[i])

    for _ in range(3):
        sys.racing = []  # type: ignore[attr-defined]
        with ThreadPoolExecutor(32) as pool:
            found = list(pool.map(ask, range(32)))
        assert all(found[i] is registry("schedule").get(asked[i]) for i in range(32))
        assert sorted(sys.racing) == sorted(names.values())  # type: ignore[attr-defined]  each was run once
        for name in names.values():
            del sys.modules[name]
        for memory in (registry("schedule")._imported,):
            for name in list(memory):
                if name.startswith("acme"):
                    del memory[name]
        refresh()
    del sys.racing  # type: ignore[attr-defined]


SLOW = """
import sys, time
sys.racing.append(__name__)
time.sleep(0.02)
"""


def test_threads_may_register_while_others_list(site: Site):
    stop = threading.Event()

    def listing() -> int:
        count = 0
        while not stop.is_set():
            registry("schedule").entries()
            count += 1
        return count

    with ThreadPoolExecutor(4) as pool:
        counts = [pool.submit(listing) for _ in range(3)]
        for i in range(300):
            registry("schedule").register(f"mine{i}")(type(f"Mine{i}", (), {}))
        stop.set()
        assert all(c.result() > 0 for c in counts)


@pytest.mark.parametrize("allowed", ["", "acme-1"])
def test_a_blocked_plugin_is_not_imported_by_its_full_name(site: Site, allowed: str):
    fifty(site)
    code = (
        PRELUDE
        + """
from diffkit.registry import registry
try:
    registry("schedule").get("acme-2:acme_2")
except LookupError as error:
    report(error=str(error))
"""
    )
    found = python(code, site, DIFFKIT_PLUGINS=allowed)
    assert found["acme"] == []
    assert str(found["error"]).startswith("no schedule named 'acme-2:acme_2'")
