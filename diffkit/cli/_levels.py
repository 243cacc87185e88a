"""The option ``--steps`` of all commands that visit levels."""

from __future__ import annotations

from typing import Any

from diffkit.cli._options import helped

Steps = int | str | tuple[int, ...] | None

_FORMS = (
    'How many levels to visit, or "10,15,20" (so many in each third); "ddim50", "leading50", "trailing50", '
    '"linspace50" (evenly by number); "quad20", "time20", "logsnr20", "karras20", "karras20:rho=5" (evenly by another '
    'clock); "ays_sd15", "ays_sd15:20", "grid.json" (a grid that comes with diffkit, or of a file)'
)


def steps_help(default: str = "") -> dict[Any, Any]:
    """Metadata of the field, whose help says all that `diffkit.spacing` knows.

    Args:
        default: What is visited unless it is given, where that is not said beside the help.
    """
    return helped(_FORMS + (f"; {default} by default." if default else "."))
