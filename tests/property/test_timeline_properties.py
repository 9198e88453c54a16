"""Timelines for whatever clocks, latencies and bytes: offsets recovered, text round-trips, rows that hold."""

from __future__ import annotations

import json
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from ravnest_p2p.client.timeline import JobTimeline
from ravnest_p2p.client.timeline_svg import svg_of
from ravnest_p2p.core.errors import FrameFormatError
from ravnest_p2p.core.pipeline.timeline import (
    MAX_DURATION_US,
    MAX_SPAN_BYTES,
    MAX_START_US,
    Span,
    StageTimeline,
    aligned,
    newest,
    parse_spans,
    spans_text,
)
from ravnest_p2p.core.pipeline.timeline_events import trace_events
from ravnest_p2p.core.pipeline.timeline_rows import summary, timetable_lines, waits
from ravnest_p2p.core.types import JobId, PeerId

T0 = 1_700_000_000_000_000
number = st.integers(0, 10**8 - 1)
words = st.one_of(
    st.builds("{}{}{}".format, number, st.sampled_from("FfB"), number),
    st.builds("{}{}".format, st.sampled_from(["^", "|", "S", "A", ">r", ">a", ">g", "<a", "<g"]), number),
)
spans = st.builds(
    Span, words, st.integers(0, MAX_START_US), st.integers(0, MAX_DURATION_US), st.integers(0, MAX_SPAN_BYTES)
)


@st.composite
def pipelines(draw: st.DrawFn) -> tuple[list[StageTimeline], list[int]]:
    """Stages that exchange micro-batches, and by how much each one's clock is ahead of the first's.

    Of each link at least one message in each direction takes the link's least time; others take longer.
    """
    stages = draw(st.integers(2, 4))
    ahead = [0, *(draw(st.integers(-3_000_000, 3_000_000)) for _ in range(stages - 1))]
    noted: list[list[Span]] = [[] for _ in range(stages)]
    for s in range(stages - 1):
        least_us = draw(st.integers(0, 200_000))
        for what, sender, receiver in (("a", s, s + 1), ("g", s + 1, s)):
            extra = draw(st.lists(st.integers(0, 500_000), min_size=1, max_size=6))
            extra[draw(st.integers(0, len(extra) - 1))] = 0
            for i, more_us in enumerate(extra):
                queued_us = T0 + draw(st.integers(0, 10_000_000))
                handing_us = draw(st.integers(0, 5000))
                arrived_us = queued_us + handing_us + least_us + more_us
                noted[sender].append(Span(f">{what}{i}", queued_us + ahead[sender], handing_us, 10))
                noted[receiver].append(Span(f"<{what}{i}", arrived_us + ahead[receiver]))
    timelines = [StageTimeline(0, s, PeerId(f"p{s}"), tuple(noted[s])) for s in range(stages)]
    return draw(st.permutations(timelines)), ahead


@given(pipelines())
def test_offsets_of_clocks_are_recovered(pipeline: tuple[list[StageTimeline], list[int]]) -> None:
    timelines, ahead = pipeline
    found = aligned(timelines)
    assert [t.stage for t in found] == list(range(len(timelines)))
    assert [t.offset_us for t in found] == ahead
    for before, after in pairwise(found):
        for sender, receiver, what in ((before, after, "a"), (after, before, "g")):
            for (kind, i), sent in sender.messages.items():
                arrival = receiver.messages.get(("<" + what, i))
                if kind == ">" + what and arrival is not None:
                    assert arrival.start_us >= sent.end_us


@given(st.lists(spans, max_size=30))
def test_spans_survive_their_text(noted: list[Span]) -> None:
    assert parse_spans(spans_text(noted)) == tuple(noted)


@given(
    st.text(max_size=60)
    | st.from_regex(r"[0-9]F[0-9] [0-9]{1,20} [0-9]{1,14} [0-9]{1,14}(;.*)?", fullmatch=True)
)
def test_any_text_is_a_timeline_or_refused(text: str) -> None:
    try:
        found = parse_spans(text)
    except FrameFormatError:
        return
    assert all(0 <= s.start_us <= MAX_START_US and 0 <= s.duration_us <= MAX_DURATION_US for s in found)


@given(st.lists(spans, max_size=25), st.lists(spans, max_size=25), st.floats(0.001, 3600))
def test_whatever_peers_say_can_be_shown(first: list[Span], last: list[Span], last_s: float) -> None:
    told = [
        {"peer": f"p{s}", "generation": "1.0.a", "cluster": 0, "stage": s, "spans": spans_text(part)}
        for s, part in enumerate((first, last))
    ]
    found = JobTimeline.of(JobId("a" * 64), {"stages": told, "left_out": []}, last_s)
    assert len(found.stages) == 2
    for stage in found.summary():
        assert stage.seconds >= 0
        assert 0 <= stage.waiting <= 1 or stage.spans
    events = json.loads(json.dumps(found.trace_events()))["traceEvents"]
    assert all(event.get("dur", 0) >= 0 and event.get("ts", 0) >= 0 for event in events)
    assert found.svg().endswith("</svg>\n")
    assert len(found.timetable()) == 2


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 40), st.integers(-60, 60)), min_size=1, max_size=30)
)
def test_time_is_either_worked_waited_or_handed_over(parts: list[tuple[int, int, int]]) -> None:
    """Operations that do not overlap, each after a gap; messages arrive anywhere around."""
    at, noted = T0, []
    for i, (gap, length, early) in enumerate(parts):
        at += gap
        noted += [Span(f"<a{i}", at - early), Span(f"0F{i}", at, length)]
        at += length
    timeline = StageTimeline(0, 1, PeerId("p"), tuple(noted))
    found = summary(timeline)
    assert found.busy + found.waiting <= 1 + 1e-9
    assert found.largest_gap_s * 1e6 <= max(gap for gap, _, _ in parts) + 1e-6
    starts = {w.start_us for w in waits(timeline)}
    assert len(starts) == len(waits(timeline))
    for i, (gap, _, early) in enumerate(parts[1:], 1):
        waited = noted[2 * i - 1].end_us in starts
        assert waited == (gap > 0 and early < gap)
    assert timetable_lines([timeline]) == ["stage 1  " + " ".join(f"0F{i}" for i in range(len(parts)))]


@given(st.lists(spans, max_size=40), st.floats(0.001, 3600), st.integers(1, 50))
def test_the_newest_of_the_newest_are_the_same(noted: list[Span], last_s: float, limit: int) -> None:
    once = newest(noted, last_s, limit)
    assert newest(once, last_s, limit) == once
    assert len(once) <= limit
    trace_events([StageTimeline(0, 0, PeerId("p"), once)])
    svg_of([StageTimeline(0, 0, PeerId("p"), once)], "x")
