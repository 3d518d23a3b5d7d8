"""Plots as inline SVG: axes with round ticks, lines, markers, bars and error bars.

Colours are CSS classes (`s0`, `s1`, ... set `color`; shapes use `currentColor`), so that one picture is right on
a light and on a dark page. Every mark carries a `<title>`, which browsers show when the pointer rests on it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH = 560
HEIGHT = 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 18, 14, 46
_ROW = 17


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis: its range, its label and how its ticks are written."""

    low: float
    high: float
    label: str
    log: bool = False
    suffix: str = ""

    def place(self, value: float) -> float:
        """Where `value` lies: 0 at the low end, 1 at the high end."""
        if self.log:
            return math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Round values inside the range, about five of them."""
        if not self.log:
            step = _round_step((self.high - self.low) / 5)
            first = math.ceil(self.low / step - 1e-9)
            return [step * i for i in range(first, math.floor(self.high / step + 1e-9) + 1)]
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        values = [m * 10.0**d for d in decades for m in (1, 2, 5)]
        return [value for value in values if self.low <= value * (1 + 1e-9) and value <= self.high * (1 + 1e-9)]

    def write(self, value: float) -> str:
        """The text under a tick."""
        text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
        return ("0" if text == "-0" else text) + self.suffix


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= step * (1 - 1e-9))


def span(values: Sequence[float], label: str, *, zero: bool = False, pad: float = 0.08, suffix: str = "") -> Axis:
    """A linear axis around `values`, with a margin of `pad` of its length; from 0 when `zero`."""
    low, high = (0.0 if zero else min(values)), max(values)
    margin = (high - low) * pad or abs(high) * pad or 1.0
    return Axis(low=low if zero else low - margin, high=high + margin, label=label, suffix=suffix)


def log_span(values: Sequence[float], label: str, suffix: str = "") -> Axis:
    """A logarithmic axis around positive `values`."""
    positive = [value for value in values if value > 0] or [1.0]
    low, high = min(positive), max(positive)
    return Axis(low=low / 1.4, high=high * 1.4, label=label, log=True, suffix=suffix)


@dataclass
class Plot:
    """A picture under construction: marks in the units of its axes."""

    x: Axis
    y: Axis
    title: str
    x_names: Sequence[str] = ()
    """Names instead of ticks: the x axis is then 0 to their number, one unit each."""
    marks: list[str] = field(default_factory=list)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """The place of a point, in pixels from the top left."""
        return (
            _LEFT + self.x.place(x) * (WIDTH - _LEFT - _RIGHT),
            HEIGHT - _BOTTOM - self.y.place(y) * (HEIGHT - _TOP - _BOTTOM),
        )

    def line(self, points: Sequence[tuple[float, float]], style: str) -> None:
        """A line through `points`."""
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in (self.at(*point) for point in points))
        self.marks.append(f'<polyline class="line {style}" points="{path}"/>')

    def marker(self, x: float, y: float, style: str, note: str) -> None:
        """A dot with a note that the pointer shows."""
        px, py = self.at(x, y)
        self.marks.append(
            f'<circle class="dot {style}" cx="{px:.1f}" cy="{py:.1f}" r="4.5">'
            f"<title>{escape(note)}</title></circle>"
        )

    def error_bar(self, x: float, low: float, high: float, style: str) -> None:
        """A vertical interval with caps."""
        px, bottom = self.at(x, low)
        top = self.at(x, high)[1]
        path = f"M{px:.1f} {bottom:.1f}V{top:.1f}M{px - 5:.1f} {bottom:.1f}h10M{px - 5:.1f} {top:.1f}h10"
        self.marks.append(f'<path class="whisker {style}" d="{path}"/>')

    def bar(self, left: float, right: float, height: float, style: str, note: str) -> None:
        """A bar from the axis up to `height`."""
        x0, top = self.at(left, height)
        x1, bottom = self.at(right, self.y.low)
        self.marks.append(
            f'<rect class="bar {style}" x="{x0:.1f}" y="{top:.1f}" width="{x1 - x0:.1f}" '
            f'height="{max(bottom - top, 0):.1f}" rx="2"><title>{escape(note)}</title></rect>'
        )

    def band(self, points: Sequence[tuple[float, float, float]], style: str) -> None:
        """The area between two lines: x, low and high of each place."""
        there = [self.at(x, high) for x, _, high in points]
        back = [self.at(x, low) for x, low, _ in reversed(points)]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in (*there, *back))
        self.marks.append(f'<polygon class="band {style}" points="{path}"/>')

    def label(self, x: float, y: float, text: str, style: str, *, dx: float = 0, dy: float = 0) -> None:
        """Text beside a point, kept inside the frame: it goes to the left of a point near the right end."""
        px, py = self.at(x, y)
        if dx > 0 and px + dx + 7 * len(text) > WIDTH:
            dx = -dx
        anchor = "start" if dx > 0 else "end" if dx < 0 else "middle"
        self.marks.append(_text(px + dx, py + dy, text, anchor, style))

    def svg(self) -> str:
        """The finished picture."""
        return (
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(self.title)}">'
            f"<title>{escape(self.title)}</title>{self._frame()}{''.join(self.marks)}</svg>"
        )

    def _frame(self) -> str:
        right, base = WIDTH - _RIGHT, HEIGHT - _BOTTOM
        parts = []
        for value in self.y.ticks():
            py = self.at(self.x.low, value)[1]
            parts.append(f'<path class="grid" d="M{_LEFT} {py:.1f}H{right}"/>')
            parts.append(_text(_LEFT - 8, py + 4, self.y.write(value), "end", "tick"))
        for place, name in self._x_ticks():
            px = self.at(place, self.y.low)[0]
            parts.append(_text(px, base + 17, name, "middle", "tick"))
            if not self.x_names:
                parts.append(f'<path class="axis" d="M{px:.1f} {base}v4"/>')
        parts.append(f'<path class="axis" d="M{_LEFT} {base}H{right}"/>')
        parts.append(_text((_LEFT + right) / 2, HEIGHT - 8, self.x.label, "middle", "name"))
        middle = (_TOP + base) / 2
        parts.append(
            f'<text class="name" text-anchor="middle" transform="translate(14 {middle:.0f}) rotate(-90)">'
            f"{escape(self.y.label)}</text>"
        )
        return "".join(parts)

    def _x_ticks(self) -> list[tuple[float, str]]:
        if self.x_names:
            return [(index + 0.5, name) for index, name in enumerate(self.x_names)]
        return [(value, self.x.write(value)) for value in self.x.ticks()]


@dataclass
class Rows:
    """A picture under construction with one row for each name, from the top, and one axis across them all."""

    names: Sequence[str]
    x: Axis
    title: str
    notes: Sequence[str] = ()
    """What the pointer shows on each name."""
    marks: list[str] = field(default_factory=list)

    def bar(self, row: int, value: float, style: str, note: str) -> None:
        """A bar from 0, which the axis has, to `value`."""
        ends = sorted((self._across(0), self._across(value)))
        self.marks.append(
            f'<rect class="bar {style}" x="{ends[0]:.1f}" y="{self._down(row) - 5.5:.1f}" '
            f'width="{ends[1] - ends[0]:.1f}" height="11" rx="2"><title>{escape(note)}</title></rect>'
        )

    def error_bar(self, row: int, low: float, high: float, style: str) -> None:
        """A horizontal interval with caps."""
        left, right, py = self._across(low), self._across(high), self._down(row)
        path = f"M{left:.1f} {py:.1f}H{right:.1f}M{left:.1f} {py - 4:.1f}v8M{right:.1f} {py - 4:.1f}v8"
        self.marks.append(f'<path class="whisker {style}" d="{path}"/>')

    def line(self, points: Sequence[tuple[int, float]], style: str) -> None:
        """A line from row to row."""
        path = " ".join(f"{self._across(value):.1f},{self._down(row):.1f}" for row, value in points)
        self.marks.append(f'<polyline class="line {style}" points="{path}"/>')

    def marker(self, row: int, value: float, style: str, note: str) -> None:
        """A dot with a note that the pointer shows."""
        self.marks.append(
            f'<circle class="dot {style}" cx="{self._across(value):.1f}" cy="{self._down(row):.1f}" r="4.5">'
            f"<title>{escape(note)}</title></circle>"
        )

    def svg(self) -> str:
        """The finished picture; its height grows with the rows."""
        base = self._base
        parts = []
        for value in self.x.ticks():
            px = self._across(value)
            parts.append(f'<path class="grid" d="M{px:.1f} {_TOP}V{base}"/>')
            parts.append(_text(px, base + 17, self.x.write(value), "middle", "tick"))
        if self.x.low <= 0 <= self.x.high:
            parts.append(f'<path class="axis" d="M{self._across(0):.1f} {_TOP}V{base}"/>')
        for row, name in enumerate(self.names):
            note = self.notes[row] if self.notes else ""
            parts.append(_text(self._left - 8, self._down(row) + 4, name, "end", "tick", note))
        parts.append(_text((self._left + WIDTH - _RIGHT) / 2, base + 38, self.x.label, "middle", "name"))
        return (
            f'<svg viewBox="0 0 {WIDTH} {base + _BOTTOM}" role="img" aria-label="{escape(self.title)}">'
            f"<title>{escape(self.title)}</title>{''.join(parts)}{''.join(self.marks)}</svg>"
        )

    @property
    def _left(self) -> float:
        return min(14 + 7 * max(map(len, self.names), default=0), WIDTH / 2)

    @property
    def _base(self) -> int:
        return _TOP + _ROW * len(self.names)

    def _across(self, value: float) -> float:
        return self._left + self.x.place(value) * (WIDTH - self._left - _RIGHT)

    def _down(self, row: int) -> float:
        return _TOP + _ROW * (row + 0.5)


def _text(x: float, y: float, text: str, anchor: str, style: str, note: str = "") -> str:
    title = f"<title>{escape(note)}</title>" if note else ""
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{title}{escape(text)}</text>'
