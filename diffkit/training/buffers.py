"""Buffers that a network changes as it is called, such as running means: an update that fails must leave no trace."""

from __future__ import annotations

from torch import Tensor, nn


class LiveBuffers:
    """What the buffers of a network held before the update at hand.

    Most networks have none that change. Which do is learned from the first update, and only those are copied.

    Args:
        network: Whose buffers; those that no state dict has do not count.
    """

    def __init__(self, network: nn.Module):
        self._places = [
            (module, name)
            for module in network.modules()
            for name in module._buffers
            if name not in module._non_persistent_buffers_set
        ]
        self._before: list[tuple[Tensor | None, int]] = []
        self._live: set[int] = set()
        self._copies: dict[int, Tensor] = {}

    def begin(self) -> None:
        """Note them before an update."""
        now = self._now()
        self._before = [(held, _version(held)) for held in now]
        self._copies = {i: held.clone() for i in self._live if (held := now[i]) is not None}

    def end(self) -> None:
        """Note after an update which have changed."""
        self._live.update(self._changed())

    def undo(self) -> bool:
        """Undo what an update that failed did to them, and return whether that was possible."""
        for i in self._changed():
            if i not in self._copies:
                return False
            module, name = self._places[i]
            module._buffers[name] = self._copies[i]
        return True

    def _now(self) -> list[Tensor | None]:
        return [module._buffers[name] for module, name in self._places]

    def _changed(self) -> list[int]:
        pairs = zip(self._before, self._now(), strict=False)
        return [i for i, ((was, version), now) in enumerate(pairs) if now is not was or _version(now) != version]


def _version(tensor: Tensor | None) -> int:
    """How often a tensor was written to, as torch counts it."""
    return 0 if tensor is None or tensor.is_inference() else tensor._version
