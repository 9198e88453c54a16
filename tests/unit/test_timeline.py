"""Timelines: what is taken for one, what the gaps are called, and what is drawn of them."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from itertools import pairwise

import pytest

from ravnest_p2p.client.timeline import JobTimeline
from ravnest_p2p.client.timeline_svg import MOST_DRAWN, svg_of
from ravnest_p2p.core.errors import FrameFormatError
from ravnest_p2p.core.pipeline.timeline import (
    MAX_SPANS,
    Span,
    StageTimeline,
    aligned,
    newest,
    parse_span,
    parse_spans,
    spans_text,
)
from ravnest_p2p.core.pipeline.timeline_events import trace_events
from ravnest_p2p.core.pipeline.timeline_rows import Wait, summary, timetable_lines, waits
from ravnest_p2p.core.types import JobId, PeerId

JOB = JobId("5a" * 32)
T0 = 1_700_000_000_000_000

FIRST = "0F0 0 10 0;>a0 10 2 64;0F1 10 10 0;>a1 20 1 64;<g0 45 0 0;0B0 47 20 0;|0 67 5 0;A0 80 20 0"
LAST = "<a0 15 0 0;0F0 16 10 0;0B0 26 14 0;>g0 40 3 32;<a1 24 0 0;0F1 40 10 0"
"""Both on one clock: the first stage waits from 20 to 45 for gradient 0, the last for nothing."""


def stage(number: int, text: str, ahead_us: int = 0, cluster: int = 0) -> StageTimeline:
    spans = tuple(s._replace(start_us=T0 + s.start_us + ahead_us) for s in parse_spans(text))
    return StageTimeline(cluster, number, PeerId(f"12D3KooWpeer{number}"), spans)


def test_words_have_kinds_and_numbers() -> None:
    words = {
        "0F3": ("F", 3),
        "1f5": ("f", 5),
        "12B34": ("B", 34),
        "^7": ("^", 7),
        "|0": ("|", 0),
        "A2": ("A", 2),
    }
    for word, found in words.items():
        span = parse_span(f"{word} 5 6 0")
        assert (span.kind, span.number, span.is_operation) == (*found, True)
        assert (span.start_us, span.end_us) == (5, 11)
    assert [(s.kind, s.number, s.bytes) for s in parse_spans(">a3 1 2 9;<g4 5 0 0")] == [
        (">a", 3, 9),
        ("<g", 4, 0),
    ]
    assert not parse_span("<a3 5 0 0").is_operation


@pytest.mark.parametrize(
    "text",
    ["", "0F3", "0F3 1 2", "0F3 1 2 3 4", "0X3 1 2 3", "F3 1 2 3", "0F 1 2 3", "0F3 -1 2 3", "0F3 1.5 2 3",
     "0F3 nan 2 3", "0F3 1 2 ٣", "0F3  1 2 3", "0F3 1 2 3\n", "x0F3 1 2 3", "0F3 1e9 2 3", ">b3 1 2 3",
     "0F3 1 999999999999 3", "0F3 1 2 9999999999999", "123456789F3 1 2 3", "0F3 99999999999999999 2 3"],
)  # fmt: skip
def test_what_no_stage_would_write_is_refused(text: str) -> None:
    with pytest.raises(FrameFormatError):
        parse_span(text)


def test_the_largest_answer_fits_into_one_call() -> None:
    longest = parse_span("12345678F12345678 9999999999999999 99999999999 999999999999")
    text = spans_text([longest] * MAX_SPANS)
    assert len(text) <= 64 * MAX_SPANS < 1 << 20
    assert len(parse_spans(text)) == MAX_SPANS
    with pytest.raises(FrameFormatError, match="more than"):
        parse_spans(text + ";0F0 1 1 0")


def test_the_newest_spans() -> None:
    spans = [Span(f"0F{n}", 1_000_000 * n, 1_000_000) for n in range(10)]
    assert [s.number for s in newest(spans, 2.0)] == [7, 8, 9]
    assert [s.number for s in newest(spans, 20.0, limit=4)] == [6, 7, 8, 9]
    assert newest([], 2.0) == ()


def test_gaps_are_named_by_the_message_that_ended_them() -> None:
    assert waits(stage(0, FIRST)) == [Wait(T0 + 20, 25, "gradient 0")]
    assert waits(stage(1, LAST)) == []
    late = "0F0 0 10 0;<a1 18 0 0;0F1 20 10 0;0B0 31 9 0"
    assert waits(stage(1, late)) == [Wait(T0 + 10, 8, "activation 1")]


def test_the_summary_accounts_for_all_of_the_time() -> None:
    found = summary(stage(0, FIRST))
    assert (found.spans, found.seconds) == (5, 100e-6)
    shares = (found.busy, found.waiting, found.averaging, found.handing_over)
    assert shares == pytest.approx((0.45, 0.25, 0.20, 0.10))
    assert (found.largest_gap_s, found.awaited) == (27e-6, "gradient 0")
    assert found.sent_bytes == 128
    nothing = summary(StageTimeline(0, 0, PeerId("p"), ()))
    assert (nothing.spans, nothing.busy, nothing.handing_over, nothing.largest_gap_s) == (0, 0.0, 0.0, 0.0)


def test_clocks_are_told_apart_by_the_messages() -> None:
    ahead = 2_500_000
    first, last = aligned([stage(1, LAST, ahead), stage(0, FIRST)])
    # Ahead it took 15-12 = 3 at least, back 45-43 = 2.
    assert (first.offset_us, last.offset_us) == (0, ahead)
    assert last.operations[0].start_us == T0 + 16
    alone = stage(1, "0F0 0 5 0", ahead)
    assert aligned([stage(0, FIRST), alone])[1] == alone


def test_clusters_are_not_aligned_with_one_another() -> None:
    found = aligned([stage(0, FIRST), stage(0, FIRST, 9000, cluster=1), stage(1, LAST, 9700, cluster=1)])
    assert [t.offset_us for t in found] == [0, 0, 700]


def test_the_timetable() -> None:
    assert timetable_lines([stage(0, FIRST), stage(1, LAST)]) == [
        "stage 0  0F0 0F1 0B0 |0 A0",
        "stage 1  0F0 0B0 0F1",
    ]
    assert timetable_lines([stage(0, "0F0 0 1 0"), stage(0, "^1 0 1 0", cluster=1)]) == [
        "cluster 0  stage 0  0F0",
        "cluster 1  stage 0  ^1",
    ]


GOLDEN = """
{"ph": "M", "name": "process_name", "pid": 0, "tid": 0, "args": {"name": "cluster 0"}}
{"ph": "M", "name": "thread_name", "pid": 0, "tid": 0, "args": {"name": "stage 0 compute (…ooWpeer0)"}}
{"ph": "M", "name": "thread_sort_index", "pid": 0, "tid": 0, "args": {"sort_index": 0}}
{"ph": "M", "name": "thread_name", "pid": 0, "tid": 1, "args": {"name": "stage 0 activations sent"}}
{"ph": "M", "name": "thread_sort_index", "pid": 0, "tid": 1, "args": {"sort_index": 1}}
{"ph": "M", "name": "thread_name", "pid": 0, "tid": 3, "args": {"name": "stage 0 rounds"}}
{"ph": "M", "name": "thread_sort_index", "pid": 0, "tid": 3, "args": {"sort_index": 3}}
{"ph": "M", "name": "thread_name", "pid": 0, "tid": 4, "args": {"name": "stage 1 compute (…ooWpeer1)"}}
{"ph": "M", "name": "thread_sort_index", "pid": 0, "tid": 4, "args": {"sort_index": 4}}
{"ph": "M", "name": "thread_name", "pid": 0, "tid": 6, "args": {"name": "stage 1 gradients sent"}}
{"ph": "M", "name": "thread_sort_index", "pid": 0, "tid": 6, "args": {"sort_index": 6}}
{"ph": "X", "name": "0F0", "cat": "forward", "cname": "rail_response", "pid": 0, "tid": 0, "ts": 0, "dur": 10, "args": {"microbatch": 0, "version": 0}}
{"ph": "X", "name": "1f1", "cat": "speculative forward", "cname": "rail_animation", "pid": 0, "tid": 0, "ts": 10, "dur": 10, "args": {"microbatch": 1, "version": 1}}
{"ph": "X", "name": "0B0", "cat": "backward", "cname": "rail_load", "pid": 0, "tid": 0, "ts": 47, "dur": 20, "args": {"microbatch": 0, "version": 0}}
{"ph": "X", "name": "A0", "cat": "average", "cname": "generic_work", "pid": 0, "tid": 0, "ts": 80, "dur": 20, "args": {"round": 0}}
{"ph": "X", "name": "wait for gradient 0", "cat": "wait", "cname": "grey", "pid": 0, "tid": 0, "ts": 20, "dur": 25}
{"name": ">a0", "cat": "send", "cname": "thread_state_iowait", "pid": 0, "tid": 1, "ph": "X", "ts": 10, "dur": 4, "args": {"bytes": 64, "queued_us": 4}}
{"name": ">a1", "cat": "send", "cname": "thread_state_iowait", "pid": 0, "tid": 1, "ph": "X", "ts": 14, "dur": 2, "args": {"bytes": 64, "queued_us": 4}}
{"name": "<g0", "cat": "receive", "cname": "grey", "pid": 0, "tid": 0, "ph": "i", "s": "t", "ts": 45}
{"name": ">r0", "cat": "round", "cname": "generic_work", "pid": 0, "tid": 3, "ph": "X", "ts": 70, "dur": 28, "args": {"bytes": 99}}
{"name": "<a0", "cat": "receive", "cname": "grey", "pid": 0, "tid": 4, "ph": "i", "s": "t", "ts": 15}
{"name": ">g0", "cat": "send", "cname": "thread_state_iowait", "pid": 0, "tid": 6, "ph": "X", "ts": 40, "dur": 3, "args": {"bytes": 32, "queued_us": 3}}
{"name": "gradient", "cat": "gradient", "id": "0/1>g0", "pid": 0, "ph": "s", "tid": 6, "ts": 43}
{"name": "gradient", "cat": "gradient", "id": "0/1>g0", "pid": 0, "ph": "f", "bp": "e", "tid": 0, "ts": 47}
"""  # noqa: E501


def test_trace_events_are_those_of_the_format() -> None:
    first = "0F0 0 10 0;>a0 10 4 64;>a1 12 4 64;1f1 10 10 0;<g0 45 0 0;0B0 47 20 0;A0 80 20 0;>r0 70 28 99"
    last = "<a0 15 0 0;>g0 40 3 32"
    document = trace_events([stage(0, first), stage(1, last)])
    assert document["displayTimeUnit"] == "ms"
    assert document["traceEvents"] == [json.loads(line) for line in GOLDEN.strip().splitlines()]
    assert trace_events([]) == {"traceEvents": [], "displayTimeUnit": "ms"}


def test_rows_of_the_trace_never_overlap() -> None:
    events = trace_events([stage(0, FIRST), stage(1, LAST)])["traceEvents"]
    rows: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for event in events:
        if event["ph"] == "X":
            rows.setdefault((event["pid"], event["tid"]), []).append(
                (event["ts"], event["ts"] + event["dur"])
            )
    assert len(rows) == 4
    for row in rows.values():
        ordered = sorted(row)
        assert all(end <= start for (_, end), (start, _) in pairwise(ordered))


def drawn(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def test_the_picture_shows_every_span_and_escapes_what_peers_say() -> None:
    hostile = replace(stage(1, LAST + ";|0 95 5 0"), peer=PeerId("<script>&"))
    svg = svg_of([stage(0, FIRST), hostile], 'job "<x>')
    root = drawn(svg)
    tips = [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}title")]
    for word in (
        "0F0 forward",
        "0B0 backward",
        "|0 step",
        "A0 average",
        "wait for gradient 0",
        ">a1 sent, 64 bytes",
    ):
        assert any(word in tip for tip in tips), word
    texts = [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "…<script>&"[:1] + "<script>&"[-8:] in texts
    assert "busy 45.0 %" in texts
    assert not list(root.iter("{http://www.w3.org/2000/svg}script"))
    lines = list(root.iter("{http://www.w3.org/2000/svg}line"))
    assert len([line for line in lines if line.get("stroke-opacity")]) == 3
    drawn(svg_of([], "nothing"))
    drawn(svg_of([StageTimeline(0, 0, PeerId("p"), ())], "no spans"))


def test_the_picture_of_a_long_run_is_bounded() -> None:
    spans = tuple(Span(f"0F{n}", 10 * n, 5) for n in range(MOST_DRAWN))
    svg = svg_of([StageTimeline(0, s, PeerId("p"), spans) for s in range(3)], "long")
    assert svg.count("<rect") < MOST_DRAWN + 20
    assert f"the newest, {2 * MOST_DRAWN} before are left out" in svg


def reply(*stages: tuple[int, str], generation: str = "1.0.abc") -> list[dict[str, object]]:
    return [
        {"peer": f"peer {s}", "generation": generation, "cluster": 0, "stage": s, "spans": text}
        for s, text in stages
    ]


def test_an_ill_timeline_is_left_out_by_name() -> None:
    stages = (
        reply((0, FIRST), (1, "0F0 nan 1 0"), (2, LAST))
        + reply((3, LAST), generation="9.9.z")
        + reply((2, ""))
    )
    answer = {"stages": stages, "left_out": [{"peer": "peer 9", "reason": "silent"}]}
    found = JobTimeline.of(JOB, answer, 10.0)
    assert [t.stage for t in found.stages] == [0, 2]
    assert found.left_out.keys() == {"peer 1", "peer 2", "peer 3", "peer 9"}
    assert "not a span" in found.left_out["peer 1"]
    assert found.generation == "1.0.abc"
    assert [s.stage for s in found.summary()] == [0, 2]
    assert JobTimeline.of(JOB, {"stages": [], "left_out": []}, 1.0).stages == ()


@pytest.mark.parametrize(
    "answer",
    [{}, {"stages": 7}, {"stages": [{"peer": "p"}]}, {"stages": reply((0, "")) * 10_001},
     {"stages": [{**reply((0, ""))[0], "stage": -1}]}, {"stages": [{**reply((0, ""))[0], "stage": 1.5}]},
     {"stages": [{**reply((0, ""))[0], "spans": "x" * 2_000_000}]},
     {"stages": [], "left_out": [{"peer": 4}]}],
    ids=range(8),
)  # fmt: skip
def test_an_answer_that_is_none_is_refused(answer: dict[str, object]) -> None:
    with pytest.raises(FrameFormatError):
        JobTimeline.of(JOB, answer, 10.0)


def test_only_the_last_seconds_that_all_stages_tell_of_are_shown() -> None:
    """The last stage's newest report is a second younger than the first's."""
    first = ";".join(f"0F{n} {T0 + 500_000 * n} 500000 0" for n in range(8))
    last = ";".join(f"0F{n} {T0 + 500_000 * n} 500000 0" for n in range(10))
    found = JobTimeline.of(JOB, {"stages": reply((0, first), (1, last))}, 1.0)
    assert found.timetable() == ["stage 0  0F5 0F6 0F7", "stage 1  0F5 0F6 0F7 0F8 0F9"]
    assert "6 operations in 1.5 s" in found.svg(), "rows of the picture end together"


def test_the_module_of_words_is_that_of_the_schedule() -> None:
    """Every operation that the schedule can hand out has a word here."""
    from typing import get_args

    from ravnest_p2p.core.pipeline import schedule
    from ravnest_p2p.core.pipeline.timeline_events import KINDS

    examples = {
        schedule.Forward: [schedule.Forward(3, 1, False), schedule.Forward(3, 1, True)],
        schedule.Backward: [schedule.Backward(3, 1)],
        schedule.Speculate: [schedule.Speculate(3, 1)],
        schedule.Step: [schedule.Step(3)],
        schedule.Snapshot: [schedule.Snapshot(3)],
        schedule.Average: [schedule.Average(3)],
    }
    assert examples.keys() == set(get_args(schedule.Op))
    for ops in examples.values():
        for op in ops:
            span = parse_span(f"{op} 1 1 0")
            assert span.kind in KINDS
            assert span.number == 3
