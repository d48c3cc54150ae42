"""Plots as Vega-Lite specifications in one house style, and their SVG.

Each function takes rows (dictionaries whose values are numbers and labels, ready to show) and returns a specification
that any Vega-Lite tool can draw; `svg` draws it here. Every mark that can be pointed at carries the row's "tip" as its
label: for screen readers, and for the page, which shows it to the pointer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

Spec = dict[str, Any]
Rows = Sequence[Mapping[str, Any]]

SCHEMA: Final = "https://vega.github.io/schema/vega-lite/v6.json"
FONT: Final = "Inter, Segoe UI, Helvetica Neue, Helvetica, Arial, sans-serif"

INK: Final = "#1d2531"
MUTED: Final = "#647082"
AXIS: Final = "#c2c9d3"
GRID: Final = "#e8ebf0"
PAPER: Final = "#ffffff"
GREY: Final = "#a3acba"
BLUE: Final = "#2c66d4"
GREEN: Final = "#1c9173"
RED: Final = "#d2563d"
AMBER: Final = "#dba024"
VIOLET: Final = "#8463c7"
PALE: Final = "#d3d9e2"

RAMP: Final = ("#b4cdf4", "#93b7ee", "#719fe6", "#4f86dc", "#356dce", "#2756b0", "#1c4290", "#123070")
"""From early to late."""

VERDICTS: Final[Mapping[str, str]] = {
    "correct": GREEN,
    "incorrect": RED,
    "unparsable": AMBER,
    "timeout": VIOLET,
    "error": GREY,
}

CATEGORIES: Final = (BLUE, AMBER, GREEN, VIOLET, RED, GREY)
"""For series without an order."""

LETTER_PX: Final = 8
"""Room that a letter of a label may need, whatever font the reader has."""

NUMBER: Final = ",.4~r"
PERCENT: Final = ".0%"


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large a plot is, pixels, axes and titles included."""

    width: int = 620
    height: int = 300


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis of numbers.

    Attributes:
        field: The rows' key.
        title: What the axis says; "" for nothing.
        percent: Whether fractions are shown as per cents.
        log: Whether the scale is logarithmic.
        domain: First and last value; None: as the rows need.
        whole: Whether only whole numbers are marked.
    """

    field: str
    title: str = ""
    percent: bool = False
    log: bool = False
    domain: tuple[float, float] | None = None
    whole: bool = False


@dataclass(frozen=True, kw_only=True)
class Series:
    """What tells the lines, points or bars of a plot apart.

    Attributes:
        field: The rows' key.
        colors: Colour of each value, in the order of the legend.
        title: Title of the legend.
    """

    field: str
    colors: Mapping[str, str]
    title: str = ""


def ramp(names: Sequence[str]) -> dict[str, str]:
    """Colours for names that have an order, light to dark."""
    last = max(len(names) - 1, 1)
    return {name: RAMP[round(index * (len(RAMP) - 1) / last)] for index, name in enumerate(names)}


def categories(names: Sequence[str]) -> dict[str, str]:
    """Colours for names without an order."""
    return {name: CATEGORIES[index % len(CATEGORIES)] for index, name in enumerate(names)}


def interval_plot(
    rows: Rows, *, category: str, value: Axis, low: str, high: str, size: Size = Size(), joined: bool = True
) -> Spec:
    """Points with intervals over ordered categories, each with its value in words above it.

    Args:
        rows: One for each category; "text" is what stands above the point, "tip" its label.
        category: Key of the categories, which keep the order of the rows.
        value: The axis of the points.
        low: Key of the interval's lower end.
        high: Key of its upper end.
        size: How large.
        joined: Whether a line leads from point to point.
    """
    x = {"field": category, "type": "nominal", "sort": None, "axis": _category_axis(rows, category, size)}
    interval = _layer(
        {"type": "rule", "color": BLUE, "strokeWidth": 4, "strokeCap": "round", "opacity": 0.35},
        y=_y(value) | {"field": low},
        y2={"field": high},
    )
    line = _layer({"type": "line", "color": PALE, "strokeWidth": 2}, y=_y(value), order={"value": None})
    point = _layer(
        {"type": "point", "filled": True, "size": 90, "color": BLUE, "opacity": 1, "stroke": PAPER, "strokeWidth": 1.5},
        y=_y(value),
        description=_tip(),
    )
    text = _layer(
        {"type": "text", "dy": -9, "baseline": "bottom", "fontSize": 13, "fontWeight": 600, "color": INK},
        y=_y(value) | {"field": high},
        text={"field": "text", "type": "nominal"},
    )
    layers = [line, interval, point, text] if joined else [interval, point, text]
    return _spec(rows, size, encoding={"x": x}, layer=layers)


def line_plot(
    rows: Rows,
    *,
    x: Axis,
    y: Axis,
    series: Series,
    band: tuple[str, str] | None = None,
    points: bool = True,
    size: Size = Size(),
    legend: bool = True,
) -> Spec:
    """One line for each series, with a band around it if there is one.

    Args:
        rows: One for each point; "tip" is its label.
        x: Horizontal axis.
        y: Vertical axis.
        series: What tells the lines apart.
        band: Keys of the band's lower and upper end.
        points: Whether the points are marked.
        size: How large.
        legend: Whether the colours are explained in the plot.
    """
    layers = []
    if band:
        ends = {"y": _y(y) | {"field": band[0]}, "y2": {"field": band[1]}}
        layers.append(_layer({"type": "area", "opacity": 0.14, "interpolate": "linear"}, **ends))
    layers.append(_layer({"type": "line", "strokeWidth": 2, "strokeJoin": "round"}, y=_y(y)))
    mark = {"type": "point", "filled": True, "opacity": 1, "size": 44 if points else 1}
    layers.append(_layer(mark, y=_y(y), description=_tip()))
    return _spec(rows, size, encoding={"x": _x(x, size), "color": _color(series, legend=legend)}, layer=layers)


def stacked_bars(
    rows: Rows, *, category: str, value: Axis, series: Series, size: Size | None = None, legend: bool = True
) -> Spec:
    """Horizontal bars, one for each category, cut into parts.

    Args:
        rows: One for each part; "tip" is its label.
        category: Key of the bars' names, which keep the order of the rows.
        value: The axis along the bars.
        series: What the parts are, in the order of its colours.
        size: How large; 34 pixels for each bar if left out.
        legend: Whether the colours are explained in the plot.
    """
    size = size or Size(height=_bars_height(rows, category))
    rank = {name: index for index, name in enumerate(series.colors)}
    ranked = [{**row, "_rank": rank[row[series.field]]} for row in rows]
    encoding = {
        "y": _bar_names(category),
        "x": _x(value, size) | {"stack": "zero"},
        "color": _color(series, legend=legend),
        "order": {"field": "_rank", "type": "quantitative"},
        "description": _tip(),
    }
    mark = {"type": "bar", "height": {"band": 0.62}, "stroke": PAPER, "strokeWidth": 1}
    return _spec(ranked, size, mark=mark, encoding=encoding)


def bars(rows: Rows, *, category: str, value: Axis, color: str = BLUE, size: Size | None = None) -> Spec:
    """Horizontal bars with their value in words ("text") behind them.

    Args:
        rows: One for each bar; "tip" is its label.
        category: Key of the bars' names, which keep the order of the rows.
        value: The axis along the bars.
        color: Of all bars.
        size: How large; 34 pixels for each bar if left out.
    """
    size = size or Size(height=_bars_height(rows, category))
    bar = _layer({"type": "bar", "height": {"band": 0.62}, "color": color}, x=_x(value, size), description=_tip())
    text = _layer(
        {"type": "text", "align": "left", "dx": 6, "color": MUTED, "fontSize": 12},
        x=_x(value, size),
        text={"field": "text", "type": "nominal"},
    )
    return _spec(rows, size, encoding={"y": _bar_names(category)}, layer=[bar, text])


def spread_plot(
    rows: Rows, *, category: str, value: Axis, series: Series, size: Size | None = None, legend: bool = True
) -> Spec:
    """Where samples lie: 10 to 90 % of them as a thin line, 25 to 75 % as a thick one, the median as a point.

    Args:
        rows: One for each category and series with "p10", "p25", "p50", "p75", "p90"; "tip" is its label.
        category: Key of the categories, which keep the order of the rows.
        value: The axis; its field is not used.
        series: What is compared within a category.
        size: How large; 34 pixels for each category and series if left out.
        legend: Whether the colours are explained in the plot.
    """
    size = size or Size(height=_bars_height(rows, category, each=28 * len(series.colors)))
    offset = {"field": series.field, "type": "nominal", "sort": list(series.colors)}
    encoding = {"y": _bar_names(category), "yOffset": offset, "color": _color(series, legend=legend)}

    def spread(low: str, high: str, *, width: float, opacity: float) -> Spec:
        mark = {"type": "rule", "strokeWidth": width, "strokeCap": "round", "opacity": opacity}
        return _layer(mark, x=_x(value, size) | {"field": low}, x2={"field": high})

    median = _layer(
        {"type": "point", "filled": True, "size": 90, "opacity": 1, "stroke": PAPER, "strokeWidth": 1.5},
        x=_x(value, size) | {"field": "p50"},
        description=_tip(),
    )
    layers = [spread("p10", "p90", width=2, opacity=0.55), spread("p25", "p75", width=6, opacity=0.85), median]
    return _spec(rows, size, encoding=encoding, layer=layers)


def svg(spec: Spec, *, background: bool = True) -> str:
    """Draws a specification.

    Args:
        spec: From one of the functions here.
        background: Whether the paper is drawn; without it the plot takes what is behind it.
    """
    import vl_convert

    drawn: str = vl_convert.vegalite_to_svg(json.dumps(spec if background else {**spec, "background": "transparent"}))
    return drawn


# -- parts ------------------------------------------------------------------------------------------------------------


def _spec(rows: Rows, size: Size, **parts: Any) -> Spec:
    return {
        "$schema": SCHEMA,
        "background": PAPER,
        "width": size.width,
        "height": size.height,
        "autosize": {"type": "fit", "contains": "padding"},
        "padding": {"left": 2, "right": 10, "top": 6, "bottom": 2},
        "config": _theme(),
        "data": {"values": [dict(row) for row in rows]},
        **parts,
    }


def _theme() -> Spec:
    axis = {
        "domain": False,
        "ticks": False,
        "labelColor": MUTED,
        "labelFontSize": 12,
        "labelPadding": 7,
        "titleColor": MUTED,
        "titleFontSize": 12,
        "titleFontWeight": 400,
        "titlePadding": 9,
        "gridColor": GRID,
        "labelLimit": 220,
        "labelFlush": False,
        "labelSeparation": 8,
    }
    legend = {
        "orient": "top",
        "direction": "horizontal",
        "labelColor": INK,
        "labelFontSize": 12,
        "titleColor": MUTED,
        "titleFontSize": 12,
        "titleFontWeight": 400,
        "symbolType": "circle",
        "symbolSize": 90,
        "symbolOpacity": 1,
        "offset": 24,
    }
    return {"font": FONT, "view": {"stroke": None}, "axis": axis, "legend": legend, "bar": {"cornerRadius": 2}}


def _layer(mark: Spec, **encoding: Spec) -> Spec:
    return {"mark": mark, "encoding": encoding}


def _tip() -> Spec:
    return {"field": "tip", "type": "nominal"}


def _x(axis: Axis, size: Size) -> Spec:
    grid = {"grid": True, "tickCount": max(3, size.width // 110)}
    return _numbers(axis) | {"axis": _number_axis(axis) | grid}


def _y(axis: Axis) -> Spec:
    titled = {"titleAngle": 0, "titleAlign": "left", "titleAnchor": "end", "titleX": 0, "titleY": -10}
    return _numbers(axis) | {"axis": _number_axis(axis) | {"tickCount": 5} | (titled if axis.title else {})}


def _numbers(axis: Axis) -> Spec:
    scale: Spec = {"nice": not axis.log, "zero": not axis.log and axis.domain is None}
    if axis.domain:
        scale |= {"domain": list(axis.domain), "nice": False}
    if axis.log:
        scale |= {"type": "log"}
    return {"field": axis.field, "type": "quantitative", "scale": scale}


def _number_axis(axis: Axis) -> Spec:
    whole = {"tickMinStep": 1} if axis.whole else {}
    return {"title": axis.title or None, "format": PERCENT if axis.percent else NUMBER} | whole


def _color(series: Series, *, legend: bool) -> Spec:
    names, colors = list(series.colors), list(series.colors.values())
    shown = {"title": series.title or None, "columns": _columns(names)} if legend else None
    scale = {"domain": names, "range": colors}
    return {"field": series.field, "type": "nominal", "scale": scale, "legend": shown}


def _columns(names: Sequence[str]) -> int:
    """As many names beside each other as a plot for a page has room for."""
    return max(1, min(len(names), 560 // max(8 * max(map(len, names)) + 24, 1)))


def _category_axis(rows: Rows, category: str, size: Size) -> Spec:
    """Labels lie flat as long as there is room for them."""
    room = size.width / max(len(rows), 1)
    longest = max((len(str(row[category])) for row in rows), default=0)
    angle = 0 if room > LETTER_PX * longest else -40
    return {"title": None, "labelAngle": angle, "labelColor": INK, "labelPadding": 9}


def _bar_names(category: str) -> Spec:
    axis = {"title": None, "labelColor": INK, "grid": False}
    return {"field": category, "type": "nominal", "sort": None, "axis": axis}


def _bars_height(rows: Rows, category: str, each: int = 34) -> int:
    return 64 + each * max(len({row[category] for row in rows}), 1)
