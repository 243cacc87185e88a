"""Datasets of the Hugging Face library: from the Hub, from Parquet files, or from a folder it saved.

Encoded images are decoded by diffkit, not by the library, so that 16 bits, orientation and transparency are treated as
in a folder. A streaming dataset is refused: an interrupted run could not continue in the same order.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import field, frozen
from numpy.typing import NDArray

from diffkit.data.classes import check_class_names
from diffkit.data.images import Form, decode_image
from diffkit.data.labels import MOST_CLASSES, Labels
from diffkit.errors import DataError, needed

if TYPE_CHECKING:
    from diffkit.data.image_data import PictureData


@frozen
class HuggingFacePictures:
    """The images of a Hugging Face dataset, as `diffkit.data.images.Pictures`.

    Attributes:
        dataset: A map-style dataset whose images are not decoded.
        column: Name of the column of images.
        form: Form that each image is converted to.
        source: Name of the dataset in messages.
    """

    dataset: Any = field(repr=False)
    column: str
    form: Form
    source: str

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.dataset)

    def name(self, index: int) -> str:
        """Return the name of an image: the number of its row."""
        return f"row {index}"

    def read(self, index: int) -> NDArray[Any]:
        """Return the pixels of an image of the dataset, (C, H, W)."""
        name = f"{self.source} row {index}"
        try:
            value = self.dataset[int(index)][self.column]
        except Exception as error:  # the library and what it is built on raise errors of every kind
            raise DataError(f"{name}: {type(error).__name__}: {error}") from error
        if not isinstance(value, Mapping) or not (value.get("bytes") or value.get("path")):
            raise DataError(f"{name}: there is no image")
        content = value.get("bytes")
        return decode_image(io.BytesIO(content) if content else Path(value["path"]), name, self.form)

    def stamps(self) -> list[Any]:
        """Return the dataset's own fingerprint."""
        return [len(self), self.column, str(getattr(self.dataset, "_fingerprint", ""))]


def load_hugging_face(dataset: str, *, subset: str | None, split: str, revision: str | None) -> Any:
    """Return a dataset of the Hugging Face Hub, of Parquet files, or of a folder.

    Args:
        dataset: Name on the Hub; or a .parquet file, a folder of them, a folder that the library saved, or a folder of
            images in one of its layouts.
        subset: Name of a configuration of the dataset, if it has several.
        split: Split of the dataset, such as "train" or "train[:1000]".
        revision: Revision on the Hub, such as a commit.
    Raises:
        DataError: There is no such dataset.
        MissingExtraError: The library is not installed.
    """
    with needed("hf", "a Hugging Face dataset"):
        import datasets  # type: ignore[import-not-found,unused-ignore]
    path = Path(dataset)
    try:
        if not path.exists():
            return datasets.load_dataset(dataset, subset, split=split, revision=revision)
        if (path / "state.json").exists():
            return datasets.load_from_disk(dataset)
        if (path / "dataset_dict.json").exists():
            return datasets.load_from_disk(dataset)[split]
        files = sorted(map(str, [path] if path.is_file() else path.rglob("*.parquet")))
        if files:
            return datasets.load_dataset("parquet", data_files=files, split=_parquet_split(split))
        return datasets.load_dataset("imagefolder", data_dir=dataset, split=split)
    except Exception as error:  # the library and what it is built on raise errors of every kind
        raise DataError(f"dataset {dataset!r} cannot be loaded: {type(error).__name__}: {error}") from error


def _parquet_split(split: str) -> str:
    """Return the split of loose Parquet files, which the library puts into one split named "train"."""
    return "train" + split[split.index("[") :] if "[" in split else "train"


def from_hugging_face(
    dataset: Any,
    *,
    form: Form,
    image: str | None = None,
    label: str | None = None,
    labels: bool = False,
    source: str = "dataset",
    **options: Any,
) -> PictureData:
    """Return a dataset of the Hugging Face library as data to train on.

    Args:
        dataset: A map-style dataset.
        form: Form that each image is converted to.
        image: Its column of images; by default the only one.
        label: Its column of classes; by default the only one.
        labels: Give the class as condition ``y``.
        source: Name of the dataset in messages.
        options: ``on_error``, ``max_skipped``, ``cache``, ``processes``, ``check`` and ``progress`` of
            `PictureData.from_pictures`.
    Raises:
        DataError: The dataset is streaming, or has no such columns.
    """
    from diffkit.data.image_data import PictureData

    if isinstance(dataset, Mapping):
        raise DataError(f"the dataset has parts ({', '.join(map(str, dataset))})", fix={"split": ...})
    if not hasattr(type(dataset), "__len__") or not hasattr(type(dataset), "__getitem__"):
        raise DataError(
            f"{type(dataset).__name__} is not a map-style dataset; load it without streaming, which no run could "
            "continue in the same order"
        )
    features = dict(dataset.features)
    column = _find_column(features, image, "Image", "image")
    found = (
        None if not labels else _read_labels(dataset, _find_column(features, label, "ClassLabel", "label"), features)
    )
    undecoded = dataset.select_columns([column]).cast_column(column, type(features[column])(decode=False))
    rows = HuggingFacePictures(undecoded, column, form, source)
    identity = str(getattr(dataset, "_fingerprint", ""))
    return PictureData.from_pictures(rows, source=source, labels=found, identity=identity, **options)


def _find_column(features: Mapping[str, Any], name: str | None, kind: str, option: str) -> str:
    """Return the given column of a dataset, or the only one of its kind."""
    if name is not None:
        if name not in features:
            raise DataError(f"the dataset has no column {name!r} (columns: {', '.join(features)})")
        return name
    found = [key for key, feature in features.items() if type(feature).__name__ == kind]
    if len(found) != 1:
        raise DataError(
            f"the dataset has {len(found)} columns of kind {kind} (columns: {', '.join(features)}); say which with "
            f"{option}=..."
        )
    return found[0]


def _read_labels(dataset: Any, column: str, features: Mapping[str, Any]) -> Labels:
    values: Sequence[Any] = list(dataset[column])
    names = getattr(features[column], "names", None)
    values = [None if value is None or (isinstance(value, int) and value < 0) else value for value in values]
    if all(value is None for value in values):
        raise DataError(f"none of {len(values)} rows has a class in column {column!r}", fix={"labels": False})
    if names is not None:
        return Labels(
            tuple(None if value is None else names[value] for value in values), tuple(check_class_names(names))
        )
    some = [value for value in values if value is not None]
    texts = tuple(None if value is None else str(value) for value in values)
    if not all(isinstance(value, int) and not isinstance(value, bool) for value in some):
        return Labels(texts)
    if max(some) >= MOST_CLASSES:
        raise DataError(f"the classes of column {column!r} go up to {max(some)}; number them from 0, or make them text")
    return Labels(texts, tuple(str(i) for i in range(max(some) + 1)))
