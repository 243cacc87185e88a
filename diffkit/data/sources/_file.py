"""A NumPy file as a source of data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from attrs import field, frozen

from diffkit.data.sources._source import Source
from diffkit.options import choice, flag, integer, words

if TYPE_CHECKING:
    from diffkit.data.base import Data


@frozen(kw_only=True)
class NumpyFile(Source):
    """Data source: a NumPy file, .npz with arr_0 (images) and arr_1 (labels, if there are any), or .npy with images.

    A .npz may also have the arrays classes, their names, and bins, as ``diffkit data import`` writes them.

    Attributes:
        path: The file; a .npy is memory-mapped.
        labels: Give the labels of a .npz as condition ``y``.
        bins: Number of values that data takes; by default 256 for uint8.
        conditions: Arrays of a .npz that are conditions of these names, with a row for each image: such as context, the
            vectors of a text, and context_mask.
        layout: "channels_last", as improved-diffusion writes its samples, or "channels_first"; by default the shape
            decides, and ambiguous shapes are refused.
    """

    path: Path = field(converter=Path)
    labels: bool = flag(False)
    bins: int | None = integer(None, optional=True, ge=2)
    conditions: tuple[str, ...] = words()
    layout: str | None = choice(None, ("channels_last", "channels_first"), optional=True)

    def open(self) -> Data:
        """Read the NumPy file; never unpickles."""
        from diffkit.data.numpy_files import open_numpy_file

        return open_numpy_file(
            self.path, labels=self.labels, bins=self.bins, layout=self.layout, conditions=self.conditions
        )
