"""The option that names a teacher, which the losses share."""

from __future__ import annotations

from typing import Any

import attrs

from diffkit import OptionError


def teacher_field(default: str | None = None) -> Any:
    """Field holding a text ("ema", "system" or the folder of a saved system), or None if that is the default."""

    def check(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if (value is None and default is None) or (isinstance(value, str) and value):
            return
        raise OptionError("must be a text" + ("" if default else " or None"), option=attribute.name, value=value)

    return attrs.field(default=default, validator=check)
