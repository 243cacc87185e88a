"""What every source of encoded images has: all are resized and cropped alike."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import NOTHING, Attribute, field, frozen

from diffkit.data.sources._source import Source
from diffkit.errors import OptionError, nearest
from diffkit.options import choice, flag, integer, integers, number

if TYPE_CHECKING:
    from diffkit.data.images import Form

_LABEL_SOURCES = ("none", "folders", "prefix")
_TABLES = (".csv", ".json", ".jsonl")


def _path_or_none(value: str | Path | None) -> Path | None:
    return None if value is None else Path(value)


def _as_patterns(value: Any) -> Any:
    """Return a list of patterns as a tuple; one text is one pattern."""
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list | tuple) else value


def _check_patterns(instance: object, attribute: Attribute[Any], value: object) -> None:
    if not isinstance(value, tuple) or not all(isinstance(each, str) and each for each in value):
        raise OptionError("must be a list of patterns, such as '*_mask.png'", option="ignore", value=value)


def patterns() -> Any:
    """Field holding patterns of files that are left out."""
    return field(default=(), converter=_as_patterns, validator=_check_patterns)


def _check_npy(instance: object, attribute: Attribute[Any], value: object) -> None:
    if isinstance(value, Path) and value.suffix != ".npy":
        raise OptionError("must be a .npy file", option="cache", value=str(value))


def check_labels_option(instance: object, attribute: Attribute[Any], value: object) -> None:
    """Raise `OptionError` unless a value is a known source of classes."""
    if value in _LABEL_SOURCES or (isinstance(value, str) and Path(value).suffix.lower() in _TABLES):
        return
    near = nearest(str(value), _LABEL_SOURCES)
    raise OptionError(
        "must be 'none', 'folders', 'prefix' or a .csv, .json or .jsonl file",
        option="labels",
        value=value,
        fix=() if near is None else {"labels": near},
    )


def _check_sides(instance: object, attribute: Attribute[Any], value: tuple[int, ...] | None) -> None:
    if value is not None and len(value) not in (1, 2):
        raise OptionError("must be one number or two", option=attribute.name, value=value)


def image_size(*, optional: bool = False) -> Any:
    """Field holding height and width; one number is accepted for a square."""
    found = integers(None if optional else NOTHING, optional=optional, single=True, ge=1)
    found.validator(_check_sides)
    return found


@frozen(kw_only=True)
class ImageSource(Source):
    """Options of every data source of encoded images.

    Attributes:
        size: Height and width; one number for a square.
        channels: 1 grey, 3 RGB, 4 RGBA.
        bits: 8, or 16 to keep all grey levels of 16-bit images, with 1 channel.
        background: Grey value, 0..255, under transparent pixels.
        on_error: At images that cannot be read: "stop", naming them all, or "skip" them; without ``check`` a skipped
            image is replaced by the next one that can be read.
        max_skipped: The largest share of the images that may be skipped; by default a half, at least ten.
        cache: A .npy file for the decoded pixels; built if needed, and again if the images or options change.
        processes: Number of processes that read the images before training; 0 reads in this process.
        check: Read every image once before training. Otherwise an image that cannot be read ends training when it is
            used, and pixels are not kept in memory.
    """

    size: tuple[int, ...] = image_size()
    channels: int = integer(3, ge=1)
    bits: int = integer(8, ge=1)
    background: int = integer(255, ge=0, le=255)
    on_error: str = choice("stop", ("stop", "skip"))
    max_skipped: float | None = number(None, optional=True, ge=0, le=1)
    cache: Path | None = field(default=None, converter=_path_or_none, validator=_check_npy)
    processes: int = integer(0, ge=0)
    check: bool = flag(True)

    def __attrs_post_init__(self) -> None:
        """Check combinations of fields."""
        if self.channels not in (1, 3, 4):
            raise OptionError("must be 1, 3 or 4", option="channels", value=self.channels)
        if self.bits not in (8, 16):
            raise OptionError("must be 8 or 16", option="bits", value=self.bits)
        if self.bits == 16 and self.channels != 1:
            raise OptionError("is for grey images", option="bits", value=16, fix=[{"channels": 1}, {"bits": 8}])

    def form(self) -> Form:
        """Return the form that each image is converted to."""
        from diffkit.data.images import Form

        return Form((self.size[0], self.size[-1]), self.channels, self.bits, self.background)

    def read_keywords(self) -> dict[str, Any]:
        """Return these options as keywords of `diffkit.data.image_data.PictureData.from_pictures`."""
        from diffkit.data.parallel import logs_for_job

        return {
            "on_error": self.on_error,
            "max_skipped": self.max_skipped,
            "cache": self.cache,
            "processes": self.processes,
            "check": self.check,
            "progress": logs_for_job(),
        }
