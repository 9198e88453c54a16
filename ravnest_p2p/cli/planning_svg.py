"""Draw a plan: clusters in the order of their rings, stages as wide as their layers."""

from __future__ import annotations

from html import escape
from math import ceil

from ravnest_p2p.core.planning.layout import Cluster, Layout
from ravnest_p2p.core.planning.objective import cluster_interval_s, stage_s
from ravnest_p2p.core.planning.problem import Problem

MOST = 400
"""Clusters that are drawn."""

_MARGIN, _TOP = 20, 92
_WIDTH, _HEIGHT, _GAP_X, _GAP_Y = 220, 44, 26, 22
_BAR = 20
_STYLE = (
    "text{font:11px system-ui,-apple-system,'Segoe UI',sans-serif;fill:#243b53}"
    ".title{font-size:17px;font-weight:600}.dim{fill:#627d98;font-size:12px}.on{fill:#fff;font-size:10px}"
)
_LEGEND = "a stage is as wide as its layers and as dark as it is busy; ◦ has a standby"
_COLOURS = ("#b9cde4", "#8fb1d8", "#5f90c6", "#3b6fb6", "#24508f")
"""From a stage that mostly waits to one that is always busy."""


def svg_of(problem: Problem, layout: Layout) -> str:
    """The plan as one self-contained SVG document.

    Each row of clusters is a ring, and so is each column, where the rings form a grid. A stage is as wide as
    its share of the layers and as dark as its share of the cluster's interval.
    """
    count = min(len(layout.clusters), MOST)
    order = [n for n in (layout.order or range(count)) if n < len(layout.clusters)][:count]
    columns = max(1, min(layout.columns if count > 1 else 1, count))
    shown = min(columns, max(1, ceil(count**0.5)))
    rows = ceil(columns / shown) * ceil(count / columns)
    width = max(640, 2 * _MARGIN + shown * (_WIDTH + _GAP_X))
    height = _TOP + rows * (_HEIGHT + _GAP_Y) + _MARGIN
    backed = {primary: standby for standby, primary in layout.standbys}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-label="plan of {len(layout.clusters)} clusters">',
        f"<style>{_STYLE}</style>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        _text(_MARGIN, 32, f"{len(layout.clusters)} clusters, {len(backed)} standbys", "title"),
        _text(_MARGIN, 54, _rings(layout, count, columns), "dim"),
        _text(_MARGIN, 72, _LEGEND, "dim"),
    ]
    wraps = ceil(columns / shown)
    for place, n in enumerate(order):
        row, column = divmod(place, columns)
        x = _MARGIN + (column % shown) * (_WIDTH + _GAP_X)
        y = _TOP + (row * wraps + column // shown) * (_HEIGHT + _GAP_Y)
        parts += _cluster(problem, layout.clusters[n], n, x, y, backed)
        if column + 1 < columns and place + 1 < count and (column + 1) % shown:
            parts.append(_line(x + _WIDTH, y + _BAR / 2 + 14, x + _WIDTH + _GAP_X))
    return "\n".join([*parts, "</svg>\n"])


def _rings(layout: Layout, count: int, columns: int) -> str:
    left_out = len(layout.clusters) - count
    more = f"; the first {count} are drawn" if left_out else ""
    if columns >= len(layout.clusters):
        return f"one ring through all clusters{more}"
    rows = ceil(len(layout.clusters) / columns)
    return f"a grid of {rows} rows of {columns}: rings along rows and columns{more}"


def _cluster(
    problem: Problem, cluster: Cluster, number: int, x: float, y: float, backed: dict[int, int]
) -> list[str]:
    interval_s, layers = cluster_interval_s(problem, cluster), problem.layers
    parts = [_text(x, y + 10, f"{number}: {problem.rules.microbatch / interval_s:.3g} samples/s", "")]
    for peer, (lo, hi) in zip(cluster.peers, cluster.ranges(layers.count), strict=True):
        busy = stage_s(layers, problem.peers[peer], lo, hi) / interval_s
        colour = _COLOURS[min(len(_COLOURS) - 1, int(busy * len(_COLOURS)))]
        left, width = x + _WIDTH * lo / layers.count, _WIDTH * (hi - lo) / layers.count
        standby = f", standby {problem.peers[backed[peer]].name}" if peer in backed else ""
        title = f"{problem.peers[peer].name}: layers {lo}-{hi - 1}, busy {busy:.0%}{standby}"
        parts.append(
            f'<rect x="{left:.1f}" y="{y + 14}" width="{max(width - 1.5, 1):.1f}" height="{_BAR}" rx="2" '
            f'fill="{colour}"><title>{escape(title)}</title></rect>'
        )
        if peer in backed:
            middle = left + width / 2
            parts.append(
                f'<circle cx="{middle:.1f}" cy="{y + _BAR + 20}" r="2.5" fill="none" stroke="#d9822b"/>'
            )
    return parts


def _line(x: float, y: float, to: float) -> str:
    return f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{to:.1f}" y2="{y:.1f}" stroke="#9fb3c8"/>'


def _text(x: float, y: float, text: str, style: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{style}">{escape(text)}</text>'
