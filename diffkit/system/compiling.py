"""One compiled graph of a sampler's step with its network and guidance, shared between calls; networks by blocks.

A graph is cached by system and by configuration (sampler, guidance, network, conditions, dtype); it serves every
number of steps, every spacing, every value of a numeric option and every batch size from 2 on.
"""

from __future__ import annotations

import itertools
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from diffkit.errors import OptionError
from diffkit.protocols import Denoise, State
from diffkit.system.cache import SystemCache
from diffkit.system.denoiser import Denoiser
from diffkit.system.sampling import Program, Row, StepFn

Compile = bool | str | Mapping[str, Any]
"""False, True or "step", "cuda_graph", or arguments of `torch.compile`."""

CUDA_GRAPH = "cuda_graph"
_CAPTURING = ("reduce-overhead", "max-autotune")
"""Modes of torch.compile that replay CUDA graphs; see `torch._inductor.list_mode_options`."""

GRAPHS: SystemCache[StepFn] = SystemCache(32)
_counter = itertools.count()
_OFF: dict[str, Any] = {"compile": False}


def check_compile(value: object, device: torch.device) -> Compile:
    """Return the argument ``compile``, or raise `OptionError`."""
    if value == "step":
        return True
    if value == CUDA_GRAPH and device.type != "cuda":
        raise OptionError(
            f"needs a GPU, the system is on {device}", option="compile", value="cuda_graph", fix={"compile": "step"}
        )
    if isinstance(value, bool) or value == CUDA_GRAPH or isinstance(value, Mapping):
        return value
    text = "must be True, False, 'step', 'cuda_graph' or arguments of torch.compile"
    raise OptionError(text, option="compile", value=value)


def compiled(
    system: nn.Module, step_fn: StepFn, how: Compile, program: Program, denoiser: Denoiser, x: Tensor
) -> StepFn:
    """Return ``step_fn`` compiled; from the cache if the system has been called in this configuration before.

    Args:
        system: Owner of the graphs; its cache is freed with it.
        step_fn: One of `diffkit.system.sampling`.
        how: As in `System.sample`, not False.
        program, denoiser: Its later arguments.
        x: Data of the same shape, dtype and device as its later argument.
    """
    options = _arguments(how)
    key = (
        step_fn,
        _frozen(options),
        _identity(program.sampler),
        tuple(program.columns.blocks),
        tuple(type(guidance) for guidance in denoiser.guidance),
        id(denoiser.model),
        id(denoiser.transform),
        denoiser.clip,
        tuple(sorted(denoiser.conditions)),
        (x.device, x.dtype, x.shape[1:]),
    )
    return GRAPHS.get(system, key, lambda: _Compiled(step_fn, options, how))


class _Compiled:
    """A step function that is compiled at its first call."""

    def __init__(self, step_fn: StepFn, options: Mapping[str, Any], how: Compile):
        self._graph: StepFn = torch.compile(_copy(step_fn), **options)
        self._static = _captures(options)
        self._how = how
        self._marked: set[tuple[int, int, bool]] = set()

    def __call__(
        self,
        program: Program,
        denoise: Denoise,
        x: Tensor,
        state: State,
        row: Tensor | Row,
        noise: Tensor | None,
        last: bool,
    ) -> tuple[Tensor, State, Tensor | None]:
        row = row.values if isinstance(row, Row) else row
        sizes = (len(x), len(state) if isinstance(state, tuple) else 1, last)
        if sizes not in self._marked:  # marking takes as long as several operations, and a compiled graph needs none
            conditions = denoise.conditions if isinstance(denoise, Denoiser) else {}
            _mark_rows((x, state, noise, dict(conditions)), len(x))
            self._marked.add(sizes)
        if self._static:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        try:
            out = self._graph(program, denoise, x, state, row, noise, last)
        except Exception as error:
            if not is_of_the_compiler(error):
                raise
            if isinstance(error, torch._dynamo.exc.BackendCompilerFailed):
                text, fixes = f"torch's compiler failed ({_beginning(error)})", [_OFF]
            else:
                text = f"cannot capture this step as one graph ({_beginning(error)})"
                fixes = [_OFF, {"compile": {"fullgraph": False}}]
            raise OptionError(text, option="compile", value=self._how, fix=fixes) from error
        # a CUDA graph overwrites the results of the step before
        return pytree.tree_map_only(Tensor, Tensor.clone, out) if self._static else out


def is_of_the_compiler(error: Exception) -> bool:
    """Whether torch's compiler raised the error, rather than the code that it compiles."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))


def compile_blocks(network: nn.Module, **options: Any) -> nn.Module:
    """Compile a network block by block, in place, and return it; its weights and their names are unchanged.

    Faster to compile than the whole, as equal blocks share their kernels, and nearly as fast to run; for training,
    sampling and the bound alike. A copy of the network is not compiled. Each shape of data and each batch size is
    compiled separately, the first four of them; others run uncompiled.

    Args:
        network: One whose blocks are elements of `nn.ModuleList`; the built-in ones are.
        options: Arguments of `torch.compile`.
    Raises:
        OptionError: The network has no such blocks.
    """
    found = list(_blocks(network))
    if not found:
        raise OptionError(
            f"{type(network).__name__} has no blocks in an nn.ModuleList; compile the whole of it, network.compile()"
        )
    # torch counts the graphs of all blocks of a class together and stops compiling at 8
    config = torch._dynamo.config
    limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"  # the latter in torch 2.6
    setattr(config, limit, max(getattr(config, limit), 4 * len(found)))
    # By default torch treats two resolutions of a class of blocks as a dynamic shape; torch 2.13 fails to compile
    # the gradients of some blocks then.
    options = {"dynamic": False} | options
    for block in found:
        block.compile(**options)
    return network


def compile_network(network: nn.Module) -> nn.Module:
    """Compile a network in place, by blocks if it has any, and return it; see `compile_blocks`."""
    if any(True for _ in _blocks(network)):
        return compile_blocks(network)
    network.compile()
    return network


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost elements of lists that hold modules of their own."""
    for child in module.children():
        if isinstance(module, nn.ModuleList) and not isinstance(child, nn.ModuleList):
            if any(True for _ in child.children()):
                yield child
        else:
            yield from _blocks(child)


def _arguments(how: Compile) -> dict[str, Any]:
    given = dict(how) if isinstance(how, Mapping) else {"mode": "reduce-overhead"} if how == CUDA_GRAPH else {}
    return {"fullgraph": True} | given


def _captures(options: Mapping[str, Any]) -> bool:
    """Whether torch.compile with these arguments replays CUDA graphs on a GPU."""
    own = options.get("options") or {}
    return bool(own.get("triton.cudagraphs", options.get("mode") in _CAPTURING))


def _copy(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function with code of its own: torch.compile limits the number of graphs per code object."""
    code = function.__code__.replace(co_name=f"{function.__name__}_{next(_counter)}")
    return types.FunctionType(code, function.__globals__, code.co_name, function.__defaults__, function.__closure__)


def _mark_rows(tree: Any, batch: int) -> None:
    """Mark the first axis as dynamic: its size may differ at the next call."""
    for leaf in pytree.tree_leaves(tree):
        if isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == batch:
            torch._dynamo.maybe_mark_dynamic(leaf, 0)


def _identity(part: Any) -> Any:
    try:
        hash(part)
    except TypeError:
        return type(part), repr(part)
    return part


def _frozen(options: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, repr(value)) for name, value in options.items()))


def _beginning(error: Exception) -> str:
    """The first two lines: the first line of a backend's error only names the backend."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) or type(error).__name__
