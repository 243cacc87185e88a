"""Line charts and scatter plots as SVG, for a report in one HTML file; ``chart.svg.j2`` is the template.

Colours are CSS variables of the page, so that charts follow its light or dark scheme.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import frozen

from diffkit.evaluation._templates import template
from diffkit.table import F64

if TYPE_CHECKING:
    from markupsafe import Markup

WIDTH, HEIGHT = 480, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 30, 40
_POINTS = 600
"""Largest number of points of a line; longer lines are thinned, as pixels cannot show more."""
_FEW = 30
"""A line of fewer points than these has a dot at each."""
COLORS = ("--c1", "--c2", "--c3", "--c4", "--c5", "--c6")


@frozen(eq=False)
class ChartLine:
    """One line of an SVG chart.

    Attributes:
        x, y: Points; at values that are not finite, or not positive on a log scale, the line has a gap.
        label: Text in the legend; "" for none.
        low, high: Ends of a band around the line, or None.
    """

    x: Any
    y: Any
    label: str = ""
    low: Any = None
    high: Any = None


@frozen(eq=False)
class _Axis:
    """An axis of an SVG chart: maps values to pixels along one direction."""

    low: float
    high: float
    start: float
    end: float
    log: bool

    def to_pixels(self, values: F64) -> F64:
        """Return positions of values in pixels; NaN for values that cannot be drawn."""
        with np.errstate(all="ignore"):
            v = np.log10(values) if self.log else values
        v = np.where(np.isfinite(v), v, np.nan)
        return np.asarray(self.start + (v - self.low) / (self.high - self.low) * (self.end - self.start))

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Positions of the grid lines in pixels, and their labels."""
        values = self._log_ticks() if self.log else _even_ticks(self.low, self.high)
        return list(zip(self.to_pixels(np.array(values, dtype=np.float64)), map(_number, values), strict=True))

    def _log_ticks(self) -> list[float]:
        """Return powers of ten as ticks; their multiples if few powers are in range, even steps if none is."""
        decades = range(math.floor(self.low), math.ceil(self.high) + 1)
        inside = [k for k in decades if self.low <= k <= self.high]
        if len(inside) > 2:
            return [10.0**k for k in inside[:: math.ceil(len(inside) / 6)]]
        multiples = [m * 10.0**k for k in decades for m in (1, 2, 5)]
        found = [v for v in multiples if self.low <= math.log10(v) <= self.high]
        return found if len(found) > 1 else _even_ticks(10**self.low, 10**self.high)


