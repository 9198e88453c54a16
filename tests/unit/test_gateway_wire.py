"""Gateway messages: what is written is read back, and nothing else is."""

from __future__ import annotations

import inspect

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravnest_p2p.core import errors
from ravnest_p2p.core.errors import (
    BlobError,
    FrameFormatError,
    FrameTooLargeError,
    JobError,
    OurFault,
    RavnestError,
    RemoteFault,
    UserFault,
)
from ravnest_p2p.network import gateway as wire

HASH = "ab" * 32
REQUESTS = [
    wire.Hello(),
    wire.PutBlob(hash=HASH, size=0),
    wire.GetBlob(hash=HASH, offset=7),
    wire.Submit(record=b"sealed"),
    wire.Peers(),
    wire.Jobs(),
    wire.Status(job=HASH),
    wire.Logs(job=None, after=3, limit=5),
    wire.Result(job=HASH),
    wire.Cancel(record=b"sealed"),
]


def _body(message: bytes, limit: int) -> bytes:
    length = wire.body_length(message[: wire.HEADER_BYTES], limit)
    assert length == len(message) - wire.HEADER_BYTES
    return message[wire.HEADER_BYTES :]


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: request.op)
def test_a_request_is_read_as_it_was_written(request_: wire.Request) -> None:
    message = wire.encode_request(request_)
    assert wire.decode_request(_body(message, wire.MAX_REQUEST_BYTES)) == request_


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"op": "format_disk"},
        {"op": "hello", "extra": 1},
        {"op": "put_blob", "hash": HASH},
        {"op": "put_blob", "hash": HASH, "size": -1},
        {"op": "put_blob", "hash": HASH, "size": 1 << 60},
        {"op": "put_blob", "hash": HASH, "size": "12"},
        {"op": "put_blob", "hash": HASH, "size": True},
        {"op": "get_blob", "hash": "../../etc/passwd"},
        {"op": "get_blob", "hash": HASH.upper()},
        {"op": "get_blob", "hash": HASH + "\n"},
        {"op": "status", "job": HASH[:-1]},
        {"op": "logs", "limit": 1 << 40},
        {"op": "trace", "job": HASH, "last_s": 0},
        {"op": "trace", "job": HASH, "last_s": float("nan")},
        {"op": "trace", "job": HASH, "last_s": 1e9},
        {"op": "trace", "last_s": 1.0},
        {"op": "submit", "record": "text"},
        {"op": "submit", "record": b""},
        {"op": "submit", "record": b"x" * (wire.MAX_RECORD_BYTES + 1)},
    ],
    ids=str,
)
def test_a_malformed_request_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(FrameFormatError):
        wire.decode_request(msgpack.packb(fields))


@given(st.binary(max_size=300))
def test_any_bytes_are_a_request_or_a_named_error(body: bytes) -> None:
    try:
        request = wire.decode_request(body)
    except FrameFormatError:
        return
    assert isinstance(request, tuple(type(known) for known in REQUESTS))


@given(st.binary(max_size=300))
def test_any_bytes_are_a_reply_or_a_named_error(body: bytes) -> None:
    try:
        reply = wire.decode_reply(body)
    except RavnestError:
        return
    assert isinstance(reply, dict)


def test_a_nest_of_lists_is_refused() -> None:
    for depth in (20, 900, 5000):
        nest = b"\x81\xa1x" + b"\x91" * depth + b"\xc0"
        with pytest.raises(FrameFormatError):
            wire.decode_reply(nest)
        with pytest.raises(FrameFormatError):
            wire.decode_request(nest)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**62), 2**62)
    | st.floats(allow_nan=False)
    | st.binary(max_size=9)
    | st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["a", "b", "c"]), values, max_size=3))
def test_a_reply_is_read_as_it_was_written(reply: dict[str, object]) -> None:
    assert wire.decode_reply(_body(wire.encode_reply(reply), wire.MAX_REPLY_BYTES)) == reply


def test_text_of_a_reply_can_be_printed() -> None:
    reply = {"text": "a\x1b[31mred\x07\nb", "deep": [{"k\x00ey": "\u202eback"}]}
    read = wire.decode_reply(wire.encode_reply(reply)[wire.HEADER_BYTES :])
    assert read == {"text": "a[31mred\nb", "deep": [{"key": "back"}]}


def test_lengths_over_the_limit_are_refused() -> None:
    header = (wire.CHUNK_BYTES + 1).to_bytes(4, "big")
    with pytest.raises(FrameTooLargeError):
        wire.body_length(header, wire.CHUNK_BYTES)
    assert wire.body_length(wire.CHUNK_BYTES.to_bytes(4, "big"), wire.CHUNK_BYTES) == wire.CHUNK_BYTES
    with pytest.raises(FrameTooLargeError):
        wire.frame(bytes(wire.CHUNK_BYTES + 1), wire.CHUNK_BYTES)
    with pytest.raises(FrameTooLargeError):
        wire.encode_reply({"text": "x" * wire.MAX_REPLY_BYTES})


KINDS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, RavnestError) and not issubclass(kind, OurFault) and "__init__" not in vars(kind)
]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_arrives_as_the_same_class(kind: type[RavnestError]) -> None:
    with pytest.raises(RavnestError, match=r"^why$") as raised:
        wire.decode_reply(wire.encode_reply(wire.reply_of_error(kind("why")))[wire.HEADER_BYTES :])
    assert type(raised.value) is kind


def test_an_error_that_takes_more_than_a_message_keeps_its_fault() -> None:
    raised = wire.error_from_reply({"error": "CoMemberLostError", "message": "gone"})
    assert isinstance(raised, RemoteFault)
    assert "gone" in str(raised)


def test_the_other_sides_own_faults_are_remote_faults() -> None:
    raised = wire.error_from_reply(wire.reply_of_error(OurFault("a bug")))
    assert isinstance(raised, RemoteFault)
    assert "a bug" in str(raised)


@pytest.mark.parametrize("name", ["NoSuchError", "annotations", "__doc__", "OSError", "", 7, None])
def test_an_unknown_error_is_a_remote_fault(name: object) -> None:
    raised = wire.error_from_reply({"error": name, "message": "m"})
    assert type(raised) is RemoteFault


def test_the_fault_is_said() -> None:
    assert wire.reply_of_error(JobError("x"))["fault"] == "user"
    assert wire.reply_of_error(BlobError("x"))["fault"] == "remote"
    assert wire.reply_of_error(OurFault("x"))["fault"] == "ours"
    assert issubclass(JobError, UserFault)
    assert len(wire.reply_of_error(JobError("x" * 10**6))["message"]) < 10_000
