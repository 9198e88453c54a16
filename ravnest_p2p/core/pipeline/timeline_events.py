"""Timelines as trace events, which ui.perfetto.dev and chrome://tracing open.

A cluster is a process. Of each stage there are up to four rows: what it computes and what it waits for; the
activations that it sends; the gradients that it sends; its rounds of averaging. An arrow leads from the end
of each send to the operation that uses what was sent; arrivals are marks on the compute row.

Source: "Trace Event Format" of the Chromium project: complete events (X), instants (i), flows (s, f),
metadata (M); times in microseconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ravnest_p2p.core.pipeline.timeline import Span, StageTimeline
from ravnest_p2p.core.pipeline.timeline_rows import waits

KINDS = {
    "F": ("forward", "rail_response"),
    "f": ("speculative forward", "rail_animation"),
    "B": ("backward", "rail_load"),
    "^": ("speculate", "olive"),
    "|": ("step", "good"),
    "S": ("snapshot", "vsync_highlight_color"),
    "A": ("average", "generic_work"),
    ">a": ("send", "thread_state_iowait"),
    ">g": ("send", "thread_state_iowait"),
    ">r": ("round", "generic_work"),
    "<a": ("receive", "grey"),
    "<g": ("receive", "grey"),
}
"""Kind of span → category, and the reserved name of its colour."""
WAIT_COLOUR = "grey"
_ROWS = ("compute", "activations sent", "gradients sent", "rounds")
_SENDS = {">a": 1, ">g": 2, ">r": 3}

Event = dict[str, Any]


def trace_events(timelines: Iterable[StageTimeline]) -> dict[str, Any]:
    """The whole document; times count from the earliest span."""
    known = list(timelines)
    zero_us = min((s.start_us for t in known for s in t.spans), default=0)
    events = [event for timeline in known for event in _stage(timeline, zero_us)]
    events += _flows(known, zero_us)
    return {"traceEvents": [*_names(known), *events], "displayTimeUnit": "ms"}


def _stage(timeline: StageTimeline, zero_us: int) -> list[Event]:
    place = {"pid": timeline.cluster, "tid": _row(timeline.stage, 0)}
    events = []
    for span in timeline.operations:
        category, colour = KINDS[span.kind]
        named = {"ph": "X", "name": span.word, "cat": category, "cname": colour, **place}
        events.append(named | {"ts": span.start_us - zero_us, "dur": span.duration_us, "args": _about(span)})
    for wait in waits(timeline):
        named = {"ph": "X", "name": f"wait for {wait.awaited}", "cat": "wait", "cname": WAIT_COLOUR, **place}
        events.append(named | {"ts": wait.start_us - zero_us, "dur": wait.duration_us})
    free_us = dict.fromkeys(_SENDS.values(), zero_us)
    for span in timeline.spans:
        row = _SENDS.get(span.kind)
        named = {"name": span.word, "cat": KINDS[span.kind][0], "cname": KINDS[span.kind][1], **place}
        if row is not None:
            # A row shows one thing at a time: what waited for the one before is drawn from that one's end.
            start_us = min(max(span.start_us, free_us[row]), span.end_us)
            free_us[row] = max(free_us[row], span.end_us)
            about = {"bytes": span.bytes} | ({"queued_us": span.duration_us} if span.kind != ">r" else {})
            shown = {"ph": "X", "tid": _row(timeline.stage, row), "ts": start_us - zero_us}
            events.append(named | shown | {"dur": span.end_us - start_us, "args": about})
        elif not span.is_operation:
            events.append(named | {"ph": "i", "s": "t", "ts": span.start_us - zero_us})
    return events


def _about(span: Span) -> Event:
    if span.kind in ("F", "f", "B"):
        return {"microbatch": span.number, "version": int(span.word.partition(span.kind)[0])}
    return {"round" if span.kind in "SA" else "batch": span.number}


def _flows(timelines: Sequence[StageTimeline], zero_us: int) -> list[Event]:
    """Arrows between neighbouring stages; each has an id of its own."""
    stages = {(t.cluster, t.stage): t for t in timelines}
    events: list[Event] = []
    for (cluster, stage), sender in stages.items():
        for kind, step, users, name in ((">a", 1, "Ff", "activation"), (">g", -1, "B", "gradient")):
            receiver = stages.get((cluster, stage + step))
            used = {s.number: s for s in receiver.operations if s.kind in users} if receiver else {}
            for span in sender.spans:
                if span.kind != kind or span.number not in used:
                    continue
                arrow = {"name": name, "cat": name, "id": f"{cluster}/{stage}{span.word}", "pid": cluster}
                begin = {"ph": "s", "tid": _row(stage, _SENDS[kind]), "ts": span.end_us - zero_us}
                end = {"ph": "f", "bp": "e", "tid": _row(stage + step, 0)}
                events.append(arrow | begin)
                events.append(arrow | end | {"ts": used[span.number].start_us - zero_us})
    return events


def _names(timelines: Sequence[StageTimeline]) -> list[Event]:
    events: list[Event] = []
    for cluster in sorted({t.cluster for t in timelines}):
        events.append(_meta("process_name", cluster, 0, {"name": f"cluster {cluster}"}))
    for t in timelines:
        kinds = {_SENDS.get(span.kind, 0) for span in t.spans}
        for row in sorted(kinds | {0}):
            tid, name = _row(t.stage, row), f"stage {t.stage} {_ROWS[row]}"
            name += f" (…{t.peer[-8:]})" if row == 0 else ""
            events.append(_meta("thread_name", t.cluster, tid, {"name": name}))
            events.append(_meta("thread_sort_index", t.cluster, tid, {"sort_index": tid}))
    return events


def _meta(name: str, pid: int, tid: int, args: Event) -> Event:
    return {"ph": "M", "name": name, "pid": pid, "tid": tid, "args": args}


def _row(stage: int, row: int) -> int:
    return len(_ROWS) * stage + row
