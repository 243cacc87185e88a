"""A dataset of the Hugging Face Hub."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from diffkit.data.sources._images import ImageSource
from diffkit.options import flag
from diffkit.registry import registry

if TYPE_CHECKING:
    from diffkit.data.base import Data


@registry("data").register("hf")
@frozen(kw_only=True)
class HuggingFace(ImageSource):
    """A dataset of the Hugging Face Hub, of Parquet files, or of a folder that the library saved.

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
            **self.read_keywords(),
        )
