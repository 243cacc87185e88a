"""Line charts and scatter plots as SVG without dependencies, for a report in one HTML file.

Colours are CSS variables of the page, so that charts follow its light or dark scheme.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from attrs import frozen
from markupsafe import Markup

from diffkit.table import F64

WIDTH, HEIGHT = 480, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 30, 40
_POINTS = 600
"""Largest number of points of a line; longer lines are thinned, as pixels cannot show more."""
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

    def ticks(self) -> list[float]:
        """Values of the grid lines."""
        if self.log:
            return self._log_ticks()
        return _even_ticks(self.low, self.high)

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
        return _frame(title, Markup('<text class="label" x="240" y="135" text-anchor="middle">nothing to draw</text>'))
    parts = [_grid(x, y, xlabel, ylabel)]
    for number, line in enumerate(lines):
        color = COLORS[number % len(COLORS)]
        parts += [_band(line, x, y, color), _path(line, x, y, color)]
    parts.append(_legend([(line.label, COLORS[i % len(COLORS)]) for i, line in enumerate(lines) if line.label]))
    return _frame(title, Markup("").join(parts))


def scatter(title: str, points: F64, classes: Sequence[int] | None = None) -> Markup:
    """Return a scatter plot of points, (N, 2), as SVG, coloured by class, with equal units on both axes."""
    points = np.asarray(points, dtype=np.float64)
    centre, reach = (points.min(0) + points.max(0)) / 2, max(float(np.ptp(points, axis=0).max()) / 2 * 1.05, 1e-9)
    side = min(WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - 10)
    place = (points - centre) / reach * (side / 2)
    left, top = WIDTH / 2, _TOP + side / 2
    dots = [
        Markup('<circle cx="{:.1f}" cy="{:.1f}" r="1.8" style="fill:var({})"/>').format(
            left + px, top - py, COLORS[(classes[i] if classes is not None else 0) % len(COLORS)]
        )
        for i, (px, py) in enumerate(place)
    ]
    return _frame(title, Markup("").join(dots))


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


def _grid(x: _Axis, y: _Axis, xlabel: str, ylabel: str) -> Markup:
    parts = []
    for value, place in zip(x.ticks(), x.to_pixels(np.array(x.ticks(), dtype=np.float64)), strict=True):
        parts.append(
            Markup('<line class="grid" x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}"/>').format(place, y.end, y.start)
        )
        parts.append(
            Markup('<text class="label" x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
                place, y.start + 15, _number(value)
            )
        )
    for value, place in zip(y.ticks(), y.to_pixels(np.array(y.ticks(), dtype=np.float64)), strict=True):
        parts.append(
            Markup('<line class="grid" y1="{0:.1f}" y2="{0:.1f}" x1="{1}" x2="{2}"/>').format(place, x.start, x.end)
        )
        parts.append(
            Markup('<text class="label" x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(
                x.start - 5, place + 4, _number(value)
            )
        )
    middle = (y.start + y.end) / 2
    parts.append(
        Markup('<text class="label" x="{:.0f}" y="{}" text-anchor="middle">{}</text>').format(
            (x.start + x.end) / 2, HEIGHT - 6, xlabel
        )
    )
    parts.append(
        Markup(
            '<text class="label" text-anchor="middle" transform="translate(12 {:.0f}) rotate(-90)">{}</text>'
        ).format(middle, ylabel)
    )
    return Markup("").join(parts)


def _path(line: ChartLine, x: _Axis, y: _Axis, color: str) -> Markup:
    keep = _points_to_draw(x.to_pixels(line.x))
    px, py = x.to_pixels(line.x[keep]), y.to_pixels(line.y[keep])
    words, drawing, count = [], False, 0
    for a, b in zip(px, py, strict=True):
        if math.isnan(a) or math.isnan(b):
            drawing = False
            continue
        words.append(f"{'L' if drawing else 'M'}{a:.1f} {b:.1f}")
        drawing, count = True, count + 1
    dots = Markup("")
    if count < 30:
        dots = Markup("").join(
            Markup('<circle cx="{:.1f}" cy="{:.1f}" r="2.2" style="fill:var({})"/>').format(a, b, color)
            for a, b in zip(px, py, strict=True)
            if not (math.isnan(a) or math.isnan(b))
        )
    return Markup('<path class="line" style="stroke:var({})" d="{}"/>').format(color, " ".join(words)) + dots


def _band(line: ChartLine, x: _Axis, y: _Axis, color: str) -> Markup:
    if line.low is None or line.high is None:
        return Markup("")
    keep = _points_to_draw(x.to_pixels(line.x))
    px, low, high = x.to_pixels(line.x[keep]), y.to_pixels(line.low[keep]), y.to_pixels(line.high[keep])
    low = np.where(np.isnan(low), y.start, low)  # an interval that reaches 0 has no lower end on a log scale
    good = ~(np.isnan(px) | np.isnan(high))
    if good.sum() < 2:
        return Markup("")
    there = [f"{a:.1f} {b:.1f}" for a, b in zip(px[good], high[good], strict=True)]
    back = [f"{a:.1f} {b:.1f}" for a, b in zip(px[good][::-1], low[good][::-1], strict=True)]
    return Markup('<path class="band" style="fill:var({})" d="M{}Z"/>').format(color, "L".join(there + back))


def _points_to_draw(px: F64) -> Any:
    """Return which points of a line to draw: of many, the first at each of evenly spaced pixels, and the last."""
    if len(px) <= _POINTS:
        return np.arange(len(px))
    place = np.nan_to_num((px - _LEFT) / (WIDTH - _LEFT - _RIGHT) * _POINTS).round()
    return np.unique([*np.unique(place, return_index=True)[1], len(px) - 1])


def _legend(entries: Sequence[tuple[str, str]]) -> Markup:
    parts, left = [], float(_LEFT)
    for label, color in entries:
        parts.append(Markup('<rect x="{:.0f}" y="19" width="10" height="4" style="fill:var({})"/>').format(left, color))
        parts.append(Markup('<text class="label" x="{:.0f}" y="25">{}</text>').format(left + 14, label))
        left += 26 + 6.3 * len(label)
    return Markup("").join(parts)


def _frame(title: str, body: Markup) -> Markup:
    return Markup(
        '<svg viewBox="0 0 {} {}" role="img" aria-label="{}"><text class="title" x="{}" y="12">{}</text>{}</svg>'
    ).format(WIDTH, HEIGHT, title, 4, title, body)


def _number(value: float) -> str:
    if value == 0:
        return "0"
    size = abs(value)
    if 1e-4 <= size < 1e5:
        return f"{value:.6g}" if size < 1000 else f"{value:,.0f}"
    exponent = math.floor(math.log10(size) + 1e-9)
    head = value / 10**exponent
    return f"1e{exponent}" if abs(head - 1) < 1e-6 else f"{head:.2g}e{exponent}"
