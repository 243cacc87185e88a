"""Conditions of a call: converted to tensors with a row for each example, and selected by rows.

Converted conditions are numbers, texts, tensors with a row for each example, lists with an entry for each example,
mappings of such, and tuples of such, which are several conditions in one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffkit.errors import OptionError
from diffkit.system.null_conditions import with_null
from diffkit.system.sequences import with_padded
from diffkit.system.signatures import missing_problems, name_problems

_NUMBERS = "biuf"
"""NumPy's letters for kinds of array that a tensor can hold."""
_WIDE = (torch.uint16, torch.uint32, torch.uint64)
"""Dtypes for which torch has few operations."""
_LARGEST = 2**63 - 1
"""Largest integer that a tensor can hold."""


def conditions_for(
    model: Callable[..., Any],
    conditions: Mapping[str, Any],
    n: int,
    device: torch.device,
    own: frozenset[str],
    null: Mapping[str, Any] | None = None,
    classes: int | None = None,
) -> dict[str, Any]:
    """Return the conditions of n examples on a device.

    An integer, and a tensor, array or list with one row, is used for all examples. Arrays and lists of numbers become
    tensors; a list of anything else, such as texts or tensors of several lengths, has an entry for each example.
    Mappings are converted entry by entry; so are lists and tuples of tensors with a row per example, which become
    tuples. A list of sequences of vectors (L, width), for which the network takes a mask ``NAME_mask``, is padded.

    Args:
        model: The network; its signature has the names of conditions.
        conditions: As the caller gave them.
        n: Number of examples.
        device: Device of the tensors.
        own: Names of conditions for guidance only.
        null: Null conditions, which replace None, and the label -1 in ``y``.
        classes: Number of classes, against which labels ``y``, which are needed then, are checked; None does not.
    Raises:
        OptionError: A name is unknown, or there is not one entry for each example; every problem is listed.
    """
    problems = [*name_problems(model, conditions, own), *missing_problems(model, conditions)]
    conditions = with_padded(model, conditions)
    found = {name: _read(f"condition {name!r}", value, n, problems) for name, value in conditions.items()}
    refuse(problems)
    found = with_null(found, null, n) if null else found
    _check_no_class(found.get("y"))
    if classes:
        _check_labels(found.get("y"), classes, null)
    return {name: mapped(lambda tensor: tensor.to(device), value) for name, value in found.items()}


def check_names(model: Callable[..., Any], conditions: Mapping[str, Any], own: frozenset[str]) -> None:
    """Raise `OptionError` if a network does not take one of the conditions, or a required one is missing."""
    refuse([*name_problems(model, conditions, own), *missing_problems(model, conditions)])


def check_unused(model: Callable[..., Any], conditions: Mapping[str, Any], *names: str) -> None:
    """Raise `OptionError` if a condition has one of these names: options of other calls without effect in this one."""
    refuse(list(name_problems(model, [name for name in names if name in conditions], frozenset())))


def refuse(problems: Sequence[str]) -> None:
    """Raise one `OptionError` that lists the problems, if there are any."""
    if len(problems) == 1:
        raise OptionError(problems[0])
    if problems:
        raise OptionError("\n  ".join([f"{len(problems)} problems with this call:", *problems]))


