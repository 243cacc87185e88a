"""The command runs, once the package is installed."""

from __future__ import annotations

import subprocess
import sys


def test_it_prints_its_levels():
    words = [sys.executable, "-m", "diffkit", "my-command", "--num-steps", "3"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.count("level") == 4
