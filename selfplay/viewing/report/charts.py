"""Charts as inline SVG: lines with bands over updates, stacked shares, bars, and the lineage of bugs.

Colours are classes (`c0` to `c7`), which the page's style sheet sets for light and dark. Each mark has a
title that a pointer shows. Pure: numbers in, markup out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from selfplay.viewing.report.html import short, tag

WIDTH, HEIGHT = 400, 210
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 26
COLOURS, DASHES = 8, 4
TICKS = 4
MOST_BARS = 60  # more updates than that are pooled
MOST_DOTS = 120  # of a line; a longer one has none
Form = Callable[[float], str]  # how a value is written


@dataclass(frozen=True)
class Point:
    """A value at an update. low, high: the ends of its band, None for no band."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Line:
    """A named series. colour: index of a colour; dash: index of a style, 0 for a whole line."""

    label: str
    points: Sequence[Point]
    colour: int = 0
    dash: int = 0


@dataclass(frozen=True)
class Axis:
    """Where values lie between the edges of a chart."""

    low: float
    high: float

    def share(self, value: float) -> float:
        span = self.high - self.low
        return (min(max(value, self.low), self.high) - self.low) / span if span else 0.5

    def ticks(self, wanted: int = TICKS) -> list[float]:
        """Round numbers within the axis, about as many as wanted."""
        span = self.high - self.low
        if span <= 0:
            return [self.low]
        raw = span / wanted
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(number * step, 12) for number in range(first, last + 1)]