def _brief(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# ---- reading ---------------------------------------------------------------------------------------------------------


def _check_no_class(y: Any) -> None:
    """Raise `OptionError` if labels still have None, as they do where nothing says what "no class" is."""
    if not isinstance(y, list) or not all(entry is None or isinstance(entry, int) for entry in y):
        return
    place = next((i for i, entry in enumerate(y) if entry is None), None)
    if place is not None:
        raise OptionError(
            f"y has None for example {place}, but the network has no null class; give every example a class, or "
            "compose with null_conditions={'y': 10}, say, which the network must have been trained with"
        )


def _check_labels(y: Any, classes: int, null: Mapping[str, Any] | None) -> None:
    """Raise `OptionError` unless labels are class numbers of the network; values are checked on the CPU only."""
    if torch.compiler.is_compiling():
        return
    if y is None:
        also = ", or -1 for no class" if "y" in (null or {}) else ""
        raise OptionError(
            f"y is missing, but the network has {classes} classes; pass y, class numbers 0..{classes - 1}{also}"
        )
    if not isinstance(y, Tensor) or y.ndim != 1 or y.dtype == torch.bool or y.is_floating_point() or y.is_complex():
        raise OptionError(f"y must be class numbers 0..{classes - 1}, one for each example, got {_brief(y)}")
    if type(y) is not Tensor or not y.is_cpu:
        return
    known, none = (y >= 0) & (y < classes), (null or {}).get("y")
    if isinstance(none, int):
        known = known | (y == none)
    if known.all():
        return
    wrong = int(y[~known][0])
    also = f", and {none} for no class" if isinstance(none, int) else ""
    raise OptionError(f"y has label {wrong}, but the network has {classes} classes; labels are 0..{classes - 1}{also}")


def _read(name: str, value: Any, n: int, problems: list[str]) -> Any:
    if isinstance(value, Tensor):
        return _rows(name, value, n, problems)
    if value is None or isinstance(value, str | bytes | bool):
        return value
    if isinstance(value, np.ndarray | np.generic):
        plain = _from_numpy(value)
        return plain if isinstance(plain, np.generic) else _read(name, plain, n, problems)
    if isinstance(value, int):
        return _number(name, value, n, problems)
    if isinstance(value, Mapping):
        return {key: _read(f"{name}[{key!r}]", entry, n, problems) for key, entry in value.items()}
    if isinstance(value, Sequence):
        return _read_list(name, value, n, problems)
    if isinstance(value, Iterator | Set):
        problems.append(f"{name} is a {type(value).__name__}, which has no rows; make it a list")
    return value


def _rows(name: str, value: Tensor, n: int, problems: list[str]) -> Tensor:
    """A tensor with a row for each example; one row, or one integer, is used for all."""
    if value.dtype in _WIDE:
        value = value.long()
    if value.ndim == 0:
        whole = not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)
        return value.expand(n) if whole else value
    if value.shape[0] == n:
        return value
    if value.shape[0] == 1:
        return value.expand(n, *value.shape[1:])
    problems.append(_wrong_number(name, n, value.shape[0]))
    return value


def _wrong_number(name: str, n: int, found: int) -> str:
    return f"{name} must have one value for each of {n} examples, got {found}"


def _number(name: str, value: int, n: int, problems: list[str]) -> Tensor | None:
    if abs(value) > _LARGEST:
        problems.append(f"{name} is {_short(value)}, which is more than 64 bits hold; use a smaller number")
        return None
    return torch.full((n,), value)


def _short(number: int) -> str:
    return str(number) if abs(number) < 10**30 else f"a number of {number.bit_length()} bits"


def _from_numpy(value: np.ndarray | np.generic) -> Any:
    """Arrays of numbers as tensors, anything else as Python values."""
    if isinstance(value, np.ndarray) and value.ndim and value.dtype.kind in _NUMBERS:
        return _tensor_of(value)
    if value.dtype.kind == "f":
        return float(value)  # of any length: NumPy's floats of more than 64 bits do not become a Python float by tolist
    return value.tolist()


def _read_list(name: str, value: Sequence[Any], n: int, problems: list[str]) -> Any:
    entries = [_from_numpy(entry) if isinstance(entry, np.generic) else entry for entry in value]
    if entries and all(_has_axes(entry, np.ndarray) for entry in entries):
        entries = [_from_numpy(entry) for entry in entries]
        if len(entries) == n and all(isinstance(e, Tensor) and e.shape == entries[0].shape for e in entries):
            return torch.stack(entries)
    if entries and all(isinstance(entry, Mapping) or _has_axes(entry, Tensor) for entry in entries):
        return _read_structures(name, entries, isinstance(value, tuple), n, problems)
    large = next((entry for entry in entries if type(entry) is int and abs(entry) > _LARGEST), None)
    if large is not None:
        problems.append(f"{name} has {_short(large)}, which is more than 64 bits hold; use a smaller number")
        return entries
    numbers = _as_numbers(entries)
    if numbers is not None:
        return _rows(name, numbers, n, problems)
    if len(entries) not in (1, n):
        problems.append(_wrong_number(name, n, len(entries)))
    return [_entry(entry) for entry in (entries * n if len(entries) == 1 else entries)]


def _as_numbers(entries: list[Any]) -> Tensor | None:
    try:
        return torch.as_tensor(entries) if entries else None
    except (TypeError, ValueError, RuntimeError, OverflowError):  # not an array of numbers
        return None


