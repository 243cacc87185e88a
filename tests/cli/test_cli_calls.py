"""How much diffkit does before the first update of ``diffkit train``: one compose, few Python calls, no compiler."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

MOST = 3000

COUNT = """
import sys
from pathlib import Path
import numpy, torch  # their own imports, of which none is counted, take long under a profiler
import diffkit
from diffkit.__main__ import main

root, calls, composed = str(Path(diffkit.__file__).parent), 0, 0

def count(frame, event, argument):
    global calls, composed
    code = frame.f_code
    if event != "call" or not code.co_filename.startswith(root):
        return
    calls += 1
    composed += code.co_name == "compose"
    if code.co_name == "update" and code.co_filename.endswith("trainer.py"):
        sys.setprofile(stop)
        print(calls, composed)

def stop(frame, event, argument):
    if event == "call" and frame.f_code.co_name == "update" and frame.f_code.co_filename.endswith("trainer.py"):
        sys.setprofile(None)
        print("torch._dynamo" in sys.modules)
        sys.stdout.flush()
        raise KeyboardInterrupt

sys.setprofile(count)
main(sys.argv[1:])
"""


def test_few_calls_and_one_compose_before_the_first_update_and_no_compiler_in_it(tmp_path: Path):
    np.save(tmp_path / "images.npy", np.zeros((16, 1, 8, 8), np.uint8))
    words = ["train", "--data", "images.npy", "--out", "run", "--backbone", "mlp", "--num-steps", "10", "--steps", "2"]
    words += ["--schedule", "cosine", "--batch-size", "8"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", COUNT, *words], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.stderr.endswith("interrupted\n"), done.stderr
    *_, counts, imports_compiler = done.stdout.splitlines()
    calls, composed = map(int, counts.split())
    assert imports_compiler == "False"
    assert composed == 1 and calls <= MOST, (calls, composed)
