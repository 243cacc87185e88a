"""Classes of examples: their numbers and names, checked; -1 or None for an example without a class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from diffkit.data.labels import MOST_CLASSES
from diffkit.errors import DataError
from diffkit.protocols import NO_CLASS


def class_numbers(labels: Any, count: int) -> NDArray[np.int64]:
    """Return the class of each example, (count,) int64, from 0; `NO_CLASS` for an example without a class.

    Args:
        labels: Integers, -1 for no class; a list may have None instead.
        count: The number of examples.
    Raises:
        DataError: A label is not a class number; the text names the first.
    """
    if isinstance(labels, list | tuple):
        labels = [NO_CLASS if label is None else label for label in labels]
    try:
        found = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asanyarray(labels)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists, and what NumPy cannot hold
        raise DataError(f"labels cannot be made an array: {error}") from error
    if np.ma.is_masked(found):
        raise DataError("labels have masked values; fill them by labels.filled(-1), where -1 is for no class")
    if found.shape != (count,) or found.dtype.kind not in "iu":
        hint = "; give class numbers by labels.argmax(1)" if found.ndim == 2 and len(found) == count else ""
        raise DataError(f"labels must be integers of shape ({count},), got {found.dtype} of shape {found.shape}{hint}")
    for at, label in ((int(found.argmin()), int(found.min())), (int(found.argmax()), int(found.max()))):
        if label < NO_CLASS:
            raise DataError(f"example {at} has label {label}; classes count from 0, and -1 is for no class")
        if label >= MOST_CLASSES:
            raise DataError(
                f"example {at} has label {label}; classes are numbered from 0 and up to {MOST_CLASSES - 1} here: "
                "number those that occur, as by numpy.unique(labels, return_inverse=True)[1]"
            )
    return np.asarray(found, dtype=np.int64)


def class_names(classes: Any, labels: NDArray[np.int64]) -> tuple[str, ...]:
    """Return the names of the classes that labels number; by default their numbers.

    Raises:
        DataError: The names are not a list of words, one occurs twice, or there are fewer than the labels need.
    """
    largest = int(labels.max())
    if classes is None:
        return tuple(str(i) for i in range(largest + 1))
    names = check_class_names(classes)
    if largest >= len(names):
        raise DataError(f"a label is {largest}, but there are {len(names)} class names")
    return names


def check_class_names(classes: Any) -> tuple[str, ...]:
    """Return the names of classes, after checking that they are a list of words without repetition."""
    names = classes.tolist() if isinstance(classes, np.ndarray) else classes
    if not isinstance(names, list | tuple):
        raise DataError(f"classes must be a list of names, got {type(classes).__name__}")
    for name in names:
        if not isinstance(name, str):
            raise DataError(f"classes must be a list of names, got {name!r}; give text, such as {_text(name)!r}")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"class {twice[0]!r} is named twice in classes; give each class a name of its own")
    return tuple(names)


def class_counts(labels: NDArray[np.int64] | None, classes: Sequence[str] | None) -> dict[str, Any]:
    """Return how many examples each class has, and how many have no class if some have none, for `Data.describe`."""
    if labels is None or classes is None:
        return {}
    some = labels[labels >= 0]
    facts: dict[str, Any] = {"class_counts": np.bincount(some, minlength=len(classes)).tolist()}
    return facts if len(some) == len(labels) else facts | {"without_class": len(labels) - len(some)}


def _text(name: Any) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else str(name)
