"""Conditions that backbones share: the two options about classes, and what means "none" of each condition."""

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


def null_conditions(num_classes: int | None, null_class: bool, context: int = 0) -> dict[str, float] | None:
    """Return the label that means "no class" and the context that means "none"; None if there are none."""
    label: dict[str, float] = {"y": num_classes} if null_class and num_classes else {}
    return label | ({"context": 0.0} if context else {}) or None
