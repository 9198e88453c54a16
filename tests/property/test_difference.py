"""Codecs of differences on any values and any bytes: sizes as announced, nothing hostile taken."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ravnest_p2p.core.errors import ChunkMismatchError, NonFiniteError
from ravnest_p2p.training.averaging import Chunk
from ravnest_p2p.training.difference import CODECS, DifferenceCodec, Sparse, difference_codec

MADE = [difference_codec(name) for name in CODECS] + [Sparse(bits) for bits in (1, 3, 6, 7, 8)]
codecs = st.sampled_from(MADE)
lengths = st.one_of(st.integers(0, 300), st.integers(4000, 9000), st.just(65_536))


def values(length: int, exponent: float, seed: int, ties: bool = False) -> Chunk:
    chance = np.random.default_rng(seed)
    found = chance.integers(-2, 3, length) if ties else chance.standard_t(4, length)
    return (found * 2.0**exponent).astype(np.float32)


@settings(max_examples=120, deadline=None)
@given(codecs, lengths, st.floats(-60, 60), st.booleans(), st.integers(0, 99))
def test_sizes_follow_from_lengths_and_what_comes_out_is_nearer_than_nothing(
    codec: DifferenceCodec, length: int, exponent: float, ties: bool, seed: int
) -> None:
    vector = values(length, exponent, seed, ties)
    before = vector.copy()
    payload = codec.encode(vector)
    assert payload.nbytes == codec.nbytes(length)
    found = codec.decode(np.frombuffer(payload.tobytes(), np.uint8), length)
    assert np.array_equal(vector, before)
    assert found.dtype == np.float32
    assert found.shape == vector.shape
    assert np.linalg.norm(found.astype(np.float64) - vector) <= np.linalg.norm(vector.astype(np.float64))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.integers(1, 9000), st.booleans(), st.integers(0, 99))
def test_the_sparse_one_sends_the_largest_of_each_row(bits: int, length: int, ties: bool, seed: int) -> None:
    codec, vector = Sparse(bits), values(length, 0, seed, ties)
    found = codec.decode(codec.encode(vector), length)
    for start in range(0, length, 4096):
        row, got = np.abs(vector[start : start + 4096]), found[start : start + 4096]
        count = -(-len(row) // 2**bits)
        sent = got != 0
        if not ties:
            assert sent.sum() == count
        assert row[sent].min(initial=np.inf) >= np.sort(row)[-count]
        assert (np.sign(got[sent]) == np.sign(vector[start : start + 4096][sent])).all()
        assert len(np.unique(np.abs(got[sent]))) <= 2


@settings(max_examples=150, deadline=None)
@given(codecs, st.integers(1, 9000), st.integers(0, 1 << 30), st.integers(0, 6))
def test_any_bytes_decode_to_finite_values_or_are_refused(
    codec: DifferenceCodec, length: int, seed: int, changed: int
) -> None:
    chance = np.random.default_rng(seed)
    payload = codec.encode(values(length, 0, seed % 100))
    if changed:
        payload[chance.integers(len(payload), size=changed)] = chance.integers(256, size=changed)
    else:
        payload[:] = chance.integers(256, size=len(payload))
    try:
        assert np.isfinite(codec.decode(payload, length)).all()
    except (ChunkMismatchError, NonFiniteError):
        pass


@given(codecs, st.integers(0, 9000), st.integers(-20, 20))
def test_other_sizes_are_refused(codec: DifferenceCodec, length: int, more: int) -> None:
    size = codec.nbytes(length) + more
    if more and size >= 0:
        with pytest.raises(ChunkMismatchError):
            codec.decode(np.zeros(size, np.uint8), length)


@pytest.mark.parametrize("codec", MADE, ids=lambda codec: codec.name)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_encoded(codec: DifferenceCodec, bad: float) -> None:
    vector = values(5000, 0, 0)
    vector[4500] = bad
    with pytest.raises(NonFiniteError):
        codec.encode(vector)


def row(*bits_at: int, scales: tuple[int, int] = (0x3F80, 0x4000)) -> np.ndarray:
    """A row of 64 values of which two are sent; 5 bits of each place, a line of 4, two signs, two sizes."""
    bits = np.zeros(24, np.uint8)
    bits[list(bits_at)] = 1
    return np.concatenate([np.array(scales, "<u2").view(np.uint8), np.packbits(bits)])


def test_places_and_magnitudes_of_a_row_by_hand() -> None:
    found = Sparse().decode(row(0, 10, 12, 14, 17), 64)
    assert {int(place): float(found[place]) for place in np.flatnonzero(found)} == {1: -1.0, 32: 2.0}


@pytest.mark.parametrize(
    "payload",
    [
        row(10),
        row(10, 11, 12),
        row(10, 11),
        row(0, 10, 11),
        row(10, 13),
        row(10, 12, scales=(0x7F80, 0x3F80)),
        row(10, 12, scales=(0x3F80, 0x7FC0)),
        row(10, 12, scales=(0xBF80, 0x3F80)),
        row(10, 12, scales=(0x3F80, 0x7F00)),
    ],
    ids=["too few", "too many", "repeated", "backwards", "beyond", "infinite", "NaN", "negative", "huge"],
)
def test_hostile_rows_are_refused(payload: np.ndarray) -> None:
    with pytest.raises((ChunkMismatchError, NonFiniteError)):
        Sparse().decode(payload, 64)
