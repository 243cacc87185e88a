"""Data sources of encoded images, resized and cropped to one size: a folder, a zip archive, LSUN, Hugging Face."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import Attribute, field, frozen

from diffkit.data.sources import Source
from diffkit.errors import OptionError, did_you_mean
from diffkit.options import choice, flag, integer, integers, number

if TYPE_CHECKING:
    from diffkit.data.base import Data
    from diffkit.data.images import Form

_LABEL_SOURCES = ("none", "folders", "prefix")
_TABLES = (".csv", ".json")


def _path_or_none(value: str | Path | None) -> Path | None:
    return None if value is None else Path(value)


def _check_npy(instance: object, attribute: Attribute[Any], value: object) -> None:
    if isinstance(value, Path) and value.suffix != ".npy":
        raise OptionError(f"cache must be a .npy file, got {str(value)!r}")


def check_labels_option(instance: object, attribute: Attribute[Any], value: object) -> None:
    """Raise `OptionError` unless the option ``labels`` of a source of images is a known source of classes."""
    if value in _LABEL_SOURCES or (isinstance(value, str) and Path(value).suffix.lower() in _TABLES):
        return
    raise OptionError(
        f"labels must be 'none', 'folders', 'prefix' or a .csv or .json file, got {value!r}"
        f"{did_you_mean(str(value), _LABEL_SOURCES)}"
    )


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

    size: tuple[int, ...] = integers(ge=1)
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
        if len(self.size) not in (1, 2):
            raise OptionError(f"size must be one number or two, got {self.size!r}")
        if self.channels not in (1, 3, 4):
            raise OptionError(f"channels must be 1, 3 or 4, got {self.channels!r}")
        if self.bits not in (8, 16):
            raise OptionError(f"bits must be 8 or 16, got {self.bits!r}")
        if self.bits == 16 and self.channels != 1:
            raise OptionError("bits=16 is for grey images; pass channels=1, or bits=8")

    def form(self) -> Form:
        """Return the form that each image is converted to."""
        from diffkit.data.images import Form

        return Form((self.size[0], self.size[-1]), self.channels, self.bits, self.background)

    def reading_options(self) -> dict[str, Any]:
        """Return the options of reading images, as keywords of `diffkit.data.image_data.PictureData.from_pictures`."""
        from diffkit.data.parallel import logs_for_job

        return {
            "on_error": self.on_error,
            "max_skipped": self.max_skipped,
            "cache": self.cache,
            "processes": self.processes,
            "check": self.check,
            "progress": logs_for_job(),
        }


@frozen(kw_only=True)
class Folder(ImageSource):
    """Data source: a folder of images, of any size and kind, resized and cropped to one size.

    Attributes:
        path: The folder; folders in it are searched too.
        labels: "folders" (the folder below ``path`` is the class), "prefix" (the file's name up to the first
            underscore is), a .csv file with columns file and label, a .json file such as dataset.json, or "none".
    """

    path: Path = field(converter=Path)
    labels: str = field(default="none", validator=check_labels_option)

    def open(self) -> Data:
        """Read every image of the folder once; needs Pillow."""
        from diffkit.data.folder import open_folder

        labels = None if self.labels == "none" else self.labels
        return open_folder(self.path, form=self.form(), labels=labels, **self.reading_options())


@frozen(kw_only=True)
class Zip(ImageSource):
    """Data source: a zip archive of images, such as EDM's and StyleGAN's dataset tools write; it is not unpacked.

    Attributes:
        path: The archive.
        labels: As for a folder; a table such as dataset.json may also be in the archive.
    """

    path: Path = field(converter=Path)
    labels: str = field(default="none", validator=check_labels_option)

    def open(self) -> Data:
        """Read every image of the zip archive once; needs Pillow."""
        from diffkit.data.zip_archives import open_zip

        labels = None if self.labels == "none" else self.labels
        return open_zip(self.path, form=self.form(), labels=labels, **self.reading_options())


@frozen(kw_only=True)
class Lsun(ImageSource):
    """Data source: a category of LSUN, an LMDB database of images, resized and cropped to one size.

    Attributes:
        database: Its folder, such as bedroom_train_lmdb.
    Source: Yu et al. 2015, arXiv:1506.03365.
    """

    database: Path = field(converter=Path)

    def open(self) -> Data:
        """Read every image of the LSUN database once; needs the package lmdb."""
        from diffkit.data.image_data import PictureData
        from diffkit.data.lsun import LsunPictures

        pictures = LsunPictures.of(self.database, self.form())
        return PictureData.from_pictures(pictures, source=str(self.database), **self.reading_options())


@frozen(kw_only=True)
class HuggingFace(ImageSource):
    """Data source: a dataset of the Hugging Face Hub, of Parquet files, or of a folder that the library saved.

    Attributes:
        dataset: Its name on the Hub, or a .parquet file or folder; in Python also a dataset that is loaded already.
        subset: Name of a configuration of the dataset, if it has several.
        split: Split of the dataset, such as "train" or "train[:1000]".
        revision: A commit or tag on the Hub, so that the data stays the same.
        image: Column of the images; the only one by default.
        label: Column of the classes; the only one by default.
        labels: Give the class as condition y.
    """

    dataset: Any = field()
    subset: str | None = None
    split: str = "train"
    revision: str | None = None
    image: str | None = None
    label: str | None = None
    labels: bool = flag(False)

    def open(self) -> Data:
        """Load the dataset and read every image once; needs the package datasets."""
        from diffkit.data.hugging_face import from_hugging_face, load_hugging_face

        found, source = self.dataset, "dataset"
        if isinstance(found, str):
            source = f"{found} {self.split}"
            found = load_hugging_face(found, subset=self.subset, split=self.split, revision=self.revision)
        return from_hugging_face(
            found,
            form=self.form(),
            image=self.image,
            label=self.label,
            labels=self.labels,
            source=source,
            **self.reading_options(),
        )
