"""What a worker notes of its stage, what is left of it on disk, and what ravnestd makes of that."""

from __future__ import annotations

import asyncio
import os
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from ravnest_p2p.core.errors import FrameFormatError, PeerUnreachableError, RemoteCallError
from ravnest_p2p.core.pipeline.schedule import Backward, Forward, Speculate
from ravnest_p2p.core.pipeline.timeline import MAX_SPANS, parse_spans
from ravnest_p2p.core.types import Generation, JobId, PeerId
from ravnest_p2p.daemon.peer_messages import TraceAsked, TraceTold, parse, plain
from ravnest_p2p.daemon.timelines import (
    SPANS_IN_ALL,
    Collected,
    collect,
    job_folder,
    limit_for,
    of_one_generation,
    own_timeline,
)
from ravnest_p2p.daemon.worker.timeline import BEFORE, NEWEST, Timeline
from tests.unit.planning_cases import JOB, peers, planned, spec

ID = JobId("5a" * 32)
HERE = Generation(7, 1, "abc")
ASKED = TraceAsked(job=ID, last_s=60.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the worker of the job writes, below the folder of all jobs."""
    made = job_folder(tmp_path, ID)
    made.mkdir()
    return made


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def told_of(tmp_path: Path, **asked: Any) -> TraceTold:
    return own_timeline(tmp_path, ASKED.model_copy(update=asked))


def words(told: TraceTold) -> list[str]:
    return [span.word for span in parse_spans(told.spans)]


def test_what_was_noted_can_be_read_back(tmp_path: Path, folder: Path) -> None:
    clock = Clock()
    timeline = Timeline(folder, HERE, 1, 2, clock=clock)
    timeline.arrived("a", 3)
    clock.now_s += 0.02
    timeline.ran(Forward(3, 1, True), 0.015)
    timeline.queued("a", 3)
    clock.now_s += 0.5
    timeline.sent("a", 3, 4096)
    timeline.sent("g", 9, 7)
    timeline.flush()
    told = told_of(tmp_path)
    assert (told.generation, told.cluster, told.stage) == (HERE, 1, 2)
    arrived, forward, sent, unqueued = parse_spans(told.spans)
    assert (arrived.word, forward.word, sent.word, unqueued.word) == ("<a3", "1f3", ">a3", ">g9")
    assert forward.duration_us == 15_000
    assert forward.start_us - arrived.start_us == 5_000
    assert (sent.start_us - forward.end_us, sent.duration_us, sent.bytes) == (0, 500_000, 4096)
    assert (unqueued.duration_us, unqueued.bytes) == (0, 7)
    assert abs(sent.end_us / 1e6 - time.time()) < 60
    timeline.ran(Backward(3, 1), 0.001)
    timeline.close()
    assert words(told_of(tmp_path))[-1] == "1B3"


def test_operations_that_follow_one_another_never_overlap_by_rounding(tmp_path: Path, folder: Path) -> None:
    clock = Clock()
    timeline = Timeline(folder, HERE, 0, 0, clock=clock)
    for i in range(200):
        clock.now_s += 1 / 3e5
        timeline.ran(Forward(i, 0, False), 1 / 3e5)
    timeline.close()
    found = parse_spans(told_of(tmp_path).spans)
    assert len(found) == 200
    assert all(a.end_us <= b.start_us for a, b in pairwise(found))


def test_disk_is_bounded_and_the_newest_are_kept(tmp_path: Path, folder: Path) -> None:
    timeline = Timeline(folder, HERE, 0, 0, spans_in_a_file=10)
    for start in range(0, 105, 7):
        for i in range(start, start + 7):
            timeline.ran(Forward(i, 0, False), 1e-6)
        timeline.flush()
    assert sorted(os.listdir(folder)) == sorted([BEFORE, NEWEST])
    assert len((folder / BEFORE).read_text().splitlines()) == 11
    assert words(told_of(tmp_path)) == [f"0F{i}" for i in range(90, 105)]
    assert words(told_of(tmp_path, limit=12)) == [f"0F{i}" for i in range(93, 105)]
    timeline.close()
    again = Timeline(folder, HERE._replace(term=2), 0, 1)
    assert words(told_of(tmp_path)) == []
    again.ran(Speculate(1, 1), 0.1)
    again.close()
    assert (told_of(tmp_path).generation, words(told_of(tmp_path))) == (HERE._replace(term=2), ["^1"])


def test_only_the_last_seconds_are_told(tmp_path: Path, folder: Path) -> None:
    clock = Clock()
    timeline = Timeline(folder, HERE, 0, 0, clock=clock)
    for i in range(10):
        clock.now_s += 1.0
        timeline.ran(Forward(i, 0, False), 0.25)
    timeline.close()
    assert words(told_of(tmp_path, last_s=2.5)) == ["0F7", "0F8", "0F9"]


def test_a_disk_that_is_full_does_not_end_the_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timeline = Timeline(folder, HERE, 0, 0, spans_in_a_file=1)

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "replace", full)
    for i in range(3):
        timeline.ran(Forward(i, 0, False), 0.1)
        timeline.flush()
    timeline.close()
    assert not timeline._noted


def test_noting_costs_next_to_nothing(folder: Path) -> None:
    """An operation of 10 ms with what is noted of it: within a thousandth, hence 10 µs."""
    timeline = Timeline(folder, HERE, 0, 0)
    best_s = 1.0
    for _ in range(5):
        began_s = time.process_time()
        for i in range(1000):
            timeline.arrived("a", i)
            timeline.ran(Forward(i, 0, False), 0.01)
            timeline.queued("a", i)
            timeline.sent("a", i, 1000)
        timeline.flush()
        best_s = min(best_s, (time.process_time() - began_s) / 1000)
    timeline.close()
    # Twice what is allowed, since this machine may be busy.
    assert best_s <= 20e-6, f"{1e6 * best_s:.1f} µs an operation"


def test_a_peer_without_a_stage_tells_nothing(tmp_path: Path) -> None:
    assert told_of(tmp_path) == TraceTold()


@pytest.mark.parametrize(
    "text",
    ["", "0F0 1 1 0\n", "1.2.a 0\n", "1.2.a 0 -1\n", "x.2.a 0 0\n", "1.2.a 0 99999\n",
     f"1.2.{'t' * 65} 0 0\n", "1.2.a/../x 0 0\n", "1" * 2_000_000],
    ids=range(9),
)  # fmt: skip
def test_a_file_that_is_none_tells_nothing(tmp_path: Path, folder: Path, text: str) -> None:
    (folder / NEWEST).write_text(text)
    assert told_of(tmp_path) == TraceTold()


def test_what_a_worker_wrote_is_not_believed(tmp_path: Path, folder: Path) -> None:
    head = "7.1.abc 0 0\n"
    (folder / NEWEST).write_text(
        head + "nonsense\n0F0 5 1 0\n0F1 x 1 0\n" + "9" * 5000 + "\n0F2 7 1 0\n0F3 8 1"
    )
    assert words(told_of(tmp_path)) == ["0F0", "0F2"]
    (folder / NEWEST).write_bytes(head.encode() + b"\xff" * 100 + b"\n" + b"0F0 5 1 0\n" * 400_000)
    told = told_of(tmp_path)
    assert len(parse_spans(told.spans)) == MAX_SPANS
    secret = tmp_path / "secret"
    secret.write_text(head + "0F0 5 1 0\n")
    (folder / NEWEST).unlink()
    (folder / NEWEST).symlink_to(secret)
    assert told_of(tmp_path) == TraceTold()
    (folder / NEWEST).unlink()
    os.mkfifo(folder / NEWEST)
    assert told_of(tmp_path) == TraceTold()


@pytest.mark.parametrize("job", ["", "../../etc", "f" * 63, "F" * 64, "f" * 64 + "\n"])
def test_a_job_that_is_no_hash_is_refused(job: str) -> None:
    with pytest.raises(FrameFormatError):
        parse(TraceAsked, {"job": job, "last_s": 1.0})


PLAN = planned(peers(4), {JOB: spec(stages=2, clusters=2)}).jobs[0]


def answer(
    place: tuple[int, int], generation: Generation = PLAN.generation, spans: str = "0F0 5 1 0"
) -> TraceTold:
    return TraceTold(generation=generation, cluster=place[0], stage=place[1], spans=spans)


PLACES = {
    place.peer: (c, s) for c, cluster in enumerate(PLAN.clusters) for s, place in enumerate(cluster.stages)
}


def collected(answers: dict[PeerId, Any], last_s: float = 10.0) -> Collected:
    async def ask(peer: PeerId, asked: TraceAsked) -> dict[str, Any]:
        told = answers[peer]
        if isinstance(told, Exception):
            raise told
        return plain(told) if isinstance(told, TraceTold) else told

    return asyncio.run(collect(ask, list(answers), TraceAsked(job=ID, last_s=last_s, limit=3)))


def test_ill_answers_are_left_out_by_name() -> None:
    answers: dict[str, Any] = {
        "well": answer((0, 0)),
        "silent": PeerUnreachableError("silent did not answer"),
        "old": RemoteCallError("old refused"),
        "odd": {"spans": 7},
        "more": answer((0, 1), spans=";".join(["0F0 5 1 0"] * 4)),
        "mad": answer((0, 1), spans="0F0 nan 1 0"),
        "early": answer((0, 1), spans="0F0 5 1 0;0F1 99000000 1 0"),
        "tag": answer((0, 1), HERE._replace(tag="t" * 100)),
        "idle": TraceTold(),
    }
    found = collected({PeerId(peer): told for peer, told in answers.items()})
    assert found.told.keys() == {"well"}
    assert found.left_out.keys() == answers.keys() - {"well", "idle"}
    assert "did not answer" in found.left_out[PeerId("silent")]
    assert "3 were asked for" in found.left_out[PeerId("more")]


def test_members_of_the_plan_have_their_places() -> None:
    told = {peer: answer(place) for peer, place in PLACES.items()}
    liar, victim, *_ = sorted(PLACES)
    assert of_one_generation(Collected(told=dict(told)), PLAN, []).told == told
    told[liar] = answer(PLACES[victim])
    found = of_one_generation(Collected(told=dict(told)), PLAN, [])
    assert found.told.keys() == PLACES.keys() - {liar}
    assert "another peer" in found.left_out[liar]


def test_only_one_generation_is_shown() -> None:
    old, new = HERE, HERE._replace(term=2)
    a, b, c, d = (PeerId(name) for name in "abcd")
    told = {a: answer((0, 0), new), b: answer((0, 1), new), c: answer((0, 0), old), d: answer((0, 1), new)}
    found = of_one_generation(Collected(told=dict(told)), None, [])
    assert (found.told.keys(), found.left_out.keys()) == ({a, b}, {c, d})
    assert "another generation, 7.1.abc" in found.left_out[c]
    by_lineage = of_one_generation(Collected(told=dict(told)), None, [new, old])
    assert by_lineage.told.keys() == {c}
    assert of_one_generation(Collected(), PLAN, [old]).told == {}
    reply = found.as_reply()
    assert [(s["peer"], s["generation"], s["stage"]) for s in reply["stages"]] == [
        ("a", "7.2.abc", 0),
        ("b", "7.2.abc", 1),
    ]
    assert [entry["peer"] for entry in reply["left_out"]] == ["c", "d"]


@pytest.mark.parametrize("members", [0, 1, 2, 7, 8, 64, 10_000])
def test_all_answers_fit_into_one(members: int) -> None:
    limit = limit_for(members)
    assert 1 <= limit <= MAX_SPANS
    assert members * limit * 64 < 8 << 20 or members > SPANS_IN_ALL
