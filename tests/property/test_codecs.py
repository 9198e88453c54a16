"""Codecs on any values and any bytes: errors within their bounds, sizes as announced, no NaN hidden."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ravnest_p2p.core import compression
from ravnest_p2p.core.errors import ChunkMismatchError, NonFiniteError
from ravnest_p2p.training.codecs import Feedback, Int4, Predicted, codec_of

NAMES = compression.CODECS[1:]
elements = st.integers(0, 200_000)


def values(count: int, exponent: float, seed: int, shape: str = "normal") -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    found = torch.randn(count, generator=generator) * 2.0**exponent
    if shape == "outliers":
        found *= torch.where(torch.rand(count, generator=generator) < 0.01, 1e3, 1.0)
    if shape == "sparse":
        found *= torch.rand(count, generator=generator) < 0.05
    return found


def blocks_of(flat: Tensor, size: int) -> Tensor:
    padded = torch.cat([flat, flat.new_zeros(-flat.numel() % size)])
    return padded.view(-1, size).abs().amax(1).repeat_interleave(size)[: flat.numel()]


def bound(name: str, flat: Tensor) -> Tensor:
    """Largest error of each value."""
    magnitude = flat.abs()
    if name == "fp16":
        return magnitude * 2.0**-11 + blocks_of(flat, max(flat.numel(), 1)) * 2.0**-38 + 2.0**-144
    if name == "bf16":
        return magnitude * 2.0**-8 + 2.0**-133
    if name == "int8":
        return blocks_of(flat, 256) * (0.5 / 127) * 1.01 + 2.0**-120
    whole = blocks_of(flat, max(flat.numel(), 1))
    return blocks_of(flat, 32) * (0.5 / 7.33) * 1.03 + whole * 2.0**-15.5 + 2.0**-99


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(NAMES),
    elements,
    st.floats(-100, 90),
    st.sampled_from(["normal", "outliers", "sparse"]),
    st.integers(0, 99),
)
def test_errors_stay_within_their_bound(
    name: str, count: int, exponent: float, shape: str, seed: int
) -> None:
    flat = values(count, exponent, seed, shape)
    before = flat.clone()
    data = codec_of(name, seed).encode(flat)
    assert data is not None
    assert data.numel() == compression.encoded_bytes(name, count)
    found = codec_of(name).decode(data, count)
    assert torch.equal(flat, before)
    assert ((found - flat).abs() <= bound(name, flat)).all()


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(NAMES),
    st.integers(1, 100_000),
    st.sampled_from([math.nan, math.inf, -math.inf]),
    st.data(),
)
def test_what_is_not_finite_is_never_encoded_as_a_number(
    name: str, count: int, wrong: float, data: st.DataObject
) -> None:
    flat = values(count, 0, 1)
    flat[data.draw(st.integers(0, count - 1))] = wrong
    assert codec_of(name).encode(flat) is None


@pytest.mark.parametrize("name", NAMES)
def test_the_largest_floats_are_held_or_refused(name: str) -> None:
    codec, flat = codec_of(name), torch.full((2000,), torch.finfo(torch.float32).max)
    data = codec.encode(flat)
    assert data is None or torch.isfinite(codec.decode(data, 2000)).all()
    zeros = codec.encode(torch.zeros(2000))
    assert zeros is not None
    assert codec.decode(zeros, 2000).abs().max() == 0


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(NAMES), st.integers(0, 3000), st.binary(max_size=600), st.integers(0, 99))
def test_any_bytes_are_decoded_or_refused_by_name(name: str, count: int, begin: bytes, seed: int) -> None:
    codec = codec_of(name)
    size = codec.nbytes(count)
    payload = torch.randint(0, 256, (size,), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    head = begin[:size]
    payload[: len(head)] = torch.tensor(list(head), dtype=torch.uint8)
    try:
        found = codec.decode(payload, count)
    except NonFiniteError:
        return
    assert found.shape == (count,)
    assert found.dtype == torch.float32
    if name in ("int8", "int4"):
        assert torch.isfinite(found).all()


@given(st.sampled_from(NAMES), st.integers(0, 3000), st.integers(-100, 100).filter(bool))
def test_another_number_of_bytes_is_refused(name: str, count: int, more: int) -> None:
    codec = codec_of(name)
    with pytest.raises(ChunkMismatchError):
        codec.decode(torch.zeros(max(codec.nbytes(count) + more, 0), dtype=torch.uint8), count + (not count))


@pytest.mark.parametrize("name", ["fp16", "int8", "int4"])
@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf, -1.0, 3e38])
def test_scales_that_no_encoder_writes_are_refused(name: str, scale: float) -> None:
    codec = codec_of(name)
    payload = codec.encode(torch.randn(2000))
    assert payload is not None
    if name == "int8":
        payload[2:4].view(torch.bfloat16).fill_(scale)
    else:
        payload[:4].view(torch.float32).fill_(scale)
    with pytest.raises(NonFiniteError):
        codec.decode(payload, 2000)


def test_a_start_outside_of_the_noise_is_refused() -> None:
    codec = codec_of("int4")
    for start in (-1, 1 << 15, 2**31 - 1):
        payload = codec.encode(torch.randn(2000))
        assert payload is not None
        payload[4:8].view(torch.int32).fill_(start)
        with pytest.raises(NonFiniteError):
            codec.decode(payload, 2000)


@pytest.mark.parametrize("name", ["fp16", "bf16", "int8"])
def test_a_value_that_passes_through_several_stages_loses_once(name: str) -> None:
    codec, flat = codec_of(name), values(5000, -20, 3, "outliers")
    once = codec.decode(codec.encode(flat), 5000)  # type: ignore[arg-type]
    assert torch.equal(codec.decode(codec.encode(once), 5000), once)  # type: ignore[arg-type]


def test_four_bits_are_right_on_average() -> None:
    codec, flat = Int4(seed=1), values(4096, -25, 5)
    total = torch.zeros(4096)
    for _ in range(400):
        total += codec.decode(codec.encode(flat), 4096)  # type: ignore[arg-type]
    step = blocks_of(flat, 32) / 7.33
    single = (codec.decode(codec.encode(flat), 4096) - flat) / step  # type: ignore[arg-type]
    mean = (total / 400 - flat) / step
    assert 0.25 < single.std() < 0.32, "uniform over a step"
    assert mean.std() < 0.032, "twenty times less after four hundred"


def test_what_feedback_loses_does_not_add_up() -> None:
    codec, feedback = Int4(), Feedback(Int4())
    sent, plain, exact = torch.zeros(4096), torch.zeros(4096), torch.zeros(4096)
    for number in range(50):
        flat = values(4096, 0, number)
        exact += flat
        data = feedback.encode(flat)
        assert data is not None
        feedback.sent()
        sent += codec.decode(data, 4096)
        plain += codec.decode(codec.encode(flat), 4096)  # type: ignore[arg-type]
    step = 3.0 / 7.33
    assert (sent - exact).abs().max() < 1.5 * step
    assert (sent - exact).norm() < 0.3 * (plain - exact).norm()


def test_what_was_not_sent_is_not_owed() -> None:
    feedback, flat = Feedback(Int4()), values(4096, 0, 1)
    feedback.encode(flat)
    assert feedback.encode(torch.full((4096,), math.nan)) is None
    data = feedback.encode(torch.zeros(4096))
    assert data is not None
    assert Int4().decode(data, 4096).abs().max() == 0


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([(4, 1000), (1, 4096), (16, 257), (3, 5, 7)]), st.integers(0, 99))
def test_both_ends_predict_the_same(shape: tuple[int, ...], seed: int) -> None:
    count = math.prod(shape)
    near, far, codec = Predicted(Int4(seed), shape[0]), Predicted(Int4(), shape[0]), Int4(seed)
    common = values(count // shape[0], 5, seed).expand(shape[0], -1).reshape(-1)
    for number in range(8):
        flat = common + values(count, 0, 1000 + number)
        if number == 3:
            assert near.encode(flat * math.nan) is None
        data = near.encode(flat)
        assert data is not None
        near.sent()
        found = far.decode(data, count)
    plain = codec.decode(codec.encode(flat), count)  # type: ignore[arg-type]
    assert (found - flat).norm() < 0.3 * (plain - flat).norm()
