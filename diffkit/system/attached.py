"""The adapter of a network: its weights are frozen, and what is trained, saved and loaded is the adapter alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import frozen
from torch import Tensor, nn

from diffkit.errors import CheckpointError, OptionError
from diffkit.protocols import Adapter
from diffkit.runtime.files import unwrap_module, weights_digest
from diffkit.runtime.run_layout import BASE, SPEC, WEIGHTS
from diffkit.runtime.strict_json import json_object
from diffkit.runtime.weights_files import read_weights

_DIGITS = 12
"""Digits of a digest that messages show."""


@frozen(eq=False)
class Attached:
    """The adapter of a network.

    Attributes:
        adapter: Its recipe.
        base: The folder or file with the weights beside which it is trained.
        digest: Their digest.
        own: Names of the adapter's tensors in the network.
        others: Names of all others.
    """

    adapter: Adapter
    base: str
    digest: str
    own: frozenset[str]
    others: frozenset[str]


def adapter_of(network: nn.Module | None) -> Attached | None:
    """Return the adapter of a network, if it has one."""
    return None if network is None else getattr(unwrap_module(network), "attached_adapter", None)


def attach(network: nn.Module, adapter: Adapter, base: str, digest: str | None = None) -> Attached:
    """Add an adapter to a network, in place: its own parameters are frozen, its state dict is that of the adapter.

    Args:
        network: The network.
        adapter: The recipe.
        base: Where its weights are stored.
        digest: Their digest, if it is known.
    Raises:
        OptionError: The network has an adapter already, or the adapter does not fit it.
    """
    if adapter_of(network) is not None:
        raise OptionError(
            "the network has an adapter already; merge that first: system = diffkit.weights.merged(system)"
        )
    before = {id(parameter) for parameter in network.parameters()}
    found = base_digest(network) if digest is None else digest
    network.requires_grad_(False)
    adapter.attach(network)
    state = network.state_dict(keep_vars=True)
    own = frozenset(
        name for name, tensor in state.items() if isinstance(tensor, nn.Parameter) and id(tensor) not in before
    )
    attached = Attached(adapter, base, found, own, frozenset(state) - own)
    network.attached_adapter = attached  # type: ignore[assignment]  # a plain attribute
    network.register_state_dict_post_hook(_only_own)  # type: ignore[no-untyped-call]
    network.register_load_state_dict_pre_hook(_with_others)  # type: ignore[no-untyped-call]
    return attached


def forget_adapter(network: nn.Module) -> None:
    """Let a network whose adapter was merged be one without."""
    unwrap_module(network).attached_adapter = None  # type: ignore[assignment]  # a plain attribute


def _only_own(network: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Leave the adapter's tensors in a state dict."""
    for name in [] if (attached := adapter_of(network)) is None else attached.others:
        state.pop(prefix + name, None)


def _with_others(network: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Complete a state dict that has the adapter's tensors only, with the network's own."""
    if (attached := adapter_of(network)) is None:
        return
    present = {**dict(network.named_parameters(remove_duplicate=False)), **dict(network.named_buffers())}
    for name in attached.others:
        state.setdefault(prefix + name, present[name].detach())


def base_digest(network: nn.Module) -> str:
    """Return the digest of the weights of a network without an adapter."""
    return weights_digest(unwrap_module(network).state_dict(), shapes=True)


def base_record(attached: Attached) -> dict[str, Any]:
    """Return the weights beside which an adapter is trained, as a spec names them."""
    return {"path": attached.base, "digest": attached.digest}


def read_base(folder: Path, record: Mapping[str, Any], given: str | Path | None = None) -> dict[str, Tensor]:
    """Return the weights beside which an adapter was trained.

    Args:
        folder: The folder with the adapter, where they may lie too.
        record: As `base_record` returned it.
        given: A folder or file to read instead of the one that the record names.
    Raises:
        CheckpointError: They are not there, or others are.
    """
    places = [Path(given)] if given is not None else [folder / BASE, Path(record["path"])]
    for place in filter(Path.exists, places):
        weights = read_weights_at(place)
        if (found := weights_digest(weights, shapes=True)) == record["digest"]:
            return weights
        raise CheckpointError(
            f"{place} has other weights than this adapter was trained beside (digest {found[:_DIGITS]}, not "
            f"{record['digest'][:_DIGITS]}); put them back, or name a copy: diffkit.load(folder, base=...)"
        )
    raise CheckpointError(
        f"the weights beside which this adapter was trained are not at {places[-1]}; name their folder: "
        "diffkit.load(folder, base=...)"
    )


def read_weights_at(place: Path) -> dict[str, Tensor]:
    """Return the weights in a saved system, a run or a .safetensors file, checked by the record beside them."""
    file = place / WEIGHTS if place.is_dir() else place
    spec = file.parent / SPEC
    record = json_object(spec).get("weights") if file.name == WEIGHTS and spec.exists() else None
    return read_weights(file, record)
