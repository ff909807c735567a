"""SVG charts without a library."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 940, 400
LEFT, RIGHT, TOP, BOTTOM = 90, 320, 44, 52
"""Room for the widest common sans-serif, DejaVu Sans: 8 px a character at 12 px."""

COLOURS = ("#12906a", "#d2624a", "#5a7bc4", "#b58900", "#9a68b4", "#7d7d7d", "#2aa1b3")
"""Colours that are visible on light and on dark pages."""

MARKS = ("circle", "square", "diamond")

_OPENING = (
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
    'font-family="system-ui, sans-serif" font-size="12" role="img">'
)
_STYLE = (
    "<style>text{fill:#222}.page{fill:#fff}.grid{stroke:#ddd}"
    "@media (prefers-color-scheme:dark)"
    "{text{fill:#ddd}.page{fill:#0d1117}.grid{stroke:#3a414b}}</style>"
)

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart of lines on logarithmic axes, or of bars with named groups."""

    name: str
    """The name of its file."""
    title: str
    x: str
    y: str
    lines: Mapping[str, Points]
    names: Sequence[str] = ()
    """Labels below the bars, whose x counts from 0. Empty: the chart has lines."""


@dataclass(frozen=True, slots=True)
class _Scale:
    low: float
    high: float
    begin: float
    end: float
    logarithmic: bool = True

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.logarithmic:
            value, low, high = (math.log10(max(number, 1e-9)) for number in (value, low, high))
        return self.begin + (value - low) / ((high - low) or 1) * (self.end - self.begin)

    def ticks(self) -> list[float]:
        first, last = (round(math.log10(bound)) for bound in (self.low, self.high))
        step = max(1, math.ceil((last - first) / 7))
        return [10.0**power for power in range(first, last + 1, step)]


def _decades(values: Iterable[float]) -> tuple[float, float]:
    positive = [value for value in values if value > 0] or [1.0]
    low = math.floor(math.log10(min(positive)))
    high = math.ceil(math.log10(max(positive)))
    return 10.0**low, 10.0 ** max(high, low + 1)


def drawn(chart: Chart) -> str:
    """Draw the chart as SVG."""
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    all_points = [point for points in chart.lines.values() for point in points]
    y = _Scale(*_decades(value for _, value in all_points), bottom, TOP)
    if chart.names:
        x = _Scale(-0.5, len(chart.names) - 0.5, LEFT, right, logarithmic=False)
    else:
        x = _Scale(*_decades(value for value, _ in all_points), LEFT, right)
    parts = [
        _OPENING,
        _STYLE,
        f"<title>{escape(chart.title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" class="page"/>',
        _text(LEFT, 22, chart.title, size=15),
        _text((LEFT + right) / 2, HEIGHT - 12, chart.x, anchor="middle"),
        _text(14, (TOP + bottom) / 2, chart.y, anchor="middle", turned=True),
        *_grid(chart, x, y, bottom, right),
    ]
    for number, (name, points) in enumerate(chart.lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        if chart.names:
            parts += _bars(x, y, points, (number, len(chart.lines)), colour)
        else:
            parts += _line(x, y, points, MARKS[number % len(MARKS)], colour)
        parts.append(_mark(right + 16, TOP + 10 + 20 * number, "square", colour))
        parts.append(_text(right + 26, TOP + 14 + 20 * number, name))
    return "\n".join([*parts, "</svg>", ""])


def _grid(chart: Chart, x: _Scale, y: _Scale, bottom: float, right: float) -> list[str]:
    parts = []
    for value in y.ticks():
        at = y(value)
        parts.append(f'<path d="M{LEFT} {at:.1f}H{right}" class="grid"/>')
        parts.append(_text(LEFT - 6, at + 4, _short(value), anchor="end"))
    for number, name in enumerate(chart.names):
        parts.append(_text(x(number), bottom + 18, name, anchor="middle"))
    if not chart.names:
        for value in x.ticks():
            at = x(value)
            parts.append(f'<path d="M{at:.1f} {TOP}V{bottom}" class="grid"/>')
            parts.append(_text(at, bottom + 18, _short(value), anchor="middle"))
    return parts


def _short(value: float) -> str:
    """Write a power of ten as a label of an axis: 100, 10 k, 1 M."""
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.10g} {letter}"
    return f"{value:.10g}"


def _line(x: _Scale, y: _Scale, points: Points, mark: str, colour: str) -> list[str]:
    places = [(x(across), y(up)) for across, up in sorted(points)]
    path = "L".join(f"{across:.1f} {up:.1f}" for across, up in places)
    line = f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
    return [line, *(_mark(across, up, mark, colour) for across, up in places)] if places else []


def _bars(x: _Scale, y: _Scale, points: Points, place: tuple[int, int], colour: str) -> list[str]:
    number, count = place
    width = (x(1) - x(0)) * 0.8 / count
    parts = []
    for across, up in points:
        left, top = x(across) + width * (number - count / 2), y(up)
        parts.append(
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{width * 0.94:.1f}" '
            f'height="{max(y.begin - top, 0):.1f}" fill="{colour}"/>'
        )
    return parts


def _mark(x: float, y: float, mark: str, colour: str) -> str:
    if mark == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>'
    turn = f' transform="rotate(45 {x:.1f} {y:.1f})"' if mark == "diamond" else ""
    return f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8" fill="{colour}"{turn}/>'


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", size: int = 12, turned: bool = False
) -> str:
    turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}"{turn}>'
        f"{escape(text)}</text>"
    )
