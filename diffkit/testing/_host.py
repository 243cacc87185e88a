"""Find host synchronization and graph breaks: values read by the host, and graphs that break or multiply."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from diffkit.testing._check import LawError

_READS = "reading a value (.item(), float(x), bool(x)), a Python `if` on a tensor, or a shape that depends on values"


@contextmanager
def on_fake_tensors(strict: bool = True) -> Iterator[Any]:
    """Run a block where tensors have shapes but no values, so that reading one raises `LawError`.

    Args:
        strict: Refuse tensors made outside of the block, too.
    """
    from torch._subclasses.fake_tensor import (
        DataDependentOutputException,
        DynamicOutputShapeException,
        FakeTensorMode,
    )
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

    reads = (DataDependentOutputException, DynamicOutputShapeException, GuardOnDataDependentSymNode)
    try:
        with FakeTensorMode(allow_non_fake_inputs=not strict) as mode, torch.no_grad():
            yield mode
    except reads as error:
        raise LawError("no value of a tensor is read", f"{type(error).__name__}: {error}", cause=_READS) from error
    except LawError:
        raise
    except AssertionError as error:
        if "fake" not in str(error).lower():
            raise
        text = "a tensor made outside of the call, on import or left from before"
        raise LawError("tensors made from the arguments only", text, cause="a cached tensor") from error


def count_graphs(function: Callable[..., Any], calls: Iterator[tuple[Any, ...]]) -> int:
    """Compile a function whole, make the calls, and return how many graphs that took.

    Each call's result is sent back into ``calls``, a generator of arguments.
    """
    import torch._dynamo as dynamo

    found = 0

    def backend(graph: Any, inputs: Any) -> Any:
        nonlocal found
        found += 1
        return graph.forward

    dynamo.reset()
    compiled = torch.compile(function, backend=backend, fullgraph=True, dynamic=False)
    try:
        with torch.no_grad():
            for arguments in calls:
                compiled(*arguments)
    except dynamo.exc.TorchDynamoException as error:
        function(*arguments)  # the part's own exception, unrelated to graphs
        first_line = str(error).strip().partition("\n")[0]
        raise LawError("one whole graph", f"{type(error).__name__}: {first_line}", cause=_READS) from error
    finally:
        dynamo.reset()
    return found
