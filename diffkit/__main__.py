"""``python -m diffkit`` and the console script ``diffkit``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec

from diffkit.errors import MissingExtraError
from diffkit.runtime.output import log

_NEEDED = ("cyclopts", "rich")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; see `diffkit.cli`."""
    if any(find_spec(module) is None for module in _NEEDED):
        log(f"error: {MissingExtraError('cli', 'the diffkit command')}")
        return 2
    from diffkit.cli._app import run

    return run(sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
