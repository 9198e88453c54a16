"""What ravnestd and its workers say to each other.

A worker runs strangers' graphs, so ravnestd believes nothing it says: each message is a closed pydantic
model, checked field by field on arrival. Commands go down, reports come up, over one socket pair
(`daemon.channel`).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from ravnest_p2p.core.types import Generation, JobId, JobPlan, JobSpec, PeerId

Name = Annotated[str, Field(max_length=512)]
Text = Annotated[str, Field(max_length=4096)]
Seconds = Annotated[float, Field(ge=0, le=1e9)]
Count = Annotated[int, Field(ge=0, le=1 << 62)]

MAX_WINDOW = 1 << 20
"""Micro-batches in flight that a report may name."""
AHEAD_KEPT = 64
"""Counts of a report's histogram; the last is of so many in flight or more."""


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StartRun(Message):
    """Begin one stage of one generation.

    Attributes:
        cluster, stage: this worker's place in `plan.clusters`.
        weights: files of the initial weights; empty where `pieces` are given.
        pieces: files of saved state that cover the stage.
        control_socket: p2pd's unix socket.
        runtime_folder: where this worker's own sockets go.
        up_bps: measured of this peer's line; 0 where nobody did.
    """

    type: Literal["start"] = "start"
    job: JobId
    spec: JobSpec
    plan: JobPlan
    cluster: int
    stage: int
    program: str
    weights: tuple[str, ...]
    pieces: tuple[str, ...]
    folder: str
    control_socket: str
    runtime_folder: str
    up_bps: Annotated[float, Field(ge=0)] = 0.0


class Endpoints(Message):
    """Link nonces of the co-members' workers, as they become known."""

    type: Literal["endpoints"] = "endpoints"
    nonces: dict[PeerId, str]


class FieldFiles(Message):
    """The shard files of the data fields that the worker asked for, in the order of the manifest."""

    type: Literal["fields"] = "fields"
    files: dict[str, tuple[str, ...]]


class StopRun(Message):
    """Give the run up.

    Attributes:
        round_s: how long a round of averaging that is under way may still take.
    """

    round_s: Seconds = 0.0
    type: Literal["stop"] = "stop"


class Idle(Message):
    """The worker is up and runs nothing."""

    type: Literal["idle"] = "idle"


class NeedFields(Message):
    type: Literal["need_fields"] = "need_fields"
    names: tuple[Name, ...] = Field(max_length=64)


class Listening(Message):
    """Co-members can dial this worker under the nonce."""

    type: Literal["listening"] = "listening"
    nonce: Annotated[str, Field(max_length=128)]


class Report(Message):
    """Progress of the stage since the run began; `losses` holds only what is new: (batch, mean loss).

    Attributes:
        busy: share of the time since training began that the compute thread worked.
        lo, hi, staleness_bound, recompute, last: which stage it is about, and how it was to be trained.
        staleness: the largest measured so far (updates between forward and backward of a micro-batch).
        ahead: micro-batches at whose forward 0, 1, 2, … were in flight before them, since the run began.
        crossed: micro-batches of these that ran on ŵ, the update before theirs not being complete.
        staleness_limit: bound on τ now, where it grows with the updates.
        window: micro-batches that may be in flight now.
        window_wanted: how many would keep the stage busy, by what was measured, whatever the bound.
        window_needed: the same over the newest updates, where for some time so many more were wanted than
            allowed that something should be done; else 0.
        way_s: mean of both ways of a micro-batch to the stage after and back, without what it did meanwhile.
        rtt_s: round trip of an empty message on that link; 0 where it is not known.
        pace_s: slowest computation or carriage of a micro-batch in the pipeline.
        kappa: local updates between two averagings, where that is found while training; else 0.
        kappa_why: the numbers that led to it.
        skipped: micro-batches left out, since the run began, for a value that was not finite.
        skipped_updates: updates that this stage did not make for a gradient that was not finite.
        skipped_why: the newest of either, with its place.
        peak_memory_bytes: resident peak of the process during the run; on a GPU, of the memory taken there.
        peak_tensor_bytes: most bytes of tensors at once, in the first two updates.
    """

    type: Literal["report"] = "report"
    lo: int = 0
    hi: int = 0
    staleness_bound: int = 0
    recompute: bool = False
    last: bool = False
    version: int = 0
    updates: int = 0
    batches_done: int = 0
    busy: float = 0.0
    busy_s: float = 0.0
    training_s: float = 0.0
    averaging_s: float = 0.0
    staleness: int = 0
    ahead: tuple[Count, ...] = Field(default=(), max_length=AHEAD_KEPT)
    crossed: Count = 0
    staleness_limit: Annotated[int, Field(ge=0)] = 0
    window: Annotated[int, Field(ge=0)] = 0
    window_wanted: Annotated[float, Field(ge=0, le=MAX_WINDOW)] = 0.0
    window_needed: Annotated[float, Field(ge=0, le=MAX_WINDOW)] = 0.0
    way_s: Seconds = 0.0
    rtt_s: Seconds = 0.0
    pace_s: Seconds = 0.0
    in_flight: int = 0
    samples: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    peak_memory_bytes: int = 0
    peak_tensor_bytes: int = 0
    kappa: Count = 0
    kappa_why: Annotated[str, Field(max_length=1000)] = ""
    skipped: int = 0
    skipped_updates: int = 0
    skipped_why: Annotated[str, Field(max_length=1000)] = ""
    losses: tuple[tuple[int, float], ...] = Field(default=(), max_length=4096)


class PieceSaved(Message):
    type: Literal["piece"] = "piece"
    path: Text
    lo: int
    hi: int
    batches_done: int
    version: int


class RunFailed(Message):
    """The run cannot go on; `suspect` is the peer that the worker lost, if it was one."""

    type: Literal["failed"] = "failed"
    error: Name
    message: Text
    suspect: PeerId | None = None


class RunDone(Message):
    type: Literal["done"] = "done"


class Stopped(Message):
    type: Literal["stopped"] = "stopped"


class LogLine(Message):
    type: Literal["log"] = "log"
    level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
    text: Text


Command = Annotated[StartRun | Endpoints | FieldFiles | StopRun, Field(discriminator="type")]
WorkerReport = Annotated[
    Idle | NeedFields | Listening | Report | PieceSaved | RunFailed | RunDone | Stopped | LogLine,
    Field(discriminator="type"),
]

COMMANDS: TypeAdapter[Command] = TypeAdapter(Command)
REPORTS: TypeAdapter[WorkerReport] = TypeAdapter(WorkerReport)

__all__ = [
    "COMMANDS",
    "REPORTS",
    "Command",
    "Endpoints",
    "FieldFiles",
    "Generation",
    "Idle",
    "Listening",
    "LogLine",
    "Message",
    "NeedFields",
    "PieceSaved",
    "Report",
    "RunDone",
    "RunFailed",
    "StartRun",
    "StopRun",
    "Stopped",
    "WorkerReport",
]
