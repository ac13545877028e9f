"""Vega-Lite specifications of the charts. Text and background take the page's colours, so that dark mode works."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prompt_transfer.studies.report.content import DASH

Spec = dict[str, Any]
Rows = Sequence[Mapping[str, Any]]
Fields = Mapping[str, str]

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
# Okabe and Ito's colours: distinct for colour-blind readers. Shapes repeat the distinction in print.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C8C8C", "#B8A800")
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "stroke", "triangle-right")


def base(description: str, rows: Rows) -> Spec:
    """Return the common parts of a specification that fills the width of its box."""
    return {
        "$schema": SCHEMA,
        "description": description,
        "width": "container",
        "data": {"values": list(rows)},
    }


def tooltip(fields: Fields) -> list[Spec]:
    """Return tooltip channels: field -> title."""
    return [{"field": field, "title": title, "type": "nominal"} for field, title in fields.items()]


def heatmap(
    description: str,
    rows: Rows,
    axes: tuple[Spec, Spec],
    domains: Mapping[str, tuple[float, float]],
    hover: Fields,
) -> Spec:
    """Return a heat map whose parameter `measure` selects the field that colours and numbers show.

    Args:
        description: text for screen readers.
        rows: one per cell, with `framed` true for cells with a frame, `plain` for cells whose value has no colour.
        axes: x and y encodings.
        domains: field -> range of its colours.
        hover: fields of the tooltip.
    """
    first = next(iter(domains))
    across, down = (len(axis["sort"]) for axis in axes)
    low, high = "domains[measure][0]", "domains[measure][1]"
    share = f"(datum.shown - {low}) / ({high} - {low})"
    return {
        **base(description, rows),
        "height": 27 * down,
        "params": [{"name": "measure", "value": first}, {"name": "domains", "value": dict(domains)}],
        "transform": [{"calculate": "datum[measure]", "as": "shown"}],
        "encoding": {"x": axes[0], "y": axes[1], "tooltip": tooltip(hover)},
        "layer": [
            {
                "mark": {"type": "rect", "stroke": "var(--card)", "strokeWidth": 1, "fill": "#9994"},
            },
            {
                "transform": [{"filter": "isValid(datum.shown) && !datum.plain"}],
                "mark": {"type": "rect", "stroke": "var(--card)", "strokeWidth": 1},
                "encoding": {
                    "color": {
                        "field": "shown",
                        "type": "quantitative",
                        "scale": {
                            "scheme": "viridis",
                            "domain": [{"expr": low}, {"expr": high}],
                            "clamp": True,
                        },
                        "legend": {
                            "orient": "top",
                            "title": None,
                            "gradientLength": 180,
                            "format": ".2f",
                            # Both ends of the range and its middle.
                            "values": {"expr": f"[{low}, ({low} + {high}) / 2, {high}]"},
                        },
                    }
                },
            },
            {
                # Numbers only where a cell has room for them; the tooltip and the table have them everywhere.
                "mark": {
                    "type": "text",
                    "fontSize": 10.5,
                    "opacity": {"expr": f"width / {across} > 27 ? 1 : 0"},
                },
                "encoding": {
                    "text": {
                        "condition": {"test": "isValid(datum.shown)", "field": "shown", "format": ".2f"},
                        "value": DASH,
                    },
                    "color": {
                        "condition": [
                            {"test": "!isValid(datum.shown)", "value": "#888"},
                            {"test": "datum.plain", "value": "var(--text)"},
                            {"test": f"{share} > 0.55", "value": "#111"},
                        ],
                        "value": "#fff",
                    },
                },
            },
            {
                "transform": [{"filter": "datum.framed"}],
                "mark": {"type": "rect", "fill": None, "stroke": "#D55E00", "strokeWidth": 2},
            },
        ],
    }


def axis(field: str, order: Sequence[str], title: str | None, columns: bool = False) -> Spec:
    """Return an axis of names in a fixed order; those of columns are turned, and upright where there is little room."""
    labels: Spec = {
        "labelLimit": {"expr": "width > 500 ? 260 : 180"},
        "labelOverlap": False,
        "ticks": False,
        "domain": False,
        "labelPadding": 6,
    }
    if columns:
        angle = {"expr": f"width / {len(order)} < 24 ? -90 : -45"}
        labels |= {"labelAngle": angle, "labelAlign": "right", "labelBaseline": "middle"}
    else:
        # Above the names: a turned title takes width.
        labels |= {
            "labelFontSize": {"expr": "width > 500 ? 11.5 : 10"},
            "titleAngle": 0,
            "titleAlign": "right",
            "titleAnchor": "start",
            "titleX": -7,
            "titleY": -12,
        }
    return {"field": field, "type": "nominal", "sort": list(order), "title": title, "axis": labels}


def groups(field: str, order: Sequence[str], title: str | None = None) -> Spec:
    """Return colour and shape encodings of a group, the same in every chart."""
    colours = [COLOURS[place % len(COLOURS)] for place in range(len(order))]
    # From the ninth group on colours repeat, with another shape.
    marks = [SHAPES[(place + place // len(COLOURS)) % len(SHAPES)] for place in range(len(order))]
    scale, shapes = {"domain": list(order), "range": colours}, {"domain": list(order), "range": marks}
    legend = {"orient": "top", "title": title, "symbolSize": 70}
    return {
        "color": {"field": field, "type": "nominal", "scale": scale, "legend": legend},
        "shape": {"field": field, "type": "nominal", "scale": shapes, "legend": legend},
    }


def dots(
    description: str,
    rows: Rows,
    y: Spec,
    x_title: str,
    group: tuple[str, Sequence[str]],
    hover: Fields,
    reference: float | None = None,
) -> Spec:
    """Return points `value` with intervals `low` to `high`, one row of points per name.

    Args:
        description: text for screen readers.
        rows: the points; open with `bound` true.
        y: encoding of the names.
        x_title: title of the value axis.
        group: field and values of the group, drawn next to each other within a name.
        hover: fields of the tooltip.
        reference: position of a dashed line.
    """
    field, order = group
    offset = {"yOffset": {"field": field, "sort": list(order)}} if len(order) > 1 else {}
    ticks = {"tickCount": {"expr": "width < 420 ? 4 : 8"}, "labelOverlap": "greedy"}
    x = {"type": "quantitative", "title": x_title, "scale": {"zero": False}, "axis": ticks}
    layers: list[Spec] = []
    if reference is not None:
        layers.append(
            {
                "mark": {"type": "rule", "strokeDash": [4, 3], "opacity": 0.6},
                "data": {"values": [{"at": reference}]},
                "encoding": {"x": {"field": "at", "type": "quantitative"}},
            }
        )
    common = {"y": y, **offset}
    colour = groups(field, order)
    layers += [
        {
            "transform": [{"filter": "isValid(datum.low) && isValid(datum.high)"}],
            "mark": {"type": "rule", "strokeWidth": 1.5},
            "encoding": {**common, "x": {**x, "field": "low"}, "x2": {"field": "high"}, "color": colour["color"]},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 60, "opacity": 1},
            "encoding": {**common, "x": {**x, "field": "value"}, **colour, "tooltip": tooltip(hover)},
        },
    ]
    if any(row.get("bound") for row in rows):
        layers[-1]["encoding"] |= {
            "fillOpacity": {"condition": {"test": "datum.bound", "value": 0}, "value": 1},
            "stroke": {**colour["color"], "legend": None},
            "strokeWidth": {"value": 1.8},
        }
    height = len(y["sort"]) * (4 + 9 * len(order) if len(order) > 1 else 20)
    return {**base(description, rows), "height": height, "layer": layers}


def lines(
    description: str,
    rows: Rows,
    titles: tuple[str, str],
    group: tuple[str, Sequence[str]],
    hover: Fields,
    options: Mapping[str, Any] | None = None,
) -> Spec:
    """Return lines of `y` over `x` with error bars `low` to `high`, one per group.

    Args:
        description: text for screen readers.
        rows: points with `x`, `y`, `low`, `high` and optionally `line`, which separates lines of one group.
        titles: titles of the x and y axes.
        group: field and values of the group.
        hover: fields of the tooltip.
        options: `select`: a field and its first value, so that the parameter of that name filters rows; `reference`: a
            field drawn as a dashed line.
    """
    options = options or {}
    field, order = group
    whole = all(isinstance(row["x"], int) for row in rows)
    x = {
        "field": "x",
        "type": "quantitative",
        "title": titles[0],
        "axis": {"grid": False, "tickCount": 6, **({"tickMinStep": 1} if whole else {})},
    }
    y = {"type": "quantitative", "title": titles[1], "scale": {"zero": False}}
    colour = groups(field, order)
    detail = {"detail": {"field": "line"}} if any("line" in row for row in rows) else {}
    layers: list[Spec] = [
        {
            "mark": {"type": "line", "strokeWidth": 1.8},
            "encoding": {"x": x, "y": {**y, "field": "y"}, "color": colour["color"], **detail},
        },
        {
            "transform": [{"filter": "isValid(datum.low) && isValid(datum.high)"}],
            "mark": {"type": "rule", "strokeWidth": 1.3, "opacity": 0.8},
            "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}, "color": colour["color"]},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 45, "opacity": 1},
            "encoding": {"x": x, "y": {**y, "field": "y"}, **colour, "tooltip": tooltip(hover)},
        },
    ]
    if "reference" in options:
        layers.insert(
            0,
            {
                "mark": {"type": "rule", "strokeDash": [4, 3], "opacity": 0.7},
                "encoding": {"y": {**y, "field": options["reference"], "aggregate": "max"}},
            },
        )
    spec: Spec = {**base(description, rows), "height": 300, "layer": layers}
    if "select" in options:
        name, first = options["select"]
        spec["params"] = [{"name": name, "value": first}]
        spec["transform"] = [{"filter": f"datum[{name!r}] == {name}"}]
    return spec


def scatter(
    description: str,
    rows: Rows,
    titles: tuple[str, str],
    group: tuple[str, Sequence[str]],
    hover: Fields,
    select: tuple[str, str] | None = None,
) -> Spec:
    """Return points of `y` over `x`; `select` as in `lines`."""
    spec: Spec = {
        **base(description, rows),
        "height": 320,
        "mark": {"type": "point", "filled": True, "size": 45, "opacity": 0.8},
        "encoding": {
            "x": {"field": "x", "type": "quantitative", "title": titles[0], "scale": {"zero": False}},
            "y": {"field": "y", "type": "quantitative", "title": titles[1], "scale": {"zero": False}},
            **groups(group[0], group[1]),
            "tooltip": tooltip(hover),
        },
    }
    if select is not None:
        spec["params"] = [{"name": select[0], "value": select[1]}]
        spec["transform"] = [{"filter": f"datum[{select[0]!r}] == {select[0]}"}]
    return spec
