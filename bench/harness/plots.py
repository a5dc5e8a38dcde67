"""SVG by hand: bars of CPU by subject, and lines of CPU by the number of clients."""

from statistics import median
from xml.sax.saxutils import escape

from harness.figures import Data, Figure, Series, interval, number, per_chunk, per_exchange
from harness.subjects import NAMES

COLORS = {"moriio-write": "#c0392b", "moriio-read": "#e08e79", "floor": "#2c7a4b", "nginx-mirror": "#2f5d8a"}
OTHER = "#9aa5b1"
INK, GRID = "#222222", "#dddddd"
PANELS: list[tuple[str, str, Figure]] = [
    ("per exchange, 1 KB, 16 tokens, C=64", "exchange", per_exchange),
    ("per chunk, streamed without delay, C=32", "chunk", per_chunk),
    ("per chunk, one in 20 ms, C=64", "paced", per_chunk),
]


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12, weight: str = "normal") -> str:
    return (f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" font-weight="{weight}" '
            f'fill="{INK}">{escape(text)}</text>')


def _line(x1: float, y1: float, x2: float, y2: float, color: str = GRID, width: float = 1) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}" stroke-width="{width}"/>'


def _document(width: float, height: float, parts: list[str]) -> str:
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
            f'viewBox="0 0 {width:.0f} {height:.0f}" font-family="Helvetica, Arial, sans-serif">\n'
            f'<rect width="100%" height="100%" fill="#ffffff"/>\n' + "\n".join(parts) + "\n</svg>\n")


def _step(highest: float) -> float:
    """The distance of about five grid lines."""
    step = 1e-3
    while True:
        for factor in (1, 2, 5):
            if highest / (step * factor) <= 6:
                return step * factor
        step *= 10


def _panel(data: Data, top: float, title: str, scene: str, figure: Figure) -> tuple[list[str], float]:
    """Horizontal bars, one a subject, with whiskers; and where the panel ends."""
    left, room, bar = 130, 470, 20
    found = [(name, data.series(scene, name, figure)) for name in NAMES if name != "direct"]
    found = [(name, series) for name, series in found if series]
    parts = [_text(left, top + 14, f"CPU {title}, µs", weight="bold", size=13)]
    if not found:
        return [*parts, _text(left, top + 36, "not measured")], top + 54
    highest = max(interval(list(series.values()))[1] for _, series in found)
    step, scale = _step(highest), room / highest
    bottom = top + 28 + len(found) * (bar + 6)
    for at in range(int(highest / step) + 1):
        x = left + at * step * scale
        parts += [_line(x, top + 24, x, bottom), _text(x, bottom + 15, f"{at * step:g}", anchor="middle", size=11)]
    for place, (name, series) in enumerate(found):
        y, values = top + 28 + place * (bar + 6), list(series.values())
        middle, (low, high) = median(values), interval(values)
        parts.append(_text(left - 8, y + 14, name, anchor="end"))
        color = COLORS.get(name, OTHER)
        parts.append(f'<rect x="{left}" y="{y:.1f}" width="{middle * scale:.1f}" height="{bar}" fill="{color}"/>')
        parts.append(_line(left + low * scale, y + bar / 2, left + high * scale, y + bar / 2, INK, 1.5))
        parts.append(_text(left + high * scale + 8, y + 14, number(middle)))
    return parts, bottom + 34


def bars(data: Data) -> str:
    """CPU of every subject in the scenes that all of them run."""
    parts, top = [], 10.0
    for title, scene, figure in PANELS:
        drawn, top = _panel(data, top, title, scene, figure)
        parts += drawn
    return _document(680, top, parts)


def _points(data: Data, name: str, counts: list[int]) -> dict[int, Series]:
    found = {count: data.series("sweep", name, per_exchange, f"C{count}") for count in counts}
    return {count: series for count, series in found.items() if series}


def sweep(data: Data) -> str:
    """CPU per exchange by the number of clients, whose axis has equal steps for doublings."""
    cases = {case for scene, case, _ in data.places if scene == "sweep"}
    counts = sorted(int(case[1:]) for case in cases)
    lines = {name: _points(data, name, counts) for name in NAMES}
    lines = {name: points for name, points in lines.items() if points}
    left, top, width, height = 70, 40, 430, 260
    parts = [_text(left, 22, "CPU per exchange, 1 KB, 16 tokens, µs", weight="bold", size=13)]
    if not lines:
        return _document(650, 80, [*parts, _text(left, 50, "not measured")])
    highest = max(interval(list(series.values()))[1] for points in lines.values() for series in points.values())
    step, scale = _step(highest), height / highest
    across = width / max(len(counts) - 1, 1)
    for at in range(int(highest / step) + 1):
        y = top + height - at * step * scale
        parts += [_line(left, y, left + width, y), _text(left - 8, y + 4, f"{at * step:g}", anchor="end", size=11)]
    for place, count in enumerate(counts):
        parts.append(_text(left + place * across, top + height + 18, str(count), anchor="middle", size=11))
    parts.append(_text(left + width / 2, top + height + 38, "clients", anchor="middle"))
    ends = []
    for name, points in lines.items():
        color = COLORS.get(name, OTHER)
        places = []
        for count, series in points.items():
            values = list(series.values())
            x, (low, high) = left + counts.index(count) * across, interval(values)
            y = [top + height - value * scale for value in (median(values), low, high)]
            places.append(f"{x:.1f},{y[0]:.1f}")
            parts += [_line(x, y[1], x, y[2], color, 1.2), f'<circle cx="{x:.1f}" cy="{y[0]:.1f}" r="3" fill="{color}"/>']
        parts.append(f'<polyline points="{" ".join(places)}" fill="none" stroke="{color}" stroke-width="2"/>')
        ends.append((y[0], name, color))
    return _document(650, top + height + 52, parts + _labels(ends, left + width + 12))


def _labels(ends: list[tuple[float, str, str]], x: float) -> list[str]:
    """Names at the ends of lines, none over another."""
    parts, lowest = [], float("-inf")
    for y, name, color in sorted(ends):
        lowest = max(y, lowest + 16)
        parts += [f'<rect x="{x:.1f}" y="{lowest - 5:.1f}" width="10" height="10" fill="{color}"/>',
                  _text(x + 15, lowest + 4, name)]
    return parts
