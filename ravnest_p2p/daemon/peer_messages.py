"""What two ravnestd say to each other about jobs, checked field by field on arrival.

Seven calls (`network.rpc`): `overview` asks what a peer is doing, which serves the leader that plans, the
co-members that watch one another, and the gateway that shows a job; `plan` pushes a sealed plan ahead of
the directory's next read; `replan` says why the adopted plan is stale; `keep` asks a peer to hold copies
of blobs; `logs` and `trace` ask for log lines and for the timeline of a stage; `ballot` asks whom a peer
obeys in the election, and which plans it refused.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ravnest_p2p.core.ballot import Phase
from ravnest_p2p.core.errors import FrameFormatError
from ravnest_p2p.core.pipeline.timeline import MAX_SPANS
from ravnest_p2p.core.types import BlobHash, Fence, Generation, JobId, JobPhase, JobPlan, PeerId, Piece
from ravnest_p2p.daemon.messages import Report
from ravnest_p2p.network.gateway import MAX_LAST_S

Short = Annotated[str, Field(max_length=2000)]

MAX_KEPT = 4096
"""Blobs that one call may ask to be kept."""

OVERVIEW, PLAN, REPLAN, KEEP, LOGS, TRACE = "overview", "plan", "replan", "keep", "logs", "trace"
BALLOT = "ballot"

MAX_REFUSALS = 16
"""The newest plans that a peer refused, as it tells them."""


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class OverviewAsked(Body):
    """`job` limits the answer to one job; `losses` adds its curve, `plans` the plan of each generation."""

    job: JobId | None = None
    losses: bool = False
    plans: bool = False


class StageView(Body):
    """A peer's part in a job, as it sees it.

    Attributes:
        plan: what formed the generation.
        nonce: where co-members dial its worker; empty until it listens.
        pieces: saved state that it can hand out, its own and copies of others.
        loss: mean over the newest batches; only from the last stage, as `losses`.
        losses: (batch, mean loss), thinned.
    """

    job: JobId
    generation: Generation | None = None
    plan: JobPlan | None = None
    cluster: int = 0
    stage: int = 0
    phase: JobPhase = JobPhase.WAITING
    reason: Short = ""
    nonce: Annotated[str, Field(max_length=128)] = ""
    report: Report | None = None
    pieces: tuple[Piece, ...] = Field(default=(), max_length=64)
    loss: float | None = None
    losses: tuple[tuple[int, float], ...] = Field(default=(), max_length=2000)


class Overview(Body):
    """Everything that others may need of a peer's state; `addresses` is where requesters can dial it."""

    addresses: tuple[Annotated[str, Field(max_length=512)], ...] = Field(default=(), max_length=32)
    stages: tuple[StageView, ...] = Field(default=(), max_length=256)


class PlanPushed(Body):
    sealed: Annotated[bytes, Field(max_length=300_000)]


class ReplanAsked(Body):
    reason: Short


class KeepAsked(Body):
    """Hold copies: of a job's blobs, or of one saved piece."""

    job: JobId
    blobs: tuple[BlobHash, ...] = Field(default=(), max_length=MAX_KEPT)
    piece: Piece | None = None


class LogsAsked(Body):
    job: JobId | None = None
    after: int = 0
    limit: Annotated[int, Field(ge=1, le=1000)] = 200


class TraceAsked(Body):
    """The newest spans of your stage in this job: of its last seconds, at most so many."""

    job: Annotated[JobId, Field(pattern=r"^[0-9a-f]{64}$")]
    last_s: Annotated[float, Field(gt=0, le=MAX_LAST_S)]
    limit: Annotated[int, Field(ge=1, le=MAX_SPANS)] = MAX_SPANS


class TraceTold(Body):
    """A stage's timeline; `spans` as `core.pipeline.timeline` writes them. No generation: there is none."""

    generation: Generation | None = None
    cluster: Annotated[int, Field(ge=0, lt=10_000)] = 0
    stage: Annotated[int, Field(ge=0, lt=10_000)] = 0
    spans: Annotated[str, Field(max_length=64 * MAX_SPANS)] = ""


class Refusal(Body):
    """A plan that was not obeyed, and why."""

    epoch: int
    term: int
    leader: Annotated[PeerId, Field(max_length=128)]
    why: Short


class BallotTold(Body):
    """Where a peer stands in the election.

    Attributes:
        leader: whose turn it is, or whom it obeys in this term.
        obeys: (epoch, term) of the plan that it obeys, `plan_hash` its hash.
        refused: the newest last.
    """

    epoch: int
    term: int
    phase: Phase
    leader: Annotated[PeerId, Field(max_length=128)] | None = None
    obeys: Fence | None = None
    plan_hash: Annotated[str, Field(max_length=64)] = ""
    refused: tuple[Refusal, ...] = Field(default=(), max_length=MAX_REFUSALS)


Checked = TypeVar("Checked", bound=Body)


def parse(kind: type[Checked], body: dict[str, Any]) -> Checked:
    """The message in a call's map.

    Raises:
        FrameFormatError: it is not one (remote's fault).
    """
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise FrameFormatError(f"not a {kind.__name__} message: {place}: {first['msg']}") from None


def plain(message: Body) -> dict[str, Any]:
    """The message as a map for the wire."""
    return message.model_dump(mode="python" if isinstance(message, PlanPushed) else "json")
