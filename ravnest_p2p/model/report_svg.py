"""Draw a split: the model as one bar, the cuts with what crosses them, and each stage's memory."""

from __future__ import annotations

from html import escape
from itertools import accumulate

from ravnest_p2p.core.wording import bytes_text
from ravnest_p2p.model.report import Report, StageReport
from ravnest_p2p.model.requirements import Need

WIDTH = 960
_MARGIN = 24
_BAR_TOP, _BAR_HEIGHT = 96, 56
_ROW = 34
_LABELS = 210
_COLOURS = ("#3b6fb6", "#d9822b", "#4a9b5d", "#b64a6e", "#7a5ea8", "#2f9c9c", "#a58a2b", "#6b7785")
_KINDS = (
    ("weights", "#334e68"),
    ("gradients", "#627d98"),
    ("optimizer", "#9fb3c8"),
    ("speculative", "#d9a441"),
    ("momentary", "#c7c9cc"),
    ("activations", "#5a9e6f"),
    ("carried", "#b0719b"),
    ("averaging", "#7a5ea8"),
)
_LABEL = {"speculative": "ŵ (early step)", "carried": "shared weights", "averaging": "rounds' copies"}
_STYLE = (
    "text{font:13px system-ui,-apple-system,'Segoe UI',sans-serif;fill:#243b53}"
    ".title{font-size:17px;font-weight:600}.dim{fill:#627d98;font-size:12px}"
    ".on{fill:#fff;font-weight:600}.small{font-size:11px;fill:#486581}"
)


def svg_of(report: Report, name: str) -> str:
    """The report as one self-contained SVG document.

    Layers are drawn as wide as their work, in the colour of their stage; below, each stage's memory by
    what it is for, against what its peer offers.
    """
    stages = report.stages
    memory_top = _BAR_TOP + _BAR_HEIGHT + 92
    height = memory_top + _ROW * len(stages) + 62
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" role="img" aria-label="{escape(name)} in {len(stages)} stages">',
        f"<style>{_STYLE}</style>",
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        _text(_MARGIN, 36, f"{name}: {len(stages)} stages", "title"),
        _text(_MARGIN, 58, _subtitle(report), "dim"),
        *_layers(report),
        _text(_MARGIN, memory_top - 16, "memory of each stage's tensors", ""),
    ]
    widest = max((max(s.need.memory.tensors, 1) for s in stages), default=1)
    for number, stage in enumerate(stages):
        parts += _memory(stage, number, memory_top + _ROW * number, widest)
    parts += _legend(memory_top + _ROW * len(stages) + 24)
    return "\n".join([*parts, "</svg>\n"])


def _subtitle(report: Report) -> str:
    return (
        f"{report.params:,} parameters, {len(report.layers)} layers, "
        f"micro-batch of {report.microbatch_size}, {report.terms.optimizer.name}, "
        f"{report.terms.precision}; balance {100 * report.balance:.0f} %"
    )


def _layers(report: Report) -> list[str]:
    room = WIDTH - 2 * _MARGIN
    work = [need.flops for need in report.layers]
    total = sum(work) or 1.0
    edges = [_MARGIN + room * done / total for done in accumulate(work, initial=0.0)]
    parts: list[str] = []
    written = 0.0
    for number, stage in enumerate(report.stages):
        lo, hi = stage.need.lo, stage.need.hi
        colour = _COLOURS[number % len(_COLOURS)]
        for n in range(lo, hi):
            need = report.layers[n]
            tip = f"layer {n} {need.name}: {100 * need.flops / total:.1f} % of the work"
            parts.append(
                f'<rect x="{edges[n]:.2f}" y="{_BAR_TOP}" width="{max(edges[n + 1] - edges[n], 0.4):.2f}" '
                f'height="{_BAR_HEIGHT}" fill="{colour}" fill-opacity="{1 if n % 2 else 0.82}">'
                f"<title>{escape(tip)}</title></rect>"
            )
        middle, width = (edges[lo] + edges[hi]) / 2, edges[hi] - edges[lo]
        title = f"stage {number}" if width > 52 else str(number)
        parts.append(_text(middle, _BAR_TOP - 10, title, "", "middle"))
        if width > 36:
            parts.append(_text(middle, _BAR_TOP + 34, f"{100 * width / room:.0f} %", "on", "middle"))
        if hi < len(report.layers):
            parts += _cut(edges[hi], stage.need, labelled=edges[hi] - written > 52)
            written = edges[hi] if edges[hi] - written > 52 else written
    return parts


def _cut(x: float, need: Need, *, labelled: bool) -> list[str]:
    """A line through the bar and what crosses there; labels that would overlap are only shown by pointing."""
    bottom = _BAR_TOP + _BAR_HEIGHT
    carried = f", of these {_size(need.carried_bytes)} {', '.join(need.carried)}" if need.carried else ""
    return [
        f'<line x1="{x:.2f}" x2="{x:.2f}" y1="{_BAR_TOP - 6}" y2="{bottom + 14}" stroke="#102a43" '
        f'stroke-width="2"><title>{escape(_size(need.out_bytes) + " cross here" + carried)}</title></line>',
        *([_text(x, bottom + 30, _size(need.out_bytes), "small", "middle")] if labelled else []),
    ]


def _memory(stage: StageReport, number: int, top: float, widest: int) -> list[str]:
    colour = _COLOURS[number % len(_COLOURS)]
    room = WIDTH - 2 * _MARGIN - _LABELS - 190
    left = _MARGIN + _LABELS
    parts = [
        f'<rect x="{_MARGIN}" y="{top + 4}" width="12" height="12" rx="2" fill="{colour}"/>',
        _text(_MARGIN + 20, top + 15, f"{number}  {_short(stage.peer)}", ""),
    ]
    x = float(left)
    for (kind, fill), size in zip(_KINDS, stage.need.memory, strict=True):
        width = room * size / widest
        if size:
            parts.append(
                f'<rect x="{x:.2f}" y="{top}" width="{width:.2f}" height="20" fill="{fill}">'
                f"<title>{kind}: {_size(size)}</title></rect>"
            )
        x += width
    needs = f"needs {bytes_text(stage.need.memory.needed)}"
    if stage.offered_bytes is not None:
        needs += f" of {bytes_text(stage.offered_bytes)}"
    parts.append(_text(x + 8, top + 15, needs, ""))
    return parts


def _legend(top: float) -> list[str]:
    parts = []
    x = float(_MARGIN)
    for kind, fill in _KINDS:
        label = _LABEL.get(kind, kind)
        parts.append(f'<rect x="{x}" y="{top}" width="12" height="12" rx="2" fill="{fill}"/>')
        parts.append(_text(x + 18, top + 11, label, "small"))
        x += 40 + 7 * len(label)
    return parts


def _size(count: int) -> str:
    if count < 1000:
        return f"{count} B"
    return f"{count / 1000:.0f} kB" if count < 1_000_000 else bytes_text(count)


def _short(name: str) -> str:
    return name if len(name) <= 24 else f"…{name[-20:]}"


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    chosen = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{chosen}>{escape(text)}</text>'