def _even_ticks(low: float, high: float) -> list[float]:
    """Return about six round values in even steps as ticks."""
    rough = (high - low) / 6
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= rough * (1 - 1e-9))
    return [float(k) * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def chart(
    title: str, xlabel: str, ylabel: str, lines: Sequence[ChartLine], *, log_x: bool = False, log_y: bool = False
) -> Markup:
    """Return a line chart as SVG, with the text "nothing to draw" if there are no points."""
    lines = [ChartLine(_array(n.x), _array(n.y), n.label, _array(n.low), _array(n.high)) for n in lines]
    x = _axis([line.x for line in lines], _LEFT, WIDTH - _RIGHT, log_x)
    bands = [v for line in lines for v in (line.low, line.high) if v is not None]
    y = _axis([line.y for line in lines] + bands, HEIGHT - _BOTTOM, _TOP, log_y)
    if x is None or y is None:
        return _drawn(title)
    shapes = [(n.label, COLORS[i % len(COLORS)], _band(n, x, y), *_path(n, x, y)) for i, n in enumerate(lines)]
    named = [(label, color) for label, color, *_ in shapes if label]
    lefts = _LEFT + np.cumsum([0.0] + [26 + 6.3 * len(label) for label, _ in named])
    return _drawn(
        title,
        axes=(x, y),
        xlabel=xlabel,
        ylabel=ylabel,
        lines=[dict(zip(("label", "color", "band", "path", "dots"), shape, strict=True)) for shape in shapes],
        legend=[(left, *entry) for left, entry in zip(lefts, named, strict=False)],
    )


def scatter(title: str, points: F64, classes: Sequence[int] | None = None) -> Markup:
    """Return points in the plane, (N, 2), coloured by class, with equal units on both axes."""
    points = np.asarray(points, dtype=np.float64)
    centre, reach = (points.min(0) + points.max(0)) / 2, max(float(np.ptp(points, axis=0).max()) / 2 * 1.05, 1e-9)
    side = min(WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - 10)
    place = (points - centre) / reach * (side / 2)
    colors = [COLORS[(classes[i] if classes is not None else 0) % len(COLORS)] for i in range(len(points))]
    dots = [(WIDTH / 2 + x, _TOP + side / 2 - y, color) for (x, y), color in zip(place, colors, strict=True)]
    return _drawn(title, dots=dots)


def _drawn(title: str, **content: Any) -> Markup:
    from markupsafe import Markup  # which Jinja2 brings

    nothing: dict[str, Any] = {"axes": None, "lines": (), "legend": (), "dots": ()}
    return Markup(template("chart.svg.j2").render(title=title, width=WIDTH, height=HEIGHT, **(nothing | content)))


def _array(values: Any) -> Any:
    return None if values is None else np.asarray([math.nan if v is None else float(v) for v in values])


def _axis(columns: Sequence[F64], start: float, end: float, log: bool) -> _Axis | None:
    values = np.concatenate([c for c in columns if c is not None]) if columns else np.empty(0)
    values = values[np.isfinite(values) & ((values > 0) | (not log))]
    if not values.size:
        return None
    low, high = float(values.min()), float(values.max())
    if log:
        low, high = math.log10(low), math.log10(high)
    room = (high - low) * 0.04 or abs(high) * 0.05 or 1.0
    return _Axis(low - room, high + room, start, end, log)


def _path(line: ChartLine, x: _Axis, y: _Axis) -> tuple[str, list[tuple[float, float]]]:
    """A line as path data, and its points if they are few."""
    keep = _points_to_draw(x.to_pixels(line.x))
    places = list(zip(x.to_pixels(line.x[keep]), y.to_pixels(line.y[keep]), strict=True))
    words, drawing = [], False
    for a, b in places:
        there = not (math.isnan(a) or math.isnan(b))
        if there:
            words.append(f"{'L' if drawing else 'M'}{a:.1f} {b:.1f}")
        drawing = there
    dots = [(a, b) for a, b in places if not (math.isnan(a) or math.isnan(b))]
    return " ".join(words), dots if len(dots) < _FEW else []


def _band(line: ChartLine, x: _Axis, y: _Axis) -> str:
    """A band as path data; "" if there is none."""
    if line.low is None or line.high is None:
        return ""
    keep = _points_to_draw(x.to_pixels(line.x))
    px, low, high = x.to_pixels(line.x[keep]), y.to_pixels(line.low[keep]), y.to_pixels(line.high[keep])
    low = np.where(np.isnan(low), y.start, low)  # an interval that reaches 0 has no lower end on a log scale
    good = ~(np.isnan(px) | np.isnan(high))
    if good.sum() < 2:
        return ""
    there = [f"{a:.1f} {b:.1f}" for a, b in zip(px[good], high[good], strict=True)]
    back = [f"{a:.1f} {b:.1f}" for a, b in zip(px[good][::-1], low[good][::-1], strict=True)]
    return f"M{'L'.join(there + back)}Z"


def _points_to_draw(px: F64) -> Any:
    """Return which points of a line to draw: of many, the first at each of evenly spaced pixels, and the last."""
    if len(px) <= _POINTS:
        return np.arange(len(px))
    place = np.nan_to_num((px - _LEFT) / (WIDTH - _LEFT - _RIGHT) * _POINTS).round()
    return np.unique([*np.unique(place, return_index=True)[1], len(px) - 1])


def _number(value: float) -> str:
    if value == 0:
        return "0"
    size = abs(value)
    if 1e-4 <= size < 1e5:
        return f"{value:.6g}" if size < 1000 else f"{value:,.0f}"
    exponent = math.floor(math.log10(size) + 1e-9)
    head = value / 10**exponent
    return f"1e{exponent}" if abs(head - 1) < 1e-6 else f"{head:.2g}e{exponent}"
