"""Charts that hold whatever they are given, and are XML."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("markupsafe")
from diffkit.evaluation._svg import HEIGHT, WIDTH, ChartLine, chart, scatter

NUMBERS = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True, width=64), st.integers(-5, 5))


def parsed(markup) -> ElementTree.Element:
    return ElementTree.fromstring(str(markup))


def coordinates(svg: ElementTree.Element) -> list[float]:
    found = []
    for element in svg.iter():
        for name in ("x", "y", "x1", "x2", "y1", "y2", "cx", "cy"):
            if name in element.attrib:
                found.append(float(element.attrib[name]))
        found += map(float, re.findall(r"[-\d.]+", element.attrib.get("d", "")))
    return found


@given(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=40), st.booleans(), st.booleans())
def test_any_numbers(points, log_x, log_y):
    x, y = zip(*points, strict=True) if points else ((), ())
    y = [None if v is not None and abs(v) > 1e150 else v for v in y]
    x = [None if v is not None and abs(v) > 1e150 else v for v in x]
    svg = parsed(chart("t", "x", "y", [ChartLine(x, y, "a", y, y)], log_x=log_x, log_y=log_y))
    assert all(math.isfinite(v) and -20 <= v <= max(WIDTH, HEIGHT) + 20 for v in coordinates(svg))


def test_a_gap_where_a_value_is_missing():
    svg = str(chart("t", "x", "y", [ChartLine([1, 2, 3, 4, 5], [1.0, 2.0, None, 2.0, 1.0])]))
    path = re.search(r'class="line"[^>]* d="([^"]*)"', svg)[1]
    assert path.count("M") == 2 and path.count("L") == 2


def test_what_is_not_positive_has_no_place_on_a_log_scale():
    svg = str(chart("t", "x", "y", [ChartLine([1, 2, 3], [0.0, -1.0, 10.0])], log_y=True))
    assert svg.count("<circle") == 1


def test_nothing_to_draw():
    for lines in ([], [ChartLine([], [])], [ChartLine([1], [math.nan])]):
        assert "nothing to draw" in str(chart("t", "x", "y", lines))


def test_words_are_escaped():
    svg = chart("<b>&", "<x>", '"y"', [ChartLine([1, 2], [1, 2], "<script>")])
    parsed(svg)
    assert "<script>" not in str(svg) and "&lt;script&gt;" in str(svg) and "&lt;b&gt;&amp;" in str(svg)


@pytest.mark.parametrize(
    ("y", "log", "expected"),
    [
        ([0, 1], False, ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        ([1e-7, 1e5], True, ["1e-7", "0.0001", "0.1", "100", "1e5"]),
        ([0.22, 0.31], True, ["0.22", "0.24", "0.26", "0.28", "0.3"]),
        ([3, 70], True, ["5", "10", "20", "50"]),
        ([0, 50_000], False, ["0", "10,000", "20,000", "30,000", "40,000", "50,000"]),
    ],
)
def test_ticks_are_round(y, log, expected):
    svg = parsed(chart("t", "x", "y", [ChartLine([1, 2], y)], log_y=log))
    labels = [e.text for e in svg.iter() if e.tag == "text" and e.attrib.get("text-anchor") == "end"]
    assert set(expected) <= set(labels) and len(labels) <= 10


def test_long_lines_are_thinned():
    many = np.arange(100_000)
    assert len(str(chart("t", "x", "y", [ChartLine(many, many)]))) < 20_000


def test_thinning_leaves_what_a_log_scale_spreads_out():
    """Every second of 2000 levels would leave out level 2, which is a seventh of the way along."""
    levels = np.arange(1, 2001)
    (path,) = [
        e
        for e in parsed(chart("t", "x", "y", [ChartLine(levels, levels)], log_x=True)).iter()
        if e.get("class") == "line"
    ]
    places = [float(pair.split()[0][1:]) for pair in re.findall(r"[ML][\d.]+ [\d.]+", path.get("d"))]
    gaps = np.diff(places[:4]) / (places[-1] - places[0])
    np.testing.assert_allclose(gaps, np.log([2, 3 / 2, 4 / 3]) / np.log(2000), rtol=0.01)
    assert len(places) < 700


def test_scatter():
    points = np.random.default_rng(0).normal(size=(50, 2))
    svg = parsed(scatter("t", points, [i % 3 for i in range(50)]))
    assert sum(e.tag == "circle" for e in svg.iter()) == 50
    assert len({e.attrib["style"] for e in svg.iter() if e.tag == "circle"}) == 3
    parsed(scatter("t", np.ones((2, 2))))
