"""Levels of a shorter chain: ``levels(T, spacing, table)``.

A spacing is None (all), a count, a list of levels, a part of `diffkit.parts.spacings` or of a plugin (a pair such as
("karras", {"count": 20, "rho": 5}), a mapping or an instance), or one of these strings:

=============== ==================================================================================
"all"           every level, as None
"250"           250 levels from first to last, evenly, as improved-diffusion rounds them
"10,15,20"      T in three equal sections, that many levels from each
"ddim50"        every k-th level from level 1 for the smallest k that gives exactly 50
"leading50"     every (T // 50)-th level from level 1
"trailing50"    T, T - T/50, ...: ends at level T
"linspace50"    evenly from level 1 to T, rounded to the nearest
"quad20"        evenly in the square root of the level, from 1 to T: denser at clean levels
"time20"        evenly in the time that conditions the network
"logsnr20"      evenly in log-SNR
"karras20"      evenly in (sigma / alpha)^(1/7); "karras20:rho=5" in its fifth root, rho >= 1
"karras20:exact" the same at Karras' sigmas themselves, between the levels of the table
"exponential20" evenly in log(sigma / alpha), exact; "exponential20:rho=2" denser at clean levels
"beta20"        at quantiles of a beta distribution, exact
"ays_sd15"      a grid that comes with diffkit (`grids`); "ays_sd15:20" stretched to 20 levels, "ays_sd15:exact"
"mine20"        the part "mine" of a plugin with count=20; options follow as in "mine20:width=2"
"grid.json"     a grid from a file, see `diffkit.spacing.files`; "grid.json:20" stretched to 20 levels
=============== ==================================================================================

Those from "time20" on use the noise levels of the table. Where two of the computed levels coincide, the next free one
is used, so a spacing always has the given number of levels. An exact one visits noise levels between those of the
table, and the network's time is interpolated in log-SNR (`diffkit.table.interpolate`); it is for sampling, and for the
bound of such a chain. ("sigmas", {"values": [14.6, 2.7]}), or "sigmas:values=14.6,2.7", are values of your own.

`nearest` turns noise levels of your own, given as sigma / alpha, into a list of levels.
`diffkit.spacing.optimal` finds the levels with the best variational bound from one measurement of a trained model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from attrs import frozen

from diffkit.errors import OptionError, ProtocolError, problem
from diffkit.options import check_integer
from diffkit.parts.spacings._even import check_count
from diffkit.parts.spacings.karras import Karras
from diffkit.parts.spacings.sections import Sections
from diffkit.protocols import GridSpacing, LevelSpacing
from diffkit.registry import registry
from diffkit.registry.aliases import alias_of
from diffkit.registry.resolve import Slot, resolve
from diffkit.spacing.files import GRIDS, grid, is_grid
from diffkit.table import F64, ProcessTable, check_levels, nearest_levels

Spacing = int | str | Sequence[int] | Slot | None
"""Which levels a chain visits: a count, a text such as "ddim50", a list of levels, or a part; None is every level."""

SEEN = 0.05
"""Signal scale at the first level above which a remark is logged: it shifts the brightness of a white image by a
twentieth of the noise's standard deviation in every pixel. The published ddim20 on a cosine schedule leaves 0.076.
"""


def levels(num_steps: int, spacing: Spacing, table: ProcessTable | None = None) -> tuple[int, ...]:
    """Return the levels of a spacing, ascending, each in 1..num_steps.

    Args:
        num_steps: T of the table to be respaced.
        spacing: See the module. A count of 1 is level T, the only one from which a chain of one step can start
            (improved-diffusion's "1" is the cleanest level).
        table: The table to be respaced, for spacings that use noise levels.
    Raises:
        OptionError: More levels than there are, fewer than one, a string of unknown form, or a file that is not a grid.
    """
    found = visited(num_steps, spacing, table)
    if isinstance(found, Grid):
        raise OptionError(
            f"spacing {spacing!r} lies between the levels of the table, and levels themselves are needed here; use one "
            "that visits them, such as 'karras20' or a number"
        )
    return found


@frozen(eq=False)
class Grid:
    """Noise levels that may lie between those of a table, cleanest first.

    Attributes:
        log_snr: Of each level, (n,).
        time: What the network is conditioned on there, (n,); None to interpolate the table's.
    """

    log_snr: F64
    time: F64 | None = None

    @property
    def key(self) -> tuple[bytes, bytes | None]:
        """The values, as a key of a cache."""
        return self.log_snr.tobytes(), None if self.time is None else self.time.tobytes()


def visited(num_steps: int, spacing: Spacing, table: ProcessTable | None = None) -> tuple[int, ...] | Grid:
    """Return the levels of a spacing, or the noise levels of one that visits those between; arguments as `levels`."""
    if isinstance(spacing, str):
        spacing = spacing.strip()
        if long := re.search(r"\d{19,}", spacing):
            raise OptionError(f"steps must be <= {num_steps}, got a number of {len(long[0])} digits")
        if is_grid(spacing):
            return _of_file(spacing, _needed(table, spacing))
    if spacing is None or (isinstance(spacing, str) and spacing in ("", "all")):
        return tuple(range(1, num_steps + 1))
    if isinstance(spacing, int | np.integer):
        spacing = str(check_integer("steps", spacing, ge=1))
    if (part := spacing_part(spacing)) is not None:
        if isinstance(part, GridSpacing) and part.exact:
            return _grid_of(part, _needed(table, spacing))
        return _levels_of(part, spacing, num_steps, table)
    if isinstance(spacing, range) and len(spacing) > num_steps:  # which may be too long for any array
        raise OptionError(f"must lie in 1..{num_steps}", option="levels", value=spacing)
    given = np.asarray(spacing)
    if given.ndim and given.size and given.dtype.kind == "f":
        raise OptionError(
            f"levels must be integers, got {spacing!r}; for values of sigma / alpha, "
            "diffkit.spacing.nearest(system.table, [...]) returns the levels"
        )
    listed: Any = spacing
    return tuple(int(k) for k in check_levels(listed, num_steps))


def remark_on_start(training: ProcessTable, first: int, above: float = 0.0) -> str | None:
    """Return a remark if sampling starts below level T, where data still has signal; None otherwise.

    Args:
        training: The training table.
        first: The level that sampling starts from.
        above: Signal scale up to which there is no remark.
    """
    row = int(np.searchsorted(training.index, first))
    if row == training.num_steps or training.alpha[row] <= above:
        return None
    return (
        f"sampling starts at level {first}, not {training.index[-1]}, from pure noise, although that level still has "
        f"alpha_bar = {training.alpha_bar[row]:.3g}; a 'trailing' spacing ends at T"
    )


def remark_on_karras(training: ProcessTable, steps: Spacing) -> str | None:
    """Return a remark if a spacing for variance-exploding paths is used on a variance-preserving one; else None."""
    if isinstance(steps, str) and not steps.startswith("karras"):  # which may be a file
        return None
    part = spacing_part(steps)
    if not isinstance(part, Karras) or part.exact or not np.allclose(training.total_std, 1):
        return None
    return problem(
        "is made for variance-exploding paths; on this one samples get another spread (20 steps of "
        "'ancestral' with an exact network: 0.65 for 0.56, evenly spaced ones 0.56); use a number of "
        "steps, or ':exact' behind the name for Karras' noise levels themselves",
        option="steps",
        value=steps,
    )


def nearest(table: ProcessTable, sigmas: Any) -> tuple[int, ...]:
    """Return the levels nearest to given noise, ascending; usable as ``steps``.

        system.sample(16, steps=diffkit.spacing.nearest(system.table, [14.6, 6.3, 2.7, 1.0, 0.3, 0.0]))

    Nearest in the logarithm of sigma / alpha, cleaner ones first: where two values have the same nearest level, the
    noisier one gets the next free level, so there are as many levels as values.

    Args:
        table: The training table, `System.table`.
        sigmas: Values of sigma / alpha, in any order, at most T; a 0 is level 0 and left out; inf is level T.
    Raises:
        OptionError: A value is negative or not a number, none is above 0, or there are more than levels.
    """
    ratio = _ratios(sigmas)
    if not len(ratio):
        raise OptionError("must hold a value above 0", option="sigmas", value=sigmas)
    return nearest_levels(table, -2 * np.log(ratio))


def _ratios(sigmas: Any) -> F64:
    try:
        found = np.asarray(sigmas, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise OptionError("must be a list of numbers", option="sigmas", value=sigmas) from error
    if found.ndim != 1 or np.any(np.isnan(found)) or np.any(found < 0):
        raise OptionError("must be a list of numbers >= 0", option="sigmas", value=sigmas)
    return found[found > 0]


def spacing_part(spacing: Any) -> LevelSpacing | None:
    """Return the part that a pair, a mapping, an instance or a string such as "ddim50" stands for; None for levels."""
    if isinstance(spacing, str):
        return _from_text(spacing)
    pair = isinstance(spacing, tuple | list) and len(spacing) == 2 and isinstance(spacing[1], Mapping)
    if not (pair or isinstance(spacing, Mapping) or callable(getattr(type(spacing), "levels", None))):
        return None
    part: LevelSpacing = resolve("spacing", spacing)[0]
    return part


def _needed(table: ProcessTable | None, text: Any) -> ProcessTable:
    if table is None:
        raise OptionError(f"spacing {text!r} depends on noise levels, so it needs the table")
    return table


def _of_file(text: str, table: ProcessTable) -> tuple[int, ...] | Grid:
    found = grid(text, table)
    return found if isinstance(found, tuple) else Grid(found)


def _grid_of(part: GridSpacing, table: ProcessTable) -> Grid:
    log_snr, time = part.log_snr(table), part.time(table)
    return Grid(np.asarray(log_snr, dtype=np.float64), None if time is None else np.asarray(time, dtype=np.float64))


def _levels_of(part: LevelSpacing, shown: Any, num_steps: int, table: ProcessTable | None) -> tuple[int, ...]:
    """The levels of a part, checked."""
    if table is None and part.uses_noise:
        raise OptionError(f"spacing {shown!r} depends on noise levels, so it needs the table")
    # without a table, one of that many levels will do
    found = part.levels(ProcessTable.from_betas(np.full(num_steps, 1 / (num_steps + 1))) if table is None else table)
    try:
        return tuple(int(k) for k in check_levels(found, num_steps))
    except OptionError as error:
        raise ProtocolError(f"spacing {shown!r} returned other levels than it may: {error}") from error


def _from_text(text: str) -> LevelSpacing:
    """The part of a string: name, number of levels, and options as in "karras20:rho=5"; a bare name is True."""
    if re.fullmatch(r"\d+(\s*,\s*\d+)*", text):
        counts = tuple(int(number) for number in text.split(","))
        for number in counts:
            check_count(number, number)
        return Sections(counts)
    head, *options = text.split(":")
    name, count = _name_and_count(head)
    if name is None or not all(re.fullmatch(r"[a-z_]+(=.+)?", option) for option in options):
        raise OptionError(_unknown(text))
    pairs = [option.partition("=") for option in options]
    given: dict[str, Any] = {key: _value(value) if sign else True for key, sign, value in pairs}
    if count is not None:
        check_count(count, max(count, 1))
        given["count"] = count
    try:
        part: LevelSpacing = registry("spacing").create(name, **given)
    except OptionError as error:
        raise OptionError(f"spacing {text!r}{str(error).removeprefix(f'spacing {name!r}')}") from error
    return part


def _name_and_count(head: str) -> tuple[str | None, int | None]:
    """A registered name and the number behind it; (None, None) if there is no part of that name."""
    known = registry("spacing")
    bare = re.fullmatch(r"([a-z][a-z0-9_]*?)(\d+)?", head)
    if bare is None:
        return None, None
    names = (bare[1],) if bare[1] in known.built_in_names() else known.names()
    if head in names:
        return head, None
    return (bare[1], int(bare[2])) if bare[2] and bare[1] in names else (None, None)


def _value(text: str) -> Any:
    if "," in text:
        return tuple(_value(one) for one in text.split(","))
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _unknown(text: str) -> str:
    named = re.fullmatch(r"(\D*?)(\d*)(:.*)?", text, re.DOTALL)  # not "2.5"
    if named is not None and (known := alias_of("spacing", named[1], ())) is not None:
        plugin, _, name = known.rpartition(":")
        if plugin:
            return f"no spacing named {named[1]!r}; it is {name!r} of the plugin {plugin}: pip install {plugin}"
        ours = f"{known}{named[2] or 20}" + (":exact" if known == "karras" else "")
        return f"no spacing named {named[1]!r}; here it is {ours!r}"
    forms = ", ".join(f"'{name}50'" for name in registry("spacing").names() if name not in ("sections", "sigmas"))
    return (
        f"spacing {text!r} has no known form; use a number, a list of levels, one of '250', '10,15,20', {forms}, a "
        f"file that ends in .json, or one of {', '.join(map(repr, GRIDS))}"
    )
