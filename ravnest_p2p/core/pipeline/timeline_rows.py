"""What a stage's timeline amounts to: the gaps of its compute row and what each waits for, its busy share.

A gap before an operation is a wait where the message that the operation needs arrived after the gap began,
and lasts until it arrived. Whatever else lies between two operations is our own work of handing over, and
counts as neither busy nor waiting.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from ravnest_p2p.core.pipeline.timeline import MICRO, Span, StageTimeline

WAIT = "wait"
_NEEDS = {"F": "<a", "f": "<a", "B": "<g"}
_NAMES = {"<a": "activation", "<g": "gradient"}


@dataclass(frozen=True, slots=True)
class Wait:
    """A gap of a compute row, and the message that ended it: "activation 3" or "gradient 3"."""

    start_us: int
    duration_us: int
    awaited: str


@dataclass(frozen=True, slots=True)
class StageSummary:
    """What a stage did with its time.

    Attributes:
        spans: operations.
        seconds: from the begin of the first to the end of the last.
        busy, averaging, waiting, handing_over: shares of these seconds, which they make up: operations,
            averaging, gaps until an awaited message, and whatever else lay between two operations.
        largest_gap_s: longest time without an operation; `awaited` is what it waited for, if for a message.
        sent_bytes: to the stages beside it.
        clock_offset_s: by which its peer's clock was ahead of the first stage's.
    """

    cluster: int
    stage: int
    peer: str
    spans: int
    seconds: float
    busy: float
    averaging: float
    waiting: float
    handing_over: float
    largest_gap_s: float
    awaited: str
    sent_bytes: int
    clock_offset_s: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def waits(timeline: StageTimeline) -> list[Wait]:
    """Gaps between operations in which a message was awaited, by start."""
    arrived = timeline.messages
    found = []
    for before, after in pairwise(timeline.operations):
        message = arrived.get((_NEEDS.get(after.kind, ""), after.number))
        if message is not None and before.end_us < message.start_us:
            end_us = min(message.start_us, after.start_us)
            awaited = f"{_NAMES[message.kind]} {after.number}"
            if end_us > before.end_us:
                found.append(Wait(before.end_us, end_us - before.end_us, awaited))
    return found


def summary(timeline: StageTimeline) -> StageSummary:
    """What the stage did with its time; all zero where it did nothing."""
    operations, waited = timeline.operations, waits(timeline)
    whole_us = max((s.end_us for s in operations), default=0) - (operations[0].start_us if operations else 0)
    gaps = [(after.start_us - before.end_us, before.end_us) for before, after in pairwise(operations)]
    gap_us, gap_at = max(gaps, default=(0, 0))
    share = 1 / max(whole_us, 1)
    busy = share * _total_us(s for s in operations if s.kind != "A")
    averaging, waiting = share * _total_us(s for s in operations if s.kind == "A"), share * _total_us(waited)
    return StageSummary(
        cluster=timeline.cluster,
        stage=timeline.stage,
        peer=timeline.peer,
        spans=len(operations),
        seconds=whole_us / MICRO,
        busy=busy,
        averaging=averaging,
        waiting=waiting,
        handing_over=max(0.0, 1 - busy - averaging - waiting) if whole_us else 0.0,
        largest_gap_s=max(gap_us, 0) / MICRO,
        awaited=next((w.awaited for w in waited if w.start_us == gap_at), ""),
        sent_bytes=sum(s.bytes for s in timeline.spans if s.kind in (">a", ">g")),
        clock_offset_s=timeline.offset_us / MICRO,
    )


def timetable_lines(timelines: Iterable[StageTimeline]) -> list[str]:
    """One line a stage: "stage 0  0F0 0F1 0F2 0B0 0F3 …"; before it the cluster if there are several."""
    known = list(timelines)
    several = len({t.cluster for t in known}) > 1
    return [
        (f"cluster {t.cluster}  " if several else "")
        + f"stage {t.stage}  "
        + " ".join(s.word for s in t.operations)
        for t in known
    ]


def _total_us(parts: Iterable[Span | Wait]) -> int:
    return sum(part.duration_us for part in parts)
