"""Gateway messages: what a requester and a peer say to each other on `/ravnest/1/gateway`, as bytes.

Problem: requesters speak py-libp2p under trio, peers speak go-libp2p under asyncio, and either side may be
hostile. Solution: the conversation is defined here without any I/O. A message is a 4-byte big-endian
length and a body; a body is a msgpack map, or raw bytes where a blob's chunks follow. A receiver asks
`body_length` before it reads a body, so nothing is allocated for a length over the limit; a request is
decoded into a checked value of one of the request classes; a reply is a map, and an `error` in it becomes
the same-named class of `core.errors`.

One stream carries several requests, one after the other::

    requester                         peer
    put_blob {hash, size}  ───────►
                           ◄───────   {have: false}
    chunk, chunk, chunk    ───────►
                           ◄───────   {ok: true}
    status {job}           ───────►
                           ◄───────   {job, phase, batches_done, …}
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgpack
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ravnest_p2p.core import errors
from ravnest_p2p.core.errors import (
    FrameFormatError,
    FrameTooLargeError,
    OurFault,
    RavnestError,
    RemoteFault,
    UserFault,
)

PROTOCOL = "/ravnest/1/gateway"
HEADER_BYTES = 4
CHUNK_BYTES = 256 * 1024
MAX_RECORD_BYTES = 64 * 1024
MAX_REPLY_BYTES = 8 * 1024 * 1024
MAX_REQUEST_BYTES = MAX_RECORD_BYTES + 1024
MAX_LOG_LINES = 2000
MAX_LAST_S = 3600.0
"""Of timelines that may be asked for; what peers keep of them ends far earlier."""
_MAX_MESSAGE_CHARS = 2000
_MAX_BLOB_BYTES = 1 << 44
_MAX_DEPTH = 16

_Hex256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Record = Annotated[bytes, Field(min_length=1, max_length=MAX_RECORD_BYTES)]


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Hello(_Request):
    """Who are you? → {peer, version, swarm, addresses}"""

    op: Literal["hello"] = "hello"


class PutBlob(_Request):
    """Take this blob. → {have}; unless it has it: chunks from the requester, then → {ok}"""

    op: Literal["put_blob"] = "put_blob"
    hash: _Hex256
    size: Annotated[int, Field(ge=0, le=_MAX_BLOB_BYTES)]


class GetBlob(_Request):
    """Give me this blob from byte `offset` on. → {size} of the whole, then chunks from the peer"""

    op: Literal["get_blob"] = "get_blob"
    hash: _Hex256
    offset: Annotated[int, Field(ge=0, le=_MAX_BLOB_BYTES)] = 0


class Submit(_Request):
    """Train this: a sealed JobRecord, whose blobs are uploaded already. → {job}"""

    op: Literal["submit"] = "submit"
    record: _Record


class Peers(_Request):
    """→ {peers: [{peer, addresses, …}]}"""

    op: Literal["peers"] = "peers"


class Epoch(_Request):
    """→ where the election stands: {epoch, term, phase, leader, plan, peers: [{peer, obeys, refused}]}"""

    op: Literal["epoch"] = "epoch"


class Jobs(_Request):
    """→ {jobs: [status, …]}"""

    op: Literal["jobs"] = "jobs"


class Status(_Request):
    """→ the job's status"""

    op: Literal["status"] = "status"
    job: _Hex256


class Logs(_Request):
    """→ {logs: [{seq, time_s, level, text, …}]}, those with seq > after, the oldest `limit` of them"""

    op: Literal["logs"] = "logs"
    job: _Hex256 | None = None
    after: Annotated[int, Field(ge=0, le=1 << 62)] = 0
    limit: Annotated[int, Field(ge=1, le=MAX_LOG_LINES)] = 200


class Trace(_Request):
    """→ {stages: [{peer, generation, cluster, stage, spans}], left_out: [{peer, reason}]}

    Spans of the last seconds of each stage, as `core.pipeline.timeline` writes them.
    """

    op: Literal["trace"] = "trace"
    job: _Hex256
    last_s: Annotated[float, Field(gt=0, le=MAX_LAST_S)] = 10.0


class Result(_Request):
    """→ {phase, pieces: [{lo, hi, blob, batches_done}]}"""

    op: Literal["result"] = "result"
    job: _Hex256


