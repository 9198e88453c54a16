"""What the stages of a job did and when, in the schedule's own words, put on one clock.

Problem: whether a pipeline idles shows only when its stages are seen side by side, but each of them notes its
times by its own peer's clock, and these differ by seconds where an operation takes milliseconds. Solution: a
stage notes spans, each a word, a start and a duration,

    0F3  1f5  0B2  ^1  |0  S0  A0   an operation, as `core.pipeline.schedule` writes it
    >a3  >g3                      activation or gradient 3, from being queued to being handed to the link
    <a3  <g3                      the same in the moment in which it arrived
    >r0                             round 0, from its begin until its mean is saved

and the messages themselves tell the clocks apart: between two stages some of them travel in both directions
without waiting for anything, and the difference of these two least times is twice that of the clocks.

What a timeline says came from another peer: `parse_spans` refuses whatever no stage would write.

Source: the clock offset of NTP (RFC 5905, section 8), with the least one-way times in place of one exchange.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from ravnest_p2p.core.errors import FrameFormatError
from ravnest_p2p.core.types import PeerId

MAX_SPANS = 16_000
"""Of one stage in one answer: the longest take 64 bytes each, and a call between peers carries 1 MiB."""
MAX_START_US = 10**16 - 1
MAX_DURATION_US = 10**11 - 1
MAX_SPAN_BYTES = 10**12 - 1
MICRO = 1_000_000
_SEPARATOR = ";"
_WORD = re.compile(r"[0-9]{1,8}[FfB][0-9]{1,8}|[\^|SA][0-9]{1,8}|[<>][ag][0-9]{1,8}|>r[0-9]{1,8}")
_NUMBER = re.compile(r"[0-9]{1,16}")


class Span(NamedTuple):
    """One thing that a stage did.

    Attributes:
        word: what it was, see above.
        start_us: microseconds since the epoch, by the clock of the stage's peer; once aligned, of its
            cluster's first stage.
        duration_us: 0 for an arrival.
        bytes: what was sent, 0 for an operation.
    """

    word: str
    start_us: int
    duration_us: int = 0
    bytes: int = 0

    @property
    def end_us(self) -> int:
        return self.start_us + self.duration_us

    @property
    def kind(self) -> str:
        """One of F f B ^ | S A (operations) and >a >g >r <a <g (messages)."""
        return self.word[:2] if self.word[0] in "<>" else self.word.lstrip("0123456789")[0]

    @property
    def number(self) -> int:
        """The micro-batch's, of ^ and | the batch's, of S, A and >r the round's."""
        return int(re.split(r"[^0-9]+", self.word)[-1])

    @property
    def is_operation(self) -> bool:
        return self.word[0] not in "<>"


@dataclass(frozen=True, slots=True)
class StageTimeline:
    """Spans of one stage of one generation.

    Attributes:
        spans: in the order in which they ended.
        offset_us: what was taken off the peer's clock to align it.
    """

    cluster: int
    stage: int
    peer: PeerId
    spans: tuple[Span, ...]
    offset_us: int = 0

    @property
    def operations(self) -> list[Span]:
        """What the compute thread did, by start."""
        return sorted((s for s in self.spans if s.is_operation), key=lambda s: s.start_us)

    @property
    def messages(self) -> dict[tuple[str, int], Span]:
        """Sends and arrivals by kind and number."""
        return {(s.kind, s.number): s for s in self.spans if not s.is_operation}


def spans_text(spans: Iterable[Span]) -> str:
    """The form in which spans are written and sent: "0F0 1700000000000000 1234 0;…"."""
    return _SEPARATOR.join(" ".join(map(str, span)) for span in spans)


def parse_span(text: str) -> Span:
    """One span of `spans_text`.

    Raises:
        FrameFormatError: not one, or a number out of range.
    """
    word, *numbers = text.split(" ")
    if len(numbers) != 3 or not _WORD.fullmatch(word) or not all(map(_NUMBER.fullmatch, numbers)):
        raise FrameFormatError(f"not a span of a timeline: {text[:80]!r}")
    span = Span(word, *map(int, numbers))
    if span.duration_us > MAX_DURATION_US or span.bytes > MAX_SPAN_BYTES:
        raise FrameFormatError(f"a span that is too long or too large: {text[:80]!r}")
    return span


def parse_spans(text: str) -> tuple[Span, ...]:
    """Spans of `spans_text`.

    Raises:
        FrameFormatError: more than `MAX_SPANS`, or one of them is none.
    """
    if text.count(_SEPARATOR) >= MAX_SPANS:
        raise FrameFormatError(f"a timeline of more than {MAX_SPANS} spans")
    return tuple(map(parse_span, text.split(_SEPARATOR))) if text else ()


def newest(spans: Sequence[Span], last_s: float, limit: int = MAX_SPANS) -> tuple[Span, ...]:
    """Spans that ended within the last seconds before the end of the newest one; of these at most `limit`."""
    since_us = max((span.end_us for span in spans), default=0) - last_s * MICRO
    return tuple(span for span in spans if span.end_us >= since_us)[-limit:]


def aligned(timelines: Iterable[StageTimeline]) -> tuple[StageTimeline, ...]:
    """The same by the clock of their cluster's first stage that is there; in order of clusters and stages.

    A stage that exchanged no messages with the one before it, within what is known, keeps that one's offset.
    Clusters are not aligned with one another: nothing but averages passes between them.
    """
    ordered = sorted(timelines, key=lambda t: (t.cluster, t.stage))
    done: list[StageTimeline] = []
    for timeline in ordered:
        before = done[-1] if done and done[-1].cluster == timeline.cluster else None
        offset_us = 0
        if before is not None:
            offset_us = before.offset_us
            if before.stage + 1 == timeline.stage:
                offset_us += clock_offset_us(ordered[len(done) - 1], timeline)
        moved = tuple(span._replace(start_us=span.start_us - offset_us) for span in timeline.spans)
        done.append(replace(timeline, spans=moved, offset_us=offset_us))
    return tuple(done)


def common_last(timelines: Sequence[StageTimeline], last_s: float) -> tuple[StageTimeline, ...]:
    """What ended within the last seconds that all stages of a cluster tell of; the timelines are aligned.

    Each stage's newest span is as old as its last report, so their ends differ by the time between two.
    """
    ends: dict[int, list[int]] = {}
    for t in timelines:
        if t.spans:
            ends.setdefault(t.cluster, []).append(max(span.end_us for span in t.spans))
    since_us = {cluster: min(of_stages) - last_s * MICRO for cluster, of_stages in ends.items()}
    return tuple(
        replace(t, spans=tuple(span for span in t.spans if span.end_us >= since_us[t.cluster]))
        for t in timelines
    )


def clock_offset_us(before: StageTimeline, after: StageTimeline) -> int:
    """How far the later stage's clock is ahead of the earlier one's; 0 where messages went one way only."""
    ahead = _least_travel_us(before, after, "a")
    back = _least_travel_us(after, before, "g")
    return 0 if ahead is None or back is None else round((ahead - back) / 2)


def _least_travel_us(sender: StageTimeline, receiver: StageTimeline, what: str) -> int | None:
    arrived = receiver.messages
    travels = [
        arrived["<" + what, number].start_us - sent.end_us
        for (kind, number), sent in sender.messages.items()
        if kind == ">" + what and ("<" + what, number) in arrived
    ]
    return min(travels, default=None)
