"""The options that a system's sampling has where a call does not give them: `Settings.sampling`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import attrs

from diffkit.errors import DiffkitError, OptionError, did_you_mean
from diffkit.options import check_flag
from diffkit.protocols import Composition, LevelSpacing
from diffkit.registry import registry
from diffkit.registry.resolve import is_pair
from diffkit.spacing import visited
from diffkit.system.chains import chain_of
from diffkit.system.guidance import with_guidance
from diffkit.system.settings import plain_spacing

NAMES = ("steps", "guidance", "clip", "final")
_ELSEWHERE = {"sampler": "a part: compose(sampler=('ddim', {'eta': 0.5}))", "seed": "given to each call: seed=0"}


FINALS = ("zero", "sigma_min")


def checked_final(final: Any) -> str:
    """Return the option ``final``, or raise `OptionError`."""
    if final not in FINALS:
        raise OptionError("must be 'zero' or 'sigma_min'", option="final", value=final)
    return str(final)


def plain_sampling(sampling: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the argument ``sampling`` of `compose` as plain data; None if it holds nothing.

    Raises:
        OptionError: A name is unknown, or a value is not plain.
    """
    if sampling is None:
        return None
    if not isinstance(sampling, Mapping):
        raise OptionError(f"sampling must be a mapping of options, such as {{'steps': 250}}, got {sampling!r}")
    for name in sampling:
        if name not in NAMES:
            fix = f"; it is {_ELSEWHERE[name]}" if name in _ELSEWHERE else did_you_mean(str(name), NAMES)
            raise OptionError(f"sampling has no option {name!r}{fix} (known: {', '.join(NAMES)})")
    found = dict(sampling)
    if "steps" in found:
        found["steps"] = plain_steps(found["steps"])
    if found.get("guidance") is not None:
        found["guidance"] = _plain_guidance(found["guidance"])
    if found.get("clip") is not None:
        check_flag("clip of sampling", found["clip"])
    if "final" in found:
        checked_final(found["final"])
    return found or None


def check_sampling(sampling: Mapping[str, Any] | None, parts: Composition) -> None:
    """Raise `OptionError` if the defaults do not fit a composition."""
    if sampling is None:
        return
    try:
        chain_of(parts, visited(parts.table.num_steps, sampling.get("steps"), parts.table))
        with_guidance(parts, sampling.get("guidance"))
    except DiffkitError as error:
        raise OptionError(f"sampling={dict(sampling)!r}: {error}") from error


def plain_steps(slot: Any) -> Any:
    """A part as its name and options."""
    found = plain_spacing("steps of sampling", slot)
    if not isinstance(found, LevelSpacing):
        return found
    known = registry("spacing").provenance(found)
    if known is None:
        raise OptionError(f"steps of sampling must have a name, which a saved system can hold, got {slot!r}")
    return {"name": known.name, **attrs.asdict(cast("Any", found), recurse=False)}


def _plain_guidance(slot: Any) -> Any:
    """Names and options, each as a mapping, so that JSON holds them: instances may hold networks."""
    if isinstance(slot, str):
        return {"name": slot}
    if isinstance(slot, Mapping) and isinstance(slot.get("name"), str):
        return dict(slot)
    if isinstance(slot, tuple | list):
        if is_pair(slot):
            return {"name": slot[0], **slot[1]}
        return [_plain_guidance(one) for one in slot]
    raise OptionError(
        "guidance of sampling must be a name, (name, options) or a list of these, which a saved system can hold, got "
        f"{slot!r}; pass guidance= to each call"
    )
