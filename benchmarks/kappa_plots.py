"""Plots of `benchmarks.kappa`: lines over a logarithmic, even or named axis, as SVG without a library."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

_WIDTH, _HEIGHT = 760, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 30, 70, 60
_COLOURS = ("#3b6fb6", "#d9822b", "#4a9b5d", "#7a5ea8")
_NAME_INSET = 70
_TICKS = 6
_STYLE = (
    "text{font:12px system-ui,-apple-system,'Segoe UI',sans-serif;fill:#243b53}"
    ".title{font-size:16px;font-weight:600}.dim{fill:#627d98}"
)


class Line(NamedTuple):
    """Points joined by a line, or where `joined` is not set, standing alone.

    Attributes:
        points: (x, y), in the order of x.
    """

    name: str
    points: Sequence[tuple[float, float]]
    joined: bool = True


def draw(results: Mapping[str, Any], folder: Path) -> None:
    """A file for each section that has a plot."""
    folder.mkdir(parents=True, exist_ok=True)
    for section, rows in results.items():
        if section in _DRAWN:
            (folder / f"kappa-{section}.svg").write_text(_DRAWN[section](rows))


def svg_of(
    title: str,
    across: str,
    up: str,
    lines: Sequence[Line],
    *,
    logarithmic: bool = True,
    names: Sequence[str] = (),
) -> str:
    """A plot as one self-contained SVG document.

    Args:
        names: of the places 0, 1, ... along an even axis; else places are named by their numbers.
    """
    places = [point for line in lines for point in line.points]
    inset = _NAME_INSET if names else 0
    scale_x = _scale([x for x, _ in places], _LEFT + inset, _WIDTH - _RIGHT - inset, logarithmic)
    top = max(y for _, y in places)
    low = min(0.0, min(y for _, y in places))
    step = _step((top - low) or 1.0)
    low, top = math.floor(low / step) * step, math.ceil(top / step) * step or step
    scale_y = _scale([low, top], _HEIGHT - _BOTTOM, _TOP, False)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" role="img" aria-label="{escape(title)}">',
        f"<style>{_STYLE}</style>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
        _text(_LEFT, 28, title, "title"),
        _text(_LEFT, _TOP - 12, up, "dim"),
        _text(_WIDTH - _RIGHT, _HEIGHT - 16, across, "dim", "end"),
    ]
    for n in range(round((top - low) / step) + 1):
        y = scale_y(low + n * step)
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#d9e2ec"/>'
        )
        parts.append(_text(_LEFT - 8, y + 4, f"{low + n * step:.4g}", "dim", "end"))
    numbers = sorted({x for line in lines if line.joined for x, _ in line.points})
    for x, name in enumerate(names) if names else [(x, f"{x:.4g}") for x in numbers]:
        parts.append(_text(scale_x(x), _HEIGHT - _BOTTOM + 18, name, "dim", "middle"))
    for n, line in enumerate(lines):
        colour = _COLOURS[n % len(_COLOURS)]
        places = [(scale_x(x), scale_y(y)) for x, y in line.points]
        if line.joined:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for (x, y), (_, value) in zip(places, line.points, strict=True):
            dot = f'cx="{x:.1f}" cy="{y:.1f}" r="{3 if line.joined else 6}" fill="{colour}"'
            parts.append(f"<circle {dot}><title>{escape(line.name)}: {value:.4g}</title></circle>")
        parts.append(
            f'<rect x="{_LEFT + 10}" y="{_TOP + 4 + 18 * n}" width="12" height="12" fill="{colour}"/>'
        )
        parts.append(_text(_LEFT + 28, _TOP + 14 + 18 * n, line.name, ""))
    return "\n".join([*parts, "</svg>\n"])


def _sweep(rows: Mapping[str, Mapping[str, Any]]) -> str:
    lines = []
    for clusters in (2, 4):
        found = {name.partition("κ ")[2]: row for name, row in rows.items() if name.startswith(str(clusters))}
        adaptive = found.pop("adaptive")
        updates = adaptive["updates"]
        fixed = [
            (updates / row["rounds"], row["over one %"])
            for name, row in found.items()
            if name.startswith("=") and "," not in name
        ]
        lines += [
            Line(f"{clusters} clusters, κ fixed", fixed),
            Line(
                f"{clusters} clusters, κ adaptive",
                [(updates / adaptive["rounds"], adaptive["over one %"])],
                False,
            ),
        ]
    title = "Loss over that of one cluster with batches as large as all together's"
    return svg_of(title, "κ: updates for each averaging, on average", "% over one cluster", lines)


def _overlap(rows: Mapping[str, Mapping[str, Any]]) -> str:
    lines: dict[str, list[tuple[float, float]]] = {}
    for name, row in rows.items():
        way, _, overlap = name.partition(", overlap ")
        lines.setdefault(way.replace(":", ","), []).append((float(overlap), row["gap %"]))
    title = "Loss with rounds beside training"
    shown = [Line(way, points) for way, points in lines.items()]
    return svg_of(
        title,
        "overlap: updates until the mean is taken in",
        "% over rounds that stop",
        shown,
        logarithmic=False,
    )


def _compression(rows: Mapping[str, Mapping[str, Any]]) -> str:
    shown = {name: row for name, row in rows.items() if "from the mean" not in name}
    lines = [
        Line(f"{c} clusters", [(row["times fewer"], row["gap %"]) for _, row in its])
        for c in (2, 4)
        if (its := [(name, row) for name, row in shown.items() if name.startswith(str(c))])
    ]
    title = "Loss with compressed differences: none, fp16, int8, int4, sparse"
    return svg_of(title, "times fewer bytes", "% over exact differences", lines)


def _staleness(rows: Mapping[str, Mapping[str, Any]]) -> str:
    names = {"at once": "each gradient at once, τ in updates", "speculative": "ŵ, τ in micro-batches"}
    lines = [
        Line(shown, [(float(n.rpartition(" ")[2]), r["gap %"]) for n, r in rows.items() if n.startswith(way)])
        for way, shown in names.items()
    ]
    return svg_of("Loss over that without staleness", "τ of the first of two stages", "% over τ = 0", lines)


def _planner(rows: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    wrong = {
        "bandwidth wrong": "bandwidth wrong, lost %",
        "bandwidth and speed wrong": "all rates wrong, lost %",
    }
    shown = [(name, key, of) for name, key in wrong.items() for of in ("mean", "worst")]
    lines = [
        Line(
            f"{name}, {of}",
            [(n + (k - 1.5) / 16, row[key][of]) for n, row in enumerate(rows.values())],
            False,
        )
        for k, (name, key, of) in enumerate(shown)
    ]
    names = [name.rpartition(", seed")[0] for name in rows]
    title = "Worth that a plan loses by measurements that are wrong by half"
    return svg_of(title, "", "% below the plan of what is true", lines, logarithmic=False, names=names)


_DRAWN = {
    "sweep": _sweep,
    "overlap": _overlap,
    "compression": _compression,
    "staleness": _staleness,
    "planner": _planner,
}


def _scale(values: Sequence[float], start: float, end: float, logarithmic: bool) -> Callable[[float], float]:
    """Values to pixels."""
    turned = math.log if logarithmic else float
    low, high = turned(min(values)), turned(max(values))

    def to_pixels(value: float) -> float:
        return start + (end - start) * (turned(value) - low) / ((high - low) or 1.0)

    return to_pixels


def _step(span: float) -> float:
    power = 10.0 ** math.floor(math.log10(span / _TICKS))
    return next(power * n for n in (1, 2, 5, 10) if power * n * _TICKS >= span)


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    chosen = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{chosen}>{escape(text)}</text>'