def number(value: float) -> str:
    """A number as a person reads it: three digits, thousands as k and millions as M."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if suffix == 'k' else size):.3g}{suffix}"
    return f"{value:.3g}"


def percent(value: float) -> str:
    return f"{value:.0%}"


def windows(updates: Iterable[int], most: int) -> list[range]:
    """Ranges of equal size that hold all updates, at most so many. [] for no updates."""
    known = sorted(set(updates))
    if not known:
        return []
    size = -(-(known[-1] - known[0] + 1) // most)
    return [range(first, first + size) for first in range(known[0], known[-1] + 1, size)]


def line_chart(lines: Sequence[Line], shares: bool = False, zero: bool = True) -> Markup | None:
    """Values over updates, None if there is none. shares: the axis goes from 0 to 100 %. zero: it has 0."""
    points = [point for line in lines for point in line.points]
    if not points:
        return None
    ends = [value for point in points for value in (point.y, point.low, point.high) if value is not None]
    if zero:
        ends.append(0.0)
    y_axis = Axis(0.0, 1.0) if shares else _padded(min(ends), max(ends))
    x_axis = _updates([point.x for point in points])
    form = percent if shares else number
    marks = [_band(line, x_axis, y_axis) for line in lines]
    marks += [mark for line in lines for mark in _marks(line, x_axis, y_axis, form)]
    labels = [(line.label, line.colour, line.dash) for line in lines if line.points]
    return _figure(_frame(x_axis, y_axis, form), marks, labels)


def stacked_chart(parts: Mapping[str, Mapping[int, float]], shares: bool = True) -> Markup | None:
    """Bars of parts on top of each other, one for each update, or for several if there are many.

    shares: as parts of their sum. Otherwise bars of several updates are means.

    parts: name -> update -> value. The order decides the colours; None if all are empty.
    """
    spans = windows((update for values in parts.values() for update in values), MOST_BARS)
    bars = [[sum(values.get(update, 0.0) for update in span) for values in parts.values()] for span in spans]
    bars = (
        bars
        if shares
        else [[value / len(span) for value in bar] for bar, span in zip(bars, spans, strict=True)]
    )
    totals = [sum(bar) for bar in bars]
    if not any(totals):
        return None
    y_axis = Axis(0.0, 1.0) if shares else _padded(0.0, max(totals))
    size = len(spans[0])
    x_axis = Axis(spans[0][0] - 0.5, spans[-1][0] + size - 0.5)
    form = percent if shares else number
    width = max(1.0, min(28.0, 0.82 * (WIDTH - LEFT - RIGHT) / len(spans)))
    marks: list[Markup] = []
    for span, bar, total in zip(spans, bars, totals, strict=True):
        below = 0.0
        when = f"update {span[0]}" if size == 1 else f"updates {span[0]} to {span[-1]}"
        for place, (name, value) in enumerate(zip(parts, bar, strict=True)):
            height = value / (total or 1.0) if shares else value
            if height <= 0:
                continue
            top, bottom = _y(below + height, y_axis), _y(below, y_axis)
            title = f"{name}, {when}: {form(height)} ({number(value)})"
            left = _x(span[0] + (size - 1) / 2, x_axis) - width / 2
            marks.append(_bar(left, top, width, bottom - top, place, title))
            below += height
    legend = [(name, place, 0) for place, name in enumerate(parts) if any(parts[name].values())]
    return _figure(_frame(x_axis, y_axis, form), marks, legend)


def histogram(bins: Sequence[tuple[str, float]]) -> Markup | None:
    """One bar for each named bin. None if all are empty."""
    if not any(count for _, count in bins):
        return None
    y_axis = _padded(0.0, max(count for _, count in bins))
    step = (WIDTH - LEFT - RIGHT) / len(bins)
    marks = []
    for place, (name, count) in enumerate(bins):
        left, top = LEFT + place * step, _y(count, y_axis)
        height = HEIGHT - BOTTOM - top
        marks.append(_bar(left + step * 0.1, top, step * 0.8, height, 0, f"{name}: {number(count)}"))
        marks.append(_label(left + step / 2, HEIGHT - 9, name, "middle"))
    return _figure(_grid(y_axis, number), marks, [])


# ---- pieces


def _padded(low: float, high: float) -> Axis:
    if low == high:
        low, high = (low - 0.5, high + 0.5) if low else (0.0, 1.0)
    span = high - low
    return Axis(low if low == 0 else low - 0.05 * span, high if high == 0 else high + 0.05 * span)


def _updates(values: Sequence[float]) -> Axis:
    low, high = min(values), max(values)
    return Axis(low - 0.5, high + 0.5) if low == high else Axis(low, high)


def _x(value: float, axis: Axis) -> float:
    return LEFT + axis.share(value) * (WIDTH - LEFT - RIGHT)


def _y(value: float, axis: Axis) -> float:
    return HEIGHT - BOTTOM - axis.share(value) * (HEIGHT - TOP - BOTTOM)


def _grid(y_axis: Axis, form: Form) -> list[Markup]:
    found = []
    for tick in y_axis.ticks():
        y = round(_y(tick, y_axis), 1)
        found.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid"))
        found.append(_label(LEFT - 6, y + 4, form(tick), "end"))
    return found


def _frame(x_axis: Axis, y_axis: Axis, form: Form) -> list[Markup]:
    """The grid, and whole updates below it."""
    found = _grid(y_axis, form)
    ticks = [tick for tick in x_axis.ticks(10) if tick == int(tick)] or [round(x_axis.low + 0.5)]
    found += [_label(_x(tick, x_axis), HEIGHT - 9, str(int(tick)), "middle") for tick in ticks]
    return found


def _label(x: float, y: float, words: str, anchor: str) -> Markup:
    return tag("text", words, x=round(x, 1), y=round(y, 1), text_anchor=anchor)


def _bar(x: float, y: float, width: float, height: float, colour: int, title: str) -> Markup:
    shape = {"x": round(x, 1), "y": round(y, 1), "width": round(width, 1), "height": round(height, 1)}
    return tag("rect", tag("title", title), class_=f"fill c{colour % COLOURS}", **shape)


def _band(line: Line, x_axis: Axis, y_axis: Axis) -> Markup | None:
    """The area between the ends of the points that have them; of a single one a bar."""
    ends = [
        (_x(p.x, x_axis), _y(p.low, y_axis), _y(p.high, y_axis))
        for p in line.points
        if p.low is not None and p.high is not None
    ]
    if not ends:
        return None
    if len(ends) == 1:
        x, low, high = ends[0]
        ends = [(x - 3, low, high), (x + 3, low, high)]
    around = [(x, high) for x, _, high in ends] + [(x, low) for x, low, _ in reversed(ends)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in around)
    return tag("polygon", points=path, class_=f"band c{line.colour % COLOURS}")


def _marks(line: Line, x_axis: Axis, y_axis: Axis, form: Form) -> Iterable[Markup]:
    places = [(round(_x(p.x, x_axis), 1), round(_y(p.y, y_axis), 1)) for p in line.points]
    style = f"stroke c{line.colour % COLOURS} d{line.dash % DASHES}"
    if len(places) > 1:
        yield tag("polyline", points=" ".join(f"{x},{y}" for x, y in places), class_=style)
    for (x, y), point in zip(places, line.points, strict=True) if len(places) <= MOST_DOTS else ():
        band = ""
        if point.low is not None and point.high is not None:
            band = f", 95 % interval {form(point.low)} to {form(point.high)}"
        title = f"{line.label}, update {point.x:g}: {form(point.y)}{band}"
        radius = 2.4 if len(places) <= 40 else 1.2
        yield tag(
            "circle", tag("title", title), cx=x, cy=y, r=radius, class_=f"fill c{line.colour % COLOURS}"
        )


def _figure(
    frame: Sequence[Markup], marks: Iterable[Markup | None], labels: Sequence[tuple[str, int, int]]
) -> Markup:
    """The drawing with its legend, which is text of the page, so that it wraps."""
    drawn = tag("svg", frame, marks, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img")
    if not labels:
        return drawn
    names = [tag("span", _key(colour, dash), short(name, 60)) for name, colour, dash in labels]
    return drawn + tag("p", names, class_="legend")


def _key(colour: int, dash: int) -> Markup:
    """A piece of the line, for the legend."""
    line = tag("line", x1=0, x2=26, y1=4, y2=4, class_=f"stroke key c{colour % COLOURS} d{dash % DASHES}")
    return tag("svg", line, viewBox="0 0 26 8", class_="key")
