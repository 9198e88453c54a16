"""Timelines of stages: read from what the own worker wrote, and collected from a job's members.

A worker runs strangers' graphs and may have written anything, and members may answer anything. So files are
read from their ends and only as far as an answer needs, an answer is checked span by span, and whoever sends
an ill one is left out by name.
"""

from __future__ import annotations

import asyncio
import os
import re
import stat
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ravnest_p2p.core.errors import FrameFormatError, RavnestError
from ravnest_p2p.core.pipeline.timeline import (
    MAX_SPANS,
    Span,
    newest,
    parse_span,
    parse_spans,
    spans_text,
)
from ravnest_p2p.core.types import Generation, JobId, JobPlan, PeerId
from ravnest_p2p.daemon.peer_messages import TraceAsked, TraceTold, parse
from ravnest_p2p.daemon.worker.timeline import BEFORE, NEWEST

MAX_HEAD_BYTES = 256
MAX_TAG_CHARS = 64
_HEAD = re.compile(r"([0-9]{1,18})\.([0-9]{1,18})\.(\w{0,64}) ([0-9]{1,4}) ([0-9]{1,4})\n", re.ASCII)
MAX_READ_BYTES = 64 * MAX_SPANS
SPANS_IN_ALL = 120_000
"""Of all members together: what fits into one answer of a gateway."""
ASKED_AT_ONCE = 16

Ask = Callable[[PeerId, TraceAsked], Awaitable[dict[str, Any]]]


def job_folder(jobs_folder: Path, job: JobId) -> Path:
    """Where this peer's worker writes what belongs to the job."""
    return jobs_folder / job[:16]


def own_timeline(jobs_folder: Path, asked: TraceAsked) -> TraceTold:
    """What this peer's worker noted in the job's newest generation here; empty if it never had a stage."""
    folder = job_folder(jobs_folder, asked.job)
    head, spans = _read(folder / NEWEST)
    if len(spans) < asked.limit:
        head_before, before = _read(folder / BEFORE)
        # Equal where the file was turned over between the two readings: then it was read twice.
        same = before[:1] == spans[:1]
        if head_before == head and not same:
            spans = before + spans
    found = _place(head)
    if found is None:
        return TraceTold()
    generation, cluster, stage = found
    chosen = newest(spans, asked.last_s, asked.limit)
    return TraceTold(generation=generation, cluster=cluster, stage=stage, spans=spans_text(chosen))


def _read(path: Path) -> tuple[str, list[Span]]:
    """First line of a file, and the spans at its end; nothing where there is no such file."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return "", []
    with open(handle, "rb") as file:
        state = os.fstat(handle)
        if not stat.S_ISREG(state.st_mode):
            return "", []
        head = file.readline(MAX_HEAD_BYTES).decode(errors="replace")
        file.seek(max(file.tell(), state.st_size - MAX_READ_BYTES))
        lines = file.read(MAX_READ_BYTES).decode(errors="replace").splitlines()
    spans = []
    for line in lines:
        try:
            spans.append(parse_span(line))
        except FrameFormatError:
            continue  # cut off by where reading began, or by the worker's death
    return head, spans


def _place(head: str) -> tuple[Generation, int, int] | None:
    """Generation, cluster and stage of a first line, None where it is none."""
    match = _HEAD.fullmatch(head)
    if match is None:
        return None
    epoch, term, tag, cluster, stage = match.groups()
    return Generation(int(epoch), int(term), tag), int(cluster), int(stage)


@dataclass(slots=True)
class Collected:
    """What members told of a job.

    Attributes:
        told: by member, checked.
        left_out: why a member's timeline is not among them.
    """

    told: dict[PeerId, TraceTold] = field(default_factory=dict)
    left_out: dict[PeerId, str] = field(default_factory=dict)

    def as_reply(self) -> dict[str, Any]:
        """The gateway's answer."""
        stages = [
            {
                "peer": peer,
                "generation": str(told.generation),
                "cluster": told.cluster,
                "stage": told.stage,
                "spans": told.spans,
            }
            for peer, told in sorted(self.told.items(), key=lambda item: (item[1].cluster, item[1].stage))
        ]
        left_out = [{"peer": peer, "reason": reason} for peer, reason in sorted(self.left_out.items())]
        return {"stages": stages, "left_out": left_out}


async def collect(ask: Ask, peers: Sequence[PeerId], asked: TraceAsked) -> Collected:
    """Ask every peer; those that had no stage in the job are neither told nor left out."""
    places = asyncio.Semaphore(ASKED_AT_ONCE)
    found = Collected()

    async def one(peer: PeerId) -> None:
        async with places:
            try:
                told = parse(TraceTold, await ask(peer, asked))
                await asyncio.to_thread(_check, told, asked)
            except RavnestError as error:
                found.left_out[peer] = str(error)
            else:
                if told.generation is not None:
                    found.told[peer] = told

    await asyncio.gather(*(one(peer) for peer in peers))
    return found


def _check(told: TraceTold, asked: TraceAsked) -> None:
    spans = parse_spans(told.spans)
    if len(spans) > asked.limit:
        raise FrameFormatError(f"{len(spans)} spans, {asked.limit} were asked for")
    if told.generation is not None and len(told.generation.tag) > MAX_TAG_CHARS:
        raise FrameFormatError(f"a generation's tag of {len(told.generation.tag)} characters")
    if newest(spans, asked.last_s) != spans:
        raise FrameFormatError(f"spans from before the last {asked.last_s:g} s")


def of_one_generation(found: Collected, plan: JobPlan | None, lineage: Iterable[Generation]) -> Collected:
    """Only what belongs together: the plan's generation where members tell of it, else the newest known one.

    Args:
        plan: the job's part of the adopted plan, None where it has none (any more).
        lineage: generations of the job that this peer knows of, in order.
    """
    counts = Counter(told.generation for told in found.told.values())
    known = [*lineage, *([plan.generation] if plan is not None else [])]
    named = [generation for generation in reversed(known) if counts[generation]]
    chosen = named[0] if named else max(counts, key=lambda g: (counts[g], str(g)), default=None)
    places = _places(plan) if plan is not None and plan.generation == chosen else None
    kept = Collected(left_out=dict(found.left_out))
    taken: set[tuple[int, int]] = set()
    for peer, told in sorted(found.told.items()):
        place = told.cluster, told.stage
        if told.generation != chosen:
            kept.left_out[peer] = f"its timeline is that of another generation, {told.generation}"
        elif (places is not None and places.get(peer) != place) or place in taken:
            kept.left_out[peer] = f"stage {told.stage} of cluster {told.cluster}, as it says, is another peer"
        else:
            kept.told[peer] = told
            taken.add(place)
    return kept


def _places(plan: JobPlan) -> dict[PeerId, tuple[int, int]]:
    return {
        place.peer: (c, s)
        for c, cluster in enumerate(plan.clusters)
        for s, place in enumerate(cluster.stages)
    }


def limit_for(members: int) -> int:
    """Spans that each of so many may send, for all answers to fit into one."""
    return max(1, min(MAX_SPANS, SPANS_IN_ALL // max(1, members)))
