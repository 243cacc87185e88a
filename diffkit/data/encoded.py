"""Data with an encoded text of each example as the condition ``context``; every distinct text is encoded once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffkit.data.base import Batch, Data, Image, Indices
from diffkit.data.loading import as_data
from diffkit.errors import DataError, OptionError, did_you_mean
from diffkit.protocols import NO_CLASS
from diffkit.runtime.files import replacing
from diffkit.system.sequences import pad_sequences

Encode = Callable[[list[str]], Sequence[Any]]
"""From texts to their vectors, (L, width) each."""

_AT_A_TIME = 64
"""Texts that are encoded in one call."""


class Encoded(Data):
    """Other data with the condition ``context``, an encoded text of each example, in place of its class ``y``.

    Texts of a batch are padded to the longest with zeros, with the condition ``context_mask``, (B, L) bool. The class
    of an image may be a text: that of a folder in the column of a table (``labels="captions.csv",
    label_column="caption"``), that of a Hugging Face dataset in any column (``labels=True, label="caption"``). An
    example without a class has the empty context, which is all masked.

    Args:
        data: The data: anything that `diffkit.data.loading.as_data` takes.
        encode: From a list of texts to their vectors, (L, width) each: any callable, such as a text model.
        texts: The text of each class, by its name; or of each example, in order. By default the names of the classes.
        cache: A .npz file that stores the vectors for later runs; it is written again for other texts. For another
            encoder, name another file.
    Attributes:
        vectors: Those of each distinct text, (L, width) float32.
        width: Width of a vector: the option ``context`` of a network.
    Raises:
        DataError: There are no texts, or what encodes them returns something else than vectors of one width.
    """

    def __init__(
        self,
        data: Any,
        encode: Encode,
        texts: Mapping[str, str] | Sequence[str] | None = None,
        *,
        cache: str | Path | None = None,
    ):
        self.data = as_data(data)
        self.shape, self.bins, self.classes = tuple(self.data.shape), self.data.bins, None
        self.deterministic, self.sequential = self.data.deterministic, self.data.sequential
        given = _texts_of(self.data, texts)
        self._by_example = texts is not None and not isinstance(texts, Mapping)
        distinct = list(dict.fromkeys(given))
        place = {text: i for i, text in enumerate(distinct)}
        self._rows = [place[text] for text in given]
        self.vectors = _encoded(encode, distinct, None if cache is None else Path(cache))
        self.width = self.vectors[0].shape[1]

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Image, Mapping[str, Any]]:
        """Return example ``index``, and its conditions with ``context``, (L, width), without padding."""
        batch = self.batch([index])
        return batch.images[0], {name: value[0] for name, value in batch.conditions.items() if name != "context_mask"}

    def batch(self, indices: Indices) -> Batch:
        """Return the examples with these indices; ``context`` is (B, L, width), ``context_mask`` (B, L) bool."""
        found = self.data.batch(indices)
        conditions = dict(found.conditions)
        labels = conditions.pop("y", None)
        rows = found.indices.tolist() if self._by_example or labels is None else labels.tolist()
        empty = self.vectors[0][:0]
        some = [empty if row == NO_CLASS else self.vectors[self._rows[row]] for row in rows]
        context, mask = pad_sequences(some)
        return found._replace(conditions={**conditions, "context": context, "context_mask": mask})

    def describe(self) -> dict[str, Any]:
        """Return the facts of the data, without classes, and a fingerprint of the vectors and of who has which."""
        facts = {name: value for name, value in self.data.describe().items() if name not in _OF_CLASSES}
        digest = hashlib.sha256(json.dumps([facts.get("fingerprint"), self._rows]).encode())
        for each in self.vectors:
            digest.update(each.numpy().tobytes())
        return {**facts, "classes": None, "fingerprint": digest.hexdigest()[:16]}


_OF_CLASSES = ("class_counts", "without_class")
"""What data says of its classes."""


def _texts_of(data: Data, texts: Mapping[str, str] | Sequence[str] | None) -> list[str]:
    """The texts: of each class, or of each example."""
    if texts is not None and not isinstance(texts, Mapping):
        if isinstance(texts, str) or len(texts) != len(data):
            raise OptionError(f"texts must be one for each of {len(data)} examples, or of each class by its name")
        return [str(text) for text in texts]
    if data.classes is None:
        raise DataError("the data has no classes, whose names would be the texts; load it with labels, or give texts")
    if texts is None:
        return list(data.classes)
    if missing := [name for name in data.classes if name not in texts]:
        near = did_you_mean(missing[0], texts)
        raise OptionError(f"texts have none for class {missing[0]!r}{near}; give the text of every class")
    return [texts[name] for name in data.classes]


def _encoded(encode: Encode, texts: list[str], cache: Path | None) -> list[Tensor]:
    key = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
    if cache is not None and (found := _read(cache, key)) is not None:
        return found
    vectors: list[Tensor] = []
    with torch.no_grad():
        for start in range(0, len(texts), _AT_A_TIME):
            some = texts[start : start + _AT_A_TIME]
            vectors += _checked(some, encode(some))
    widths = {each.shape[1] for each in vectors}
    if len(widths) != 1:
        raise DataError(f"the encoder returns vectors of several widths: {', '.join(map(str, sorted(widths)))}")
    if cache is not None:
        _write(cache, key, vectors)
    return vectors


def _checked(texts: list[str], found: Sequence[Any]) -> list[Tensor]:
    """What an encoder returned of some texts, as tensors on the CPU."""
    if len(found) != len(texts):
        raise DataError(f"the encoder returns {len(found)} results for {len(texts)} texts; let it return one for each")
    vectors = [torch.as_tensor(each).detach().float().cpu() for each in found]
    for text, each in zip(texts, vectors, strict=True):
        if each.ndim != 2 or not each.shape[0] or not each.isfinite().all():
            raise DataError(
                f"the encoder returns {tuple(each.shape)} for {text!r}; let it return finite numbers, (L, width)"
            )
    return vectors


def _read(path: Path, key: str) -> list[Tensor] | None:
    """The vectors in a cache; None if there is none for these texts."""
    if not path.exists():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            stored, lengths, vectors = str(arrays["key"]), arrays["lengths"].tolist(), arrays["vectors"]
    except Exception as error:  # NumPy raises whatever its parsers meet
        raise DataError(f"{path} is not a cache of encoded texts, or is damaged: {error}; remove it") from error
    return list(torch.split(torch.from_numpy(vectors), lengths)) if stored == key else None


def _write(path: Path, key: str, vectors: list[Tensor]) -> None:
    lengths = np.array([len(each) for each in vectors])
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, key=np.array(key), lengths=lengths, vectors=torch.cat(vectors).numpy())
