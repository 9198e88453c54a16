"""Draw timelines: a row for each stage, its operations in the colours of their kinds, its waits between."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from html import escape
from typing import NamedTuple

from ravnest_p2p.core.pipeline.timeline import MICRO, Span, StageTimeline
from ravnest_p2p.core.pipeline.timeline_rows import summary, waits

WIDTH = 1240
MOST_DRAWN = 6000
"""Operations in one picture; of more, the newest are drawn and the title says so."""
MOST_ARROWS = 1500
RAGGED_US = 1_000_000
_LEFT, _RIGHT, _TOP = 150, 176, 84
_ROW, _BAR, _SEND = 58, 26, 5
_CHAR = 6.8
_TICKS = 10
_KINDS = {
    "F": ("forward", "#3b6fb6"),
    "f": ("forward on ŵ", "#7fa8d9"),
    "B": ("backward", "#4a9b5d"),
    "^": ("speculate", "#c9a227"),
    "|": ("step", "#d9822b"),
    "S": ("snapshot", "#b39ad1"),
    "A": ("average", "#7a5ea8"),
    "wait": ("wait for a message", "#f0c9c4"),
    ">": ("send", "#6b7785"),
    ">r": ("round", "#7a5ea8"),
}
_STYLE = (
    "text{font:12px system-ui,-apple-system,'Segoe UI',sans-serif;fill:#243b53}"
    ".title{font-size:17px;font-weight:600}.dim{fill:#627d98}.on{fill:#fff;font-size:11px}"
    ".small{font-size:11px;fill:#486581}"
)


class _Scale(NamedTuple):
    """Microseconds to pixels."""

    start_us: int
    end_us: int

    def x(self, time_us: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * (time_us - self.start_us) / max(
            self.end_us - self.start_us, 1
        )


def svg_of(timelines: Iterable[StageTimeline], name: str) -> str:
    """The timelines as one self-contained SVG document; its size is bounded whatever they hold."""
    whole = list(timelines)
    known, dropped = _drawn(whole)
    ops = [span for timeline in known for span in timeline.operations]
    scale = _Scale(min((s.start_us for s in ops), default=0), max((s.end_us for s in ops), default=1))
    bottom = _TOP + _ROW * len(known)
    height = bottom + 76
    seconds = (scale.end_us - scale.start_us) / MICRO
    subtitle = f"{len(ops)} operations in {seconds:.3g} s" + (
        f"; the newest, {dropped} before are left out" if dropped else ""
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" role="img" aria-label="timeline of {escape(name)}">',
        f"<style>{_STYLE}</style>",
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        _text(24, 34, f"{name}: {len(known)} stages", "title"),
        _text(24, 56, subtitle, "dim"),
        *_axis(scale, bottom),
    ]
    for number, timeline in enumerate(known):
        parts += _row(timeline, _TOP + _ROW * number, scale)
    parts += _arrows(known, scale)
    parts += _legend(bottom + 48)
    return "\n".join([*parts, "</svg>\n"])


def _drawn(timelines: Sequence[StageTimeline]) -> tuple[list[StageTimeline], int]:
    """The newest operations of all stages, and how many before them are left out.

    Where stages' newest spans differ by no more than their reports do, all rows end together.
    """
    ends = [max(s.end_us for s in t.operations) for t in timelines if t.operations]
    together = bool(ends) and max(ends) - min(ends) <= RAGGED_US
    until_us = min(ends) if together else max(ends, default=0)
    shown = (s for t in timelines for s in t.operations if s.end_us <= until_us)
    starts = sorted((s.start_us for s in shown), reverse=True)
    since_us = starts[MOST_DRAWN - 1] if len(starts) > MOST_DRAWN else min(starts, default=0)
    kept = [
        replace(t, spans=tuple(s for s in t.spans if since_us <= s.start_us and s.end_us <= until_us))
        for t in timelines
    ]
    return kept, len(starts) - sum(len(t.operations) for t in kept)


def _row(timeline: StageTimeline, top: float, scale: _Scale) -> list[str]:
    found = summary(timeline)
    parts = [
        _text(24, top + 17, f"cluster {timeline.cluster}  stage {timeline.stage}", ""),
        _text(24, top + 33, f"…{timeline.peer[-8:]}", "small"),
        _text(WIDTH - _RIGHT + 14, top + 17, f"busy {100 * found.busy:.1f} %", ""),
        _text(
            WIDTH - _RIGHT + 14,
            top + 33,
            f"wait {100 * found.waiting:.1f} %, average {100 * found.averaging:.1f} %",
            "small",
        ),
    ]
    for wait in waits(timeline):
        tip = f"{wait.duration_us / 1000:.3f} ms wait for {wait.awaited}"
        parts.append(_box(scale, wait.start_us, wait.duration_us, top, _BAR, _KINDS["wait"][1], tip))
    for span in timeline.operations:
        label, colour = _KINDS[span.kind]
        tip = f"{span.word} {label}, {span.duration_us / 1000:.3f} ms"
        parts.append(_box(scale, span.start_us, span.duration_us, top, _BAR, colour, tip))
        parts += _inside(scale, span, top)
    for span in timeline.spans:
        if span.kind == ">r" and span.end_us >= scale.start_us:
            begin_us, end_us = max(span.start_us, scale.start_us), min(span.end_us, scale.end_us)
            tip = f"round {span.number}, {span.bytes} bytes sent, {span.duration_us / 1000:.3f} ms"
            at = top + _BAR + 2 + 2 * (_SEND + 1)
            parts.append(_box(scale, begin_us, end_us - begin_us, at, _SEND, _KINDS[">r"][1], tip))
        elif span.kind in (">a", ">g") and scale.start_us <= span.start_us and span.end_us <= scale.end_us:
            tip = f"{span.word} sent, {span.bytes} bytes, {span.duration_us / 1000:.3f} ms in the queue"
            at = top + _BAR + 2 + (0 if span.kind == ">a" else _SEND + 1)
            parts.append(_box(scale, span.start_us, span.duration_us, at, _SEND, _KINDS[">"][1], tip))
    return parts


def _inside(scale: _Scale, span: Span, top: float) -> list[str]:
    """The operation's word within its box, or only its number, or nothing: whatever there is room for."""
    left, right = scale.x(span.start_us), scale.x(span.end_us)
    short = span.word[span.word.index(span.kind) :]
    for text in (span.word, short):
        if _CHAR * len(text) + 4 <= right - left:
            return [_text((left + right) / 2, top + 17, text, "on", "middle")]
    return []


