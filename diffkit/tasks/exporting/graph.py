"""A module as a graph of torch.export that takes a batch of any size."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from diffkit.errors import OptionError

_FOR_DEBUGGING = ("custom", "from_node", "nn_module_stack", "source_fn_stack", "stack_trace", "torch_fn")
"""What nodes carry for people who debug torch: paths of this machine, and twenty times the size of the graph."""

_OF_PYTORCH = ("aten", "prim", "prims", "profiler", "quantized")
"""Namespaces of operators that any PyTorch has."""


@frozen
class Input:
    """An input of an exported graph.

    Attributes:
        name: Its name.
        example: A tensor of two examples.
        about: What it is, in words.
        batch_axis: The axis of the examples.
    """

    name: str
    example: Tensor
    about: str
    batch_axis: int = 0

    @property
    def record(self) -> dict[str, Any]:
        """Name, dtype and shape as JSON; the size of the batch is "batch"."""
        shape: list[int | str] = list(self.example.shape)
        shape[self.batch_axis] = "batch"
        dtype = str(self.example.dtype).removeprefix("torch.")
        return {"name": self.name, "dtype": dtype, "shape": shape, "about": self.about}


@torch.no_grad()
def traced(module: nn.Module, inputs: Sequence[Input], what: str) -> ExportedProgram:
    """Return the graph of a module called with some inputs, for a batch of any size.

    Args:
        module: ``forward(first, *others)``.
        inputs: Its inputs.
        what: What it is, for errors.
    Raises:
        OptionError: torch cannot make it one graph, or it has operators of other packages.
    """
    batch = Dim("batch")
    first, *others = ({each.batch_axis: batch} for each in inputs)
    try:
        with quietly():
            found = torch.export.export(
                module,
                tuple(each.example for each in inputs),
                dynamic_shapes=(first, tuple(others)) if others else (first,),
                strict=False,
            )
    except Exception as error:  # torch raises dozens of kinds, and so does foreign code
        one_size = "Constraints violated (batch)" in str(error)
        reason = "it computes batches of one size alone" if one_size else first_line(error)
        raise OptionError(f"{what} cannot be exported as one graph: {reason}") from error
    if any(map(_records_gradients, _nodes(found.graph_module))):
        raise OptionError(f"{what} cannot be exported as one graph: it computes gradients, which no file holds")
    if any(map(_is_constant, _nodes(found.graph_module))):
        raise OptionError(
            f"{what} cannot be exported as one graph: it makes a tensor of numbers (torch.tensor, NumPy) in each step; "
            "make it a buffer of the network"
        )
    if foreign := sorted({str(node.target) for node in _nodes(found.graph_module) if _is_foreign(node)}):
        raise OptionError(f"{what} needs the operator {foreign[0]}, which is not PyTorch's own; use those of PyTorch")
    for node in _nodes(found.graph_module):
        for name in _FOR_DEBUGGING:
            node.meta.pop(name, None)
    return found


@contextmanager
def quietly() -> Iterator[None]:
    """Let torch neither warn of itself, nor log what it leaves out, nor print the graphs in which it fails."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def first_line(error: BaseException) -> str:
    """Return the line of an error that explains it, or the first that says something, or its kind."""
    lines = [line.strip() for line in str(error).splitlines()]
    explained = (line.removeprefix("Explanation: ") for line in lines if line.startswith("Explanation: "))
    return next(explained, next((line for line in lines if len(line) > 3), type(error).__name__))


def _nodes(graph_module: nn.Module) -> Iterator[torch.fx.Node]:
    """Nodes of a graph and of all graphs in it."""
    graphs = (module.graph for module in graph_module.modules() if isinstance(module, torch.fx.GraphModule))
    return (node for graph in graphs for node in graph.nodes)


def _records_gradients(node: torch.fx.Node) -> bool:
    return str(node.target) == "wrap_with_set_grad_enabled" and node.args[0] is True


def _is_foreign(node: torch.fx.Node) -> bool:
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and target.namespace not in _OF_PYTORCH


def _is_constant(node: torch.fx.Node) -> bool:
    """Whether a graph holds a tensor that is none of the program's inputs, which no file can hold."""
    return node.op == "get_attr" and isinstance(getattr(node.graph.owning_module, str(node.target), None), Tensor)
