"""One tree of errors that says whose fault it is: ours, the remote's or the user's.

Problem: in a peer-to-peer system the same symptom ("could not load the stage") calls for three different
reactions: fix our bug, distrust the peer, or tell the user what to change. Solution: every error we raise
descends from exactly one of `OurFault`, `RemoteFault` and `UserFault`, so that a boundary (a stream handler,
the command line) reacts to the branch and never to a message text.
"""


class RavnestError(Exception):
    """Root of every error that Ravnest raises on purpose."""


class OurFault(RavnestError):
    """A broken promise of this process: a bug or a lost local resource."""


class LocalDaemonError(OurFault):
    """Our own p2pd is gone or refuses to serve; nothing can be said about any peer."""


class BlobStoreError(OurFault):
    """Our blob store has no room, or its disk cannot be written."""


class RemoteFault(RavnestError):
    """Another peer sent something wrong, huge, late, repeated or malicious. Counted, never fatal."""


class UserFault(RavnestError):
    """The user can mend it; the message says how."""


class RecordError(RemoteFault):
    """A directory record that was refused."""


class RecordSignatureError(RecordError):
    """The signature is missing, or is not that of the peer that the record names."""


class RecordExpiredError(RecordError):
    """The record's time is over, or it is dated too far in the future."""


class RecordFormatError(RecordError):
    """The record is malformed, oversized, or belongs to another key, swarm or version."""


class FrameError(RemoteFault):
    """A stream frame that was refused."""


class FrameTooLargeError(FrameError):
    """The announced length is over the limit of this stream; nothing was allocated."""


class FrameFormatError(FrameError):
    """The frame is malformed, truncated, or its checksum is wrong."""


class FrameTruncatedError(FrameFormatError):
    """The stream ended within a frame; on a resumable link that is a cut, not a fault."""


class FrameSequenceError(FrameError):
    """The sequence number skips frames, or acknowledges what was never sent."""


class StaleGenerationError(RemoteFault):
    """The message belongs to another generation than the one this worker obeys."""


class MicrobatchOrderError(RemoteFault):
    """An activation or gradient that is repeated, out of order, out of range, or was never asked for."""


class ChunkMismatchError(RemoteFault):
    """A ring chunk with another length, dtype, index or step than the round asks for."""


class TensorError(RemoteFault):
    """An activation or gradient with another count, shape or dtype than the stage expects."""


class NonFiniteError(RemoteFault):
    """A received tensor holds NaN or infinity, or would make ours overflow."""


class OutOfBoundsError(RemoteFault):
    """A mean that is further from ours than those of earlier rounds let expect."""


class BlobError(RemoteFault):
    """A blob that was refused: wrong hash, wrong size, or over the limit."""


class PackageError(RemoteFault):
    """A model package that was refused before anything of it ran."""


class BusyError(RemoteFault):
    """The peer serves as much as it can right now; ask again a little later, or another peer."""


class PeerUnreachableError(RemoteFault):
    """The peer did not answer within the deadline; the message says who, how long and what for."""


class RemoteCallError(RemoteFault):
    """The peer answered a call with an error; `name` and `text` are what it said."""

    def __init__(self, message: str, name: str = "", text: str = "") -> None:
        super().__init__(message)
        self.name = name
        self.text = text


class LinkRefusedError(RemoteFault):
    """A hello that was refused: unknown channel, unexpected peer, or another link than the one begun."""


class LinkLostError(RemoteFault):
    """A link stayed broken for longer than its resume time; the message says who, how long, what next."""


class LinkClosedError(LinkLostError):
    """The other end closed the link in good order; everything it sent was received before."""


class PlanError(RemoteFault):
    """A published plan that breaks a constraint, or whose author may not lead."""


class CaptureError(UserFault):
    """The model cannot be captured faithfully; the message names the module, the cause and the fix."""


class PlanningError(UserFault):
    """No valid plan exists for the job with these peers; the message says what is missing."""


class PlanningProblemError(UserFault):
    """A planning problem or a plan on paper is malformed; the message names the field."""


class ConfigError(UserFault):
    """A setting or a file that the user gave does not hold."""


class JobError(UserFault):
    """The job failed, was cancelled, or is unknown; the message says what to do."""


class DivergedError(JobError):
    """Training gives too many values that are not finite; the message names the place and what to do."""


class CoMemberLostError(RemoteFault):
    """A worker lost the peer at the other end of a link; `peer` says whom."""

    def __init__(self, peer: str, cause: str) -> None:
        super().__init__(cause)
        self.peer = peer


class ResultsDifferError(RemoteFault):
    """Members ended an averaging with different means; one of `peers` may be at fault, perhaps this one."""

    def __init__(self, peers: tuple[str, ...], cause: str) -> None:
        super().__init__(cause)
        self.peers = peers
