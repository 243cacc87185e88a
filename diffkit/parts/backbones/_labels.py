"""The two options about classes that all backbones share."""

from __future__ import annotations

from diffkit.errors import OptionError


def label_count(num_classes: int | None, null_class: bool) -> int:
    """Return the rows of a label table: one per class, one more for "no class" if ``null_class``, 0 without classes.

    Raises:
        OptionError: ``null_class`` is True, but there are no classes.
    """
    if null_class and not num_classes:
        raise OptionError(
            "has no effect without classes",
            option="null_class",
            value=True,
            fix=[{"null_class": False}, {"num_classes": ...}],
        )
    return (num_classes or 0) + null_class


def null_conditions(num_classes: int | None, null_class: bool) -> dict[str, int] | None:
    """Return the label that means "no class", or None if there is none."""
    return {"y": num_classes} if null_class and num_classes else None
