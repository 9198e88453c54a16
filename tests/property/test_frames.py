"""The frame codec under hypothesis: round trips, and nothing a stranger sends crashes it."""

import itertools
import tracemalloc

from hypothesis import given, settings
from hypothesis import strategies as st

from ravnest_p2p.core.errors import FrameError
from ravnest_p2p.network.frames import HEAD_BYTES, FrameDecoder, FrameKind, Limits, encode

LIMITS = Limits(max_header_bytes=4096, max_payload_bytes=1 << 16)

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.text(max_size=20)
    | st.binary(max_size=20)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)
headers = st.dictionaries(st.text(max_size=8), values, max_size=6)
u64 = st.integers(0, 2**64 - 1)


@st.composite
def frames(draw: st.DrawFn) -> tuple[bytes, tuple]:
    kind = draw(st.sampled_from(FrameKind))
    header = draw(headers)
    buffers = draw(st.lists(st.binary(max_size=300), max_size=4))
    seq, ack = draw(u64), draw(u64)
    data = b"".join(encode(kind, header, buffers, seq=seq, ack=ack))
    return data, (kind, seq, ack, header, b"".join(buffers))


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(c % (len(data) + 1) for c in cuts)})
    return [data[a:b] for a, b in itertools.pairwise(places)]


@given(st.lists(frames(), min_size=1, max_size=4), st.lists(st.integers(0, 10_000), max_size=10))
def test_any_frames_in_any_pieces_come_back(sent: list, cuts: list[int]):
    decoder = FrameDecoder(LIMITS)
    got = [f for part in cut(b"".join(data for data, _ in sent), cuts) for f in decoder.feed(part)]
    assert [(f.kind, f.seq, f.ack, f.header, bytes(f.payload)) for f in got] == [fields for _, fields in sent]
    assert decoder.idle


@given(frames(), st.data())
def test_a_truncated_frame_gives_nothing(sent: tuple, data: st.DataObject):
    encoded, _ = sent
    decoder = FrameDecoder(LIMITS)
    length = data.draw(st.integers(0, len(encoded) - 1))
    assert decoder.feed(encoded[:length]) == []
    assert decoder.idle == (length == 0)


@given(frames(), st.lists(st.tuples(st.integers(0, 10_000), st.integers(1, 255)), min_size=1, max_size=5))
def test_a_mutated_frame_is_refused_or_incomplete(sent: tuple, changes: list[tuple[int, int]]):
    encoded, fields = sent
    mutated = bytearray(encoded)
    for at, value in changes:
        mutated[at % len(mutated)] ^= value
    if mutated == encoded:
        return
    try:
        got = FrameDecoder(LIMITS).feed(mutated)
    except FrameError:
        return
    assert all((f.kind, f.seq, f.ack, f.header, bytes(f.payload)) == fields for f in got) is (got == [])


@settings(max_examples=60)
@given(st.binary(max_size=2000), st.booleans())
def test_garbage_costs_no_memory(garbage: bytes, with_magic: bool):
    data = (b"RV\x02\x04\x00\x00\x00\x00" if with_magic else b"") + garbage
    tracemalloc.start()
    try:
        FrameDecoder(LIMITS).feed(data)
    except FrameError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 100_000 + 8 * len(data) + HEAD_BYTES