class Cancel(_Request):
    """Stop a job: a cancel record sealed by its requester. → {ok}"""

    op: Literal["cancel"] = "cancel"
    record: _Record


Request = Hello | PutBlob | GetBlob | Submit | Peers | Epoch | Jobs | Status | Logs | Trace | Result | Cancel
_requests: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="op")])


def frame(body: bytes, limit: int) -> bytes:
    """One message: `body` with its length before it.

    Raises:
        FrameTooLargeError: the body is over `limit` bytes.
    """
    if len(body) > limit:
        raise FrameTooLargeError(f"a message of {len(body)} bytes is over the limit of {limit}")
    return len(body).to_bytes(HEADER_BYTES, "big") + body


def body_length(header: bytes, limit: int) -> int:
    """Length of the body that follows `header` (4 bytes); ask before allocating for it.

    Raises:
        FrameTooLargeError: the announced length is over `limit` bytes.
    """
    length = int.from_bytes(header, "big")
    if length > limit:
        raise FrameTooLargeError(f"a message of {length} bytes was announced, the limit is {limit}")
    return length


def encode_request(request: Request) -> bytes:
    """The whole message (length and body) of a request."""
    return frame(_pack(request.model_dump()), MAX_REQUEST_BYTES)


def decode_request(body: bytes) -> Request:
    """The request that a body says.

    Raises:
        FrameFormatError: no such request, or a field that does not hold.
    """
    try:
        return _requests.validate_python(_unpack(body))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise FrameFormatError(f"unknown or malformed request: {where}: {first['msg']}") from None


def encode_reply(reply: dict[str, Any]) -> bytes:
    """The whole message of a reply: a map of text to primitives, bytes, lists and maps."""
    return frame(_pack(reply), MAX_REPLY_BYTES)


def decode_reply(body: bytes) -> dict[str, Any]:
    """The reply that a body says; the other side's error is raised here.

    Text comes back without control characters, so that it can be printed.

    Raises:
        FrameFormatError: no map.
        RavnestError: what the other side answered, of the same-named class; `RemoteFault` for an unknown
            class and for the other side's own faults.
    """
    reply: dict[str, Any] = _printable(_unpack(body))
    if "error" in reply:
        raise error_from_reply(reply)
    return reply


def reply_of_error(error: RavnestError) -> dict[str, Any]:
    """What is answered in place of a reply: the error's class, its message and whose fault it is."""
    fault = "remote" if isinstance(error, RemoteFault) else "ours" if isinstance(error, OurFault) else "user"
    return {"error": type(error).__name__, "message": str(error)[:_MAX_MESSAGE_CHARS], "fault": fault}


def error_from_reply(reply: dict[str, Any]) -> RavnestError:
    """The error that `reply_of_error` described at the other side."""
    name, message = str(reply["error"])[:100], str(reply.get("message", ""))[:_MAX_MESSAGE_CHARS]
    kind = getattr(errors, name, None)
    if not isinstance(kind, type) or not issubclass(kind, RavnestError) or issubclass(kind, OurFault):
        return RemoteFault(f"{name}: {message}")
    try:
        return kind(message)
    except TypeError:  # it needs more than a message
        return (UserFault if issubclass(kind, UserFault) else RemoteFault)(f"{name}: {message}")


def _pack(value: dict[str, Any]) -> bytes:
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


def _unpack(body: bytes) -> dict[str, Any]:
    try:
        value = msgpack.unpackb(body, raw=False, strict_map_key=True, max_ext_len=0)
    except Exception as error:
        raise FrameFormatError(f"not a msgpack map: {type(error).__name__}") from None
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise FrameFormatError("not a msgpack map of text")
    return value


def _printable(value: Any, depth: int = 0) -> Any:
    if depth > _MAX_DEPTH:
        raise FrameFormatError(f"a reply nested deeper than {_MAX_DEPTH}")
    if isinstance(value, str) and not value.isprintable():
        return "".join(c for c in value if c.isprintable() or c in "\n\t")
    if isinstance(value, list):
        return [_printable(item, depth + 1) for item in value]
    if isinstance(value, dict):
        return {_printable(key, depth + 1): _printable(item, depth + 1) for key, item in value.items()}
    return value