def _arrows(timelines: Sequence[StageTimeline], scale: _Scale) -> Iterator[str]:
    """From where a message was handed over to where it arrived, if both are in the picture."""
    rows = {(t.cluster, t.stage): (_TOP + _ROW * n, t.messages) for n, t in enumerate(timelines)}
    drawn = 0
    for (cluster, stage), (top, messages) in rows.items():
        for (kind, number), span in messages.items():
            other = rows.get((cluster, stage + (1 if kind == ">a" else -1)))
            if kind[0] == "<" or other is None or drawn == MOST_ARROWS:
                continue
            arrival = other[1].get(("<" + kind[1], number))
            if arrival is None or span.end_us < scale.start_us or arrival.start_us > scale.end_us:
                continue
            drawn += 1
            ends = (top + _BAR + 4, other[0]) if kind == ">a" else (top, other[0] + _BAR)
            yield (
                f'<line x1="{scale.x(span.end_us):.1f}" y1="{ends[0]:.0f}" '
                f'x2="{scale.x(arrival.start_us):.1f}" y2="{ends[1]:.0f}" stroke="#243b53" '
                'stroke-width="0.7" stroke-opacity="0.45"/>'
            )


def _axis(scale: _Scale, bottom: float) -> list[str]:
    """Vertical lines at round times since the begin."""
    whole_us = max(scale.end_us - scale.start_us, 1)
    power = 10.0 ** math.floor(math.log10(whole_us / _TICKS))
    step_us = next(power * n for n in (1, 2, 5, 10) if power * n * _TICKS >= whole_us)
    parts = []
    for n in range(int(whole_us // step_us) + 1):
        x = scale.x(scale.start_us + n * step_us)
        ms = n * step_us / 1000
        label = f"{ms / 1000:.4g} s" if whole_us >= 2 * MICRO else f"{ms:.4g} ms"
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 8}" y2="{bottom}" stroke="#d9e2ec"/>'
            + _text(x, bottom + 16, label, "small", "middle")
        )
    return parts


def _legend(top: float) -> list[str]:
    parts = []
    x = 24.0
    for label, colour in _KINDS.values():
        parts.append(f'<rect x="{x}" y="{top}" width="12" height="12" rx="2" fill="{colour}"/>')
        parts.append(_text(x + 18, top + 11, label, "small"))
        x += 44 + 6.5 * len(label)
    return parts


def _box(
    scale: _Scale, start_us: int, duration_us: int, top: float, height: float, colour: str, tip: str
) -> str:
    x = scale.x(start_us)
    width = max(scale.x(start_us + duration_us) - x, 0.4 if height > _SEND else 1.6)
    return (
        f'<rect x="{x:.2f}" y="{top:.0f}" width="{width:.2f}" height="{height:.0f}" fill="{colour}">'
        f"<title>{escape(tip)}</title></rect>"
    )


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    chosen = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{chosen}>{escape(text)}</text>'
