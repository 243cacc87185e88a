"""The codec of a run: measured on its data before the run begins, and then the one that the run has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffkit.errors import Message, OptionError, Setting
from diffkit.options import option_names
from diffkit.runtime.run_layout import SPEC, is_saved

if TYPE_CHECKING:
    from diffkit.data.base import Data

Named = tuple[str, Mapping[str, Any]]


def lacks_options(codec: Named | None) -> bool:
    """Return whether a codec has options that are measured on data, and lacks some of them."""
    from diffkit.protocols import MeasuredCodec
    from diffkit.registry.resolve import resolve

    part = None if codec is None else resolve("codec", codec)[0]
    return isinstance(part, MeasuredCodec) and not part.measured


def check_encoder(codec: Named | None) -> None:
    """Raise `OptionError` if a codec is an autoencoder without weights that were trained."""
    from diffkit.protocols import AutoencoderCodec
    from diffkit.registry.resolve import resolve

    part = None if codec is None else resolve("codec", codec)[0]
    if isinstance(part, AutoencoderCodec) and part.folder is None:
        reason = " is missing, and latents of random weights say nothing of the data; "
        raise OptionError(Message(Setting("folder", part="codec"), reason, "train an autoencoder, and name its folder"))


def measured_codec(codec: Named, data: Data, run: Path) -> Named:
    """Return a codec with the options of a run that has begun with it, or else measured on data."""
    from diffkit.data.measuring import measured
    from diffkit.system.loading import read_spec

    name, given = codec
    begun = read_spec(run / SPEC) if is_saved(run) else {}
    known = (begun.get("settings") or {}).get("codec") or {}
    if known.get("name") == name and given.items() <= (known.get("options") or {}).items():
        return name, known["options"]
    part = measured(codec, data)
    return name, {option: getattr(part, option) for option in option_names(type(part)) or ()}
