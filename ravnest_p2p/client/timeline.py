"""A job's timeline as the SDK hands it out: every stage's spans on one clock, and what can be made of them.

What the gateway passes on came from many peers. A stage whose spans do not hold is left out by name, and the
others are shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ravnest_p2p.client.timeline_svg import svg_of
from ravnest_p2p.core.errors import FrameFormatError
from ravnest_p2p.core.pipeline.timeline import (
    MAX_SPANS,
    StageTimeline,
    aligned,
    common_last,
    newest,
    parse_spans,
)
from ravnest_p2p.core.pipeline.timeline_events import trace_events
from ravnest_p2p.core.pipeline.timeline_rows import StageSummary, summary, timetable_lines
from ravnest_p2p.core.types import JobId, PeerId

MARGIN_S = 2.0
"""That stages are asked for over what is shown: their newest spans are not equally new."""
_Number = Annotated[int, Field(ge=0, lt=10_000)]


class _Told(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    peer: Annotated[str, Field(max_length=128)]
    generation: Annotated[str, Field(max_length=128)]
    cluster: _Number
    stage: _Number
    spans: Annotated[str, Field(max_length=64 * MAX_SPANS)]


class _LeftOut(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    peer: Annotated[str, Field(max_length=128)]
    reason: Annotated[str, Field(max_length=2000)]


class _Reply(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    stages: tuple[_Told, ...] = Field(max_length=10_000)
    left_out: tuple[_LeftOut, ...] = Field(default=(), max_length=10_000)


@dataclass(frozen=True, slots=True)
class JobTimeline:
    """Timelines of a job's stages in one generation, aligned within each cluster.

    Attributes:
        stages: in order of clusters and stages.
        left_out: peer → why its timeline is not among them.
    """

    job: JobId
    generation: str
    stages: tuple[StageTimeline, ...]
    left_out: dict[str, str]

    def summary(self) -> list[StageSummary]:
        """What each stage did with its time."""
        return [summary(timeline) for timeline in self.stages]

    def timetable(self) -> list[str]:
        """One line a stage: "stage 0  0F0 0F1 0B0 …"."""
        return timetable_lines(self.stages)

    def trace_events(self) -> dict[str, Any]:
        """What ui.perfetto.dev and chrome://tracing open, once written as JSON."""
        return trace_events(self.stages)

    def svg(self) -> str:
        """A picture, as one self-contained SVG document."""
        return svg_of(self.stages, f"job {self.job[:12]}")

    @classmethod
    def of(cls, job: JobId, reply: dict[str, Any], last_s: float) -> JobTimeline:
        """From a gateway's answer to being asked for the last `last_s` and `MARGIN_S`.

        Raises:
            FrameFormatError: it is none.
        """
        try:
            told = _Reply.model_validate(reply)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise FrameFormatError(f"a timeline with a malformed {where}: {first['msg']}") from None
        left_out = {entry.peer: entry.reason for entry in told.left_out}
        stages: dict[tuple[int, int], StageTimeline] = {}
        generation = told.stages[0].generation if told.stages else ""
        for entry in told.stages:
            try:
                spans = newest(parse_spans(entry.spans), last_s + MARGIN_S)
            except FrameFormatError as error:
                left_out[entry.peer] = str(error)
                continue
            place = entry.cluster, entry.stage
            if entry.generation != generation or place in stages:
                left_out[entry.peer] = "its timeline does not belong to the others"
                continue
            stages[place] = StageTimeline(*place, PeerId(entry.peer), spans)
        return cls(job, generation, common_last(aligned(stages.values()), last_s), left_out)