def _has_axes(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and value.ndim > 0  # type: ignore[attr-defined]  # tensors and arrays have it


def _read_structures(name: str, entries: list[Any], is_tuple: bool, n: int, problems: list[str]) -> Any:
    """Tensors or mappings: one for each example, a list; or with a row for each example, side by side, a tuple."""
    rows = [_row_counts(entry) for entry in entries]
    all_rows = all(counts == {n} for counts in rows)
    fitting = all(counts and counts <= {1, n} for counts in rows)
    if is_tuple and fitting:
        return tuple(_read(f"{name}[{i}]", entry, n, problems) for i, entry in enumerate(entries))
    if len(entries) == n and all_rows:
        problems.append(
            f"{name} is ambiguous: a list of {n} tensors with {n} rows each; for one tensor per example, stack them "
            f"(shorter ones padded, with a mask); for {n} conditions with a row per example, make it a tuple"
        )
    elif len(entries) == n or (len(entries) == 1 and not fitting):
        return [_entry(entry) for entry in (entries * n if len(entries) == 1 else entries)]
    elif not (is_tuple or any(rows)):
        problems.append(_wrong_number(name, n, len(entries)))
    elif not fitting and all(isinstance(entry, Tensor) for entry in entries):
        found = ", ".join(str(len(entry)) for entry in entries[:4]) + (", ..." if len(entries) > 4 else "")
        problems.append(
            f"{name} must have one tensor for each of {n} examples, or tensors with a row for each example, got "
            f"{len(entries)} with {found} rows; pad them to one length, stack them, and pass a mask"
        )
        return entries
    return tuple(_read(f"{name}[{i}]", entry, n, problems) for i, entry in enumerate(entries))


def _row_counts(value: Any) -> set[int]:
    """Row counts of the tensors and arrays inside."""
    if isinstance(value, Mapping):
        return set().union(*map(_row_counts, value.values()))
    if isinstance(value, list | tuple):
        return set().union(*map(_row_counts, value))
    return {value.shape[0]} if isinstance(value, Tensor | np.ndarray) and value.ndim else set()


def _entry(value: Any) -> Any:
    """One example's entry: arrays of numbers as tensors."""
    if isinstance(value, np.ndarray | np.generic):
        return _from_numpy(value)
    if isinstance(value, Mapping):
        return {key: _entry(entry) for key, entry in value.items()}
    return value


# ---- rows ------------------------------------------------------------------------------------------------------------


def rows_of(conditions: Mapping[str, Any], rows: range | Tensor) -> dict[str, Any]:
    """Return the conditions, as `conditions_for` returns them, of some of the examples.

    Args:
        conditions: Of all examples; numbers and texts are shared by them.
        rows: Indices of the examples: a range, or a tensor with possible repetitions.
    """
    return {name: _pick(value, rows) for name, value in conditions.items()}


def _pick(value: Any, rows: range | Tensor) -> Any:
    if isinstance(value, Mapping):
        return {key: _pick(entry, rows) for key, entry in value.items()}
    if isinstance(value, tuple):
        return tuple(_pick(entry, rows) for entry in value)
    if isinstance(value, Tensor) and value.ndim > 0:
        return value[rows.start : rows.stop] if isinstance(rows, range) else value[rows]
    if isinstance(value, list):
        return [value[i] for i in (rows if isinstance(rows, range) else rows.tolist())]
    return value


def mapped(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Return a condition with every tensor in it changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: mapped(change, entry) for key, entry in value.items()}
    if type(value) in (list, tuple):
        return type(value)(mapped(change, entry) for entry in value)
    return value


def as_tensor(name: str, value: Any) -> Tensor:
    """Return a tensor unchanged, and an array of numbers as a tensor.

    Args:
        name: Its name in messages.
        value: The argument.
    Raises:
        OptionError: It is neither.
    """
    if isinstance(value, np.ndarray) and value.dtype.kind in _NUMBERS:
        return _tensor_of(value)
    if not isinstance(value, Tensor):
        raise OptionError(f"{name} must be a tensor or a NumPy array of numbers, got {type(value).__name__}")
    return value


def _tensor_of(array: np.ndarray) -> Tensor:
    """A copy: torch does not accept read-only arrays, negative strides, foreign byte order or floats above 8 bytes."""
    native = np.float64 if array.dtype.kind == "f" and array.dtype.itemsize > 8 else array.dtype.newbyteorder("=")
    return torch.from_numpy(array.astype(native, order="C"))
