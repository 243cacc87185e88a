"""Links to the documentation of Python, PyTorch and NumPy, by a page for each module: no build needs the network."""

from __future__ import annotations

import builtins
import collections.abc
import types
import typing

_PYTHON = "https://docs.python.org/3/library/"
_TORCH = "https://docs.pytorch.org/docs/stable/"
_NUMPY = "https://numpy.org/doc/stable/reference/"

_FULL = {
    "Path": "pathlib.Path",
    "Tensor": "torch.Tensor",
    "ArrayLike": "numpy.typing.ArrayLike",
    "NDArray": "numpy.typing.NDArray",
    "torch.nn.modules.module.Module": "torch.nn.Module",
    "torch._C.Generator": "torch.Generator",
}
"""Short and private names -> full and public ones."""

_MODULES = {"np": "numpy", "nn": "torch.nn"}
"""Usual names of modules -> full ones."""

_TYPES = ("bytearray", "bytes", "dict", "frozenset", "list", "memoryview", "range", "set", "str", "tuple")
"""Built-in classes that Python does not explain among its functions."""

_PAGES = {
    "collections.abc": f"{_PYTHON}collections.abc.html",
    "contextlib": f"{_PYTHON}contextlib.html",
    "functools": f"{_PYTHON}functools.html",
    "pathlib": f"{_PYTHON}pathlib.html",
    "typing": f"{_PYTHON}typing.html",
    "torch": f"{_TORCH}generated/{{}}.html",
    "torch.nn": f"{_TORCH}generated/{{}}.html",
    "torch.optim": f"{_TORCH}generated/{{}}.html",
    "torch.Tensor": f"{_TORCH}tensors.html",
    "torch.device": f"{_TORCH}tensor_attributes.html",
    "torch.dtype": f"{_TORCH}tensor_attributes.html",
    "torch.optim.Optimizer": f"{_TORCH}optim.html",
    "torch.utils.data": f"{_TORCH}data.html",
    "numpy.dtype": f"{_NUMPY}generated/numpy.dtype.html",
    "numpy.ndarray": f"{_NUMPY}generated/numpy.ndarray.html",
    "numpy.random": f"{_NUMPY}random/generator.html",
    "numpy.typing": f"{_NUMPY}typing.html",
    **{f"numpy.{name}": f"{_NUMPY}arrays.scalars.html" for name in ("bool", "float32", "float64", "int64", "uint8")},
}
"""Name, or the module that it is in -> its page."""


def link(name: str) -> str | None:
    """Return the address of a name of Python, PyTorch or NumPy, however it is written; None if it is not known.

    Args:
        name: Such as ``str``, ``Sequence``, ``nn.Module`` or ``torch.Tensor``.
    """
    name = name.partition("[")[0]
    first, dot, rest = name.partition(".")
    full = _FULL.get(name) or f"{_MODULES.get(first, first)}{dot}{rest}"
    if not dot and full == name:
        return _bare(name)
    page = _PAGES.get(full) or _PAGES.get(full.rpartition(".")[0])
    return f"{page.format(full)}#{full}" if page else None


def _bare(name: str) -> str | None:
    """Address of a built-in name, or of one of the modules that annotations are made of."""
    if name in ("None", "True", "False"):
        return f"{_PYTHON}constants.html#{name}"
    value = None if name.startswith("_") else getattr(builtins, name, None)
    if isinstance(value, type):
        is_error = issubclass(value, BaseException)
        return f"{_PYTHON}{'exceptions' if is_error else 'stdtypes' if name in _TYPES else 'functions'}.html#{name}"
    if isinstance(value, types.BuiltinFunctionType):
        return f"{_PYTHON}functions.html#{name}"
    for module in (collections.abc, typing):
        if name in module.__all__:
            return f"{_PAGES[module.__name__]}#{module.__name__}.{name}"
    return None
