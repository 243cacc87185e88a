"""Run every reproduction of an alarm and compare what it prints: python -m benchmarks.court.reproduce."""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[1] / "results" / "court" / "reproductions.md"
BLOCK = re.compile(
    r"^\*\*(?P<title>[^\n]*?)\*\*.*?^```py\n(?P<code>.*?)^```\n\n```text\n(?P<shown>.*?)^```$", re.MULTILINE | re.DOTALL
)
STAND_INS = """
import warnings
from benchmarks.court.entry import import_alone
from benchmarks.court.libraries.k_diffusion import UNUSED
warnings.simplefilter("ignore")
import_alone("k_diffusion.sampling", UNUSED)
"""
"""k-diffusion imports what its samplers do not use."""
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def main() -> None:
    """Run the blocks, each in a process of its own; the exit status is the number of those that differ."""
    differ = 0
    for block in BLOCK.finditer(PAGE.read_text(encoding="utf-8")):
        printed = run(block["code"])
        same = doctest.OutputChecker().check_output(block["shown"], printed, OPTIONS)
        differ += not same
        print("as shown" if same else f"differs\n{printed}", block["title"], sep="  ", flush=True)
    sys.exit(differ)


def run(code: str) -> str:
    """Return what a block prints; that of skrample runs in its own Python."""
    skrample = "skrample" in code
    python = os.environ.get("SKRAMPLE_PYTHON", sys.executable) if skrample else sys.executable
    before = STAND_INS if "k_diffusion" in code else ""
    done = subprocess.run([python, "-c", before + code], capture_output=True, text=True)
    return done.stdout + (done.stderr if done.returncode else "")


if __name__ == "__main__":
    main()
